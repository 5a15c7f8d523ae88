//! What was issued and refused: metrics, the page `/identities`, and the audit log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use hawser_api::SpiffeId;
use hawser_runtime::Process;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde_json::{Value, json};

use crate::admit::Via;
use crate::issue::Template;
use crate::refused::Refused;
use crate::store::Intermediate;

/// Most identities on the page; of more, those that end first are forgotten. Metrics count all.
const IDENTITIES_MAX: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

struct Issued {
    serial: String,
    not_after: u64,
    issued_at: u64,
    count: u64,
}

#[derive(Default)]
struct Known {
    leaves: BTreeMap<SpiffeId, Issued>,
    authorities: BTreeMap<&'static str, Vec<Value>>,
}

/// Shared by all who answer.
pub(crate) struct Record {
    known: Arc<Mutex<Known>>,
    expiry: Family<Kind, Gauge>,
    issued: Counter,
    refused: Family<Reason, Counter>,
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

impl Record {
    pub(crate) fn new(process: &Process) -> Self {
        let record = Self {
            known: Arc::default(),
            expiry: Family::default(),
            issued: Counter::default(),
            refused: Family::default(),
        };
        let mut registry = process.registry.lock();
        registry.register(
            "hawser_certificate_expiry_timestamp_seconds",
            "When the first certificate of this kind ends, seconds since the epoch",
            record.expiry.clone(),
        );
        registry.register("hawser_issuer_issued", "Certificates issued", record.issued.clone());
        registry.register("hawser_issuer_refused", "Requests refused, by reason", record.refused.clone());
        drop(registry);
        let known = Arc::clone(&record.known);
        process.pages.add("/identities", move |_| page(&known.lock()));
        record
    }

    pub(crate) fn issued(&self, template: &Template, via: Via, serial: &str, now: SystemTime) {
        self.issued.inc();
        tracing::info!(
            target: "audit",
            spiffe_id = %template.id, via = via.as_str(), serial, key_sha256 = %template.key_hash,
            not_after = seconds(template.not_after), "issued"
        );
        let leaves = &mut self.known.lock().leaves;
        let count = leaves.get(&template.id).map_or(0, |issued| issued.count) + 1;
        let issued = Issued {
            serial: serial.to_owned(),
            not_after: seconds(template.not_after),
            issued_at: seconds(now),
            count,
        };
        leaves.insert(template.id.clone(), issued);
        if leaves.len() > IDENTITIES_MAX {
            let first = leaves.iter().min_by_key(|(_, issued)| issued.not_after).map(|(id, _)| id.clone());
            first.and_then(|id| leaves.remove(&id));
        }
    }

    pub(crate) fn refused(&self, refused: &Refused) {
        self.refused.get_or_create(&Reason { reason: refused.reason() }).inc();
        tracing::warn!(target: "audit", reason = refused.reason(), detail = %refused, "refused");
    }

    pub(crate) fn intermediate(&self, intermediate: &Intermediate, id: &str) {
        let not_after = seconds(intermediate.not_after());
        self.authorities("intermediate", vec![(id.to_owned(), intermediate.serial().to_owned(), not_after)]);
    }

    /// `all`: name, serial, end.
    pub(crate) fn authorities(&self, kind: &'static str, all: Vec<(String, String, u64)>) {
        if let Some(first) = all.iter().map(|(.., not_after)| *not_after).min() {
            self.expiry.get_or_create(&Kind { kind }).set(i64::try_from(first).unwrap_or(i64::MAX));
        }
        let rows = all.into_iter().map(|(id, serial, not_after)| {
            json!({ "spiffeId": id, "serial": serial, "kind": kind, "notAfter": not_after, "issuedAt": null })
        });
        self.known.lock().authorities.insert(kind, rows.collect());
    }
}

fn page(known: &Known) -> Value {
    let mut rows: Vec<Value> = known.authorities.values().rev().flatten().cloned().collect();
    rows.extend(known.leaves.iter().map(|(id, issued)| {
        json!({
            "spiffeId": id, "serial": issued.serial, "kind": "leaf", "notAfter": issued.not_after,
            "issuedAt": issued.issued_at, "issued": issued.count,
        })
    }));
    json!({ "identities": rows })
}
