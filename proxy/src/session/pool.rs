//! The sessions to one service port in one cluster.
//!
//! Inside the cluster the members are the table's endpoints, each with a session once it is used. Behind a peer's
//! gateways the members are the sessions themselves, to as many distinct endpoints as there are, up to [`SPREAD`]: the
//! gateway names the endpoint of each, and is asked to avoid those that we have.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use hawser_api::{ClusterName, Code, Refusal, ServiceKey, ServicePort};
use http::HeaderValue;
use http::uri::Authority;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::connect;
use super::flight::Flight;
use super::member::{Hold, Member, Session, Ticket};
use crate::balance::{Standing, pick};
use crate::context::Context;
use crate::table::{Backend, Endpoint, Peer, Reach};

/// Distinct far endpoints that one proxy keeps sessions to: two random choices out of four are nearly as even as out of
/// all, and many proxies together spread over all.
pub(super) const SPREAD: usize = 4;
/// The gateway's limit on `avoid`.
const AVOID_MAX: usize = 16;
/// How long a far endpoint whose session failed is avoided: its own probes have found it by then.
const SHUN: Duration = Duration::from_secs(5);
/// How often one stream may find a session full that was opened for it and others.
const ROUNDS: u32 = 4;
/// First and longest pause between tries to reach a backend that cannot be reached.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Longest pause that a request waits for when there is nobody else: an endpoint that has just been restarted is back by
/// then, and a caller of what is really gone is still told within a moment.
const PAUSE_WAITED_FOR: Duration = Duration::from_millis(500);

/// Which pool: a cluster's name, a service port as that cluster calls it, and the endpoint where it is to be no other.
pub(crate) type Key = (ClusterName, ServicePort, Option<Arc<str>>);

/// The sessions to one service port in one cluster.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Which cluster.
    pub(crate) cluster: ClusterName,
    /// The service port as that cluster calls it.
    pub(crate) target: ServicePort,
    /// This endpoint and no other.
    pub(crate) only: Option<Arc<str>>,
    /// The same as the header that each stream bears.
    pub(crate) target_header: HeaderValue,
    /// The same as the authority of CONNECT streams, which nobody consults.
    pub(crate) authority: Authority,
    members: ArcSwap<Vec<Arc<Member>>>,
    state: Mutex<State>,
    flight: Flight<(Arc<Member>, Arc<Session>)>,
    health: AtomicU8,
}

#[derive(Debug)]
struct State {
    backend: Arc<Backend>,
    peer: Option<Arc<Peer>>,
    named_by: Vec<ServiceKey>,
    /// Everything that runs, also what gets no new streams.
    holds: Vec<Weak<Hold>>,
    shunned: HashMap<Arc<str>, Instant>,
    /// How many far endpoints there are, as a gateway said last.
    ready: Option<u32>,
    trouble: Option<Trouble>,
    /// Every gateway of the peer seems down.
    cut_off: bool,
    top_up_at: Instant,
    used: Instant,
}

/// A backend that could not be reached.
#[derive(Debug, Clone)]
struct Trouble {
    refusal: Refusal,
    pause: Duration,
    again_at: Instant,
}

/// Why a pool has no place for a stream.
#[derive(Debug)]
pub(crate) struct NoPlace {
    pub(crate) refusal: Refusal,
    /// The member that was to be used, so that it is not tried again; `None`: the pool has no other.
    pub(crate) member: Option<u64>,
}

impl Pool {
    pub(super) fn new(key: Key, backend: Arc<Backend>, peer: Option<Arc<Peer>>) -> Self {
        let (cluster, target, only) = key;
        let text = target.to_string();
        let now = Instant::now();
        let state = State {
            backend: backend.clone(),
            peer: peer.clone(),
            named_by: Vec::new(),
            holds: Vec::new(),
            shunned: HashMap::new(),
            ready: None,
            trouble: None,
            cut_off: false,
            top_up_at: now,
            used: now,
        };
        let pool = Self {
            cluster,
            target,
            only,
            // A service port is letters, digits and "-/:".
            target_header: HeaderValue::try_from(&text).unwrap_or_else(|_| HeaderValue::from_static("")),
            authority: Authority::try_from(text.replace('/', ".")).unwrap_or_else(|_| Authority::from_static("hawser")),
            members: ArcSwap::default(),
            state: Mutex::new(state),
            flight: Flight::default(),
            health: AtomicU8::new(0),
        };
        pool.update(backend, peer, Vec::new());
        pool
    }

