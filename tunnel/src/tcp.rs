//! Tunnels over TCP: one connection per sealed session, handed off by close_notify.
//!
//! Cold, an open costs TCP's round trip, the handshake's, and one for `Open`: the client's Finished, its `Open` and its
//! close_notify leave in one segment. Warm, it costs one. Every call here is to be put under a deadline by its caller.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use rustls::server::Accepted;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::handoff::Outer;
use crate::open::{OpenedAnswer, read_answer};
use crate::stream::TunnelStream;
use crate::tls::HandshakeError;

/// A TCP connection with its outer session; `S` is another kind of stream only in simulations.
#[derive(Debug)]
pub(crate) struct Session<S = TcpStream> {
    socket: S,
    outer: Outer,
}

/// Why an open gave no stream.
#[derive(Debug)]
pub(crate) enum OpenFailure {
    /// The gateway said no.
    Refused(hawser_api::Refusal),
    /// The connection was of no use; another may be.
    Lost(HandshakeError),
}

impl From<HandshakeError> for OpenFailure {
    fn from(error: HandshakeError) -> Self {
        Self::Lost(error)
    }
}

impl Session {
    /// Connects and does the handshake; the client's Finished is still unsent, so that it can travel with what follows.
    pub(crate) async fn connect(address: SocketAddr, config: Arc<ClientConfig>) -> Result<Self, HandshakeError> {
        let socket = TcpStream::connect(address).await?;
        prepare(&socket)?;
        Self::client(socket, config).await
    }

    /// The accepting side's handshake.
    pub(crate) async fn accept(socket: TcpStream, config: Arc<ServerConfig>) -> Result<Self, HandshakeError> {
        prepare(&socket)?;
        Self::server(socket, config).await
    }

    /// The same for a connection whose ClientHello has been read.
    pub(crate) async fn accepted(
        mut socket: TcpStream,
        hello: Accepted,
        config: Arc<ServerConfig>,
    ) -> Result<Self, HandshakeError> {
        match hello.into_connection(config) {
            Ok(tls) => Self::serve(socket, Outer::accepted(tls)).await,
            Err((error, mut alert)) => {
                let mut said = Vec::new();
                // Writing into memory cannot fail, and a peer that does not listen learns nothing.
                let _ = alert.write_all(&mut said);
                let _ = socket.write_all(&said).await;
                Err((&error).into())
            }
        }
    }

    /// The dialling side's open: `frame` and close_notify leave together, the answer and its close_notify are awaited.
    pub(crate) async fn open(mut self, frame: &[u8]) -> Result<(OpenedAnswer, TunnelStream), OpenFailure> {
        let opened = self.ask(frame).await?;
        Ok((opened, self.into_stream()))
    }

