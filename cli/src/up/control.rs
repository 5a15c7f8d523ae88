//! The control socket of a running `hawser up`: one JSON request a line, one JSON answer a line.
//!
//! ```text
//! {"op":"status"}
//! {"op":"stop","cluster":"east"}                          SIGTERM, and it stays away
//! {"op":"kill","cluster":"east","process":"gateway-0"}    SIGKILL, and it stays away
//! {"op":"start","cluster":"east"}
//! ```
//! The socket lies in the state directory, which is its owner's alone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hawser_api::ClusterName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::supervise::Standing;
use crate::state::State;

/// Longest request.
const REQUEST_MAX: u64 = 4096;
/// For a whole exchange, at both ends.
const DEADLINE: Duration = Duration::from_secs(5);
/// Connections at one time.
const CONNECTIONS_MAX: usize = 16;

/// What is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Request {
    pub(crate) op: Operation,
    /// Absent: every cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cluster: Option<ClusterName>,
    /// As the log names it (`gateway-0`, `proxy-web`); absent: every process of the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) process: Option<String>,
}

/// What is to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Operation {
    /// Nothing: only tell.
    Status,
    /// End with SIGTERM and stay away.
    Stop,
    /// End with SIGKILL and stay away.
    Kill,
    /// Run again.
    Start,
}

/// What is answered.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Reply {
    /// Why nothing was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    /// The processes that were meant, as they stand.
    #[serde(default)]
    pub(crate) processes: Vec<ProcessLine>,
}

/// One process.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProcessLine {
    pub(crate) cluster: String,
    pub(crate) process: String,
    pub(crate) kind: String,
    /// `running`, `starting` or `stopped`.
    pub(crate) state: String,
    pub(crate) pid: Option<u32>,
    pub(crate) restarts: u32,
    pub(crate) last_exit: String,
}

impl ProcessLine {
    /// From what the supervisor knows.
    pub(crate) fn new(id: &super::wanted::Id, wished: bool, standing: &Standing) -> Self {
        let state = match (standing.pid, wished) {
            (Some(_), _) => "running",
            (None, true) => "starting",
            (None, false) => "stopped",
        };
        Self {
            cluster: id.cluster.to_string(),
            process: id.label(),
            kind: id.kind.as_str().to_owned(),
            state: state.to_owned(),
            pid: standing.pid,
            restarts: standing.restarts,
            last_exit: standing.last_exit.clone(),
        }
    }
}

/// A request and where its answer goes.
pub(crate) type Asked = (Request, oneshot::Sender<Reply>);

/// Where the socket of a run lies: of the whole fabric, or of one cluster that runs alone.
pub(crate) fn path(state: &State, only: Option<&ClusterName>) -> Result<PathBuf> {
    Ok(match only {
        None => state.path().join("up.sock"),
        Some(cluster) => state.cluster(cluster)?.path().join("up.sock"),
    })
}

/// Serves until dropped.
pub(crate) async fn serve(listener: UnixListener, ask: mpsc::Sender<Asked>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                if let Ok((socket, _)) = accepted {
                    connections.spawn(tokio::time::timeout(DEADLINE, exchange(socket, ask.clone())));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn exchange(socket: UnixStream, ask: mpsc::Sender<Asked>) -> Result<()> {
    let (read, mut write) = socket.into_split();
    let mut line = String::new();
    BufReader::new(read.take(REQUEST_MAX)).read_line(&mut line).await?;
    let reply = match serde_json::from_str::<Request>(&line) {
        Err(error) => Reply { error: Some(format!("not a request: {error}")), ..Reply::default() },
        Ok(request) => {
            let (sender, receiver) = oneshot::channel();
            ask.send((request, sender)).await?;
            receiver.await?
        }
    };
    let mut text = serde_json::to_string(&reply)?;
    text.push('\n');
    write.write_all(text.as_bytes()).await?;
    Ok(())
}

/// Asks the `hawser up` that runs on this state.
pub(crate) async fn ask(state: &State, request: &Request) -> Result<Reply> {
    let whole = path(state, None)?;
    let alone = request.cluster.as_ref().map(|cluster| path(state, Some(cluster))).transpose()?;
    let socket = [Some(whole), alone].into_iter().flatten().find(|path| path.exists());
    let Some(socket) = socket else {
        bail!("no `hawser up` runs on {}\nhint: start one, or name its directory with --state", state.path().display());
    };
    tokio::time::timeout(DEADLINE, converse(&socket, request)).await.context("`hawser up` does not answer")?
}

async fn converse(socket: &Path, request: &Request) -> Result<Reply> {
    let connected = UnixStream::connect(socket).await;
    let mut socket = connected.with_context(|| format!("cannot reach `hawser up` at {}", socket.display()))?;
    let mut text = serde_json::to_string(request)?;
    text.push('\n');
    socket.write_all(text.as_bytes()).await?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await?;
    let reply: Reply = serde_json::from_str(&answer)?;
    match reply.error {
        Some(error) => bail!(error),
        None => Ok(reply),
    }
}
