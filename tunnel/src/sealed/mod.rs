//! Sealed sessions: TLS 1.3 mutual between two proxies, inside a tunnel or straight over TCP.
//!
//! ```text
//! connect ─ handshake (rustls) ─ record layer (ours, in place, large buffers) ─▶ Shared (h2) │ Dedicated (bytes)
//! accept  ─ handshake ─ ALPN decides ─▶ SharedServer │ Dedicated{ target from the preface }
//!
//! handshake   rustls, record by record; hands over secrets and key schedule (keys)
//! record      opens and seals records, no I/O
//! inbox       socket ─▶ large buffer ─▶ record ─▶ payloads where they lie         outbox: the way back
//! stream      the two as AsyncRead + AsyncWrite, for HTTP/2
//! relay       the two against an application's socket (app), for dedicated sessions (dedicated, preface)
//! carry       an application's socket against one HTTP/2 stream of a shared session; stream_io: HTTP/1.1 in one
//! ```

mod app;
mod buffer;
mod carry;
mod dedicated;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod handshake;
mod inbox;
mod keys;
mod outbox;
mod preface;
pub mod record;
mod relay;
pub mod shared;
mod stream;
mod stream_io;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use hawser_api::{Code, Refusal, ServicePort};

use crate::stream::TunnelStream;
use crate::tls::{Credentials, Expect, HandshakeError, VerifiedPeer};
use handshake::Handshaken;

pub use dedicated::Dedicated;
pub use shared::{Driver, SharedClient, SharedServer, StreamIo, carry_stream};
pub use stream::SealedStream;

/// ALPN of a shared session.
const SHARED: &[u8] = b"h2";
/// ALPN of a dedicated session.
const DEDICATED: &[u8] = b"hawser-tcp/1";

/// From the first byte to a session that can be used, for the dialling side: a handshake is two round trips and some
/// milliseconds of CPU, a dedicated session waits for the far application's connect besides. Who can do without an
/// endpoint sooner drops the future.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A session as the inbound proxy gets it.
#[expect(clippy::large_enum_variant, reason = "made once per session and matched at once")]
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

/// Opens a shared session in a stream. The driver sends a PING when nothing came for half of `keepalive`, and ends the
/// session when nothing comes for a whole one after it: a peer that hangs is noticed after one and a half. A session
/// that nobody uses is asked ever more rarely, down to every four keepalives, until it is used again.
pub async fn connect_shared(
    stream: TunnelStream,
    credentials: &Credentials,
    expect: &Expect,
    keepalive: Duration,
) -> Result<(SharedClient, Driver), Refusal> {
    let connect = async {
        let (stream, peer) = connect(stream, credentials, expect, SHARED).await?;
        shared::client(stream, peer, keepalive).await
    };
    in_time(connect).await
}

/// Opens a dedicated session to this service port; returns when the server's application has accepted.
pub async fn connect_dedicated(
    stream: TunnelStream,
    credentials: &Credentials,
    expect: &Expect,
    target: &ServicePort,
) -> Result<Dedicated, Refusal> {
    let connect = async {
        let (stream, peer) = connect(stream, credentials, expect, DEDICATED).await?;
        dedicated::open(stream, peer, target).await
    };
    in_time(connect).await
}

/// Does the server's side of the handshake (and reads the preface of a dedicated session) within `deadline`.
pub async fn accept(
    stream: TunnelStream,
    credentials: &Credentials,
    deadline: Duration,
) -> Result<Accepted, HandshakeError> {
    let accept = async {
        let ours = credentials.identity();
        let config = credentials.server_config(&[SHARED, DEDICATED])?;
        let session = handshake::server(stream, config).await?;
        let peer = credentials.verified(&session.chain, &Expect::Trusted, ours)?;
        match session.alpn.as_slice() {
            SHARED => Ok(Accepted::Shared(shared::server(SealedStream::new(session), peer).await?)),
            DEDICATED => dedicated::accept(SealedStream::new(session), peer).await,
            other => Err(no_alpn(other)),
        }
    };
    tokio::time::timeout(deadline, accept).await.unwrap_or_else(|_| Err(HandshakeError::timed_out("the session")))
}

async fn connect(
    stream: TunnelStream,
    credentials: &Credentials,
    expect: &Expect,
    alpn: &[u8],
) -> Result<(SealedStream, VerifiedPeer), Refusal> {
    let connect = async {
        let ours = credentials.identity();
        let config: Arc<_> = credentials.client_config(expect, alpn)?;
        let session: Handshaken = handshake::client(stream, config).await?;
        if session.alpn != alpn {
            return Err(no_alpn(&session.alpn));
        }
        let peer = credentials.verified(&session.chain, expect, ours)?;
        Ok((SealedStream::new(session), peer))
    };
    connect.await.map_err(|error| refusal(&error))
}

async fn in_time<T>(connect: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    let late = || {
        let message = format!("the endpoint gave no session within {CONNECT_TIMEOUT:?}");
        Refusal::new(
            Code::TimedOut,
            message,
            "check that its proxy runs, is not overloaded, and reaches its application",
        )
    };
    tokio::time::timeout(CONNECT_TIMEOUT, connect).await.unwrap_or_else(|_| Err(late()))
}

fn no_alpn(alpn: &[u8]) -> HandshakeError {
    let name = String::from_utf8_lossy(alpn).into_owned();
    HandshakeError { reason: "alpn", detail: format!("the peer chose the protocol {name:?}, which was not offered") }
}

/// What to do when a server does not take our certificate.
const OUR_CERTIFICATE: &str = "check that its cluster trusts ours, and that the clocks of both sides agree";

/// A failed handshake as the dialling side tells it.
fn refusal(error: &HandshakeError) -> Refusal {
    let (code, remedy) = match error.reason {
        "no_identity" => (Code::NotReady, "wait until this process has its certificate; see the trust anchor's log"),
        "timed_out" => (Code::TimedOut, "check that the endpoint's proxy runs and is not overloaded"),
        "wrong_identity" | "untrusted" | "denied" | "too_large" => {
            (Code::WrongIdentity, "compare the server's certificate with the identities that discovery gives")
        }
        "expired" | "not_yet_valid" => {
            (Code::WrongIdentity, "check the server's renewal, and the clocks of both sides")
        }
        "refused_by_peer" => (Code::EndpointUnreachable, OUR_CERTIFICATE),
        "alpn" => (Code::EndpointUnreachable, "check that a Hawser proxy listens at the endpoint"),
        _ => (Code::EndpointUnreachable, "check that the endpoint's proxy runs and accepts sealed sessions"),
    };
    Refusal::new(code, format!("sealed session: {error}"), remedy)
}
