//! Dedicated sessions: one application connection each.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hawser_api::{Code, Refusal, ServicePort};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::inbox::record_error;
use super::record::RecordError;
use super::relay::Relay;
use super::stream::SealedStream;
use super::{Accepted, OUR_CERTIFICATE, preface};
use crate::splice::{Ended, Traffic};
use crate::tls::{HandshakeError, VerifiedPeer};

/// A dedicated session: the bytes of one application connection.
#[derive(Debug)]
pub struct Dedicated {
    /// The other end.
    pub peer: VerifiedPeer,
    stream: SealedStream,
}

/// The dialling side: asks, and waits for the answer.
pub(super) async fn open(
    mut stream: SealedStream,
    peer: VerifiedPeer,
    target: &ServicePort,
) -> Result<Dedicated, Refusal> {
    let exchange = async {
        preface::ask(&mut stream, target).await?;
        stream.flush().await?;
        preface::answer(&mut stream).await
    };
    exchange.await.map_err(|error| no_answer(&error, target))??;
    Ok(Dedicated { peer, stream })
}

/// The accepting side: reads what is asked for.
pub(super) async fn accept(mut stream: SealedStream, peer: VerifiedPeer) -> Result<Accepted, HandshakeError> {
    match preface::asked(&mut stream).await {
        Ok(target) => Ok(Accepted::Dedicated { session: Dedicated { peer, stream }, target }),
        Err(error) if error.kind() == io::ErrorKind::InvalidData && record_error(&error).is_none() => {
            let refusal = Refusal::new(Code::BadRequest, error.to_string(), "speak hawser-tcp/1 as this version does");
            // The session fails either way; this only tells the peer why.
            let _ = preface::refuse(&mut stream, &refusal).await;
            Err(HandshakeError { reason: "protocol", detail: error.to_string() })
        }
        Err(error) => Err(HandshakeError { reason: "io", detail: error.to_string() }),
    }
}

impl Dedicated {
    /// For the accepting side: the application's connection stands, what follows are its bytes.
    pub async fn confirm(&mut self) -> io::Result<()> {
        in_time(preface::confirm(&mut self.stream)).await
    }

    /// For the accepting side: there will be no connection.
    pub async fn refuse(mut self, refusal: &Refusal) -> io::Result<()> {
        let tell = async {
            preface::refuse(&mut self.stream, refusal).await?;
            self.stream.shutdown().await
        };
        in_time(tell).await
    }

    #[cfg(test)]
    pub(crate) fn records(&mut self) -> &mut super::record::Records {
        &mut self.stream.records
    }

    /// The bytes of the session, for who has them elsewhere than in a socket.
    pub fn into_stream(self) -> SealedStream {
        self.stream
    }

    /// Carries between the application's connection (from which `early` has been read) and the session. Half-closes
    /// and resets go through. `Traffic::sent` counts what goes into the session.
    pub fn relay(
        self,
        app: TcpStream,
        early: Bytes,
        traffic: Arc<Traffic>,
        cut: CancellationToken,
    ) -> impl Future<Output = Ended> + Send + 'static {
        // Not an async fn: its future would hold the session twice.
        Relay::new(self.stream, app, early, traffic).run(cut)
    }
}

/// An answer fits into any socket's buffer, so that a peer that does not take it is gone.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

async fn in_time(tell: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    tokio::time::timeout(ANSWER_TIMEOUT, tell).await?
}

/// No answer to the preface. The server verifies our certificate after our side of the handshake is over, so that this
/// is where its objection arrives.
fn no_answer(error: &io::Error, target: &ServicePort) -> Refusal {
    match record_error(error) {
        // The certificate alerts of RFC 8446 section 6.2.
        Some(RecordError::Alert(alert @ (42..=46 | 48 | 49 | 116))) => Refusal::new(
            Code::EndpointUnreachable,
            format!("the endpoint of {target} refused our certificate (TLS alert {alert})"),
            OUR_CERTIFICATE,
        ),
        _ => Refusal::new(
            Code::EndpointUnreachable,
            format!("the endpoint of {target} ended the session: {error}"),
            "see the log of the endpoint's proxy",
        ),
    }
}
