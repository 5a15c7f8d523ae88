//! What `hawser install` prints, at a real API server: it is taken, taken again without a change, and what it defines is
//! shown and found by name. (`kubernetes_objects.rs` has which objects are taken and refused.)

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use hawser_e2e::eventually;
use hawser_e2e::kubernetes::coredns::CoreDns;
use hawser_e2e::kubernetes::{ControlPlane, objects};
use tokio::process::Command;
use tokio::sync::OnceCell;

const APPLY: &[&str] = &["apply", "--server-side", "-f", "-"];
/// What a user can list.
const KINDS: &str = "links,failoverpolicies,serviceexports.v1beta1.multicluster.x-k8s.io,\
                     serviceimports.v1alpha1.multicluster.x-k8s.io";

async fn install(words: &[&str]) -> Result<String> {
    let done =
        Command::new(hawser_e2e::binary::hawser()?).arg("install").args(words).kill_on_drop(true).output().await?;
    ensure!(done.status.success(), "hawser install: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?)
}

/// A cluster in which all of it is installed.
async fn installed() -> Result<Arc<ControlPlane>> {
    static ONCE: OnceCell<()> = OnceCell::const_new();
    let plane = ControlPlane::shared("west").await?;
    let once = async || {
        plane.kubectl(APPLY, &install(&[]).await?).await?;
        eventually("every kind to be served", async || plane.kubectl(&["get", KINDS, "-A"], "").await).await?;
        plane.kubectl(&["create", "namespace", "shop"], "").await.map(drop)
    };
    ONCE.get_or_try_init(once).await?;
    Ok(plane)
}

/// Names and versions of what was installed.
async fn versions(plane: &ControlPlane) -> Result<String> {
    let output = "jsonpath={range .items[*]}{.metadata.name} {.metadata.resourceVersion}\n{end}";
    let definitions = plane.kubectl(&["get", "customresourcedefinitions", "-o", output], "").await?;
    let kinds = "serviceaccounts,clusterroles,clusterrolebindings,roles,rolebindings";
    let ours = plane.kubectl(&["get", kinds, "-A", "-l", "app.kubernetes.io/part-of=hawser", "-o", output], "").await?;
    Ok(definitions + &ours)
}

fn documents(file: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/testdata").join(file);
    std::fs::read_to_string(&path).with_context(|| format!("no {}", path.display()))
}

#[tokio::test]
async fn what_install_prints_is_taken_as_it_is_and_changes_nothing_the_second_time() -> Result<()> {
    let plane = installed().await?;
    let printed = install(&[]).await?;
    ensure!(printed == install(&[]).await?, "another text for the same version");
    let before = versions(&plane).await?;
    ensure!(before.contains("links.hawser.dev") && before.contains("hawser-mirror-controller"), "{before}");
    plane.kubectl(APPLY, &printed).await?;
    let after = versions(&plane).await?;
    ensure!(before == after, "written again:\n{before}\n{after}");
    // Of the standard's definitions those of this version are replaced, so all are printed for a cluster that has them.
    let kubeconfig = plane.kubeconfig().display().to_string();
    let looked = install(&["--crds-only", "--kubeconfig", &kubeconfig]).await?;
    ensure!(looked == install(&["--crds-only"]).await?, "something was left out:\n{looked}");
    Ok(())
}

#[tokio::test]
async fn good_objects_are_taken_and_shown_in_columns() -> Result<()> {
    let plane = installed().await?;
    plane.kubectl(APPLY, &documents("accepted.yaml")?).await?;
    let listed = plane.kubectl(&["get", "hlink"], "").await?;
    let head: Vec<&str> = listed.lines().next().unwrap_or_default().split_whitespace().collect();
    ensure!(head == ["NAME", "REGION", "READY", "REASON", "OFFERED", "IMPORTED", "AGE"], "{listed}");
    ensure!(listed.lines().any(|line| line.starts_with("north") && line.contains("eu-north")), "{listed}");
    let wide = plane.kubectl(&["get", "hlink", "-o", "wide"], "").await?;
    ensure!(wide.contains("TRUST DOMAIN") && wide.contains("partner.example"), "{wide}");
    // Both versions of the standard show the same object.
    let versions = ["v1alpha1", "v1beta1"].map(|version| format!("serviceexports.{version}.multicluster.x-k8s.io"));
    for version in &versions {
        let cart = ["get", version, "cart", "-n", "shop", "-o", "jsonpath={.spec.exportedLabels}"];
        let labels = plane.kubectl(&cart, "").await?;
        ensure!(labels.contains("payments"), "{version}: {labels}");
    }
    Ok(())
}

#[tokio::test]
async fn coredns_answers_names_of_services_and_of_imports() -> Result<()> {
    let plane = installed().await?;
    let namespace = objects::namespace(&plane.client().await?, "dns").await?;
    let import = "{apiVersion: multicluster.x-k8s.io/v1beta1, kind: ServiceImport, metadata: {name: checkout}, \
                  spec: {type: ClusterSetIP, ips: [10.2.0.9], ports: [{port: 80, protocol: TCP}]}}";
    plane.kubectl(&[APPLY, &["-n", &namespace]].concat(), import).await?;
    let dns = CoreDns::start(&plane).await?;
    eventually("the import's name", async || {
        let answers = dns.ask(&format!("checkout.{namespace}.svc.clusterset.local"), "A").await?;
        ensure!(answers == ["10.2.0.9"], "{answers:?}");
        Ok(())
    })
    .await?;
    let nobody = dns.ask(&format!("nobody.{namespace}.svc.clusterset.local"), "A").await?;
    ensure!(nobody.is_empty(), "{nobody:?}");
    Ok(())
}
