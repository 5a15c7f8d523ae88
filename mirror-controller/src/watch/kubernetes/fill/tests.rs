use kube::core::DynamicObject;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::read;
use super::*;

pub(crate) const LINK_UID: &str = "11111111-0000-0000-0000-000000000000";

pub(crate) const NAMESPACE_UID: &str = "22222222-0000-0000-0000-000000000000";

pub(crate) fn fill() -> Fill {
    let cluster = json!({ "apiVersion": "hawser.dev/v1alpha1", "kind": "Cluster", "metadata": { "name": "west" },
        "spec": { "fabricDomain": "example" } });
    Fill::new(serde_json::from_value(cluster).unwrap(), None)
}

/// An object as the watch gives it.
pub(crate) fn seen(kind: Kind, object: &Value) -> Seen {
    let own = ("west".parse().unwrap(), "west.example".parse().unwrap());
    let version = object["apiVersion"].as_str().unwrap().to_owned();
    let object: DynamicObject = serde_json::from_value(object.clone()).unwrap();
    read::seen(kind, &version, object, &own).unwrap()
}

impl Fill {
    /// As before this kind was ever listed, and certain that it is not to be had.
    pub(crate) fn forget(&mut self, kind: Kind) {
        let standing = Standing { listed: false, trouble: Some(Trouble::Missing) };
        self.tables.insert(kind, Table { standing, ..Table::default() });
    }
}

fn list(fill: &mut Fill, kind: Kind, objects: &[Value]) {
    fill.hear(kind, Event::Init);
    for object in objects {
        fill.hear(kind, Event::InitApply(seen(kind, object)));
    }
    fill.hear(kind, Event::InitDone);
}

/// Every kind has been listed: a Link to east, and nothing else.
pub(crate) fn listed() -> Fill {
    let mut fill = fill();
    for kind in Kind::ALL {
        let objects = match kind {
            Kind::Namespace => vec![
                json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop", "uid": NAMESPACE_UID } }),
            ],
            Kind::Link => vec![link(&json!({}))],
            _ => Vec::new(),
        };
        list(&mut fill, kind, &objects);
    }
    fill
}

pub(crate) fn link(metadata: &Value) -> Value {
    let mut link = json!({ "apiVersion": "hawser.dev/v1alpha1", "kind": "Link",
        "metadata": { "name": "east", "uid": LINK_UID, "resourceVersion": "5", "finalizers": ["hawser.dev/unlink"] },
        "spec": { "trustDomain": "east.example",
            "gateways": [{ "name": "g0", "address": "10.9.0.1:7443" }, { "name": "g1", "address": "10.9.0.2:7444" }] },
        "status": { "offered": 1 } });
    link["metadata"].as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
    link
}

fn service(name: &str, metadata: &Value, port: u16) -> Value {
    let mut service = json!({ "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": "shop", "annotations": { "kubectl.kubernetes.io/x": "large" } },
        "spec": { "ports": [{ "port": port }], "selector": { "app": name }, "clusterIP": "10.96.0.7" } });
    service["metadata"].as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
    service
}

#[test]
fn nothing_is_concluded_before_every_kind_has_been_listed() {
    for late in Kind::ALL {
        let mut fill = fill();
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != late) {
            list(&mut fill, kind, &[]);
        }
        assert!(fill.objects().is_none(), "{late:?} is not known");
        fill.hear(late, Event::Init);
        assert!(fill.objects().is_none(), "{late:?} is being listed");
        fill.hear(late, Event::InitDone);
        assert!(fill.objects().is_some());
    }
}

#[test]
fn a_kind_that_is_missing_or_forbidden_withholds_only_what_hangs_on_it_and_is_told() {
    let forbidden = Trouble::Forbidden("no".to_owned());
    for kind in Kind::ALL {
        for (trouble, certain) in
            [(Trouble::Missing, true), (forbidden.clone(), true), (Trouble::Unreachable("refused".to_owned()), false)]
        {
            let mut fill = fill();
            Kind::ALL.into_iter().filter(|other| *other != kind).for_each(|other| list(&mut fill, other, &[]));
            fill.trouble(kind, Some(trouble));
            let objects = fill.objects();
            assert_eq!(objects.is_some(), certain && !kind.needed(), "{kind:?}");
            if let Some(objects) = objects {
                let told = objects.problems.iter().any(|problem| problem.file.contains(kind.plural()));
                assert!(told, "{:?}", objects.problems);
            }
            list(&mut fill, kind, &[]);
            assert!(fill.objects().unwrap().problems.is_empty());
        }
    }
}

