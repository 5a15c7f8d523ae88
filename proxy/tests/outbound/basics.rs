//! HTTP and bytes get through, near and far, over both transports.

use hawser_api::objects::link::Transport;
use hawser_proxy::context::Settings;
use hawser_proxy::table::SessionMode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";

#[tokio::test]
async fn a_request_reaches_an_endpoint_of_the_same_cluster() {
    let app = App::answering(OK).await;
    let (_lab, client, _server) = Lab::beside(&app, "").await;
    let answer = client.exchange("GET /a?b HTTP/1.1\r\nhost: checkout\r\n\r\n").await;
    assert_eq!(answer, OK);
}

#[tokio::test]
async fn a_request_reaches_an_endpoint_of_another_cluster_over_both_transports() {
    for transport in [Transport::Quic, Transport::Tcp] {
        let lab = Lab::new();
        let app = App::answering(OK).await;
        let server = Server::new(&lab, "east", app.address, "").await;
        let gateway = Gateway::new(&lab, "g0", &[&server], transport).await;
        let client = Client::new(&lab, Settings::default()).await;
        client.context.set_tables(tables(destination_of(vec![vec![remote(1)]], ""), &[&gateway]));
        assert_eq!(client.get().await, 200, "{transport:?}");
        assert_eq!(client.get().await, 200, "{transport:?}");
        let endpoints = client.endpoints();
        assert_eq!(endpoints[0]["transport"], transport.as_str(), "{endpoints:?}");
        assert_eq!(gateway.opens.load(std::sync::atomic::Ordering::Relaxed), 1, "the session is shared");
    }
}

#[tokio::test]
async fn bytes_get_through_in_shared_and_in_dedicated_sessions_with_half_close() {
    for mode in [SessionMode::Shared, SessionMode::Dedicated] {
        for far in [false, true] {
            let lab = Lab::new();
            let app = App::echo().await;
            let server = Server::new(&lab, if far { "east" } else { "west" }, app.address, "").await;
            let gateway = Gateway::new(&lab, "g0", &[&server], Transport::Tcp).await;
            let client = Client::new(&lab, Settings::default()).await;
            let backend = if far { remote(1) } else { local(&[&server]) };
            let mut destination = destination_of(vec![vec![backend]], "hawser.dev/opaque");
            destination.session = mode;
            client.context.set_tables(tables(destination, &[&gateway]));
            let sent = vec![7; 1 << 20];
            let got = client.exchange(&sent).await;
            assert_eq!(got.len(), sent.len(), "{mode:?} far: {far}");
        }
    }
}

/// As an endpoint of a headless service is called by its own name, beside the service as a whole.
#[tokio::test]
async fn a_backend_of_one_endpoint_reaches_that_one_and_no_other() {
    let lab = Lab::new();
    let apps = [App::answering(OK).await, App::answering(OK).await, App::answering(OK).await];
    let mut servers = Vec::new();
    for app in &apps {
        servers.push(Server::new(&lab, "east", app.address, "").await);
    }
    let all: Vec<&Server> = servers.iter().collect();
    let gateway = Gateway::new(&lab, "g0", &all, Transport::Tcp).await;
    let client = Client::new(&lab, Settings::default()).await;
    for (wanted, mode) in [(2, SessionMode::Shared), (0, SessionMode::Shared), (1, SessionMode::Dedicated)] {
        let backend = hawser_proxy::table::Backend { only: Some(format!("far{wanted}").into()), ..remote(3) };
        let opaque = if mode == SessionMode::Dedicated { "hawser.dev/opaque" } else { "" };
        let mut destination = destination_of(vec![vec![backend]], opaque);
        destination.session = mode;
        client.context.set_tables(tables(destination, &[&gateway]));
        let before = apps.each_ref().map(connections);
        for _ in 0..6 {
            client.exchange("GET / HTTP/1.1\r\nhost: checkout\r\nconnection: close\r\n\r\n").await;
        }
        for (at, app) in apps.iter().enumerate() {
            assert_eq!(connections(app) > before[at], at == wanted, "endpoint {at}, wanted {wanted}, {mode:?}");
        }
    }
}

fn connections(app: &App) -> usize {
    app.connections.load(std::sync::atomic::Ordering::Relaxed)
}

#[tokio::test]
async fn a_connection_that_is_silent_at_first_is_carried_as_bytes() {
    let app = App::echo().await;
    let lab = Lab::new();
    let server = Server::new(&lab, "west", app.address, "").await;
    let settings = Settings { detect: std::time::Duration::from_millis(50), ..Settings::default() };
    let client = Client::new(&lab, settings).await;
    client.context.set_tables(tables(destination_of(vec![vec![local(&[&server])]], ""), &[]));
    let mut socket = client.connect().await;
    until("the far connection", || app.connections.load(std::sync::atomic::Ordering::Relaxed) == 1).await;
    socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut back = [0; 18];
    within("the echo", socket.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"GET / HTTP/1.1\r\n\r\n");
}
