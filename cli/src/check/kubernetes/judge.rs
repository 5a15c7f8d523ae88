//! Findings about a Kubernetes cluster from what its API server said. Pure.

use std::collections::BTreeMap;

use hawser_api::labels::{MIRROR_CONTROLLER_LEASE, MIRROR_OF_CLUSTER, SERVICE_NAME, SYSTEM_NAMESPACE};
use serde_json::{Value, json};

use super::super::anchor::Anchor;
use super::super::judge::{export, link, mirror};
use super::super::{Category, Finding};
use super::needs::permissions;
use super::{Answer, Seen};
use crate::page::{at, condition, is, list, number, text};

/// What must be defined, and the version that is read.
const DEFINITIONS: [(&str, &str); 4] = [
    ("links.hawser.dev", "v1alpha1"),
    ("failoverpolicies.hawser.dev", "v1alpha1"),
    ("serviceexports.multicluster.x-k8s.io", "v1beta1"),
    ("serviceimports.multicluster.x-k8s.io", "v1beta1"),
];
const INSTALL: &str = "apply this release's definitions: hawser install --crds-only";

/// All findings about one cluster.
pub(super) fn judge(seen: &Seen) -> Vec<Category> {
    let category = |name: &str, checks: Vec<Finding>| category(&seen.cluster, name, checks);
    let reachable =
        Anchor::ApiReachable.good(format!("the API server answers ({})", text(&seen.version, "gitVersion")));
    let slices = ready_endpoints(&seen.slices);
    let categories = vec![
        category("api server", vec![reachable]),
        category("definitions", definitions(&seen.definitions)),
        category(
            "controllers",
            [vec![namespace(&seen.namespace)], deployments(&seen.deployments), leases(seen)].concat(),
        ),
        category("permissions", permissions(&seen.reviews)),
        category("links", links(&seen.links)),
        category("exports", exports(seen, &slices)),
        category("mirrors", mirrors(seen, &slices)),
    ];
    categories.into_iter().filter(|category| !category.checks.is_empty()).collect()
}

/// All that can be said about a cluster whose API server does not answer.
pub(super) fn unreachable(cluster: &str, reason: String) -> Vec<Category> {
    let finding = Anchor::ApiReachable.error("the API server answers", reason, "kubectl --context NAME version");
    vec![category(cluster, "api server", vec![finding])]
}

fn category(cluster: &str, name: &str, checks: Vec<Finding>) -> Category {
    Category { category_name: format!("{cluster}: {name}"), checks }
}

fn items(answer: &Answer) -> &[Value] {
    answer.as_ref().map_or(&[], |found| list(found, "items"))
}

/// What could not be looked at is said, rather than passed over.
fn unseen(answer: &Answer, check: Anchor, what: &str) -> Option<Finding> {
    let reason = answer.as_ref().err()?;
    let hint = "whoever runs the check must be allowed to look: kubectl auth can-i list";
    Some(check.warning(format!("{what} can be looked at"), reason.clone(), hint))
}

fn definitions(answer: &Answer) -> Vec<Finding> {
    let check = Anchor::CrdsCurrent;
    if let Some(finding) = unseen(answer, check, "definitions") {
        return vec![finding];
    }
    let one = |(name, version): &(&str, &str)| {
        let description = format!("{name} is defined and served as {version}");
        let found = items(answer).iter().find(|crd| text(crd, "metadata.name") == *name);
        let Some(found) = found else { return check.error(description, "it is not defined", INSTALL) };
        let served = list(found, "spec.versions").iter().any(|v| text(v, "name") == *version && is(v, "served"));
        let established = condition(found, "Established").is_some_and(|condition| at(condition, "status") == "True");
        match (served, established) {
            (false, _) => check.error(description, format!("{version} is not served"), INSTALL),
            (_, false) => check.error(description, "the API server has not established it", "kubectl describe crd"),
            _ => check.good(description),
        }
    };
    DEFINITIONS.iter().map(one).collect()
}

fn namespace(answer: &Answer) -> Finding {
    let check = Anchor::NamespacePresent;
    let description = format!("the namespace {SYSTEM_NAMESPACE} is there");
    match answer {
        Ok(Value::Null) => {
            check.error(description, "it is not", format!("kubectl create namespace {SYSTEM_NAMESPACE}"))
        }
        Ok(found) if text(found, "status.phase") == "Terminating" => {
            check.error(description, "it is being deleted", "wait until it is gone, then install again")
        }
        Ok(_) => check.good(description),
        Err(reason) => check.warning(description, reason.clone(), "whoever runs the check must be allowed to look"),
    }
}

fn deployments(answer: &Answer) -> Vec<Finding> {
    let check = Anchor::ControllersRunning;
    let one = |row: &Value| {
        let (name, wanted) = (text(row, "metadata.name"), number(row, "spec.replicas"));
        let ready = number(row, "status.readyReplicas");
        let description = format!("{name} runs ({ready:.0} of {wanted:.0} ready)");
        let hint = format!("kubectl -n {SYSTEM_NAMESPACE} describe deployment {name}");
        match ready {
            none if none < 1.0 => check.error(description, "none of its pods is ready", hint),
            some if some < wanted => check.warning(description, "not all of its pods are ready", hint),
            _ => check.good(description),
        }
    };
    unseen(answer, check, "deployments").into_iter().chain(items(answer).iter().map(one)).collect()
}

