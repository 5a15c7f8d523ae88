//! Who gets in, and who stays.

use bytes::Bytes;
use hawser_tunnel::sealed;
use hawser_tunnel::testing::{Pki, id};
use hawser_tunnel::tls::Expect;
use tokio::net::TcpStream;

use crate::setup::*;

fn ask(target: &str) -> http::request::Builder {
    http::Request::builder().uri("http://checkout.shop/").header("hawser-target", target)
}

#[tokio::test]
async fn inside_one_session_every_stream_is_admitted_by_itself() {
    let app = App::bind().await;
    let ports: [Port<'_>; 3] = [
        (CHECKOUT, &[app.address], &["west"]),
        ("shop/checkout:9090", &[app.address], &[]),
        ("shop/stock:80", &[app.address], &["north"]),
    ];
    let proxy = Proxy::start(&ports).await;
    let client = proxy.caller().await;
    for (target, status, code) in [
        ("shop/checkout:9090", 403, "not_exported"),
        ("shop/stock:80", 403, "not_exported"),
        ("shop/ghost:80", 403, "not_exported"),
        ("hawser-system/catalog:443", 403, "not_exported"),
        ("shop/checkout:080", 400, "bad_request"),
        ("shop/Checkout:80", 400, "bad_request"),
        ("127.0.0.1:80", 400, "bad_request"),
        ("", 400, "bad_request"),
    ] {
        for connect in [false, true] {
            let asked = if connect {
                ask(target).method("CONNECT").uri(format!("checkout.shop:{}", app.address.port()))
            } else {
                ask(target)
            };
            let (response, _) = send(&client, asked, true).await;
            let answer = answer(response).await.unwrap();
            assert_eq!(answer.status, status, "{target} {connect}");
            assert_eq!(answer.headers["x-hawser-refusal"], code, "{target}");
            assert!(answer.body.contains("\nhint: "), "{}", answer.body);
        }
    }
    for twice in [ask(CHECKOUT).header("hawser-target", CHECKOUT), http::Request::builder().uri("http://a/")] {
        let (response, _) = send(&client, twice, true).await;
        assert_eq!(answer(response).await.unwrap().status, 400);
    }
    // The session is none the worse for it.
    let (response, _) = send(&client, ask(CHECKOUT), true).await;
    let mut connection = app.accept().await;
    connection.until("\r\n\r\n").await;
    connection.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(answer(response).await.unwrap().status, 200);
}

#[tokio::test]
async fn our_own_cluster_reaches_what_is_exported_to_nobody() {
    let app = App::bind().await;
    let proxy = Proxy::start(&[(CHECKOUT, &[app.address], &[])]).await;
    let own = proxy.caller_of("east", WEB).await;
    let (response, _) = send(&own, ask(CHECKOUT), true).await;
    let mut connection = app.accept().await;
    let head = connection.until("\r\n\r\n").await;
    assert!(head.contains("x-hawser-client-id: spiffe://east.hawser.test/ns/shop/sa/web\r\n"), "{head}");
    connection.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(answer(response).await.unwrap().status, 200);
    let west = proxy.caller().await;
    let (response, _) = send(&west, ask(CHECKOUT), true).await;
    assert_eq!(answer(response).await.unwrap().status, 403);
}

#[tokio::test]
async fn a_caller_without_anchors_here_gets_no_session() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    // A trust domain that is not linked, and one that is, from another root.
    for credentials in [proxy.credentials("south", WEB), Pki::new().credentials("west", WEB)] {
        let stream = TcpStream::connect(proxy.address).await.unwrap();
        let expect = Expect::Identities([id("east", SERVER)].into());
        let opened = sealed::connect_shared(stream.into(), &credentials, &expect, LATE).await;
        if let Ok((client, driver)) = opened {
            // TLS 1.3 lets a client believe that it is in until the server has looked at its certificate.
            tokio::spawn(driver);
            let refused = async {
                let mut ready = client.requests.clone().ready().await?;
                let (response, _) = ready.send_request(ask(CHECKOUT).body(()).unwrap(), true)?;
                response.await
            };
            assert!(in_time(refused).await.is_err());
        }
    }
    assert_eq!(proxy.context.streams.count(), 0);
}

#[tokio::test]
async fn what_is_withdrawn_is_cut_and_nothing_else_is_touched() {
    let app = App::bind().await;
    let (checkout, stock) = (CHECKOUT, "shop/stock:80");
    let proxy = Proxy::start(&[(checkout, &[app.address], &["west"]), (stock, &[app.address], &["west"])]).await;
    let mut live = Vec::new();
    for (cluster, target) in [("west", checkout), ("west", stock), ("east", checkout)] {
        let client = proxy.caller_of(cluster, WEB).await;
        let (response, mut body) = send(&client, ask(target).method("CONNECT").uri("checkout.shop:80"), false).await;
        let mut connection = app.accept().await;
        let mut recv = in_time(response).await.unwrap().into_body();
        body.send_data(Bytes::from_static(b"ping"), false).unwrap();
        connection.until("ping").await;
        connection.write("pong").await;
        assert_eq!(in_time(recv.data()).await.unwrap().unwrap(), "pong");
        live.push((client, connection, body, recv));
    }
    let dedicated = proxy.dedicated("west", checkout).await.unwrap();
    let mut carried = app.accept().await;
    assert_eq!(proxy.context.streams.count(), 4);

    proxy.set(&[(checkout, &[app.address], &[]), (stock, &[app.address], &["west"])]);

    let mut live = live.into_iter();
    let (_client, mut connection, _body, mut recv) = live.next().unwrap();
    assert!(in_time(recv.data()).await.unwrap().is_err());
    assert!(!connection.rest().await.1, "the application is to see a reset, not an orderly end");
    carried.rest().await;
    drop(dedicated);
    eventually(|| proxy.context.streams.count() == 2).await;
    for (_client, mut connection, mut body, mut recv) in live {
        body.send_data(Bytes::from_static(b"still"), false).unwrap();
        connection.until("still").await;
        connection.write("here").await;
        assert_eq!(in_time(recv.data()).await.unwrap().unwrap(), "here");
    }
}

