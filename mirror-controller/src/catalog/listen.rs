//! Serves the catalog: sealed sessions in, one stream of updates each.
//!
//! ```text
//! accept TCP (from our gateways) ─ sealed::accept ─▶ verified peer ─▶ link by trust domain ─▶ its exports, only
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use hawser_api::proto::catalog::{
    Acknowledgement, AcknowledgementReply, Rejection, Service, ServiceName, Update, WatchRequest,
};
use hawser_api::{ClusterName, ServiceKey, TrustDomain, labels};
use hawser_runtime::{Process, clock};
use hawser_tunnel::sealed::{self, Accepted, SharedServer};
use hawser_tunnel::tls::{Credentials, VerifiedPeer};
use http::{HeaderMap, HeaderValue, Request, Response};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use prost::Message;

use super::grpc::GrpcError;
use super::{ACKNOWLEDGE_PATH, HEARTBEAT, LEASE, WATCH_PATH, accept, grpc, limits};
use crate::discovery::table::Published;
use crate::fabric::Fabric;
use crate::world::Store;

type Offers = BTreeMap<ServiceKey, Service>;

/// Sealed sessions at once. A peer's controller needs one, two while it moves to another gateway: room for 500 links that
/// all do so at once.
const SESSIONS_MAX: usize = 1024;
/// Sessions of one trust domain at once, so that one peer does not take the places of the others.
const PEER_SESSIONS_MAX: usize = 8;
/// A session on which nothing is asked for this long is over.
const IDLE: Duration = Duration::from_secs(10);
/// A peer that has much to say says it at this pace.
const ACKNOWLEDGE_PACE: Duration = Duration::from_millis(100);
/// Streams of one session that are served at once.
const STREAMS_MAX: usize = 4;
/// For the sealed handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A message is cut behind this many bytes of services, each of which is a few kilobytes at most.
const PART: usize = 1 << 20;
/// For the request's one message.
const REQUEST: Duration = Duration::from_secs(5);

/// What the catalog is served from.
#[derive(Debug, Clone)]
pub struct CatalogServer {
    /// Who we are and whom we trust.
    pub credentials: Credentials,
    /// What is offered to whom.
    pub published: watch::Receiver<Option<Arc<Published>>>,
    /// Where what peers acknowledge goes.
    pub store: Store,
    /// Where what they say of our bundle goes.
    pub fabric: Fabric,
    /// This cluster's own bundle, a SPIFFE JWKS document; empty before there is one.
    pub own: watch::Receiver<String>,
    /// How many sessions each trust domain has.
    pub sessions: Sessions,
}

/// Sessions by trust domain; one that is there holds a `Seat`.
#[derive(Debug, Clone, Default)]
pub struct Sessions(Arc<Mutex<BTreeMap<TrustDomain, usize>>>);

struct Seat(Sessions, TrustDomain);

impl Sessions {
    fn take(&self, domain: TrustDomain) -> Option<Seat> {
        let mut counts = self.0.lock();
        let count = counts.entry(domain.clone()).or_default();
        if *count >= PEER_SESSIONS_MAX {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Seat(self.clone(), domain))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.0.0.lock();
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
        }
        counts.retain(|_, count| *count > 0);
    }
}

