//! A middlebox: passes TCP and UDP on to a gateway, and drops UDP when told to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A relay until it is dropped.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    to: SocketAddr,
    drop_udp: AtomicBool,
    udp_passed: AtomicU64,
    tcp_accepted: AtomicU64,
    stop: CancellationToken,
}

impl Relay {
    /// Listens on one address for both protocols.
    pub async fn start(at: SocketAddr, to: SocketAddr) -> Result<Self> {
        let tcp = TcpListener::bind(at).await.with_context(|| format!("cannot bind {at}"))?;
        let udp = UdpSocket::bind(at).await.with_context(|| format!("cannot bind {at}"))?;
        let shared = Arc::new(Shared {
            to,
            drop_udp: AtomicBool::new(false),
            udp_passed: AtomicU64::new(0),
            tcp_accepted: AtomicU64::new(0),
            stop: CancellationToken::new(),
        });
        let (stop, for_udp, for_tcp) = (shared.stop.clone(), Arc::clone(&shared), Arc::clone(&shared));
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = pass_udp(for_udp, udp) => {}
                () = pass_tcp(for_tcp, tcp) => {}
            }
        });
        Ok(Self { shared })
    }

    /// From now on UDP disappears, or no longer does.
    pub fn drop_udp(&self, yes: bool) {
        self.shared.drop_udp.store(yes, Ordering::Relaxed);
    }

    /// Datagrams passed so far, both ways.
    pub fn udp_passed(&self) -> u64 {
        self.shared.udp_passed.load(Ordering::Relaxed)
    }

    /// TCP connections so far.
    pub fn tcp_accepted(&self) -> u64 {
        self.shared.tcp_accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

async fn pass_tcp(shared: Arc<Shared>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => if let Ok((mut from, _)) = accepted {
                shared.tcp_accepted.fetch_add(1, Ordering::Relaxed);
                let to = shared.to;
                connections.spawn(async move {
                    let Ok(mut onward) = TcpStream::connect(to).await else { return };
                    let _ = (from.set_nodelay(true), onward.set_nodelay(true));
                    let _ = tokio::io::copy_bidirectional(&mut from, &mut onward).await;
                });
            },
        }
    }
}

/// Each client gets a socket of its own towards the gateway, as a NAT would give it.
async fn pass_udp(shared: Arc<Shared>, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut backward = JoinSet::new();
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok((n, client)) = socket.recv_from(&mut buffer).await else { continue };
        if shared.drop_udp.load(Ordering::Relaxed) {
            continue;
        }
        let onward = match clients.get(&client) {
            Some(onward) => Arc::clone(onward),
            None => {
                let Ok(onward) = UdpSocket::bind("127.0.0.1:0").await else { continue };
                if onward.connect(shared.to).await.is_err() {
                    continue;
                }
                let onward = Arc::new(onward);
                clients.insert(client, Arc::clone(&onward));
                backward.spawn(pass_back(Arc::clone(&shared), Arc::clone(&onward), Arc::clone(&socket), client));
                onward
            }
        };
        shared.udp_passed.fetch_add(1, Ordering::Relaxed);
        let _ = onward.send(buffer.get(..n).unwrap_or_default()).await;
    }
}

async fn pass_back(shared: Arc<Shared>, onward: Arc<UdpSocket>, socket: Arc<UdpSocket>, client: SocketAddr) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok(n) = onward.recv(&mut buffer).await else {
            // Nobody listens there at the moment (ICMP); the client finds out by itself.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            continue;
        };
        if !shared.drop_udp.load(Ordering::Relaxed) {
            shared.udp_passed.fetch_add(1, Ordering::Relaxed);
            let _ = socket.send_to(buffer.get(..n).unwrap_or_default(), client).await;
        }
    }
}
