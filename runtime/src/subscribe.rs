//! The mirror controller's tables as a value that changes, with the last known state on disk.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use hawser_api::proto::discovery::{Resource, Role, Status};
use tokio::sync::watch;

/// All resources of one subscriber by key.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// The controller's version; 0: from disk, or nothing yet.
    pub version: u64,
    /// By [`Resource::key`].
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

/// Runs until dropped: first the last known state (if there is one), then the controller's snapshot and deltas, with
/// backoff while it is away; reports `status` whenever it changes. Deltas are applied whole or not at all.
pub async fn run(_subscription: Subscription, _tables: watch::Sender<Arc<Table>>, _status: watch::Receiver<Status>) {
    unimplemented!()
}
