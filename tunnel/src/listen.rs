//! The accepting side of tunnels: one port number, UDP and TCP.
//!
//! ```text
//! TunnelListener ─ accept ─▶ Incoming ─ enter ─▶ Tunnel ─ next_open ─▶ Arrival ─ accept ─▶ TunnelStream
//!   (slots for handshakes)              │          │ go_away, cut          └ refuse
//!                                       └─▶ Knock (the join door, if there is one: no client certificate, one request)
//! ```

mod crypto;
mod door;
mod slots;
mod tunnel;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::LazyConfigAcceptor;
use tokio_util::sync::CancellationToken;

use crate::join;
use crate::quic;
use crate::stream::reset_on_close;
use crate::tcp::Session;
use crate::tls::{Credentials, Expect, HandshakeError};
use crypto::Crypto;
use door::Door;
pub use slots::{Bounds, Slot, Slots, Turn};

pub use door::{DoorConfig, Knock, Knocks};
pub use tunnel::{Arrival, Tunnel};

/// Bounds of the accepting side; [`Default`] argues for each value.
#[derive(Debug, Clone)]
pub struct ListenConfig {
    /// For the outer handshake.
    pub handshake_timeout: Duration,
    /// For the first `Open` of a TCP connection that is not kept warm, and for each `Open` once begun.
    pub open_timeout: Duration,
    /// An admitted TCP connection may wait this long for its `Open`.
    pub warm_timeout: Duration,
    /// Handshakes in flight, both transports together; more are dropped. From half of it on, who comes over QUIC is asked
    /// to prove its address first.
    pub handshakes: usize,
    /// Of those, from one /24 (IPv6: /48) while more than half are in flight.
    pub handshakes_per_prefix: usize,
    /// Streams that a peer may have open on one QUIC connection.
    pub streams_per_connection: u32,
    /// Secret from which stateless resets are made (RFC 9000 section 10.3). A gateway that comes back with the same one
    /// makes diallers notice within a round trip that their connections are gone; `None`: they wait for a silence.
    pub reset_key: Option<[u8; 32]>,
    /// The join door, over TCP; `None`: there is none.
    pub door: Option<DoorConfig>,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            // Three round trips around the world, and two lost packets.
            handshake_timeout: Duration::from_secs(5),
            // One flight that the dialler sends at once.
            open_timeout: Duration::from_secs(5),
            // Longer than a dialler keeps one (DialerConfig::warm_lifetime), so that it is never the gateway's close
            // that a dialler meets when it opens.
            warm_timeout: Duration::from_secs(60),
            // A handshake is the better part of a millisecond of CPU: this is half a second of one core, and every
            // slot is held for `handshake_timeout` at most.
            handshakes: 512,
            // Who has one prefix leaves the other half to others. A cluster behind one address still gets four hundred
            // tunnels a second over 160 ms.
            handshakes_per_prefix: 64,
            // quinn keeps some 32 bytes for each stream that may come.
            streams_per_connection: 1024,
            reset_key: None,
            door: None,
        }
    }
}

/// What the accepting side turned away, for metrics.
#[derive(Debug, Default)]
pub struct Turned {
    /// TCP connections closed and QUIC connections ignored because every handshake slot was taken.
    pub dropped: AtomicU64,
    /// QUIC connections asked to prove their address first.
    pub retried: AtomicU64,
    /// Connections from a prefix that had its share of the slots.
    pub prefix: AtomicU64,
}

