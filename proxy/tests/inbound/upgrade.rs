//! HTTP/1.1 inside a CONNECT stream: upgrades, WebSocket, CONNECT.

use hawser_tunnel::sealed::StreamIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::setup::*;

/// The caller's end of an HTTP/1.1 connection inside a stream, and the application's.
async fn open(proxy: &Proxy, app: &App) -> (hawser_tunnel::sealed::SharedClient, StreamIo, Connection) {
    let client = proxy.caller().await;
    let asked = http::Request::builder()
        .method("CONNECT")
        .uri("checkout.shop:80")
        .header("hawser-target", CHECKOUT)
        .header("hawser-carries", "http/1.1");
    let (response, body) = send(&client, asked, false).await;
    let connection = app.accept().await;
    let response = in_time(response).await.unwrap();
    assert_eq!(response.status(), 200);
    (client, StreamIo::new(body, response.into_body()), connection)
}

async fn until(io: &mut StreamIo, marker: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(marker.as_bytes()) {
        let byte = in_time(io.read_u8()).await;
        read.push(byte.unwrap_or_else(|e| panic!("{e} after {:?}", String::from_utf8_lossy(&read))));
    }
    String::from_utf8(read).unwrap()
}

#[tokio::test]
async fn a_websocket_is_opened_with_the_callers_identity_and_then_carries_bytes() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let (_client, mut io, mut connection) = open(&proxy, &app).await;
    io.write_all(
        b"GET /chat HTTP/1.1\r\nHost: checkout.shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
          Sec-WebSocket-Key: x\r\nX-Hawser-Client-Id: spiffe://evil/a\r\nX_Spiffe_Id: spiffe://evil/a\r\n\r\nearly",
    )
    .await
    .unwrap();
    let head = connection.until("\r\n\r\n").await;
    assert!(head.starts_with("GET /chat HTTP/1.1\r\n"), "{head}");
    for kept in ["Connection: Upgrade\r\n", "Upgrade: websocket\r\n", "Sec-WebSocket-Key: x\r\n"] {
        assert!(head.contains(kept), "{head}");
    }
    assert!(!head.contains("evil"), "{head}");
    assert!(head.contains("spiffe://west.hawser.test/ns/shop/sa/web\r\n"), "{head}");
    connection
        .write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Hawser-Refusal: x\r\n\r\nhi")
        .await;
    let answer = until(&mut io, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.contains("Upgrade: websocket\r\n"), "{answer}");
    assert!(!answer.to_ascii_lowercase().contains("x-hawser-refusal"), "{answer}");
    until(&mut io, "hi").await;
    connection.until("early").await;
    io.write_all(b"more").await.unwrap();
    connection.until("more").await;
    io.shutdown().await.unwrap();
    assert_eq!(connection.rest().await, (String::new(), true));
    connection.write("last").await;
    drop(connection);
    let mut rest = String::new();
    in_time(io.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "last");
    eventually(|| proxy.context.streams.count() == 0).await;
}

#[tokio::test]
async fn an_upgrade_that_is_refused_is_an_ordinary_exchange_and_another_may_follow() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let (_client, mut io, mut connection) = open(&proxy, &app).await;
    for _ in 0..2 {
        io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await.unwrap();
        connection.until("\r\n\r\n").await;
        connection.write("HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno").await;
        assert!(until(&mut io, "no").await.starts_with("HTTP/1.1 400 "));
    }
}

#[tokio::test]
async fn an_applications_connect_is_carried_when_it_is_granted() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let (_client, mut io, mut connection) = open(&proxy, &app).await;
    io.write_all(b"CONNECT elsewhere:443 HTTP/1.1\r\nHost: elsewhere:443\r\n\r\n").await.unwrap();
    let head = connection.until("\r\n\r\n").await;
    assert!(head.starts_with("CONNECT elsewhere:443 HTTP/1.1\r\n"), "{head}");
    connection.write("HTTP/1.1 200 Connection Established\r\n\r\n").await;
    until(&mut io, "\r\n\r\n").await;
    io.write_all(b"abc").await.unwrap();
    connection.until("abc").await;
    connection.write("xyz").await;
    until(&mut io, "xyz").await;
}

#[tokio::test]
async fn a_reset_of_an_upgraded_connection_goes_through_in_both_directions() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    for by_app in [true, false] {
        let (_client, mut io, mut connection) = open(&proxy, &app).await;
        io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n").await.unwrap();
        connection.until("\r\n\r\n").await;
        connection.write("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\ngo").await;
        until(&mut io, "go").await;
        if by_app {
            connection.reset();
            let mut rest = Vec::new();
            assert!(in_time(io.read_to_end(&mut rest)).await.is_err());
        } else {
            io.reset();
            assert!(!connection.rest().await.1, "a reset must not look like an orderly end");
        }
    }
    eventually(|| proxy.context.streams.count() == 0).await;
}
