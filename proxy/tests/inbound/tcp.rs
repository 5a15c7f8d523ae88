//! Opaque connections, in shared and dedicated sessions.

use bytes::Bytes;
use h2::Reason;
use hawser_api::Code;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::setup::*;

fn connect(target: &str) -> http::request::Builder {
    http::Request::builder()
        .method("CONNECT")
        .uri("checkout.shop:80")
        .header("hawser-target", target)
        .header("hawser-carries", "tcp")
}

#[tokio::test]
async fn a_connect_stream_carries_bytes_and_each_half_ends_by_itself() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    let (response, mut body) = send(&client, connect(CHECKOUT), false).await;
    let mut connection = app.accept().await;
    let response = in_time(response).await.unwrap();
    assert_eq!(response.status(), 200);
    let mut recv = response.into_body();
    body.send_data(Bytes::from_static(b"question"), true).unwrap();
    assert_eq!(connection.rest().await, ("question".to_owned(), true));
    connection.write("answer").await;
    assert_eq!(in_time(recv.data()).await.unwrap().unwrap(), "answer");
    connection.socket.shutdown().await.unwrap();
    assert!(is_over(&mut recv).await);
    eventually(|| proxy.context.streams.count() == 0).await;
}

#[tokio::test]
async fn resets_go_through_in_both_directions() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    let (response, _body) = send(&client, connect(CHECKOUT), false).await;
    let connection = app.accept().await;
    let mut recv = in_time(response).await.unwrap().into_body();
    connection.reset();
    assert!(in_time(recv.data()).await.unwrap().is_err_and(|e| e.is_reset()));

    let (response, mut body) = send(&client, connect(CHECKOUT), false).await;
    let mut connection = app.accept().await;
    in_time(response).await.unwrap();
    body.send_reset(Reason::CANCEL);
    assert!(!connection.rest().await.1, "a reset must not look like an orderly end");
}

#[tokio::test]
async fn an_application_that_does_not_listen_is_said_so() {
    let dead = App::bind().await.address;
    let proxy = Proxy::start(&[(CHECKOUT, &[dead], &["west"]), ("shop/empty:80", &[], &["west"])]).await;
    let client = proxy.caller().await;
    for (target, code) in [(CHECKOUT, Code::EndpointUnreachable), ("shop/empty:80", Code::NoEndpoint)] {
        let (response, _body) = send(&client, connect(target), false).await;
        let answer = answer(response).await.unwrap();
        assert_eq!(answer.status, 503);
        assert_eq!(answer.headers["x-hawser-refusal"], code.as_str());
        assert_eq!(proxy.dedicated("west", target).await.unwrap_err().code, code);
    }
}

#[tokio::test]
async fn what_a_stream_carries_must_be_known() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    let asked = http::Request::builder()
        .method("CONNECT")
        .uri("checkout.shop:80")
        .header("hawser-target", CHECKOUT)
        .header("hawser-carries", "smtp");
    let (response, _body) = send(&client, asked, false).await;
    assert_eq!(answer(response).await.unwrap().headers["x-hawser-refusal"], "version");
}

/// Two ends of one loopback connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

#[tokio::test]
async fn a_dedicated_session_carries_one_connection_whole() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let session = proxy.dedicated("west", CHECKOUT).await.unwrap();
    let mut connection = app.accept().await;
    let (mut caller, near) = pair().await;
    let relay = tokio::spawn(session.relay(near, Bytes::new(), Default::default(), CancellationToken::new()));
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let expected = sent.clone();
    let write = tokio::spawn(async move {
        caller.write_all(&sent).await.unwrap();
        caller.shutdown().await.unwrap();
        caller
    });
    let mut received = Vec::new();
    in_time(connection.socket.read_to_end(&mut received)).await.unwrap();
    assert!(received == expected);
    connection.write("thanks").await;
    drop(connection);
    let mut caller = write.await.unwrap();
    let mut reply = String::new();
    in_time(caller.read_to_string(&mut reply)).await.unwrap();
    assert_eq!(reply, "thanks");
    assert_eq!(in_time(relay).await.unwrap().as_str(), "finished");
    eventually(|| proxy.context.streams.count() == 0).await;
}

#[tokio::test]
async fn a_dedicated_session_is_admitted_by_the_same_rule() {
    let app = App::bind().await;
    let proxy = Proxy::start(&[(CHECKOUT, &[app.address], &["west"]), ("shop/stock:80", &[app.address], &[])]).await;
    for target in ["shop/stock:80", "shop/checkout:81", "shop/ghost:80"] {
        let refusal = proxy.dedicated("west", target).await.unwrap_err();
        assert_eq!(refusal.code, Code::NotExported, "{target}");
        assert!(!refusal.remedy.is_empty());
    }
    assert!(proxy.dedicated("east", "shop/stock:80").await.is_ok());
}
