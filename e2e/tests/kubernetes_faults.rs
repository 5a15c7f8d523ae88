//! What befalls a cluster on Kubernetes as a whole, at a real API server of the test's own: an etcd that goes back to an
//! older state, a mirror controller that is killed in the middle of very many changes, a definition that is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::kubernetes::{ControlPlane, Site};
use hawser_e2e::yaml::Service as Offered;
use hawser_e2e::{Fabric, Plan, eventually, within};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use serde_json::Value;

/// So many services are offered while the mirror controller is killed again and again.
const MANY: usize = 300;
/// After so many writes of its own each controller is killed: at the very first, between the two objects of a service,
/// and further on. The rest is left to the last one.
const KILLED_AFTER: [usize; 8] = [1, 2, 3, 17, 40, 64, 33, 90];
/// Until a controller has done so many, or everything: a machine that does other things takes a while for hundreds.
const DONE: Duration = Duration::from_secs(90);

fn offered(fabric: &Fabric, name: &str) -> Offered {
    Offered::http(&format!("shop/{name}"), &[(fabric.workload("east", 1), "server-0")])
}

fn offer(fabric: &Fabric, names: impl IntoIterator<Item = String>) -> Result<()> {
    names.into_iter().try_for_each(|name| fabric.put("east", &offered(fabric, &name)))
}

fn withdraw(fabric: &Fabric, names: impl IntoIterator<Item = String>) -> Result<()> {
    names.into_iter().try_for_each(|name| fabric.remove("east", &offered(fabric, &name).file()))
}

/// A fabric whose east offers these, and a cluster on Kubernetes that nobody else uses, with a Link to it.
async fn linked(services: &[&str], test: impl AsyncFnOnce(&Fabric, &Site) -> Result<()>) -> Result<()> {
    Fabric::test(Plan::over("tcp"), async |fabric| {
        offer(fabric, services.iter().map(ToString::to_string))?;
        fabric.up().await?;
        let site = Site::at(Arc::new(ControlPlane::start("west").await?), fabric).await?;
        site.apply(&site.link_object()).await?;
        test(fabric, &site).await
    })
    .await
}

/// Exactly these are mirrored, each with one EndpointSlice that leads to the gateway, and nothing else is there.
async fn exactly(site: &Site, names: &BTreeSet<String>) -> Result<()> {
    let services = site.api::<Service>().list(&ListParams::default()).await?;
    let there: BTreeSet<String> = services.iter().map(ResourceExt::name_any).collect();
    // A mirror, and what gives the import its address.
    let of = |name: &String| [format!("{name}-east"), format!("{name}-clusterset")];
    let wanted: BTreeSet<String> = names.iter().flat_map(of).collect();
    let (missing, extra) = (wanted.difference(&there).next(), there.difference(&wanted).next());
    ensure!(missing.is_none() && extra.is_none(), "{} Services; missing {missing:?}, left {extra:?}", there.len());
    let mut slices: BTreeMap<String, usize> = BTreeMap::new();
    for slice in site.api::<EndpointSlice>().list(&ListParams::default()).await? {
        let of = slice.labels().get("kubernetes.io/service-name").context("a slice of no Service")?;
        let addresses: Vec<_> = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).collect();
        ensure!(addresses == [&site.gateway.ip().to_string()], "{of}: endpoints {addresses:?}");
        *slices.entry(of.clone()).or_default() += 1;
    }
    ensure!(slices.keys().eq(&wanted), "slices of {} Services, of {}", slices.len(), wanted.len());
    let doubled = slices.iter().find(|(_, number)| **number != 1);
    ensure!(doubled.is_none(), "doubled: {doubled:?}");
    let listed = ["get", "serviceimports", "-n", &site.namespace, "-o", "jsonpath={.items[*].metadata.name}"];
    let imports: BTreeSet<String> =
        site.plane.kubectl(&listed, "").await?.split_whitespace().map(str::to_owned).collect();
    ensure!(imports == *names, "{} imports of {}", imports.len(), names.len());
    Ok(())
}