#[tokio::test]
async fn a_peer_that_is_unlinked_loses_its_sessions() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    let (response, _body) = send(&client, ask(CHECKOUT).method("CONNECT").uri("a:1"), false).await;
    let _connection = app.accept().await;
    let mut recv = in_time(response).await.unwrap().into_body();
    proxy.context.credentials.remove_anchors(&hawser_tunnel::testing::domain("west"));
    proxy.inbound.recheck();
    assert!(in_time(recv.data()).await.unwrap().is_err());
    eventually(|| proxy.context.streams.count() == 0).await;
}

/// One live stream of a shared session and one dedicated session of `west`; the callers are denied.
async fn denied(denials: hawser_tunnel::tls::Denials) {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let changes = hawser_proxy::watch::Changes::register(&mut proxy.context.process.registry.lock());
    tokio::spawn(hawser_proxy::watch::identity(proxy.inbound.clone(), changes.into()));
    let client = proxy.caller().await;
    let (response, _body) = send(&client, ask(CHECKOUT).method("CONNECT").uri("a:1"), false).await;
    let _connection = app.accept().await;
    let mut recv = in_time(response).await.unwrap().into_body();
    let _dedicated = proxy.dedicated("west", CHECKOUT).await.unwrap();
    let mut carried = app.accept().await;
    let begun = std::time::Instant::now();
    proxy.context.credentials.set_denied(denials);
    assert!(in_time(recv.data()).await.unwrap().is_err());
    carried.rest().await;
    eventually(|| proxy.context.streams.count() == 0).await;
    assert!(begun.elapsed() < std::time::Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_denied_caller_loses_its_sessions_within_a_second() {
    let identities = [id("west", WEB)].into();
    denied(hawser_tunnel::tls::Denials { identities, ..Default::default() }).await;
    let trust_domains = [hawser_tunnel::testing::domain("west")].into();
    denied(hawser_tunnel::tls::Denials { trust_domains, ..Default::default() }).await;
}

#[tokio::test]
async fn callers_are_asked_to_come_again_when_the_server_has_a_new_certificate() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    let (response, _body) = send(&client, ask(CHECKOUT).method("CONNECT").uri("a:1"), false).await;
    let mut connection = app.accept().await;
    let mut recv = in_time(response).await.unwrap().into_body();
    proxy.context.credentials.set_identity(proxy.pki.identity("east", SERVER));
    // New streams are not taken any more, in a few seconds; the live one goes on.
    in_time(async {
        while let Ok(mut ready) = client.requests.clone().ready().await {
            let Ok((response, _)) = ready.send_request(ask("shop/ghost:80").body(()).unwrap(), true) else { break };
            if response.await.is_err() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    connection.write("still").await;
    assert_eq!(in_time(recv.data()).await.unwrap().unwrap(), "still");
}

#[tokio::test]
async fn a_drain_lets_live_streams_end_and_takes_no_new_ones() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    let (response, _) = send(&client, ask(CHECKOUT), true).await;
    let mut connection = app.accept().await;
    connection.until("\r\n\r\n").await;
    proxy.context.process.drain.cancel();
    eventually(|| std::net::TcpStream::connect(proxy.address).is_err()).await;
    // The GOAWAY may still be under way: what was sent before it came is served, and after it nothing is sent.
    let mut requests = client.requests.clone();
    in_time(async {
        while let Ok(mut ready) = requests.clone().ready().await {
            let sent = ready.send_request(ask("shop/ghost:80").body(()).unwrap(), true);
            let Ok((response, _)) = sent else { break };
            if response.await.is_err() {
                break;
            }
            requests = ready;
        }
    })
    .await;
    connection.write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await;
    assert_eq!(answer(response).await.unwrap().body, "done");
}

#[tokio::test]
async fn the_page_shows_ports_applications_and_callers() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let _client = proxy.caller().await;
    eventually(|| !proxy.inbound.page()["sessions"].as_array().unwrap().is_empty()).await;
    let page = proxy.inbound.page();
    assert_eq!(page["inbound"][0]["name"], "checkout");
    assert_eq!(page["inbound"][0]["port"], 80);
    assert_eq!(page["inbound"][0]["trustDomains"][0], "west.hawser.test");
    assert_eq!(page["inbound"][0]["targets"][0]["address"], app.address.to_string());
    assert_eq!(page["sessions"][0]["clientId"], "spiffe://west.hawser.test/ns/shop/sa/web");
}
