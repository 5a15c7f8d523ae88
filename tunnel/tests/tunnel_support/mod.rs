//! A gateway in a few lines, upstreams that answer in known ways, and diallers with certificates.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a panic is a test's report")]

pub mod relay;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hawser_api::objects::link::Transport;
use hawser_api::{Code, Refusal};
use hawser_tunnel::listen::{Arrival, ListenConfig, Tunnel, TunnelListener};
use hawser_tunnel::open::{OpenRequest, OpenedAnswer};
use hawser_tunnel::pool::{Dialer, DialerConfig, GatewayPath};
use hawser_tunnel::splice::{Ended, Permit, Traffic, splice};
use hawser_tunnel::testing::{Pki, domain};
use hawser_tunnel::tls::Credentials;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub const GATEWAY: &str = "/ns/hawser-system/sa/gateway";
pub const CALLER: &str = "/ns/shop/sa/web";

pub struct Granted;
impl Permit for Granted {}

/// West's dialler and east's gateway, each trusting the other.
pub struct Fabric {
    pub pki: Pki,
    pub west: Credentials,
    pub east: Credentials,
}

impl Fabric {
    pub fn new() -> Self {
        let pki = Pki::new();
        let west = pki.linked("west", CALLER, &["east"]);
        let east = pki.linked("east", GATEWAY, &["west"]);
        Self { pki, west, east }
    }

    pub fn dialer(&self) -> Dialer {
        Dialer::new(self.west.clone(), DialerConfig::default())
    }

    pub fn dialer_with(&self, config: DialerConfig) -> Dialer {
        Dialer::new(self.west.clone(), config)
    }

    pub async fn gateway(&self, upstream: SocketAddr) -> Gateway {
        Gateway::start(self.east.clone(), ListenConfig::default(), upstream).await
    }
}

/// The way to east's gateway at this address.
pub fn path(address: SocketAddr, transport: Transport) -> GatewayPath {
    GatewayPath {
        cluster: "east".parse().unwrap(),
        gateway: "a".parse().unwrap(),
        address,
        trust_domain: domain("east"),
        transport,
    }
}

pub fn request() -> OpenRequest {
    OpenRequest::any("shop/checkout:80".parse().unwrap())
}

/// What a gateway saw.
#[derive(Debug)]
pub enum Seen {
    Tunnel(Transport),
    Open(OpenRequest),
    Ended(Ended, Arc<Traffic>),
    TunnelOver,
}

/// Admits everything except the service `refused`, never answers the service `hang`, carries the rest to one upstream.
pub struct Gateway {
    pub address: SocketAddr,
    pub seen: mpsc::UnboundedReceiver<Seen>,
    pub listener: Arc<TunnelListener>,
    pub cut: CancellationToken,
    pub go_away: CancellationToken,
    /// Tunnels begun and over, of what was looked at so far.
    pub tunnels: (usize, usize),
    // A runtime of its own, so that it can be killed with everything that it has begun.
    runtime: Option<tokio::runtime::Runtime>,
}

impl Gateway {
    pub async fn start(credentials: Credentials, config: ListenConfig, upstream: SocketAddr) -> Self {
        Self::start_on("127.0.0.1:0".parse().unwrap(), credentials, config, upstream).await
    }

    pub async fn start_on(
        address: SocketAddr,
        credentials: Credentials,
        config: ListenConfig,
        upstream: SocketAddr,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (tell, seen) = mpsc::unbounded_channel();
        let (cut, go_away) = (CancellationToken::new(), CancellationToken::new());
        let serving = Serving { upstream, tell, cut: cut.clone(), go_away: go_away.clone() };
        let bind = async move { Arc::new(TunnelListener::bind(address, credentials, config).await.unwrap()) };
        let listener = runtime.spawn(bind).await.unwrap();
        runtime.spawn(accept_all(listener.clone(), serving));
        Self { address: listener.local_addr(), seen, listener, cut, go_away, tunnels: (0, 0), runtime: Some(runtime) }
    }

