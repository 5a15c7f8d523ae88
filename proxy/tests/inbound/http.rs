//! HTTP/1.1 comes out as it went in.

use bytes::Bytes;
use h2::Reason;

use crate::setup::*;

const CLIENT_ID: &str = "spiffe://west.hawser.test/ns/shop/sa/web";

fn sorted_head(text: &str) -> Vec<String> {
    let mut lines: Vec<_> = text.trim_end().split("\r\n").map(ToOwned::to_owned).collect();
    lines[1..].sort();
    lines
}

#[tokio::test]
async fn a_request_without_a_body_is_plain_http_1_1_with_host_and_identity() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    let (response, _) = send(&client, request("GET", "/cart?id=1").header("accept", "*/*"), true).await;
    let mut connection = app.accept().await;
    let head = connection.until("\r\n\r\n").await;
    assert_eq!(
        sorted_head(&head),
        [
            "GET /cart?id=1 HTTP/1.1",
            "accept: */*",
            "host: checkout.shop:8080",
            &format!("x-hawser-client-id: {CLIENT_ID}"),
        ]
    );
    connection.write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-Hawser-Refusal: not_exported\r\n\r\nhello").await;
    let answer = answer(response).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
    assert_eq!(answer.headers["content-length"], "5");
    for gone in ["connection", "x-hop", "x-hawser-refusal"] {
        assert!(!answer.headers.contains_key(gone), "{gone}");
    }
}

#[tokio::test]
async fn a_body_without_length_is_chunked_and_trailers_come_through_both_ways() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    for method in ["POST", "GET"] {
        let (response, mut body) = send(&client, request(method, "/").header("trailer", "x-sum"), false).await;
        body.send_data(Bytes::from_static(b"one"), false).unwrap();
        let mut connection = app.accept().await;
        let head = connection.until("\r\n\r\n").await;
        assert!(head.contains("\r\ntransfer-encoding: chunked\r\n"), "{head}");
        assert!(!head.contains("content-length"), "{head}");
        assert_eq!(connection.until("one\r\n").await, "3\r\none\r\n");
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        trailers.insert("x-hawser-client-id", "spiffe://evil/a".parse().unwrap());
        body.send_trailers(trailers).unwrap();
        assert_eq!(connection.until("0\r\nx-sum: 7\r\n\r\n").await, "0\r\nx-sum: 7\r\n\r\n");
        connection.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\nConnection: close\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nX-Sum: 9\r\n\r\n").await;
        let answer = answer(response).await.unwrap();
        assert_eq!(answer.body, "abc");
        assert!(!answer.headers.contains_key("transfer-encoding"));
        assert_eq!(answer.trailers.unwrap()["x-sum"], "9");
    }
}

#[tokio::test]
async fn a_body_with_length_keeps_it_and_the_connection_is_used_again() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    let mut connection = None;
    for n in 0..3 {
        let (response, mut body) = send(&client, request("PUT", "/").header("content-length", "5"), false).await;
        body.send_data(Bytes::from_static(b"he"), false).unwrap();
        body.send_data(Bytes::from_static(b"llo"), true).unwrap();
        if connection.is_none() {
            connection = Some(app.accept().await);
        }
        let connection = connection.as_mut().unwrap();
        let head = connection.until("\r\n\r\n").await;
        assert!(head.contains("\r\ncontent-length: 5\r\n") && !head.contains("chunked"), "{n}: {head}");
        connection.until("hello").await;
        connection.write("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(answer(response).await.unwrap().status, 201);
    }
}

#[tokio::test]
async fn a_post_with_an_empty_body_has_the_length_that_its_caller_gave_it() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    for (length, expected) in [(Some("0"), true), (None, false)] {
        let mut post = request("POST", "/");
        if let Some(length) = length {
            post = post.header("content-length", length);
        }
        let (response, _) = send(&client, post, true).await;
        let mut connection = app.accept().await;
        let head = connection.until("\r\n\r\n").await;
        assert_eq!(head.contains("content-length: 0\r\n"), expected, "{head}");
        assert!(!head.contains("chunked"), "{head}");
        connection.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
        assert_eq!(answer(response).await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn head_204_and_304_have_no_body_and_keep_their_length() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    for (method, reply, length) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n", Some("1234")),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", None),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\nETag: \"a\"\r\n\r\n", Some("99")),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None),
    ] {
        let (response, _) = send(&client, request(method, "/"), true).await;
        let mut connection = app.accept().await;
        connection.until("\r\n\r\n").await;
        connection.write(reply.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n")).await;
        let response = in_time(response).await.unwrap();
        assert!(response.body().is_end_stream(), "{method} {reply}");
        assert_eq!(response.headers().get("content-length").map(|v| v.to_str().unwrap()), length, "{reply}");
    }
}

