use std::collections::BTreeMap;
use std::sync::Arc;

use hawser_api::objects::load::{self, Located};
use hawser_api::proto::catalog::Update;
use hawser_api::proto::discovery::{Destination, Export, Inbound, resource::Kind};
use hawser_api::{ClusterName, ServiceKey};
use proptest::prelude::*;

use super::*;
use crate::catalog::accept;
use crate::world::{Objects, PeerState};

/// Cluster west with links to east and north, and a proxy for each of two accounts.
pub(crate) const WEST: &str = "\
apiVersion: hawser.dev/v1alpha1
kind: Cluster
metadata: {name: west}
spec:
  fabricDomain: example
  region: eu
  proxies:
  - {name: web, namespace: shop, serviceAccount: web}
  - {name: back, namespace: shop, serviceAccount: back, inbound: 127.0.0.1:4143}
---
apiVersion: hawser.dev/v1alpha1
kind: Link
metadata: {name: east}
spec:
  trustDomain: east.example
  region: us
  gateways: [{name: g0, address: 127.0.0.1:7443}, {name: g1, address: 127.0.0.1:7444}]
---
apiVersion: hawser.dev/v1alpha1
kind: Link
metadata: {name: north}
spec:
  trustDomain: north.example
  gateways: [{name: g0, address: 127.0.0.1:7445}]
";

/// A service of west with one endpoint; `head` goes into its metadata.
pub(crate) fn service(name: &str, head: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop{head}}}\nspec:\n  ports: [{{name: http, port: 80}}, {{name: admin, port: 81}}]\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         endpoints: [{{addresses: [127.0.0.1]}}]\nports: [{{name: http, port: 8080}}, {{name: admin, port: 8081}}]\n"
    )
}

pub(crate) const EXPORTED: &str = ", labels: {hawser.dev/export: \"true\"}";

pub(crate) fn objects(text: &str) -> Objects {
    let located: Vec<Located> = load::parse("test.yaml", text).unwrap_or_else(|problems| panic!("{problems:#?}"));
    assert_eq!(load::together(&[], &located), []);
    Objects::new(&located)
}

pub(crate) fn world(text: &str) -> World {
    let mut world = World::new("west".parse().unwrap(), "west.example".parse().unwrap());
    world.objects = Some(Arc::new(objects(text)));
    world.catalog_listen = Some("127.0.0.1:9999".parse().unwrap());
    for link in world.objects.clone().unwrap().links.keys() {
        world.peers.insert(link.clone(), Arc::default());
    }
    world
}

/// What a peer would offer.
pub(crate) fn offered(cluster: &str, name: &str, ready: u32, federated: bool) -> catalog::Service {
    catalog::Service {
        namespace: "shop".into(),
        name: name.into(),
        ports: vec![catalog::Port { name: "http".into(), port: 80, protocol: "TCP".into(), ..Default::default() }],
        identities: vec![format!("spiffe://{cluster}.example/ns/shop/sa/{name}")],
        endpoints_ready: ready,
        federated,
        ..Default::default()
    }
}

pub(crate) fn hear(world: &mut World, cluster: &str, update: &Update) {
    let name: ClusterName = cluster.parse().unwrap();
    let domain = format!("{cluster}.example").parse().unwrap();
    let known = world.peers.get(&name).unwrap();
    let catalog = Arc::new(accept::update(&known.catalog, update, &domain));
    let state = PeerState { catalog, alive: true, heard: true, ..PeerState::clone(known) };
    world.peers.insert(name, Arc::new(state));
}

pub(crate) fn offer(world: &mut World, cluster: &str, services: Vec<catalog::Service>) {
    hear(world, cluster, &Update { snapshot: true, changed: services, ..Update::default() });
}

fn lose(world: &mut World, cluster: &str) {
    let name: ClusterName = cluster.parse().unwrap();
    let state = PeerState { alive: false, ..PeerState::clone(&world.peers[&name]) };
    world.peers.insert(name, Arc::new(state));
}

