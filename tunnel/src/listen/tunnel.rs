//! A tunnel with a verified peer, and what it asks for.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use hawser_api::objects::link::Transport;
use hawser_api::{Code, Refusal};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::ListenConfig;
use crate::open::{OpenRequest, OpenedAnswer, refusal_frame};
use crate::quic::{self, Halves, Live};
use crate::stream::TunnelStream;
use crate::tcp::Session;
use crate::tls::{HandshakeError, VerifiedPeer};

/// A tunnel with a verified peer.
#[derive(Debug)]
pub struct Tunnel {
    peer: VerifiedPeer,
    remote: SocketAddr,
    carrier: Carrier,
    going: CancellationToken,
    cut: CancellationToken,
}

#[derive(Debug)]
enum Carrier {
    Tcp(Box<Waiting>),
    Quic(Box<Connection>),
}

/// A TCP connection that waits for its one `Open`.
#[derive(Debug)]
struct Waiting {
    session: Option<Session>,
    // The frame, while close_notify is still to come.
    frame: Option<Bytes>,
    warm_until: Instant,
    open_until: Option<Instant>,
    open_timeout: Duration,
}

/// A QUIC connection, with the opens that have begun.
struct Connection {
    connection: quinn::Connection,
    live: Arc<Live>,
    opening: FuturesUnordered<BoxFuture<'static, Option<Arrival>>>,
    open_timeout: Duration,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("live", &self.live).finish_non_exhaustive()
    }
}

/// After `go_away` a connection without streams is kept this long, so that opens that crossed it get an answer.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

impl Tunnel {
    pub(super) fn over_tcp(session: Session, peer: VerifiedPeer, remote: SocketAddr, config: &ListenConfig) -> Self {
        let waiting = Waiting {
            session: Some(session),
            frame: None,
            warm_until: Instant::now() + config.warm_timeout,
            open_until: None,
            open_timeout: config.open_timeout,
        };
        Self::new(peer, remote, Carrier::Tcp(Box::new(waiting)))
    }

    pub(crate) fn over_quic(
        connection: quinn::Connection,
        peer: VerifiedPeer,
        remote: SocketAddr,
        config: &ListenConfig,
    ) -> Self {
        let connection = Connection {
            connection,
            live: Arc::default(),
            opening: FuturesUnordered::new(),
            open_timeout: config.open_timeout,
        };
        Self::new(peer, remote, Carrier::Quic(Box::new(connection)))
    }

    fn new(peer: VerifiedPeer, remote: SocketAddr, carrier: Carrier) -> Self {
        Self { peer, remote, carrier, going: CancellationToken::new(), cut: CancellationToken::new() }
    }

    /// Who it is.
    pub fn peer(&self) -> &VerifiedPeer {
        &self.peer
    }

    /// Over what.
    pub fn transport(&self) -> Transport {
        match self.carrier {
            Carrier::Tcp(_) => Transport::Tcp,
            Carrier::Quic(_) => Transport::Quic,
        }
    }

    /// From where.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// The next `Open`: many over QUIC, one over TCP, `None` when the tunnel is over. Cancel safe.
    pub async fn next_open(&mut self) -> Option<Arrival> {
        let (going, cut) = (self.going.clone(), self.cut.clone());
        let next = async {
            match &mut self.carrier {
                Carrier::Tcp(waiting) => waiting.next_open(&going).await,
                Carrier::Quic(connection) => connection.next_open(&going).await,
            }
        };
        tokio::select! {
            biased;
            () = cut.cancelled() => None,
            arrival = next => arrival,
        }
    }

    /// Tells the peer to open nothing more here (QUIC: connection close after live streams end; TCP: close_notify).
    /// [`next_open`](Self::next_open) does it, and says `None` when it is done: go on calling it.
    pub fn go_away(&self) {
        self.going.cancel();
    }

    /// Ends it at once, with all streams that were accepted from it over QUIC.
    pub fn cut(&self) {
        self.cut.cancel();
        if let Carrier::Quic(connection) = &self.carrier {
            connection.connection.close(quic::CUT, b"cut");
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let Carrier::Quic(carrier) = &self.carrier else { return };
        if carrier.connection.close_reason().is_some() {
            return;
        }
        // Streams that were accepted outlive the tunnel; closing the connection under them would cut them.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(quic::drain(carrier.connection.clone(), carrier.live.clone()));
        }
    }
}

impl Waiting {
    async fn next_open(&mut self, going: &CancellationToken) -> Option<Arrival> {
        let outcome = tokio::select! {
            outcome = self.read_open() => outcome,
            () = going.cancelled(), if self.open_until.is_none() => {
                if let Some(mut session) = self.session.take() {
                    let _ = timeout(self.open_timeout, session.end()).await;
                }
                return None;
            }
        };
        let session = self.session.take()?;
        let frame = self.frame.take();
        let request = match outcome {
            Ok(()) => OpenRequest::from_payload(&frame?),
            Err(error) if error.reason == "io" || error.reason == "timed_out" => {
                tracing::debug!(%error, "a TCP tunnel ended before it opened anything");
                return None;
            }
            Err(error) => Err(broken(&error)),
        };
        let carrier = Answering::Tcp(Box::new(session));
        settle(request, carrier, self.open_timeout, going).await
    }