    /// The destinations that led here when any did.
    pub(super) fn named_by(&self) -> Vec<ServiceKey> {
        self.state.lock().named_by.clone()
    }

    /// A destination leads here.
    pub(crate) fn name(&self, destination: &ServiceKey) {
        let named_by = &mut self.state.lock().named_by;
        if !named_by.contains(destination) {
            named_by.push(destination.clone());
        }
    }

    /// From now on the table says this.
    pub(super) fn update(&self, backend: Arc<Backend>, peer: Option<Arc<Peer>>, named_by: Vec<ServiceKey>) {
        if let Reach::Local(endpoints) = &backend.reach {
            self.follow(endpoints);
        }
        let holds = {
            let mut state = self.state.lock();
            let refreshed = !Arc::ptr_eq(&state.backend, &backend) || state.peer.is_some() != peer.is_some();
            if refreshed {
                // The catalog has spoken since: its number is the fresher one, and what was lost may be back.
                state.ready = None;
                if let Some(trouble) = &mut state.trouble {
                    trouble.again_at = Instant::now();
                }
            }
            (state.backend, state.peer, state.named_by) = (backend.clone(), peer.clone(), named_by);
            state.holds.clone()
        };
        match (&backend.reach, &peer) {
            (Reach::Remote { .. }, Some(peer)) => self.leave_gateways(peer),
            (Reach::Remote { .. }, None) => self.cut(Code::NotLinked),
            (Reach::Local(_), _) => {}
        }
        for hold in holds.iter().filter_map(Weak::upgrade) {
            if !backend.identities.contains(hold.peer.id()) {
                hold.cut(Code::WrongIdentity);
            }
        }
        self.refresh(Instant::now());
    }

    /// Gives no new streams to sessions through gateways that are gone from the link, or down while others are not.
    fn leave_gateways(&self, peer: &Peer) {
        let others = peer.gateways.iter().any(|gateway| !gateway.down);
        let stays = |member: &&Arc<Member>| {
            let session = member.live();
            let Some(path) = session.as_ref().and_then(|session| session.gateway.as_ref()) else { return true };
            peer.gateways.iter().any(|gateway| gateway.path == *path && (!gateway.down || !others))
        };
        if !self.members.load().iter().all(|member| stays(&member)) {
            self.members.rcu(|members| members.iter().filter(stays).cloned().collect::<Vec<_>>());
            self.state.lock().top_up_at = Instant::now();
        }
    }

    /// Makes the members those endpoints of the table that take new work; what is gone gets no new streams.
    fn follow(&self, endpoints: &[Endpoint]) {
        let now = self.members.load();
        let serves = |e: &&Endpoint| e.ready && serves(e, self.target.port);
        let member = |e: &Endpoint| {
            let same = |m: &&Arc<Member>| m.id == e.id && m.address == Some(e.inbound);
            now.iter().find(same).cloned().unwrap_or_else(|| Arc::new(Member::new(e.id.clone(), Some(e.inbound))))
        };
        self.members.store(Arc::new(endpoints.iter().filter(serves).map(member).collect()));
    }

    /// The share that takes new work, percent; as of the last [`refresh`](Self::refresh).
    pub(crate) fn health(&self) -> u8 {
        self.health.load(Ordering::Relaxed)
    }

