//! What users are told about all of it.

use std::collections::BTreeMap;

use hawser_api::objects::link::{Condition, LinkStatus, RefusedImport};
use hawser_api::{ClusterName, ServiceKey, labels};

use super::clusterset::{At, Set};
use super::exports::{Export, labelled};
use super::hosts::Hosts;
use super::local::{LocalService, carried};
use super::mirrors::{Mirror, Mirrors, Standing};
use super::{bundle, cluster_name, clusterset_name, destinations, region};
use crate::status::{
    EndpointEntry, ExportEntry, LinkEntry, ListenerEntry, MirrorEntry, ObjectsEntry, RejectionEntry, Statuses, Warning,
};
use crate::world::{Objects, Protocol, World};

/// Bytes of a condition's message, well under the 32,768 that Kubernetes allows.
const MESSAGE_MAX: usize = 8 * 1024;

/// Refusals that a Link's status lists; the rest are counted.
pub const REFUSED_SHOWN: usize = 100;

/// What the other parts of the plan found.
#[derive(Debug)]
pub struct Parts<'p> {
    /// This cluster's services.
    pub local: &'p BTreeMap<ServiceKey, LocalService<'p>>,
    /// What is marked for export.
    pub exports: &'p BTreeMap<ServiceKey, Export>,
    /// Peers' services.
    pub mirrors: &'p Mirrors,
    /// Services of the clusterset.
    pub sets: &'p [Set<'p>],
    /// Endpoints of headless ones.
    pub hosts: &'p Hosts<'p>,
}

impl<'p> Parts<'p> {
    /// Sets by their common name, and by the destination that answers for them.
    fn index(&self) -> Index<'p> {
        let existing = |set: &'p Set<'p>| match &set.at {
            At::Existing(key) => Some((key, &set.key)),
            _ => None,
        };
        Index {
            by_name: self.sets.iter().map(|set| (&set.key, set)).collect(),
            by_existing: self.sets.iter().filter_map(existing).collect(),
        }
    }
}

struct Index<'p> {
    by_name: BTreeMap<&'p ServiceKey, &'p Set<'p>>,
    by_existing: BTreeMap<&'p ServiceKey, &'p ServiceKey>,
}

/// All statuses.
pub fn statuses(world: &World, objects: &Objects, parts: &Parts<'_>) -> Statuses {
    let index = parts.index();
    Statuses {
        links: objects.links.keys().filter_map(|name| link(world, objects, parts, name)).collect(),
        exports: parts
            .exports
            .iter()
            .map(|(key, export)| export_entry(world, objects, parts, &index, (key, export)))
            .collect(),
        mirrors: parts.mirrors.by_name.values().map(|mirror| mirror_entry(&index, mirror)).collect(),
        endpoints: parts.local.iter().flat_map(|(key, service)| endpoint_entries(world, key, service)).collect(),
        listeners: listeners(world),
        objects: objects_entry(world, objects, parts),
    }
}

