//! A SOCKS5 port (RFC 1928) for programs whose DNS cannot be changed: CONNECT to our names and virtual addresses, and to
//! nothing else. What is not ours is refused here, never dialled.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hawser_api::ServiceKey;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::context::Context;
use crate::listen::{Bound, Room};
use crate::outbound;
use crate::table::{Destination, Tables};

/// From accept to the request's last byte. A program sends both messages at once; a slow one holds a place in [`Room`].
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After a failed accept (descriptors used up), so that the loop does not spin.
const PAUSE: Duration = Duration::from_millis(50);

const VERSION: u8 = 5;

/// Reply field of RFC 1928 section 6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reply {
    /// The rest of the connection is the destination's.
    Succeeded = 0,
    /// Not one of our names or addresses.
    NotAllowed = 2,
    /// In our zones, but nobody has that name or address.
    HostUnreachable = 4,
    /// The destination has no such port.
    ConnectionRefused = 5,
    /// Only CONNECT is served.
    CommandNotSupported = 7,
    /// IPv6, or no type of RFC 1928.
    AddressTypeNotSupported = 8,
}

/// Where a program wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// By name, as it was written.
    Name(String),
    /// By address.
    Address(Ipv4Addr),
}

/// Why a handshake ended without a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// Answer this and close.
    Refuse(Reply),
    /// Close: what came is not SOCKS5, or nothing came.
    Close,
}

/// What the SOCKS port needs.
pub struct Socks {
    /// The proxy.
    pub context: Arc<Context>,
    /// Virtual addresses.
    pub bound: watch::Receiver<Arc<Bound>>,
    /// Connections at a time.
    pub room: Room,
}

impl Socks {
    /// Accepts until the process drains.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let drain = self.context.process.drain.clone();
        drain.run_until_cancelled(self.accept(&listener)).await;
    }

    async fn accept(self: &Arc<Self>, listener: &TcpListener) {
        loop {
            let Ok(place) = self.room.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((app, client)) => {
                    let socks = self.clone();
                    self.context.process.spawn(async move {
                        socks.connection(app, client).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "accept failed");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn connection(&self, mut app: TcpStream, client: SocketAddr) {
        let _ = app.set_nodelay(true);
        let asked = tokio::time::timeout(HANDSHAKE, handshake(&mut app)).await.unwrap_or(Err(Stop::Close));
        let found = asked.and_then(|(host, port)| {
            let tables = self.context.tables();
            let found = find(&tables, &self.bound.borrow(), &host, port);
            found.map_err(|reply| {
                tracing::info!(?host, port, reply = ?reply, "socks: refused");
                Stop::Refuse(reply)
            })
        });
        match found {
            Ok((destination, port)) => {
                if answer(&mut app, Reply::Succeeded).await.is_ok() {
                    outbound::carry(self.context.clone(), destination, port, app, client).await;
                }
            }
            Err(Stop::Refuse(reply)) => {
                let _ = answer(&mut app, reply).await;
                let _ = app.shutdown().await;
            }
            Err(Stop::Close) => {}
        }
    }
}

/// Reads method selection and request (sections 3 and 4), answering the first. Takes at most 520 bytes.
pub async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<(Host, u16), Stop> {
    let closed = |_| Stop::Close;
    let [version, methods] = read::<2, _>(stream).await?;
    if version != VERSION {
        return Err(Stop::Close);
    }
    let mut offered = vec![0; usize::from(methods)];
    stream.read_exact(&mut offered).await.map_err(closed)?;
    // Whoever reaches the port may use it: it listens on loopback only.
    if !offered.contains(&0) {
        let _ = stream.write_all(&[VERSION, 0xff]).await;
        return Err(Stop::Close);
    }
    stream.write_all(&[VERSION, 0]).await.map_err(closed)?;
    let [version, command, _, kind] = read::<4, _>(stream).await?;
    if version != VERSION {
        return Err(Stop::Close);
    }
    // The whole request is read before it is refused, or the reply would be lost to a reset.
    let host = match kind {
        1 => Some(Host::Address(read::<4, _>(stream).await?.into())),
        3 => {
            let [length] = read::<1, _>(stream).await?;
            let mut name = vec![0; usize::from(length)];
            stream.read_exact(&mut name).await.map_err(closed)?;
            Some(Host::Name(String::from_utf8(name).map_err(|_| Stop::Refuse(Reply::NotAllowed))?))
        }
        4 => {
            read::<16, _>(stream).await?;
            None
        }
        _ => return Err(Stop::Refuse(Reply::AddressTypeNotSupported)),
    };
    let port = u16::from_be_bytes(read::<2, _>(stream).await?);
    if command != 1 {
        return Err(Stop::Refuse(Reply::CommandNotSupported));
    }
    Ok((host.ok_or(Stop::Refuse(Reply::AddressTypeNotSupported))?, port))
}

async fn read<const N: usize, S: AsyncRead + Unpin>(stream: &mut S) -> Result<[u8; N], Stop> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await.map_err(|_| Stop::Close)?;
    Ok(bytes)
}

/// Section 6. The bound address means nothing to a client of CONNECT and would say what is inside: zeros.
async fn answer(app: &mut TcpStream, reply: Reply) -> std::io::Result<()> {
    app.write_all(&[VERSION, reply as u8, 0, 1, 0, 0, 0, 0, 0, 0]).await
}

/// The destination and its declared port. Pure.
pub fn find(tables: &Tables, bound: &Bound, host: &Host, port: u16) -> Result<(Arc<Destination>, u16), Reply> {
    let (key, port) = match host {
        Host::Name(name) => (by_name(tables, name)?, port),
        Host::Address(address) => {
            if !crate::config::VIRTUAL_SPACE.contains(address) {
                return Err(Reply::NotAllowed);
            }
            let key = bound.by_address.get(address).ok_or(Reply::HostUnreachable)?;
            let doors = bound.destinations.get(key);
            (key, doors.and_then(|d| d.declared(port)).ok_or(Reply::ConnectionRefused)?)
        }
    };
    let destination = tables.destinations.get(key).ok_or(Reply::HostUnreachable)?;
    if !destination.ports.iter().any(|p| p.number == port && !p.udp) {
        return Err(Reply::ConnectionRefused);
    }
    Ok((destination.clone(), port))
}

/// Names are taken in full, and in the two short forms that Kubernetes' search list makes work from another namespace.
fn by_name<'a>(tables: &'a Tables, name: &str) -> Result<&'a ServiceKey, Reply> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let candidates = [name.clone(), format!("{name}.cluster.local"), format!("{name}.svc.cluster.local")];
    if let Some(key) = candidates.iter().find_map(|candidate| tables.names.get(candidate)) {
        return Ok(key);
    }
    let ours = [".cluster.local", ".clusterset.local", ".svc"].iter().any(|zone| name.ends_with(zone));
    Err(if ours { Reply::HostUnreachable } else { Reply::NotAllowed })
}
