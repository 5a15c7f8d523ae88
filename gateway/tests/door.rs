//! A gateway's life with its peers: choice of endpoints, cuts, limits, drain. Over both transports.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use hawser_api::Code;
use hawser_gateway::config::LimitsConfig;
use hawser_tunnel::open::OpenRequest;
use support::{BOTH, Door, Endpoint0, avoiding, echoes, nobody, read_name, until, until_cut, within};
use tokio::io::AsyncReadExt;

#[tokio::test]
async fn withdrawing_an_export_cuts_its_streams_and_no_others() {
    for transport in BOTH {
        let (a, b) = (Endpoint0::start("a").await, Endpoint0::start("b").await);
        let mut door = Door::open().await;
        door.export("shop/checkout:80", &["west"], &[("a", a.address, true)]);
        door.export("shop/stock:80", &["west"], &[("b", b.address, true)]);
        door.publish().await;
        let west = door.knocker("west", transport);
        let (_, mut checkout) = west.reach("shop/checkout:80").await;
        let (_, mut stock) = west.reach("shop/stock:80").await;
        echoes(&mut checkout).await.unwrap();

        door.unexport("shop/checkout:80");
        door.publish().await;
        assert!(until_cut(&mut checkout).await < Duration::from_secs(5));
        echoes(&mut stock).await.unwrap();
        assert_eq!(west.open("shop/checkout:80").await.map(|o| o.opened).unwrap_err().code, Code::NotExported);
        let reason = "hawser_gateway_stream_ends_total{reason=\"not_exported\"} 1";
        until("the cut to be counted", || door.metrics().contains(reason)).await;
    }
}

#[tokio::test]
async fn narrowing_an_export_to_another_cluster_cuts_the_streams_of_the_first() {
    for transport in BOTH {
        let a = Endpoint0::start("a").await;
        let mut door = Door::open().await;
        door.link("north");
        door.export("shop/checkout:80", &["west", "north"], &[("a", a.address, true)]);
        door.publish().await;
        let (west, north) = (door.knocker("west", transport), door.knocker("north", transport));
        let (_, mut of_west) = west.reach("shop/checkout:80").await;
        let (_, mut of_north) = north.reach("shop/checkout:80").await;
        door.export("shop/checkout:80", &["north"], &[("a", a.address, true)]);
        door.publish().await;
        assert!(until_cut(&mut of_west).await < Duration::from_secs(5));
        echoes(&mut of_north).await.unwrap();
    }
}

#[tokio::test]
async fn unlinking_a_peer_cuts_its_streams_and_its_tunnels_and_leaves_others_alone() {
    for transport in BOTH {
        let a = Endpoint0::start("a").await;
        let mut door = Door::open().await;
        door.link("north");
        door.export("shop/checkout:80", &["west", "north"], &[("a", a.address, true)]);
        door.publish().await;
        let (west, north) = (door.knocker("west", transport), door.knocker("north", transport));
        let (_, mut of_west) = west.reach("shop/checkout:80").await;
        let (_, mut of_north) = north.reach("shop/checkout:80").await;
        door.unlink("west");
        door.publish().await;
        assert!(until_cut(&mut of_west).await < Duration::from_secs(5));
        echoes(&mut of_north).await.unwrap();
        // Its anchors are gone, so it does not even get in.
        assert!(west.open("shop/checkout:80").await.is_err());
        door.link("west");
        door.publish().await;
        assert_eq!(west.reach("shop/checkout:80").await.0, "a");
    }
}

#[tokio::test]
async fn endpoints_to_avoid_are_avoided_and_a_named_one_is_taken() {
    let (a, b, c) = (Endpoint0::start("a").await, Endpoint0::start("b").await, Endpoint0::start("c").await);
    let mut door = Door::open().await;
    let endpoints = [("a", a.address, true), ("b", b.address, true), ("c", c.address, false)];
    door.export("shop/checkout:80", &["west"], &endpoints);
    door.publish().await;
    for transport in BOTH {
        let west = door.knocker("west", transport);
        for _ in 0..8 {
            let mut opening = west.ask(avoiding("shop/checkout:80", &["a"])).await.unwrap();
            assert_eq!(opening.opened.endpoint, "b");
            assert_eq!(opening.opened.endpoints_ready, 2);
            assert_eq!(read_name(&mut opening).await.unwrap(), "b");
        }
        assert!(west.ask(avoiding("shop/checkout:80", &["a", "b"])).await.is_ok());
        let named = |id: &str| OpenRequest { endpoint: Some(id.into()), ..avoiding("shop/checkout:80", &[]) };
        assert_eq!(west.ask(named("a")).await.unwrap().opened.endpoint, "a");
        for gone in ["c", "d"] {
            assert_eq!(west.ask(named(gone)).await.map(|o| o.opened).unwrap_err().code, Code::NoEndpoint);
        }
    }
}

