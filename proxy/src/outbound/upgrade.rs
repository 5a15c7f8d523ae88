//! Requests that turn their connection into something else: upgrades, WebSocket among them, and CONNECT.
//!
//! HTTP/2 streams cannot become a connection, so an HTTP/1.1 connection of its own runs inside a CONNECT stream. The
//! inbound proxy serves it like the application's own, and passes what follows the upgrade on as bytes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hawser_api::{Code, Refusal};
use hawser_tunnel::sealed::StreamIo;
use hawser_tunnel::splice::Traffic;
use http::uri::{Parts, Uri};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::{self, OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;

use super::answer::{Abort, Answer, Inside};
use super::http::{Head, Search, refuse};
use super::retry::PLACES_MAX;
use super::trip::Trip;
use super::{App, connect};
use crate::headers;
use crate::session::Ticket;

/// Buffer of each direction after the upgrade: what comes then are small messages as a rule.
const BUFFER: usize = 16 << 10;

/// Carries one such request.
pub(super) async fn carry(
    mut trip: Trip,
    head: Head,
    mut request: Request<Incoming>,
) -> Result<Response<Answer>, Abort> {
    let app = trip.app.clone();
    let ours = upgrade::on(&mut request);
    let trace = trip.trace().cloned();
    let (ticket, stream, traffic) = match open(&app, &mut trip, trace.as_ref()).await {
        Ok(opened) => opened,
        Err(refusal) => return Ok(refuse(trip, &refusal)),
    };
    let io = TokioIo::new(StreamIo::new(stream.send, stream.recv));
    let (mut requests, connection) = http1::handshake(io).await?;
    // It runs as long as the stream does; its errors are seen where its streams are used.
    app.context.process.spawn(async move {
        let _ = connection.with_upgrades().await;
    });
    let request = match inside(head, request.into_body()) {
        Ok(request) => request,
        Err(refusal) => return Ok(refuse(trip, &refusal)),
    };
    let connects = *request.method() == Method::CONNECT;
    let response = requests.send_request(request).await?;
    trip.answered(response.status());
    let switched = response.status() == StatusCode::SWITCHING_PROTOCOLS || (connects && response.status().is_success());
    Ok(if switched { switch(trip, response, ours, (ticket, traffic)) } else { plain(trip, response, ticket, traffic) })
}

/// A stream for the connection, wherever one can be had.
async fn open(
    app: &Arc<App>,
    trip: &mut Trip,
    trace: Option<&HeaderValue>,
) -> Result<(Ticket, connect::Stream, Arc<Traffic>), Refusal> {
    let mut search = Search::default();
    let mut tries = 0;
    loop {
        let (leg, mut ticket) = search.place(app).await?;
        tries += 1;
        match connect::open(&leg, &mut ticket, "http/1.1", trace).await {
            Ok(stream) => {
                let traffic = trip.goes(&leg, &ticket);
                return Ok((ticket, stream, traffic));
            }
            Err(refusal) if tries >= PLACES_MAX || !refusal.code.retry_elsewhere() => return Err(refusal),
            Err(refusal) => {
                search.avoid(&ticket);
                search.because(refusal);
            }
        }
    }
}

/// The request as HTTP/1.1 again: origin form and `Host`, or authority form.
fn inside(head: Head, body: Incoming) -> Result<Request<Incoming>, Refusal> {
    let mut request = Request::new(body);
    let Parts { authority, path_and_query, .. } = head.uri.into_parts();
    *request.headers_mut() = head.headers;
    if let Some(host) = authority.as_ref().and_then(|a| HeaderValue::from_str(a.as_str()).ok()) {
        request.headers_mut().insert(header::HOST, host);
    }
    let mut parts = Parts::default();
    if head.method == Method::CONNECT {
        parts.authority = authority;
    } else {
        parts.path_and_query = path_and_query;
    }
    *request.method_mut() = head.method;
    *request.uri_mut() = Uri::from_parts(parts).map_err(|error| {
        let message = format!("the request's target is malformed: {error}");
        Refusal::new(Code::BadRequest, message, "send a target as in RFC 9112 section 3.2")
    })?;
    Ok(request)
}

/// The server did not want it: an answer like any other.
fn plain(trip: Trip, response: Response<Incoming>, ticket: Ticket, traffic: Arc<Traffic>) -> Response<Answer> {
    let (mut parts, body) = response.into_parts();
    headers::strip_hop_by_hop(&mut parts.headers);
    parts.version = Version::HTTP_11;
    Response::from_parts(parts, Answer::Inside(Box::new(Inside { body, trip, traffic, ticket })))
}

/// Both sides have agreed: bytes from here on.
fn switch(
    trip: Trip,
    mut response: Response<Incoming>,
    ours: OnUpgrade,
    (ticket, traffic): (Ticket, Arc<Traffic>),
) -> Response<Answer> {
    let theirs = upgrade::on(&mut response);
    let process = trip.app.context.process.clone();
    let http2 = trip.http2;
    trip.app.switched.store(true, Ordering::Relaxed);
    process.spawn(async move {
        let mut trip = trip;
        match tokio::try_join!(ours, theirs) {
            Ok((ours, theirs)) => relay(&mut trip, ours, theirs, &traffic).await,
            Err(error) => tracing::debug!(%error, "an upgrade came to nothing"),
        }
        drop(ticket);
    });
    let (mut parts, _) = response.into_parts();
    if http2 {
        headers::strip_hop_by_hop(&mut parts.headers);
    }
    parts.version = Version::HTTP_11;
    Response::from_parts(parts, Answer::Empty)
}

async fn relay(trip: &mut Trip, ours: Upgraded, theirs: Upgraded, traffic: &Traffic) {
    let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
    match tokio::io::copy_bidirectional_with_sizes(&mut ours, &mut theirs, BUFFER, BUFFER).await {
        Ok((sent, received)) => {
            traffic.sent.store(sent, Ordering::Relaxed);
            traffic.received.store(received, Ordering::Relaxed);
            trip.completed();
        }
        Err(error) => tracing::debug!(%error, "an upgraded connection ended"),
    }
}
