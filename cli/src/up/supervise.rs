//! Keeps one process running: started, watched, started again when it dies, ended when that is wished.

use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result};
use hawser_runtime::{clock, file};
use hawser_tunnel::identity;
use rustix::process::Signal;
use serde::Serialize;
use tokio::process::Child;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::child;
use super::log::Log;
use super::wanted::{Join, Wanted};
use crate::admin;
use crate::state::State;

/// First and longest pause before another start.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Whoever lived this long is started again as if for the first time.
const SETTLED: Duration = Duration::from_secs(10);
/// After its own drain deadline a process has this long to end before it is killed.
const AFTER_DRAIN: Duration = Duration::from_secs(3);
/// A daemon that has not been ready for this long may have lost the answer to its join token.
const JOINED: Duration = Duration::from_secs(5);
/// Last words: what a process has written may still be in the pipe when it has ended.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What is wished of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// That it runs.
    Run,
    /// That it ends in its own time (SIGTERM) and stays away.
    Stop,
    /// That it ends at once (SIGKILL) and stays away.
    Kill,
}

/// Where a process stands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Standing {
    /// Its process id while it runs.
    pub(crate) pid: Option<u32>,
    /// How often it was started again after it died.
    pub(crate) restarts: u32,
    /// How it ended last, if it did.
    pub(crate) last_exit: String,
}

/// One process and what it needs.
pub(crate) struct Supervised {
    pub(crate) wanted: Wanted,
    pub(crate) state: State,
    pub(crate) log: Log,
    pub(crate) drain: Duration,
}

/// How one life of a process ended.
enum End {
    Died(ExitStatus),
    Wished,
}

impl Supervised {
    /// Runs until the wish's sender is gone and the process has ended.
    pub(crate) async fn run(self, mut wish: watch::Receiver<Wish>, standing: watch::Sender<Standing>) {
        let mut pause = BACKOFF.0;
        loop {
            if wish.wait_for(|wish| *wish == Wish::Run).await.is_err() {
                return;
            }
            let started = Instant::now();
            match self.live(&mut wish, &standing).await {
                Ok(End::Wished) => {
                    pause = BACKOFF.0;
                    continue;
                }
                Ok(End::Died(status)) => self.died(&standing, status),
                Err(error) => self.log.note(&format!("cannot be started: {error:#}")),
            }
            if started.elapsed() > SETTLED {
                pause = BACKOFF.0;
            }
            standing.send_modify(|standing| standing.restarts += 1);
            self.log.note(&format!("starting again in {} ms", pause.as_millis()));
            tokio::select! {
                () = sleep(pause) => {}
                // Stopped while it was away: there is nothing to wait for.
                _ = wish.wait_for(|wish| *wish != Wish::Run) => {}
            }
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    fn died(&self, standing: &watch::Sender<Standing>, status: ExitStatus) {
        self.log.note(&format!("ended: {status}"));
        standing.send_modify(|standing| standing.last_exit = status.to_string());
    }

    /// One life, from the join token to the last line of output.
    async fn live(&self, wish: &mut watch::Receiver<Wish>, standing: &watch::Sender<Standing>) -> Result<End> {
        self.prepare()?;
        let mut child = child::command(&self.wanted.command).spawn().context("cannot start a child process")?;
        let pid = child.id();
        standing.send_modify(|standing| standing.pid = pid);
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let output = async {
            tokio::join!(child::lines(out, |line| self.log.line(line)), child::lines(err, |line| self.log.line(line)));
        };
        tokio::pin!(output);
        let end = tokio::select! {
            end = self.until_end(&mut child, wish) => {
                let _ = timeout(LAST_WORDS, output).await;
                end
            }
            // Output that is closed is not the end of a process.
            () = &mut output => self.until_end(&mut child, wish).await,
            () = self.keep_joinable(pid) => Ok(End::Wished),
        };
        standing.send_modify(|standing| standing.pid = None);
        // Its end and our wish for it may come together.
        if *wish.borrow() == Wish::Run { end } else { end.map(|_| End::Wished) }
    }

    fn prepare(&self) -> Result<()> {
        if let Some((path, config)) = &self.wanted.config {
            let text = serde_saphyr::to_string(config)?;
            file::replace_unsynced(path, text.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        self.hand_out_token()
    }

    fn hand_out_token(&self) -> Result<()> {
        let Some(Join { identity, token: path, .. }) = &self.wanted.join else { return Ok(()) };
        let store = self.state.cluster(&self.wanted.id.cluster)?.trust_anchor();
        let token = crate::trust::register(&store, identity)?;
        file::replace_unsynced(path, token.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }

    /// A token joins once: if the answer was lost on its way to the daemon, only another one helps. So it does where a
    /// certificate is over: the machine slept, or its clock was behind and has been put right. Never ends.
    async fn keep_joinable(&self, pid: Option<u32>) {
        loop {
            sleep(JOINED).await;
            let cluster = self.state.cluster(&self.wanted.id.cluster).ok();
            let run = cluster.and_then(|cluster| admin::run_file(&cluster.run_file(&self.wanted.id.key())));
            // It has been ready, so it has an identity, and renews it by that as long as it holds.
            if run.map(|run| run.pid) == pid && !self.is_over() {
                continue;
            }
            if let Err(error) = self.hand_out_token() {
                self.log.note(&format!("no join token: {error:#}"));
            }
        }
    }

    fn is_over(&self) -> bool {
        let until = self.wanted.join.as_ref().and_then(|join| identity::kept_until(&join.store));
        until.is_some_and(|until| until <= clock::now())
    }

    async fn until_end(&self, child: &mut Child, wish: &mut watch::Receiver<Wish>) -> Result<End> {
        let not_run = async {
            // No sender: the supervisor itself ends.
            wish.wait_for(|wish| *wish != Wish::Run).await.map_or(Wish::Stop, |wish| *wish)
        };
        let wished = tokio::select! {
            status = child.wait() => return Ok(End::Died(status?)),
            wished = not_run => wished,
        };
        let (signal, patience) = match wished {
            Wish::Kill => (Signal::KILL, AFTER_DRAIN),
            _ => (Signal::TERM, self.drain + AFTER_DRAIN),
        };
        if let Some(pid) = child.id() {
            child::signal(pid, signal);
        }
        let deadline = Instant::now() + patience;
        let killed = async {
            let kill = wish.wait_for(|wish| *wish == Wish::Kill);
            tokio::select! { () = sleep_until(deadline) => {}, _ = kill => {} }
        };
        let ended = tokio::select! { status = child.wait() => Some(status?), () = killed => None };
        if ended.is_none() {
            child.kill().await?;
        }
        Ok(End::Wished)
    }
}
