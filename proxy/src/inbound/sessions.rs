//! The sealed sessions that are open, by caller: what is checked again when the tables change, and how many one caller
//! may have.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, SystemTime};

use hawser_api::{ClusterName, Code, Refusal, ServicePort, SpiffeId};
use hawser_runtime::clock;
use hawser_tunnel::tls::VerifiedPeer;
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio_util::sync::CancellationToken;

use super::Limits;
use super::admit::Permit;
use crate::context::Context;
use crate::metrics::RouteMetrics;
use crate::streams::{Direction, Path};
use crate::table::Tables;

/// Endpoints of one port whose paths a session remembers.
const PATHS: usize = 64;

/// All of them.
#[derive(Debug)]
pub(super) struct Sessions {
    live: Mutex<Live>,
    next: AtomicU64,
    count: Gauge,
    limits: Limits,
}

#[derive(Debug, Default)]
struct Live {
    sessions: HashMap<u64, Arc<Session>>,
    // The same, counted by caller: a look at all of them for each new one would be slow when there are many.
    callers: HashMap<SpiffeId, Arc<Caller>>,
}

/// What one caller has.
#[derive(Debug, Default)]
struct Caller {
    sessions: AtomicUsize,
    streams: AtomicUsize,
}

/// A stream of a caller, until dropped.
#[derive(Debug)]
pub(super) struct Place {
    caller: Arc<Caller>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.caller.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One sealed session.
#[derive(Debug)]
pub(super) struct Session {
    /// The caller.
    pub peer: VerifiedPeer,
    /// The caller's identity as the application sees it.
    pub client_id: http::HeaderValue,
    /// When the first of the caller's certificate and ours ends.
    ends: SystemTime,
    /// Fires when the session is no longer admitted.
    pub cut: CancellationToken,
    /// `shared` or `dedicated`.
    pub form: &'static str,
    cluster: Option<ClusterName>,
    caller: Arc<Caller>,
    limits: Limits,
    why: OnceLock<Code>,
    // By the text in which the caller names the target: parsed and looked up once, not for every request.
    routes: Mutex<HashMap<Box<[u8]>, Arc<Route>>>,
}

/// A service port that a session uses.
#[derive(Debug)]
pub(super) struct Route {
    /// The port.
    pub target: ServicePort,
    /// The same as text.
    pub text: Arc<str>,
    /// Its counters.
    pub metrics: RouteMetrics,
    // By endpoint id.
    paths: Mutex<HashMap<Arc<str>, Arc<Path>>>,
    // The last permit, and the tables that gave it: kept weakly, so that they are not kept alive, and their address is
    // not used again while we compare with it.
    permit: Mutex<Option<(Weak<Tables>, Permit)>>,
}

impl Route {
    /// What `ask` says, asked once for each snapshot of the tables.
    pub(super) fn permit(
        &self,
        tables: &Arc<Tables>,
        ask: impl FnOnce() -> Result<Permit, Refusal>,
    ) -> Result<Permit, Refusal> {
        let mut last = self.permit.lock();
        if let Some((of, permit)) = &*last
            && std::ptr::eq(of.as_ptr(), Arc::as_ptr(tables))
        {
            return Ok(permit.clone());
        }
        *last = None;
        let permit = ask()?;
        *last = Some((Arc::downgrade(tables), permit.clone()));
        Ok(permit)
    }
}

/// Keeps a session listed.
#[derive(Debug)]
pub(super) struct Guard {
    sessions: Arc<Sessions>,
    number: u64,
    /// The session.
    pub session: Arc<Session>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut live = self.sessions.live.lock();
        live.sessions.remove(&self.number);
        self.sessions.count.dec();
        if self.session.caller.sessions.fetch_sub(1, Ordering::Relaxed) == 1 {
            live.callers.remove(self.session.peer.id());
        }
    }
}

impl Sessions {
    /// None.
    pub(super) fn new(limits: &Limits) -> Self {
        Self { live: Mutex::default(), next: AtomicU64::new(0), count: Gauge::default(), limits: limits.clone() }
    }

    /// How many there are.
    pub(super) fn count(&self) -> &Gauge {
        &self.count
    }

    /// Lists a session, if there is room for one more of this caller.
    pub(super) fn enter(
        self: &Arc<Self>,
        peer: &VerifiedPeer,
        form: &'static str,
        context: &Context,
    ) -> Result<Guard, Refusal> {
        let client_id = http::HeaderValue::from_str(peer.id().as_str())
            .map_err(|_| Refusal::new(Code::BadRequest, "the caller's identity is no header value", "issue another"))?;
        let cluster = cluster_of(peer.id(), context);
        let mut live = self.live.lock();
        let caller = live.callers.get(peer.id()).cloned().unwrap_or_default();
        let full = live.sessions.len() >= self.limits.sessions;
        if full || caller.sessions.load(Ordering::Relaxed) >= self.limits.sessions_per_caller {
            return Err(no_room("sessions", if full { "all callers" } else { peer.id().as_str() }));
        }
        caller.sessions.fetch_add(1, Ordering::Relaxed);
        live.callers.insert(peer.id().clone(), caller.clone());
        let session = Arc::new(Session {
            client_id,
            ends: peer.ours_not_after().map_or(peer.not_after(), |own| own.min(peer.not_after())),
            cut: CancellationToken::new(),
            form,
            cluster,
            caller,
            limits: self.limits.clone(),
            why: OnceLock::new(),
            routes: Mutex::default(),
            peer: peer.clone(),
        });
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        live.sessions.insert(number, session.clone());
        self.count.inc();
        Ok(Guard { sessions: self.clone(), number, session })
    }

