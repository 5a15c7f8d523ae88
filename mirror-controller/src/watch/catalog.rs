//! The client of one peer's catalog: through a gateway of the peer, a sealed session, one stream of updates.
//!
//! ```text
//! Dialer::open(hawser-system/catalog:443) ─ sealed::connect_shared (its mirror controller, nobody else) ─ Watch
//!     ─▶ accept (pure) ─▶ world          a heartbeat late ─▶ another gateway as well, and the first that speaks stays
//!                                        lease over ─▶ not alive
//! ```

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::client::SendRequest;
use hawser_api::names::NameError;
use hawser_api::objects::link::RefusedImport;
use hawser_api::proto::catalog::{Acknowledgement, Rejection, Update, WatchRequest};
use hawser_api::{ClusterName, Code, Refusal, ServicePort, SpiffeId, TrustDomain, labels};
use hawser_runtime::clock;
use hawser_tunnel::open::OpenRequest;
use hawser_tunnel::pool::{Dialer, GatewayPath};
use hawser_tunnel::sealed::{self, Driver};
use hawser_tunnel::tls::{Credentials, Expect, VerifiedPeer};
use http::{HeaderValue, Request};
use prost::Message;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bundles::Bundles;
use crate::catalog::grpc::{self, GrpcError};
use crate::catalog::{ACKNOWLEDGE_PATH, HEARTBEAT, LEASE, WATCH_PATH, accept, limits};
use crate::fabric::Fabric;
use crate::metrics::Metrics;
use crate::plan::clocks::{self, Estimate};
use crate::plan::{Plan, proof};
use crate::world::{Source, Store};

/// The catalog, as [`labels::SYSTEM_NAMESPACE`], [`labels::CATALOG_SERVICE`] and [`labels::CATALOG_PORT`] name it.
const TARGET: &str = "hawser-system/catalog:443";
/// A gateway that has not led to a stream after this time gets company by the next.
const HEDGE: Duration = Duration::from_millis(700);
/// From the first try to a stream.
const CONNECT: Duration = Duration::from_secs(4);
/// A heartbeat that is late by half of its period: from here on a second way is sought, while the first may still speak.
/// What is left of the lease is time enough for a handshake on a machine that has other things to do.
const DOUBT: Duration = Duration::from_millis(HEARTBEAT.as_millis() as u64 * 3 / 2);
/// Two heartbeats missed and a little: nothing comes by this way any more.
const SILENCE: Duration = Duration::from_millis(2 * HEARTBEAT.as_millis() as u64 + 200);
/// Pauses between tries that failed.
const PAUSE: std::ops::Range<Duration> = Duration::from_millis(100)..Duration::from_secs(2);
/// No peer may ask to be believed for longer than our own lease; shorter than this is noise.
const LEASE_MIN: Duration = Duration::from_millis(500);
/// From one change to the next: a hundred a second are more than a cluster makes.
const PACE: Duration = Duration::from_millis(10);
/// Parts that one change may be cut into.
const PARTS_MAX: usize = 64;
/// How late it may be noticed that a certificate is over; a change of trust is noticed at once.
const TRUST: Duration = Duration::from_secs(1);
/// After three quarters of this another session takes the place of one: the exporter may have a newer certificate, and the
/// old one's issuer cannot retire while a session rests on it. A handshake a link every 45 s is next to nothing.
const SESSION_MAX: Duration = Duration::from_secs(60);
/// What the peer knows of our validators is no older than this.
const REPEAT: Duration = Duration::from_secs(2);
/// From one acknowledgement to the next.
const TELL_PACE: Duration = Duration::from_millis(200);
/// gRPC's status of a method that a peer does not know.
const UNIMPLEMENTED: u32 = 12;
/// All that a peer is told of a refusal that is this cluster's own affair.
const NOT_TAKEN: &str = "this cluster does not take it: its Link's status says why";

/// One link's client.
pub struct Client {
    /// The peer.
    pub peer: ClusterName,
    /// Its trust domain.
    pub domain: TrustDomain,
    /// Ways to its gateways.
    pub paths: Vec<GatewayPath>,
    /// Opens tunnels.
    pub dialer: Dialer,
    /// Who we are and whom we trust.
    pub credentials: Credentials,
    /// Where what is heard goes.
    pub store: Store,
    /// Counters.
    pub metrics: Metrics,
    /// Its anchors.
    pub bundles: Bundles,
    /// What our validators hold of it.
    pub fabric: Fabric,
    /// What was made of what it offers.
    pub plans: watch::Receiver<Option<Arc<Plan>>>,
}

