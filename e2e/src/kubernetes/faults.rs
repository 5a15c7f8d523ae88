//! A proxy before an API server that does to requests what networks, load balancers and overloaded servers do.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderName, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use kube::{Client, Config};
use parking_lot::Mutex;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::sync::CancellationToken;

use super::plane::{ControlPlane, config};

/// So many requests are remembered.
const REMEMBERED: usize = 200_000;
/// So many connections are served at once; more wait.
const CONNECTIONS: usize = 512;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// What is done to a request that a rule fits.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Answered with this status, worded as an API server does, which itself never sees the request.
    Answer(u16),
    /// Passed on so much later.
    Delay(Duration),
    /// The connection is closed without an answer; the API server never sees the request.
    Drop,
    /// The API server does it; the connection is closed without its answer.
    Lose,
}

/// Which requests meet a fault.
#[derive(Debug, Clone)]
pub struct Rule {
    method: Option<Method>,
    part: String,
    times: usize,
    fault: Fault,
}

impl Rule {
    /// Every request, until [`Faults::clear`].
    pub fn every(fault: Fault) -> Self {
        Self { method: None, part: String::new(), times: usize::MAX, fault }
    }

    /// Only those whose path and query contain this: `/namespaces/shop/`, `watch=true`.
    #[must_use]
    pub fn on(self, part: &str) -> Self {
        Self { part: part.to_owned(), ..self }
    }

    /// Only those of this method.
    #[must_use]
    pub fn method(self, method: Method) -> Self {
        Self { method: Some(method), ..self }
    }

    /// Only the first so many.
    #[must_use]
    pub fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }

    fn fits(&self, method: &Method, path: &str) -> bool {
        self.times > 0 && path.contains(&self.part) && self.method.as_ref().is_none_or(|only| only == method)
    }
}

/// A request that came, and what was answered.
#[derive(Debug, Clone)]
pub struct Seen {
    /// `GET`, `PATCH`, …
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// Of the answer, whoever gave it; none if there was no answer (yet).
    pub status: Option<StatusCode>,
}

impl Seen {
    /// Whether it is a watch.
    pub fn is_watch(&self) -> bool {
        is_watch(&self.path)
    }

    /// Whether it would change something.
    pub fn is_write(&self) -> bool {
        self.method != Method::GET
    }
}

/// How watches that run are ended.
#[derive(Debug, Clone, Copy)]
enum End {
    Cut,
    Expired,
}

/// A proxy that runs until it is dropped.
#[derive(Debug)]
pub struct Faults {
    address: SocketAddr,
    kubeconfig: PathBuf,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

struct Shared {
    onward: Client,
    state: Mutex<State>,
    ends: broadcast::Sender<End>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    seen: VecDeque<Seen>,
    forgotten: usize,
}

impl Faults {
    /// Starts one before the API server of a control plane; it has no fault yet.
    pub async fn before(plane: &ControlPlane) -> Result<Self> {
        let credentials = plane.credentials();
        let mut config = Config::new(format!("https://{}", plane.server()).parse()?);
        config.root_cert = Some(vec![CertificateDer::from_pem_file(&credentials.ca)?.to_vec()]);
        // What the API server says is passed on as it is.
        config.default_retry = false;
        let certificate = CertificateDer::from_pem_file(&credentials.serving)?;
        let key = PrivateKeyDer::from_pem_file(&credentials.serving_key)?;
        let tls = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key)?;
        let listener = TcpListener::bind((plane.server().ip(), 0)).await.context("cannot bind the fault proxy")?;
        let address = listener.local_addr()?;
        let (ends, _) = broadcast::channel(4);
        let onward = Client::try_from(config)?;
        let shared = Arc::new(Shared { onward, state: Mutex::default(), ends });
        let stop = CancellationToken::new();
        let (stopped, accepting) = (stop.clone(), accept(listener, TlsAcceptor::from(Arc::new(tls)), shared.clone()));
        tokio::spawn(async move { stopped.run_until_cancelled(accepting).await });
        Ok(Self { address, kubeconfig: plane.kubeconfig_by(address)?, shared, stop })
    }

    /// Where it listens, with the API server's own certificate.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The administrator's kubeconfig that leads here.
    pub fn kubeconfig(&self) -> &PathBuf {
        &self.kubeconfig
    }

    /// An administrator's client that comes this way and tries nothing twice.
    pub async fn client(&self) -> Result<Client> {
        let mut config = config(&self.kubeconfig).await?;
        config.default_retry = false;
        Ok(Client::try_from(config)?)
    }

    /// From now on; of several rules that fit a request the first counts.
    pub fn add(&self, rule: Rule) {
        self.shared.state.lock().rules.push(rule);
    }

    /// No faults from now on.
    pub fn clear(&self) {
        self.shared.state.lock().rules.clear();
    }

    /// Every watch that runs breaks off in the middle, as when a load balancer restarts.
    pub fn cut_watches(&self) {
        // Nobody watches: nothing to cut.
        let _ = self.shared.ends.send(End::Cut);
    }

    /// Every watch that runs is told `410 Gone`: its resource version is compacted.
    pub fn expire_watches(&self) {
        let _ = self.shared.ends.send(End::Expired);
    }

