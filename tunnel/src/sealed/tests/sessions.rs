//! Opening, refusing, carrying.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::splice::{Ended, Traffic};

/// Two applications with a dedicated session between them.
struct Carried {
    client: TcpStream,
    server: TcpStream,
    near: JoinHandle<Ended>,
    far: JoinHandle<Ended>,
    traffic: Arc<Traffic>,
    cut: CancellationToken,
}

async fn carried(early: &'static [u8]) -> Carried {
    let (near, far) = Ends::new().dedicated().await;
    let (client, client_app) = tcp_pair().await;
    let (server, server_app) = tcp_pair().await;
    let (traffic, cut) = (Arc::<Traffic>::default(), CancellationToken::new());
    let near = near.relay(client_app, Bytes::from_static(early), traffic.clone(), cut.clone());
    let far = far.relay(server_app, Bytes::new(), Arc::default(), CancellationToken::new());
    Carried { client, server, near: tokio::spawn(near), far: tokio::spawn(far), traffic, cut }
}

#[tokio::test]
async fn a_dedicated_session_carries_both_ways_and_passes_each_end_on() {
    let Carried { client, server, near, far, traffic, .. } = carried(b"early").await;
    let (up, down) = (noise(3_000_000), noise(1_000_001));
    let (mut client_read, mut client_write) = client.into_split();
    let (mut server_read, mut server_write) = server.into_split();
    let sent = async {
        client_write.write_all(&up).await.unwrap();
        client_write.shutdown().await.unwrap();
        let mut got = Vec::new();
        client_read.read_to_end(&mut got).await.unwrap();
        got
    };
    let answered = async {
        let mut got = Vec::new();
        // Only the client's end ends this; the other direction is still open then.
        server_read.read_to_end(&mut got).await.unwrap();
        server_write.write_all(&down).await.unwrap();
        server_write.shutdown().await.unwrap();
        got
    };
    let (got_down, got_up) = in_time(async { tokio::join!(sent, answered) }).await;
    assert_eq!(got_up, [b"early".as_slice(), &up].concat());
    assert_eq!(got_down, down);
    assert_eq!(in_time(near).await.unwrap(), Ended::Finished);
    assert_eq!(in_time(far).await.unwrap(), Ended::Finished);
    assert_eq!(traffic.sent.load(Ordering::Relaxed), 3_000_005);
    assert_eq!(traffic.received.load(Ordering::Relaxed), 1_000_001);
}

