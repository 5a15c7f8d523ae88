use kube::runtime::watcher::Event;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::unlink::{Hold, holds};
use super::*;
use crate::plan::plan;
use crate::plan::tests::{offer, offered};
use crate::watch::kubernetes::fill::tests::{LINK_UID, NAMESPACE_UID, link, seen};
use crate::world::{PeerState, World};

fn west() -> ClusterName {
    "west".parse().unwrap()
}

/// What is made for a peer's services one by one.
fn mirrors(plan: &Plan) -> Vec<(ObjectKey, Owned<'_>)> {
    let mut all = owned(plan);
    all.retain(|(_, object)| object.metadata().labels.contains_key(labels::MIRROR_OF_CLUSTER));
    all
}

/// What is planned when east offers these services.
fn planned(fill: &Fill, names: &[&str]) -> Plan {
    let mut world = World::new("west".parse().unwrap(), "west.example".parse().unwrap());
    world.objects = fill.objects().map(Arc::new);
    world.peers.insert("east".parse().unwrap(), Arc::new(PeerState::default()));
    offer(&mut world, "east", names.iter().map(|name| offered("east", name, 1, false)).collect());
    plan(&world).unwrap()
}

/// Where the definition of ServiceImports is missing: a Link to east, and nothing else.
fn listed() -> Fill {
    let mut fill = with_imports();
    fill.forget(Watched::ServiceImport);
    fill
}

/// Every kind has been listed.
fn with_imports() -> Fill {
    crate::watch::kubernetes::fill::tests::listed()
}

fn changes(wanted: &Wanted, fill: &Fill) -> Vec<Change> {
    let Some(links) = Links::new(fill, &west(), &wanted.plan.heard) else { return Vec::new() };
    diff(wanted, &links, fill).into_iter().flat_map(|group| group.changes).collect()
}

/// What the API server would hold after a change.
fn object(change: &Change, wanted: &Wanted, version: u64) -> Value {
    let object = owned(&wanted.plan).into_iter().find(|(key, _)| *key == change.key).unwrap().1;
    let mut value = serde_json::to_value(&object).unwrap();
    value["metadata"]["uid"] = json!(format!("uid-{version}"));
    value["metadata"]["resourceVersion"] = json!(version.to_string());
    let of_link = object.metadata().labels.keys().any(|label| label == labels::MIRROR_OF_CLUSTER)
        || object.metadata().labels.get(labels::MCS_SOURCE_CLUSTER).is_some_and(|cluster| cluster != "west");
    let owner = if of_link { LINK_UID } else { NAMESPACE_UID };
    value["metadata"]["annotations"]["hawser.dev/owner"] = json!(mark::of(owner, "shop", &change.key.name));
    value["metadata"]["annotations"]["hawser.dev/applied"] = json!(wanted.digest(&change.key));
    value
}

fn carry_out(fill: &mut Fill, wanted: &Wanted, version: &mut u64) -> usize {
    let changes = changes(wanted, fill);
    for change in &changes {
        let name = (change.key.namespace.to_string(), change.key.name.clone());
        match &change.verb {
            Verb::Create { .. } | Verb::Update { .. } | Verb::Ports { .. } => {
                *version += 1;
                let object = object(change, wanted, *version);
                fill.wrote(watched(change.key.kind), seen(watched(change.key.kind), &object));
            }
            Verb::Delete { uid } => {
                fill.removed(watched(change.key.kind), &name, uid);
            }
            Verb::Collide => {}
        }
    }
    changes.len()
}

fn settled(names: &[&str]) -> (Fill, Wanted) {
    let mut fill = listed();
    let wanted = Wanted::new(Arc::new(planned(&fill, names)));
    carry_out(&mut fill, &wanted, &mut 100);
    (fill, wanted)
}