fn destination(plan: &Plan, name: &str) -> Destination {
    match plan.destinations.get(&format!("destination/shop/{name}")) {
        Some(Kind::Destination(destination)) => destination.clone(),
        _ => panic!("no destination {name} among {:?}", plan.destinations.keys()),
    }
}

/// Clusters of each tier, in order.
fn tiers(destination: &Destination) -> Vec<Vec<(String, u32)>> {
    let tier = |tier: &discovery::Tier| tier.backends.iter().map(|b| (b.cluster.clone(), b.weight)).collect();
    destination.tiers.iter().map(tier).collect()
}

fn names(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn nothing_is_planned_before_the_objects_have_been_read() {
    let world = World::new("west".parse().unwrap(), "west.example".parse().unwrap());
    assert!(plan(&world).is_none());
    let mut world = self::world(WEST);
    world.peers.clear();
    assert!(plan(&world).is_none(), "what the peers offered last has not been read either");
}

#[test]
fn nothing_is_exported_by_default() {
    let plan = plan(&world(&format!("{WEST}{}", service("checkout", "")))).unwrap();
    assert!(plan.catalogs.values().all(BTreeMap::is_empty));
    assert_eq!(plan.exports.keys().collect::<Vec<_>>(), ["export/hawser-system/catalog/443"]);
    let inbound = &plan.inbound["back"];
    let Kind::Inbound(inbound) = &inbound["inbound/shop/checkout/80"] else { panic!() };
    assert!(inbound.trust_domains.is_empty());
    assert_eq!(inbound.targets[0].address, "127.0.0.1:8080");
}

#[test]
fn each_way_of_exporting_reaches_exactly_those_that_it_names() {
    let annotated = ", labels: {hawser.dev/export: \"true\"}, annotations: {hawser.dev/export-to: east}";
    let unknown = ", labels: {hawser.dev/export: \"true\"}, annotations: {hawser.dev/export-to: \"east, south\"}";
    let export = |annotations: &str| {
        format!(
            "---\napiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {{name: checkout, namespace: shop{annotations}}}\n"
        )
    };
    let cases = [
        (service("checkout", EXPORTED), vec!["east", "north"]),
        (service("checkout", annotated), vec!["east"]),
        (service("checkout", unknown), vec!["east"]),
        (service("checkout", "") + &export(""), vec!["east", "north"]),
        (service("checkout", "") + &export(", annotations: {hawser.dev/export-to: north}"), vec!["north"]),
        // Of two annotations the stricter holds.
        (service("checkout", annotated) + &export(", annotations: {hawser.dev/export-to: north}"), vec![]),
        (service("checkout", ", labels: {hawser.dev/export: \"false\"}"), vec![]),
        (service("checkout", ", labels: {hawser.dev/federated: \"true\"}"), vec![]),
    ];
    for (text, expected) in cases {
        let plan = plan(&world(&format!("{WEST}{text}"))).unwrap();
        let to = plan.catalogs.iter().filter(|(_, catalog)| !catalog.is_empty()).map(|(cluster, _)| cluster.as_str());
        assert_eq!(to.collect::<Vec<_>>(), expected, "{text}");
        let admitted = match plan.exports.get("export/shop/checkout/80") {
            Some(Kind::Export(export)) => export.clusters.clone(),
            _ => Vec::new(),
        };
        assert_eq!(admitted, names(&expected), "{text}");
        let Kind::Inbound(inbound) = &plan.inbound["back"]["inbound/shop/checkout/80"] else { panic!() };
        let domains: Vec<String> = expected.iter().map(|cluster| format!("{cluster}.example")).collect();
        assert_eq!(inbound.trust_domains, domains, "{text}");
    }
}

#[test]
fn an_export_that_cannot_be_says_why() {
    let external = "---\napiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop, labels: {hawser.dev/export: \"true\"}}\nspec: {type: ExternalName}\n";
    let lonely =
        "---\napiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {name: b, namespace: shop}\n";
    let system = service("c", EXPORTED).replace("namespace: shop", "namespace: kube-system");
    let unknown = service("d", ", labels: {hawser.dev/export: \"true\"}, annotations: {hawser.dev/export-to: south}");
    let plan = plan(&world(&format!("{WEST}{external}{lonely}{system}{unknown}"))).unwrap();
    let reasons: BTreeMap<&str, Vec<&str>> = plan
        .statuses
        .exports
        .iter()
        .map(|export| {
            let bad = export.conditions.iter().filter(|c| c.status == "False" && c.kind != "Conflict");
            (export.name.as_str(), bad.map(|c| c.reason.as_str()).collect())
        })
        .collect();
    assert_eq!(reasons["a"], ["InvalidServiceType", "Pending"]);
    assert_eq!(reasons["b"], ["NoService", "Pending"]);
    assert_eq!(reasons["c"], ["ReservedNamespace", "Pending"]);
    assert_eq!(reasons["d"], ["Pending", "UnknownCluster"]);
    assert!(plan.catalogs.values().all(BTreeMap::is_empty));
}

#[test]
fn a_peers_service_becomes_a_mirror_with_gateway_addresses_only() {
    let mut world = world(WEST);
    offer(&mut world, "east", vec![offered("east", "checkout", 2, false)]);
    let plan = plan(&world).unwrap();
    let mirror = destination(&plan, "checkout-east");
    assert_eq!(mirror.dns_names, ["checkout-east.shop.svc.cluster.local", "checkout.shop.svc.clusterset.local"]);
    assert_eq!(tiers(&mirror), [[("east".to_owned(), 1)]]);
    let backend = &mirror.tiers[0].backends[0];
    assert_eq!((backend.endpoints_ready, backend.region.as_str()), (2, "us"));
    assert_eq!(backend.identities, ["spiffe://east.example/ns/shop/sa/checkout"]);
    let object = &plan.mirrors[&ServiceKey::parse("shop", "checkout-east").unwrap()];
    let addresses: Vec<_> =
        object.slices.iter().map(|s| (s.ports[0].port, s.endpoints[0].addresses[0].as_str())).collect();
    assert_eq!(addresses, [(7443, "127.0.0.1"), (7444, "127.0.0.1")]);
    let status = &plan.statuses.mirrors[0];
    assert_eq!((status.name.as_str(), status.standing.as_str()), ("checkout-east", "live"));
}

#[test]
fn what_cannot_be_called_keeps_its_name_and_says_why() {
    let mut world = world(WEST);
    let all = vec![offered("east", "a", 1, false), offered("east", "b", 1, false), offered("east", "c", 0, false)];
    offer(&mut world, "east", all.clone());
    offer(&mut world, "east", vec![all[0].clone(), all[2].clone()]);
    let first = plan(&world).unwrap();
    assert_eq!(destination(&first, "a-east").unavailable_code, "");
    assert_eq!(destination(&first, "b-east").unavailable_code, "not_exported");
    assert_eq!(destination(&first, "c-east").unavailable_code, "no_endpoint");
    assert_eq!(first.mirrors.len(), 2, "what is withdrawn has no mirror object");
    lose(&mut world, "east");
    let second = plan(&world).unwrap();
    assert_eq!(destination(&second, "a-east").unavailable_code, "peer_unreachable");
    assert!(destination(&second, "a-east").tiers.is_empty());
    assert!(!destination(&second, "a-east").unavailable_remedy.is_empty());
    assert!(second.mirrors.values().flat_map(|m| &m.slices).all(|slice| slice.endpoints.is_empty()));
    let Kind::Peer(east) = &second.peers["peer/east"] else { panic!() };
    assert!(!east.alive);
}

#[test]
fn a_federated_service_is_local_first_and_loses_dead_clusters() {
    let federated = ", labels: {hawser.dev/export: \"true\", hawser.dev/federated: \"true\"}";
    let mut world = world(&format!("{WEST}{}", service("checkout", federated)));
    offer(&mut world, "east", vec![offered("east", "checkout", 1, true)]);
    offer(&mut world, "north", vec![offered("north", "checkout", 1, true)]);
    let all = destination(&plan(&world).unwrap(), "checkout-federated");
    assert_eq!(all.dns_names, ["checkout-federated.shop.svc.cluster.local", "checkout.shop.svc.clusterset.local"]);
    let tier = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), 1)).collect::<Vec<_>>();
    assert_eq!(tiers(&all), [tier(&["west"]), tier(&["east", "north"])]);
    // The union of ports: port 81 is served here alone.
    assert_eq!(all.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [80, 81]);
    assert_eq!(all.tiers[1].backends[0].ports, [80, 0]);
    lose(&mut world, "east");
    assert_eq!(tiers(&destination(&plan(&world).unwrap(), "checkout-federated")), [tier(&["west"]), tier(&["north"])]);
    lose(&mut world, "north");
    offer(&mut world, "east", vec![]);
    assert_eq!(tiers(&destination(&plan(&world).unwrap(), "checkout-federated")), [tier(&["west"])]);
}