struct Session {
    gateway: usize,
    peer: VerifiedPeer,
    driver: Driver,
    updates: grpc::Reader,
    requests: SendRequest<Bytes>,
    /// Fires when its tunnel is replaced.
    moved: Option<CancellationToken>,
    told: Vec<Rejection>,
}

/// How a stream ended.
enum Over {
    /// It broke, and this is why.
    Broken(Refusal),
    /// It was silent, and this one speaks.
    Replaced(Box<Session>),
}

impl Client {
    /// Runs until dropped.
    pub async fn run(self) {
        let (heard, lease) = watch::channel(LEASE);
        // In this order: where this process itself was held up, what has come meanwhile is heard before a lease that ran
        // out meanwhile is called over.
        tokio::select! {
            biased;
            () = self.sessions(&heard) => {}
            () = self.lease(lease) => {}
        }
    }

    /// Alive as long as something is heard within the lease. At the start what is on disk is believed for one lease,
    /// counted from when we are somebody: nothing can be heard before.
    async fn lease(&self, mut heard: watch::Receiver<Duration>) {
        let _ = tokio::time::timeout(CONNECT, super::somebody(&self.credentials)).await;
        loop {
            let lease = *heard.borrow_and_update();
            match tokio::time::timeout(lease, heard.changed()).await {
                Ok(Ok(())) => self.alive(true),
                Ok(Err(_)) => return,
                Err(_) => {
                    self.alive(false);
                    if heard.changed().await.is_err() {
                        return;
                    }
                    self.alive(true);
                }
            }
        }
    }

    fn alive(&self, alive: bool) {
        self.store.update_peer(clock::millis(clock::now()), &self.peer, |peer| {
            let changed = peer.alive != alive;
            if changed {
                tracing::info!(cluster = %self.peer, alive, "a cluster's lease changed");
            }
            peer.alive = alive;
            changed
        });
    }

    async fn sessions(&self, heard: &watch::Sender<Duration>) {
        super::somebody(&self.credentials).await;
        let mut first = 0;
        let mut pause = PAUSE.start;
        loop {
            let trouble = match self.connect(first).await {
                Ok(mut session) => {
                    pause = PAUSE.start;
                    loop {
                        first = session.gateway;
                        match self.hold(session, heard).await {
                            Over::Broken(trouble) => break trouble,
                            Over::Replaced(next) => session = *next,
                        }
                    }
                }
                Err(trouble) => trouble,
            };
            self.shut_out();
            self.trouble(trouble);
            // The next try begins with the next gateway.
            first = (first + 1) % self.paths.len().max(1);
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            pause = (pause * 2).min(PAUSE.end);
        }
    }

    /// Follows a stream as long as it may live: it ends when its peer is not trusted any more, and makes room for another
    /// well before its certificates end, or when we have a newer one.
    async fn hold(&self, session: Session, heard: &watch::Sender<Duration>) -> Over {
        let (gateway, peer, moved) = (session.gateway, session.peer.clone(), session.moved.clone());
        tokio::select! {
            biased;
            over = self.follow(session, heard) => over,
            () = self.untrusted(&peer) => self.over("its certificate is not trusted any more"),
            next = self.renewed(gateway, &peer, moved) => Over::Replaced(Box::new(next)),
        }
    }

    async fn untrusted(&self, peer: &VerifiedPeer) {
        let mut generation = self.credentials.generation();
        while self.credentials.still_trusts(peer) {
            let _ = tokio::time::timeout(TRUST, generation.changed()).await;
        }
    }

    async fn renewed(&self, gateway: usize, peer: &VerifiedPeer, moved: Option<CancellationToken>) -> Session {
        let ends = peer.ours_not_after().map_or(peer.not_after(), |own| own.min(peer.not_after()));
        let left = ends.duration_since(clock::now()).unwrap_or_default().min(SESSION_MAX);
        // Without a tunnel that can be replaced this never fires.
        let moved = moved.unwrap_or_default();
        let another = tokio::time::timeout(left * 3 / 4, self.credentials.shows_another(peer));
        let _ = moved.run_until_cancelled(another).await;
        loop {
            // Not all links of all clusters at once.
            tokio::time::sleep(TRUST.mul_f64(rand::random_range(0.0..1.0))).await;
            if let Ok(session) = self.connect(gateway).await {
                return session;
            }
        }
    }

    /// A stream by another gateway than this, for when this one is late.
    async fn other(&self, gateway: usize) -> Result<Session, Refusal> {
        tokio::time::sleep(DOUBT).await;
        self.connect((gateway + 1) % self.paths.len().max(1)).await
    }