    /// All that are open now.
    pub(super) fn all(&self) -> Vec<Arc<Session>> {
        self.live.lock().sessions.values().cloned().collect()
    }

    /// How many each caller has.
    pub(super) fn by_identity(&self) -> BTreeMap<SpiffeId, usize> {
        let live = self.live.lock();
        live.callers.iter().map(|(id, caller)| (id.clone(), caller.sessions.load(Ordering::Relaxed))).collect()
    }
}

fn no_room(what: &str, whose: &str) -> Refusal {
    let message = format!("the proxy has no room for more {what} of {whose}");
    let remedy = "close connections, or use shared sessions (annotation hawser.dev/session)";
    Refusal::new(Code::Overloaded, message, remedy).retry_after(Duration::from_secs(1))
}

/// The caller's cluster, as this cluster calls it: a label from local configuration, never from the wire.
fn cluster_of(id: &SpiffeId, context: &Context) -> Option<ClusterName> {
    let domain = id.trust_domain();
    if domain == *context.credentials.own_domain() {
        return Some(context.cluster.clone());
    }
    context.tables().peers.values().find(|p| p.trust_domain == domain).map(|p| p.cluster.clone())
}

impl Session {
    /// Ends it: all its streams with it.
    pub(super) fn cut(&self, why: Code) {
        let _ = self.why.set(why);
        self.cut.cancel();
    }

    /// Room for one more stream.
    pub(super) fn place(&self) -> Result<Place, Refusal> {
        if self.caller.streams.fetch_add(1, Ordering::Relaxed) >= self.limits.streams_per_caller {
            self.caller.streams.fetch_sub(1, Ordering::Relaxed);
            return Err(no_room("streams", self.peer.id().as_str()));
        }
        Ok(Place { caller: self.caller.clone() })
    }

    /// Why it was cut, if it was.
    pub(super) fn why(&self) -> Option<Code> {
        self.why.get().copied()
    }

    /// The service ports that it used.
    pub(super) fn targets(&self) -> Vec<ServicePort> {
        self.routes.lock().values().map(|r| r.target.clone()).collect()
    }

    /// What is known of a target that was admitted before; the caller still has to ask `admit`.
    pub(super) fn known(&self, text: &[u8]) -> Option<Arc<Route>> {
        self.routes.lock().get(text).cloned()
    }

    /// Notes a target that has just been admitted.
    pub(super) fn note(&self, text: &[u8], target: &ServicePort, context: &Context) -> Result<Arc<Route>, Refusal> {
        let mut routes = self.routes.lock();
        if routes.len() >= self.limits.targets_per_session {
            return Err(Refusal::new(
                Code::Overloaded,
                format!("one session may use at most {} service ports", self.limits.targets_per_session),
                "open another session",
            ));
        }
        let text_of: Arc<str> = target.to_string().into();
        let cluster = self.cluster.as_ref().map_or("", ClusterName::as_str);
        let route = Arc::new(Route {
            target: target.clone(),
            metrics: context.metrics.route(Direction::Inbound, &text_of, cluster),
            text: text_of,
            paths: Mutex::default(),
            permit: Mutex::default(),
        });
        routes.insert(text.into(), route.clone());
        Ok(route)
    }

    /// What the streams to one endpoint have in common.
    pub(super) fn path(&self, route: &Route, endpoint: &Arc<str>, context: &Context) -> Arc<Path> {
        let mut paths = route.paths.lock();
        let make = || {
            Arc::new(Path {
                direction: Direction::Inbound,
                client_id: Some(self.peer.id().clone()),
                server_id: context.credentials.identity().map(|i| i.id().clone()),
                cluster: self.cluster.clone(),
                gateway: None,
                transport: None,
                session: self.form,
                endpoint: endpoint.clone(),
            })
        };
        // Endpoints come and go; a session that outlives many of them does not collect them.
        if paths.len() >= PATHS {
            paths.clear();
        }
        paths.entry(endpoint.clone()).or_insert_with(make).clone()
    }

    /// How long both certificates still hold.
    pub(super) fn remaining(&self) -> Duration {
        self.ends.duration_since(clock::now()).unwrap_or(Duration::ZERO)
    }
}
