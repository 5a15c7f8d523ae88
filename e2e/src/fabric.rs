//! A fabric of two or three clusters: its directory, its processes, and the addresses of everything in it.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use crate::binary::hawser;
use crate::client::Via;
use crate::clock::Clock;
use crate::daemon::Daemon;
use crate::place::Place;
use crate::wait::{eventually, within};
use crate::yaml::{self, Proxy, Service};

/// One fabric at a time in one test program: bounds on times mean little while another fabric takes the processor.
static ALONE: Mutex<()> = Mutex::const_new(());

/// For a whole fabric to be ready, programs that were never read from disk included.
const READY: Duration = Duration::from_secs(60);
/// What is left of a program's log is shown up to this many lines.
const LOG_LINES: usize = 60;

/// What is to be built.
///
/// Every cluster has gateways `g0`, `g1`, …; a proxy `client` (`apps/web`, SOCKS5, DNS, a virtual network) that calls;
/// and proxies `server-0` and `server-1` (`shop/checkout`) in front of workloads.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Of all links.
    pub transport: &'static str,
    /// Of each cluster.
    pub gateways: u8,
    /// `west` and `east` are always there.
    pub north: bool,
    /// A process `hawser up --cluster NAME` for each cluster instead of one for all.
    pub apart: bool,
    /// `west` reaches east's gateways at [`Fabric::relay_address`] instead of where they are.
    pub relayed: bool,
    /// Life of every certificate, seconds.
    pub ttl: Option<u64>,
    /// Each cluster has a state directory and a root of its own; with [`Plan::apart`]. Nobody is linked until
    /// [`Fabric::link_by_bundles`].
    pub own_roots: bool,
    /// Each cluster lives by a clock of its own, which [`Fabric::clock`] sets; with [`Plan::apart`].
    pub clocks: bool,
}

impl Plan {
    /// Two clusters of one gateway, with this transport.
    pub fn over(transport: &'static str) -> Self {
        Self {
            transport,
            gateways: 1,
            north: false,
            apart: false,
            relayed: false,
            ttl: None,
            own_roots: false,
            clocks: false,
        }
    }

    fn clusters(&self) -> &'static [&'static str] {
        if self.north { &["west", "east", "north"] } else { &["west", "east"] }
    }
}

/// A fabric; everything that it started ends when it is dropped.
pub struct Fabric {
    plan: Plan,
    place: Place,
    dir: tempfile::TempDir,
    running: BTreeMap<String, Child>,
}

impl Fabric {
    /// Builds, tests and takes down. What the fabric's programs said last is part of an error.
    pub async fn test(plan: Plan, test: impl AsyncFnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let _alone = ALONE.lock().await;
        let mut fabric = Self::lay(plan)?;
        let result = test(&mut fabric).await;
        let result = result.map_err(|error| error.context(fabric.last_words()));
        fabric.down().await;
        if std::env::var_os("HAWSER_E2E_KEEP").is_some() {
            fabric.dir.disable_cleanup(true);
        }
        result
    }