#[test]
fn a_policy_orders_and_weighs_clusters() {
    let policy = "---\napiVersion: hawser.dev/v1alpha1\nkind: FailoverPolicy\nmetadata: {name: checkout, namespace: shop}\nspec:\n  minimumHealthyPercent: 50\n  tiers:\n  - clusters: [{name: north, weight: 3}, {name: south}]\n  - clusters: [{name: west}]\n";
    let mut world = world(&format!("{WEST}{}{policy}", service("checkout", EXPORTED)));
    offer(&mut world, "east", vec![offered("east", "checkout", 1, true)]);
    offer(&mut world, "north", vec![offered("north", "checkout", 1, true)]);
    let plan = plan(&world).unwrap();
    let found = destination(&plan, "checkout-federated");
    let expected = [("north".to_owned(), 3), ("west".to_owned(), 1), ("east".to_owned(), 1)];
    assert_eq!(tiers(&found), expected.map(|cluster| vec![cluster]));
    assert!(found.tiers.iter().all(|tier| tier.min_healthy_percent == 50));
    let warnings: Vec<_> = plan.statuses.objects.warnings.iter().map(|w| w.message.as_str()).collect();
    assert_eq!(warnings, ["it names south, which no Link bears"]);
}

#[test]
fn the_oldest_export_decides_where_ports_differ() {
    let mut world = world(WEST);
    let mut old = offered("east", "checkout", 1, true);
    let mut young = offered("north", "checkout", 1, true);
    (old.exported_at, young.exported_at) = (1000, 2000);
    young.ports[0].port = 8080;
    offer(&mut world, "east", vec![old]);
    offer(&mut world, "north", vec![young]);
    let found = destination(&plan(&world).unwrap(), "checkout-federated");
    assert_eq!(found.ports.len(), 1);
    assert_eq!(found.ports[0].port, 80);
    let maps: Vec<_> = found.tiers[0].backends.iter().map(|b| (b.cluster.as_str(), b.ports.clone())).collect();
    assert_eq!(maps, [("east", vec![]), ("north", vec![8080])]);
}

