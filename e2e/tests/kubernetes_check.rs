//! `hawser check --context` at a real API server: what it says of a cluster in which things are, and are not, in order.

use std::path::Path;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use hawser_e2e::binary::hawser;
use hawser_e2e::eventually;
use hawser_e2e::kubernetes::ControlPlane;
use hawser_e2e::place::Place;
use serde_json::Value;
use tokio::process::Command;

const APPLY: &[&str] = &["apply", "--server-side", "-f", "-"];

async fn run(words: &[&str]) -> Result<Output> {
    Ok(Command::new(hawser()?).args(words).kill_on_drop(true).output().await?)
}

/// What is found, as `anchor result: error`, with the exit status.
async fn check(kubeconfig: &Path, more: &[&str]) -> Result<(bool, Vec<String>)> {
    let kubeconfig = kubeconfig.to_str().context("a path that is no text")?;
    let done = run(&[&["check", "-o", "json", "--kubeconfig", kubeconfig], more].concat()).await?;
    let page: Value = serde_json::from_slice(&done.stdout)
        .with_context(|| format!("hawser check: {}", String::from_utf8_lossy(&done.stderr)))?;
    let success = page.get("success").and_then(Value::as_bool);
    ensure!(success == Some(done.status.success()), "the exit status is not what the page says: {page}");
    let list = |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |check: &Value, key: &str| check.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let checks = list(&page, "categories").into_iter().flat_map(|category| list(&category, "checks"));
    let line = |check: Value| {
        let [anchor, result, description, error] =
            ["anchor", "result", "description", "error"].map(|key| text(&check, key));
        format!("{anchor} {result}: {description} {error}")
    };
    let lines: Vec<String> = checks.map(line).collect();
    Ok((done.status.success(), lines))
}

fn has(found: &[String], anchor: &str, words: &[&str]) -> Result<()> {
    let line = found.iter().find(|line| line.starts_with(anchor) && words.iter().all(|word| line.contains(word)));
    line.map(drop).with_context(|| format!("no {anchor} with {words:?} in {found:#?}"))
}

#[tokio::test]
async fn a_cluster_before_and_after_an_installation_and_what_is_missing_is_named() -> Result<()> {
    let plane = ControlPlane::start("west").await?;
    let kubeconfig = plane.kubeconfig();
    let (success, found) = check(kubeconfig, &[]).await?;
    ensure!(!success, "{found:#?}");
    has(&found, "api-reachable success", &["v1."])?;
    has(&found, "crds-current error", &["links.hawser.dev", "it is not defined"])?;
    has(&found, "namespace-present error", &[])?;
    has(&found, "rbac-sufficient error", &["hawser-system/trust-anchor", "create tokenreviews.authentication.k8s.io"])?;

    let printed = String::from_utf8(run(&["install"]).await?.stdout)?;
    plane.kubectl(APPLY, &printed).await?;
    // RBAC and definitions follow within a moment.
    let found = eventually("everything that was installed to be in order", async || {
        let (success, found) = check(kubeconfig, &[]).await?;
        ensure!(success, "{found:#?}");
        Ok(found)
    })
    .await?;
    for anchor in ["crds-current", "namespace-present", "rbac-sufficient"] {
        has(&found, &format!("{anchor} success"), &[])?;
    }
    // Nothing runs here.
    has(&found, "controllers-leading warning", &["no mirror controller has run here"])?;

    plane.kubectl(&["delete", "clusterrolebinding", "hawser-mirror-controller"], "").await?;
    plane.kubectl(&["delete", "customresourcedefinition", "failoverpolicies.hawser.dev"], "").await?;
    eventually("what was taken away to be named", async || {
        let (success, found) = check(kubeconfig, &[]).await?;
        ensure!(!success, "{found:#?}");
        has(&found, "crds-current error", &["failoverpolicies.hawser.dev", "it is not defined"])?;
        has(&found, "rbac-sufficient error", &["hawser-system/mirror-controller", "patch links/status.hawser.dev"])?;
        has(&found, "rbac-sufficient success", &["hawser-system/trust-anchor"])
    })
    .await
}

