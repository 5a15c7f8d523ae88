//! The dialling side's connection to one gateway.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::time::sleep;

use super::{Halves, Live, client_config, drain, peer_chain};
use crate::open::{OpenedAnswer, read_answer};
use crate::stream::TunnelStream;
use crate::tcp::OpenFailure;
use crate::tls::{Credentials, Expect, HandshakeError, SERVER_NAME, VerifiedPeer};

/// A verified QUIC connection.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    connection: quinn::Connection,
    live: Arc<Live>,
    peer: VerifiedPeer,
    quiet: Arc<AtomicBool>,
}

impl Link {
    /// Connects, does the handshake and verifies. To be put under a deadline.
    pub(crate) async fn connect(
        endpoint: &quinn::Endpoint,
        address: SocketAddr,
        credentials: &Credentials,
        expect: &Expect,
    ) -> Result<Self, HandshakeError> {
        let ours = credentials.identity();
        let tls = credentials.client_config(expect, crate::handoff::ALPN)?;
        let config = client_config(tls, address.ip())?;
        let connecting = endpoint
            .connect_with(config, address, SERVER_NAME)
            .map_err(|e| HandshakeError { reason: "io", detail: e.to_string() })?;
        let connection = connecting.await.map_err(|e| HandshakeError::from(&e))?;
        let peer = credentials.verified(&peer_chain(&connection), expect, ours)?;
        let (live, quiet) = Default::default();
        Ok(Self { connection, live, peer, quiet })
    }

    /// Whether it is the very same connection.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.connection.stable_id() == other.connection.stable_id()
    }

    pub(crate) fn peer(&self) -> &VerifiedPeer {
        &self.peer
    }

    /// Why it can take no more streams, if it cannot.
    pub(crate) fn closed(&self) -> Option<HandshakeError> {
        self.connection.close_reason().map(|e| HandshakeError::from(&e))
    }

    /// Datagrams received so far: a path on which this stands still while something was sent may be dead.
    pub(crate) fn heard(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }

    /// Whether nothing has come for so long that new streams had better go another way.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Relaxed)
    }

    /// Whether streams live on it.
    pub(crate) fn is_used(&self) -> bool {
        self.live.count() > 0
    }

    pub(crate) fn rtt(&self) -> std::time::Duration {
        self.connection.rtt()
    }

    /// From now on it takes no new streams, and ends after the last of those that it has.
    pub(crate) fn retire(&self) {
        self.live.retired.cancel();
    }

    /// Runs for as long as the connection does: notes when it falls silent, cuts it with all its streams as soon as its
    /// peer is trusted no more, and ends it once it is retired and idle.
    pub(crate) async fn keep(self, credentials: Credentials) {
        let ended = async {
            self.live.retired.cancelled().await;
            drain(self.connection.clone(), self.live.clone()).await;
        };
        tokio::select! {
            _ = self.connection.closed() => {}
            () = ended => {}
            () = self.listen() => {}
            () = self.distrusted(&credentials) => self.connection.close(super::CUT, b"no longer trusted"),
        }
    }

    async fn listen(&self) {
        let (pause, most) = super::LOOK;
        let (mut heard, mut in_vain) = (self.heard(), 0);
        loop {
            sleep(pause.max(self.rtt())).await;
            let now = self.heard();
            in_vain = if now == heard { in_vain + 1 } else { 0 };
            heard = now;
            self.quiet.store(in_vain >= most, Ordering::Relaxed);
        }
    }

    /// A certificate that merely runs out is no reason to cut: the connection gets no new streams and drains.
    async fn distrusted(&self, credentials: &Credentials) {
        let mut generation = credentials.generation();
        while credentials.still_anchored(&self.peer) {
            if generation.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Opens a stream and asks. Dropped before it has an answer, the stream is reset.
    pub(crate) async fn open(&self, frame: Bytes) -> Result<(OpenedAnswer, TunnelStream), OpenFailure> {
        let (send, recv) = self.connection.open_bi().await.map_err(|e| HandshakeError::from(&e))?;
        let mut halves = Halves::new(send, recv, self.live.guard());
        halves.write(frame).await?;
        match read_answer(&halves.read_frame().await?) {
            Ok(opened) => {
                let gone = || HandshakeError { reason: "io", detail: "the stream is gone".to_owned() };
                Ok((opened, halves.into_stream().ok_or_else(gone)?))
            }
            Err(refusal) => {
                halves.finish();
                Err(OpenFailure::Refused(refusal))
            }
        }
    }

    /// A stream on which these bytes were sent, whatever they are.
    #[cfg(test)]
    pub(crate) async fn raw_stream(&self, bytes: &[u8]) -> (quinn::SendStream, quinn::RecvStream) {
        let (mut send, recv) = self.connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        (send, recv)
    }

    #[cfg(test)]
    pub(crate) async fn until_closed(&self) {
        self.connection.closed().await;
    }
}
