//! HTTP/2 in a session: requests, opaque streams, and peers that no longer answer.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::Bytes;
use futures_util::future::poll_fn;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::splice::{Ended, Traffic};

const KEEPALIVE: Duration = Duration::from_secs(60);

/// One CONNECT stream, both ends, in a session that is driven.
struct Stream {
    near: (SendStream<Bytes>, RecvStream),
    far: (SendStream<Bytes>, RecvStream),
    client: SharedClient,
}

async fn stream() -> Stream {
    let (client, driver, mut server) = Ends::new().shared(KEEPALIVE).await;
    tokio::spawn(driver);
    let mut requests = client.requests.clone().ready().await.unwrap();
    let request = http::Request::connect("checkout.shop:80").body(()).unwrap();
    let (response, send) = requests.send_request(request, false).unwrap();
    let (request, mut respond) = in_time(server.connection.accept()).await.unwrap().unwrap();
    let far = (respond.send_response(http::Response::new(()), false).unwrap(), request.into_body());
    tokio::spawn(async move { while let Some(Ok(_)) = server.connection.accept().await {} });
    let near = (send, in_time(response).await.unwrap().into_body());
    Stream { near, far, client }
}

/// The application's end of a carried stream.
struct App {
    socket: TcpStream,
    ended: tokio::task::JoinHandle<Ended>,
    traffic: Arc<Traffic>,
    cut: CancellationToken,
}

async fn app(stream: (SendStream<Bytes>, RecvStream), early: &'static [u8]) -> App {
    carry(stream, early, tcp_pair().await)
}

fn carry(
    (send, recv): (SendStream<Bytes>, RecvStream),
    early: &'static [u8],
    (socket, carried): (TcpStream, TcpStream),
) -> App {
    let (traffic, cut) = (Arc::<Traffic>::default(), CancellationToken::new());
    let carry = carry_stream(send, recv, carried, Bytes::from_static(early), traffic.clone(), cut.clone());
    App { socket, ended: tokio::spawn(carry), traffic, cut }
}

#[tokio::test]
async fn a_request_and_its_answer_pass_whole() {
    let (client, driver, mut server) = Ends::new().shared(KEEPALIVE).await;
    let driver = tokio::spawn(driver);
    let mut requests = client.requests.clone().ready().await.unwrap();
    let request = http::Request::post("http://checkout/pay").header("a", "b").body(()).unwrap();
    let (response, mut send) = requests.send_request(request, false).unwrap();
    send.send_data(Bytes::from_static(b"body"), true).unwrap();
    drop(send);
    let (request, mut respond) = in_time(server.connection.accept()).await.unwrap().unwrap();
    tokio::spawn(async move { while let Some(Ok(_)) = server.connection.accept().await {} });
    assert_eq!(request.headers()["a"], "b");
    assert_eq!(in_time(request.into_body().data()).await.unwrap().unwrap(), "body");
    let mut send = respond.send_response(http::Response::new(()), false).unwrap();
    send.send_data(Bytes::from_static(b"paid"), true).unwrap();
    let mut body = in_time(response).await.unwrap().into_body();
    assert_eq!(in_time(body.data()).await.unwrap().unwrap(), "paid");
    drop((body, requests, client));
    // With the last handle goes the session.
    in_time(driver).await.unwrap();
}

#[tokio::test]
async fn an_opaque_stream_carries_megabytes_and_passes_each_end_on() {
    let Stream { near, far, client: _client } = stream().await;
    let (mut near, mut far) = (app(near, b"early").await, app(far, b"").await);
    let (up, down) = (noise(6_000_000), noise(3_000_000));
    let (mut near_read, mut near_write) = near.socket.split();
    let (mut far_read, mut far_write) = far.socket.split();
    let sent = async {
        near_write.write_all(&up).await.unwrap();
        near_write.shutdown().await.unwrap();
        let mut got = Vec::new();
        near_read.read_to_end(&mut got).await.unwrap();
        got
    };
    let answered = async {
        let mut got = Vec::new();
        far_read.read_to_end(&mut got).await.unwrap();
        far_write.write_all(&down).await.unwrap();
        far_write.shutdown().await.unwrap();
        got
    };
    let (got_down, got_up) = in_time(async { tokio::join!(sent, answered) }).await;
    assert!(got_up == [b"early".as_slice(), &up].concat() && got_down == down);
    assert_eq!(in_time(near.ended).await.unwrap(), Ended::Finished);
    assert_eq!(in_time(far.ended).await.unwrap(), Ended::Finished);
    assert_eq!(near.traffic.sent.load(Ordering::Relaxed), 6_000_005);
    assert_eq!(near.traffic.received.load(Ordering::Relaxed), 3_000_000);
}

