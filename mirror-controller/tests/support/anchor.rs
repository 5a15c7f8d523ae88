//! A trust anchor that publishes what it is told to, and listens.

use std::path::Path;
use std::pin::Pin;

use futures_util::{Stream, StreamExt};
use hawser_api::proto::issuer::issuer_server::{Issuer, IssuerServer};
use hawser_api::proto::issuer::{
    AuditEvent, AuditReply, Bundle, FabricReport, FabricReportReply, IssueReply, IssueRequest, RedeemLinkReply,
    RedeemLinkRequest, WatchBundleRequest,
};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tonic::{Request, Response, Streaming};

/// It publishes what is put in, and hears what it is told.
pub(crate) struct Anchor {
    pub(crate) published: watch::Sender<Bundle>,
    pub(crate) heard: watch::Receiver<FabricReport>,
    /// Events for the audit log, in the order in which they came.
    pub(crate) recorded: watch::Receiver<Vec<AuditEvent>>,
    /// After so many more events nothing is recorded any more, as on a full disk.
    pub(crate) room: watch::Sender<usize>,
}

#[derive(Clone)]
struct Service {
    published: watch::Sender<Bundle>,
    heard: watch::Sender<FabricReport>,
    recorded: watch::Sender<Vec<AuditEvent>>,
    room: watch::Sender<usize>,
}

type Refused = tonic::Status;

#[tonic::async_trait]
impl Issuer for Service {
    type WatchBundleStream = Pin<Box<dyn Stream<Item = Result<Bundle, Refused>> + Send>>;

    async fn issue(&self, _: Request<IssueRequest>) -> Result<Response<IssueReply>, Refused> {
        Err(Refused::unimplemented("it issues nothing"))
    }

    async fn redeem_link(&self, _: Request<RedeemLinkRequest>) -> Result<Response<RedeemLinkReply>, Refused> {
        Err(Refused::unimplemented("it links nobody"))
    }

    async fn audit(&self, request: Request<AuditEvent>) -> Result<Response<AuditReply>, Refused> {
        let full = *self.room.borrow() == 0;
        self.room.send_modify(|room| *room = room.saturating_sub(1));
        if full {
            return Err(Refused::unavailable("its disk is full"));
        }
        self.recorded.send_modify(|recorded| recorded.push(request.into_inner()));
        Ok(Response::new(AuditReply { sequence: self.recorded.borrow().len() as u64 }))
    }

    async fn watch_bundle(&self, _: Request<WatchBundleRequest>) -> Result<Response<Self::WatchBundleStream>, Refused> {
        let published = WatchStream::new(self.published.subscribe());
        let published = published.filter(|bundle| std::future::ready(!bundle.document.is_empty()));
        Ok(Response::new(Box::pin(published.map(Ok))))
    }

    async fn report_fabric(
        &self,
        request: Request<Streaming<FabricReport>>,
    ) -> Result<Response<FabricReportReply>, Refused> {
        let mut reports = request.into_inner();
        while let Some(report) = reports.message().await? {
            self.heard.send_replace(report);
        }
        Ok(Response::new(FabricReportReply {}))
    }
}

/// Listens at a cluster's trust anchor's socket.
pub(crate) fn listen(socket: &Path) -> Anchor {
    let (published, (to, heard)) = (watch::Sender::default(), watch::channel(FabricReport::default()));
    let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
    let (told, recorded) = watch::channel(Vec::new());
    let room = watch::Sender::new(usize::MAX);
    let service = Service { published: published.clone(), heard: to, recorded: told, room: room.clone() };
    let service = IssuerServer::new(service);
    let shutdown = std::future::pending();
    let server = tonic::transport::Server::builder();
    tokio::spawn(async move { server.serve_with_incoming_shutdown(service, incoming, shutdown).await });
    Anchor { published, heard, recorded, room }
}
