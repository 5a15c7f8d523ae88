//! Two clusters, linked by `hawser link` across two kubeconfigs: each side is a manifest, and nothing of one cluster's API
//! gets to the other.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use hawser_api::bundle::Bundle;
use hawser_api::labels::{BUNDLE_CONFIG_MAP, SYSTEM_NAMESPACE};
use hawser_e2e::binary::hawser;
use hawser_e2e::eventually;
use hawser_e2e::kubernetes::ControlPlane;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

const APPLY: &[&str] = &["apply", "--server-side", "-f", "-"];

/// What it printed, or the error with what it said.
async fn run(words: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new(hawser()?);
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().context("no input")?;
    // Who refuses may not have read it all.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let done = child.wait_with_output().await?;
    ensure!(done.status.success(), "hawser {}: {}", words.join(" "), String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?)
}

/// A cluster in which everything is installed and whose trust anchor has published.
struct Site {
    plane: ControlPlane,
    kubeconfig: String,
}

impl Site {
    async fn start(name: &str, root: &Path) -> Result<Self> {
        let plane = ControlPlane::start(name).await?;
        plane.kubectl(APPLY, &run(&["install"], "").await?).await?;
        eventually("Links to be served", async || plane.kubectl(&["get", "links"], "").await).await?;
        let root = CertificateDer::from_pem_file(root)?.to_vec();
        let bundle = Bundle { sequence: 1, x509_authorities: vec![root], ..Bundle::default() }.to_document();
        // As the trust anchor writes it: e2e/tests/kubernetes_identity.rs.
        let published = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": BUNDLE_CONFIG_MAP, "namespace": SYSTEM_NAMESPACE },
            "data": { "cluster": name, "trustDomain": format!("{name}.example"), "bundle.json": bundle },
        });
        let words = [APPLY, &["--field-manager", "hawser-trust-anchor", "--force-conflicts"]].concat();
        plane.kubectl(&words, &published.to_string()).await?;
        let kubeconfig = plane.kubeconfig().to_str().context("a path that is no text")?.to_owned();
        Ok(Self { plane, kubeconfig })
    }

    /// `hawser WORDS --kubeconfig …`.
    async fn hawser(&self, words: &[&str], input: &str) -> Result<String> {
        run(&[words, &["--kubeconfig", &self.kubeconfig]].concat(), input).await
    }

    async fn field(&self, link: &str, path: &str) -> Result<String> {
        self.plane.kubectl(&["get", "link", link, "-o", &format!("jsonpath={{{path}}}")], "").await
    }
}

fn refused(done: Result<String>, words: &str) -> Result<()> {
    let said = done.err().with_context(|| format!("taken instead of: {words}"))?.to_string();
    ensure!(said.contains(words) && said.contains("hint: "), "{said}");
    Ok(())
}

async fn roots() -> Result<tempfile::TempDir> {
    let directory = tempfile::tempdir()?;
    for name in ["one", "two"] {
        let state = directory.path().join(name);
        run(&["trust", "init", "--state", state.to_str().context("a path that is no text")?], "").await?;
    }
    Ok(directory)
}

#[tokio::test]
async fn two_clusters_are_linked_by_a_manifest_each_and_unlinked_again() -> Result<()> {
    let roots = roots().await?;
    let west = Site::start("west", &roots.path().join("one/root/root.crt")).await?;
    let east = Site::start("east", &roots.path().join("two/root/root.crt")).await?;

    let manifest = west.hawser(&["link", "create", "--to", "east", "--gateway", "192.0.2.7:7443"], "").await?;
    for secret in ["token", "client-", "certificate-authority", "Secret", "kubeconfig"] {
        ensure!(!manifest.contains(secret), "{secret} crosses:\n{manifest}");
    }
    let said = east.hawser(&["link", "accept", "-"], &manifest).await?;
    ensure!(said.contains("east is linked to west (west.example)"), "{said}");
    let back = east.hawser(&["link", "create", "--to", "west", "--gateway", "192.0.2.9:7443"], "").await?;
    west.hawser(&["link", "accept", "-", "--name", "orient"], &back).await?;

    ensure!(east.field("west", ".spec.gateways[0].address").await? == "192.0.2.7:7443");
    ensure!(east.field("west", ".spec.bundle").await?.contains("x509-svid"), "roots of their own");
    ensure!(west.field("orient", ".spec.trustDomain").await? == "east.example");
    let listed = east.hawser(&["link", "list"], "").await?;
    ensure!(listed.lines().any(|line| line.contains("west")), "{listed}");
    // No mirror controller runs here.
    refused(east.hawser(&["link", "status"], "").await, "not ready: west")?;
    refused(east.hawser(&["link", "status", "north"], "").await, "no Link named north")?;

    // Once more with another address, as after a move: the same Link, changed.
    let moved = manifest.replace("192.0.2.7", "192.0.2.8");
    east.hawser(&["link", "accept", "-"], &moved).await?;
    ensure!(east.field("west", ".spec.gateways[*].address").await? == "192.0.2.8:7443");

    east.hawser(&["unlink", "west"], "").await?;
    refused(east.hawser(&["unlink", "west"], "").await, "no Link named west")?;
    // The other side is its own.
    ensure!(west.field("orient", ".metadata.name").await? == "orient");
    Ok(())
}

#[tokio::test]
async fn what_may_not_be_linked_is_refused_before_anything_is_written() -> Result<()> {
    let roots = roots().await?;
    let root = roots.path().join("one/root/root.crt");
    let (west, east) = (Site::start("west", &root).await?, Site::start("east", &root).await?);
    refused(west.hawser(&["link", "create", "--to", "east"], "").await, "gateways are reached")?;
    let loopback = ["link", "create", "--to", "east", "--gateway", "127.0.0.1:7443"];
    refused(west.hawser(&loopback, "").await, "is loopback")?;
    refused(west.hawser(&["link", "revoke", "east"], "").await, "there are no tokens")?;

    let manifest = west.hawser(&["link", "create", "--to", "east", "--gateway", "192.0.2.7:7443"], "").await?;
    refused(west.hawser(&["link", "accept", "-"], &manifest).await, "west is the name of this cluster itself")?;
    let renamed = ["link", "accept", "-", "--name", "other"];
    refused(west.hawser(&renamed, &manifest).await, "both clusters are of the trust domain west.example")?;
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: b}\nspec: {ports: [{port: 80}]}\n";
    refused(east.hawser(&["link", "accept", "-"], service).await, "holds no Link")?;
    let broken = manifest.replace("192.0.2.7:7443", "192.0.2.7");
    let said = east.hawser(&["link", "accept", "-"], &broken).await.expect_err("it was taken").to_string();
    ensure!(said.contains("spec.gateways[0].address: invalid socket address"), "{said}");
    ensure!(east.plane.kubectl(&["get", "links", "-o", "name"], "").await?.is_empty(), "something was written");

    // Under one root the bundle is left out; under another name the same trust domain is not linked twice.
    east.hawser(&["link", "accept", "-"], &manifest).await?;
    ensure!(east.field("west", ".spec.bundle").await?.is_empty(), "under one root");
    refused(east.hawser(&renamed, &manifest).await, "west (west.example) is linked already")?;

    // A cluster whose trust anchor has said nothing is nobody's peer.
    let delete = ["delete", "configmap", BUNDLE_CONFIG_MAP, "-n", SYSTEM_NAMESPACE];
    west.plane.kubectl(&delete, "").await?;
    let create = ["link", "create", "--to", "east", "--gateway", "192.0.2.7:7443"];
    refused(west.hawser(&create, "").await, "has no `cluster`")
}
