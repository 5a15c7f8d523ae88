//! Reaches one endpoint of a backend: through a gateway of its cluster, or straight inside this one.
//!
//! A gateway that hangs must not hold up anybody for long: an open that was not answered in time is tried through the
//! next gateway as well, and the first that opens wins.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hawser_api::{Code, Refusal};
use hawser_tunnel::open::OpenRequest;
use hawser_tunnel::pool::{GatewayPath, Opening};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::balance::{Failure, Load, Standing, pick};
use crate::context::Context;
use crate::table::Peer;

/// How the gateways of all peers do, as this proxy sees it.
#[derive(Debug, Default)]
pub(crate) struct Gateways {
    loads: Mutex<HashMap<GatewayPath, Arc<Load>>>,
}

/// Gateways that are remembered; peers have a handful each, and edits of links leave old ones behind.
const GATEWAYS_MAX: usize = 1024;

impl Gateways {
    /// What is known of a gateway.
    pub(crate) fn load(&self, path: &GatewayPath) -> Arc<Load> {
        let mut loads = self.loads.lock();
        if loads.len() >= GATEWAYS_MAX && !loads.contains_key(path) {
            loads.clear();
        }
        loads.entry(path.clone()).or_insert_with(|| Load::new(Instant::now()).into()).clone()
    }

    /// Whether no gateway of a peer is known to be well.
    pub(crate) fn all_down(&self, peer: &Peer, now: Instant) -> bool {
        let loads = self.loads.lock();
        let down = |path| loads.get(path).is_some_and(|load| load.standing(now) == Standing::Out);
        peer.gateways.iter().all(|gateway| gateway.down || down(&gateway.path))
    }

    /// A session through this gateway ended by itself: perhaps the gateway is gone, so the others come first for a
    /// moment.
    pub(crate) fn suspect(&self, path: &GatewayPath) {
        let (load, now) = (self.load(path), Instant::now());
        load.begin(now);
        load.failed(now, Duration::ZERO, Failure::Connection);
        load.end();
    }
}

/// The gateways of a peer in the order in which they are to be tried: those that are well by two random choices, then
/// those that seem down.
fn order(gateways: &Gateways, peer: &Peer, now: Instant) -> Vec<GatewayPath> {
    let known: Vec<_> = peer.gateways.iter().map(|g| (g, gateways.load(&g.path))).collect();
    let well = |at: usize| {
        let (gateway, load) = known.get(at)?;
        (!gateway.down && load.standing(now) != Standing::Out).then(|| load.cost(now))
    };
    let first = pick(known.len(), rand::random::<u64>, well);
    let mut order: Vec<(usize, bool, f64)> = known
        .iter()
        .enumerate()
        .map(|(at, (_, load))| (at, Some(at) != first, well(at).unwrap_or(f64::MAX.min(1e9 + load.cost(now)))))
        .collect();
    order.sort_by(|a, b| a.1.cmp(&b.1).then(a.2.total_cmp(&b.2)));
    order.iter().filter_map(|(at, ..)| known.get(*at)).map(|(gateway, _)| gateway.path.clone()).collect()
}

/// Opens a tunnel to a service port of a peer.
pub(crate) async fn open(
    context: &Context,
    peer: &Peer,
    request: &OpenRequest,
) -> Result<(GatewayPath, Opening), Refusal> {
    let gateways = &context.sessions.gateways;
    let mut paths = order(gateways, peer, Instant::now()).into_iter();
    let mut attempts = FuturesUnordered::new();
    attempts.extend(paths.next().map(|path| try_open(context, path, request)));
    let mut worst: Option<Refusal> = None;
    let mut hedge = pin!(tokio::time::sleep(context.settings.hedge));
    loop {
        tokio::select! {
            biased;
            Some((path, outcome)) = attempts.next() => match outcome {
                Ok(opening) => return Ok((path, opening)),
                Err(refusal) => {
                    tracing::debug!(cluster = %path.cluster, gateway = %path.gateway, %refusal, "open refused");
                    let definite = !refusal.code.retry_elsewhere();
                    worst = Some(more_telling(worst, refusal));
                    if definite {
                        break;
                    }
                    hedge.as_mut().reset(Instant::now());
                }
            },
            () = &mut hedge, if paths.len() > 0 => {
                attempts.extend(paths.next().map(|path| try_open(context, path, request)));
                hedge.as_mut().reset(Instant::now() + context.settings.hedge);
            }
            else => break,
        }
    }
    Err(worst.unwrap_or_else(|| {
        let message = format!("the link to {} names no gateway", peer.cluster);
        Refusal::new(Code::PeerUnreachable, message, "add the peer's gateways to the Link")
    }))
}

/// A refusal that says what is wrong over there is worth more than one that says that something could not be reached.
fn more_telling(worst: Option<Refusal>, next: Refusal) -> Refusal {
    let vague = |refusal: &Refusal| matches!(refusal.code, Code::PeerUnreachable | Code::TimedOut | Code::Draining);
    match worst {
        Some(worst) if vague(&next) && !vague(&worst) => worst,
        _ => next,
    }
}

async fn try_open(
    context: &Context,
    path: GatewayPath,
    request: &OpenRequest,
) -> (GatewayPath, Result<Opening, Refusal>) {
    let mut trial = Trial::begin(context, &path);
    let outcome = context.dialer.open(&path, request).await;
    // Other refusals than these are a gateway's answers as good as any.
    let trouble = |refusal: &Refusal| {
        matches!(refusal.code, Code::PeerUnreachable | Code::TimedOut | Code::Draining | Code::WrongIdentity)
    };
    trial.report(outcome.as_ref().err().is_some_and(trouble));
    (path, outcome)
}

/// One open through one gateway, for its books.
struct Trial {
    load: Arc<Load>,
    begun: Instant,
    hedge: Duration,
    reported: bool,
}

impl Trial {
    fn begin(context: &Context, path: &GatewayPath) -> Self {
        let (load, begun) = (context.sessions.gateways.load(path), Instant::now());
        load.begin(begun);
        Self { load, begun, hedge: context.settings.hedge, reported: false }
    }

    fn report(&mut self, trouble: bool) {
        self.reported = true;
        let now = Instant::now();
        let took = now.saturating_duration_since(self.begun);
        if trouble {
            self.load.failed(now, took, Failure::Connection);
        } else {
            self.load.answered(now, took);
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let now = Instant::now();
        // Dropped because another gateway was quicker: that says something only if this one had its time.
        if !self.reported && now.saturating_duration_since(self.begun) >= self.hedge {
            self.report(true);
        } else if !self.reported {
            self.load.abandoned(now, Duration::ZERO);
        }
        self.load.end();
    }
}

/// Connects to an endpoint's proxy inside the cluster.
pub(crate) async fn connect(context: &Context, address: SocketAddr) -> Result<TcpStream, Refusal> {
    let unreachable = |why: String| {
        let message = format!("the endpoint's proxy at {address} cannot be reached: {why}");
        Refusal::new(Code::EndpointUnreachable, message, "check that the proxy beside the endpoint runs")
    };
    match tokio::time::timeout(context.settings.connect, TcpStream::connect(address)).await {
        Ok(Ok(socket)) => {
            socket.set_nodelay(true).map_err(|error| unreachable(error.to_string()))?;
            Ok(socket)
        }
        Ok(Err(error)) => Err(unreachable(error.to_string())),
        Err(_) => Err(unreachable(format!("no answer within {:?}", context.settings.connect))),
    }
}
