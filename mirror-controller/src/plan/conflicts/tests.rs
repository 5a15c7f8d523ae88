use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn port(name: &str, number: u16, protocol: &str) -> OfferedPort {
    let protocol = crate::world::Protocol::parse(protocol).unwrap();
    OfferedPort { name: name.into(), number, protocol, app_protocol: String::new() }
}

fn plain() -> Standard {
    let ports = vec![port("tcp", 42, "TCP"), port("udp", 42, "UDP")];
    Standard { told: true, ports, ..Standard::default() }
}

/// Settles what clusters a, b, … say, the first the oldest.
fn settled(accounts: &[Standard]) -> Settled {
    let names: Vec<(ClusterName, TrustDomain)> = (0u8..)
        .take(accounts.len())
        .map(|n| char::from(b'a' + n).to_string())
        .map(|name| (name.parse().unwrap(), format!("{name}.example").parse().unwrap()))
        .collect();
    let exporters = names.iter().zip(accounts).zip(1i64..).map(|(((cluster, domain), standard), since_us)| Exporter {
        cluster,
        domain,
        since_us,
        standard,
    });
    settle(exporters.collect())
}

fn reasons(accounts: &[Standard]) -> String {
    settled(accounts).reasons()
}

#[test]
fn those_who_say_the_same_have_no_conflict() {
    assert_eq!(reasons(&[plain(), plain(), plain()]), "");
    let mut turned = plain();
    turned.ports.reverse();
    assert_eq!(reasons(&[plain(), turned]), "", "the order of ports says nothing");
    let cluster = Standard { internal_traffic_policy: Some(TrafficPolicy::Cluster), ..plain() };
    assert_eq!(reasons(&[plain(), cluster]), "", "what Kubernetes fills in is what was meant");
    let long = |seconds| Standard { affinity: Affinity::ClientIp(seconds), ..plain() };
    assert_eq!(reasons(&[long(None), long(Some(10_800))]), "");
}

#[test]
fn each_field_has_its_reason_and_the_oldest_account_holds() {
    let with = |change: fn(&mut Standard)| {
        let mut standard = plain();
        change(&mut standard);
        standard
    };
    let cases: Vec<(Standard, &str)> = vec![
        (with(|s| s.ports.truncate(1)), "PortConflict"),
        (with(|s| s.ports[0].app_protocol = "http".into()), "PortConflict"),
        (with(|s| s.headless = true), "TypeConflict"),
        (with(|s| s.affinity = Affinity::ClientIp(None)), "SessionAffinityConflict"),
        (with(|s| drop(s.annotations.insert("a".into(), "1".into()))), "AnnotationsConflict"),
        (with(|s| drop(s.labels.insert("a".into(), "1".into()))), "LabelsConflict"),
        (with(|s| s.internal_traffic_policy = Some(TrafficPolicy::Local)), "InternalTrafficPolicyConflict"),
        (with(|s| s.traffic_distribution = "PreferClose".into()), "TrafficDistributionConflict"),
    ];
    for (other, reason) in cases {
        for (first, second) in [(plain(), other.clone()), (other.clone(), plain())] {
            let settled = settled(&[first.clone(), second]);
            assert_eq!(settled.reasons(), reason);
            assert_eq!(settled.standard, first);
            assert!(settled.conflicts[0].message.contains("of a, the oldest export, holds; b says"), "{settled:?}");
        }
    }
    let stay = |seconds| Standard { affinity: Affinity::ClientIp(Some(seconds)), ..plain() };
    assert_eq!(reasons(&[stay(10), stay(20)]), "SessionAffinityConfigConflict");
    let family = |families: &[IpFamily]| Standard { ip_families: families.to_vec(), ..plain() };
    assert_eq!(reasons(&[family(&[IpFamily::IPv4]), family(&[IpFamily::IPv6])]), "IPFamilyConflict");
    assert_eq!(reasons(&[family(&[IpFamily::IPv4]), plain()]), "", "who does not say disagrees with nobody");
}

#[test]
fn several_reasons_are_joined_by_commas() {
    let mut other = plain();
    (other.headless, other.affinity) = (true, Affinity::ClientIp(None));
    other.ports.truncate(1);
    assert_eq!(reasons(&[plain(), other]), "PortConflict,TypeConflict,SessionAffinityConflict");
}

#[test]
fn a_third_cluster_can_disagree_where_the_first_two_agree() {
    let other = Standard { headless: true, ..plain() };
    assert_eq!(reasons(&[plain(), plain(), other]), "TypeConflict");
}

#[test]
fn a_peer_that_does_not_tell_is_no_conflict_and_its_ports_count() {
    let silent = Standard { told: false, ports: vec![port("extra", 7, "TCP")], headless: true, ..Standard::default() };
    let settled = settled(&[plain(), silent]);
    assert_eq!(settled.conflicts, []);
    assert_eq!(settled.ports.len(), 3);
}

