//! The issuer's doors: gRPC on a Unix socket that only this user can open, and on Kubernetes over TLS for other pods.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use anyhow::Context as _;
use futures_util::{Stream, StreamExt};
use hawser_api::proto::issuer::issue_request::Attestation;
use hawser_api::proto::issuer::issuer_server::{Issuer, IssuerServer};
use hawser_api::proto::issuer::{
    AuditEvent, AuditReply, Bundle, FabricReport, FabricReportReply, IssueReply, IssueRequest, RedeemLinkReply,
    RedeemLinkRequest, WatchBundleRequest,
};
use hawser_api::proto::trust::trust_server::TrustServer;
use hawser_runtime::{Process, clock, file};
use hawser_tunnel::verify::Leaf;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::codegen::{BoxFuture, StdError, http};
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status, Streaming};

use crate::admit::remote::{Ask, may};
use crate::audit::Caller;
use crate::authority::Authority;
use crate::issue::is_system;
use crate::kubernetes::Kubernetes;
use crate::refused::Refused;

mod lane;
mod operator;
pub(crate) mod remote;
mod status;

use lane::Lane;

/// Requests that wait or are served; more are told to come back. After an outage everybody renews at once.
const QUEUE_MAX: usize = 256;
/// Served at a time: that takes a fraction of a millisecond of a core, and more at a time would only take it from one
/// another and from newcomers. Who waits for the disk's sync of his line in the audit log is not counted.
const SERVED_MAX: usize = 4;
/// The same for those who have no certificate yet, and for gateways and mirror controllers: a herd of renewals, each of
/// which has half a life left, does not stand in their way.
const FIRST_QUEUE_MAX: usize = 64;
const FIRST_SERVED_MAX: usize = 8;
/// The same for service account tokens, each of which the API server is asked about twice.
const REVIEW_QUEUE_MAX: usize = 256;
const REVIEWED_MAX: usize = 16;
/// Largest event of another daemon: four fields for people.
const EVENT_MAX: usize = 4096;
const _: () = assert!(
    QUEUE_MAX + FIRST_QUEUE_MAX + REVIEW_QUEUE_MAX < crate::audit::QUEUE_MAX,
    "nobody waits for the audit log's queue"
);
/// Requests of one connection at a time, streams that stand included; more wait at the client's. A process of ours has four.
const STREAMS_MAX: u32 = 32;
/// Open bundle subscriptions: one per process of the cluster on this machine.
const WATCHERS_MAX: usize = 1024;
/// Largest request: a signing request and a chain are under 64 KiB even with foreign certificates.
const REQUEST_MAX: usize = 128 * 1024;
/// Unix socket addresses hold 107 characters and a zero (unix(7)).
const PATH_MAX: usize = 107;

