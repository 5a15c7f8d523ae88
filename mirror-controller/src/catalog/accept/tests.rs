use hawser_api::proto::catalog::{Port, Service, ServiceName, Update};

use super::*;

fn domain() -> TrustDomain {
    "east.example".parse().unwrap()
}

fn good(name: &str) -> Service {
    Service {
        namespace: "shop".into(),
        name: name.into(),
        ports: vec![Port { name: "http".into(), port: 80, protocol: "TCP".into(), app_protocol: "http".into() }],
        identities: vec!["spiffe://east.example/ns/shop/sa/checkout".into()],
        endpoints_ready: 1,
        ..Service::default()
    }
}

fn hear(known: &Catalog, changed: Vec<Service>, snapshot: bool) -> Catalog {
    update(known, &Update { changed, snapshot, ..Update::default() }, &domain())
}

fn port(number: u32) -> Port {
    Port { name: format!("p{number}"), port: number, ..Port::default() }
}

#[test]
fn every_string_of_a_peer_is_checked() {
    let with = |change: fn(&mut Service)| {
        let mut service = good("a");
        change(&mut service);
        service
    };
    let cases: Vec<(Service, &str)> = vec![
        (with(|s| s.name = "A".into()), "lower-case"),
        (with(|s| s.name = "a\nb: c".into()), "lower-case"),
        (with(|s| s.name = "x".repeat(1 << 20)), "longer than 63"),
        (with(|s| s.namespace = "../../etc".into()), "lower-case"),
        (with(|s| s.namespace = String::new()), "is empty"),
        (with(|s| s.ports.clear()), "no TCP port"),
        (with(|s| s.ports[0].protocol = "UDP".into()), "no TCP port"),
        (with(|s| s.ports[0].port = 0), "not 1 to 65535"),
        (with(|s| s.ports[0].port = 65536), "not 1 to 65535"),
        (with(|s| s.ports[0].name = "hawser.dev/x: y".into()), "not a DNS label"),
        (with(|s| s.ports[0].app_protocol = "a\r\nb".into()), "not a plain word"),
        (with(|s| s.ports[0].app_protocol = "x".repeat(1 << 20)), "not a plain word"),
        (with(|s| s.ports = vec![port(1), port(1)]), "two of its ports are called p1"),
        (with(|s| s.ports = (1..=65).map(port).collect()), "more than 64 ports"),
        (
            with(|s| s.identities = vec!["spiffe://west.example/ns/shop/sa/web".into()]),
            "not of the peer's trust domain",
        ),
        (with(|s| s.identities = vec!["spiffe://east.example.evil/ns/a".into()]), "not of the peer's trust domain"),
        (with(|s| s.identities = vec!["spiffe://east.example".into()]), "no path"),
        (with(|s| s.identities = vec!["https://east.example/ns/a".into()]), "spiffe://"),
        (with(|s| s.identities = vec![String::new(); 65]), "more than 64 identities"),
        (with(|s| s.identities.clear()), "no identity"),
    ];
    for (service, reason) in cases {
        let known = hear(&Catalog::default(), vec![service], true);
        assert_eq!(known.offers.len(), 0, "{reason}");
        assert!(known.refused[0].reason.contains(reason), "{:?} does not say {reason:?}", known.refused[0]);
        let shown = &known.refused[0].service;
        assert!(shown.len() <= 130 && shown.bytes().all(|b| b.is_ascii_graphic()), "{shown:?}");
    }
}

#[test]
fn one_bad_entry_does_not_take_the_good_ones_with_it() {
    let mut bad = good("bad");
    bad.identities = vec!["spiffe://west.example/ns/shop/sa/web".into()];
    let known = hear(&Catalog::default(), vec![good("a"), bad.clone(), good("b")], true);
    assert_eq!(known.offers.len(), 2);
    assert_eq!(known.refused.len(), 1);
    // It is refused once however often it is said, and forgotten when it is corrected or removed.
    let known = hear(&known, vec![bad.clone()], false);
    assert_eq!(known.refused.len(), 1);
    assert_eq!(hear(&known, vec![good("bad")], false).refused, []);
    let removed = vec![ServiceName { namespace: "shop".into(), name: "bad".into() }];
    assert_eq!(update(&known, &Update { removed, ..Update::default() }, &domain()).refused, []);
}

#[test]
fn an_offer_that_turns_bad_is_not_believed_in_its_old_form() {
    let known = hear(&Catalog::default(), vec![good("a")], true);
    let mut bad = good("a");
    bad.ports[0].port = 0;
    let known = hear(&known, vec![bad], false);
    assert_eq!((known.offers.len(), known.withdrawn.len(), known.refused.len()), (0, 0, 1));
}

