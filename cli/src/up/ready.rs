//! Waits until every daemon is ready and the clusters that run here know one another, and says what it waits for.

use std::time::Duration;

use hawser_api::ClusterName;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::wanted::{self, Id};
use crate::fabric::Fabric;
use crate::state::State;
use crate::{admin, print};

const LOOK: Duration = Duration::from_millis(50);
/// A start takes a second or two; after this long a user wants to know.
const PATIENCE: Duration = Duration::from_secs(10);

/// A daemon is ready without its peers, which may be down for good reasons; those that were started with it are there in
/// a moment, and whoever reads "all is serving" calls them at once.
const ACQUAINTED: Duration = Duration::from_secs(5);

/// Returns when every daemon of the fabric answers `/ready` with 200, and links between its clusters are up or have had
/// their time.
pub(crate) async fn all(state: State, fabric: Fabric) {
    let mut said = Instant::now();
    loop {
        let missing = missing(&state, &fabric).await;
        if missing.is_empty() {
            let _ = tokio::time::timeout(ACQUAINTED, linked(&state, &fabric)).await;
            return;
        }
        if said.elapsed() > PATIENCE {
            said = Instant::now();
            print::note(format!("still waiting for {}", missing.join(", ")));
        }
        sleep(LOOK).await;
    }
}

/// Until each cluster has heard the catalogs of those that it is linked to and that run here.
async fn linked(state: &State, fabric: &Fabric) {
    for name in fabric.keys().filter(|_| fabric.len() > 1) {
        while !knows(state, name, fabric).await {
            sleep(LOOK).await;
        }
    }
}

async fn knows(state: &State, name: &ClusterName, fabric: &Fabric) -> bool {
    let Ok(cluster) = state.cluster(name) else { return true };
    let Some(run) = admin::run_file(&cluster.run_file(wanted::Kind::MirrorController.as_str())) else { return false };
    let Ok(page) = admin::page(&run.admin, "/links").await else { return false };
    let links = page.get("links").and_then(Value::as_array).into_iter().flatten();
    let here = |link: &&Value| {
        let peer = link.get("name").and_then(Value::as_str).and_then(|peer| peer.parse::<ClusterName>().ok());
        peer.is_some_and(|peer| fabric.contains_key(&peer))
    };
    let fresh = |link: &Value| {
        let mut conditions = link.get("conditions").and_then(Value::as_array).into_iter().flatten();
        let is = |condition: &Value, key: &str, value: &str| condition.get(key).is_some_and(|found| found == value);
        conditions.any(|condition| is(condition, "type", "CatalogFresh") && is(condition, "status", "True"))
    };
    let mut links = links.filter(here).peekable();
    // None at all: it has not read its objects yet. A cluster that has no links costs its fabric the patience once.
    links.peek().is_some() && links.all(fresh)
}

async fn missing(state: &State, fabric: &Fabric) -> Vec<String> {
    let mut missing = Vec::new();
    for declared in fabric.values() {
        let Ok(wanted) = wanted::of(declared, state, Duration::ZERO) else { continue };
        for id in wanted.into_iter().filter(|wanted| wanted.config.is_some()).map(|wanted| wanted.id) {
            if !is_ready(state, &id).await {
                missing.push(id.to_string());
            }
        }
    }
    missing
}

/// The run file appears when a daemon is first ready: before that there is nobody to ask.
async fn is_ready(state: &State, id: &Id) -> bool {
    let Ok(cluster) = state.cluster(&id.cluster) else { return false };
    let Some(run) = admin::run_file(&cluster.run_file(&id.key())) else { return false };
    let page = admin::page(&run.admin, "/ready").await;
    page.is_ok_and(|page| page.get("ready") == Some(&Value::Bool(true)))
}
