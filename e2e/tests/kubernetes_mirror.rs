//! Peers' services in a Kubernetes cluster: what the mirror controller makes of them at a real API server, with the roles
//! of `hawser install` and no others.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::kubernetes::Site;
use hawser_e2e::kubernetes::faults::{Fault, Rule};
use hawser_e2e::kubernetes::site::Controller;
use hawser_e2e::yaml::Service as Offered;
use hawser_e2e::{Fabric, Plan, eventually, within};
use http::Method;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

/// Drift is to be mended within seconds, on a machine that does other things too.
const REPAIR: Duration = Duration::from_secs(10);
/// A follower takes over within this time of a kill.
const TAKE_OVER: Duration = Duration::from_secs(15);
/// And within this time of a clean end. What the API server and a busy machine take for the requests comes on top.
const HAND_OVER: Duration = Duration::from_secs(2);

/// A service of east's; whether anybody answers there does not matter to who mirrors it.
fn offered(fabric: &Fabric, name: &str) -> Offered {
    Offered::http(&format!("shop/{name}"), &[(fabric.workload("east", 1), "server-0")])
}

/// A fabric whose east offers these services, and a cluster on Kubernetes with a Link to it.
async fn linked(services: &[&str], test: impl AsyncFnOnce(&Fabric, &Site) -> Result<()>) -> Result<()> {
    Fabric::test(Plan::over("tcp"), async |fabric| {
        for name in services {
            fabric.put("east", &offered(fabric, name))?;
        }
        fabric.up().await?;
        let site = Site::beside(fabric).await?;
        site.apply(&site.link_object()).await?;
        test(fabric, &site).await
    })
    .await
}

/// Waits for a mirror that is as it should be, and gives how long it took.
async fn mirrored(site: &Site, name: &str) -> Result<Duration> {
    let waited = within(REPAIR * 3, &format!("the mirror {name}"), async || is_mirrored(site, name).await).await;
    match waited {
        Ok((_, took)) => Ok(took),
        Err(error) => Err(error.context(format!("the Link's status: {:?}", site.status().await))),
    }
}

async fn is_mirrored(site: &Site, name: &str) -> Result<()> {
    let service = site.api::<Service>().get(name).await?;
    let ports = service.spec.and_then(|spec| spec.ports).unwrap_or_default();
    let ports: Vec<_> = ports.iter().map(|port| (port.port, port.app_protocol.as_deref())).collect();
    ensure!(ports == [(80, Some("http"))], "{name}: ports {ports:?}");
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
    let slices = site.api::<EndpointSlice>().list(&of_service).await?.items;
    ensure!(slices.len() == 1, "{name}: {} slices", slices.len());
    let addresses: Vec<_> = slices.iter().flat_map(|slice| &slice.endpoints).flat_map(|e| &e.addresses).collect();
    ensure!(addresses == [&site.gateway.ip().to_string()], "{name}: endpoints {addresses:?}");
    let ports: Vec<_> = slices.iter().flat_map(|slice| slice.ports.iter().flatten()).map(|port| port.port).collect();
    ensure!(ports == [Some(i32::from(site.gateway.port()))], "{name}: ports of endpoints {ports:?}");
    Ok(())
}

async fn gone(site: &Site, name: &str) -> Result<()> {
    eventually(&format!("{name} to go"), async || {
        let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
        ensure!(site.api::<Service>().get_opt(name).await?.is_none(), "the Service is there");
        ensure!(site.api::<EndpointSlice>().list(&of_service).await?.items.is_empty(), "slices are there");
        Ok(())
    })
    .await
}

/// The Link's condition of this type, once it has this status.
async fn condition(site: &Site, kind: &str, status: &str) -> Result<Value> {
    eventually(&format!("{kind} to be {status}"), async || {
        let link = site.status().await?;
        let conditions = link.get("conditions").and_then(Value::as_array).context("no conditions")?;
        let found = conditions.iter().find(|condition| condition["type"] == kind).context("no such condition")?;
        ensure!(found["status"] == status, "{found}");
        Ok(found.clone())
    })
    .await
}

async fn versions(site: &Site, names: &[&str]) -> Result<Vec<Option<String>>> {
    let mut versions = Vec::new();
    for name in names {
        versions.push(site.api::<Service>().get(name).await?.resource_version());
    }
    Ok(versions)
}

/// A change that a user makes, by kubectl's field manager or another.
async fn patch(site: &Site, kind: &str, name: &str, patch: &Value) -> Result<()> {
    let words = ["patch", kind, name, "-n", &site.namespace, "--type=merge", "-p", &patch.to_string()];
    site.plane.kubectl(&words, "").await.map(drop)
}

