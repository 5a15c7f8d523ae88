//! T5: bundles of peers with authorities of other makes, with a root that others have too, and with keys that are not
//! theirs.

use super::*;
use crate::testing::certificate::{self as x509, Certificate, Key, extension as x};
use crate::verify::Rules;

/// A chain with its anchor.
struct Shape {
    anchor: CertificateDer<'static>,
    chain: Vec<CertificateDer<'static>>,
}

fn bundle(anchors: &[&CertificateDer<'_>]) -> Anchors {
    let x509_authorities = anchors.iter().map(|der| der.to_vec()).collect();
    Anchors::Bundle(Bundle { sequence: 1, refresh_hint: None, x509_authorities, ..Bundle::default() })
}

fn root(key: &Key) -> Certificate {
    Certificate::authority("upstream root", key, "upstream root", key, clock())
}

fn spire_server(domain: &TrustDomain, key: &Key, root: &Key) -> Certificate {
    let mut server = Certificate::authority("SPIRE", key, "upstream root", root, clock());
    server.set(x::NAMES, false, x509::names(&[x509::uri(&domain.id())]));
    server
}

fn leaf(domain: &TrustDomain, issuer: &str, issuer_key: &Key) -> CertificateDer<'static> {
    let id = format!("{}/ns/shop/sa/web", domain.id());
    Certificate::svid(&id, &Key::p256(), issuer, issuer_key, clock()).signed_by(issuer_key)
}

/// A SPIRE server under an UpstreamAuthority: its certificate names the trust domain, has no path length and no name
/// constraint, and comes with the leaf; the bundle has the upstream's root.
fn spire(domain: &TrustDomain) -> Shape {
    let (upstream, server) = (Key::p256(), Key::p384());
    let issuer = spire_server(domain, &server, &upstream).signed_by(&upstream);
    Shape { anchor: root(&upstream).signed_by(&upstream), chain: vec![leaf(domain, "SPIRE", &server), issuer] }
}

/// The same with one more authority of the upstream between them: leaf, SPIRE, upstream's intermediate.
fn deep_spire(domain: &TrustDomain) -> Shape {
    let (upstream, middle, server) = (Key::p256(), Key::p256(), Key::p256());
    let between = Certificate::authority("middle", &middle, "upstream root", &upstream, clock());
    let mut issuer = spire_server(domain, &server, &middle);
    issuer.issuer = x509::name("middle");
    Shape {
        anchor: root(&upstream).signed_by(&upstream),
        chain: vec![leaf(domain, "SPIRE", &server), issuer.signed_by(&middle), between.signed_by(&upstream)],
    }
}

/// SPIRE with its own self-signed authority: it names the trust domain and issues leaves.
fn self_signed_spire(domain: &TrustDomain) -> Shape {
    let key = Key::p256();
    let mut anchor = root(&key);
    anchor.set(x::NAMES, false, x509::names(&[x509::uri(&domain.id())]));
    Shape { anchor: anchor.signed_by(&key), chain: vec![leaf(domain, "upstream root", &key)] }
}

/// istiod: a self-signed root without any URI name, RSA, that issues leaves itself; their names are critical and their
/// subject is empty.
fn istio(domain: &TrustDomain) -> Shape {
    let key = Key::rsa(rcgen::RsaKeySize::_2048);
    let mut leaf =
        Certificate::svid(&format!("{}/ns/a/sa/b", domain.id()), &Key::p256(), "upstream root", &key, clock());
    leaf.subject = x509::name("");
    leaf.set(x::NAMES, true, x509::names(&[x509::uri(&format!("{}/ns/a/sa/b", domain.id()))]));
    leaf.set(x::KEY_USAGE, true, x509::key_usage(x509::SIGN | 1 << 2));
    Shape { anchor: root(&key).signed_by(&key), chain: vec![leaf.signed_by(&key)] }
}

/// Istio with a CA that was plugged in: an intermediate without any URI name below the root.
fn istio_plugged(domain: &TrustDomain) -> Shape {
    let (top, key) = (Key::p256(), Key::p256());
    let mut issuer = Certificate::authority("istiod", &key, "upstream root", &top, clock());
    issuer.set(x::BASIC, true, x509::basic(true, Some(0)));
    Shape { anchor: root(&top).signed_by(&top), chain: vec![leaf(domain, "istiod", &key), issuer.signed_by(&top)] }
}

type Make = fn(&TrustDomain) -> Shape;

const FOREIGN: &[(&str, Make)] = &[
    ("SPIRE under an upstream", spire),
    ("SPIRE under an upstream's intermediate", deep_spire),
    ("istiod", istio),
    ("istiod with a plugged CA", istio_plugged),
];

fn west() -> (Pki, Credentials) {
    let pki = Pki::new();
    let west = pki.credentials("west", "/a");
    (pki, west)
}

