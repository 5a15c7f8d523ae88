//! Sealed sessions to destinations' endpoints, shared by all requests and connections of this proxy.
//!
//! ```text
//! Sessions ─ Target (a destination's port) ─ Leg (one of its backends) ─▶ Pool (a service port in a cluster)
//!                                                                         ├ Member (an endpoint) ─ Session
//!                                                                         └ Member …
//! ```
//!
//! Mirrors and federated services that lead to the same service port of the same cluster share its pool. A pool follows
//! the tables: what was withdrawn is cut, what merely moved gets no new streams.

mod connect;
mod flight;
mod member;
mod pool;

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hawser_api::{Code, ServiceKey};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::context::Context;
use crate::dial::Gateways;
use crate::outbound::target::Target;
use crate::table::{Backend, Destination, Tables};

pub(crate) use connect::{Reached, expect, hold, in_time, through_gateway};
pub(crate) use member::{Hold, Member, Session, Ticket};
pub(crate) use pool::{Key as PoolKey, NoPlace, Pool};

/// How often sessions are looked after: certificates, ejections that are over, endpoints that are missing.
const TEND: Duration = Duration::from_millis(200);

/// All pools, and the destinations in use.
#[derive(Debug, Default)]
pub struct Sessions {
    pools: Mutex<HashMap<PoolKey, Arc<Pool>>>,
    targets: Mutex<HashMap<(ServiceKey, u16), Arc<Target>>>,
    /// How the peers' gateways do.
    pub(crate) gateways: Gateways,
}

impl Sessions {
    /// A destination's port, as the newest table has it.
    pub(crate) fn target(&self, context: &Context, destination: &Arc<Destination>, port: u16) -> Arc<Target> {
        let key = (destination.key.clone(), port);
        if let Some(target) = self.targets.lock().get(&key) {
            return target.clone();
        }
        let tables = context.tables_owned();
        let newest = tables.destinations.get(&destination.key).unwrap_or(destination);
        let target = Arc::new(Target::new(context, &tables, newest.clone(), port));
        let target = self.targets.lock().entry(key).or_insert(target).clone();
        // The tables may have changed since they were read, before this target could be told.
        let tables = context.tables_owned();
        if let Some(newest) = tables.destinations.get(&destination.key) {
            target.follow(context, &tables, Some(newest));
        }
        target
    }

    /// All destinations' ports in use.
    pub(crate) fn targets(&self) -> Vec<Arc<Target>> {
        self.targets.lock().values().cloned().collect()
    }

    /// The pool of a backend.
    pub(crate) fn pool(&self, tables: &Tables, backend: &Arc<Backend>, key: PoolKey) -> Arc<Pool> {
        let peer = tables.peers.get(&backend.cluster).cloned();
        let new = || Arc::new(Pool::new(key.clone(), backend.clone(), peer));
        self.pools.lock().entry(key.clone()).or_insert_with(new).clone()
    }

    /// The tables have changed: destinations and pools follow, what was withdrawn is cut.
    pub(crate) fn apply(&self, context: &Context) {
        let tables = context.tables_owned();
        self.targets.lock().retain(|(key, _), target| {
            let destination = tables.destinations.get(key);
            target.follow(context, &tables, destination);
            destination.is_some() || Arc::strong_count(target) > 1
        });
        let pools = self.pools.lock().clone();
        let mut named = named(&tables, &pools);
        for (key, pool) in &pools {
            match named.remove(key) {
                Some((backend, by)) => pool.update(backend.clone(), tables.peers.get(&key.0).cloned(), by),
                None => self.withdraw(context, &tables, key, pool),
            }
        }
    }

    /// Nothing leads to this pool any more.
    fn withdraw(&self, context: &Context, tables: &Tables, key: &PoolKey, pool: &Arc<Pool>) {
        let Some(why) = withdrawn(context, tables, pool) else {
            pool.retire();
            if pool.holds().is_empty() {
                self.pools.lock().remove(key);
            }
            return;
        };
        let (cluster, target) = (&pool.cluster, &pool.target);
        tracing::info!(%cluster, %target, code = %why, "withdrawn: its sessions are cut");
        pool.cut(why);
        self.pools.lock().remove(key);
    }

