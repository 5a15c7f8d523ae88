//! A cluster on Kubernetes beside a fabric of plain machines: its API server, and mirror controllers as processes.
//!
//! ```text
//!  east's gateway ◀── relay, at an address that API servers take for an endpoint ◀── mirror controllers of west
//!                                                                                          │ each by faults of its own
//!                                                       west's trust anchor (fabric) ◀─────┤
//!                                                       west's API server (plane)    ◀─────┘
//! ```
//!
//! The controllers are who west's own is among plain machines: they begin with its identity. They ask the API server as
//! the service account of `hawser install`, with its roles and no others.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::faults::Faults;
use super::objects;
use super::plane::ControlPlane;
use crate::binary::hawser;
use crate::daemon::Daemon;
use crate::fabric::Fabric;
use crate::relay::Relay;
use crate::wait::{eventually, within};

/// The audience of tokens for the API server itself.
const API_AUDIENCE: &str = "https://kubernetes.default.svc";
/// Until a controller is ready; it is read from disk, and the machine may be busy.
const READY: Duration = Duration::from_secs(30);

/// West's cluster on Kubernetes, linked to the fabric's east.
pub struct Site {
    /// Its control plane.
    pub plane: Arc<ControlPlane>,
    /// An administrator's client.
    pub client: Client,
    /// Where east's services are put.
    pub namespace: String,
    /// Where east's gateway is, as the Link says.
    pub gateway: SocketAddr,
    token: String,
    state: PathBuf,
    dir: tempfile::TempDir,
    relay: Relay,
}

/// A mirror controller that runs until it is dropped.
#[derive(Debug)]
pub struct Controller {
    /// What stands before the API server for this one.
    pub faults: Faults,
    /// Its process.
    pub daemon: Daemon,
    log: PathBuf,
    _child: Child,
}

impl Site {
    /// With everything installed, a namespace of its own, and no Link yet.
    pub async fn beside(fabric: &Fabric) -> Result<Self> {
        Self::at(ControlPlane::shared("west").await?, fabric).await
    }

    /// The same at a control plane that is not shared, for tests that do to it what others would notice.
    pub async fn at(plane: Arc<ControlPlane>, fabric: &Fabric) -> Result<Self> {
        let client = plane.client().await?;
        plane.kubectl(&["apply", "--server-side", "-f", "-"], &install().await?).await?;
        eventually("Links to be served", async || plane.kubectl(&["get", "links"], "").await).await?;
        forget_links(&client).await?;
        let namespace = objects::namespace(&client, "shop").await?;
        let account = ("hawser-system", "mirror-controller");
        let token = objects::token(&client, account, None, &[API_AUDIENCE]).await?;
        let (_, east) = fabric.gateways("east").into_iter().next().context("east has no gateway")?;
        let gateway = SocketAddr::new(outside()?, free_port(outside()?)?);
        let relay = Relay::start(gateway, east).await?;
        let dir = tempfile::Builder::new().prefix("hawser-site-").tempdir()?;
        let state = fabric.state_of("west").join("west");
        Ok(Self { plane, client, namespace, gateway, token, state, dir, relay })
    }

    /// The Link to east, as it is first written.
    pub fn link_object(&self) -> Value {
        json!({
            "apiVersion": "hawser.dev/v1alpha1", "kind": "Link", "metadata": { "name": "east" },
            "spec": {
                "trustDomain": "east.hawser.test", "transport": "tcp",
                "gateways": [{ "name": "g0", "address": self.gateway }],
                "import": { "namespaces": [{ "from": "shop", "to": self.namespace }] },
            },
        })
    }

    /// Applies an object, as a user does.
    pub async fn apply(&self, object: &Value) -> Result<String> {
        self.plane.kubectl(&["apply", "--server-side", "-f", "-"], &object.to_string()).await
    }

    /// Links.
    pub fn links(&self) -> Api<DynamicObject> {
        links(&self.client)
    }

    /// The Link's status.
    pub async fn status(&self) -> Result<Value> {
        let link = self.links().get("east").await?;
        link.data.get("status").cloned().context("no status")
    }

    /// Objects of a kind in the site's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// How many connections east's gateway was asked for.
    pub fn dialled(&self) -> u64 {
        self.relay.tcp_accepted()
    }

    /// Starts a mirror controller; one of the same name goes on with what the former one kept.
    pub async fn controller(&self, name: &str) -> Result<Controller> {
        let faults = Faults::before(&self.plane).await?;
        let server = faults.address();
        self.start(name, faults, server).await
    }

    /// The same with nothing between it and the API server, for who measures it.
    pub async fn controller_alone(&self, name: &str) -> Result<Controller> {
        self.start(name, Faults::before(&self.plane).await?, self.plane.server()).await
    }

