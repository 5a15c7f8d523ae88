//! A proxy of `west` whose applications call, proxies of `west` and `east` that serve, and gateways of `east` between
//! them, all in this process and over real sockets.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hawser_api::objects::link::Transport;
use hawser_api::{Code, Refusal, ServicePort};
use hawser_proxy::context::{Context, Settings};
use hawser_proxy::inbound::Inbound as InboundSide;
use hawser_proxy::listen::Bound;
use hawser_proxy::outbound;
use hawser_proxy::table::{
    Backend, Destination, Endpoint, Inbound, InboundTarget, Peer, PeerGateway, Port, Reach, SessionMode, Tables, Tier,
};
use hawser_runtime::Process;
use hawser_tunnel::listen::{Arrival, ListenConfig, TunnelListener};
use hawser_tunnel::open::OpenedAnswer;
use hawser_tunnel::pool::GatewayPath;
use hawser_tunnel::splice::{Permit, Traffic, splice};
use hawser_tunnel::testing::{Pki, domain, id};
use hawser_tunnel::tls::Credentials;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) const SERVICE: &str = "shop/checkout";
pub(crate) const SERVER: &str = "/ns/shop/sa/checkout";

/// Waits for something that must happen soon.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// Waits for a condition.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// An application that serves: what it does with each connection is the test's.
pub(crate) struct App {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl App {
    pub(crate) async fn new<F>(each: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let (mut tasks, count) = (JoinSet::new(), connections.clone());
        tasks.spawn(async move {
            let mut all = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                all.spawn(each(socket));
            }
        });
        Self { address, connections, _tasks: tasks }
    }