async fn converged(site: &Site, names: &BTreeSet<String>) -> Result<()> {
    within(DONE, "exactly what is offered to be mirrored", async || exactly(site, names).await).await.map(drop)
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_goes_back_to_an_older_state_is_brought_up_to_date() -> Result<()> {
    linked(&["kept", "withdrawn", "changed"], async |fabric, site| {
        let controller = site.controller("a").await?;
        converged(site, &names(&["kept", "withdrawn", "changed"])).await?;
        let saved = site.plane.save()?;
        // What happens after the copy was made: of each kind of change one, and a mirror whose revision is far ahead of all
        // that the restored store knows.
        withdraw(fabric, ["withdrawn".to_owned()])?;
        offer(fabric, ["new".to_owned(), "newer".to_owned()])?;
        fabric.put("east", &Offered { port: 8080, ..offered(fabric, "changed") })?;
        let after = names(&["kept", "changed", "new", "newer"]);
        converged(site, &after).await?;
        ported(site, "changed-east", 8080).await?;

        site.plane.restore(&saved).await?;
        converged(site, &after).await.map_err(|error| error.context(controller.last_words()))?;
        ported(site, "changed-east", 8080).await?;
        // And it hears of what comes now, though its revision is one that was seen before.
        offer(fabric, ["newest".to_owned()])?;
        site.plane.kubectl(&["delete", "service", "kept-east", "-n", &site.namespace], "").await?;
        converged(site, &names(&["kept", "changed", "new", "newer", "newest"]))
            .await
            .map_err(|error| error.context(controller.last_words()))
    })
    .await
}

async fn ported(site: &Site, name: &str, port: i32) -> Result<()> {
    eventually(&format!("{name} to have port {port}"), async || {
        let spec = site.api::<Service>().get(name).await?.spec.context("no spec")?;
        let ports: Vec<i32> = spec.ports.iter().flatten().map(|port| port.port).collect();
        ensure!(ports == [port], "{ports:?}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_killed_again_and_again_leaves_nothing_undone_and_nothing_doubled() -> Result<()> {
    linked(&[], async |fabric, site| {
        let name = |number: usize| format!("s{number:03}");
        offer(fabric, (0..MANY).map(name))?;
        let mut wanted: BTreeSet<String> = (0..MANY).map(name).collect();
        for (turn, after) in KILLED_AFTER.into_iter().enumerate() {
            killed_after(site, &format!("k{turn}"), after).await?;
            ensure!(exactly(site, &wanted).await.is_err(), "all was done before kill {turn}: offer more");
            // There is always something to be taken away and something to be made when the next one begins.
            let (gone, come) = (turn * 10..turn * 10 + 10, MANY + turn * 20..MANY + turn * 20 + 20);
            wanted.retain(|known| !gone.clone().map(name).any(|gone| gone == *known));
            wanted.extend(come.clone().map(name));
            withdraw(fabric, gone.map(name))?;
            offer(fabric, come.map(name))?;
        }
        let last = site.controller("last").await?;
        converged(site, &wanted).await.map_err(|error| error.context(last.last_words()))
    })
    .await
}

/// A controller that has begun so many writes, whatever became of them, and is no more.
async fn killed_after(site: &Site, name: &str, writes: usize) -> Result<()> {
    let controller = site.controller(name).await?;
    let written = within(DONE, &format!("{writes} writes"), async || {
        let begun = controller.faults.count(|seen| seen.is_write() && seen.path.contains("/namespaces/shop"));
        ensure!(begun >= writes, "{begun} writes");
        Ok(())
    })
    .await;
    written.map_err(|error| error.context(controller.last_words()))?;
    controller.daemon.kill()?;
    // The dead one's lease would run out by itself; that it does is shown elsewhere, and takes its time.
    let leases: Api<Lease> = Api::namespaced(site.client.clone(), "hawser-system");
    leases.delete("hawser-mirror-controller", &DeleteParams::default()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_that_is_missing_is_told_and_holds_up_nothing_else() -> Result<()> {
    linked(&["checkout"], async |fabric, site| {
        for definition in ["failoverpolicies.hawser.dev", "serviceexports.multicluster.x-k8s.io"] {
            site.plane.kubectl(&["delete", "customresourcedefinition", definition], "").await?;
        }
        let controller = site.controller("a").await?;
        converged(site, &names(&["checkout"])).await.map_err(|error| error.context(controller.last_words()))?;
        let told = readable(site, "False").await?;
        for kind in ["failoverpolicies", "serviceexports", "hawser install --crds-only"] {
            ensure!(told.contains(kind), "{told}");
        }
        offer(fabric, ["cart".to_owned()])?;
        converged(site, &names(&["cart", "checkout"])).await?;

        let definitions = hawser_e2e::kubernetes::site::install().await?;
        site.plane.kubectl(&["apply", "--server-side", "-f", "-"], &definitions).await?;
        readable(site, "True").await.map(drop)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_definition_of_imports_there_are_mirrors_and_what_serves_imports_outlives_it() -> Result<()> {
    const DEFINITION: &str = "serviceimports.multicluster.x-k8s.io";
    linked(&["checkout"], async |fabric, site| {
        site.plane.kubectl(&["delete", "customresourcedefinition", DEFINITION], "").await?;
        let controller = site.controller("a").await?;
        let mirrored = async |name: &str| {
            let made = within(DONE, name, async || Ok(site.api::<Service>().get(name).await?)).await;
            made.map(drop).map_err(|error| error.context(controller.last_words()))
        };
        mirrored("checkout-east").await?;
        let told = readable(site, "False").await?;
        ensure!(told.contains("serviceimports") && told.contains("hawser install --crds-only"), "{told}");
        ensure!(site.api::<Service>().get_opt("checkout-clusterset").await?.is_none(), "it serves no import");

        let definitions = hawser_e2e::kubernetes::site::install().await?;
        let install = async || site.plane.kubectl(&["apply", "--server-side", "-f", "-"], &definitions).await;
        install().await?;
        converged(site, &names(&["checkout"])).await.map_err(|error| error.context(controller.last_words()))?;
        readable(site, "True").await?;
        let address = async || {
            let service = site.api::<Service>().get("checkout-clusterset").await?;
            anyhow::Ok((service.uid(), service.spec.and_then(|spec| spec.cluster_ip)))
        };
        let before = address().await?;

        // Taken away under it, and with it all imports: whoever knows the address is still served.
        site.plane.kubectl(&["delete", "customresourcedefinition", DEFINITION], "").await?;
        readable(site, "False").await?;
        offer(fabric, ["cart".to_owned()])?;
        mirrored("cart-east").await?;
        ensure!(address().await? == before, "{before:?} is gone");
        install().await?;
        converged(site, &names(&["cart", "checkout"])).await.map_err(|error| error.context(controller.last_words()))?;
        ensure!(address().await? == before, "{before:?} is another");
        readable(site, "True").await.map(drop)
    })
    .await
}

/// What the Link's condition about kinds says, once it has this status.
async fn readable(site: &Site, status: &str) -> Result<String> {
    eventually(&format!("KindsReadable to be {status}"), async || {
        let link = site.status().await?;
        let conditions = link.get("conditions").and_then(Value::as_array).context("no conditions")?;
        let found = conditions.iter().find(|condition| condition["type"] == "KindsReadable").context("none such")?;
        ensure!(found["status"] == status, "{found}");
        Ok(found["message"].as_str().unwrap_or_default().to_owned())
    })
    .await
}