    /// Where its certificate was refused for its time, that says how its clock goes.
    fn shut_out(&self) {
        let gap = self.credentials.clock_gap(&self.domain);
        self.fabric.shut_out(&self.peer, gap);
        if let Some(gap) = gap {
            let known = self.store.now().peers.get(&self.peer).and_then(|peer| peer.clock_ahead_ms);
            self.show_clock(clocks::at_least(known, gap.ahead_ms()));
        }
    }

    /// Told once, and again when it becomes another: each gateway in turn gives its own words for the same thing.
    fn trouble(&self, trouble: Refusal) {
        self.store.update_peer(clock::millis(clock::now()), &self.peer, |peer| {
            if peer.trouble.as_ref().is_some_and(|known| known.code == trouble.code) {
                return false;
            }
            tracing::warn!(cluster = %self.peer, code = %trouble.code, hint = %trouble.remedy,
                "no catalog: {}", trouble.message);
            peer.trouble = Some(trouble);
            true
        });
    }

    /// The first stream that stands, beginning with gateway `first`; each that dallies gets company by the next.
    async fn connect(&self, first: usize) -> Result<Session, Refusal> {
        let count = self.paths.len();
        let mut order = (0..count).map(|step| (first + step) % count.max(1));
        let mut tries = FuturesUnordered::new();
        let mut last = unreachable(&self.peer, "the Link has no gateways");
        let deadline = tokio::time::sleep(CONNECT);
        let mut deadline = pin!(deadline);
        loop {
            match order.next() {
                Some(gateway) => tries.push(self.open(gateway)),
                None if tries.is_empty() => return Err(last),
                None => {}
            }
            let hedge = tokio::time::sleep(if order.len() > 0 { HEDGE } else { CONNECT });
            tokio::select! {
                Some(result) = tries.next() => match result {
                    Ok(session) => return Ok(session),
                    Err(refusal) => last = refusal,
                },
                () = hedge => {}
                () = &mut deadline => return Err(unreachable(&self.peer, "no gateway led to its catalog in time")),
            }
        }
    }

    async fn open(&self, gateway: usize) -> Result<Session, Refusal> {
        let path = self.paths.get(gateway).ok_or_else(|| unreachable(&self.peer, "the gateway is gone"))?;
        let bad = |error: NameError| unreachable(&self.peer, &error.to_string());
        let target: ServicePort = TARGET.parse().map_err(bad)?;
        let controller =
            SpiffeId::service_account(&self.domain, labels::SYSTEM_NAMESPACE, labels::MIRROR_CONTROLLER_ACCOUNT)
                .map_err(bad)?;
        let expect = Expect::Identities(Arc::from([controller]));
        let opening = self.dialer.open(path, &OpenRequest::any(target)).await?;
        let moved = opening.stream.moved();
        let (client, mut driver) = sealed::connect_shared(opening.stream, &self.credentials, &expect, SILENCE).await?;
        let requests = client.requests;
        let told = self.rejections();
        let cluster = self.store.now().cluster.to_string();
        let request = WatchRequest { cluster, rejections: told.clone() };
        let updates = tokio::select! {
            reader = ask(requests.clone(), WATCH_PATH, &request) => reader.map_err(|error| self.broken(&error))?,
            () = &mut driver => return Err(unreachable(&self.peer, "the session ended before the catalog answered")),
        };
        Ok(Session { gateway, peer: client.peer, driver, updates, requests, moved, told })
    }

    /// What is refused of what the peer offers, for its own users to see. Rules that the offer itself breaks are told;
    /// that a name is taken here, or a namespace not mapped, says something of this cluster and is not.
    fn rejections(&self) -> Vec<Rejection> {
        let (world, plan) = (self.store.now(), self.plans.borrow().clone());
        let broken = world.peers.get(&self.peer).map(|peer| peer.catalog.refused.as_slice()).unwrap_or_default();
        let links = plan.as_deref().map(|plan| plan.statuses.links.as_slice()).unwrap_or_default();
        let link = links.iter().find(|link| link.name == self.peer.as_str());
        let refused = link.map(|link| link.status.refused.as_slice()).unwrap_or_default();
        let rejection = |refused: &RefusedImport| {
            let (namespace, name) = refused.service.split_once('/')?;
            let reason = if broken.contains(refused) { &refused.reason } else { NOT_TAKEN };
            Some(Rejection { namespace: namespace.into(), name: name.into(), reason: reason.into() })
        };
        refused.iter().filter_map(rejection).collect()
    }