#[test]
fn a_peer_with_authorities_of_another_make_is_understood_by_its_own_bundle() {
    for (what, make) in FOREIGN.iter().chain(&[("SPIRE by itself", self_signed_spire as Make)]) {
        let (_, west) = west();
        let shape = make(&domain("east"));
        assert_eq!(west.set_anchors(&domain("east"), bundle(&[&shape.anchor])), [] as [String; 0], "{what}");
        let peer =
            west.verified(&shape.chain, &Expect::Trusted, None).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(west.still_trusts(&peer));
        assert_eq!(peer.id().trust_domain(), domain("east"));
        assert_eq!(peer.authorities().len(), shape.chain.len(), "{what}: an authority is not counted");
        assert_eq!(west.dependences().len(), shape.chain.len(), "{what}");
        // Each authority of the path can be denied, also one in its middle.
        for key in peer.authorities() {
            west.set_denied(Denials { authorities: [*key].into(), ..Denials::default() });
            assert!(!west.still_trusts(&peer), "{what}");
        }
    }
}

#[test]
fn under_our_own_bundle_the_same_chains_are_refused() {
    for (what, make) in FOREIGN {
        let shape = make(&domain("west"));
        let west = Credentials::new(domain("west"), clock);
        assert!(west.set_anchors(&domain("west"), bundle(&[&shape.anchor])).is_empty());
        assert!(west.proves(&shape.chain).is_err(), "{what} in our own bundle");
        // And for a peer that hangs under our own root.
        let shape = make(&domain("east"));
        let west = Credentials::new(domain("west"), clock);
        west.set_anchors(&domain("west"), bundle(&[&shape.anchor]));
        west.set_anchors(&domain("east"), Anchors::OwnRoot);
        assert!(west.proves(&shape.chain).is_err(), "{what} under our own root");
    }
}

#[test]
fn below_a_dedicated_anchor_an_authority_of_another_trust_domain_mints_nothing() {
    let (_, west) = west();
    let (top, rogue) = (Key::p256(), Key::p256());
    let anchor = root(&top).signed_by(&top);
    west.set_anchors(&domain("east"), bundle(&[&anchor]));
    let of = |named: &TrustDomain, change: fn(&mut Certificate)| {
        let mut issuer = spire_server(named, &rogue, &top);
        change(&mut issuer);
        west.proves(&[leaf(&domain("east"), "SPIRE", &rogue), issuer.signed_by(&top)])
    };
    assert!(of(&domain("east"), |_| ()).is_ok());
    let says = |result: Result<Svid, VerifyError>| result.unwrap_err().to_string();
    assert!(says(of(&domain("north"), |_| ())).contains("authority of north.hawser.test"));
    let constrained = |issuer: &mut Certificate| {
        issuer.set(x::NAME_CONSTRAINTS, true, x509::name_constraints(&[x509::uri("north.hawser.test")], &[]));
    };
    assert!(says(of(&domain("east"), constrained)).contains("name constraints other than"));
    // A leaf of another trust domain finds no anchors, whoever signed it.
    let issuer = spire_server(&domain("east"), &rogue, &top).signed_by(&top);
    let error = west.proves(&[leaf(&domain("north"), "SPIRE", &rogue), issuer]).unwrap_err();
    assert_eq!(error, VerifyError::NoAnchors(domain("north")));
}

#[test]
fn a_bundle_with_a_key_of_ours_is_refused_whole() {
    let (pki, west) = west();
    let good = spire(&domain("east"));
    assert!(west.set_anchors(&domain("east"), bundle(&[&good.anchor])).is_empty());
    let reasons = west.set_anchors(&domain("east"), bundle(&[&good.anchor, pki.root()]));
    assert!(
        matches!(&reasons[..], [only] if only.contains("anchor of our own") && only.contains("hint:")),
        "{reasons:?}"
    );
    // What was in force stays in force, and only that.
    assert!(west.proves(&good.chain).is_ok());
    let ours = pki.mint("east", "/b", Duration::from_secs(600)).chain;
    assert!(west.proves(&ours).is_err(), "an identity under our root was taken by the peer's word");
    // The honest way.
    assert!(west.set_anchors(&domain("east"), Anchors::OwnRoot).is_empty());
    assert!(west.proves(&ours).is_ok());
}

#[test]
fn a_bundle_with_another_peers_key_is_refused_whole_and_harms_nobody() {
    let (_, west) = west();
    let east = spire(&domain("east"));
    west.set_anchors(&domain("east"), bundle(&[&east.anchor]));
    let reasons = west.set_anchors(&domain("north"), bundle(&[&east.anchor]));
    assert!(matches!(&reasons[..], [only] if only.contains("anchor of east.hawser.test")), "{reasons:?}");
    assert!(west.proves(&east.chain).is_ok());
    assert_eq!(west.loaded().len(), 2, "own and east");
}

#[test]
fn a_root_that_two_peers_of_one_fabric_share_is_held_to_our_profile_for_both() {
    let (_, west) = west();
    let fabric = Pki::new();
    let shared = || Anchors::Bundle(fabric.bundle());
    assert!(west.set_anchors(&domain("east"), shared()).is_empty());
    let chain = |of: &str| fabric.mint(of, "/b", Duration::from_secs(600)).chain;
    let (east, north) = (chain("east"), chain("north"));
    let live = west.verified(&east, &Expect::Trusted, None).unwrap();
    assert!(west.set_anchors(&domain("north"), shared()).is_empty());
    assert!(west.proves(&east).is_ok() && west.proves(&north).is_ok());
    assert!(west.still_trusts(&live), "it keeps our profile too");
}

