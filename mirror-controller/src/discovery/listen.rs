//! Serves discovery: a snapshot and deltas for each subscriber, and what it reports.
//!
//! Nothing is queued for a subscriber: whenever it is ready for more, it gets what leads from what it was sent last to
//! what is true now. One that reads slowly gets fewer, larger updates.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use futures_util::{Stream, StreamExt};
use hawser_api::proto::discovery::discovery_server::{Discovery, DiscoveryServer};
use hawser_api::proto::discovery::{ReportReply, Role, Status, Update, WatchRequest};
use hawser_runtime::{Process, clock};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Streaming};

use super::table::{self, Published, Table};
use crate::fabric::{self, Fabric};
use crate::world::Store;

/// Subscribers at once. A machine runs a handful; the bound only keeps a runaway from taking the rest down.
const SUBSCRIBERS_MAX: usize = 1024;
/// Listeners that one proxy may report.
const LISTENERS_MAX: usize = 100_000;

/// The discovery service.
#[derive(Clone)]
pub struct Server {
    published: watch::Receiver<Option<Arc<Published>>>,
    store: Store,
    fabric: Fabric,
    process: Process,
    subscribers: Arc<AtomicUsize>,
}

/// A socket at this path that only this user may open; one that is there already is replaced.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    // Bound under another name and moved, so that the socket is never there with wider permissions.
    let name = path.file_name().context("the socket has no file name")?.to_string_lossy().into_owned();
    let fresh = path.with_file_name(format!(".{name}.new"));
    let _ = std::fs::remove_file(&fresh);
    let listener = UnixListener::bind(&fresh).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path).with_context(|| format!("cannot listen on {}", path.display()))?;
    Ok(listener)
}

impl Server {
    /// Gives out `published`, and puts what is reported into `store` and `fabric`.
    pub fn new(
        published: watch::Receiver<Option<Arc<Published>>>,
        store: Store,
        fabric: Fabric,
        process: Process,
    ) -> Self {
        Self { published, store, fabric, process, subscribers: Arc::default() }
    }

    /// Serves until the process drains.
    pub async fn run(self, listener: UnixListener) -> anyhow::Result<()> {
        let drain = self.process.drain.clone();
        let service = DiscoveryServer::new(self);
        tonic::transport::Server::builder()
            .serve_with_incoming_shutdown(service, UnixListenerStream::new(listener), drain.cancelled_owned())
            .await
            .context("discovery cannot be served")
    }

    fn admit(&self) -> Result<Seat, tonic::Status> {
        let seat = Seat(self.subscribers.clone());
        if seat.0.fetch_add(1, Ordering::Relaxed) >= SUBSCRIBERS_MAX {
            return Err(tonic::Status::resource_exhausted(format!("more than {SUBSCRIBERS_MAX} subscribers")));
        }
        Ok(seat)
    }
}

/// One subscriber's place; given back when dropped.
struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Subscriber {
    published: watch::Receiver<Option<Arc<Published>>>,
    role: Role,
    name: String,
    sent: Option<Table>,
    _seat: Seat,
}

impl Subscriber {
    /// The next update that this subscriber lacks.
    async fn next(mut self) -> Option<(Result<Update, tonic::Status>, Self)> {
        loop {
            let now = self.published.borrow_and_update().clone();
            if let Some(now) = now {
                let wanted = now.table(self.role, &self.name);
                let update = table::update(now.version, self.sent.as_ref(), &wanted);
                self.sent = Some(wanted);
                if update.snapshot || !update.changed.is_empty() || !update.removed.is_empty() {
                    return Some((Ok(update), self));
                }
            }
            self.published.changed().await.ok()?;
        }
    }
}

#[tonic::async_trait]
impl Discovery for Server {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<Update, tonic::Status>> + Send>>;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, tonic::Status> {
        let seat = self.admit()?;
        let request = request.into_inner();
        let role = request.role();
        if role == Role::Unspecified {
            return Err(tonic::Status::invalid_argument("the role is missing: PROXY or GATEWAY"));
        }
        tracing::info!(role = role.as_str_name(), name = %request.name, "a subscriber came");
        let published = self.published.clone();
        let subscriber = Subscriber { published, role, name: request.name, sent: None, _seat: seat };
        let updates = futures_util::stream::unfold(subscriber, Subscriber::next);
        let drain = self.process.drain.clone();
        Ok(Response::new(Box::pin(updates.take_until(drain.cancelled_owned()))))
    }

    async fn report(&self, request: Request<Streaming<Status>>) -> Result<Response<ReportReply>, tonic::Status> {
        let _seat = self.admit()?;
        let mut reports = request.into_inner();
        let mut name = None;
        let mut trust = self.fabric.stream();
        loop {
            let report = tokio::select! {
                () = self.process.drain.cancelled() => break,
                report = reports.message() => report,
            };
            let Ok(Some(mut report)) = report else { break };
            if report.listeners.len() > LISTENERS_MAX {
                return Err(tonic::Status::resource_exhausted(format!("more than {LISTENERS_MAX} listeners")));
            }
            if let Some(kind) = fabric::Kind::of(report.role()) {
                trust.heard(kind, &report.name, report.trust.take(), crate::now_ms());
            }
            if report.role() == Role::Proxy {
                name = Some(report.name.clone());
                self.listeners(report);
            }
        }
        if let Some(name) = name {
            self.store.update(clock::millis(clock::now()), |world| world.listeners.remove(&name).is_some());
        }
        Ok(Response::new(ReportReply {}))
    }
}

impl Server {
    fn listeners(&self, report: Status) {
        self.store.update(clock::millis(clock::now()), |world| {
            let known = world.listeners.get(&report.name);
            if known.is_some_and(|known| **known == report.listeners) {
                return false;
            }
            world.listeners.insert(report.name.clone(), Arc::new(report.listeners));
            true
        });
    }
}
