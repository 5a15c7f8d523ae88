//! HTTP/1.1 inside a CONNECT stream: requests that may turn their connection into something else (WebSocket, CONNECT).
//! They are parsed here, so that the caller's identity can be set, and go to the application over a connection of their
//! own; what it becomes is carried as bytes.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use ::http::header::{self, HeaderValue};
use ::http::{Method, Request, Response, StatusCode, Uri, Version};
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use hawser_api::labels::HEADER_CLIENT_ID;
use hawser_api::{Code, Refusal};
use hawser_tunnel::sealed::StreamIo;
use hawser_tunnel::splice::{Ended, Traffic};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::dial;
use super::request::{Ending, Stream};
use crate::headers;
use crate::streams::{Direction, Entry, Kind};

/// Bytes read at a time of an upgraded connection, each way.
const BUFFER: usize = 16 << 10;
/// A request's head.
const HEAD_MAX: usize = 64 << 10;

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

/// Serves the HTTP/1.1 connection inside a stream until it ends, or until what it became ends.
pub(super) async fn serve(
    stream: &Stream,
    recv: RecvStream,
    respond: &mut SendResponse<Bytes>,
) -> Result<(Entry, Ending), Refusal> {
    let context = &stream.inbound.context;
    let (chosen, app) = dial::connect(context, &stream.inbound.targets, &stream.permit).await?;
    let entry = stream.begin(&chosen.id, Kind::Http);
    let builder = hyper::client::conn::http1::Builder::new().preserve_header_case(true).handshake(TokioIo::new(app));
    let (sender, client) = builder.await.map_err(|e| super::unreachable(chosen.target.address, &e))?;
    let Ok(send) = respond.send_response(Response::new(()), false) else {
        return Ok((entry, Ending { status: None, ended: Ended::PeerReset.as_str() }));
    };
    let shared =
        Shared { sender: tokio::sync::Mutex::new(sender), becomes: Mutex::default(), status: Mutex::default() };
    let service = hyper::service::service_fn(|request| forward(stream, &shared, request));
    let server = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(context.settings.head)
        .max_buf_size(HEAD_MAX)
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(StreamIo::new(send, recv)), service)
        .with_upgrades();
    let client = client.with_upgrades();
    let ended = tokio::select! {
        ended = both(server, client, &shared, &stream.traffic) => ended,
        () = stream.session.cut.cancelled() => Ended::Cut,
    };
    let status = *shared.status.lock();
    Ok((entry, Ending { status, ended: ended.as_str() }))
}

/// What the requests of one connection share.
struct Shared {
    // The application's end; one request at a time, as HTTP/1.1 is.
    sender: tokio::sync::Mutex<SendRequest<Incoming>>,
    // Both ends of a connection that was upgraded.
    becomes: Mutex<Option<(OnUpgrade, OnUpgrade)>>,
    status: Mutex<Option<u16>>,
}

/// Runs both connections, then carries what they became.
async fn both<S, C, E>(server: S, client: C, shared: &Shared, traffic: &Traffic) -> Ended
where
    S: Future<Output = Result<(), E>>,
    C: Future<Output = Result<(), E>>,
{
    let mut failed = None;
    {
        tokio::pin!(server, client);
        let mut client_over = false;
        loop {
            tokio::select! {
                done = &mut server => {
                    failed = done.err().map(|_| Ended::PeerReset);
                    break;
                }
                // The server's side learns of it when it sends the next request.
                done = &mut client, if !client_over => {
                    client_over = true;
                    failed = failed.or(done.err().map(|_| Ended::UpstreamReset));
                }
            }
        }
        let upgraded = shared.becomes.lock().is_some();
        if upgraded && !client_over {
            let _ = client.await;
        }
    }
    let ends = shared.becomes.lock().take();
    let Some((caller, app)) = ends else { return failed.unwrap_or(Ended::Finished) };
    match tokio::try_join!(caller, app) {
        Ok((caller, app)) => carry(caller, app, traffic).await,
        Err(_) => Ended::UpstreamReset,
    }
}

