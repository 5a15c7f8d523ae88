//! `hawser up`: a whole fabric, or one cluster of it, on this machine.
//!
//! ```text
//! fabric (YAML) ─▶ wanted (pure) ─▶ fleet ─▶ supervise (one a process) ─▶ child
//!                     ▲                ▲
//!          an edit is seen        control socket
//! ```

pub(crate) mod child;
pub(crate) mod control;
mod fleet;
mod log;
mod ready;
pub(crate) mod screen;
mod stale;
mod supervise;
pub(crate) mod wanted;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hawser_api::ClusterName;
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::fabric::{self, Fabric};
use crate::print;
use crate::state::{State, StateArg};
use crate::trust;

/// How often the Cluster documents are looked at: an edit takes effect within a second.
const LOOK: Duration = Duration::from_millis(500);
/// Requests of the control socket that wait.
const ASKED_MAX: usize = 16;

/// Run a fabric from a directory of YAML: one child process a daemon, restarted when it dies.
///
/// Each folder of DIR whose YAML has a `kind: Cluster` document is a cluster; DIR itself may be one. Edits take effect
/// while it runs. Ctrl-C drains and ends everything; a second Ctrl-C ends it at once.
#[derive(Debug, clap::Args)]
pub(crate) struct Up {
    /// The fabric's directory, such as examples/two-clusters.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Run this cluster only: how a site runs in production.
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
    #[command(flatten)]
    state: StateArg,
    /// Written when every daemon is ready, removed at the end.
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// How long live streams may go on after Ctrl-C or SIGTERM.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    drain: u64,
}

/// Runs until a signal comes.
pub(crate) fn run(args: &Up) -> Result<()> {
    // One thread: children are bound to the life of the thread that started them (prctl(2), PR_SET_PDEATHSIG).
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(up(args))
}

async fn up(args: &Up) -> Result<()> {
    let only = args.cluster.as_ref();
    let fabric = fabric::read(&args.dir, only)?;
    let state = State::create(&args.state.state)?;
    let _locks = lock(&state, &fabric)?;
    for name in fabric.keys() {
        stale::clean(&state.cluster(name)?).await;
    }
    trust::ensure(&state, &fabric, only.is_some())?;
    remove(args.ready_file.as_deref());
    let socket = control::path(&state, only)?;
    remove(Some(&socket));
    let listener = UnixListener::bind(&socket).with_context(|| format!("cannot bind {}", socket.display()))?;
    let mut signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut fleet = fleet::Fleet::new(state.clone(), Duration::from_secs(args.drain));
    let served = serve(args, &state, fabric, &mut fleet, (listener, &mut signals)).await;
    remove(Some(&socket));
    remove(args.ready_file.as_deref());
    print::note("ending; once more to end at once");
    tokio::select! {
        () = fleet.end() => {}
        () = signalled(&mut signals) => fleet.kill().await,
    }
    served
}

/// The time between start and signal.
async fn serve(
    args: &Up,
    state: &State,
    mut fabric: Fabric,
    fleet: &mut fleet::Fleet,
    (listener, signals): (UnixListener, &mut (Signal, Signal)),
) -> Result<()> {
    fleet.apply(&fabric)?;
    let (ask, mut asked) = mpsc::channel(ASKED_MAX);
    let control = control::serve(listener, ask);
    let ready = ready::all(state.clone(), fabric.clone());
    tokio::pin!(control, ready);
    let mut announced = false;
    let mut seen = fabric::fingerprint(&args.dir);
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            () = signalled(signals) => return Ok(()),
            () = &mut control => {}
            () = &mut ready, if !announced => {
                announced = true;
                announce(args, state, &fabric).await?;
            }
            Some(asked) = asked.recv() => fleet.obey(asked),
            _ = look.tick() => {
                let now = fabric::fingerprint(&args.dir);
                if now != seen {
                    seen = now;
                    reread(args, &mut fabric, fleet);
                }
            }
        }
    }
}

async fn announce(args: &Up, state: &State, fabric: &Fabric) -> Result<()> {
    if let Some(path) = &args.ready_file {
        std::fs::write(path, "ready\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    screen::show(state, fabric).await;
    Ok(())
}

/// What was in force stays in force when an edit cannot be read.
fn reread(args: &Up, fabric: &mut Fabric, fleet: &mut fleet::Fleet) {
    match fabric::read(&args.dir, args.cluster.as_ref()) {
        Ok(edited) if edited == *fabric => {}
        Ok(edited) => {
            print::note("the Cluster documents have changed");
            match fleet.apply(&edited) {
                Ok(()) => *fabric = edited,
                Err(error) => print::note(format!("the edit is refused, what was in force stays: {error:#}")),
            }
        }
        Err(error) => print::note(format!("the edit is refused, what was in force stays: {error:#}")),
    }
}

/// One `hawser up` a cluster: two would fight over sockets and ports.
fn lock(state: &State, fabric: &Fabric) -> Result<Vec<File>> {
    let mut locks = Vec::new();
    for name in fabric.keys() {
        let cluster = state.cluster(name)?;
        hawser_runtime::file::private_directory(cluster.path())?;
        let file = File::create(cluster.path().join("up.lock"))?;
        if file.try_lock().is_err() {
            bail!(
                "another `hawser up` runs the cluster {name} on {}\nhint: end it, or give this one its own --state",
                state.path().display()
            );
        }
        locks.push(file);
    }
    Ok(locks)
}

fn remove(path: Option<&Path>) {
    if let Some(path) = path {
        let _ = std::fs::remove_file(path);
    }
}

async fn signalled((terminate, interrupt): &mut (Signal, Signal)) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
