//! The dialling side of tunnels: one QUIC connection a gateway, warm TCP connections, and the choice between them.

use std::net::SocketAddr;
use std::time::Duration;

use hawser_api::objects::link::Transport;
use hawser_api::{ClusterName, Namespace, Refusal, TrustDomain};

use crate::open::{OpenRequest, OpenedAnswer};
use crate::stream::TunnelStream;
use crate::tls::Credentials;

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
    /// `auto`: how long QUIC is ahead of TCP.
    pub quic_head_start: Duration,
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
pub struct Dialer {}

impl Dialer {
    /// A dialler that speaks with these credentials.
    pub fn new(_credentials: Credentials, _config: DialerConfig) -> Self {
        unimplemented!()
    }

    /// Opens a tunnel to a service port through this gateway. Every failure is a refusal: the gateway's own, or
    /// [`PeerUnreachable`](hawser_api::Code::PeerUnreachable), [`TimedOut`](hawser_api::Code::TimedOut),
    /// [`WrongIdentity`](hawser_api::Code::WrongIdentity), [`NotReady`](hawser_api::Code::NotReady).
    pub async fn open(&self, _path: &GatewayPath, _request: &OpenRequest) -> Result<Opening, Refusal> {
        unimplemented!()
    }

    /// Opens `hawser-system/ping` through this gateway and measures.
    pub async fn probe(&self, _path: &GatewayPath) -> Result<Probe, Refusal> {
        unimplemented!()
    }

    /// The transport last used on this path, if any.
    pub fn transport_in_use(&self, _path: &GatewayPath) -> Option<Transport> {
        unimplemented!()
    }
}

impl Default for DialerConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(2),
            open_timeout: Duration::from_secs(2),
            warm_tcp: 2,
            quic_head_start: Duration::from_millis(100),
        }
    }
}
