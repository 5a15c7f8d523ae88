//! The gateway's metrics. Labels come from this cluster's own configuration and from closed sets of words only.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::UNIX_EPOCH;

use hawser_api::ClusterName;
use hawser_tunnel::listen::TunnelListener;
use hawser_tunnel::tls::Credentials;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::streams::Streams;

/// A link, or `unlinked`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByLink {
    link: String,
}

/// A link and what became of an open: `ok` or a refusal's code.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByResult {
    link: String,
    result: &'static str,
}

/// A link and a transport.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByTransport {
    link: String,
    transport: &'static str,
}

/// A stable word.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByReason {
    reason: &'static str,
}

/// Every metric that is counted as it happens.
#[derive(Debug)]
pub struct Metrics {
    opens: Family<ByResult, Counter>,
    streams: Family<ByLink, Gauge>,
    carried: Family<ByTransport, Counter>,
    ended: Family<ByReason, Counter>,
    tunnels: Family<ByTransport, Gauge>,
    handshake_failures: Family<ByReason, Counter>,
    tunnels_refused: Counter,
    joins: Family<ByReason, Counter>,
    change_effect: Histogram,
}

fn name(link: Option<&ClusterName>) -> String {
    link.map_or("unlinked", ClusterName::as_str).to_owned()
}

impl Metrics {
    /// Registers everything.
    pub fn register(registry: &mut Registry, streams: Arc<Streams>, credentials: Credentials) -> Self {
        // From five milliseconds to ten seconds: the promise is one second.
        let buckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        let all = Self {
            opens: Family::default(),
            streams: Family::default(),
            carried: Family::default(),
            ended: Family::default(),
            tunnels: Family::default(),
            handshake_failures: Family::default(),
            tunnels_refused: Counter::default(),
            joins: Family::default(),
            change_effect: Histogram::new(buckets),
        };
        let opens = "Opens that peers asked for, by link and answer";
        registry.register("hawser_gateway_opens", opens, all.opens.clone());
        registry.register("hawser_gateway_streams", "Live streams by link", all.streams.clone());
        registry.register("hawser_gateway_tunnels", "Tunnels by link and transport", all.tunnels.clone());
        registry.register("hawser_gateway_stream_ends", "Streams that ended, by how", all.ended.clone());
        let refused = "Connections that were dropped unseen because there were too many tunnels";
        registry.register("hawser_gateway_tunnels_refused", refused, all.tunnels_refused.clone());
        registry.register("hawser_tcp_open", "Streams that were carried, by link and transport", all.carried.clone());
        let failures = "Handshakes that failed, by reason";
        registry.register("hawser_tls_handshake_failures", failures, all.handshake_failures.clone());
        let joins = "Requests at the join door, by what became of them";
        registry.register("hawser_gateway_joins", joins, all.joins.clone());
        let effect = "Seconds from a change to its effect here";
        registry.register("hawser_change_effect_seconds", effect, all.change_effect.clone());
        registry.register_collector(Box::new(Read { streams, credentials }));
        all
    }

    /// An open was answered.
    pub fn opened(&self, link: Option<&ClusterName>, result: &'static str) {
        self.opens.get_or_create(&ByResult { link: name(link), result }).inc();
    }

    /// A stream begins (`by` 1) or has ended (`by` -1).
    pub fn stream(&self, link: &ClusterName, by: i64) {
        self.streams.get_or_create(&ByLink { link: name(Some(link)) }).inc_by(by);
    }

    /// A stream begins, over this transport.
    pub fn carried(&self, link: &ClusterName, transport: &'static str) {
        self.carried.get_or_create(&ByTransport { link: name(Some(link)), transport }).inc();
    }

    /// A stream ended, and how.
    pub fn ended(&self, reason: &'static str) {
        self.ended.get_or_create(&ByReason { reason }).inc();
    }

    /// A tunnel begins (`by` 1) or has ended (`by` -1).
    pub fn tunnel(&self, link: Option<&ClusterName>, transport: &'static str, by: i64) {
        self.tunnels.get_or_create(&ByTransport { link: name(link), transport }).inc_by(by);
    }

