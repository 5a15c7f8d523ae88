//! The issuer's TCP door, for processes in other pods: TLS in which we prove ourselves, and so does who already can. What
//! may be asked there is [`admit::remote`](crate::admit::remote)'s decision.
//!
//! ```text
//! accept ─▶ slot of a stranger ─▶ handshake ─┬─ no certificate ─▶ as long as one question takes
//!                                            └─ certificate ────▶ slot of a member, as long as the certificate holds
//! ```
//!
//! A connection ends when its time is over, and everything that is said over it ends with it: nobody who was revoked
//! goes on telling the trust anchor who has loaded what.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use hawser_api::SpiffeId;
use hawser_api::proto::issuer::issuer_server::IssuerServer;
use hawser_runtime::{Process, clock};
use hawser_tunnel::identity::{Answered, IssuerServer as Tls};
use hawser_tunnel::listen::{Bounds, Slot, Slots};
use hawser_tunnel::tls::{Credentials, VerifiedPeer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::Service;
use crate::authority::Authority;
use crate::svid;

/// Handshakes, and connections without a certificate. A prefix is a node, or less: its pods want certificates all at once
/// when it starts.
const STRANGERS: Bounds = Bounds { all: 512, of_prefix: 128 };
/// Connections with a certificate: each process keeps one, for its bundle, and the mirror controller two more.
const MEMBERS: Bounds = Bounds { all: 4096, of_prefix: 1024 };
/// For one handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// For whoever showed no certificate: longer than a client of ours waits for its answer.
const STRANGER_MAX: Duration = Duration::from_secs(15);
/// How often is looked whether a certificate still holds, besides whenever trust changes.
const LOOK: Duration = Duration::from_secs(1);
/// Requests of one connection at a time: a process asks for one certificate and follows one bundle.
const STREAMS_MAX: u32 = 16;
/// A connection that does not answer a PING within this time is closed.
const KEEPALIVE: Duration = Duration::from_secs(20);
/// Connections whose handshake is done and that wait to be served.
const SHAKEN_MAX: usize = 64;
/// After a failure to accept, trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who is at the other end.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// What the certificate proved that was shown, if one was.
    verified: Option<VerifiedPeer>,
}

impl Peer {
    /// Who, if he showed a certificate.
    pub(super) fn id(&self) -> Option<&SpiffeId> {
        self.verified.as_ref().map(VerifiedPeer::id)
    }
}

/// Binds; serve it afterwards.
pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("cannot listen for pods on {address}"))
}

/// Serves until the process drains and every answer is out.
pub(super) async fn serve(service: Arc<Service>, listener: TcpListener, process: &Process) -> anyhow::Result<()> {
    let (shaken, connections) = mpsc::channel(SHAKEN_MAX);
    let door = Door {
        authority: Arc::clone(&service.authority),
        strangers: Slots::new(STRANGERS),
        members: Slots::new(MEMBERS),
        shaken,
    };
    process.spawn(Arc::new(door).accept(listener, process.clone()));
    let issuer = IssuerServer::from_arc(service).max_decoding_message_size(super::REQUEST_MAX);
    tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .serve_with_incoming_shutdown(issuer, ReceiverStream::new(connections), process.drain.clone().cancelled_owned())
        .await
        .context("the issuer's TCP door")
}

struct Door {
    authority: Arc<Authority>,
    strangers: Slots,
    members: Slots,
    shaken: mpsc::Sender<io::Result<Connection>>,
}

