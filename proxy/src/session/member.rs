//! One endpoint of a pool and its sealed session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use h2::client::SendRequest;
use hawser_api::Code;
use hawser_tunnel::pool::GatewayPath;
use hawser_tunnel::sealed::SharedClient;
use hawser_tunnel::tls::VerifiedPeer;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::flight::Flight;
use crate::balance::{Failure, Load, Standing};
use crate::streams::Path;

/// What a session rests on, shared or dedicated: when that is gone, the session is cut.
#[derive(Debug)]
pub(crate) struct Hold {
    /// Who serves.
    pub(crate) peer: VerifiedPeer,
    /// How long it may live.
    pub(super) life: Life,
    stop: CancellationToken,
    over: AtomicBool,
    why: Mutex<Option<Code>>,
}

impl Hold {
    pub(super) fn new(peer: VerifiedPeer, life: Life) -> Self {
        Self { peer, life, stop: CancellationToken::new(), over: AtomicBool::new(false), why: Mutex::default() }
    }

    /// Fires when the session is cut.
    pub(crate) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Whether it is over.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// A dedicated session has ended.
    pub(crate) fn finish(&self) {
        self.ended();
    }

    /// It has ended.
    pub(super) fn ended(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Ends it now, with all its streams.
    pub(super) fn cut(&self, why: Code) {
        self.why.lock().get_or_insert(why);
        self.ended();
        self.stop.cancel();
    }

    /// Why it was cut, if it was.
    pub(crate) fn cut_because(&self) -> Option<Code> {
        *self.why.lock()
    }
}

/// A shared sealed session to one endpoint. Whoever has a stream in it holds it; when it has been taken out of its pool
/// and the last stream ends, it closes.
#[derive(Debug)]
pub(crate) struct Session {
    /// How it goes.
    pub(crate) path: Arc<Path>,
    /// The gateway it runs through; `None`: straight inside the cluster.
    pub(crate) gateway: Option<GatewayPath>,
    /// Since when.
    pub(crate) since: Instant,
    /// What it rests on.
    pub(crate) hold: Arc<Hold>,
    client: SharedClient,
    open: AtomicU32,
    used: Mutex<Instant>,
    suspected: Notify,
    /// Fires when the tunnel that it runs through is replaced.
    moved: Option<CancellationToken>,
}

/// How late the answer to a session's keepalive may be before others are preferred: more than any round trip, and jitter
/// besides.
const SUSPECT: Duration = Duration::from_millis(250);

impl Session {
    pub(super) fn new(
        client: SharedClient,
        path: Path,
        (gateway, moved): (Option<GatewayPath>, Option<CancellationToken>),
        life: Life,
    ) -> Self {
        let now = Instant::now();
        Self {
            path: Arc::new(path),
            gateway,
            since: now,
            hold: Arc::new(Hold::new(client.peer.clone(), life)),
            client,
            open: AtomicU32::new(0),
            used: Mutex::new(now),
            suspected: Notify::new(),
            moved,
        }
    }

    /// Whether its peer owes a sign of life.
    pub(crate) fn is_suspect(&self) -> bool {
        self.client.overdue() > SUSPECT
    }

    /// Whether its tunnel has been replaced: what holds it in use is this session.
    pub(crate) fn has_moved(&self) -> bool {
        self.moved.as_ref().is_some_and(CancellationToken::is_cancelled)
    }

    /// Waits until its peer owes a sign of life.
    pub(crate) async fn suspected(&self) {
        self.suspected.notified().await;
    }

    /// Tells those who wait for it that it is suspect.
    pub(super) fn suspect(&self) {
        self.suspected.notify_waiters();
    }

    /// A handle that sends.
    pub(crate) fn requests(&self) -> SendRequest<Bytes> {
        self.client.requests.clone()
    }

    /// Streams open now.
    pub(crate) fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether it can take no more streams than it has.
    pub(super) fn full(&self) -> bool {
        let open = self.open();
        // Asking takes the connection's lock; no peer of ours allows fewer than this.
        open >= 64 && usize::try_from(open).unwrap_or(usize::MAX) >= self.client.requests.current_max_send_streams()
    }

    pub(super) fn idle_since(&self) -> Option<Instant> {
        (self.open() == 0).then(|| *self.used.lock())
    }
}

/// A session that is as old gets no new streams: the next one's handshake looks at the certificates again.
const AGE_MAX: Duration = Duration::from_secs(3600);

/// How long a session may live.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life {
    /// When the first of both certificates ends.
    pub(super) not_after: SystemTime,
    /// When it gets no new streams any more, for that reason.
    pub(super) retire_at: SystemTime,
}