#[tokio::test]
async fn streams_spread_over_endpoints() {
    let (a, b) = (Endpoint0::start("a").await, Endpoint0::start("b").await);
    let mut door = Door::open().await;
    door.export("shop/checkout:80", &["west"], &[("a", a.address, true), ("b", b.address, true)]);
    door.publish().await;
    let west = door.knocker("west", BOTH[0]);
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(west.reach("shop/checkout:80").await);
    }
    // Of two, the one with fewer open streams: they never differ by more than one.
    assert_eq!(open.iter().filter(|(name, _)| name == "a").count(), 5);
}

#[tokio::test]
async fn an_endpoint_that_takes_no_connection_is_passed_over() {
    let a = Endpoint0::start("a").await;
    let mut door = Door::open().await;
    door.export("shop/checkout:80", &["west"], &[("a", a.address, true), ("dead", nobody().await, true)]);
    door.export("shop/stock:80", &["west"], &[("dead", nobody().await, true)]);
    door.export("shop/none:80", &["west"], &[]);
    door.publish().await;
    for transport in BOTH {
        let west = door.knocker("west", transport);
        for _ in 0..8 {
            assert_eq!(west.reach("shop/checkout:80").await.0, "a");
        }
        let code = async |target| west.open(target).await.map(|o| o.opened).unwrap_err().code;
        assert_eq!(code("shop/stock:80").await, Code::EndpointUnreachable);
        assert_eq!(code("shop/none:80").await, Code::NoEndpoint);
        let named = OpenRequest { endpoint: Some("dead".into()), ..avoiding("shop/checkout:80", &[]) };
        assert_eq!(west.ask(named).await.map(|o| o.opened).unwrap_err().code, Code::EndpointUnreachable);
    }
}

#[tokio::test]
async fn a_ping_is_answered_by_the_gateway_itself() {
    let door = Door::open().await;
    for transport in BOTH {
        let west = door.knocker("west", transport);
        let probe = within("a probe", west.dialer.probe(&west.path)).await.unwrap();
        assert_eq!(probe.transport, transport);
        let mut opening = west.open("hawser-system/ping:7").await.unwrap();
        let mut rest = Vec::new();
        within("its end", opening.stream.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"");
    }
    until("both to be counted", || {
        door.metrics().contains("hawser_gateway_opens_total{link=\"west\",result=\"ok\"} 4")
    })
    .await;
}

#[tokio::test]
async fn a_cluster_that_is_trusted_but_not_linked_is_told_so() {
    let a = Endpoint0::start("a").await;
    let mut door = Door::open().await;
    door.export("shop/checkout:80", &["west"], &[("a", a.address, true)]);
    door.publish().await;
    for transport in BOTH {
        // East's own workloads have anchors here, and no link.
        let own = door.knocker_with(door.pki.credentials("east", "/ns/shop/sa/checkout"), transport);
        let refusal = own.open("shop/checkout:80").await.map(|o| o.opened).unwrap_err();
        assert_eq!(refusal.code, Code::NotLinked);
        assert!(refusal.remedy.contains("Link"));
    }
    // A cluster without anchors does not get through the handshake.
    let stranger = door.knocker("south", BOTH[1]);
    assert!(stranger.open("shop/checkout:80").await.is_err());
    until("the failed handshake to be counted", || {
        door.metrics().contains("hawser_tls_handshake_failures_total{reason=\"untrusted\"}")
    })
    .await;
}

