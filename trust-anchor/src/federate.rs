//! Our own bundle as a SPIFFE bundle endpoint (SPIFFE Federation section 5): anybody may read it, nobody need prove who
//! he is, and nothing else can be asked for.
//!
//! ```text
//! anybody ─ TLS (https_web: a certificate from files │ https_spiffe: an SVID of ours) ─▶ GET ─▶ the bundle as published
//! ```

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use bytes::Bytes;
use hawser_api::objects::link::BundleProfile;
use hawser_runtime::{Process, clock};
use hawser_tunnel::https::Server;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::authority::Authority;
use crate::hierarchy::describe;
use crate::svid;

/// Connections at a time: a document of a few kilobytes is out within a round trip.
const CONNECTIONS_MAX: usize = 64;
/// From the connection to its end.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
/// For the request's head.
const HEAD_MAX: Duration = Duration::from_secs(5);
/// How often is looked whether it is time for another certificate, also while nobody asks: so that a failure is known
/// before somebody does.
const LOOK: Duration = Duration::from_secs(1);
/// After a failure to accept, trying again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Where and how the bundle is served.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BundleEndpointConfig {
    /// Where it listens, TCP.
    pub address: SocketAddr,
    /// How it proves who it is.
    pub profile: BundleProfile,
    /// Of `https_web`: certificate chain, PEM; read anew when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Of `https_web`: key, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// Binds; serve it afterwards.
pub(crate) async fn bind(config: &BundleEndpointConfig) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(config.address).await;
    listener.with_context(|| format!("cannot serve the bundle on {}", config.address))
}

/// Serves until the process drains.
pub(crate) async fn serve(
    authority: Arc<Authority>,
    listener: TcpListener,
    config: BundleEndpointConfig,
    process: Process,
) {
    let address = listener.local_addr().map_or_else(|e| e.to_string(), |address| address.to_string());
    tracing::info!(address, profile = config.profile.as_str(), "serving the bundle");
    let (places, tasks) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), TaskTracker::new());
    let endpoint = Arc::new(Endpoint { authority, config, proof: Mutex::new(None) });
    process.spawn(Arc::clone(&endpoint).renew());
    loop {
        let accepted = tokio::select! {
            () = process.drain.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, remote)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Closed unseen where there is no room: whoever polls asks again at the next tick.
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
        let endpoint = Arc::clone(&endpoint);
        tasks.spawn(async move {
            let _held = place;
            match timeout(CONNECTION_MAX, endpoint.answer(socket)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%remote, error = format!("{error:#}"), "a reader of the bundle failed")
                }
                Err(_) => tracing::debug!(%remote, "a reader of the bundle took too long"),
            }
        });
    }
    tasks.close();
    tasks.wait().await;
}

struct Endpoint {
    authority: Arc<Authority>,
    config: BundleEndpointConfig,
    proof: Mutex<Option<Proof>>,
}

/// With what the endpoint proves who it is, what that was made of, and until when it holds.
struct Proof {
    server: Server,
    made_of: MadeOf,
    not_after: Option<SystemTime>,
}

#[derive(PartialEq)]
enum MadeOf {
    /// Our own SVID's leaf.
    Svid(Vec<u8>),
    /// The contents of chain and key files.
    Files(Vec<u8>, Vec<u8>),
}

impl Endpoint {
    async fn answer(self: Arc<Self>, socket: TcpStream) -> anyhow::Result<()> {
        socket.set_nodelay(true)?;
        let own = Arc::clone(&self);
        // Files may be read, a certificate signed and recorded.
        let server = tokio::task::spawn_blocking(move || own.server(clock::now())).await??;
        let stream = server.accept(socket).await?;
        let service = service_fn(move |request| {
            let reply = reply(&request, self.authority.bundle.borrow().clone());
            std::future::ready(Ok::<_, std::convert::Infallible>(reply))
        });
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_MAX)
            .max_buf_size(16 * 1024)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
            .await?;
        Ok(())
    }

    /// Has something to prove itself with, also while nobody asks, and says when that ends.
    async fn renew(self: Arc<Self>) {
        loop {
            let own = Arc::clone(&self);
            let _ = tokio::task::spawn_blocking(move || own.server(clock::now())).await;
            self.authority.record.ends("bundle_endpoint", self.proof.lock().as_ref().and_then(|proof| proof.not_after));
            tokio::time::sleep(LOOK).await;
        }
    }

    fn server(&self, now: SystemTime) -> anyhow::Result<Server> {
        let mut proof = self.proof.lock();
        let proved = match self.config.profile {
            BundleProfile::HttpsSpiffe => self.svid(proof.as_ref(), now)?,
            BundleProfile::HttpsWeb => self.files(proof.as_ref())?,
        };
        if let Some(fresh) = proved {
            *proof = Some(fresh);
        }
        proof.as_ref().map(|proof| proof.server.clone()).context("nothing to prove ourselves with")
    }

    /// The trust anchor's own SVID, which it renews when it is asked for it.
    fn svid(&self, old: Option<&Proof>, now: SystemTime) -> anyhow::Result<Option<Proof>> {
        let identity = svid::current(&self.authority, now)?;
        let made_of = MadeOf::Svid(identity.chain().first().map(|leaf| leaf.to_vec()).unwrap_or_default());
        if old.is_some_and(|proof| proof.made_of == made_of) {
            return Ok(None);
        }
        let server = Server::spiffe(&identity, clock::now)?;
        Ok(Some(Proof { server, made_of, not_after: Some(identity.not_after()) }))
    }

    fn files(&self, old: Option<&Proof>) -> anyhow::Result<Option<Proof>> {
        let read = |path: &Option<PathBuf>, what: &str| {
            let path = path.as_ref().with_context(|| format!("https_web needs a {what}"))?;
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let (chain, key) = (read(&self.config.certificate, "certificate")?, read(&self.config.key, "key")?);
        let same = |made_of: &MadeOf| matches!(made_of, MadeOf::Files(c, k) if *c == chain && *k == key);
        if old.is_some_and(|proof| same(&proof.made_of)) {
            return Ok(None);
        }
        let server = Server::web(&chain, &key, clock::now)?;
        let not_after =
            CertificateDer::from_pem_slice(&chain).ok().and_then(|der| describe(&der)).map(|about| about.until);
        Ok(Some(Proof { server, made_of: MadeOf::Files(chain, key), not_after }))
    }
}

fn reply(request: &Request<Incoming>, bundle: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if *request.method() != Method::GET {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(ALLOW, http::HeaderValue::from_static("GET"));
    } else if bundle.is_empty() {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    } else {
        response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        *response.body_mut() = Full::from(bundle);
    }
    response
}

#[cfg(test)]
mod tests;
