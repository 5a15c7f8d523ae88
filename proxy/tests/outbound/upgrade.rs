//! Connections that become something else, and HTTP/2 end to end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use hawser_api::objects::link::Transport;
use hawser_proxy::context::Settings;
use http::{HeaderMap, Method, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";

/// Switches protocols when asked to, then echoes.
async fn echo_after(head: &'static str) -> App {
    App::new(move |mut socket| async move {
        let mut buffer = Vec::new();
        let Some(request) = read_request(&mut socket, &mut buffer).await else { return };
        let asked = request.to_ascii_lowercase();
        assert!(asked.contains("x-hawser-client-id: spiffe://west.hawser.test/"), "{request}");
        assert!(!asked.contains("evil"), "{request}");
        socket.write_all(head.as_bytes()).await.unwrap();
        // What came behind the request belongs to the new protocol.
        socket.write_all(&buffer).await.unwrap();
        let (mut read, mut write) = socket.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_in_both_directions_near_and_far() {
    for far in [false, true] {
        let lab = Lab::new();
        let app = echo_after(SWITCH).await;
        let server = Server::new(&lab, if far { "east" } else { "west" }, app.address, "").await;
        let gateway = Gateway::new(&lab, "g0", &[&server], Transport::Quic).await;
        let client = Client::new(&lab, Settings::default()).await;
        let backend = if far { remote(1) } else { local(&[&server]) };
        client.context.set_tables(tables(destination_of(vec![vec![backend]], ""), &[&gateway]));
        let mut socket = client.connect().await;
        let request =
            "GET /chat HTTP/1.1\r\nhost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\nx-hawser-client-id: evil\r\n\r\n";
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut buffer = Vec::new();
        let end = within("101", read_until(&mut socket, &mut buffer, b"\r\n\r\n")).await.unwrap();
        let head = String::from_utf8(buffer.drain(..end).collect()).unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert_eq!(header(&head, "upgrade"), Some("echo"), "{head}");
        for _ in 0..3 {
            socket.write_all(b"hello").await.unwrap();
            within("the echo", read_until(&mut socket, &mut buffer, b"hello")).await.unwrap();
            buffer.clear();
        }
        assert_eq!(client.context.streams.count(), 1);
        socket.shutdown().await.unwrap();
        assert_eq!(within("the end", socket.read_buf(&mut buffer)).await.unwrap(), 0);
        until("no stream", || client.context.streams.count() == 0).await;
    }
}

#[tokio::test]
async fn an_upgrade_that_the_server_does_not_want_is_answered_like_any_request() {
    let app = App::answering("HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno").await;
    let (_lab, client, _server) = Lab::beside(&app, "").await;
    let got = client.exchange("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 400 ") && got.ends_with("\r\n\r\nno"), "{got}");
}

#[tokio::test]
async fn connect_is_carried_to_a_server_that_is_a_proxy_itself() {
    let app = App::new(|mut socket| async move {
        let mut buffer = Vec::new();
        let request = read_request(&mut socket, &mut buffer).await.unwrap();
        assert!(request.starts_with("CONNECT example.org:443 HTTP/1.1\r\n"), "{request}");
        socket.write_all(b"HTTP/1.1 200 OK\r\n\r\nwelcome").await.unwrap();
        read_until(&mut socket, &mut buffer, b"thanks").await.unwrap();
    })
    .await;
    let (_lab, client, _server) = Lab::beside(&app, "").await;
    let mut socket = client.connect().await;
    socket.write_all(b"CONNECT example.org:443 HTTP/1.1\r\nhost: example.org:443\r\n\r\n").await.unwrap();
    let mut buffer = Vec::new();
    within("bytes of the tunnel", read_until(&mut socket, &mut buffer, b"welcome")).await.unwrap();
    assert!(buffer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&buffer));
    socket.write_all(b"thanks").await.unwrap();
    within("the end", socket.read_to_end(&mut buffer)).await.unwrap();
}

/// An HTTP/2 application; each request is answered by the test's function.
async fn h2_app(each: fn(Request<h2::RecvStream>, h2::server::SendResponse<Bytes>)) -> App {
    App::new(move |socket| async move {
        let mut connection = h2::server::handshake(socket).await.unwrap();
        while let Some(Ok((request, respond))) = connection.accept().await {
            each(request, respond);
        }
    })
    .await
}

async fn h2_client(client: &Client) -> h2::client::SendRequest<Bytes> {
    let socket = TcpStream::connect(client.door).await.unwrap();
    let (requests, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    requests
}

fn grpc(path: &str) -> Request<()> {
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://checkout{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

#[tokio::test]
async fn a_grpc_call_streams_both_ways_and_ends_with_its_trailers() {
    let app = h2_app(|request, mut respond| {
        assert_eq!(request.headers()["te"], "trailers");
        assert_eq!(request.uri().authority().unwrap(), "checkout");
        assert_eq!(request.headers()["x-hawser-client-id"], "spiffe://west.hawser.test/ns/shop/sa/web");
        let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut send = respond.send_response(response, false).unwrap();
        tokio::spawn(async move {
            let mut body = request.into_body();
            while let Some(Ok(data)) = body.data().await {
                body.flow_control().release_capacity(data.len()).unwrap();
                send.send_data(data, false).unwrap();
            }
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
            send.send_trailers(trailers).unwrap();
        });
    })
    .await;
    let (_lab, client, _server) = Lab::beside(&app, "kubernetes.io/h2c").await;
    let mut requests = h2_client(&client).await;
    let (response, mut send) = requests.send_request(grpc("/echo"), false).unwrap();
    let mut body = within("the head", response).await.unwrap().into_body();
    for n in 0..5_u8 {
        send.send_data(Bytes::from(vec![n; 100]), false).unwrap();
        let data = within("the echo", body.data()).await.unwrap().unwrap();
        assert_eq!(data, vec![n; 100]);
    }
    send.send_data(Bytes::new(), true).unwrap();
    assert!(within("the end", body.data()).await.is_none());
    let trailers = within("trailers", body.trailers()).await.unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "0");
}

#[tokio::test]
async fn a_reset_of_a_stream_arrives_with_its_reason() {
    let app = h2_app(|_request, mut respond| respond.send_reset(Reason::INADEQUATE_SECURITY)).await;
    let (_lab, client, _server) = Lab::beside(&app, "kubernetes.io/h2c").await;
    let mut requests = h2_client(&client).await;
    let (response, _send) = requests.send_request(grpc("/reset"), false).unwrap();
    let error = within("the reset", response).await.unwrap_err();
    assert!(error.is_reset() && error.reason() == Some(Reason::INADEQUATE_SECURITY), "{error:?}");
}

#[tokio::test]
async fn a_cancelled_stream_is_cancelled_at_the_server() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let app = App::new(move |socket| {
        let tell = tell.clone();
        async move {
            let mut connection = h2::server::handshake(socket).await.unwrap();
            let (_request, mut respond) = connection.accept().await.unwrap().unwrap();
            let reset = async {
                tell.send(None).unwrap();
                let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                tell.send(reason.ok()).unwrap();
            };
            tokio::join!(reset, async { while connection.accept().await.is_some() {} });
        }
    })
    .await;
    let (_lab, client, _server) = Lab::beside(&app, "kubernetes.io/h2c").await;
    let mut requests = h2_client(&client).await;
    let (response, mut send) = requests.send_request(grpc("/slow"), false).unwrap();
    within("the request", told.recv()).await.unwrap();
    send.send_reset(Reason::CANCEL);
    drop(response);
    assert_eq!(within("the reset", told.recv()).await.unwrap(), Some(Reason::CANCEL));
}

#[tokio::test]
async fn a_grpc_caller_is_refused_in_its_own_words() {
    let app = App::echo().await;
    let (_lab, client, server) = Lab::beside(&app, "").await;
    server.kill();
    let mut requests = h2_client(&client).await;
    let (response, _send) = requests.send_request(grpc("/any"), true).unwrap();
    let response = within("the refusal", response).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "14");
    assert!(response.headers()["grpc-message"].to_str().unwrap().contains("hint: "));
    assert_eq!(app.connections.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn many_streams_of_one_connection_run_side_by_side() {
    let app = h2_app(|request, mut respond| {
        tokio::spawn(async move {
            // The first ones are the slowest.
            let n: u64 = request.uri().path()[1..].parse().unwrap();
            tokio::time::sleep(Duration::from_millis(50 - n)).await;
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            send.send_data(Bytes::from(n.to_string()), true).unwrap();
        });
    })
    .await;
    let (_lab, client, _server) = Lab::beside(&app, "kubernetes.io/h2c").await;
    let mut requests = h2_client(&client).await;
    let mut waiting = Vec::new();
    for n in 0..50 {
        let request = Request::get(format!("http://checkout/{n}")).body(()).unwrap();
        waiting.push((n, requests.send_request(request, true).unwrap().0));
    }
    for (n, response) in waiting {
        let mut body = within("an answer", response).await.unwrap().into_body();
        let data = within("its body", body.data()).await.unwrap().unwrap();
        assert_eq!(data, n.to_string());
    }
}
