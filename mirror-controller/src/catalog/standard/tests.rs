use hawser_api::objects::Object;
use hawser_api::objects::load;

use super::*;

fn told() -> catalog::Standard {
    let port = |name: &str, number: u32, protocol: &str| catalog::Port {
        name: name.into(),
        port: number,
        protocol: protocol.into(),
        app_protocol: String::new(),
    };
    catalog::Standard {
        headless: true,
        session_affinity: "ClientIP".into(),
        session_affinity_seconds: 10,
        internal_traffic_policy: "Local".into(),
        traffic_distribution: "PreferClose".into(),
        ip_families: vec!["IPv6".into(), "IPv4".into()],
        exported_labels: [("team".to_owned(), "shop".to_owned())].into(),
        exported_annotations: [("example.org/owner".to_owned(), "the shop, floor 2".to_owned())].into(),
        ports: vec![port("tcp", 42, "TCP"), port("udp", 42, "UDP"), port("sctp", 7, "SCTP")],
        hosts: vec![catalog::Host { hostname: "db-0".into(), endpoint: "a1".into() }],
        exported_at_us: 5,
    }
}

fn carried() -> Vec<OfferedPort> {
    ports::read(&told().ports[..1]).unwrap()
}

#[test]
fn what_a_peer_tells_is_read_and_written_again_as_it_was() {
    let read = read(&told(), &carried()).unwrap();
    assert_eq!(write(&read, 5), told());
    assert_eq!(read.ports.len(), 3);
    assert_eq!(read.ip_families, [IpFamily::IPv6, IpFamily::IPv4]);
}

#[test]
fn every_word_of_the_standard_is_checked() {
    let label = |key: &str, value: &str| catalog::Standard {
        exported_labels: [(key.to_owned(), value.to_owned())].into(),
        ..told()
    };
    let annotation = |key: &str, value: String| catalog::Standard {
        exported_annotations: [(key.to_owned(), value)].into(),
        ..told()
    };
    let hosts = |names: &[(&str, &str)]| catalog::Standard {
        hosts: names.iter().map(|(h, e)| catalog::Host { hostname: (*h).into(), endpoint: (*e).into() }).collect(),
        ..told()
    };
    let with = |change: fn(&mut catalog::Standard)| {
        let mut told = told();
        change(&mut told);
        told
    };
    let cases: Vec<(catalog::Standard, &str)> = vec![
        (with(|s| s.session_affinity = "Cookie".into()), "session affinity is none"),
        (with(|s| s.session_affinity_seconds = 86_401), "longer than 86400 s"),
        (with(|s| s.internal_traffic_policy = "Everywhere".into()), "internalTrafficPolicy is none"),
        (with(|s| s.traffic_distribution = "a b".into()), "not a plain word"),
        (with(|s| s.ip_families = vec!["IPv4".into(), "IPv4".into()]), "each once"),
        (with(|s| s.ip_families = vec!["IPv5".into()]), "each once"),
        (with(|s| s.ports.clear()), "does not declare it"),
        (with(|s| s.ports[0].port = 43), "does not declare it"),
        (with(|s| s.ports[1].name = "tcp".into()), "two of its ports are called tcp"),
        (with(|s| s.hosts = vec![catalog::Host::default(); HOSTS_MAX + 1]), "more than 256 hosts"),
        (hosts(&[("DB-0", "a")]), "not a DNS label"),
        (hosts(&[("db-0.kube-dns.kube-system", "a")]), "not a DNS label"),
        (hosts(&[("db-0", "a"), ("db-0", "b")]), "two of its hosts are called db-0"),
        (hosts(&[("db-0", "")]), "not a plain word"),
        (hosts(&[("db-0", "a\r\nb")]), "not a plain word"),
        (
            with(|s| s.exported_labels = (0..=MARKS_MAX).map(|n| (format!("l{n}"), String::new())).collect()),
            "more than 32",
        ),
        (label("app.kubernetes.io/managed-by", "hawser"), "own controllers"),
        (label("kubernetes.io/service-name", "kube-dns"), "own controllers"),
        (label("multicluster.x-k8s.io/source", "x"), "own controllers"),
        (label("hawser.dev/export", "true"), "own controllers"),
        (label("argocd.argoproj.io/instance", "root"), "own controllers"),
        (label("team\n", "x"), "not a qualified name"),
        (label("", "x"), "not a qualified name"),
        (label("/x", "x"), "not a qualified name"),
        (label("Example.org/x", "x"), "not a qualified name"),
        (label("team", "a b"), "not a label's value"),
        (label("team", &"x".repeat(64)), "not a label's value"),
        (annotation("team", "x".repeat(ANNOTATION_MAX + 1)), "longer than 1024 bytes"),
        (annotation("team", "a\u{1b}[31m".into()), "control characters"),
        (annotation("kubectl.kubernetes.io/last-applied-configuration", "{}".into()), "own controllers"),
    ];
    for (told, reason) in cases {
        let refused = read(&told, &carried()).unwrap_err();
        assert!(refused.contains(reason), "{refused:?} does not say {reason:?}");
        assert!(!refused.chars().any(char::is_control) && refused.len() < 600, "{refused:?}");
    }
    // Not under one of those domains, only beside.
    assert!(read(&label("notkubernetes.io/x", "y"), &carried()).is_ok());
}

#[test]
fn what_a_peer_would_refuse_is_not_told_and_its_user_is_told_so() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop, labels: {mine: \"1\"}}\n\
        spec: {clusterIP: None, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 10}}, \
        internalTrafficPolicy: Local, trafficDistribution: PreferClose, ipFamilies: [IPv6, IPv4], \
        ports: [{name: tcp, port: 42}, {name: udp, port: 42, protocol: UDP}]}\n\
        ---\napiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: a, namespace: shop}\n\
        spec: {exportedLabels: {team: shop, app.kubernetes.io/name: a}, exportedAnnotations: {note: \"a b\"}}\n";
    let located = load::parse("a.yaml", text).unwrap();
    let (Object::Service(service), Object::ServiceExport(export)) = (&located[0].object, &located[1].object) else {
        panic!("{located:?}")
    };
    let told = of(service, Some(export));
    assert!(told.headless && told.told);
    assert_eq!((told.affinity, told.traffic_distribution.as_str()), (Affinity::ClientIp(Some(10)), "PreferClose"));
    assert_eq!(told.internal_traffic_policy, Some(TrafficPolicy::Local));
    assert_eq!(told.ip_families, [IpFamily::IPv6, IpFamily::IPv4]);
    assert_eq!(told.labels, [("team".to_owned(), "shop".to_owned())].into());
    assert_eq!(told.annotations, [("note".to_owned(), "a b".to_owned())].into());
    assert_eq!(told.ports.len(), 2);
    let unfit = unfit(export);
    assert!(unfit.len() == 1 && unfit[0].starts_with("spec.exportedLabels: app.kubernetes.io/name"), "{unfit:?}");
    // And what is told, a peer takes.
    let carried: Vec<_> = told.ports[..1].to_vec();
    assert_eq!(read(&write(&told, 1), &carried).unwrap(), told);
}
