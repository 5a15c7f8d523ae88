//! The trust anchor's gRPC service, at whichever door.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::Stream;
use hawser_api::proto::issuer::issuer_client::IssuerClient;
use hawser_api::proto::issuer::{
    AuditEvent, Bundle, FabricReport, IssueReply, IssueRequest, RedeemLinkRequest, WatchBundleRequest,
};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use super::door::{Door, Show};

/// For one answer: much longer than a request may wait in the issuer's queue, since nothing works here without one.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A local process that does not answer a PING within this time hangs.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// Largest message: a chain and a bundle of the largest size.
const MESSAGE_MAX: usize = hawser_api::bundle::DOCUMENT_MAX + 128 * 1024;

/// A connection to a trust anchor's socket, kept alive.
pub async fn channel(socket: &Path) -> Result<Channel, Status> {
    let path: PathBuf = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    dialled(endpoint().connect_with_connector(connector).await, &socket.display())
}

fn endpoint() -> Endpoint {
    Endpoint::from_static("http://localhost")
        .connect_timeout(ANSWER_MAX)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .keep_alive_while_idle(true)
}

fn dialled(channel: Result<Channel, tonic::transport::Error>, place: &dyn Display) -> Result<Channel, Status> {
    channel.map_err(|error| {
        let reason = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        Status::unavailable(format!("the trust anchor at {place}: {reason}"))
    })
}

async fn connect(door: &Door, show: Show) -> Result<IssuerClient<Channel>, Status> {
    let channel = match door {
        Door::Socket(path) => channel(path).await?,
        Door::Remote(remote) => {
            let dial = remote.clone();
            let connector = tower::service_fn(move |_| {
                let dial = dial.clone();
                async move { dial.connect(show).await.map(TokioIo::new) }
            });
            dialled(endpoint().connect_with_connector(connector).await, &remote.address())?
        }
    };
    Ok(IssuerClient::new(channel).max_decoding_message_size(MESSAGE_MAX))
}

/// Asked as nobody: the request says who asks, also when the present certificate no longer does.
pub(super) async fn issue(door: &Door, request: IssueRequest) -> Result<IssueReply, Status> {
    let asked = async { Ok(connect(door, Show::Nothing).await?.issue(request).await?.into_inner()) };
    within(asked).await
}

/// This cluster's own bundle, now and whenever it changes.
pub async fn watch_bundle(door: &Door) -> Result<Streaming<Bundle>, Status> {
    let asked = async {
        let mut client = connect(door, Show::Identity).await?;
        Ok(client.watch_bundle(WatchBundleRequest {}).await?.into_inner())
    };
    within(asked).await
}

/// Tells the trust anchor who has loaded what, until either side ends it.
pub async fn report_fabric(
    door: &Door,
    reports: impl Stream<Item = FabricReport> + Send + 'static,
) -> Result<(), Status> {
    let mut client = within(async { connect(door, Show::Identity).await }).await?;
    client.report_fabric(reports).await.map(drop)
}

/// Has events recorded in the cluster's one audit log, in this order; how many are, and why no more are. One that the
/// trust anchor will never take counts, or it would stand in the way of all others; it is logged.
pub async fn audit(door: &Door, events: Vec<AuditEvent>) -> (usize, Result<(), Status>) {
    let mut client = match within(async { connect(door, Show::Identity).await }).await {
        Ok(client) => client,
        Err(status) => return (0, Err(status)),
    };
    let mut recorded = 0;
    for event in events {
        let (what, whom) = (event.event.clone(), event.subject.clone());
        match within(client.audit(event)).await {
            Ok(_) => {}
            Err(status) if status.code() == Code::InvalidArgument => {
                tracing::error!(what, whom, status = status.message(), "not in the audit log, and never will be");
            }
            Err(status) => return (recorded, Err(status)),
        }
        recorded += 1;
    }
    (recorded, Ok(()))
}

pub(super) async fn redeem_link(door: &Door, request: RedeemLinkRequest) -> Result<Vec<u8>, Status> {
    let asked = async { Ok(connect(door, Show::Identity).await?.redeem_link(request).await?.into_inner().reply) };
    within(asked).await
}

async fn within<T>(asked: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    timeout(ANSWER_MAX, asked).await.map_err(|_| Status::deadline_exceeded("the trust anchor does not answer"))?
}
