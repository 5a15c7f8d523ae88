//! The admin server: `/live`, `/ready`, `/metrics` (OpenMetrics text) and the daemon's own JSON pages.
//!
//! It listens on loopback alone and answers only requests whose `Host` is loopback too, so that a web page in a
//! browser on the same machine cannot read it by way of a DNS name that it controls.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::process::Process;

/// Connections at one time: a scraper, a prober and a handful of people.
const CONNECTIONS_MAX: usize = 64;
/// A request's header must be there within this time, and a connection may idle no longer between requests.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// Largest request header.
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// After a failed accept (out of file descriptors, most likely): another at once would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Page = Arc<dyn Fn(&str) -> serde_json::Value + Send + Sync>;

/// JSON pages by path.
#[derive(Clone, Default)]
pub struct Pages {
    pages: Arc<Mutex<BTreeMap<&'static str, Page>>>,
}

impl Pages {
    /// Serves `page(query)` under `path` (such as `/streams`).
    pub fn add(&self, path: &'static str, page: impl Fn(&str) -> serde_json::Value + Send + Sync + 'static) {
        self.pages.lock().insert(path, Arc::new(page));
    }

    /// What a page shows now; `None` where there is no such page.
    pub fn show(&self, path: &str, query: &str) -> Option<serde_json::Value> {
        // The lock is released before the page is made: a page may take its time.
        let page = self.pages.lock().get(path).cloned()?;
        Some(page(query))
    }

    fn paths(&self) -> Vec<&'static str> {
        let own = self.pages.lock();
        ["/live", "/ready", "/metrics"].into_iter().chain(own.keys().copied()).collect()
    }
}

/// Binds the admin address, which must be loopback.
pub(crate) async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    if !address.ip().is_loopback() {
        anyhow::bail!("process.admin {address} is not a loopback address\nhint: use 127.0.0.1:0 for any free port");
    }
    TcpListener::bind(address).await.map_err(|error| {
        anyhow::anyhow!("cannot bind the admin address {address}: {error}\nhint: port 0 takes a free one")
    })
}

/// Serves until dropped.
pub(crate) async fn serve(listener: TcpListener, process: Process) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, _)) => {
                let process = process.clone();
                tokio::spawn(async move {
                    connection(socket, process).await;
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "the admin server could not accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(socket: TcpStream, process: Process) {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = answer(&request, &process);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(socket), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "admin connection");
    }
}

fn answer<B>(request: &Request<B>, process: &Process) -> Response<Full<Bytes>> {
    if !host_is_loopback(request) {
        return text(StatusCode::FORBIDDEN, "the Host header must be localhost or a loopback address\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
    }
    match request.uri().path() {
        "/live" => text(StatusCode::OK, "live\n"),
        "/ready" => ready(process),
        "/metrics" => metrics(process),
        path => match process.pages.show(path, request.uri().query().unwrap_or("")) {
            Some(page) => json(StatusCode::OK, &page),
            None => json(StatusCode::NOT_FOUND, &serde_json::json!({ "pages": process.pages.paths() })),
        },
    }
}

/// Ports do not matter: the address is what a rebinding attack cannot forge.
fn host_is_loopback<B>(request: &Request<B>) -> bool {
    let Some(host) = request.headers().get(HOST).and_then(|host| host.to_str().ok()) else { return false };
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn ready(process: &Process) -> Response<Full<Bytes>> {
    let unmet = process.unmet();
    let status = if unmet.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &serde_json::json!({ "ready": unmet.is_empty(), "unmet": unmet }))
}

fn metrics(process: &Process) -> Response<Full<Bytes>> {
    let mut out = String::new();
    if prometheus_client::encoding::text::encode(&mut out, &process.registry.lock()).is_err() {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n");
    }
    respond(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", out)
}

fn json(status: StatusCode, value: &serde_json::Value) -> Response<Full<Bytes>> {
    respond(status, "application/json", format!("{value:#}\n"))
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", body)
}

fn respond(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn get(process: &Process, host: &str, path: &str) -> (StatusCode, String) {
        let request = Request::builder().uri(path).header(HOST, host).body(()).unwrap();
        let response = answer(&request, process);
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn ready_lists_what_is_missing() {
        let process = Process::detached();
        process.set_ready("tables", false);
        process.set_ready("identity", true);
        let (status, body) = get(&process, "127.0.0.1:9990", "/ready").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(body.contains("tables") && !body.contains("identity"), "{body}");
        process.set_ready("tables", true);
        assert_eq!(get(&process, "127.0.0.1:9990", "/ready").await.0, StatusCode::OK);
        process.drain.cancel();
        let (status, body) = get(&process, "127.0.0.1:9990", "/ready").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(body.contains("draining"), "{body}");
    }

    #[tokio::test]
    async fn a_host_that_is_not_loopback_is_refused() {
        let process = Process::detached();
        for host in ["evil.example", "10.0.0.1", "127.0.0.1.evil.example", ""] {
            assert_eq!(get(&process, host, "/live").await.0, StatusCode::FORBIDDEN, "{host}");
        }
        for host in ["localhost", "localhost:1", "127.0.0.1", "127.8.8.8:1", "[::1]:1"] {
            assert_eq!(get(&process, host, "/live").await.0, StatusCode::OK, "{host}");
        }
    }

    #[tokio::test]
    async fn pages_are_json_and_an_unknown_one_lists_the_others() {
        let process = Process::detached();
        process.pages.add("/streams", |query| serde_json::json!({ "query": query }));
        let (status, body) = get(&process, "localhost", "/streams?cluster=east").await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.contains("cluster=east"));
        let (status, body) = get(&process, "localhost", "/nothing").await;
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(body.contains("/streams") && body.contains("/metrics"));
    }

    #[tokio::test]
    async fn metrics_are_open_metrics_text_with_process_basics() {
        let process = Process::detached();
        let (_, body) = get(&process, "localhost", "/metrics").await;
        for family in [
            "process_resident_memory_bytes ",
            "process_cpu_seconds_total ",
            "process_open_fds ",
            "process_start_time_seconds ",
            "hawser_build_info{version=",
        ] {
            assert!(body.contains(&format!("\n{family}")), "{family} in {body}");
        }
        assert!(body.ends_with("# EOF\n"));
    }

    #[tokio::test]
    async fn an_address_that_others_can_reach_is_refused_with_the_remedy() {
        let error = bind("0.0.0.0:0".parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("hint: use 127.0.0.1:0"));
    }
}