/// A lease that nobody renews is that of a controller that nobody runs.
fn leases(seen: &Seen) -> Vec<Finding> {
    let check = Anchor::ControllersLeading;
    let one = |row: &Value| {
        let (name, holder) = (text(row, "metadata.name"), text(row, "spec.holderIdentity"));
        let description = format!("{name} has a leader ({holder})");
        let hint = "is a replica running? the log of each says whether it may write the lease";
        let renewed = text(row, "spec.renewTime").parse::<jiff::Timestamp>().map(|time| time.as_second() as f64);
        let age = renewed.map(|renewed| seen.now - renewed).unwrap_or(f64::MAX);
        if holder.is_empty() {
            return check.error(description, "nobody holds its lease", hint);
        }
        if age > number(row, "spec.leaseDurationSeconds") {
            return check.error(description, "its lease has run out", hint);
        }
        check.good(description)
    };
    let all = items(&seen.leases);
    let led = all.iter().any(|row| text(row, "metadata.name") == MIRROR_CONTROLLER_LEASE);
    let never = (seen.leases.is_ok() && !led).then(|| {
        let description = format!("{MIRROR_CONTROLLER_LEASE} has a leader");
        check.warning(description, "no mirror controller has run here", "services are neither exported nor mirrored")
    });
    unseen(&seen.leases, check, "leases").into_iter().chain(never).chain(all.iter().map(one)).collect()
}

fn links(answer: &Answer) -> Vec<Finding> {
    let check = Anchor::LinkCatalogFresh;
    let row = |link: &Value| json!({ "name": text(link, "metadata.name"), "status": at(link, "status") });
    let all = items(answer).iter().map(row).flat_map(|row| link(&row));
    unseen(answer, check, "links").into_iter().chain(all).collect()
}

fn key(object: &Value, name: &str) -> (String, String) {
    (text(object, "metadata.namespace"), name.to_owned())
}