/// A root that two peers share, and an authority below it that names nobody: while only one peer is known to have it,
/// it is that peer's; once two have it, it is nobody's.
#[test]
fn an_anchor_that_turns_out_to_be_shared_is_strict_for_whoever_is_live_too() {
    let (_, west) = west();
    let (top, plain) = (Key::p256(), Key::p256());
    let mut anchor = root(&top);
    anchor.set(x::BASIC, true, x509::basic(true, Some(1)));
    let anchor = anchor.signed_by(&top);
    let issuer = Certificate::authority("plain", &plain, "upstream root", &top, clock()).signed_by(&top);
    let chain = [leaf(&domain("east"), "plain", &plain), issuer];
    west.set_anchors(&domain("east"), bundle(&[&anchor]));
    let live = west.verified(&chain, &Expect::Trusted, None).unwrap();
    assert_eq!(west.proves(&chain).unwrap().keeps, Rules::Spiffe);
    assert!(west.set_anchors(&domain("north"), bundle(&[&anchor])).is_empty());
    assert!(west.proves(&chain).is_err());
    assert!(!west.still_trusts(&live) && !west.still_anchored(&live));
    west.remove_anchors(&domain("north"));
    assert!(west.still_trusts(&live));
}

/// Of two anchors of one peer one is shared: what hangs under that one is judged strictly, although the other is not.
#[test]
fn a_shared_anchor_beside_a_dedicated_one_stays_strict() {
    let (_, west) = west();
    let (own, shared) = (Key::p256(), Key::p256());
    let anchors = [("own root", &own), ("shared root", &shared)].map(|(name, key)| {
        let mut root = Certificate::authority(name, key, name, key, clock());
        root.set(x::BASIC, true, x509::basic(true, Some(1)));
        root.signed_by(key)
    });
    west.set_anchors(&domain("east"), bundle(&[&anchors[0], &anchors[1]]));
    assert!(west.set_anchors(&domain("north"), bundle(&[&anchors[1]])).is_empty());
    let below = |root: &str, key: &Key| {
        let plain = Key::p256();
        let issuer = Certificate::authority("plain", &plain, root, key, clock()).signed_by(key);
        west.proves(&[leaf(&domain("east"), "plain", &plain), issuer])
    };
    assert!(below("own root", &own).is_ok());
    assert!(below("shared root", &shared).is_err());
    // Nor may it issue leaves itself.
    assert!(west.proves(&[leaf(&domain("east"), "own root", &own)]).is_ok());
    assert!(west.proves(&[leaf(&domain("east"), "shared root", &shared)]).is_err());
    // Nor stand above two authorities.
    let (upper, lower) = (Key::p256(), Key::p256());
    let chain = [
        leaf(&domain("east"), "lower", &lower),
        Certificate::authority("lower", &lower, "upper", &upper, clock()).signed_by(&upper),
        Certificate::authority("upper", &upper, "shared root", &shared, clock()).signed_by(&shared),
    ];
    assert!(west.proves(&chain).is_err());
}

/// Our own bundle comes or changes behind a peer's: ours stands, and what they share is strict.
#[test]
fn our_own_bundle_is_not_refused_for_a_peers() {
    let fabric = Pki::new();
    let west = Credentials::new(domain("west"), clock);
    west.set_anchors(&domain("east"), Anchors::Bundle(fabric.bundle()));
    assert!(west.set_anchors(&domain("west"), Anchors::Bundle(fabric.bundle())).is_empty());
    for of in ["west", "east"] {
        let svid = west.proves(&fabric.mint(of, "/b", Duration::from_secs(600)).chain).unwrap();
        assert_eq!(svid.keeps, Rules::Fabric);
    }
}

/// North's anchor hangs under east's root (nested authorities): it is of north, although it names nobody.
#[test]
fn an_authority_that_is_another_peers_anchor_mints_nothing_below_a_dedicated_anchor() {
    let (_, west) = west();
    let (top, key) = (Key::p256(), Key::p256());
    let anchor = root(&top).signed_by(&top);
    let nested = Certificate::authority("nested", &key, "upstream root", &top, clock()).signed_by(&top);
    let chain = [leaf(&domain("east"), "nested", &key), nested.clone()];
    west.set_anchors(&domain("east"), bundle(&[&anchor]));
    let live = west.verified(&chain, &Expect::Trusted, None).unwrap();
    assert!(west.set_anchors(&domain("north"), bundle(&[&nested])).is_empty());
    let error = west.proves(&chain).unwrap_err();
    assert!(error.to_string().contains("anchor of another trust domain"), "{error}");
    assert!(!west.still_trusts(&live));
    // And north's own leaves are proved by it.
    assert!(west.proves(&[leaf(&domain("north"), "nested", &key)]).is_ok());
}
