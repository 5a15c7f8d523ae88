//! What rests on which authority: every live [`VerifiedPeer`](super::VerifiedPeer) counts, until its last copy is dropped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use hawser_api::TrustDomain;
use parking_lot::Mutex;

use crate::verify::{AuthorityId, Svid};

/// The anchors in force for one trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedAnchors {
    /// Whose.
    pub domain: TrustDomain,
    /// `spiffe_sequence` of the bundle in force; 0 where the domain hangs under our own root.
    pub sequence: u64,
    /// The anchors' keys.
    pub authorities: Vec<AuthorityId>,
}

/// How much of one trust domain rests on one authority, a root or an intermediate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dependence {
    /// Whose peers.
    pub domain: TrustDomain,
    /// The authority's key.
    pub authority: AuthorityId,
    /// Live tunnels and sessions.
    pub live: u64,
    /// When the last of them must be over at the latest.
    pub until: SystemTime,
}

type Key = (TrustDomain, AuthorityId);

/// The count of one process.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// For each authority the ends of what rests on it, and how often each.
    counts: Mutex<BTreeMap<Key, BTreeMap<SystemTime, u64>>>,
}

/// One live peer.
#[derive(Debug)]
pub(super) struct Counted {
    live: Arc<Live>,
    keys: Vec<Key>,
    until: SystemTime,
}

impl Live {
    pub(super) fn count(self: &Arc<Self>, svid: &Svid) -> Arc<Counted> {
        let domain = svid.id.trust_domain();
        let keys = svid.authorities.iter().map(|authority| (domain.clone(), *authority)).collect();
        let counted = Counted { live: Arc::clone(self), keys, until: svid.not_after };
        let mut counts = self.counts.lock();
        for key in &counted.keys {
            *counts.entry(key.clone()).or_default().entry(counted.until).or_default() += 1;
        }
        drop(counts);
        Arc::new(counted)
    }

    pub(super) fn all(&self) -> Vec<Dependence> {
        let counts = self.counts.lock();
        let dependence = |((domain, authority), ends): (&Key, &BTreeMap<SystemTime, u64>)| {
            let (until, _) = ends.last_key_value()?;
            let live = ends.values().sum();
            Some(Dependence { domain: domain.clone(), authority: *authority, live, until: *until })
        };
        counts.iter().filter_map(dependence).collect()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.live.counts.lock();
        for key in &self.keys {
            let Some(ends) = counts.get_mut(key) else { continue };
            if let Some(count) = ends.get_mut(&self.until) {
                *count -= 1;
                if *count == 0 {
                    ends.remove(&self.until);
                }
            }
            if ends.is_empty() {
                counts.remove(key);
            }
        }
    }
}
