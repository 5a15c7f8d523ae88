//! Probes each gateway of a link once a second.

use std::time::Duration;

use futures_util::future::join_all;
use hawser_api::objects::Link;
use hawser_api::{ClusterName, Namespace};
use hawser_runtime::clock;
use hawser_tunnel::pool::{Dialer, GatewayPath, Probe};

use crate::metrics::Metrics;
use crate::world::{GatewayState, Store};

/// From one probe that was answered to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// A probe without an answer for this long is a miss: many round trips round the earth.
const DEADLINE: Duration = Duration::from_millis(700);
/// One miss may be bad luck; the second follows at once.
const MISSES: u32 = 2;
/// A round trip is told anew when it differs from what was told by more than this and by more than a half.
const NOTABLE_US: u64 = 500;

/// The ways to a link's gateways.
pub fn paths(cluster: &ClusterName, link: &Link) -> Vec<GatewayPath> {
    let path = |gateway: &hawser_api::objects::link::LinkGateway| GatewayPath {
        cluster: cluster.clone(),
        gateway: gateway.name.clone(),
        address: gateway.address,
        trust_domain: link.spec.trust_domain.clone(),
        transport: link.spec.transport,
    };
    link.spec.gateways.iter().map(path).collect()
}

/// Runs until dropped.
pub async fn run(paths: Vec<GatewayPath>, dialer: Dialer, store: Store, metrics: Metrics) {
    join_all(paths.into_iter().map(|path| one(path, dialer.clone(), store.clone(), metrics.clone()))).await;
}

async fn one(path: GatewayPath, dialer: Dialer, store: Store, metrics: Metrics) {
    let mut misses = 0;
    loop {
        let started = tokio::time::sleep(INTERVAL);
        let answer = tokio::time::timeout(DEADLINE, dialer.probe(&path)).await;
        match answer {
            Ok(Ok(probe)) => {
                misses = 0;
                metrics.gateway(&path, true, Some(probe.round_trip));
                alive(&path, &store, &probe);
                started.await;
            }
            // A gateway that refuses is there; who is not let in by it has another trouble, which the catalog tells.
            Ok(Err(_)) | Err(_) => {
                misses += 1;
                if misses >= MISSES {
                    metrics.gateway(&path, false, None);
                    dead(&path, &store);
                    started.await;
                } else {
                    // A connection refused at once would else make two misses of one moment.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

fn alive(path: &GatewayPath, store: &Store, probe: &Probe) {
    let round_trip_us = u64::try_from(probe.round_trip.as_micros()).unwrap_or(u64::MAX);
    let transport = probe.transport.as_str();
    change(path, store, |known| {
        let differs = known.round_trip_us.abs_diff(round_trip_us);
        if known.alive && known.transport == transport && (differs < NOTABLE_US || differs < known.round_trip_us / 2) {
            return None;
        }
        Some(GatewayState { alive: true, transport: transport.to_owned(), round_trip_us })
    });
}

fn dead(path: &GatewayPath, store: &Store) {
    // Not known yet and not alive look the same in a state, but not in the map: an entry says that it was probed.
    change(path, store, |known| known.alive.then(|| GatewayState { alive: false, ..known.clone() }));
    store.update_peer(clock::millis(clock::now()), &path.cluster, |peer| {
        let new = !peer.gateways.contains_key(&path.gateway);
        if new {
            peer.gateways.insert(path.gateway.clone(), GatewayState::default());
        }
        new
    });
}

fn change(path: &GatewayPath, store: &Store, next: impl FnOnce(&GatewayState) -> Option<GatewayState>) {
    let gateway: &Namespace = &path.gateway;
    store.update_peer(clock::millis(clock::now()), &path.cluster, |peer| {
        let known = peer.gateways.get(gateway).cloned().unwrap_or_default();
        let Some(next) = next(&known) else { return false };
        if known.alive != next.alive {
            tracing::info!(cluster = %path.cluster, %gateway, alive = next.alive, "a gateway changed");
        }
        peer.gateways.insert(gateway.clone(), next);
        true
    });
}
