//! Probes each gateway of a link once a second.

use std::time::Duration;

use futures_util::future::join_all;
use hawser_api::objects::Link;
use hawser_api::{ClusterName, Namespace};
use hawser_runtime::clock;
use hawser_tunnel::pool::{Dialer, GatewayPath, Probe};
use hawser_tunnel::tls::Credentials;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::world::{GatewayState, Store};

/// From one probe that was answered to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// A probe without an answer for this long is a miss: many round trips round the earth.
const DEADLINE: Duration = Duration::from_millis(700);
/// One miss may be bad luck; the second follows at once.
const MISSES: u32 = 2;
/// A round trip is told anew when it differs from what was told by more than this and by more than a half, and only so often:
/// everything is planned again for it, and on a busy machine each probe finds another one.
const NOTABLE_US: u64 = 500;
const TOLD_AGAIN: Duration = Duration::from_secs(10);

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
pub async fn run(paths: Vec<GatewayPath>, credentials: Credentials, dialer: Dialer, store: Store, metrics: Metrics) {
    super::somebody(&credentials).await;
    join_all(paths.into_iter().map(|path| one(path, dialer.clone(), store.clone(), metrics.clone()))).await;
}

async fn one(path: GatewayPath, dialer: Dialer, store: Store, metrics: Metrics) {
    let (mut misses, mut told) = (0, None::<Instant>);
    loop {
        let started = tokio::time::sleep(INTERVAL);
        let answer = tokio::time::timeout(DEADLINE, dialer.probe(&path)).await;
        match answer {
            Ok(Ok(probe)) => {
                misses = 0;
                metrics.gateway(&path, true, Some(probe.round_trip));
                let stale = told.is_none_or(|told| told.elapsed() >= TOLD_AGAIN);
                if alive(&path, &store, &probe, stale) {
                    told = Some(Instant::now());
                }
                started.await;
            }
            missed => {
                misses += 1;
                if misses >= MISSES {
                    metrics.gateway(&path, false, None);
                    let trouble = match missed {
                        Ok(Err(refusal)) => refusal.message,
                        _ => format!("no answer within {} ms", DEADLINE.as_millis()),
                    };
                    dead(&path, &store, trouble);
                    started.await;
                } else {
                    // A connection refused at once would else make two misses of one moment.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// Whether it was told. `stale`: a round trip alone is worth it.
fn alive(path: &GatewayPath, store: &Store, probe: &Probe, stale: bool) -> bool {
    let round_trip_us = u64::try_from(probe.round_trip.as_micros()).unwrap_or(u64::MAX);
    let transport = probe.transport.as_str();
    change(path, store, |known| {
        let differs = known.round_trip_us.abs_diff(round_trip_us);
        let notable = stale && differs >= NOTABLE_US && differs >= known.round_trip_us / 2;
        if known.alive && known.transport == transport && !notable {
            return None;
        }
        Some(GatewayState { alive: true, transport: transport.to_owned(), round_trip_us, trouble: String::new() })
    })
}

fn dead(path: &GatewayPath, store: &Store, trouble: String) {
    let _ = change(path, store, |known| Some(GatewayState { alive: false, trouble, ..known.clone() }));
}

/// Whether there was something to tell.
fn change(path: &GatewayPath, store: &Store, next: impl FnOnce(&GatewayState) -> Option<GatewayState>) -> bool {
    let mut told = false;
    let gateway: &Namespace = &path.gateway;
    store.update_peer(clock::millis(clock::now()), &path.cluster, |peer| {
        // An entry says that it has been probed: one that was not is as good as any.
        let probed = peer.gateways.get(gateway).cloned();
        let known = probed.clone().unwrap_or_default();
        let Some(next) = next(&known).filter(|next| probed.as_ref() != Some(next)) else { return false };
        if probed.is_none() || known.alive != next.alive {
            let (alive, why) = (next.alive, &next.trouble);
            tracing::info!(cluster = %path.cluster, %gateway, alive, why, "a gateway changed");
        }
        peer.gateways.insert(gateway.clone(), next);
        told = true;
        true
    });
    told
}
