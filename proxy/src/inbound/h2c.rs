//! HTTP/2 with prior knowledge to the application, for callers that spoke HTTP/2 (gRPC): frames, trailers and resets go
//! through one to one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;

use ::http::uri::{Authority, Scheme};
use ::http::{Request, Response, Uri, Version, request};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use hawser_api::labels::HEADER_CLIENT_ID;
use hawser_api::{Code, Refusal};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::body::{Broken, poll_reset, send_all, send_trailers};
use super::dial::{Chosen, Target, Tries};
use super::http::interim;
use super::request::{Ending, Stream, reset};
use crate::context::Context;
use crate::headers;
use crate::streams::{Entry, Kind};

/// Connections to one application. Servers allow some 100 streams on each; more streams than these take wait.
const CONNECTIONS: usize = 8;
/// What one stream may have in flight; loopback needs no more.
const STREAM_WINDOW: u32 = 1 << 20;
/// What a connection's streams may have together.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// All headers of an answer, decoded.
const HEADER_LIST: u32 = 64 << 10;

/// Connections to one application.
#[derive(Default)]
pub(super) struct Connections {
    list: Mutex<Vec<Connection>>,
    freed: Notify,
    // Held while one is opened, so that a burst of streams shares it.
    opening: tokio::sync::Mutex<()>,
}

struct Connection {
    sender: SendRequest<Bytes>,
    active: Arc<AtomicUsize>,
}

/// A place on a connection, until dropped.
struct Lease {
    sender: SendRequest<Bytes>,
    active: Arc<AtomicUsize>,
    target: Arc<Target>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.active.fetch_sub(1, Ordering::Relaxed);
        self.target.h2c.freed.notify_one();
    }
}

/// What there is for one more stream.
enum Room {
    Here(SendRequest<Bytes>, Arc<AtomicUsize>),
    NewConnection,
    None,
}

impl Connections {
    /// A place on a connection that has one; those that are over are forgotten. h2 itself would queue a stream beyond
    /// the application's limit behind others, which may last for ever.
    fn room(&self) -> Room {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let mut list = self.list.lock();
        list.retain_mut(|c| !matches!(c.sender.poll_ready(&mut cx), Poll::Ready(Err(_))));
        let free = |c: &&Connection| c.active.load(Ordering::Relaxed) < c.sender.current_max_send_streams();
        match list.iter().find(free) {
            Some(connection) => {
                connection.active.fetch_add(1, Ordering::Relaxed);
                Room::Here(connection.sender.clone(), connection.active.clone())
            }
            None if list.len() < CONNECTIONS => Room::NewConnection,
            None => Room::None,
        }
    }
}

/// A place for one stream: on a connection that has room, on a new one, or, if there are enough of those, on the first
/// that becomes free.
async fn lease(target: &Arc<Target>, context: &Context) -> Result<Lease, Refusal> {
    let find = async {
        loop {
            let freed = target.h2c.freed.notified();
            let mut room = target.h2c.room();
            if matches!(room, Room::NewConnection) {
                let _alone = target.h2c.opening.lock().await;
                room = target.h2c.room();
                if matches!(room, Room::NewConnection) {
                    open(target, context).await?;
                    continue;
                }
            }
            match room {
                Room::Here(sender, active) => return Ok(Lease { sender, active, target: target.clone() }),
                Room::NewConnection | Room::None => freed.await,
            }
        }
    };
    tokio::time::timeout(context.settings.connect, find).await.unwrap_or_else(|_| {
        Err(Refusal::new(
            Code::Overloaded,
            format!("the application at {} takes no more HTTP/2 streams", target.address),
            "raise its limit of concurrent streams, or add workloads",
        ))
    })
}

async fn open(target: &Target, context: &Context) -> Result<(), Refusal> {
    let socket = target.connect(context).await?;
    let handshake = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEADER_LIST)
        .enable_push(false)
        .handshake(socket);
    let (sender, driver) = handshake.await.map_err(|e| super::unreachable(target.address, &e))?;
    context.process.spawn(async move {
        let _ = driver.await;
    });
    target.h2c.list.lock().push(Connection { sender, active: Arc::default() });
    Ok(())
}

