//! Tells the trust anchor what belongs into the cluster's one audit log: Links, exports and peers' anchors, as they come,
//! change and go.
//!
//! What was told is kept on disk, after the trust anchor has it on its own: a restart tells what has changed meanwhile,
//! and, where it fell between the two, an event twice rather than never.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hawser_tunnel::identity::{self, Door, Status};
use hawser_tunnel::kept::Kept;
use hawser_tunnel::tls::Credentials;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::config::Config;
use crate::plan::Plan;
use crate::plan::record::{Telling, Told, facts, tell};
use crate::world::Store;

/// What was told.
const FILE: &str = "told.json";
/// Changes that follow one another are told together; what holds for less than this may not be told at all.
const PACE: Duration = Duration::from_millis(500);
/// Pauses between tries that failed.
const PAUSE: std::ops::Range<Duration> = Duration::from_millis(100)..Duration::from_secs(5);
/// Events after which what was told is written.
const BATCH: usize = 64;

/// What is recorded, and where.
#[derive(Debug)]
pub struct Recorder {
    /// Directory of what was told.
    directory: PathBuf,
    /// What is known.
    store: Store,
    /// What was made of it.
    plans: watch::Receiver<Option<Arc<Plan>>>,
    /// Who says so.
    credentials: Credentials,
    /// The trust anchor's.
    door: Door,
}

impl Recorder {
    /// Records what these hold.
    pub fn new(
        config: &Config,
        store: &Store,
        plans: watch::Receiver<Option<Arc<Plan>>>,
        credentials: &Credentials,
    ) -> Self {
        let (directory, door) = (config.state.join("record"), Door::new(&config.identity, credentials));
        Self { directory, store: store.clone(), plans, credentials: credentials.clone(), door }
    }

    /// Runs until dropped.
    pub async fn run(mut self) {
        let kept = Kept::open(&self.directory)
            .inspect_err(|error| tracing::error!(%error, "what is on record cannot be kept; a restart tells it again"))
            .ok();
        let mut told = kept.as_ref().map(read).unwrap_or_default();
        let (mut world, mut pause) = (self.store.watch(), PAUSE.start);
        loop {
            let plan = self.plans.borrow_and_update().clone();
            let known = world.borrow_and_update().clone();
            // Without a plan it is not known what holds, least of all that nothing does.
            let tellings = plan.map(|plan| tell(&told, &facts(&known, &plan), &self.reporter())).unwrap_or_default();
            match self.tell(tellings, &mut told, kept.as_ref()).await {
                Ok(()) => {
                    pause = PAUSE.start;
                    let changed = tokio::select! { changed = self.plans.changed() => changed, changed = world.changed() => changed };
                    if changed.is_err() {
                        return;
                    }
                    tokio::time::sleep(PACE).await;
                }
                Err(status) => {
                    tracing::debug!(status = status.message(), "the trust anchor records nothing; tried again");
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                    pause = (pause * 2).min(PAUSE.end);
                }
            }
        }
    }

    fn reporter(&self) -> String {
        self.credentials.identity().map(|identity| identity.id().to_string()).unwrap_or_default()
    }

    async fn tell(&self, tellings: Vec<Telling>, told: &mut Told, kept: Option<&Kept>) -> Result<(), Status> {
        let mut tellings = tellings.into_iter().peekable();
        while tellings.peek().is_some() {
            let batch: Vec<_> = tellings.by_ref().take(BATCH).collect();
            let events = batch.iter().map(|telling| telling.event.clone()).collect();
            let (recorded, ended) = identity::audit(&self.door, events).await;
            for telling in batch.into_iter().take(recorded) {
                match telling.hash {
                    Some(hash) => drop(told.insert(telling.key, hash)),
                    None => drop(told.remove(&telling.key)),
                }
            }
            if let (Some(kept), true) = (kept, recorded > 0) {
                write(kept, told).await;
            }
            ended?;
        }
        Ok(())
    }
}

fn read(kept: &Kept) -> Told {
    let read = kept.read(FILE).inspect_err(|error| tracing::error!(%error, "what is on record is told again"));
    let told = read.ok().flatten().and_then(|value| serde_json::from_value(value.get("told")?.clone()).ok());
    told.unwrap_or_default()
}

async fn write(kept: &Kept, told: &BTreeMap<String, String>) {
    let (kept, content): (Kept, Value) = (kept.clone(), json!({ "told": told }));
    let written = tokio::task::spawn_blocking(move || kept.write(FILE, &content)).await;
    if let Ok(Err(error)) = written {
        tracing::warn!(%error, "what is on record cannot be kept; a restart tells it again");
    }
}