#[test]
fn several_exports_without_the_label_share_only_the_clusterset_name() {
    let mut world = world(&format!("{WEST}{}", service("checkout", EXPORTED)));
    offer(&mut world, "east", vec![offered("east", "checkout", 1, false)]);
    let plan = plan(&world).unwrap();
    assert_eq!(destination(&plan, "checkout").dns_names, ["checkout.shop.svc.cluster.local"]);
    assert_eq!(tiers(&destination(&plan, "checkout")).len(), 1, "cluster.local is not changed by a peer");
    assert_eq!(destination(&plan, "checkout-clusterset").dns_names, ["checkout.shop.svc.clusterset.local"]);
    assert!(!plan.destinations.contains_key("destination/shop/checkout-federated"));
}

#[test]
fn a_service_that_is_not_exported_is_not_joined_by_a_peers_of_the_same_name() {
    let mut world = world(&format!("{WEST}{}", service("checkout", "")));
    offer(&mut world, "east", vec![offered("east", "checkout", 1, true)]);
    let plan = plan(&world).unwrap();
    let east = [vec![("east".to_owned(), 1)]];
    assert_eq!(tiers(&destination(&plan, "checkout-federated")), east);
    assert_eq!(tiers(&destination(&plan, "checkout")), [[("west".to_owned(), 1)]]);
}

