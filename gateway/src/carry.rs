//! One open from its arrival to its end: the steps in order, and the one place where outcomes are recorded.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hawser_api::objects::link::Transport;
use hawser_api::{ClusterName, Code, Refusal};
use hawser_runtime::clock;
use hawser_tunnel::listen::Arrival;
use hawser_tunnel::open::{OpenRequest, OpenedAnswer};
use hawser_tunnel::splice::{Traffic, splice};
use hawser_tunnel::stream::TunnelStream;
use hawser_tunnel::tls::VerifiedPeer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::Gateway;
use crate::admit::{Permit, Reach, admit};
use crate::dial::{Lease, dial};
use crate::limits::Slot;
use crate::route::{Wish, ready, route};
use crate::streams::{End, Live, verdict};
use crate::table::{Endpoint, Export};

/// For an answer to leave: it is one small write, so only a peer that reads nothing makes it last.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Where an open comes from.
#[derive(Debug)]
pub(crate) struct Caller {
    /// The caller's cluster.
    pub(crate) link: ClusterName,
    /// The caller, verified.
    pub(crate) peer: VerifiedPeer,
    /// Over what it came.
    pub(crate) transport: Transport,
    /// From where.
    pub(crate) remote: SocketAddr,
}

/// A connection to an endpoint, and what holds its place.
struct Connected {
    socket: TcpStream,
    endpoint: Arc<Endpoint>,
    ready: u32,
    _lease: Lease,
}

/// How an open ended, for its record.
enum Outcome {
    Refused(Refusal),
    Pinged,
    /// The answer could not be given: the peer is gone.
    Vanished,
    Carried {
        endpoint: Arc<str>,
        traffic: Arc<Traffic>,
        how: &'static str,
    },
}

/// Answers an open and carries its stream to the end.
pub(crate) async fn carry(gateway: Arc<Gateway>, caller: Arc<Caller>, arrival: Arrival) {
    let begun = clock::now();
    let request = arrival.request().clone();
    let outcome = match enter(&gateway, &caller, &request) {
        Err(refusal) => refuse(arrival, refusal).await,
        Ok((permit, _slot)) => match permit.reach() {
            Reach::Itself => pong(arrival).await,
            Reach::Export(export) => match connect(&gateway, export, &request).await {
                Err(refusal) => refuse(arrival, refusal).await,
                Ok(connected) => run(&gateway, &caller, &permit, connected, arrival).await,
            },
        },
    };
    record(&gateway, &caller, &request, &outcome, begun);
}

/// Rate, admission, drain, room: in this order, so that only who may come in learns of the rest.
fn enter(gateway: &Gateway, caller: &Caller, request: &OpenRequest) -> Result<(Permit, Slot), Refusal> {
    gateway.limits.take_open(&caller.link, clock::monotonic())?;
    let permit = admit(&gateway.tables.load(), caller.peer.id(), &request.target)?;
    if gateway.draining.is_cancelled() {
        return Err(draining());
    }
    let slot = gateway.limits.take_stream(permit.link())?;
    Ok((permit, slot))
}

pub(crate) fn draining() -> Refusal {
    let remedy = "open through another gateway of this cluster; this one is being stopped";
    Refusal::new(Code::Draining, "this gateway is draining and opens nothing new", remedy)
}

/// A connection to an endpoint, and to a second one where the first cannot be reached.
async fn connect(gateway: &Gateway, export: &Export, request: &OpenRequest) -> Result<Connected, Refusal> {
    let first = try_connect(gateway, export, request, None).await;
    match first {
        Err((_, Some(tried))) if request.endpoint.is_none() => {
            try_connect(gateway, export, request, Some(&tried)).await.map_err(|(refusal, _)| refusal)
        }
        other => other.map_err(|(refusal, _)| refusal),
    }
}

/// One try; an endpoint that could not be reached is told with the refusal.
async fn try_connect(
    gateway: &Gateway,
    export: &Export,
    request: &OpenRequest,
    tried: Option<&str>,
) -> Result<Connected, (Refusal, Option<Arc<str>>)> {
    let now = clock::monotonic();
    let wish = Wish { endpoint: request.endpoint.as_deref(), avoid: &request.avoid, tried };
    let draw = |below: usize| rand::random_range(0..below.max(1));
    let load = |id: &str| gateway.endpoints.load(id, now);
    let endpoint = route(export, wish, load, draw).map_err(|refusal| (refusal, None))?;
    let lease = gateway.endpoints.enter(&endpoint.id);
    match dial(endpoint).await {
        Ok(socket) => Ok(Connected { socket, endpoint: Arc::clone(endpoint), ready: ready(export), _lease: lease }),
        Err(error) => {
            gateway.endpoints.mark_down(&endpoint.id, clock::monotonic());
            let (id, address) = (&endpoint.id, endpoint.inbound);
            if let Some(left_out) = gateway.said.again("endpoint", clock::monotonic()) {
                tracing::info!(endpoint = %id, %address, %error, left_out, "endpoint takes no connection");
            }
            Err((unreachable(export), Some(Arc::clone(&endpoint.id))))
        }
    }
}

