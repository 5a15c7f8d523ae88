//! Statuses of Links, ServiceExports and ServiceImports, at the objects themselves.
//!
//! What changes all the time (round trips, clocks) is written along with what matters, and never for its own sake: an API
//! server is no place for a metric.

use std::collections::{BTreeMap, BTreeSet};
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

use super::pacing::Pacing;
use crate::kubernetes::{MANAGER, send};
use crate::lease::Leadership;
use crate::metrics::Metrics;
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
const VOLATILE: [&str; 4] = ["roundTripUs", "clockAheadMs", "refreshedMs", "lastTransitionTime"];
/// By the first of these that all items of a list have they are told apart, wherever they stand in it.
const KEYS: [&str; 3] = ["type", "name", "cluster"];

type Name = (Kind, Option<String>, String);

/// A status that is to be written.
#[derive(Debug, Clone, PartialEq)]
struct Due {
    kind: Kind,
    api_version: String,
    namespace: Option<String>,
    name: String,
    status: Value,
}

impl Due {
    fn key(&self) -> Name {
        (self.kind, self.namespace.clone(), self.name.clone())
    }
}

/// Since when a status has been about to be written, and since when as it is now.
struct Pending {
    status: Value,
    first: Instant,
    since: Instant,
}

/// Writes statuses until dropped.
pub async fn run(
    client: Client,
    known: Known,
    leadership: Leadership,
    mut plans: watch::Receiver<Option<Arc<Plan>>>,
    metrics: Metrics,
) {
    let mut pending: BTreeMap<Name, Pending> = BTreeMap::new();
    let (mut pacing, mut written) = (Pacing::default(), BTreeMap::new());
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
        let due = known.look(|fill| {
            written.retain(|key, _| is_there(fill, key));
            due(&plan, fill)
        });
        let keys: BTreeSet<_> = due.iter().map(Due::key).collect();
        pending.retain(|key, _| keys.contains(key));
        pacing.retain(clock::monotonic(), |key| keys.contains(key));
        for due in due {
            let now = clock::monotonic();
            let key = due.key();
            let stable = steady(&due.status);
            let known = pending.entry(key.clone()).or_insert(Pending { status: Value::Null, first: now, since: now });
            if known.status != stable {
                (known.status, known.since) = (stable, now);
            }
            let settles = now < known.since + SETTLED && now < known.first + OVERDUE;
            if settles || !pacing.ready(&key, now) {
                continue;
            }
            let Some(permit) = leadership.permit() else { break };
            // Whatever the answer: not again before it has been about to be written for as long.
            (known.first, known.since) = (now, now);
            let wanted = known.status.clone();
            let done = write(&client, &due, permit.within).await;
            metrics.wrote(due.kind.as_str(), "status", if done.is_ok() { "ok" } else { "failed" });
            match done {
                // Somebody made something else of it: a webhook, or another controller that takes it for its own.
                Ok(()) if written.insert(key.clone(), wanted.clone()).is_some_and(|before| before == wanted) => {
                    pacing.repaired(key, now);
                }
                Ok(()) => pacing.succeeded(&key, now),
                Err(after) => pacing.failed(key, now, after, rand::random_range(0.5..1.0)),
            }
        }
    }
}

/// Fails with what the API server asks to wait for.
async fn write(client: &Client, due: &Due, within: Duration) -> Result<(), Option<Duration>> {
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
    let request = request.patch_subresource("status", &due.name, &params, &Patch::Apply(&body)).map_err(|_| None)?;
    match send(client, request, within).await {
        Ok(answer) if answer.status.is_success() || answer.status == StatusCode::NOT_FOUND => Ok(()),
        Ok(answer) => {
            tracing::warn!(
                kind = due.kind.as_str(),
                name = due.name,
                why = answer.message(),
                hint = "if a field is not declared, the definition is older than Hawser's: hawser install --crds-only",
                "a status is not written; tried again by itself"
            );
            Err(answer.retry_after)
        }
        Err(why) => {
            tracing::debug!(kind = due.kind.as_str(), name = due.name, why, "a status is not written");
            Err(None)
        }
    }
}

fn is_there(fill: &Fill, (kind, namespace, name): &Name) -> bool {
    fill.get(*kind, &(namespace.clone().unwrap_or_default(), name.clone())).is_some()
}

