//! Finds the daemons of a state directory by their run files and reads their admin pages.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hawser_api::ClusterName;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::http;
use crate::state::State;

/// Admin servers are on this machine: one that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(2);

/// A daemon that runs, or did when its run file was written.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Run {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) pid: u32,
    /// `ip:port` of its admin server.
    pub(crate) admin: String,
    pub(crate) cluster: String,
}

impl Run {
    /// `west/gateway-0`, `west/proxy-web`, as `hawser up` names it.
    pub(crate) fn label(&self) -> String {
        format!("{}/{}", self.cluster, label(&self.kind, &self.name))
    }

    /// One of its pages.
    pub(crate) async fn page(&self, path: &str) -> Result<Value> {
        page(&self.admin, path).await.with_context(|| format!("{} ({})", self.label(), self.admin))
    }
}

/// A process's name for people, within its cluster: `gateway-0`, `proxy-web`, `trust-anchor`.
pub(crate) fn label(kind: &str, name: &str) -> String {
    match name.starts_with(kind) {
        true => name.to_owned(),
        false if name.is_empty() => kind.to_owned(),
        false => format!("{kind}-{name}"),
    }
}

/// A run file's content.
pub(crate) fn run_file(path: &Path) -> Option<Run> {
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

/// The daemons of one cluster, of a kind or of all, in order of name.
pub(crate) fn runs(state: &State, cluster: &ClusterName, kind: Option<&str>) -> Result<Vec<Run>> {
    let directory = state.cluster(cluster)?.run_directory();
    let mut runs: Vec<Run> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "json"))
        .filter_map(|entry| run_file(&entry.path()))
        .filter(|run| kind.is_none_or(|kind| run.kind == kind))
        .collect();
    runs.sort_by(|a, b| (&a.kind, &a.name).cmp(&(&b.kind, &b.name)));
    Ok(runs)
}

/// A JSON page; `/ready` answers 503 with JSON as well, which is an answer.
pub(crate) async fn page(address: &str, path: &str) -> Result<Value> {
    let answer = get(address, path).await?;
    if answer.status == hyper::StatusCode::NOT_FOUND {
        bail!("the daemon has no page {path}");
    }
    Ok(serde_json::from_slice(&answer.body)?)
}

/// A page as it comes.
pub(crate) async fn get(address: &str, path: &str) -> Result<http::Answer> {
    let socket = tokio::time::timeout(DEADLINE, TcpStream::connect(address)).await??;
    http::get(socket, address, path, DEADLINE).await
}