/// Binds beside the path, closes it to all but those of `mode`, and only then moves it there: nobody finds it open too wide, and a
/// stale socket of a dead process is replaced.
pub(crate) fn bind(path: &Path, mode: u32) -> anyhow::Result<UnixListener> {
    let beside: PathBuf = path.with_extension("new");
    anyhow::ensure!(
        beside.as_os_str().len() <= PATH_MAX,
        "{} is too long for a Unix socket\nhint: take a state directory with a shorter path",
        path.display()
    );
    if let Some(directory) = path.parent() {
        file::private_directory(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let _ = std::fs::remove_file(&beside);
    let listener = UnixListener::bind(&beside).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(mode))?;
    std::fs::rename(&beside, path).with_context(|| format!("cannot listen on {}", path.display()))?;
    Ok(listener)
}

/// Serves until the process drains and every answer is out. `pods`: the TCP door, where there is one.
pub(crate) async fn serve(
    authority: Arc<Authority>,
    listener: UnixListener,
    pods: Option<(Arc<Kubernetes>, TcpListener)>,
    process: &Process,
) -> anyhow::Result<()> {
    let (kubernetes, pods) = pods.unzip();
    let metrics = lane::Metrics::new(process);
    let (herd, first) = lane::pair((QUEUE_MAX, SERVED_MAX), (FIRST_QUEUE_MAX, FIRST_SERVED_MAX), &metrics);
    let service = Arc::new(Service {
        authority: Arc::clone(&authority),
        kubernetes,
        herd,
        first,
        reviews: Lane::alone("reviews", REVIEW_QUEUE_MAX, REVIEWED_MAX, &metrics),
        strangers: Lane::alone("strangers", 8, 1, &metrics),
        watchers: Arc::new(Semaphore::new(WATCHERS_MAX)),
        drain: process.drain.clone(),
    });
    let here = local(authority, Arc::clone(&service), listener, process);
    match pods {
        Some(listener) => tokio::try_join!(here, remote::serve(service, listener, process)).map(|_| ()),
        None => here.await,
    }
}

async fn local(
    authority: Arc<Authority>,
    service: Arc<Service>,
    listener: UnixListener,
    process: &Process,
) -> anyhow::Result<()> {
    let operator = operator::Service::new(authority);
    let operator = TrustServer::new(operator).max_decoding_message_size(hawser_api::bundle::DOCUMENT_MAX + REQUEST_MAX);
    let service = IssuerServer::from_arc(service).max_decoding_message_size(REQUEST_MAX);
    tonic::transport::Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .serve_with_incoming_shutdown(
            Both { issuer: service, operator },
            UnixListenerStream::new(listener),
            process.drain.clone().cancelled_owned(),
        )
        .await
        .context("the issuer's socket")
}

/// Two services on one socket, told apart by the path that gRPC puts their names into.
#[derive(Clone)]
struct Both {
    issuer: IssuerServer<Service>,
    operator: TrustServer<operator::Service>,
}

impl<B> tonic::codegen::Service<http::Request<B>> for Both
where
    B: tonic::codegen::Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path().starts_with("/hawser.trust.v1.Trust/") {
            return self.operator.call(request);
        }
        self.issuer.call(request)
    }
}

struct Service {
    authority: Arc<Authority>,
    /// Who vouches for service account tokens, on Kubernetes.
    kubernetes: Option<Arc<Kubernetes>>,
    herd: Lane,
    first: Lane,
    reviews: Lane,
    /// Joining clusters, who are strangers: they wait for each other and for nobody else, nor anybody for them.
    strangers: Lane,
    watchers: Arc<Semaphore>,
    drain: CancellationToken,
}

impl Service {
    /// By what the request claims; what is claimed falsely is refused later, and then cost no more than any other.
    fn lane(&self, request: &IssueRequest) -> &Lane {
        let renewed = match &request.attestation {
            Some(Attestation::Renewal(renewal)) => renewal.chain.first(),
            Some(Attestation::ServiceAccountToken(_)) => return &self.reviews,
            _ => return &self.first,
        };
        let id = renewed.and_then(|der| Leaf::read(&der.as_slice().into()).ok()).map(|leaf| leaf.id);
        if id.is_some_and(|id| is_system(&id)) { &self.first } else { &self.herd }
    }

    async fn answer(&self, request: IssueRequest, caller: Caller) -> Result<IssueReply, Refused> {
        let mut place = self.lane(&request).place().await?;
        let reviewed = match (&request.attestation, &self.kubernetes) {
            (Some(Attestation::ServiceAccountToken(token)), Some(api)) => Some(api.review(token, clock::now()).await),
            _ => None,
        };
        if matches!(request.attestation, Some(Attestation::Renewal(_))) {
            // What follows keeps this thread until it is signed. Whoever has arrived meanwhile is looked at first: he is of
            // the first lane, or finds the queue full and is told so, instead of waiting unseen behind the herd.
            tokio::task::yield_now().await;
        }
        // A caller that hangs up meanwhile frees no room: the work is still going on, or its line waits for the disk.
        let worked = move || {
            place.worked();
            place
        };
        let answered = if let Some(Attestation::Renewal(_)) = &request.attestation {
            // Here and now: to hand it to another thread and back would take half as long again as the work.
            self.authority.answer(&request, reviewed, (caller, worked), clock::now())
        } else {
            let authority = Arc::clone(&self.authority);
            let signed = tokio::task::spawn_blocking(move || {
                authority.answer(&request, reviewed, (caller, worked), clock::now())
            });
            signed.await.map_err(|e| Refused::Failed(e.to_string()))?
        };
        answered.await.map_err(|e| Refused::Failed(e.to_string()))?
    }
}

