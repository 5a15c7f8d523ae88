//! What callers of the Workload API asked for and got.

use std::sync::atomic::AtomicU64;

use hawser_runtime::Process;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    method: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

/// Shared by all connections.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    calls: Family<Call, Counter<u64, AtomicU64>>,
    limited: Family<Why, Counter<u64, AtomicU64>>,
    pub(super) messages: Counter,
    pub(super) refused_by_envoy: Counter,
    pub(super) connections: Gauge,
    pub(super) streams: Gauge,
    pub(super) entries: Gauge,
    pub(super) left_out: Gauge,
}

impl Metrics {
    pub(super) fn new(process: &Process) -> Self {
        let metrics = Self::default();
        let mut registry = process.registry.lock();
        let mut gauge = |name, help, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge("hawser_workload_connections", "Connections to the Workload API", &metrics.connections);
        gauge("hawser_workload_streams", "Open streams of the Workload API", &metrics.streams);
        gauge("hawser_workload_identities", "WorkloadIdentity objects in force", &metrics.entries);
        gauge("hawser_workload_bundles_left_out", "Peers whose bundle workloads are not given", &metrics.left_out);
        registry.register("hawser_workload_calls", "Calls, by method and outcome", metrics.calls.clone());
        registry.register("hawser_workload_limited", "Callers turned away, by bound", metrics.limited.clone());
        registry.register("hawser_workload_messages", "Messages pushed to workloads", metrics.messages.clone());
        registry.register(
            "hawser_workload_envoy_refusals",
            "Secrets that an Envoy did not take",
            metrics.refused_by_envoy.clone(),
        );
        drop(registry);
        metrics
    }

    pub(super) fn called(&self, method: &'static str, outcome: &'static str) {
        self.calls.get_or_create(&Call { method, outcome }).inc();
    }

    pub(super) fn limited(&self, reason: &'static str) {
        self.limited.get_or_create(&Why { reason }).inc();
    }
}
