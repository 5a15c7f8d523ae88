//! The conformance suite's behaviours that the planner decides, by their numbers there, and what it must never do.

use std::sync::Arc;

use hawser_api::proto::catalog;
use proptest::prelude::*;

use super::*;
use crate::plan::plan;
use crate::plan::tests::{WEST, offer, world};
use crate::plan::{Plan, owned};

mod fabric;

/// The suite's service `hello` as a peer offers it.
fn hello(cluster: &str, since_us: i64) -> catalog::Service {
    let port = |name: &str, protocol: &str| catalog::Port {
        name: name.into(),
        port: 42,
        protocol: protocol.into(),
        app_protocol: if protocol == "TCP" { "http" } else { "" }.into(),
    };
    catalog::Service {
        namespace: "shop".into(),
        name: "hello".into(),
        ports: vec![port("tcp", "TCP")],
        identities: vec![format!("spiffe://{cluster}.example/ns/shop/sa/hello")],
        endpoints_ready: 1,
        exported_at: since_us / 1_000_000,
        standard: Some(catalog::Standard {
            session_affinity: "ClientIP".into(),
            session_affinity_seconds: 10,
            internal_traffic_policy: "Cluster".into(),
            ip_families: vec!["IPv4".into()],
            ports: vec![port("tcp", "TCP"), port("udp", "UDP")],
            exported_at_us: since_us,
            ..catalog::Standard::default()
        }),
        ..catalog::Service::default()
    }
}

fn with(mut service: catalog::Service, change: impl FnOnce(&mut catalog::Standard)) -> catalog::Service {
    change(service.standard.as_mut().unwrap());
    service
}

