//! The dialling side of tunnels: one QUIC connection a gateway, warm TCP connections, and the choice between them.
//!
//! ```text
//! Dialer::open ─▶ Path (one a gateway) ─┬─ quic: the live connection, or one connect that all opens share
//!                                       ├─ tcp:  a warm connection, or a cold one
//!                                       └─ auto: race, remember the winner, fall over when the path goes quiet
//! ```

mod path;
mod race;
mod warm;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hawser_api::labels::{PING_SERVICE, SYSTEM_NAMESPACE};
use hawser_api::objects::link::Transport;
use hawser_api::{ClusterName, Code, Namespace, Refusal, ServicePort, TrustDomain};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::open::{OpenRequest, OpenedAnswer};
use crate::quic;
use crate::stream::TunnelStream;
use crate::tls::{Credentials, HandshakeError};
use path::Path;

/// One gateway of one peer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GatewayPath {
    /// The peer, for logs and metrics.
    pub cluster: ClusterName,
    /// The gateway's name in the Link.
    pub gateway: Namespace,
    /// Where it listens.
    pub address: SocketAddr,
    /// The peer's trust domain: the gateway must be its `ns/hawser-system/sa/gateway`.
    pub trust_domain: TrustDomain,
    /// How to reach it.
    pub transport: Transport,
}

/// Bounds of the dialling side; [`Default`] argues for each value.
#[derive(Debug, Clone)]
pub struct DialerConfig {
    /// For a connection and its outer handshake.
    pub connect_timeout: Duration,
    /// From `Open` to the answer.
    pub open_timeout: Duration,
    /// Admitted but unopened TCP connections kept per gateway in use.
    pub warm_tcp: usize,
    /// How long one of these is kept; shorter than the gateway's `warm_timeout`.
    pub warm_lifetime: Duration,
    /// `auto`: how long QUIC is ahead of TCP.
    pub quic_head_start: Duration,
    /// `auto`: how long TCP is used without asking again after QUIC lost.
    pub quic_retry_after: Duration,
}

impl Default for DialerConfig {
    fn default() -> Self {
        Self {
            // Two round trips around the world and a lost packet.
            connect_timeout: Duration::from_secs(2),
            // The gateway dials an endpoint in its own network in between.
            open_timeout: Duration::from_secs(2),
            // Each costs both ends one handshake and the gateway some 40 KiB while it waits; a burst goes cold.
            warm_tcp: 2,
            warm_lifetime: Duration::from_secs(45),
            // Most round trips are shorter, so that TCP is only tried where QUIC is in trouble.
            quic_head_start: Duration::from_millis(100),
            // A network that drops UDP does so for long; one race a minute costs nothing.
            quic_retry_after: Duration::from_secs(60),
        }
    }
}

/// An opened tunnel.
#[derive(Debug)]
pub struct Opening {
    /// What the gateway chose.
    pub opened: OpenedAnswer,
    /// For the sealed session.
    pub stream: TunnelStream,
    /// [`Transport::Quic`] or [`Transport::Tcp`].
    pub transport: Transport,
}

/// What a probe of a gateway found.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// The transport in use.
    pub transport: Transport,
    /// `Open` to answer on a warm connection.
    pub round_trip: Duration,
}

/// Opens tunnels. Cheap to clone; connections live as long as any clone, and no longer than either certificate.
#[derive(Debug, Clone)]
pub struct Dialer {
    shared: Arc<Shared>,
    paths: Arc<Mutex<HashMap<GatewayPath, Arc<Path>>>>,
    // Ends with the last clone, and everything that runs in the background with it.
    tasks: Arc<Tasks>,
}

/// What all paths use.
#[derive(Debug)]
struct Shared {
    credentials: Credentials,
    config: DialerConfig,
    endpoints: Endpoints,
}

/// A path that nobody used for this long is forgotten, with its connections.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// Asks a gateway whether it is there, and for nothing else.
fn ping() -> Result<OpenRequest, Refusal> {
    let target = ServicePort::parse(SYSTEM_NAMESPACE, PING_SERVICE, 1);
    Ok(OpenRequest::any(target.map_err(|e| Refusal::new(Code::BadRequest, e.to_string(), "report this"))?))
}

impl Dialer {
    /// A dialler that speaks with these credentials.
    pub fn new(credentials: Credentials, config: DialerConfig) -> Self {
        let shared = Shared { credentials, config, endpoints: Endpoints::default() };
        Self { shared: Arc::new(shared), paths: Arc::default(), tasks: Arc::default() }
    }

    /// Opens a tunnel to a service port through this gateway. Every failure is a refusal: the gateway's own, or
    /// [`PeerUnreachable`](hawser_api::Code::PeerUnreachable), [`TimedOut`](hawser_api::Code::TimedOut),
    /// [`WrongIdentity`](hawser_api::Code::WrongIdentity), [`NotReady`](hawser_api::Code::NotReady).
    ///
    /// Dropped before it is done, the open is withdrawn at the gateway too.
    pub async fn open(&self, path: &GatewayPath, request: &OpenRequest) -> Result<Opening, Refusal> {
        Ok(self.opened(path, request).await?.opening)
    }