/// A Service that is nobody's but its user's.
fn users(site: &Site, name: &str, annotations: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name, "namespace": site.namespace, "annotations": annotations,
            "labels": { "app.kubernetes.io/managed-by": "hawser", "hawser.dev/mirror-of-cluster": "east" },
        },
        "spec": { "ports": [{ "port": 80 }] },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peers_service_is_a_service_here_and_goes_with_its_link_and_nothing_else_does() -> Result<()> {
    linked(&["checkout", "cart", "taken"], async |fabric, site| {
        // In the way of a mirror, and a copy of what Hawser marks: both are their user's.
        site.apply(&users(site, "taken-east", &json!({}))).await?;
        let controller = site.controller("a").await?;
        mirrored(site, "checkout-east").await?;
        mirrored(site, "cart-east").await?;
        let mark = site.api::<Service>().get("cart-east").await?.annotations().get("hawser.dev/owner").cloned();
        site.apply(&users(site, "copy", &json!({ "hawser.dev/owner": mark }))).await?;
        let theirs = versions(site, &["taken-east", "copy"]).await?;
        the_status_tells(site).await?;

        fabric.remove("east", &offered(fabric, "cart").file())?;
        gone(site, "cart-east").await?;
        is_mirrored(site, "checkout-east").await?;

        site.links().delete("east", &DeleteParams::default()).await?;
        eventually("the Link to go", async || {
            ensure!(site.links().get_opt("east").await?.is_none(), "it is there");
            Ok(())
        })
        .await
        .map_err(|error| error.context(controller.last_words()))?;
        let left = site.api::<Service>().list(&ListParams::default()).await?;
        let left: Vec<_> = left.iter().map(ResourceExt::name_any).collect();
        ensure!(left == ["copy", "taken-east"], "{left:?}");
        ensure!(versions(site, &["taken-east", "copy"]).await? == theirs, "what is the user's was written to");
        ensure!(site.api::<EndpointSlice>().list(&ListParams::default()).await?.items.is_empty(), "slices are left");
        Ok(())
    })
    .await
}