/// The same as this cluster's own objects; `kind` is more of its spec, `export` more of the ServiceExport.
fn own(kind: &str, export: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: hello, namespace: shop, labels: {{own: \"1\"}}}}\n\
         spec: {{{kind}sessionAffinity: ClientIP, sessionAffinityConfig: {{clientIP: {{timeoutSeconds: 10}}}}, internalTrafficPolicy: Cluster, ipFamilies: [IPv4], \
         ports: [{{name: tcp, port: 42, appProtocol: http}}, {{name: udp, port: 42, protocol: UDP}}]}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: hello-1, namespace: shop, labels: {{kubernetes.io/service-name: hello}}}}\n\
         endpoints: [{{addresses: [10.0.0.7], hostname: hello-0}}]\nports: [{{name: tcp, port: 8042}}, {{name: udp, port: 8042, protocol: UDP}}]\n\
         ---\napiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {{name: hello, namespace: shop, creationTimestamp: \"2026-01-01T00:00:01Z\"}}\n{export}"
    )
}

/// When [`own`] is exported, microseconds since the epoch.
const OWN_SINCE: i64 = 1_767_225_601_000_000;

/// West on Kubernetes, with these namespaces, and these addresses of what it derives.
fn cluster(text: &str, namespaces: &[&str], addresses: &[(&str, &[&str])]) -> World {
    let mut world = world(&format!("{WEST}{text}"));
    let mut objects = Objects::clone(world.objects.as_deref().unwrap());
    objects.namespaces = Some(namespaces.iter().map(|name| name.parse().unwrap()).collect());
    for (name, ips) in addresses {
        let key = ServiceKey::parse("shop", name).unwrap();
        objects.cluster_ips.insert(key, ips.iter().map(|ip| ip.parse().unwrap()).collect());
    }
    world.objects = Some(Arc::new(objects));
    world
}

fn shop(text: &str) -> World {
    cluster(text, &["shop"], &[("hello-clusterset", &["10.96.0.7"])])
}

fn import(plan: &Plan) -> ImportObject {
    plan.imports.get(&ServiceKey::parse("shop", "hello").unwrap()).expect("an import").clone()
}

fn condition_of(plan: &Plan, kind: &str) -> (String, String) {
    let export = plan.statuses.exports.iter().find(|export| export.name == "hello").unwrap();
    let condition = export.conditions.iter().find(|condition| condition.kind == kind).unwrap();
    (condition.status.clone(), condition.reason.clone())
}

fn clusters(object: &ImportObject) -> Vec<&str> {
    object.status.clusters.iter().map(|cluster| cluster.cluster.as_str()).collect()
}

#[test]
fn spec_1_an_import_lives_while_one_exporter_remains() {
    let mut world = shop("");
    assert!(plan(&world).unwrap().imports.is_empty());
    offer(&mut world, "east", vec![hello("east", 1)]);
    offer(&mut world, "north", vec![hello("north", 2)]);
    assert_eq!(clusters(&import(&plan(&world).unwrap())), ["east", "north"]);
    offer(&mut world, "east", vec![]);
    let left = import(&plan(&world).unwrap());
    assert_eq!(clusters(&left), ["north"]);
    offer(&mut world, "north", vec![]);
    let gone = plan(&world).unwrap();
    assert!(gone.imports.is_empty());
    assert!(owned(&gone).is_empty(), "nothing is left of it, no slice and no derived Service");
}

#[test]
fn spec_2_only_exported_labels_and_annotations_reach_the_import() {
    let export = "spec: {exportedLabels: {dummy-label: \"true\"}, exportedAnnotations: {dummy-annotation: \"true\"}}\n";
    let object = import(&plan(&shop(&own("", export))).unwrap());
    let metadata = &object.import.metadata;
    assert_eq!(metadata.annotations, [("dummy-annotation".to_owned(), "true".to_owned())].into());
    assert_eq!(metadata.labels.keys().collect::<Vec<_>>(), [labels::MANAGED_BY, "dummy-label"]);
    // Nowhere else, whatever a peer calls them.
    let others = object.derived.iter().map(|s| &s.metadata).chain(object.slices.iter().map(|s| &s.metadata));
    assert!(others.into_iter().all(|metadata| !metadata.labels.contains_key("dummy-label")));
}

#[test]
fn spec_3_of_conflicting_exported_labels_the_oldest_win_and_the_exporter_is_told() {
    let export = "spec: {exportedLabels: {dummy-label: \"true\"}, exportedAnnotations: {dummy-annotation: \"true\"}}\n";
    let mut world = shop(&own("", export));
    let other =
        with(hello("east", OWN_SINCE + 1), |s| drop(s.exported_labels.insert("dummy-label2".into(), "true".into())));
    offer(&mut world, "east", vec![other]);
    let plan = plan(&world).unwrap();
    assert!(import(&plan).import.metadata.labels.contains_key("dummy-label"));
    assert!(!import(&plan).import.metadata.labels.contains_key("dummy-label2"));
    assert_eq!(condition_of(&plan, "Conflict"), ("True".into(), "AnnotationsConflict,LabelsConflict".into()));
}

#[test]
fn spec_4_a_cluster_ip_export_becomes_a_clusterset_ip_import_in_exporter_and_importer() {
    let mut importer = shop("");
    offer(&mut importer, "east", vec![hello("east", 1)]);
    for (world, from) in [(shop(&own("", "")), "west"), (importer, "east")] {
        let object = import(&plan(&world).unwrap());
        assert_eq!(object.import.spec.kind, ImportType::ClusterSetIP);
        assert_eq!(clusters(&object), [from]);
        assert_eq!(object.import.metadata.namespace.as_ref().unwrap().as_str(), "shop");
        assert_eq!(object.status.conditions[0].reason, "Ready");
    }
    // NodePort and LoadBalancer export as ClusterIP.
    for kind in ["type: NodePort, ", "type: LoadBalancer, "] {
        assert_eq!(import(&plan(&shop(&own(kind, ""))).unwrap()).import.spec.kind, ImportType::ClusterSetIP);
    }
}

#[test]
fn specs_5_to_7_affinity_and_traffic_policies_are_the_exporters() {
    let mut world = shop("");
    let told = |s: &mut catalog::Standard| {
        s.internal_traffic_policy = "Local".into();
        s.traffic_distribution = "PreferClose".into();
    };
    offer(&mut world, "east", vec![with(hello("east", 1), told)]);
    let object = import(&plan(&world).unwrap());
    let spec = object.import.spec;
    assert_eq!(spec.session_affinity, Some(SessionAffinity::ClientIP));
    assert_eq!(spec.session_affinity_config.unwrap().client_ip.unwrap().timeout_seconds, Some(10));
    assert_eq!(spec.internal_traffic_policy, Some(hawser_api::objects::import::TrafficPolicy::Local));
    assert_eq!(spec.traffic_distribution.as_deref(), Some("PreferClose"));
    let derived = &object.derived[0].spec;
    assert_eq!(
        (derived.session_affinity.as_deref(), derived.traffic_distribution.as_deref()),
        (Some("ClientIP"), Some("PreferClose"))
    );
    assert_eq!(derived.internal_traffic_policy, None, "no gateway is on the caller's node");
}

#[test]
fn spec_8_addresses_follow_the_families_of_the_oldest_export() {
    type Texts<'a> = &'a [&'a str];
    let cases: [(Texts<'_>, Texts<'_>, Texts<'_>, &[IpFamily]); 5] = [
        (&["IPv4"], &["10.96.0.7"], &["10.96.0.7"], &[IpFamily::IPv4]),
        (&["IPv6", "IPv4"], &["10.96.0.7", "fd00::7"], &["fd00::7", "10.96.0.7"], &[IpFamily::IPv6, IpFamily::IPv4]),
        // A cluster of one family has that one; a tunnel does not mind.
        (&["IPv6", "IPv4"], &["10.96.0.7"], &["10.96.0.7"], &[IpFamily::IPv4]),
        (&["IPv6"], &["10.96.0.7"], &["10.96.0.7"], &[IpFamily::IPv4]),
        (&["IPv6"], &[], &[], &[IpFamily::IPv6]),
    ];
    for (told, given, ips, families) in cases {
        let mut world = cluster("", &["shop"], &[("hello-clusterset", given)]);
        let told = told.iter().map(|word| (*word).to_owned()).collect();
        offer(&mut world, "east", vec![with(hello("east", 1), |s| s.ip_families = told)]);
        let object = import(&plan(&world).unwrap());
        assert_eq!(object.import.spec.ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ips);
        assert_eq!(object.import.spec.ip_families, families);
        let ready = if ips.is_empty() { "Pending" } else { "Ready" };
        assert_eq!(object.status.conditions[0].reason, ready);
    }
}

#[test]
fn spec_9_ports_are_the_exporters_with_protocol_and_app_protocol() {
    for world in [shop(&own("", "")), {
        let mut world = shop("");
        offer(&mut world, "east", vec![hello("east", 1)]);
        world
    }] {
        let object = import(&plan(&world).unwrap());
        let port = |name: &str, protocol: &str, app: Option<&str>| ImportPort {
            name: Some(name.into()),
            protocol: Some(protocol.into()),
            app_protocol: app.map(str::to_owned),
            port: 42,
        };
        assert_eq!(object.import.spec.ports, [port("tcp", "TCP", Some("http")), port("udp", "UDP", None)]);
        let message = &object.status.conditions[0].message;
        assert!(message.contains("UDP 42 not carried"), "{message}");
        let derived: Vec<_> = object.derived[0].spec.ports.iter().map(|p| p.protocol.as_deref()).collect();
        assert_eq!(derived, [Some("TCP")], "an address that nobody answers would be a lie");
    }
}

#[test]
fn specs_10_and_11_ports_are_united_and_the_exporter_is_told() {
    let sctp = catalog::Port { name: "stcp".into(), port: 142, protocol: "SCTP".into(), app_protocol: String::new() };
    let cases = [
        (with(hello("east", OWN_SINCE + 1), |s| drop(s.ports.splice(1.., [sctp]))), vec![42, 42, 142]),
        (
            with(hello("east", OWN_SINCE + 1), |s| {
                s.ports.truncate(1);
                s.ports[0].port = 43;
            }),
            vec![42, 42],
        ),
    ];
    for (mut other, expected) in cases {
        other.ports[0].port = other.standard.as_ref().unwrap().ports[0].port;
        let mut world = shop(&own("", ""));
        offer(&mut world, "east", vec![other]);
        let plan = plan(&world).unwrap();
        assert_eq!(import(&plan).import.spec.ports.iter().map(|p| p.port).collect::<Vec<_>>(), expected);
        assert_eq!(condition_of(&plan, "Conflict"), ("True".into(), "PortConflict".into()));
    }
}

#[test]
fn specs_12_and_13_a_headless_export_becomes_a_headless_import_without_addresses() {
    let mut importer = shop("");
    offer(&mut importer, "east", vec![with(hello("east", 1), |s| s.headless = true)]);
    for world in [shop(&own("clusterIP: None, ", "")), importer] {
        let object = import(&plan(&world).unwrap());
        assert_eq!(object.import.spec.kind, ImportType::Headless);
        assert!(object.import.spec.ips.is_empty());
        assert!(object.derived.iter().all(|service| service.metadata.name != "hello-clusterset"));
    }
}

#[test]
fn spec_14_an_external_name_is_not_valid_and_not_imported() {
    let plan = plan(&shop(&own("type: ExternalName, externalName: example.com, ", ""))).unwrap();
    assert_eq!(condition_of(&plan, "Valid"), ("False".into(), "InvalidServiceType".into()));
    assert!(plan.imports.is_empty());
}

#[test]
fn spec_15_of_conflicting_types_the_oldest_wins_on_both_sides() {
    for (since, kind) in [(OWN_SINCE + 1, ImportType::ClusterSetIP), (OWN_SINCE - 1, ImportType::Headless)] {
        let mut world = shop(&own("", ""));
        offer(&mut world, "east", vec![with(hello("east", since), |s| s.headless = true)]);
        let plan = plan(&world).unwrap();
        assert_eq!(import(&plan).import.spec.kind, kind);
        assert_eq!(condition_of(&plan, "Conflict"), ("True".into(), "TypeConflict".into()));
    }
}

#[test]
fn spec_16_slices_bear_the_standards_labels_and_never_tie_themselves_to_the_exported_service() {
    let mut world = shop(&own("", ""));
    offer(&mut world, "east", vec![hello("east", OWN_SINCE + 1)]);
    let object = import(&plan(&world).unwrap());
    let sources: Vec<_> =
        object.slices.iter().map(|s| s.metadata.labels[labels::MCS_SOURCE_CLUSTER].as_str()).collect();
    assert_eq!(sources, ["west", "east", "east"]);
    for slice in &object.slices {
        assert_eq!(slice.metadata.labels[labels::MCS_SERVICE_NAME], "hello");
        assert_eq!(slice.metadata.labels[labels::SLICE_MANAGED_BY], "mirror-controller.hawser.dev");
        assert_eq!(slice.metadata.labels[labels::SERVICE_NAME], "hello-clusterset");
        assert!(!slice.endpoints.is_empty());
    }
    assert_eq!(object.slices[0].endpoints[0].addresses, ["10.0.0.7"]);
    assert_eq!(object.slices[0].ports[0].port, 8042);
}

#[test]
fn spec_21_a_far_endpoint_is_in_the_slice_by_its_host_name_under_an_address_of_this_cluster() {
    let host = |n: u8| catalog::Host { hostname: format!("hello-{n}"), endpoint: format!("e{n}") };
    let stateful = |s: &mut catalog::Standard| (s.headless, s.hosts) = (true, vec![host(0), host(1)]);
    let mut world =
        cluster("", &["shop"], &[("hello-hello-0-east", &["10.96.1.1"]), ("hello-hello-1-east", &["10.96.1.2"])]);
    offer(&mut world, "east", vec![with(hello("east", 1), stateful)]);
    let plan = plan(&world).unwrap();
    let object = import(&plan);
    let derived: Vec<_> = object.derived.iter().map(|service| service.metadata.name.as_str()).collect();
    assert_eq!(derived, ["hello-hello-0-east", "hello-hello-1-east"]);
    let endpoints: Vec<_> =
        object.slices[0].endpoints.iter().map(|e| (e.hostname.as_deref().unwrap(), e.addresses[0].as_str())).collect();
    assert_eq!(endpoints, [("hello-0", "10.96.1.1"), ("hello-1", "10.96.1.2")]);
    assert_eq!(object.slices[0].ports.iter().map(|p| p.port).collect::<Vec<_>>(), [42], "UDP is not carried");
    assert!(!object.slices[0].metadata.labels.contains_key(labels::SERVICE_NAME));
    let Some(hawser_api::proto::discovery::resource::Kind::Destination(one)) =
        plan.destinations.get("destination/shop/hello-hello-1-east")
    else {
        panic!("{:?}", plan.destinations.keys())
    };
    assert_eq!(one.dns_names, ["hello-1.east.hello.shop.svc.clusterset.local"]);
    assert_eq!(one.group_names, ["hello.shop.svc.clusterset.local"]);
    assert_eq!(one.tiers[0].backends[0].endpoint, "e1");
}

#[test]
fn specs_26_and_27_a_ports_traffic_goes_only_to_clusters_that_have_it_whole() {
    let renamed = |s: &mut catalog::Standard| s.ports[0].name = "other".into();
    let mut world = shop("");
    let mut other = with(hello("north", 2), renamed);
    other.ports[0].name = "other".into();
    offer(&mut world, "east", vec![hello("east", 1)]);
    offer(&mut world, "north", vec![other]);
    let plan = plan(&world).unwrap();
    let Some(hawser_api::proto::discovery::resource::Kind::Destination(set)) =
        plan.destinations.get("destination/shop/hello-clusterset")
    else {
        panic!("{:?}", plan.destinations.keys())
    };
    let maps: Vec<_> = set.tiers[0].backends.iter().map(|b| (b.cluster.as_str(), b.ports.clone())).collect();
    assert_eq!(maps, [("east", vec![]), ("north", vec![0])]);
}

#[test]
fn a_namespace_that_is_not_there_gets_no_import_and_the_exporter_is_told() {
    let mut world = cluster("", &["other"], &[]);
    offer(&mut world, "east", vec![hello("east", 1)]);
    let plan = plan(&world).unwrap();
    assert!(plan.imports.is_empty());
    let east = plan.statuses.links.iter().find(|link| link.name == "east").unwrap();
    assert!(east.status.refused[0].reason.contains("no namespace shop"), "{:?}", east.status.refused);
}

#[test]
fn a_peer_whose_lease_is_over_keeps_the_import_and_loses_its_slices() {
    let mut world = shop("");
    offer(&mut world, "east", vec![hello("east", 1)]);
    let name: ClusterName = "east".parse().unwrap();
    let state = crate::world::PeerState { alive: false, ..crate::world::PeerState::clone(&world.peers[&name]) };
    world.peers.insert(name, Arc::new(state));
    let object = import(&plan(&world).unwrap());
    assert_eq!((clusters(&object), object.slices.len()), (vec!["east"], 0));
    assert_eq!(object.status.endpoint_slice_objects, Some(Presence::Absent));
}

#[test]
fn a_cluster_of_files_has_imports_and_derives_nothing() {
    let mut world = world(WEST);
    offer(&mut world, "east", vec![hello("east", 1)]);
    let object = import(&plan(&world).unwrap());
    assert!(object.derived.is_empty() && object.import.spec.ips.is_empty());
    assert_eq!(object.status.conditions[0].status, "True");
}

#[test]
fn a_federated_service_that_is_not_exported_is_imported_only_with_others() {
    let federated = "---\napiVersion: v1\nkind: Service\nmetadata: {name: hello, namespace: shop, labels: {hawser.dev/federated: \"true\"}}\nspec: {ports: [{name: tcp, port: 42}]}\n";
    let mut world = shop(federated);
    assert!(plan(&world).unwrap().imports.is_empty());
    offer(&mut world, "east", vec![hello("east", 1)]);
    assert_eq!(clusters(&import(&plan(&world).unwrap())), ["east", "west"]);
}

/// What its status says of who has it.
fn told(export: &crate::status::ExportEntry) -> (&str, &str, &str) {
    let imported = export.conditions.iter().find(|condition| condition.kind == "Imported").unwrap();
    (&imported.status, &imported.reason, &imported.message)
}

#[test]
fn who_may_import_who_did_and_who_refused_is_told() {
    let mut world = shop(&own("", ""));
    let key = ServiceKey::parse("shop", "hello").unwrap();
    let mut state = crate::world::PeerState { alive: true, ..Default::default() };
    world.peers.insert("north".parse().unwrap(), Arc::new(state.clone()));
    state.acknowledged = true;
    world.peers.insert("east".parse().unwrap(), Arc::new(state.clone()));
    let export = plan(&world).unwrap().statuses.exports[0].clone();
    assert_eq!(told(&export), ("False", "Pending", "imported by east. no word from north"));
    assert_eq!(
        (export.clusters, export.imported_by),
        (vec!["east".to_owned(), "north".into()], vec!["east".to_owned()])
    );
    // A cluster that is silent for a while has not taken anything back.
    for (name, alive) in [("east", false), ("north", true)] {
        world.peers.insert(name.parse().unwrap(), Arc::new(crate::world::PeerState { alive, ..state.clone() }));
    }
    let export = plan(&world).unwrap().statuses.exports[0].clone();
    assert_eq!(told(&export), ("True", "Imported", "imported by east, north"));
    state.rejections = Arc::new([(key, "not taken".to_owned())].into());
    world.peers.insert("east".parse().unwrap(), Arc::new(state));
    let export = plan(&world).unwrap().statuses.exports[0].clone();
    assert_eq!(told(&export), ("False", "Refused", "imported by north. refused by east: not taken"));
    assert_eq!((export.imported_by, export.rejections[0].reason.as_str()), (vec!["north".to_owned()], "not taken"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever peers offer, in whichever order it was heard: the same imports, all of one name a service, none outside the
    /// namespaces that are there, no object twice, and a second plan is the same.
    #[test]
    fn any_order_of_exports_gives_the_same_imports(
        exports in proptest::collection::vec((any::<bool>(), 0i64..3, any::<bool>(), 0u8..3, 0u8..3), 0..8),
        turn in any::<prop::sample::Index>(),
    ) {
        let made = |turn: usize| {
            let mut world = shop(&own("", ""));
            let mut exports = exports.clone();
            let count = exports.len().max(1);
            exports.rotate_left(turn % count);
            for cluster in ["east", "north"] {
                let of = exports.iter().filter(|(east, ..)| *east == (cluster == "east"));
                // Of one name the entry with the smallest words is the one that the peer has.
                let mut last: BTreeMap<String, (i64, bool, u8)> = BTreeMap::new();
                for (_, since, headless, name, hosts) in of {
                    let entry = last.entry(format!("s{name}")).or_insert((*since, *headless, *hosts));
                    *entry = (*entry).min((*since, *headless, *hosts));
                }
                let services = last.into_iter().map(|(name, (since, headless, hosts))| {
                    let host = |n| catalog::Host { hostname: format!("h{n}"), endpoint: format!("e{n}") };
                    let told = |s: &mut catalog::Standard| (s.headless, s.hosts) = (headless, (0..hosts).map(host).collect());
                    with(catalog::Service { name, ..hello(cluster, since) }, told)
                });
                let mut services: Vec<_> = services.collect();
                let count = services.len().max(1);
                services.rotate_left(turn % count);
                offer(&mut world, cluster, services);
            }
            world
        };
        let (one, other) = (plan(&made(0)).unwrap(), plan(&made(turn.index(16))).unwrap());
        prop_assert_eq!(&one.imports, &other.imports);
        prop_assert_eq!(plan(&made(0)).unwrap().imports, one.imports.clone());
        let keys: Vec<_> = owned(&one).into_iter().map(|(key, _)| key).collect();
        let mut distinct = keys.clone();
        distinct.dedup();
        prop_assert_eq!(&distinct, &keys);
        for (key, object) in &one.imports {
            prop_assert_eq!(key.namespace.as_str(), "shop");
            prop_assert_eq!(object.import.metadata.name.as_str(), key.name.as_str());
            prop_assert!(object.import.spec.kind == ImportType::ClusterSetIP || object.import.spec.ips.is_empty());
        }
    }
}
