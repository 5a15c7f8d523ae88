//! A cluster's control plane: etcd, API server, controllers.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use tokio::sync::Mutex;

use super::credentials::Credentials;
use super::objects;
use super::part::Part;
use super::program::program;
use super::scratch::Scratch;
use crate::place::Place;
use crate::wait::within;

/// From nothing to controllers that work: five seconds on an idle machine, programs that are read from disk for the
/// first time on a busy one included.
const READY: Duration = Duration::from_secs(120);
const ADMIN: &str = "administrator";
/// The audience of a cluster's own API, and its issuer.
const API_AUDIENCE: &str = "https://kubernetes.default.svc";

/// A control plane; its processes and its directory go when it is dropped, and when the test program ends.
#[derive(Debug)]
pub struct ControlPlane {
    name: String,
    place: Place,
    credentials: Credentials,
    /// etcd, of which this is the only member.
    pub etcd: Part,
    /// kube-apiserver.
    pub apiserver: Part,
    /// kube-controller-manager with the controllers of namespaces, service accounts, Endpoints, EndpointSlices and
    /// garbage.
    pub controllers: Part,
    kubeconfig: PathBuf,
    kubeconfigs: AtomicU32,
    // Fields are dropped in this order: the directory after those who write to it.
    dir: Scratch,
}

/// What etcd held at one time.
#[derive(Debug)]
pub struct Saved(tempfile::TempDir);

impl ControlPlane {
    /// Starts one that belongs to the caller, with the node `node-0`, and waits until it works.
    pub async fn start(name: &str) -> Result<Self> {
        let plane = Self::lay(name)?;
        plane.etcd.start()?;
        plane.apiserver.start()?;
        plane.ready().await?;
        plane.controllers.start()?;
        let client = plane.client().await?;
        objects::node(&client, "node-0").await?;
        let accounts: Api<ServiceAccount> = Api::default_namespaced(client);
        within(READY, "the controllers to make the default service account", async || {
            plane.controllers.pid()?;
            Ok(accounts.get("default").await?)
        })
        .await?;
        Ok(plane)
    }

    /// The one of this name that all tests of this program share, for those that leave it as they found it: namespaces
    /// of their own, nothing killed. It ends with the program.
    pub async fn shared(name: &str) -> Result<Arc<Self>> {
        static SHARED: Mutex<BTreeMap<String, Arc<ControlPlane>>> = Mutex::const_new(BTreeMap::new());
        let mut shared = SHARED.lock().await;
        if let Some(plane) = shared.get(name) {
            return Ok(Arc::clone(plane));
        }
        let plane = Arc::new(Self::start(name).await?);
        shared.insert(name.to_owned(), Arc::clone(&plane));
        Ok(plane)
    }

    fn lay(name: &str) -> Result<Self> {
        let dir = Scratch::new("hawser-kubernetes-")?;
        let place = Place::take()?;
        let server = place.address(0, 2, 6443);
        let credentials = Credentials::make(dir.path(), server.ip(), ADMIN)?;
        let kubeconfig = dir.path().join("admin.kubeconfig");
        fs::write(&kubeconfig, render(name, server, &credentials.ca, ADMIN))?;
        Ok(Self {
            name: name.to_owned(),
            etcd: Part::new("etcd", dir.path(), &etcd(&place))?,
            apiserver: Part::new("kube-apiserver", dir.path(), &apiserver(&place, &credentials))?,
            controllers: Part::new("kube-controller-manager", dir.path(), &controllers(&kubeconfig))?,
            place,
            credentials,
            kubeconfig,
            kubeconfigs: AtomicU32::new(0),
            dir,
        })
    }

    /// Waits until the API server says that it is ready; an error at once if it, or its etcd, has ended.
    pub async fn ready(&self) -> Result<()> {
        let client = self.client().await?;
        let (ended, _) = within(READY, &format!("the API server of {} to be ready", self.name), async || {
            if let Err(ended) = self.etcd.pid().and(self.apiserver.pid()) {
                return Ok(Err(ended));
            }
            let request = http::Request::get("/readyz").body(Vec::new())?;
            Ok(Ok(client
                .request_text(request)
                .await
                .map_err(|error| anyhow!("{error}; kube-apiserver said last:\n{}", self.apiserver.last_words()))?))
        })
        .await?;
        ended.map(drop)
    }

    /// The cluster's name, which is also the context's in its kubeconfigs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the API server listens.
    pub fn server(&self) -> SocketAddr {
        self.place.address(0, 2, 6443)
    }

