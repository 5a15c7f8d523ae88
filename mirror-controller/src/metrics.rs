//! Counters. Labels are names from this cluster's own objects, never what a peer says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hawser_api::{ClusterName, TrustDomain};
use hawser_tunnel::pool::GatewayPath;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::plan::{self, Plan};
use crate::world::World;

type Seconds = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LinkLabel {
    link: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServicesLabels {
    link: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    kind: &'static str,
    verb: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnchorLabels {
    cluster: String,
    anchor: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GatewayLabels {
    link: String,
    gateway: String,
}

/// All of them. Clone to share.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    reload: Gauge,
    problems: Gauge,
    effect: Histogram,
    plan: Histogram,
    services: Family<ServicesLabels, Gauge>,
    alive: Family<LinkLabel, Gauge>,
    age: Family<LinkLabel, Seconds>,
    gateway_alive: Family<GatewayLabels, Gauge>,
    gateway_round_trip: Family<GatewayLabels, Seconds>,
    clock: Family<LinkLabel, Seconds>,
    bundle_sequence: Family<LinkLabel, Gauge>,
    bundle_lag: Family<LinkLabel, Gauge>,
    anchors_end: Family<AnchorLabels, Gauge>,
    watched: Family<KindLabel, Gauge>,
    writes: Family<WriteLabels, Counter>,
    leader: Gauge,
    // When each catalog was heard last, milliseconds since the epoch.
    heard: Mutex<BTreeMap<ClusterName, i64>>,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            reload: Gauge::default(),
            problems: Gauge::default(),
            // From a few milliseconds, which a local change takes, to seconds, which is too long.
            effect: Histogram::new([0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]),
            plan: Histogram::new([0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5]),
            services: Family::default(),
            alive: Family::default(),
            age: Family::default(),
            gateway_alive: Family::default(),
            gateway_round_trip: Family::default(),
            clock: Family::default(),
            bundle_sequence: Family::default(),
            bundle_lag: Family::default(),
            anchors_end: Family::default(),
            watched: Family::default(),
            writes: Family::default(),
            leader: Gauge::default(),
            heard: Mutex::default(),
        }
    }
}

impl Metrics {
    /// Makes them known to the admin server.
    pub fn register(&self, registry: &mut Registry) {
        let m = &self.0;
        let reload = "1 while every object file is in force as it stands";
        registry.register("hawser_config_last_reload_successful", reload, m.reload.clone());
        registry.register("hawser_config_problems", "Problems in object files that are refused", m.problems.clone());
        let effect = "From a change of objects or catalogs to the tables that say so";
        registry.register("hawser_change_effect_seconds", effect, m.effect.clone());
        registry.register("hawser_plan_seconds", "To plan everything once and hand it on", m.plan.clone());
        let services = "Services of a linked cluster: offered, imported, refused";
        registry.register("hawser_link_services", services, m.services.clone());
        registry.register("hawser_link_alive", "1 while the catalog's lease is fresh", m.alive.clone());
        registry.register("hawser_catalog_age_seconds", "Since a catalog was heard last", m.age.clone());
        registry.register("hawser_gateway_alive", "1 while probes are answered", m.gateway_alive.clone());
        let clock = "A linked cluster's clock minus this one's";
        registry.register("hawser_peer_clock_ahead_seconds", clock, m.clock.clone());
        let sequence = "Sequence of a linked cluster's bundle in force";
        registry.register("hawser_bundle_sequence", sequence, m.bundle_sequence.clone());
        let lag = "By how much the bundle in force is behind what the linked cluster offers";
        registry.register("hawser_bundle_lag", lag, m.bundle_lag.clone());
        let ends = "When the first and the last of a trust domain's anchors in force ends, seconds since the epoch";
        registry.register("hawser_anchor_expiry_timestamp_seconds", ends, m.anchors_end.clone());
        let watched = "1 while this kind of the API server's is watched";
        registry.register("hawser_watch_up", watched, m.watched.clone());
        registry.register("hawser_api_writes", "Requests that change something at the API server", m.writes.clone());
        registry.register("hawser_leader", "1 while this replica is the one that writes", m.leader.clone());
        let round_trip = "Round trip of the last probe that was answered";
        registry.register("hawser_gateway_round_trip_seconds", round_trip, m.gateway_round_trip.clone());
    }

    /// Whether all object files are in force.
    pub fn reloaded(&self, problems: usize) {
        self.0.reload.set(i64::from(problems == 0));
        self.0.problems.set(i64::try_from(problems).unwrap_or(i64::MAX));
    }

    /// Whether a kind of the API server's can be watched.
    pub fn watched(&self, kind: &'static str, up: bool) {
        self.0.watched.get_or_create(&KindLabel { kind }).set(i64::from(up));
    }

    /// A request that changes something at the API server was answered: `ok`, or why not.
    pub fn wrote(&self, kind: &'static str, verb: &'static str, outcome: &'static str) {
        self.0.writes.get_or_create(&WriteLabels { kind, verb, outcome }).inc();
    }

    /// Whether this replica writes.
    pub fn leads(&self, leads: bool) {
        self.0.leader.set(i64::from(leads));
    }