#[tokio::test]
async fn a_link_at_its_limit_of_streams_is_refused_until_one_ends() {
    let a = Endpoint0::start("a").await;
    let limits = LimitsConfig { streams_per_link: 2, ..LimitsConfig::default() };
    let mut door = Door::with(limits).await;
    door.link("north");
    door.export("shop/checkout:80", &["west", "north"], &[("a", a.address, true)]);
    door.publish().await;
    let (west, north) = (door.knocker("west", BOTH[0]), door.knocker("north", BOTH[0]));
    let first = west.reach("shop/checkout:80").await;
    let _second = west.reach("shop/checkout:80").await;
    let refusal = west.open("shop/checkout:80").await.map(|o| o.opened).unwrap_err();
    assert_eq!(refusal.code, Code::Overloaded);
    assert!(refusal.retry_after.is_some());
    assert_eq!(north.reach("shop/checkout:80").await.0, "a");
    drop(first);
    until("the first to end", || door.page("/streams")["streams"].as_array().unwrap().len() < 3).await;
    until("its place to be free", || door.page("/peers")["peers"][1]["streams"] == 1).await;
    assert_eq!(west.reach("shop/checkout:80").await.0, "a");
}

#[tokio::test]
async fn a_link_that_opens_too_fast_is_refused_and_another_is_not() {
    let limits = LimitsConfig { opens_per_second_per_link: 2, ..LimitsConfig::default() };
    let mut door = Door::with(limits).await;
    door.link("north");
    door.publish().await;
    let (west, north) = (door.knocker("west", BOTH[0]), door.knocker("north", BOTH[0]));
    let mut codes = Vec::new();
    for _ in 0..8 {
        codes.push(west.open("shop/none:80").await.map(|o| o.opened).unwrap_err().code);
    }
    assert_eq!(codes[..4], [Code::NotExported; 4]);
    assert!(codes.contains(&Code::Overloaded), "{codes:?}");
    assert_eq!(north.open("shop/none:80").await.map(|o| o.opened).unwrap_err().code, Code::NotExported);
}

#[tokio::test]
async fn a_link_with_too_many_tunnels_is_told_so_and_another_is_not() {
    let limits = LimitsConfig { tunnels_per_link: 1, ..LimitsConfig::default() };
    let mut door = Door::with(limits).await;
    door.link("north");
    door.publish().await;
    let (first, second) = (door.knocker("west", BOTH[0]), door.knocker("west", BOTH[0]));
    assert_eq!(first.open("shop/none:80").await.map(|o| o.opened).unwrap_err().code, Code::NotExported);
    assert_eq!(second.open("shop/none:80").await.map(|o| o.opened).unwrap_err().code, Code::Overloaded);
    let north = door.knocker("north", BOTH[0]);
    assert_eq!(north.open("shop/none:80").await.map(|o| o.opened).unwrap_err().code, Code::NotExported);
}

#[tokio::test]
async fn when_all_tunnels_are_taken_a_newcomer_is_dropped_unseen_and_counted() {
    let limits = LimitsConfig { tunnels: 1, ..LimitsConfig::default() };
    let door = Door::with(limits).await;
    for transport in BOTH {
        let (first, second) = (door.knocker("west", BOTH[0]), door.knocker("west", transport));
        assert_eq!(first.open("shop/none:80").await.map(|o| o.opened).unwrap_err().code, Code::NotExported);
        assert!(second.open("shop/none:80").await.is_err());
        let refused = "hawser_gateway_tunnels_refused_total 0";
        assert!(!door.metrics().contains(refused));
        drop((first, second));
        until("the first tunnel to end", || door.page("/peers")["peers"][0]["tunnels"] == 0).await;
    }
}

#[tokio::test]
async fn draining_opens_nothing_new_lets_streams_live_until_the_deadline_and_then_cuts() {
    for transport in BOTH {
        let a = Endpoint0::start("a").await;
        let mut door = Door::open().await;
        door.export("shop/checkout:80", &["west"], &[("a", a.address, true)]);
        door.publish().await;
        let west = door.knocker("west", transport);
        let (_, mut short) = west.reach("shop/checkout:80").await;
        let (_, mut long) = west.reach("shop/checkout:80").await;
        door.process.drain.cancel();
        until("new opens to be refused", || door.process.drain.is_cancelled()).await;
        assert!(west.open("shop/checkout:80").await.is_err());
        echoes(&mut short).await.unwrap();
        drop(short);
        echoes(&mut long).await.unwrap();
        assert!(!door.served.is_finished());
        door.process.stop.cancel();
        until_cut(&mut long).await;
        within("the gateway to end", &mut door.served).await.unwrap();
    }
}

#[tokio::test]
async fn a_drained_gateway_without_streams_ends_at_once() {
    for transport in BOTH {
        let mut door = Door::open().await;
        let west = door.knocker("west", transport);
        within("a probe", west.dialer.probe(&west.path)).await.unwrap();
        door.process.drain.cancel();
        within("the gateway to end", &mut door.served).await.unwrap();
    }
}

