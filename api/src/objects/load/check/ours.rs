//! Rules of our own kinds.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{Rules, VirtualNetwork, metadata};
use crate::bundle::Bundle;
use crate::names::{ClusterName, ServiceName, TrustDomain};
use crate::objects::cluster::{BundleEndpointSpec, Cluster, ProxySpec};
use crate::objects::link::{BundleProfile, BundleUpdates, GATEWAYS_MAX, Link, NAMESPACES_MAX};
use crate::objects::policy::{FailoverPolicy, TIER_CLUSTERS_MAX, TIERS_MAX, WEIGHT_MAX};

pub(super) fn cluster(rules: &mut Rules, cluster: &Cluster) {
    metadata(rules, &cluster.metadata);
    rules.name::<ClusterName>(&cluster.metadata.name, "metadata.name");
    region(rules, &cluster.spec.region);
    if let Some(certificates) = &cluster.spec.certificates {
        lifetime(rules, certificates.workload_ttl_seconds, "workloadTtlSeconds", 86_400);
        lifetime(rules, certificates.gateway_ttl_seconds, "gatewayTtlSeconds", 3_600);
    }
    let domain = format!("{}.{}", cluster.metadata.name, cluster.spec.fabric_domain);
    if let Err(error) = domain.parse::<TrustDomain>() {
        rules.must(false, "spec.fabricDomain", error.to_string(), "choose a shorter domain");
    }
    let (mut names, mut addresses) = (BTreeMap::new(), BTreeMap::new());
    for (index, gateway) in cluster.spec.gateways.iter().enumerate() {
        let at = |field: &str| format!("spec.gateways[{index}].{field}");
        rules.once(&mut names, gateway.name.clone(), index, &at("name"));
        rules.once(&mut addresses, gateway.listen, index, &at("listen"));
        fixed_port(rules, gateway.listen, &at("listen"));
    }
    if let Some(endpoint) = &cluster.spec.bundle_endpoint {
        own_endpoint(rules, endpoint);
    }
    proxies(rules, &cluster.spec.proxies);
    let mut names = BTreeMap::new();
    for (index, workload) in cluster.spec.workloads.iter().enumerate() {
        let at = |field: &str| format!("spec.workloads[{index}].{field}");
        rules.once(&mut names, workload.name.clone(), index, &at("name"));
        let named = workload.command.first().is_some_and(|program| !program.is_empty());
        rules.must(named, &at("command"), "names no program", "write the program and its arguments as a list");
    }
}

fn proxies(rules: &mut Rules, proxies: &[ProxySpec]) {
    let (mut names, mut inbound) = (BTreeMap::new(), BTreeMap::new());
    let (mut socks, mut dns) = (BTreeMap::new(), BTreeMap::new());
    let mut networks: Vec<(usize, VirtualNetwork)> = Vec::new();
    for (index, proxy) in proxies.iter().enumerate() {
        let at = |field: &str| format!("spec.proxies[{index}].{field}");
        rules.once(&mut names, proxy.name.clone(), index, &at("name"));
        let doors = [
            (&proxy.inbound, &mut inbound, "inbound"),
            (&proxy.socks, &mut socks, "socks"),
            (&proxy.dns, &mut dns, "dns"),
        ];
        for (address, seen, field) in doors {
            let Some(address) = address else { continue };
            rules.once(seen, *address, index, &at(field));
            fixed_port(rules, *address, &at(field));
        }
        let Some(text) = &proxy.virtual_network else { continue };
        match VirtualNetwork::parse(text) {
            Err(reason) => {
                rules.must(false, &at("virtualNetwork"), reason, "write a network such as 127.65.0.0/16");
            }
            Ok(network) => {
                let other = networks.iter().find(|(_, other)| other.overlaps(&network));
                let reason = other.map(|(other, _)| format!("overlaps with that of item {other}")).unwrap_or_default();
                rules.must(other.is_none(), &at("virtualNetwork"), reason, "give each proxy a network of its own");
                networks.push((index, network));
            }
        }
    }
}

fn fixed_port(rules: &mut Rules, address: SocketAddr, field: &str) {
    rules.must(address.port() != 0, field, "has no port", "name the port: others must know where to connect");
}