    /// Computes [`health`](Self::health) anew.
    pub(crate) fn refresh(&self, now: Instant) {
        let members = self.members.load();
        let well = members.iter().filter(|m| m.cost(now).is_some() || m.load.standing(now) == Standing::Probation);
        let well = well.count();
        let state = self.state.lock();
        let percent = match &state.backend.reach {
            Reach::Local(endpoints) => percent(well, endpoints.iter().filter(|e| serves(e, self.target.port)).count()),
            Reach::Remote { .. } => {
                let alive = state.peer.as_ref().is_some_and(|peer| peer.alive);
                let unreachable = state.trouble.is_some() || state.cut_off || !alive;
                let bad = members.len() - well + state.shunned.len();
                let wanted = state.wanted();
                // Whoever has a live session has better news than a catalog that has fallen silent.
                if wanted == 0 || (unreachable && well == 0) { 0 } else { percent(wanted.saturating_sub(bad), wanted) }
            }
        };
        self.health.store(percent, Ordering::Relaxed);
    }

    /// A place for one stream: in a session that is there, or in one that is opened for it. `tried` are members that
    /// failed for the same stream. Unless this is the last resort, waits no longer than another backend deserves.
    pub(crate) async fn place(
        self: &Arc<Self>,
        context: &Arc<Context>,
        tried: &[u64],
        last_resort: bool,
    ) -> Result<Ticket, NoPlace> {
        for _ in 0..ROUNDS {
            let now = Instant::now();
            self.state.lock().used = now;
            let (member, session) = match self.choose(now, tried, last_resort) {
                Some(member) => {
                    let session = self.session(context, &member, last_resort).await?;
                    (member, session)
                }
                None => self.far(context, last_resort).await?,
            };
            // Those who waited with us may have filled it.
            if !session.full() {
                return Ok(Ticket::new(member, session, Instant::now()));
            }
        }
        let message = format!("the sessions to {} are full as soon as they are opened", self.target);
        Err(NoPlace {
            refusal: Refusal::new(Code::Overloaded, message, "call with fewer streams at a time"),
            member: None,
        })
    }

    /// A session to this member that has room.
    async fn session(
        self: &Arc<Self>,
        context: &Arc<Context>,
        member: &Arc<Member>,
        last_resort: bool,
    ) -> Result<Arc<Session>, NoPlace> {
        if let Some(session) = member.live().filter(|session| !session.full()) {
            return Ok(session);
        }
        let waiting = connect::member(context, self, member);
        let patience = if last_resort { Duration::MAX } else { context.settings.hedge };
        let outcome = tokio::time::timeout(patience, waiting.outcome()).await;
        let outcome = outcome.unwrap_or_else(|_| Err(slow(&self.target, patience)));
        outcome.map_err(|refusal| NoPlace { refusal, member: Some(member.number) })
    }

    /// The member for the next stream. As a last resort also one that is out, and one that was tried.
    pub(crate) fn choose(&self, now: Instant, tried: &[u64], last_resort: bool) -> Option<Arc<Member>> {
        let members = self.members.load();
        let fresh = |at: usize| members.get(at).filter(|m| !tried.contains(&m.number));
        let best = pick(members.len(), rand::random::<u64>, |at| fresh(at).and_then(|m| m.cost(now)));
        let found = best.or_else(|| {
            let any = |at: usize| fresh(at).map(|m| m.load.cost(now));
            last_resort.then(|| pick(members.len(), rand::random::<u64>, any)).flatten()
        });
        found.and_then(|at| members.get(at).cloned())
    }

    /// No member will do: opens a session to any endpoint, if this is a peer's.
    async fn far(
        self: &Arc<Self>,
        context: &Arc<Context>,
        last_resort: bool,
    ) -> Result<(Arc<Member>, Arc<Session>), NoPlace> {
        let local = matches!(self.state.lock().backend.reach, Reach::Local(_));
        let refused = if local { Some(self.nobody()) } else { self.paused(last_resort).await };
        if let Some(refusal) = refused {
            return Err(NoPlace { refusal, member: None });
        }
        // An open through a second gateway has its time in it.
        let patience = if last_resort { Duration::MAX } else { context.settings.hedge * 2 };
        let outcome = tokio::time::timeout(patience, connect::far(context, self).outcome()).await;
        let outcome = outcome.unwrap_or_else(|_| Err(slow(&self.target, patience)));
        outcome.map_err(|refusal| NoPlace { refusal, member: None })
    }