#[test]
fn what_was_in_force_stays_when_a_link_becomes_invalid_and_its_problems_are_known() {
    let mut fill = listed();
    let before = fill.objects().unwrap();
    let mut broken = link(&json!({ "resourceVersion": "6" }));
    broken["spec"]["gateways"] = json!([]);
    fill.hear(Kind::Link, Event::Apply(seen(Kind::Link, &broken)));
    let after = fill.objects().unwrap();
    assert_eq!(after.links, before.links);
    assert_eq!(after.problems.len(), 1);
    assert_eq!(fill.links().unwrap().next().unwrap().problems, after.problems);
    fill.hear(Kind::Link, Event::Apply(seen(Kind::Link, &link(&json!({ "resourceVersion": "7" })))));
    assert_eq!(fill.objects().unwrap(), before);
}

#[test]
fn a_link_to_ourselves_or_to_a_trust_domain_that_another_has_is_refused() {
    let mut fill = listed();
    let mut ours = link(&json!({ "name": "mirror", "uid": "2" }));
    ours["spec"]["trustDomain"] = json!("west.example");
    let twice = link(&json!({ "name": "again", "uid": "3", "creationTimestamp": "2026-02-01T00:00:00Z" }));
    for object in [&ours, &twice] {
        fill.hear(Kind::Link, Event::Apply(seen(Kind::Link, object)));
    }
    let objects = fill.objects().unwrap();
    assert_eq!(objects.links.keys().map(ToString::to_string).collect::<Vec<_>>(), ["east"]);
    assert_eq!(objects.problems.len(), 2, "{:?}", objects.problems);
}

#[test]
fn a_service_that_breaks_a_rule_exports_nothing_and_still_has_its_name() {
    let mut fill = listed();
    let broken = service("web", &json!({ "labels": { "hawser.dev/export": "maybe" } }), 80);
    fill.hear(Kind::Service, Event::Apply(seen(Kind::Service, &broken)));
    let objects = fill.objects().unwrap();
    let web = objects.services.values().next().unwrap();
    assert!(web.metadata.labels.is_empty() && web.spec.ports.is_empty());
    assert_eq!(objects.problems.len(), 1);
}

#[test]
fn what_we_made_is_no_part_of_the_world() {
    let mut fill = listed();
    let marks = json!({ "uid": "9", "resourceVersion": "9", "labels": { "app.kubernetes.io/managed-by": "hawser",
        "hawser.dev/mirror-of-cluster": "east" }, "annotations": { "hawser.dev/owner": format!("{LINK_UID} shop/web-east") } });
    let effect = fill.hear(Kind::Service, Event::Apply(seen(Kind::Service, &service("web-east", &marks, 80))));
    assert_eq!(effect, Effect { world: false, made: true });
    assert!(fill.objects().unwrap().services.is_empty());
    // The label alone is anybody's.
    let copied = json!({ "labels": { "app.kubernetes.io/managed-by": "hawser" } });
    let effect = fill.hear(Kind::Service, Event::Apply(seen(Kind::Service, &service("copy", &copied, 80))));
    assert!(effect.world);
    assert_eq!(fill.objects().unwrap().services.len(), 1);
}

