//! Admin pages: the statuses as JSON.

use std::sync::Arc;

use hawser_runtime::Process;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::plan::Plan;
use crate::status::Statuses;

/// Adds `/links`, `/exports`, `/mirrors`, `/endpoints`, `/listeners` and `/objects`.
pub(crate) fn add(process: &Process, plans: &watch::Receiver<Option<Arc<Plan>>>) {
    page(process, "/links", plans, |statuses| json!({ "links": statuses.links }));
    page(process, "/exports", plans, |statuses| json!({ "exports": statuses.exports }));
    page(process, "/mirrors", plans, |statuses| json!({ "mirrors": statuses.mirrors }));
    page(process, "/endpoints", plans, |statuses| json!({ "endpoints": statuses.endpoints }));
    page(process, "/listeners", plans, |statuses| json!({ "listeners": statuses.listeners }));
    page(process, "/objects", plans, |statuses| json!(statuses.objects));
}

fn page(
    process: &Process,
    path: &'static str,
    plans: &watch::Receiver<Option<Arc<Plan>>>,
    pick: fn(&Statuses) -> Value,
) {
    let plans = plans.clone();
    process.pages.add(path, move |_query| {
        let plan = plans.borrow().clone();
        plan.map_or_else(|| pick(&Statuses::default()), |plan| pick(&plan.statuses))
    });
}
