//! The standard proxy, beside or for a workload.
//!
//! ```text
//! outbound: app ─▶ listen (virtual address │ socks) ─▶ detect ─▶ route ─▶ balance ─▶ dial ═▶ session ═▶ carry
//! inbound:  session ─▶ listen ─▶ admit (every stream) ─▶ dial ─▶ app
//! names:    app ─▶ dns ─▶ table
//! tables:   mirror controller ─▶ watch ─▶ resources ─▶ table (an immutable snapshot that everything above reads)
//! ```

pub mod addresses;
pub mod balance;
pub mod config;
pub mod context;
pub mod detect;
mod dial;
pub mod dns;
pub mod headers;
pub mod inbound;
pub mod listen;
pub mod metrics;
pub mod outbound;
pub mod resources;
pub mod route;
pub mod session;
pub mod socks;
pub mod streams;
pub mod table;
pub mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hawser_api::proto::discovery::{GatewayHealth, Role, Status};
use hawser_runtime::subscribe::{self, Subscription, Table};
use hawser_runtime::{Process, clock};
use hawser_tunnel::identity::{self, IdentitySource};
use hawser_tunnel::tls::Credentials;
use tokio::net::TcpListener;
use tokio::sync::watch as channel;

pub use config::Config;

use context::{Context, Settings};
use inbound::Inbound;
use listen::{Bound, Keeper};
use socks::Socks;

/// Runs a proxy until it has drained.
pub async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    config.check()?;
    for condition in ["identity", "tables", "listening"] {
        process.set_ready(condition, false);
    }
    let credentials = Credentials::new(config.identity.trust_domain.clone(), clock::now);
    let settings = Settings::default();
    let context = Context::new(config.name.to_string(), config.cluster.clone(), credentials, process.clone(), settings);
    let (bound, bound_now) = channel::channel(Arc::<Bound>::default());
    let inbound = Inbound::new(context.clone());
    doors(&config, &inbound, bound, &bound_now).await?;
    follow(&config, &inbound, &bound_now);
    pages(&inbound, bound_now);
    drained(&context).await;
    Ok(())
}

/// Opens everything that listens; what cannot be opened stops the start, with the address in the message.
async fn doors(
    config: &Config,
    inbound: &Arc<Inbound>,
    bound: channel::Sender<Arc<Bound>>,
    bound_now: &channel::Receiver<Arc<Bound>>,
) -> anyhow::Result<()> {
    let context = inbound.context();
    let process = &context.process;
    let room = listen::room();
    if let Some(address) = config.inbound {
        let listener = tcp(address, "inbound").await?;
        process.spawn(inbound.clone().serve(listener));
    }
    if let Some(address) = config.socks {
        let listener = tcp(address, "socks").await?;
        let socks = Socks { context: context.clone(), bound: bound_now.clone(), room: room.clone() };
        process.spawn(Arc::new(socks).serve(listener));
    }
    if let Some(address) = config.dns {
        let server = dns::Server::bind(address).await.with_context(|| format!("dns: cannot bind {address}"))?;
        process.spawn(server.serve(context.clone(), bound_now.clone()));
    }
    match config.virtual_network {
        Some(network) => {
            let file = config.discovery.last_known.with_file_name("virtual-addresses.json");
            let keeper = Keeper { context: context.clone(), network, file, room, bound };
            process.spawn(keeper.run());
        }
        None => process.set_ready("listening", true),
    }
    Ok(())
}

async fn tcp(address: SocketAddr, field: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{field}: cannot bind {address}\nhint: is another process listening there?"))
}

/// Starts what keeps identity, tables and status.
fn follow(config: &Config, inbound: &Arc<Inbound>, bound: &channel::Receiver<Arc<Bound>>) {
    let context = inbound.context();
    let process = &context.process;
    let changes = Arc::new(watch::Changes::register(&mut process.registry.lock()));
    let source = IdentitySource::new(&config.identity, &context.credentials);
    process.spawn(identity::keep(context.credentials.clone(), source, clock::now));
    process.spawn(watch::identity(inbound.clone(), changes.clone()));
    let (tables, incoming) = channel::channel(Arc::<Table>::default());
    process.spawn(watch::tables(inbound.clone(), incoming, changes));
    let subscription = Subscription {
        socket: config.discovery.socket.clone(),
        last_known: config.discovery.last_known.clone(),
        role: Role::Proxy,
        name: config.name.to_string(),
    };
    // Whoever is first in what follows: the name is there.
    let first = Status { role: Role::Proxy.into(), name: config.name.to_string(), ..Status::default() };
    let (report, reported) = channel::channel(first);
    process.spawn(subscribe::run(subscription, tables, reported));
    process.spawn(watch::report(context.credentials.clone(), report.clone()));
    process.spawn(status(context.clone(), bound.clone(), report));
}

/// Keeps the status that the mirror controller shows.
async fn status(context: Arc<Context>, mut bound: channel::Receiver<Arc<Bound>>, report: channel::Sender<Status>) {
    let mut tables = context.tables_changed();
    loop {
        let loaded = context.tables_owned();
        let listeners = bound.borrow_and_update().status();
        let gateways = loaded.peers.values().flat_map(|peer| &peer.gateways).filter_map(|gateway| {
            let transport = context.dialer.transport_in_use(&gateway.path)?;
            Some(GatewayHealth {
                cluster: gateway.path.cluster.to_string(),
                gateway: gateway.path.gateway.to_string(),
                alive: !gateway.down,
                transport: transport.as_str().to_owned(),
                round_trip_us: 0,
            })
        });
        let mut gateways: Vec<_> = gateways.collect();
        gateways.sort_by(|a, b| (&a.cluster, &a.gateway).cmp(&(&b.cluster, &b.gateway)));
        let mut status = Status {
            role: Role::Proxy.into(),
            name: context.name.clone(),
            loaded_version: loaded.version,
            listeners,
            gateways,
            trust: None,
        };
        report.send_if_modified(|now| {
            // What is there is another's to say.
            status.trust.clone_from(&now.trust);
            let differs = *now != status;
            *now = status;
            differs
        });
        tokio::select! {
            _ = tables.changed() => {}
            changed = bound.changed() => if changed.is_err() {
                // Without virtual addresses nobody sends: the tables alone decide from here on.
                if tables.changed().await.is_err() {
                    return;
                }
            },
            // Transports change without telling.
            () = tokio::time::sleep(STATUS) => {}
        }
    }
}

/// How old the transport in a status may be.
const STATUS: Duration = Duration::from_secs(5);

fn pages(inbound: &Arc<Inbound>, bound: channel::Receiver<Arc<Bound>>) {
    let context = inbound.context();
    let pages = &context.process.pages;
    let (destinations, doors) = (context.clone(), bound.clone());
    pages.add("/destinations", move |_| outbound::page::destinations(&destinations, &doors.borrow()));
    pages.add("/listeners", move |_| bound.borrow().page());
    let streams = context.streams.clone();
    pages.add("/streams", move |_| streams.page());
    let inbound = inbound.clone();
    pages.add("/inbound", move |_| inbound.page());
}

/// Waits for the drain, and then for live streams until `stop`.
async fn drained(context: &Context) {
    let process = &context.process;
    process.drain.cancelled().await;
    let gone = async {
        while context.streams.count() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    process.stop.run_until_cancelled(gone).await;
}
