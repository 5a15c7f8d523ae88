//! How fast, and at what cost, a mirror controller makes a peer's services local, at a real API server; one JSON object on
//! stdout.
//!
//! ```text
//! plain machines: east with so many services ──TCP──▶ mirror controller ──▶ API server ──watch──▶ this program counts
//! ```
//!
//! Before it and behind it, at the same API server: what a client that has nothing to think about makes of the same objects.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt};
use hawser_e2e::kubernetes::site::Controller;
use hawser_e2e::kubernetes::{ControlPlane, Site};
use hawser_e2e::yaml::Service as Offered;
use hawser_e2e::{Fabric, Plan, within};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;

/// Services share so many namespaces.
const NAMESPACES: u32 = 100;
/// The service that is changed again and again.
const PROBE: &str = "probe";
/// Requests at once, as the mirror controller has by default.
const WRITERS: usize = 16;
/// Until all is there: a bound for what has gone wrong, no measure.
const PATIENCE: Duration = Duration::from_secs(1800);
/// From one change to the next.
const BETWEEN: Duration = Duration::from_secs(1);
/// Who has written nothing for so long is at rest.
const QUIET: Duration = Duration::from_secs(10);

/// How much is measured.
struct Size {
    /// Services beside the one that is changed.
    services: u32,
    /// Changes of that one.
    changes: u32,
    /// Services of each of the two measurements of the ceiling.
    ceiling: u32,
}

/// What EndpointSlices say, as a watch tells it.
struct Seen {
    mirrors: Arc<AtomicU32>,
    probe: watch::Receiver<bool>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u32| arguments.next().map_or(Ok(default), |text| text.parse());
    let size = Size { services: number(10_000)?.saturating_sub(1), changes: number(100)?, ceiling: number(500)? };
    let mut told = Value::Null;
    Fabric::test(Plan::over("tcp"), async |fabric| {
        told = measure(fabric, &size).await?;
        Ok(())
    })
    .await?;
    Ok(writeln!(std::io::stdout(), "{told}")?)
}

async fn measure(fabric: &mut Fabric, size: &Size) -> Result<Value> {
    fabric.up().await?;
    let site = Site::at(Arc::new(ControlPlane::start("west").await?), fabric).await?;
    for number in 0..NAMESPACES {
        let namespace: Namespace = serde_json::from_value(json!({ "metadata": { "name": namespace(number) } }))?;
        Api::all(site.client.clone()).create(&PostParams::default(), &namespace).await?;
    }
    // Every namespace by its own name.
    let mut link = site.link_object();
    link.pointer_mut("/spec").and_then(Value::as_object_mut).context("no spec")?.remove("import");
    site.apply(&link).await?;
    // It has its files to write, and nobody here asks for them.
    fabric.daemon("west", "mirror-controller", "")?.stop()?;
    let seen = watch_slices(site.client.clone());
    let controller = site.controller_alone("a").await?;
    probe(fabric, true)?;
    tokio::time::timeout(PATIENCE, seen.probe.clone().wait_for(|serves| *serves)).await??;

    let before = ceiling(&site, size.ceiling, "before").await?;
    let (writes, cpu) = (settle(&controller).await?, cpu_seconds(&controller)?);
    let began = Instant::now();
    export(fabric, size.services)?;
    within(PATIENCE, "all mirrors", async || {
        let there = seen.mirrors.load(Ordering::Relaxed);
        ensure!(there >= size.services, "{there} of {}", size.services);
        Ok(())
    })
    .await?;
    let mirrored = began.elapsed();
    // Imports and their statuses come behind the last mirror.
    let settled = settle(&controller).await?;
    let whole = began.elapsed().saturating_sub(QUIET);
    let cpu = cpu_seconds(&controller)? - cpu;
    let after = ceiling(&site, size.ceiling, "after").await?;

    let latencies = change(fabric, &seen, size.changes).await?;
    settle(&controller).await?;
    let (peak, at_rest) = (status_mb(&controller, "VmHWM:")?, status_mb(&controller, "VmRSS:")?);
    drop(controller);
    let again = site.controller_alone("a").await?;
    within(PATIENCE, "the lease", async || {
        ensure!(again.leads().await?, "another holds it");
        Ok(())
    })
    .await?;
    let restart_writes = settle(&again).await?;
    let services = f64::from(size.services);
    Ok(json!({
        "services": size.services + 1,
        "mirrors_per_s": services / mirrored.as_secs_f64(),
        "services_per_s": services / whole.as_secs_f64(),
        "ceiling_per_s_before": before,
        "ceiling_per_s_after": after,
        "requests_per_service": (settled - writes) / services,
        "cpu_ms_per_service": cpu * 1e3 / services,
        "change_ms_p50": percentile(&latencies, 50),
        "change_ms_p99": percentile(&latencies, 99),
        "rss_mb_peak": peak,
        "rss_mb_at_rest": at_rest,
        "restart_writes": restart_writes,
        "restart_rss_mb_peak": status_mb(&again, "VmHWM:")?,
    }))
}

fn namespace(number: u32) -> String {
    format!("team-{:03}", number % NAMESPACES)
}

fn probe(fabric: &Fabric, ready: bool) -> Result<()> {
    let endpoint = [(fabric.workload("east", 1), "server-0")];
    let endpoints = if ready { &endpoint[..] } else { &[] };
    fabric.put("east", &Offered::http(&format!("{}/{PROBE}", namespace(0)), endpoints))
}