#[test]
fn a_service_is_made_before_its_slices_and_a_second_comparison_finds_nothing() {
    let mut fill = listed();
    let wanted = Wanted::new(Arc::new(planned(&fill, &["a"])));
    let first: Vec<_> = changes(&wanted, &fill).iter().map(|change| change.key.to_string()).collect();
    assert_eq!(first, ["Service shop/a-east", "EndpointSlice shop/a-east-7443", "EndpointSlice shop/a-east-7444"]);
    assert_eq!(carry_out(&mut fill, &wanted, &mut 100), 3);
    assert_eq!(changes(&wanted, &fill), []);
    // A process that begins anew compares what it lists.
    let mut anew = listed();
    for kind in [crate::watch::kubernetes::kind::Kind::Service, crate::watch::kubernetes::kind::Kind::EndpointSlice] {
        for change in [&first[0], &first[1], &first[2]] {
            let (said, name) = change.split_once(" shop/").unwrap();
            if let Some(entry) = fill.get(kind, &("shop".to_owned(), name.to_owned())).filter(|_| said == kind.as_str())
            {
                let Kept::Made(object) = entry.kept.clone() else { panic!() };
                let mut value = serde_json::to_value(&*object).unwrap();
                value["metadata"]["uid"] = json!(entry.facts.uid);
                anew.hear(kind, Event::Apply(seen(kind, &value)));
            }
        }
    }
    assert_eq!(changes(&wanted, &anew), []);
}

#[test]
fn drift_in_what_we_own_is_undone_and_what_others_added_is_theirs() {
    let cases: [(&str, Value, bool); 7] = [
        ("/spec/ports/0/port", json!(99), true),
        ("/spec/ports/0/name", json!("other"), true),
        ("/spec/ports/0/appProtocol", json!("http"), true),
        ("/metadata/labels/hawser.dev~1mirror-of-cluster", json!("north"), true),
        ("/metadata/annotations/hawser.dev~1mirror-of-service", json!("shop/b"), true),
        ("/metadata/annotations/hawser.dev~1applied", json!("older"), true),
        ("/spec/sessionAffinity", json!("ClientIP"), false),
    ];
    for (field, value, drifted) in cases {
        let (mut fill, wanted) = settled(&["a"]);
        let key = mirrors(&wanted.plan)[0].0.clone();
        let mut there = object(&Change { key, verb: Verb::Create { addresses: Vec::new() } }, &wanted, 500);
        match there.pointer_mut(field) {
            Some(at) => *at = value,
            None => {
                let (parent, name) = field.rsplit_once('/').unwrap();
                there.pointer_mut(parent).unwrap()[name] = value;
            }
        }
        fill.hear(Watched::Service, Event::Apply(seen(Watched::Service, &there)));
        let found = changes(&wanted, &fill);
        assert_eq!(found.len(), usize::from(drifted), "{field}: {found:?}");
        let bound = |change: &Change| match &change.verb {
            Verb::Update { uid, repair } => uid == "uid-500" && *repair != field.ends_with("applied"),
            Verb::Ports { uid, version } => uid == "uid-500" && *version == 500,
            _ => false,
        };
        assert!(found.iter().all(bound), "{found:?}");
    }
}

#[test]
fn ports_that_others_added_go_before_anything_is_applied() {
    let (mut fill, wanted) = settled(&["a"]);
    let key = mirrors(&wanted.plan)[0].0.clone();
    let mut there = object(&Change { key, verb: Verb::Create { addresses: Vec::new() } }, &wanted, 500);
    let mut ports = there["spec"]["ports"].as_array().unwrap().clone();
    // The same number of another protocol is another port.
    ports.push(json!({ "port": ports[0]["port"], "protocol": "UDP" }));
    there["spec"]["ports"] = json!(ports);
    there["metadata"]["annotations"]["hawser.dev/applied"] = json!("older");
    fill.hear(Watched::Service, Event::Apply(seen(Watched::Service, &there)));
    let verbs: Vec<_> = changes(&wanted, &fill).into_iter().map(|change| change.verb).collect();
    assert_eq!(verbs, [Verb::Ports { uid: "uid-500".to_owned(), version: 500 }]);
}

#[test]
fn endpoints_that_were_changed_by_hand_come_back() {
    let (mut fill, wanted) = settled(&["a"]);
    let key = mirrors(&wanted.plan).into_iter().find(|(key, _)| key.kind == Kind::EndpointSlice).unwrap().0;
    let mut there = object(&Change { key, verb: Verb::Create { addresses: Vec::new() } }, &wanted, 500);
    there["endpoints"] = json!([{ "addresses": ["10.66.66.66"] }]);
    fill.hear(Watched::EndpointSlice, Event::Apply(seen(Watched::EndpointSlice, &there)));
    assert_eq!(changes(&wanted, &fill).len(), 1);
}

