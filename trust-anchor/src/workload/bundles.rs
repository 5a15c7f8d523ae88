//! Which trust domains a workload may trust, and by which anchors: its own, and those of the links that its entries name.
//! Pure.

use std::collections::BTreeMap;
use std::time::SystemTime;

use hawser_api::TrustDomain;
use hawser_api::bundle::Bundle;
use hawser_api::proto::issuer::FabricReport;
use hawser_tunnel::verify::Anchor;
use rustls_pki_types::CertificateDer;

use super::entries::Entry;

/// Foreign trust domains that one answer holds (the Rust library takes two hundred).
const FOREIGN_MAX: usize = 128;
/// Bytes of one trust domain's anchors (the Rust library takes four MiB).
const BUNDLE_MAX: usize = 1024 * 1024;

/// What peers are trusted by, cleaned: a client that meets one bad certificate refuses the whole answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Trusted {
    pub(super) own: Bundle,
    /// Our intermediates as anchors of their own, beside the roots.
    pub(super) direct: Vec<CertificateDer<'static>>,
    /// By the link's name.
    foreign: BTreeMap<String, (TrustDomain, Bundle)>,
}

impl Trusted {
    /// From the published bundle and the mirror controller's report. What is left out, and why, comes back.
    pub(super) fn of(
        own: &TrustDomain,
        document: &str,
        fabric: &FabricReport,
        now: SystemTime,
    ) -> (Self, BTreeMap<String, String>) {
        let mut left_out = BTreeMap::new();
        let own_bundle = Bundle::parse(document).unwrap_or_default();
        let mut foreign = BTreeMap::new();
        for peer in fabric.peers.iter().take(FOREIGN_MAX) {
            let read = peer.trust_domain.parse::<TrustDomain>().map_err(|error| error.to_string()).and_then(|domain| {
                if domain == *own {
                    return Err("it claims this cluster's own trust domain".to_owned());
                }
                // A peer under our own root has no bundle of its own; the root's constraint holds it to its name.
                let shared = peer.bundle.is_empty();
                let bundle = if shared {
                    Bundle { jwt_authorities: Vec::new(), ..own_bundle.clone() }
                } else {
                    Bundle::parse(&peer.bundle).map_err(|error| error.to_string())?
                };
                Ok((domain.clone(), clean(bundle, &domain, now)?))
            });
            match read {
                Ok(found) => drop(foreign.insert(peer.cluster.clone(), found)),
                Err(reason) => drop(left_out.insert(peer.cluster.clone(), reason)),
            }
        }
        (Self { own: own_bundle, direct: Vec::new(), foreign }, left_out)
    }

    /// Our own anchors: the roots, and the intermediates by themselves for verifiers that cannot judge their constraint.
    pub(super) fn own_anchors(&self) -> impl Iterator<Item = &[u8]> {
        self.own.x509_authorities.iter().map(Vec::as_slice).chain(self.direct.iter().map(AsRef::as_ref))
    }

    /// The foreign trust domains of these entries. Never our own: clients would put it in its own place.
    pub(super) fn federated<'t>(
        &'t self,
        entries: &'t [Entry],
    ) -> impl Iterator<Item = (&'t TrustDomain, &'t Bundle)> + use<'t> {
        let links: std::collections::BTreeSet<&str> =
            entries.iter().flat_map(|entry| &entry.federates_with).map(|link| link.as_str()).collect();
        links.into_iter().filter_map(|link| self.foreign.get(link)).map(|(domain, bundle)| (domain, bundle))
    }
}

/// Only anchors that hold now; none left of some is no bundle at all.
fn clean(mut bundle: Bundle, domain: &TrustDomain, now: SystemTime) -> Result<Bundle, String> {
    let before = bundle.x509_authorities.len();
    let mut trouble = String::new();
    bundle.x509_authorities.retain(|der| match Anchor::read(der, domain) {
        Ok(anchor) if anchor.not_after() > now => true,
        Ok(_) => {
            trouble = "it has expired".into();
            false
        }
        Err(error) => {
            trouble = error.to_string();
            false
        }
    });
    if bundle.x509_authorities.is_empty() && before > 0 {
        return Err(format!("none of its {before} anchors can be used: {trouble}"));
    }
    if concatenated(&bundle).len() > BUNDLE_MAX {
        return Err(format!("its anchors have more than {BUNDLE_MAX} bytes"));
    }
    Ok(bundle)
}

/// Certificates in DER, one behind the other, as the Workload API has them.
pub(super) fn concatenated(bundle: &Bundle) -> Vec<u8> {
    bundle.x509_authorities.concat()
}

#[cfg(test)]
mod tests;
