//! The user's objects as a Kubernetes API server keeps them, one watch a kind.
//!
//! ```text
//! stream  one watch: lists, follows, comes back ─▶ read  an object's reduced form, checked as a file's is
//!                                                   └─▶ fill  (pure) what is known of all kinds ─▶ world::Objects
//! ```
//!
//! What this process made itself goes another way: it is not the user's, and is kept for `apply` to compare with.

pub mod fill;
pub mod kind;
pub mod read;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use hawser_runtime::{Process, clock};
use kube::Client;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::metrics::Metrics;
use crate::world::Store;
use fill::{Effect, Fill};
use kind::Kind;

/// What is heard within this time goes into one snapshot.
const QUIET: Duration = Duration::from_millis(10);
/// A snapshot of very many objects costs time to make: between two of them passes this many times what the last one took,
/// so that a storm of changes takes a quarter of a core at most.
const REST: u32 = 3;
/// But no more than this.
const REST_MAX: Duration = Duration::from_millis(250);

/// What is known, shared by the watches, the world and `apply`. Clone to share.
#[derive(Clone)]
pub struct Known(Arc<Shared>);

struct Shared {
    fill: Mutex<Fill>,
    for_world: Notify,
    for_apply: watch::Sender<()>,
}

impl Known {
    /// Nothing is known yet.
    pub fn new(fill: Fill) -> Self {
        Self(Arc::new(Shared { fill: Mutex::new(fill), for_world: Notify::new(), for_apply: watch::Sender::new(()) }))
    }

    /// Changes it, and tells those whom it concerns.
    pub fn change(&self, change: impl FnOnce(&mut Fill) -> Effect) {
        let effect = change(&mut self.0.fill.lock());
        if effect.world {
            self.0.for_world.notify_one();
        }
        if effect.made {
            self.0.for_apply.send_replace(());
        }
    }

    /// Looks at it.
    pub fn look<T>(&self, look: impl FnOnce(&Fill) -> T) -> T {
        look(&self.0.fill.lock())
    }

    /// Changes when something changes that `apply` compares with.
    pub fn stirred(&self) -> watch::Receiver<()> {
        self.0.for_apply.subscribe()
    }
}

/// Watches until dropped.
pub async fn run(client: Client, known: Known, (store, metrics): (Store, Metrics), process: Process) {
    let world = store.now();
    let own = (world.cluster.clone(), world.domain.clone());
    let watches = Kind::ALL.into_iter().map(|kind| stream::run(client.clone(), kind, known.clone(), own.clone()));
    tokio::join!(join_all(watches), publish(&known, &store, &metrics, &process));
}

/// Makes snapshots of what is known.
async fn publish(known: &Known, store: &Store, metrics: &Metrics, process: &Process) {
    loop {
        let standing = known.look(Fill::standing);
        tell(process, metrics, &standing);

        known.0.for_world.notified().await;
        let heard_at = clock::millis(clock::now());
        tokio::time::sleep(QUIET).await;
        let began = tokio::time::Instant::now();
        if let Some(objects) = known.look(Fill::objects) {
            metrics.reloaded(objects.problems.len());
            store.update(heard_at, |world| {
                world.objects = Some(Arc::new(objects));
                true
            });
        }
        tokio::time::sleep((began.elapsed() * REST).min(REST_MAX)).await;
    }
}

/// A kind without which nothing may be concluded keeps the process from being ready, under a condition that names it.
fn tell(process: &Process, metrics: &Metrics, standing: &[(Kind, fill::Standing)]) {
    for (kind, standing) in standing {
        let readable = standing.listed && standing.trouble.is_none();
        metrics.watched(kind.plural(), readable);
        process.set_ready(&format!("watch-{}", kind.plural()), standing.settled(*kind));
    }
}