impl CatalogServer {
    /// Accepts until the process drains.
    pub async fn run(self, listener: TcpListener, process: Process) {
        let sessions = Arc::new(Semaphore::new(SESSIONS_MAX));
        loop {
            let accepted = tokio::select! {
                () = process.drain.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((socket, _)) = accepted else {
                // Out of descriptors, most likely: others must end first.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let Ok(permit) = sessions.clone().try_acquire_owned() else {
                tracing::warn!(limit = SESSIONS_MAX, "too many catalog sessions; one is refused");
                continue;
            };
            let (server, drain) = (self.clone(), process.drain.clone());
            process.spawn(async move {
                drain.run_until_cancelled(server.session(socket)).await;
                drop(permit);
            });
        }
    }

    async fn session(self, socket: TcpStream) {
        let _ = socket.set_nodelay(true);
        let server = match sealed::accept(socket.into(), &self.credentials, HANDSHAKE).await {
            Ok(Accepted::Shared(server)) => server,
            Ok(Accepted::Dedicated { .. }) => return,
            Err(error) => {
                tracing::debug!(%error, "a catalog session was not accepted");
                return;
            }
        };
        self.streams(server).await;
    }

    /// HTTP/2 moves only while `accept` is polled: the streams are served beside it, in this same task.
    async fn streams(self, server: SharedServer) {
        let SharedServer { peer, mut connection } = server;
        let Some(_seat) = self.sessions.take(peer.id().trust_domain()) else {
            tracing::warn!(peer = %peer.id(), limit = PEER_SESSIONS_MAX, "too many catalog sessions of one peer");
            return;
        };
        let mut streams = FuturesUnordered::new();
        loop {
            tokio::select! {
                request = connection.accept() => match request {
                    Some(Ok((request, respond))) if streams.len() < STREAMS_MAX => {
                        streams.push(self.stream(&peer, request, respond));
                    }
                    Some(Ok((_, mut respond))) => respond.send_reset(h2::Reason::REFUSED_STREAM),
                    Some(Err(_)) | None => return,
                },
                Some(()) = streams.next() => {}
                () = tokio::time::sleep(IDLE), if streams.is_empty() => return,
            }
        }
    }

    async fn stream(&self, peer: &VerifiedPeer, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let method = match admit(request.headers(), request.uri().path()) {
            Ok(method) => method,
            Err(refusal) => return answer(&mut respond, 12, refusal),
        };
        let Some(cluster) = linked(self.published.clone(), peer).await else {
            return answer(&mut respond, 7, "this trust domain is not linked, or this is not its mirror controller");
        };
        let check = match method {
            Method::Watch => limits::check_request,
            Method::Acknowledge => limits::check_acknowledgement,
        };
        let mut reader = grpc::Reader::new(request.into_body(), check);
        match method {
            Method::Watch => {
                let Ok(Ok(Some(request))) = tokio::time::timeout(REQUEST, reader.next::<WatchRequest>()).await else {
                    return answer(&mut respond, 3, "one WatchRequest is wanted");
                };
                self.acknowledged(&cluster, &request.rejections, false);
                self.tell(peer, &cluster, respond).await;
            }
            Method::Acknowledge => {
                let Ok(Ok(Some(told))) = tokio::time::timeout(REQUEST, reader.next::<Acknowledgement>()).await else {
                    return answer(&mut respond, 3, "one Acknowledgement is wanted");
                };
                self.acknowledged(&cluster, &told.rejections, true);
                if let Some(trust) = told.trust {
                    self.fabric.acknowledged(&cluster, accept::acknowledgement(trust), crate::now_ms());
                }
                tokio::time::sleep(ACKNOWLEDGE_PACE).await;
                if let Ok(mut stream) = respond.send_response(accepted(), false)
                    && grpc::send(&mut stream, grpc::encode(&AcknowledgementReply {})).await.is_ok()
                {
                    let _ = stream.send_trailers(grpc::trailers(0, ""));
                }
            }
        }
    }

    /// `whole`: it has seen what it is offered; a request comes before that.
    fn acknowledged(&self, cluster: &ClusterName, told: &[Rejection], whole: bool) {
        let told = accept::rejections(told);
        self.store.update_peer(clock::millis(clock::now()), cluster, |peer| {
            let first = whole && !peer.acknowledged;
            peer.acknowledged |= whole;
            let changed = *peer.rejections != told;
            if changed {
                peer.rejections = Arc::new(told);
            }
            changed || first
        });
    }

    async fn tell(&self, peer: &VerifiedPeer, cluster: &ClusterName, mut respond: SendResponse<Bytes>) {
        let Ok(mut stream) = respond.send_response(accepted(), false) else { return };
        tracing::info!(%cluster, "a peer reads this cluster's catalog");
        let error = self.updates(&mut stream, peer, cluster).await;
        tracing::info!(%cluster, %error, "a peer's reading of this cluster's catalog is over");
        let _ = stream.send_trailers(grpc::trailers(14, "the reading is over: ask again"));
    }

    /// A snapshot, deltas as they come, heartbeats between; ends when the peer does, when it is not linked any more, or
    /// when its certificate would not be accepted now.
    async fn updates(&self, stream: &mut SendStream<Bytes>, peer: &VerifiedPeer, cluster: &ClusterName) -> GrpcError {
        let (mut published, mut own) = (self.published.clone(), self.own.clone());
        let mut told = String::new();
        let mut generation = self.credentials.generation();
        let mut sent: Option<Arc<Offers>> = None;
        loop {
            let now = published.borrow_and_update().clone();
            let linked = now.filter(|now| link_of(now, peer).as_ref() == Some(cluster));
            let Some(now) = linked.filter(|_| self.credentials.still_trusts(peer)) else {
                return GrpcError::Status { code: 7, message: "not linked any more".to_owned() };
            };
            let offers = now.catalogs.get(cluster).cloned().unwrap_or_default();
            let mut update = difference(sent.as_deref(), &offers);
            (update.version, update.region) = (now.version, now.region.clone());
            sent = Some(offers);
            let document = own.borrow_and_update().clone();
            if document != told {
                update.bundle.clone_from(&document);
                told = document;
            }
            update.now_ms = crate::now_ms();
            for part in parts(update) {
                if let Err(error) = grpc::send(stream, grpc::encode(&part)).await {
                    return error;
                }
            }
            tokio::select! {
                changed = published.changed() => if changed.is_err() { return GrpcError::Truncated },
                _ = own.changed(), if own.has_changed().is_ok() => {}
                _ = generation.changed() => {}
                () = tokio::time::sleep(HEARTBEAT) => {}
                reset = std::future::poll_fn(|context| stream.poll_reset(context)) => return match reset {
                    Ok(reason) => h2::Error::from(reason).into(),
                    Err(error) => error.into(),
                },
            }
        }
    }
}

/// Cut so that no message comes near the longest that a reader takes.
fn parts(mut update: Update) -> Vec<Update> {
    let mut parts = Vec::new();
    let changed = std::mem::take(&mut update.changed);
    let mut length = 0;
    for service in changed {
        if length > PART {
            let rest = Update { removed: Vec::new(), bundle: String::new(), snapshot: false, ..update.clone() };
            parts.push(Update { more: true, ..std::mem::replace(&mut update, rest) });
            length = 0;
        }
        length += service.encoded_len();
        update.changed.push(service);
    }
    parts.push(update);
    parts
}

enum Method {
    Watch,
    Acknowledge,
}

/// Only the two methods, and only under the name by which they were asked for.
fn admit(headers: &HeaderMap, path: &str) -> Result<Method, &'static str> {
    let method = match path {
        WATCH_PATH => Method::Watch,
        ACKNOWLEDGE_PATH => Method::Acknowledge,
        _ => return Err("there is no such method"),
    };
    let own = format!("{}/{}:{}", labels::SYSTEM_NAMESPACE, labels::CATALOG_SERVICE, labels::CATALOG_PORT);
    let target = headers.get(labels::HEADER_TARGET);
    if target.is_some_and(|target| target.as_bytes() != own.as_bytes()) {
        return Err("there is no such service here");
    }
    Ok(method)
}

