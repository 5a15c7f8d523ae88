//! What `hawser install` prints, given to a real API server: it takes and refuses what files are taken and refused for,
//! in the same words, and its roles allow what is argued for and nothing else.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hawser_api::objects::load;
use hawser_e2e::eventually;
use hawser_e2e::kubernetes::ControlPlane;
use serde_json::Value;

fn repository(file: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The documents of a file of samples, each with the words of the comment before it.
fn samples(file: &str) -> Result<Vec<(String, String)>> {
    let text = repository(&format!("api/testdata/{file}"))?;
    let words = |document: &str| document.strip_prefix("# ").and_then(|rest| rest.lines().next()).map(str::to_owned);
    let all = text.split("\n---\n").skip(1).map(|document| (words(document).unwrap_or_default(), document.to_owned()));
    Ok(all.collect())
}

async fn installed() -> Result<std::sync::Arc<ControlPlane>> {
    let plane = ControlPlane::shared("west").await?;
    for file in ["deploy/crds.yaml", "deploy/rbac.yaml"] {
        let namespaces = "{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Namespace, metadata: {name: shop}}, \
                          {apiVersion: v1, kind: Namespace, metadata: {name: hawser-system}}]}";
        plane.kubectl(&["apply", "--server-side", "-f", "-"], namespaces).await?;
        plane.kubectl(&["apply", "--server-side", "-f", "-"], &repository(file)?).await?;
    }
    let wait = ["wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"];
    plane.kubectl(&wait, "").await?;
    eventually("every kind to be served", async || {
        let served = plane.kubectl(&["api-resources", "-o", "name"], "").await.unwrap_or_default();
        for kind in ["links.hawser.dev", "failoverpolicies.hawser.dev", "serviceimports.multicluster.x-k8s.io"] {
            ensure!(served.contains(kind), "{kind} is not served");
        }
        Ok(())
    })
    .await?;
    Ok(plane)
}

/// Server-side apply drops an empty list of named entries before anybody looks at it; nothing else does.
const TRY: [&str; 4] = ["create", "--dry-run=server", "-f", "-"];

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_refuses_what_files_are_refused_for_in_the_same_words() -> Result<()> {
    let plane = installed().await?;
    for (words, document) in samples("refused.yaml")? {
        let said = plane.kubectl(&TRY, &document).await.err().with_context(|| format!("taken: {document}"))?;
        ensure!(said.to_string().contains(&words), "{words:?} is not in: {said}");
        let problems = load::parse("refused.yaml", &document).err().context("the loader took it")?;
        ensure!(problems.iter().any(|problem| problem.reason.contains(&words)), "{words:?} is not in {problems:?}");
    }
    for file in ["malformed.yaml", "unknown.yaml"] {
        for (_, document) in samples(file)? {
            ensure!(plane.kubectl(&TRY, &document).await.is_err(), "taken: {document}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_and_the_resource_that_was_made_from_it_are_equal_objects() -> Result<()> {
    let plane = installed().await?;
    for (_, document) in samples("accepted.yaml")? {
        let mut file = load::parse("accepted.yaml", &document).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
        let file = file.pop().context("no object")?.object;
        plane.kubectl(&["apply", "--server-side", "-f", "-"], &document).await?;
        let kind = file.kind();
        let name = &file.metadata().name;
        let got = plane.kubectl(&["get", kind, name, "-n", "shop", "-o", "json"], "").await?;
        let mut json: Value = serde_json::from_str(&got)?;
        if let Some(fields) = json.as_object_mut() {
            fields.remove("status");
        }
        ensure!(json["metadata"]["uid"].is_string(), "{json}");
        if let Some(metadata) = json["metadata"].as_object_mut() {
            metadata.remove("creationTimestamp");
            // A server counts editions, and a file has none.
            ensure!(metadata.remove("generation") == Some(Value::from(1)), "{metadata:?}");
        }
        let resource = load::checked("the resource", &json).map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
        ensure!(resource == file, "{resource:?} is not {file:?}");
    }
    Ok(())
}

/// Who, what, and whether; without a namespace in hawser-system.
const RIGHTS: &[(&str, &str, bool)] = &[
    ("mirror-controller", "list services -n shop", true),
    ("mirror-controller", "patch endpointslices.discovery.k8s.io -n shop", true),
    ("mirror-controller", "patch links.hawser.dev --subresource=status", true),
    ("mirror-controller", "delete links.hawser.dev", false),
    ("mirror-controller", "update leases.coordination.k8s.io/hawser-mirror-controller", true),
    ("mirror-controller", "update leases.coordination.k8s.io/another", false),
    ("mirror-controller", "update leases.coordination.k8s.io/hawser-mirror-controller -n kube-system", false),
    ("mirror-controller", "create namespaces", false),
    ("mirror-controller", "get secrets -n hawser-system", false),
    ("mirror-controller", "list secrets -n shop", false),
    ("mirror-controller", "create pods -n shop", false),
    ("mirror-controller", "create tokenreviews.authentication.k8s.io", false),
    ("trust-anchor", "create tokenreviews.authentication.k8s.io", true),
    ("trust-anchor", "get pods -n shop", true),
    ("trust-anchor", "list pods -n shop", false),
    ("trust-anchor", "patch configmaps/hawser-bundle", true),
    ("trust-anchor", "patch configmaps/another", false),
    ("trust-anchor", "get secrets -n shop", false),
    ("trust-anchor", "list secrets", false),
    ("gateway", "list services -n shop", false),
    ("gateway", "get secrets -n hawser-system", false),
    ("gateway", "get links.hawser.dev", false),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_may_do_what_is_argued_for_and_nothing_else() -> Result<()> {
    let plane = installed().await?;
    for (account, right, may) in RIGHTS {
        let account = format!("--as=system:serviceaccount:hawser-system:{account}");
        let mut words = vec!["auth", "can-i", account.as_str()];
        words.extend(right.split(' '));
        if !right.contains(" -n ") {
            words.extend(["-n", "hawser-system"]);
        }
        let answer = plane.kubectl(&words, "").await;
        let said = answer.as_ref().map_or_else(ToString::to_string, Clone::clone);
        ensure!(answer.is_ok() == *may, "{account} {right}: {said}");
    }
    Ok(())
}