impl Life {
    /// Until the first of both certificates ends; new streams go elsewhere a little before that, and after an hour.
    pub(super) fn new(now: SystemTime, own: SystemTime, peer: SystemTime) -> Self {
        let not_after = own.min(peer);
        let left = not_after.duration_since(now).unwrap_or_default();
        // A minute lets most requests end by themselves; of a certificate that is as short as a test's, a quarter.
        let early = (left / 4).min(Duration::from_secs(60));
        let retire_at = not_after.checked_sub(early).unwrap_or(not_after).min(now + AGE_MAX);
        Self { not_after, retire_at }
    }
}

/// One endpoint of a pool.
#[derive(Debug)]
pub(crate) struct Member {
    /// The endpoint's id.
    pub(crate) id: Arc<str>,
    /// Tells this membership from an earlier one of the same endpoint.
    pub(crate) number: u64,
    /// How it does.
    pub(crate) load: Load,
    /// Where its proxy is; `None`: behind a gateway.
    pub(super) address: Option<SocketAddr>,
    /// The session, if there is one.
    pub(super) session: ArcSwapOption<Session>,
    /// A session under way.
    pub(super) flight: Flight<Arc<Session>>,
    /// The last try to get a session failed.
    pub(super) unreachable: AtomicBool,
}

impl Member {
    pub(super) fn new(id: Arc<str>, address: Option<SocketAddr>) -> Self {
        // Unique over all pools: one request may have tried members of several.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            load: Load::new(Instant::now()),
            address,
            session: ArcSwapOption::empty(),
            flight: Flight::default(),
            unreachable: AtomicBool::new(false),
        }
    }

    /// Where its proxy is; `None`: behind a gateway.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The session, if there is one that takes streams.
    pub(crate) fn live(&self) -> Option<Arc<Session>> {
        self.session.load_full().filter(|session| !session.hold.is_over())
    }

    /// What one more stream costs here; `None`: no stream may be sent here now.
    pub(super) fn cost(&self, now: Instant) -> Option<f64> {
        let out = self.load.standing(now) == Standing::Out;
        let session = self.session.load();
        let lost = match &*session {
            Some(session) => session.is_suspect(),
            None => self.unreachable.load(Ordering::Relaxed),
        };
        (!out && !lost).then(|| self.load.cost(now))
    }

    /// Why it gets no new work, if it gets none.
    pub(crate) fn out_because(&self, now: Instant) -> Option<&'static str> {
        if self.unreachable.load(Ordering::Relaxed) && self.session.load().is_none() {
            return Some("its proxy could not be reached");
        }
        if self.live().is_some_and(|session| session.is_suspect()) {
            return Some("its session owes a sign of life");
        }
        match self.load.standing(now) {
            Standing::In => None,
            Standing::Probation => Some("on probation after failures: one stream at a time"),
            Standing::Out => Some("ejected after failures"),
        }
    }
}

/// A place for one stream in an endpoint's session. Dropping it without a report says nothing of the endpoint.
#[derive(Debug)]
pub(crate) struct Ticket {
    /// The endpoint.
    pub(crate) member: Arc<Member>,
    /// Its session.
    pub(crate) session: Arc<Session>,
    began: Instant,
    reported: bool,
}

impl Ticket {
    pub(super) fn new(member: Arc<Member>, session: Arc<Session>, now: Instant) -> Self {
        member.load.begin(now);
        session.open.fetch_add(1, Ordering::Relaxed);
        Self { member, session, began: now, reported: false }
    }

    /// The endpoint answered.
    pub(crate) fn answered(&mut self) {
        if !std::mem::replace(&mut self.reported, true) {
            let now = Instant::now();
            self.member.load.answered(now, now.saturating_duration_since(self.began));
        }
    }

    /// The session gets no new streams any more.
    pub(crate) fn retire(&self) {
        let current = self.member.session.load();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &self.session)) {
            self.member.session.store(None);
        }
    }

    /// It failed; says whether it was ejected for it.
    pub(crate) fn failed(&mut self, failure: Failure) -> bool {
        if std::mem::replace(&mut self.reported, true) {
            return false;
        }
        let now = Instant::now();
        self.member.load.failed(now, now.saturating_duration_since(self.began), failure)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let now = Instant::now();
        if !self.reported {
            self.member.load.abandoned(now, now.saturating_duration_since(self.began));
        }
        self.member.load.end();
        self.session.open.fetch_sub(1, Ordering::Relaxed);
        *self.session.used.lock() = now;
    }
}
