//! ServiceImports in a Kubernetes cluster: what the mirror controller makes of peers' exports and of its own cluster's, at
//! a real API server, and what cluster DNS serves of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::kubernetes::Site;
use hawser_e2e::kubernetes::coredns::CoreDns;
use hawser_e2e::kubernetes::site::Controller;
use hawser_e2e::yaml::Service as Offered;
use hawser_e2e::{Fabric, Plan, eventually, within};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

/// Drift is to be mended within seconds, on a machine that does other things too.
const REPAIR: Duration = Duration::from_secs(10);

/// A service of east's; whether anybody answers there does not matter to who imports it.
fn offered(fabric: &Fabric, name: &str) -> Offered {
    Offered::http(&format!("shop/{name}"), &[(fabric.workload("east", 1), "server-0")])
}

/// A fabric whose east offers `checkout`, and a cluster on Kubernetes with a Link to it.
async fn linked(test: impl AsyncFnOnce(&Fabric, &Site, Controller) -> Result<()>) -> Result<()> {
    Fabric::test(Plan::over("tcp"), async |fabric| {
        fabric.put("east", &offered(fabric, "checkout"))?;
        fabric.up().await?;
        let site = Site::beside(fabric).await?;
        site.apply(&site.link_object()).await?;
        let controller = site.controller("a").await?;
        test(fabric, &site, controller).await
    })
    .await
}

fn mcs(site: &Site, kind: &str, plural: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("multicluster.x-k8s.io", "v1beta1", kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, plural);
    Api::namespaced_with(site.client.clone(), &site.namespace, &resource)
}

fn imports(site: &Site) -> Api<DynamicObject> {
    mcs(site, "ServiceImport", "serviceimports")
}

/// The import of `checkout`, once it is complete: it has the addresses of its Service, and says that these clusters export it.
async fn imported(site: &Site, clusters: &[&str], ports: &[u16]) -> Result<Vec<String>> {
    let whole = async || {
        let import = imports(site).get("checkout").await?;
        let at = |pointer: &str| import.data.pointer(pointer).cloned().unwrap_or_default();
        let derived = site.api::<Service>().get("checkout-clusterset").await?;
        let addresses = derived.spec.and_then(|spec| spec.cluster_ips).context("no address yet")?;
        // Of the families that its oldest export has.
        let ips: Vec<String> = serde_json::from_value(at("/spec/ips"))?;
        let given = !ips.is_empty() && ips.iter().all(|ip| addresses.contains(ip));
        ensure!(at("/spec/type") == "ClusterSetIP" && given, "{} for {addresses:?}", import.data);
        let numbers: Vec<Value> =
            at("/spec/ports").as_array().into_iter().flatten().map(|p| p["port"].clone()).collect();
        ensure!(json!(numbers) == json!(ports), "{}", import.data);
        let named: Vec<Value> = clusters.iter().map(|cluster| json!({ "cluster": cluster })).collect();
        ensure!(at("/status/clusters") == json!(named), "{}", import.data);
        let ready = at("/status/conditions").as_array().cloned().unwrap_or_default();
        let ready = ready.iter().any(|one| one["type"] == "Ready" && one["status"] == "True");
        ensure!(ready, "{}", import.data);
        Ok(ips)
    };
    within(REPAIR * 3, "the import", whole).await.map(|(addresses, _)| addresses)
}

/// Slices of the import by cluster: addresses of endpoints.
async fn served(site: &Site, cluster: &str) -> Result<Vec<String>> {
    let of_import =
        format!("multicluster.kubernetes.io/service-name=checkout,multicluster.kubernetes.io/source-cluster={cluster}");
    let slices = site.api::<EndpointSlice>().list(&ListParams::default().labels(&of_import)).await?;
    Ok(slices.iter().flat_map(|slice| &slice.endpoints).flat_map(|endpoint| endpoint.addresses.clone()).collect())
}

