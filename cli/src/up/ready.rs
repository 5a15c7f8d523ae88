//! Waits until every daemon is ready, and says what it waits for.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::wanted::{self, Id};
use crate::fabric::Fabric;
use crate::state::State;
use crate::{admin, print};

const LOOK: Duration = Duration::from_millis(50);
/// A start takes a second or two; after this long a user wants to know.
const PATIENCE: Duration = Duration::from_secs(10);

/// Returns when every daemon of the fabric answers `/ready` with 200.
pub(crate) async fn all(state: State, fabric: Fabric) {
    let mut said = Instant::now();
    loop {
        let missing = missing(&state, &fabric).await;
        if missing.is_empty() {
            return;
        }
        if said.elapsed() > PATIENCE {
            said = Instant::now();
            print::note(format!("still waiting for {}", missing.join(", ")));
        }
        sleep(LOOK).await;
    }
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
