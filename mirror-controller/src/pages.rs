//! Admin pages: the statuses as JSON.

use std::sync::Arc;

use hawser_runtime::Process;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::plan::Plan;
use crate::status::Statuses;

/// Adds `/links`, `/exports`, `/mirrors`, `/endpoints`, `/listeners` and `/objects`.
pub(crate) fn add(process: &Process, plans: &watch::Receiver<Option<Arc<Plan>>>) {
    page(process, "/links", plans, |statuses| value(&statuses.links));
    page(process, "/exports", plans, |statuses| value(&statuses.exports));
    page(process, "/mirrors", plans, |statuses| value(&statuses.mirrors));
    page(process, "/endpoints", plans, |statuses| value(&statuses.endpoints));
    page(process, "/listeners", plans, |statuses| value(&statuses.listeners));
    page(process, "/objects", plans, |statuses| value(&statuses.objects));
}

fn page(
    process: &Process,
    path: &'static str,
    plans: &watch::Receiver<Option<Arc<Plan>>>,
    pick: fn(&Statuses) -> Value,
) {
    let plans = plans.clone();
    let empty = if path == "/objects" { json!({}) } else { json!([]) };
    process.pages.add(path, move |_query| {
        let plan = plans.borrow().clone();
        plan.map_or_else(|| empty.clone(), |plan| pick(&plan.statuses))
    });
}

fn value(statuses: &impl Serialize) -> Value {
    serde_json::to_value(statuses).unwrap_or_default()
}