    /// What the peer is told of its services and of its bundle.
    fn acknowledgement(&self) -> Acknowledgement {
        let world = self.store.now();
        let validators = self.fabric.validators(&world);
        let bundle = world.peers.get(&self.peer).and_then(|peer| peer.bundle.as_ref());
        let pinned = bundle.is_some_and(|bundle| bundle.pinned);
        let trust = proof::acknowledgement(&validators, &self.domain, pinned, crate::now_ms());
        Acknowledgement { rejections: self.rejections(), trust: Some(trust) }
    }

    /// Tells the peer whenever that changes, and at times anyway, so that it knows that it still holds. A peer that does
    /// not want to know is not asked again.
    async fn acknowledge(&self, requests: SendRequest<Bytes>, rejections: Vec<Rejection>) {
        let (mut plans, mut changes) = (self.plans.clone(), self.fabric.changes());
        let mut told = Acknowledgement { rejections, trust: None };
        let mut due = Instant::now();
        loop {
            plans.mark_unchanged();
            changes.mark_unchanged();
            let message = self.acknowledgement();
            if Instant::now() >= due || differs(&told, &message) {
                let sent = tokio::time::timeout(CONNECT, ask(requests.clone(), ACKNOWLEDGE_PATH, &message)).await;
                match sent {
                    Ok(Err(GrpcError::Status { code: UNIMPLEMENTED, .. })) => break,
                    Ok(Ok(_)) => told = message,
                    // Lost, or not answered: said again.
                    _ => {}
                }
                due = Instant::now() + REPEAT;
            }
            tokio::select! {
                changed = plans.changed() => if changed.is_err() { break },
                () = changes.changed() => {}
                () = tokio::time::sleep_until(due) => {}
            }
            // Of what changes all the time, the peer is told this often.
            tokio::time::sleep(TELL_PACE).await;
        }
        std::future::pending().await
    }

    /// Takes updates until the stream ends or falls silent; says why it is over.
    async fn follow(&self, session: Session, heard: &watch::Sender<Duration>) -> Over {
        let Session { gateway, mut driver, mut updates, requests, told, .. } = session;
        let mut acknowledge = pin!(self.acknowledge(requests, told));
        let mut pending: Vec<Update> = Vec::new();
        let (mut bundle, mut clock) = (None, Estimate::default());
        let mut version = 0;
        let mut silence = pin!(tokio::time::sleep(SILENCE));
        let mut other = Box::pin(self.other(gateway));
        // Whether there is nothing to wait for but this stream.
        let mut alone = self.paths.len() < 2;
        loop {
            // In this order, for the same reason: the driver brings what has come, and only then is there silence.
            let next = tokio::select! {
                biased;
                () = &mut driver => return self.over("the session with its catalog ended"),
                next = updates.next::<Update>() => next,
                () = &mut acknowledge => continue,
                session = &mut other, if !alone => match session {
                    Ok(session) => return Over::Replaced(Box::new(session)),
                    Err(_) => {
                        alone = true;
                        continue;
                    }
                },
                () = &mut silence, if alone => return self.over("its catalog fell silent"),
            };
            let mut update = match next {
                Err(error) => return Over::Broken(self.broken(&error)),
                Ok(None) => return Over::Broken(self.broken(&updates.status().await)),
                Ok(Some(update)) => update,
            };
            silence.set(tokio::time::sleep(SILENCE));
            other = Box::pin(self.other(gateway));
            alone = self.paths.len() < 2;
            let (more, lease) = (update.more, lease(update.lease_ms));
            self.clock(&mut clock, update.now_ms);
            if update.version < version && !update.snapshot {
                continue;
            }
            version = update.version;
            // Refused in any case, and it could be as long as a message.
            update.region = Some(update.region).filter(|name| name.len() < 64).unwrap_or_default();
            // The last one counts, and only one is held.
            bundle = Some(std::mem::take(&mut update.bundle)).filter(|text| !text.is_empty()).or(bundle);
            pending.push(update);
            let entries: usize = pending.iter().map(|part| part.changed.len() + part.removed.len()).sum();
            if entries > 2 * limits::SERVICES_MAX || pending.len() > PARTS_MAX {
                let message = "a change of its catalog is too large";
                return Over::Broken(Refusal::new(Code::BadRequest, message, "see the peer's logs"));
            }
            if more {
                continue;
            }
            self.take(std::mem::take(&mut pending));
            if let Some(document) = bundle.take() {
                self.offer(&document).await;
            }
            self.metrics.heard(&self.peer, clock::millis(clock::now()));
            heard.send_replace(lease);
            // What a peer sends faster waits in its own buffers.
            tokio::time::sleep(PACE).await;
        }
    }

