//! The mirror controller: what a cluster exports to its peers, and what it takes from them.
//!
//! ```text
//! watch/files       the user's YAML ────────┐
//! watch/kubernetes  or an API server's ─────┤
//! watch/catalog     each peer's catalog ────┼─▶ world ─▶ plan (pure) ─▶ apply/files       mirrors and statuses on disk
//! watch/gateways    probes ─────────────────┘               ├────────▶ apply/kubernetes  or in an API server (lease: by
//!                                                           │                            one replica)
//!                                                           ├────────▶ discovery         proxies and gateways
//!                                                           └────────▶ catalog/listen    peers' mirror controllers
//! ```
//!
//! Everything is level-triggered: any event may be lost, repeated or reordered, and the end state is the same.

pub mod apply;
pub mod bundles;
pub mod catalog;
pub mod config;
pub mod discovery;
pub mod fabric;
pub mod kubernetes;
pub mod lease;
pub mod metrics;
mod pages;
pub mod plan;
pub mod reconcile;
pub mod status;
pub mod watch;
pub mod world;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use hawser_api::objects::GROUP_VERSION;
use hawser_runtime::{Process, clock};
use hawser_tunnel::identity::{self, Door, IdentitySource};
use hawser_tunnel::pool::{Dialer, DialerConfig};
use hawser_tunnel::tls::Credentials;

pub use config::Config;

use apply::kubernetes::write::Writer;
use apply::kubernetes::{Apply, status as statuses, unlink};
use bundles::Bundles;
use catalog::listen::{CatalogServer, Sessions};
use config::{FilesConfig, KubernetesConfig, Source};
use fabric::Fabric;
use metrics::Metrics;
use reconcile::Outputs;
use watch::kubernetes::fill::Fill;
use watch::links::Links;
use watch::record::Recorder;
use world::{Store, World};

/// The time of day.
fn now() -> std::time::SystemTime {
    clock::now()
}

/// Milliseconds since the epoch.
fn now_ms() -> i64 {
    clock::millis(clock::now())
}

/// Runs a mirror controller until it has drained.
pub async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    let credentials = Credentials::new(config.identity.trust_domain.clone(), clock::now);
    let source = IdentitySource::new(&config.identity, &credentials);
    process.spawn(identity::keep(credentials.clone(), source, clock::now));
    serve(config, credentials, process).await
}

/// The same with credentials that somebody else keeps.
pub async fn serve(config: Config, credentials: Credentials, process: Process) -> anyhow::Result<()> {
    for condition in ["identity", "listening", "tables"] {
        process.set_ready(condition, false);
    }
    let store = Store::new(World::new(config.cluster.clone(), config.identity.trust_domain.clone()));
    let (outputs, fabric) = (Outputs::default(), Fabric::new(credentials.clone()));
    let metrics = Metrics::default();
    metrics.register(&mut process.registry.lock());
    pages::add(&process, &outputs.plans.subscribe());
    pages::trust(&process, &fabric, &store, &credentials);
    let own = tokio::sync::watch::Sender::new(String::new());
    let listening = listen(&config, &process, (&store, &fabric, &own), &outputs, &credentials).await?;
    let bundles = Bundles::new(&config.state.join("bundles"), store.clone(), credentials.clone());
    let links = Links {
        store: store.clone(),
        credentials: credentials.clone(),
        dialer: Dialer::new(credentials.clone(), DialerConfig::default()),
        catalogs: config.state.join("catalogs"),
        metrics: metrics.clone(),
        fabric: fabric.clone(),
        bundles: bundles.clone(),
        plans: outputs.plans.subscribe(),
    };
    process.spawn(links.run(process.clone()));
    let door = Door::new(&config.identity, &credentials);
    process.spawn(watch::own::run(own, bundles, store.clone(), door.clone()));
    process.spawn(watch::fabric::report(fabric, store.clone(), door));
    process.spawn(Recorder::new(&config, &store, outputs.plans.subscribe(), &credentials).run());
    process.spawn(reconcile::run(store.clone(), outputs.clone(), metrics.clone()));
    let kept = Kept { cluster: config.cluster, state: config.state, store: store.clone(), metrics: metrics.clone() };
    match config.source {
        Source::Files(files) => kept.in_files(files, &outputs, &process),
        Source::Kubernetes(kubernetes) => kept.in_kubernetes(*kubernetes, &outputs, &process).await?,
    }
    process.spawn(readiness(process.clone(), credentials, (outputs, metrics), store));
    listening.await
}