#[tokio::test]
async fn an_answer_without_length_ends_with_the_connection() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    let (response, _) = send(&client, request("GET", "/"), true).await;
    let mut connection = app.accept().await;
    connection.until("\r\n\r\n").await;
    connection.write("HTTP/1.0 200 OK\r\n\r\nall of it").await;
    drop(connection);
    let answer = answer(response).await.unwrap();
    assert_eq!(answer.body, "all of it");
    assert!(!answer.headers.contains_key("content-length"));
}

#[tokio::test]
async fn a_body_that_waits_for_100_is_sent_after_it() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    let post = request("POST", "/").header("expect", "100-continue").header("content-length", "4");
    let (mut response, mut body) = send(&client, post, false).await;
    let mut connection = app.accept().await;
    let head = connection.until("\r\n\r\n").await;
    assert!(head.contains("\r\nexpect: 100-continue\r\n"), "{head}");
    connection.write("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n").await;
    for status in [103, 100] {
        let interim = in_time(std::future::poll_fn(|cx| response.poll_informational(cx))).await.unwrap().unwrap();
        assert_eq!(interim.status(), status);
    }
    body.send_data(Bytes::from_static(b"data"), true).unwrap();
    connection.until("data").await;
    connection.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(answer(response).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_body_that_waits_for_100_in_vain_is_sent_after_a_while() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    let (response, mut body) = send(&client, request("POST", "/").header("expect", "100-continue"), false).await;
    body.send_data(Bytes::from_static(b"data"), true).unwrap();
    let mut connection = app.accept().await;
    assert!(connection.until("0\r\n\r\n").await.ends_with("4\r\ndata\r\n0\r\n\r\n"));
    connection.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(answer(response).await.unwrap().status, 200);
}

#[tokio::test]
async fn an_answer_instead_of_100_comes_through_and_the_body_is_not_sent() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    let (response, mut body) = send(&client, request("POST", "/").header("expect", "100-continue"), false).await;
    let mut connection = app.accept().await;
    connection.until("\r\n\r\n").await;
    connection.write("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno").await;
    let answer = answer(response).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (417, "no"));
    let _ = body.send_data(Bytes::from_static(b"data"), true);
    let (rest, _) = connection.rest().await;
    assert_eq!(rest, "");
}

#[tokio::test]
async fn an_early_answer_ends_the_exchange_and_the_caller_may_stop_sending() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    let (response, mut body) = send(&client, request("POST", "/").header("content-length", "1000000"), false).await;
    body.send_data(Bytes::from_static(b"first"), false).unwrap();
    let mut connection = app.accept().await;
    connection.until("first").await;
    connection.write("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig").await;
    let answer = answer(response).await.unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (413, "big"));
    let reset = in_time(std::future::poll_fn(|cx| body.poll_reset(cx))).await.unwrap();
    assert_eq!(reset, Reason::NO_ERROR);
    connection.rest().await;
}

#[tokio::test]
async fn an_answer_may_begin_before_its_request_has_ended() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    let (response, mut body) = send(&client, request("POST", "/"), false).await;
    let mut connection = app.accept().await;
    connection.until("\r\n\r\n").await;
    connection.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let response = in_time(response).await.unwrap();
    let mut recv = response.into_body();
    for word in ["one", "two", "six"] {
        body.send_data(Bytes::from_static(word.as_bytes()), false).unwrap();
        connection.until(word).await;
        connection.write(format!("3\r\n{word}\r\n")).await;
        assert_eq!(in_time(recv.data()).await.unwrap().unwrap(), word);
    }
    body.send_data(Bytes::new(), true).unwrap();
    connection.until("0\r\n\r\n").await;
    connection.write("0\r\n\r\n").await;
    assert!(is_over(&mut recv).await);
}

#[tokio::test]
async fn an_application_that_breaks_off_resets_the_stream() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    for (begin, by_reset) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome", true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome", false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\n", false),
    ] {
        let (response, _) = send(&client, request("GET", "/"), true).await;
        let mut connection = app.accept().await;
        connection.until("\r\n\r\n").await;
        connection.write(begin).await;
        let response = in_time(response).await.unwrap();
        let mut recv = response.into_body();
        assert_eq!(in_time(recv.data()).await.unwrap().unwrap(), "some");
        if by_reset {
            connection.reset();
        } else {
            drop(connection);
        }
        let error = in_time(recv.data()).await.unwrap().unwrap_err();
        assert!(error.is_reset(), "{begin}: {error}");
    }
    let (response, _) = send(&client, request("GET", "/"), true).await;
    let mut connection = app.accept().await;
    connection.until("\r\n\r\n").await;
    drop(connection);
    assert!(answer(response).await.is_err_and(|e| e.is_reset()));
}

