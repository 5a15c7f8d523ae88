//! What rests on which authority: counted with every live peer, and no longer than it lives.

use super::*;

fn of<'d>(dependences: &'d [Dependence], key: &AuthorityId) -> Vec<(&'d str, u64, SystemTime)> {
    let mut found: Vec<_> =
        dependences.iter().filter(|d| d.authority == *key).map(|d| (d.domain.as_str(), d.live, d.until)).collect();
    found.sort();
    found
}

#[test]
fn nothing_is_counted_before_a_peer_lives_or_after_its_last_copy_is_gone() {
    let pki = Pki::new();
    let west = pki.credentials("west", "/a");
    let chain = pki.mint("west", "/b", Duration::from_secs(600)).chain;
    assert_eq!(west.proves(&chain).unwrap().authorities.len(), 2);
    assert_eq!(west.dependences(), [], "who was only looked at is not live");

    let peer = west.verified(&chain, &Expect::Trusted, None).unwrap();
    let copy = peer.clone();
    let before = west.dependences();
    assert_eq!(before.iter().map(|d| d.live).collect::<Vec<_>>(), [1, 1], "one on the intermediate, one on the root");
    drop(peer);
    assert_eq!(west.dependences(), before, "a copy lives on");
    drop(copy);
    assert_eq!(west.dependences(), []);
}

#[test]
fn a_chain_that_was_proved_before_counts_like_one_that_was_not() {
    let pki = Pki::new();
    let west = pki.credentials("west", "/a");
    let chain = pki.mint("west", "/b", Duration::from_secs(600)).chain;
    // The first proves, the others find it proved: each is a live peer of its own.
    let peers: Vec<_> = (0..3).map(|_| west.verified(&chain, &Expect::Trusted, None).unwrap()).collect();
    assert_eq!(west.dependences().iter().map(|d| d.live).collect::<Vec<_>>(), [3, 3]);
    drop(peers);
    assert_eq!(west.dependences(), []);
}

#[test]
fn who_was_refused_is_not_counted() {
    let pki = Pki::new();
    let west = pki.credentials("west", "/a");
    let chain = pki.mint("west", "/b", Duration::from_secs(600)).chain;
    assert!(west.verified(&chain, &only(id("west", "/c")), None).is_err());
    west.set_denied(Denials { identities: [id("west", "/b")].into(), ..Denials::default() });
    assert!(west.verified(&chain, &Expect::Trusted, None).is_err());
    assert_eq!(west.dependences(), []);
}

#[test]
fn each_trust_domain_is_counted_by_itself_and_knows_when_its_last_is_over() {
    let pki = Pki::new();
    let west = pki.linked("west", "/a", &["east"]);
    let live = |cluster, seconds| {
        let chain = pki.mint(cluster, "/b", Duration::from_secs(seconds)).chain;
        west.verified(&chain, &Expect::Trusted, None).unwrap()
    };
    let (short, long, own) = (live("east", 60), live("east", 600), live("west", 300));
    let root = *short.authorities().last().unwrap();
    let (east, west_too) = (short.authorities()[0], own.authorities()[0]);
    let all = west.dependences();
    assert_eq!(of(&all, &root), [("east.hawser.test", 2, long.not_after()), ("west.hawser.test", 1, own.not_after())]);
    assert_eq!(of(&all, &east), [("east.hawser.test", 2, long.not_after())]);
    assert_eq!(of(&all, &west_too), [("west.hawser.test", 1, own.not_after())]);

    drop(long);
    assert_eq!(of(&west.dependences(), &east), [("east.hawser.test", 1, short.not_after())], "the shorter one is left");
    drop((short, own));
    assert_eq!(west.dependences(), []);
}

#[test]
fn the_count_outlives_the_anchors_that_it_is_about() {
    let pki = Pki::new();
    let west = pki.linked("west", "/a", &["east"]);
    let chain = pki.mint("east", "/b", Duration::from_secs(600)).chain;
    let peer = west.verified(&chain, &Expect::Trusted, None).unwrap();
    west.remove_anchors(&domain("east"));
    assert!(!west.still_trusts(&peer));
    assert_eq!(west.dependences().len(), 2, "it is not cut yet, so it still rests on them");
    drop(peer);
    assert_eq!(west.dependences(), []);
}

#[test]
fn what_is_loaded_is_told_by_key_and_sequence() {
    let pki = Pki::new();
    let west = pki.linked("west", "/a", &["east"]);
    let root = west.loaded()[0].authorities.clone();
    let loaded = |sequence, authorities: &[AuthorityId]| {
        let mut of = vec![
            LoadedAnchors { domain: domain("east"), sequence: 0, authorities: authorities.to_vec() },
            LoadedAnchors { domain: domain("west"), sequence, authorities: authorities.to_vec() },
        ];
        of.sort_by(|a, b| a.domain.cmp(&b.domain));
        of
    };
    assert_eq!(west.loaded(), loaded(1, &root));
    // What was dropped is not loaded, whatever the bundle's sequence says.
    let old = Pki::at(clock() - Duration::from_secs(2 * 86_400));
    let mut bundle = pki.bundle();
    bundle.sequence = 2;
    bundle.x509_authorities.push(old.root().to_vec());
    assert_eq!(west.set_anchors(&domain("west"), Anchors::Bundle(bundle)).len(), 1);
    assert_eq!(west.loaded(), loaded(2, &root));
    west.set_anchors(&domain("west"), Anchors::Bundle(Bundle { sequence: 3, ..Bundle::default() }));
    assert_eq!(west.loaded(), loaded(3, &[]));
}

#[test]
fn a_peer_whose_time_is_over_is_not_trusted_but_still_anchored() {
    let pki = Pki::new();
    let west = pki.linked("west", "/a", &["east"]);
    let chain = pki.mint("east", "/b", Duration::from_secs(600)).chain;
    let peer = west.verified(&chain, &Expect::Trusted, None).unwrap();
    let over = VerifiedPeer { not_after: clock() - Duration::from_secs(1), ..peer };
    assert!(!west.still_trusts(&over));
    assert!(west.still_anchored(&over));
    west.remove_anchors(&domain("east"));
    assert!(!west.still_anchored(&over));
}
