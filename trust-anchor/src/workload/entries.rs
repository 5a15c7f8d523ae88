//! Who may have which identity: the WorkloadIdentity objects that are in force, and what a caller gets of them. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use hawser_api::objects::Object;
use hawser_api::objects::identity::{Selectors, WorkloadIdentity};
use hawser_api::objects::load::Located;
use hawser_api::{ClusterName, SpiffeId, TrustDomain};

use super::attest::Attested;

/// Clients take no more in one answer (the Rust library draws the line at a hundred).
const GIVEN_MAX: usize = 100;
/// A JWT-SVID can be used by whoever sees it.
const JWT_TTL: Duration = Duration::from_secs(300);

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The object's name.
    pub(super) name: String,
    pub(super) id: SpiffeId,
    selectors: Selectors,
    pub(super) hint: String,
    pub(super) ttl: Option<Duration>,
    pub(super) jwt_ttl: Duration,
    pub(super) federates_with: Vec<ClusterName>,
    pub(super) dns_names: Vec<String>,
}

/// All entries by the name of their object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Entries(BTreeMap<String, Entry>);

impl Entries {
    /// Of all objects that are in force; entries of other trust domains are left out, and come back.
    pub(super) fn of<'o>(
        objects: impl IntoIterator<Item = &'o Located>,
        own: &TrustDomain,
    ) -> (Self, Vec<(&'o Located, String)>) {
        let (mut entries, mut foreign) = (BTreeMap::new(), Vec::new());
        for located in objects {
            let Object::WorkloadIdentity(object) = &located.object else { continue };
            match entry(object, own) {
                Ok(entry) => drop(entries.insert(entry.name.clone(), entry)),
                Err(error) => foreign.push((located, error)),
            }
        }
        (Self(entries), foreign)
    }

    /// What this process gets, in the order of the objects' names: the first is its default.
    pub(super) fn given(&self, caller: &Attested) -> Vec<Entry> {
        let matching = self.0.values().filter(|entry| matches(&entry.selectors, caller));
        matching.take(GIVEN_MAX).cloned().collect()
    }

    /// Whether any entry asks for the executable's hash, which costs the reading of the whole file.
    pub(super) fn want_hash(&self) -> bool {
        self.0.values().any(|entry| entry.selectors.sha256.is_some())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is an object of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

fn entry(object: &WorkloadIdentity, own: &TrustDomain) -> Result<Entry, String> {
    let spec = &object.spec;
    let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds));
    Ok(Entry {
        name: object.metadata.name.clone(),
        id: spec.id(own).map_err(|error| error.to_string())?,
        selectors: spec.selectors.clone(),
        hint: spec.hint.clone().unwrap_or_default(),
        ttl: spec.ttl_seconds.map(seconds),
        jwt_ttl: spec.jwt_ttl_seconds.map_or(JWT_TTL, seconds),
        federates_with: spec.federates_with.clone(),
        dns_names: spec.dns_names.clone(),
    })
}

/// All that are given must hold. Whoever selects nothing is nobody, whatever the loader let through.
fn matches(selectors: &Selectors, caller: &Attested) -> bool {
    let Selectors { uid, gid, path, sha256, cgroup } = selectors;
    *selectors != Selectors::default()
        && uid.is_none_or(|uid| uid == caller.uid)
        && gid.is_none_or(|gid| gid == caller.gid)
        && path.as_ref().is_none_or(|path| caller.path.as_ref() == Some(path))
        && sha256.as_ref().is_none_or(|hash| caller.sha256.as_ref() == Some(hash))
        && cgroup.as_ref().is_none_or(|group| within(group, &caller.cgroups))
}

/// In every hierarchy that says something: a process may be free to choose its place in one of several.
fn within(group: &str, all: &[String]) -> bool {
    let below = |path: &String| path.strip_prefix(group).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    !all.is_empty() && all.iter().all(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller() -> Attested {
        Attested {
            uid: 1000,
            gid: 100,
            path: Some("/usr/bin/web".into()),
            sha256: Some("ab".repeat(32)),
            cgroups: vec!["/system.slice/web.service".into()],
        }
    }

    #[test]
    fn every_selector_that_is_given_must_hold() {
        let caller = caller();
        let whole = Selectors {
            uid: Some(1000),
            gid: Some(100),
            path: caller.path.clone(),
            sha256: caller.sha256.clone(),
            cgroup: Some("/system.slice".into()),
        };
        assert!(matches(&whole, &caller));
        for wrong in [
            Selectors { uid: Some(0), ..whole.clone() },
            Selectors { gid: Some(0), ..whole.clone() },
            Selectors { path: Some("/usr/bin/we".into()), ..whole.clone() },
            Selectors { sha256: Some("cd".repeat(32)), ..whole.clone() },
            Selectors { cgroup: Some("/system.slice/web".into()), ..whole.clone() },
            Selectors { cgroup: Some("/system".into()), ..whole.clone() },
            Selectors::default(),
        ] {
            assert!(!matches(&wrong, &caller), "{wrong:?}");
        }
        let unseen = Attested { path: None, sha256: None, cgroups: vec![], ..caller.clone() };
        for alone in [
            Selectors { path: whole.path.clone(), ..Selectors::default() },
            Selectors { sha256: whole.sha256.clone(), ..Selectors::default() },
            Selectors { cgroup: whole.cgroup.clone(), ..Selectors::default() },
        ] {
            assert!(matches(&alone, &caller), "{alone:?}");
            assert!(!matches(&alone, &unseen), "what cannot be seen does not match: {alone:?}");
        }
        // One of two hierarchies is elsewhere.
        let split = Attested { cgroups: vec!["/system.slice/web.service".into(), "/mine".into()], ..caller };
        assert!(!matches(&Selectors { cgroup: whole.cgroup, ..Selectors::default() }, &split));
    }
}
