//! One gateway: its live QUIC connection, its warm TCP connections, what was learnt about it.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hawser_api::labels::{GATEWAY_ACCOUNT, SYSTEM_NAMESPACE};
use hawser_api::objects::link::Transport;
use hawser_api::{Code, Refusal, SpiffeId};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::warm::Warm;
use super::{Failure, GatewayPath, Opened, Opening, Shared, Tasks};
use crate::quic::Link;
use crate::tcp::{OpenFailure, Session};
use crate::tls::{Credentials, Expect, HandshakeError, VerifiedPeer};

/// No connection is used for new streams for longer, so that a change that nobody announced is noticed.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(3600);

/// An open on a live QUIC connection that brought back nothing at all, not even an acknowledgement, for this long (or
/// for three round trips) has met a path that drops UDP, or a gateway that is another process by now.
const SUSPICIOUS: Duration = Duration::from_millis(300);

/// A renewed certificate of a gateway reaches everything that hangs on it within this, and one small stream in so long
/// costs nothing.
const ASK: Duration = Duration::from_secs(4);

#[derive(Debug)]
pub(super) struct Path {
    gateway: GatewayPath,
    expect: Expect,
    shared: Arc<Shared>,
    tasks: Weak<Tasks>,
    link: Mutex<Option<Held>>,
    // One connect at a time; the others wait for it. Holds when the last one failed, and why.
    connecting: tokio::sync::Mutex<Option<(Instant, Failure)>>,
    warm: Mutex<Warm>,
    // Tells the filler that a warm connection was taken.
    pub(super) wanted: Notify,
    used: Mutex<Used>,
}

/// A QUIC connection and until when it is given new streams.
#[derive(Debug, Clone)]
struct Held {
    link: Link,
    terms: Terms,
}

/// What a verified connection rests on.
#[derive(Debug, Clone)]
pub(super) struct Terms {
    peer: VerifiedPeer,
    generation: u64,
    until: Instant,
}

#[derive(Debug)]
struct Used {
    last: Instant,
    transport: Option<Transport>,
    // `auto`: TCP is used without a race until then.
    tcp_until: Option<Instant>,
}

impl Path {
    pub(super) fn new(gateway: GatewayPath, shared: Arc<Shared>, tasks: &Arc<Tasks>) -> Result<Self, Refusal> {
        let id = SpiffeId::service_account(&gateway.trust_domain, SYSTEM_NAMESPACE, GATEWAY_ACCOUNT)
            .map_err(|e| Refusal::new(Code::BadRequest, e.to_string(), "correct the Link's trustDomain"))?;
        Ok(Self {
            gateway,
            expect: Expect::Identities(Arc::new([id])),
            shared,
            tasks: Arc::downgrade(tasks),
            link: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            warm: Mutex::default(),
            wanted: Notify::new(),
            used: Mutex::new(Used { last: Instant::now(), transport: None, tcp_until: None }),
        })
    }

