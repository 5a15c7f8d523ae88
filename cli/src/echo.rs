//! `hawser echo`: a server that says who it is and who called, over HTTP/1.1 and HTTP/2 with prior knowledge.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use hawser_api::labels::HEADER_CLIENT_ID;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections at one time.
const CONNECTIONS_MAX: usize = 4096;
/// For a request's header.
const HEADER_DEADLINE: Duration = Duration::from_secs(30);
/// Longest `/slow?ms=`.
const SLOW_MAX: u64 = 600_000;
/// One piece of `/bytes?n=`.
const CHUNK: usize = 64 * 1024;

/// A small HTTP server to try a fabric with: answers with its name and the caller's identity.
///
/// `/` and any other path: name, cluster, method, path and caller as JSON (as text with `Accept: text/plain`).
/// `/status/NNN` answers with that status, `/slow?ms=N` after that time, `/bytes?n=N` with that many bytes.
#[derive(Debug, clap::Args)]
pub(crate) struct Echo {
    /// Where to listen.
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
    /// The name that it answers with.
    #[arg(long)]
    name: String,
    /// The cluster that it answers with.
    #[arg(long, default_value = "")]
    cluster: String,
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

struct Who {
    name: String,
    cluster: String,
}

/// Serves until the process is ended.
pub(crate) fn run(args: &Echo) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(args.listen)
            .await
            .with_context(|| format!("cannot listen on {}\nhint: is something else there?", args.listen))?;
        print_start(args);
        serve(listener, Arc::new(Who { name: args.name.clone(), cluster: args.cluster.clone() })).await;
        Ok(())
    })
}

fn print_start(args: &Echo) {
    crate::print::note(format!("{} listens on {}", args.name, args.listen));
}

async fn serve(listener: TcpListener, who: Arc<Who>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let who = who.clone();
        connections.spawn(async move {
            connection(socket, who).await;
            drop(slot);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(socket: TcpStream, who: Arc<Who>) {
    let _ = socket.set_nodelay(true);
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_DEADLINE);
    server.http2().timer(TokioTimer::new());
    let service = service_fn(move |request| {
        let who = who.clone();
        async move { Ok::<_, Infallible>(answer(&who, request).await) }
    });
    // A client that goes away is its own affair.
    let _ = server.serve_connection(TokioIo::new(socket), service).await;
}

async fn answer(who: &Who, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or("").to_owned();
    let number = |name: &str| number(&query, name);
    let status = path.strip_prefix("/status/").and_then(|text| text.parse::<u16>().ok());
    let status = status.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::OK);
    if path == "/slow" {
        tokio::time::sleep(Duration::from_millis(number("ms").unwrap_or(1000).min(SLOW_MAX))).await;
    }
    if path == "/bytes" {
        return Response::new(bytes(number("n").unwrap_or(1024)));
    }
    let (head, body) = request.into_parts();
    let received = received(body).await;
    let text = head.headers.get(http::header::ACCEPT).is_some_and(|accept| accept == "text/plain");
    let (kind, content) = match text {
        true => ("text/plain", plain(who, &head.method, &path, &head.headers)),
        false => ("application/json", about(who, &head, &path, received)),
    };
    let mut response = Response::new(Full::new(Bytes::from(content)).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

fn plain(who: &Who, method: &http::Method, path: &str, headers: &HeaderMap) -> String {
    format!("{} in {}: {method} {path} from {}\n", who.name, who.cluster, client(headers).unwrap_or("nobody known"))
}

fn about(who: &Who, head: &http::request::Parts, path: &str, received: u64) -> String {
    let about = json!({
        "name": who.name,
        "cluster": who.cluster,
        "method": head.method.as_str(),
        "path": path,
        "version": format!("{:?}", head.version),
        "host": head.headers.get(http::header::HOST).and_then(|host| host.to_str().ok())
            .or(head.uri.authority().map(http::uri::Authority::as_str)),
        "client": client(&head.headers),
        "bytesReceived": received,
    });
    format!("{about:#}\n")
}

fn client(headers: &HeaderMap) -> Option<&str> {
    headers.get(HEADER_CLIENT_ID)?.to_str().ok()
}

async fn received(mut body: Incoming) -> u64 {
    let mut count = 0;
    while let Some(Ok(frame)) = body.frame().await {
        count += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
    count
}

/// So many bytes, `0123456789` over and over, so that a receiver can check them.
fn bytes(count: u64) -> Body {
    let pieces = futures_util::stream::unfold(0u64, move |sent| async move {
        let length = usize::try_from(count - sent).unwrap_or(CHUNK).min(CHUNK);
        let piece: Bytes = (sent..).take(length).map(|at| b'0' + u8::try_from(at % 10).unwrap_or(0)).collect();
        (length > 0).then(|| (Ok::<_, Infallible>(Frame::data(piece)), sent + length as u64))
    });
    StreamBody::new(pieces).boxed_unsync()
}

fn number(query: &str, name: &str) -> Option<u64> {
    query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name)?.1.parse().ok()
}