    /// The outer session is over; what was received behind its close_notify goes along.
    pub(crate) fn into_stream(self) -> TunnelStream {
        TunnelStream::Tcp { socket: self.socket, early: self.outer.into_early() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// As [`connect`](Session::connect), on a stream that is there.
    pub(crate) async fn client(socket: S, config: Arc<ClientConfig>) -> Result<Self, HandshakeError> {
        let mut session = Self { socket, outer: Outer::client(config)? };
        session.handshake().await?;
        Ok(session)
    }

    /// As [`accept`](Session::accept), on a stream that is there.
    pub(crate) async fn server(socket: S, config: Arc<ServerConfig>) -> Result<Self, HandshakeError> {
        Self::serve(socket, Outer::server(config)?).await
    }

    async fn serve(socket: S, outer: Outer) -> Result<Self, HandshakeError> {
        let mut session = Self { socket, outer };
        session.handshake().await?;
        session.flush().await?;
        Ok(session)
    }

    async fn handshake(&mut self) -> Result<(), HandshakeError> {
        while self.outer.is_handshaking() {
            self.flush().await.map_err(HandshakeError::from)?;
            self.receive().await?;
        }
        Ok(())
    }

    /// The other side's certificates, leaf first; for the verifier.
    pub(crate) fn peer_chain(&self) -> Result<&[CertificateDer<'static>], HandshakeError> {
        self.outer.peer()
    }

    /// Sends what rustls has to say. Cancel safe: what was not sent stays.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        let outbox = self.outer.outbox();
        while !outbox.is_empty() {
            if self.socket.write_buf(outbox).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// Reads once and hands over whole records. Cancel safe. Tells the peer what was wrong before it fails.
    pub(crate) async fn receive(&mut self) -> Result<(), HandshakeError> {
        let read = self.socket.read_buf(self.outer.inbox()).await.map_err(HandshakeError::from)?;
        if read == 0 {
            return Err(HandshakeError { reason: "io", detail: "the peer closed the connection".to_owned() });
        }
        let processed = self.outer.process();
        if processed.is_err() {
            // An alert is a few bytes into a socket that has room; if it has none the peer learns nothing.
            let _ = self.flush().now_or_never();
        }
        processed
    }

    /// Whether a connection that waits for its `Open` can still be used: nothing may have come.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let read = self.socket.read_buf(self.outer.inbox()).now_or_never();
        read.is_none() && !self.outer.has_begun()
    }

    /// Whether something of the next frame is there.
    pub(crate) fn has_begun(&self) -> bool {
        self.outer.has_begun()
    }

    /// Reads until a frame is complete. Cancel safe.
    pub(crate) async fn next_frame(&mut self) -> Result<Bytes, HandshakeError> {
        loop {
            if let Some(frame) = self.outer.take_frame()? {
                return Ok(frame);
            }
            if self.outer.peer_ended() {
                return Err(HandshakeError { reason: "io", detail: "the peer ended the outer session".to_owned() });
            }
            self.receive().await?;
        }
    }

    /// Reads the peer's close_notify, before which nothing more may come. Cancel safe.
    pub(crate) async fn peer_end(&mut self) -> Result<(), HandshakeError> {
        while !self.outer.peer_ended() {
            if self.outer.has_plain() {
                break;
            }
            self.receive().await?;
        }
        if self.outer.has_plain() {
            let detail = "more than one frame was sent before close_notify".to_owned();
            return Err(HandshakeError { reason: "protocol", detail });
        }
        Ok(())
    }

    /// The dialling side's open, without what follows it.
    pub(crate) async fn ask(&mut self, frame: &[u8]) -> Result<OpenedAnswer, OpenFailure> {
        self.outer.finish_with(frame)?;
        self.flush().await.map_err(HandshakeError::from)?;
        let opened = read_answer(&self.next_frame().await?).map_err(OpenFailure::Refused)?;
        self.peer_end().await?;
        Ok(opened)
    }

    /// The accepting side's last word: `frame` and close_notify.
    pub(crate) async fn answer(&mut self, frame: &[u8]) -> Result<(), HandshakeError> {
        self.outer.finish_with(frame)?;
        self.flush().await.map_err(HandshakeError::from)
    }

    /// Says close_notify without a frame.
    pub(crate) async fn end(&mut self) -> io::Result<()> {
        self.outer.end();
        self.flush().await
    }

    /// After a refusal: takes off what the peer had already sent, so that closing does not reset the connection and
    /// destroy the refusal under way. Bounded by the caller's deadline and by [`LINGER_BYTES`].
    pub(crate) async fn linger(mut self) {
        drop(self.outer);
        if self.socket.shutdown().await.is_err() {
            return;
        }
        let mut sink = [0; 4096];
        let mut taken = 0;
        while taken < LINGER_BYTES {
            match self.socket.read(&mut sink).await {
                Ok(0) | Err(_) => return,
                Ok(read) => taken += read,
            }
        }
    }
}

/// A sealed session's first flight is 2 KiB; whoever sends more behind a refused `Open` than this is reset.
const LINGER_BYTES: usize = 64 * 1024;

/// After this long without a byte the kernel asks whether the peer is there, this often and this many times: a peer
/// that vanished is noticed within 30 s, a paused one is left alone (TCP_USER_TIMEOUT would kill slow readers).
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);

/// Socket options of every TCP connection that carries a tunnel.
pub(crate) fn prepare(socket: &TcpStream) -> io::Result<()> {
    // Small first writes would otherwise wait for the peer's delayed acknowledgement.
    socket.set_nodelay(true)?;
    let (idle, interval, tries) = KEEPALIVE;
    let keepalive = socket2::TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(tries);
    socket2::SockRef::from(socket).set_tcp_keepalive(&keepalive)
}
