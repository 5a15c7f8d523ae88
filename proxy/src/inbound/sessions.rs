//! The sealed sessions that are open, by caller: what is checked again when the tables change, and how many one caller
//! may have.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use hawser_api::{ClusterName, Code, Refusal, ServicePort, SpiffeId};
use hawser_runtime::clock;
use hawser_tunnel::tls::VerifiedPeer;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::admit::Permit;
use crate::context::Context;
use crate::metrics::RouteMetrics;
use crate::streams::{Direction, Path};
use crate::table::Tables;

/// Sessions of one caller. A dedicated session is one application connection, so this is also how many bulk connections
/// one identity can have to this proxy; some 16 KB each.
const PER_CALLER: usize = 4096;
/// Sessions of all callers.
const TOTAL: usize = 16_384;
/// Service ports that one session may use. Proxies use one; each costs a few hundred bytes here.
const ROUTES: usize = 64;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    live: Mutex<HashMap<u64, Arc<Session>>>,
    next: AtomicU64,
}

/// One sealed session.
#[derive(Debug)]
pub(super) struct Session {
    /// The caller.
    pub peer: VerifiedPeer,
    /// The caller's identity as the application sees it.
    pub client_id: http::HeaderValue,
    /// Fires when the session is no longer admitted.
    pub cut: CancellationToken,
    /// `shared` or `dedicated`.
    pub form: &'static str,
    cluster: Option<ClusterName>,
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
        self.sessions.live.lock().remove(&self.number);
    }
}

impl Sessions {
    /// Lists a session, if there is room for one more of this caller.
    pub(super) fn enter(
        self: &Arc<Self>,
        peer: &VerifiedPeer,
        form: &'static str,
        context: &Context,
    ) -> Result<Guard, Refusal> {
        let client_id = http::HeaderValue::from_str(peer.id().as_str())
            .map_err(|_| Refusal::new(Code::BadRequest, "the caller's identity is no header value", "issue another"))?;
        let session = Arc::new(Session {
            client_id,
            cut: CancellationToken::new(),
            form,
            cluster: cluster_of(peer.id(), context),
            why: OnceLock::new(),
            routes: Mutex::default(),
            peer: peer.clone(),
        });
        let mut live = self.live.lock();
        let of_caller = live.values().filter(|s| s.peer.id() == peer.id()).take(PER_CALLER).count();
        if of_caller >= PER_CALLER || live.len() >= TOTAL {
            let whose = if of_caller >= PER_CALLER { peer.id().as_str() } else { "all callers" };
            return Err(Refusal::new(
                Code::Overloaded,
                format!("the proxy has no room for more sessions of {whose}"),
                "close connections, or use shared sessions (annotation hawser.dev/session)",
            )
            .retry_after(Duration::from_secs(1)));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        live.insert(number, session.clone());
        Ok(Guard { sessions: self.clone(), number, session })
    }

    /// All that are open now.
    pub(super) fn all(&self) -> Vec<Arc<Session>> {
        self.live.lock().values().cloned().collect()
    }

    /// How many each caller has.
    pub(super) fn by_identity(&self) -> BTreeMap<SpiffeId, usize> {
        let mut counts = BTreeMap::new();
        for session in self.all() {
            *counts.entry(session.peer.id().clone()).or_default() += 1;
        }
        counts
    }
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
        if routes.len() >= ROUTES {
            return Err(Refusal::new(
                Code::Overloaded,
                format!("one session may use at most {ROUTES} service ports"),
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
        if paths.len() >= ROUTES {
            paths.clear();
        }
        paths.entry(endpoint.clone()).or_insert_with(make).clone()
    }

    /// How long the caller's certificate still holds.
    pub(super) fn remaining(&self) -> Duration {
        self.peer.not_after().duration_since(clock::now()).unwrap_or(Duration::ZERO)
    }
}
