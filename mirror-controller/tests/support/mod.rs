//! Whole clusters in this process: a mirror controller each, with real sockets, and the smallest gateway that does.

#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "used by tests only, where a panic is the report"
)]

pub(crate) mod anchor;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hawser_api::bundle::Bundle;
use hawser_api::proto::discovery::resource::Kind;
use hawser_api::proto::discovery::{Destination, Export, Resource, Role, Status};
use hawser_api::{Code, Refusal, labels};
use hawser_mirror_controller::config::{Config, FilesConfig, Source};
use hawser_runtime::Process;
use hawser_runtime::config::{IdentityConfig, Issuer, ProcessConfig};
use hawser_runtime::subscribe::{self, Subscription, Table};
use hawser_tunnel::listen::{Arrival, ListenConfig, Tunnel, TunnelListener};
use hawser_tunnel::open::OpenedAnswer;
use hawser_tunnel::report;
use hawser_tunnel::stream::TunnelStream;
use hawser_tunnel::testing::{Pki, domain};
use hawser_tunnel::tls::{Anchors, Credentials};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest that anything may take here.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    within(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// A running controller.
pub(crate) struct Controller {
    pub(crate) process: Process,
    pub(crate) served: JoinHandle<anyhow::Result<()>>,
}

impl Controller {
    /// As kill -9 would: nothing is said to anybody.
    pub(crate) fn kill(self) {
        self.process.stop.cancel();
        self.served.abort();
    }

    pub(crate) fn page(&self, path: &str) -> serde_json::Value {
        self.process.pages.show(path, "").unwrap_or_default()
    }

    pub(crate) fn metrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.process.registry.lock()).unwrap();
        text
    }
}

/// A cluster: its directories, its gateways, and its controller while it runs.
pub(crate) struct Cluster {
    pub(crate) name: &'static str,
    pub(crate) root: TempDir,
    pub(crate) gateways: Vec<Gateway>,
    pub(crate) controller: Option<Controller>,
    pki: Arc<Pki>,
    peers: Vec<&'static str>,
    /// What peers' Links say of whom to trust here; empty: they hang under the same root.
    pub(crate) bundle: String,
}

impl Cluster {
    /// With `count` gateways; its controller is not started.
    pub(crate) async fn new(pki: &Arc<Pki>, name: &'static str, peers: &[&'static str], count: usize) -> Self {
        Self::with(pki, name, peers, count, |pki| pki.linked(name, "/ns/hawser-system/sa/gateway", peers)).await
    }

    /// Under a root of its own, with one gateway and one peer that has this bundle.
    pub(crate) async fn apart(pki: &Arc<Pki>, name: &'static str, peer: &'static str, theirs: Bundle) -> Self {
        let mut cluster = Self::with(pki, name, &[peer], 1, |pki| {
            let credentials = pki.credentials(name, "/ns/hawser-system/sa/gateway");
            assert!(credentials.set_anchors(&domain(peer), Anchors::Bundle(theirs.clone())).is_empty());
            credentials
        })
        .await;
        cluster.bundle = pki.bundle().to_document();
        cluster
    }

    async fn with(
        pki: &Arc<Pki>,
        name: &'static str,
        peers: &[&'static str],
        count: usize,
        credentials: impl Fn(&Pki) -> Credentials,
    ) -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("objects")).unwrap();
        let socket = root.path().join("discovery.sock");
        let mut gateways = Vec::new();
        for index in 0..count {
            gateways.push(Gateway::start(credentials(pki), peers, index, socket.clone()).await);
        }
        Self { name, root, gateways, controller: None, pki: pki.clone(), peers: peers.to_vec(), bundle: String::new() }
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            process: ProcessConfig {
                name: format!("{}/mirror-controller", self.name),
                admin: "127.0.0.1:0".parse().unwrap(),
                run_file: self.path("run.json"),
                drain_seconds: 1,
            },
            cluster: self.name.parse().unwrap(),
            identity: IdentityConfig {
                trust_domain: domain(self.name),
                issuer: Issuer::Local { socket: self.path("trust-anchor.sock"), join_token: self.path("token") },
                store: self.path("identity"),
            },
            source: Source::Files(FilesConfig {
                objects: self.path("objects"),
                output: self.path("output"),
                links: None,
            }),
            state: self.path("state"),
            socket: self.path("discovery.sock"),
            catalog_listen: "127.0.0.1:0".parse().unwrap(),
        }
    }

    pub(crate) fn start(&mut self) {
        let process = Process::detached();
        // Peers' anchors come from the Links.
        let credentials = self.pki.credentials(self.name, "/ns/hawser-system/sa/mirror-controller");
        let served = tokio::spawn(hawser_mirror_controller::serve(self.config(), credentials, process.clone()));
        self.controller = Some(Controller { process, served });
    }

    pub(crate) fn controller(&self) -> &Controller {
        self.controller.as_ref().unwrap()
    }

    /// Nothing of it answers any more.
    pub(crate) fn kill(&mut self) {
        self.controller.take().unwrap().kill();
        self.gateways.iter().for_each(|gateway| gateway.stop.cancel());
    }

    pub(crate) fn write(&self, file: &str, text: &str) {
        std::fs::write(self.path("objects").join(file), text).unwrap();
    }

    /// The Cluster object, and a Link to each peer.
    pub(crate) fn link(&self, peers: &[&Self]) {
        let mut text = format!(
            "apiVersion: hawser.dev/v1alpha1\nkind: Cluster\nmetadata: {{name: {}}}\nspec:\n  fabricDomain: hawser.test\n  \
             proxies: [{{name: back, namespace: shop, serviceAccount: back, inbound: 127.0.0.1:4143}}]\n",
            self.name
        );
        for peer in peers {
            text.push_str(&peer.as_link());
        }
        self.write("cluster.yaml", &text);
    }

    fn as_link(&self) -> String {
        let gateways: Vec<String> =
            self.gateways.iter().map(|g| format!("{{name: {}, address: \"{}\"}}", g.name, g.address)).collect();
        let mut link = format!(
            "---\napiVersion: hawser.dev/v1alpha1\nkind: Link\nmetadata: {{name: {}}}\nspec:\n  trustDomain: {}\n  gateways: [{}]\n",
            self.name,
            domain(self.name),
            gateways.join(", ")
        );
        if !self.bundle.is_empty() {
            let value: serde_json::Value = serde_json::from_str(&self.bundle).unwrap();
            link.push_str(&format!("  bundle: '{value}'\n"));
        }
        link
    }

    /// What a proxy of this cluster sees, as it changes.
    pub(crate) fn proxy(&self, name: &str) -> Subscriber {
        Subscriber::new(self.path("discovery.sock"), self.path(&format!("tables-{name}")), Role::Proxy, name)
    }
}