fn region(rules: &mut Rules, region: &str) {
    let plain = region.len() <= 63 && region.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    rules.must(plain, "spec.region", "is not a plain word", "use letters, digits, '-', '_' and '.', at most 63");
}

pub(super) fn link(rules: &mut Rules, link: &Link) {
    metadata(rules, &link.metadata);
    rules.name::<ClusterName>(&link.metadata.name, "metadata.name");
    region(rules, &link.spec.region);
    let count = link.spec.gateways.len();
    rules.must(count > 0, "spec.gateways", "is empty", "say where at least one of the peer's gateways listens");
    let many = format!("has {count} entries; at most {GATEWAYS_MAX} are used");
    rules.must(count <= GATEWAYS_MAX, "spec.gateways", many, "list fewer, or put them behind one address");
    let (mut names, mut addresses) = (BTreeMap::new(), BTreeMap::new());
    for (index, gateway) in link.spec.gateways.iter().enumerate() {
        let at = |field: &str| format!("spec.gateways[{index}].{field}");
        rules.once(&mut names, gateway.name.clone(), index, &at("name"));
        rules.once(&mut addresses, gateway.address, index, &at("address"));
        fixed_port(rules, gateway.address, &at("address"));
        let somewhere = !gateway.address.ip().is_unspecified();
        rules.must(somewhere, &at("address"), "is no address that can be dialled", "write the gateway's own address");
    }
    if let Some(Err(error)) = link.spec.bundle.as_deref().map(Bundle::parse) {
        let remedy = "paste the peer's bundle (`hawser trust bundle` there), or leave it out under a shared root";
        rules.must(false, "spec.bundle", error.to_string(), remedy);
    }
    endpoint(rules, link);
    let pinned = link.spec.bundle_updates == BundleUpdates::Pinned;
    let remedy = "paste the peer's bundle into spec.bundle, or take spec.bundleUpdates out";
    rules.must(!pinned || link.spec.bundle.is_some(), "spec.bundleUpdates", "pins a bundle that is not there", remedy);
    if let Some(template) = &link.spec.import.name_template {
        name_template(rules, template, &link.metadata.name);
    }
    let count = link.spec.import.namespaces.as_ref().map_or(0, Vec::len);
    let many = format!("has {count} entries; at most {NAMESPACES_MAX} are mapped");
    rules.must(count <= NAMESPACES_MAX, "spec.import.namespaces", many, "leave it out to take all, unchanged");
    let mut from = BTreeMap::new();
    for (index, map) in link.spec.import.namespaces.iter().flatten().enumerate() {
        rules.once(&mut from, map.from.clone(), index, &format!("spec.import.namespaces[{index}].from"));
    }
}

fn lifetime(rules: &mut Rules, seconds: Option<u64>, name: &str, most: u64) {
    let field = format!("spec.certificates.{name}");
    let within = seconds.is_none_or(|seconds| (1..=most).contains(&seconds));
    rules.must(within, &field, "is no life of a certificate", &format!("give seconds from 1 to {most}"));
}

fn own_endpoint(rules: &mut Rules, endpoint: &BundleEndpointSpec) {
    fixed_port(rules, endpoint.address, "spec.bundleEndpoint.address");
    let web = endpoint.profile == BundleProfile::HttpsWeb;
    for (file, field) in [(&endpoint.certificate, "certificate"), (&endpoint.key, "key")] {
        let at = format!("spec.bundleEndpoint.{field}");
        rules.must(!web || file.is_some(), &at, "is missing", "https_web needs certificate and key, PEM files");
        let remedy = "take it out, or write profile: https_web";
        rules.must(web || file.is_none(), &at, "is not looked at by https_spiffe, which uses an SVID", remedy);
    }
}