    /// A loopback address for what a test runs for this cluster: `host` from 10 to 250, any port.
    pub fn address(&self, host: u8, port: u16) -> SocketAddr {
        self.place.address(0, host, port)
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Another kubeconfig: of whoever has this token, at the API server or a proxy before it.
    pub fn write_kubeconfig(&self, server: SocketAddr, token: &str) -> Result<PathBuf> {
        let number = self.kubeconfigs.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.path().join(format!("{number}.kubeconfig"));
        fs::write(&path, render(&self.name, server, &self.credentials.ca, token))?;
        Ok(path)
    }

    /// The administrator's kubeconfig at a proxy before the API server.
    pub fn kubeconfig_by(&self, server: SocketAddr) -> Result<PathBuf> {
        self.write_kubeconfig(server, ADMIN)
    }

    /// An administrator's client, for the test that asks: a client lives no longer than its test's runtime.
    pub async fn client(&self) -> Result<Client> {
        Ok(Client::try_from(config(&self.kubeconfig).await?)?)
    }

    /// Runs `kubectl` as the administrator; what it printed.
    pub async fn kubectl(&self, words: &[&str], input: &str) -> Result<String> {
        let mut command = tokio::process::Command::new(program("kubectl")?);
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(words).env("HOME", self.dir.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("cannot run kubectl")?;
        let mut stdin = child.stdin.take().context("no input")?;
        tokio::io::AsyncWriteExt::write_all(&mut stdin, input.as_bytes()).await?;
        drop(stdin);
        let done = child.wait_with_output().await?;
        let (said, error) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        ensure!(done.status.success(), "kubectl {}: {said}{error}", words.join(" "));
        Ok(said.into_owned())
    }

    /// Keeps what etcd holds now, as a crash at this moment would leave it.
    pub fn save(&self) -> Result<Saved> {
        let saved = tempfile::Builder::new().prefix("hawser-etcd-").tempdir()?;
        self.etcd.stop()?;
        let copied = copy(&self.etcd_data(), &saved.path().join("etcd"));
        self.etcd.resume()?;
        copied.map(|()| Saved(saved))
    }

    /// Puts the cluster back to what was saved, as an operator does from a backup: every part is stopped and started.
    /// Resource versions go back too.
    pub async fn restore(&self, saved: &Saved) -> Result<()> {
        for part in [&self.controllers, &self.apiserver, &self.etcd] {
            part.kill()?;
        }
        fs::remove_dir_all(self.etcd_data())?;
        copy(&saved.0.path().join("etcd"), &self.etcd_data())?;
        self.etcd.start()?;
        self.apiserver.start()?;
        self.ready().await?;
        self.controllers.start()
    }

    /// kill -9 of the API server, and a new one; clients see connections that break and then refused ones.
    pub async fn restart_apiserver(&self) -> Result<()> {
        self.apiserver.kill()?;
        self.apiserver.start()?;
        self.ready().await
    }

    fn etcd_data(&self) -> PathBuf {
        self.dir.path().join("etcd")
    }

    pub(crate) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// How a client reaches the current context of a kubeconfig.
pub(crate) async fn config(kubeconfig: &Path) -> Result<Config> {
    let config = Kubeconfig::read_from(kubeconfig)?;
    Ok(Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let done = Command::new("cp").args(["--archive", "--sparse=always"]).arg(from).arg(to).output()?;
    ensure!(done.status.success(), "cannot copy etcd's files: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

fn render(name: &str, server: SocketAddr, ca: &Path, token: &str) -> String {
    let ca = ca.display();
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: {name}\n\
         clusters: [{{name: {name}, cluster: {{server: 'https://{server}', certificate-authority: '{ca}'}}}}]\n\
         users: [{{name: user, user: {{token: '{token}'}}}}]\n\
         contexts: [{{name: {name}, context: {{cluster: {name}, user: user}}}}]\n"
    )
}

fn flags(flags: &[(&str, &str)]) -> Vec<String> {
    flags.iter().map(|(flag, value)| format!("--{flag}={value}")).collect()
}

fn etcd(place: &Place) -> Vec<String> {
    let client = format!("http://{}", place.address(0, 1, 2379));
    let peer = format!("http://{}", place.address(0, 1, 2380));
    flags(&[
        ("name", "only"),
        ("data-dir", "etcd"),
        ("listen-client-urls", &client),
        ("advertise-client-urls", &client),
        ("listen-peer-urls", &peer),
        ("initial-advertise-peer-urls", &peer),
        ("initial-cluster", &format!("only={peer}")),
        // Nobody loses power here.
        ("unsafe-no-fsync", "true"),
        ("log-level", "warn"),
    ])
}

fn apiserver(place: &Place, credentials: &Credentials) -> Vec<String> {
    let server = place.address(0, 2, 6443);
    let path = |path: &Path| path.display().to_string();
    // Ranges of its own: addresses of Services tell clusters apart. Above 10.95, where people's own networks are rare.
    let number = place.number();
    let ranges = format!("10.{}.0.0/16,fd00:{number:x}::/108", 96 + number % 128);
    flags(&[
        ("etcd-servers", &format!("http://{}", place.address(0, 1, 2379))),
        ("bind-address", &server.ip().to_string()),
        ("secure-port", &server.port().to_string()),
        // The Endpoints of Service `kubernetes` may not be loopback; nobody uses them.
        ("advertise-address", "192.0.2.1"),
        ("tls-cert-file", &path(&credentials.serving)),
        ("tls-private-key-file", &path(&credentials.serving_key)),
        ("token-auth-file", &path(&credentials.users)),
        ("authorization-mode", "RBAC"),
        ("service-cluster-ip-range", &ranges),
        ("service-account-issuer", API_AUDIENCE),
        ("api-audiences", API_AUDIENCE),
        ("service-account-key-file", &path(&credentials.tokens_public)),
        ("service-account-signing-key-file", &path(&credentials.tokens_key)),
        // Those that need parts of a cluster that are not here: a kubelet, storage, ingress, a scheduler.
        (
            "disable-admission-plugins",
            "ServiceAccount,TaintNodesByCondition,PodSecurity,Priority,StorageObjectInUseProtection,DefaultIngressClass",
        ),
        // The faults are those that a test asks for.
        ("enable-priority-and-fairness", "false"),
        ("max-requests-inflight", "3000"),
        ("max-mutating-requests-inflight", "1000"),
        ("profiling", "false"),
    ])
}

fn controllers(kubeconfig: &Path) -> Vec<String> {
    flags(&[
        ("kubeconfig", &kubeconfig.display().to_string()),
        ("leader-elect", "false"),
        ("secure-port", "0"),
        ("use-service-account-credentials", "false"),
        (
            "controllers",
            "namespace-controller,garbage-collector-controller,endpointslice-controller,endpoints-controller,\
             serviceaccount-controller",
        ),
    ])
}
