//! Tells the trust anchor who has loaded what: own validators, and peers' acknowledgements. Rotation rests on it.

use std::time::Duration;

use futures_util::Stream;
use hawser_api::proto::issuer::FabricReport;
use hawser_tunnel::identity::{self, Door};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::fabric::{Changes, Fabric};
use crate::plan::proof;
use crate::world::{Store, World};

/// From one report to the next.
const PACE: Duration = Duration::from_millis(200);
/// What the trust anchor knows is no older than this.
const REPEAT: Duration = Duration::from_secs(2);
/// Pauses between tries that failed.
const PAUSE: std::ops::Range<Duration> = Duration::from_millis(100)..Duration::from_secs(3);

/// Runs until dropped.
pub async fn report(fabric: Fabric, store: Store, door: Door) {
    let mut pause = PAUSE.start;
    loop {
        let begun = Instant::now();
        let ended = identity::report_fabric(&door, reports(fabric.clone(), store.clone())).await;
        if begun.elapsed() > PAUSE.end {
            pause = PAUSE.start;
        }
        if let Err(status) = ended {
            tracing::debug!(status = status.message(), "the trust anchor takes no reports; tried again");
        }
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(PAUSE.end);
    }
}

struct Source {
    fabric: Fabric,
    store: Store,
    changes: Changes,
    world: watch::Receiver<std::sync::Arc<World>>,
    told: bool,
}

fn reports(fabric: Fabric, store: Store) -> impl Stream<Item = FabricReport> + Send + 'static {
    let (changes, world) = (fabric.changes(), store.watch());
    let source = Source { fabric, store, changes, world, told: false };
    futures_util::stream::unfold(source, |mut source| async move {
        loop {
            if source.told {
                source.stirred().await?;
            }
            source.changes.mark_unchanged();
            source.world.mark_unchanged();
            source.told = true;
            let (world, own) = (source.store.now(), source.fabric.own());
            if let Some(report) = proof::report(&world, &source.fabric.known(), own, crate::now_ms()) {
                return Some((report, source));
            }
        }
    })
}

impl Source {
    /// Something may have changed, or it is time to say it again.
    async fn stirred(&mut self) -> Option<()> {
        let again = tokio::time::sleep(REPEAT);
        tokio::select! {
            changed = self.world.changed() => changed.ok()?,
            () = self.changes.changed() => {}
            () = again => {}
        }
        tokio::time::sleep(PACE).await;
        Some(())
    }
}
