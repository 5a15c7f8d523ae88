//! Keeps the snapshot fresh: the mirror controller's tables in, anchors and live streams brought into line with them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hawser_api::TrustDomain;
use hawser_api::proto::discovery::{Role, Status};
use hawser_runtime::subscribe::{self, Subscription, Table};
use hawser_runtime::{Process, clock};
use hawser_tunnel::report;
use hawser_tunnel::tls::{Anchors, Credentials};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::Gateway;
use crate::config::Config;
use crate::streams::{expired, verdict};
use crate::table::Tables;

/// How often the ends of certificates are looked at, and what is idle forgotten.
const TICK: Duration = Duration::from_secs(1);

/// How old the count of live sessions in a report may be.
const LIVE: Duration = Duration::from_millis(500);

/// Subscribes to the mirror controller.
pub(crate) fn subscribe(config: &Config, process: &Process) -> (watch::Receiver<Arc<Table>>, watch::Sender<Status>) {
    let (tables_to, tables) = watch::channel(Arc::new(Table::default()));
    let status = Status { role: Role::Gateway.into(), name: config.name.to_string(), ..Status::default() };
    let (status_to, status) = watch::channel(status);
    let subscription = Subscription {
        socket: config.discovery.socket.clone(),
        last_known: config.discovery.last_known.clone(),
        role: Role::Gateway,
        name: config.name.to_string(),
    };
    process.spawn(subscribe::run(subscription, tables_to, status));
    (tables, status_to)
}

/// Tells the mirror controller what is in memory: at once when trust changes, and within [`LIVE`] when what rests on it
/// does.
pub(crate) async fn report(credentials: Credentials, status: watch::Sender<Status>) {
    let mut generation = credentials.generation();
    loop {
        generation.mark_unchanged();
        let trust = Some(report::trust(&credentials));
        status.send_if_modified(|status| {
            let differs = status.trust != trust;
            status.trust = trust;
            differs
        });
        let _ = timeout(LIVE, generation.changed()).await;
    }
}

/// Each table becomes the snapshot.
pub(crate) async fn follow(
    gateway: Arc<Gateway>,
    mut tables: watch::Receiver<Arc<Table>>,
    status: watch::Sender<Status>,
    process: Process,
) {
    let mut anchors = HashMap::new();
    let mut before = Arc::new(Table::default());
    while tables.changed().await.is_ok() {
        let table = Arc::clone(&tables.borrow_and_update());
        let (snapshot, problems) =
            Tables::build(table.version, table.resources.values().map(|r| &**r), gateway.credentials.own_domain());
        for problem in problems {
            tracing::warn!(%problem, "left out of the tables");
        }
        trust(&gateway, &snapshot, &mut anchors);
        gateway.tables.store(Arc::new(snapshot));
        gateway.changes.send_modify(|n| *n += 1);
        measure(&gateway, &before, &table);
        status.send_modify(|status| status.loaded_version = table.version);
        process.set_ready("tables", true);
        before = table;
    }
}

/// Anchors of linked peers, and of no others.
fn trust(gateway: &Gateway, snapshot: &Tables, known: &mut HashMap<TrustDomain, Anchors>) {
    known.retain(|domain, _| {
        let linked = snapshot.peers.contains_key(domain);
        if !linked {
            gateway.credentials.remove_anchors(domain);
        }
        linked
    });
    for (domain, peer) in &snapshot.peers {
        if known.get(domain) == Some(&peer.anchors) {
            continue;
        }
        for problem in gateway.credentials.set_anchors(domain, peer.anchors.clone()) {
            tracing::warn!(link = %peer.cluster, %problem, "anchor left out");
        }
        known.insert(domain.clone(), peer.anchors.clone());
    }
}

/// Records how long changes took to get here; not for what was there before this process.
fn measure(gateway: &Gateway, before: &Table, now: &Table) {
    if before.version == 0 {
        return;
    }
    let at = clock::millis(clock::now());
    for (key, resource) in &now.resources {
        let is_news = before.resources.get(key).is_none_or(|old| old.changed_at_ms != resource.changed_at_ms);
        if is_news && resource.changed_at_ms > 0 {
            gateway.metrics.change_took(at - resource.changed_at_ms);
        }
    }
}

/// Checks live streams against every change of tables or trust, and their certificates' ends each second.
pub(crate) async fn enforce(gateway: Arc<Gateway>) {
    let mut generation = gateway.credentials.generation();
    let mut changes = gateway.changes.subscribe();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let cut = tokio::select! {
            changed = generation.changed() => {
                if changed.is_err() {
                    return;
                }
                // Wakes the tunnels too, and then this loop again.
                gateway.changes.send_modify(|n| *n += 1);
                continue;
            }
            _ = changes.changed() => {
                let tables = gateway.tables.load_full();
                let now = clock::now();
                gateway.streams.cut_where(|live| verdict(&tables, &gateway.credentials, live, now))
            }
            _ = tick.tick() => {
                gateway.endpoints.forget(clock::monotonic());
                let now = clock::now();
                gateway.streams.cut_where(|live| expired(live, now))
            }
        };
        if cut > 0 {
            tracing::info!(cut, "streams that are no longer allowed were cut");
        }
    }
}