    /// Why there is no place when no member will do.
    pub(crate) fn nobody(&self) -> Refusal {
        let message = format!("no endpoint of {} takes new work", self.target);
        Refusal::new(Code::NoEndpoint, message, "check that its workloads and their proxies run")
    }

    /// The refusal of a backend that could not be reached a moment ago: [`tend`](Self::tend) asks it again, and waiting
    /// for that would only delay the next backend. As a last resort there is no next one: a short pause is waited for.
    async fn paused(&self, last_resort: bool) -> Option<Refusal> {
        let (refusal, again_at) = {
            let state = self.state.lock();
            let trouble = state.trouble.as_ref()?;
            (trouble.refusal.clone(), trouble.again_at)
        };
        if !last_resort || again_at.saturating_duration_since(Instant::now()) > PAUSE_WAITED_FOR {
            return Some(refusal);
        }
        tokio::time::sleep_until(again_at).await;
        None
    }

    /// A far endpoint has a session.
    pub(super) fn joined(&self, member: &Arc<Member>, session: &Arc<Session>, ready: u32) {
        let now = Instant::now();
        let known = {
            let mut state = self.state.lock();
            state.trouble = None;
            state.ready = Some(ready);
            state.shunned.remove(&member.id);
            state.holds.push(Arc::downgrade(&session.hold));
            // The gateway had no other: no use in asking again for a while.
            let known = self.members.load().iter().any(|m| m.id == member.id && m.live().is_some());
            state.top_up_at = if known { now + SHUN } else { now };
            known
        };
        self.members.rcu(|members| {
            let good = |m: &Arc<Member>| m.live().is_some_and(|s| !s.full() && !s.is_suspect());
            let stays = |m: &&Arc<Member>| m.id != member.id || (known && good(m));
            let mut members: Vec<_> = members.iter().filter(stays).cloned().collect();
            // A second session to the same endpoint is only worth having when the first is full.
            if !members.iter().any(|m| m.id == member.id) {
                members.push(member.clone());
            }
            members
        });
        self.refresh(now);
    }

    /// Keeps an eye on a session until it is over.
    pub(super) fn track(&self, hold: &Arc<Hold>) {
        self.state.lock().holds.push(Arc::downgrade(hold));
    }

    /// A member's session ended, or could not be had. An endpoint of our own stays; a far one is one of many, and
    /// another takes its place.
    pub(super) fn lost(&self, member: &Arc<Member>) {
        let now = Instant::now();
        if member.address.is_none() {
            let stays = |m: &&Arc<Member>| m.number != member.number;
            self.members.rcu(|members| members.iter().filter(stays).cloned().collect::<Vec<_>>());
            let none = self.members.load().is_empty();
            let mut state = self.state.lock();
            state.shunned.insert(member.id.clone(), now + SHUN);
            state.top_up_at = now;
            if none && state.trouble.is_none() {
                // Perhaps the whole cluster is gone. Until one of its endpoints has answered again, which `tend` asks
                // for at once, others are asked first.
                let message = format!("the last session to {} has just ended", self.target);
                let refusal = Refusal::new(Code::PeerUnreachable, message, "check the peer's gateways and proxies");
                state.trouble = Some(Trouble { refusal, pause: PAUSE_FIRST / 2, again_at: now });
            }
        }
        self.refresh(now);
    }

