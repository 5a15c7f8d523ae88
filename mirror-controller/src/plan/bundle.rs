//! Pure: what is in force for a peer, what is offered → whether it takes its place, or why not.
//!
//! Nothing goes back (the sequence is a floor), nothing that is half of a bundle is taken, and nothing is taken that the
//! Link pins. A bundle without keys is taken like any other: from then on nobody of that peer is trusted.

use std::time::SystemTime;

use hawser_api::TrustDomain;
use hawser_api::bundle::Bundle;
use hawser_api::objects::Link;
use hawser_api::objects::link::{BundleUpdates, Condition, LinkBundleStatus};
use hawser_tunnel::verify::Anchor;

use super::statuses;
use crate::world::{PeerBundle, PeerState, Source};

/// What a former run took.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// What was in force; `None`: nothing, or not to be trusted.
    pub bundle: Option<PeerBundle>,
    /// The highest sequence that was ever in force for this trust domain.
    pub floor: u64,
}

/// What became of an offer.
#[derive(Debug, Clone, PartialEq)]
pub enum Offered {
    /// It is in force from now on.
    Taken(Bundle),
    /// It is what is in force already.
    Known,
    /// The Link says that it is not to be taken: it was noted, no more.
    Noted(u64),
}

/// What is in force when a Link comes, changes, or the process starts: the Link's own bundle, or what came later and was
/// kept. The higher sequence wins, so that an old file brings no old key back.
pub fn begin(link: &Link, kept: &Kept) -> PeerBundle {
    let begun = higher(link, kept.bundle.as_ref());
    if begun.source == Source::OwnRoot || begun.bundle.sequence >= kept.floor { begun } else { lost(begun, kept.floor) }
}

/// All that is there is older than what was in force once: nobody is trusted by it.
fn lost(begun: PeerBundle, floor: u64) -> PeerBundle {
    // What was in force itself may come again.
    let bundle = Bundle { sequence: floor - 1, ..Bundle::default() };
    let trouble = format!(
        "the bundle with sequence {floor}, which was in force, is not as it was kept, and the Link's has sequence {}: nobody \
         of the peer is trusted\nhint: write the peer's present bundle into the Link, or accept it by hand",
        begun.bundle.sequence
    );
    PeerBundle { document: bundle.to_document(), bundle, trouble, ..begun }
}

fn higher(link: &Link, kept: Option<&PeerBundle>) -> PeerBundle {
    let spec = &link.spec;
    let pinned = spec.bundle_updates == BundleUpdates::Pinned;
    let (document, source) = match &spec.bundle {
        None => (String::new(), Source::OwnRoot),
        Some(document) => (document.clone(), Source::Manifest),
    };
    // The loader has read it already; whatever else this is, it is nobody.
    let bundle = Bundle::parse(&document).unwrap_or_default();
    let offered = bundle.sequence;
    let declared = PeerBundle {
        domain: spec.trust_domain.clone(),
        document,
        bundle,
        source,
        pinned,
        offered,
        refreshed_ms: 0,
        trouble: String::new(),
    };
    let kept = kept.filter(|kept| kept.domain == spec.trust_domain && source == Source::Manifest);
    match kept {
        Some(kept) if kept.bundle.sequence > declared.bundle.sequence => {
            let mut kept = PeerBundle { pinned, ..kept.clone() };
            kept.trouble = match (pinned, declared.bundle == kept.bundle) {
                // The ordinary case: the peer has changed its anchors since the Link was written.
                (false, _) | (_, true) => String::new(),
                (true, false) => format!(
                    "the Link's bundle has sequence {}, which is lower than {} in force and not taken\nhint: write the \
                     newer bundle into the Link",
                    declared.bundle.sequence, kept.bundle.sequence
                ),
            };
            kept
        }
        Some(kept) => PeerBundle { offered: declared.offered.max(kept.offered), ..declared },
        None => declared,
    }
}

