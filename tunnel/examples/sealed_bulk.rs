//! What a byte costs in a sealed session, next to tokio-rustls with its defaults.
//!
//! ```text
//! cargo run --release -p hawser-tunnel --features testing --example sealed_bulk [megabytes [rows that contain this]]
//!
//! stream:  writer ═══ TLS ═══ reader                       memory to memory
//! relay:   app ── sender ═══ TLS ═══ receiver ── sink      socket to socket, as in a proxy
//! ```
//!
//! Every part has a thread with a runtime of its own; the CPU time of `sender` and `receiver` is what is told.

#![expect(clippy::unwrap_used, clippy::print_stdout, clippy::panic, reason = "a program to be run by hand")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hawser_api::ServicePort;
use hawser_tunnel::sealed::{self, Accepted, carry_stream};
use hawser_tunnel::testing::{Pki, id};
use hawser_tunnel::tls::{Credentials, Expect};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

const BLOCK: usize = 256 << 10;

fn main() {
    let megabytes = std::env::args().nth(1).map_or(2000, |text| text.parse().unwrap());
    let bytes = megabytes * 1_000_000;
    let ends = Ends::new();
    idle(&ends);
    println!("{:<24} {:>8} {:>16} {:>16}", "", "Gb/s", "send s/GB", "receive s/GB");
    let only = std::env::args().nth(2).unwrap_or_default();
    let rows: [(_, _, Row); 5] = [
        ("sealed stream", Tls::Ours, stream),
        ("sealed relay", Tls::Ours, relay),
        ("shared session relay", Tls::Shared, relay),
        ("tokio-rustls stream", Tls::TokioRustls, stream),
        ("tokio-rustls relay", Tls::TokioRustls, relay),
    ];
    for round in 1..=3 {
        for (name, tls, run) in rows.iter().filter(|(name, ..)| name.contains(&only)) {
            report(&format!("{name} {round}"), bytes, run(&ends, *tls, bytes));
        }
    }
}

/// Wall time, CPU time of the sender, CPU time of the receiver.
type Took = (Duration, Duration, Duration);
type Row = fn(&Ends, Tls, usize) -> Took;

/// What an open session costs that has carried something and now carries nothing: both ends, each with its task and
/// two sockets.
fn idle(ends: &Ends) {
    const SESSIONS: usize = 400;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (inner, inner_address) = listener();
    let (apps, apps_address) = listener();
    runtime.block_on(async {
        let (inner, apps) = (TcpListener::from_std(inner).unwrap(), TcpListener::from_std(apps).unwrap());
        let app = || async { tokio::join!(dial(apps_address), async { apps.accept().await.unwrap().0 }) };
        let (mut near_apps, mut far_apps) = (Vec::new(), Vec::new());
        let mut before = 0;
        for session in 0..=SESSIONS {
            if session == 1 {
                // The first has filled the pools and lazily made things.
                before = resident();
            }
            let accept = async { ends.accept(inner.accept().await.unwrap().0).await };
            let (near, far) = tokio::join!(ends.connect(inner_address), accept);
            let ((mut near_app, near_carried), (mut far_app, far_carried)) = (app().await, app().await);
            tokio::spawn(carry(near, near_carried));
            tokio::spawn(carry(far, far_carried));
            let mut block = vec![0; 1_000_000];
            let (wrote, read) = tokio::join!(near_app.write_all(&[1; 1_000_000]), far_app.read_exact(&mut block));
            wrote.unwrap();
            read.unwrap();
            near_apps.push(near_app);
            far_apps.push(far_app);
        }
        let grown = resident().saturating_sub(before) as f64 / 1024.0;
        println!("idle: {:.1} KiB for each end of a dedicated session", grown / (2 * SESSIONS) as f64);
    });
}

/// Bytes of memory that this process has.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn report(name: &str, bytes: usize, (took, send, receive): Took) {
    let gigabytes = bytes as f64 / 1e9;
    let rate = gigabytes * 8.0 / took.as_secs_f64();
    let (send, receive) = (send.as_secs_f64() / gigabytes, receive.as_secs_f64() / gigabytes);
    println!("{name:<24} {rate:>8.2} {send:>16.3} {receive:>16.3}");
}

