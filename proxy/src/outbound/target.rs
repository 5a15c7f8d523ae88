//! A destination's port in use: the plan that requests follow, and what is measured over all of them.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use hawser_api::{Code, Refusal, ServiceKey, ServicePort};

use super::bulk::Bulk;
use super::retry::Budget;
use crate::context::Context;
use crate::metrics::RouteMetrics;
use crate::route::{self, Choice, Position, Tried};
use crate::session::{self, Pool};
use crate::streams::Direction;
use crate::table::{Backend, Destination, Tables};

/// A destination's port in use.
#[derive(Debug)]
pub(crate) struct Target {
    /// `namespace/name:port`, as the application sees it.
    pub(crate) label: Arc<str>,
    /// Its port.
    pub(crate) port: u16,
    /// What retries it may cost.
    pub(crate) budget: Budget,
    /// How much recent connections carried.
    pub(crate) bulk: Bulk,
    plan: ArcSwap<Plan>,
}

/// A destination with its pools: what one table says.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The destination.
    pub(crate) destination: Arc<Destination>,
    /// For what reached no backend.
    pub(crate) nowhere: RouteMetrics,
    tiers: Vec<Vec<Option<Arc<Leg>>>>,
    no_port: Option<Refusal>,
}

/// One backend of a plan.
#[derive(Debug)]
pub(crate) struct Leg {
    /// The sessions.
    pub(crate) pool: Arc<Pool>,
    /// What is counted.
    pub(crate) metrics: RouteMetrics,
}

/// The pool that a backend's port is served by; `None`: it does not serve that port.
pub(crate) fn pool_key(backend: &Backend, at: usize, number: u16) -> Option<session::PoolKey> {
    let port = route::backend_port(backend, at, number)?;
    Some((backend.cluster.clone(), ServicePort { service: backend.service.clone(), port }, backend.only.clone()))
}

impl Target {
    pub(crate) fn new(context: &Context, tables: &Tables, destination: Arc<Destination>, port: u16) -> Self {
        let label: Arc<str> = format!("{}:{port}", destination.key).into();
        let plan = Plan::new(context, tables, destination, (port, &label));
        Self { label, port, budget: Budget::default(), bulk: Bulk::default(), plan: ArcSwap::from_pointee(plan) }
    }

    /// The plan in force.
    pub(crate) fn plan(&self) -> Guard<Arc<Plan>> {
        self.plan.load()
    }

    /// The tables have changed; `None`: the destination is gone.
    pub(crate) fn follow(&self, context: &Context, tables: &Tables, destination: Option<&Arc<Destination>>) {
        let old = self.plan.load();
        let new = match destination {
            Some(same) if Arc::ptr_eq(same, &old.destination) => return,
            Some(new) => new.clone(),
            None => Arc::new(gone(&old.destination)),
        };
        self.plan.store(Arc::new(Plan::new(context, tables, new, (self.port, &self.label))));
    }
}

/// What is left of a destination that the tables no longer have, for connections that were made to it.
fn gone(destination: &Destination) -> Destination {
    let key: &ServiceKey = &destination.key;
    let message = format!("{key} no longer exists in this cluster");
    let remedy = "check that the service, or the link and the peer's export behind it, are still there";
    Destination {
        key: key.clone(),
        dns_names: destination.dns_names.clone(),
        group_names: Vec::new(),
        headless_names: Vec::new(),
        ports: destination.ports.clone(),
        tiers: Vec::new(),
        session: destination.session,
        fixed_address: None,
        unavailable: Some(Refusal::new(Code::UnknownDestination, message, remedy)),
        changed_at_ms: destination.changed_at_ms,
    }
}

impl Plan {
    fn new(context: &Context, tables: &Tables, destination: Arc<Destination>, (port, label): (u16, &str)) -> Self {
        let found = route::port(&destination, port).map(|(at, _)| at);
        let leg = |at: usize, backend: &Arc<Backend>| {
            let pool = context.sessions.pool(tables, backend, pool_key(backend, at, port)?);
            pool.name(&destination.key);
            let metrics = context.metrics.route(Direction::Outbound, label, backend.cluster.as_str());
            Some(Arc::new(Leg { pool, metrics }))
        };
        let tiers = match &found {
            Ok(at) => destination
                .tiers
                .iter()
                .map(|tier| tier.backends.iter().map(|backend| leg(*at, backend)).collect())
                .collect(),
            Err(_) => Vec::new(),
        };
        let nowhere = context.metrics.route(Direction::Outbound, label, "");
        Self { destination, nowhere, tiers, no_port: found.err() }
    }

    /// The backend for the next try.
    pub(crate) fn route(&self, tried: Tried) -> Result<(Choice, &Arc<Leg>), Refusal> {
        if let Some(refusal) = &self.no_port {
            return Err(refusal.clone());
        }
        let health = |at: Position| self.leg(at).map(|leg| leg.pool.health());
        let choice = route::route(&self.destination, health, tried, rand::random())?;
        let leg = self.leg(choice.position).ok_or_else(|| {
            Refusal::new(Code::NoEndpoint, "the plan has no such backend", "this is a bug: please report it")
        })?;
        Ok((choice, leg))
    }

    fn leg(&self, at: Position) -> Option<&Arc<Leg>> {
        self.tiers.get(at.tier)?.get(at.backend)?.as_ref()
    }

    /// The pool of a backend.
    pub(crate) fn pool(&self, at: Position) -> Option<Arc<Pool>> {
        self.leg(at).map(|leg| leg.pool.clone())
    }
}
