//! `hawser link` and `hawser unlink` in Kubernetes clusters: a Link as a manifest, which holds nothing secret.
//!
//! ```text
//! west: ConfigMap hawser-bundle ─▶ create ─▶ Link `west` as YAML ─ pipe, file, repository ─▶ accept ─▶ east: Link `west`
//! ```
//!
//! One direction each. Only the command itself uses a kubeconfig, one cluster's at a time; none of it crosses.

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};
use hawser_api::labels::{BUNDLE_CONFIG_MAP, SYSTEM_NAMESPACE};
use hawser_api::objects::link::{Link, LinkGateway};
use hawser_api::objects::{Object, load};
use hawser_api::{ClusterName, Refusal};
use hawser_trust_anchor::link::{Own, Standing, offered, taken};
use serde_json::{Value, json};

use super::Told;
use crate::get::{self, Resource};
use crate::kubernetes::Cluster;
use crate::page::{at, list as items, text};
use crate::print;

const LINKS: &str = "/apis/hawser.dev/v1alpha1/links";
/// Owner of the fields of Links that are applied here.
const FIELD_MANAGER: &str = "hawser-link";
/// Longest manifest: a bundle of the largest size, and the rest.
const MANIFEST_MAX: u64 = hawser_api::bundle::DOCUMENT_MAX as u64 * 2;

fn refused(refusal: Refusal) -> anyhow::Error {
    anyhow::anyhow!("{}\nhint: {}", refusal.message, refusal.remedy)
}

/// What a cluster's trust anchor says of it.
async fn own(cluster: &Cluster, told: &Told) -> Result<Own> {
    let path = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/configmaps/{BUNDLE_CONFIG_MAP}");
    let found = cluster.get(&path).await.map_err(anyhow::Error::msg)?;
    let said = |key: &str| {
        let value = at(&found, "data").get(key).and_then(Value::as_str);
        value.with_context(|| {
            format!(
                "{}'s ConfigMap {SYSTEM_NAMESPACE}/{BUNDLE_CONFIG_MAP} has no `{key}`\n\
                 hint: hawser install makes it; the trust anchor fills it, with `bundleConfigMap: {BUNDLE_CONFIG_MAP}`",
                cluster.name
            )
        })
    };
    let gateway = |(n, address): (usize, &std::net::SocketAddr)| -> Result<LinkGateway> {
        Ok(LinkGateway { name: format!("gateway-{n}").parse()?, address: *address })
    };
    Ok(Own {
        cluster: said("cluster")?.parse()?,
        trust_domain: said("trustDomain")?.parse()?,
        bundle: said("bundle.json")?.to_owned(),
        gateways: told.gateways.iter().enumerate().map(gateway).collect::<Result<_>>()?,
        region: String::new(),
    })
}

/// Prints this cluster's side, for the other one.
pub(super) async fn create(cluster: &Cluster, to: &ClusterName, told: &Told) -> Result<()> {
    ensure!(
        !told.gateways.is_empty(),
        "nobody knows where {}'s gateways are reached\nhint: --gateway IP:PORT, as from {to}",
        cluster.name
    );
    let own = own(cluster, told).await?;
    ensure!(*to != own.cluster, "{to} is the name of this cluster itself\nhint: --to names the other one");
    let link = offered(&own).map_err(refused)?;
    let head = format!(
        "# Links {to} to {} ({}). Nothing in it is secret. There: hawser link accept --context NAME FILE\n",
        own.cluster, own.trust_domain
    );
    print::out(head + serde_saphyr::to_string(&link)?.trim_end());
    Ok(())
}

