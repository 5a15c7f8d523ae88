//! Who may have what: from this cluster's own objects and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use hawser_api::objects::core::Service;
use hawser_api::objects::load::parse_export_to;
use hawser_api::objects::{Link, Metadata};
use hawser_api::proto::{catalog, discovery};
use hawser_api::{ClusterName, ServiceKey, labels};

use super::Resources;
use super::local::{self, LocalService};
use crate::catalog::ports;
use crate::catalog::standard::{self, Standard};
use crate::world::{Objects, Protocol, World};

/// How many services are offered to one peer; an importer takes no more.
pub const OFFERS_MAX: usize = 10_000;

/// What one Service's or ServiceExport's marks come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// `label` or `ServiceExport`.
    pub by: &'static str,
    /// The linked clusters that may have it; empty where it is not valid.
    pub to: BTreeSet<ClusterName>,
    /// Names in `hawser.dev/export-to` that are no Links.
    pub unknown: BTreeSet<ClusterName>,
    /// Why it is not exported, as MCS words it: `NoService`, `InvalidServiceType`; or `ReservedNamespace`.
    pub invalid: Option<&'static str>,
    /// Microseconds since the epoch, 0 where no object says.
    pub exported_at_us: i64,
    /// What the standard reads of it; nothing where it is not valid.
    pub standard: Standard,
    /// What of it is not told to anybody, and why.
    pub untold: Vec<String>,
}

/// Whether a Service bears this label with the value `true`.
pub fn labelled(service: &Service, label: &str) -> bool {
    service.metadata.labels.get(label).is_some_and(|value| value == "true")
}

/// Everything that is marked for export, valid or not.
pub fn exports(_world: &World, objects: &Objects) -> BTreeMap<ServiceKey, Export> {
    let by_label = objects.services.iter().filter(|(_, service)| labelled(service, labels::EXPORT)).map(|(key, _)| key);
    let keys: BTreeSet<&ServiceKey> = by_label.chain(objects.exports.keys()).collect();
    keys.into_iter().map(|key| (key.clone(), export(objects, key))).collect()
}

fn export(objects: &Objects, key: &ServiceKey) -> Export {
    let service = objects.services.get(key);
    let object = objects.exports.get(key);
    let invalid = match service {
        None => Some("NoService"),
        Some(service) if service.spec.kind.as_deref() == Some("ExternalName") => Some("InvalidServiceType"),
        Some(_) if super::reserved(&key.namespace) => Some("ReservedNamespace"),
        Some(_) => None,
    };
    let (mut to, mut unknown): (BTreeSet<ClusterName>, BTreeSet<ClusterName>) =
        (objects.links.keys().cloned().collect(), BTreeSet::new());
    // Each annotation that is there narrows: of two the stricter holds.
    for metadata in [service.map(|s| &s.metadata), object.map(|o| &o.metadata)].into_iter().flatten() {
        let Some(named) = named(metadata) else { continue };
        to.retain(|cluster| named.contains(cluster));
        unknown.extend(named.into_iter().filter(|cluster| !objects.links.contains_key(cluster)));
    }
    if invalid.is_some() {
        to.clear();
    }
    let since = object.map(|o| &o.metadata).or(service.map(|s| &s.metadata)).and_then(created_at);
    let told = service.filter(|_| invalid.is_none()).map(|service| standard::of(service, object));
    Export {
        by: if object.is_some() { "ServiceExport" } else { "label" },
        to,
        unknown,
        invalid,
        exported_at_us: since.unwrap_or(0),
        standard: told.unwrap_or_default(),
        untold: object.map(standard::unfit).unwrap_or_default(),
    }
}

/// The clusters that the annotation names; `None` without it. One that cannot be read names nobody.
fn named(metadata: &Metadata) -> Option<Vec<ClusterName>> {
    metadata.annotations.get(labels::EXPORT_TO).map(|text| parse_export_to(text).unwrap_or_default())
}

fn created_at(metadata: &Metadata) -> Option<i64> {
    let time = metadata.creation_timestamp.as_deref()?.parse::<jiff::Timestamp>().ok()?;
    Some(time.as_microsecond())
}

/// What each linked cluster is offered.
pub fn catalogs(
    _world: &World,
    objects: &Objects,
    exports: &BTreeMap<ServiceKey, Export>,
    local: &BTreeMap<ServiceKey, LocalService<'_>>,
) -> BTreeMap<ClusterName, BTreeMap<ServiceKey, catalog::Service>> {
    let mut catalogs: BTreeMap<ClusterName, BTreeMap<ServiceKey, catalog::Service>> =
        objects.links.keys().map(|link| (link.clone(), BTreeMap::new())).collect();
    for (key, export) in exports {
        let Some(offer) = local.get(key).and_then(|service| offer(key, export, service)) else { continue };
        for cluster in &export.to {
            let Some(catalog) = catalogs.get_mut(cluster) else { continue };
            if catalog.len() < OFFERS_MAX {
                catalog.insert(key.clone(), offer.clone());
            }
        }
    }
    catalogs
}

