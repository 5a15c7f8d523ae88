//! Whole tunnels under virtual time.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;
use crate::handoff::ALPN;
use crate::listen::{ListenConfig, Tunnel};
use crate::open::{OpenRequest, OpenedAnswer};
use crate::quic::{self, Link};
use crate::stream::TunnelStream;
use crate::tcp::Session;
use crate::testing::{Pki, id};
use crate::tls::{Credentials, Expect};

const GATEWAY: &str = "/ns/hawser-system/sa/gateway";
const LATENCY: Duration = Duration::from_millis(50);
const ROUND_TRIP: Duration = Duration::from_millis(100);

/// Dialler, gateway, and whom the one expects of the other.
type Fabric = (Credentials, Credentials, Expect);

fn fabric() -> Fabric {
    let pki = Pki::new();
    let west = pki.linked("west", "/ns/shop/sa/web", &["east"]);
    let east = pki.linked("east", GATEWAY, &["west"]);
    (west, east, Expect::Identities(Arc::new([id("east", GATEWAY)])))
}

fn frame() -> bytes::Bytes {
    OpenRequest::any("shop/checkout:80".parse().unwrap()).to_frame().unwrap()
}

fn yes() -> OpenedAnswer {
    OpenedAnswer { endpoint: "e1".into(), endpoints_ready: 1 }
}

async fn tcp_pair(network: &Network) -> (Session<End>, Session<End>) {
    let (west, east, expect) = fabric();
    let (near, far) = network.stream();
    let client = Session::client(near, west.client_config(&expect, ALPN).unwrap());
    let server = async move {
        let mut server = Session::server(far, east.server_config(&[ALPN]).unwrap()).await.unwrap();
        server.next_frame().await.unwrap();
        server.answer(&yes().to_frame().unwrap()).await.unwrap();
        server
    };
    // The dialler is measured from outside: the server runs beside it.
    let server = tokio::spawn(server);
    let mut client = client.await.unwrap();
    assert_eq!(client.ask(&frame()).await.unwrap(), yes());
    (client, server.await.unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_cold_open_over_tcp_takes_two_round_trips_after_the_connect_and_a_warm_one_one() {
    let network = Network::new(LATENCY, 1);
    let began = Instant::now();
    tcp_pair(&network).await;
    assert_eq!(began.elapsed().as_millis(), (ROUND_TRIP * 2).as_millis());

    let (west, east, expect) = fabric();
    let (near, far) = network.stream();
    let server = tokio::spawn(async move {
        let mut server = Session::server(far, east.server_config(&[ALPN]).unwrap()).await.unwrap();
        server.next_frame().await.unwrap();
        server.answer(&yes().to_frame().unwrap()).await.unwrap();
        server
    });
    let mut warm = Session::client(near, west.client_config(&expect, ALPN).unwrap()).await.unwrap();
    warm.flush().await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(warm.is_quiet());
    let began = Instant::now();
    assert_eq!(warm.ask(&frame()).await.unwrap(), yes());
    assert_eq!(began.elapsed().as_millis(), ROUND_TRIP.as_millis());
    server.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_open_over_tcp_survives_losses_and_a_partition_that_heals() {
    let network = Network::new(LATENCY, 2);
    network.lose(300);
    let healing = network.clone();
    let opened = tokio::spawn(async move { timeout(Duration::from_secs(60), tcp_pair(&network)).await.is_ok() });
    tokio::time::sleep(Duration::from_millis(60)).await;
    healing.partition(true);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(!opened.is_finished());
    healing.partition(false);
    assert!(opened.await.unwrap());
}

/// A dialler's link and the listener's tunnel, over simulated datagrams.
async fn quic_pair(network: &Network) -> (Link, Tunnel) {
    quic_pair_of(network, &fabric()).await
}

async fn quic_pair_of(network: &Network, (west, east, expect): &Fabric) -> (Link, Tunnel) {
    let addresses: [SocketAddr; 2] = ["192.0.2.1:1000".parse().unwrap(), "192.0.2.2:7443".parse().unwrap()];
    let (near, far) = network.datagrams(addresses[0], addresses[1]);
    let dialling = quic::endpoint_on(near, None).unwrap();
    let accepting = quic::endpoint_on(far, None).unwrap();
    let config = quic::server_config(east.server_config(&[ALPN]).unwrap(), 16, addresses[0].ip()).unwrap();
    accepting.set_server_config(Some(config));
    let accept = async {
        let connection = accepting.accept().await.unwrap().await.unwrap();
        let peer = east.verified(&quic::peer_chain(&connection), &Expect::Trusted, None).unwrap();
        Tunnel::over_quic(connection, peer, addresses[0], &ListenConfig::default())
    };
    let (link, tunnel) = tokio::join!(Link::connect(&dialling, addresses[1], west, expect), accept);
    (link.unwrap(), tunnel)
}

async fn quic_streams(link: &Link, tunnel: &mut Tunnel) -> (TunnelStream, TunnelStream) {
    let (opened, far) =
        tokio::join!(link.open(frame()), async { tunnel.next_open().await.unwrap().accept(&yes()).await.unwrap() });
    (opened.unwrap().1, far)
}

#[tokio::test(start_paused = true)]
async fn an_open_over_quic_takes_one_round_trip() {
    let network = Network::new(LATENCY, 3);
    let (link, mut tunnel) = quic_pair(&network).await;
    let began = Instant::now();
    quic_streams(&link, &mut tunnel).await;
    // quinn's timers have a granularity of a millisecond or so.
    assert!(began.elapsed() < ROUND_TRIP + Duration::from_millis(10), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn quic_delivers_every_byte_though_a_twentieth_of_the_datagrams_is_lost() {
    let network = Network::new(LATENCY, 4);
    network.lose(50);
    let (link, mut tunnel) = quic_pair(&network).await;
    let (mut near, mut far) = quic_streams(&link, &mut tunnel).await;
    let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let mut got = Vec::new();
    let send = async {
        near.write_all(&sent).await.unwrap();
        near.shutdown().await.unwrap();
    };
    tokio::join!(send, async { far.read_to_end(&mut got).await.unwrap() });
    assert!(got == sent);
    assert!(network.swallowed() > 10, "nothing was lost");
}

#[tokio::test(start_paused = true)]
async fn a_partition_of_a_second_costs_no_stream_and_one_of_two_ends_them() {
    let network = Network::new(LATENCY, 5);
    let (link, mut tunnel) = quic_pair(&network).await;
    let (mut near, mut far) = quic_streams(&link, &mut tunnel).await;
    // Keep-alives go on, so that nothing ends by itself.
    tokio::time::sleep(Duration::from_secs(30)).await;
    network.partition(true);
    tokio::time::sleep(Duration::from_secs(1)).await;
    network.partition(false);
    near.write_all(b"still here").await.unwrap();
    let mut got = [0; 10];
    far.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"still here");

    let before = network.swallowed();
    network.partition(true);
    let began = Instant::now();
    near.read_exact(&mut [0; 1]).await.expect_err("the gateway is gone");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(network.swallowed() > before, "the partition was no partition");
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_gets_no_new_streams_until_it_speaks_again() {
    let network = Network::new(LATENCY, 6);
    let fabric = fabric();
    let (link, _tunnel) = quic_pair_of(&network, &fabric).await;
    let keeper = tokio::spawn(link.clone().keep(fabric.0));
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!link.is_quiet());
    network.partition(true);
    tokio::time::sleep(Duration::from_millis(1200)).await;
    assert!(link.is_quiet());
    network.partition(false);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!link.is_quiet());
    keeper.abort();
}
