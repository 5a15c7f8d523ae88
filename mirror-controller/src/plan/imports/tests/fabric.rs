//! Several clusters' plans, each fed with what the others' plans offer it: whether they come to the same, and what a
//! hostile one of them can do.

use std::collections::BTreeSet;

use super::*;
use crate::plan::owned::Owned;
use crate::plan::tests::objects;

const CLUSTERS: [&str; 3] = ["east", "north", "west"];

/// What one cluster exports of `hello`; `None`: nothing.
#[derive(Debug, Clone)]
struct Exported {
    second: u8,
    headless: bool,
    sticky: bool,
    ports: Vec<u8>,
}

fn exported() -> impl Strategy<Value = Option<Exported>> {
    let ports = proptest::collection::btree_set(0u8..4, 1..4).prop_map(|ports| ports.into_iter().collect());
    let one = (0u8..3, any::<bool>(), any::<bool>(), ports);
    proptest::option::weighted(0.8, one)
        .prop_map(|one| one.map(|(second, headless, sticky, ports)| Exported { second, headless, sticky, ports }))
}

/// A cluster with a Link to each of the others.
fn text(name: &str, exported: Option<&Exported>) -> String {
    let mut text = format!(
        "apiVersion: hawser.dev/v1alpha1\nkind: Cluster\nmetadata: {{name: {name}}}\nspec:\n  fabricDomain: example\n  \
         proxies: [{{name: p, namespace: shop, serviceAccount: p, inbound: 127.0.0.1:4143}}]\n"
    );
    for peer in CLUSTERS.iter().filter(|peer| **peer != name) {
        text.push_str(&format!(
            "---\napiVersion: hawser.dev/v1alpha1\nkind: Link\nmetadata: {{name: {peer}}}\nspec: {{trustDomain: {peer}.example, gateways: [{{name: g0, address: \"192.0.2.1:7443\"}}]}}\n"
        ));
    }
    let Some(exported) = exported else { return text };
    // p0 and p1 are two names; 2 and 3 are the same names with other numbers.
    let port = |n: &u8| format!("{{name: p{}, port: {}}}", n % 2, 80 + n);
    let mut names = BTreeSet::new();
    let ports: Vec<String> = exported.ports.iter().filter(|n| names.insert(*n % 2)).map(port).collect();
    let slice_ports: Vec<String> = exported.ports.iter().map(|n| port(n).replace("port: ", "port: 80")).collect();
    text.push_str(&format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: hello, namespace: shop}}\nspec: {{{}{}ports: [{}]}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: hello-1, namespace: shop, labels: {{kubernetes.io/service-name: hello}}}}\n\
         endpoints: [{{addresses: [10.0.0.7], hostname: hello-0}}]\nports: [{}]\n\
         ---\napiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: {{name: hello, namespace: shop, creationTimestamp: \"2026-01-01T00:00:0{}Z\"}}\n",
        if exported.headless { "clusterIP: None, " } else { "" },
        if exported.sticky { "sessionAffinity: ClientIP, " } else { "" },
        ports.join(", "),
        slice_ports.iter().take(1).cloned().collect::<String>(),
        exported.second,
    ));
    text
}

fn world_of(name: &str, text: &str) -> World {
    let mut world = World::new(name.parse().unwrap(), format!("{name}.example").parse().unwrap());
    world.objects = Some(Arc::new(objects(text)));
    for link in world.objects.clone().unwrap().links.keys() {
        world.peers.insert(link.clone(), Arc::default());
    }
    world
}

