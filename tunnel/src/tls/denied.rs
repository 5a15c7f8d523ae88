//! The deny-list: who is refused whatever certificates say.

use std::collections::BTreeSet;

use hawser_api::{SpiffeId, TrustDomain};

use crate::verify::AuthorityId;

/// Whom to refuse, in each of the ways that an operator can name somebody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Denials {
    /// Identities.
    pub identities: BTreeSet<SpiffeId>,
    /// Whole clusters.
    pub trust_domains: BTreeSet<TrustDomain>,
    /// Single leaves: serial numbers (lower-case hex) inside their trust domain.
    pub serials: BTreeSet<(TrustDomain, String)>,
    /// Keys of roots and intermediates: whatever rests on one of them.
    pub authorities: BTreeSet<AuthorityId>,
}

impl Denials {
    /// Whether a leaf with this identity and serial number, on a path that rests on these keys, is refused.
    pub fn covers(&self, id: &SpiffeId, serial: &str, authorities: &[AuthorityId]) -> bool {
        if self.identities.is_empty() && self.trust_domains.is_empty() && self.serials.is_empty() {
            return authorities.iter().any(|key| self.authorities.contains(key));
        }
        let domain = id.trust_domain();
        self.identities.contains(id)
            || self.trust_domains.contains(&domain)
            || authorities.iter().any(|key| self.authorities.contains(key))
            || self.serials.contains(&(domain, serial.to_owned()))
    }
}