/// A service with one endpoint; `marks` goes into its metadata.
pub(crate) fn service(name: &str, marks: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop{marks}}}\nspec: {{ports: [{{name: http, port: 80}}]}}\n\
         ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         endpoints: [{{addresses: [127.0.0.1]}}]\nports: [{{name: http, port: 8080}}]\n"
    )
}

pub(crate) const EXPORTED: &str = ", labels: {hawser.dev/export: \"true\"}";

/// A subscriber of discovery.
pub(crate) struct Subscriber {
    pub(crate) tables: watch::Receiver<Arc<Table>>,
    pub(crate) status: watch::Sender<Status>,
    task: JoinHandle<()>,
}

impl Subscriber {
    pub(crate) fn new(socket: PathBuf, last_known: PathBuf, role: Role, name: &str) -> Self {
        let (to, tables) = watch::channel(Arc::new(Table::default()));
        let (status, reported) = watch::channel(Status { role: role.into(), name: name.into(), ..Status::default() });
        let subscription = Subscription { socket, last_known, role, name: name.to_owned() };
        Self { tables, status, task: tokio::spawn(subscribe::run(subscription, to, reported)) }
    }

    /// Waits until a destination of namespace `shop` is as wanted; gives it back.
    pub(crate) async fn destination(&mut self, name: &str, wanted: impl Fn(&Destination) -> bool) -> Destination {
        let key = format!("destination/shop/{name}");
        let find = |table: &Table| match table.resources.get(&key).and_then(|resource| resource.kind.clone()) {
            Some(Kind::Destination(destination)) => Some(destination).filter(|d| wanted(d)),
            _ => None,
        };
        let table = within(name, self.tables.wait_for(|table| find(table).is_some())).await.unwrap().clone();
        find(&table).unwrap()
    }

    pub(crate) async fn gone(&mut self, name: &str) {
        let key = format!("destination/shop/{name}");
        within(name, self.tables.wait_for(|table| !table.resources.contains_key(&key))).await.unwrap();
    }