/// A label's value; names of labels have dots, so that no path leads to them.
fn label(object: &Value, name: &str) -> String {
    at(object, "metadata.labels").get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Ready endpoints of each Service.
fn ready_endpoints(answer: &Answer) -> BTreeMap<(String, String), u32> {
    let mut ready = BTreeMap::new();
    for slice in items(answer) {
        let endpoints = list(slice, "endpoints").iter();
        // Unknown counts as ready, as the EndpointSlice says.
        let count = endpoints.filter(|endpoint| at(endpoint, "conditions.ready") != false).count();
        *ready.entry(key(slice, &label(slice, SERVICE_NAME))).or_default() += u32::try_from(count).unwrap_or(u32::MAX);
    }
    ready
}

fn service_row(object: &Value, ready: &BTreeMap<(String, String), u32>) -> Value {
    let (namespace, name) = key(object, &text(object, "metadata.name"));
    let count = ready.get(&(namespace.clone(), name.clone())).copied().unwrap_or_default();
    json!({ "namespace": namespace, "name": name, "endpointsReady": count, "conditions": list(object, "status.conditions") })
}

/// Services with the label and ServiceExports, each Service once: the ServiceExport says more.
fn exports(seen: &Seen, ready: &BTreeMap<(String, String), u32>) -> Vec<Finding> {
    let check = Anchor::ExportCallable;
    let rows = items(&seen.exported).iter().chain(items(&seen.exports));
    let rows: BTreeMap<_, _> =
        rows.map(|object| (key(object, &text(object, "metadata.name")), service_row(object, ready))).collect();
    let unseen = [unseen(&seen.exported, check, "services"), unseen(&seen.slices, check, "endpoints")];
    unseen.into_iter().flatten().chain(rows.values().map(export)).collect()
}

/// What we made: of a peer that is linked, and with endpoints.
fn mirrors(seen: &Seen, ready: &BTreeMap<(String, String), u32>) -> Vec<Finding> {
    let linked: Vec<String> = items(&seen.links).iter().map(|link| text(link, "metadata.name")).collect();
    let one = |object: &Value| {
        let row = service_row(object, ready);
        let (name, cluster) = (crate::page::service(&row), label(object, MIRROR_OF_CLUSTER));
        // We make Services that are nobody's mirror too.
        if cluster.is_empty() {
            return None;
        }
        if seen.links.is_ok() && !linked.contains(&cluster) {
            let hint = "the mirror controller takes it away when it runs; or: kubectl delete service";
            return Some(Anchor::MirrorOrphaned.warning(
                format!("{name} is of a cluster that is linked"),
                format!("there is no Link named {cluster}"),
                hint,
            ));
        }
        mirror(&row)
    };
    let unseen = unseen(&seen.mirrors, Anchor::MirrorCallable, "mirrors");
    unseen.into_iter().chain(items(&seen.mirrors).iter().filter_map(one)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::Outcome;
    use super::super::needs::needs;
    use super::*;

    fn all(items: Value) -> Answer {
        Ok(json!({ "items": items }))
    }

    fn definition(name: &str, version: &str) -> Value {
        json!({
            "metadata": { "name": name },
            "spec": { "versions": [{ "name": version, "served": true }] },
            "status": { "conditions": [{ "type": "Established", "status": "True" }] },
        })
    }

    fn service(name: &str, labels: Value) -> Value {
        json!({ "metadata": { "namespace": "shop", "name": name, "labels": labels } })
    }

    fn slice(service: &str, ready: &[Value]) -> Value {
        let endpoints: Vec<Value> = ready.iter().map(|ready| json!({ "conditions": { "ready": ready } })).collect();
        json!({
            "metadata": { "namespace": "shop", "labels": { "kubernetes.io/service-name": service } },
            "endpoints": endpoints,
        })
    }

    /// A cluster in order: a link, an export and a mirror.
    fn healthy() -> Seen {
        let link = json!({
            "metadata": { "name": "east" },
            "status": {
                "conditions": [{ "type": "CatalogFresh", "status": "True" }],
                "gateways": [{ "name": "g0", "alive": true, "transport": "quic", "roundTripUs": 900 }],
            },
        });
        Seen {
            cluster: "west".into(),
            now: 1_790_000_000.0,
            version: json!({ "gitVersion": "v1.34.4" }),
            definitions: all(DEFINITIONS.iter().map(|(name, version)| definition(name, version)).collect()),
            namespace: Ok(json!({ "status": { "phase": "Active" } })),
            deployments: all(json!([
                { "metadata": { "name": "gateway" }, "spec": { "replicas": 2 }, "status": { "readyReplicas": 2 } }
            ])),
            leases: all(json!([{
                "metadata": { "name": MIRROR_CONTROLLER_LEASE },
                "spec": { "holderIdentity": "a", "renewTime": "2026-09-21T14:13:15.000000Z", "leaseDurationSeconds": 15 },
            }])),
            reviews: needs().into_iter().map(|need| (need, Ok(json!({ "status": { "allowed": true } })))).collect(),
            links: all(json!([link])),
            exported: all(json!([service("web", json!({ "hawser.dev/export": "true" }))])),
            exports: all(json!([])),
            mirrors: all(json!([service("cart-east", json!({ "hawser.dev/mirror-of-cluster": "east" }))])),
            slices: all(json!([slice("web", &[json!(true)]), slice("cart-east", &[Value::Null])])),
        }
    }

    /// What is not in order, by name.
    fn found(seen: &Seen) -> Vec<(String, Outcome)> {
        let all = judge(seen).into_iter().flat_map(|category| category.checks);
        all.filter(|finding| finding.result != Outcome::Success)
            .map(|finding| (finding.anchor.to_string(), finding.result))
            .collect()
    }

    fn one(name: &str, result: Outcome) -> Vec<(String, Outcome)> {
        vec![(name.to_owned(), result)]
    }

    #[test]
    fn a_cluster_in_order_has_nothing_to_be_found() {
        let seen = healthy();
        assert_eq!(found(&seen), []);
        assert!(judge(&seen).iter().map(|category| category.checks.len()).sum::<usize>() > 10);
    }

    #[test]
    fn a_definition_that_is_missing_or_too_old_is_named() {
        let old = definition("links.hawser.dev", "v1alpha0");
        let seen = Seen { definitions: all(json!([old])), ..healthy() };
        let findings = definitions(&seen.definitions);
        assert!(findings[0].error.contains("v1alpha1 is not served"));
        assert!(findings[1].error.contains("it is not defined"));
    }

    #[test]
    fn a_lease_that_ran_out_is_a_controller_that_nobody_runs() {
        let later = Seen { now: 1_790_000_000.0 + 60.0, ..healthy() };
        assert_eq!(found(&later), one("controllers-leading", Outcome::Error));
        let never = Seen { leases: all(json!([])), ..healthy() };
        assert_eq!(found(&never), one("controllers-leading", Outcome::Warning));
    }

    #[test]
    fn exports_and_mirrors_without_ready_endpoints_and_mirrors_without_a_link_are_found() {
        let empty = Seen { slices: all(json!([slice("web", &[json!(false)])])), ..healthy() };
        let both = [one("export-callable", Outcome::Warning), one("mirror-callable", Outcome::Warning)].concat();
        assert_eq!(found(&empty), both);
        let unlinked = Seen { links: all(json!([])), ..healthy() };
        assert_eq!(found(&unlinked), one("mirror-orphaned", Outcome::Warning));
        // Where links cannot be listed, nothing is said to be an orphan.
        let blind = Seen { links: Err("forbidden".into()), ..healthy() };
        assert_eq!(found(&blind), one("link-catalog-fresh", Outcome::Warning));
    }
}