    /// A catalog was heard.
    pub fn heard(&self, link: &ClusterName, at_ms: i64) {
        self.0.heard.lock().insert(link.clone(), at_ms);
    }

    /// Brings ages up to date.
    pub fn tick(&self, now_ms: i64) {
        for (link, at_ms) in &*self.0.heard.lock() {
            // Ages of days are as good as ages of years.
            let age = u32::try_from(now_ms.saturating_sub(*at_ms).max(0)).unwrap_or(u32::MAX);
            self.0.age.get_or_create(&LinkLabel { link: link.to_string() }).set(f64::from(age) / 1000.0);
        }
    }

    /// A linked cluster's clock is this much ahead.
    pub fn clock(&self, link: &ClusterName, ahead_ms: i64) {
        // More than a month is as good as a year.
        let bounded = i32::try_from(ahead_ms).unwrap_or(if ahead_ms > 0 { i32::MAX } else { i32::MIN });
        self.0.clock.get_or_create(&LinkLabel { link: link.to_string() }).set(f64::from(bounded) / 1000.0);
    }

    /// These anchors are in force: whose, and when each ends. The label is the Link's name, or this cluster's own.
    pub fn anchors(&self, world: &World, ends: &[(TrustDomain, i64)]) {
        let link = |domain: &TrustDomain| {
            let objects = world.objects.as_deref()?;
            let found = objects.links.iter().find(|(_, link)| link.spec.trust_domain == *domain);
            found.map(|(name, _)| name.to_string())
        };
        let mut bounds: BTreeMap<String, (i64, i64)> = BTreeMap::new();
        for (domain, end) in ends {
            let own = (*domain == world.domain).then(|| world.cluster.to_string());
            let Some(name) = own.or_else(|| link(domain)) else { continue };
            let (first, last) = bounds.entry(name).or_insert((*end, *end));
            (*first, *last) = ((*first).min(*end), (*last).max(*end));
        }
        for (cluster, (first, last)) in bounds {
            for (anchor, end) in [("first", first), ("last", last)] {
                self.0.anchors_end.get_or_create(&AnchorLabels { cluster: cluster.clone(), anchor }).set(end / 1000);
            }
        }
    }

    /// A gateway was probed.
    pub fn gateway(&self, path: &GatewayPath, alive: bool, round_trip: Option<Duration>) {
        let labels = GatewayLabels { link: path.cluster.to_string(), gateway: path.gateway.to_string() };
        self.0.gateway_alive.get_or_create(&labels).set(i64::from(alive));
        if let Some(round_trip) = round_trip {
            self.0.gateway_round_trip.get_or_create(&labels).set(round_trip.as_secs_f64());
        }
    }

    /// A plan was made.
    pub fn planned(&self, world: &World, plan: &Plan) {
        for link in &plan.statuses.links {
            let refused = link.status.offered.saturating_sub(link.status.imported);
            let states = [("offered", link.status.offered), ("imported", link.status.imported), ("refused", refused)];
            for (state, count) in states {
                let labels = ServicesLabels { link: link.name.clone(), state };
                self.0.services.get_or_create(&labels).set(i64::from(count));
            }
        }
        for (name, peer) in &world.peers {
            let label = LinkLabel { link: name.to_string() };
            self.0.alive.get_or_create(&label).set(i64::from(peer.alive));
            let status = plan::bundle::status(peer);
            let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
            self.0.bundle_sequence.get_or_create(&label).set(number(status.sequence));
            self.0.bundle_lag.get_or_create(&label).set(number(status.lag));
        }
    }

    /// What changed at `changed_at_ms` is in the tables now.
    pub fn effective(&self, changed_at_ms: i64, now_ms: i64) {
        let taken = u32::try_from(now_ms.saturating_sub(changed_at_ms).max(0)).unwrap_or(u32::MAX);
        self.0.effect.observe(f64::from(taken) / 1000.0);
    }

    /// Everything was planned once.
    pub fn plan_took(&self, took: Duration) {
        self.0.plan.observe(took.as_secs_f64());
    }

    /// A link is gone, and so are its series.
    pub fn forget(&self, link: &ClusterName) {
        self.0.heard.lock().remove(link);
        let label = LinkLabel { link: link.to_string() };
        self.0.age.remove(&label);
        self.0.alive.remove(&label);
        self.0.clock.remove(&label);
        self.0.bundle_sequence.remove(&label);
        self.0.bundle_lag.remove(&label);
        for anchor in ["first", "last"] {
            self.0.anchors_end.remove(&AnchorLabels { cluster: link.to_string(), anchor });
        }
        for state in ["offered", "imported", "refused"] {
            self.0.services.remove(&ServicesLabels { link: link.to_string(), state });
        }
    }

    /// A gateway is in no Link any more.
    pub fn forget_gateway(&self, path: &GatewayPath) {
        let labels = GatewayLabels { link: path.cluster.to_string(), gateway: path.gateway.to_string() };
        self.0.gateway_alive.remove(&labels);
        self.0.gateway_round_trip.remove(&labels);
    }
}
