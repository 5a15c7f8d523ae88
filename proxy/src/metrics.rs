//! The proxy's metric families. Labels come from local configuration only: destinations, clusters and fixed words.
//!
//! A family is a lock and a map; whoever is on the hot path asks once for a [`RouteMetrics`] and keeps it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use hawser_api::Code;
use hawser_tunnel::splice::Traffic;
use parking_lot::Mutex;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Registry, Unit};

use crate::streams::Direction;

/// Upper bounds, seconds: a loopback call takes well under a millisecond, a call over a WAN tens, a stuck one a minute.
const BOUNDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

/// A histogram of durations whose `observe` takes no lock.
#[derive(Debug, Clone, Default)]
pub struct Latency {
    inner: Arc<LatencyInner>,
}

#[derive(Debug, Default)]
struct LatencyInner {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_ns: AtomicU64,
}

impl Latency {
    /// Counts one.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let at = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        if let Some(bucket) = self.inner.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.inner.sum_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.inner.buckets.iter().map(|b| b.load(Ordering::Relaxed)).sum()
    }
}

impl EncodeMetric for Latency {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let bounds = BOUNDS.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> =
            bounds.zip(self.inner.buckets.iter().map(|b| b.load(Ordering::Relaxed))).collect();
        let count = buckets.iter().map(|(_, n)| n).sum();
        let sum = Duration::from_nanos(self.inner.sum_ns.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Latency {
    const TYPE: MetricType = MetricType::Histogram;
}

/// A counter of bytes that sees connections while they run: a transfer of hours would otherwise show at its end.
#[derive(Debug, Clone, Default)]
pub struct Bytes {
    inner: Arc<Mutex<BytesInner>>,
}

#[derive(Debug, Default)]
struct BytesInner {
    ended: u64,
    live: HashMap<usize, (Weak<Traffic>, Way)>,
}

/// Which of a connection's two counts.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    /// [`Traffic::sent`].
    Sent,
    /// [`Traffic::received`].
    Received,
}

impl Way {
    fn of(self, traffic: &Traffic) -> u64 {
        match self {
            Self::Sent => traffic.sent(),
            Self::Received => traffic.received(),
        }
    }
}

impl Bytes {
    /// A connection begins.
    pub fn begin(&self, traffic: &Arc<Traffic>, way: Way) {
        self.inner.lock().live.insert(Arc::as_ptr(traffic).addr(), (Arc::downgrade(traffic), way));
    }

    /// A connection has ended.
    pub fn end(&self, traffic: &Arc<Traffic>) {
        let mut inner = self.inner.lock();
        if let Some((_, way)) = inner.live.remove(&Arc::as_ptr(traffic).addr()) {
            inner.ended = inner.ended.saturating_add(way.of(traffic));
        }
    }

    /// Adds what a connection carried that has ended.
    pub fn inc_by(&self, bytes: u64) {
        let mut inner = self.inner.lock();
        inner.ended = inner.ended.saturating_add(bytes);
    }

