//! A daemon's life: started, ready, draining, gone.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::{self, Pages};
use crate::config::ProcessConfig;
use crate::{clock, log, usage};

/// Worker threads unless `HAWSER_THREADS` says otherwise: a proxy is one of many processes on its machine.
const THREADS: usize = 2;
/// What may still run after `stop` has fired: closing frames, last records.
const AFTER_STOP: Duration = Duration::from_secs(1);

/// What a daemon is handed. Clone freely.
#[derive(Clone)]
pub struct Process {
    /// Fires on SIGTERM or SIGINT: take no new work, let live work end.
    pub drain: CancellationToken,
    /// Fires `drain_seconds` after `drain`, or at a second signal: end now.
    pub stop: CancellationToken,
    /// Live work, such as streams: the process ends when all of it has ended (or `stop` is past).
    pub tasks: TaskTracker,
    background: TaskTracker,
    /// Metrics. Register them with their full names, `hawser_…`.
    pub registry: Arc<Mutex<Registry>>,
    /// JSON pages of the admin server.
    pub pages: Pages,
    ready: watch::Sender<BTreeMap<String, bool>>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process").field("unmet", &self.unmet()).finish_non_exhaustive()
    }
}

impl Process {
    /// A process for tests: no signals, no admin server.
    pub fn detached() -> Self {
        let mut registry = Registry::default();
        usage::register(&mut registry, clock::now());
        Self {
            drain: CancellationToken::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            background: TaskTracker::new(),
            registry: Arc::new(Mutex::new(registry)),
            pages: Pages::default(),
            ready: watch::Sender::new(BTreeMap::new()),
        }
    }

    /// Sets one condition of `/ready`; ready is when every condition that was ever set is true. A daemon names all of
    /// its conditions as false before it sets the first to true, or it counts as ready too early.
    pub fn set_ready(&self, condition: &str, is: bool) {
        self.ready.send_if_modified(|conditions| match conditions.get_mut(condition) {
            Some(known) => std::mem::replace(known, is) != is,
            None => conditions.insert(condition.to_owned(), is).is_none(),
        });
    }

    /// What keeps this process from being ready, in order of name; empty: ready.
    pub fn unmet(&self) -> Vec<String> {
        let conditions = self.ready.borrow();
        let mut unmet: Vec<_> = conditions.iter().filter(|(_, is)| !**is).map(|(name, _)| name.clone()).collect();
        if conditions.is_empty() {
            unmet.push("started".to_owned());
        }
        if self.drain.is_cancelled() {
            unmet.push("draining".to_owned());
        }
        unmet
    }

    /// Waits until the process is ready.
    pub async fn until_ready(&self) {
        let mut conditions = self.ready.subscribe();
        let ready = |conditions: &BTreeMap<String, bool>| !conditions.is_empty() && conditions.values().all(|is| *is);
        // `self` holds the sender: this cannot fail.
        let _ = conditions.wait_for(ready).await;
    }

    /// Runs a task in the background, owned by this process. It ends when `stop` fires, which it does when the daemon
    /// has returned and all of [`Self::tasks`] have ended: a task that runs for ever does not hold up the end.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        self.background.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }
}

/// Runs a daemon: runtime, logs, signals, admin server, run file (written once `daemon` calls are ready), drain.
/// `kind` is `gateway`, `proxy`, …. Returns when the daemon has drained; an error is printed with its remedy by `main`.
pub fn run<F, Fut>(kind: &'static str, config: ProcessConfig, daemon: F) -> anyhow::Result<()>
where
    F: FnOnce(Process) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    log::init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads(std::env::var("HAWSER_THREADS").ok().as_deref()))
        .thread_name(format!("hawser-{kind}"))
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let ended = runtime.block_on(async {
        let process = Process::detached();
        let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let listen = tokio::spawn(signalled(signals, process.clone()));
        let ended = live(kind, &config, process, daemon).await;
        listen.abort();
        ended
    });
    // Blocking work (a file being written) may still be under way; it is not worth waiting for longer.
    runtime.shutdown_timeout(AFTER_STOP);
    ended
}

fn threads(asked: Option<&str>) -> usize {
    asked.and_then(|text| text.parse().ok()).filter(|n| (1..=1024).contains(n)).unwrap_or(THREADS)
}

/// The first signal drains, the second stops.
async fn signalled((mut terminate, mut interrupt): (Signal, Signal), process: Process) {
    for token in [&process.drain, &process.stop] {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        token.cancel();
    }
}

/// From the first bind to the last task.
async fn live<F, Fut>(kind: &str, config: &ProcessConfig, process: Process, daemon: F) -> anyhow::Result<()>
where
    F: FnOnce(Process) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let listener = admin::bind(config.admin).await?;
    let admin_address = listener.local_addr()?;
    let _admin = AbortOnDrop(tokio::spawn(admin::serve(listener, process.clone())));
    let _deadline = AbortOnDrop(tokio::spawn(drain_deadline(process.clone(), config.drain_seconds)));
    let _announce =
        AbortOnDrop(tokio::spawn(announce(process.clone(), kind.to_owned(), config.clone(), admin_address)));
    let ended = tokio::select! {
        ended = daemon(process.clone()) => ended,
        () = past_stop(&process) => Ok(()),
    };
    process.drain.cancel();
    process.tasks.close();
    tokio::select! {
        () = process.tasks.wait() => {}
        () = past_stop(&process) => tracing::warn!(tasks = process.tasks.len(), "ended with work still under way"),
    }
    process.stop.cancel();
    process.background.close();
    let _ = tokio::time::timeout(AFTER_STOP, process.background.wait()).await;
    remove_run_file(&config.run_file);
    ended
}

