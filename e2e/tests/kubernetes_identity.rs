//! Pods get their identities from a trust anchor that asks a real API server whose tokens they hold, with no more rights
//! there than it needs.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use hawser_api::TrustDomain;
use hawser_api::config::{IdentityConfig, Issuer, RemoteIssuer};
use hawser_api::labels::{BUNDLE_CONFIG_MAP, SYSTEM_NAMESPACE, TRUST_ANCHOR_ACCOUNT};
use hawser_e2e::binary::hawser;
use hawser_e2e::kubernetes::ControlPlane;
use hawser_e2e::kubernetes::objects::{self, ReadyPod};
use hawser_e2e::{Daemon, eventually};
use hawser_tunnel::identity::{IdentitySource, keep, own_bundle};
use hawser_tunnel::tls::Credentials;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

const AUDIENCE: &str = "hawser.dev/east";
const API: &str = "https://kubernetes.default.svc";

/// A cluster's trust anchor as a process of its own, and what pods would mount.
struct Anchor {
    plane: Arc<ControlPlane>,
    client: Client,
    directory: tempfile::TempDir,
    address: String,
    _child: Child,
}

async fn run(arguments: &[&str]) -> Result<String> {
    let output = Command::new(hawser()?).args(arguments).kill_on_drop(true).output().await?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

impl Anchor {
    async fn start(port: u16) -> Result<Self> {
        Self::start_at(ControlPlane::shared("east").await?, port, 3600).await
    }

    /// `ttl`: how many seconds a workload's certificate holds.
    async fn start_at(plane: Arc<ControlPlane>, port: u16, ttl: u64) -> Result<Self> {
        let client = plane.client().await?;
        // The trust anchor gets the rights that are printed for it, and no verb more.
        plane.kubectl(&["apply", "--server-side", "-f", "-"], &run(&["install"]).await?).await?;
        let token = objects::token(&client, (SYSTEM_NAMESPACE, TRUST_ANCHOR_ACCOUNT), None, &[API]).await?;
        let directory = tempfile::tempdir()?;
        let (state, path) = (directory.path().join("state"), |name: &str| directory.path().join(name));
        let kept = state.to_str().context("a path that is no text")?;
        run(&["trust", "init", "--state", kept]).await?;
        run(&["trust", "request", "east", "--trust-domain", "east.example", "--state", kept]).await?;
        run(&["trust", "intermediate", "--cluster", "east", "--state", kept]).await?;
        let address = plane.address(10, port).to_string();
        let config = json!({
            "process": { "name": "east/trust-anchor", "admin": "127.0.0.1:0", "runFile": path("trust-anchor.json") },
            "cluster": "east", "trustDomain": "east.example", "workloadTtlSeconds": ttl, "state": state.join("east/trust-anchor"),
            "socket": path("anchor.sock"), "rootCertificate": state.join("root/root.crt"),
            "kubernetes": {
                "listen": address, "bundleConfigMap": BUNDLE_CONFIG_MAP,
                "kubeconfig": plane.write_kubeconfig(plane.server(), &token)?,
            },
        });
        std::fs::write(path("config.yaml"), config.to_string())?;
        let mut command = Command::new(hawser()?);
        command.args(["trust-anchor", "--config"]).arg(path("config.yaml")).kill_on_drop(true);
        let child = command.spawn().context("cannot run the trust anchor")?;
        let anchor = Self { plane, client, directory, address, _child: child };
        eventually("the trust anchor to be ready", async || anchor.daemon()?.text("/ready").await).await?;
        let published = own_bundle(&anchor.path("anchor.sock")).await.map_err(anyhow::Error::msg)?;
        let jsonpath = "jsonpath={.data.bundle\\.json}";
        let bundle = eventually("the bundle in its ConfigMap", async || {
            let get = ["get", "configmap", BUNDLE_CONFIG_MAP, "-n", SYSTEM_NAMESPACE, "-o", jsonpath];
            let bundle = anchor.plane.kubectl(&get, "").await?;
            ensure!(bundle == published, "another bundle: {bundle:?}");
            Ok(bundle)
        })
        .await?;
        let jsonpath = "jsonpath={.data.cluster} {.data.trustDomain}";
        let named = ["get", "configmap", BUNDLE_CONFIG_MAP, "-n", SYSTEM_NAMESPACE, "-o", jsonpath];
        let named = anchor.plane.kubectl(&named, "").await?;
        ensure!(named == "east east.example", "{named}");
        std::fs::write(anchor.path("bundle.json"), bundle)?;
        Ok(anchor)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn daemon(&self) -> Result<Daemon> {
        Daemon::read(&self.path("trust-anchor.json"))
    }

    async fn pod(&self, namespace: &str, name: &str, account: &str) -> Result<Pod> {
        let address = [10, 1, 2, 3].into();
        ReadyPod { namespace, name, labels: &[], address, service_account: account }.create(&self.client).await
    }

    /// A process with this token, somewhere in the cluster.
    fn process(&self, name: &str, token: &str) -> Result<Running> {
        let file = self.path(&format!("{name}.token"));
        std::fs::write(&file, token)?;
        let trust_domain: TrustDomain = "east.example".parse()?;
        let remote = RemoteIssuer { address: self.address.clone(), bundle: self.path("bundle.json"), token: file };
        let credentials = Credentials::new(trust_domain.clone(), hawser_runtime::clock::now);
        let config = IdentityConfig { trust_domain, issuer: Issuer::Remote(remote), store: self.path(name) };
        let source = IdentitySource::new(&config, &credentials);
        let task = tokio::spawn(keep(credentials.clone(), source, hawser_runtime::clock::now));
        Ok(Running { credentials, task })
    }

    /// Tries with a token until the refusal is counted; nothing may be issued for it.
    async fn refused(&self, name: &str, token: &str, reason: &str) -> Result<()> {
        let process = self.process(name, token)?;
        let sample = format!("hawser_issuer_refused_total{{reason=\"{reason}\"}}");
        eventually(reason, async || self.daemon()?.metric(&sample).await).await.with_context(|| name.to_owned())?;
        ensure!(process.credentials.identity().is_none(), "{name} has an identity");
        Ok(())
    }

    fn audit(&self) -> Result<Vec<Value>> {
        let log = std::fs::read_to_string(self.path("state/east/trust-anchor/audit.log"))?;
        log.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }
}

struct Running {
    credentials: Credentials,
    task: JoinHandle<()>,
}

impl Running {
    async fn identity(&self) -> Result<String> {
        eventually("an identity", async || {
            Ok(self.credentials.identity().context("none yet")?.id().as_str().to_owned())
        })
        .await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_who_its_service_account_token_says_and_the_audit_log_names_the_pod() -> Result<()> {
    let anchor = Anchor::start(7444).await?;
    let namespace = objects::namespace(&anchor.client, "shop").await?;
    objects::service_account(&anchor.client, &namespace, "web").await?;
    let pod = anchor.pod(&namespace, "web-1", "web").await?;
    let token = objects::token(&anchor.client, (&namespace, "web"), Some(&pod), &[AUDIENCE]).await?;
    let process = anchor.process("web-1", &token)?;
    let id = process.identity().await?;
    ensure!(id == format!("spiffe://east.example/ns/{namespace}/sa/web"), "{id}");
    let issued = anchor.audit()?.into_iter().find(|line| line["subject"] == *id).context("no line of it")?;
    ensure!(issued["caller"]["via"] == "token_review", "{issued}");
    let detail = issued["detail"].as_str().unwrap_or_default();
    let uid = pod.metadata.uid.unwrap_or_default();
    ensure!(detail == format!("pod {namespace}/web-1 ({uid})"), "{detail}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_for_others_for_several_without_a_pod_and_of_pods_that_are_gone_get_nothing() -> Result<()> {
    let anchor = Anchor::start(7445).await?;
    let namespace = objects::namespace(&anchor.client, "shop").await?;
    objects::service_account(&anchor.client, &namespace, "web").await?;
    let pod = anchor.pod(&namespace, "web-1", "web").await?;
    let token = async |pod: Option<&Pod>, audiences: &[&str]| {
        objects::token(&anchor.client, (&namespace, "web"), pod, audiences).await
    };
    anchor.refused("west", &token(Some(&pod), &["hawser.dev/west"]).await?, "account_token_audience").await?;
    anchor.refused("both", &token(Some(&pod), &[AUDIENCE, API]).await?, "account_token_audiences").await?;
    anchor.refused("unbound", &token(None, &[AUDIENCE]).await?, "account_token_unbound").await?;
    let good = token(Some(&pod), &[AUDIENCE]).await?;
    // The same claims under another signature.
    let (claims, _) = good.rsplit_once('.').context("no signature")?;
    anchor.refused("forged", &format!("{claims}.{}", "A".repeat(342)), "account_token_not_authentic").await?;

    let first = anchor.process("first", &good)?;
    first.identity().await?;

    let delete = ["delete", "pod", "web-1", "-n", &namespace, "--grace-period=0", "--force"];
    anchor.plane.kubectl(&delete, "").await?;
    // Its successor has its name, and not its UID. For ten seconds the API server vouches for what it has vouched for.
    anchor.pod(&namespace, "web-1", "web").await?;
    let before = anchor.audit()?.len();
    let process = anchor.process("gone", &good)?;
    let why = eventually("a denial", async || {
        let lines = anchor.audit()?;
        let denial = lines.get(before..).unwrap_or_default().iter().find(|line| line["event"] == "denial");
        Ok(denial.context("none yet")?["subject"].as_str().unwrap_or_default().to_owned())
    })
    .await?;
    ensure!(why == "pod_gone" || why == "account_token_not_authentic", "{why}");
    ensure!(process.credentials.identity().is_none(), "a pod that is gone has an identity");
    let issued = anchor.audit()?.iter().filter(|line| line["caller"]["via"] == "token_review").count();
    ensure!(issued == 1, "{issued} certificates were issued");
    let denials = anchor.audit()?.iter().filter(|line| line["event"] == "denial").count();
    ensure!(denials >= 5, "{denials} denials are on record");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_api_server_hangs_who_has_a_certificate_renews_it_and_who_has_none_gets_one_afterwards() -> Result<()>
{
    let plane = Arc::new(ControlPlane::start("east").await?);
    let anchor = Anchor::start_at(Arc::clone(&plane), 7446, 20).await?;
    let namespace = objects::namespace(&anchor.client, "shop").await?;
    let mut tokens = Vec::new();
    for name in ["early", "late"] {
        objects::service_account(&anchor.client, &namespace, name).await?;
        let pod = anchor.pod(&namespace, name, name).await?;
        tokens.push(objects::token(&anchor.client, (&namespace, name), Some(&pod), &[AUDIENCE]).await?);
    }
    let early = anchor.process("early", tokens.first().context("no token")?)?;
    early.identity().await?;
    let held = || Ok::<_, anyhow::Error>(early.credentials.identity().context("none")?.chain().to_vec());
    let first = held()?;

    plane.apiserver.stop()?;
    let late = anchor.process("late", tokens.last().context("no token")?)?;
    eventually("a renewal without the API server", async || {
        ensure!(held()? != first, "not renewed yet");
        Ok(())
    })
    .await?;
    let unanswered = "hawser_issuer_refused_total{reason=\"api_server_unanswered\"}";
    eventually("the wait for the API server to end", async || anchor.daemon()?.metric(unanswered).await).await?;
    ensure!(late.credentials.identity().is_none(), "nobody has vouched for it");

    plane.apiserver.resume()?;
    let id = late.identity().await?;
    ensure!(id == format!("spiffe://east.example/ns/{namespace}/sa/late"), "{id}");
    Ok(())
}
