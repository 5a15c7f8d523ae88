//! What was issued and refused, in memory: metrics, the page `/identities`, and which leaves are in use.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use hawser_api::SpiffeId;
use hawser_runtime::{Process, clock};
use hawser_tunnel::verify::AuthorityId;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde_json::{Value, json};

use crate::audit::{Entry, Line};
use crate::hex;
use crate::refused::Refused;
use crate::rotate::LiveLeaf;
use crate::signer::Intermediate;

mod leaves;

use leaves::Leaves;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

#[derive(Default)]
struct Known {
    leaves: Leaves,
    authorities: BTreeMap<&'static str, Vec<Value>>,
}

/// Shared by all who answer.
pub(crate) struct Record {
    known: Arc<Mutex<Known>>,
    expiry: Family<Kind, Gauge>,
    issued: Counter,
    refused: Family<Reason, Counter>,
    audit_broken: Gauge,
    links: Family<Outcome, Counter>,
}

/// As a gauge holds it.
pub(crate) fn gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
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
            audit_broken: Gauge::default(),
            links: Family::default(),
        };
        let mut registry = process.registry.lock();
        registry.register(
            "hawser_certificate_expiry_timestamp_seconds",
            "When the first certificate of this kind ends, seconds since the epoch",
            record.expiry.clone(),
        );
        registry.register("hawser_issuer_issued", "Certificates issued", record.issued.clone());
        registry.register("hawser_issuer_refused", "Requests refused, by reason", record.refused.clone());
        registry.register(
            "hawser_audit_broken",
            "1 if the audit log was found changed or cut at the start",
            record.audit_broken.clone(),
        );
        let links = "Clusters that asked to be linked by token, by what became of it";
        registry.register("hawser_link_tokens", links, record.links.clone());
        drop(registry);
        let known = Arc::clone(&record.known);
        process.pages.add("/identities", move |_| page(&mut known.lock(), clock::now()));
        record
    }

    pub(crate) fn audit_trouble(&self, is: bool) {
        self.audit_broken.set(is.into());
    }

    /// A line of the audit log of an earlier run: what was issued then is in use still.
    pub(crate) fn replay(&self, line: &Line) {
        if line.entry.event == "issue"
            && let Some(leaf) = leaf(&line.entry, line.time_ms)
            && leaf.not_after_ms > clock::millis(clock::now())
        {
            self.known.lock().leaves.take(leaf, &line.entry.replaces, line.time_ms);
        }
    }

    pub(crate) fn issued(&self, entry: &Entry, now: SystemTime) {
        self.issued.inc();
        tracing::info!(
            target: "audit",
            spiffe_id = entry.subject, via = entry.caller.via, serial = entry.serial, key_sha256 = entry.key_sha256,
            not_after = entry.not_after_ms, "issued"
        );
        let now_ms = clock::millis(now);
        if let Some(leaf) = leaf(entry, now_ms) {
            self.known.lock().leaves.take(leaf, &entry.replaces, now_ms);
        }
    }

    /// A cluster asked to be linked by token.
    pub(crate) fn link_asked(&self, result: &'static str) {
        self.links.get_or_create(&Outcome { result }).inc();
    }

    pub(crate) fn refused(&self, refused: &Refused) {
        self.refused.get_or_create(&Reason { reason: refused.reason() }).inc();
        if matches!(refused, Refused::Busy) {
            // Thousands at once, in just the moment when there is no time for them; the metric counts them.
            tracing::debug!(target: "audit", reason = refused.reason(), "refused");
            return;
        }
        tracing::warn!(target: "audit", reason = refused.reason(), detail = %refused, "refused");
    }

    /// Leaves that are not over and that nobody is known to have replaced.
    pub(crate) fn live(&self, now: SystemTime) -> Vec<LiveLeaf> {
        let mut known = self.known.lock();
        known.leaves.expire(clock::millis(now));
        known.leaves.all().collect()
    }

    /// How many of the leaves in use are to be renewed: issued before this time, or by another than who signs now.
    pub(crate) fn to_renew(&self, before_ms: i64, signer: Option<AuthorityId>) -> usize {
        self.known.lock().leaves.to_renew(before_ms, signer)
    }

    /// When the first of a kind ends; `None`: there is none any more.
    pub(crate) fn ends(&self, kind: &'static str, first: Option<SystemTime>) {
        match first {
            Some(first) => drop(self.expiry.get_or_create(&Kind { kind }).set(gauge(seconds(first)))),
            None => drop(self.expiry.remove(&Kind { kind })),
        }
    }

    pub(crate) fn intermediate(&self, intermediate: &Intermediate, id: &str) {
        let not_after = seconds(intermediate.not_after());
        self.authorities("intermediate", vec![(id.to_owned(), intermediate.serial().to_owned(), not_after)]);
    }

    /// `all`: name, serial, end.
    pub(crate) fn authorities(&self, kind: &'static str, all: Vec<(String, String, u64)>) {
        if let Some(first) = all.iter().map(|(.., not_after)| *not_after).min() {
            self.expiry.get_or_create(&Kind { kind }).set(gauge(first));
        }
        let rows = all.into_iter().map(|(id, serial, not_after)| {
            json!({ "spiffeId": id, "serial": serial, "kind": kind, "notAfter": not_after, "issuedAt": null })
        });
        self.known.lock().authorities.insert(kind, rows.collect());
    }
}

fn leaf(entry: &Entry, issued_ms: i64) -> Option<LiveLeaf> {
    let issuer = AuthorityId::try_from(hex::decode(&entry.issuer)?.as_slice()).ok()?;
    entry.subject.parse::<SpiffeId>().ok()?;
    Some(LiveLeaf {
        spiffe_id: entry.subject.clone(),
        serial: entry.serial.clone(),
        issuer,
        issued_ms,
        not_after_ms: entry.not_after_ms?,
    })
}

/// The authorities, and the newest leaf of each identity.
fn page(known: &mut Known, now: SystemTime) -> Value {
    known.leaves.expire(clock::millis(now));
    let mut rows: Vec<Value> = known.authorities.values().rev().flatten().cloned().collect();
    rows.extend(known.leaves.newest().map(|(leaf, issued)| {
        json!({
            "spiffeId": leaf.spiffe_id, "serial": leaf.serial, "kind": "leaf", "notAfter": leaf.not_after_ms / 1000,
            "issuedAt": leaf.issued_ms / 1000, "issued": issued,
        })
    }));
    json!({ "identities": rows })
}
