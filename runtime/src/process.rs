//! A daemon's life: started, ready, draining, gone.

use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Pages;
use crate::config::ProcessConfig;

/// What a daemon is handed. Clone freely.
#[derive(Clone)]
pub struct Process {
    /// Fires on SIGTERM or SIGINT: take no new work, let live work end.
    pub drain: CancellationToken,
    /// Fires `drain_seconds` after `drain`: end now.
    pub stop: CancellationToken,
    /// Every task of the daemon; the process ends when all have ended (or `stop` is past).
    pub tasks: TaskTracker,
    /// Metrics, all named `hawser_…`.
    pub registry: Arc<Mutex<Registry>>,
    /// JSON pages of the admin server.
    pub pages: Pages,
    ready: Arc<Mutex<std::collections::BTreeMap<String, bool>>>,
}

impl Process {
    /// A process for tests: no signals, no admin server.
    pub fn detached() -> Self {
        unimplemented!()
    }

    /// Sets one condition of `/ready`; ready is when every condition that was ever set is true.
    pub fn set_ready(&self, _condition: &str, _is: bool) {
        let _ = &self.ready;
        unimplemented!()
    }

    /// Runs a task that ends when `stop` fires, owned by this process.
    pub fn spawn<F>(&self, _task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        unimplemented!()
    }
}

/// Runs a daemon: runtime, logs, signals, admin server, run file (written once `daemon` calls are ready), drain.
/// `kind` is `gateway`, `proxy`, …. Returns when the daemon has drained; an error is printed with its remedy by `main`.
pub fn run<F, Fut>(_kind: &'static str, _config: ProcessConfig, _daemon: F) -> anyhow::Result<()>
where
    F: FnOnce(Process) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    unimplemented!()
}
