use super::*;

const ENTRY: &str = "\
apiVersion: hawser.dev/v1alpha1
kind: WorkloadIdentity
metadata: {name: web}
spec:
  spiffeId: /ns/shop/sa/web
  selectors:
    uid: 1000
    path: /usr/bin/web
    sha256: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
    cgroup: /system.slice/web.service
  hint: internal
  ttlSeconds: 600
  jwtTtlSeconds: 60
  federatesWith: [east, north]
  dnsNames: [web.shop.svc]
";

#[test]
fn a_workload_identity_is_read_with_all_its_fields_and_with_the_least() {
    let objects = parse("a.yaml", ENTRY).unwrap();
    assert_eq!(objects[0].object.title(), "WorkloadIdentity web");
    let Object::WorkloadIdentity(entry) = &objects[0].object else { panic!() };
    assert_eq!(
        entry.spec.id(&"west.example".parse().unwrap()).unwrap().as_str(),
        "spiffe://west.example/ns/shop/sa/web"
    );
    let least = "apiVersion: hawser.dev/v1alpha1\nkind: WorkloadIdentity\nmetadata: {name: a}\nspec:\n  \
                 spiffeId: spiffe://west.example/a\n  selectors: {uid: 0}\n";
    assert!(parse("a.yaml", least).is_ok());
}

#[test]
fn what_a_workload_identity_may_not_say_is_refused_where_it_stands() {
    let cases = [
        ("/ns/shop/sa/web", "ns/shop", "a.yaml:5: spec.spiffeId: SPIFFE ID"),
        ("/ns/shop/sa/web", "/", "a.yaml:5: spec.spiffeId: SPIFFE ID"),
        ("/ns/shop/sa/web", "/ns/../x", "a.yaml:5: spec.spiffeId: SPIFFE ID"),
        ("/ns/shop/sa/web", "/ns/hawser-system/sa/gateway", "a.yaml:5: spec.spiffeId: is in hawser-system"),
        ("uid: 1000", "uid: -1", "a.yaml:7: spec.selectors.uid: "),
        ("uid: 1000", "user: web", "a.yaml:7: spec.selectors.user: unknown field"),
        ("/usr/bin/web", "web", "a.yaml:8: spec.selectors.path: is not a whole path"),
        ("/usr/bin/web", "/usr//web", "a.yaml:8: spec.selectors.path: is not a whole path"),
        ("0123456789abcdef\n", "0123456789ABCDEF\n", "a.yaml:9: spec.selectors.sha256: is not a SHA-256"),
        ("web.service", "../web", "a.yaml:10: spec.selectors.cgroup: is not a whole path"),
        ("web.service", "", "a.yaml:10: spec.selectors.cgroup: is not a whole path"),
        ("hint: internal", "hint: \"\"", "a.yaml:11: spec.hint: has 0 bytes"),
        ("ttlSeconds: 600", "ttlSeconds: 0", "a.yaml:12: spec.ttlSeconds: is out of bounds"),
        ("ttlSeconds: 600", "ttlSeconds: 86401", "a.yaml:12: spec.ttlSeconds: is out of bounds"),
        ("jwtTtlSeconds: 60", "jwtTtlSeconds: 3601", "a.yaml:13: spec.jwtTtlSeconds: is out of bounds"),
        ("[east, north]", "[east, east]", "a.yaml:14: spec.federatesWith[1]: is the same as in item 0"),
        ("web.shop.svc", "\"*.shop\"", "a.yaml:15: spec.dnsNames[0]: \"*.shop\" is no DNS name"),
    ];
    for (from, to, expected) in cases {
        let text = ENTRY.replacen(from, to, 1);
        assert_ne!(text, ENTRY, "{from}");
        let problems = refused(&text);
        assert!(problems.iter().any(|problem| problem.starts_with(expected)), "{problems:?}, not {expected}");
    }
    let long = ENTRY.replace("internal", &"h".repeat(1025));
    assert!(refused(&long)[0].contains("spec.hint: has 1025 bytes"));
    let nobody = "apiVersion: hawser.dev/v1alpha1\nkind: WorkloadIdentity\nmetadata: {name: a}\nspec:\n  \
                  spiffeId: /a\n  selectors: {}\n";
    assert!(refused(nobody)[0].starts_with("a.yaml:6: spec.selectors: is empty, which would be everybody"));
}

#[test]
fn no_two_identities_have_one_hint_and_none_is_of_another_trust_domain() {
    let entry = parse("a.yaml", ENTRY).unwrap();
    let other = parse("b.yaml", &ENTRY.replace("{name: web}", "{name: web-2}")).unwrap();
    let problems = together(&entry, &other);
    assert_eq!(problems[0].to_string(), "b.yaml:1: spec.hint: hint \"internal\" is already taken by a.yaml:1");
    let cluster =
        "apiVersion: hawser.dev/v1alpha1\nkind: Cluster\nmetadata: {name: west}\nspec: {fabricDomain: acme.example}\n";
    let cluster = parse("c.yaml", cluster).unwrap();
    assert_eq!(together(&cluster, &entry), []);
    let foreign = ENTRY.replace("spiffeId: ", "spiffeId: spiffe://east.acme.example");
    let foreign = parse("d.yaml", &foreign).unwrap();
    let problems = together(&cluster, &foreign);
    assert!(problems[0].to_string().contains("is not of this cluster's own trust domain"), "{problems:?}");
    let own = parse("d.yaml", &ENTRY.replace("spiffeId: ", "spiffeId: spiffe://West.acme.example")).unwrap();
    assert_eq!(together(&cluster, &own), []);
}
