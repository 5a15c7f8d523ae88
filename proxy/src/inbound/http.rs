//! HTTP/1.1 to the application, over kept-alive connections: what a caller's proxy turned into HTTP/2 comes out as it
//! went in. One thing does not: trailers of a request that its `Trailer` header does not announce, which hyper drops.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use ::http::header::{self, HeaderValue};
use ::http::{HeaderMap, Request, Response, StatusCode, Uri, Version, request};
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use hawser_api::Refusal;
use hawser_api::labels::HEADER_CLIENT_ID;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::body::{self, Broken, Control, Upload};
use super::dial::{Chosen, Target, Tries};
use super::request::{Ending, Stream, reset};
use crate::context::Context;
use crate::headers;
use crate::streams::{Entry, Kind};

/// Idle connections kept per application.
const IDLE_MAX: usize = 64;
/// Kept this long: below the 2 s after which gunicorn closes, the shortest of the usual servers, so that a request
/// seldom meets a connection that is being closed.
const IDLE_FOR: Duration = Duration::from_millis(1500);
/// Of an application's answer.
const HEAD_MAX: usize = 64 << 10;
/// Header fields of an answer.
const HEADERS_MAX: usize = 256;
/// Interim answers (1xx) passed on per request; the caller's side holds them until they are read.
const INTERIM_MAX: usize = 8;

/// Idle connections to one application, the last used first.
#[derive(Default)]
pub(super) struct Idle {
    connections: Mutex<VecDeque<(Instant, SendRequest<Upload>)>>,
}

impl Idle {
    fn take(&self) -> Option<SendRequest<Upload>> {
        let mut connections = self.connections.lock();
        while connections.front().is_some_and(|(since, _)| since.elapsed() >= IDLE_FOR) {
            connections.pop_front();
        }
        // One whose last answer has just ended may need another turn before it is ready.
        let at = connections.iter().rposition(|(_, c)| c.is_ready())?;
        connections.remove(at).map(|(_, connection)| connection)
    }

    fn put(&self, connection: SendRequest<Upload>) {
        let mut connections = self.connections.lock();
        if connections.len() < IDLE_MAX && !connection.is_closed() {
            connections.push_back((Instant::now(), connection));
        }
    }

    /// Closes those that were idle for too long.
    pub(super) fn prune(&self) {
        self.connections.lock().retain(|(since, c)| !c.is_closed() && since.elapsed() < IDLE_FOR);
    }
}

async fn connect(target: &Target, context: &Context) -> Result<SendRequest<Upload>, Refusal> {
    let socket = target.connect(context).await?;
    let handshake =
        http1::Builder::new().max_header_size(HEAD_MAX).max_headers(HEADERS_MAX).handshake(TokioIo::new(socket));
    let (sender, connection) = handshake.await.map_err(|e| super::unreachable(target.address, &e))?;
    context.process.spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}

/// An idle connection or a new one.
async fn checkout(stream: &Stream) -> Result<(Chosen, SendRequest<Upload>), Refusal> {
    let mut tries = Tries::new(&stream.inbound.targets, &stream.permit);
    loop {
        let chosen = tries.next()?;
        if let Some(connection) = chosen.target.idle.take() {
            return Ok((chosen, connection));
        }
        match connect(&chosen.target, &stream.inbound.context).await {
            Ok(connection) => return Ok((chosen, connection)),
            Err(refusal) => tries.failed(&chosen, refusal),
        }
    }
}

/// Forwards one request and its answer.
pub(super) async fn forward(
    stream: &Stream,
    parts: request::Parts,
    recv: RecvStream,
    respond: &mut SendResponse<Bytes>,
) -> Result<(Entry, Ending), Refusal> {
    let context = &stream.inbound.context;
    let (mut request, control) = request(stream, parts, recv)?;
    let interims = Arc::new(Interims::default());
    let told = interims.clone();
    hyper::ext::on_informational(&mut request, move |response| told.push(response.status(), response.headers()));
    let (chosen, mut connection) = checkout(stream).await?;
    let entry = stream.begin(&chosen.id, Kind::Http);
    let asked = Asked { control: &control, interims: &interims, patience: context.settings.expect_continue };
    let first = exchange(&mut connection, request, respond, &asked).await;
    let answer = match first {
        Err(Failed::Unsent(request)) => {
            // The application closed an idle connection as we took it; nothing of the request was sent.
            connection = connect(&chosen.target, context).await?;
            exchange(&mut connection, *request, respond, &asked).await
        }
        other => other,
    };
    let ending = match answer {
        Ok(response) => answered(stream, response, respond).await,
        Err(Failed::Broken(broken)) => Err((None, broken)),
        Err(Failed::Unsent(_)) => Err((None, Broken::Application(Reason::REFUSED_STREAM))),
    };
    match ending {
        Ok(status) => {
            if control.has_ended() {
                chosen.target.idle.put(connection);
            } else {
                control.stop();
            }
            Ok((entry, Ending { status: Some(status), ended: "finished" }))
        }
        Err((status, broken)) => {
            control.stop();
            reset(respond, broken);
            Ok((entry, Ending::broken(status, broken)))
        }
    }
}

