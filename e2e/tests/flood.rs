//! A flood of first packets of QUIC from addresses that answer nothing, as forged ones do, against a gateway in use.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hawser_e2e::client::Request;
use hawser_e2e::load::{Load, Rate};
use hawser_e2e::{Daemon, Fabric, Plan, eventually};
use quinn_proto::crypto::rustls::QuicClientConfig;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Handshakes that are begun and never gone on with, and how many a second: a gateway keeps each for five seconds, and
/// those of five seconds are four times as many as it keeps.
const FLIGHTS: u32 = 4000;
const PER_SECOND: u32 = 400;
/// Addresses they come from, a /16 each.
const SOURCES: u8 = 48;
/// RFC 9000 section 8.1: before an address is proved, no more than three times what came from it goes to it.
const AMPLIFICATION: u64 = 3;
/// [`ListenConfig::handshakes`](hawser_tunnel::listen::ListenConfig::handshakes), and half of it for who has not proved
/// his address.
const SLOTS: f64 = 512.0;
/// What half of all slots may take, with room for what the gateway does besides.
const MEMORY_MAX: u64 = 128 << 20;

/// First flights, each of a connection of its own.
struct Flights {
    endpoint: quinn_proto::Endpoint,
    config: quinn_proto::ClientConfig,
}

impl Flights {
    fn new() -> Result<Self> {
        let mut tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"hawser/1".to_vec()];
        let config = quinn_proto::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        let endpoint = quinn_proto::Endpoint::new(Arc::default(), None, false, None);
        Ok(Self { endpoint, config })
    }

    /// A whole ClientHello, in as many Initials as it takes.
    fn next(&mut self, to: SocketAddr) -> Result<Vec<Vec<u8>>> {
        let now = Instant::now();
        let (_, mut connection) = self.endpoint.connect(now, self.config.clone(), to, "hawser.invalid")?;
        let mut datagrams = Vec::new();
        let mut datagram = Vec::new();
        while connection.poll_transmit(now, 1, &mut datagram).is_some() {
            datagrams.push(std::mem::take(&mut datagram));
        }
        ensure!(!datagrams.is_empty() && datagrams.len() < 4, "{} datagrams are no first flight", datagrams.len());
        Ok(datagrams)
    }
}