#[test]
fn hostile_or_unfit_names_are_refused_with_reasons() {
    let text = WEST.replace("metadata: {name: north}", "metadata: {name: b-east}");
    let mut world = world(&format!("{text}{}", service("mine-east", "")));
    let system = catalog::Service { namespace: "kube-system".into(), ..offered("east", "dns", 1, false) };
    let own = catalog::Service { namespace: "hawser-system".into(), ..offered("east", "catalog", 1, false) };
    let api = catalog::Service { namespace: "default".into(), ..offered("east", "kubernetes", 1, false) };
    let taken = offered("east", "mine", 1, false);
    // `a-b-east` would be the mirror of both: east could choose its names to stand in b-east's place.
    let twin = offered("east", "a-b", 1, false);
    offer(&mut world, "east", vec![system, own, api, taken, twin]);
    let name: ClusterName = "b-east".parse().unwrap();
    let catalog = accept::update(
        &crate::world::Catalog::default(),
        &Update { snapshot: true, changed: vec![offered("north", "a", 1, false)], ..Update::default() },
        &"north.example".parse().unwrap(),
    );
    world.peers.insert(name, Arc::new(PeerState { catalog: Arc::new(catalog), alive: true, ..PeerState::default() }));
    let plan = plan(&world).unwrap();
    assert_eq!(plan.mirrors.keys().collect::<Vec<_>>(), Vec::<&ServiceKey>::new());
    let east = plan.statuses.links.iter().find(|link| link.name == "east").unwrap();
    assert_eq!((east.status.offered, east.status.imported, east.status.refused.len()), (5, 0, 5));
    assert!(east.status.refused.iter().all(|refused| !refused.reason.is_empty()));
}

#[test]
fn a_long_name_is_cut_so_that_its_mirror_has_one_and_the_peers_name_stays_whole() {
    let mut world = world(WEST);
    let (one, two) = ("x".repeat(60), format!("{}y", "x".repeat(60)));
    offer(&mut world, "east", vec![offered("east", &one, 1, true), offered("east", &two, 1, false)]);
    let plan = plan(&world).unwrap();
    assert_eq!(plan.mirrors.len(), 2, "{:?}", plan.statuses.links[0].status.refused);
    assert!(plan.mirrors.keys().all(|key| key.name.as_str().len() == 63 && key.name.as_str().ends_with("-east")));
    let federated = plan.destinations.keys().find(|key| key.ends_with("-federated")).unwrap();
    assert!(federated.len() == "destination/shop/".len() + 63, "{federated}");
}

#[test]
fn namespaces_are_mapped_and_others_refused() {
    let import = "  import: {namespaces: [{from: shop, to: east-shop}], nameTemplate: \"{cluster}-{service}\"}\n";
    let text = WEST.replace("  region: us\n", &format!("  region: us\n{import}"));
    let mut world = world(&text);
    let other = catalog::Service { namespace: "bank".into(), ..offered("east", "vault", 1, false) };
    offer(&mut world, "east", vec![offered("east", "checkout", 1, false), other]);
    let plan = plan(&world).unwrap();
    assert_eq!(plan.mirrors.keys().map(ToString::to_string).collect::<Vec<_>>(), ["east-shop/east-checkout"]);
    assert!(plan.statuses.links[0].status.refused[0].reason.contains("not among the Link's spec.import.namespaces"));
}

