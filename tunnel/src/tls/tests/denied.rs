//! Each way of naming somebody on the deny-list: no new handshake, and whoever is live is no longer trusted.

use super::*;

/// West, which trusts east under the same root; what a leaf of east proves; and a second leaf of the same identity.
struct Scene {
    west: Credentials,
    chain: Vec<CertificateDer<'static>>,
    again: Vec<CertificateDer<'static>>,
    neighbour: Vec<CertificateDer<'static>>,
    own: Vec<CertificateDer<'static>>,
}

fn scene() -> Scene {
    let pki = Pki::new();
    let mint = |cluster, path| pki.mint(cluster, path, Duration::from_secs(600)).chain;
    Scene {
        west: pki.linked("west", "/a", &["east"]),
        chain: mint("east", "/b"),
        again: mint("east", "/b"),
        neighbour: mint("east", "/c"),
        own: mint("west", "/d"),
    }
}

/// Who is still taken, of: the one, the same identity with another leaf, its neighbour, somebody of our own.
fn taken(scene: &Scene, denied: Denials) -> [bool; 4] {
    let chains = [&scene.chain, &scene.again, &scene.neighbour, &scene.own];
    let live = chains.map(|chain| scene.west.verified(chain, &Expect::Trusted, None).unwrap());
    let generation = *scene.west.generation().borrow();
    scene.west.set_denied(denied);
    assert_eq!(*scene.west.generation().borrow(), generation + 1, "nobody is told to look again");
    let taken = chains.map(|chain| match scene.west.verified(chain, &Expect::Trusted, None) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.reason, "denied", "{error}");
            false
        }
    });
    assert_eq!(live.each_ref().map(|peer| scene.west.still_trusts(peer)), taken, "live ones, by the clock");
    assert_eq!(live.each_ref().map(|peer| scene.west.still_anchored(peer)), taken, "live ones, whatever the time");
    scene.west.set_denied(Denials::default());
    assert!(live.iter().all(|peer| scene.west.still_trusts(peer)), "a denial that is taken back goes on");
    taken
}

#[test]
fn an_identity_is_denied_with_all_its_leaves_and_no_other() {
    let id = id("east", "/b");
    assert_eq!(taken(&scene(), Denials { identities: [id].into(), ..Denials::default() }), [false, false, true, true]);
}

#[test]
fn a_serial_number_is_denied_in_its_trust_domain_alone() {
    let scene = scene();
    let serial = scene.west.proves(&scene.chain).unwrap().serial;
    let only = |of: &str| Denials { serials: [(domain(of), serial.clone())].into(), ..Denials::default() };
    assert_eq!(taken(&scene, only("east")), [false, true, true, true]);
    assert_eq!(taken(&scene, only("west")), [true; 4]);
}

#[test]
fn a_trust_domain_is_denied_whole() {
    let denied = Denials { trust_domains: [domain("east")].into(), ..Denials::default() };
    assert_eq!(taken(&scene(), denied), [false, false, false, true]);
}

#[test]
fn an_authoritys_key_is_denied_with_all_that_rests_on_it() {
    let scene = scene();
    let svid = scene.west.proves(&scene.chain).unwrap();
    let [intermediate, root] = svid.authorities[..] else { panic!("{:?}", svid.authorities) };
    let only = |key| Denials { authorities: [key].into(), ..Denials::default() };
    assert_eq!(taken(&scene, only(intermediate)), [false, false, false, true]);
    assert_eq!(taken(&scene, only(root)), [false; 4]);
    assert_eq!(taken(&scene, only(AuthorityId([7; 32]))), [true; 4]);
}

/// [`Denials::covers`] looks at less when only authorities are named; each mixture must still be looked at whole.
#[test]
fn denials_of_several_kinds_do_not_hide_one_another() {
    let scene = scene();
    let svid = scene.west.proves(&scene.chain).unwrap();
    let other = AuthorityId([7; 32]);
    let kinds: [fn(&mut Denials, &Svid); 4] = [
        |denied, svid| assert!(denied.identities.insert(svid.id.clone())),
        |denied, svid| assert!(denied.trust_domains.insert(svid.id.trust_domain())),
        |denied, svid| assert!(denied.serials.insert((svid.id.trust_domain(), svid.serial.clone()))),
        |denied, svid| assert!(denied.authorities.insert(svid.authorities[0])),
    ];
    let strangers = || Denials {
        identities: [id("north", "/x")].into(),
        trust_domains: [domain("north")].into(),
        serials: [(domain("north"), "01".into())].into(),
        authorities: [other].into(),
    };
    for (index, kind) in kinds.iter().enumerate() {
        for mut denied in [Denials::default(), strangers()] {
            assert!(!denied.covers(&svid.id, &svid.serial, &svid.authorities));
            kind(&mut denied, &svid);
            assert!(denied.covers(&svid.id, &svid.serial, &svid.authorities), "kind {index} in {denied:?}");
        }
    }
}

#[tokio::test]
async fn who_is_denied_is_refused_in_the_handshake_on_both_sides() {
    let pki = Pki::new();
    let west = pki.linked("west", "/a", &["east"]);
    let east = pki.linked("east", "/b", &["west"]);
    let (near, far) = handshake(&west, &Expect::Trusted, &east).await;
    let serial = |credentials: &Credentials, of: &str, chain: &[CertificateDer<'_>]| {
        (domain(of), credentials.verified(chain, &Expect::Trusted, None).unwrap().serial().to_owned())
    };
    let server = serial(&west, "east", near.unwrap().get_ref().1.peer_certificates().unwrap());
    let client = serial(&east, "west", far.unwrap().get_ref().1.peer_certificates().unwrap());

    west.set_denied(Denials { serials: [server].into(), ..Denials::default() });
    let (near, far) = handshake(&west, &Expect::Trusted, &east).await;
    assert_eq!((failure(near).reason, failure(far).reason), ("denied", "refused_by_peer"));
    west.set_denied(Denials::default());

    east.set_denied(Denials { serials: [client].into(), ..Denials::default() });
    let (_, far) = handshake(&west, &Expect::Trusted, &east).await;
    assert_eq!(failure(far).reason, "denied");
}