fn offer(key: &ServiceKey, export: &Export, local: &LocalService<'_>) -> Option<catalog::Service> {
    let carried = export.standard.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    let ports: Vec<catalog::Port> = carried.map(ports::write).collect();
    if ports.is_empty() {
        return None;
    }
    let told = Standard { hosts: local.hosts(), ..export.standard.clone() };
    Some(catalog::Service {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        ports,
        identities: local.identities.iter().map(ToString::to_string).collect(),
        endpoints_ready: u32::try_from(local.ready()).unwrap_or(u32::MAX),
        federated: labelled(local.service, labels::FEDERATED),
        exported_at: export.exported_at_us / 1_000_000,
        session: local::session(local.service),
        standard: Some(standard::write(&told, export.exported_at_us)),
    })
}

/// What each proxy lets in: every service port that it fronts, with the trust domains of the clusters to which that
/// port is exported.
pub fn inbound(
    objects: &Objects,
    exports: &BTreeMap<ServiceKey, Export>,
    local: &BTreeMap<ServiceKey, LocalService<'_>>,
) -> BTreeMap<String, Resources> {
    let mut inbound: BTreeMap<String, BTreeMap<String, discovery::Inbound>> = BTreeMap::new();
    for (key, service) in local {
        let domains = trust_domains(&objects.links, exports.get(key));
        for port in service.service.spec.ports.iter().filter(|port| local::carried(port)) {
            for endpoint in &service.endpoints {
                let Some((_, workload)) = endpoint.ports.iter().find(|(p, _)| *p == port.port) else { continue };
                let resources = inbound.entry(endpoint.proxy.name.clone()).or_default();
                let resource =
                    resources.entry(format!("inbound/{key}/{}", port.port)).or_insert_with(|| discovery::Inbound {
                        namespace: key.namespace.to_string(),
                        name: key.name.to_string(),
                        port: u32::from(port.port),
                        app_protocol: port.app_protocol.clone().unwrap_or_default(),
                        targets: Vec::new(),
                        trust_domains: domains.clone(),
                    });
                resource.targets.push(discovery::InboundTarget {
                    id: endpoint.id.clone(),
                    address: std::net::SocketAddr::new(endpoint.address, *workload).to_string(),
                    ready: endpoint.ready,
                });
            }
        }
    }
    let wrap = |resources: BTreeMap<String, discovery::Inbound>| {
        resources.into_iter().map(|(key, inbound)| (key, discovery::resource::Kind::Inbound(inbound))).collect()
    };
    inbound.into_iter().map(|(proxy, resources)| (proxy, wrap(resources))).collect()
}

fn trust_domains(links: &BTreeMap<ClusterName, Link>, export: Option<&Export>) -> Vec<String> {
    let clusters = export.map(|export| &export.to).into_iter().flatten();
    clusters.filter_map(|cluster| Some(links.get(cluster)?.spec.trust_domain.to_string())).collect()
}

/// What gateways let in: exported ports, and the catalog for every linked cluster.
pub fn gateway_tables(
    world: &World,
    objects: &Objects,
    exports: &BTreeMap<ServiceKey, Export>,
    local: &BTreeMap<ServiceKey, LocalService<'_>>,
) -> Resources {
    let mut tables = Resources::new();
    for (key, export) in exports.iter().filter(|(_, export)| !export.to.is_empty()) {
        let Some(service) = local.get(key) else { continue };
        for port in service.service.spec.ports.iter().filter(|port| local::carried(port)) {
            let resource = discovery::Export {
                namespace: key.namespace.to_string(),
                name: key.name.to_string(),
                port: u32::from(port.port),
                clusters: export.to.iter().map(ToString::to_string).collect(),
                endpoints: service.discovery_endpoints(Some(port.port)),
            };
            tables.insert(format!("export/{key}/{}", port.port), discovery::resource::Kind::Export(resource));
        }
    }
    if let Some(address) = world.catalog_listen.filter(|_| !objects.links.is_empty()) {
        let resource = catalog_export(address, &objects.links);
        let key = format!("export/{}/{}/{}", resource.namespace, resource.name, resource.port);
        tables.insert(key, discovery::resource::Kind::Export(resource));
    }
    tables
}

fn catalog_export(address: std::net::SocketAddr, links: &BTreeMap<ClusterName, Link>) -> discovery::Export {
    discovery::Export {
        namespace: labels::SYSTEM_NAMESPACE.to_owned(),
        name: labels::CATALOG_SERVICE.to_owned(),
        port: u32::from(labels::CATALOG_PORT),
        clusters: links.keys().map(ToString::to_string).collect(),
        endpoints: vec![discovery::Endpoint {
            id: "catalog".to_owned(),
            inbound: address.to_string(),
            ready: true,
            ports: Vec::new(),
        }],
    }
}
