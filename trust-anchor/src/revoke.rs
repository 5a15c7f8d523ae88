//! Who is refused whatever certificates say: kept on disk with a version that only grows, and told to every process.

use std::collections::BTreeSet;

use hawser_api::proto::issuer::Denied;
use hawser_api::{SpiffeId, TrustDomain};
use hawser_tunnel::kept::{Kept, KeptError};
use hawser_tunnel::verify::AuthorityId;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::rotate::Refused;
use crate::rotate::course::authority_id;

const FILE: &str = "denied.json";
/// Most entries of all kinds: a message of them stays far under a megabyte.
const ENTRIES_MAX: usize = 4096;
/// Serial numbers have at most 20 octets (RFC 5280 section 4.1.2.2).
const SERIAL_MAX: usize = 40;

/// One thing to deny.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Entry {
    /// A whole cluster.
    TrustDomain(TrustDomain),
    /// An identity.
    Identity(SpiffeId),
    /// A leaf: its trust domain and serial number, lower-case hex.
    Serial(TrustDomain, String),
    /// The key of a root or an intermediate, hex.
    Authority(String),
}

/// The deny-list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DenyList {
    pub(crate) version: u64,
    entries: BTreeSet<Entry>,
}

impl Entry {
    /// A serial number as an operator writes it: `trust-domain/serial`, or that of a leaf of our own.
    pub(crate) fn serial(text: &str, own: &TrustDomain) -> Result<Self, Refused> {
        let remedy = "take it from `hawser trust status`: hex digits, with the trust domain before a slash if it is a \
                      linked cluster's";
        let (domain, serial) = match text.split_once('/') {
            Some((domain, serial)) => {
                (domain.parse().map_err(|_| Refused::new(format!("{domain:?} is no trust domain"), remedy))?, serial)
            }
            None => (own.clone(), text),
        };
        let serial = serial.to_ascii_lowercase().replace(':', "");
        let good = !serial.is_empty() && serial.len() <= SERIAL_MAX && serial.bytes().all(|b| b.is_ascii_hexdigit());
        if !good {
            return Err(Refused::new(format!("{text:?} is no serial number"), remedy));
        }
        Ok(Self::Serial(domain, serial))
    }

    /// For people and the audit log.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::TrustDomain(domain) => format!("cluster {domain}"),
            Self::Identity(id) => format!("identity {id}"),
            Self::Serial(domain, serial) => format!("serial {domain}/{serial}"),
            Self::Authority(key) => format!("authority {key}"),
        }
    }
}

impl DenyList {
    pub(crate) fn read(kept: &Kept) -> Result<Self, KeptError> {
        let Some(value) = kept.read(FILE)? else { return Ok(Self::default()) };
        let path = kept.directory().join(FILE);
        serde_json::from_value(value).map_err(|e| KeptError::Changed { path, reason: e.to_string() })
    }

    /// On disk when it returns.
    pub(crate) fn write(&self, kept: &Kept) -> std::io::Result<()> {
        kept.write(FILE, &serde_json::to_value(self)?)
    }

    /// The list with an entry more or fewer; `None`: it is so already.
    pub(crate) fn with(&self, entry: Entry, undo: bool, now_s: u64) -> Result<Option<Self>, Refused> {
        let mut next = self.clone();
        // Counted from the time, so that it does not fall back when this directory is lost.
        next.version = (self.version + 1).max(now_s);
        let changed = if undo { next.entries.remove(&entry) } else { next.entries.insert(entry) };
        if next.entries.len() > ENTRIES_MAX {
            return Err(Refused::new(
                format!("{ENTRIES_MAX} are denied already"),
                "deny a whole cluster or an authority instead of single certificates",
            ));
        }
        Ok(changed.then_some(next))
    }

    /// Whether somebody may not have a certificate.
    pub(crate) fn denies(&self, id: &SpiffeId) -> bool {
        self.entries.contains(&Entry::Identity(id.clone()))
            || self.entries.contains(&Entry::TrustDomain(id.trust_domain()))
    }

    /// Whether any of these keys is.
    pub(crate) fn denies_any(&self, authorities: &[AuthorityId]) -> bool {
        authorities.iter().any(|id| self.entries.contains(&Entry::Authority(id.to_string())))
    }

    /// The roots that are not denied.
    pub(crate) fn without(&self, mut roots: Vec<CertificateDer<'static>>) -> Vec<CertificateDer<'static>> {
        roots.retain(|root| authority_id(root).is_none_or(|id| !self.denies_any(&[id])));
        roots
    }

    /// As it goes to every process.
    pub(crate) fn message(&self) -> Denied {
        let mut denied = Denied { version: self.version, ..Denied::default() };
        for entry in &self.entries {
            match entry {
                Entry::TrustDomain(domain) => denied.trust_domains.push(domain.to_string()),
                Entry::Identity(id) => denied.identities.push(id.to_string()),
                Entry::Serial(domain, serial) => denied.serials.push(format!("{domain}/{serial}")),
                Entry::Authority(key) => denied.authorities.extend(crate::hex::decode(key)),
            }
        }
        denied
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain() -> TrustDomain {
        "east.example".parse().unwrap()
    }

    #[test]
    fn the_version_grows_with_each_change_and_what_is_so_already_changes_nothing() {
        let entry = Entry::TrustDomain(domain());
        let first = DenyList::default().with(entry.clone(), false, 1000).unwrap().unwrap();
        assert!(first.version >= 1000);
        assert_eq!(first.with(entry.clone(), false, 1001).unwrap(), None);
        let undone = first.with(entry, true, 0).unwrap().unwrap();
        assert!(undone.version > first.version);
        assert!(!undone.denies(&"spiffe://east.example/ns/a/sa/b".parse().unwrap()));
    }

    #[test]
    fn it_is_bounded() {
        let mut list = DenyList::default();
        for n in 0..ENTRIES_MAX {
            list.entries.insert(Entry::Serial(domain(), format!("{n:x}")));
        }
        assert!(list.with(Entry::TrustDomain(domain()), false, 0).unwrap_err().message.contains("denied already"));
        assert!(list.with(Entry::Serial(domain(), "0".into()), true, 0).unwrap().is_some(), "undo still works");
    }

    #[test]
    fn serial_numbers_are_read_as_tools_write_them_and_nothing_else_is() {
        let ours = Entry::Serial(domain(), "0abc".into());
        assert_eq!(Entry::serial("0A:BC", &domain()).unwrap(), ours);
        assert_eq!(Entry::serial("east.example/0abc", &"x.y".parse().unwrap()).unwrap(), ours);
        for bad in ["", "xyz", "a/b/c", "east.example/", &"a".repeat(41), "E A/1"] {
            assert!(Entry::serial(bad, &domain()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_process_that_dies_at_any_step_has_the_old_list_or_the_new() {
        let directory = tempfile::tempdir().unwrap();
        Kept::open(directory.path()).unwrap();
        for steps in 0..8 {
            let kept = Kept::open(directory.path()).unwrap();
            let old = DenyList { version: 1, entries: BTreeSet::new() };
            old.write(&kept).unwrap();
            let new = old.with(Entry::TrustDomain(domain()), false, 9).unwrap().unwrap();
            kept.stop_after(steps);
            let written = new.write(&kept);
            let found = DenyList::read(&Kept::open(directory.path()).unwrap()).unwrap();
            assert!(found == old || found == new);
            assert!(written.is_err() || found == new);
        }
    }
}
