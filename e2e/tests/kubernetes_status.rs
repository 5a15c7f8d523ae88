//! Statuses at a real API server: that they answer each edition of an object, and that nothing which others write makes the
//! mirror controller write for ever.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::kubernetes::site::Controller;
use hawser_e2e::kubernetes::{ControlPlane, Site};
use hawser_e2e::{Fabric, Plan, within};
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::{Value, json};

/// A status is written when it has stayed so for a second.
const WRITTEN: Duration = Duration::from_secs(10);

/// A cluster on Kubernetes that nobody else uses, linked to east and with a Service that it exports.
async fn exporting(test: impl AsyncFnOnce(&Site, &Controller) -> Result<()>) -> Result<()> {
    Fabric::test(Plan::over("tcp"), async |fabric| {
        fabric.up().await?;
        let site = Site::at(Arc::new(ControlPlane::start("west").await?), fabric).await?;
        site.apply(&site.link_object()).await?;
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "checkout", "namespace": site.namespace },
            "spec": { "ports": [{ "name": "http", "port": 80 }] },
        });
        site.apply(&service).await?;
        site.apply(&export_object(&site, &[])).await?;
        let controller = site.controller("a").await?;
        let conditions = async || condition(&exports(&site).get("checkout").await?, "Valid");
        let told = within(WRITTEN * 3, "the export's status", conditions).await;
        told.map_err(|error| error.context(controller.last_words()))?;
        within(WRITTEN * 3, "the Link to be ready", async || {
            let ready = condition(&site.links().get("east").await?, "Ready")?;
            ensure!(ready.get("status") == Some(&json!("True")), "{ready}");
            Ok(())
        })
        .await?;
        test(&site, &controller).await
    })
    .await
}

fn export_object(site: &Site, labels: &[(&str, &str)]) -> Value {
    let labels: serde_json::Map<String, Value> =
        labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
        "metadata": { "name": "checkout", "namespace": site.namespace },
        "spec": { "exportedLabels": labels },
    })
}

fn exports(site: &Site) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("multicluster.x-k8s.io", "v1beta1", "ServiceExport");
    let resource = ApiResource::from_gvk_with_plural(&kind, "serviceexports");
    Api::namespaced_with(site.client.clone(), &site.namespace, &resource)
}

fn condition(object: &DynamicObject, kind: &str) -> Result<Value> {
    let conditions = object.data.pointer("/status/conditions").and_then(Value::as_array).context("no conditions")?;
    let found = conditions.iter().find(|one| one["type"] == kind);
    found.cloned().with_context(|| format!("no {kind} among {conditions:?}"))
}