/// A place on a connection to one of the permit's targets.
async fn checkout(stream: &Stream) -> Result<(Chosen, Lease), Refusal> {
    let mut tries = Tries::new(&stream.inbound.targets, &stream.permit);
    loop {
        let chosen = tries.next()?;
        match lease(&chosen.target, &stream.inbound.context).await {
            Ok(lease) => return Ok((chosen, lease)),
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
    let request = request(stream, parts)?;
    let (chosen, mut lease) = checkout(stream).await?;
    let entry = stream.begin(&chosen.id, Kind::Http);
    let ended = recv.is_end_stream();
    let broken = match lease.sender.send_request(request, ended) {
        Ok((answer, mut send)) => match both(stream, recv, &mut send, answer, respond).await {
            Ok(status) => return Ok((entry, Ending { status: Some(status), ended: "finished" })),
            Err((status, broken)) => {
                let (Broken::Caller(reason) | Broken::Application(reason)) = broken;
                send.send_reset(reason);
                (status, broken)
            }
        },
        // Not sent: the caller's proxy may send it elsewhere.
        Err(_) => (None, Broken::Application(Reason::REFUSED_STREAM)),
    };
    reset(respond, broken.1);
    Ok((entry, Ending::broken(broken.0, broken.1)))
}

fn request(stream: &Stream, mut parts: request::Parts) -> Result<Request<()>, Refusal> {
    let authority = headers::take_authority(&mut parts)?;
    headers::strip_identity(&mut parts.headers);
    headers::strip_hop_by_hop(&mut parts.headers);
    parts.headers.insert(HEADER_CLIENT_ID, stream.session.client_id.clone());
    let path = parts.uri.into_parts().path_and_query;
    let mut uri = ::http::uri::Parts::default();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(authority.unwrap_or_else(|| Authority::from_static("localhost")));
    uri.path_and_query = path.or_else(|| Some(::http::uri::PathAndQuery::from_static("/")));
    parts.uri = Uri::from_parts(uri).map_err(|e| {
        Refusal::new(Code::BadRequest, format!("the request's target is malformed: {e}"), "send a valid :path")
    })?;
    parts.version = Version::HTTP_2;
    Ok(Request::from_parts(parts, ()))
}

/// Both directions at once; the answer's end is the end, as RFC 9113 section 8.1 has it.
async fn both(
    stream: &Stream,
    mut recv: RecvStream,
    send: &mut SendStream<Bytes>,
    answer: ResponseFuture,
    respond: &mut SendResponse<Bytes>,
) -> Result<u16, (Option<u16>, Broken)> {
    let traffic = &stream.traffic;
    let ended = recv.is_end_stream();
    let up = async {
        if !ended && let Err(broken) = pump(&mut recv, send, &traffic.received).await {
            // Seen from here, the receiving end is the caller.
            return match broken {
                // The answer says why; it may even be whole.
                Broken::Caller(_) => std::future::pending().await,
                Broken::Application(reason) => reason,
            };
        }
        std::future::pending().await
    };
    let down = down(answer, respond, &traffic.sent);
    tokio::select! {
        biased;
        done = down => done,
        reason = up => Err((None, Broken::Caller(reason))),
    }
}

async fn down(
    mut answer: ResponseFuture,
    respond: &mut SendResponse<Bytes>,
    count: &AtomicU64,
) -> Result<u16, (Option<u16>, Broken)> {
    let mut interims = 0;
    let head = loop {
        let next = std::future::poll_fn(|cx| {
            if let Poll::Ready(Some(Ok(head))) = answer.poll_informational(cx) {
                return Poll::Ready(Ok(Err(head)));
            }
            if let Poll::Ready(head) = std::pin::Pin::new(&mut answer).poll(cx) {
                return Poll::Ready(head.map(Ok).map_err(|e| Broken::Application(reason(&e))));
            }
            respond.poll_reset(cx).map(|r| Err(Broken::Caller(r.unwrap_or(Reason::CANCEL))))
        });
        match next.await.map_err(|broken| (None, broken))? {
            Ok(head) => break head,
            Err(head) => {
                interims += 1;
                if interims <= INTERIM_MAX {
                    interim(respond, head.status(), head.headers().clone());
                }
            }
        }
    };
    let (mut parts, mut body) = head.into_parts();
    let status = parts.status.as_u16();
    headers::strip_response(&mut parts.headers);
    let empty = body.is_end_stream();
    let sent = respond.send_response(Response::from_parts(parts, ()), empty);
    let mut send = sent.map_err(|e| (Some(status), Broken::Caller(reason(&e))))?;
    if !empty {
        // Seen from here, the receiving end is the application, the sending end the caller: as `pump` names them.
        pump(&mut body, &mut send, count).await.map_err(|broken| (Some(status), broken))?;
    }
    Ok(status)
}

/// Interim answers passed on per request.
const INTERIM_MAX: usize = 8;

fn reason(error: &h2::Error) -> Reason {
    if error.is_go_away() && error.is_remote() {
        // Streams beyond the last one that it names were not looked at.
        return Reason::REFUSED_STREAM;
    }
    error.reason().unwrap_or(Reason::INTERNAL_ERROR)
}

/// Moves one direction whole, with backpressure. `Broken::Caller` is the end that is sent to, `Application` the one that
/// is received from, as they are for an answer.
async fn pump(recv: &mut RecvStream, send: &mut SendStream<Bytes>, count: &AtomicU64) -> Result<(), Broken> {
    loop {
        let data = std::future::poll_fn(|cx| match recv.poll_data(cx) {
            Poll::Ready(data) => Poll::Ready(Ok(data)),
            Poll::Pending => poll_reset(send, cx).map(|reason| Err(Broken::Caller(reason))),
        });
        match data.await? {
            Some(Ok(data)) => {
                let length = data.len();
                count.fetch_add(u64::try_from(length).unwrap_or_default(), Ordering::Relaxed);
                let last = recv.is_end_stream();
                send_all(send, data, last).await?;
                // Given back when it is on its way: a slow receiver slows the sender.
                let _ = recv.flow_control().release_capacity(length);
                if last {
                    return Ok(());
                }
            }
            Some(Err(error)) => return Err(Broken::Application(reason(&error))),
            None => break,
        }
    }
    let trailers = std::future::poll_fn(|cx| recv.poll_trailers(cx)).await;
    match trailers.map_err(|e| Broken::Application(reason(&e)))? {
        Some(trailers) => send_trailers(send, trailers),
        None => send_all(send, Bytes::new(), true).await,
    }
}
