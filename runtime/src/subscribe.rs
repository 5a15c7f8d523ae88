//! The mirror controller's tables as a value that changes, with the last known state on disk.
//!
//! ```text
//! last known file ─▶ table ─▶ watch ─▶ the daemon
//!                      ▲        └────▶ last known file (at most once a second)
//! Unix socket ─▶ update ┘ merged whole or not at all
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use hawser_api::proto::discovery::discovery_client::DiscoveryClient;
use hawser_api::proto::discovery::{Resource, Role, Status, Update, WatchRequest};
use hyper_util::rt::TokioIo;
use rand::RngExt;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::last_known;

/// First and longest pause between attempts to reach the controller. It is on this machine: seconds are long.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// Connecting, and the first answer after it.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// HTTP/2 pings to the controller: one that is stopped, and so keeps its socket open, is noticed within both.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(3));
/// Largest update: some 100,000 services at 500 bytes. The controller is our own; this bounds a mistake of ours.
const UPDATE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Resources in a table, for the same reason.
const RESOURCES_MAX: usize = 200_000;
/// What has not changed is said again after this long.
const REPORT_AGAIN: Duration = Duration::from_secs(3);
/// Statuses that change faster are reported together.
const REPORT_PAUSE: Duration = Duration::from_millis(100);

/// All resources of one subscriber by key.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// The controller's version; 0: from disk, or nothing yet.
    pub version: u64,
    /// By [`Resource::key`]. A resource that an update did not change keeps its `Arc`.
    pub resources: BTreeMap<String, Arc<Resource>>,
}

/// What to subscribe to.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// The mirror controller's Unix socket.
    pub socket: PathBuf,
    /// File for the last known state.
    pub last_known: PathBuf,
    /// As proxy or gateway.
    pub role: Role,
    /// This process's name in the Cluster object.
    pub name: String,
}

/// Why an update was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// A delta came before any snapshot of this connection.
    #[error("a delta came before the snapshot")]
    NoSnapshot,
    /// The delta is not newer than what is there.
    #[error("version {got} is not newer than {have}")]
    Old {
        /// What the table has.
        have: u64,
        /// What came.
        got: u64,
    },
    /// A resource has no key, or no content.
    #[error("resource {0:?} has no key or no content")]
    Empty(String),
    /// Too many resources.
    #[error("more than {RESOURCES_MAX} resources")]
    TooMany,
}

/// Runs until dropped: first the last known state (if there is one), then the controller's snapshot and deltas, with
/// backoff while it is away; reports `status` whenever it changes. Deltas are applied whole or not at all.
pub async fn run(subscription: Subscription, tables: watch::Sender<Arc<Table>>, status: watch::Receiver<Status>) {
    if let Some(table) = last_known::load(&subscription.last_known) {
        tracing::info!(resources = table.resources.len(), "serving the last known tables");
        tables.send_replace(Arc::new(table));
    }
    let keep = last_known::keep(subscription.last_known.clone(), tables.subscribe());
    tokio::join!(keep, follow(&subscription, &tables, &status));
}

async fn follow(subscription: &Subscription, tables: &watch::Sender<Arc<Table>>, status: &watch::Receiver<Status>) {
    let (first, longest) = BACKOFF;
    let mut pause = first;
    loop {
        let mut served = false;
        let why = match session(subscription, tables, status, &mut served).await {
            Ok(()) => "the stream ended".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if served {
            pause = first;
            tracing::warn!("lost the mirror controller: {why}; the tables in force stay in force");
        } else {
            tracing::debug!("no mirror controller at {}: {why}", subscription.socket.display());
        }
        let jitter = rand::rng().random_range(0.5..1.0);
        tokio::time::sleep(pause.mul_f64(jitter)).await;
        pause = (pause * 2).min(longest);
    }
}

/// One connection to the controller, until it breaks. `served` is set when a snapshot has arrived.
async fn session(
    subscription: &Subscription,
    tables: &watch::Sender<Arc<Table>>,
    status: &watch::Receiver<Status>,
    served: &mut bool,
) -> anyhow::Result<()> {
    let channel = tokio::time::timeout(CONNECT_DEADLINE, connect(subscription.socket.clone())).await??;
    let mut client = DiscoveryClient::new(channel.clone()).max_decoding_message_size(UPDATE_BYTES_MAX);
    let request = WatchRequest { role: subscription.role.into(), name: subscription.name.clone() };
    let mut updates = tokio::time::timeout(CONNECT_DEADLINE, client.watch(request)).await??.into_inner();
    let watch = async {
        while let Some(update) = updates.message().await? {
            // The controller that is gone may have counted further than its successor.
            let have = if *served { Some(tables.borrow().clone()) } else { None };
            let before = tables.borrow().clone();
            let table = merge(have.as_deref(), &before, update)?;
            *served = true;
            tables.send_replace(Arc::new(table));
        }
        anyhow::Ok(())
    };
    tokio::select! {
        ended = watch => ended,
        () = report(channel, status.clone()) => Ok(()),
    }
}

async fn connect(socket: PathBuf) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The address is never looked up: the connector has its own.
    Endpoint::from_static("http://mirror-controller")
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
}

/// Reports for as long as the connection lives. A controller that takes no reports serves tables all the same.
async fn report(channel: Channel, status: watch::Receiver<Status>) {
    let reported = DiscoveryClient::new(channel).report(statuses(status)).await;
    if let Err(error) = reported {
        tracing::debug!(%error, "the mirror controller takes no reports");
    }
    // The end of the watch decides on the end of the connection.
    std::future::pending().await
}

fn statuses(status: watch::Receiver<Status>) -> impl Stream<Item = Status> {
    futures_util::stream::unfold((status, true), |(mut status, first)| async move {
        if !first {
            // Else nothing is new: said again, so that the controller knows that it still holds.
            if let Ok(changed) = tokio::time::timeout(REPORT_AGAIN, status.changed()).await {
                // No sender: the daemon is ending.
                changed.ok()?;
                tokio::time::sleep(REPORT_PAUSE).await;
            }
        }
        let now = status.borrow_and_update().clone();
        Some((now, (status, false)))
    })
}

/// The table after an update, or why the update is not taken. `have` is the table that this connection has built so
/// far; `before` is what is in force, whose unchanged resources are shared.
pub fn merge(have: Option<&Table>, before: &Table, update: Update) -> Result<Table, MergeError> {
    let mut resources = match (update.snapshot, have) {
        (true, _) => BTreeMap::new(),
        (false, None) => return Err(MergeError::NoSnapshot),
        (false, Some(have)) if update.version <= have.version => {
            return Err(MergeError::Old { have: have.version, got: update.version });
        }
        (false, Some(have)) => have.resources.clone(),
    };
    for key in &update.removed {
        resources.remove(key);
    }
    for resource in update.changed {
        if resource.key.is_empty() || resource.kind.is_none() {
            return Err(MergeError::Empty(resource.key));
        }
        let known = before.resources.get(&resource.key).filter(|known| ***known == resource);
        let shared = known.cloned().unwrap_or_else(|| Arc::new(resource));
        resources.insert(shared.key.clone(), shared);
    }
    if resources.len() > RESOURCES_MAX {
        return Err(MergeError::TooMany);
    }
    Ok(Table { version: update.version, resources })
}

#[cfg(test)]
#[path = "subscribe_tests.rs"]
mod tests;
