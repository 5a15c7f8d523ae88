//! Endpoints, gateways and clusters that fail: what can be saved is, and the rest is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hawser_api::objects::link::Transport;
use hawser_api::{Code, Refusal};
use hawser_proxy::context::Settings;
use hawser_proxy::table::{Reach, SessionMode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
const POST: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody";

/// An address at which nobody listens.
async fn nobody() -> std::net::SocketAddr {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Takes a request and hangs up without an answer, while `bad`; then answers.
async fn moody(bad: Arc<AtomicBool>) -> App {
    App::replying(Duration::ZERO, move |_| (!bad.load(Ordering::Relaxed)).then(|| OK.to_owned())).await
}

#[tokio::test]
async fn a_dead_endpoint_costs_no_request_of_any_method() {
    let lab = Lab::new();
    let app = App::answering(OK).await;
    let server = Server::new(&lab, "west", app.address, "").await;
    let client = Client::new(&lab, Settings::default()).await;
    let endpoints = vec![endpoint(0, nobody().await), endpoint(1, server.address), endpoint(2, nobody().await)];
    let backend = backend("west", Reach::Local(endpoints));
    client.context.set_tables(tables(destination_of(vec![vec![backend]], ""), &[]));
    for _ in 0..20 {
        assert_eq!(client.get().await, 200);
        assert_eq!(status(&client.exchange(POST).await), 200);
    }
    let rows = client.endpoints();
    let dead: Vec<_> = rows.iter().filter(|row| row["in"] == false).collect();
    assert!(!dead.is_empty() && dead.iter().all(|row| row["id"] != "e1"), "{rows:?}");
    assert!(dead.iter().all(|row| row["reason"].as_str().unwrap().contains("could not be reached")), "{rows:?}");
}

#[tokio::test]
async fn a_request_that_died_with_its_endpoint_is_tried_elsewhere_only_if_that_is_harmless() {
    let lab = Lab::new();
    let bad = Arc::new(AtomicBool::new(true));
    let (first, second) = (moody(bad.clone()).await, App::answering(OK).await);
    let one = Server::new(&lab, "west", first.address, "").await;
    let two = Server::new(&lab, "west", second.address, "").await;
    let client = Client::new(&lab, Settings::default()).await;
    client.context.set_tables(tables(destination_of(vec![vec![local(&[&one, &two])]], ""), &[]));
    let mut failed = 0;
    for _ in 0..12 {
        assert_eq!(client.get().await, 200);
        let posted = client.exchange(POST).await;
        failed += usize::from(status(&posted) != 200);
    }
    let times = first.connections.load(Ordering::Relaxed);
    assert!(times > 0, "the bad endpoint was never chosen");
    assert!(failed <= times, "a POST may fail once for each time that the endpoint had it");
    assert!(client.metrics().contains(r#"hawser_retry_total{destination="shop/checkout:80",outcome="success"}"#));
}

#[tokio::test]
async fn a_body_that_was_sent_is_sent_again_elsewhere_byte_for_byte() {
    let lab = Lab::new();
    let bodies = Arc::new(parking_lot::Mutex::new(Vec::<String>::new()));
    let turn = Arc::new(AtomicUsize::new(0));
    let mut servers = Vec::new();
    let mut apps = Vec::new();
    for _ in 0..2 {
        let (bodies, turn) = (bodies.clone(), turn.clone());
        let app = App::replying(Duration::ZERO, move |request| {
            bodies.lock().push(request.split_once("\r\n\r\n").unwrap().1.to_owned());
            // Whoever is first hangs up.
            (turn.fetch_add(1, Ordering::Relaxed) > 0).then(|| OK.to_owned())
        })
        .await;
        servers.push(Server::new(&lab, "west", app.address, "").await);
        apps.push(app);
    }
    let client = Client::new(&lab, Settings::default()).await;
    client.context.set_tables(tables(destination_of(vec![vec![local(&[&servers[0], &servers[1]])]], ""), &[]));
    let body: String = (0..20_000).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    let request =
        format!("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
    assert_eq!(status(&client.exchange(request).await), 200);
    let bodies = bodies.lock();
    assert_eq!(bodies.len(), 2);
    assert!(bodies.iter().all(|seen| *seen == body));
}

#[tokio::test]
async fn a_session_that_is_killed_takes_no_idempotent_request_with_it() {
    for transport in [Transport::Quic, Transport::Tcp] {
        let lab = Lab::new();
        let slow = || App::replying(Duration::from_millis(20), |_| Some(OK.to_owned()));
        let (first, second) = (slow().await, slow().await);
        let one = Server::new(&lab, "east", first.address, "").await;
        let two = Server::new(&lab, "east", second.address, "").await;
        let gateway = Gateway::new(&lab, "g0", &[&one, &two], transport).await;
        let client = Client::new(&lab, Settings::default()).await;
        client.context.set_tables(tables(destination_of(vec![vec![remote(2)]], ""), &[&gateway]));
        assert_eq!(client.get().await, 200);
        until("sessions to both", || client.endpoints().len() == 2).await;
        let calls = async {
            for _ in 0..10 {
                let many = futures_util::future::join_all((0..4).map(|_| client.get())).await;
                assert!(many.iter().all(|status| *status == 200), "{transport:?} {many:?}");
            }
        };
        let kill = async {
            tokio::time::sleep(Duration::from_millis(60)).await;
            one.kill();
        };
        tokio::join!(calls, kill);
    }
}

#[tokio::test]
async fn a_gateway_that_hangs_delays_the_first_request_and_no_other() {
    let lab = Lab::new();
    let app = App::answering(OK).await;
    let server = Server::new(&lab, "east", app.address, "").await;
    let hung = Gateway::new(&lab, "g0", &[&server], Transport::Tcp).await;
    let well = Gateway::new(&lab, "g1", &[&server], Transport::Tcp).await;
    hung.hangs.store(true, Ordering::Relaxed);
    let settings = Settings { hedge: Duration::from_millis(100), ..Settings::default() };
    let client = Client::new(&lab, settings).await;
    client.context.set_tables(tables(destination_of(vec![vec![remote(1)]], ""), &[&hung, &well]));
    let begun = Instant::now();
    assert_eq!(client.get().await, 200);
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    let begun = Instant::now();
    assert_eq!(client.get().await, 200);
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_gateway_that_dies_moves_new_work_to_the_other_within_a_second() {
    for transport in [Transport::Quic, Transport::Tcp] {
        let lab = Lab::new();
        let app = App::answering(OK).await;
        let server = Server::new(&lab, "east", app.address, "").await;
        let first = Gateway::new(&lab, "g0", &[&server], transport).await;
        let second = Gateway::new(&lab, "g1", &[&server], transport).await;
        let client = Client::new(&lab, Settings::default()).await;
        client.context.set_tables(tables(destination_of(vec![vec![remote(1)]], ""), &[&first, &second]));
        assert_eq!(client.get().await, 200);
        let used = client.endpoints()[0]["gateway"].as_str().unwrap().to_owned();
        if used == "g0" {
            first.kill()
        } else {
            second.kill()
        }
        let begun = Instant::now();
        assert_eq!(client.get().await, 200, "{transport:?}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{transport:?} {:?}", begun.elapsed());
        assert_ne!(client.endpoints()[0]["gateway"].as_str().unwrap(), used);
    }
}

#[tokio::test]
async fn when_no_near_endpoint_is_left_the_far_cluster_serves_and_the_near_one_comes_back() {
    let lab = Lab::new();
    let (near, far) = (App::answering(OK.replace("hi", "ne")).await, App::answering(OK.replace("hi", "fa")).await);
    let far_server = Server::new(&lab, "east", far.address, "").await;
    let gateway = Gateway::new(&lab, "g0", &[&far_server], Transport::Tcp).await;
    let client = Client::new(&lab, Settings::default()).await;
    let spot = nobody().await;
    let tiers = |inbound| vec![vec![backend("west", Reach::Local(vec![endpoint(0, inbound)]))], vec![remote(1)]];
    client.context.set_tables(tables(destination_of(tiers(spot), ""), &[&gateway]));
    for _ in 0..3 {
        let got = client.exchange("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        assert!(got.ends_with("fa"), "{got}");
        assert_eq!(status(&client.exchange(POST).await), 200);
    }
    let near_server = Server::new(&lab, "west", near.address, "").await;
    client.context.set_tables(tables(destination_of(tiers(near_server.address), ""), &[&gateway]));
    let got = client.exchange("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(got.ends_with("ne"), "{got}");
}

#[tokio::test]
async fn a_backend_that_comes_back_is_found_without_a_callers_help() {
    let lab = Lab::new();
    let app = App::answering(OK).await;
    let server = Server::new(&lab, "east", app.address, "").await;
    let gateway = Gateway::new(&lab, "g0", &[&server], Transport::Tcp).await;
    *gateway.refuses.lock() = Some(Code::NoEndpoint);
    let client = Client::new(&lab, Settings::default()).await;
    client.context.set_tables(tables(destination_of(vec![vec![remote(1)]], ""), &[&gateway]));
    let got = client.exchange("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert_eq!((status(&got), header(&got, "x-hawser-refusal")), (503, Some("no_endpoint")), "{got}");
    *gateway.refuses.lock() = None;
    until("a session", || client.endpoints().iter().any(|row| row["id"] == "far0")).await;
    assert_eq!(client.get().await, 200);
}

#[tokio::test]
async fn a_burst_of_5xx_ejects_an_endpoint_and_one_request_brings_it_back() {
    let lab = Lab::new();
    let bad = Arc::new(AtomicBool::new(true));
    let flag = bad.clone();
    let failing = App::replying(Duration::ZERO, move |_| {
        let status = if flag.load(Ordering::Relaxed) { "500 Oops" } else { "200 OK" };
        Some(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n"))
    })
    .await;
    let server = Server::new(&lab, "west", failing.address, "").await;
    let client = Client::new(&lab, Settings::default()).await;
    client.context.set_tables(tables(destination_of(vec![vec![local(&[&server])]], ""), &[]));
    for _ in 0..5 {
        assert_eq!(client.get().await, 500, "an application's own answer is not tried elsewhere");
    }
    let rows = client.endpoints();
    assert_eq!(rows[0]["reason"], "ejected after failures", "{rows:?}");
    // It is the only one, so it is asked all the same.
    bad.store(false, Ordering::Relaxed);
    assert_eq!(client.get().await, 200);
    assert_eq!(client.endpoints()[0]["in"], true);
}

#[tokio::test]
async fn requests_spread_over_the_far_endpoints() {
    let lab = Lab::new();
    let mut apps = Vec::new();
    let mut servers = Vec::new();
    let counts: Vec<Arc<AtomicUsize>> = (0..4).map(|_| Arc::default()).collect();
    for count in &counts {
        let count = count.clone();
        let app = App::replying(Duration::from_millis(2), move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            Some(OK.to_owned())
        })
        .await;
        servers.push(Server::new(&lab, "east", app.address, "").await);
        apps.push(app);
    }
    let gateway = Gateway::new(&lab, "g0", &servers.iter().collect::<Vec<_>>(), Transport::Tcp).await;
    let client = Client::new(&lab, Settings::default()).await;
    client.context.set_tables(tables(destination_of(vec![vec![remote(4)]], ""), &[&gateway]));
    assert_eq!(client.get().await, 200);
    until("sessions to all", || client.endpoints().len() == 4).await;
    for _ in 0..50 {
        futures_util::future::join_all((0..8).map(|_| client.get())).await;
    }
    let counts: Vec<usize> = counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    assert!(counts.iter().all(|n| *n > 30), "{counts:?}");
}

#[tokio::test]
async fn what_is_withdrawn_is_cut_and_nothing_else_is_touched() {
    for mode in [SessionMode::Shared, SessionMode::Dedicated] {
        let lab = Lab::new();
        let app = App::echo().await;
        let server = Server::new(&lab, "east", app.address, "").await;
        let gateway = Gateway::new(&lab, "g0", &[&server], Transport::Tcp).await;
        let client = Client::new(&lab, Settings::default()).await;
        let serving = || {
            let mut destination = destination_of(vec![vec![remote(1)]], "hawser.dev/opaque");
            destination.session = mode;
            tables(destination, &[&gateway])
        };
        client.context.set_tables(serving());
        let mut socket = client.connect().await;
        socket.write_all(b"a").await.unwrap();
        within("the echo", socket.read_exact(&mut [0; 1])).await.unwrap();
        // A table that says the same again cuts nothing, nor one without ready endpoints, nor one whose peer is silent.
        let gone = |code| {
            let mut destination = destination_of(Vec::new(), "hawser.dev/opaque");
            destination.unavailable = Some(Refusal::new(code, "by the test", "none"));
            tables(destination, &[&gateway])
        };
        let mut silent = gone(Code::PeerUnreachable);
        for peer in silent.peers.values_mut() {
            Arc::get_mut(peer).unwrap().alive = false;
        }
        for harmless in [serving(), gone(Code::NoEndpoint), silent] {
            client.context.set_tables(harmless);
            socket.write_all(b"b").await.unwrap();
            within("the echo", socket.read_exact(&mut [0; 1])).await.unwrap();
        }
        client.context.set_tables(gone(Code::NotExported));
        let error = within("the cut", socket.read_exact(&mut [0; 1])).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{mode:?}");
    }
}

#[tokio::test]
async fn an_opaque_connection_that_nobody_takes_is_reset() {
    for mode in [SessionMode::Shared, SessionMode::Dedicated] {
        let lab = Lab::new();
        let client = Client::new(&lab, Settings::default()).await;
        let backend = backend("west", Reach::Local(vec![endpoint(0, nobody().await)]));
        let mut destination = destination_of(vec![vec![backend]], "hawser.dev/opaque");
        destination.session = mode;
        client.context.set_tables(tables(destination, &[]));
        let mut socket = client.connect().await;
        let error = within("the reset", socket.read_exact(&mut [0; 1])).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{mode:?}");
    }
}

#[tokio::test]
async fn an_opaque_connection_finds_the_endpoint_that_lives() {
    for mode in [SessionMode::Shared, SessionMode::Dedicated] {
        let lab = Lab::new();
        let app = App::echo().await;
        let server = Server::new(&lab, "west", app.address, "").await;
        let client = Client::new(&lab, Settings::default()).await;
        let endpoints = vec![endpoint(0, nobody().await), endpoint(1, server.address)];
        let mut destination = destination_of(vec![vec![backend("west", Reach::Local(endpoints))]], "hawser.dev/opaque");
        destination.session = mode;
        client.context.set_tables(tables(destination, &[]));
        for _ in 0..6 {
            assert_eq!(client.exchange("ping").await, "ping", "{mode:?}");
        }
    }
}

#[tokio::test]
async fn an_impostor_is_refused_and_the_caller_told() {
    let lab = Lab::new();
    let app = App::answering(OK).await;
    let server = Server::new(&lab, "west", app.address, "").await;
    let client = Client::new(&lab, Settings::default()).await;
    let mut backend = local(&[&server]);
    backend.identities = Arc::from([hawser_tunnel::testing::id("west", "/ns/shop/sa/other")]);
    client.context.set_tables(tables(destination_of(vec![vec![backend]], ""), &[]));
    let got = client.exchange("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert_eq!((status(&got), header(&got, "x-hawser-refusal")), (502, Some("wrong_identity")), "{got}");
    assert_eq!(app.connections.load(Ordering::Relaxed), 0);
}
