//! Follows the mirror controller's resources: swaps the tables, keeps peers' anchors, cuts what is no longer admitted,
//! and says how long a change took.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use hawser_api::TrustDomain;
use hawser_api::bundle::Bundle;
use hawser_api::proto::discovery::{self as wire, resource::Kind};
use hawser_runtime::clock;
use hawser_runtime::subscribe::Table;
use hawser_tunnel::report;
use hawser_tunnel::tls::{Anchors, Credentials};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::watch;

use crate::inbound::Inbound;
use crate::metrics::Latency;
use crate::resources;

/// How old the count of live sessions in a report may be.
const LIVE: Duration = Duration::from_millis(500);

/// Families of this file.
#[derive(Debug, Default)]
pub struct Changes {
    effect: Latency,
    version: Gauge,
    unreadable: Gauge,
    expiry: Gauge,
}

impl Changes {
    /// Makes and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let all = Self::default();
        registry.register_with_unit(
            "hawser_change_effect",
            "From a change of an object or catalog to its effect here",
            Unit::Seconds,
            all.effect.clone(),
        );
        registry.register(
            "hawser_tables_version",
            "The controller's version of the tables in force",
            all.version.clone(),
        );
        registry.register(
            "hawser_tables_unreadable",
            "Resources of the controller that could not be read",
            all.unreadable.clone(),
        );
        registry.register(
            "hawser_certificate_expiry_timestamp_seconds",
            "When this process's own certificate ends, seconds since the epoch",
            all.expiry.clone(),
        );
        all
    }
}

/// Applies tables as they come; ready with the first.
pub async fn tables(inbound: Arc<Inbound>, mut incoming: watch::Receiver<Arc<Table>>, changes: Arc<Changes>) {
    let context = inbound.context();
    let mut before: Arc<Table> = Arc::default();
    let mut anchors = PeerAnchors::default();
    while incoming.changed().await.is_ok() {
        let table = incoming.borrow_and_update().clone();
        let read = resources::read(&table, &context.cluster);
        for problem in &read.problems {
            tracing::warn!(problem, "a resource of the mirror controller cannot be read and is left out");
        }
        changes.unreadable.set(i64::try_from(read.problems.len()).unwrap_or(i64::MAX));
        anchors.follow(&table, &context.credentials);
        context.set_tables(read.tables);
        inbound.recheck();
        changes.version.set(i64::try_from(table.version).unwrap_or(i64::MAX));
        for took in effects(&before, &table, clock::millis(clock::now())) {
            changes.effect.observe(took);
        }
        before = table;
        context.process.set_ready("tables", true);
    }
}

/// Tells the mirror controller what is in memory: at once when trust changes, and within `LIVE` when what rests on it
/// does. Runs until dropped.
pub async fn report(credentials: Credentials, status: watch::Sender<wire::Status>) {
    let mut generation = credentials.generation();
    loop {
        generation.mark_unchanged();
        let trust = Some(report::trust(&credentials));
        status.send_if_modified(|status| {
            let differs = status.trust != trust;
            status.trust = trust;
            differs
        });
        let _ = tokio::time::timeout(LIVE, generation.changed()).await;
    }
}

/// How long each resource that changed between two tables took to get here. Nothing from the first table: what happened
/// before this process started is no delay of it.
fn effects(before: &Table, after: &Table, now_ms: i64) -> Vec<Duration> {
    if before.version == 0 {
        return Vec::new();
    }
    let changed = after.resources.iter().filter(|(key, resource)| {
        before.resources.get(*key).is_none_or(|old| old.changed_at_ms < resource.changed_at_ms)
    });
    changed
        .filter(|(_, resource)| resource.changed_at_ms > 0)
        .map(|(_, resource)| Duration::from_millis(u64::try_from(now_ms - resource.changed_at_ms).unwrap_or(0)))
        .collect()
}

/// The anchors that came with the peers, as far as they were put into the credentials.
#[derive(Debug, Default)]
struct PeerAnchors {
    documents: BTreeMap<TrustDomain, String>,
}

