//! A gateway of `east` in this process, with real sockets, and peers that knock at it.

#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "used by tests only, where a panic is the report")]

pub(crate) mod raw;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hawser_api::objects::link::Transport;
use hawser_api::proto::discovery::resource::Kind;
use hawser_api::proto::discovery::{Endpoint, Export, Peer, Resource, Status};
use hawser_api::{Refusal, ServicePort};
use hawser_gateway::config::LimitsConfig;
use hawser_gateway::{Config, Sources};
use hawser_runtime::Process;
use hawser_runtime::config::{DiscoveryConfig, IdentityConfig, Issuer, ProcessConfig};
use hawser_runtime::subscribe::Table;
use hawser_tunnel::open::OpenRequest;
use hawser_tunnel::pool::{Dialer, DialerConfig, GatewayPath, Opening};
use hawser_tunnel::testing::{Pki, domain};
use hawser_tunnel::tls::Credentials;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(crate) const BOTH: [Transport; 2] = [Transport::Quic, Transport::Tcp];

/// The gateway under test.
pub(crate) struct Door {
    pub(crate) pki: Pki,
    pub(crate) address: SocketAddr,
    pub(crate) process: Process,
    pub(crate) served: JoinHandle<()>,
    pub(crate) credentials: Credentials,
    resources: BTreeMap<String, Arc<Resource>>,
    tables: watch::Sender<Arc<Table>>,
    status: watch::Receiver<Status>,
}

impl Door {
    pub(crate) async fn open() -> Self {
        Self::with(LimitsConfig::default()).await
    }

    pub(crate) async fn with(limits: LimitsConfig) -> Self {
        let pki = Pki::new();
        let process = Process::detached();
        let (tables, seen) = watch::channel(Arc::new(Table::default()));
        let (status_to, status) = watch::channel(Status::default());
        let credentials = pki.credentials("east", "/ns/hawser-system/sa/gateway");
        let sources = Sources { credentials: credentials.clone(), tables: seen, status: status_to };
        let bound = hawser_gateway::bind(&config(limits), sources, &process).await.unwrap();
        let address = bound.local_addr();
        let served = tokio::spawn(bound.serve());
        let mut door = Self { pki, address, process, served, credentials, resources: BTreeMap::new(), tables, status };
        door.link("west");
        door.publish().await;
        door
    }

    pub(crate) fn link(&mut self, cluster: &str) {
        let trust_domain = domain(cluster).to_string();
        let peer = Peer { cluster: cluster.into(), trust_domain, ..Peer::default() };
        self.put(format!("peer/{cluster}"), Kind::Peer(peer));
    }

    pub(crate) fn unlink(&mut self, cluster: &str) {
        self.resources.remove(&format!("peer/{cluster}"));
    }

    /// `endpoints` are (id, address, ready).
    pub(crate) fn export(&mut self, port: &str, clusters: &[&str], endpoints: &[(&str, SocketAddr, bool)]) {
        let port: ServicePort = port.parse().unwrap();
        let endpoints = endpoints.iter().map(|(id, inbound, ready)| Endpoint {
            id: (*id).into(),
            inbound: inbound.to_string(),
            ready: *ready,
            ports: Vec::new(),
        });
        let export = Export {
            namespace: port.service.namespace.to_string(),
            name: port.service.name.to_string(),
            port: port.port.into(),
            clusters: clusters.iter().map(ToString::to_string).collect(),
            endpoints: endpoints.collect(),
        };
        self.put(format!("export/{port}"), Kind::Export(export));
    }

    pub(crate) fn unexport(&mut self, port: &str) {
        self.resources.remove(&format!("export/{port}")).unwrap();
    }

    fn put(&mut self, key: String, kind: Kind) {
        let resource = Resource { key: key.clone(), changed_at_ms: 1, kind: Some(kind) };
        self.resources.insert(key, Arc::new(resource));
    }

    /// Hands the tables to the gateway and waits until they are in force.
    pub(crate) async fn publish(&mut self) {
        let version = self.tables.borrow().version + 1;
        self.tables.send_replace(Arc::new(Table { version, resources: self.resources.clone() }));
        let loaded = self.status.wait_for(|status| status.loaded_version >= version);
        within("the tables to be loaded", loaded).await.unwrap();
    }