pub(crate) fn condition(kind: &str, good: bool, reason: &str, message: impl Into<String>) -> Condition {
    Condition {
        kind: kind.to_owned(),
        status: if good { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message: message.into(),
    }
}

fn link(world: &World, objects: &Objects, parts: &Parts<'_>, name: &ClusterName) -> Option<LinkEntry> {
    let link = objects.links.get(name)?;
    let state = world.peers.get(name).cloned().unwrap_or_default();
    let gateways: Vec<_> = link
        .spec
        .gateways
        .iter()
        .map(|gateway| {
            let known = state.gateways.get(&gateway.name).cloned().unwrap_or_default();
            known.status(&gateway.name, gateway.address)
        })
        .collect();
    let reachable = gateways.iter().any(|gateway| gateway.alive);
    let trouble = state.trouble.as_ref().map(|refusal| format!("{}; {}", refusal.message, refusal.remedy));
    let fresh = if state.alive {
        condition("CatalogFresh", true, "Fresh", "the catalog's lease is fresh")
    } else {
        let why = trouble.unwrap_or_else(|| "nothing has been heard from the catalog yet".to_owned());
        let reason = state.trouble.as_ref().map_or("NotHeard", |refusal| refusal.code.as_str());
        condition("CatalogFresh", false, reason, why)
    };
    let gateway = if reachable {
        condition("GatewayReachable", true, "Answers", "at least one gateway answers")
    } else {
        let trouble = state.gateways.values().map(|gateway| gateway.trouble.as_str()).find(|text| !text.is_empty());
        let why = format!("no gateway answers probes: {}", trouble.unwrap_or("none has been probed yet"));
        let remedy = "check spec.gateways, that UDP or TCP is let through, and that the peer links this cluster";
        condition("GatewayReachable", false, "NoAnswer", format!("{why}; {remedy}"))
    };
    let ready = if state.alive && reachable {
        condition("Ready", true, "Ready", "catalog and gateways are in order")
    } else {
        condition("Ready", false, if reachable { "CatalogStale" } else { "Unreachable" }, "see the other conditions")
    };
    let imported = parts.mirrors.by_name.values().filter(|m| m.cluster == *name && m.standing != Standing::Withdrawn);
    let mut refused = parts.mirrors.refused.get(name).cloned().unwrap_or_default();
    refused.extend(parts.hosts.refused.get(name).into_iter().flatten().cloned());
    refused.extend(unwritten(world, name));
    let status = LinkStatus {
        conditions: vec![ready, fresh, gateway, bundle::current(&state)],
        gateways,
        offered: count(state.catalog.offers.len() + state.catalog.refused.len()),
        imported: count(imported.count()),
        refused: shown(refused),
        region: state.catalog.region.clone(),
        bundle: bundle::status(&state),
        clock_ahead_ms: state.clock_ahead_ms,
    };
    Some(LinkEntry {
        name: name.to_string(),
        trust_domain: link.spec.trust_domain.to_string(),
        region: region(world, objects, name),
        transport: link.spec.transport.as_str().to_owned(),
        status,
        generation: link.metadata.generation,
    })
}

/// What was taken, and could not be written.
fn unwritten(world: &World, name: &ClusterName) -> impl Iterator<Item = RefusedImport> {
    let of_link = world.unwritten.values().filter(move |unwritten| unwritten.cluster == *name);
    of_link.map(|unwritten| RefusedImport { service: unwritten.service.clone(), reason: unwritten.reason.clone() })
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn shown(mut refused: Vec<RefusedImport>) -> Vec<RefusedImport> {
    let more = refused.len().saturating_sub(REFUSED_SHOWN);
    refused.truncate(REFUSED_SHOWN);
    if more > 0 {
        refused.push(RefusedImport { service: "…".to_owned(), reason: format!("and {more} more") });
    }
    refused
}

fn export_entry(
    world: &World,
    objects: &Objects,
    parts: &Parts<'_>,
    index: &Index<'_>,
    (key, export): (&ServiceKey, &Export),
) -> ExportEntry {
    let service = parts.local.get(key);
    let rejected = |cluster: &ClusterName| {
        let reason = world.peers.get(cluster)?.rejections.get(key)?;
        Some(RejectionEntry { cluster: cluster.to_string(), reason: reason.clone() })
    };
    let ports = service.map(|s| s.service.spec.ports.iter().filter(|p| carried(p)).map(|p| p.port).collect());
    ExportEntry {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        by: export.by.to_owned(),
        clusters: export.to.iter().map(ToString::to_string).collect(),
        ports: ports.unwrap_or_default(),
        endpoints_ready: count(service.map_or(0, LocalService::ready)),
        federated: service.is_some_and(|s| labelled(s.service, labels::FEDERATED)),
        conditions: export_conditions(world, parts, index, (key, export)),
        imported_by: export.to.iter().filter(|cluster| takes(world, cluster, key)).map(ToString::to_string).collect(),
        rejections: export.to.iter().filter_map(rejected).collect(),
        generation: objects.exports.get(key).map_or(0, |declared| declared.metadata.generation),
    }
}

/// Whether a cluster that may have it has it: it is there, has told what it refuses, and this is not among it.
fn takes(world: &World, cluster: &ClusterName, key: &ServiceKey) -> bool {
    world.peers.get(cluster).is_some_and(|peer| peer.acknowledged && peer.alive && !peer.rejections.contains_key(key))
}

fn export_conditions(
    world: &World,
    parts: &Parts<'_>,
    index: &Index<'_>,
    (key, export): (&ServiceKey, &Export),
) -> Vec<Condition> {
    let valid = match export.invalid {
        None => condition("Valid", true, "Valid", "the Service can be exported"),
        Some(reason @ "NoService") => condition(
            "Valid",
            false,
            reason,
            format!("there is no Service {key}: add it, or take the ServiceExport out"),
        ),
        Some(reason @ "InvalidServiceType") => {
            condition("Valid", false, reason, "a Service of type ExternalName has no endpoints to export")
        }
        Some(reason) => condition(
            "Valid",
            false,
            reason,
            format!("namespace {} is the cluster's own: move the Service", key.namespace),
        ),
    };
    let declared_only = export.invalid.is_none() && export.standard.ports.iter().all(|p| p.protocol != Protocol::Tcp);
    let ready = match (export.to.is_empty(), parts.local.get(key).map_or(0, LocalService::ready)) {
        _ if declared_only => condition("Ready", false, "Failed", "it has no TCP port, and tunnels carry nothing else"),
        (true, _) => condition("Ready", false, "Pending", "no linked cluster may have it"),
        (false, 0) => condition("Ready", true, "Exported", "exported; no endpoint is ready"),
        (false, ready) => condition("Ready", true, "Exported", format!("exported with {ready} ready endpoints")),
    };
    let mut conditions = vec![valid, ready];
    if !export.unknown.is_empty() {
        let names: Vec<&str> = export.unknown.iter().map(ClusterName::as_str).collect();
        let message = format!(
            "{} names {}, which no Link bears: add the Link or correct the name",
            labels::EXPORT_TO,
            names.join(", ")
        );
        conditions.push(condition("ClustersKnown", false, "UnknownCluster", message));
    }
    conditions.push(conflict(index, key));
    if !export.to.is_empty() {
        conditions.push(imported(world, key, export));
    }
    conditions
}

/// What those say that may have it. A cluster that is silent for a while has not taken anything back: what it said last
/// stands, so that a link that comes and goes writes no status.
fn imported(world: &World, key: &ServiceKey, export: &Export) -> Condition {
    let (mut have, mut refuse, mut unheard) = (Vec::new(), Vec::new(), Vec::new());
    for cluster in &export.to {
        let peer = world.peers.get(cluster);
        match peer.map(|peer| (peer.rejections.get(key), peer.acknowledged)) {
            Some((Some(reason), _)) => refuse.push(format!("{cluster}: {reason}")),
            Some((None, true)) => have.push(cluster.as_str()),
            _ => unheard.push(cluster.as_str()),
        }
    }
    let told =
        [("imported by", have.join(", ")), ("refused by", refuse.join("; ")), ("no word from", unheard.join(", "))];
    let told = told.iter().filter(|(_, names)| !names.is_empty()).map(|(what, names)| format!("{what} {names}"));
    let mut message = told.collect::<Vec<_>>().join(". ");
    if message.len() > MESSAGE_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_MAX));
        message.push_str(" and so on: hawser get exports -o yaml");
    }
    let (status, reason) = match (refuse.is_empty(), unheard.is_empty()) {
        (false, _) => (false, "Refused"),
        (true, false) => (false, "Pending"),
        (true, true) => (true, "Imported"),
    };
    condition("Imported", status, reason, message)
}