impl PeerAnchors {
    fn follow(&mut self, table: &Table, credentials: &Credentials) {
        let wanted = documents(table, credentials.own_domain());
        for (domain, document) in &wanted {
            // Each call makes a new generation, which makes every session be checked again: only for a change.
            if self.documents.get(domain) == Some(document) {
                continue;
            }
            let anchors = match document.as_str() {
                "" => Anchors::OwnRoot,
                text => match Bundle::parse(text) {
                    Ok(bundle) => Anchors::Bundle(bundle),
                    Err(error) => {
                        tracing::warn!(%domain, %error, "the bundle cannot be read, what was in force stays");
                        continue;
                    }
                },
            };
            for reason in credentials.set_anchors(domain, anchors) {
                tracing::warn!(%domain, reason, "an anchor was dropped");
            }
            self.documents.insert(domain.clone(), document.clone());
        }
        self.documents.retain(|domain, _| {
            let keep = wanted.contains_key(domain);
            if !keep {
                credentials.remove_anchors(domain);
            }
            keep
        });
    }
}

/// The bundle documents of the peers, by trust domain; empty: under our own root. Our own trust domain is nobody's to
/// give, and where two peers claim one trust domain, the first in order has it.
fn documents(table: &Table, own: &TrustDomain) -> HashMap<TrustDomain, String> {
    let mut wanted = HashMap::new();
    for (key, resource) in &table.resources {
        let Some(Kind::Peer(wire::Peer { trust_domain, bundle, .. })) = &resource.kind else { continue };
        let Ok(domain) = trust_domain.parse::<TrustDomain>() else { continue };
        if domain == *own || wanted.contains_key(&domain) {
            tracing::warn!(key, %domain, "the peer's trust domain belongs to somebody else, its anchors are left out");
            continue;
        }
        wanted.insert(domain, bundle.clone());
    }
    wanted
}

/// Follows the credentials: ready with the first identity, and every change checks live sessions again.
pub async fn identity(inbound: Arc<Inbound>, changes: Arc<Changes>) {
    let context = inbound.context();
    let mut generation = context.credentials.generation();
    loop {
        if let Some(identity) = context.credentials.identity() {
            let seconds = clock::millis(identity.not_after()) / 1000;
            changes.expiry.set(seconds);
            context.process.set_ready("identity", true);
        }
        inbound.recheck();
        if generation.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(domain: &str, bundle: &str) -> Arc<wire::Resource> {
        let peer = wire::Peer { trust_domain: domain.into(), bundle: bundle.into(), ..Default::default() };
        Arc::new(wire::Resource { kind: Some(Kind::Peer(peer)), ..Default::default() })
    }

    fn table(version: u64, resources: &[(&str, Arc<wire::Resource>)]) -> Table {
        Table { version, resources: resources.iter().map(|(k, r)| ((*k).to_owned(), r.clone())).collect() }
    }

    #[test]
    fn a_peer_cannot_take_our_trust_domain_or_anothers() {
        let table = table(
            1,
            &[
                ("peer/a", peer("East.example.org", "first")),
                ("peer/b", peer("east.example.org", "second")),
                ("peer/c", peer("west.example.org", "ours")),
                ("peer/d", peer("no domain", "x")),
            ],
        );
        let wanted = documents(&table, &"west.example.org".parse().unwrap());
        assert_eq!(wanted.len(), 1);
        assert_eq!(wanted[&"east.example.org".parse().unwrap()], "first");
    }

    #[test]
    fn only_changes_after_the_first_table_are_timed() {
        let at = |ms| Arc::new(wire::Resource { changed_at_ms: ms, ..Default::default() });
        let first = table(5, &[("a", at(1_000)), ("b", at(1_000))]);
        assert_eq!(effects(&Table::default(), &first, 9_000), Vec::<Duration>::new());
        let second = table(6, &[("a", at(1_000)), ("b", at(8_900)), ("c", at(9_500)), ("d", at(0))]);
        assert_eq!(effects(&first, &second, 9_000), [Duration::from_millis(100), Duration::ZERO]);
    }
}
