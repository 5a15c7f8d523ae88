//! The door: a socket in the file system that every user may open, and the connections on it, each with its caller.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::{Stream, stream};
use hawser_api::proto::sds::secret_discovery_service_server::SecretDiscoveryServiceServer;
use hawser_api::proto::workload::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use hawser_runtime::clock;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::server::Connected;

use super::Workload;
use super::attest::{Caller, Unattested};
use super::front::Front;
use super::limits::{Limits, Room};
use super::sds::Secrets;
use super::service::Service;
use super::switch::Switch;

/// Longest message from a client of the Workload API: a JWT-SVID to be checked is the largest.
const REQUEST_MAX: usize = 64 * 1024;
/// Envoys describe themselves at length in their first message.
const ENVOY_REQUEST_MAX: usize = 1024 * 1024;
/// Calls at a time on one connection; libraries have one stream of each kind.
const CALLS_MAX: u32 = 128;
/// Headers of one call, in bytes.
const HEADERS_MAX: u32 = 16 * 1024;
/// A client that is gone without a word is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// When the process has no file descriptors left, accepting again at once would only spin.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// Binds in the file system: names of abstract sockets have no owner, and whoever comes first has them.
pub(super) fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    anyhow::ensure!(
        !path.as_os_str().as_encoded_bytes().starts_with(b"@"),
        "{} would be an abstract socket\nhint: name a file",
        path.display()
    );
    if let Some(directory) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    }
    crate::listen::bind(path, 0o666)
}

/// Serves until the process drains; streams end with it.
pub(super) async fn serve(workload: Arc<Workload>, listener: UnixListener) -> anyhow::Result<()> {
    let drain = workload.drain.clone();
    let connections = connections(listener, workload.limits.clone(), Arc::clone(&workload));
    let api = SpiffeWorkloadApiServer::new(Service(Arc::clone(&workload))).max_decoding_message_size(REQUEST_MAX);
    let sds = SecretDiscoveryServiceServer::new(Secrets(workload)).max_decoding_message_size(ENVOY_REQUEST_MAX);
    tonic::transport::Server::builder()
        .max_concurrent_streams(CALLS_MAX)
        .http2_max_header_list_size(HEADERS_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .serve_with_incoming_shutdown(Switch(sds, api), connections, drain.cancelled_owned())
        .await
        .context("the Workload API's socket")
}

/// Each connection with whoever opened it, pinned at once.
fn connections(
    listener: UnixListener,
    limits: Limits,
    workload: Arc<Workload>,
) -> impl Stream<Item = io::Result<Connection>> {
    stream::unfold((listener, limits, workload), |(listener, limits, workload)| async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            };
            let uid = stream.peer_cred().map_or(u32::MAX, |peer| peer.uid());
            let Some(room) = limits.connect(uid, clock::monotonic()) else {
                workload.metrics.limited("connections");
                continue;
            };
            let peer = Arc::new(Peer { caller: Caller::of(&stream), uid, _room: room });
            return Some((Ok(Connection { stream: Front::new(stream), peer }), (listener, limits, workload)));
        }
    })
}

/// Who opened a connection.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) caller: Result<Caller, Unattested>,
    pub(super) uid: u32,
    _room: Room,
}

/// A connection that knows its peer.
#[derive(Debug)]
struct Connection {
    stream: Front<UnixStream>,
    peer: Arc<Peer>,
}

impl Connected for Connection {
    type ConnectInfo = Arc<Peer>;
    fn connect_info(&self) -> Arc<Peer> {
        Arc::clone(&self.peer)
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, out)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