/// Pure: the statuses that are not as they should be.
fn due(plan: &Plan, fill: &Fill) -> Vec<Due> {
    let now = jiff::Timestamp::try_from(clock::now()).unwrap_or_default();
    let now = Value::from(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    let mut due = Vec::new();
    let readable = readable(&fill.standing());
    let planned: BTreeMap<&str, _> = plan.statuses.links.iter().map(|entry| (entry.name.as_str(), entry)).collect();
    for link in fill.links().into_iter().flatten().filter(|link| !link.facts.leaving) {
        let entry = planned.get(link.name);
        let status = entry.map(|entry| entry.status.clone()).unwrap_or_default();
        let generation = link.facts.generation;
        let here = [valid(link.problems, entry.is_some()), readable.clone()];
        // What the plan says, it says of the edition that it was made from: a newer one may be on its way, or invalid.
        let planned = status.conditions.iter().map(|one| (one, entry.map_or(generation, |entry| entry.generation)));
        let conditions = planned.chain(here.iter().map(|one| (one, generation)));
        let conditions = dated(conditions, link.facts, &now);
        let Ok(Value::Object(mut wanted)) = serde_json::to_value(&status) else { continue };
        wanted.insert("conditions".to_owned(), conditions);
        due.extend(differing(Kind::Link, (None, link.name), link.facts, Value::Object(wanted)));
    }
    let by_object = plan.statuses.exports.iter().filter(|entry| entry.by == "ServiceExport");
    let exports: BTreeMap<(&str, &str), _> =
        by_object.map(|entry| ((entry.namespace.as_str(), entry.name.as_str()), entry)).collect();
    for (export, facts) in fill.exports() {
        let name = (export.metadata.namespace_or_default(), export.metadata.name.as_str());
        let Some(entry) = exports.get(&name) else { continue };
        let conditions = entry.conditions.iter().map(|one| (one, entry.generation));
        let wanted = json!({ "conditions": dated(conditions, facts, &now) });
        due.extend(differing(Kind::ServiceExport, (Some(name.0), name.1), facts, wanted));
    }
    for (key, object) in &plan.imports {
        let name = (key.namespace.to_string(), key.name.to_string());
        // Somebody else's import has its own controller.
        let Some(entry) = fill.get(Kind::ServiceImport, &name).filter(|entry| entry.kept.made().is_some()) else {
            continue;
        };
        let Ok(Value::Object(mut wanted)) = serde_json::to_value(&object.status) else { continue };
        let conditions = object.status.conditions.iter().map(|one| (one, entry.facts.generation));
        wanted.insert("conditions".to_owned(), dated(conditions, &entry.facts, &now));
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

/// Conditions as Kubernetes has them: each with the edition of the object of which it is said, and the time at which its
/// status became what it is.
fn dated<'c>(conditions: impl Iterator<Item = (&'c Condition, i64)>, facts: &Facts, now: &Value) -> Value {
    let known = facts.status.get("conditions").and_then(Value::as_array);
    let one = |(condition, generation): (&Condition, i64)| {
        let before = known.into_iter().flatten().find(|known| known.get("type") == Some(&json!(condition.kind)));
        let same = before.filter(|before| before.get("status") == Some(&json!(condition.status)));
        let since = same.and_then(|before| before.get("lastTransitionTime")).unwrap_or(now);
        json!({
            "type": condition.kind,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message,
            "observedGeneration": generation,
            "lastTransitionTime": since,
        })
    };
    Value::Array(conditions.map(one).collect())
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
            there.len() == wanted.len()
                && match KEYS.into_iter().find(|key| wanted.iter().all(|item| item.get(key).is_some())) {
                    Some(key) => wanted.iter().all(|wanted| {
                        let twin = there.iter().find(|there| there.get(key) == wanted.get(key));
                        twin.is_some_and(|there| covers(there, wanted))
                    }),
                    None => there.iter().zip(wanted).all(|(there, wanted)| covers(there, wanted)),
                }
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
        let dated = dated(conditions.iter().map(|one| (one, 3)), &facts, &json!("now"));
        assert_eq!(dated[0]["lastTransitionTime"], "then");
        assert_eq!(dated[1]["lastTransitionTime"], "now");
        assert_eq!(
            dated[1]["observedGeneration"], 3,
            "said of the edition that was looked at, not of the one that is there"
        );
    }

    #[test]
    fn an_edition_that_nobody_has_answered_yet_is_answered_though_nothing_else_changes() {
        let conditions = [condition("Ready", true, "Ready", "it is")];
        let at = |generation| dated(conditions.iter().map(|one| (one, generation)), &Facts::default(), &json!("now"));
        let facts = Facts { status: json!({ "conditions": at(1) }), ..Facts::default() };
        let differs = |generation| {
            differing(Kind::Link, (None, "east"), &facts, json!({ "conditions": at(generation) })).is_some()
        };
        assert!(!differs(1) && differs(2));
    }

    #[test]
    fn items_of_a_list_are_told_apart_by_their_keys_and_none_too_many_may_be_there() {
        let item = |name: &str, alive: bool| json!({ "name": name, "alive": alive, "more": 1 });
        let wanted = json!([{ "name": "g0", "alive": true }, { "name": "g1", "alive": false }]);
        for (there, is_same) in [
            (json!([item("g0", true), item("g1", false)]), true),
            (json!([item("g1", false), item("g0", true)]), true),
            (json!([item("g0", true), item("g1", true)]), false),
            (json!([item("g0", true), item("g2", false)]), false),
            (json!([item("g0", true)]), false),
            (json!([item("g0", true), item("g1", false), item("g2", true)]), false),
        ] {
            assert_eq!(covers(&there, &wanted), is_same, "{there}");
        }
        assert!(!covers(&json!(["a", "b"]), &json!(["b", "a"])), "without keys the order counts");
    }
}