#[derive(Clone, Copy)]
enum Tls {
    Ours,
    /// Ours, and the bytes as one HTTP/2 stream of a shared session.
    Shared,
    TokioRustls,
}

/// Certificates for both ways.
#[derive(Clone)]
struct Ends {
    client: Credentials,
    server: Credentials,
    plain_client: Arc<ClientConfig>,
    plain_server: Arc<ServerConfig>,
}

impl Ends {
    fn new() -> Self {
        let pki = Pki::new();
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.cipher_suites.retain(|suite| suite.suite() == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
        let provider = Arc::new(provider);
        let key = rcgen::KeyPair::generate().unwrap();
        let own = rcgen::CertificateParams::new(["bulk.test".to_owned()]).unwrap().self_signed(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(own.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let server = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let mut server = server.with_no_client_auth().with_single_cert(vec![own.der().clone()], key).unwrap();
        // A ticket that the client never reads would make its close a reset.
        server.send_tls13_tickets = 0;
        Self {
            client: pki.credentials("west", "/ns/shop/sa/web"),
            server: pki.credentials("west", "/ns/shop/sa/checkout"),
            plain_client: Arc::new(client.unwrap().with_root_certificates(roots).with_no_client_auth()),
            plain_server: Arc::new(server),
        }
    }

    async fn connect(&self, to: SocketAddr) -> sealed::Dedicated {
        let expect = Expect::Identities(Arc::new([id("west", "/ns/shop/sa/checkout")]));
        let target: ServicePort = "shop/checkout:80".parse().unwrap();
        sealed::connect_dedicated(dial(to).await.into(), &self.client, &expect, &target).await.unwrap()
    }

    async fn accept(&self, socket: TcpStream) -> sealed::Dedicated {
        match sealed::accept(socket.into(), &self.server, Duration::from_secs(5)).await.unwrap() {
            Accepted::Dedicated { mut session, .. } => {
                session.confirm().await.unwrap();
                session
            }
            Accepted::Shared(_) => panic!("a shared session"),
        }
    }

    async fn carry_shared(&self, to: SocketAddr, app: TcpStream) {
        let expect = Expect::Identities(Arc::new([id("west", "/ns/shop/sa/checkout")]));
        let keepalive = Duration::from_secs(60);
        let shared = sealed::connect_shared(dial(to).await.into(), &self.client, &expect, keepalive).await;
        let (client, driver) = shared.unwrap();
        tokio::spawn(driver);
        let request = http::Request::connect("checkout.shop:80").body(()).unwrap();
        let mut requests = client.requests.ready().await.unwrap();
        let (response, send) = requests.send_request(request, false).unwrap();
        let recv = response.await.unwrap().into_body();
        carry_stream(send, recv, app, Bytes::new(), Arc::default(), CancellationToken::new()).await;
    }

    async fn accept_shared(&self, socket: TcpStream, app: TcpStream) {
        let accepted = sealed::accept(socket.into(), &self.server, Duration::from_secs(5)).await.unwrap();
        let Accepted::Shared(mut server) = accepted else { panic!("a dedicated session") };
        let (request, mut respond) = server.connection.accept().await.unwrap().unwrap();
        let send = respond.send_response(http::Response::new(()), false).unwrap();
        let recv = request.into_body();
        let carry = carry_stream(send, recv, app, Bytes::new(), Arc::default(), CancellationToken::new());
        let serve = async { while let Some(Ok(_)) = server.connection.accept().await {} };
        tokio::join!(carry, serve);
    }

    async fn plain_connect(&self, to: SocketAddr) -> tokio_rustls::client::TlsStream<TcpStream> {
        let name = ServerName::try_from("bulk.test").unwrap();
        TlsConnector::from(self.plain_client.clone()).connect(name, dial(to).await).await.unwrap()
    }

    async fn plain_accept(&self, socket: TcpStream) -> tokio_rustls::server::TlsStream<TcpStream> {
        TlsAcceptor::from(self.plain_server.clone()).accept(socket).await.unwrap()
    }
}

async fn dial(to: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(to).await.unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

async fn take(listener: std::net::TcpListener) -> TcpStream {
    let (socket, _) = TcpListener::from_std(listener).unwrap().accept().await.unwrap();
    socket.set_nodelay(true).unwrap();
    socket
}

fn listener() -> (std::net::TcpListener, SocketAddr) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Runs a part on a thread of its own and tells the CPU time it took.
fn part<F: Future<Output = ()>>(name: &str, part: impl FnOnce() -> F + Send + 'static) -> JoinHandle<Duration> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(part());
        cpu()
    });
    thread.unwrap()
}

/// CPU time of this thread: the first number of schedstat, in nanoseconds.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

async fn write(mut to: impl AsyncWrite + Unpin, bytes: usize) {
    let block = vec![7; BLOCK];
    let mut left = bytes;
    while left > 0 {
        let count = left.min(BLOCK);
        to.write_all(block.get(..count).unwrap()).await.unwrap();
        left -= count;
    }
    to.shutdown().await.unwrap();
}

async fn read(mut from: impl AsyncRead + Unpin, bytes: usize) {
    let mut block = vec![0; BLOCK];
    let mut got = 0;
    loop {
        match from.read(&mut block).await.unwrap() {
            0 => break,
            count => got += count,
        }
    }
    assert_eq!(got, bytes);
}

fn stream(ends: &Ends, tls: Tls, bytes: usize) -> Took {
    let (listener, address) = listener();
    let started = Instant::now();
    let near = ends.clone();
    let sender = part("sender", move || async move {
        match tls {
            Tls::Ours | Tls::Shared => write(near.connect(address).await.into_stream(), bytes).await,
            Tls::TokioRustls => write(near.plain_connect(address).await, bytes).await,
        }
    });
    let far = ends.clone();
    let receiver = part("receiver", move || async move {
        let socket = take(listener).await;
        match tls {
            Tls::Ours | Tls::Shared => read(far.accept(socket).await.into_stream(), bytes).await,
            Tls::TokioRustls => read(far.plain_accept(socket).await, bytes).await,
        }
    });
    let (send, receive) = (sender.join().unwrap(), receiver.join().unwrap());
    (started.elapsed(), send, receive)
}

fn relay(ends: &Ends, tls: Tls, bytes: usize) -> Took {
    let ((app, app_address), (inner, inner_address), (sink, sink_address)) = (listener(), listener(), listener());
    let started = Instant::now();
    let near = ends.clone();
    let sender = part("sender", move || async move {
        let mut app = take(app).await;
        match tls {
            Tls::Ours => carry(near.connect(inner_address).await, app).await,
            Tls::Shared => near.carry_shared(inner_address, app).await,
            Tls::TokioRustls => {
                copy_bidirectional(&mut app, &mut near.plain_connect(inner_address).await).await.unwrap();
            }
        }
    });
    let far = ends.clone();
    let receiver = part("receiver", move || async move {
        let socket = take(inner).await;
        let mut app = dial(sink_address).await;
        match tls {
            Tls::Ours => carry(far.accept(socket).await, app).await,
            Tls::Shared => far.accept_shared(socket, app).await,
            Tls::TokioRustls => {
                copy_bidirectional(&mut far.plain_accept(socket).await, &mut app).await.unwrap();
            }
        }
    });
    let sink = part("sink", move || async move {
        let mut socket = take(sink).await;
        read(&mut socket, bytes).await;
        socket.shutdown().await.unwrap();
    });
    part("app", move || async move {
        let mut socket = dial(app_address).await;
        write(&mut socket, bytes).await;
        read(&mut socket, 0).await;
    })
    .join()
    .unwrap();
    sink.join().unwrap();
    let (send, receive) = (sender.join().unwrap(), receiver.join().unwrap());
    (started.elapsed(), send, receive)
}

async fn carry(session: sealed::Dedicated, app: TcpStream) {
    session.relay(app, Bytes::new(), Arc::default(), CancellationToken::new()).await;
}