impl Door {
    async fn accept(self: Arc<Self>, listener: TcpListener, process: Process) {
        loop {
            let accepted = tokio::select! {
                () = process.drain.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((socket, address)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            // Closed unseen where there is no room: who needs a certificate asks again.
            let Ok(slot) = self.strangers.take(address.ip(), true) else { continue };
            process.spawn(Arc::clone(&self).let_in(socket, address, slot));
        }
    }

    async fn let_in(self: Arc<Self>, socket: TcpStream, address: SocketAddr, slot: Slot) {
        let connected = timeout(HANDSHAKE_MAX, self.connected(socket, address, slot)).await;
        match connected.unwrap_or_else(|_| Err(anyhow::anyhow!("it took too long"))) {
            Ok(connection) => drop(self.shaken.send(Ok(connection)).await),
            Err(error) => tracing::debug!(%address, error = format!("{error:#}"), "a handshake failed"),
        }
    }

    async fn connected(&self, socket: TcpStream, address: SocketAddr, slot: Slot) -> anyhow::Result<Connection> {
        let (stream, verified) = self.shake(socket).await?;
        let slot = match &verified {
            Some(_) => self.members.take(address.ip(), true).map_err(|turn| anyhow::anyhow!("no room: {turn:?}"))?,
            None => slot,
        };
        let over = Some(life(self.authority.credentials.clone(), verified.clone()));
        Ok(Connection { stream, over, peer: Peer { address, verified }, _slot: slot })
    }

    async fn shake(&self, socket: TcpStream) -> anyhow::Result<(Pin<Box<dyn Io>>, Option<VerifiedPeer>)> {
        socket.set_nodelay(true)?;
        let own = Arc::clone(&self.authority);
        // A certificate may be signed and recorded.
        tokio::task::spawn_blocking(move || svid::current(&own, clock::now())).await??;
        let Answered { stream, peer } = Tls::new(self.authority.credentials.clone()).accept(socket).await?;
        Ok((Box::pin(stream), peer))
    }
}

type Life = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Comes to its end when the connection has to.
fn life(credentials: Credentials, verified: Option<VerifiedPeer>) -> Life {
    let Some(peer) = verified else { return Box::pin(tokio::time::sleep(STRANGER_MAX)) };
    Box::pin(async move {
        let mut generation = credentials.generation();
        while credentials.still_trusts(&peer) {
            let _ = timeout(LOOK, generation.changed()).await;
        }
        tracing::debug!(peer = %peer.id(), "its certificate does not hold any more");
    })
}

trait Io: AsyncRead + AsyncWrite + Send {}
impl<S: AsyncRead + AsyncWrite + Send> Io for S {}

/// With who is at its other end, as tonic hands it to each request.
struct Connection {
    stream: Pin<Box<dyn Io>>,
    /// Nothing is read any more when this has come to its end; `None`: it has.
    over: Option<Life>,
    peer: Peer,
    _slot: Slot,
}

impl Connected for Connection {
    type ConnectInfo = Peer;
    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Whoever serves HTTP/2 always waits to read: nothing outlives this.
        if self.over.as_mut().is_none_or(|over| over.as_mut().poll(context).is_ready()) {
            self.over = None;
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.stream.as_mut().poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_shows_no_certificate_is_cut_when_his_answer_is_due_however_busy_he_looks() {
        let (mut client, server) = tokio::io::duplex(64);
        let credentials = Credentials::new("east.example".parse().unwrap(), clock::now);
        let address: SocketAddr = "10.1.2.3:4".parse().unwrap();
        let slots = Slots::new(Bounds { all: 1, of_prefix: 1 });
        let mut connection = Connection {
            stream: Box::pin(server),
            over: Some(life(credentials, None)),
            peer: Peer { address, verified: None },
            _slot: slots.take(address.ip(), true).unwrap(),
        };
        let begun = tokio::time::Instant::now();
        let dripping = async {
            while client.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let reading = async {
            let mut byte = [0];
            while connection.read_exact(&mut byte).await.is_ok() {}
            let after = begun.elapsed();
            drop(connection);
            after
        };
        let (after, ()) = tokio::join!(reading, dripping);
        assert!((STRANGER_MAX..STRANGER_MAX + LOOK).contains(&after), "{after:?}");
        assert!(slots.take(address.ip(), true).is_ok(), "its slot is free again");
    }
}