    /// Reads the frame and the close_notify behind it. Cancel safe: what was read stays in `self`.
    async fn read_open(&mut self) -> Result<(), HandshakeError> {
        let gone = || HandshakeError { reason: "io", detail: "the tunnel is over".to_owned() };
        let session = self.session.as_mut().ok_or_else(gone)?;
        let late = |_| HandshakeError { reason: "timed_out", detail: "no open came in time".to_owned() };
        while !session.has_begun() {
            timeout_at(self.warm_until, session.receive()).await.map_err(late)??;
        }
        let until = *self.open_until.get_or_insert_with(|| Instant::now() + self.open_timeout);
        if self.frame.is_none() {
            self.frame = Some(timeout_at(until, session.next_frame()).await.map_err(late)??);
        }
        timeout_at(until, session.peer_end()).await.map_err(late)?
    }
}

impl Connection {
    async fn next_open(&mut self, going: &CancellationToken) -> Option<Arrival> {
        loop {
            let Self { connection, live, opening, open_timeout } = self;
            let idle_after_going = async {
                going.cancelled().await;
                live.idle().await;
                tokio::time::sleep(LAST_ANSWERS).await;
            };
            tokio::select! {
                accepted = connection.accept_bi() => match accepted {
                    Ok((send, recv)) => {
                        let halves = Halves::new(send, recv, live.guard());
                        opening.push(Box::pin(read_open(halves, *open_timeout, going.clone())));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a QUIC tunnel ended");
                        return None;
                    }
                },
                Some(arrival) = opening.next(), if !opening.is_empty() => if arrival.is_some() {
                    return arrival;
                },
                () = idle_after_going => if live.count() == 0 {
                    connection.close(quic::DONE, b"gone away");
                    return None;
                },
            }
        }
    }
}

async fn read_open(mut halves: Halves, limit: Duration, going: CancellationToken) -> Option<Arrival> {
    let request = match timeout(limit, halves.read_frame()).await.ok()? {
        Ok(payload) => OpenRequest::from_payload(&payload),
        Err(error) if error.reason == "too_large" => Err(broken(&error)),
        Err(_) => return None,
    };
    settle(request, Answering::Quic(Box::new(halves)), limit, &going).await
}

/// What cannot be read, or comes too late, is answered here and never seen outside.
async fn settle(
    request: Result<OpenRequest, Refusal>,
    carrier: Answering,
    limit: Duration,
    going: &CancellationToken,
) -> Option<Arrival> {
    let refusal = match request {
        Ok(request) if !going.is_cancelled() => return Some(Arrival { request, carrier, limit }),
        Ok(_) => Refusal::new(Code::Draining, "this gateway is shutting down", "nothing: another gateway takes over"),
        Err(refusal) => refusal,
    };
    carrier.refuse(&refusal, limit).await;
    None
}

fn broken(error: &HandshakeError) -> Refusal {
    Refusal::new(Code::BadRequest, error.detail.clone(), "run the same release of hawser in both clusters")
}

/// An `Open` that waits for its answer. A malformed one has been answered and is never seen here.
#[derive(Debug)]
pub struct Arrival {
    request: OpenRequest,
    carrier: Answering,
    limit: Duration,
}

#[derive(Debug)]
enum Answering {
    Tcp(Box<Session>),
    Quic(Box<Halves>),
}

impl Arrival {
    /// What is asked.
    pub fn request(&self) -> &OpenRequest {
        &self.request
    }

    /// Says no.
    pub async fn refuse(self, refusal: &Refusal) {
        self.carrier.refuse(refusal, self.limit).await;
    }

    /// Says yes; what comes back carries the sealed session's own bytes.
    pub async fn accept(self, answer: &OpenedAnswer) -> io::Result<TunnelStream> {
        let frame = answer.to_frame().map_err(io::Error::other)?;
        let send = async {
            match self.carrier {
                Answering::Tcp(mut session) => {
                    session.answer(&frame).await.map_err(io::Error::other)?;
                    Ok(session.into_stream())
                }
                Answering::Quic(mut halves) => {
                    halves.write(frame).await.map_err(io::Error::other)?;
                    halves.into_stream().ok_or_else(|| io::ErrorKind::NotConnected.into())
                }
            }
        };
        timeout(self.limit, send).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

impl Answering {
    /// Best effort within the deadline: a peer that does not listen learns nothing.
    async fn refuse(self, refusal: &Refusal, limit: Duration) {
        let Ok(frame) = refusal_frame(refusal) else { return };
        let send = async {
            match self {
                Self::Tcp(mut session) => {
                    if session.answer(&frame).await.is_ok() {
                        session.linger().await;
                    }
                }
                Self::Quic(mut halves) => {
                    if halves.write(frame).await.is_ok() {
                        halves.finish();
                    }
                }
            }
        };
        let _ = timeout(limit, send).await;
    }
}