#[test]
fn a_gateway_that_is_down_is_said_to_be_and_one_never_probed_is_not() {
    let mut world = world(WEST);
    let state = PeerState {
        gateways: [("g1".parse().unwrap(), crate::world::GatewayState::default())].into(),
        ..PeerState::default()
    };
    world.peers.insert("east".parse().unwrap(), Arc::new(state));
    let Kind::Peer(east) = plan(&world).unwrap().peers["peer/east"].clone() else { panic!() };
    assert_eq!(east.gateways.iter().map(|g| g.down).collect::<Vec<_>>(), [false, true]);
}

/// Something that happens to a world of two peers.
#[derive(Debug, Clone)]
enum Event {
    Snapshot { peer: bool, names: Vec<u8> },
    Change { peer: bool, name: u8, ready: u32 },
    Remove { peer: bool, name: u8 },
    Lease { peer: bool, alive: bool },
}

fn event() -> impl Strategy<Value = Event> {
    let (peer, name) = (any::<bool>, 0u8..6);
    prop_oneof![
        (peer(), proptest::collection::vec(name.clone(), 0..6))
            .prop_map(|(peer, names)| Event::Snapshot { peer, names }),
        (peer(), name.clone(), 0u32..3).prop_map(|(peer, name, ready)| Event::Change { peer, name, ready }),
        (peer(), name).prop_map(|(peer, name)| Event::Remove { peer, name }),
        (peer(), any::<bool>()).prop_map(|(peer, alive)| Event::Lease { peer, alive }),
    ]
}

fn service_name(name: u8) -> String {
    format!("s{name}")
}

fn happen(world: &mut World, event: &Event) {
    let cluster = |peer: &bool| if *peer { "east" } else { "north" };
    match event {
        Event::Snapshot { peer, names } => {
            let services = names.iter().map(|n| offered(cluster(peer), &service_name(*n), 1, n % 2 == 0)).collect();
            offer(world, cluster(peer), services);
        }
        Event::Change { peer, name, ready } => {
            let changed = vec![offered(cluster(peer), &service_name(*name), *ready, name % 2 == 0)];
            hear(world, cluster(peer), &Update { changed, ..Update::default() });
        }
        Event::Remove { peer, name } => {
            let removed = vec![catalog::ServiceName { namespace: "shop".into(), name: service_name(*name) }];
            hear(world, cluster(peer), &Update { removed, ..Update::default() });
        }
        Event::Lease { peer, alive: true } => hear(world, cluster(peer), &Update::default()),
        Event::Lease { peer, alive: false } => lose(world, cluster(peer)),
    }
}