/// SPIFFE Federation section 5.2: three parameters, none inferred from another.
fn endpoint(rules: &mut Rules, link: &Link) {
    let Some(endpoint) = &link.spec.bundle_endpoint else { return };
    let at = |field: &str| format!("spec.bundleEndpoint.{field}");
    let own_root = "has nothing to refresh: without spec.bundle the peer hangs under this cluster's own root";
    let remedy = "paste the peer's bundle into spec.bundle, or take the endpoint out";
    rules.must(link.spec.bundle.is_some(), "spec.bundleEndpoint", own_root, remedy);
    let pinned = link.spec.bundle_updates == BundleUpdates::Pinned;
    let remedy = "take out spec.bundleUpdates, or the endpoint";
    rules.must(!pinned, "spec.bundleEndpoint", "would change a bundle that spec.bundleUpdates pins", remedy);
    let after = endpoint.url.strip_prefix("https://");
    let remedy = "write it like https://bundles.example.org/east";
    rules.must(after.is_some(), &at("url"), "is not an https URL", remedy);
    let authority = after.unwrap_or("x").split(['/', '?', '#']).next().unwrap_or_default();
    rules.must(!authority.is_empty() && !authority.starts_with(':'), &at("url"), "names no host", remedy);
    rules.must(!authority.contains('@'), &at("url"), "has user information", "leave out what is before the '@'");
    let plain = endpoint.url.len() <= 2048 && endpoint.url.bytes().all(|byte| byte.is_ascii_graphic());
    rules.must(plain, &at("url"), "is not plain ASCII without spaces, at most 2048 bytes", remedy);
    let spiffe = endpoint.profile == BundleProfile::HttpsSpiffe;
    let has_id = endpoint.endpoint_spiffe_id.is_some();
    rules.must(!spiffe || has_id, &at("endpointSpiffeId"), "is missing", "https_spiffe needs the endpoint's SPIFFE ID");
    let remedy = "take it out, or write profile: https_spiffe";
    rules.must(spiffe || !has_id, &at("endpointSpiffeId"), "is not looked at by https_web", remedy);
    let remedy = "take it out, or write profile: https_web";
    rules.must(!spiffe || endpoint.ca_file.is_none(), &at("caFile"), "is not looked at by https_spiffe", remedy);
}

fn name_template(rules: &mut Rules, template: &str, cluster: &str) {
    let field = "spec.import.nameTemplate";
    let remedy = "write it with {service}, and {cluster} if you like, such as {service}-{cluster}";
    rules.must(template.contains("{service}"), field, "does not contain {service}", remedy);
    let shortest = template.replace("{service}", "x").replace("{cluster}", cluster);
    if let Err(error) = shortest.parse::<ServiceName>() {
        rules.must(false, field, format!("gives names like {error}"), remedy);
    }
}

pub(super) fn policy(rules: &mut Rules, policy: &FailoverPolicy) {
    metadata(rules, &policy.metadata);
    super::service_name(rules, &policy.metadata);
    let percent = policy.spec.minimum_healthy_percent;
    rules.must(percent <= 100, "spec.minimumHealthyPercent", format!("is {percent}"), "use 0 to 100");
    rules.must(!policy.spec.tiers.is_empty(), "spec.tiers", "is empty", "list at least one tier of clusters");
    let count = policy.spec.tiers.len();
    let many = format!("has {count} entries; at most {TIERS_MAX} are followed");
    rules.must(count <= TIERS_MAX, "spec.tiers", many, "put clusters of equal rank into one tier");
    let mut seen = BTreeMap::new();
    for (tier_index, tier) in policy.spec.tiers.iter().enumerate() {
        let field = format!("spec.tiers[{tier_index}].clusters");
        rules.must(!tier.clusters.is_empty(), &field, "is empty", "name its clusters, or take the tier out");
        let many = format!("has {} entries; at most {TIER_CLUSTERS_MAX} share a tier", tier.clusters.len());
        rules.must(tier.clusters.len() <= TIER_CLUSTERS_MAX, &field, many, "leave some to the last, unnamed tier");
        let weight: u64 = tier.clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
        let some = weight > 0 || tier.clusters.is_empty();
        rules.must(some, &field, "gives every cluster weight 0", "give at least one a weight");
        for (index, cluster) in tier.clusters.iter().enumerate() {
            let at = |name: &str| format!("{field}[{index}].{name}");
            rules.once(&mut seen, cluster.name.clone(), tier_index, &at("name"));
            let fits = cluster.weight <= WEIGHT_MAX;
            rules.must(
                fits,
                &at("weight"),
                format!("is more than {WEIGHT_MAX}"),
                "weights are shares: use smaller numbers",
            );
        }
    }
}