    /// Waits for what `pick` is after, passing over the rest.
    pub async fn saw<T>(&mut self, pick: impl Fn(Seen) -> Option<T>) -> T {
        let wait = async {
            loop {
                let seen = self.seen.recv().await.expect("the gateway runs");
                self.tunnels.0 += usize::from(matches!(seen, Seen::Tunnel(_)));
                self.tunnels.1 += usize::from(matches!(seen, Seen::TunnelOver));
                if let Some(found) = pick(seen) {
                    return found;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the gateway sees it")
    }

    /// Waits until so many tunnels have begun, and so many are over.
    pub async fn saw_tunnels(&mut self, begun: usize, over: usize) {
        while self.tunnels.0 < begun || self.tunnels.1 < over {
            self.saw(|seen| matches!(seen, Seen::Tunnel(_) | Seen::TunnelOver).then_some(())).await;
        }
    }

    pub async fn saw_end(&mut self) -> (Ended, Arc<Traffic>) {
        self.saw(|seen| if let Seen::Ended(ended, traffic) = seen { Some((ended, traffic)) } else { None }).await
    }

    /// As kill -9 does.
    pub fn kill(self) {}
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[derive(Clone)]
struct Serving {
    upstream: SocketAddr,
    tell: mpsc::UnboundedSender<Seen>,
    cut: CancellationToken,
    go_away: CancellationToken,
}

async fn accept_all(listener: Arc<TunnelListener>, serving: Serving) {
    let mut tunnels = JoinSet::new();
    while let Some(incoming) = listener.accept().await {
        let serving = serving.clone();
        tunnels.spawn(async move {
            if let Ok(tunnel) = incoming.handshake().await {
                let _ = serving.tell.send(Seen::Tunnel(tunnel.transport()));
                serve(tunnel, serving).await;
            }
        });
    }
}

async fn serve(mut tunnel: Tunnel, serving: Serving) {
    let mut streams = JoinSet::new();
    let mut going = false;
    loop {
        tokio::select! {
            arrival = tunnel.next_open() => match arrival {
                Some(arrival) => {
                    let _ = serving.tell.send(Seen::Open(arrival.request().clone()));
                    streams.spawn(answer(arrival, serving.clone()));
                }
                None => break,
            },
            () = serving.go_away.cancelled(), if !going => {
                going = true;
                tunnel.go_away();
            }
            () = serving.cut.cancelled() => {
                tunnel.cut();
                break;
            }
        }
    }
    let _ = serving.tell.send(Seen::TunnelOver);
    while streams.join_next().await.is_some() {}
}

async fn answer(arrival: Arrival, serving: Serving) {
    match arrival.request().target.service.name.as_str() {
        "refused" => {
            let refusal = Refusal::new(Code::NotExported, "shop/refused:80 is not exported to west", "export it");
            return arrival.refuse(&refusal.retry_after(Duration::from_secs(7))).await;
        }
        "hang" => return std::future::pending().await,
        "ping" => {
            drop(arrival.accept(&OpenedAnswer { endpoint: String::new(), endpoints_ready: 0 }).await);
            return;
        }
        _ => {}
    }
    let upstream = TcpStream::connect(serving.upstream).await.unwrap();
    let Ok(stream) = arrival.accept(&OpenedAnswer { endpoint: "e1".into(), endpoints_ready: 2 }).await else { return };
    let traffic = Arc::new(Traffic::default());
    let ended = splice(&Granted, stream, upstream, traffic.clone(), serving.cut.clone()).await;
    let _ = serving.tell.send(Seen::Ended(ended, traffic));
}

/// Hands each connection to `serve`; ends with the value.
pub struct Upstream {
    pub address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Upstream {
    pub async fn start<F, S>(serve: S) -> Self
    where
        S: Fn(TcpStream) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                connections.spawn(serve(socket));
            }
        });
        Self { address, _tasks: tasks }
    }

    /// Sends back what it gets, and an end for an end.
    pub async fn echo() -> Self {
        Self::start(|mut socket| async move {
            let (mut read, mut write) = socket.split();
            if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                let _ = tokio::io::AsyncWriteExt::shutdown(&mut write).await;
            }
        })
        .await
    }

    /// Hands its connections out.
    pub async fn manual() -> (Self, mpsc::UnboundedReceiver<TcpStream>) {
        let (give, take) = mpsc::unbounded_channel();
        let upstream = Self::start(move |socket| {
            let _ = give.send(socket);
            async {}
        })
        .await;
        (upstream, take)
    }
}

/// Bytes that differ from position to position, so that a lost, doubled or moved one is noticed.
pub fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

pub const BOTH: [Transport; 2] = [Transport::Tcp, Transport::Quic];
