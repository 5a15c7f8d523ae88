//! Looks each second: at the files (the root's certificates, the intermediate's), at the clock, and at what a running
//! rotation waits for. It compares what it finds with what is in force, so that no change can be missed.

use std::sync::Arc;
use std::time::Duration;

use hawser_runtime::{Process, clock};
use parking_lot::Mutex;

use crate::authority::Authority;
use crate::metrics::Metrics;
use crate::{join, link};

const PERIOD: Duration = Duration::from_secs(1);
/// Rounds from one sweep of the join tokens to the next: ten minutes.
const SWEEP_ROUNDS: u64 = 600;

/// Follows until dropped.
pub(crate) async fn follow(authority: Arc<Authority>, process: Process) {
    let metrics = Arc::new(Mutex::new(Metrics::new(&process)));
    for round in 0_u64.. {
        let (looking, metrics) = (Arc::clone(&authority), Arc::clone(&metrics));
        // Files are read and written, and the disk is waited for.
        let looked = tokio::task::spawn_blocking(move || {
            let now = clock::now();
            let mut driver = looking.driver.lock();
            driver.look(&looking, now);
            metrics.lock().look(&looking, &driver);
            drop(driver);
            if round % SWEEP_ROUNDS == 0
                && let Err(error) = join::sweep(looking.store.directory(), now)
            {
                tracing::warn!(%error, "cannot sweep the join tokens");
            }
            if round % SWEEP_ROUNDS == 0
                && let Err(error) = link::offers::sweep(looking.store.directory(), now)
            {
                tracing::warn!(%error, "cannot sweep the link tokens");
            }
        });
        if let Err(error) = looked.await {
            tracing::error!(%error, "the trust anchor cannot look at its files");
        }
        process.set_ready("bundle", !authority.bundle.borrow().is_empty());
        process.set_ready("intermediate", authority.intermediate.load().is_some());
        tokio::time::sleep(PERIOD).await;
    }
}
