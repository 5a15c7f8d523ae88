use super::*;

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