/// One address of the flood, and the bytes of its two directions.
struct Source {
    socket: UdpSocket,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Source {
    async fn bind(number: u8) -> Result<Arc<Self>> {
        let address = SocketAddr::from((Ipv4Addr::new(127, 200 + number, 7, 1), 0));
        let socket = UdpSocket::bind(address).await.with_context(|| format!("cannot bind {address}"))?;
        Ok(Arc::new(Self { socket, sent: AtomicU64::new(0), received: AtomicU64::new(0) }))
    }

    /// Counts what comes and answers none of it.
    async fn receive(self: Arc<Self>) {
        let mut buffer = vec![0; 65_536];
        while let Ok(length) = self.socket.recv(&mut buffer).await {
            self.received.fetch_add(length as u64, Ordering::Relaxed);
        }
    }

    fn amplifies(&self) -> bool {
        self.received.load(Ordering::Relaxed) > AMPLIFICATION * self.sent.load(Ordering::Relaxed)
    }
}

/// Sends all flights, evenly, from all sources in turn.
async fn flood(sources: &[Arc<Source>], to: SocketAddr) -> Result<()> {
    let mut flights = Flights::new()?;
    let begun = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(20));
    for (number, source) in (0..FLIGHTS).zip(sources.iter().cycle()) {
        while begun.elapsed() < Duration::from_secs(1) * number / PER_SECOND {
            ticks.tick().await;
        }
        for datagram in flights.next(to)? {
            source.socket.send_to(&datagram, to).await?;
            source.sent.fetch_add(datagram.len() as u64, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// What was seen of the gateway while it was flooded, at its highest.
#[derive(Debug, Default)]
struct Highest {
    in_flight: f64,
    memory: u64,
}

impl Highest {
    async fn watch(gateway: &Daemon, over: &AtomicBool) -> Result<Self> {
        let mut highest = Self::default();
        while !over.load(Ordering::Relaxed) {
            highest.in_flight = highest.in_flight.max(gateway.metric("hawser_gateway_handshakes_in_flight").await?);
            highest.memory = highest.memory.max(memory(gateway)?);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(highest)
    }
}

/// Resident bytes of a process.
fn memory(daemon: &Daemon) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

async fn turned(gateway: &Daemon, how: &str) -> Result<f64> {
    gateway.metric(&format!("hawser_gateway_handshakes_turned_total{{how=\"{how}\"}}")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_first_packets_are_amplified_nowhere_and_take_nobody_s_place() -> Result<()> {
    Fabric::test(Plan::over("quic"), async |fabric| {
        let _shop = fabric.up_with_shop().await?;
        let to = fabric.gateways("east").first().context("no gateway")?.1;
        ensure!(matches!(to.ip(), IpAddr::V4(_)), "sources are of IPv4");
        let gateway = fabric.daemon("east", "gateway", "g0")?;
        let (memory_before, serial) = (memory(&gateway)?, fabric.serial("west", "proxy", "client").await?);
        let mut sources = Vec::new();
        let mut receiving = JoinSet::new();
        for number in 0..SOURCES {
            let source = Source::bind(number).await?;
            receiving.spawn(Arc::clone(&source).receive());
            sources.push(source);
        }

        let honest = Load::start(&fabric.checkout(), &Request::get("/"), &Rate::default());
        let over = AtomicBool::new(false);
        let attack = async {
            let flooded = flood(&sources, to).await;
            over.store(true, Ordering::Relaxed);
            flooded
        };
        // New certificates in the middle of it: new tunnels have to come in through the flood.
        let renew = async {
            eventually("the flood to be felt", async || {
                ensure!(turned(&gateway, "retried").await? > 100.0);
                Ok(())
            })
            .await?;
            fabric.trust(&["rotate", "leaf"]).await
        };
        let (flooded, highest, renewed) = tokio::join!(attack, Highest::watch(&gateway, &over), renew);
        flooded?;
        renewed?;
        let highest = highest?;
        eventually("new certificates", async || {
            ensure!(fabric.serial("west", "proxy", "client").await? != serial, "the first one still");
            Ok(())
        })
        .await?;
        let report = honest.finish().await;

        // All of them are given up at their deadline, and only then all is sent.
        eventually("the last handshake to be given up", async || {
            let left = gateway.metric("hawser_gateway_handshakes_in_flight").await?;
            ensure!(left == 0.0, "{left} are left");
            Ok(())
        })
        .await?;
        let sum = |of: fn(&Source) -> &AtomicU64| sources.iter().map(|s| of(s).load(Ordering::Relaxed)).sum::<u64>();
        let (sent, received) = (sum(|source| &source.sent), sum(|source| &source.received));
        let (retried, p99) = (turned(&gateway, "retried").await?, report.percentile(99));
        eprintln!("{sent} bytes in, {received} out, {retried} retried, {highest:?}, honest p99 {p99:?}");
        eprintln!("{}", report.summary());
        ensure!(received > 0 && !sources.iter().any(|source| source.amplifies()), "{received} bytes for {sent}");
        ensure!(highest.in_flight > SLOTS / 2.0 && highest.in_flight < SLOTS, "{highest:?}");
        // All but those who held a slot, of which each lasts five seconds.
        ensure!(retried > f64::from(FLIGHTS / 2), "{retried}");
        ensure!(highest.memory < memory_before + MEMORY_MAX, "{highest:?} after {memory_before}");
        report.expect_flawless(200)?;
        ensure!(p99 < Duration::from_secs(1), "p99 {p99:?}");
        Ok(())
    })
    .await
}
