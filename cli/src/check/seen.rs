//! What a check looks at: run files, processes and pages of one cluster.

use std::path::Path;
use std::time::UNIX_EPOCH;

use anyhow::Result;
use hawser_api::ClusterName;
use hawser_runtime::clock;
use serde_json::Value;

use crate::admin::{self, Run};
use crate::get::{self, Resource};
use crate::state::State;
use crate::up::wanted::Kind;

/// One daemon that is configured.
#[derive(Debug, Clone)]
pub(crate) struct Daemon {
    /// Its name for people, `gateway-0`.
    pub(crate) label: String,
    /// Its process is there.
    pub(crate) alive: bool,
    /// Its `/ready` page, or why there is none.
    pub(crate) ready: Result<Value, String>,
}

/// One cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) cluster: String,
    /// Seconds since the epoch.
    pub(crate) now: f64,
    pub(crate) daemons: Vec<Daemon>,
    pub(crate) links: Vec<Value>,
    pub(crate) exports: Vec<Value>,
    pub(crate) mirrors: Vec<Value>,
    pub(crate) listeners: Vec<Value>,
    pub(crate) identities: Vec<Value>,
    /// The mirror controller's `/objects`.
    pub(crate) objects: Value,
    /// The mirror controller's `/trust`: what every validator has in memory.
    pub(crate) trust: Value,
}

/// Looks at one cluster.
pub(crate) async fn look(state: &State, cluster: &ClusterName) -> Result<Seen> {
    let here = state.cluster(cluster)?;
    let mut daemons = Vec::new();
    for key in configured(&here.config_directory()) {
        daemons.push(daemon(label(&key), admin::run_file(&here.run_file(&key))).await);
    }
    let (mut objects, mut trust) = (Value::Null, Value::Null);
    if let Some(run) = admin::runs(state, cluster, Some("mirror-controller"))?.first() {
        objects = run.page("/objects").await.unwrap_or_default();
        trust = run.page("/trust").await.unwrap_or_default();
    }
    let now = clock::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Ok(Seen {
        cluster: cluster.to_string(),
        now,
        daemons,
        links: get::collect(state, cluster, Resource::Links).await?,
        exports: get::collect(state, cluster, Resource::Exports).await?,
        mirrors: get::collect(state, cluster, Resource::Mirrors).await?,
        listeners: get::collect(state, cluster, Resource::Listeners).await?,
        identities: get::collect(state, cluster, Resource::Identities).await?,
        objects,
        trust,
    })
}

/// The daemons that `hawser up` has rendered a configuration for.
fn configured(directory: &Path) -> Vec<String> {
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut keys: Vec<String> =
        files.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".yaml").map(str::to_owned)).collect();
    keys.retain(|key| !key.starts_with('.'));
    keys.sort();
    keys
}

/// `gateway-gateway-0` is the gateway `gateway-0`.
fn label(key: &str) -> String {
    let kinds = [Kind::TrustAnchor, Kind::MirrorController, Kind::Gateway, Kind::Proxy].map(Kind::as_str);
    let split = kinds.into_iter().find_map(|kind| Some((kind, key.strip_prefix(kind)?.trim_start_matches('-'))));
    split.map_or_else(|| key.to_owned(), |(kind, name)| admin::label(kind, name))
}

async fn daemon(label: String, run: Option<Run>) -> Daemon {
    let Some(run) = run else {
        return Daemon { label, alive: false, ready: Err("it has never been ready, or has ended".to_owned()) };
    };
    let alive = Path::new(&format!("/proc/{}", run.pid)).exists();
    let ready = run.page("/ready").await.map_err(|error| format!("{error:#}"));
    Daemon { label, alive, ready }
}
