//! A proxy that fronts applications, callers, and what both need.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use hawser_api::ServicePort;
use hawser_proxy::context::{Context, Settings};
use hawser_proxy::inbound::{Inbound, Limits};
use hawser_proxy::table::{Inbound as Fronted, InboundTarget, Peer, Tables};
use hawser_runtime::Process;
use hawser_tunnel::sealed::{self, Dedicated, SharedClient};
use hawser_tunnel::testing::{Pki, domain, id};
use hawser_tunnel::tls::{Credentials, Expect};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

pub(crate) const CHECKOUT: &str = "shop/checkout:80";
pub(crate) const WEB: &str = "/ns/shop/sa/web";
pub(crate) const SERVER: &str = "/ns/shop/sa/checkout";
/// Longer than anything here takes; a test that hits it has failed.
pub(crate) const LATE: Duration = Duration::from_secs(30);

/// The proxy under test, of cluster `east`.
pub(crate) struct Proxy {
    pub(crate) pki: Pki,
    pub(crate) context: Arc<Context>,
    pub(crate) inbound: Arc<Inbound>,
    pub(crate) address: SocketAddr,
}

/// One port that the proxy fronts: text, applications, trust domains that are let in.
pub(crate) type Port<'a> = (&'a str, &'a [SocketAddr], &'a [&'a str]);

pub(crate) fn tables(ports: &[Port<'_>]) -> Tables {
    let fronted = |(port, targets, clusters): &Port<'_>| {
        let port: ServicePort = port.parse().unwrap();
        let target =
            |address: &SocketAddr| InboundTarget { id: address.to_string().into(), address: *address, ready: true };
        let fronted = Fronted {
            port: port.clone(),
            targets: targets.iter().map(target).collect(),
            trust_domains: clusters.iter().map(|c| domain(c)).collect(),
            app_protocol: String::new(),
        };
        (port, Arc::new(fronted))
    };
    let west =
        Peer { cluster: "west".parse().unwrap(), trust_domain: domain("west"), gateways: Vec::new(), alive: true };
    Tables {
        inbound: ports.iter().map(fronted).collect(),
        peers: [("west".parse().unwrap(), Arc::new(west))].into(),
        ..Tables::default()
    }
}

impl Proxy {
    /// Fronts these ports.
    pub(crate) async fn start(ports: &[Port<'_>]) -> Self {
        Self::limited(ports, Limits::default()).await
    }

    /// The same, with other bounds.
    pub(crate) async fn limited(ports: &[Port<'_>], limits: Limits) -> Self {
        let pki = Pki::new();
        let credentials = pki.linked("east", SERVER, &["west", "north"]);
        let settings = Settings { expect_continue: Duration::from_millis(300), ..Settings::default() };
        let process = Process::detached();
        let context = Context::new("checkout".into(), "east".parse().unwrap(), credentials, process, settings);
        context.set_tables(tables(ports));
        let inbound = Inbound::with_limits(context.clone(), limits);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(inbound.clone().serve(listener));
        Self { pki, context, inbound, address }
    }

    /// Fronts [`CHECKOUT`], exported to `west`, with one application.
    pub(crate) async fn checkout(app: &App) -> Self {
        Self::start(&[(CHECKOUT, &[app.address], &["west"])]).await
    }

    pub(crate) fn set(&self, ports: &[Port<'_>]) {
        self.context.set_tables(tables(ports));
        self.inbound.recheck();
    }

    pub(crate) fn credentials(&self, cluster: &str, path: &str) -> Credentials {
        let peers: &[&str] = if cluster == "east" { &[] } else { &["east"] };
        self.pki.linked(cluster, path, peers)
    }

    /// A shared session of `west`'s web.
    pub(crate) async fn caller(&self) -> SharedClient {
        self.caller_of("west", WEB).await
    }

    pub(crate) async fn caller_of(&self, cluster: &str, path: &str) -> SharedClient {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let credentials = self.credentials(cluster, path);
        let expect = Expect::Identities([id("east", SERVER)].into());
        let (client, driver) =
            sealed::connect_shared(stream.into(), &credentials, &expect, Duration::from_secs(5)).await.unwrap();
        tokio::spawn(driver);
        client
    }

    pub(crate) async fn dedicated(&self, cluster: &str, target: &str) -> Result<Dedicated, hawser_api::Refusal> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let credentials = self.credentials(cluster, WEB);
        let expect = Expect::Identities([id("east", SERVER)].into());
        sealed::connect_dedicated(stream.into(), &credentials, &expect, &target.parse().unwrap()).await
    }
}

/// An application's listener.
pub(crate) struct App {
    listener: TcpListener,
    pub(crate) address: SocketAddr,
}

/// One connection to an application.
pub(crate) struct Connection {
    pub(crate) socket: TcpStream,
    read: Vec<u8>,
}

impl App {
    pub(crate) async fn bind() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { address: listener.local_addr().unwrap(), listener }
    }

    pub(crate) async fn accept(&self) -> Connection {
        let (socket, _) = in_time(self.listener.accept()).await.unwrap();
        Connection { socket, read: Vec::new() }
    }
}

impl Connection {
    /// Everything up to and with `marker`.
    pub(crate) async fn until(&mut self, marker: &str) -> String {
        loop {
            let at = self.read.windows(marker.len()).position(|w| w == marker.as_bytes());
            if let Some(at) = at {
                let rest = self.read.split_off(at + marker.len());
                return String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap();
            }
            let mut buffer = [0; 4096];
            let n = in_time(self.socket.read(&mut buffer)).await.unwrap();
            let so_far = String::from_utf8_lossy(&self.read).into_owned();
            assert!(n > 0, "the connection ended before {marker:?}: {so_far:?}");
            self.read.extend_from_slice(&buffer[..n]);
        }
    }

    pub(crate) async fn write(&mut self, text: impl AsRef<[u8]>) {
        self.socket.write_all(text.as_ref()).await.unwrap();
    }

    /// The rest, and whether it ended in an orderly way.
    pub(crate) async fn rest(&mut self) -> (String, bool) {
        let mut all = std::mem::take(&mut self.read);
        let ended = in_time(self.socket.read_to_end(&mut all)).await.is_ok();
        (String::from_utf8_lossy(&all).into_owned(), ended)
    }

    /// Ends with RST.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

pub(crate) async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LATE, work).await.unwrap_or_else(|_| panic!("not within {LATE:?}"))
}

pub(crate) async fn eventually(mut condition: impl FnMut() -> bool) {
    in_time(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A request as the outbound side sends it.
pub(crate) fn request(method: &str, path: &str) -> http::request::Builder {
    Request::builder()
        .method(method)
        .uri(format!("http://checkout.shop:8080{path}"))
        .header("hawser-target", CHECKOUT)
        .header("hawser-version", "1.1")
}

/// Sends a request; the second is for its body, ended if `end`.
pub(crate) async fn send(
    client: &SharedClient,
    request: http::request::Builder,
    end: bool,
) -> (h2::client::ResponseFuture, SendStream<Bytes>) {
    let mut ready = in_time(client.requests.clone().ready()).await.unwrap();
    ready.send_request(request.body(()).unwrap(), end).unwrap()
}

/// A whole answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
    pub(crate) trailers: Option<HeaderMap>,
}

pub(crate) async fn read(response: Response<RecvStream>) -> Result<Answer, h2::Error> {
    let (parts, mut recv) = response.into_parts();
    let mut body = Vec::new();
    while let Some(data) = in_time(recv.data()).await {
        let data = data?;
        recv.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    let trailers = in_time(recv.trailers()).await?;
    let body = String::from_utf8(body).unwrap();
    Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body, trailers })
}

pub(crate) async fn answer(response: h2::client::ResponseFuture) -> Result<Answer, h2::Error> {
    read(in_time(response).await?).await
}

/// Whether nothing but the end of the stream is left.
pub(crate) async fn is_over(recv: &mut RecvStream) -> bool {
    match in_time(recv.data()).await {
        None => true,
        // The end may come in a frame of its own.
        Some(Ok(data)) => data.is_empty() && recv.is_end_stream(),
        Some(Err(_)) => false,
    }
}
