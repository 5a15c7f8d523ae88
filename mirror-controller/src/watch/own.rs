//! Follows what the trust anchor publishes: this cluster's own bundle, which each peer gets with its catalog, and the
//! bundles of peers that an operator accepted by hand, which take the place of what is in force.

use std::collections::BTreeSet;
use std::time::Duration;

use hawser_api::ClusterName;
use hawser_api::bundle::{Bundle, DOCUMENT_MAX};
use hawser_api::proto::issuer::{self, AcceptedBundle};
use hawser_tunnel::identity::{self, Door};

use crate::bundles::Bundles;
use crate::world::{PeerState, Source, Store, World};
use tokio::sync::watch;

/// Pauses between tries that failed.
const PAUSE: std::ops::Range<Duration> = Duration::from_millis(100)..Duration::from_secs(5);

/// Runs until dropped: what the trust anchor publishes becomes `document`.
pub async fn run(document: watch::Sender<String>, bundles: Bundles, store: Store, door: Door) {
    let accepted = watch::Sender::new(Vec::new());
    tokio::join!(follow(&document, &accepted, door), accept(accepted.subscribe(), bundles, store));
}

async fn follow(document: &watch::Sender<String>, accepted: &watch::Sender<Vec<AcceptedBundle>>, door: Door) {
    let mut pause = PAUSE.start;
    loop {
        match identity::watch_bundle(&door).await {
            Ok(mut bundles) => {
                while let Ok(Some(published)) = bundles.message().await {
                    pause = PAUSE.start;
                    accepted.send_if_modified(|known| {
                        let changed = *known != published.accepted;
                        known.clone_from(&published.accepted);
                        changed
                    });
                    publish(document, published);
                }
            }
            Err(status) => tracing::debug!(status = status.message(), "cannot watch our own bundle; tried again"),
        }
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(PAUSE.end);
    }
}

/// Each takes its turn once its Link is there; one that was refused is not tried again.
async fn accept(mut accepted: watch::Receiver<Vec<AcceptedBundle>>, bundles: Bundles, store: Store) {
    let mut world = store.watch();
    let mut refused: BTreeSet<(String, String)> = BTreeSet::new();
    loop {
        let all = accepted.borrow_and_update().clone();
        let now = world.borrow_and_update().clone();
        for one in all {
            let key = (one.trust_domain, one.document);
            let Some(peer) = newer(&now, &key).filter(|_| !refused.contains(&key)) else { continue };
            match bundles.offer(&peer, Source::Accepted, &key.1).await {
                Ok(_) => tracing::warn!(cluster = %peer, "a bundle that was accepted by hand is in force"),
                Err(refusal) => {
                    tracing::error!(cluster = %peer, "a bundle that was accepted by hand is not taken: {}", refusal.message);
                    refused.insert(key);
                }
            }
        }
        let changed = tokio::select! { changed = accepted.changed() => changed, changed = world.changed() => changed };
        if changed.is_err() {
            return;
        }
    }
}

/// The peer whose anchors these are, if they are newer than what is in force for it.
fn newer(world: &World, (domain, document): &(String, String)) -> Option<ClusterName> {
    let sequence = Bundle::parse(document).ok()?.sequence;
    let older = |peer: &PeerState| {
        peer.bundle.as_ref().is_some_and(|known| known.domain.as_str() == domain && known.bundle.sequence < sequence)
    };
    world.peers.iter().find(|(_, peer)| older(peer)).map(|(name, _)| name.clone())
}

/// What peers would refuse is not sent to them.
fn publish(document: &watch::Sender<String>, published: issuer::Bundle) {
    if let Err(error) = Bundle::parse(&published.document) {
        return tracing::warn!(%error, limit = DOCUMENT_MAX, "the trust anchor published something else");
    }
    document.send_if_modified(|known| {
        let changed = *known != published.document;
        *known = published.document;
        changed
    });
}
