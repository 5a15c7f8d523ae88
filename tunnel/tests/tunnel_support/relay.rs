//! Stands between a dialler and a gateway: delays TCP, counts its flights, forwards or swallows UDP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

pub struct Relay {
    pub address: SocketAddr,
    pub udp: Arc<Udp>,
    _tasks: JoinSet<()>,
}

/// What becomes of datagrams.
#[derive(Default)]
pub struct Udp {
    pub swallow: AtomicBool,
    pub swallowed: AtomicU64,
}

impl Relay {
    /// To this gateway, each byte of TCP this much later.
    pub async fn start(gateway: SocketAddr, delay: Duration) -> Self {
        let (tcp, socket) = bind().await;
        let address = tcp.local_addr().unwrap();
        let udp = Arc::new(Udp::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(relay_tcp(tcp, gateway, delay));
        tasks.spawn(relay_udp(socket, gateway, udp.clone()));
        Self { address, udp, _tasks: tasks }
    }
}

async fn bind() -> (TcpListener, UdpSocket) {
    loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            return (tcp, udp);
        }
    }
}

async fn relay_tcp(listener: TcpListener, gateway: SocketAddr, delay: Duration) {
    let mut connections = JoinSet::new();
    loop {
        let (near, _) = listener.accept().await.unwrap();
        connections.spawn(async move {
            let Ok(far) = TcpStream::connect(gateway).await else { return };
            near.set_nodelay(true).unwrap();
            far.set_nodelay(true).unwrap();
            let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
            tokio::join!(forward(near_read, far_write, delay), forward(far_read, near_write, delay));
        });
    }
}

async fn forward(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf, delay: Duration) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        tokio::time::sleep(delay).await;
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// One dialler at a time.
async fn relay_udp(near: UdpSocket, gateway: SocketAddr, udp: Arc<Udp>) {
    let far = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    far.connect(gateway).await.unwrap();
    let (mut out, mut back) = (vec![0; 65_536], vec![0; 65_536]);
    let mut dialler = None;
    loop {
        tokio::select! {
            got = near.recv_from(&mut out) => if let Ok((length, from)) = got {
                dialler = Some(from);
                udp.pass(far.send(&out[..length])).await;
            },
            got = far.recv(&mut back) => if let (Ok(length), Some(dialler)) = (got, dialler) {
                udp.pass(near.send_to(&back[..length], dialler)).await;
            },
        }
    }
}

impl Udp {
    pub fn swallow(&self, swallow: bool) {
        self.swallow.store(swallow, Ordering::SeqCst);
    }

    async fn pass(&self, send: impl Future<Output = std::io::Result<usize>>) {
        if self.swallow.load(Ordering::SeqCst) {
            self.swallowed.fetch_add(1, Ordering::SeqCst);
        } else {
            let _ = send.await;
        }
    }
}