impl Turned {
    fn count(&self, turn: Turn) {
        let counter = match turn {
            Turn::Prove => &self.retried,
            Turn::Prefix => &self.prefix,
            Turn::Full => &self.dropped,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A listener on one address, UDP and TCP.
#[derive(Debug)]
pub struct TunnelListener {
    tcp: TcpListener,
    quic: quinn::Endpoint,
    local: SocketAddr,
    shared: Arc<Shared>,
    closed: CancellationToken,
}

/// What every connection of a listener uses.
#[derive(Debug)]
struct Shared {
    credentials: Credentials,
    config: ListenConfig,
    crypto: Crypto,
    slots: Slots,
    turned: Turned,
    door: Option<Door>,
}

/// A port that is free for TCP may be taken for UDP; after this many tries something else is wrong.
const PORT_TRIES: usize = 32;
/// Connections that the kernel completes before we take them.
const BACKLOG: u32 = 1024;
/// After a failure to accept (no descriptors left, say) trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl TunnelListener {
    /// Binds both; port 0 takes a port that is free for both.
    pub async fn bind(address: SocketAddr, credentials: Credentials, config: ListenConfig) -> io::Result<Self> {
        let (tcp, quic) = bind_both(address, config.reset_key.as_ref())?;
        let local = tcp.local_addr()?;
        let shared = Shared {
            crypto: Crypto::new(credentials.clone(), config.streams_per_connection),
            slots: Slots::new(Bounds { all: config.handshakes, of_prefix: config.handshakes_per_prefix }),
            turned: Turned::default(),
            door: config.door.clone().map(Door::new),
            credentials,
            config,
        };
        Ok(Self { tcp, quic, local, shared: Arc::new(shared), closed: CancellationToken::new() })
    }

    /// The address in use.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// What was turned away so far.
    pub fn turned(&self) -> &Turned {
        &self.shared.turned
    }

    /// Handshakes in flight now.
    pub fn in_flight(&self) -> usize {
        self.shared.slots.in_flight()
    }

    /// What became of those who knocked at the join door; `None`: there is no door.
    pub fn knocks(&self) -> Option<&Knocks> {
        self.shared.door.as_ref().map(|door| &door.knocks)
    }

    /// The next connection that wants in; `None` after [`close`](Self::close). Cancel safe.
    pub async fn accept(&self) -> Option<Incoming> {
        loop {
            let mut generation = self.shared.credentials.generation();
            generation.mark_unchanged();
            self.refresh();
            tokio::select! {
                () = self.closed.cancelled() => return None,
                accepted = self.tcp.accept() => match accepted {
                    Ok((socket, remote)) => if let Some(incoming) = self.admit_tcp(socket, remote) {
                        return Some(incoming);
                    },
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept TCP connections; trying again");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(incoming) = self.quic.accept() => if let Some(incoming) = self.admit_quic(incoming) {
                    return Some(incoming);
                },
                // The endpoint must read new connections with the certificates of now.
                Ok(()) = generation.changed() => {}
            }
        }
    }

    /// Takes no more connections. Those that are there go on.
    pub fn close(&self) {
        self.closed.cancel();
        self.quic.set_server_config(None);
    }

    fn refresh(&self) {
        if !self.closed.is_cancelled()
            && let Some(config) = self.shared.crypto.refreshed()
        {
            self.quic.set_server_config(Some(config));
        }
    }

    fn admit_tcp(&self, socket: TcpStream, remote: SocketAddr) -> Option<Incoming> {
        // The handshake of TCP itself has proved the address.
        match self.shared.slots.take(remote.ip(), true) {
            Ok(slot) => Some(self.incoming(Kind::Tcp(socket), remote, slot)),
            Err(turn) => {
                self.shared.turned.count(turn);
                // Otherwise a flood leaves its TIME_WAITs here.
                reset_on_close(&socket);
                None
            }
        }
    }

    fn admit_quic(&self, incoming: quinn::Incoming) -> Option<Incoming> {
        let remote = incoming.remote_address();
        match self.shared.slots.take(remote.ip(), incoming.remote_address_validated()) {
            Ok(slot) => Some(self.incoming(Kind::Quic(Box::new(incoming)), remote, slot)),
            Err(turn) => {
                self.shared.turned.count(turn);
                match turn {
                    // Always allowed for an address that is not validated.
                    Turn::Prove => drop(incoming.retry()),
                    // An answer would be more than it is worth.
                    Turn::Prefix | Turn::Full => incoming.ignore(),
                }
                None
            }
        }
    }

    fn incoming(&self, kind: Kind, remote: SocketAddr, slot: Slot) -> Incoming {
        Incoming { kind, remote, slot, shared: self.shared.clone() }
    }
}

fn bind_both(address: SocketAddr, reset_key: Option<&[u8; 32]>) -> io::Result<(TcpListener, quinn::Endpoint)> {
    let mut tries = 0;
    loop {
        let tcp = bind_tcp(address)?;
        match quic::endpoint(tcp.local_addr()?, reset_key) {
            Ok(endpoint) => return Ok((tcp, endpoint)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && address.port() == 0 && tries < PORT_TRIES => {
                tries += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address.ip() {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpStream),
    Quic(Box<quinn::Incoming>),
}

/// A connection whose handshake has not been done; dropping it refuses it.
#[derive(Debug)]
pub struct Incoming {
    kind: Kind,
    remote: SocketAddr,
    // Held until the handshake is over.
    slot: Slot,
    shared: Arc<Shared>,
}

/// Who came in.
#[derive(Debug)]
pub enum Entered {
    /// A verified peer.
    Tunnel(Tunnel),
    /// Somebody unknown, with one request.
    Knock(Knock),
}

impl Incoming {
    /// Who connects (the address proves nothing).
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// Does the outer handshake within its deadline; whoever knocks at the join door is closed.
    pub async fn handshake(self) -> Result<Tunnel, HandshakeError> {
        match self.enter().await? {
            Entered::Tunnel(tunnel) => Ok(tunnel),
            Entered::Knock(_) => Err(HandshakeError { reason: "alpn", detail: "the peer wants to join".to_owned() }),
        }
    }

    /// Does the outer handshake within its deadline.
    pub async fn enter(self) -> Result<Entered, HandshakeError> {
        let Self { kind, remote, slot, shared } = self;
        let _slot = slot;
        let limit = shared.config.handshake_timeout;
        let shake = async {
            match kind {
                Kind::Tcp(socket) => tcp_handshake(socket, remote, &shared).await,
                Kind::Quic(incoming) => quic_handshake(*incoming, remote, &shared).await.map(Entered::Tunnel),
            }
        };
        let late = || HandshakeError { reason: "timed_out", detail: format!("no handshake within {limit:?}") };
        tokio::time::timeout(limit, shake).await.map_err(|_| late())?
    }
}

async fn tcp_handshake(socket: TcpStream, remote: SocketAddr, shared: &Shared) -> Result<Entered, HandshakeError> {
    let ours = shared.credentials.identity();
    let session = match &shared.door {
        None => Session::accept(socket, shared.crypto.tls()?).await?,
        Some(door) => match greet(socket, remote, door, shared).await? {
            Greeted::Session(session) => *session,
            Greeted::Knock(knock) => return Ok(Entered::Knock(knock)),
        },
    };
    let peer = shared.credentials.verified(session.peer_chain()?, &Expect::Trusted, ours)?;
    Ok(Entered::Tunnel(Tunnel::over_tcp(session, peer, remote, &shared.config)))
}

enum Greeted {
    Session(Box<Session>),
    Knock(Knock),
}

/// Reads the ClientHello, and only then chooses: the configuration of tunnels, in which a certificate is demanded, for
/// everybody but those who offer the door's protocol and nothing else.
async fn greet(socket: TcpStream, remote: SocketAddr, door: &Door, shared: &Shared) -> Result<Greeted, HandshakeError> {
    crate::tcp::prepare(&socket)?;
    let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), socket).await?;
    let knocks =
        hello.client_hello().alpn().is_some_and(|mut all| all.next() == Some(join::ALPN) && all.next().is_none());
    let (accepted, socket) = (hello.accepted, hello.io);
    if !knocks {
        let session = Session::accepted(socket, accepted, shared.crypto.tls()?).await?;
        return Ok(Greeted::Session(Box::new(session)));
    }
    let slot = door.admit(remote.ip()).inspect_err(|_| reset_on_close(&socket))?;
    let config = shared.credentials.join_config(&[join::ALPN])?;
    door.serve(accepted, socket, config, (remote, slot)).await.map(Greeted::Knock)
}

async fn quic_handshake(
    incoming: quinn::Incoming,
    remote: SocketAddr,
    shared: &Shared,
) -> Result<Tunnel, HandshakeError> {
    let ours = shared.credentials.identity();
    let config = shared.crypto.quic(remote.ip())?;
    let connecting = incoming.accept_with(config).map_err(|e| HandshakeError::from(&e))?;
    let connection = connecting.await.map_err(|e| HandshakeError::from(&e))?;
    match shared.credentials.verified(&quic::peer_chain(&connection), &Expect::Trusted, ours) {
        Ok(peer) => Ok(Tunnel::over_quic(connection, peer, remote, &shared.config)),
        Err(error) => {
            connection.close(quic::CUT, error.reason.as_bytes());
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests;
