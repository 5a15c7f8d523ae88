//! Tables, and what waits for conditions.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hawser_api::ServiceKey;
use hawser_proxy::context::{Context, Settings};
use hawser_proxy::listen::{self, Bound, Keeper, Room};
use hawser_proxy::table::{
    Backend, Destination, Endpoint, Inbound, InboundTarget, Port, Reach, SessionMode, Tables, Tier,
};
use hawser_runtime::Process;
use hawser_tunnel::testing::{Pki, id};
use tokio::sync::watch;

pub(crate) const LATE: Duration = Duration::from_secs(30);

pub(crate) async fn in_time<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LATE, work).await.unwrap_or_else(|_| panic!("not within {LATE:?}"))
}

pub(crate) fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}

pub(crate) fn port(name: &str, number: u16) -> Port {
    Port { name: name.into(), number, udp: false, app_protocol: String::new() }
}

/// A destination without backends, named as on Kubernetes.
pub(crate) fn destination(service: &str, ports: Vec<Port>) -> Destination {
    let key = key(service);
    let name = format!("{}.{}.svc.cluster.local", key.name, key.namespace);
    Destination {
        dns_names: vec![name],
        group_names: Vec::new(),
        headless_names: Vec::new(),
        ports,
        tiers: Vec::new(),
        session: SessionMode::Auto,
        fixed_address: None,
        unavailable: None,
        changed_at_ms: 0,
        key,
    }
}

pub(crate) fn tables(destinations: Vec<Destination>) -> Tables {
    let mut tables = Tables { version: 7, ..Tables::default() };
    for destination in destinations {
        for name in &destination.dns_names {
            tables.names.insert(name.clone(), destination.key.clone());
        }
        tables.destinations.insert(destination.key.clone(), Arc::new(destination));
    }
    tables
}

/// One tier with one local endpoint.
pub(crate) fn local(service: &str, inbound: SocketAddr) -> Vec<Tier> {
    let endpoint = Endpoint { id: "e1".into(), inbound, ready: true, ports: Vec::new() };
    let backend = Backend {
        cluster: "east".parse().unwrap(),
        weight: 1,
        service: key(service),
        identities: [id("east", "/ns/shop/sa/checkout")].into(),
        reach: Reach::Local(vec![endpoint]),
        only: None,
        region: String::new(),
        ports: Vec::new(),
    };
    vec![Tier { backends: vec![Arc::new(backend)], min_healthy_percent: 0 }]
}

pub(crate) fn fronted(port: &str, app: SocketAddr) -> Inbound {
    Inbound {
        port: port.parse().unwrap(),
        targets: vec![InboundTarget { id: "e1".into(), address: app, ready: true }],
        trust_domains: Default::default(),
        app_protocol: String::new(),
    }
}

pub(crate) fn context(pki: &Pki, name: &str) -> Arc<Context> {
    let credentials = pki.credentials("east", &format!("/ns/shop/sa/{name}"));
    Context::new(name.into(), "east".parse().unwrap(), credentials, Process::detached(), Settings::default())
}

/// A proxy's virtual listeners.
pub(crate) struct Doors {
    pub(crate) context: Arc<Context>,
    pub(crate) bound: watch::Receiver<Arc<Bound>>,
    pub(crate) room: Room,
    pub(crate) dir: tempfile::TempDir,
}

impl Doors {
    /// Each test takes a network of its own, so that they do not meet in a port.
    pub(crate) fn open(network: &str, tables: Tables) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::open_in(network, tables, dir)
    }

    pub(crate) fn open_in(network: &str, tables: Tables, dir: tempfile::TempDir) -> Self {
        let context = context(&Pki::new(), "web");
        context.set_tables(tables);
        Self::keep(context, network, dir)
    }

    pub(crate) fn keep(context: Arc<Context>, network: &str, dir: tempfile::TempDir) -> Self {
        Self::with_room(context, network, dir, listen::room())
    }

    pub(crate) fn with_room(context: Arc<Context>, network: &str, dir: tempfile::TempDir, room: Room) -> Self {
        let (sender, bound) = watch::channel(Arc::default());
        let keeper = Keeper {
            context: context.clone(),
            network: network.parse().unwrap(),
            file: dir.path().join("addresses.json"),
            room: room.clone(),
            bound: sender,
        };
        tokio::spawn(keeper.run());
        Self { context, bound, room, dir }
    }

    pub(crate) async fn until(&mut self, condition: impl FnMut(&Arc<Bound>) -> bool) -> Arc<Bound> {
        in_time(self.bound.wait_for(condition)).await.unwrap().clone()
    }

    pub(crate) async fn address(&mut self, service: &str) -> Ipv4Addr {
        let service = key(service);
        let bound = self.until(|b| b.destinations.contains_key(&service)).await;
        bound.destinations[&service].address
    }
}