proptest! {
    // A case plans dozens of times, without optimisation.
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever came before, a snapshot from each peer gives the same names with the same standing; only the memory of
    /// what was withdrawn differs.
    #[test]
    fn any_order_of_events_ends_in_the_same_plan(events in proptest::collection::vec(event(), 0..30)) {
        let last = |world: &mut World| {
            offer(world, "east", vec![offered("east", "s1", 1, false), offered("east", "s2", 1, true)]);
            offer(world, "north", vec![offered("north", "s2", 2, true)]);
        };
        let (mut stirred, mut fresh) = (world(WEST), world(WEST));
        events.iter().for_each(|event| happen(&mut stirred, event));
        last(&mut stirred);
        last(&mut fresh);
        let (stirred, fresh) = (plan(&stirred).unwrap(), plan(&fresh).unwrap());
        prop_assert_eq!(&stirred.mirrors, &fresh.mirrors);
        prop_assert_eq!(&stirred.peers, &fresh.peers);
        for (key, kind) in &fresh.destinations {
            prop_assert_eq!(stirred.destinations.get(key), Some(kind));
        }
        for (key, kind) in stirred.destinations.iter().filter(|(key, _)| !fresh.destinations.contains_key(*key)) {
            let Kind::Destination(kind) = kind else { panic!("{key}") };
            prop_assert_eq!(&kind.unavailable_code, "not_exported");
        }
    }

    /// No order of events puts a dead or withdrawn peer into a tier, and none gives a name twice.
    #[test]
    fn no_destination_leads_to_what_is_dead_or_withdrawn(events in proptest::collection::vec(event(), 0..40)) {
        let mut world = world(&format!("{WEST}{}", service("s2", EXPORTED)));
        for event in &events {
            happen(&mut world, event);
            let plan = plan(&world).unwrap();
            let mut seen = BTreeSet::new();
            for kind in plan.destinations.values() {
                let Kind::Destination(found) = kind else { panic!() };
                prop_assert_eq!(found.tiers.is_empty(), !found.unavailable_code.is_empty());
                for name in &found.dns_names {
                    prop_assert!(seen.insert(name.clone()), "{} is answered twice", name);
                }
                for backend in found.tiers.iter().flat_map(|tier| &tier.backends).filter(|b| b.cluster != "west") {
                    let peer = &world.peers[&backend.cluster.parse().unwrap()];
                    let key = ServiceKey::parse(&backend.namespace, &backend.name).unwrap();
                    prop_assert!(peer.alive && peer.catalog.offers[&key].endpoints_ready > 0);
                }
            }
        }
    }

    /// Promise 2: what this cluster's objects do not export to a peer is in no table that lets that peer in.
    #[test]
    fn what_is_not_exported_to_a_peer_is_nowhere(marks in proptest::collection::vec((0u8..5, 0u8..4), 0..6)) {
        let mut text = WEST.to_owned();
        let mut allowed: BTreeMap<(String, &str), bool> = BTreeMap::new();
        let marks: BTreeMap<u8, u8> = marks.into_iter().collect();
        for (name, mark) in marks {
            let head = match mark {
                0 => "",
                1 => EXPORTED,
                2 => ", labels: {hawser.dev/export: \"true\"}, annotations: {hawser.dev/export-to: east}",
                _ => ", labels: {hawser.dev/export: \"true\"}, annotations: {hawser.dev/export-to: south}",
            };
            text.push_str(&service(&service_name(name), head));
            allowed.insert((service_name(name), "east"), matches!(mark, 1 | 2));
            allowed.insert((service_name(name), "north"), mark == 1);
        }
        let plan = plan(&world(&text)).unwrap();
        let lets = |name: &str, cluster: &str| allowed.get(&(name.to_owned(), cluster)).copied().unwrap_or(false);
        for kind in plan.exports.values() {
            let Kind::Export(Export { name, clusters, namespace, .. }) = kind else { panic!() };
            if namespace != labels::SYSTEM_NAMESPACE {
                prop_assert!(clusters.iter().all(|cluster| lets(name, cluster)));
            }
        }
        for kind in plan.inbound.values().flat_map(BTreeMap::values) {
            let Kind::Inbound(Inbound { name, trust_domains, .. }) = kind else { panic!() };
            prop_assert!(trust_domains.iter().all(|domain| lets(name, domain.trim_end_matches(".example"))));
        }
        for ((name, cluster), allowed) in &allowed {
            let key = ServiceKey::parse("shop", name).unwrap();
            prop_assert_eq!(plan.catalogs[&cluster.parse().unwrap()].contains_key(&key), *allowed);
        }
    }
}

#[test]
fn ten_thousand_services_are_planned_without_a_step_that_grows_squared() {
    let mut world = world(WEST);
    let services = |cluster: &str, count: usize| {
        (0..count).map(|n| offered(cluster, &format!("s{n}"), 1, n % 2 == 0)).collect::<Vec<_>>()
    };
    let time = |world: &World| {
        let begun = std::time::Instant::now();
        assert!(plan(world).is_some());
        begun.elapsed()
    };
    offer(&mut world, "east", services("east", 500));
    offer(&mut world, "north", services("north", 500));
    let small = (0..3).map(|_| time(&world)).min().unwrap();
    offer(&mut world, "east", services("east", 10_000));
    offer(&mut world, "north", services("north", 10_000));
    let large = (0..3).map(|_| time(&world)).min().unwrap();
    // Twenty times as many; the rest is for logarithms, caches and a busy machine. A square would be four hundred.
    assert!(large < small * 100, "1000 services: {small:?}, 20000: {large:?}");
    println!("1000 services: {small:?}, 20000: {large:?}");
}