/// Checks the other cluster's side, and applies it here.
pub(super) async fn accept(cluster: &Cluster, file: &str, name: Option<&ClusterName>) -> Result<()> {
    let mut link = manifest(file)?;
    if let Some(name) = name {
        link.metadata.name = name.to_string();
    }
    let own = own(cluster, &Told { gateways: Vec::new() }).await?;
    let standing: Vec<_> = links(cluster).await?.iter().filter_map(standing).collect();
    let link = taken(link, &own, &standing).map_err(refused)?;
    let (peer, domain) = (&link.metadata.name, &link.spec.trust_domain);
    let wanted = json!({
        "apiVersion": link.api_version, "kind": link.kind, "metadata": { "name": peer }, "spec": link.spec,
    });
    let path = format!("{LINKS}/{peer}?fieldManager={FIELD_MANAGER}");
    let applied = cluster.apply(&path, &wanted).await.map_err(anyhow::Error::msg)?;
    ensure!(!applied.is_null(), "{} has no definition of Links\nhint: hawser install", cluster.name);
    print::out(format!("{} is linked to {peer} ({domain})", own.cluster));
    let root = if link.spec.bundle.is_none() { "both hang under one root" } else { "each has a root of its own" };
    print::note(format!("{root}; the other direction is a Link of its own, in {peer}"));
    Ok(())
}

/// The one Link of a file, or of stdin for `-`.
fn manifest(file: &str) -> Result<Link> {
    let mut text = String::new();
    let read = match file {
        "-" => std::io::stdin().take(MANIFEST_MAX).read_to_string(&mut text),
        path => std::fs::File::open(path).and_then(|opened| opened.take(MANIFEST_MAX).read_to_string(&mut text)),
    };
    read.with_context(|| format!("cannot read {file}"))?;
    let name = if file == "-" { "stdin" } else { file };
    let objects = load::parse(name, &text).map_err(|problems| {
        let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("{}", all.join("\n"))
    })?;
    let [located] = <[_; 1]>::try_from(objects).map_err(|objects| {
        anyhow::anyhow!(
            "{name} holds {} objects instead of one Link\nhint: hawser link create --context",
            objects.len()
        )
    })?;
    match located.object {
        Object::Link(link) => Ok(link),
        _ => bail!("{name} holds no Link\nhint: hawser link create --context, in the other cluster"),
    }
}

async fn links(cluster: &Cluster) -> Result<Vec<Value>> {
    let found = cluster.get(LINKS).await.map_err(anyhow::Error::msg)?;
    ensure!(!found.is_null(), "{} has no definition of Links\nhint: hawser install", cluster.name);
    Ok(items(&found, "items").to_vec())
}

/// One that cannot be read contradicts nothing.
fn standing(link: &Value) -> Option<Standing> {
    let bundle = at(link, "spec.bundle").as_str().map(str::to_owned);
    Some(Standing {
        name: text(link, "metadata.name"),
        trust_domain: text(link, "spec.trustDomain").parse().ok()?,
        bundle,
    })
}

/// Links as `hawser get links` has them, from their statuses.
pub(super) async fn rows(cluster: &Cluster) -> Result<Vec<Value>> {
    let row = |link: &Value| {
        json!({
            "inCluster": cluster.name, "name": text(link, "metadata.name"), "trustDomain": text(link, "spec.trustDomain"),
            "transport": text(link, "spec.transport"), "status": at(link, "status"),
        })
    };
    Ok(links(cluster).await?.iter().map(row).collect())
}

/// Shows them as a table.
pub(super) async fn list(cluster: &Cluster) -> Result<()> {
    get::show(Resource::Links, &rows(cluster).await?, false);
    Ok(())
}

/// Deletes a Link; what it made is the mirror controller's to take away.
pub(super) async fn unlink(cluster: &Cluster, peer: &ClusterName) -> Result<()> {
    let deleted = cluster.delete(&format!("{LINKS}/{peer}")).await.map_err(anyhow::Error::msg)?;
    ensure!(!deleted.is_null(), "{} has no Link named {peer}\nhint: hawser link list --context NAME", cluster.name);
    print::out(format!("{peer}'s Link in {} is deleted", cluster.name));
    print::note("the mirror controller takes away what it made");
    Ok(())
}