#[test]
fn what_is_not_ours_is_neither_changed_nor_removed() {
    let mut fill = listed();
    let wanted = Wanted::new(Arc::new(planned(&fill, &["a"])));
    let theirs = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "a-east", "namespace": "shop" },
        "spec": { "ports": [{ "port": 80 }] } });
    fill.hear(Watched::Service, Event::Apply(seen(Watched::Service, &theirs)));
    assert_eq!(changes(&wanted, &fill)[0].verb, Verb::Collide);
    let nothing = Wanted::new(Arc::new(planned(&fill, &[])));
    assert_eq!(changes(&nothing, &fill), []);
}

#[test]
fn what_is_offered_no_more_goes_its_slices_first() {
    let (fill, _) = settled(&["a", "b"]);
    let fewer = Wanted::new(Arc::new(planned(&fill, &["b"])));
    let gone: Vec<_> = changes(&fewer, &fill).iter().map(|change| change.key.to_string()).collect();
    assert_eq!(gone, ["EndpointSlice shop/a-east-7443", "EndpointSlice shop/a-east-7444", "Service shop/a-east"]);
}

#[test]
fn nothing_goes_while_it_is_not_known_what_the_peer_offers_or_which_links_there_are() {
    let (fill, _) = settled(&["a"]);
    let mut plan = planned(&fill, &[]);
    plan.heard = BTreeSet::new();
    assert_eq!(changes(&Wanted::new(Arc::new(plan)), &fill), []);
    let unlisted = crate::watch::kubernetes::fill::tests::fill();
    assert!(Links::new(&unlisted, &west(), &BTreeSet::new()).is_none());
}

