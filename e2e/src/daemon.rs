//! One daemon of a fabric, as its run file tells of it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::client::{self, Request};
use crate::process;
use crate::wait::within;

/// A running daemon; after a restart the old value stands for a process that is gone.
#[derive(Debug, Clone)]
pub struct Daemon {
    /// The cluster.
    pub cluster: String,
    /// `gateway`, `proxy`, `mirror-controller` or `trust-anchor`.
    pub kind: String,
    /// The name in the Cluster object; empty for kinds of which there is one.
    pub name: String,
    /// Its process id.
    pub pid: i32,
    /// Its admin server.
    pub admin: SocketAddr,
}

impl Daemon {
    /// Reads a run file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("no run file {}", path.display()))?;
        let run: Value = serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?;
        let text = |field: &str| run.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let kind = text("kind");
        let file = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let name = file.strip_prefix(&kind).unwrap_or(file).trim_start_matches('-').to_owned();
        let pid = run.get("pid").and_then(Value::as_i64).and_then(|pid| i32::try_from(pid).ok());
        let cluster = path.parent().and_then(Path::parent).and_then(Path::file_name).and_then(|c| c.to_str());
        Ok(Self {
            cluster: cluster.unwrap_or_default().to_owned(),
            kind,
            name,
            pid: pid.context("the run file has no pid")?,
            admin: text("admin").parse().context("the run file has no admin address")?,
        })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        process::signal(self.pid, signal).with_context(|| format!("{} of {}", self.kind, self.cluster))
    }

    /// kill -9.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL)
    }

    /// SIGTERM: drain.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// SIGSTOP: it hangs, and nobody is told.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Whether the process is there.
    pub fn is_alive(&self) -> bool {
        process::is_alive(self.pid)
    }

    /// An admin page as JSON.
    pub async fn page(&self, path: &str) -> Result<Value> {
        let text = self.text(path).await?;
        serde_json::from_str(&text).with_context(|| format!("{path} of {} is not JSON: {text}", self.kind))
    }

    /// An admin page as text, such as `/metrics`.
    pub async fn text(&self, path: &str) -> Result<String> {
        let answer = client::direct(self.admin, &Request::get(path)).await?;
        if answer.status != 200 {
            bail!("{path} of {} {}: status {}", self.kind, self.name, answer.status);
        }
        Ok(answer.text())
    }

    /// The value of a metric's first sample whose line starts with this text.
    pub async fn metric(&self, sample: &str) -> Result<f64> {
        let text = self.text("/metrics").await?;
        let line = text.lines().find(|line| line.starts_with(sample)).with_context(|| format!("no {sample}"))?;
        Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
    }

    /// Waits until `/ready` says yes.
    pub async fn ready(&self, limit: Duration) -> Result<()> {
        within(limit, &format!("{} {} to be ready", self.kind, self.name), async || self.text("/ready").await).await?;
        Ok(())
    }
}
