//! Sealed sessions: TLS 1.3 mutual between two proxies, inside a tunnel or straight over TCP.
//!
//! ```text
//! connect ─ handshake (rustls) ─ record layer (ours, in place, large buffers) ─▶ Shared (h2) │ Dedicated (bytes)
//! accept  ─ handshake ─ ALPN decides ─▶ SharedServer │ DedicatedServer{ target from the preface }
//! ```

use hawser_api::{Refusal, ServicePort};

use crate::splice::{Ended, Traffic};
use crate::stream::TunnelStream;
use crate::tls::{Credentials, Expect, HandshakeError, VerifiedPeer};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// A client's shared session: HTTP/2 inside the sealed session. Clone to send concurrently.
#[derive(Clone, Debug)]
pub struct SharedClient {
    /// Sends requests; `ready()` waits for room.
    pub requests: h2::client::SendRequest<Bytes>,
    /// Who serves.
    pub peer: VerifiedPeer,
}

/// Drives a shared session; ends when it is over. Whoever gets it must run it.
pub type Driver = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Opens a shared session in a stream. The driver sends a PING whenever streams are open and nothing came for
/// `keepalive`, and ends the session when none is answered within the same time again.
pub async fn connect_shared(
    _stream: TunnelStream,
    _credentials: &Credentials,
    _expect: &Expect,
    _keepalive: Duration,
) -> Result<(SharedClient, Driver), Refusal> {
    unimplemented!()
}

/// A dedicated session: the bytes of one application connection.
#[derive(Debug)]
pub struct Dedicated {
    /// The other end.
    pub peer: VerifiedPeer,
}

/// Opens a dedicated session to this service port.
pub async fn connect_dedicated(
    _stream: TunnelStream,
    _credentials: &Credentials,
    _expect: &Expect,
    _target: &ServicePort,
) -> Result<Dedicated, Refusal> {
    unimplemented!()
}

impl Dedicated {
    /// Carries between the application's connection (from which `early` has been read) and the session. Half-closes
    /// and resets go through. `Traffic::sent` counts what goes into the session.
    pub async fn relay(self, _app: TcpStream, _early: Bytes, _traffic: Arc<Traffic>, _cut: CancellationToken) -> Ended {
        unimplemented!()
    }
}

/// A session as the inbound proxy gets it.
pub enum Accepted {
    /// HTTP/2; each stream names its target in `hawser-target`.
    Shared(SharedServer),
    /// One connection to the target that the preface named.
    Dedicated {
        /// The session.
        session: Dedicated,
        /// What it asks for; not yet admitted.
        target: ServicePort,
    },
}

/// The server's end of a shared session.
pub struct SharedServer {
    /// The caller.
    pub peer: VerifiedPeer,
    /// Its streams.
    pub connection: h2::server::Connection<SealedStream, Bytes>,
}

/// TLS over a [`TunnelStream`]: what HTTP/2 runs on.
pub type SealedStream = TunnelStream;

/// Does the server's side of the handshake (and reads the preface of a dedicated session) within `deadline`.
pub async fn accept(
    _stream: TunnelStream,
    _credentials: &Credentials,
    _deadline: Duration,
) -> Result<Accepted, HandshakeError> {
    unimplemented!()
}
