//! The dialling side's connection to one gateway.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

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
}

impl Link {
    /// Connects, does the handshake and verifies. To be put under a deadline.
    pub(crate) async fn connect(
        endpoint: &quinn::Endpoint,
        address: SocketAddr,
        credentials: &Credentials,
        expect: &Expect,
    ) -> Result<Self, HandshakeError> {
        let tls = credentials.client_config(expect, crate::handoff::ALPN)?;
        let config = client_config(tls, address.ip())?;
        let connecting = endpoint
            .connect_with(config, address, SERVER_NAME)
            .map_err(|e| HandshakeError { reason: "io", detail: e.to_string() })?;
        let connection = connecting.await.map_err(|e| HandshakeError::from(&e))?;
        let peer = credentials.verified(&peer_chain(&connection), expect)?;
        Ok(Self { connection, live: Arc::default(), peer })
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

    pub(crate) fn rtt(&self) -> std::time::Duration {
        self.connection.rtt()
    }

    /// Ends it at once with all its streams.
    pub(crate) fn cut(&self, why: &str) {
        self.connection.close(super::CUT, why.as_bytes());
    }

    /// Lets its streams end, then ends it.
    pub(crate) async fn drain(self) {
        drain(self.connection, self.live).await;
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
}
