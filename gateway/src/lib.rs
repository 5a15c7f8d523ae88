//! The cluster's door: lets in what this cluster exports to the caller's cluster, and nothing else.
//!
//! ```text
//!  peer's proxy ═ tunnel ═▶ listen ─▶ admit ─▶ route ─▶ dial ─▶ (tunnel::splice) ─▶ proxy(in) ─▶ app
//!                             │  who are you, what may you reach? which endpoint?   bytes that we cannot read
//!                             └─ carry calls these steps in order and records the outcome
//!
//!  a stranger ─ join door ─▶ listen ─▶ join ─▶ the trust anchor, which alone reads what was said
//!
//!  mirror controller ─▶ watch ─▶ table (an immutable snapshot that admit and route read)
//!                          └───▶ streams (live ones that the new snapshot forbids are cut)
//! ```
//!
//! `admit` and `route` are pure. `splice` asks for a permit, and only `admit` makes one, so bytes that nobody permitted
//! do not compile.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use hawser_api::Namespace;
use hawser_api::proto::discovery::Status;
use hawser_runtime::subscribe::Table;
use hawser_runtime::{Process, clock};
use hawser_tunnel::identity::{self, Door, IdentitySource};
use hawser_tunnel::listen::{DoorConfig, ListenConfig, TunnelListener};
use hawser_tunnel::tls::Credentials;
use tokio::sync::watch as watched;
use tokio_util::sync::CancellationToken;

pub mod admit;
mod carry;
pub mod config;
pub mod dial;
mod join;
pub mod limits;
mod listen;
pub mod metrics;
mod pages;
mod reset;
pub mod route;
mod said;
pub mod streams;
pub mod table;
mod watch;

pub use config::Config;

/// What every task of the gateway reads.
struct Gateway {
    name: Namespace,
    tables: ArcSwap<table::Tables>,
    credentials: Credentials,
    streams: Arc<streams::Streams>,
    endpoints: Arc<dial::Endpoints>,
    limits: limits::Limits,
    metrics: metrics::Metrics,
    /// Grows when tables or trust change: whatever is live is then checked again.
    changes: watched::Sender<u64>,
    said: said::Said,
    /// The trust anchor's door, for what comes through the join door.
    issuer: Door,
    draining: CancellationToken,
    stopping: CancellationToken,
}

impl Gateway {
    fn new(config: &Config, credentials: Credentials, process: &Process) -> Self {
        let streams = Arc::new(streams::Streams::default());
        let metrics =
            metrics::Metrics::register(&mut process.registry.lock(), Arc::clone(&streams), credentials.clone());
        Self {
            name: config.name.clone(),
            tables: ArcSwap::default(),
            issuer: Door::new(&config.identity, &credentials),
            credentials,
            streams,
            endpoints: Arc::default(),
            limits: limits::Limits::new(config.limits.clone()),
            metrics,
            changes: watched::channel(0).0,
            said: said::Said::default(),
            draining: process.drain.clone(),
            stopping: process.stop.clone(),
        }
    }
}

/// Where a gateway's identity, trust and tables come from.
#[derive(Debug)]
pub struct Sources {
    /// Who it is and whom it trusts; anchors of peers are put in by the gateway, from the tables.
    pub credentials: Credentials,
    /// The mirror controller's tables.
    pub tables: watched::Receiver<Arc<Table>>,
    /// What the mirror controller is told.
    pub status: watched::Sender<Status>,
}

/// A gateway that listens and does not take connections yet.
pub struct Bound {
    gateway: Arc<Gateway>,
    listener: Arc<TunnelListener>,
    process: Process,
}

impl Bound {
    /// The address in use.
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Serves until the process has drained.
    pub async fn serve(self) {
        listen::serve(self.gateway, &self.listener, &self.process).await;
    }
}

/// Binds a gateway's address and starts to follow its sources.
pub async fn bind(config: &Config, sources: Sources, process: &Process) -> anyhow::Result<Bound> {
    for condition in ["identity", "tables", "listening"] {
        process.set_ready(condition, false);
    }
    let gateway = Arc::new(Gateway::new(config, sources.credentials, process));
    process.spawn(announce_identity(gateway.credentials.clone(), process.clone()));
    process.spawn(watch::report(gateway.credentials.clone(), sources.status.clone()));
    process.spawn(watch::follow(Arc::clone(&gateway), sources.tables, sources.status, process.clone()));
    process.spawn(watch::enforce(Arc::clone(&gateway)));
    let listening = ListenConfig {
        reset_key: reset::key(&config.discovery.last_known),
        door: Some(DoorConfig::default()),
        ..ListenConfig::default()
    };
    let listener = TunnelListener::bind(config.listen, gateway.credentials.clone(), listening)
        .await
        .map(Arc::new)
        .with_context(|| format!("cannot listen on {} for UDP and TCP", config.listen))?;
    metrics::register_turned(&mut process.registry.lock(), &listener);
    pages::add(&gateway, listener.local_addr(), config, process);
    tracing::info!(address = %listener.local_addr(), cluster = %config.cluster, gateway = %config.name, "listening");
    process.set_ready("listening", true);
    Ok(Bound { gateway, listener, process: process.clone() })
}

/// Runs a gateway until it has drained.
pub async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    let credentials = Credentials::new(config.identity.trust_domain.clone(), clock::now);
    let source = IdentitySource::new(&config.identity, &credentials);
    process.spawn(identity::keep(credentials.clone(), source, clock::now));
    let (tables, status) = watch::subscribe(&config, &process);
    bind(&config, Sources { credentials, tables, status }, &process).await?.serve().await;
    Ok(())
}

async fn announce_identity(credentials: Credentials, process: Process) {
    let mut generation = credentials.generation();
    while credentials.identity().is_none() {
        if generation.changed().await.is_err() {
            return;
        }
    }
    process.set_ready("identity", true);
}
