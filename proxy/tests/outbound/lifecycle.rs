//! Sessions over time: shared, renewed, retired, drained, found dead.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hawser_api::objects::link::Transport;
use hawser_proxy::context::Settings;
use hawser_proxy::table::Reach;
use hawser_tunnel::tls::Identity;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
const POST: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody";

/// A client of one far endpoint.
async fn far(app: &App, settings: Settings) -> (Lab, Client, Server, Gateway) {
    let lab = Lab::new();
    let server = Server::new(&lab, "east", app.address, "").await;
    let gateway = Gateway::new(&lab, "g0", &[&server], Transport::Tcp).await;
    let client = Client::new(&lab, settings).await;
    client.context.set_tables(tables(destination_of(vec![vec![remote(1)]], ""), &[&gateway]));
    (lab, client, server, gateway)
}

#[tokio::test]
async fn many_first_requests_share_one_session() {
    let app = App::answering(OK).await;
    let (_lab, client, _server, gateway) = far(&app, Settings::default()).await;
    let all = futures_util::future::join_all((0..50).map(|_| client.get())).await;
    assert!(all.iter().all(|status| *status == 200), "{all:?}");
    assert_eq!(gateway.opens.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_new_certificate_makes_new_sessions_and_lets_old_streams_end() {
    let app = App::echo().await;
    let lab = Lab::new();
    let server = Server::new(&lab, "east", app.address, "").await;
    let gateway = Gateway::new(&lab, "g0", &[&server], Transport::Tcp).await;
    let client = Client::new(&lab, Settings::default()).await;
    client.context.set_tables(tables(destination_of(vec![vec![remote(1)]], "hawser.dev/opaque"), &[&gateway]));
    let mut old = client.connect().await;
    old.write_all(b"a").await.unwrap();
    within("the echo", old.read_exact(&mut [0; 1])).await.unwrap();
    // Another hour than the first one's, to the second.
    let minted = lab.pki.mint("west", "/ns/shop/sa/web", Duration::from_secs(7200));
    client.context.credentials.set_identity(Identity::new(minted.chain, minted.key).unwrap());
    until("the old session to retire", || client.endpoints().first().is_none_or(|row| row["sessionAgeMs"].is_null()))
        .await;
    assert_eq!(client.exchange("new").await, "new");
    assert_eq!(gateway.opens.load(Ordering::Relaxed), 2);
    old.write_all(b"b").await.unwrap();
    within("the echo", old.read_exact(&mut [0; 1])).await.unwrap();
}

#[tokio::test]
async fn no_stream_outlives_the_certificate_that_it_rests_on() {
    let app = App::echo().await;
    let lab = Lab::new();
    let server = Server::new(&lab, "east", app.address, "").await;
    let gateway = Gateway::new(&lab, "g0", &[&server], Transport::Tcp).await;
    let client = Client::new(&lab, Settings::default()).await;
    let minted = lab.pki.mint("west", "/ns/shop/sa/web", Duration::from_secs(3));
    client.context.credentials.set_identity(Identity::new(minted.chain, minted.key).unwrap());
    client.context.set_tables(tables(destination_of(vec![vec![remote(1)]], "hawser.dev/opaque"), &[&gateway]));
    let mut socket = client.connect().await;
    socket.write_all(b"a").await.unwrap();
    within("the echo", socket.read_exact(&mut [0; 1])).await.unwrap();
    let error = within("the cut", socket.read_exact(&mut [0; 1])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_idle_session_is_closed_and_the_next_request_opens_another() {
    let app = App::answering(OK).await;
    let settings = Settings { idle: Duration::from_millis(100), ..Settings::default() };
    let (_lab, client, _server, gateway) = far(&app, settings).await;
    assert_eq!(client.get().await, 200);
    until("no session", || client.endpoints().first().is_none_or(|row| row["sessionAgeMs"].is_null())).await;
    assert_eq!(client.get().await, 200);
    assert_eq!(gateway.opens.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_server_that_drains_loses_no_request_of_any_method() {
    let lab = Lab::new();
    let apps = [App::answering(OK).await, App::answering(OK).await];
    let one = Server::new(&lab, "west", apps[0].address, "").await;
    let two = Server::new(&lab, "west", apps[1].address, "").await;
    let client = Client::new(&lab, Settings::default()).await;
    client.context.set_tables(tables(destination_of(vec![vec![local(&[&one, &two])]], ""), &[]));
    let calls = async {
        for _ in 0..60 {
            let many = futures_util::future::join_all((0..3).map(|_| client.exchange(POST))).await;
            assert!(many.iter().all(|answer| status(answer) == 200), "{many:?}");
        }
    };
    let drain = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        one.context.process.drain.cancel();
    };
    tokio::join!(calls, drain);
}

/// Passes bytes on until it freezes: connections stay, and nothing moves.
async fn freezer(to: std::net::SocketAddr) -> (std::net::SocketAddr, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let frozen = Arc::new(AtomicBool::new(false));
    let flag = frozen.clone();
    tokio::spawn(async move {
        while let Ok((from, _)) = listener.accept().await {
            let to = TcpStream::connect(to).await.unwrap();
            let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
            tokio::spawn(pass(from_read, to_write, flag.clone()));
            tokio::spawn(pass(to_read, from_write, flag.clone()));
        }
    });
    (address, frozen)
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    frozen: Arc<AtomicBool>,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count) = from.read(&mut buffer).await {
        while frozen.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn an_endpoint_that_hangs_costs_time_but_no_idempotent_request() {
    let lab = Lab::new();
    let app = App::answering(OK).await;
    let one = Server::new(&lab, "west", app.address, "").await;
    let two = Server::new(&lab, "west", app.address, "").await;
    let (through, frozen) = freezer(one.address).await;
    let client = Client::new(&lab, Settings::default()).await;
    let backend = backend("west", Reach::Local(vec![endpoint(0, through), endpoint(1, two.address)]));
    client.context.set_tables(tables(destination_of(vec![vec![backend]], ""), &[]));
    let both = || client.endpoints().iter().filter(|row| !row["sessionAgeMs"].is_null()).count() == 2;
    while !both() {
        assert_eq!(client.get().await, 200);
    }
    frozen.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    let many = futures_util::future::join_all((0..8).map(|_| client.get())).await;
    assert!(many.iter().all(|status| *status == 200), "{many:?}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    // From here on everybody knows.
    let begun = Instant::now();
    for _ in 0..10 {
        assert_eq!(client.get().await, 200);
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn work_moves_away_from_an_endpoint_that_hangs_before_its_session_is_given_up() {
    let lab = Lab::new();
    let app = App::answering(OK).await;
    let one = Server::new(&lab, "west", app.address, "").await;
    let two = Server::new(&lab, "west", app.address, "").await;
    let (through, frozen) = freezer(one.address).await;
    // So long that nothing is even asked while the test runs.
    let settings = Settings { keepalive: Duration::from_secs(60), ..Settings::default() };
    let client = Client::new(&lab, settings).await;
    let backend = backend("west", Reach::Local(vec![endpoint(0, through), endpoint(1, two.address)]));
    client.context.set_tables(tables(destination_of(vec![vec![backend]], ""), &[]));
    let both = || client.endpoints().iter().filter(|row| !row["sessionAgeMs"].is_null()).count() == 2;
    while !both() {
        assert_eq!(client.get().await, 200);
    }
    frozen.store(true, Ordering::Relaxed);
    let mut stuck = 0;
    for _ in 0..50 {
        let answered = tokio::time::timeout(Duration::from_millis(200), client.get()).await;
        stuck += usize::from(answered.is_err());
    }
    assert!(stuck <= 3, "{stuck} of 50 requests went to an endpoint that hangs");
}

#[tokio::test]
async fn a_cluster_that_falls_silent_costs_what_is_under_way_a_second_and_the_rest_nothing() {
    let lab = Lab::new();
    let (near, far) = (App::answering(OK.replace("hi", "ne")).await, App::answering(OK.replace("hi", "fa")).await);
    let near = (Server::new(&lab, "west", near.address, "").await, near);
    let far_server = Server::new(&lab, "east", far.address, "").await;
    let mut gateway = Gateway::new(&lab, "g0", &[&far_server], Transport::Tcp).await;
    let (through, frozen) = freezer(gateway.address).await;
    gateway.address = through;
    let client = Client::new(&lab, Settings::default()).await;
    let tiers = vec![vec![remote(1)], vec![local(&[&near.0])]];
    client.context.set_tables(tables(destination_of(tiers, ""), &[&gateway]));
    let get = || client.exchange("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    assert!(get().await.ends_with("fa"));
    frozen.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    let many = futures_util::future::join_all((0..4).map(|_| get())).await;
    assert!(many.iter().all(|answer| answer.ends_with("ne")), "{many:?}");
    assert!(begun.elapsed() < Duration::from_millis(1_500), "{:?}", begun.elapsed());
    let begun = Instant::now();
    assert!(get().await.ends_with("ne"));
    assert!(begun.elapsed() < Duration::from_millis(300), "{:?}", begun.elapsed());
    frozen.store(false, Ordering::Relaxed);
    within("the far cluster to serve again", async { while !get().await.ends_with("fa") {} }).await;
}

#[tokio::test]
async fn a_request_under_way_is_asked_through_the_other_gateway_when_the_first_owes_a_sign_of_life() {
    let lab = Lab::new();
    let app = App::answering(OK).await;
    let server = Server::new(&lab, "east", app.address, "").await;
    let mut gateways = [
        Gateway::new(&lab, "g0", &[&server], Transport::Tcp).await,
        Gateway::new(&lab, "g1", &[&server], Transport::Tcp).await,
    ];
    let mut frozen = Vec::new();
    for gateway in &mut gateways {
        let (through, flag) = freezer(gateway.address).await;
        gateway.address = through;
        frozen.push(flag);
    }
    // Asked after two seconds, given up two to four seconds later.
    let settings = Settings { keepalive: Duration::from_secs(4), ..Settings::default() };
    let client = Client::new(&lab, settings).await;
    let [first, second] = &gateways;
    client.context.set_tables(tables(destination_of(vec![vec![remote(1)]], ""), &[first, second]));
    assert_eq!(client.get().await, 200);
    let used = usize::from(client.endpoints()[0]["gateway"] == "g1");
    frozen[used].store(true, Ordering::Relaxed);
    let begun = Instant::now();
    assert_eq!(client.get().await, 200);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_gateway_that_probes_find_down_gets_no_new_streams() {
    let app = App::answering(OK).await;
    let lab = Lab::new();
    let server = Server::new(&lab, "east", app.address, "").await;
    let gateways = [
        Gateway::new(&lab, "g0", &[&server], Transport::Tcp).await,
        Gateway::new(&lab, "g1", &[&server], Transport::Tcp).await,
    ];
    let client = Client::new(&lab, Settings::default()).await;
    let serving = || tables(destination_of(vec![vec![remote(1)]], ""), &[&gateways[0], &gateways[1]]);
    client.context.set_tables(serving());
    assert_eq!(client.get().await, 200);
    let used = client.endpoints()[0]["gateway"].as_str().unwrap().to_owned();
    let mut tables = serving();
    for peer in tables.peers.values_mut() {
        for gateway in &mut Arc::get_mut(peer).unwrap().gateways {
            gateway.down = gateway.path.gateway.as_str() == used;
        }
    }
    client.context.set_tables(tables);
    assert_eq!(client.get().await, 200);
    assert_ne!(client.endpoints()[0]["gateway"].as_str().unwrap(), used);
}

#[tokio::test]
async fn more_streams_than_one_session_takes_get_another() {
    let app = App::new(|socket| async move {
        let mut server = h2::server::Builder::new();
        server.max_concurrent_streams(2_000);
        let mut connection = server.handshake::<_, bytes::Bytes>(socket).await.unwrap();
        let mut held = Vec::new();
        // Nobody is answered before all have come.
        while let Some(Ok((_, respond))) = connection.accept().await {
            held.push(respond);
        }
    })
    .await;
    let (_lab, client, _server) = Lab::beside(&app, "kubernetes.io/h2c").await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let socket = TcpStream::connect(client.door).await.unwrap();
        let mut builder = h2::client::Builder::new();
        builder.initial_max_send_streams(1_000);
        let (mut requests, connection) = builder.handshake::<_, bytes::Bytes>(socket).await.unwrap();
        tokio::spawn(connection);
        for _ in 0..600 {
            let request = http::Request::get("http://checkout/").body(()).unwrap();
            waiting.push(requests.send_request(request, true).unwrap());
        }
    }
    until("all streams", || client.context.streams.count() == 1_200).await;
    let opened =
        |text: &str| text.contains(r#"hawser_session_open_total{cluster="west",session="shared",outcome="ok"} 2"#);
    assert!(opened(&client.metrics()), "{}", client.metrics());
}