/// Whether an offer takes its place. `may_follow` is the credentials' own opinion: no key of ours, nor of another peer.
pub fn judge(
    now_in_force: &PeerBundle,
    (source, document): (Source, &str),
    now: SystemTime,
    may_follow: impl FnOnce(&TrustDomain, &Bundle) -> Result<(), String>,
) -> Result<Offered, String> {
    let bundle = Bundle::parse(document).map_err(|error| error.to_string())?;
    if now_in_force.source == Source::OwnRoot {
        return Ok(Offered::Noted(bundle.sequence));
    }
    // Some publishers say how often to ask at one place and not at another: that is no other bundle.
    if (Bundle { refresh_hint: now_in_force.bundle.refresh_hint, ..bundle.clone() }) == now_in_force.bundle {
        return Ok(Offered::Known);
    }
    let (new, old) = (bundle.sequence, now_in_force.bundle.sequence);
    if new < old {
        return Err(format!("its sequence {new} is lower than {old} in force: an older bundle is not taken back"));
    }
    // A publisher that counts cannot have two bundles of one number; one that does not count has no number.
    if new == old && new > 0 {
        return Err(format!("its sequence {new} is the one in force, with other content"));
    }
    usable(&now_in_force.domain, &bundle, now)?;
    may_follow(&now_in_force.domain, &bundle)?;
    if now_in_force.pinned && source != Source::Accepted {
        return Ok(Offered::Noted(new));
    }
    Ok(Offered::Taken(bundle))
}

/// What a Link's status says of it.
pub fn status(state: &PeerState) -> LinkBundleStatus {
    let Some(known) = state.bundle.as_deref() else { return LinkBundleStatus::default() };
    LinkBundleStatus {
        source: known.source.as_str().to_owned(),
        sequence: known.bundle.sequence,
        offered: known.offered,
        lag: lag(known),
        pinned: known.pinned,
        refreshed_ms: known.refreshed_ms,
        trouble: known.trouble.clone(),
    }
}

/// What hangs under our own root has no bundle to be behind with.
fn lag(known: &PeerBundle) -> u64 {
    if known.source == Source::OwnRoot { 0 } else { known.offered.saturating_sub(known.bundle.sequence) }
}

/// `TrustCurrent`: the peer's anchors in force are those that it has.
pub fn current(state: &PeerState) -> Condition {
    let say = |good, reason, message: String| statuses::condition("TrustCurrent", good, reason, message);
    let Some(known) = state.bundle.as_deref() else { return say(false, "NotRead", "not decided yet".to_owned()) };
    match (known.source, known.trouble.as_str(), lag(known)) {
        (_, trouble, _) if !trouble.is_empty() => say(false, "NotTaken", trouble.to_owned()),
        (Source::OwnRoot, ..) => say(true, "OwnRoot", "it hangs under this cluster's own root".to_owned()),
        (_, _, behind) if behind > 0 => say(
            false,
            if known.pinned { "Pinned" } else { "Behind" },
            format!(
                "the peer offers sequence {}, and {} is in force; write the newer bundle into the Link",
                known.offered, known.bundle.sequence
            ),
        ),
        _ if known.bundle.x509_authorities.is_empty() => {
            say(false, "Nobody", "its bundle is empty: nobody of it is trusted; accept a newer one by hand".to_owned())
        }
        (source, ..) => say(true, "Current", format!("sequence {} from {}", known.bundle.sequence, source.as_str())),
    }
}