/// Nothing of an import is left.
async fn gone(site: &Site) -> Result<()> {
    eventually("the import to go", async || {
        ensure!(imports(site).get_opt("checkout").await?.is_none(), "it is there");
        ensure!(site.api::<Service>().get_opt("checkout-clusterset").await?.is_none(), "its Service is there");
        ensure!(served(site, "east").await?.is_empty() && served(site, "west").await?.is_empty(), "slices are there");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peers_export_is_an_import_that_cluster_dns_serves_at_one_address_for_its_life() -> Result<()> {
    linked(async |fabric, site, controller| {
        let addresses = imported(site, &["east"], &[80]).await.map_err(|e| e.context(controller.last_words()))?;
        ensure!(served(site, "east").await? == [site.gateway.ip().to_string()], "{:?}", served(site, "east").await?);
        let dns = CoreDns::start(&site.plane).await?;
        let name = format!("checkout.{}.svc.clusterset.local", site.namespace);
        within(REPAIR, "the name to be served", async || {
            let answers = [dns.ask(&name, "A").await?, dns.ask(&name, "AAAA").await?].concat();
            ensure!(answers == addresses, "{answers:?} for {addresses:?}");
            let srv = dns.ask(&name, "SRV").await?;
            ensure!(srv.len() == 1 && srv.iter().all(|one| one.contains(" 80 ")), "{srv:?}");
            Ok(())
        })
        .await?;

        // What is changed by hand is put back, what was deleted comes back.
        let drift = Patch::Merge(json!({ "spec": { "ports": [{ "port": 99 }], "ips": ["10.66.66.66"] } }));
        imports(site).patch("checkout", &PatchParams::default(), &drift).await?;
        ensure!(imported(site, &["east"], &[80]).await? == addresses, "another address");
        imports(site).delete("checkout", &DeleteParams::default()).await?;
        ensure!(imported(site, &["east"], &[80]).await? == addresses, "another address");

        // Another process finds all of it right.
        drop(controller);
        let again = site.controller("a").await?;
        within(REPAIR * 3, "the lease", async || {
            ensure!(again.leads().await?, "another holds it");
            Ok(())
        })
        .await?;
        let drift = Patch::Merge(json!({ "spec": { "ports": [{ "port": 99 }] } }));
        imports(site).patch("checkout", &PatchParams::default(), &drift).await?;
        ensure!(imported(site, &["east"], &[80]).await? == addresses, "another address");
        let writes = again.writes();
        let only = writes.iter().all(|write| write.contains("/serviceimports/checkout"));
        ensure!(only && !writes.is_empty(), "written beside what was changed: {writes:?}");

        fabric.remove("east", &offered(fabric, "checkout").file())?;
        gone(site).await?;
        within(REPAIR, "the name to go", async || {
            ensure!(dns.ask(&name, "A").await?.is_empty(), "it is served");
            Ok(())
        })
        .await
        .map(drop)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_and_the_slices_behind_an_import_are_put_back_at_the_address_that_they_had() -> Result<()> {
    linked(async |_, site, controller| {
        let addresses = imported(site, &["east"], &[80]).await.map_err(|e| e.context(controller.last_words()))?;
        let derived = site.api::<Service>();
        let ports = async || {
            let ports = derived.get("checkout-clusterset").await?.spec.and_then(|spec| spec.ports).unwrap_or_default();
            anyhow::Ok(ports.iter().map(|port| port.port).collect::<Vec<_>>())
        };
        // Deleted, it is again where those who know the address look for it, and stays there.
        for _ in 0..2 {
            derived.delete("checkout-clusterset", &DeleteParams::default()).await?;
            ensure!(imported(site, &["east"], &[80]).await? == addresses, "another address");
            let drift = Patch::Merge(json!({ "spec": { "ports": [{ "port": 99 }] } }));
            derived.patch("checkout-clusterset", &PatchParams::default(), &drift).await?;
            within(REPAIR, "the ports to be put back", async || {
                let ports = ports().await?;
                ensure!(ports == [80], "{ports:?}");
                Ok(())
            })
            .await?;
            ensure!(imported(site, &["east"], &[80]).await? == addresses, "another address after an update");
        }

        let slices = site.api::<EndpointSlice>();
        let of_import = ListParams::default().labels("multicluster.kubernetes.io/service-name=checkout");
        let gateway = [site.gateway.ip().to_string()];
        let slice = slices.list(&of_import).await?.items.pop().context("no slice")?.name_any();
        let drift = Patch::Merge(json!({ "endpoints": [{ "addresses": ["203.0.113.9"] }] }));
        slices.patch(&slice, &PatchParams::default(), &drift).await?;
        let whole = async || {
            let served = served(site, "east").await?;
            ensure!(served == gateway, "{served:?}");
            Ok(())
        };
        within(REPAIR, "the endpoints to be put back", whole).await?;
        slices.delete(&slice, &DeleteParams::default()).await?;
        within(REPAIR, "the slice to come back", whole).await?;

        // Where somebody else has the address by now, it gets another one.
        drop(controller);
        derived.delete("checkout-clusterset", &DeleteParams::default()).await?;
        let squatter = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "squatter", "namespace": site.namespace },
            "spec": { "ipFamilyPolicy": "PreferDualStack", "clusterIP": addresses.first(), "clusterIPs": addresses, "ports": [{ "port": 1 }] },
        });
        eventually("the address to be free", async || site.apply(&squatter).await).await?;
        let again = site.controller("a").await?;
        let moved = within(REPAIR * 3, "another address", async || {
            let now = imported(site, &["east"], &[80]).await?;
            ensure!(now.iter().all(|address| !addresses.contains(address)), "{now:?}");
            Ok(())
        });
        moved.await.map(drop).map_err(|error| error.context(again.last_words()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn this_clusters_own_export_is_united_with_a_peers_and_told_of_a_conflict() -> Result<()> {
    linked(async |fabric, site, controller| {
        imported(site, &["east"], &[80]).await.map_err(|e| e.context(controller.last_words()))?;
        // A Service of the same name is no part of it before it is exported.
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "checkout", "namespace": site.namespace },
            "spec": { "ports": [{ "name": "admin", "port": 9090 }] },
        });
        site.apply(&service).await?;
        let export = json!({
            "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceExport",
            "metadata": { "name": "checkout", "namespace": site.namespace },
        });
        site.apply(&export).await?;
        imported(site, &["east", "west"], &[9090, 80]).await?;
        eventually("the export's conditions", async || {
            let export = mcs(site, "ServiceExport", "serviceexports").get("checkout").await?;
            let conditions = export.data.pointer("/status/conditions").and_then(Value::as_array).cloned();
            let conditions = conditions.context("no conditions")?;
            let status =
                |kind: &str| conditions.iter().find(|one| one["type"] == kind).map(|one| one["status"].clone());
            ensure!(status("Valid") == Some(json!("True")), "{conditions:?}");
            ensure!(status("Conflict") == Some(json!("True")), "ports differ: {conditions:?}");
            let conflict = conditions.iter().find(|one| one["type"] == "Conflict").context("no Conflict")?;
            let message = conflict["message"].as_str().unwrap_or_default();
            ensure!(conflict["reason"] == "PortConflict" && message.contains("east"), "{conflict}");
            let seen = conditions.iter().all(|one| one["observedGeneration"] == json!(export.metadata.generation));
            ensure!(seen, "{conditions:?}");
            Ok(())
        })
        .await?;

        // The import lives while one exporter remains.
        fabric.remove("east", &offered(fabric, "checkout").file())?;
        imported(site, &["west"], &[9090]).await?;
        site.plane.kubectl(&["delete", "serviceexport", "checkout", "-n", &site.namespace], "").await?;
        gone(site).await?;
        let own = site.api::<Service>().get("checkout").await?;
        ensure!(own.annotations().keys().all(|key| !key.starts_with("hawser.dev/")), "{:?}", own.annotations());
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_endpoint_of_a_headless_service_has_an_address_here_and_a_name_in_cluster_dns() -> Result<()> {
    Fabric::test(Plan::over("tcp"), async |fabric| {
        let endpoints = [(fabric.workload("east", 1), "server-0"), (fabric.workload("east", 2), "server-1")];
        let service = Offered::http("shop/checkout", &endpoints);
        let text = service.render().replacen("spec:\n  ports:", "spec:\n  clusterIP: None\n  ports:", 1);
        fabric.write("east", &service.file(), &text)?;
        fabric.up().await?;
        let site = &Site::beside(fabric).await?;
        site.apply(&site.link_object()).await?;
        let controller = site.controller("a").await?;
        let hosts = within(REPAIR * 3, "the import", async || hosts(site).await).await;
        let (hosts, _) = hosts.map_err(|error| error.context(controller.last_words()))?;
        let dns = CoreDns::start(&site.plane).await?;
        let name = format!("checkout.{}.svc.clusterset.local", site.namespace);
        within(REPAIR, "the names to be served", async || {
            let mut all: Vec<String> = hosts.iter().map(|(_, address)| address.clone()).collect();
            all.sort();
            ensure!(dns.ask(&name, "A").await? == all, "{:?} for {all:?}", dns.ask(&name, "A").await?);
            for (host, address) in &hosts {
                let one = dns.ask(&format!("{host}.east.{name}"), "A").await?;
                ensure!(one == [address.clone()], "{host}: {one:?} for {address}");
            }
            // One record for each endpoint, by its name.
            let srv = dns.ask(&name, "SRV").await?;
            let named =
                hosts.iter().all(|(host, _)| srv.iter().any(|one| one.contains(&format!("{host}.east.{name}"))));
            ensure!(srv.len() == hosts.len() && named, "{srv:?} for {hosts:?}");
            Ok(())
        })
        .await?;

        // One of the two goes, and what stood for it here.
        let one = Offered::http("shop/checkout", &endpoints[..1]);
        let text = one.render().replacen("spec:\n  ports:", "spec:\n  clusterIP: None\n  ports:", 1);
        fabric.write("east", &one.file(), &text)?;
        within(REPAIR, "one address to be left", async || {
            let left = dns.ask(&name, "A").await?;
            ensure!(left.len() == 1 && hosts.iter().any(|(_, address)| left == [address.clone()]), "{left:?}");
            let services = site.api::<Service>().list(&ListParams::default()).await?;
            let names: Vec<_> = services.iter().map(ResourceExt::name_any).collect();
            let standing = names.iter().filter(|name| hosts.iter().any(|(host, _)| name.contains(host.as_str())));
            ensure!(standing.count() == 1, "{names:?}");
            Ok(())
        })
        .await
        .map(drop)
    })
    .await
}

/// The far endpoints of the headless import, by name with the IPv4 address that stands for each here; two, each with a
/// Service of its own.
async fn hosts(site: &Site) -> Result<Vec<(String, String)>> {
    let import = imports(site).get("checkout").await?;
    let at = |pointer: &str| import.data.pointer(pointer).cloned().unwrap_or_default();
    ensure!(at("/spec/type") == "Headless" && at("/spec/ips").is_null(), "{}", import.data);
    let of_import = "multicluster.kubernetes.io/service-name=checkout,multicluster.kubernetes.io/source-cluster=east";
    let slices = site.api::<EndpointSlice>().list(&ListParams::default().labels(of_import)).await?;
    let mut hosts = Vec::new();
    for endpoint in slices.iter().filter(|slice| slice.address_type == "IPv4").flat_map(|slice| &slice.endpoints) {
        let host = endpoint.hostname.clone().context("an endpoint without a name")?;
        let service = site.api::<Service>().get(&format!("checkout-{host}-east")).await?;
        let address = service.spec.and_then(|spec| spec.cluster_ip).context("no address yet")?;
        ensure!(endpoint.addresses == [address.clone()], "{host}: {:?} for {address}", endpoint.addresses);
        hosts.push((host, address));
    }
    ensure!(hosts.len() == 2, "{hosts:?}");
    Ok(hosts)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_somebody_elses_stays_as_it_is_and_the_links_status_says_what_is_in_the_way() -> Result<()> {
    Fabric::test(Plan::over("tcp"), async |fabric| {
        fabric.put("east", &offered(fabric, "checkout"))?;
        fabric.put("east", &offered(fabric, "taken"))?;
        fabric.up().await?;
        let site = &Site::beside(fabric).await?;
        // In the way of an import, and a copy of one that is ours: both are their user's.
        site.apply(&users(site, "taken", &json!({}))).await?;
        site.apply(&site.link_object()).await?;
        let controller = site.controller("a").await?;
        imported(site, &["east"], &[80]).await.map_err(|e| e.context(controller.last_words()))?;
        let mark = imports(site).get("checkout").await?.annotations().get("hawser.dev/owner").cloned();
        site.apply(&users(site, "copy", &json!({ "hawser.dev/owner": mark.context("it is not marked")? }))).await?;
        let versions = async || {
            let all = imports(site).list(&ListParams::default()).await?;
            let of = |name: &str| all.iter().find(|one| one.name_any() == name).and_then(ResourceExt::resource_version);
            anyhow::Ok([of("taken"), of("copy")])
        };
        let before = versions().await?;
        ensure!(before.iter().all(Option::is_some), "{before:?}");
        eventually("the Link's status to say what is in the way", async || {
            let status = site.status().await?.to_string();
            let name = format!("ServiceImport {}/taken", site.namespace);
            ensure!(status.contains(&name) && status.contains("not made by Hawser"), "{status}");
            Ok(())
        })
        .await?;

        site.links().delete("east", &DeleteParams::default()).await?;
        gone(site).await?;
        eventually("the Link to go", async || {
            ensure!(site.links().get_opt("east").await?.is_none(), "it is there");
            Ok(())
        })
        .await?;
        ensure!(versions().await? == before, "what is the user's was written to");
        Ok(())
    })
    .await
}

/// A ServiceImport that is nobody's but its user's.
fn users(site: &Site, name: &str, annotations: &Value) -> Value {
    json!({
        "apiVersion": "multicluster.x-k8s.io/v1beta1", "kind": "ServiceImport",
        "metadata": { "name": name, "namespace": site.namespace, "annotations": annotations },
        "spec": { "type": "ClusterSetIP", "ports": [{ "port": 1 }] },
    })
}