#[test]
fn what_a_peer_may_make_grow_is_bounded() {
    let many = |from: usize, count: usize| (from..from + count).map(|n| good(&format!("s{n}"))).collect::<Vec<_>>();
    let mut known = hear(&Catalog::default(), many(0, SERVICES_MAX), true);
    known = hear(&known, many(SERVICES_MAX, 2 * REFUSED_MAX), false);
    assert_eq!((known.offers.len(), known.refused.len()), (SERVICES_MAX, REFUSED_MAX));
    known = hear(&known, Vec::new(), true);
    assert_eq!((known.offers.len(), known.withdrawn.len()), (0, WITHDRAWN_MAX));
    let mut huge = good("huge");
    (huge.endpoints_ready, huge.exported_at, huge.session) = (u32::MAX, i64::MIN, "x".repeat(1 << 20));
    let known = hear(&Catalog::default(), vec![huge], true);
    let offer = known.offers.values().next().unwrap();
    assert_eq!((offer.endpoints_ready, offer.exported_at_us, offer.session.as_str()), (ENDPOINTS_MAX, 0, "auto"));
    let region = Update { region: "eu\n\u{1b}[31m".into(), snapshot: true, ..Update::default() };
    assert_eq!(update(&known, &region, &domain()).region, "");
}

#[test]
fn what_is_withdrawn_is_remembered_until_it_is_offered_again() {
    let known = hear(&Catalog::default(), vec![good("a"), good("b")], true);
    let known = hear(&known, vec![good("a")], true);
    assert_eq!(known.withdrawn.keys().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["b"]);
    let known = hear(&known, vec![good("b")], false);
    assert!(known.withdrawn.is_empty() && known.offers.len() == 2);
}

#[test]
fn a_catalog_is_read_back_from_its_snapshot() {
    let mut two = good("two");
    two.ports.push(port(8080));
    two.standard = Some(catalog::Standard {
        ports: two.ports.clone(),
        hosts: vec![catalog::Host { hostname: "two-0".into(), endpoint: "e0".into() }],
        exported_at_us: 1_767_225_601_000_001,
        ..catalog::Standard::default()
    });
    let known = hear(&Catalog::default(), vec![good("a"), two], true);
    assert_eq!(update(&Catalog::default(), &snapshot(&known), &domain()), known);
    // Under another trust domain nothing of it is believed.
    let foreign = update(&Catalog::default(), &snapshot(&known), &"north.example".parse().unwrap());
    assert_eq!((foreign.offers.len(), foreign.refused.len()), (0, 2));
}

#[test]
fn rejections_are_bounded_cut_and_cleaned() {
    let rejection = |n: usize| catalog::Rejection {
        namespace: "shop".into(),
        name: format!("s{n}"),
        reason: format!("a\r\n{}", "x".repeat(1000)),
    };
    let mut told: Vec<_> = (0..2 * REJECTIONS_MAX).map(rejection).collect();
    told[0].name = "../x".into();
    let rejections = rejections(&told);
    assert_eq!(rejections.len(), REJECTIONS_MAX - 1);
    assert!(rejections.values().all(|reason| reason.len() <= REASON_MAX && reason.starts_with("ax")));
}

#[test]
fn long_entries_are_bounded_by_what_they_take_together() {
    let mut long = good("x");
    let path = "a/".repeat(900);
    long.identities = (0..IDENTITIES_MAX).map(|n| format!("spiffe://east.example/{path}{n}")).collect();
    let many = (0..500).map(|n| Service { name: format!("s{n}"), ..long.clone() }).collect();
    let known = hear(&Catalog::default(), many, true);
    assert!(known.offers.values().map(|offer| offer.size()).sum::<usize>() <= CATALOG_MAX);
    assert!(!known.offers.is_empty() && known.refused[0].reason.contains("longer than"));
    // Room that is given back can be used, and an entry that is said again does not count twice.
    let name = known.offers.keys().next().unwrap().name.to_string();
    let again = hear(&known, vec![Service { name, ..long.clone() }], false);
    assert_eq!(again.offers.len(), known.offers.len());
    let emptied = hear(&known, Vec::new(), true);
    assert!(emptied.withdrawn.values().all(|offer| offer.identities.is_empty()));
    assert_eq!(hear(&emptied, vec![long], false).offers.len(), 1);
}