    /// Answers every HTTP/1 request, read with its Content-Length body, by a function after a delay; hangs up for `None`.
    pub(crate) async fn replying(
        delay: Duration,
        reply: impl Fn(&str) -> Option<String> + Clone + Send + Sync + 'static,
    ) -> Self {
        Self::new(move |mut socket| {
            let reply = reply.clone();
            async move {
                let mut buffer = Vec::new();
                while let Some(answer) =
                    read_request(&mut socket, &mut buffer).await.and_then(|request| reply(&request))
                {
                    tokio::time::sleep(delay).await;
                    socket.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        })
        .await
    }

    /// Answers every HTTP/1 request with this.
    pub(crate) async fn answering(answer: impl Into<String>) -> Self {
        let answer = answer.into();
        Self::replying(Duration::ZERO, move |_| Some(answer.clone())).await
    }

    /// Sends back whatever comes.
    pub(crate) async fn echo() -> Self {
        Self::new(|mut socket| async move {
            let (mut read, mut write) = socket.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        })
        .await
    }
}

/// Reads one request with a Content-Length body or none; `None` at the end of the connection.
pub(crate) async fn read_request(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<String> {
    let end = read_until(socket, buffer, b"\r\n\r\n").await?;
    let head = String::from_utf8(buffer.drain(..end).collect()).unwrap();
    let length = header(&head, "content-length").map_or(0, |v| v.parse::<usize>().unwrap());
    while buffer.len() < length {
        if socket.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    let body: Vec<u8> = buffer.drain(..length).collect();
    Some(head + &String::from_utf8_lossy(&body))
}

/// Reads until the marker is in the buffer; its end.
pub(crate) async fn read_until(socket: &mut TcpStream, buffer: &mut Vec<u8>, marker: &[u8]) -> Option<usize> {
    loop {
        if let Some(at) = buffer.windows(marker.len()).position(|w| w == marker) {
            return Some(at + marker.len());
        }
        if socket.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let lines = head.split("\r\n").skip(1).take_while(|line| !line.is_empty());
    lines.filter_map(|line| line.split_once(": ")).find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v)
}

/// A proxy that serves an application.
pub(crate) struct Server {
    pub(crate) context: Arc<Context>,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Of an application in this cluster; `app_protocol` as the Service says.
    pub(crate) async fn new(lab: &Lab, cluster: &str, app: SocketAddr, app_protocol: &str) -> Self {
        let credentials = lab.pki.linked(cluster, SERVER, if cluster == "west" { &["east"] } else { &["west"] });
        let context = Context::new(
            "server".into(),
            cluster.parse().unwrap(),
            credentials,
            Process::detached(),
            Settings::default(),
        );
        let port: ServicePort = format!("{SERVICE}:80").parse().unwrap();
        let target = InboundTarget { id: "app".into(), address: app, ready: true };
        let inbound = Inbound {
            port: port.clone(),
            targets: vec![target],
            trust_domains: [domain("west")].into(),
            app_protocol: app_protocol.into(),
        };
        context.set_tables(Tables { inbound: HashMap::from([(port, Arc::new(inbound))]), ..Tables::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        context.process.spawn(InboundSide::new(context.clone()).serve(listener));
        Self { context, address }
    }

    /// As by kill -9: every connection is gone at once.
    pub(crate) fn kill(&self) {
        self.context.process.drain.cancel();
        self.context.process.stop.cancel();
    }
}

/// The proxy beside the calling application.
pub(crate) struct Client {
    pub(crate) context: Arc<Context>,
    pub(crate) door: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Client {
    pub(crate) async fn new(lab: &Lab, settings: Settings) -> Self {
        let credentials = lab.pki.linked("west", "/ns/shop/sa/web", &["east"]);
        let process = Process::detached();
        let context = Context::new("client".into(), "west".parse().unwrap(), credentials, process, settings);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let door = listener.local_addr().unwrap();
        let (mut tasks, shared) = (JoinSet::new(), context.clone());
        tasks.spawn(async move {
            let mut all = JoinSet::new();
            while let Ok((socket, from)) = listener.accept().await {
                let (context, tables) = (shared.clone(), shared.tables_owned());
                let destination = tables.destinations.values().next().cloned();
                let destination = destination.unwrap_or_else(|| Arc::new(destination_of(Vec::new(), "")));
                all.spawn(outbound::carry(context, destination, 80, socket, from));
            }
        });
        Self { context, door, _tasks: tasks }
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.door).await.unwrap()
    }

    /// Sends these bytes on a new connection, half-closes and reads to the end.
    pub(crate) async fn exchange(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut socket = self.connect().await;
        let (mut read, mut write) = socket.split();
        let mut answer = Vec::new();
        let write = async {
            // A server that answers early may have hung up before all is written.
            let _ = write.write_all(bytes.as_ref()).await;
            let _ = write.shutdown().await;
        };
        within("an answer", async { tokio::join!(write, read.read_to_end(&mut answer)) }).await.1.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A GET on a connection of its own; the status.
    pub(crate) async fn get(&self) -> u16 {
        status(&self.exchange("GET / HTTP/1.1\r\nhost: checkout\r\nconnection: close\r\n\r\n").await)
    }

    pub(crate) fn page(&self) -> serde_json::Value {
        outbound::page::destinations(&self.context, &Bound::default())
    }

    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.context.process.registry.lock()).unwrap();
        text
    }

    /// The first backend's row of the page.
    pub(crate) fn endpoints(&self) -> Vec<serde_json::Value> {
        let page = self.page();
        let row = page.pointer("/destinations/0/tiers/0/backends/0/endpoints").cloned();
        row.and_then(|row| row.as_array().cloned()).unwrap_or_default()
    }
}

pub(crate) fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no status in {answer:?}"))
}

/// What the tables say.
pub(crate) fn destination_of(tiers: Vec<Vec<Backend>>, app_protocol: &str) -> Destination {
    let tier = |backends: Vec<Backend>| Tier {
        backends: backends.into_iter().map(Arc::new).collect(),
        min_healthy_percent: 0,
    };
    Destination {
        key: SERVICE.parse().unwrap(),
        dns_names: vec!["checkout.shop.svc.cluster.local".into()],
        group_names: Vec::new(),
        headless_names: Vec::new(),
        ports: vec![Port { name: "http".into(), number: 80, udp: false, app_protocol: app_protocol.into() }],
        tiers: tiers.into_iter().map(tier).collect(),
        session: SessionMode::Shared,
        fixed_address: None,
        unavailable: None,
        changed_at_ms: 0,
    }
}

pub(crate) fn backend(cluster: &str, reach: Reach) -> Backend {
    Backend {
        cluster: cluster.parse().unwrap(),
        weight: 1,
        service: SERVICE.parse().unwrap(),
        identities: Arc::from([id(cluster, SERVER)]),
        reach,
        only: None,
        region: String::new(),
        ports: Vec::new(),
    }
}

pub(crate) fn endpoint(at: usize, inbound: SocketAddr) -> Endpoint {
    Endpoint { id: format!("e{at}").into(), inbound, ready: true, ports: Vec::new() }
}

/// Endpoints of this cluster.
pub(crate) fn local(servers: &[&Server]) -> Backend {
    let endpoints = servers.iter().enumerate().map(|(at, server)| endpoint(at, server.address)).collect();
    backend("west", Reach::Local(endpoints))
}

/// Endpoints of the other.
pub(crate) fn remote(ready: u32) -> Backend {
    backend("east", Reach::Remote { endpoints_ready: ready })
}

pub(crate) fn tables(destination: Destination, gateways: &[&Gateway]) -> Tables {
    let gateway = |gateway: &&Gateway| PeerGateway {
        path: GatewayPath {
            cluster: "east".parse().unwrap(),
            gateway: gateway.name.parse().unwrap(),
            address: gateway.address,
            trust_domain: domain("east"),
            transport: gateway.transport,
        },
        down: false,
    };
    let peer = Peer {
        cluster: "east".parse().unwrap(),
        trust_domain: domain("east"),
        gateways: gateways.iter().map(gateway).collect(),
        alive: true,
    };
    Tables {
        destinations: HashMap::from([(destination.key.clone(), Arc::new(destination))]),
        peers: HashMap::from([(peer.cluster.clone(), Arc::new(peer))]),
        version: 1,
        ..Tables::default()
    }
}

struct Admitted;
impl Permit for Admitted {}

/// A gateway of `east`: lets everybody in and chooses endpoints in turn.
pub(crate) struct Gateway {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) transport: Transport,
    pub(crate) opens: Arc<AtomicUsize>,
    /// Opens are not answered while this is set.
    pub(crate) hangs: Arc<AtomicBool>,
    /// Opens are refused with this code.
    pub(crate) refuses: Arc<parking_lot::Mutex<Option<Code>>>,
    pub(crate) credentials: Credentials,
    stop: CancellationToken,
}

#[derive(Clone)]
struct Inside {
    endpoints: Arc<Vec<(String, SocketAddr)>>,
    opens: Arc<AtomicUsize>,
    hangs: Arc<AtomicBool>,
    refuses: Arc<parking_lot::Mutex<Option<Code>>>,
}

impl Gateway {
    pub(crate) async fn new(lab: &Lab, name: &str, servers: &[&Server], transport: Transport) -> Self {
        let credentials = lab.pki.linked("east", "/ns/hawser-system/sa/gateway", &["west"]);
        let address = "127.0.0.1:0".parse().unwrap();
        let listener = TunnelListener::bind(address, credentials.clone(), ListenConfig::default()).await.unwrap();
        let address = listener.local_addr();
        let endpoints = servers.iter().enumerate().map(|(at, server)| (format!("far{at}"), server.address)).collect();
        let inside = Inside {
            endpoints: Arc::new(endpoints),
            opens: Arc::default(),
            hangs: Arc::default(),
            refuses: Arc::default(),
        };
        let stop = CancellationToken::new();
        let (opens, hangs, refuses) = (inside.opens.clone(), inside.hangs.clone(), inside.refuses.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(serve(listener, inside)));
        Self { name: name.into(), address, transport, opens, hangs, refuses, credentials, stop }
    }

    /// As by kill -9.
    pub(crate) fn kill(&self) {
        self.stop.cancel();
    }
}

async fn serve(listener: TunnelListener, inside: Inside) {
    let mut tunnels = JoinSet::new();
    while let Some(incoming) = listener.accept().await {
        let inside = inside.clone();
        tunnels.spawn(async move {
            let mut tunnel = incoming.handshake().await.unwrap();
            let mut streams = JoinSet::new();
            while let Some(arrival) = tunnel.next_open().await {
                streams.spawn(open(arrival, inside.clone()));
            }
            while streams.join_next().await.is_some() {}
        });
    }
}

async fn open(arrival: Arrival, inside: Inside) {
    let number = inside.opens.fetch_add(1, Ordering::Relaxed);
    while inside.hangs.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let refused = *inside.refuses.lock();
    if let Some(code) = refused {
        return arrival.refuse(&Refusal::new(code, "by the test", "none")).await;
    }
    let all = &inside.endpoints;
    let (wanted, avoid) = (arrival.request().endpoint.clone(), arrival.request().avoid.clone());
    let in_turn: Vec<_> = (0..all.len()).map(|at| &all[(at + number) % all.len()]).collect();
    let chosen = match wanted {
        Some(id) => in_turn.iter().find(|(name, _)| *name == id),
        None => in_turn.iter().find(|(name, _)| !avoid.contains(name)).or(in_turn.first()),
    };
    let (endpoint, address) = (*chosen.unwrap()).clone();
    let Ok(upstream) = TcpStream::connect(address).await else {
        return arrival.refuse(&Refusal::new(Code::EndpointUnreachable, "by the test", "none")).await;
    };
    upstream.set_nodelay(true).unwrap();
    let answer = OpenedAnswer { endpoint, endpoints_ready: u32::try_from(all.len()).unwrap() };
    if let Ok(stream) = arrival.accept(&answer).await {
        splice(&Admitted, stream, upstream, Arc::<Traffic>::default(), CancellationToken::new()).await;
    }
}

/// What all parts of one test share.
pub(crate) struct Lab {
    pub(crate) pki: Pki,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self { pki: Pki::new() }
    }

    /// A client and, in its own cluster, one proxy that serves this application.
    pub(crate) async fn beside(app: &App, app_protocol: &str) -> (Self, Client, Server) {
        let lab = Self::new();
        let server = Server::new(&lab, "west", app.address, app_protocol).await;
        let client = Client::new(&lab, Settings::default()).await;
        client.context.set_tables(tables(destination_of(vec![vec![local(&[&server])]], app_protocol), &[]));
        (lab, client, server)
    }
}