    pub(crate) fn page(&self, path: &str) -> serde_json::Value {
        self.process.pages.show(path, "").unwrap()
    }

    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.process.registry.lock()).unwrap();
        text
    }

    /// A peer's proxy.
    pub(crate) fn knocker(&self, cluster: &str, transport: Transport) -> Knocker {
        let credentials = self.pki.linked(cluster, "/ns/apps/sa/web", &["east"]);
        self.knocker_with(credentials, transport)
    }

    pub(crate) fn knocker_with(&self, credentials: Credentials, transport: Transport) -> Knocker {
        let path = GatewayPath {
            cluster: "east".parse().unwrap(),
            gateway: "g0".parse().unwrap(),
            address: self.address,
            trust_domain: domain("east"),
            transport,
        };
        Knocker { dialer: Dialer::new(credentials, DialerConfig::default()), path }
    }
}

pub(crate) fn avoiding(target: &str, ids: &[&str]) -> OpenRequest {
    let avoid = ids.iter().map(ToString::to_string).collect();
    OpenRequest { avoid, ..OpenRequest::any(target.parse().unwrap()) }
}

/// Who wants in.
pub(crate) struct Knocker {
    pub(crate) dialer: Dialer,
    pub(crate) path: GatewayPath,
}

impl Knocker {
    pub(crate) async fn open(&self, target: &str) -> Result<Opening, Refusal> {
        self.ask(OpenRequest::any(target.parse().unwrap())).await
    }

    pub(crate) async fn ask(&self, request: OpenRequest) -> Result<Opening, Refusal> {
        within("an answer", self.dialer.open(&self.path, &request)).await
    }

    /// An opened stream behind which an endpoint has said its name.
    pub(crate) async fn reach(&self, target: &str) -> (String, Opening) {
        let mut opening = self.open(target).await.unwrap();
        let name = read_name(&mut opening).await.unwrap();
        (name, opening)
    }
}

/// The line with which every test endpoint begins.
pub(crate) async fn read_name(opening: &mut Opening) -> std::io::Result<String> {
    let mut name = Vec::new();
    loop {
        let byte = within("the endpoint's name", opening.stream.read_u8()).await?;
        if byte == b'\n' {
            return Ok(String::from_utf8(name).unwrap());
        }
        name.push(byte);
    }
}

/// Whether bytes still come back.
pub(crate) async fn echoes(opening: &mut Opening) -> std::io::Result<()> {
    opening.stream.write_all(b"ping!").await?;
    opening.stream.flush().await?;
    let mut back = [0; 5];
    within("an echo", opening.stream.read_exact(&mut back)).await?;
    assert_eq!(&back, b"ping!");
    Ok(())
}

/// Waits until the stream is cut; how long that took.
pub(crate) async fn until_cut(opening: &mut Opening) -> Duration {
    let begun = Instant::now();
    let mut buffer = [0; 64];
    let cut = async { while opening.stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {} };
    within("the stream to be cut", cut).await;
    begun.elapsed()
}

/// An endpoint: says its name, then echoes.
pub(crate) struct Endpoint0 {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Endpoint0 {
    pub(crate) async fn start(name: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let _ = socket.write_all(format!("{name}\n").as_bytes()).await;
                    let (mut from, mut to) = socket.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        Self { address, task }
    }
}

impl Drop for Endpoint0 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An address where nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(Duration::from_secs(10), future).await {
        Ok(value) => value,
        Err(_) => panic!("waited 10 s for {what}"),
    }
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

fn config(limits: LimitsConfig) -> Config {
    Config {
        process: ProcessConfig {
            name: "east/g0".into(),
            admin: "127.0.0.1:0".parse().unwrap(),
            run_file: "unused".into(),
            drain_seconds: 1,
        },
        name: "g0".parse().unwrap(),
        cluster: "east".parse().unwrap(),
        listen: "127.0.0.1:0".parse().unwrap(),
        identity: IdentityConfig {
            trust_domain: domain("east"),
            issuer: Issuer::Local { socket: "unused".into(), join_token: "unused".into() },
            store: "unused".into(),
        },
        discovery: DiscoveryConfig { socket: "unused".into(), last_known: "/proc/unused/tables".into() },
        limits,
    }
}