#[test]
fn a_link_that_is_deleted_takes_all_that_it_made_and_then_its_finalizer() {
    let (mut fill, _) = settled(&["a", "b"]);
    let leaving = link(&json!({ "deletionTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "6" }));
    fill.hear(Watched::Link, Event::Apply(seen(Watched::Link, &leaving)));
    assert_eq!(holds(&fill), [], "what it made is still there");
    let plan = Plan::default();
    let wanted = Wanted::new(Arc::new(plan));
    assert_eq!(carry_out(&mut fill, &wanted, &mut 900), 6);
    assert_eq!(holds(&fill), [Hold { link: "east".to_owned(), version: 6, finalizers: Vec::new() }]);
}

#[test]
fn nothing_is_made_for_a_link_before_it_bears_the_finalizer() {
    let mut fill = listed();
    let bare = link(&json!({ "finalizers": [], "resourceVersion": "6" }));
    fill.hear(Watched::Link, Event::Apply(seen(Watched::Link, &bare)));
    assert_eq!(changes(&Wanted::new(Arc::new(planned(&fill, &["a"]))), &fill), []);
    assert_eq!(
        holds(&fill),
        [Hold { link: "east".to_owned(), version: 6, finalizers: vec!["hawser.dev/unlink".to_owned()] }]
    );
}

const IMPORT_OF_A: [&str; 4] = [
    "Service shop/a-clusterset",
    "EndpointSlice shop/a.east-7443",
    "EndpointSlice shop/a.east-7444",
    "ServiceImport shop/a",
];

/// Of what is not a mirror.
fn of_imports(changes: &[Change]) -> Vec<String> {
    changes.iter().map(|change| change.key.to_string()).filter(|key| !key.contains("a-east")).collect()
}

#[test]
fn an_import_is_made_with_its_service_and_slices_and_goes_with_them() {
    let mut fill = with_imports();
    let wanted = Wanted::new(Arc::new(planned(&fill, &["a"])));
    assert_eq!(of_imports(&changes(&wanted, &fill)), IMPORT_OF_A);
    carry_out(&mut fill, &wanted, &mut 100);
    assert_eq!(changes(&wanted, &fill), []);
    let nothing = Wanted::new(Arc::new(planned(&fill, &[])));
    let mut gone = of_imports(&changes(&nothing, &fill));
    gone.sort_unstable();
    let mut all = IMPORT_OF_A.map(str::to_owned);
    all.sort_unstable();
    assert_eq!(gone, all);
}

#[test]
fn an_import_that_was_changed_by_hand_comes_back_whole() {
    for (field, value) in [
        ("/spec/ports", json!([{ "port": 99 }])),
        ("/spec/type", json!("Headless")),
        ("/spec/ips", json!(["10.6.6.6"])),
        ("/spec/type", json!("NotAType")),
    ] {
        let mut fill = with_imports();
        let wanted = Wanted::new(Arc::new(planned(&fill, &["a"])));
        carry_out(&mut fill, &wanted, &mut 100);
        let key = owned(&wanted.plan).into_iter().find(|(key, _)| key.kind == Kind::ServiceImport).unwrap().0;
        let mut there = object(&Change { key, verb: Verb::Create { addresses: Vec::new() } }, &wanted, 500);
        let (parent, name) = field.rsplit_once('/').unwrap();
        there.pointer_mut(parent).unwrap()[name] = value;
        fill.hear(Watched::ServiceImport, Event::Apply(seen(Watched::ServiceImport, &there)));
        let found = changes(&wanted, &fill);
        assert!(matches!(&found[..], [Change { verb: Verb::Update { repair: true, .. }, .. }]), "{field}: {found:?}");
    }
}

#[test]
fn an_import_of_somebody_elses_is_left_as_it_is() {
    let mut fill = with_imports();
    let theirs = json!({ "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport",
        "metadata": { "name": "a", "namespace": "shop" }, "spec": { "type": "Headless", "ports": [] } });
    fill.hear(Watched::ServiceImport, Event::Apply(seen(Watched::ServiceImport, &theirs)));
    let wanted = Wanted::new(Arc::new(planned(&fill, &["a"])));
    let found = changes(&wanted, &fill);
    let verb = found.iter().find(|change| change.key.kind == Kind::ServiceImport).map(|change| &change.verb);
    assert_eq!(verb, Some(&Verb::Collide));
}

#[test]
fn nothing_of_an_import_goes_while_any_link_is_silent_or_it_is_not_known_which_imports_there_are() {
    let mut fill = with_imports();
    let wanted = Wanted::new(Arc::new(planned(&fill, &["a"])));
    carry_out(&mut fill, &wanted, &mut 100);
    let mut plan = planned(&fill, &[]);
    plan.heard = BTreeSet::new();
    assert_eq!(of_imports(&changes(&Wanted::new(Arc::new(plan)), &fill)), [""; 0]);
    let nothing = Wanted::new(Arc::new(planned(&fill, &[])));
    let mut unknown = fill;
    unknown.forget(Watched::ServiceImport);
    // What is bound to the Link alone goes with what the Link offers.
    assert_eq!(of_imports(&changes(&nothing, &unknown)), &IMPORT_OF_A[1..3]);
}

#[test]
fn a_link_that_is_deleted_takes_its_slices_of_imports_before_its_finalizer() {
    let mut fill = with_imports();
    let wanted = Wanted::new(Arc::new(planned(&fill, &["a"])));
    carry_out(&mut fill, &wanted, &mut 100);
    let leaving = link(&json!({ "deletionTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "6" }));
    fill.hear(Watched::Link, Event::Apply(seen(Watched::Link, &leaving)));
    assert_eq!(holds(&fill), []);
    carry_out(&mut fill, &Wanted::new(Arc::new(Plan::default())), &mut 900);
    assert_eq!(holds(&fill), [Hold { link: "east".to_owned(), version: 6, finalizers: Vec::new() }]);
    assert_eq!(fill.all(Watched::ServiceImport).count() + fill.all(Watched::EndpointSlice).count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// From whatever state: one application, and the next finds nothing.
    #[test]
    fn one_application_leads_from_any_state_to_the_plan(before in prop::collection::btree_set("[a-d]", 0..4), after in prop::collection::btree_set("[a-d]", 0..4)) {
        let names = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>();
        let (before, after) = (names(&before), names(&after));
        let (mut fill, _) = settled(&before.iter().map(String::as_str).collect::<Vec<_>>());
        let wanted = Wanted::new(Arc::new(planned(&fill, &after.iter().map(String::as_str).collect::<Vec<_>>())));
        carry_out(&mut fill, &wanted, &mut 900);
        prop_assert_eq!(changes(&wanted, &fill), vec![]);
    }
}
