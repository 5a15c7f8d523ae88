//! Statuses of Links, ServiceExports and ServiceImports, at the objects themselves.
//!
//! What changes all the time (round trips, clocks) is written along with what matters, and never for its own sake: an API
//! server is no place for a metric.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hawser_api::objects::link::Condition;
use hawser_api::objects::load::Problem;
use hawser_runtime::clock;
use http::StatusCode;
use kube::Client;
use kube::api::{Patch, PatchParams};
use kube::core::{DynamicObject, Request};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::kubernetes::{MANAGER, send};
use crate::lease::Leadership;
use crate::plan::Plan;
use crate::plan::statuses::condition;
use crate::watch::kubernetes::Known;
use crate::watch::kubernetes::fill::{Fill, Standing, Trouble};
use crate::watch::kubernetes::kind::Kind;
use crate::watch::kubernetes::read::Facts;

/// A status is written when it has stayed so for this long: what a start goes through in its first moments is nobody's
/// business.
const SETTLED: Duration = Duration::from_secs(1);
/// And when it has not been written for this long, whether it stays so or not.
const OVERDUE: Duration = Duration::from_secs(10);
/// Between two rounds.
const ROUND: Duration = Duration::from_millis(500);
/// Fields that never make a status worth writing.
const VOLATILE: [&str; 5] = ["roundTripUs", "clockAheadMs", "refreshedMs", "lastTransitionTime", "observedGeneration"];

/// A status that is to be written.
#[derive(Debug, Clone, PartialEq)]
struct Due {
    kind: Kind,
    api_version: String,
    namespace: Option<String>,
    name: String,
    status: Value,
}

/// Since when a status has been about to be written, and since when as it is now.
struct Pending {
    status: Value,
    first: Instant,
    since: Instant,
}

/// Writes statuses until dropped.
pub async fn run(client: Client, known: Known, leadership: Leadership, mut plans: watch::Receiver<Option<Arc<Plan>>>) {
    let mut pending: BTreeMap<(Kind, Option<String>, String), Pending> = BTreeMap::new();
    let (mut stirred, mut led) = (known.stirred(), false);
    loop {
        tokio::time::sleep(ROUND).await;
        let leads = leadership.leads();
        let news = std::mem::replace(&mut led, leads) != leads
            || stirred.has_changed().unwrap_or(true)
            || plans.has_changed().unwrap_or(true);
        if !news && pending.is_empty() {
            continue;
        }
        stirred.mark_unchanged();
        let plan = plans.borrow_and_update().clone();
        let Some(plan) = plan.filter(|_| leads) else { continue };
        let due = known.look(|fill| due(&plan, fill));
        let key = |due: &Due| (due.kind, due.namespace.clone(), due.name.clone());
        let keys: std::collections::BTreeSet<_> = due.iter().map(key).collect();
        pending.retain(|key, _| keys.contains(key));
        for due in due {
            let now = clock::monotonic();
            let stable = steady(&due.status);
            let known = pending.entry(key(&due)).or_insert(Pending { status: Value::Null, first: now, since: now });
            if known.status != stable {
                (known.status, known.since) = (stable, now);
            }
            if now < known.since + SETTLED && now < known.first + OVERDUE {
                continue;
            }
            let Some(permit) = leadership.permit() else { break };
            // Whatever the answer: not again before it has been about to be written for as long.
            (known.first, known.since) = (now, now);
            write(&client, &due, permit.within).await;
        }
    }
}