#[tokio::test]
async fn a_caller_that_breaks_off_ends_the_applications_connection() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    // Before the answer, without and with a body under way, and in the middle of an answer.
    for (end, begin) in [(true, ""), (false, ""), (true, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")] {
        let (response, mut body) = send(&client, request("POST", "/"), end).await;
        let mut connection = app.accept().await;
        connection.until("\r\n\r\n").await;
        connection.write(begin).await;
        if begin.is_empty() {
            body.send_reset(Reason::CANCEL);
            drop(response);
        } else {
            let mut recv = in_time(response).await.unwrap().into_body();
            assert_eq!(in_time(recv.data()).await.unwrap().unwrap(), "some");
            body.send_reset(Reason::CANCEL);
        }
        let (rest, _) = connection.rest().await;
        assert!(!rest.contains("0\r\n\r\n"), "a broken body must not look whole: {rest}");
    }
    eventually(|| proxy.context.streams.count() == 0).await;
}

#[tokio::test]
async fn an_idle_connection_that_the_application_has_closed_costs_no_request() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    for _ in 0..5 {
        let (response, _) = send(&client, request("POST", "/"), true).await;
        let mut connection = app.accept().await;
        connection.until("\r\n\r\n").await;
        connection.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        // Closed without a word after an answer that promised to keep it.
        drop(connection);
        assert_eq!(answer(response).await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn a_body_is_held_back_by_an_application_that_does_not_read() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    let (_response, mut body) = send(&client, request("POST", "/"), false).await;
    let mut connection = app.accept().await;
    connection.until("\r\n\r\n").await;
    let mut sent = 0_usize;
    let stalled = loop {
        body.reserve_capacity(64 << 10);
        let room = tokio::time::timeout(
            std::time::Duration::from_millis(500),
            std::future::poll_fn(|cx| body.poll_capacity(cx)),
        );
        match room.await {
            Ok(Some(Ok(n))) => {
                body.send_data(Bytes::from(vec![b'x'; n]), false).unwrap();
                sent += n;
                assert!(sent < 64 << 20, "nothing holds the caller back");
            }
            Ok(other) => panic!("{other:?}"),
            Err(_) => break sent,
        }
    };
    // And goes on when it reads.
    let mut read = 0;
    let mut buffer = vec![0; 1 << 20];
    while read < stalled {
        read += in_time(tokio::io::AsyncReadExt::read(&mut connection.socket, &mut buffer)).await.unwrap();
    }
}

#[tokio::test]
async fn forged_identity_never_reaches_the_application() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    let mut get = request("GET", "/");
    for name in hawser_api::labels::IDENTITY_HEADERS {
        get = get.header(*name, "spiffe://evil/a").header(*name, "spiffe://evil/b");
        get = get.header(name.replace('-', "_"), "spiffe://evil/c");
    }
    let (response, _) = send(&client, get.header("hawser-trace", "x"), true).await;
    let mut connection = app.accept().await;
    let head = connection.until("\r\n\r\n").await;
    assert!(!head.contains("evil") && !head.contains("hawser-t") && !head.contains("hawser-v"), "{head}");
    assert_eq!(head.matches("x-hawser-client-id").count(), 1, "{head}");
    connection.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    answer(response).await.unwrap();
}

#[tokio::test]
async fn a_host_that_disagrees_with_the_authority_is_refused() {
    let app = App::bind().await;
    let proxy = Proxy::checkout(&app).await;
    let client = proxy.caller().await;
    let (response, _) = send(&client, request("GET", "/").header("host", "other.shop"), true).await;
    let answer = answer(response).await.unwrap();
    assert_eq!(answer.status, 400);
    assert_eq!(answer.headers["x-hawser-refusal"], "bad_request");
}

#[tokio::test]
async fn the_application_with_the_fewest_open_requests_is_chosen_and_a_dead_one_is_passed_over() {
    let (first, second) = (App::bind().await, App::bind().await);
    let dead = App::bind().await.address;
    let proxy = Proxy::start(&[(CHECKOUT, &[first.address, second.address, dead], &["west"])]).await;
    let client = proxy.caller().await;
    let mut responses = Vec::new();
    for _ in 0..4 {
        responses.push(send(&client, request("GET", "/"), true).await);
    }
    for app in [&first, &second, &first, &second] {
        let mut connection = app.accept().await;
        connection.until("\r\n\r\n").await;
        connection.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await;
    }
    for (response, _) in responses {
        assert_eq!(answer(response).await.unwrap().status, 200);
    }
}