/// East exports them, a file for each namespace.
fn export(fabric: &Fabric, services: u32) -> Result<()> {
    let endpoint: [(SocketAddr, &str); 1] = [(fabric.workload("east", 1), "server-0")];
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    for number in 0..services {
        let service = Offered::http(&format!("{}/service-{number}", namespace(number)), &endpoint);
        let _ = write!(files.entry(namespace(number)).or_default(), "---\n{}", service.render());
    }
    files.iter().try_for_each(|(namespace, text)| fabric.write("east", &format!("{namespace}.yaml"), text))
}

/// Follows the EndpointSlices of mirrors until the program ends.
fn watch_slices(client: Client) -> Seen {
    let (changed, probe) = watch::channel(false);
    let mirrors = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&mirrors);
    let slices: Api<EndpointSlice> = Api::all(client);
    let of_mirrors = watcher::Config::default().labels("hawser.dev/mirror-of-cluster=east");
    tokio::spawn(async move {
        let mut events = std::pin::pin!(watcher(slices, of_mirrors));
        let mut serving = BTreeSet::new();
        while let Some(event) = events.next().await {
            let Ok(watcher::Event::Apply(slice) | watcher::Event::InitApply(slice)) = event else { continue };
            let serves = !slice.endpoints.is_empty();
            if slice.name_any().starts_with(PROBE) {
                changed.send_replace(serves);
            } else if serves && serving.insert((slice.namespace().unwrap_or_default(), slice.name_any())) {
                counted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    Seen { mirrors, probe }
}

/// Takes the one endpoint of a service away and gives it back, and waits each time until the mirror's slice says so; how long
/// each took, in order.
async fn change(fabric: &Fabric, seen: &Seen, changes: u32) -> Result<Vec<Duration>> {
    let mut told = seen.probe.clone();
    let mut took = Vec::new();
    for number in 0..changes {
        let ready = number % 2 == 1;
        // Nothing else is under way.
        tokio::time::sleep(BETWEEN).await;
        let began = Instant::now();
        probe(fabric, ready)?;
        tokio::time::timeout(PATIENCE, told.wait_for(|serves| *serves == ready)).await??;
        took.push(began.elapsed());
    }
    took.sort_unstable();
    Ok(took)
}

fn percentile(sorted: &[Duration], percent: usize) -> Option<f64> {
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).map(|took| took.as_secs_f64() * 1e3)
}

/// Waits until nothing has been written for a while; how many requests changed something since the process began, whatever
/// became of them.
async fn settle(controller: &Controller) -> Result<f64> {
    let writes = async || {
        let text = controller.daemon.text("/metrics").await?;
        let all = text.lines().filter(|line| line.starts_with("hawser_api_writes_total{"));
        let each = all.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        anyhow::Ok(each.fold(0.0, |sum, each| sum + each))
    };
    let mut last = (writes().await?, Instant::now());
    while last.1.elapsed() < QUIET {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let now = writes().await?;
        if now > last.0 {
            last = (now, Instant::now());
        }
    }
    Ok(last.0)
}

fn status_mb(controller: &Controller, field: &str) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", controller.daemon.pid))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes / 1e3)
}

fn cpu_seconds(controller: &Controller) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", controller.daemon.pid))?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).context("no times");
    // In hundredths of a second, as Linux shows them.
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

/// Services a second for a client that applies, with as many requests at once, the objects that a mirror controller makes for
/// each: two Services, their EndpointSlices, and a ServiceImport with its status.
async fn ceiling(site: &Site, services: u32, round: &str) -> Result<f64> {
    let began = Instant::now();
    futures_util::stream::iter((0..services).map(anyhow::Ok))
        .try_for_each_concurrent(WRITERS, |number| async move {
            ceiling_service(&site.client, &namespace(number), &format!("ceiling-{round}-{number}")).await
        })
        .await?;
    Ok(f64::from(services) / began.elapsed().as_secs_f64())
}

async fn ceiling_service(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let params = PatchParams { force: true, ..PatchParams::apply("ceiling") };
    let ports = json!([{ "name": "main", "port": 80, "protocol": "TCP" }]);
    for name in [name.to_owned(), format!("{name}-own")] {
        let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
            "spec": { "ipFamilyPolicy": "PreferDualStack", "ports": ports } });
        let services: Api<Service> = Api::namespaced(client.clone(), namespace);
        services.patch(&name, &params, &Patch::Apply(&service)).await?;
        let slice = json!({ "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
            "ports": [{ "name": "gateway", "port": 7443, "protocol": "TCP" }],
            "endpoints": [{ "addresses": ["198.51.100.1"], "conditions": { "ready": true } }] });
        let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
        slices.patch(&name, &params, &Patch::Apply(&slice)).await?;
    }
    let version = "multicluster.x-k8s.io/v1beta1";
    let kind = GroupVersionKind::gvk("multicluster.x-k8s.io", "v1beta1", "ServiceImport");
    let resource = ApiResource::from_gvk_with_plural(&kind, "serviceimports");
    let imports: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let import = json!({ "apiVersion": version, "kind": "ServiceImport", "metadata": { "name": name },
        "spec": { "type": "ClusterSetIP", "ports": ports } });
    imports.patch(name, &params, &Patch::Apply(&import)).await?;
    let status =
        json!({ "apiVersion": version, "kind": "ServiceImport", "status": { "clusters": [{ "cluster": "east" }] } });
    imports.patch_status(name, &params, &Patch::Apply(&status)).await?;
    Ok(())
}