    pub(super) fn gateway(&self) -> &GatewayPath {
        &self.gateway
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(super) fn last_use(&self) -> Instant {
        self.used.lock().last
    }

    pub(super) fn transport_in_use(&self) -> Option<Transport> {
        self.used.lock().transport
    }

    pub(super) fn note_use(&self, transport: Transport) {
        let mut used = self.used.lock();
        used.last = Instant::now();
        used.transport = Some(transport);
    }

    /// `auto`: whether TCP won lately.
    pub(super) fn prefers_tcp(&self) -> bool {
        self.used.lock().tcp_until.is_some_and(|until| Instant::now() < until)
    }

    /// `auto`: TCP won, or (`None`) nothing is known any more.
    pub(super) fn prefer_tcp(&self, prefer: bool) {
        self.used.lock().tcp_until = prefer.then(|| Instant::now() + self.shared.config.quic_retry_after);
    }

    /// Runs until the dialler is gone, unless it is gone already.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(tasks) = self.tasks.upgrade() {
            tasks.spawn(task);
        }
    }

    fn generation(&self) -> u64 {
        *self.shared.credentials.generation().borrow()
    }

    /// What a connection with this peer rests on, if it was made in this generation; `lifetime` bounds it further.
    pub(super) fn terms(&self, peer: VerifiedPeer, generation: u64, lifetime: Duration) -> Terms {
        let credentials = &self.shared.credentials;
        let now = credentials.now();
        let left = |end: SystemTime| end.duration_since(now).unwrap_or_default();
        let own = peer.ours_not_after().map(left).unwrap_or_default();
        let until = Instant::now() + lifetime.min(own).min(left(peer.not_after()));
        Terms { peer, generation, until }
    }

    pub(super) fn hold(&self, terms: &Terms) -> bool {
        terms.generation == self.generation()
            && Instant::now() < terms.until
            && self.shared.credentials.still_trusts(&terms.peer)
    }

    // --- QUIC ---

    /// The live QUIC connection, if it may take new streams. One that may not is left to its streams.
    pub(super) fn live_link(&self) -> Option<Link> {
        let mut slot = self.link.lock();
        let held = slot.as_ref()?;
        if held.link.closed().is_none() && self.hold(&held.terms) {
            // One that has fallen silent may come back; until then another is made beside it.
            return Some(held.link.clone()).filter(|link| !link.is_quiet());
        }
        slot.take()?.link.retire();
        None
    }

    /// No new streams on this connection; the next open makes another.
    pub(super) fn forget_link(&self, link: &Link) {
        let mut slot = self.link.lock();
        if slot.as_ref().is_some_and(|held| held.link.is(link)) {
            *slot = None;
        }
        link.retire();
    }

    /// The live connection or a new one. Concurrent callers share one connect, and its failure.
    pub(super) async fn link(self: &Arc<Self>) -> Result<Link, Failure> {
        if let Some(link) = self.live_link() {
            return Ok(link);
        }
        let began = Instant::now();
        let mut last_failure = self.connecting.lock().await;
        if let Some(link) = self.live_link() {
            return Ok(link);
        }
        if let Some((when, failure)) = last_failure.as_ref()
            && *when >= began
        {
            return Err(failure.clone());
        }
        match self.connect_quic().await {
            Ok(held) => {
                *last_failure = None;
                if let Some(old) = self.link.lock().replace(held.clone()) {
                    old.link.retire();
                }
                self.spawn(keep(Arc::downgrade(self), held.link.clone(), self.shared.credentials.clone()));
                Ok(held.link)
            }
            Err(failure) => {
                *last_failure = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    async fn connect_quic(&self) -> Result<Held, Failure> {
        let limit = self.shared.config.connect_timeout;
        let generation = self.generation();
        let address = self.gateway.address;
        let endpoint = self.shared.endpoints.for_address(address.ip())?;
        let connect = Link::connect(&endpoint, address, &self.shared.credentials, &self.expect);
        let link = timeout(limit, connect).await.map_err(|_| Failure::timed_out("QUIC handshake", limit))??;
        let terms = self.terms(link.peer().clone(), generation, CONNECTION_LIFETIME);
        Ok(Held { link, terms })
    }

    /// Over QUIC and nothing else. A connection that is found dead, or whose gateway takes no more, is replaced once.
    pub(super) async fn open_quic(self: &Arc<Self>, frame: Bytes) -> Result<Opened, Failure> {
        if let Some(link) = self.live_link() {
            let again = async {
                self.forget_link(&link);
                let link = self.link().await?;
                self.open_on_link(&link, frame.clone()).await
            };
            return self.open_on_live(&link, frame.clone(), again).await;
        }
        let link = self.link().await?;
        self.open_on_link(&link, frame).await
    }

    /// On a connection that was there. When that fails, or as soon as the path looks dead, `instead` is tried too; of
    /// two answers the first counts.
    pub(super) async fn open_on_live(
        &self,
        link: &Link,
        frame: Bytes,
        instead: impl Future<Output = Result<Opened, Failure>>,
    ) -> Result<Opened, Failure> {
        let heard = link.heard();
        let mut asked = std::pin::pin!(self.open_on_link(link, frame));
        let outcome = tokio::select! {
            outcome = &mut asked => Some(outcome),
            () = sleep(SUSPICIOUS.max(link.rtt() * 3)) => None,
        };
        let outcome = match outcome {
            Some(outcome) => outcome,
            None if link.heard() != heard => asked.await,
            None => {
                tracing::debug!(gateway = %self.gateway.address, "nothing comes back over QUIC; trying anew");
                return either(asked, instead).await;
            }
        };
        match outcome {
            Err(failure) if link.closed().is_some() || failure.is_draining() => instead.await,
            outcome => outcome,
        }
    }

    pub(super) async fn open_on_link(&self, link: &Link, frame: Bytes) -> Result<Opened, Failure> {
        let limit = self.shared.config.open_timeout;
        let asked = Instant::now();
        let open = timeout(limit, link.open(frame)).await;
        let (opened, stream) = open.map_err(|_| Failure::timed_out("answer over QUIC", limit))??;
        let opening = Opening { opened, stream, transport: Transport::Quic };
        Ok(Opened { opening, round_trip: asked.elapsed() })
    }

    // --- TCP ---

    /// Over TCP and nothing else: on a warm connection, or cold where there is none or where it turns out to be dead.
    pub(super) async fn open_tcp(self: &Arc<Self>, frame: Bytes) -> Result<Opened, Failure> {
        if let Some(session) = self.take_warm() {
            match self.open_on_session(session, &frame).await {
                Err(Failure::Unreached(failure)) if failure.reason != "timed_out" => {
                    tracing::debug!(gateway = %self.gateway.address, detail = failure.detail, "a warm connection was dead");
                }
                outcome => return outcome,
            }
        }
        let session = self.connect_tcp().await?.0;
        self.keep_warm();
        self.open_on_session(session, &frame).await
    }

    /// A connection whose outer handshake is done.
    pub(super) async fn connect_tcp(&self) -> Result<(Session, Terms), Failure> {
        let limit = self.shared.config.connect_timeout;
        let generation = self.generation();
        let connect = async {
            let ours = self.shared.credentials.identity();
            let tls = self.shared.credentials.client_config(&self.expect, crate::handoff::ALPN)?;
            let session = Session::connect(self.gateway.address, tls).await?;
            let peer = self.shared.credentials.verified(session.peer_chain()?, &self.expect, ours)?;
            Ok::<_, HandshakeError>((session, peer))
        };
        let (session, peer) =
            timeout(limit, connect).await.map_err(|_| Failure::timed_out("TCP handshake", limit))??;
        Ok((session, self.terms(peer, generation, self.shared.config.warm_lifetime)))
    }

    pub(super) async fn open_on_session(&self, session: Session, frame: &[u8]) -> Result<Opened, Failure> {
        let limit = self.shared.config.open_timeout;
        let asked = Instant::now();
        let open = timeout(limit, session.open(frame)).await;
        let opened = open.map_err(|_| Failure::timed_out("answer over TCP", limit))?;
        let (opened, stream) = opened.map_err(|failure: OpenFailure| Failure::from(failure))?;
        let opening = Opening { opened, stream, transport: Transport::Tcp };
        Ok(Opened { opening, round_trip: asked.elapsed() })
    }

    // --- warm connections ---

    /// A warm connection that can still be used.
    pub(super) fn take_warm(self: &Arc<Self>) -> Option<Session> {
        let session = self.warm.lock().take(|terms| self.hold(terms));
        if session.is_some() {
            self.keep_warm();
        }
        session
    }

    pub(super) fn with_warm<T>(&self, act: impl FnOnce(&mut Warm) -> T) -> T {
        act(&mut self.warm.lock())
    }
}

/// Looks after a connection, and forgets it when it is over: what is over rests on nobody's certificate any more.
async fn keep(path: Weak<Path>, link: Link, credentials: Credentials) {
    tokio::select! {
        () = link.clone().keep(credentials) => {}
        () = asked_to_leave(&path, &link) => {}
    }
    if let Some(path) = path.upgrade() {
        path.forget_link(&link);
    }
}

/// A gateway says with its answer to an open that it wants us on another connection. Where streams live and nobody opens
/// any, it is asked.
async fn asked_to_leave(path: &Weak<Path>, link: &Link) {
    loop {
        sleep(ASK.mul_f64(rand::random_range(0.5..1.0))).await;
        let Some(path) = path.upgrade().filter(|_| link.is_used()) else { continue };
        // Retires it where we have a newer certificate ourselves, also when nobody opens anything.
        let _ = path.live_link();
        let Ok(frame) = super::ping().and_then(|ping| ping.to_frame()) else { continue };
        if path.open_on_link(link, frame).await.is_err_and(|failure| failure.is_draining()) {
            path.forget_link(link);
            return std::future::pending().await;
        }
    }
}

/// The first success, or else the second failure's reason.
async fn either(
    first: impl Future<Output = Result<Opened, Failure>>,
    second: impl Future<Output = Result<Opened, Failure>>,
) -> Result<Opened, Failure> {
    let (first, mut second) = (std::pin::pin!(first), std::pin::pin!(second));
    tokio::select! {
        outcome = first => match outcome {
            Err(Failure::Unreached(_)) => second.await,
            outcome => outcome,
        },
        outcome = &mut second => outcome,
    }
}

impl Terms {
    pub(super) fn until(&self) -> Instant {
        self.until
    }
}

impl Failure {
    pub(super) fn is_draining(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.code == Code::Draining)
    }
}