#[tokio::test]
async fn keys_are_changed_while_applications_exchange_megabytes() {
    let (mut near, mut far) = Ends::new().dedicated().await;
    near.records().change_keys_after(2);
    far.records().change_keys_after(5);
    let ((client, client_app), (server, server_app)) = (tcp_pair().await, tcp_pair().await);
    tokio::spawn(near.relay(client_app, Bytes::new(), Arc::default(), CancellationToken::new()));
    tokio::spawn(far.relay(server_app, Bytes::new(), Arc::default(), CancellationToken::new()));
    let text = noise(8_000_000);
    let ((mut client_read, mut client_write), (mut server_read, mut server_write)) =
        (client.into_split(), server.into_split());
    let say = async {
        client_write.write_all(&text).await.unwrap();
        client_write.shutdown().await.unwrap();
    };
    let echo = async {
        tokio::io::copy(&mut server_read, &mut server_write).await.unwrap();
        server_write.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    in_time(async { tokio::join!(say, echo, client_read.read_to_end(&mut got)) }).await.2.unwrap();
    assert!(got == text);
}

#[tokio::test]
async fn an_applications_reset_arrives_as_a_reset() {
    let Carried { mut client, mut server, near, far, .. } = carried(b"").await;
    client.write_all(b"x").await.unwrap();
    in_time(server.read_u8()).await.unwrap();
    crate::stream::reset_on_close(&client);
    drop(client);
    let error = in_time(server.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(in_time(near).await.unwrap(), Ended::UpstreamReset);
    assert_eq!(in_time(far).await.unwrap(), Ended::PeerReset);
}

#[tokio::test]
async fn a_cut_resets_both_sides() {
    let Carried { mut client, mut server, near, far, cut, .. } = carried(b"").await;
    client.write_all(b"x").await.unwrap();
    in_time(server.read_u8()).await.unwrap();
    cut.cancel();
    assert_eq!(in_time(server.read_u8()).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(in_time(client.read_u8()).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(in_time(near).await.unwrap(), Ended::Cut);
    assert_eq!(in_time(far).await.unwrap(), Ended::PeerReset);
}

#[tokio::test]
async fn a_server_that_is_not_the_expected_one_is_a_wrong_identity() {
    let ends = Ends::new();
    let (near, far) = tcp_pair().await;
    let other = Expect::Identities(Arc::new([id("west", "/ns/shop/sa/other")]));
    let target = Ends::target();
    let connect = connect_dedicated(near.into(), &ends.client, &other, &target);
    let (refusal, accepted) = tokio::join!(connect, accept(far.into(), &ends.server, DEADLINE));
    assert_eq!(refusal.unwrap_err().code, Code::WrongIdentity);
    // And the server is told why.
    assert_eq!(accepted.err().unwrap().reason, "refused_by_peer");
}

#[tokio::test]
async fn a_client_that_nobody_trusts_is_refused_and_told() {
    let (pki, stranger) = (Pki::new(), Pki::new());
    let server = pki.credentials("west", "/ns/shop/sa/checkout");
    let client = stranger.credentials("north", "/ns/shop/sa/web");
    client.set_anchors(&crate::testing::domain("west"), crate::tls::Anchors::Bundle(pki.bundle()));
    let (near, far) = tcp_pair().await;
    let (expect, target) = (Expect::Identities(Arc::new([id("west", "/ns/shop/sa/checkout")])), Ends::target());
    let connect = connect_dedicated(near.into(), &client, &expect, &target);
    let (refusal, accepted) = tokio::join!(connect, accept(far.into(), &server, DEADLINE));
    assert_eq!(accepted.err().unwrap().reason, "untrusted");
    let refusal = refusal.unwrap_err();
    assert_eq!(refusal.code, Code::EndpointUnreachable);
    assert!(refusal.message.contains("refused our certificate"), "{refusal}");
}

#[tokio::test]
async fn a_refusal_of_the_server_reaches_the_client_whole() {
    let ends = Ends::new();
    let (near, far) = tcp_pair().await;
    let refusal = Refusal::new(Code::NotExported, "shop/checkout:80 is not exported", "export it")
        .retry_after(Duration::from_secs(3));
    let (expect, target) = (ends.expect(), Ends::target());
    let connect = connect_dedicated(near.into(), &ends.client, &expect, &target);
    let refuse = async {
        let Accepted::Dedicated { session, .. } = accept(far.into(), &ends.server, DEADLINE).await.unwrap() else {
            panic!("a shared session");
        };
        session.refuse(&refusal).await.unwrap();
    };
    let (got, ()) = tokio::join!(connect, refuse);
    assert_eq!(got.unwrap_err(), refusal);
}

#[tokio::test]
async fn who_says_nothing_is_dropped_after_the_deadline() {
    let ends = Ends::new();
    let (_near, far) = tcp_pair().await;
    let error = accept(far.into(), &ends.server, Duration::from_millis(50)).await.err().unwrap();
    assert_eq!(error.reason, "timed_out");
}

#[tokio::test]
async fn who_speaks_something_else_is_refused_at_once() {
    let ends = Ends::new();
    for (other, reason) in [
        (&b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..], "protocol"),
        (b"\x00", "protocol"),
        (b"\x17\x03\x03\x00\x01\x00", "protocol"),
        (b"\x16\x03\x01\xff\xff", "too_large"),
    ] {
        let (mut near, far) = tcp_pair().await;
        near.write_all(other).await.unwrap();
        let error = in_time(accept(far.into(), &ends.server, DEADLINE)).await.err().unwrap();
        assert_eq!(error.reason, reason);
    }
}

#[tokio::test]
async fn a_reset_after_one_direction_has_ended_is_still_a_reset() {
    // The application that resets has said its end before; the other waits, with or without an end of its own.
    let Carried { mut client, mut server, near, far, .. } = carried(b"").await;
    client.shutdown().await.unwrap();
    assert_eq!(in_time(server.read(&mut [0])).await.unwrap(), 0);
    crate::stream::reset_on_close(&client);
    drop(client);
    assert_eq!(in_time(near).await.unwrap(), Ended::UpstreamReset);
    assert_eq!(in_time(far).await.unwrap(), Ended::PeerReset);
    // Its own side has ended, so that the socket tells the reset as a broken pipe.
    let write = async {
        while server.write_all(b"x").await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    in_time(write).await;
}

#[tokio::test]
async fn requests_for_new_keys_while_nothing_can_be_sent_are_answered_once() {
    let (near, far) = Ends::new().dedicated().await;
    let (mut near, mut far) = (near.into_stream(), far.into_stream());
    // Our end is blocked: the other reads nothing.
    let block = noise(1 << 20);
    let full = async {
        loop {
            near.write_all(&block).await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_millis(300), full).await.unwrap_err();
    for round in 0..100_u8 {
        let mut update = [0; record::KEY_UPDATE];
        far.records.seal_key_update_asking(&mut update).unwrap();
        let TunnelStream::Tcp { socket, .. } = &mut far.stream else { panic!("not over TCP") };
        socket.write_all(&update).await.unwrap();
        far.write_all(&[round]).await.unwrap();
        far.flush().await.unwrap();
        assert_eq!(in_time(near.read_u8()).await.unwrap(), round);
        let blocked = tokio::time::timeout(Duration::from_millis(1), near.write(&block)).await;
        assert!(!matches!(blocked, Ok(Err(_))), "{blocked:?}");
    }
    // And once the other end reads, all is well.
    let read = async {
        let mut sink = vec![0; 1 << 20];
        while far.read(&mut sink).await.unwrap() > 0 {}
    };
    let close = async { near.shutdown().await.unwrap() };
    in_time(async { tokio::join!(read, close) }).await;
}
