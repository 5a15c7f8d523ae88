//! world → plan → what is given out and what is written. Two loops, so that a slow disk never delays a table.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hawser_runtime::clock;
use tokio::sync::watch;

use crate::apply::files::Files;
use crate::discovery::table::{self, Published};
use crate::metrics::Metrics;
use crate::plan::{Plan, plan};
use crate::world::Store;

/// So often what is on disk is read again and repaired.
const THOROUGH: Duration = Duration::from_secs(30);
/// Between two plans: what comes meanwhile is planned together, so that a storm of changes cannot keep a core busy with
/// plans that are out of date when they are made.
const PAUSE: Duration = Duration::from_millis(5);
/// Where a plan is large, so many times what it took: a third of a core at most.
const REST: u32 = 2;
/// But no more than this.
const REST_MAX: Duration = Duration::from_millis(500);
/// After writing failed.
const RETRY: Duration = Duration::from_secs(2);

/// What the planner tells.
#[derive(Debug, Clone)]
pub struct Outputs {
    /// For discovery and the catalog.
    pub published: watch::Sender<Option<Arc<Published>>>,
    /// For the files and the admin pages.
    pub plans: watch::Sender<Option<Arc<Plan>>>,
}

impl Default for Outputs {
    fn default() -> Self {
        Self { published: watch::Sender::new(None), plans: watch::Sender::new(None) }
    }
}

/// Plans whenever the world changes. Runs until dropped.
pub async fn run(store: Store, outputs: Outputs, metrics: Metrics) {
    let mut worlds = store.watch();
    loop {
        let world = worlds.borrow_and_update().clone();
        let began = clock::monotonic();
        if let Some(plan) = plan(&world) {
            let previous = outputs.published.borrow().clone();
            if let Some(next) = table::next(previous.as_deref(), &plan, &world) {
                outputs.published.send_replace(Some(Arc::new(next)));
                metrics.effective(world.changed_at_ms, clock::millis(clock::now()));
            }
            metrics.planned(&world, &plan);
            outputs.plans.send_if_modified(|known| {
                let changed = known.as_deref() != Some(&plan);
                if changed {
                    *known = Some(Arc::new(plan));
                }
                changed
            });
            let took = clock::monotonic().saturating_duration_since(began);
            metrics.plan_took(took);
            tokio::time::sleep((took * REST).clamp(PAUSE, REST_MAX)).await;
        }
        if worlds.changed().await.is_err() {
            return;
        }
    }
}

/// Writes the newest plan. Runs until dropped.
pub async fn write(output: PathBuf, mut plans: watch::Receiver<Option<Arc<Plan>>>) {
    let mut files = Files::new(output);
    let mut thorough = true;
    loop {
        let plan = plans.borrow_and_update().clone();
        let mut wait = THOROUGH;
        if let Some(plan) = plan {
            let written = tokio::task::spawn_blocking(move || {
                let applied = files.apply(&plan, thorough);
                (files, applied)
            });
            let Ok((back, applied)) = written.await else { return };
            files = back;
            match applied {
                Ok(applied) => {
                    for path in &applied.foreign {
                        tracing::warn!(path = %path.display(), hint = "move it away",
                            "a file that is not ours is in the way of a mirror");
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "mirrors and statuses cannot be written; tried again");
                    wait = RETRY;
                }
            }
        }
        thorough = match tokio::time::timeout(wait, plans.changed()).await {
            Ok(Ok(())) => false,
            Ok(Err(_)) => return,
            Err(_) => true,
        };
    }
}