/// MCS: every cluster that exports it is told what they disagree on.
fn conflict(index: &Index<'_>, key: &ServiceKey) -> Condition {
    let set = index.by_name.get(key).filter(|set| set.local);
    match set {
        Some(set) if !set.settled.conflicts.is_empty() => {
            condition("Conflict", true, &set.settled.reasons(), set.settled.messages())
        }
        Some(Set { at: At::Nowhere(why), .. }) => condition("Conflict", true, "NameConflict", why.clone()),
        _ => condition("Conflict", false, "NoConflicts", "all clusters that export it agree"),
    }
}

fn mirror_entry(index: &Index<'_>, mirror: &Mirror) -> MirrorEntry {
    let mut dns_names = vec![cluster_name(&mirror.key)];
    dns_names.extend(index.by_existing.get(&mirror.key).map(|set| clusterset_name(set)));
    MirrorEntry {
        namespace: mirror.key.namespace.to_string(),
        name: mirror.key.name.to_string(),
        cluster: mirror.cluster.to_string(),
        service: mirror.offer.service.to_string(),
        dns_names,
        ports: mirror.offer.ports.iter().map(|port| port.number).collect(),
        endpoints_ready: mirror.offer.endpoints_ready,
        federated: mirror.offer.federated,
        standing: match mirror.standing {
            Standing::Live => "live",
            Standing::Stale => "stale",
            Standing::Withdrawn => "withdrawn",
        }
        .to_owned(),
    }
}