    fn tend(&self, context: &Arc<Context>) {
        let now = Instant::now();
        let pools: Vec<_> = self.pools.lock().values().cloned().collect();
        for pool in &pools {
            pool.tend(context, now);
            for member in pool.members().iter() {
                if let Some(session) = member.live() {
                    self.review(context, member, &session, now);
                }
            }
            for hold in pool.holds().iter().filter(|hold| connect::is_past(hold.life.not_after)) {
                hold.cut(Code::NotReady);
            }
        }
    }

    /// Takes a session out of use that has no use, or rests on a certificate that ends soon or has a successor.
    fn review(&self, context: &Context, member: &Arc<Member>, session: &Arc<Session>, now: Instant) {
        let unused =
            session.idle_since().is_some_and(|since| now.saturating_duration_since(since) > context.settings.idle);
        let renewed = !context.credentials.still_shows(&session.hold.peer);
        if unused || renewed || session.has_moved() || connect::is_past(session.hold.life.retire_at) {
            member.session.store(None);
        }
    }

    /// Trust has changed: sessions with whom we would not speak now are cut.
    fn recheck(&self, context: &Context) {
        let pools: Vec<_> = self.pools.lock().values().cloned().collect();
        let holds = pools.iter().flat_map(|pool| pool.holds());
        for hold in holds.filter(|hold| !context.credentials.still_trusts(&hold.peer)) {
            hold.cut(Code::NotLinked);
        }
    }
}

/// Why what runs in a pool that nothing leads to must end; `None`: it need not. A service whose endpoints are not ready
/// for a moment, or whose peer has merely fallen silent, has not been withdrawn: a control plane that is down must not
/// cut the data plane.
fn withdrawn(context: &Context, tables: &Tables, pool: &Pool) -> Option<Code> {
    if pool.cluster != context.cluster && tables.peers.get(&pool.cluster).is_some_and(|peer| !peer.alive) {
        return None;
    }
    let by = pool.named_by();
    let reasons = || by.iter().filter_map(|key| tables.destinations.get(key)?.unavailable.as_ref());
    if let Some(definite) = reasons().find(|refusal| !refusal.code.retry_elsewhere()) {
        return Some(definite.code);
    }
    if reasons().next().is_some() {
        return None;
    }
    Some(if pool.cluster == context.cluster { Code::UnknownDestination } else { Code::NotExported })
}

/// Those of these pools that a destination leads to, with a backend that says so and the destinations' names.
fn named<'a>(
    tables: &'a Tables,
    pools: &HashMap<PoolKey, Arc<Pool>>,
) -> HashMap<PoolKey, (&'a Arc<Backend>, Vec<ServiceKey>)> {
    let mut named: HashMap<_, (_, Vec<_>)> = HashMap::new();
    let destinations = tables.destinations.values().filter(|_| !pools.is_empty());
    for (destination, backend) in
        destinations.flat_map(|d| d.tiers.iter().flat_map(move |t| t.backends.iter().map(move |b| (d, b))))
    {
        for (at, port) in destination.ports.iter().enumerate() {
            let key = crate::outbound::target::pool_key(backend, at, port.number);
            if let Some(key) = key.filter(|key| pools.contains_key(key)) {
                named.entry(key).or_insert_with(|| (backend, Vec::new())).1.push(destination.key.clone());
            }
        }
    }
    named
}

/// Looks after the sessions until the context is gone.
pub async fn keep(context: Weak<Context>) {
    let mut timer = tokio::time::interval(TEND);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut generation = None;
    loop {
        timer.tick().await;
        let Some(context) = context.upgrade() else { return };
        let now = *context.credentials.generation().borrow();
        if generation.replace(now) != Some(now) {
            context.sessions.recheck(&context);
        }
        context.sessions.tend(&context);
    }
}