/// What keeps the user's objects and what is made of them together, wherever they are.
struct Kept {
    cluster: hawser_api::ClusterName,
    state: PathBuf,
    store: Store,
    metrics: Metrics,
}

impl Kept {
    fn in_files(self, files: FilesConfig, outputs: &Outputs, process: &Process) {
        process.spawn(reconcile::write(files.output, outputs.plans.subscribe()));
        let last_good = self.state.join("last-good");
        let places = watch::files::Places { objects: files.objects, links: files.links, last_good };
        let report = move |objects: &world::Objects| self.metrics.reloaded(objects.problems.len());
        process.spawn(watch::files::run(places, self.store, report));
    }

    async fn in_kubernetes(self, own: KubernetesConfig, outputs: &Outputs, process: &Process) -> anyhow::Result<()> {
        let client = kubernetes::connect(&own).await?;
        let world = self.store.now();
        let cluster = hawser_api::objects::Cluster {
            api_version: GROUP_VERSION.to_owned(),
            kind: "Cluster".to_owned(),
            metadata: hawser_api::objects::Metadata { name: self.cluster.to_string(), ..Default::default() },
            spec: own.cluster.clone(),
        };
        let known = watch::kubernetes::Known::new(Fill::new(cluster, own.inbound_port));
        let (until, leadership) = lease::channel();
        let with = (process.clone(), self.metrics.clone());
        // Work that the end of the process waits for: the lease is given up, not left to run out.
        process.tasks.spawn(lease::run(client.clone(), own.namespace.clone(), with, until));
        let writer = Writer {
            client: client.clone(),
            known: known.clone(),
            own: (world.cluster.clone(), world.domain.clone()),
            metrics: self.metrics.clone(),
        };
        let apply =
            Apply::new(writer, own.writers, leadership.clone(), (outputs.plans.subscribe(), self.store.clone()));
        process.spawn(apply.run());
        process.spawn(unlink::run(client.clone(), known.clone(), leadership.clone()));
        let (plans, metrics) = (outputs.plans.subscribe(), self.metrics.clone());
        process.spawn(statuses::run(client.clone(), known.clone(), leadership, plans, metrics));
        process.spawn(watch::kubernetes::run(client, known, (self.store, self.metrics), process.clone()));
        Ok(())
    }
}

/// Binds both doors, and puts the catalog's address into the world, from where it goes into the gateways' tables. What
/// comes back serves discovery until the drain.
async fn listen(
    config: &Config,
    process: &Process,
    (store, fabric, own): (&Store, &Fabric, &tokio::sync::watch::Sender<String>),
    outputs: &Outputs,
    credentials: &Credentials,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + use<>> {
    let catalog = tokio::net::TcpListener::bind(config.catalog_listen).await;
    let catalog =
        catalog.with_context(|| format!("cannot listen for catalog sessions on {}", config.catalog_listen))?;
    let address = catalog.local_addr()?;
    store.update(clock::millis(clock::now()), |world| {
        world.catalog_listen = Some(address);
        true
    });
    let server = CatalogServer {
        credentials: credentials.clone(),
        published: outputs.published.subscribe(),
        store: store.clone(),
        fabric: fabric.clone(),
        own: own.subscribe(),
        sessions: Sessions::default(),
    };
    process.spawn(server.run(catalog, process.clone()));
    let socket = discovery::listen::bind(&config.socket)?;
    let discovery =
        discovery::listen::Server::new(outputs.published.subscribe(), store.clone(), fabric.clone(), process.clone());
    process.set_ready("listening", true);
    Ok(discovery.run(socket))
}

/// Keeps `/ready` and the ages in `/metrics` true.
async fn readiness(process: Process, credentials: Credentials, (outputs, metrics): (Outputs, Metrics), store: Store) {
    loop {
        process.set_ready("identity", credentials.identity().is_some());
        process.set_ready("tables", outputs.published.borrow().is_some());
        metrics.tick(clock::millis(clock::now()));
        let ends = credentials.anchor_ends();
        let ends: Vec<_> = ends.into_iter().map(|(domain, _, end)| (domain, clock::millis(end))).collect();
        metrics.anchors(&store.now(), &ends);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
