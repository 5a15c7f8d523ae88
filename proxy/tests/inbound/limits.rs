//! What callers can make the proxy hold is bounded.

use std::time::Duration;

use hawser_api::Code;
use hawser_proxy::inbound::Limits;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::setup::*;

#[tokio::test]
async fn a_client_that_says_nothing_is_dropped_and_holds_up_no_more_than_its_place() {
    let app = App::bind().await;
    let limits = Limits { handshakes: 1, handshake: Duration::from_millis(300), ..Limits::default() };
    let proxy = Proxy::limited(&[(CHECKOUT, &[app.address], &["west"])], limits).await;
    let mut silent = TcpStream::connect(proxy.address).await.unwrap();
    // Waits behind the silent one, and is served.
    let client = proxy.caller().await;
    assert_eq!(in_time(silent.read(&mut [0; 16])).await.unwrap_or_default(), 0);
    let (response, _) = send(&client, request("GET", "/"), true).await;
    let mut connection = app.accept().await;
    connection.until("\r\n\r\n").await;
    connection.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(answer(response).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_caller_has_so_many_sessions_and_another_caller_is_none_the_worse() {
    let app = App::bind().await;
    let limits = Limits { sessions_per_caller: 2, ..Limits::default() };
    let proxy = Proxy::limited(&[(CHECKOUT, &[app.address], &["west"])], limits).await;
    let first = proxy.dedicated("west", CHECKOUT).await.unwrap();
    let _second = proxy.dedicated("west", CHECKOUT).await.unwrap();
    let refusal = proxy.dedicated("west", CHECKOUT).await.unwrap_err();
    assert_eq!(refusal.code, Code::Overloaded);
    assert!(refusal.message.contains("west.hawser.test/ns/shop/sa/web"), "{refusal}");
    assert!(proxy.dedicated("east", CHECKOUT).await.is_ok());
    // A shared one is ended before its first stream.
    let client = proxy.caller().await;
    let refused = async {
        let mut ready = client.requests.clone().ready().await?;
        let (response, _) = ready.send_request(request("GET", "/").body(()).unwrap(), true)?;
        response.await
    };
    assert!(in_time(refused).await.is_err());
    drop(first);
    in_time(async {
        while proxy.dedicated("west", CHECKOUT).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn all_callers_together_have_so_many_sessions() {
    let app = App::bind().await;
    let limits = Limits { sessions: 1, ..Limits::default() };
    let proxy = Proxy::limited(&[(CHECKOUT, &[app.address], &["west"])], limits).await;
    let _first = proxy.dedicated("west", CHECKOUT).await.unwrap();
    assert_eq!(proxy.dedicated("east", CHECKOUT).await.unwrap_err().code, Code::Overloaded);
}

#[tokio::test]
async fn a_session_uses_so_many_service_ports() {
    let app = App::bind().await;
    let limits = Limits { targets_per_session: 1, ..Limits::default() };
    let ports: [Port<'_>; 2] = [(CHECKOUT, &[app.address], &["west"]), ("shop/stock:80", &[app.address], &["west"])];
    let proxy = Proxy::limited(&ports, limits).await;
    let client = proxy.caller().await;
    let (_response, _) = send(&client, request("GET", "/"), true).await;
    app.accept().await.until("\r\n\r\n").await;
    let other = http::Request::builder().uri("http://stock.shop/").header("hawser-target", "shop/stock:80");
    let (response, _) = send(&client, other, true).await;
    assert_eq!(answer(response).await.unwrap().headers["x-hawser-refusal"], "overloaded");
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused_and_the_session_lives() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    let large = request("GET", "/").header("x-large", "x".repeat(100 << 10));
    let (response, _) = send(&client, large, true).await;
    // RFC 6585 section 5, by the HTTP/2 layer.
    let refused = in_time(response).await;
    assert!(refused.as_ref().map_or(true, |r| r.status() == 431), "{refused:?}");
    // And of an application's answer.
    let (response, _) = send(&proxy.caller().await, request("GET", "/"), true).await;
    let mut connection = app.accept().await;
    connection.until("\r\n\r\n").await;
    connection.write(format!("HTTP/1.1 200 OK\r\nX-Large: {}\r\n\r\n", "x".repeat(100 << 10))).await;
    assert!(answer(response).await.is_err());
}

#[tokio::test]
async fn before_the_first_tables_nobody_is_told_that_a_port_is_not_exported() {
    let pki = hawser_tunnel::testing::Pki::new();
    let context = hawser_proxy::context::Context::new(
        "checkout".into(),
        "east".parse().unwrap(),
        pki.linked("east", SERVER, &["west"]),
        hawser_runtime::Process::detached(),
        Default::default(),
    );
    let inbound = hawser_proxy::inbound::Inbound::new(context.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(inbound.clone().serve(listener));
    let proxy = Proxy { pki, context, inbound, address };
    assert_eq!(proxy.dedicated("west", CHECKOUT).await.unwrap_err().code, Code::NotReady);
    let (response, _) = send(&proxy.caller().await, request("GET", "/"), true).await;
    assert_eq!(answer(response).await.unwrap().status, 503);
}

#[tokio::test]
async fn a_caller_has_so_many_streams_in_all_its_sessions() {
    let app = App::bind().await;
    let limits = Limits { streams_per_caller: 2, ..Limits::default() };
    let proxy = Proxy::limited(&[(CHECKOUT, &[app.address], &["west"])], limits).await;
    let (one, two) = (proxy.caller().await, proxy.caller().await);
    let first = send(&one, request("GET", "/"), true).await;
    let mut connection = app.accept().await;
    let _second = send(&two, request("GET", "/"), true).await;
    let _other = app.accept().await;
    let (response, _) = send(&two, request("GET", "/"), true).await;
    let refused = answer(response).await.unwrap();
    assert_eq!((refused.status, refused.headers["x-hawser-refusal"].to_str().unwrap()), (503, "overloaded"));
    connection.until("\r\n\r\n").await;
    connection.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(answer(first.0).await.unwrap().status, 200);
    eventually(|| proxy.context.streams.count() == 1).await;
    let _third = send(&two, request("GET", "/"), true).await;
    connection.until("\r\n\r\n").await;
}
