//! SPIFFE's Workload API, and Envoy's secret discovery, on a Unix socket that every local process may open.
//!
//! ```text
//! process ─▶ listen ─▶ front (authority) ─▶ h2 ─▶ session (header, attest, entries, limits) ─▶ x509 │ jwt │ sds
//!                                                      ▲                                        │
//! WorkloadIdentity objects ─▶ watch ─▶ entries ────────┤                        mint (new key, signed by the issuer)
//! own bundle, peers' bundles ─▶ refresh ─▶ bundles ────┘
//! ```
//!
//! A caller shows nothing: who it is, the kernel says. Every message is the whole state, and a stream gets another whenever
//! an SVID is renewed, an entry changes or a bundle does.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use arc_swap::ArcSwap;
use hawser_api::TrustDomain;
use hawser_api::proto::issuer::Bundle;
use hawser_runtime::{Process, clock};
use hawser_tunnel::verify::AuthorityId;
use rustls_pki_types::CertificateDer;
use tokio::sync::{Semaphore, watch as channel};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::authority::Authority;
use crate::config::WorkloadConfig;
use crate::issue::WORKLOAD_LIFETIME_MAX;

mod attest;
mod bundles;
mod entries;
mod front;
mod jwt;
mod keys;
mod limits;
mod listen;
mod metrics;
mod mint;
mod sds;
mod service;
mod session;
mod switch;
mod watch;

use bundles::Trusted;
use entries::Entries;

/// How often is looked whether something changed that tells nobody: the issuer's key, the age of the JWT key.
const LOOK: Duration = Duration::from_millis(500);
/// How long after the start a workload that trusts peers is told to wait for the mirror controller's first report:
/// without it the first message would take all peers from a workload that had them a moment ago.
const FIRST_REPORT: Duration = Duration::from_secs(5);
/// Attestations and signatures at a time; each takes well under a millisecond, the first hash of an executable longer.
const AT_WORK: usize = 8;

/// All that calls share.
pub(crate) struct Workload {
    authority: Arc<Authority>,
    /// `None` until the folder has been read for the first time.
    entries: ArcSwap<Option<Entries>>,
    trusted: ArcSwap<Trusted>,
    svids: mint::Svids,
    keys: keys::Keys,
    limits: limits::Limits,
    metrics: metrics::Metrics,
    work: Semaphore,
    /// Grows when anything that workloads are told may have changed.
    changed: channel::Sender<u64>,
    started: Instant,
    drain: CancellationToken,
}

/// Opens the socket; the future serves until the process drains.
pub(crate) fn open(
    config: &WorkloadConfig,
    authority: Arc<Authority>,
    process: &Process,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>>> {
    let keys = keys::Keys::open(authority.store.directory(), config, clock::now()).context("keys for JWT-SVIDs")?;
    authority.jwt.send_replace(keys.authorities());
    let workload = Arc::new(Workload {
        authority,
        entries: ArcSwap::default(),
        trusted: ArcSwap::default(),
        svids: mint::Svids::default(),
        keys,
        limits: limits::Limits::new(),
        metrics: metrics::Metrics::new(process),
        work: Semaphore::new(AT_WORK),
        changed: channel::Sender::new(0),
        started: clock::monotonic(),
        drain: process.drain.clone(),
    });
    let listener = listen::bind(&config.socket)?;
    tracing::info!(socket = %config.socket.display(), "serving the Workload API");
    process.spawn(watch::follow(Arc::clone(&workload), config.objects.clone()));
    process.spawn(refresh(Arc::clone(&workload)));
    Ok(listen::serve(workload, listener))
}

impl Workload {
    fn own(&self) -> &TrustDomain {
        self.authority.credentials.own_domain()
    }

    /// Puts entries into force.
    fn set_entries(&self, entries: Entries) {
        self.svids.keep(&entries);
        self.metrics.entries.set(i64::try_from(entries.len()).unwrap_or(i64::MAX));
        if self.entries.load().as_ref().as_ref() != Some(&entries) {
            tracing::info!(identities = entries.len(), "WorkloadIdentity objects in force");
            self.entries.store(Arc::new(Some(entries)));
            self.stir();
        }
    }

    fn stir(&self) {
        self.changed.send_modify(|generation| *generation += 1);
    }

    /// Whether the mirror controller has said who the peers are, or had time enough to.
    fn peers_known(&self) -> bool {
        let heard = self.authority.fabric.borrow().is_some();
        heard || clock::monotonic().saturating_duration_since(self.started) >= FIRST_REPORT
    }
}

/// Intermediates as anchors, by key, each until nothing that it signed holds: a day after it was last seen to sign.
#[derive(Default)]
struct Direct(Vec<(AuthorityId, CertificateDer<'static>, SystemTime)>);

impl Direct {
    fn turn(&mut self, workload: &Workload, told: &Bundle, now: SystemTime) {
        let signer = workload.authority.intermediate.load_full();
        let until = now + WORKLOAD_LIFETIME_MAX;
        if let Some(signer) = signer.filter(|signer| now < signer.not_after()) {
            match self.0.iter_mut().find(|(id, ..)| *id == signer.id()) {
                Some((.., end)) => *end = until.min(signer.not_after()),
                None => self.0.extend(signer.as_anchor(workload.own()).map(|der| (signer.id(), der, until))),
            }
        }
        let denied = told.denied.as_ref().map(|denied| denied.authorities.as_slice()).unwrap_or_default();
        self.0.retain(|(id, _, end)| now < *end && !denied.iter().any(|denied| denied == &id.0));
    }
}

/// Keeps what workloads are told up to date.
async fn refresh(workload: Arc<Workload>) {
    // Of the bundle, of the deny-list, and of whoever is to renew early.
    let mut announced = workload.authority.watch();
    let mut fabric = workload.authority.fabric.subscribe();
    let mut decided = (None, None);
    let mut direct = Direct::default();
    let mut left_out = std::collections::BTreeMap::new();
    loop {
        let now = clock::now();
        if workload.keys.turn(now) {
            workload.authority.jwt.send_replace(workload.keys.authorities());
        }
        workload.authority.record.ends("jwt_key", workload.keys.ends());
        let told = announced.borrow_and_update().clone();
        let document = workload.authority.bundle.borrow().clone();
        let report = fabric.borrow_and_update().clone();
        let report = report.map(|(report, _)| report).unwrap_or_default();
        let (mut trusted, without) = Trusted::of(workload.own(), &document, &report, now);
        direct.turn(&workload, &told, now);
        trusted.direct = direct.0.iter().map(|(_, der, _)| der.clone()).collect();
        if without != left_out {
            for (link, reason) in &without {
                tracing::warn!(link, "workloads are not given this peer's bundle: {reason}");
            }
            workload.metrics.left_out.set(i64::try_from(without.len()).unwrap_or(i64::MAX));
            left_out = without;
        }
        let signer = workload.authority.intermediate.load().as_ref().map(|signer| signer.serial().to_owned());
        let decides = (signer, told.denied.as_ref().map(|denied| denied.version));
        if **workload.trusted.load() != trusted || decides != decided {
            workload.trusted.store(Arc::new(trusted));
            decided = decides;
            let denied = told.denied.map(|denied| denied.serials).unwrap_or_default();
            workload.svids.revoke(&denied, workload.own());
            workload.stir();
        }
        let (connections, streams) = workload.limits.held();
        workload.metrics.connections.set(i64::try_from(connections).unwrap_or(i64::MAX));
        workload.metrics.streams.set(i64::try_from(streams).unwrap_or(i64::MAX));
        tokio::select! {
            _ = announced.changed() => {}
            _ = fabric.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}