#[tokio::test]
async fn a_tunnel_ends_with_its_certificate_and_its_live_stream_goes_on() {
    for transport in BOTH {
        let a = Endpoint0::start("a").await;
        let mut door = Door::open().await;
        door.export("shop/checkout:80", &["west"], &[("a", a.address, true)]);
        door.publish().await;
        let credentials = door.pki.linked("west", "/ns/apps/sa/web", &["east"]);
        let minted = door.pki.mint("west", "/ns/apps/sa/web", Duration::from_secs(3));
        credentials.set_identity(hawser_tunnel::tls::Identity::new(minted.chain, minted.key).unwrap());
        let west = door.knocker_with(credentials.clone(), transport);
        let (_, mut old) = west.reach("shop/checkout:80").await;
        // Renewed, as at half life; the old certificate then ends.
        credentials.set_identity(door.pki.identity("west", "/ns/apps/sa/web"));
        let age = || door.page("/streams")["streams"][0]["ageMs"].as_u64().unwrap();
        until("the old certificate to end", || age() >= 3000).await;
        echoes(&mut old).await.unwrap();
        let _new = west.reach("shop/checkout:80").await;
        let serials: BTreeSet<_> = door.page("/streams")["streams"].as_array().unwrap().iter().map(serial).collect();
        assert_eq!(serials.len(), 2);
    }
}

fn serial(stream: &serde_json::Value) -> String {
    stream["serial"].to_string()
}

#[tokio::test]
async fn bytes_are_counted_while_a_stream_lives_and_the_sum_never_goes_back() {
    let a = Endpoint0::start("a").await;
    let mut door = Door::open().await;
    door.export("shop/checkout:80", &["west"], &[("a", a.address, true)]);
    door.publish().await;
    let sent = |n: u64| format!("hawser_tcp_sent_bytes_total{{link=\"west\"}} {n}\n");
    for (transport, before) in BOTH.into_iter().zip([0, 5]) {
        let west = door.knocker("west", transport);
        let (_, mut opening) = west.reach("shop/checkout:80").await;
        echoes(&mut opening).await.unwrap();
        until("its bytes to be counted", || door.metrics().contains(&sent(before + 5))).await;
        drop(opening);
        until("its end", || door.page("/streams")["streams"].as_array().unwrap().is_empty()).await;
        assert!(door.metrics().contains(&sent(before + 5)));
    }
}

#[tokio::test]
async fn the_pages_show_streams_exports_and_peers() {
    let a = Endpoint0::start("a").await;
    let mut door = Door::open().await;
    door.export("shop/checkout:80", &["west"], &[("a", a.address, true)]);
    door.publish().await;
    let west = door.knocker("west", BOTH[0]);
    let _open = west.reach("shop/checkout:80").await;
    let streams = &door.page("/streams")["streams"];
    assert_eq!(streams[0]["cluster"], "west");
    assert_eq!(streams[0]["destination"], "shop/checkout:80");
    assert_eq!(streams[0]["clientId"], "spiffe://west.hawser.test/ns/apps/sa/web");
    assert_eq!(streams[0]["transport"], "quic");
    let exports = &door.page("/exports")["exports"];
    assert_eq!((&exports[0]["namespace"], &exports[0]["name"]), (&"shop".into(), &"checkout".into()));
    assert_eq!(exports[0]["clusters"][0], "west");
    assert_eq!(exports[0]["endpoints"][0]["open"], 1);
    assert_eq!(door.page("/peers")["peers"][0]["cluster"], "west");
}

#[tokio::test]
async fn a_drained_gateway_gives_its_address_back() {
    for transport in BOTH {
        let a = Endpoint0::start("a").await;
        let mut door = Door::open().await;
        door.export("shop/checkout:80", &["west"], &[("a", a.address, true)]);
        door.publish().await;
        let west = door.knocker("west", transport);
        let _open = west.reach("shop/checkout:80").await;
        door.process.drain.cancel();
        door.process.stop.cancel();
        within("the gateway to end", &mut door.served).await.unwrap();
        let address = door.address;
        until("its address to be free", || std::net::UdpSocket::bind(address).is_ok()).await;
        until("its address to be free", || std::net::TcpListener::bind(address).is_ok()).await;
    }
}