    fn take(&self, updates: Vec<Update>) {
        let now = clock::millis(clock::now());
        let domain = &self.domain;
        self.store.update_peer(now, &self.peer, |peer| {
            let nothing = |update: &Update| {
                let services = update.snapshot || !update.changed.is_empty() || !update.removed.is_empty();
                !services && (update.region.is_empty() || update.region == peer.catalog.region)
            };
            let heartbeat = updates.iter().all(nothing);
            let mut changed = peer.trouble.take().is_some();
            if !heartbeat {
                changed |= !std::mem::replace(&mut peer.heard, true);
                let next =
                    updates.iter().fold(peer.catalog.as_ref().clone(), |known, u| accept::update(&known, u, domain));
                changed |= next != *peer.catalog;
                peer.catalog = Arc::new(next);
            }
            changed
        });
    }

    /// Its clock, if it tells.
    fn clock(&self, estimate: &mut Estimate, told_ms: i64) {
        let world = self.store.now();
        let Some(peer) = world.peers.get(&self.peer).filter(|_| told_ms > 0) else { return };
        let ahead = estimate.heard(told_ms, crate::now_ms(), clocks::round_trip_us(peer));
        self.fabric.clock(&self.peer, ahead);
        self.show_clock(ahead);
    }

    fn show_clock(&self, ahead_ms: i64) {
        self.metrics.clock(&self.peer, ahead_ms);
        self.store.update_peer(crate::now_ms(), &self.peer, |peer| {
            let tells = clocks::tells(peer.clock_ahead_ms, ahead_ms);
            if tells {
                peer.clock_ahead_ms = Some(ahead_ms);
            }
            tells
        });
    }

    /// Its bundle, which takes effect at once if it may. What a peer sends faster than this waits in its own buffers.
    async fn offer(&self, document: &str) {
        if let Err(refusal) = self.bundles.offer(&self.peer, Source::Tunnel, document).await {
            tracing::warn!(cluster = %self.peer, "the peer's bundle is not taken: {}", refusal.message);
        }
        tokio::time::sleep(TELL_PACE).await;
    }

    fn over(&self, why: &str) -> Over {
        Over::Broken(unreachable(&self.peer, why))
    }

    fn broken(&self, error: &GrpcError) -> Refusal {
        match error {
            GrpcError::Status { code: 7, message } => Refusal::new(
                Code::NotLinked,
                format!("{} does not serve its catalog to this cluster: {message}", self.peer),
                format!("add a Link to this cluster, with its trust domain, in {}", self.peer),
            ),
            error => unreachable(&self.peer, &format!("its catalog broke off: {error}")),
        }
    }
}

fn differs(told: &Acknowledgement, now: &Acknowledgement) -> bool {
    let same = match (&told.trust, &now.trust) {
        (Some(told), Some(now)) => proof::same(told, now),
        (told, now) => told.is_none() && now.is_none(),
    };
    !same || told.rejections != now.rejections
}

/// Begins a call with its one message.
async fn ask(requests: SendRequest<Bytes>, path: &str, message: &impl Message) -> Result<grpc::Reader, GrpcError> {
    let mut requests = requests.ready().await?;
    let mut request = Request::new(());
    *request.method_mut() = http::Method::POST;
    let uri = http::Uri::builder().scheme("https").authority("catalog.hawser-system").path_and_query(path);
    *request.uri_mut() = uri.build().unwrap_or_default();
    let headers = request.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    headers.insert("te", HeaderValue::from_static("trailers"));
    headers.insert(labels::HEADER_TARGET, HeaderValue::from_static(TARGET));
    let (response, mut body) = requests.send_request(request, false)?;
    body.send_data(grpc::encode(message), true)?;
    let response = response.await?;
    if !response.status().is_success() || response.headers().contains_key("grpc-status") {
        return Err(grpc::status(response.headers()));
    }
    Ok(grpc::Reader::new(response.into_body(), limits::check_update))
}

fn unreachable(peer: &ClusterName, why: &str) -> Refusal {
    let remedy = format!("see `hawser check`; {peer} is tried again all the time");
    Refusal::new(Code::PeerUnreachable, format!("{peer}: {why}"), remedy)
}

fn lease(ms: u32) -> Duration {
    Duration::from_millis(u64::from(ms)).clamp(LEASE_MIN, LEASE)
}