async fn the_status_tells(site: &Site) -> Result<()> {
    let ready = condition(site, "Ready", "True").await?;
    let link = site.links().get("east").await?;
    ensure!(ready.get("observedGeneration") == Some(&json!(link.metadata.generation)), "{ready}");
    ensure!(ready.get("lastTransitionTime").is_some_and(Value::is_string), "{ready}");
    eventually("counts in the Link's status", async || {
        let status = site.status().await?;
        let counts = [status.get("offered"), status.get("imported")];
        ensure!(counts == [Some(&json!(3)), Some(&json!(2))], "{status}");
        let refused = status.get("refused").and_then(Value::as_array).context("nothing is refused")?;
        let services: Vec<_> = refused.iter().filter_map(|refused| refused.get("service")).collect();
        ensure!(services == [&json!("shop/taken")], "{status}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_by_hand_is_put_back_and_what_is_right_is_not_written() -> Result<()> {
    linked(&["checkout"], async |_, site| {
        let controller = site.controller("a").await?;
        mirrored(site, "checkout-east").await?;
        condition(site, "Ready", "True").await?;
        let slice = format!("checkout-east-{}", site.gateway.port());
        let cases = [
            ("service", "checkout-east", json!({ "spec": { "ports": [{ "name": "x", "port": 99 }] } })),
            (
                "service",
                "checkout-east",
                json!({ "metadata": { "labels": { "hawser.dev/mirror-of-cluster": "north" } } }),
            ),
            ("service", "checkout-east", json!({ "metadata": { "labels": { "app.kubernetes.io/managed-by": null } } })),
            ("endpointslice", slice.as_str(), json!({ "endpoints": [{ "addresses": ["10.66.66.66"] }] })),
            (
                "endpointslice",
                slice.as_str(),
                json!({ "metadata": { "labels": { "kubernetes.io/service-name": null } } }),
            ),
        ];
        for (kind, name, change) in &cases {
            patch(site, kind, name, change).await?;
            restored(site, &format!("{kind} {change}")).await?;
        }
        for (kind, name) in [("endpointslice", slice.as_str()), ("service", "checkout-east")] {
            site.plane.kubectl(&["delete", kind, name, "-n", &site.namespace], "").await?;
            restored(site, &format!("deleted {kind}")).await?;
        }
        // Another's addition stays.
        patch(site, "service", "checkout-east", &json!({ "metadata": { "labels": { "team": "payments" } } })).await?;
        drop(controller);
        let again = site.controller("a").await?;
        within(TAKE_OVER * 2, "the lease", async || {
            ensure!(again.leads().await?, "another holds it");
            Ok(())
        })
        .await?;
        nothing_was_written(site, &again).await?;
        let labels = site.api::<Service>().get("checkout-east").await?.labels().clone();
        ensure!(labels.get("team").map(String::as_str) == Some("payments"), "{labels:?}");
        Ok(())
    })
    .await
}

async fn restored(site: &Site, what: &str) -> Result<()> {
    let whole = async || {
        is_mirrored(site, "checkout-east").await?;
        let service = site.api::<Service>().get("checkout-east").await?;
        let label = |name: &str| service.labels().get(name).map(String::as_str);
        ensure!(label("hawser.dev/mirror-of-cluster") == Some("east"), "{:?}", service.labels());
        ensure!(label("app.kubernetes.io/managed-by") == Some("hawser"), "{:?}", service.labels());
        Ok(())
    };
    within(REPAIR, &format!("{what} to be put back"), whole).await.map(drop)
}

/// A controller that leads and sees drift has seen everything else before: when that is mended, it is all that was written.
async fn nothing_was_written(site: &Site, controller: &Controller) -> Result<()> {
    let before = controller.writes();
    ensure!(before.is_empty(), "written at the start: {before:?}");
    patch(site, "service", "checkout-east", &json!({ "spec": { "ports": [{ "name": "x", "port": 99 }] } })).await?;
    restored(site, "the port").await?;
    let writes = controller.writes();
    let only = writes.iter().all(|write| write.contains("/services/checkout-east"));
    ensure!(writes.len() == 1 && only, "{writes:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_happens_on_the_way_to_the_api_server_the_end_is_the_same() -> Result<()> {
    linked(&["checkout"], async |fabric, site| {
        let controller = site.controller("a").await?;
        mirrored(site, "checkout-east").await?;
        let faults = &controller.faults;
        let rule = |fault| Rule::every(fault).method(Method::PATCH).on("/namespaces/").times(4);
        let storms: [(&str, &dyn Fn()); 8] = [
            ("cut", &|| faults.cut_watches()),
            ("expired", &|| faults.expire_watches()),
            ("dropped", &|| faults.add(rule(Fault::Drop))),
            ("lost", &|| faults.add(rule(Fault::Lose))),
            ("busy", &|| faults.add(rule(Fault::Answer(429)))),
            ("broken", &|| faults.add(rule(Fault::Answer(500)))),
            ("conflict", &|| faults.add(rule(Fault::Answer(409)))),
            ("slow", &|| faults.add(rule(Fault::Delay(Duration::from_secs(2))))),
        ];
        for (name, begin) in storms {
            begin();
            let service = offered(fabric, name);
            fabric.put("east", &service)?;
            let mirror = format!("{name}-east");
            mirrored(site, &mirror).await.map_err(|error| error.context(controller.last_words()))?;
            // And drift that happens meanwhile.
            begin();
            patch(site, "service", "checkout-east", &json!({ "spec": { "ports": [{ "port": 99 }] } })).await?;
            mirrored(site, "checkout-east").await.map_err(|error| error.context(format!("while {name}")))?;
            fabric.remove("east", &service.file())?;
            gone(site, &mirror).await?;
            faults.clear();
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_writes_and_the_other_takes_over() -> Result<()> {
    linked(&["checkout"], async |fabric, site| {
        let first = site.controller("a").await?;
        mirrored(site, "checkout-east").await?;
        let second = site.controller("b").await?;
        ensure!(first.leads().await? && !second.leads().await?, "the second took the lease of the first");

        // A kill: the lease runs out.
        first.daemon.kill()?;
        let taken = took_over(&second).await?;
        ensure!(taken <= TAKE_OVER, "taken over after {taken:?}");
        writes_go_by(fabric, site, "after-kill", &second, None).await?;

        // A clean end: it is given up.
        let third = site.controller("c").await?;
        second.daemon.terminate()?;
        let taken = took_over(&third).await?;
        ensure!(taken <= HAND_OVER, "taken over after {taken:?}");
        writes_go_by(fabric, site, "after-end", &third, None).await?;

        // One that cannot renew, but could write, writes no more.
        let fourth = site.controller("d").await?;
        third.faults.add(Rule::every(Fault::Answer(500)).on("/leases/"));
        took_over(&fourth).await?;
        third.faults.forget();
        writes_go_by(fabric, site, "after-loss", &fourth, Some(&third)).await?;
        Ok(())
    })
    .await
}

async fn took_over(follower: &Controller) -> Result<Duration> {
    let waited = within(TAKE_OVER * 2, "the follower to take over", async || {
        ensure!(follower.leads().await?, "not yet");
        Ok(())
    });
    Ok(waited.await.map_err(|error| error.context(follower.last_words()))?.1)
}

/// What is offered now is written by this replica alone.
async fn writes_go_by(
    fabric: &Fabric,
    site: &Site,
    name: &str,
    leader: &Controller,
    former: Option<&Controller>,
) -> Result<()> {
    fabric.put("east", &offered(fabric, name))?;
    let mirror = format!("{name}-east");
    mirrored(site, &mirror).await?;
    ensure!(leader.writes().iter().any(|write| write.contains(&mirror)), "not by the leader: {:?}", leader.writes());
    if let Some(former) = former {
        ensure!(!former.leads().await?, "two lead");
        ensure!(former.writes().is_empty(), "without a lease: {:?}", former.writes());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_can_be_deleted_while_its_peer_is_gone() -> Result<()> {
    Fabric::test(Plan { apart: true, ..Plan::over("tcp") }, async |fabric| {
        fabric.put("east", &offered(fabric, "checkout"))?;
        fabric.up().await?;
        let site = Site::beside(fabric).await?;
        site.apply(&site.link_object()).await?;
        let controller = site.controller("a").await?;
        mirrored(&site, "checkout-east").await?;
        fabric.kill_cluster("east").await?;
        // Its lease is over: the name stays, and nobody is sent where nobody answers.
        within(Duration::from_secs(30), "the endpoints to go", async || {
            let slices = site.api::<EndpointSlice>().list(&ListParams::default()).await?;
            ensure!(slices.iter().all(|slice| slice.endpoints.is_empty()), "there are some");
            Ok(())
        })
        .await?;
        site.api::<Service>().get("checkout-east").await?;
        site.links().delete("east", &DeleteParams::default()).await?;
        gone(&site, "checkout-east").await.map_err(|error| error.context(controller.last_words()))?;
        eventually("the Link to go", async || {
            ensure!(site.links().get_opt("east").await?.is_none(), "it is there");
            Ok(())
        })
        .await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_returns_after_its_lease_finds_its_mirrors_as_they_were_and_brings_what_is_new() -> Result<()> {
    linked(&["checkout", "cart"], async |fabric, site| {
        let controller = site.controller("a").await?;
        mirrored(site, "checkout-east").await?;
        mirrored(site, "cart-east").await?;
        let identities = async || {
            let mut all = Vec::new();
            for name in ["checkout-east", "checkout-clusterset"] {
                let service = site.api::<Service>().get(name).await?;
                all.push((service.uid(), service.spec.and_then(|spec| spec.cluster_ips)));
            }
            anyhow::Ok(all)
        };
        let before = identities().await?;
        let gateway = fabric.daemon("east", "gateway", "g0")?;
        gateway.stop()?;
        let silent = async || {
            let slices = site.api::<EndpointSlice>().list(&ListParams::default()).await?;
            ensure!(slices.iter().all(|slice| slice.endpoints.is_empty()), "there are endpoints");
            Ok(())
        };
        let waited = within(Duration::from_secs(30), "the endpoints to go", silent).await;
        let told = condition(site, "Ready", "False").await;
        // What changes at the peer meanwhile is heard when it is back.
        fabric.put("east", &offered(fabric, "stock"))?;
        fabric.remove("east", &offered(fabric, "cart").file())?;
        gateway.resume()?;
        waited.and(told).map_err(|error| error.context(controller.last_words()))?;
        for name in ["checkout-east", "stock-east"] {
            mirrored(site, name).await?;
        }
        gone(site, "cart-east").await?;
        ensure!(identities().await? == before, "made anew: {before:?}");
        condition(site, "Ready", "True").await.map(drop)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_in_which_nothing_may_be_written_is_told_and_holds_up_nothing_else() -> Result<()> {
    linked(&["checkout", "cart"], async |_, site| {
        let controller = site.controller("a").await?;
        mirrored(site, "checkout-east").await?;
        let refused = Rule::every(Fault::Answer(403)).method(Method::PATCH).on("/services/checkout-east");
        controller.faults.add(refused);
        let params = PatchParams::default();
        let drift = Patch::Merge(json!({ "spec": { "ports": [{ "name": "x", "port": 99 }] } }));
        for name in ["checkout-east", "cart-east"] {
            site.api::<Service>().patch(name, &params, &drift).await?;
        }
        within(REPAIR, "the other mirror", async || is_mirrored(site, "cart-east").await).await?;
        eventually("the Link's status to say why", async || {
            let status = site.status().await?;
            ensure!(status.to_string().contains("let the mirror controller's role"), "{status}");
            Ok(())
        })
        .await?;
        controller.faults.clear();
        within(Duration::from_secs(40), "the first mirror", async || is_mirrored(site, "checkout-east").await).await?;
        Ok(())
    })
    .await
}
