//! From a permit to the application: which of a port's targets, and a connection to it.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hawser_api::{Code, Refusal};
use parking_lot::Mutex;
use rand::RngExt;
use tokio::net::TcpStream;

use super::admit::Permit;
use super::{h2c, http};
use crate::context::Context;
use crate::table::{InboundTarget, Tables};

/// Targets that are tried for one stream before it is refused.
const TRIES: usize = 3;

/// The applications behind this proxy, as far as streams went to them.
#[derive(Default)]
pub(super) struct Targets {
    by_address: Mutex<HashMap<SocketAddr, Arc<Target>>>,
}

/// One application.
pub(super) struct Target {
    /// Where it listens.
    pub address: SocketAddr,
    /// Idle HTTP/1.1 connections.
    pub idle: http::Idle,
    /// HTTP/2 connections.
    pub h2c: h2c::Connections,
    open: AtomicUsize,
}

/// A target with one stream more on it until dropped.
pub(super) struct Chosen {
    /// The endpoint's id.
    pub id: Arc<str>,
    /// The application.
    pub target: Arc<Target>,
}

impl Drop for Chosen {
    fn drop(&mut self) {
        self.target.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Targets {
    /// The ready target with the fewest open streams, a random one of several.
    pub(super) fn choose(&self, permit: &Permit, avoid: &[SocketAddr]) -> Result<Chosen, Refusal> {
        let inbound = permit.inbound();
        let ready: Vec<&InboundTarget> =
            inbound.targets.iter().filter(|t| t.ready && !avoid.contains(&t.address)).collect();
        let mut known = self.by_address.lock();
        let least = match ready.as_slice() {
            [only] => Some(*only),
            several => {
                let load = |t: &InboundTarget| known.get(&t.address).map_or(0, |k| k.open.load(Ordering::Relaxed));
                let start = if several.is_empty() { 0 } else { rand::rng().random_range(0..several.len()) };
                // `min_by_key` takes the first of equals: from a random start that is a random one.
                several.iter().cycle().skip(start).take(several.len()).min_by_key(|t| load(t)).copied()
            }
        };
        let Some(least) = least else {
            return Err(Refusal::new(
                Code::NoEndpoint,
                format!("no workload of {} behind this proxy is ready", inbound.port),
                "start one, or look at why its EndpointSlice says that it is not ready",
            ));
        };
        let make = || Arc::new(Target::new(least.address));
        let target = known.entry(least.address).or_insert_with(make).clone();
        target.open.fetch_add(1, Ordering::Relaxed);
        Ok(Chosen { id: least.id.clone(), target })
    }

    /// Forgets applications that no table names; what runs, runs on.
    pub(super) fn retain(&self, tables: &Tables) {
        let named: HashSet<SocketAddr> =
            tables.inbound.values().flat_map(|i| i.targets.iter().map(|t| t.address)).collect();
        self.by_address.lock().retain(|address, _| named.contains(address));
    }

    /// Closes connections that nobody used for a while.
    pub(super) fn prune(&self) {
        let all: Vec<_> = self.by_address.lock().values().cloned().collect();
        for target in all {
            target.idle.prune();
        }
    }

    /// Streams open to an application now.
    pub(super) fn open(&self, address: SocketAddr) -> usize {
        self.by_address.lock().get(&address).map_or(0, |t| t.open.load(Ordering::Relaxed))
    }
}

impl Target {
    fn new(address: SocketAddr) -> Self {
        Self { address, idle: http::Idle::default(), h2c: h2c::Connections::default(), open: AtomicUsize::new(0) }
    }

    /// Opens a connection to the application.
    pub(super) async fn connect(&self, context: &Context) -> Result<TcpStream, Refusal> {
        let address = self.address;
        let refused = |what: String| {
            let remedy = "check that the application listens there: EndpointSlice address and targetPort";
            Refusal::new(Code::EndpointUnreachable, format!("the application at {address} {what}"), remedy)
        };
        let deadline = context.settings.connect;
        let connected = tokio::time::timeout(deadline, TcpStream::connect(address)).await;
        let socket = connected
            .map_err(|_| refused(format!("did not accept within {deadline:?}")))?
            .map_err(|e| refused(format!("cannot be reached: {e}")))?;
        let _ = socket.set_nodelay(true);
        Ok(socket)
    }
}

/// A fresh connection to one of the permit's targets; one that cannot be reached is passed over while there are others.
pub(super) async fn connect(
    context: &Context,
    targets: &Targets,
    permit: &Permit,
) -> Result<(Chosen, TcpStream), Refusal> {
    let mut tries = Tries::new(targets, permit);
    loop {
        let chosen = tries.next()?;
        match chosen.target.connect(context).await {
            Ok(socket) => return Ok((chosen, socket)),
            Err(refusal) => tries.failed(&chosen, refusal),
        }
    }
}

/// One of the permit's targets after the other, until one can be reached.
pub(super) struct Tries<'a> {
    targets: &'a Targets,
    permit: &'a Permit,
    failed: Vec<SocketAddr>,
    first: Option<Refusal>,
}

impl<'a> Tries<'a> {
    /// Before the first.
    pub(super) fn new(targets: &'a Targets, permit: &'a Permit) -> Self {
        Self { targets, permit, failed: Vec::new(), first: None }
    }

    /// The next one to try, or why none is left: what the first said.
    pub(super) fn next(&mut self) -> Result<Chosen, Refusal> {
        let next = if self.failed.len() < TRIES { Some(self.targets.choose(self.permit, &self.failed)) } else { None };
        match (next, self.first.take()) {
            (Some(Ok(chosen)), first) => {
                self.first = first;
                Ok(chosen)
            }
            (_, Some(first)) => Err(first),
            (Some(Err(none_ready)), None) => Err(none_ready),
            (None, None) => Err(Refusal::new(Code::NoEndpoint, "no workload could be reached", "start one")),
        }
    }

    /// This one could not be reached.
    pub(super) fn failed(&mut self, chosen: &Chosen, refusal: Refusal) {
        self.failed.push(chosen.target.address);
        self.first.get_or_insert(refusal);
    }
}