/// Every authority can be read as one of this trust domain, and one at least is of use; or there are none at all.
fn usable(domain: &TrustDomain, bundle: &Bundle, now: SystemTime) -> Result<(), String> {
    let mut usable = bundle.x509_authorities.is_empty();
    for (index, der) in bundle.x509_authorities.iter().enumerate() {
        let anchor = Anchor::read(der, domain).map_err(|error| format!("its authority {}: {error}", index + 1))?;
        usable |= anchor.not_after() >= now;
    }
    if usable { Ok(()) } else { Err("all of its authorities have expired".to_owned()) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use hawser_api::bundle::KEYS_MAX;
    use hawser_tunnel::testing::{Pki, clock, domain};

    fn link(bundle: Option<&Bundle>, pinned: bool) -> Link {
        let mut text = "apiVersion: hawser.dev/v1alpha1\nkind: Link\nmetadata: {name: east}\nspec:\n  trustDomain: \
                        east.hawser.test\n  gateways: [{name: g0, address: 127.0.0.1:7443}]\n"
            .to_owned();
        if pinned {
            text.push_str("  bundleUpdates: pinned\n");
        }
        if let Some(bundle) = bundle {
            let document: serde_json::Value = serde_json::from_str(&bundle.to_document()).unwrap();
            text.push_str(&format!("  bundle: '{document}'\n"));
        }
        let objects = super::super::tests::objects(&text);
        objects.links.values().next().unwrap().clone()
    }

    fn had(kept: &PeerBundle) -> Kept {
        Kept { bundle: Some(kept.clone()), floor: 0 }
    }

    fn bundle(pki: &Pki, sequence: u64) -> Bundle {
        Bundle { sequence, ..pki.bundle() }
    }

    fn offer(known: &PeerBundle, bundle: &Bundle) -> Result<Offered, String> {
        judge(known, (Source::Tunnel, &bundle.to_document()), clock(), |_, _| Ok(()))
    }

    #[test]
    fn what_is_newer_is_taken_and_what_is_older_or_twice_is_not() {
        let (old, new) = (Pki::new(), Pki::new());
        let known = begin(&link(Some(&bundle(&old, 5)), false), &Kept::default());
        assert_eq!(offer(&known, &bundle(&old, 5)), Ok(Offered::Known));
        assert_eq!(offer(&known, &bundle(&new, 6)), Ok(Offered::Taken(bundle(&new, 6))));
        assert!(offer(&known, &bundle(&new, 4)).unwrap_err().contains("older"));
        assert!(offer(&known, &bundle(&new, 5)).unwrap_err().contains("other content"));
        // Who does not count may change it, until it has counted once.
        let uncounted = begin(&link(Some(&bundle(&old, 0)), false), &Kept::default());
        assert_eq!(offer(&uncounted, &bundle(&new, 0)), Ok(Offered::Taken(bundle(&new, 0))));
        assert!(offer(&known, &bundle(&new, 0)).is_err());
    }

    #[test]
    fn nobody_is_a_bundle_and_rubbish_is_none() {
        let pki = Pki::new();
        let known = begin(&link(Some(&bundle(&pki, 5)), false), &Kept::default());
        let nobody = Bundle { sequence: 6, ..Bundle::default() };
        assert_eq!(offer(&known, &nobody), Ok(Offered::Taken(nobody)));
        let tell = |document: &str| judge(&known, (Source::Tunnel, document), clock(), |_, _| Ok(()));
        assert!(tell("").is_err());
        assert!(tell(r#"{"keys":[],"keys":[],"spiffe_sequence":9}"#).unwrap_err().contains("twice"));
        let keys = vec!["{}"; 1_000_000].join(",");
        assert!(tell(&format!(r#"{{"keys":[{keys}],"spiffe_sequence":9}}"#)).is_err());
        let many = Bundle { x509_authorities: vec![vec![1]; KEYS_MAX + 1], ..bundle(&pki, 9) };
        assert!(offer(&known, &many).is_err());
        let half = Bundle { x509_authorities: vec![pki.root().to_vec(), vec![0x30, 0]], ..bundle(&pki, 9) };
        assert!(offer(&known, &half).unwrap_err().contains("authority 2"));
    }

    #[test]
    fn a_bundle_whose_authorities_are_all_over_or_another_domains_is_refused() {
        let pki = Pki::new();
        let known = begin(&link(Some(&bundle(&pki, 5)), false), &Kept::default());
        let expired = Pki::at(clock() - Duration::from_secs(2 * 86_400));
        assert!(offer(&known, &bundle(&expired, 6)).unwrap_err().contains("expired"));
        let both = Bundle { x509_authorities: vec![expired.root().to_vec(), pki.root().to_vec()], ..bundle(&pki, 6) };
        assert_eq!(offer(&known, &both), Ok(Offered::Taken(both)));
        let west = pki.mint("west", "/ns/a/sa/b", Duration::from_secs(60)).chain[1].to_vec();
        let foreign = Bundle { x509_authorities: vec![west], ..bundle(&pki, 6) };
        assert!(offer(&known, &foreign).unwrap_err().contains("west.hawser.test"));
    }

    #[test]
    fn what_the_link_pins_changes_by_hand_alone() {
        let (old, new) = (Pki::new(), Pki::new());
        let known = begin(&link(Some(&bundle(&old, 5)), true), &Kept::default());
        assert!(known.pinned);
        assert_eq!(offer(&known, &bundle(&new, 6)), Ok(Offered::Noted(6)));
        let by_hand = judge(&known, (Source::Accepted, &bundle(&new, 6).to_document()), clock(), |_, _| Ok(()));
        assert_eq!(by_hand, Ok(Offered::Taken(bundle(&new, 6))));
        let own = begin(&link(None, false), &Kept::default());
        assert_eq!((own.source, own.document.as_str()), (Source::OwnRoot, ""));
        assert_eq!(offer(&own, &bundle(&new, 6)), Ok(Offered::Noted(6)));
    }

    #[test]
    fn what_was_kept_is_not_rolled_back_by_an_older_manifest() {
        let (old, new) = (Pki::new(), Pki::new());
        let kept =
            PeerBundle { source: Source::Tunnel, ..begin(&link(Some(&bundle(&new, 9)), false), &Kept::default()) };
        let now = begin(&link(Some(&bundle(&old, 5)), false), &had(&kept));
        assert_eq!((now.bundle.sequence, now.source, now.trouble.as_str()), (9, Source::Tunnel, ""));
        let pinned = begin(&link(Some(&bundle(&old, 5)), true), &had(&kept));
        assert_eq!(pinned.bundle.sequence, 9);
        assert!(pinned.trouble.contains("lower than 9"), "{}", pinned.trouble);
        // A newer manifest is the operator's word, and what was kept for another trust domain is nobody's.
        // What was kept cannot be read: the floor holds all the same.
        let damaged = Kept { bundle: None, floor: 9 };
        let nobody = begin(&link(Some(&bundle(&old, 5)), false), &damaged);
        assert!(nobody.bundle.x509_authorities.is_empty() && nobody.trouble.contains("not as it was kept"));
        assert!(Bundle::parse(&nobody.document).unwrap().x509_authorities.is_empty());
        assert!(offer(&nobody, &bundle(&new, 8)).is_err());
        assert_eq!(offer(&nobody, &bundle(&new, 9)), Ok(Offered::Taken(bundle(&new, 9))));
        assert_eq!(begin(&link(Some(&bundle(&new, 9)), false), &damaged).bundle, bundle(&new, 9));
        let newer = begin(&link(Some(&bundle(&old, 12)), false), &had(&kept));
        assert_eq!((newer.bundle.sequence, newer.source), (12, Source::Manifest));
        let other = PeerBundle { domain: domain("north"), ..kept };
        assert_eq!(begin(&link(Some(&bundle(&old, 5)), false), &had(&other)).bundle.sequence, 5);
    }

    #[test]
    fn a_key_that_is_somebody_elses_is_refused_by_the_credentials() {
        let (west, east, north) = (Pki::new(), Pki::new(), Pki::new());
        let credentials = west.credentials("west", "/ns/hawser-system/sa/mirror-controller");
        let set = |name: &str, bundle: Bundle| {
            assert!(credentials.set_anchors(&domain(name), hawser_tunnel::tls::Anchors::Bundle(bundle)).is_empty());
        };
        set("east", bundle(&east, 5));
        let intermediate = north.mint("north", "/ns/a/sa/b", Duration::from_secs(60)).chain[1].to_vec();
        set("north", Bundle { x509_authorities: vec![intermediate.clone()], ..bundle(&north, 1) });
        let known = begin(&link(Some(&bundle(&east, 5)), false), &Kept::default());
        let may = |domain: &TrustDomain, bundle: &Bundle| {
            credentials.may_set_anchors(domain, &hawser_tunnel::tls::Anchors::Bundle(bundle.clone()))
        };
        let mut ours = bundle(&east, 6);
        ours.x509_authorities.push(west.root().to_vec());
        let refused = judge(&known, (Source::Tunnel, &ours.to_document()), clock(), may);
        assert!(refused.unwrap_err().contains("anchor of our own"));
        // An intermediate names its trust domain: it is refused before its key is compared.
        let mut theirs = bundle(&east, 6);
        theirs.x509_authorities.push(intermediate);
        assert!(judge(&known, (Source::Tunnel, &theirs.to_document()), clock(), may).is_err());
    }
}