async fn past_stop(process: &Process) {
    process.stop.cancelled().await;
    tokio::time::sleep(AFTER_STOP).await;
}

async fn drain_deadline(process: Process, seconds: u64) {
    process.drain.cancelled().await;
    tracing::info!(seconds, "draining");
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    process.stop.cancel();
}

/// Writes the run file when the process is ready for the first time.
async fn announce(process: Process, kind: String, config: ProcessConfig, admin: SocketAddr) {
    process.until_ready().await;
    let (cluster, name) = config.name.split_once('/').unwrap_or(("", &config.name));
    let content = serde_json::json!({
        "name": name,
        "kind": kind,
        "pid": std::process::id(),
        "admin": admin.to_string(),
        "cluster": cluster,
        "version": env!("CARGO_PKG_VERSION"),
        "readyAtMs": clock::millis(clock::now()),
    });
    match crate::file::replace_unsynced(&config.run_file, format!("{content:#}\n").as_bytes()) {
        Ok(()) => tracing::info!(%admin, "ready"),
        Err(error) => tracing::error!(%error, path = %config.run_file.display(), "the run file could not be written"),
    }
}

/// Another process may have taken the name meanwhile: only our own file is removed.
fn remove_run_file(path: &Path) {
    let Ok(text) = std::fs::read_to_string(path) else { return };
    let pid = serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|run| run.get("pid")?.as_u64());
    if pid == Some(u64::from(std::process::id())) {
        let _ = std::fs::remove_file(path);
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn config(directory: &Path, drain_seconds: u64) -> ProcessConfig {
        ProcessConfig {
            name: "east/gateway-0".into(),
            admin: "127.0.0.1:0".parse().unwrap(),
            run_file: directory.join("run/gateway-gateway-0.json"),
            drain_seconds,
        }
    }

    async fn run_file(path: &Path) -> serde_json::Value {
        for _ in 0..6000 {
            if let Ok(text) = std::fs::read_to_string(path) {
                return serde_json::from_str(&text).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no run file within 30 s");
    }

    #[tokio::test]
    async fn the_run_file_appears_when_ready_and_goes_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), 5);
        let process = Process::detached();
        let daemon = |process: Process| async move {
            process.set_ready("tables", false);
            process.set_ready("identity", true);
            process.set_ready("tables", true);
            process.drain.cancelled().await;
            Ok(())
        };
        let watcher = async {
            let run = run_file(&config.run_file).await;
            assert_eq!(run["cluster"], "east");
            assert_eq!(run["name"], "gateway-0");
            assert_eq!(run["kind"], "gateway");
            assert_eq!(run["pid"], std::process::id());
            let mut socket = tokio::net::TcpStream::connect(run["admin"].as_str().unwrap()).await.unwrap();
            socket.write_all(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            process.drain.cancel();
        };
        let (ended, ()) = tokio::join!(live("gateway", &config, process.clone(), daemon), watcher);
        ended.unwrap();
        assert!(!config.run_file.exists());
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_does_not_end_is_cut_at_the_drain_deadline() {
        let directory = tempfile::tempdir().unwrap();
        let process = Process::detached();
        let daemon = |process: Process| async move {
            let stop = process.stop.clone();
            process.tasks.spawn(async move { stop.cancelled().await });
            process.drain.cancelled().await;
            Ok(())
        };
        process.drain.cancel();
        let before = tokio::time::Instant::now();
        live("proxy", &config(directory.path(), 30), process, daemon).await.unwrap();
        assert_eq!(before.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn background_work_that_never_ends_does_not_hold_up_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let before = tokio::time::Instant::now();
        let daemon = |process: Process| async move {
            process.spawn(std::future::pending());
            Ok(())
        };
        live("proxy", &config(directory.path(), 30), Process::detached(), daemon).await.unwrap();
        assert_eq!(before.elapsed().as_secs(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_hangs_is_left_behind_after_stop() {
        let directory = tempfile::tempdir().unwrap();
        let process = Process::detached();
        process.stop.cancel();
        live("proxy", &config(directory.path(), 30), process, |_| std::future::pending()).await.unwrap();
    }

    #[tokio::test]
    async fn an_error_of_the_daemon_is_the_error_of_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path(), 0);
        let ended = live("proxy", &config, Process::detached(), |_| async { anyhow::bail!("no identity") }).await;
        assert_eq!(ended.unwrap_err().to_string(), "no identity");
    }

    #[test]
    fn the_number_of_threads_is_bounded() {
        assert_eq!(threads(None), THREADS);
        assert_eq!(threads(Some("1")), 1);
        assert_eq!(threads(Some("0")), THREADS);
        assert_eq!(threads(Some("1000000")), THREADS);
        assert_eq!(threads(Some("many")), THREADS);
    }

    #[tokio::test]
    async fn a_run_file_of_another_process_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("proxy.json");
        std::fs::write(&path, "{\"pid\": 1}").unwrap();
        remove_run_file(&path);
        assert!(path.exists());
    }
}
