//! Moves a sealed session's bytes between a tunnel and an upstream connection, without looking at them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::stream::TunnelStream;

/// Proof that this stream was admitted. A crate implements it for a type that only its `admit` can make.
pub trait Permit: Send + Sync {}

/// Bytes carried so far; read while the stream lives.
#[derive(Debug, Default)]
pub struct Traffic {
    /// From the tunnel to the upstream.
    pub sent: AtomicU64,
    /// From the upstream to the tunnel.
    pub received: AtomicU64,
}

/// How a carried stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Both directions reached their end.
    Finished,
    /// The tunnel side was reset or failed.
    PeerReset,
    /// The upstream side was reset or failed.
    UpstreamReset,
    /// Nothing moved for too long.
    Idle,
    /// Cut by us.
    Cut,
}

impl Ended {
    /// A stable word for metrics and access records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::PeerReset => "peer_reset",
            Self::UpstreamReset => "upstream_reset",
            Self::Idle => "idle",
            Self::Cut => "cut",
        }
    }
}

/// Carries until both directions have ended, one is reset (the other is then reset too), or `cut` fires.
/// TCP to TCP goes by splice(2); QUIC to TCP by large reads. End of one direction is passed on as a half-close.
pub async fn splice<P: Permit>(
    _permit: &P,
    _stream: TunnelStream,
    _upstream: TcpStream,
    _traffic: Arc<Traffic>,
    _cut: CancellationToken,
) -> Ended {
    unimplemented!()
}