    /// Writes the directory; nothing runs yet.
    fn lay(plan: Plan) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("hawser-e2e-").tempdir()?;
        let fabric = Self { plan, place: Place::take()?, dir, running: BTreeMap::new() };
        for cluster in fabric.plan.clusters() {
            fs::create_dir_all(fabric.cluster_dir(cluster))?;
            fabric.write(cluster, "cluster.yaml", &fabric.cluster_yaml(cluster))?;
            for peer in fabric.plan.clusters().iter().filter(|peer| *peer != cluster && !fabric.plan.own_roots) {
                fabric.write(cluster, &format!("link-{peer}.yaml"), &fabric.link_yaml(cluster, peer))?;
            }
        }
        Ok(fabric)
    }

    fn cluster_yaml(&self, cluster: &str) -> String {
        let client = Proxy {
            name: "client".to_owned(),
            account: "apps/web".to_owned(),
            inbound: None,
            virtual_network: Some(self.place.virtual_network(network(cluster))),
            socks: Some(self.socks(cluster)),
            dns: Some(self.dns(cluster)),
        };
        let server = |n: u8| Proxy {
            name: format!("server-{n}"),
            account: "shop/checkout".to_owned(),
            inbound: Some(self.inbound(cluster, n)),
            ..Proxy::default()
        };
        yaml::cluster(cluster, self.plan.ttl, &self.gateways(cluster), &[client, server(0), server(1)])
    }

    fn link_yaml(&self, of: &str, peer: &str) -> String {
        let gateways = match (self.plan.relayed, of, peer) {
            (true, "west", "east") => vec![("g0".to_owned(), self.relay_address())],
            _ => self.gateways(peer),
        };
        yaml::link(peer, self.plan.transport, &gateways)
    }

    /// Has a command live by a cluster's clock, in a plan with [`Plan::clocks`].
    pub(crate) fn by_clock(&self, cluster: &str, command: &mut Command) -> Result<()> {
        if self.plan.clocks { self.clock(cluster)?.rule(command) } else { Ok(()) }
    }

    /// A cluster's gateways.
    pub fn gateways(&self, cluster: &str) -> Vec<(String, SocketAddr)> {
        let gateway = |n| (format!("g{n}"), self.place.address(network(cluster), 1 + n, 7443));
        (0..self.plan.gateways).map(gateway).collect()
    }

    /// Where a relay is to stand, for a plan with [`Plan::relayed`].
    pub fn relay_address(&self) -> SocketAddr {
        self.place.address(network("east"), 100, 7443)
    }

    /// Where a cluster's client proxy answers SOCKS5.
    pub fn socks(&self, cluster: &str) -> SocketAddr {
        self.place.address(network(cluster), 10, 1080)
    }

    /// Where a cluster's client proxy answers DNS.
    pub fn dns(&self, cluster: &str) -> SocketAddr {
        self.place.address(network(cluster), 10, 5353)
    }

    /// Where `server-<number>` accepts sealed sessions.
    pub fn inbound(&self, cluster: &str, number: u8) -> SocketAddr {
        self.place.address(network(cluster), 20 + number, 4143)
    }

    /// An address for a workload of a cluster, `host` below 50.
    pub fn workload(&self, cluster: &str, host: u8) -> SocketAddr {
        self.place.address(network(cluster), 50 + host, 8080)
    }

    /// A service by name, as an application of a cluster calls it: `checkout-east.shop`.
    pub fn by_name(&self, from: &str, service: &str, port: u16) -> Via {
        let name =
            if service.ends_with(".local") { service.to_owned() } else { format!("{service}.svc.cluster.local") };
        Via::Socks { proxy: self.socks(from), name, port }
    }

    /// The same by virtual address, when it is bound.
    pub async fn by_address(&self, from: &str, key: &str, port: u16) -> Result<Via> {
        let (namespace, name) = key.split_once('/').context("namespace/name")?;
        let client = self.daemon(from, "proxy", "client")?;
        eventually(&format!("a virtual address of {key}"), async || {
            let listeners = client.page("/listeners").await?;
            let rows = listeners.as_array().or_else(|| listeners.get("listeners")?.as_array());
            let row = rows.context("no rows")?.iter().find(|row| {
                row["namespace"] == namespace && row["name"] == name && row["port"].as_u64() == Some(port.into())
            });
            let bound = row.and_then(|row| row["bound"].as_str()).with_context(|| format!("not bound: {listeners}"))?;
            Ok(Via::Address(bound.parse()?))
        })
        .await
    }

    /// The directory of a cluster's objects.
    pub fn cluster_dir(&self, cluster: &str) -> PathBuf {
        self.dir.path().join("fabric").join(cluster)
    }

    /// The state directory, where all clusters share one.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The state directory that a cluster is in.
    pub fn state_of(&self, cluster: &str) -> PathBuf {
        if self.plan.own_roots { self.dir.path().join(format!("state-{cluster}")) } else { self.state() }
    }

    /// The clock of a cluster, in a plan with [`Plan::clocks`].
    pub fn clock(&self, cluster: &str) -> Result<Clock> {
        Clock::at(self.dir.path().join(format!("clock-{cluster}")))
    }

    /// Writes or replaces a file of a cluster, at once, as an editor does.
    pub fn write(&self, cluster: &str, file: &str, text: &str) -> Result<()> {
        let path = self.cluster_dir(cluster).join(file);
        let new = path.with_extension("new");
        fs::write(&new, text)?;
        fs::rename(&new, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Takes a file of a cluster away.
    pub fn remove(&self, cluster: &str, file: &str) -> Result<()> {
        let path = self.cluster_dir(cluster).join(file);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// Writes or replaces a Service.
    pub fn put(&self, cluster: &str, service: &Service) -> Result<()> {
        self.write(cluster, &service.file(), &service.render())
    }

    /// Starts all that the plan says, and waits until it is ready.
    pub async fn up(&mut self) -> Result<()> {
        if !self.plan.apart {
            return self.start("").await;
        }
        let all = self.plan.clusters();
        for cluster in if self.plan.own_roots { all } else { all.get(..1).unwrap_or_default() } {
            self.prepare(cluster, &["init"]).await?;
        }
        if self.plan.clocks {
            self.prepare_intermediates().await?;
        }
        for cluster in all {
            self.start(cluster).await?;
        }
        Ok(())
    }

    /// Clocks that are set back by hours must not end up before the hierarchy, which is of yesterday therefore.
    async fn prepare_intermediates(&self) -> Result<()> {
        for cluster in self.plan.clusters() {
            self.prepare(cluster, &["request", cluster, "--trust-domain", &format!("{cluster}.hawser.test")]).await?;
            self.prepare(cluster, &["intermediate", "--cluster", cluster]).await?;
        }
        Ok(())
    }

    /// `hawser trust …` before the cluster runs. A cluster that is run alone makes no root: it would be nobody else's.
    async fn prepare(&self, cluster: &str, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(hawser()?);
        command.arg("trust").args(arguments).arg("--state").arg(self.state_of(cluster));
        if self.plan.clocks {
            self.clock("yesterday")?.set(-86_400)?;
        }
        self.by_clock("yesterday", &mut command)?;
        let made = command.output().await?;
        ensure!(made.status.success(), "hawser trust {arguments:?}: {}", String::from_utf8_lossy(&made.stderr));
        Ok(())
    }

    /// Links clusters with roots of their own, each by the other's bundle in its Link, as GitOps does.
    pub async fn link_by_bundles(&self) -> Result<()> {
        for of in self.plan.clusters() {
            for peer in self.plan.clusters().iter().filter(|peer| *peer != of) {
                let bundle = self.trust_of(peer, &["bundle", "show"]).await?;
                let link = self.link_yaml(of, peer);
                self.write(of, &format!("link-{peer}.yaml"), &format!("{link}  bundle: '{}'\n", bundle.trim()))?;
            }
        }
        Ok(())
    }

    /// Starts one cluster of a plan with [`Plan::apart`].
    pub async fn start(&mut self, cluster: &str) -> Result<()> {
        let ready = self.dir.path().join(format!("ready-{cluster}"));
        let _ = fs::remove_file(&ready);
        let log = fs::File::options().create(true).append(true).open(self.log(cluster))?;
        let mut command = Command::new(hawser()?);
        command.arg("up").arg(self.dir.path().join("fabric")).arg("--state").arg(self.state_of(cluster));
        command.arg("--ready-file").arg(&ready).arg("--drain").arg("1");
        if !cluster.is_empty() {
            command.arg("--cluster").arg(cluster);
        }
        self.by_clock(cluster, &mut command)?;
        // A group of its own: what signals the test program must not reach the fabric before the harness does.
        command.process_group(0).kill_on_drop(true).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().context("cannot run hawser up")?;
        let waited = within(READY, "hawser up to be ready", async || {
            ensure!(ready.exists(), "{} is not there", ready.display());
            Ok(())
        });
        let waited = tokio::select! {
            waited = waited => waited.map(|_| ()),
            ended = child.wait() => Err(anyhow::anyhow!("hawser up ended: {ended:?}")),
        };
        self.running.insert(cluster.to_owned(), child);
        waited
    }

    fn log(&self, cluster: &str) -> PathBuf {
        self.dir.path().join(format!("up-{cluster}.log"))
    }

    /// The end of every log.
    fn last_words(&self) -> String {
        let mut text = String::new();
        for cluster in self.running.keys() {
            let log = fs::read_to_string(self.log(cluster)).unwrap_or_default();
            let mut lines: Vec<&str> = log.lines().collect();
            // What is said over and over counts once.
            lines.dedup_by_key(|line| without_time(line));
            let last = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
            text += &format!("hawser up {cluster} said last:\n{}\n", last.join("\n"));
        }
        text
    }

    /// Every daemon that has a run file.
    pub fn daemons(&self, cluster: &str) -> Result<Vec<Daemon>> {
        let run = self.state_of(cluster).join(cluster).join("run");
        let mut all = Vec::new();
        for entry in fs::read_dir(&run).with_context(|| format!("no {}", run.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                all.push(Daemon::read(&path)?);
            }
        }
        Ok(all)
    }

    /// One daemon as it runs now; `name` is empty for kinds of which there is one.
    pub fn daemon(&self, cluster: &str, kind: &str, name: &str) -> Result<Daemon> {
        let file = if name.is_empty() { format!("{kind}.json") } else { format!("{kind}-{name}.json") };
        Daemon::read(&self.state_of(cluster).join(cluster).join("run").join(file))
    }

    /// Waits until a daemon that was killed runs again under another process id.
    pub async fn replaced(&self, old: &Daemon) -> Result<Daemon> {
        eventually(&format!("{} {} to be started again", old.kind, old.name), async || {
            let new = self.daemon(&old.cluster, &old.kind, &old.name)?;
            ensure!(new.pid != old.pid && new.is_alive(), "not yet");
            new.text("/ready").await?;
            Ok(new)
        })
        .await
    }

    /// kill -9 of a cluster's `hawser up` (of a plan with [`Plan::apart`]) and of all its daemons.
    pub async fn kill_cluster(&mut self, cluster: &str) -> Result<()> {
        let daemons = self.daemons(cluster)?;
        if let Some(mut child) = self.running.remove(cluster) {
            child.kill().await?;
        }
        for daemon in daemons {
            // It may have gone with its supervisor.
            let _ = daemon.kill();
        }
        Ok(())
    }

    /// Ends everything as Ctrl-C would, and by force what does not end.
    pub async fn down(&mut self) {
        for child in self.running.values() {
            let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
            }
        }
        for (_, mut child) in std::mem::take(&mut self.running) {
            if tokio::time::timeout(Duration::from_secs(10), child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
        self.kill_left();
    }

    fn kill_left(&self) {
        for cluster in self.plan.clusters() {
            for daemon in self.daemons(cluster).unwrap_or_default() {
                if daemon.is_alive() && is_ours(&daemon, self.dir.path()) {
                    // A stopped process takes SIGKILL too.
                    let _ = daemon.kill();
                }
            }
        }
    }
}

/// Whether the process id of a run file still belongs to a daemon of this fabric, and not to somebody new.
fn is_ours(daemon: &Daemon, dir: &Path) -> bool {
    let command = fs::read(format!("/proc/{}/cmdline", daemon.pid)).unwrap_or_default();
    let dir = dir.as_os_str().as_encoded_bytes();
    command.windows(dir.len()).any(|part| part == dir)
}

impl Drop for Fabric {
    fn drop(&mut self) {
        self.kill_left();
    }
}

fn without_time(line: &str) -> (&str, &str) {
    let (daemon, rest) = line.split_once('|').unwrap_or(("", line));
    (daemon, rest.trim_start().split_once(' ').map_or(rest, |(_, said)| said))
}

fn network(cluster: &str) -> u8 {
    match cluster {
        "west" => 0,
        "east" => 1,
        _ => 2,
    }
}