    pub(crate) fn resources(&self) -> BTreeMap<String, Arc<Resource>> {
        self.tables.borrow().resources.clone()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The smallest gateway: lets a peer in to what its cluster's discovery exports to it.
pub(crate) struct Gateway {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    /// Ends everything.
    pub(crate) stop: CancellationToken,
    /// While true nothing moves and nothing ends, as in a stopped process.
    pub(crate) mute: Arc<AtomicBool>,
}

impl Gateway {
    async fn start(credentials: Credentials, peers: &[&str], index: usize, discovery: PathBuf) -> Self {
        let address = "127.0.0.1:0".parse().unwrap();
        let trust = Some(report::trust(&credentials));
        let listener = TunnelListener::bind(address, credentials, ListenConfig::default()).await.unwrap();
        let (stop, mute) = (CancellationToken::new(), Arc::new(AtomicBool::new(false)));
        let address = listener.local_addr();
        let last_known = discovery.with_file_name(format!("tables-gateway-{index}"));
        let names: BTreeMap<String, String> =
            peers.iter().map(|peer| (domain(peer).to_string(), (*peer).to_owned())).collect();
        let door = Door { names, muted: mute.clone(), ended: stop.clone() };
        tokio::spawn(async move {
            let table = Subscriber::new(discovery, last_known, Role::Gateway, &format!("g{index}"));
            table.status.send_modify(|status| status.trust = trust);
            let ended = door.ended.clone();
            ended.run_until_cancelled(door.listen(listener, table.tables.clone())).await;
        });
        Self { name: format!("g{index}"), address, stop, mute }
    }
}

#[derive(Clone)]
struct Door {
    names: BTreeMap<String, String>,
    muted: Arc<AtomicBool>,
    ended: CancellationToken,
}

impl Door {
    async fn listen(self, listener: TunnelListener, tables: watch::Receiver<Arc<Table>>) {
        while let Some(incoming) = listener.accept().await {
            let (door, tables) = (self.clone(), tables.clone());
            tokio::spawn(async move {
                let Ok(mut tunnel) = incoming.handshake().await else { return };
                door.ended.run_until_cancelled(door.serve(&mut tunnel, tables)).await;
                tunnel.cut();
            });
        }
    }

    async fn serve(&self, tunnel: &mut Tunnel, tables: watch::Receiver<Arc<Table>>) {
        let peer = self.names[tunnel.peer().id().trust_domain().as_str()].clone();
        while let Some(arrival) = tunnel.next_open().await {
            if self.muted.load(Ordering::Relaxed) {
                std::mem::forget(arrival);
                continue;
            }
            let table = tables.borrow().clone();
            self.answer(arrival, &peer, &table).await;
        }
    }

    async fn answer(&self, arrival: Arrival, peer: &String, table: &Table) {
        let target = arrival.request().target.clone();
        let answer = |endpoint: &str| OpenedAnswer { endpoint: endpoint.into(), endpoints_ready: 1 };
        if target.service.to_string() == format!("{}/{}", labels::SYSTEM_NAMESPACE, labels::PING_SERVICE) {
            let _ = arrival.accept(&answer("ping")).await;
            return;
        }
        let resource = table.resources.get(&format!("export/{}/{}", target.service, target.port));
        let export: Option<Export> = resource.and_then(|resource| match resource.kind.clone() {
            Some(Kind::Export(export)) => Some(export),
            _ => None,
        });
        let export = export.filter(|export| export.clusters.contains(peer));
        let Some(endpoint) = export.and_then(|export| export.endpoints.first().cloned()) else {
            arrival.refuse(&Refusal::new(Code::NotExported, "not exported", "export it")).await;
            return;
        };
        let Ok(upstream) = TcpStream::connect(&endpoint.inbound).await else {
            arrival.refuse(&Refusal::new(Code::EndpointUnreachable, "nobody there", "start it")).await;
            return;
        };
        let Ok(stream) = arrival.accept(&answer(&endpoint.id)).await else { return };
        let (ended, muted) = (self.ended.clone(), self.muted.clone());
        tokio::spawn(async move { ended.run_until_cancelled(carry(stream, upstream, &muted)).await });
    }
}

async fn carry(tunnel: TunnelStream, upstream: TcpStream, muted: &AtomicBool) {
    let ((tunnel_from, tunnel_to), (upstream_from, upstream_to)) = (tokio::io::split(tunnel), upstream.into_split());
    tokio::join!(copy(tunnel_from, upstream_to, muted), copy(upstream_from, tunnel_to, muted));
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, muted: &AtomicBool) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count) = from.read(&mut buffer).await {
        while muted.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() || to.flush().await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}