fn unreachable(export: &Export) -> Refusal {
    Refusal::new(
        Code::EndpointUnreachable,
        format!("an endpoint of {} was chosen and does not take connections", export.port),
        "see whether the proxy in front of the workload runs, and whether the EndpointSlice has its address",
    )
}

async fn refuse(arrival: Arrival, refusal: Refusal) -> Outcome {
    // A peer that does not read its refusal does not get it.
    let _ = timeout(ANSWER_TIMEOUT, arrival.refuse(&refusal)).await;
    Outcome::Refused(refusal)
}

async fn answer(arrival: Arrival, answer: &OpenedAnswer) -> Option<TunnelStream> {
    timeout(ANSWER_TIMEOUT, arrival.accept(answer)).await.ok()?.ok()
}

/// Opened, then the end.
async fn pong(arrival: Arrival) -> Outcome {
    let opened = OpenedAnswer { endpoint: String::new(), endpoints_ready: 0 };
    let Some(mut stream) = answer(arrival, &opened).await else { return Outcome::Vanished };
    let goodbye = async {
        stream.shutdown().await?;
        // To close a TCP connection with bytes unread would reset it, and the answer might be lost with it.
        stream.read(&mut [0; 256]).await
    };
    let _ = timeout(ANSWER_TIMEOUT, goodbye).await;
    Outcome::Pinged
}

/// Says yes and moves bytes until the stream ends or is cut.
async fn run(gateway: &Gateway, caller: &Caller, permit: &Permit, to: Connected, arrival: Arrival) -> Outcome {
    let target = arrival.request().target.clone();
    let endpoint = Arc::clone(&to.endpoint.id);
    let opened = OpenedAnswer { endpoint: endpoint.to_string(), endpoints_ready: to.ready };
    let Some(stream) = answer(arrival, &opened).await else { return Outcome::Vanished };
    let entry = gateway.streams.enter(Live {
        link: permit.link().clone(),
        target,
        peer: caller.peer.clone(),
        endpoint: Arc::clone(&endpoint),
        transport: caller.transport,
        begun: clock::now(),
        traffic: Arc::default(),
        end: End::default(),
    });
    let live = &entry.live;
    if let Some(reason) = verdict(&gateway.tables.load(), &gateway.credentials, live, clock::now()) {
        live.end.cut(reason);
    }
    gateway.metrics.carried(&live.link, live.transport.as_str());
    gateway.metrics.stream(&live.link, 1);
    let ended = splice(permit, stream, to.socket, Arc::clone(&live.traffic), live.end.token()).await;
    gateway.metrics.stream(&live.link, -1);
    let how = live.end.reason().unwrap_or_else(|| ended.as_str());
    Outcome::Carried { endpoint, traffic: Arc::clone(&live.traffic), how }
}

fn record(gateway: &Gateway, caller: &Caller, request: &OpenRequest, outcome: &Outcome, begun: SystemTime) {
    let took = clock::now().duration_since(begun).unwrap_or_default();
    let (result, endpoint, end, traffic) = match outcome {
        Outcome::Refused(refusal) => (refusal.code.as_str(), "", refusal.message.as_str(), None),
        Outcome::Pinged => ("ok", "", "ping", None),
        Outcome::Vanished => ("vanished", "", "peer_reset", None),
        Outcome::Carried { endpoint, traffic, how } => {
            gateway.metrics.ended(how);
            ("ok", &**endpoint, *how, Some(traffic))
        }
    };
    gateway.metrics.opened(Some(&caller.link), result);
    if matches!(outcome, Outcome::Pinged) {
        // Every peer's probes each second: counted, not told.
        return;
    }
    tracing::info!(
        target: "access",
        direction = "inbound",
        kind = "tcp",
        client_id = %caller.peer.id(),
        destination = %request.target,
        cluster = %caller.link,
        remote = %caller.remote,
        transport = caller.transport.as_str(),
        endpoint,
        refusal = if matches!(outcome, Outcome::Refused(_)) { result } else { "" },
        end,
        bytes_sent = traffic.map_or(0, |t| t.sent()),
        bytes_received = traffic.map_or(0, |t| t.received()),
        duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        traceparent = %request.traceparent,
    );
}