#[tokio::test]
async fn a_reset_of_either_application_reaches_the_other() {
    for from_near in [true, false] {
        let Stream { near, far, client: _client } = stream().await;
        let (near, far) = (app(near, b"").await, app(far, b"").await);
        let (mut from, mut to) = if from_near { (near, far) } else { (far, near) };
        from.socket.write_all(b"x").await.unwrap();
        in_time(to.socket.read_u8()).await.unwrap();
        crate::stream::reset_on_close(&from.socket);
        drop(from.socket);
        let error = in_time(to.socket.read_u8()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(in_time(from.ended).await.unwrap(), Ended::UpstreamReset);
        assert_eq!(in_time(to.ended).await.unwrap(), Ended::PeerReset);
    }
}

#[tokio::test]
async fn a_reset_after_one_direction_has_ended_is_still_a_reset() {
    let Stream { near, far, client: _client } = stream().await;
    let (mut near, mut far) = (app(near, b"").await, app(far, b"").await);
    // The far application has said all; the near one waits and is then reset by its own side.
    far.socket.shutdown().await.unwrap();
    assert_eq!(in_time(near.socket.read(&mut [0])).await.unwrap(), 0);
    far.cut.cancel();
    assert_eq!(in_time(near.ended).await.unwrap(), Ended::PeerReset);
    assert_eq!(in_time(far.socket.read_u8()).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_cut_stream_is_reset_and_its_neighbours_are_not() {
    let Stream { near, far, client } = stream().await;
    let (mut near, mut far) = (app(near, b"").await, app(far, b"").await);
    near.socket.write_all(b"x").await.unwrap();
    in_time(far.socket.read_u8()).await.unwrap();
    far.cut.cancel();
    assert_eq!(in_time(far.ended).await.unwrap(), Ended::Cut);
    assert_eq!(in_time(near.ended).await.unwrap(), Ended::PeerReset);
    assert_eq!(in_time(near.socket.read_u8()).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    in_time(client.requests.clone().ready()).await.unwrap();
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_writer() {
    let Stream { near, far, client: _client } = stream().await;
    let (mut near, mut far) = (app(near, b"").await, app(far, b"").await);
    let block = vec![1; 1 << 20];
    let mut written = 0;
    // Sockets' buffers and one stream window fit in between, no more.
    while let Ok(wrote) = tokio::time::timeout(Duration::from_millis(200), near.socket.write(&block)).await {
        written += wrote.unwrap();
        assert!(written < 64 << 20, "nothing holds the writer back");
    }
    assert!(written - far.traffic.received.load(Ordering::Relaxed) as usize >= 1 << 20);
    near.socket.shutdown().await.unwrap();
    let mut got = Vec::new();
    in_time(far.socket.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got.len(), written);
}

#[tokio::test]
async fn many_small_frames_to_a_reader_that_has_stopped_do_not_end_the_session() {
    let Stream { near: (mut send, _recv), far, client: _client } = stream().await;
    let sockets = tcp_pair().await;
    // More than both sockets hold, but not the whole window.
    let (large, small) = (1_000_000, 60_000);
    socket2::SockRef::from(&sockets.0).set_recv_buffer_size(1 << 16).unwrap();
    socket2::SockRef::from(&sockets.1).set_send_buffer_size(1 << 16).unwrap();
    let mut far = carry(far, b"", sockets);
    send.send_data(noise(large).into(), false).unwrap();
    let given = async {
        while far.traffic.received.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    };
    in_time(given).await;
    for index in 0..small {
        send.send_data(vec![index as u8].into(), false).unwrap();
        if index % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    send.send_data(Bytes::new(), true).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut got = Vec::new();
    in_time(far.socket.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got.len(), large + small);
    assert!(got[large..].iter().enumerate().all(|(index, byte)| *byte == index as u8));
}

#[tokio::test]
async fn a_stream_is_a_byte_stream_for_http1() {
    let Stream { near, far, client: _client } = stream().await;
    let (mut near, mut far) = (StreamIo::new(near.0, near.1), StreamIo::new(far.0, far.1));
    let text = noise(3_000_000);
    let write = async {
        near.write_all(&text).await.unwrap();
        near.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    in_time(async { tokio::join!(write, far.read_to_end(&mut got)) }).await.1.unwrap();
    assert!(got == text);
    drop(far);
    let error = in_time(near.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_peer_that_hangs_is_suspect_and_then_given_up_after_one_and_a_half_keepalives() {
    let keepalive = Duration::from_millis(400);
    let (client, driver, mut server) = Ends::new().shared(keepalive).await;
    let driver = tokio::spawn(driver);
    let mut requests = client.requests.clone().ready().await.unwrap();
    let (response, _) = requests.send_request(http::Request::get("http://a/").body(()).unwrap(), true).unwrap();
    in_time(server.connection.accept()).await.unwrap().unwrap();
    assert_eq!(client.overdue(), Duration::ZERO);
    // From here on nobody drives the server: it hangs, its socket stays open.
    let started = tokio::time::Instant::now();
    let suspect = async {
        while client.overdue() < keepalive / 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    in_time(suspect).await;
    assert!(!driver.is_finished());
    let error = in_time(response).await.unwrap_err();
    let took = started.elapsed();
    assert!(took >= keepalive && took < keepalive * 3, "{took:?}: {error}");
    in_time(driver).await.unwrap();
    drop(server);
}

#[tokio::test]
async fn a_peer_that_answers_pings_is_kept_however_long_a_stream_is_quiet() {
    let keepalive = Duration::from_millis(20);
    let (client, driver, mut server) = Ends::new().shared(keepalive).await;
    tokio::spawn(driver);
    let mut requests = client.requests.clone().ready().await.unwrap();
    let (mut response, _) = requests.send_request(http::Request::get("http://a/").body(()).unwrap(), true).unwrap();
    let (_request, mut respond) = in_time(server.connection.accept()).await.unwrap().unwrap();
    tokio::spawn(async move { while let Some(Ok(_)) = server.connection.accept().await {} });
    let early = tokio::time::timeout(keepalive * 30, &mut response).await;
    assert!(early.is_err(), "{early:?}");
    assert!(client.overdue() < keepalive);
    respond.send_response(http::Response::new(()), true).unwrap();
    in_time(response).await.unwrap();
}

#[tokio::test]
async fn a_flood_of_resets_ends_the_session() {
    let (client, driver, mut server) = Ends::new().shared(KEEPALIVE).await;
    tokio::spawn(driver);
    let flood = async {
        loop {
            let Ok(mut requests) = client.requests.clone().ready().await else { return };
            let request = http::Request::get("http://a/").body(()).unwrap();
            let Ok((_, mut stream)) = requests.send_request(request, false) else { return };
            stream.send_reset(Reason::CANCEL);
            tokio::task::yield_now().await;
        }
    };
    let serve = poll_fn(|cx| {
        // Takes nothing off the queue, as a server that is busy.
        match server.connection.poll_closed(cx) {
            Poll::Ready(result) => Poll::Ready(result),
            Poll::Pending => Poll::Pending,
        }
    });
    let ((), served) = in_time(async { tokio::join!(flood, serve) }).await;
    assert_eq!(served.unwrap_err().reason(), Some(Reason::ENHANCE_YOUR_CALM));
}