/// Somebody sets a condition of ours of the export to something else; waits until it is put back. Whatever else had to be
/// written meanwhile has been by then: a status is written when it has stayed so for a second, and each by its turn.
async fn put_back(site: &Site) -> Result<()> {
    let mut status = exports(site).get("checkout").await?.data.get("status").cloned().context("no status")?;
    let conditions = status.get_mut("conditions").and_then(Value::as_array_mut).context("no conditions")?;
    for condition in conditions.iter_mut().filter_map(Value::as_object_mut) {
        condition.insert("message".to_owned(), json!("somebody else's words"));
    }
    let patch = Patch::Merge(json!({ "status": status }));
    exports(site).patch_status("checkout", &PatchParams::default(), &patch).await?;
    within(WRITTEN, "the status to be put back", async || {
        let valid = condition(&exports(site).get("checkout").await?, "Valid")?;
        ensure!(valid.get("message") != Some(&json!("somebody else's words")), "{valid}");
        Ok(())
    })
    .await
    .map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_edition_is_answered_and_what_others_say_beside_it_is_left_alone() -> Result<()> {
    exporting(async |site, controller| {
        // Neither changes anything that a status says, and both are waited for by kubectl.
        let mut link = site.link_object();
        link["spec"]["import"]["namespaces"] = json!([
            { "from": "shop", "to": site.namespace }, { "from": "nobody", "to": site.namespace },
        ]);
        site.apply(&link).await?;
        site.apply(&export_object(site, &[("team", "till")])).await?;
        let wait = ["wait", "--timeout=20s", "-n", &site.namespace];
        site.plane.kubectl(&[&wait[..], &["--for=condition=Ready", "link/east"]].concat(), "").await?;
        site.plane.kubectl(&[&wait[..], &["--for=condition=Valid", "serviceexport/checkout"]].concat(), "").await?;
        let answered = async || {
            for object in [site.links().get("east").await?, exports(site).get("checkout").await?] {
                let generation = json!(object.metadata.generation);
                ensure!(generation != json!(1), "it is no new edition");
                let valid = condition(&object, "Valid")?;
                ensure!(valid["observedGeneration"] == generation, "{valid} of {generation}");
            }
            Ok(())
        };
        within(WRITTEN, "each edition to be answered", answered).await?;

        // Another manager's condition, at an object of each kind.
        let theirs = json!([{ "type": "example.com/Reviewed", "status": "True", "reason": "Fine", "message": "seen",
            "lastTransitionTime": "2026-01-01T00:00:00Z" }]);
        let reviewer = PatchParams::apply("reviewer");
        let patch = |version: &str, kind: &str| {
            Patch::Apply(json!({ "apiVersion": version, "kind": kind, "status": { "conditions": theirs } }))
        };
        site.links().patch_status("east", &reviewer, &patch("hawser.dev/v1alpha1", "Link")).await?;
        exports(site)
            .patch_status("checkout", &reviewer, &patch("multicluster.x-k8s.io/v1beta1", "ServiceExport"))
            .await?;
        let before = controller.writes().len();
        for _ in 0..3 {
            put_back(site).await?;
        }
        let written = controller.writes().split_off(before);
        let of = |what: &str| written.iter().filter(|write| write.contains(what)).count();
        ensure!(of("/links/east") == 0 && of("/serviceexports/checkout") == 3, "{written:?}");
        for object in [site.links().get("east").await?, exports(site).get("checkout").await?] {
            condition(&object, "example.com/Reviewed")?;
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_without_a_field_of_a_status_holds_up_no_other_and_is_written_to_when_it_has_it() -> Result<()> {
    exporting(async |site, controller| {
        // As an older definition by somebody else may be.
        define(site, &json!({ "op": "remove", "path": GENERATION })).await?;
        within(WRITTEN, "the definition to be in force", async || {
            let valid = json!({ "type": "Valid", "status": "True", "reason": "a", "message": "b",
                "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1 });
            let patch = Patch::Merge(json!({ "status": { "conditions": [valid] } }));
            let became = exports(site).patch_status("checkout", &PatchParams::default(), &patch).await?;
            ensure!(condition(&became, "Valid")?.get("observedGeneration").is_none(), "the field is kept");
            Ok(())
        })
        .await?;
        let refused = async || {
            let writes = controller.writes();
            let refused = writes.iter().filter(|write| write.contains("/serviceexports/") && write.contains("500"));
            ensure!(refused.count() >= 3, "{writes:?}");
            Ok(())
        };
        within(WRITTEN * 2, "it to be refused again and again", refused).await?;

        let mut link = site.link_object();
        link["spec"]["import"]["namespaces"] = json!([{ "from": "nobody", "to": site.namespace }]);
        site.apply(&link).await?;
        let wait = ["wait", "--timeout=20s", "--for=condition=Valid", "link/east"];
        site.plane.kubectl(&wait, "").await?;

        define(site, &json!({ "op": "add", "path": GENERATION, "value": { "type": "integer", "format": "int64" } }))
            .await?;
        within(WRITTEN * 3, "the status to be written", async || {
            let valid = condition(&exports(site).get("checkout").await?, "Valid")?;
            ensure!(
                valid.get("observedGeneration") == Some(&json!(1)) && valid.get("message") != Some(&json!("b")),
                "{valid}"
            );
            Ok(())
        })
        .await
        .map(drop)
    })
    .await
}

/// Where the definition of ServiceExports has the field.
const GENERATION: &str = "/spec/versions/1/schema/openAPIV3Schema/properties/status/properties/conditions/items/\
                          properties/observedGeneration";

async fn define(site: &Site, change: &Value) -> Result<()> {
    let name = "serviceexports.multicluster.x-k8s.io";
    site.plane.kubectl(&["patch", "crd", name, "--type=json", "-p", &json!([change]).to_string()], "").await.map(drop)
}