    /// Opens `hawser-system/ping` through this gateway and measures.
    pub async fn probe(&self, path: &GatewayPath) -> Result<Probe, Refusal> {
        let opened = self.opened(path, &ping()?).await?;
        Ok(Probe { transport: opened.opening.transport, round_trip: opened.round_trip })
    }

    /// The transport last used on this path, if any.
    pub fn transport_in_use(&self, path: &GatewayPath) -> Option<Transport> {
        self.paths.lock().get(path)?.transport_in_use()
    }

    async fn opened(&self, path: &GatewayPath, request: &OpenRequest) -> Result<Opened, Refusal> {
        let frame = request.to_frame()?;
        let path = self.path(path)?;
        let opened = match path.gateway().transport {
            Transport::Quic => path.open_quic(frame).await,
            Transport::Tcp => path.open_tcp(frame).await,
            Transport::Auto => race::open(&path, frame).await,
        };
        opened.inspect(|opened| path.note_use(opened.opening.transport)).map_err(|e| e.into_refusal(path.gateway()))
    }

    fn path(&self, gateway: &GatewayPath) -> Result<Arc<Path>, Refusal> {
        let mut paths = self.paths.lock();
        if let Some(path) = paths.get(gateway) {
            return Ok(path.clone());
        }
        let now = Instant::now();
        paths.retain(|_, path| now.duration_since(path.last_use()) < FORGOTTEN_AFTER);
        let path = Arc::new(Path::new(gateway.clone(), self.shared.clone(), &self.tasks)?);
        paths.insert(gateway.clone(), path.clone());
        Ok(path)
    }
}

/// An open that succeeded, with how long the gateway took to answer it.
#[derive(Debug)]
struct Opened {
    opening: Opening,
    round_trip: Duration,
}

/// Why an open did not succeed.
#[derive(Debug, Clone)]
enum Failure {
    /// The gateway said no.
    Refused(Refusal),
    /// There was no getting through to it.
    Unreached(HandshakeError),
}

impl From<HandshakeError> for Failure {
    fn from(error: HandshakeError) -> Self {
        Self::Unreached(error)
    }
}

impl From<crate::tcp::OpenFailure> for Failure {
    fn from(failure: crate::tcp::OpenFailure) -> Self {
        match failure {
            crate::tcp::OpenFailure::Refused(refusal) => Self::Refused(refusal),
            crate::tcp::OpenFailure::Lost(error) => error.into(),
        }
    }
}

impl Failure {
    fn timed_out(what: &str, limit: Duration) -> Self {
        Self::Unreached(HandshakeError { reason: "timed_out", detail: format!("no {what} within {limit:?}") })
    }

    fn into_refusal(self, path: &GatewayPath) -> Refusal {
        let failure = match self {
            Self::Refused(refusal) => return refusal,
            Self::Unreached(failure) => failure,
        };
        let GatewayPath { cluster, gateway, address, trust_domain, .. } = path;
        let (code, remedy) = match failure.reason {
            "no_identity" => {
                (Code::NotReady, "wait until the trust anchor has issued an identity: hawser check".into())
            }
            "expired" | "not_yet_valid" => (
                Code::WrongIdentity,
                format!(
                    "compare the clocks of this cluster and of {cluster}: hawser trust status; if they agree, see there why \
                     certificates are not renewed"
                ),
            ),
            "wrong_identity" | "untrusted" | "denied" | "refused_by_peer" => (
                Code::WrongIdentity,
                format!(
                    "check that {address} is a gateway of {trust_domain}, and that both clusters' Links hold the \
                     other's current bundle: hawser check"
                ),
            ),
            "timed_out" => (
                Code::TimedOut,
                format!("check that the gateway runs and that no firewall drops UDP and TCP to {address}"),
            ),
            _ => (
                Code::PeerUnreachable,
                format!("check that the gateway runs, and its address {address} in Link {cluster}"),
            ),
        };
        let message = format!("gateway {gateway} of {cluster} at {address}: {}", failure.detail);
        Refusal::new(code, message, remedy)
    }
}

/// UDP sockets to dial from, one an address family, made when first needed.
#[derive(Debug, Default)]
struct Endpoints {
    v4: Mutex<Option<quinn::Endpoint>>,
    v6: Mutex<Option<quinn::Endpoint>>,
}

impl Endpoints {
    fn for_address(&self, address: IpAddr) -> Result<quinn::Endpoint, HandshakeError> {
        let (slot, any) = match address {
            IpAddr::V4(_) => (&self.v4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            IpAddr::V6(_) => (&self.v6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
        let mut slot = slot.lock();
        if let Some(endpoint) = slot.as_ref() {
            return Ok(endpoint.clone());
        }
        let endpoint = quic::endpoint(SocketAddr::new(any, 0), None)?;
        *slot = Some(endpoint.clone());
        Ok(endpoint)
    }
}

/// What runs in the background for a dialler: fillers of warm connections, and connections that drain.
#[derive(Debug, Default)]
struct Tasks(Mutex<JoinSet<()>>);

impl Tasks {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.lock();
        // Those that are done would otherwise be kept for somebody to ask about.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}
