//! The issuer's door: gRPC on a Unix socket that only this user can open.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::{Stream, StreamExt};
use hawser_api::proto::issuer::issuer_server::{Issuer, IssuerServer};
use hawser_api::proto::issuer::{
    Bundle, FabricReport, FabricReportReply, IssueReply, IssueRequest, WatchBundleRequest,
};
use hawser_runtime::{Process, clock, file};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::authority::Authority;
use crate::refused::Refused;

/// Requests that wait or are served; more are told to come back. After an outage everybody renews at once.
const QUEUE_MAX: usize = 256;
/// Served at a time: signing takes tens of microseconds, the disk's sync of a used token a few milliseconds.
const SERVED_MAX: usize = 4;
/// Longest wait in the queue. Clients wait longer than that for an answer.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Open bundle subscriptions: one per process of the cluster on this machine.
const WATCHERS_MAX: usize = 1024;
/// Largest request: a signing request and a chain are under 64 KiB even with foreign certificates.
const REQUEST_MAX: usize = 128 * 1024;
/// Unix socket addresses hold 107 characters and a zero (unix(7)).
const PATH_MAX: usize = 107;

/// Binds beside the path, closes it to others, and only then moves it there: nobody finds it open too wide, and a
/// stale socket of a dead process is replaced.
pub(crate) fn bind(path: &Path) -> anyhow::Result<UnixListener> {
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
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&beside, path).with_context(|| format!("cannot listen on {}", path.display()))?;
    Ok(listener)
}

/// Serves until the process drains and every answer is out.
pub(crate) async fn serve(authority: Arc<Authority>, listener: UnixListener, process: &Process) -> anyhow::Result<()> {
    let service = Service {
        authority,
        queue: Arc::new(Semaphore::new(QUEUE_MAX)),
        served: Arc::new(Semaphore::new(SERVED_MAX)),
        watchers: Arc::new(Semaphore::new(WATCHERS_MAX)),
        drain: process.drain.clone(),
    };
    let service = IssuerServer::new(service).max_decoding_message_size(REQUEST_MAX);
    tonic::transport::Server::builder()
        .serve_with_incoming_shutdown(
            service,
            UnixListenerStream::new(listener),
            process.drain.clone().cancelled_owned(),
        )
        .await
        .context("the issuer's socket")
}

struct Service {
    authority: Arc<Authority>,
    queue: Arc<Semaphore>,
    served: Arc<Semaphore>,
    watchers: Arc<Semaphore>,
    drain: CancellationToken,
}

impl Service {
    async fn answer(&self, request: IssueRequest) -> Result<IssueReply, Refused> {
        let queued = Arc::clone(&self.queue).try_acquire_owned().map_err(|_| Refused::Busy)?;
        let served = timeout(WAIT_MAX, Arc::clone(&self.served).acquire_owned()).await;
        let served = served.map_err(|_| Refused::Busy)?.map_err(|_| Refused::Busy)?;
        let authority = Arc::clone(&self.authority);
        let answered = tokio::task::spawn_blocking(move || {
            // A caller that hangs up meanwhile frees no room: the work is still going on.
            let _held = (queued, served);
            authority.answer(&request, clock::now())
        });
        answered.await.map_err(|e| Refused::Failed(e.to_string()))?
    }
}

#[tonic::async_trait]
impl Issuer for Service {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueReply>, Status> {
        match self.answer(request.into_inner()).await {
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
        _request: Request<WatchBundleRequest>,
    ) -> Result<Response<Self::WatchBundleStream>, Status> {
        let permit = Arc::clone(&self.watchers).try_acquire_owned().map_err(|_| Refused::Busy)?;
        let bundles = WatchStream::new(self.authority.bundle.subscribe())
            .filter(|document| std::future::ready(!document.is_empty()))
            .map(move |document| {
                let _held = &permit;
                Ok(Bundle { document, denied: None })
            })
            .take_until(self.drain.clone().cancelled_owned());
        Ok(Response::new(Box::pin(bundles)))
    }

    async fn report_fabric(
        &self,
        request: Request<Streaming<FabricReport>>,
    ) -> Result<Response<FabricReportReply>, Status> {
        let _held = Arc::clone(&self.watchers).try_acquire_owned().map_err(|_| Refused::Busy)?;
        let mut reports = request.into_inner();
        loop {
            let report = tokio::select! {
                () = self.drain.cancelled() => break,
                report = reports.message() => report?,
            };
            let Some(report) = report else { break };
            self.authority.fabric.send_replace(report);
        }
        Ok(Response::new(FabricReportReply {}))
    }
}
