//! Moves a sealed session's bytes between a tunnel and an upstream connection, without looking at them.
//!
//! ```text
//! TCP tunnel  ─ splice(2) ─▶ pipe ─ splice(2) ─▶ upstream      the bytes never enter this process
//! QUIC tunnel ─ chunks of the datagrams ─ writev ─▶ upstream   copied once, by the kernel
//! ```
//!
//! An idle stream is two descriptors and a task: it holds no pipe and no buffer.

mod copy;
mod pipe;
mod quic;
mod tcp;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::stream::{TunnelStream, reset_on_close};

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

impl Traffic {
    /// Bytes from the tunnel to the upstream.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes from the upstream to the tunnel.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
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
    /// Nothing moved for too long: the kernel asked the other side and got no answer.
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
    stream: TunnelStream,
    upstream: TcpStream,
    traffic: Arc<Traffic>,
    cut: CancellationToken,
) -> Ended {
    // A failure here is found again by the first read or write.
    let _ = crate::tcp::prepare(&upstream);
    // Boxed, so that a stream holds the state of its own way of carrying and not that of the other as well.
    let ended = match stream {
        TunnelStream::Tcp { socket, early } => Box::pin(over_tcp(&socket, early, &upstream, &traffic, &cut)).await,
        TunnelStream::Quic { send, recv, guard } => {
            let mut halves = quic::Halves::new(send, recv);
            let ended = Box::pin(quic::carry(&mut halves, &upstream, &traffic, &cut)).await;
            halves.end(ended);
            // The connection must not end under what was just written.
            drop(guard);
            ended
        }
    };
    if ended != Ended::Finished {
        reset_on_close(&upstream);
    }
    ended
}

async fn over_tcp(
    tunnel: &TcpStream,
    early: BytesMut,
    upstream: &TcpStream,
    traffic: &Traffic,
    cut: &CancellationToken,
) -> Ended {
    let carried = async {
        copy::write_all(upstream, &early, &traffic.sent).await.map_err(|e| Broken::new(Side::Upstream, e))?;
        drop(early);
        tcp::carry(tunnel, upstream, traffic).await
    };
    let ended = until_cut(carried, cut).await;
    if ended != Ended::Finished {
        reset_on_close(tunnel);
    }
    ended
}

async fn until_cut(carried: impl Future<Output = Result<(), Broken>>, cut: &CancellationToken) -> Ended {
    tokio::select! {
        biased;
        () = cut.cancelled() => Ended::Cut,
        carried = carried => carried.map_or_else(|broken| broken.ended(), |()| Ended::Finished),
    }
}

/// Which of the two connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Tunnel,
    Upstream,
}

/// A connection failed.
#[derive(Debug)]
struct Broken {
    side: Side,
    error: std::io::Error,
}

impl Broken {
    fn new(side: Side, error: impl Into<std::io::Error>) -> Self {
        Self { side, error: error.into() }
    }

    fn ended(&self) -> Ended {
        tracing::debug!(side = ?self.side, error = %self.error, "a carried stream broke");
        match (self.error.kind(), self.side) {
            // Keepalive went unanswered.
            (std::io::ErrorKind::TimedOut, _) => Ended::Idle,
            (_, Side::Tunnel) => Ended::PeerReset,
            (_, Side::Upstream) => Ended::UpstreamReset,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Granted;
    impl Permit for Granted {}

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn an_idle_stream_is_a_small_task() {
        let ((_caller, tunnel), (upstream, _server)) = (pair().await, pair().await);
        let carried = splice(&Granted, tunnel.into(), upstream, Arc::default(), CancellationToken::new());
        let (near, far, traffic, cut) = (pair().await, pair().await, Traffic::default(), CancellationToken::new());
        let way = over_tcp(&near.0, BytesMut::new(), &far.0, &traffic, &cut);
        let size = size_of_val(&carried) + size_of_val(&way);
        assert!(size <= 4096, "{size} bytes");
    }
}