    /// The backend could not be reached.
    pub(super) fn failed(&self, refusal: &Refusal) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let pause = state.trouble.as_ref().map_or(PAUSE_FIRST, |t| (t.pause * 2).min(PAUSE_MAX));
        let pause = refusal.retry_after.map_or(pause, |after| after.clamp(PAUSE_FIRST, PAUSE_MAX));
        state.trouble = Some(Trouble { refusal: refusal.clone(), pause, again_at: now + pause });
        state.top_up_at = now + pause;
        drop(state);
        self.refresh(now);
    }

    /// The members now.
    pub(crate) fn members(&self) -> Arc<Vec<Arc<Member>>> {
        self.members.load_full()
    }

    /// What the table said last.
    pub(crate) fn backend(&self) -> Arc<Backend> {
        self.state.lock().backend.clone()
    }

    /// The peer, if this is one's.
    pub(crate) fn peer(&self) -> Option<Arc<Peer>> {
        self.state.lock().peer.clone()
    }

    /// Why the backend cannot be reached, if that is so.
    pub(crate) fn trouble(&self) -> Option<Refusal> {
        self.state.lock().trouble.as_ref().map(|trouble| trouble.refusal.clone())
    }

    /// Endpoint ids that a gateway should not choose: those that we have, and those that failed.
    pub(crate) fn avoid(&self) -> Vec<String> {
        let members = self.members.load();
        let state = self.state.lock();
        let ids = state.shunned.keys().chain(members.iter().filter(|m| m.live().is_some()).map(|m| &m.id));
        ids.take(AVOID_MAX).map(|id| id.to_string()).collect()
    }

    /// Everything that runs.
    pub(super) fn holds(&self) -> Vec<Arc<Hold>> {
        self.state.lock().holds.iter().filter_map(Weak::upgrade).collect()
    }

    /// Cuts every session, for this reason.
    pub(super) fn cut(&self, why: Code) {
        self.members.store(Arc::default());
        for hold in self.holds() {
            hold.cut(why);
        }
    }

    /// No new streams in any session that is here now.
    pub(super) fn retire(&self) {
        for member in self.members.load().iter() {
            member.session.store(None);
        }
        if matches!(self.state.lock().backend.reach, Reach::Remote { .. }) {
            self.members.store(Arc::default());
        }
    }

    /// What has to be done from time to time: forgets what is over, opens what is missing.
    pub(super) fn tend(self: &Arc<Self>, context: &Arc<Context>, now: Instant) {
        let cut_off = self.peer().is_some_and(|peer| context.sessions.gateways.all_down(&peer, now));
        let open_far = {
            let mut state = self.state.lock();
            state.cut_off = cut_off;
            state.holds.retain(|hold| hold.upgrade().is_some_and(|hold| !hold.is_over()));
            state.shunned.retain(|_, until| *until > now);
            let asked = now.saturating_duration_since(state.used) < context.settings.idle;
            let due = state.trouble.as_ref().map_or(state.top_up_at, |t| t.again_at) <= now;
            let remote = matches!(state.backend.reach, Reach::Remote { .. });
            remote && asked && due && self.members.load().len() < state.wanted()
        };
        if open_far && !self.flight.under_way() {
            connect::far(context, self);
        }
        for member in self.members.load().iter() {
            if let Some(session) = member.live().filter(|session| session.is_suspect()) {
                session.suspect();
                if let Some(gateway) = &session.gateway {
                    context.sessions.gateways.suspect(gateway);
                }
            }
            let lost = member.unreachable.load(Ordering::Relaxed) && member.load.standing(now) == Standing::Probation;
            if lost && member.live().is_none() && !member.flight.under_way() {
                connect::member(context, self, member);
            }
        }
        self.refresh(now);
    }

    pub(super) fn flight(&self) -> &Flight<(Arc<Member>, Arc<Session>)> {
        &self.flight
    }
}

impl State {
    /// To how many far endpoints there should be sessions.
    fn wanted(&self) -> usize {
        let Reach::Remote { endpoints_ready } = self.backend.reach else { return 0 };
        let spread = if self.backend.only.is_some() { 1 } else { SPREAD };
        usize::try_from(self.ready.unwrap_or(endpoints_ready)).unwrap_or(spread).min(spread)
    }
}

fn serves(endpoint: &Endpoint, port: u16) -> bool {
    endpoint.ports.is_empty() || endpoint.ports.contains(&port)
}

fn percent(part: usize, whole: usize) -> u8 {
    if whole == 0 {
        return 0;
    }
    // One of a thousand is not none.
    let percent = (part.min(whole) * 100).div_ceil(whole);
    u8::try_from(percent).unwrap_or(100)
}

fn slow(target: &ServicePort, after: Duration) -> Refusal {
    let message = format!("no session to {target} within {after:?}");
    Refusal::new(Code::TimedOut, message, "check that its proxies and gateways are not overloaded")
}