/// The request as the application gets it.
fn request(
    stream: &Stream,
    mut parts: request::Parts,
    recv: RecvStream,
) -> Result<(Request<Upload>, Arc<Control>), Refusal> {
    headers::check_framing(&parts)?;
    let authority = headers::take_authority(&mut parts)?;
    headers::strip_identity(&mut parts.headers);
    headers::strip_hop_by_hop(&mut parts.headers);
    parts.headers.insert(HEADER_CLIENT_ID, stream.session.client_id.clone());
    if let Some(host) = authority.and_then(|a| HeaderValue::from_str(a.as_str()).ok()) {
        parts.headers.insert(header::HOST, host);
    }
    let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let empty = recv.is_end_stream();
    if !empty && length.is_none() {
        // Said outright, because hyper sends a GET's body only then.
        parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let origin = parts.uri.path_and_query().map_or_else(|| Uri::from_static("/"), |p| Uri::from(p.clone()));
    parts.uri = origin;
    parts.version = Version::HTTP_11;
    let held = !empty && headers::has_token(&parts.headers, &header::EXPECT, "100-continue");
    let control = Control::new(held);
    let upload = Upload::new(recv, length, stream.traffic.clone(), control.clone());
    Ok((Request::from_parts(parts, upload), control))
}

/// Interim answers that hyper's connection has seen and nobody has passed on yet.
#[derive(Default)]
struct Interims {
    seen: Mutex<Vec<(StatusCode, HeaderMap)>>,
    waker: AtomicWaker,
}

impl Interims {
    fn push(&self, status: StatusCode, fields: &HeaderMap) {
        let mut seen = self.seen.lock();
        if seen.len() < INTERIM_MAX {
            seen.push((status, fields.clone()));
        }
        drop(seen);
        self.waker.wake();
    }

    fn poll(&self, cx: &mut std::task::Context<'_>) -> Poll<Vec<(StatusCode, HeaderMap)>> {
        self.waker.register(cx.waker());
        let seen = std::mem::take(&mut *self.seen.lock());
        if seen.is_empty() { Poll::Pending } else { Poll::Ready(seen) }
    }
}

/// What an exchange in progress is steered by.
struct Asked<'a> {
    control: &'a Control,
    interims: &'a Interims,
    // How long a body waits for the application's 100.
    patience: Duration,
}

enum Failed {
    /// Nothing of it was sent.
    Unsent(Box<Request<Upload>>),
    Broken(Broken),
}

/// Sends a request and waits for the head of its answer, passing on interim ones. There is no deadline: how long an
/// application may take is its caller's to say, who resets the stream.
async fn exchange(
    connection: &mut SendRequest<Upload>,
    request: Request<Upload>,
    respond: &mut SendResponse<Bytes>,
    asked: &Asked<'_>,
) -> Result<Response<Incoming>, Failed> {
    let sent = connection.try_send_request(request);
    tokio::pin!(sent);
    let mut patience = asked.control.is_held().then(|| Box::pin(tokio::time::sleep(asked.patience)));
    loop {
        tokio::select! {
            biased;
            // Before the answer: both may be ready at once, and a 1xx after the answer would be no 1xx.
            seen = std::future::poll_fn(|cx| asked.interims.poll(cx)) => for (status, fields) in seen {
                if status == StatusCode::CONTINUE {
                    asked.control.open();
                }
                interim(respond, status, fields);
            },
            answer = &mut sent => return answer.map_err(|error| failed(error, asked.control)),
            reason = std::future::poll_fn(|cx| respond.poll_reset(cx)) => {
                return Err(Failed::Broken(Broken::Caller(reason.unwrap_or(Reason::CANCEL))));
            }
            // RFC 9110 section 10.1.1: a client should not wait for ever, for many servers never say 100.
            () = until(&mut patience) => {
                patience = None;
                asked.control.open();
            }
        }
    }
}

/// The time-out, if there is one.
async fn until(patience: &mut Option<std::pin::Pin<Box<tokio::time::Sleep>>>) {
    match patience {
        Some(patience) => patience.await,
        None => std::future::pending().await,
    }
}

fn failed(mut error: hyper::client::conn::TrySendError<Request<Upload>>, control: &Control) -> Failed {
    match error.take_message() {
        Some(request) => Failed::Unsent(Box::new(request)),
        None if control.has_failed() => Failed::Broken(Broken::Caller(Reason::CANCEL)),
        None => {
            tracing::debug!(error = %error.error(), "the application gave no answer");
            Failed::Broken(Broken::Application(Reason::INTERNAL_ERROR))
        }
    }
}

/// Passes an interim answer on.
pub(super) fn interim(respond: &mut SendResponse<Bytes>, status: StatusCode, mut fields: HeaderMap) {
    headers::strip_response(&mut fields);
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    let _ = respond.send_informational(response);
}

/// Passes an answer on; says its status, or how it broke.
async fn answered(
    stream: &Stream,
    response: Response<Incoming>,
    respond: &mut SendResponse<Bytes>,
) -> Result<u16, (Option<u16>, Broken)> {
    let (mut parts, body) = response.into_parts();
    let status = parts.status.as_u16();
    // An application that upgrades without having been asked has left HTTP; nobody could read what follows.
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err((Some(status), Broken::Application(Reason::INTERNAL_ERROR)));
    }
    headers::strip_response(&mut parts.headers);
    parts.version = Version::HTTP_2;
    let empty = hyper::body::Body::is_end_stream(&body);
    let broken = |e: h2::Error| (Some(status), Broken::Caller(e.reason().unwrap_or(Reason::CANCEL)));
    let mut send = respond.send_response(Response::from_parts(parts, ()), empty).map_err(broken)?;
    if !empty {
        let sent = body::download(body, &mut send, &stream.traffic).await;
        sent.map_err(|broken| (Some(status), broken))?;
    }
    Ok(status)
}
