//! The dialler: what it shares, keeps warm, remembers, gives up and replaces.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a panic is a test's report")]

mod tunnel_support;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hawser_api::Code;
use hawser_api::objects::link::Transport;
use hawser_tunnel::listen::ListenConfig;
use hawser_tunnel::open::OpenRequest;
use hawser_tunnel::pool::{Dialer, DialerConfig, GatewayPath};
use hawser_tunnel::testing::domain;
use hawser_tunnel::tls::Credentials;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tunnel_support::relay::Relay;
use tunnel_support::{BOTH, CALLER, Fabric, GATEWAY, Gateway, Seen, Upstream, path, request};

const SOON: Duration = Duration::from_secs(30);

fn tunnels(seen: Seen) -> Option<Transport> {
    if let Seen::Tunnel(transport) = seen { Some(transport) } else { None }
}

fn tunnel_over(seen: Seen) -> Option<()> {
    matches!(seen, Seen::TunnelOver).then_some(())
}

/// Waits until a condition holds.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

fn service(name: &str) -> OpenRequest {
    OpenRequest::any(format!("shop/{name}:80").parse().unwrap())
}

async fn echoes(dialer: &Dialer, path: &GatewayPath) -> Transport {
    let opening = timeout(SOON, dialer.open(path, &request())).await.unwrap().unwrap();
    let mut stream = opening.stream;
    stream.write_all(b"are you there?").await.unwrap();
    let mut got = [0; 14];
    timeout(SOON, stream.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(&got, b"are you there?");
    opening.transport
}

/// On a busy machine QUIC may lose a race or two.
async fn until_over(dialer: &Dialer, path: &GatewayPath, transport: Transport) {
    let wait = async { while echoes(dialer, path).await != transport {} };
    timeout(SOON, wait).await.unwrap();
}

#[tokio::test]
async fn concurrent_opens_share_one_quic_connection() {
    let fabric = Fabric::new();
    let upstream = Upstream::echo().await;
    let mut gateway = fabric.gateway(upstream.address).await;
    let (dialer, path) = (fabric.dialer(), path(gateway.address, Transport::Quic));
    let opens = (0..32).map(|_| echoes(&dialer, &path));
    futures_util::future::join_all(opens).await;
    let mut connections = 0;
    while let Ok(seen) = gateway.seen.try_recv() {
        connections += usize::from(tunnels(seen).is_some());
    }
    assert_eq!(connections, 1);
}

#[tokio::test]
async fn concurrent_opens_share_one_failure() {
    let fabric = Fabric::new();
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let limit = Duration::from_millis(500);
    let dialer = fabric.dialer_with(DialerConfig { connect_timeout: limit, ..DialerConfig::default() });
    let path = path(silent.local_addr().unwrap(), Transport::Quic);
    let began = Instant::now();
    let wanted = request();
    for outcome in futures_util::future::join_all((0..16).map(|_| dialer.open(&path, &wanted))).await {
        assert_eq!(outcome.unwrap_err().code, Code::TimedOut);
    }
    assert!(began.elapsed() < limit * 4, "one after the other: {:?}", began.elapsed());
}

#[tokio::test]
async fn a_warm_open_costs_one_round_trip_and_a_cold_one_three() {
    let fabric = Fabric::new();
    let upstream = Upstream::echo().await;
    let mut gateway = fabric.gateway(upstream.address).await;
    let one_way = Duration::from_millis(100);
    let relay = Relay::start(gateway.address, one_way).await;
    let (dialer, path) = (fabric.dialer(), path(relay.address, Transport::Tcp));
    let began = Instant::now();
    let _cold = dialer.open(&path, &request()).await.unwrap();
    // The relay answers TCP's own round trip at once; handshake and open take one each.
    assert!(began.elapsed() >= one_way * 4, "{:?}", began.elapsed());
    gateway.saw_tunnels(3, 1).await;
    let began = Instant::now();
    let _warm = dialer.open(&path, &request()).await.unwrap();
    assert!(began.elapsed() < one_way * 4, "{:?}", began.elapsed());
    // What was taken is replaced.
    gateway.saw_tunnels(4, 2).await;
    assert_eq!(dialer.transport_in_use(&path), Some(Transport::Tcp));
}

#[tokio::test]
async fn auto_takes_quic_where_it_works() {
    let fabric = Fabric::new();
    let upstream = Upstream::echo().await;
    let gateway = fabric.gateway(upstream.address).await;
    let config = DialerConfig { quic_head_start: SOON, ..DialerConfig::default() };
    let (dialer, path) = (fabric.dialer_with(config), path(gateway.address, Transport::Auto));
    assert_eq!(dialer.transport_in_use(&path), None);
    assert_eq!(echoes(&dialer, &path).await, Transport::Quic);
    assert_eq!(dialer.transport_in_use(&path), Some(Transport::Quic));
}

#[tokio::test]
async fn where_udp_is_dropped_auto_falls_back_within_a_connect_timeout_and_remembers() {
    let fabric = Fabric::new();
    let upstream = Upstream::echo().await;
    let gateway = fabric.gateway(upstream.address).await;
    let relay = Relay::start(gateway.address, Duration::ZERO).await;
    relay.udp.swallow(true);
    let config = DialerConfig { quic_retry_after: Duration::from_secs(3), ..DialerConfig::default() };
    let limit = config.connect_timeout;
    let (dialer, path) = (fabric.dialer_with(config), path(relay.address, Transport::Auto));
    let began = Instant::now();
    assert_eq!(echoes(&dialer, &path).await, Transport::Tcp);
    assert!(began.elapsed() < limit, "{:?}", began.elapsed());

    let tried = relay.udp.swallowed.load(Ordering::SeqCst);
    assert!(tried > 0);
    // What quinn still sends for the attempt that was given up comes to an end; new opens add nothing.
    for _ in 0..5 {
        assert_eq!(echoes(&dialer, &path).await, Transport::Tcp);
    }
    // And when it is forgotten, and UDP works again, so does QUIC.
    relay.udp.swallow(false);
    until_over(&dialer, &path, Transport::Quic).await;
}

#[tokio::test]
async fn when_udp_stops_midway_auto_goes_on_over_tcp_within_a_connect_timeout() {
    let fabric = Fabric::new();
    let upstream = Upstream::echo().await;
    let gateway = fabric.gateway(upstream.address).await;
    let relay = Relay::start(gateway.address, Duration::ZERO).await;
    let config = DialerConfig { quic_retry_after: Duration::from_millis(50), ..DialerConfig::default() };
    let limit = config.connect_timeout;
    let (dialer, path) = (fabric.dialer_with(config), path(relay.address, Transport::Auto));
    until_over(&dialer, &path, Transport::Quic).await;
    relay.udp.swallow(true);
    let began = Instant::now();
    assert_eq!(echoes(&dialer, &path).await, Transport::Tcp);
    assert!(began.elapsed() < limit, "{:?}", began.elapsed());
    assert!(relay.udp.swallowed.load(Ordering::SeqCst) > 0, "the partition was no partition");
}

#[tokio::test]
async fn live_streams_notice_within_seconds_that_their_gateway_hangs() {
    let fabric = Fabric::new();
    let upstream = Upstream::echo().await;
    let gateway = fabric.gateway(upstream.address).await;
    let relay = Relay::start(gateway.address, Duration::ZERO).await;
    let (dialer, path) = (fabric.dialer(), path(relay.address, Transport::Quic));
    let mut stream = dialer.open(&path, &request()).await.unwrap().stream;
    relay.udp.swallow(true);
    let began = Instant::now();
    let mut buffer = [0; 8];
    timeout(SOON, stream.read(&mut buffer)).await.unwrap().expect_err("the stream is dead");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_gateway_that_never_answers_is_given_up_in_time() {
    for transport in [Transport::Tcp, Transport::Quic, Transport::Auto] {
        let fabric = Fabric::new();
        let gateway = fabric.gateway("127.0.0.1:1".parse().unwrap()).await;
        let limit = Duration::from_millis(400);
        let dialer = fabric.dialer_with(DialerConfig { open_timeout: limit, ..DialerConfig::default() });
        let path = path(gateway.address, transport);
        for _ in 0..2 {
            let began = Instant::now();
            let refusal = dialer.open(&path, &service("hang")).await.unwrap_err();
            assert_eq!(refusal.code, Code::TimedOut, "{transport:?} {refusal}");
            assert!(refusal.remedy.contains("firewall"));
            assert!(began.elapsed() < limit + Duration::from_secs(2));
        }
    }
}

#[tokio::test]
async fn a_gateway_that_dies_midway_through_an_open_is_a_refusal() {
    for transport in [Transport::Tcp, Transport::Quic, Transport::Auto] {
        let fabric = Fabric::new();
        let mut gateway = fabric.gateway("127.0.0.1:1".parse().unwrap()).await;
        let (dialer, path, wanted) = (fabric.dialer(), path(gateway.address, transport), service("hang"));
        let open = tokio::spawn(async move { dialer.open(&path, &wanted).await });
        gateway.saw(|seen| matches!(seen, Seen::Open(_)).then_some(())).await;
        gateway.kill();
        let refusal = timeout(SOON, open).await.unwrap().unwrap().unwrap_err();
        assert!(matches!(refusal.code, Code::PeerUnreachable | Code::TimedOut), "{transport:?} {refusal}");
        assert!(refusal.code.retry_elsewhere());
    }
}

#[tokio::test]
async fn a_gateway_that_came_back_is_used_again_without_a_failure() {
    for transport in [Transport::Tcp, Transport::Quic, Transport::Auto] {
        for reset_key in [None, Some([7; 32])] {
            let fabric = Fabric::new();
            let upstream = Upstream::echo().await;
            let config = ListenConfig { reset_key, ..ListenConfig::default() };
            let mut gateway = Gateway::start(fabric.east.clone(), config.clone(), upstream.address).await;
            let (dialer, path) = (fabric.dialer(), path(gateway.address, transport));
            echoes(&dialer, &path).await;
            if transport == Transport::Tcp {
                gateway.saw_tunnels(3, 1).await;
            }
            let address = gateway.address;
            gateway.kill();
            let _again = restart(address, &fabric.east, config, upstream.address).await;
            echoes(&dialer, &path).await;
        }
    }
}

/// How long a stream that stood when its gateway was replaced waits until it is told so.
async fn told_after_a_restart(reset_key: Option<[u8; 32]>) -> Duration {
    let fabric = Fabric::new();
    let upstream = Upstream::echo().await;
    let config = ListenConfig { reset_key, ..ListenConfig::default() };
    let gateway = Gateway::start(fabric.east.clone(), config.clone(), upstream.address).await;
    let (dialer, path) = (fabric.dialer(), path(gateway.address, Transport::Quic));
    let mut stream = dialer.open(&path, &request()).await.unwrap().stream;
    let address = gateway.address;
    gateway.kill();
    let _again = restart(address, &fabric.east, config, upstream.address).await;
    let began = Instant::now();
    assert!(timeout(SOON, stream.read_exact(&mut [0])).await.unwrap().is_err());
    began.elapsed()
}

#[tokio::test]
async fn a_gateway_that_came_back_with_its_key_tells_the_diallers_of_the_one_before_it() {
    // With the next keep-alive, against the time after which silence is taken for death.
    let (told, found_out) = (told_after_a_restart(Some([7; 32])).await, told_after_a_restart(None).await);
    assert!(told * 2 < found_out, "{told:?} against {found_out:?}");
}

async fn restart(address: SocketAddr, east: &Credentials, config: ListenConfig, upstream: SocketAddr) -> Gateway {
    // The kernel lets go of the ports when the last task of the old one has ended.
    until("the port is free", || {
        std::net::TcpListener::bind(address).is_ok() && std::net::UdpSocket::bind(address).is_ok()
    })
    .await;
    Gateway::start_on(address, east.clone(), config, upstream).await
}

#[tokio::test]
async fn a_change_of_credentials_drops_warm_connections_and_retires_quic() {
    let fabric = Fabric::new();
    let upstream = Upstream::echo().await;
    let mut gateway = fabric.gateway(upstream.address).await;
    let dialer = fabric.dialer();
    let over_tcp = path(gateway.address, Transport::Tcp);
    let first = dialer.open(&over_tcp, &request()).await.unwrap();
    // The one that was opened and is over as a tunnel, and two warm ones.
    gateway.saw_tunnels(3, 1).await;
    fabric.west.set_identity(fabric.pki.identity("west", CALLER));
    // Dropped, and refilled with the new identity, without anybody asking.
    gateway.saw_tunnels(5, 3).await;
    drop(first);

    let over_quic = path(gateway.address, Transport::Quic);
    let mut old = dialer.open(&over_quic, &request()).await.unwrap().stream;
    gateway.saw(tunnels).await;
    fabric.west.set_identity(fabric.pki.identity("west", CALLER));
    echoes(&dialer, &over_quic).await;
    gateway.saw(|seen| tunnels(seen).filter(|transport| *transport == Transport::Quic)).await;
    // The stream on the old connection goes on.
    old.write_all(b"still here").await.unwrap();
    let mut got = [0; 10];
    timeout(SOON, old.read_exact(&mut got)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_peer_that_is_trusted_no_more_is_cut_with_its_streams() {
    let fabric = Fabric::new();
    let upstream = Upstream::echo().await;
    let gateway = fabric.gateway(upstream.address).await;
    let (dialer, path) = (fabric.dialer(), path(gateway.address, Transport::Quic));
    let mut stream = dialer.open(&path, &request()).await.unwrap().stream;
    fabric.west.remove_anchors(&domain("east"));
    let began = Instant::now();
    let mut buffer = [0; 8];
    timeout(SOON, stream.read(&mut buffer)).await.unwrap().expect_err("cut");
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(dialer.open(&path, &request()).await.unwrap_err().code, Code::WrongIdentity);
}

#[tokio::test]
async fn who_is_not_the_peers_gateway_is_refused_over_both_transports() {
    for transport in BOTH {
        let fabric = Fabric::new();
        let upstream = Upstream::echo().await;
        // East's own certificate, but a workload's: a pod that poses as the gateway.
        let rogue = fabric.pki.linked("east", "/ns/shop/sa/checkout", &["west"]);
        let gateway = Gateway::start(rogue, ListenConfig::default(), upstream.address).await;
        let refusal = fabric.dialer().open(&path(gateway.address, transport), &request()).await.unwrap_err();
        assert_eq!(refusal.code, Code::WrongIdentity, "{transport:?} {refusal}");
        // And a gateway, but north's.
        let rogue = fabric.pki.linked("north", GATEWAY, &["west"]);
        let gateway = Gateway::start(rogue, ListenConfig::default(), upstream.address).await;
        let refusal = fabric.dialer().open(&path(gateway.address, transport), &request()).await.unwrap_err();
        assert_eq!(refusal.code, Code::WrongIdentity, "{transport:?} {refusal}");
    }
}

#[tokio::test]
async fn without_an_identity_nothing_is_dialled() {
    let fabric = Fabric::new();
    let nobody = Credentials::new(domain("west"), hawser_tunnel::testing::clock);
    let dialer = Dialer::new(nobody, DialerConfig::default());
    for transport in [Transport::Tcp, Transport::Quic, Transport::Auto] {
        let gateway = fabric.gateway("127.0.0.1:1".parse().unwrap()).await;
        let refusal = dialer.open(&path(gateway.address, transport), &request()).await.unwrap_err();
        assert_eq!(refusal.code, Code::NotReady, "{transport:?} {refusal}");
    }
}

#[tokio::test]
async fn nobody_at_home_is_found_out_at_once_over_tcp_and_auto() {
    let fabric = Fabric::new();
    let gateway = fabric.gateway("127.0.0.1:1".parse().unwrap()).await;
    let address = gateway.address;
    gateway.kill();
    for transport in [Transport::Tcp, Transport::Auto] {
        let began = Instant::now();
        let refusal = fabric.dialer().open(&path(address, transport), &request()).await.unwrap_err();
        assert_eq!(refusal.code, Code::PeerUnreachable, "{refusal}");
        assert!(refusal.message.contains("gateway a of east"), "{refusal}");
        assert!(began.elapsed() < Duration::from_secs(1), "{transport:?} {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_probe_measures_over_the_transport_in_use() {
    let fabric = Fabric::new();
    let gateway = fabric.gateway("127.0.0.1:1".parse().unwrap()).await;
    for transport in BOTH {
        let (dialer, path) = (fabric.dialer(), path(gateway.address, transport));
        for _ in 0..4 {
            let probe = dialer.probe(&path).await.unwrap();
            assert_eq!(probe.transport, transport);
            assert!(probe.round_trip < Duration::from_secs(1));
        }
    }
}

#[tokio::test]
async fn a_gateway_that_goes_away_is_replaced_by_the_next_without_a_failure() {
    let fabric = Fabric::new();
    let upstream = Upstream::echo().await;
    for transport in BOTH {
        let mut gateway = fabric.gateway(upstream.address).await;
        let (dialer, path) = (fabric.dialer(), path(gateway.address, transport));
        let mut stream = dialer.open(&path, &request()).await.unwrap().stream;
        gateway.saw(|seen| matches!(seen, Seen::Open(_)).then_some(())).await;
        gateway.go_away.cancel();
        // What lives goes on.
        stream.write_all(b"x").await.unwrap();
        timeout(SOON, stream.read_exact(&mut [0; 1])).await.unwrap().unwrap();
        stream.shutdown().await.unwrap();
        timeout(SOON, stream.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
        drop(stream);
        gateway.saw(tunnel_over).await;
    }
}
