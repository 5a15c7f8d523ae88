use super::*;

mod identity;

fn refused(text: &str) -> Vec<String> {
    parse("a.yaml", text).expect_err(text).iter().map(ToString::to_string).collect()
}

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata:
  name: checkout
  namespace: shop
  labels: {hawser.dev/export: \"true\"}
spec:
  ports:
  - port: 80
";

const LINK: &str = "\
apiVersion: hawser.dev/v1alpha1
kind: Link
metadata: {name: east}
spec:
  trustDomain: east.example
  gateways:
  - name: gateway-0
    address: 127.0.0.1:7443
";

#[test]
fn a_file_of_several_documents_gives_its_objects_with_their_lines() {
    let text = format!("# comment\n---\n{SERVICE}---\n\n{LINK}...\n# end\n");
    let objects = parse("a.yaml", &text).unwrap();
    let titles: Vec<_> = objects.iter().map(|o| (o.object.title(), o.line)).collect();
    assert_eq!(titles, [("Service shop/checkout".to_owned(), 3), ("Link east".to_owned(), 14)]);
    assert_eq!(parse("a.yaml", "").unwrap(), []);
    assert_eq!(parse("a.yaml", "---\n# nothing\n---\n").unwrap(), []);
}

#[test]
fn errors_name_line_and_field() {
    let second = |text: &str| format!("{SERVICE}---\n{text}");
    let cases: &[(String, &str)] = &[
        (SERVICE.replace("port: 80", "port: 0"), "a.yaml:9: spec.ports[0].port: is 0"),
        (SERVICE.replace("port: 80", "port: 70000"), "a.yaml:9: spec.ports[0].port: "),
        (SERVICE.replace("port: 80", "port: eighty"), "a.yaml:9: spec.ports[0].port: "),
        (SERVICE.replace("name: checkout", "name: Check_out"), "a.yaml:4: metadata.name: service name \"Check_out\""),
        (SERVICE.replace("\"true\"", "\"yes\""), "a.yaml:6: metadata.labels[hawser.dev/export]: is \"yes\""),
        (
            SERVICE.replace("dev/export:", "dev/exports:"),
            "a.yaml:6: metadata.labels[hawser.dev/exports]: is not a label",
        ),
        (second(&LINK.replace("trustDomain", "trustdomain")), "a.yaml:15: spec.trustdomain: unknown field"),
        (second(&LINK.replace("  trustDomain: east.example\n", "")), "a.yaml:15: spec.trustDomain: missing field"),
        (second(&LINK.replace("127.0.0.1:7443", "127.0.0.1")), "a.yaml:18: spec.gateways[0].address: "),
        (second(&LINK.replace("7443", "0")), "a.yaml:18: spec.gateways[0].address: has no port"),
        (second(&LINK.replace("Link", "Lynk")), "a.yaml:12: kind: Lynk is not a kind that Hawser reads"),
        (second(&LINK.replace("v1alpha1", "v9")), "a.yaml:11: apiVersion: \"hawser.dev/v9\" is not a version of Link"),
        (second(&LINK.replace("  - name", "  transport: [quic\n  - name")), "a.yaml:"),
        (second("a: [b\n"), "a.yaml:1"),
        (second("just text\n"), "a.yaml:11"),
    ];
    for (text, start) in cases {
        let problems = refused(text);
        assert!(problems.iter().any(|p| p.starts_with(start)), "{start:?} is not in {problems:#?}");
    }
}

#[test]
fn an_unknown_kind_is_refused_with_the_list_of_known_ones() {
    let problems = parse("a.yaml", "apiVersion: apps/v1\nkind: Deployment\n").unwrap_err();
    for (_, kind) in KINDS {
        assert!(problems[0].remedy.contains(kind), "{kind} is not offered in {:?}", problems[0].remedy);
    }
}

#[test]
fn one_bad_document_refuses_the_whole_file() {
    let text = format!("{SERVICE}---\n{}", LINK.replace("7443", "0"));
    assert!(parse("a.yaml", &text).is_err());
}

const CLUSTER: &str = "\
apiVersion: hawser.dev/v1alpha1
kind: Cluster
metadata: {name: west}
spec:
  fabricDomain: example
  gateways:
  - {name: gateway-0, listen: \"127.0.0.1:7443\"}
  proxies:
  - name: web
    namespace: shop
    serviceAccount: web
    virtualNetwork: 127.65.0.0/16
    socks: 127.0.0.1:1080
  - {name: back, namespace: shop, serviceAccount: back, inbound: \"127.0.0.1:4143\", virtualNetwork: 127.66.0.0/16}
";

const SLICE: &str = "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: checkout-1
  labels: {kubernetes.io/service-name: checkout}
ports: [{name: http, port: 8080}]
endpoints:
- addresses: [127.0.0.1]
";

const POLICY: &str = "\
apiVersion: hawser.dev/v1alpha1
kind: FailoverPolicy
metadata: {name: checkout, namespace: shop}
spec:
  tiers:
  - clusters: [{name: west, weight: 1}]
  - clusters: [{name: east}]
";

#[test]
fn what_is_right_is_taken() {
    for text in [CLUSTER, LINK, SERVICE, SLICE, POLICY] {
        assert_eq!(parse("a.yaml", text).map(|objects| objects.len()), Ok(1), "{text}");
    }
    // A manifest from a real cluster has fields, addresses and labels that mean nothing here.
    let foreign =
        SERVICE.replace("spec:\n", "spec:\n  selector: {app: x}\n  clusterIP: 10.96.0.7\n  sessionAffinity: None\n");
    assert!(parse("a.yaml", &foreign).is_ok());
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of rules, one a row")]
fn rules_of_each_kind_hold_with_their_lines() {
    let cases: &[(&str, &str, &str, &str)] = &[
        (CLUSTER, "7443", "0", ":7: spec.gateways[0].listen: has no port"),
        (CLUSTER, "127.65.0.0/16", "10.0.0.0/16", ":12: spec.proxies[0].virtualNetwork: is not inside 127.64.0.0/10"),
        (CLUSTER, "127.65.0.0/16", "127.65.0.1/16", ":12: spec.proxies[0].virtualNetwork: has bits set"),
        (CLUSTER, "127.65.0.0/16", "127.65.0.0/31", ":12: spec.proxies[0].virtualNetwork: has no prefix of 10 to 30"),
        (
            CLUSTER,
            "127.66.0.0/16",
            "127.65.128.0/17",
            ":14: spec.proxies[1].virtualNetwork: overlaps with that of item 0",
        ),
        (CLUSTER, "name: back,", "name: web,", ":14: spec.proxies[1].name: is the same as in item 0"),
        (CLUSTER, "fabricDomain: example", "fabricDomain: \"a b\"", ":5: spec.fabricDomain: "),
        (
            CLUSTER,
            "spec:\n",
            "spec:\n  certificates: {gatewayTtlSeconds: 3601}\n",
            ":5: spec.certificates.gatewayTtlSeconds: ",
        ),
        (CLUSTER, "socks:", "sox:", ":13: spec.proxies[0].sox: unknown field"),
        (LINK, "gateways:\n", "transport: udp\n  gateways:\n", ":6: spec.transport: "),
        (LINK, "name: east", "name: East", ":3: metadata.name: cluster name \"East\""),
        (LINK, "127.0.0.1:7443", "0.0.0.0:7443", ":8: spec.gateways[0].address: is no address"),
        (LINK, "127.0.0.1:7443", "example.org:7443", ":8: spec.gateways[0].address: "),
        (
            LINK,
            "  gateways:",
            "  import: {nameTemplate: \"x-{cluster}\"}\n  gateways:",
            ":6: spec.import.nameTemplate: does not contain {service}",
        ),
        (
            LINK,
            "  gateways:",
            "  import: {nameTemplate: \"{service}-{zone}\"}\n  gateways:",
            ":6: spec.import.nameTemplate: gives names like",
        ),
        (LINK, "  gateways:", "  bundle: \"{}\"\n  gateways:", ":6: spec.bundle: "),
        (SERVICE, "port: 80", "targetPort: Nope", ":9: spec.ports[0].port: missing field"),
        (SERVICE, "port: 80", "{port: 80, appProtocol: hawser.dev/x}", ":9: spec.ports[0].appProtocol: "),
        (
            SERVICE,
            "  - port: 80",
            "  - {port: 80, name: a}\n  - {port: 81, name: a}",
            ":10: spec.ports[1].name: is the same",
        ),
        (SERVICE, "  - port: 80", "  - {port: 80, name: a}\n  - {port: 81}", ":10: spec.ports[1].name: is missing"),
        (SERVICE, "  ports:\n  - port: 80", "  ports: []", ":8: spec.ports: is empty"),
        (
            SERVICE,
            "spec:",
            "spec:\n  clusterIP: 127.0.0.9",
            ":8: spec.clusterIP: 127.0.0.9 is outside of 127.64.0.0/10",
        ),
        (
            SERVICE,
            "  labels:",
            "  annotations: {hawser.dev/export-to: \"a,B\"}\n  labels:",
            ":6: metadata.annotations[hawser.dev/export-to]: ",
        ),
        (
            SERVICE,
            "  labels:",
            "  annotations: {hawser.dev/export: \"true\"}\n  labels:",
            "is a label, not an annotation",
        ),
        (
            SERVICE,
            "  labels:",
            "  annotations: {hawser.dev/session: fast}\n  labels:",
            ":6: metadata.annotations[hawser.dev/session]: is \"fast\"",
        ),
        (
            SLICE,
            "service-name: checkout",
            "service: checkout",
            ":5: metadata.labels[kubernetes.io/service-name]: is missing",
        ),
        (SLICE, "[127.0.0.1]", "[localhost]", ":8: endpoints[0].addresses: \"localhost\" is no address"),
        (SLICE, "[127.0.0.1]", "[]", ":8: endpoints[0].addresses: is empty"),
        (POLICY, "weight: 1", "weight: 0", ":6: spec.tiers[0].clusters: gives every cluster weight 0"),
        (POLICY, "name: east", "name: west", ":7: spec.tiers[1].clusters[0].name: is the same as in item 0"),
        (POLICY, "spec:\n", "spec:\n  minimumHealthyPercent: 101\n", ":5: spec.minimumHealthyPercent: is 101"),
    ];
    for (good, from, to, expected) in cases {
        let text = good.replacen(from, to, 1);
        assert_ne!(&text, good, "{from:?} is not there");
        let problems = parse("a.yaml", &text).expect_err(expected);
        let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert!(told.iter().any(|problem| problem.contains(expected)), "{expected:?} is not in {told:#?}");
        assert!(problems.iter().all(|problem| !problem.remedy.is_empty()), "{told:#?}");
    }
}

#[test]
fn files_are_held_against_each_other() {
    let parsed = |file: &str, text: &str| parse(file, text).unwrap();
    let accepted = [parsed("a.yaml", CLUSTER), parsed("b.yaml", LINK), parsed("c.yaml", SERVICE)].concat();
    let fixed = |name: &str| SERVICE.replace("checkout", name).replace("spec:", "spec:\n  clusterIP: 127.65.0.9");
    let cases = [
        (SERVICE.to_owned(), "Service shop/checkout is already taken by c.yaml:1"),
        (CLUSTER.replace("west", "north"), "the one Cluster of this directory is already taken by a.yaml:1"),
        (LINK.replace("{name: east}", "{name: other}"), "trust domain east.example is already taken by b.yaml:1"),
        (
            LINK.replace("{name: east}", "{name: west}").replace("east.example", "x.example"),
            "west is this cluster's own name",
        ),
        (
            LINK.replace("{name: east}", "{name: x}").replace("east.example", "west.example"),
            "this cluster's own trust domain",
        ),
        (format!("{}---\n{}", fixed("x"), fixed("y")), "virtual address 127.65.0.9 is already taken by z.yaml:1"),
    ];
    for (text, expected) in cases {
        let problems = together(&accepted, &parsed("z.yaml", &text));
        let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
        assert!(told.iter().any(|problem| problem.starts_with("z.yaml:") && problem.contains(expected)), "{told:#?}");
    }
    assert_eq!(together(&accepted, &parsed("z.yaml", &SERVICE.replace("checkout", "other"))), []);
    // Another kind of the same name is another object.
    assert_eq!(together(&accepted, &parsed("z.yaml", POLICY)), []);
}

#[test]
fn a_file_that_is_too_long_is_not_read() {
    let problems = parse("a.yaml", &"#".repeat(FILE_MAX + 1)).unwrap_err();
    assert_eq!(problems[0].line, 0);
}

#[test]
fn a_bad_file_reports_a_bounded_number_of_problems() {
    let text = "kind: Nope\n---\n".repeat(1000);
    assert_eq!(parse("a.yaml", &text).unwrap_err().len(), PROBLEMS_MAX);
}

#[test]
fn aliases_do_not_multiply_without_end() {
    let mut text = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (from, to) in "abcdefghi".chars().zip("bcdefghij".chars()) {
        text.push_str(&format!("{to}: &{to} [{}]\n", vec![format!("*{from}"); 9].join(", ")));
    }
    assert!(parse("a.yaml", &text).is_err());
}

#[test]
fn a_bundle_endpoint_is_three_parameters_of_which_none_stands_for_another() {
    let link = |spec: &str, endpoint: &str| {
        format!(
            "apiVersion: hawser.dev/v1alpha1\nkind: Link\nmetadata: {{name: east}}\nspec:\n  \
             trustDomain: east.example\n  gateways: [{{name: g0, address: \"192.0.2.1:7443\"}}]\n{spec}  \
             bundleEndpoint: {{{endpoint}}}\n"
        )
    };
    let bundle = "  bundle: '{\"keys\": []}'\n";
    let web = "url: \"https://b.example/\", profile: https_web";
    let spiffe = "url: \"https://b.example/\", profile: https_spiffe";
    let id = "endpointSpiffeId: \"spiffe://east.example/spire/server\"";
    let elsewhere = "endpointSpiffeId: \"spiffe://north.example/x\"";
    for good in [
        web.to_owned(),
        format!("{web}, caFile: ca.pem, followRedirects: true"),
        format!("{spiffe}, {id}"),
        format!("{spiffe}, {elsewhere}"),
    ] {
        assert!(parse("a.yaml", &link(bundle, &good)).is_ok(), "{good}");
    }
    for (spec, endpoint, why) in [
        ("", web.to_owned(), "hangs under this cluster's own root"),
        (&*format!("{bundle}  bundleUpdates: pinned\n"), web.to_owned(), "bundleUpdates pins"),
        (bundle, spiffe.to_owned(), "is missing"),
        (bundle, format!("{web}, {id}"), "is not looked at by https_web"),
        (bundle, format!("{spiffe}, {id}, caFile: ca.pem"), "is not looked at by https_spiffe"),
        (bundle, "url: \"http://b.example/\", profile: https_web".into(), "not an https URL"),
        (bundle, "url: \"https://u:p@b.example/\", profile: https_web".into(), "user information"),
        (bundle, "url: \"https:///x\", profile: https_web".into(), "names no host"),
        (bundle, "profile: https_web".into(), "missing field"),
        (bundle, "url: \"https://b.example/\"".into(), "missing field"),
        (bundle, "url: \"https://b.example/\", profile: web".into(), "unknown variant"),
    ] {
        let problems = parse("a.yaml", &link(spec, &endpoint)).unwrap_err();
        let all: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
        assert!(all.contains(why) && problems.iter().all(|problem| !problem.remedy.is_empty()), "{endpoint}: {all}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_answered_with_lines_that_are_there(text in "(?s).{0,400}") {
        held(&text);
    }

    #[test]
    fn any_damage_to_a_good_file_is_answered(at in 0usize..700, cut in 0usize..20, new in "(?s).{0,8}") {
        let mut text: Vec<char> = format!("{CLUSTER}---\n{SERVICE}---\n{LINK}").chars().collect();
        let at = at.min(text.len());
        let end = (at + cut).min(text.len());
        text.splice(at..end, new.chars());
        held(&text.into_iter().collect::<String>());
    }
}

fn held(text: &str) {
    let lines = text.lines().count() as u64 + 1;
    match parse("a.yaml", text) {
        Ok(objects) => assert!(objects.iter().all(|object| (1..=lines).contains(&object.line))),
        Err(problems) => {
            assert!(!problems.is_empty());
            for problem in problems {
                assert!(problem.line <= lines, "{problem} of {lines} lines");
            }
        }
    }
}

#[test]
fn an_export_s_own_labels_are_held_to_what_kubernetes_takes() {
    const EXPORT: &str = "\
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata: {name: checkout, namespace: shop}
spec:
  exportedLabels: {example.org/team: payments}
  exportedAnnotations: {note: \"call us, day and night\"}
";
    let objects = parse("a.yaml", EXPORT).unwrap();
    let Object::ServiceExport(export) = &objects[0].object else { panic!("{objects:?}") };
    assert_eq!(export.spec.exported_labels["example.org/team"], "payments");
    let cases: &[(String, &str)] = &[
        (EXPORT.replace("payments", "\"day and night\""), "a.yaml:5: spec.exportedLabels[example.org/team]: is \"day"),
        (EXPORT.replace("example.org/team", "Example.Org/team"), "[Example.Org/team]: is no key"),
        (EXPORT.replace("example.org/team", "a/b/c"), "[a/b/c]: is no key"),
        (EXPORT.replace("note:", "-note:"), "a.yaml:6: spec.exportedAnnotations[-note]: is no key"),
        (EXPORT.replace("call us", &"x".repeat(1024)), "is 1039 bytes long; at most 1024 are carried"),
        (EXPORT.replace("exportedLabels", "exportLabels"), "a.yaml:5: spec.exportLabels: unknown field"),
    ];
    for (text, part) in cases {
        let problems = refused(text);
        assert!(problems.iter().any(|p| p.contains(part)), "{part:?} is not in {problems:#?}");
    }
    let many: String = (0..33).map(|n| format!("n{n}: x, ")).collect();
    let problems = refused(&EXPORT.replace("example.org/team: payments", many.trim_end_matches(", ")));
    assert!(problems[0].contains("has 33 entries; at most 32 are carried"), "{problems:?}");
}