#[test]
fn ports_are_united_by_name_then_by_protocol_and_number() {
    type Ports<'a> = &'a [(&'a str, u16, &'a str)];
    let cases: [(Ports<'_>, Ports<'_>, Ports<'_>); 6] = [
        // Different ports: the union, an SCTP port too.
        (
            &[("tcp", 42, "TCP")],
            &[("tcp", 42, "TCP"), ("stcp", 142, "SCTP")],
            &[("tcp", 42, "TCP"), ("stcp", 142, "SCTP")],
        ),
        // Same name, other number: the older one's.
        (&[("tcp", 42, "TCP")], &[("tcp", 43, "TCP")], &[("tcp", 42, "TCP")]),
        // Same number, other name.
        (&[("tcp", 42, "TCP")], &[("other", 42, "TCP")], &[("tcp", 42, "TCP")]),
        // The same number of another protocol is another port.
        (&[("a", 53, "TCP")], &[("b", 53, "UDP")], &[("a", 53, "TCP"), ("b", 53, "UDP")]),
        // The name goes first: its port is not there under a second name.
        (&[("a", 1, "TCP"), ("b", 2, "TCP")], &[("a", 2, "TCP")], &[("a", 1, "TCP"), ("b", 2, "TCP")]),
        // Ports without a name are told apart by their numbers.
        (&[("", 1, "TCP")], &[("", 2, "TCP")], &[("", 1, "TCP"), ("", 2, "TCP")]),
    ];
    for (first, second, expected) in cases {
        let account = |ports: Ports<'_>| Standard {
            ports: ports.iter().map(|(name, number, protocol)| port(name, *number, protocol)).collect(),
            ..plain()
        };
        let settled = settled(&[account(first), account(second)]);
        assert_eq!(settled.ports, account(expected).ports);
        assert_eq!(settled.reasons(), "PortConflict");
    }
}

#[test]
fn a_port_is_served_only_by_who_has_it_whole_and_among_federated_by_name() {
    let wanted = port("tcp", 42, "TCP");
    let cases = [
        (port("tcp", 42, "TCP"), Some(42), Some(42)),
        (port("tcp", 43, "TCP"), None, Some(43)),
        (port("other", 42, "TCP"), None, Some(42)),
        (port("tcp", 42, "UDP"), None, None),
        (port("other", 43, "TCP"), None, None),
    ];
    for (theirs, strict, federated) in cases {
        let theirs = [theirs];
        assert_eq!(served_as(&wanted, &theirs, false), strict, "{theirs:?}");
        assert_eq!(served_as(&wanted, &theirs, true), federated, "{theirs:?}");
    }
}

#[test]
fn equally_old_exports_go_by_trust_domain_and_undated_ones_last() {
    let [a, b]: [ClusterName; 2] = ["z-here".parse().unwrap(), "a-here".parse().unwrap()];
    let [first, second]: [TrustDomain; 2] = ["a.example".parse().unwrap(), "b.example".parse().unwrap()];
    let standard = plain();
    let account = |cluster, domain, since_us| Exporter { cluster, domain, since_us, standard: &standard };
    let order = |exporters: Vec<Exporter<'_>>| settle(exporters).order;
    // Whatever each cluster calls the other, all of them find the same winner.
    assert_eq!(order(vec![account(&b, &second, 5), account(&a, &first, 5)]), [a.clone(), b.clone()]);
    assert_eq!(order(vec![account(&a, &first, 0), account(&b, &second, 9)]), [b.clone(), a.clone()]);
    assert_eq!(order(vec![account(&a, &first, 2), account(&b, &second, 1)]), [b, a]);
}

fn account() -> impl Strategy<Value = (i64, Standard)> {
    let ports = proptest::collection::btree_map((0u8..3, 1u16..4), 0u8..4, 0..4);
    (0i64..4, any::<bool>(), any::<bool>(), ports).prop_map(|(since, headless, affinity, ports)| {
        let named = |((protocol, number), name): ((u8, u16), u8)| {
            let name = if name == 0 { String::new() } else { format!("p{name}") };
            port(&name, number, ["TCP", "UDP", "SCTP"][usize::from(protocol)])
        };
        // A Service has each name once.
        let mut by_name: BTreeMap<String, OfferedPort> = BTreeMap::new();
        let (unnamed, named): (Vec<_>, Vec<_>) = ports.into_iter().map(named).partition(|port| port.name.is_empty());
        named.into_iter().for_each(|port| drop(by_name.insert(port.name.clone(), port)));
        let ports = unnamed.into_iter().take(1).chain(by_name.into_values()).collect();
        let affinity = if affinity { Affinity::ClientIp(None) } else { Affinity::None };
        (since, Standard { headless, affinity, ports, ..plain() })
    })
}

proptest! {
    /// In any order of exporters the same comes out; no name and no number is there twice; every port of everybody is
    /// there or has lost to an older one; and a conflict is told exactly where two differ.
    #[test]
    fn settling_does_not_depend_on_the_order(
        accounts in proptest::collection::vec(account(), 1..5),
        turn in any::<prop::sample::Index>(),
    ) {
        let names: Vec<(ClusterName, TrustDomain)> = (0..accounts.len())
            .map(|n| (format!("c{n}").parse().unwrap(), format!("c{n}.example").parse().unwrap()))
            .collect();
        let exporters: Vec<Exporter<'_>> = names
            .iter()
            .zip(&accounts)
            .map(|((cluster, domain), (since_us, standard))| Exporter { cluster, domain, since_us: *since_us, standard })
            .collect();
        let mut turned = exporters.clone();
        turned.rotate_left(turn.index(accounts.len()));
        turned.reverse();
        let settled = settle(exporters);
        prop_assert_eq!(&settled, &settle(turned));
        for (index, port) in settled.ports.iter().enumerate() {
            let twice = |other: &OfferedPort| same_name(other, port) || same_number(other, port);
            prop_assert!(!settled.ports[index + 1..].iter().any(twice));
        }
        for port in accounts.iter().flat_map(|(_, standard)| &standard.ports) {
            prop_assert!(settled.ports.iter().any(|known| same_name(known, port) || same_number(known, port)));
        }
        let differ = accounts.iter().any(|(_, standard)| {
            let sorted = |standard: &Standard| {
                let mut ports: Vec<_> = standard.ports.iter().map(|p| (p.name.clone(), p.number, p.protocol)).collect();
                ports.sort();
                (ports, standard.headless, standard.affinity.as_str())
            };
            sorted(standard) != sorted(&accounts[0].1)
        });
        prop_assert_eq!(differ, !settled.conflicts.is_empty());
    }
}