#[tokio::test]
async fn links_exports_mirrors_leases_and_deployments_are_judged_by_their_objects() -> Result<()> {
    let plane = ControlPlane::start("east").await?;
    let printed = String::from_utf8(run(&["install"]).await?.stdout)?;
    plane.kubectl(APPLY, &printed).await?;
    eventually("Links to be served", async || plane.kubectl(&["get", "links"], "").await).await?;
    plane.kubectl(&["create", "namespace", "shop"], "").await?;
    plane.kubectl(APPLY, OBJECTS).await?;
    let (success, found) = check(plane.kubeconfig(), &[]).await?;
    ensure!(!success, "{found:#?}");
    has(&found, "controllers-running error", &["gateway", "none of its pods is ready"])?;
    has(&found, "controllers-leading error", &["hawser-mirror-controller", "its lease has run out"])?;
    has(&found, "link-catalog-fresh warning", &["west", "does not say"])?;
    has(&found, "export-callable warning", &["shop/web", "no endpoint is ready"])?;
    has(&found, "mirror-callable warning", &["shop/cart-west"])?;
    has(&found, "mirror-orphaned warning", &["shop/cart-north", "no Link named north"])?;
    ensure!(!found.iter().any(|line| line.contains("shop/derived")), "what mirrors nobody was judged: {found:#?}");

    // Whoever may look at nothing is told so, and is not told that all is well.
    let (success, found) = check(plane.kubeconfig(), &["--as", "nobody"]).await?;
    ensure!(success, "{found:#?}");
    has(&found, "rbac-sufficient warning", &["permissions can be looked at"])?;
    has(&found, "link-catalog-fresh warning", &["forbidden"])
}

#[tokio::test]
async fn an_api_server_that_is_away_is_one_finding() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let kubeconfig = directory.path().join("kubeconfig");
    let place = Place::take()?;
    let server = format!("http://{}", place.address(0, 10, 6443));
    std::fs::write(
        &kubeconfig,
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: x\nclusters: [{{name: x, cluster: {{server: '{server}'}}}}]\n\
             users: [{{name: x, user: {{}}}}]\ncontexts: [{{name: x, context: {{cluster: x, user: x}}}}]\n"
        ),
    )?;
    let (success, found) = check(&kubeconfig, &[]).await?;
    ensure!(!success && found.len() == 1, "{found:#?}");
    has(&found, "api-reachable error", &[])
}

const OBJECTS: &str = "
apiVersion: hawser.dev/v1alpha1
kind: Link
metadata: {name: west}
spec:
  trustDomain: west.example
  gateways: [{name: gateway-0, address: '10.9.8.7:7443'}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: gateway, namespace: hawser-system, labels: {app.kubernetes.io/part-of: hawser}}
spec:
  replicas: 1
  selector: {matchLabels: {app: gateway}}
  template:
    metadata: {labels: {app: gateway}}
    spec: {containers: [{name: gateway, image: registry.invalid/gateway}]}
---
apiVersion: coordination.k8s.io/v1
kind: Lease
metadata: {name: hawser-mirror-controller, namespace: hawser-system}
spec: {holderIdentity: gone, leaseDurationSeconds: 15, renewTime: '2026-01-01T00:00:00.000000Z'}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {hawser.dev/export: 'true'}}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart-west, namespace: shop, labels: {app.kubernetes.io/managed-by: hawser, hawser.dev/mirror-of-cluster: west}}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: cart-north, namespace: shop, labels: {app.kubernetes.io/managed-by: hawser, hawser.dev/mirror-of-cluster: north}}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: derived, namespace: shop, labels: {app.kubernetes.io/managed-by: hawser}}
spec: {ports: [{port: 80}]}
";
