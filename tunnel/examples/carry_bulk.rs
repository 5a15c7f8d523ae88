//! Bulk through a tunnel's accepting side: what one thread that plays the gateway costs per byte, for each way of
//! carrying. `cargo run --release -p hawser-tunnel --features testing --example carry_bulk [GiB]`
//!
//! Dialler, gateway and sink have a thread each. No sealed session runs inside, so that the ends cost little.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use hawser_api::objects::link::Transport;
use hawser_tunnel::listen::{Arrival, ListenConfig, TunnelListener};
use hawser_tunnel::open::{OpenRequest, OpenedAnswer};
use hawser_tunnel::pool::{Dialer, DialerConfig, GatewayPath};
use hawser_tunnel::splice::{Permit, Traffic, splice};
use hawser_tunnel::testing::{Pki, domain};
use hawser_tunnel::tls::Credentials;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Clone, Copy, PartialEq)]
enum Way {
    /// splice(2), or chunks over QUIC: what the gateway does.
    Splice,
    /// Read and write, as a proxy without splice would.
    Copy,
}

struct Granted;
impl Permit for Granted {}

fn main() -> Outcome<()> {
    let gib: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(2);
    let pki = Pki::new();
    let sink = thread("sink", sink())?;
    let gateway = |way| {
        let east = pki.linked("east", "/ns/hawser-system/sa/gateway", &["west"]);
        thread("gateway", async move { serve(east, sink.address, way).await })
    };
    let west = pki.linked("west", "/ns/shop/sa/web", &["east"]);
    for streams in [1, 8] {
        let raw = run(gib, streams, || TcpStream::connect(sink.address));
        report("raw", streams, gib, raw?, None);
        for (name, way, transport) in [
            ("tcp splice", Way::Splice, Transport::Tcp),
            ("tcp copy", Way::Copy, Transport::Tcp),
            ("quic", Way::Splice, Transport::Quic),
        ] {
            let gateway = gateway(way)?;
            let before = gateway.cpu_seconds();
            let dialer = Dialer::new(west.clone(), DialerConfig { warm_tcp: 0, ..DialerConfig::default() });
            let open = || open(dialer.clone(), gateway.address, transport);
            let seconds = run(gib, streams, open)?;
            report(name, streams, gib, seconds, Some(gateway.cpu_seconds() - before));
        }
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the figures are what it is for")]
fn report(name: &str, streams: u64, gib: u64, seconds: f64, cpu: Option<f64>) {
    let gigabytes = (gib << 30) as f64 / 1e9;
    let cpu = cpu.map_or(String::new(), |cpu| format!("   gateway CPU {:.3} s/GB", cpu / gigabytes));
    println!("{name:<12} {streams} stream(s)  {:6.2} Gb/s{cpu}", gigabytes * 8.0 / seconds);
}

/// A thread with a runtime of its own.
struct Thread {
    address: SocketAddr,
    task: String,
}

impl Thread {
    fn cpu_seconds(&self) -> f64 {
        let text = std::fs::read_to_string(format!("{}/schedstat", self.task)).unwrap_or_default();
        text.split(' ').next().and_then(|nanos| nanos.parse::<f64>().ok()).unwrap_or_default() / 1e9
    }
}

fn thread(name: &str, serve: impl Future<Output = Outcome<(SocketAddr, Serving)>> + Send + 'static) -> Outcome<Thread> {
    let (tell, told) = mpsc::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || -> Outcome<()> {
        let task = std::fs::read_link("/proc/thread-self")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (address, serving) = runtime.block_on(serve)?;
        tell.send((address, format!("/proc/{}", task.display())))?;
        runtime.block_on(serving);
        Ok(())
    })?;
    let (address, task) = told.recv()?;
    Ok(Thread { address, task })
}

type Serving = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

async fn sink() -> Outcome<(SocketAddr, Serving)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let serving = async move {
        let mut connections = JoinSet::new();
        while let Ok((mut socket, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut buffer = vec![0; 256 << 10];
                while socket.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
                let _ = socket.shutdown().await;
            });
        }
    };
    Ok((address, Box::pin(serving)))
}

async fn serve(east: Credentials, sink: SocketAddr, way: Way) -> Outcome<(SocketAddr, Serving)> {
    let listener = TunnelListener::bind("127.0.0.1:0".parse()?, east, ListenConfig::default()).await?;
    let address = listener.local_addr();
    let serving = async move {
        let mut tunnels = JoinSet::new();
        while let Some(incoming) = listener.accept().await {
            tunnels.spawn(async move {
                let Ok(mut tunnel) = incoming.handshake().await else { return };
                let mut streams = JoinSet::new();
                while let Some(arrival) = tunnel.next_open().await {
                    streams.spawn(carry(arrival, sink, way));
                }
                while streams.join_next().await.is_some() {}
            });
        }
    };
    Ok((address, Box::pin(serving)))
}

async fn carry(arrival: Arrival, sink: SocketAddr, way: Way) {
    let Ok(mut upstream) = TcpStream::connect(sink).await else { return };
    let answer = OpenedAnswer { endpoint: "sink".to_owned(), endpoints_ready: 1 };
    let Ok(mut stream) = arrival.accept(&answer).await else { return };
    if way == Way::Splice {
        splice(&Granted, stream, upstream, Arc::new(Traffic::default()), CancellationToken::new()).await;
    } else {
        let size = 64 << 10;
        let _ = tokio::io::copy_bidirectional_with_sizes(&mut stream, &mut upstream, size, size).await;
    }
}

async fn open(
    dialer: Dialer,
    address: SocketAddr,
    transport: Transport,
) -> std::io::Result<hawser_tunnel::stream::TunnelStream> {
    let path = GatewayPath {
        cluster: "east".parse().map_err(std::io::Error::other)?,
        gateway: "a".parse().map_err(std::io::Error::other)?,
        address,
        trust_domain: domain("east"),
        transport,
    };
    let target = "shop/sink:80".parse().map_err(std::io::Error::other)?;
    Ok(dialer.open(&path, &OpenRequest::any(target)).await.map_err(std::io::Error::other)?.stream)
}

/// Sends so much over so many streams and says how long it took until the sink had it all.
fn run<S, F>(gib: u64, streams: u64, open: impl Fn() -> F) -> Outcome<f64>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = std::io::Result<S>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut sending = JoinSet::new();
        let mut opened = Vec::new();
        for _ in 0..streams {
            opened.push(open().await?);
        }
        let began = Instant::now();
        for stream in opened {
            sending.spawn(send(stream, (gib << 30) / streams));
        }
        while let Some(sent) = sending.join_next().await {
            sent??;
        }
        Ok(began.elapsed().as_secs_f64())
    })
}

async fn send(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    bytes: u64,
) -> std::io::Result<()> {
    let block = vec![7; 256 << 10];
    for _ in 0..bytes / block.len() as u64 {
        stream.write_all(&block).await?;
    }
    stream.shutdown().await?;
    stream.read_to_end(&mut Vec::new()).await.map(|_| ())
}