async fn forward(stream: &Stream, shared: &Shared, mut request: Request<Incoming>) -> Result<Answer, hyper::Error> {
    let context = &stream.inbound.context;
    let caller = hyper::upgrade::on(&mut request);
    let method = request.method().clone();
    let request = match prepared(stream, request) {
        Ok(request) => request,
        Err(refusal) => {
            context.metrics.refused(Direction::Inbound, refusal.code);
            *shared.status.lock() = Some(refusal.code.http_status());
            return Ok(refused(&refusal));
        }
    };
    let mut sender = shared.sender.lock().await;
    sender.ready().await?;
    let mut response = sender.send_request(request).await?;
    let status = response.status();
    *shared.status.lock() = Some(status.as_u16());
    stream.route.metrics.request(Some(status.as_u16()), stream.started.elapsed());
    let upgrades = status == StatusCode::SWITCHING_PROTOCOLS || (method == Method::CONNECT && status.is_success());
    if upgrades {
        *shared.becomes.lock() = Some((caller, hyper::upgrade::on(&mut response)));
    }
    response.headers_mut().remove(hawser_api::labels::HEADER_REFUSAL);
    Ok(response.map(BodyExt::boxed))
}

/// The request as the application gets it. Hop-by-hop headers stay: they are what an upgrade is made of.
fn prepared(stream: &Stream, request: Request<Incoming>) -> Result<Request<Incoming>, Refusal> {
    let (mut parts, body) = request.into_parts();
    headers::check_framing(&parts)?;
    let authority = headers::take_authority(&mut parts)?;
    headers::strip_identity(&mut parts.headers);
    parts.headers.insert(HEADER_CLIENT_ID, stream.session.client_id.clone());
    if let Some(host) = authority.as_ref().and_then(|a| HeaderValue::from_str(a.as_str()).ok()) {
        parts.headers.insert(header::HOST, host);
    }
    if parts.method == Method::CONNECT {
        let bad = |_| Refusal::new(Code::BadRequest, "CONNECT without a target", "send CONNECT host:port");
        let target = authority.map_or_else(String::new, |a| a.to_string());
        parts.uri = target.parse().map_err(bad)?;
    } else {
        parts.uri = parts.uri.path_and_query().map_or_else(|| Uri::from_static("/"), |p| Uri::from(p.clone()));
    }
    parts.version = Version::HTTP_11;
    Ok(Request::from_parts(parts, body))
}

fn refused(refusal: &Refusal) -> Answer {
    headers::refusal_response(refusal, false).map(|body| Full::new(body).map_err(|never| match never {}).boxed())
}

/// Carries an upgraded connection: half-closes each way, and a reset of one end as a reset of the other.
async fn carry(caller: Upgraded, app: Upgraded, traffic: &Traffic) -> Ended {
    let (Ok(caller), Ok(app)) = (caller.downcast::<TokioIo<StreamIo>>(), app.downcast::<TokioIo<TcpStream>>()) else {
        return Ended::PeerReset;
    };
    let (caller_early, mut caller) = (caller.read_buf, caller.io.into_inner());
    let (app_early, mut app) = (app.read_buf, app.io.into_inner());
    let result = {
        let (mut from_caller, mut to_caller) = tokio::io::split(&mut caller);
        let (mut from_app, mut to_app) = app.split();
        let up = copy(&mut from_caller, &mut to_app, caller_early, &traffic.received);
        let down = copy(&mut from_app, &mut to_caller, app_early, &traffic.sent);
        tokio::try_join!(
            async { up.await.map_err(|read| if read { Ended::PeerReset } else { Ended::UpstreamReset }) },
            async { down.await.map_err(|read| if read { Ended::UpstreamReset } else { Ended::PeerReset }) },
        )
    };
    match result {
        Ok(_) => Ended::Finished,
        Err(ended) => {
            crate::listen::reset(&app);
            caller.reset();
            ended
        }
    }
}

/// One direction, to its end; an error says whether reading failed.
async fn copy(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    early: Bytes,
    count: &AtomicU64,
) -> Result<(), bool> {
    let mut written = async |data: &[u8]| -> io::Result<()> {
        to.write_all(data).await?;
        to.flush().await?;
        count.fetch_add(u64::try_from(data.len()).unwrap_or_default(), Ordering::Relaxed);
        Ok(())
    };
    written(&early).await.map_err(|_| false)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await.map_err(|_| true)?;
        let Some(data) = buffer.get(..length).filter(|d| !d.is_empty()) else { break };
        written(data).await.map_err(|_| false)?;
    }
    to.shutdown().await.map_err(|_| false)
}
