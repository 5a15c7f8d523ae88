//! What may be asked at the TCP door, and by whom: pure. The Unix socket needs no such rule, because the file system has
//! one.

use hawser_api::labels::{MIRROR_CONTROLLER_ACCOUNT, SYSTEM_NAMESPACE};
use hawser_api::{SpiffeId, TrustDomain};

use crate::issue::is_system;
use crate::refused::Refused;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// A certificate: the request itself says who asks.
    Issue,
    /// The bundle and the deny-list, as they change.
    WatchBundle,
    /// To be believed about who has loaded what: rotation rests on it.
    ReportFabric,
    /// A line in the audit log, or an answer to who came through the join door.
    Speak,
}

/// Whether who showed this certificate of the trust domain `own`, or none, may ask this.
pub(crate) fn may(peer: Option<&SpiffeId>, own: &TrustDomain, ask: Ask) -> Result<(), Refused> {
    if ask == Ask::Issue {
        return Ok(());
    }
    let peer = peer.ok_or(Refused::Nobody)?;
    if peer.trust_domain() != *own {
        return Err(Refused::OtherDomain(peer.clone()));
    }
    let controller = || peer.path() == format!("/ns/{SYSTEM_NAMESPACE}/sa/{MIRROR_CONTROLLER_ACCOUNT}");
    let allowed = match ask {
        Ask::Issue | Ask::WatchBundle => true,
        Ask::ReportFabric => controller(),
        Ask::Speak => is_system(peer),
    };
    if allowed { Ok(()) } else { Err(Refused::NotTheirs(peer.clone())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_for_everybody_and_the_rest_for_whom_it_concerns() {
        let own: TrustDomain = "east.example".parse().unwrap();
        let id = |text: &str| -> SpiffeId { format!("spiffe://{text}").parse().unwrap() };
        let system = |account: &str| id(&format!("east.example/ns/{SYSTEM_NAMESPACE}/sa/{account}"));
        let (gateway, controller) = (system("gateway"), system("mirror-controller"));
        let (web, stranger) = (id("east.example/ns/shop/sa/web"), id("west.example/ns/hawser-system/sa/gateway"));
        let impostor = id("east.example/ns/shop/sa/mirror-controller");
        let asks = [Ask::Issue, Ask::WatchBundle, Ask::Speak, Ask::ReportFabric];
        for (peer, allowed) in [
            (None, 1),
            (Some(&stranger), 1),
            (Some(&web), 2),
            (Some(&impostor), 2),
            (Some(&gateway), 3),
            (Some(&controller), 4),
        ] {
            for (n, ask) in asks.into_iter().enumerate() {
                assert_eq!(may(peer, &own, ask).is_ok(), n < allowed, "{peer:?} {ask:?}");
            }
        }
    }
}