fn endpoint_entries(world: &World, key: &ServiceKey, service: &LocalService<'_>) -> Vec<EndpointEntry> {
    let convert = |endpoint: &super::local::LocalEndpoint| EndpointEntry {
        cluster: world.cluster.to_string(),
        namespace: key.namespace.to_string(),
        service: key.name.to_string(),
        id: endpoint.id.clone(),
        address: endpoint.address.to_string(),
        ports: endpoint.ports.iter().map(|(_, workload)| *workload).collect(),
        proxy: endpoint.proxy.name.clone(),
        inbound: endpoint.proxy.inbound.to_string(),
        ready: endpoint.ready,
    };
    service.endpoints.iter().map(convert).collect()
}

fn listeners(world: &World) -> Vec<ListenerEntry> {
    let of_proxy = |(proxy, listeners): (&String, &std::sync::Arc<Vec<hawser_api::proto::discovery::Listener>>)| {
        let convert = |listener: &hawser_api::proto::discovery::Listener| ListenerEntry {
            proxy: proxy.clone(),
            namespace: listener.namespace.clone(),
            name: listener.name.clone(),
            port: listener.port,
            bound: listener.bound.clone(),
            reason: listener.reason.clone(),
        };
        listeners.iter().map(convert).collect::<Vec<_>>()
    };
    world.listeners.iter().flat_map(of_proxy).collect()
}

fn objects_entry(world: &World, objects: &Objects, parts: &Parts<'_>) -> ObjectsEntry {
    ObjectsEntry {
        services: count(objects.services.len()),
        endpoint_slices: count(objects.slices.values().map(Vec::len).sum()),
        service_exports: count(objects.exports.len()),
        links: count(objects.links.len()),
        failover_policies: count(objects.policies.len()),
        problems: objects.problems.clone(),
        warnings: warnings(world, objects, parts),
    }
}

fn warnings(world: &World, objects: &Objects, parts: &Parts<'_>) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let mut warn = |object: String, message: String| warnings.push(Warning { object, message });
    match &objects.cluster {
        None => warn("Cluster".to_owned(), format!("there is none: add the Cluster object of {}", world.cluster)),
        Some(cluster) if cluster.metadata.name != world.cluster.as_str() => {
            let message =
                format!("this mirror controller runs for {}: rename the one or configure the other", world.cluster);
            warn(format!("Cluster {}", cluster.metadata.name), message);
        }
        Some(_) => {}
    }
    for (key, service) in parts.local {
        service.warnings.iter().for_each(|warning| warn(format!("Service {key}"), warning.clone()));
        let udp = service.service.spec.ports.iter().any(|port| !carried(port));
        if udp && parts.exports.contains_key(key) {
            let message =
                "only its TCP ports are carried; others are declared in ServiceImports, and nobody answers there";
            warn(format!("Service {key}"), message.to_owned());
        }
    }
    for (key, export) in parts.exports {
        export.untold.iter().for_each(|why| warn(format!("ServiceExport {key}"), why.clone()));
    }
    for (key, slices) in objects.slices.iter().filter(|(key, _)| !objects.services.contains_key(key)) {
        let message = format!("there is no Service {key}: add it, or correct the label {}", labels::SERVICE_NAME);
        slices.iter().for_each(|slice| warn(format!("EndpointSlice {}", slice.metadata.name), message.clone()));
    }
    for (key, policy) in &objects.policies {
        for cluster in destinations::unknown_clusters(world, objects, policy) {
            warn(format!("FailoverPolicy {key}"), format!("it names {cluster}, which no Link bears"));
        }
        if !parts.sets.iter().any(|set| set.key == *key && matches!(set.at, At::Own(_))) {
            warn(format!("FailoverPolicy {key}"), "no service of that name is offered by several clusters".to_owned());
        }
    }
    for set in parts.sets {
        if let At::Nowhere(why) = &set.at {
            warn(format!("Service {}", set.key), why.clone());
        }
    }
    warnings.sort();
    warnings
}