/// Each cluster's plan when all have heard what all the others offer them.
fn fabric(texts: &[String; 3]) -> Vec<Plan> {
    let mut worlds: Vec<World> = CLUSTERS.iter().zip(texts).map(|(name, text)| world_of(name, text)).collect();
    let offered: Vec<Plan> = worlds.iter().map(|world| plan(world).unwrap()).collect();
    for (world, own) in worlds.iter_mut().zip(CLUSTERS) {
        for (peer, plan) in CLUSTERS.iter().zip(&offered).filter(|(peer, _)| **peer != own) {
            offer(world, peer, plan.catalogs[&own.parse().unwrap()].values().cloned().collect());
        }
    }
    worlds.iter().map(|world| plan(world).unwrap()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In a full mesh all clusters make the same import, whoever exports what since when, and a conflict that one exporter
    /// is told of all of them are told of.
    #[test]
    fn all_clusters_of_a_fabric_come_to_the_same_import(exports in [exported(), exported(), exported()]) {
        let texts = [0, 1, 2].map(|at| text(CLUSTERS[at], exports[at].as_ref()));
        let plans = fabric(&texts);
        let key = ServiceKey::parse("shop", "hello").unwrap();
        let exporters: Vec<&str> =
            CLUSTERS.iter().zip(&exports).filter(|(_, exported)| exported.is_some()).map(|(name, _)| *name).collect();
        let conflicts: BTreeSet<(String, String)> = plans
            .iter()
            .filter(|plan| !plan.statuses.exports.is_empty())
            .map(|plan| condition_of(plan, "Conflict"))
            .collect();
        prop_assert!(conflicts.len() <= 1, "{:?}", conflicts);
        for plan in &plans {
            let Some(object) = plan.imports.get(&key) else {
                prop_assert!(exporters.is_empty());
                continue;
            };
            prop_assert_eq!(&object.import, &plans[0].imports[&key].import);
            prop_assert_eq!(&object.status.clusters, &plans[0].imports[&key].status.clusters);
            prop_assert_eq!(clusters(object), exporters.clone());
        }
    }

    /// Whatever east says: what we write lies in the namespaces that are there, bears the names that the Link gives it or
    /// the common one, and no address in it is from east; north's mirrors and our own cluster.local names are what they
    /// would be without east.
    #[test]
    fn a_hostile_catalog_changes_nothing_beyond_its_own_mirrors_and_the_names_that_it_shares(
        hostile in proptest::collection::vec((
            prop_oneof![Just("shop"), Just("kube-system"), Just("hawser-system"), Just("default"), Just("other"), Just("Shop")],
            prop_oneof![Just("hello"), Just("kubernetes"), Just("hello-clusterset"), Just("hello-north"), Just("a.b"), Just("HELLO"), Just("x-east")],
            any::<bool>(),
            prop_oneof![Just("h0"), Just("127.0.0.1"), Just("h0.kube-dns"), Just("")],
            prop_oneof![Just("team"), Just("kubernetes.io/service-name"), Just("hawser.dev/export"), Just("a b")],
            0i64..3,
        ), 0..12),
    ) {
        let services = hostile.iter().map(|(namespace, name, headless, host, label, since)| {
            let told = |s: &mut catalog::Standard| {
                s.headless = *headless;
                s.hosts = vec![catalog::Host { hostname: (*host).into(), endpoint: (*host).into() }];
                s.exported_labels.insert((*label).into(), "x".into());
            };
            with(catalog::Service { namespace: (*namespace).into(), name: (*name).into(), ..hello("east", *since) }, told)
        });
        let mut calm = shop(&own("", ""));
        offer(&mut calm, "north", vec![hello("north", OWN_SINCE + 1)]);
        let mut stirred = calm.clone();
        offer(&mut stirred, "east", services.collect());
        let (calm, stirred) = (plan(&calm).unwrap(), plan(&stirred).unwrap());
        let allowed = ["127.0.0.1", "10.0.0.7", "10.96.0.7"];
        for (key, object) in owned(&stirred) {
            prop_assert_eq!(key.namespace.as_str(), "shop");
            let foreign = |label: &&String| {
                let ours = [labels::MANAGED_BY, labels::SERVICE_NAME, labels::SLICE_MANAGED_BY, labels::MIRROR_OF_CLUSTER];
                !ours.contains(&label.as_str()) && !label.starts_with("multicluster.kubernetes.io/") && *label != "team"
            };
            prop_assert_eq!(object.metadata().labels.keys().find(foreign), None);
            if let Owned::EndpointSlice(slice) = object {
                let addresses = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
                prop_assert!(addresses.clone().all(|address| allowed.contains(&address.as_str())), "{:?}", slice);
                prop_assert_ne!(slice.metadata.labels.get(labels::SERVICE_NAME).map(String::as_str), Some("hello"));
            }
        }
        for (key, mirror) in &calm.mirrors {
            // A name that two peers would have is nobody's: neither stands in for the other.
            prop_assert!(stirred.mirrors.get(key).is_none_or(|found| found == mirror));
        }
        let local = "destination/shop/hello";
        prop_assert_eq!(calm.destinations.get(local), stirred.destinations.get(local));
        let east = stirred.statuses.links.iter().find(|link| link.name == "east").unwrap();
        let refused = hostile.iter().any(|(namespace, ..)| *namespace != "shop");
        prop_assert!(!refused || !east.status.refused.is_empty());
    }
}
