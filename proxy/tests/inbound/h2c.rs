//! HTTP/2 with prior knowledge to the application.

use bytes::Bytes;
use h2::Reason;
use tokio::net::TcpListener;

use crate::setup::*;

type Server = h2::server::Connection<tokio::net::TcpStream, Bytes>;

struct H2App {
    listener: TcpListener,
}

impl H2App {
    async fn start() -> (Self, Proxy) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(&[(CHECKOUT, &[listener.local_addr().unwrap()], &["west"])]).await;
        (Self { listener }, proxy)
    }

    async fn accept(&self) -> Server {
        let (socket, _) = in_time(self.listener.accept()).await.unwrap();
        in_time(h2::server::handshake(socket)).await.unwrap()
    }
}

fn grpc(path: &str) -> http::request::Builder {
    http::Request::builder()
        .method("POST")
        .uri(format!("http://checkout.shop:8080{path}"))
        .header("hawser-target", CHECKOUT)
        .header("hawser-version", "2")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

#[tokio::test]
async fn grpc_goes_through_with_trailers_te_and_identity() {
    let (app, proxy) = H2App::start().await;
    let client = proxy.caller().await;
    let call = grpc("/shop.Checkout/Pay").header("x-spiffe-id", "spiffe://evil/a");
    let (response, mut body) = send(&client, call, false).await;
    body.send_data(Bytes::from_static(b"\0\0\0\0\x01a"), true).unwrap();
    let serve = async {
        let mut server = app.accept().await;
        let (request, mut respond) = in_time(server.accept()).await.unwrap().unwrap();
        let drive = tokio::spawn(async move { while server.accept().await.is_some() {} });
        assert_eq!(request.uri().to_string(), "http://checkout.shop:8080/shop.Checkout/Pay");
        let headers = request.headers();
        assert_eq!(headers["te"], "trailers");
        assert_eq!(headers["x-hawser-client-id"], "spiffe://west.hawser.test/ns/shop/sa/web");
        for gone in ["hawser-target", "hawser-version", "x-spiffe-id", "host"] {
            assert!(!headers.contains_key(gone), "{gone}");
        }
        let mut recv = request.into_body();
        assert_eq!(in_time(recv.data()).await.unwrap().unwrap(), &b"\0\0\0\0\x01a"[..]);
        assert!(in_time(recv.data()).await.is_none());
        let mut send = respond.send_response(http::Response::new(()), false).unwrap();
        send.send_data(Bytes::from_static(b"\0\0\0\0\x01b"), false).unwrap();
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        send.send_trailers(trailers).unwrap();
        drive.abort_handle()
    };
    let (answer, drive) = tokio::join!(answer(response), serve);
    let answer = answer.unwrap();
    assert_eq!(answer.body.as_bytes(), b"\0\0\0\0\x01b");
    assert_eq!(answer.trailers.unwrap()["grpc-status"], "0");
    drive.abort();
}

#[tokio::test]
async fn streams_share_a_connection_and_resets_keep_their_reason() {
    let (app, proxy) = H2App::start().await;
    let client = proxy.caller().await;
    let (first, mut first_body) = send(&client, grpc("/1"), false).await;
    let mut server = app.accept().await;
    let (first_request, _first_respond) = in_time(server.accept()).await.unwrap().unwrap();
    let (second, _second_body) = send(&client, grpc("/2"), false).await;
    let (_second_request, mut second_respond) = in_time(server.accept()).await.unwrap().unwrap();
    let drive = tokio::spawn(async move { while server.accept().await.is_some() {} });

    second_respond.send_reset(Reason::ENHANCE_YOUR_CALM);
    let error = in_time(second).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));

    first_body.send_reset(Reason::CANCEL);
    let error = in_time(first_request.into_body().data()).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    drop(first);
    eventually(|| proxy.context.streams.count() == 0).await;
    drive.abort();
}

#[tokio::test]
async fn both_directions_stream_at_once() {
    let (app, proxy) = H2App::start().await;
    let client = proxy.caller().await;
    let (response, mut body) = send(&client, grpc("/chat"), false).await;
    let mut server = app.accept().await;
    let (request, mut respond) = in_time(server.accept()).await.unwrap().unwrap();
    let drive = tokio::spawn(async move { while server.accept().await.is_some() {} });
    let mut to_client = respond.send_response(http::Response::new(()), false).unwrap();
    let mut from_client = request.into_body();
    let mut recv = in_time(response).await.unwrap().into_body();
    for word in ["a", "b", "c"] {
        body.send_data(Bytes::from_static(word.as_bytes()), false).unwrap();
        assert_eq!(in_time(from_client.data()).await.unwrap().unwrap(), word);
        to_client.send_data(Bytes::from_static(word.as_bytes()), false).unwrap();
        assert_eq!(in_time(recv.data()).await.unwrap().unwrap(), word);
    }
    drive.abort();
}

#[tokio::test]
async fn a_connection_that_the_application_ended_is_replaced() {
    let (app, proxy) = H2App::start().await;
    let client = proxy.caller().await;
    for _ in 0..3 {
        let (response, _) = send(&client, grpc("/"), true).await;
        let mut server = app.accept().await;
        let (_, mut respond) = in_time(server.accept()).await.unwrap().unwrap();
        respond.send_response(http::Response::new(()), true).unwrap();
        server.graceful_shutdown();
        let drive = tokio::spawn(async move { while server.accept().await.is_some() {} });
        assert_eq!(answer(response).await.unwrap().status, 200);
        in_time(drive).await.unwrap();
    }
}

#[tokio::test]
async fn an_application_that_speaks_no_http_2_is_a_broken_stream_not_a_hang() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    let (response, _) = send(&client, grpc("/"), true).await;
    let mut connection = app.accept().await;
    connection.until("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    connection.write("HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await;
    drop(connection);
    assert!(answer(response).await.is_err());
}

#[tokio::test]
async fn more_streams_than_a_connection_takes_go_over_another() {
    let (app, proxy) = H2App::start().await;
    let client = proxy.caller().await;
    let mut held = Vec::new();
    for n in 0..3 {
        let (response, body) = send(&client, grpc("/"), false).await;
        let (socket, _) = in_time(app.listener.accept()).await.unwrap();
        let mut builder = h2::server::Builder::new();
        let mut server: Server = in_time(builder.max_concurrent_streams(1).handshake(socket)).await.unwrap();
        let (request, mut respond) = in_time(server.accept()).await.unwrap().unwrap();
        let sent = respond.send_response(http::Response::new(()), false).unwrap();
        tokio::spawn(async move { while server.accept().await.is_some() {} });
        // By now the proxy knows the limit.
        assert_eq!(in_time(response).await.unwrap().status(), 200, "{n}");
        held.push((request, sent, body));
    }
}