    /// All so far.
    pub fn get(&self) -> u64 {
        let inner = self.inner.lock();
        let live = inner.live.values().filter_map(|(traffic, way)| Some(way.of(&*traffic.upgrade()?)));
        live.fold(inner.ended, u64::saturating_add)
    }
}

impl EncodeMetric for Bytes {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.encode_counter::<NoLabelSet, _, u64>(&self.get(), None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Bytes {
    const TYPE: MetricType = MetricType::Counter;
}

/// Where requests and connections go.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RouteLabels {
    /// `inbound` or `outbound`.
    pub direction: String,
    /// The destination, `namespace/name:port`.
    pub destination: String,
    /// The cluster that served (outbound) or called (inbound); empty: none was reached.
    pub cluster: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    direction: String,
    destination: String,
    cluster: String,
    status_class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    destination: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabels {
    direction: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SessionLabels {
    cluster: String,
    session: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    direction: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndedLabels {
    direction: &'static str,
    ended: &'static str,
}

/// All families. Cheap to clone handles come out of it.
#[derive(Debug, Default)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    durations: Family<RouteLabels, Latency>,
    retries: Family<OutcomeLabels, Counter>,
    refusals: Family<CodeLabels, Counter>,
    tcp_opens: Family<RouteLabels, Counter>,
    tcp_closes: Family<EndedLabels, Counter>,
    tcp_open_now: Family<RouteLabels, Gauge>,
    tcp_sent: Family<RouteLabels, Bytes>,
    tcp_received: Family<RouteLabels, Bytes>,
    sessions: Family<SessionLabels, Counter>,
    handshake_failures: Family<ReasonLabels, Counter>,
    ejections: Family<OutcomeLabels, Counter>,
}

/// Handles for one direction, destination and cluster.
#[derive(Debug, Clone)]
pub struct RouteMetrics {
    /// Requests by status class: index 0 is `refused` (Hawser's own answer) or no answer, 1 to 5 are 1xx to 5xx.
    requests: [Counter; 6],
    /// Of requests, until the answer's end.
    pub duration: Latency,
    /// TCP connections begun.
    pub tcp_opens: Counter,
    /// TCP connections open now.
    pub tcp_open_now: Gauge,
    /// Application bytes into the mesh (outbound) or to the application (inbound).
    pub tcp_sent: Bytes,
    /// Application bytes the other way.
    pub tcp_received: Bytes,
}

impl RouteMetrics {
    /// Counts one request; `None`: the caller got no status, or Hawser's own.
    pub fn request(&self, status: Option<u16>, took: Duration) {
        let class = status.map_or(0, |s| usize::from(s / 100));
        if let Some(counter) = self.requests.get(class).or(self.requests.first()) {
            counter.inc();
        }
        self.duration.observe(took);
    }
}

const CLASSES: [&str; 6] = ["refused", "1xx", "2xx", "3xx", "4xx", "5xx"];

impl Metrics {
    /// Makes all families and registers them.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let all = Self::default();
        registry.register("hawser_request", "HTTP requests by the answer's status class", all.requests.clone());
        registry.register_with_unit(
            "hawser_request_duration",
            "HTTP requests, from the head to the answer's end",
            Unit::Seconds,
            all.durations.clone(),
        );
        registry.register("hawser_retry", "Requests and connections tried again elsewhere", all.retries.clone());
        registry.register("hawser_refusal", "Refusals given to callers, by code", all.refusals.clone());
        registry.register("hawser_tcp_open", "TCP connections begun", all.tcp_opens.clone());
        registry.register("hawser_tcp_close", "TCP connections ended, by how", all.tcp_closes.clone());
        registry.register("hawser_tcp_connections", "TCP connections open now", all.tcp_open_now.clone());
        registry.register_with_unit("hawser_tcp_sent", "Bytes from callers", Unit::Bytes, all.tcp_sent.clone());
        registry.register_with_unit("hawser_tcp_received", "Bytes to callers", Unit::Bytes, all.tcp_received.clone());
        registry.register("hawser_session_open", "Sealed sessions tried, by outcome", all.sessions.clone());
        registry.register(
            "hawser_tls_handshake_failures",
            "Handshakes that failed, by reason",
            all.handshake_failures.clone(),
        );
        registry.register("hawser_endpoint_ejection", "Endpoints ejected for failures", all.ejections.clone());
        Arc::new(all)
    }

    /// Handles to keep.
    pub fn route(&self, direction: Direction, destination: &str, cluster: &str) -> RouteMetrics {
        let labels = RouteLabels {
            direction: direction.as_str().to_owned(),
            destination: destination.to_owned(),
            cluster: cluster.to_owned(),
        };
        let request = |status_class| {
            let RouteLabels { direction, destination, cluster } = labels.clone();
            self.requests.get_or_create_owned(&RequestLabels { direction, destination, cluster, status_class })
        };
        RouteMetrics {
            requests: CLASSES.map(request),
            duration: self.durations.get_or_create_owned(&labels),
            tcp_opens: self.tcp_opens.get_or_create_owned(&labels),
            tcp_open_now: self.tcp_open_now.get_or_create_owned(&labels),
            tcp_sent: self.tcp_sent.get_or_create_owned(&labels),
            tcp_received: self.tcp_received.get_or_create_owned(&labels),
        }
    }

    /// Counts a retry: `outcome` is `success`, `failure` or `no_budget`.
    pub fn retry(&self, destination: &str, outcome: &'static str) {
        self.retries.get_or_create(&OutcomeLabels { destination: destination.to_owned(), outcome }).inc();
    }

    /// Counts a refusal that a caller was given.
    pub fn refused(&self, direction: Direction, code: Code) {
        self.refusals.get_or_create(&CodeLabels { direction: direction.as_str(), code: code.as_str() }).inc();
    }

    /// Counts a TCP connection's end; `ended` is a word of [`hawser_tunnel::splice::Ended`].
    pub fn tcp_closed(&self, direction: Direction, ended: &'static str) {
        self.tcp_closes.get_or_create(&EndedLabels { direction: direction.as_str(), ended }).inc();
    }

    /// Counts a sealed session that was tried: `session` is `shared` or `dedicated`, `outcome` `ok` or a refusal code.
    pub fn session_opened(&self, cluster: &str, session: &'static str, outcome: &'static str) {
        self.sessions.get_or_create(&SessionLabels { cluster: cluster.to_owned(), session, outcome }).inc();
    }

    /// Counts a failed handshake; `reason` is a word of [`hawser_tunnel::tls::HandshakeError`].
    pub fn handshake_failed(&self, direction: Direction, reason: &'static str) {
        self.handshake_failures.get_or_create(&ReasonLabels { direction: direction.as_str(), reason }).inc();
    }

    /// Counts an ejection: `outcome` is `connection` or `answers`.
    pub fn ejected(&self, destination: &str, outcome: &'static str) {
        self.ejections.get_or_create(&OutcomeLabels { destination: destination.to_owned(), outcome }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_carry_the_names_that_dashboards_ask_for() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let route = metrics.route(Direction::Outbound, "shop/checkout:80", "east");
        route.request(Some(200), Duration::from_millis(3));
        route.request(None, Duration::from_secs(100));
        let traffic = Arc::new(Traffic::default());
        route.tcp_sent.begin(&traffic, Way::Sent);
        traffic.sent.store(7, Ordering::Relaxed);
        assert_eq!(route.tcp_sent.get(), 7, "a connection counts while it runs");
        route.tcp_sent.end(&traffic);
        traffic.sent.store(9, Ordering::Relaxed);
        assert_eq!(route.tcp_sent.get(), 7, "and once");
        metrics.retry("shop/checkout:80", "success");
        metrics.refused(Direction::Outbound, Code::NotExported);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let route = r#"direction="outbound",destination="shop/checkout:80",cluster="east""#;
        for line in [
            format!(r#"hawser_request_total{{{route},status_class="2xx"}} 1"#),
            format!(r#"hawser_request_total{{{route},status_class="refused"}} 1"#),
            format!(r#"hawser_request_duration_seconds_bucket{{le="0.005",{route}}} 1"#),
            format!(r#"hawser_request_duration_seconds_bucket{{le="+Inf",{route}}} 2"#),
            format!(r#"hawser_tcp_sent_bytes_total{{{route}}} 7"#),
            r#"hawser_retry_total{destination="shop/checkout:80",outcome="success"} 1"#.to_owned(),
            r#"hawser_refusal_total{direction="outbound",code="not_exported"} 1"#.to_owned(),
        ] {
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }
}