fn accepted() -> Response<()> {
    let mut response = Response::new(());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

/// A call that ends before it begins ("trailers only").
fn answer(respond: &mut SendResponse<Bytes>, code: u32, message: &str) {
    let mut response = accepted();
    response.headers_mut().extend(grpc::trailers(code, message));
    let _ = respond.send_response(response, true);
}

/// The link whose trust domain is the peer's, if it is that cluster's mirror controller.
async fn linked(mut published: watch::Receiver<Option<Arc<Published>>>, peer: &VerifiedPeer) -> Option<ClusterName> {
    let waited = tokio::time::timeout(REQUEST, published.wait_for(Option::is_some)).await;
    let now = waited.ok()?.ok()?.clone()?;
    link_of(&now, peer)
}

fn link_of(published: &Published, peer: &VerifiedPeer) -> Option<ClusterName> {
    let path = format!("/ns/{}/sa/{}", labels::SYSTEM_NAMESPACE, labels::MIRROR_CONTROLLER_ACCOUNT);
    if peer.id().path() != path {
        return None;
    }
    published.links.get(&peer.id().trust_domain()).cloned()
}

/// What leads from what was sent to what is offered; a snapshot at first, a heartbeat where nothing changed.
fn difference(sent: Option<&Offers>, offers: &Offers) -> Update {
    let lease_ms = u32::try_from(LEASE.as_millis()).unwrap_or(u32::MAX);
    let nothing = Offers::new();
    let known = sent.unwrap_or(&nothing);
    let changed = offers.iter().filter(|(key, service)| known.get(*key) != Some(*service));
    let removed = known.keys().filter(|key| !offers.contains_key(*key));
    Update {
        snapshot: sent.is_none(),
        changed: changed.map(|(_, service)| service.clone()).collect(),
        removed: removed
            .map(|key| ServiceName { namespace: key.namespace.to_string(), name: key.name.to_string() })
            .collect(),
        lease_ms,
        ..Update::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Catalog;

    fn service(name: &str, ready: u32) -> (ServiceKey, Service) {
        let key = ServiceKey::parse("shop", name).unwrap();
        let service = Service {
            namespace: "shop".into(),
            name: name.into(),
            ports: vec![hawser_api::proto::catalog::Port { port: 80, ..Default::default() }],
            identities: vec!["spiffe://east.example/ns/shop/sa/a".into()],
            endpoints_ready: ready,
            ..Service::default()
        };
        (key, service)
    }

    #[test]
    fn deltas_lead_an_importer_to_what_is_offered() {
        let domain = "east.example".parse().unwrap();
        let states: [Offers; 4] = [
            [service("a", 1), service("b", 2)].into(),
            [service("a", 0)].into(),
            [service("a", 0), service("c", 1)].into(),
            Offers::new(),
        ];
        let mut known = Catalog::default();
        let mut sent: Option<&Offers> = None;
        for state in &states {
            known = accept::update(&known, &difference(sent, state), &domain);
            assert_eq!(known.offers.keys().collect::<Vec<_>>(), state.keys().collect::<Vec<_>>());
            assert_eq!(known.refused, []);
            sent = Some(state);
        }
        let heartbeat = difference(sent, &states[3]);
        assert!(!heartbeat.snapshot && heartbeat.changed.is_empty() && heartbeat.removed.is_empty());
    }

    #[test]
    fn only_the_one_method_of_the_one_service_is_served() {
        let mut headers = HeaderMap::new();
        assert!(admit(&headers, WATCH_PATH).is_ok());
        assert!(admit(&headers, "/hawser.discovery.v1.Discovery/Watch").is_err());
        headers.insert(labels::HEADER_TARGET, HeaderValue::from_static("shop/checkout:80"));
        assert!(admit(&headers, WATCH_PATH).is_err());
        headers.insert(labels::HEADER_TARGET, HeaderValue::from_static("hawser-system/catalog:443"));
        assert!(admit(&headers, WATCH_PATH).is_ok());
    }
}
