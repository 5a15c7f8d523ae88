//! The accepting side of tunnels: one port number, UDP and TCP.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hawser_api::Refusal;
use hawser_api::objects::link::Transport;

use crate::open::{OpenRequest, OpenedAnswer};
use crate::stream::TunnelStream;
use crate::tls::{Credentials, HandshakeError, VerifiedPeer};

/// Bounds of the accepting side; [`Default`] argues for each value.
#[derive(Debug, Clone)]
pub struct ListenConfig {
    /// For the outer handshake.
    pub handshake_timeout: Duration,
    /// For the first `Open` of a TCP connection that is not kept warm, and for each `Open` once begun.
    pub open_timeout: Duration,
    /// An admitted TCP connection may wait this long for its `Open`.
    pub warm_timeout: Duration,
    /// Handshakes in flight, both transports together; more are dropped (QUIC: asked to retry first).
    pub handshakes: usize,
    /// Streams that a peer may have open on one QUIC connection.
    pub streams_per_connection: u32,
}

/// A listener on one address, UDP and TCP.
#[derive(Debug)]
pub struct TunnelListener {}

impl TunnelListener {
    /// Binds both; port 0 takes a port that is free for both.
    pub async fn bind(_address: SocketAddr, _credentials: Credentials, _config: ListenConfig) -> io::Result<Self> {
        unimplemented!()
    }

    /// The address in use.
    pub fn local_addr(&self) -> SocketAddr {
        unimplemented!()
    }

    /// The next connection that wants in; `None` after [`close`](Self::close).
    pub async fn accept(&self) -> Option<Incoming> {
        unimplemented!()
    }

    /// Takes no more connections. Those that are there go on.
    pub fn close(&self) {
        unimplemented!()
    }
}

/// A connection whose handshake has not been done; dropping it refuses it.
#[derive(Debug)]
pub struct Incoming {}

impl Incoming {
    /// Who connects (the address proves nothing).
    pub fn remote(&self) -> SocketAddr {
        unimplemented!()
    }

    /// Does the outer handshake within its deadline.
    pub async fn handshake(self) -> Result<Tunnel, HandshakeError> {
        unimplemented!()
    }
}

/// A tunnel with a verified peer.
#[derive(Debug)]
pub struct Tunnel {}

impl Tunnel {
    /// Who it is.
    pub fn peer(&self) -> &VerifiedPeer {
        unimplemented!()
    }

    /// Over what.
    pub fn transport(&self) -> Transport {
        unimplemented!()
    }

    /// From where.
    pub fn remote(&self) -> SocketAddr {
        unimplemented!()
    }

    /// The next `Open`: many over QUIC, one over TCP, `None` when the tunnel is over. Cancel safe.
    pub async fn next_open(&mut self) -> Option<Arrival> {
        unimplemented!()
    }

    /// Tells the peer to open nothing more here (QUIC: connection close after live streams end; TCP: close_notify).
    pub fn go_away(&self) {
        unimplemented!()
    }

    /// Ends it at once, with all streams that were accepted from it over QUIC.
    pub fn cut(&self) {
        unimplemented!()
    }
}

/// An `Open` that waits for its answer. A malformed one has been answered and is never seen here.
#[derive(Debug)]
pub struct Arrival {}

impl Arrival {
    /// What is asked.
    pub fn request(&self) -> &OpenRequest {
        unimplemented!()
    }

    /// Says no.
    pub async fn refuse(self, _refusal: &Refusal) {
        unimplemented!()
    }

    /// Says yes; what comes back carries the sealed session's own bytes.
    pub async fn accept(self, _answer: &OpenedAnswer) -> io::Result<TunnelStream> {
        unimplemented!()
    }
}