    async fn start(&self, name: &str, faults: Faults, server: SocketAddr) -> Result<Controller> {
        let kubeconfig = self.plane.write_kubeconfig(server, &self.token)?;
        let dir = self.dir.path().join("west").join(name);
        fs::create_dir_all(dir.join("run"))?;
        if !dir.join("identity").exists() {
            copy(&self.state.join("mirror-controller/identity"), &dir.join("identity"))?;
        }
        let run_file = dir.join("run/mirror-controller.json");
        let config = dir.join("config.yaml");
        fs::write(&config, self.config(&dir, &run_file, &kubeconfig).to_string())?;
        let _ = fs::remove_file(&run_file);
        let log = dir.join("log");
        let output = fs::File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(hawser()?);
        command.arg("mirror-controller").arg("--config").arg(&config);
        command.process_group(0).kill_on_drop(true).stdin(Stdio::null());
        command.stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().context("cannot run hawser mirror-controller")?;
        let started = within(READY, "a mirror controller to be ready", async || {
            let daemon = Daemon::read(&run_file)?;
            daemon.text("/ready").await?;
            Ok(daemon)
        })
        .await;
        let (daemon, _) = started.map_err(|error| error.context(last_words(&log)))?;
        Ok(Controller { faults, daemon, log, _child: child })
    }

    fn config(&self, dir: &Path, run_file: &Path, kubeconfig: &Path) -> Value {
        json!({
            "process": { "name": "west/mirror-controller", "admin": "127.0.0.1:0", "runFile": run_file, "drainSeconds": 1 },
            "cluster": "west",
            "identity": {
                "trustDomain": "west.hawser.test",
                "socket": self.state.join("trust-anchor.sock"),
                "joinToken": dir.join("token"),
                "store": dir.join("identity"),
            },
            "kubernetes": {
                "kubeconfig": kubeconfig,
                "cluster": { "region": "west-region", "fabricDomain": "hawser.test" },
            },
            "state": dir.join("state"),
            "socket": dir.join("discovery.sock"),
        })
    }
}

impl Controller {
    /// Whether it is the one that writes.
    pub async fn leads(&self) -> Result<bool> {
        Ok(self.daemon.metric("hawser_leader").await? > 0.0)
    }

    /// Requests that would have changed something other than the lease.
    pub fn writes(&self) -> Vec<String> {
        let writes = self.faults.seen().into_iter().filter(|seen| seen.is_write() && !seen.path.contains("/leases"));
        writes.map(|seen| format!("{} {} {:?}", seen.method, seen.path, seen.status)).collect()
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        last_words(&self.log)
    }
}

/// What `hawser install` prints.
pub async fn install() -> Result<String> {
    let done = Command::new(hawser()?).arg("install").kill_on_drop(true).output().await?;
    ensure!(done.status.success(), "hawser install: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?)
}

fn links(client: &Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("hawser.dev", "v1alpha1", "Link");
    Api::all_with(client.clone(), &ApiResource::from_gvk_with_plural(&kind, "links"))
}

/// A test that failed may have left some, with a finalizer that nobody is there to take off.
async fn forget_links(client: &Client) -> Result<()> {
    let links = links(client);
    for link in links.list(&ListParams::default()).await? {
        let name = link.metadata.name.context("a name")?;
        links.delete(&name, &DeleteParams::default()).await?;
        let none = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
        // It may be gone already.
        let _ = links.patch(&name, &PatchParams::default(), &none).await;
    }
    eventually("no Link to be left", async || {
        ensure!(links.list(&ListParams::default()).await?.items.is_empty(), "there are some");
        Ok(())
    })
    .await
}

/// An address of this machine that is not a loopback one.
fn outside() -> Result<IpAddr> {
    let routes = fs::read_to_string("/proc/net/fib_trie").context("no /proc/net/fib_trie")?;
    let mut last = None;
    for line in routes.lines() {
        if let Some(address) = line.trim().strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        }
        if line.contains("/32 host LOCAL")
            && let Some(address) = last.filter(|address| !address.is_loopback() && !address.is_link_local())
        {
            return Ok(address.into());
        }
    }
    bail!(
        "this machine has only loopback addresses, which no API server takes for an endpoint\n\
         hint: ip address add 10.255.255.1/32 dev lo"
    )
}

fn free_port(address: IpAddr) -> Result<u16> {
    Ok(std::net::TcpListener::bind((address, 0))?.local_addr()?.port())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let done = std::process::Command::new("cp").arg("--archive").arg(from).arg(to).output()?;
    ensure!(done.status.success(), "cannot copy {}: {}", from.display(), String::from_utf8_lossy(&done.stderr));
    Ok(())
}

fn last_words(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    format!(
        "the mirror controller said last:\n{}",
        lines.get(lines.len().saturating_sub(40)..).unwrap_or_default().join("\n")
    )
}