async fn write(client: &Client, due: &Due, within: Duration) {
    use kube::Resource;
    let mut resource = due.kind.resource(0);
    if let Some((_, version)) = due.api_version.split_once('/') {
        version.clone_into(&mut resource.version);
        due.api_version.clone_into(&mut resource.api_version);
    }
    let body = json!({
        "apiVersion": due.api_version,
        "kind": due.kind.as_str(),
        "metadata": { "name": due.name },
        "status": due.status,
    });
    let params = PatchParams { force: true, field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let request = Request::new(DynamicObject::url_path(&resource, due.namespace.as_deref()));
    let Ok(request) = request.patch_subresource("status", &due.name, &params, &Patch::Apply(&body)) else { return };
    match send(client, request, within).await {
        Ok(answer) if answer.status.is_success() || answer.status == StatusCode::NOT_FOUND => {}
        Ok(answer) => {
            tracing::warn!(kind = due.kind.as_str(), name = due.name, why = answer.message(), "a status is not written")
        }
        Err(why) => tracing::debug!(kind = due.kind.as_str(), name = due.name, why, "a status is not written"),
    }
}

/// Pure: the statuses that are not as they should be.
fn due(plan: &Plan, fill: &Fill) -> Vec<Due> {
    let now = jiff::Timestamp::try_from(clock::now()).unwrap_or_default();
    let now = Value::from(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    let mut due = Vec::new();
    let readable = readable(&fill.standing());
    let planned: BTreeMap<&str, _> = plan.statuses.links.iter().map(|entry| (entry.name.as_str(), entry)).collect();
    for link in fill.links().into_iter().flatten().filter(|link| !link.facts.leaving) {
        let status = planned.get(link.name).map(|entry| entry.status.clone()).unwrap_or_default();
        let mut conditions = status.conditions.clone();
        conditions.push(valid(link.problems, planned.contains_key(link.name)));
        conditions.push(readable.clone());
        let Ok(Value::Object(mut wanted)) = serde_json::to_value(&status) else { continue };
        wanted.insert("conditions".to_owned(), dated(&conditions, link.facts, &now));
        due.extend(differing(Kind::Link, (None, link.name), link.facts, Value::Object(wanted)));
    }
    let by_object = plan.statuses.exports.iter().filter(|entry| entry.by == "ServiceExport");
    let exports: BTreeMap<(&str, &str), _> =
        by_object.map(|entry| ((entry.namespace.as_str(), entry.name.as_str()), entry)).collect();
    for (export, facts) in fill.exports() {
        let name = (export.metadata.namespace_or_default(), export.metadata.name.as_str());
        let Some(entry) = exports.get(&name) else { continue };
        let wanted = json!({ "conditions": dated(&entry.conditions, facts, &now) });
        due.extend(differing(Kind::ServiceExport, (Some(name.0), name.1), facts, wanted));
    }
    for (key, object) in &plan.imports {
        let name = (key.namespace.to_string(), key.name.to_string());
        // Somebody else's import has its own controller.
        let Some(entry) = fill.get(Kind::ServiceImport, &name).filter(|entry| entry.kept.made().is_some()) else {
            continue;
        };
        let Ok(Value::Object(mut wanted)) = serde_json::to_value(&object.status) else { continue };
        wanted.insert("conditions".to_owned(), dated(&object.status.conditions, &entry.facts, &now));
        due.extend(differing(Kind::ServiceImport, (Some(&name.0), &name.1), &entry.facts, Value::Object(wanted)));
    }
    due
}

/// Whether what the Link says now is in force.
fn valid(problems: &[Problem], in_force: bool) -> Condition {
    let Some(problem) = problems.first() else {
        return condition("Valid", true, "Valid", "it is in force as it stands");
    };
    let before = if in_force { "; what was in force stays" } else { "" };
    condition("Valid", false, "Invalid", format!("{problem}; {}{before}", problem.remedy))
}

/// Whether every kind can be read; if not, which cannot, and what to do. It says so at Links because that is where whoever
/// misses something looks first.
fn readable(standing: &[(Kind, Standing)]) -> Condition {
    let trouble = |(kind, standing): &(Kind, Standing)| Some((*kind, standing.trouble.clone()?));
    let troubled: Vec<_> = standing.iter().filter_map(trouble).collect();
    let Some((_, first)) = troubled.first() else {
        return condition("KindsReadable", true, "Readable", "every kind of object is watched");
    };
    let reason = match first {
        Trouble::Missing => "Missing",
        Trouble::Forbidden(_) => "Forbidden",
        Trouble::Unreachable(_) => "Unreachable",
    };
    let tell = |(kind, trouble): &(Kind, Trouble)| {
        let problem = trouble.problem(*kind);
        format!("{problem}; {}", problem.remedy)
    };
    condition("KindsReadable", false, reason, troubled.iter().map(tell).collect::<Vec<_>>().join(". "))
}

/// Conditions as Kubernetes has them: each with the time at which its status became what it is.
fn dated(conditions: &[Condition], facts: &Facts, now: &Value) -> Value {
    let known = facts.status.get("conditions").and_then(Value::as_array);
    let one = |condition: &Condition| {
        let before = known.into_iter().flatten().find(|known| known.get("type") == Some(&json!(condition.kind)));
        let same = before.filter(|before| before.get("status") == Some(&json!(condition.status)));
        let since = same.and_then(|before| before.get("lastTransitionTime")).unwrap_or(now);
        json!({
            "type": condition.kind,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
            "observedGeneration": facts.generation,
            "lastTransitionTime": since,
        })
    };
    Value::Array(conditions.iter().map(one).collect())
}

fn differing(kind: Kind, (namespace, name): (Option<&str>, &str), facts: &Facts, status: Value) -> Option<Due> {
    let same = covers(&facts.status, &steady(&status));
    let due = || Due {
        kind,
        api_version: facts.api_version.clone(),
        namespace: namespace.map(str::to_owned),
        name: name.to_owned(),
        status,
    };
    (!same).then(due)
}

/// A status without what changes all the time.
fn steady(status: &Value) -> Value {
    match status {
        Value::Object(fields) => {
            let kept = fields.iter().filter(|(key, _)| !VOLATILE.contains(&key.as_str()));
            Value::Object(kept.map(|(key, value)| (key.clone(), steady(value))).collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.iter().map(steady).collect()),
        other => other.clone(),
    }
}

/// Whether `there` says everything that `wanted` does.
fn covers(there: &Value, wanted: &Value) -> bool {
    match (there, wanted) {
        (Value::Object(there), Value::Object(wanted)) => {
            wanted.iter().all(|(key, value)| there.get(key).is_some_and(|there| covers(there, value)))
        }
        (Value::Array(there), Value::Array(wanted)) => {
            there.len() == wanted.len() && there.iter().zip(wanted).all(|(there, wanted)| covers(there, wanted))
        }
        (there, wanted) => there == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_written_for_what_matters_and_not_for_what_always_changes() {
        let facts = Facts {
            status: json!({ "offered": 2, "gateways": [{ "name": "g0", "alive": true, "roundTripUs": 310 }],
                "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }] }),
            ..Facts::default()
        };
        let status = |offered: u32, round_trip: u32| {
            json!({ "offered": offered, "gateways": [{ "name": "g0", "alive": true, "roundTripUs": round_trip }],
                "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2026-02-02T00:00:00Z" }] })
        };
        let differs = |status| differing(Kind::Link, (None, "east"), &facts, status).is_some();
        assert!(!differs(status(2, 310)) && !differs(status(2, 9_999)));
        assert!(differs(status(3, 310)));
    }

    #[test]
    fn every_kind_that_cannot_be_read_is_named_with_what_to_do() {
        let standing = |trouble| Standing { listed: true, trouble };
        let fine = [(Kind::Service, standing(None)), (Kind::Link, standing(None))];
        assert_eq!(readable(&fine).status, "True");
        let amiss = [
            (Kind::Service, standing(None)),
            (Kind::Pod, standing(Some(Trouble::Forbidden("no".to_owned())))),
            (Kind::FailoverPolicy, standing(Some(Trouble::Missing))),
        ];
        let told = readable(&amiss);
        assert_eq!((told.status.as_str(), told.reason.as_str()), ("False", "Forbidden"));
        for word in ["get, list and watch pods", "all failoverpolicies", "hawser install --crds-only"] {
            assert!(told.message.contains(word), "{}", told.message);
        }
        assert!(!told.message.contains("services"), "{}", told.message);
    }

    #[test]
    fn a_condition_keeps_its_date_until_its_status_changes() {
        let facts = Facts {
            status: json!({ "conditions": [
                { "type": "Ready", "status": "True", "lastTransitionTime": "then" },
                { "type": "Valid", "status": "True", "lastTransitionTime": "then" }] }),
            generation: 4,
            ..Facts::default()
        };
        let conditions = [condition("Ready", true, "Other", "reworded"), condition("Valid", false, "Invalid", "no")];
        let dated = dated(&conditions, &facts, &json!("now"));
        assert_eq!(dated[0]["lastTransitionTime"], "then");
        assert_eq!(dated[1]["lastTransitionTime"], "now");
        assert_eq!(dated[1]["observedGeneration"], 4);
    }
}