#[test]
fn what_we_made_is_ours_whatever_others_made_of_it() {
    let slice = |change: &Value| {
        let mut slice = json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "web-east-7443", "namespace": "shop", "uid": "9", "resourceVersion": "9",
                "annotations": { "hawser.dev/owner": format!("{LINK_UID} shop/web-east-7443") } },
            "addressType": "IPv4", "endpoints": [{ "addresses": ["10.9.0.1"] }], "ports": [{ "port": 7443 }] });
        slice.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        slice
    };
    // Without its label; empty as an API server writes it; with what cannot be read.
    for change in [json!({}), json!({ "endpoints": null, "ports": null }), json!({ "ports": [{ "port": "no" }] })] {
        let mut fill = listed();
        fill.hear(Kind::EndpointSlice, Event::Apply(seen(Kind::EndpointSlice, &slice(&change))));
        let entry = fill.all(Kind::EndpointSlice).next().unwrap().1;
        assert!(matches!(entry.kept, Kept::Made(_)), "{change}: {entry:?}");
    }
    // Nobody's that belongs to no Service is not kept, and takes with it what it said before.
    let mut fill = listed();
    let theirs = |labels: &Value| {
        let metadata = json!({ "name": "theirs", "namespace": "shop", "labels": labels });
        seen(Kind::EndpointSlice, &slice(&json!({ "metadata": metadata })))
    };
    fill.hear(Kind::EndpointSlice, Event::Apply(theirs(&json!({ "kubernetes.io/service-name": "web" }))));
    assert_eq!(fill.all(Kind::EndpointSlice).count(), 1);
    fill.hear(Kind::EndpointSlice, Event::Apply(theirs(&json!({}))));
    assert_eq!(fill.all(Kind::EndpointSlice).count(), 0);
}

#[test]
fn what_an_older_state_says_of_what_we_wrote_is_not_believed() {
    let mut fill = listed();
    let made = |version: &str, port| {
        let marks = json!({ "uid": "9", "resourceVersion": version, "labels": { "app.kubernetes.io/managed-by": "hawser" },
            "annotations": { "hawser.dev/owner": format!("{LINK_UID} shop/web-east") } });
        seen(Kind::Service, &service("web-east", &marks, port))
    };
    fill.wrote(Kind::Service, made("12", 81));
    assert_eq!(fill.hear(Kind::Service, Event::Apply(made("11", 80))), Effect::default());
    let name = ("shop".to_owned(), "web-east".to_owned());
    assert_eq!(fill.get(Kind::Service, &name).unwrap().facts.version, 12);
    // A listing that was under way may have begun before the writing.
    fill.hear(Kind::Service, Event::Init);
    fill.wrote(Kind::Service, made("13", 82));
    fill.hear(Kind::Service, Event::InitApply(made("11", 80)));
    fill.hear(Kind::Service, Event::InitDone);
    assert_eq!(fill.get(Kind::Service, &name).unwrap().facts.version, 13);
}

/// A step of what watches may do.
#[derive(Debug, Clone)]
enum Step {
    Apply(usize, u16),
    Delete(usize),
    Relist,
    Repeat(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4usize, 80..83u16).prop_map(|(which, port)| Step::Apply(which, port)),
        (0..4usize).prop_map(Step::Delete),
        Just(Step::Relist),
        (0..4usize).prop_map(Step::Repeat),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever has been heard, lost and repeated on the way: what follows is what follows from a single listing.
    #[test]
    fn the_same_objects_follow_however_it_was_heard(steps in prop::collection::vec(step(), 0..40)) {
        let exported = json!({ "labels": { "hawser.dev/export": "true" } });
        let object = |which: usize, port| service(&format!("s{which}"), &exported, port);
        let mut there: BTreeMap<usize, Value> = BTreeMap::new();
        let mut fill = listed();
        for step in steps {
            match step {
                Step::Apply(which, port) => {
                    there.insert(which, object(which, port));
                    fill.hear(Kind::Service, Event::Apply(seen(Kind::Service, &there[&which])));
                }
                Step::Delete(which) => {
                    if let Some(gone) = there.remove(&which) {
                        fill.hear(Kind::Service, Event::Delete(seen(Kind::Service, &gone)));
                    }
                }
                Step::Repeat(which) => {
                    if let Some(object) = there.get(&which) {
                        fill.hear(Kind::Service, Event::Apply(seen(Kind::Service, object)));
                    }
                }
                Step::Relist => list(&mut fill, Kind::Service, &there.values().cloned().collect::<Vec<_>>()),
            }
        }
        let mut once = listed();
        list(&mut once, Kind::Service, &there.values().cloned().collect::<Vec<_>>());
        prop_assert_eq!(fill.objects(), once.objects());
    }
}
