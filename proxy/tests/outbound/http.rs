//! HTTP/1.1 comes out as it went in (RFC 9110, RFC 9112).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::support::*;

/// Sends a request on a connection that is closed behind it, to an application that answers so.
async fn through(request: &str, answer: &str) -> String {
    let app = App::answering(answer).await;
    let (_lab, client, _server) = Lab::beside(&app, "").await;
    client.exchange(request).await
}

#[tokio::test]
async fn answers_keep_their_framing() {
    const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    const HEAD: &str = "HEAD / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    const CHUNKS: &str = "1\r\na\r\n2\r\nbc\r\n0\r\n\r\n";
    let chunked = format!("200 OK\r\ntransfer-encoding: chunked\r\n\r\n{CHUNKS}");
    let hop = "200 OK\r\nconnection: keep-alive, x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=9\r\n\
               set-cookie: a\r\nset-cookie: b\r\ncontent-length: 0\r\n\r\n";
    for (request, answer, line, headers, body) in [
        (GET, "200 OK\r\ncontent-length: 3\r\n\r\nabc", "200 OK", &["content-length: 3"][..], "abc"),
        (GET, &chunked, "200 OK", &["transfer-encoding: chunked"], CHUNKS),
        (GET, "200 OK\r\ncontent-length: 0\r\n\r\n", "200 OK", &["content-length: 0"], ""),
        (GET, "204 No Content\r\nx-a: b\r\n\r\n", "204 No Content", &["x-a: b"], ""),
        (GET, "304 Not Modified\r\netag: \"a\"\r\n\r\n", "304 Not Modified", &["etag: \"a\""], ""),
        (HEAD, "200 OK\r\ncontent-length: 99\r\n\r\n", "200 OK", &["content-length: 99"], ""),
        (HEAD, "200 OK\r\nx-a: b\r\n\r\n", "200 OK", &["x-a: b"], ""),
        (GET, "418 I'm a teapot\r\ncontent-length: 0\r\n\r\n", "418 I'm a teapot", &["content-length: 0"], ""),
        (GET, hop, "200 OK", &["content-length: 0", "set-cookie: a", "set-cookie: b"], ""),
    ] {
        let got = through(request, &format!("HTTP/1.1 {answer}")).await;
        let (head, rest) = got.split_once("\r\n\r\n").unwrap();
        let mut lines: Vec<&str> = head.split("\r\n").skip(1).filter(|line| *line != "connection: close").collect();
        lines.sort_unstable();
        assert!(head.starts_with(&format!("HTTP/1.1 {line}\r\n")), "{answer:?} came as {got:?}");
        assert_eq!((lines.as_slice(), rest), (headers, body), "{answer:?} came as {got:?}");
    }
}