    /// A handshake failed.
    pub fn handshake_failed(&self, reason: &'static str) {
        self.handshake_failures.get_or_create(&ByReason { reason }).inc();
    }

    /// A connection was dropped before its handshake.
    pub fn tunnel_refused(&self) {
        self.tunnels_refused.inc();
    }

    /// A request at the join door was `answered` or `failed`.
    pub fn joined(&self, reason: &'static str) {
        self.joins.get_or_create(&ByReason { reason }).inc();
    }

    /// A change took effect this many milliseconds after it was made.
    pub fn change_took(&self, millis: i64) {
        let millis = u32::try_from(millis.max(0)).unwrap_or(u32::MAX);
        self.change_effect.observe(f64::from(millis) / 1000.0);
    }
}

/// What is read where it lives, at each scrape.
#[derive(Debug)]
struct Read {
    streams: Arc<Streams>,
    credentials: Credentials,
}

impl Collector for Read {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let bytes = self.streams.bytes();
        let sent = bytes.iter().map(|(link, bytes)| (link, bytes.sent));
        counters(&mut encoder, "hawser_tcp_sent_bytes", "Bytes from the link to endpoints", sent)?;
        let received = bytes.iter().map(|(link, bytes)| (link, bytes.received));
        counters(&mut encoder, "hawser_tcp_received_bytes", "Bytes from endpoints to the link", received)?;
        let Some(identity) = self.credentials.identity() else { return Ok(()) };
        let ends = identity.not_after().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let help = "When the certificate in use ends, seconds since the epoch";
        let family = "hawser_certificate_expiry_timestamp_seconds";
        let mut metric = encoder.encode_descriptor(family, help, None, MetricType::Gauge)?;
        metric.encode_family(&[("kind", "leaf")])?.encode_gauge(&i64::try_from(ends).unwrap_or(i64::MAX))
    }
}

/// Handshakes that the listener itself turned away are counted there.
pub fn register_turned(registry: &mut Registry, listener: &Arc<TunnelListener>) {
    // Metrics must not keep the address taken when the listener is gone.
    let listener = Arc::downgrade(listener);
    registry.register_collector(Box::new(Turned { listener }));
}

#[derive(Debug)]
struct Turned {
    listener: Weak<TunnelListener>,
}

impl Collector for Turned {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(listener) = self.listener.upgrade() else { return Ok(()) };
        let turned = listener.turned();
        let help = "Connections turned away before their handshake, because too many were in flight";
        let family = "hawser_gateway_handshakes_turned";
        let mut metric = encoder.encode_descriptor(family, help, None, MetricType::Counter)?;
        let counts = [("dropped", &turned.dropped), ("retried", &turned.retried), ("prefix", &turned.prefix)];
        for (how, count) in counts {
            let count = count.load(Ordering::Relaxed);
            metric.encode_family(&[("how", how)])?.encode_counter(&count, None::<&Exemplar<[(&str, &str); 0], u64>>)?;
        }
        let help = "Handshakes that are going on";
        let family = "hawser_gateway_handshakes_in_flight";
        let mut metric = encoder.encode_descriptor(family, help, None, MetricType::Gauge)?;
        metric.encode_gauge(&i64::try_from(listener.in_flight()).unwrap_or(i64::MAX))?;
        let Some(knocks) = listener.knocks() else { return Ok(()) };
        let help = "Connections at the join door, before their handshake";
        let mut metric = encoder.encode_descriptor("hawser_gateway_knocks", help, None, MetricType::Counter)?;
        for (how, count) in [("taken", &knocks.taken), ("busy", &knocks.busy), ("too_often", &knocks.too_often)] {
            let count = count.load(Ordering::Relaxed);
            metric.encode_family(&[("how", how)])?.encode_counter(&count, None::<&Exemplar<[(&str, &str); 0], u64>>)?;
        }
        Ok(())
    }
}

fn counters<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    family: &str,
    help: &str,
    values: impl Iterator<Item = (&'a ClusterName, u64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(family, help, None, MetricType::Counter)?;
    for (link, value) in values {
        let labels = [("link", link.as_str())];
        metric.encode_family(&labels)?.encode_counter(&value, None::<&Exemplar<[(&str, &str); 0], u64>>)?;
    }
    Ok(())
}
