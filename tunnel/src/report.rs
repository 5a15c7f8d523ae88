//! A process's own account of its trust, as it is in memory: what the mirror controller is told, and rotation rests on.
//!
//! ```text
//! Credentials ─▶ report ─▶ TrustReport ─▶ discovery (Status.trust) ─▶ mirror controller ─▶ peers, trust anchor
//! ```
//!
//! It reads and never decides. Its size does not depend on what peers do.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use hawser_api::proto::discovery::{self, TrustReport};

use crate::tls::{Credentials, Dependence};
use crate::verify::AuthorityId;

/// Authorities of one trust domain that are named; a peer can make as many intermediates as it likes. What rests on the
/// others is told as one sum, under no name.
pub const AUTHORITIES_MAX: usize = 32;

/// What this process verifies peers by, and what is live by it.
pub fn trust(credentials: &Credentials) -> TrustReport {
    let loaded = credentials.loaded().into_iter().map(|loaded| discovery::LoadedAnchors {
        trust_domain: loaded.domain.to_string(),
        sequence: loaded.sequence,
        authorities: loaded.authorities.iter().map(|key| key.0.to_vec()).collect(),
    });
    TrustReport {
        loaded: loaded.collect(),
        dependences: dependences(credentials.dependences()),
        leaf: own_leaf(credentials),
    }
}

/// Our own certificate; `None` while there is none, or none that our own anchors still prove.
fn own_leaf(credentials: &Credentials) -> Option<discovery::OwnLeaf> {
    let identity = credentials.identity()?;
    let svid = credentials.proves(identity.chain()).ok()?;
    // The leaf's issuer is first, the anchor last; an anchor that issued it itself is both.
    let (issuer, anchor) = (svid.authorities.first()?, svid.authorities.last()?);
    Some(discovery::OwnLeaf {
        spiffe_id: identity.id().to_string(),
        issuer: issuer.0.to_vec(),
        anchor: anchor.0.to_vec(),
        not_after_ms: millis(identity.not_after()),
        serial: svid.serial,
    })
}

/// The same for the wire: of each trust domain those on which most rests, and the rest as one sum.
fn dependences(all: Vec<Dependence>) -> Vec<discovery::Dependence> {
    let mut domains: BTreeMap<_, Vec<Dependence>> = BTreeMap::new();
    for dependence in all {
        domains.entry(dependence.domain.clone()).or_default().push(dependence);
    }
    let mut told = Vec::new();
    for (domain, mut dependences) in domains {
        dependences.sort_by_key(|dependence| (std::cmp::Reverse(dependence.live), dependence.authority));
        let rest = dependences.split_off(dependences.len().min(AUTHORITIES_MAX));
        let wire = |authority: Option<AuthorityId>, live, until| discovery::Dependence {
            trust_domain: domain.to_string(),
            authority: authority.map(|key| key.0.to_vec()).unwrap_or_default(),
            live,
            until_ms: millis(until),
        };
        told.extend(dependences.iter().map(|d| wire(Some(d.authority), d.live, d.until)));
        if let Some(until) = rest.iter().map(|dependence| dependence.until).max() {
            told.push(wire(None, rest.iter().map(|dependence| dependence.live).sum(), until));
        }
    }
    told
}

fn millis(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::{Pki, domain};

    #[test]
    fn it_tells_what_is_loaded_and_who_issued_our_own_certificate() {
        let pki = Pki::new();
        let credentials = pki.linked("west", "/ns/shop/sa/web", &["east"]);
        let report = trust(&credentials);
        let root = AuthorityId::of_key(&spki(pki.root())).0.to_vec();
        let loaded: Vec<_> = report.loaded.iter().map(|l| (l.trust_domain.as_str(), l.sequence)).collect();
        assert_eq!(loaded, [("east.hawser.test", 0), ("west.hawser.test", 1)]);
        assert!(report.loaded.iter().all(|loaded| loaded.authorities == [root.clone()]));
        let leaf = report.leaf.unwrap();
        assert_eq!((leaf.anchor, leaf.spiffe_id.as_str()), (root.clone(), "spiffe://west.hawser.test/ns/shop/sa/web"));
        assert_ne!(leaf.issuer, root);
    }

    fn spki(der: &[u8]) -> Vec<u8> {
        use x509_parser::prelude::FromDer;
        let (_, cert) = x509_parser::prelude::X509Certificate::from_der(der).unwrap();
        cert.tbs_certificate.subject_pki.raw.to_vec()
    }

    #[test]
    fn a_peer_with_many_intermediates_makes_no_long_report() {
        let until = UNIX_EPOCH + Duration::from_secs(10);
        let one = |at: u16| Dependence {
            domain: domain("east"),
            authority: AuthorityId::of_key(&at.to_be_bytes()),
            live: 2,
            until: until + Duration::from_secs(u64::from(at)),
        };
        let told = dependences((0..1000).map(one).collect());
        assert_eq!(told.len(), AUTHORITIES_MAX + 1);
        assert_eq!(told.iter().map(|d| d.live).sum::<u64>(), 2000);
        let rest = told.last().unwrap();
        assert!(rest.authority.is_empty());
    }
}