/// Who is at the other end: of the socket by the kernel, of the TCP door by his certificate.
fn caller<T>(request: &Request<T>) -> Caller {
    if let Some(peer) = request.extensions().get::<remote::Peer>() {
        let spiffe_id = peer.id().map(ToString::to_string).unwrap_or_default();
        return Caller { spiffe_id, via: format!("tcp {}", peer.address.ip()), ..Caller::default() };
    }
    let about = request.extensions().get::<UdsConnectInfo>().and_then(|about| about.peer_cred);
    Caller {
        uid: about.map(|about| about.uid()),
        gid: about.map(|about| about.gid()),
        pid: about.and_then(|about| about.pid()),
        ..Caller::default()
    }
}

impl Service {
    /// Whether this may be asked at the door that it came through.
    fn may<T>(&self, request: &Request<T>, ask: Ask) -> Result<(), Refused> {
        if request.extensions().get::<UdsConnectInfo>().is_some() {
            return Ok(());
        }
        let peer = request.extensions().get::<remote::Peer>().and_then(remote::Peer::id);
        may(peer, self.authority.credentials.own_domain(), ask)
            .inspect_err(|refused| self.authority.record.refused(refused))
    }
}

#[tonic::async_trait]
impl Issuer for Service {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueReply>, Status> {
        self.may(&request, Ask::Issue)?;
        let caller = caller(&request);
        match self.answer(request.into_inner(), caller).await {
            Ok(reply) => Ok(Response::new(reply)),
            Err(refused) => {
                self.authority.record.refused(&refused);
                Err(refused.into())
            }
        }
    }

    type WatchBundleStream = Pin<Box<dyn Stream<Item = Result<Bundle, Status>> + Send>>;

    async fn watch_bundle(
        &self,
        request: Request<WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        self.may(&request, Ask::WatchBundle)?;
        let permit = Arc::clone(&self.watchers).try_acquire_owned().map_err(|_| Refused::Busy)?;
        let bundles = WatchStream::new(self.authority.watch())
            .filter(|bundle| std::future::ready(!bundle.document.is_empty()))
            .map(move |bundle| {
                let _held = &permit;
                Ok(bundle)
            })
            .take_until(self.drain.clone().cancelled_owned());
        Ok(Response::new(Box::pin(bundles)))
    }

    async fn report_fabric(
        &self,
        request: Request<Streaming<FabricReport>>,
    ) -> Result<Response<FabricReportReply>, Status> {
        self.may(&request, Ask::ReportFabric)?;
        let _held = Arc::clone(&self.watchers).try_acquire_owned().map_err(|_| Refused::Busy)?;
        let mut reports = request.into_inner();
        loop {
            let report = tokio::select! {
                () = self.drain.cancelled() => break,
                report = reports.message() => report?,
            };
            let Some(report) = report else { break };
            self.authority.fabric.send_replace(Some((report, clock::monotonic())));
        }
        Ok(Response::new(FabricReportReply {}))
    }

    async fn audit(&self, request: Request<AuditEvent>) -> Result<Response<AuditReply>, Status> {
        self.may(&request, Ask::Speak)?;
        let caller = caller(&request);
        let event = request.into_inner();
        let length = event.event.len() + event.subject.len() + event.detail.len() + event.reporter.len();
        if length > EVENT_MAX {
            return Err(Status::invalid_argument(format!("an event of {length} bytes, more than {EVENT_MAX}")));
        }
        let place = self.first.place().await?;
        let authority = Arc::clone(&self.authority);
        let recorded = tokio::task::spawn_blocking(move || {
            let _held = place;
            authority.audit_event(event, caller, clock::now())
        });
        let sequence = recorded.await.map_err(|e| Refused::Failed(e.to_string()))??;
        Ok(Response::new(AuditReply { sequence }))
    }

    async fn redeem_link(&self, request: Request<RedeemLinkRequest>) -> Result<Response<RedeemLinkReply>, Status> {
        self.may(&request, Ask::Speak)?;
        let place = self.strangers.place().await?;
        let authority = Arc::clone(&self.authority);
        let answered = tokio::task::spawn_blocking(move || {
            let _held = place;
            authority.redeem(&request.into_inner(), clock::now())
        });
        let reply = answered.await.map_err(|e| Refused::Failed(e.to_string()))?;
        Ok(Response::new(RedeemLinkReply { reply }))
    }
}