    /// The requests since the start or [`Self::forget`].
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.state.lock().seen.iter().cloned().collect()
    }

    /// How many of them are such.
    pub fn count(&self, such: impl Fn(&Seen) -> bool) -> usize {
        self.shared.state.lock().seen.iter().filter(|seen| such(seen)).count()
    }

    /// Starts the record of requests anew.
    pub fn forget(&self) {
        let mut state = self.shared.state.lock();
        state.forgotten += state.seen.len();
        state.seen.clear();
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl State {
    /// Records a request and decides what happens to it; its number is for [`Self::answered`].
    fn judge(&mut self, method: &Method, path: &str) -> (usize, Option<Fault>) {
        if self.seen.len() == REMEMBERED {
            self.seen.pop_front();
            self.forgotten += 1;
        }
        self.seen.push_back(Seen { method: method.clone(), path: path.to_owned(), status: None });
        let number = self.forgotten + self.seen.len() - 1;
        let rule = self.rules.iter_mut().find(|rule| rule.fits(method, path));
        let fault = rule.map(|rule| {
            rule.times -= 1;
            rule.fault
        });
        (number, fault)
    }

    fn answered(&mut self, number: usize, status: StatusCode) {
        let at = number.checked_sub(self.forgotten);
        if let Some(seen) = at.and_then(|at| self.seen.get_mut(at)) {
            seen.status = Some(status);
        }
    }
}

fn is_watch(path: &str) -> bool {
    path.contains("watch=true") || path.contains("watch=1")
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS => if let Ok((stream, _)) = accepted {
                connections.spawn(serve(stream, tls.clone(), Arc::clone(&shared)));
            },
        }
    }
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let Ok(stream) = tls.accept(stream).await else { return };
    let service = service_fn(|request| pass(Arc::clone(&shared), request));
    // An error is what a test asked for, or a client that went away.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// An error closes the connection without an answer.
async fn pass(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Answer, BoxError> {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let (number, fault) = shared.state.lock().judge(request.method(), &path);
    let answer = match fault {
        Some(Fault::Answer(status)) => refusal(status)?,
        Some(Fault::Drop) => return Err("dropped".into()),
        Some(Fault::Lose) => {
            forward(&shared, request, &path).await?.into_body().collect().await?;
            return Err("lost".into());
        }
        Some(Fault::Delay(long)) => {
            tokio::time::sleep(long).await;
            forward(&shared, request, &path).await?
        }
        None => forward(&shared, request, &path).await?,
    };
    shared.state.lock().answered(number, answer.status());
    Ok(answer)
}

async fn forward(shared: &Shared, request: Request<Incoming>, path: &str) -> Result<Answer, BoxError> {
    let ends = shared.ends.subscribe();
    let (mut parts, body) = request.into_parts();
    parts.uri = path.parse()?;
    // What belongs to the connection with the client.
    for name in [header::HOST, header::CONNECTION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH] {
        parts.headers.remove(name);
    }
    let body = Body::from(body.collect().await?.to_bytes());
    let (mut parts, body) = shared.onward.send(Request::from_parts(parts, body)).await?.into_parts();
    parts.headers.remove(header::TRANSFER_ENCODING);
    parts.headers.remove(header::CONNECTION);
    let body = if is_watch(path) && parts.status.is_success() {
        until(body, ends)
    } else {
        body.map_err(BoxError::from).boxed_unsync()
    };
    Ok(Response::from_parts(parts, body))
}

/// A watch's body, until it ends by itself or is ended.
fn until(body: Body, ends: broadcast::Receiver<End>) -> UnsyncBoxBody<Bytes, BoxError> {
    let events = stream::unfold(Some((body.into_data_stream(), ends)), async |running| {
        let (mut body, mut ends) = running?;
        let item: Result<Bytes, BoxError> = tokio::select! {
            end = ends.recv() => return Some((last(end.ok()?), None)),
            item = body.next() => item?.map_err(Into::into),
        };
        Some((item.map(Frame::data), Some((body, ends))))
    });
    StreamBody::new(events).boxed_unsync()
}

fn last(end: End) -> Result<Frame<Bytes>, BoxError> {
    match end {
        End::Cut => Err("cut".into()),
        End::Expired => {
            let event = json!({ "type": "ERROR", "object": status(410) });
            Ok(Frame::data(Bytes::from(format!("{event}\n"))))
        }
    }
}

fn refusal(code: u16) -> Result<Answer, BoxError> {
    let mut answer = Response::builder().status(code).header(header::CONTENT_TYPE, "application/json");
    if code == 429 {
        answer = answer.header(HeaderName::from_static("retry-after"), "1");
    }
    let body = Full::new(Bytes::from(status(code).to_string())).map_err(|never| match never {});
    Ok(answer.body(body.boxed_unsync())?)
}

/// As an API server says it.
fn status(code: u16) -> serde_json::Value {
    let (reason, message) = match code {
        403 => ("Forbidden", "forbidden: by a test"),
        409 => ("Conflict", "the object has been modified; please apply your changes to the latest version"),
        410 => ("Expired", "too old resource version: 1 (2)"),
        429 => ("TooManyRequests", "too many requests, please try again later"),
        503 => ("ServiceUnavailable", "apiserver not ready"),
        _ => ("InternalError", "an error on the server has prevented the request from succeeding"),
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}