#[tokio::test]
async fn an_answer_that_ends_with_its_connection_comes_whole() {
    let app = App::new(|mut socket| async move {
        let mut buffer = Vec::new();
        read_request(&mut socket, &mut buffer).await.unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end").await.unwrap();
    })
    .await;
    let (_lab, client, _server) = Lab::beside(&app, "").await;
    let got = client.exchange("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(got.contains("until the end") && got.ends_with("\r\n0\r\n\r\n"), "{got:?}");
    let got = client.exchange("GET / HTTP/1.0\r\n\r\n").await;
    assert!(got.ends_with("\r\n\r\nuntil the end"), "HTTP/1.0 knows no chunks: {got:?}");
}

/// What an application saw of a request that was answered with 200.
async fn seen(request: &str) -> String {
    let (tell, mut told) = mpsc::unbounded_channel();
    let app = App::new(move |mut socket| {
        let tell = tell.clone();
        async move {
            let mut buffer = Vec::new();
            let end = read_until(&mut socket, &mut buffer, b"\r\n\r\n").await.unwrap();
            let head = String::from_utf8(buffer.drain(..end).collect()).unwrap().to_ascii_lowercase();
            if head.contains("chunked") {
                read_until(&mut socket, &mut buffer, b"0\r\n").await.unwrap();
                let at = buffer.windows(3).position(|w| w == b"0\r\n").unwrap();
                let mut tail = buffer.split_off(at + 1);
                read_until(&mut socket, &mut tail, b"\r\n\r\n").await.unwrap();
                buffer.extend(tail);
            } else if let Some(length) = header(&head, "content-length") {
                let length: usize = length.parse().unwrap();
                while buffer.len() < length {
                    socket.read_buf(&mut buffer).await.unwrap();
                }
            }
            tell.send(head + &String::from_utf8(buffer).unwrap()).unwrap();
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let (_lab, client, _server) = Lab::beside(&app, "").await;
    let answer = client.exchange(request).await;
    assert_eq!(status(&answer), 200, "{answer}");
    told.recv().await.unwrap()
}

#[tokio::test]
async fn requests_keep_their_framing_and_lose_what_belongs_to_one_hop() {
    let got = seen(
        "POST /a?b=c HTTP/1.1\r\nHost: checkout:80\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 1\r\n\
         Content-Length: 3\r\nX-Kept: Yes\r\n\r\nabc",
    )
    .await;
    assert!(got.starts_with("post /a?b=c http/1.1\r\n"), "{got}");
    assert!(got.ends_with("\r\n\r\nabc"), "{got}");
    assert_eq!(header(&got, "host"), Some("checkout:80"));
    assert_eq!(header(&got, "content-length"), Some("3"));
    assert_eq!(header(&got, "x-kept"), Some("yes"));
    assert_eq!((header(&got, "x-hop"), header(&got, "keep-alive")), (None, None), "{got}");
}

#[tokio::test]
async fn a_chunked_request_arrives_chunked_with_its_trailers() {
    let got = seen(
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n\
         3\r\nabc\r\n0\r\nx-sum: 7\r\nx-hawser-client-id: spiffe://evil/a\r\n\r\n",
    )
    .await;
    assert!(got.contains("transfer-encoding: chunked"), "{got}");
    assert!(got.contains("3\r\nabc\r\n0\r\n") && got.contains("x-sum: 7\r\n"), "{got}");
    assert!(!got.contains("evil"), "{got}");
}

#[tokio::test]
async fn trailers_of_an_answer_come_to_a_caller_that_takes_them() {
    let got = through(
        "GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: close, te\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n1\r\na\r\n0\r\nx-sum: 7\r\n\r\n",
    )
    .await;
    assert!(got.ends_with("1\r\na\r\n0\r\nx-sum: 7\r\n\r\n"), "{got:?}");
}

#[tokio::test]
async fn the_server_sees_the_callers_identity_and_no_callers_claim() {
    let got = seen(
        "GET / HTTP/1.1\r\nhost: a\r\nX-Hawser-Client-Id: spiffe://evil/a\r\nx_hawser_client_id: spiffe://evil/b\r\n\
         X-Forwarded-Client-Cert: evil\r\nL5d-Client-Id: evil\r\nhawser-target: evil/evil:1\r\n\r\n",
    )
    .await;
    assert_eq!(header(&got, "x-hawser-client-id"), Some("spiffe://west.hawser.test/ns/shop/sa/web"));
    assert!(!got.contains("evil"), "{got}");
}

#[tokio::test]
async fn an_http_1_0_client_is_answered_as_one() {
    let got = through("GET / HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
    assert!(got.ends_with("\r\n\r\nhi"), "{got:?}");
    let absolute = seen("GET http://checkout/a HTTP/1.1\r\nhost: other\r\n\r\n").await;
    assert_eq!(header(&absolute, "host"), Some("checkout"), "{absolute}");
    assert!(absolute.starts_with("get /a http/1.1"), "{absolute}");
    let star = seen("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(star.starts_with("options * http/1.1"), "{star}");
}

#[tokio::test]
async fn requests_on_one_connection_are_answered_in_order() {
    let app = App::replying(Duration::from_millis(5), |request| {
        let path = request.split(' ').nth(1).unwrap();
        Some(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len()))
    })
    .await;
    let (_lab, client, _server) = Lab::beside(&app, "").await;
    let pipelined: String = (0..5).map(|n| format!("GET /{n} HTTP/1.1\r\nhost: a\r\n\r\n")).collect();
    let got = client.exchange(pipelined).await;
    let order: Vec<_> = got.match_indices("\r\n\r\n/").map(|(at, _)| &got[at + 4..at + 6]).collect();
    assert_eq!(order, ["/0", "/1", "/2", "/3", "/4"], "{got:?}");
}

#[tokio::test]
async fn a_100_continue_comes_when_the_server_says_so_and_not_before() {
    let (ask, mut asked) = mpsc::channel::<()>(1);
    let (go, going) = mpsc::channel::<()>(1);
    let going = Arc::new(tokio::sync::Mutex::new(going));
    let app = App::new(move |mut socket| {
        let (ask, going) = (ask.clone(), going.clone());
        async move {
            let mut buffer = Vec::new();
            let end = read_until(&mut socket, &mut buffer, b"\r\n\r\n").await.unwrap();
            assert!(String::from_utf8_lossy(&buffer).to_ascii_lowercase().contains("expect: 100-continue"));
            assert_eq!(buffer.len(), end, "the body came unasked");
            ask.send(()).await.unwrap();
            going.lock().await.recv().await.unwrap();
            socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            read_until(&mut socket, &mut buffer, b"body").await.unwrap();
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let lab = Lab::new();
    let server = Server::new(&lab, "west", app.address, "").await;
    let settings = hawser_proxy::context::Settings { expect_continue: Duration::from_secs(60), ..Default::default() };
    let client = Client::new(&lab, settings).await;
    client.context.set_tables(tables(destination_of(vec![vec![local(&[&server])]], ""), &[]));
    let mut socket = client.connect().await;
    socket.write_all(b"PUT / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n").await.unwrap();
    within("the request", asked.recv()).await.unwrap();
    let mut early = [0; 1];
    assert!(
        tokio::time::timeout(Duration::from_millis(50), socket.peek(&mut early)).await.is_err(),
        "100 came unasked"
    );
    go.send(()).await.unwrap();
    let mut buffer = Vec::new();
    within("100", read_until(&mut socket, &mut buffer, b"HTTP/1.1 100 Continue\r\n\r\n")).await.unwrap();
    socket.write_all(b"body").await.unwrap();
    within("200", read_until(&mut socket, &mut buffer, b"HTTP/1.1 200 OK\r\n")).await.unwrap();
}

#[tokio::test]
async fn a_server_that_does_not_want_the_body_says_so_before_it_is_sent() {
    let app = App::new(|mut socket| async move {
        let mut buffer = Vec::new();
        read_until(&mut socket, &mut buffer, b"\r\n\r\n").await.unwrap();
        socket.write_all(b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        let _ = socket.read(&mut [0; 1]).await;
    })
    .await;
    let (_lab, client, _server) = Lab::beside(&app, "").await;
    let mut socket = client.connect().await;
    socket.write_all(b"PUT / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n").await.unwrap();
    let mut buffer = Vec::new();
    within("417", read_until(&mut socket, &mut buffer, b"\r\n\r\n")).await.unwrap();
    assert!(buffer.starts_with(b"HTTP/1.1 417 "), "{}", String::from_utf8_lossy(&buffer));
}

#[tokio::test]
async fn an_answer_may_come_before_the_request_has_ended() {
    let app = App::new(|mut socket| async move {
        let mut buffer = Vec::new();
        read_until(&mut socket, &mut buffer, b"\r\n\r\n").await.unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nearly\r\n").await.unwrap();
        read_until(&mut socket, &mut buffer, b"the rest").await.unwrap();
        socket.write_all(b"4\r\nlate\r\n0\r\n\r\n").await.unwrap();
    })
    .await;
    let (_lab, client, _server) = Lab::beside(&app, "").await;
    let mut socket = client.connect().await;
    socket.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
    let mut buffer = Vec::new();
    within("the early part", read_until(&mut socket, &mut buffer, b"early")).await.unwrap();
    socket.write_all(b"8\r\nthe rest\r\n0\r\n\r\n").await.unwrap();
    within("the late part", read_until(&mut socket, &mut buffer, b"late")).await.unwrap();
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_seen_to_break_off() {
    for head in ["content-length: 100", "transfer-encoding: chunked"] {
        let part = if head.starts_with('c') { "part" } else { "4\r\npart\r\n" };
        let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{part}");
        let app = App::new(move |mut socket| {
            let answer = answer.clone();
            async move {
                let mut buffer = Vec::new();
                read_request(&mut socket, &mut buffer).await.unwrap();
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        })
        .await;
        let (_lab, client, _server) = Lab::beside(&app, "").await;
        let got = client.exchange("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await;
        assert!(got.contains("part") && !got.ends_with("0\r\n\r\n"), "{head}: {got:?}");
    }
}

#[tokio::test]
async fn a_short_answer_that_breaks_off_is_asked_for_again_where_that_is_harmless() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let app = App::new(move |mut socket| {
        let first = count.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            let mut buffer = Vec::new();
            read_request(&mut socket, &mut buffer).await.unwrap();
            let body = if first { "ha" } else { "half" };
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\n{body}");
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let (_lab, client, _server) = Lab::beside(&app, "").await;
    let got = client.exchange("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(got.starts_with("HTTP/1.1 200") && got.ends_with("\r\n\r\nhalf"), "{got:?}");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_caller_that_goes_away_takes_its_request_with_it() {
    let gone = Arc::new(AtomicUsize::new(0));
    let count = gone.clone();
    let app = App::new(move |mut socket| {
        let count = count.clone();
        async move {
            let mut buffer = Vec::new();
            read_request(&mut socket, &mut buffer).await.unwrap();
            // Never answered: the next thing to be read is the end.
            let _ = socket.read(&mut [0; 1]).await;
            count.fetch_add(1, Ordering::Relaxed);
        }
    })
    .await;
    let (_lab, client, _server) = Lab::beside(&app, "").await;
    let mut socket = client.connect().await;
    socket.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    until("the request", || app.connections.load(Ordering::Relaxed) == 1).await;
    until("the stream", || client.context.streams.count() == 1).await;
    // A reset is no half-close: nobody waits for the answer any more.
    socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
    drop(socket);
    until("the far end", || gone.load(Ordering::Relaxed) == 1).await;
    until("no stream", || client.context.streams.count() == 0).await;
}

#[tokio::test]
async fn large_bodies_go_both_ways_unharmed() {
    let app = App::new(|mut socket| async move {
        let mut buffer = Vec::new();
        let end = read_until(&mut socket, &mut buffer, b"\r\n\r\n").await.unwrap();
        let mut body = buffer.split_off(end);
        while body.len() < 8 << 20 {
            socket.read_buf(&mut body).await.unwrap();
        }
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        socket.write_all(head.as_bytes()).await.unwrap();
        socket.write_all(&body).await.unwrap();
    })
    .await;
    let (_lab, client, _server) = Lab::beside(&app, "").await;
    let body: Vec<u8> = (0..8_usize << 20).map(|n| (n % 251) as u8 % 128).collect();
    let mut request = format!("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
    request.extend_from_slice(&body);
    let got = client.exchange(&request).await;
    assert!(got.as_bytes().ends_with(&body), "{} bytes came back", got.len());
}

#[tokio::test]
async fn two_readings_of_one_request_are_none() {
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    let app = App::replying(Duration::ZERO, move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        Some("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into())
    })
    .await;
    let (_lab, client, _server) = Lab::beside(&app, "http").await;
    for request in [
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3, 4\r\n\r\nabcd",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +3\r\n\r\nabc",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\nabc",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n\r\nabc",
        "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx: a\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx y: a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nx : a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\rx: a\r\n\r\n",
        "GET /\0 HTTP/1.1\r\nhost: a\r\n\r\n",
    ] {
        let got = client.exchange(request).await;
        assert!(got.starts_with("HTTP/1.1 400 ") || got.is_empty(), "{request:?} was answered {got:?}");
    }
    assert_eq!(served.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_length_beside_chunked_never_lets_a_second_request_through() {
    let app = App::new(|mut socket| async move {
        let mut buffer = Vec::new();
        let end = read_until(&mut socket, &mut buffer, b"\r\n\r\n").await.unwrap();
        let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
        assert!(head.contains("chunked") && !head.contains("content-length"), "{head}");
        read_until(&mut socket, &mut buffer, b"0\r\n\r\n").await.unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        let more = socket.read(&mut [0; 100]).await.unwrap_or_default();
        assert_eq!(more, 0, "a second request came through");
    })
    .await;
    let (_lab, client, _server) = Lab::beside(&app, "").await;
    for lengths in
        ["content-length: 4\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 4"]
    {
        // By the length the request would end at `0`, and what follows would be another.
        let request = format!(
            "POST / HTTP/1.1\r\nhost: a\r\n{lengths}\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
        );
        let got = client.exchange(&request).await;
        assert!(got.matches("HTTP/1.1 ").count() <= 1, "{got:?}");
    }
}

#[tokio::test]
async fn refusals_tell_people_and_scripts_what_to_do() {
    let app = App::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let (_lab, client, _server) = Lab::beside(&app, "").await;
    let mut none = destination_of(Vec::new(), "");
    none.unavailable =
        Some(hawser_api::Refusal::new(hawser_api::Code::NotExported, "east no longer exports it", "export it again"));
    client.context.set_tables(tables(none, &[]));
    let got = client.exchange("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert_eq!(status(&got), 403, "{got}");
    assert_eq!(header(&got, "x-hawser-refusal"), Some("not_exported"));
    assert!(got.ends_with("east no longer exports it\nhint: export it again\n"), "{got}");
    assert!(client.metrics().contains(r#"hawser_refusal_total{direction="outbound",code="not_exported"} 1"#));
}
