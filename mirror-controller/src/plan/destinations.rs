//! What applications of this cluster can call: local services, mirrors, and services of the clusterset.

use std::collections::{BTreeMap, BTreeSet};

use hawser_api::objects::load::VIRTUAL_NETWORK;
use hawser_api::objects::policy::FailoverPolicy;
use hawser_api::proto::discovery;
use hawser_api::{ClusterName, Code, Refusal, ServiceKey};

use super::clusterset::{At, Set};
use super::local::{self, LocalService};
use super::mirrors::{Mirror, Mirrors, Standing};
use super::{Resources, cluster_name, clusterset_name, region};
use crate::world::{Objects, Offer, World};

/// What the other parts of the plan found.
#[derive(Debug)]
pub struct Parts<'p> {
    /// This cluster's services.
    pub local: &'p BTreeMap<ServiceKey, LocalService<'p>>,
    /// Peers' services.
    pub mirrors: &'p Mirrors,
    /// Services of the clusterset.
    pub sets: &'p [Set<'p>],
}

/// All Destination resources.
pub fn destinations(world: &World, objects: &Objects, parts: &Parts<'_>) -> Resources {
    let mut found: BTreeMap<ServiceKey, discovery::Destination> = BTreeMap::new();
    for (key, service) in parts.local {
        found.insert(key.clone(), of_local(world, objects, key, service));
    }
    for (key, mirror) in &parts.mirrors.by_name {
        found.insert(key.clone(), of_mirror(world, objects, mirror));
    }
    for set in parts.sets {
        match &set.at {
            At::Existing(key) => {
                if let Some(destination) = found.get_mut(key) {
                    destination.dns_names.push(clusterset_name(&set.key));
                }
            }
            At::Own(key) => {
                found.insert(key.clone(), of_set(world, objects, parts, key, set));
            }
            At::Nowhere(_) => {}
        }
    }
    let wrap = |(key, destination)| (format!("destination/{key}"), discovery::resource::Kind::Destination(destination));
    found.into_iter().map(wrap).collect()
}

fn named(key: &ServiceKey) -> discovery::Destination {
    discovery::Destination {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        dns_names: vec![cluster_name(key)],
        session: "auto".to_owned(),
        ..discovery::Destination::default()
    }
}

fn refuse(destination: &mut discovery::Destination, refusal: Refusal) {
    destination.unavailable_code = refusal.code.to_string();
    destination.unavailable_message = refusal.message;
    destination.unavailable_remedy = refusal.remedy;
}

fn tier(backends: Vec<discovery::Backend>) -> discovery::Tier {
    discovery::Tier { backends, min_healthy_percent: 0 }
}

fn of_local(world: &World, objects: &Objects, key: &ServiceKey, service: &LocalService<'_>) -> discovery::Destination {
    let mut destination = named(key);
    destination.ports = local::discovery_ports(service.service);
    destination.session = local::session(service.service);
    let fixed = service.service.spec.cluster_ip.as_deref().and_then(|text| text.parse().ok());
    let fixed = fixed.filter(|address| VIRTUAL_NETWORK.contains(*address));
    destination.virtual_address = fixed.map(|address| address.to_string()).unwrap_or_default();
    match local_backend(world, objects, key, service) {
        Some(backend) => destination.tiers = vec![tier(vec![backend])],
        None => refuse(
            &mut destination,
            Refusal::new(
                Code::NoEndpoint,
                format!("no endpoint of {key} is ready"),
                format!("look at the EndpointSlices of {key} and at the workloads behind them"),
            ),
        ),
    }
    destination
}

fn local_backend(
    world: &World,
    objects: &Objects,
    key: &ServiceKey,
    service: &LocalService<'_>,
) -> Option<discovery::Backend> {
    if service.ready() == 0 {
        return None;
    }
    Some(discovery::Backend {
        cluster: world.cluster.to_string(),
        weight: 1,
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        identities: service.identities.iter().map(ToString::to_string).collect(),
        endpoints: service.discovery_endpoints(None),
        region: region(world, objects, &world.cluster),
        ..discovery::Backend::default()
    })
}

fn of_mirror(world: &World, objects: &Objects, mirror: &Mirror) -> discovery::Destination {
    let mut destination = named(&mirror.key);
    destination.ports = offered_ports(&mirror.offer);
    destination.session.clone_from(&mirror.offer.session);
    match mirror_backend(world, objects, mirror) {
        Ok(backend) => destination.tiers = vec![tier(vec![backend])],
        Err(refusal) => refuse(&mut destination, refusal),
    }
    destination
}

fn offered_ports(offer: &Offer) -> Vec<discovery::Port> {
    let convert = |port: &crate::world::OfferedPort| discovery::Port {
        name: port.name.clone(),
        port: u32::from(port.number),
        protocol: "TCP".to_owned(),
        app_protocol: port.app_protocol.clone(),
    };
    offer.ports.iter().map(convert).collect()
}

/// A peer's share, or why it has none.
fn mirror_backend(world: &World, objects: &Objects, mirror: &Mirror) -> Result<discovery::Backend, Refusal> {
    let (cluster, service, own) = (&mirror.cluster, &mirror.offer.service, &world.cluster);
    match mirror.standing {
        Standing::Withdrawn => Err(Refusal::new(
            Code::NotExported,
            format!("{cluster} does not export {service} to {own} any more"),
            format!(
                "label the Service in {cluster} with hawser.dev/export: \"true\", and name {own} if it has hawser.dev/export-to"
            ),
        )),
        Standing::Stale => Err(Refusal::new(
            Code::PeerUnreachable,
            format!("{cluster} cannot be reached: nothing was heard from its catalog for longer than its lease"),
            format!("see `hawser check` for {cluster}'s gateways and the network between; it comes back by itself"),
        )),
        Standing::Live if mirror.offer.endpoints_ready == 0 => Err(Refusal::new(
            Code::NoEndpoint,
            format!("{cluster} exports {service}, and no endpoint of it is ready"),
            format!("look at the EndpointSlices of {service} in {cluster} and at the workloads behind them"),
        )),
        Standing::Live => Ok(discovery::Backend {
            cluster: cluster.to_string(),
            weight: 1,
            namespace: service.namespace.to_string(),
            name: service.name.to_string(),
            identities: mirror.offer.identities.iter().map(ToString::to_string).collect(),
            endpoints_ready: mirror.offer.endpoints_ready,
            region: region(world, objects, cluster),
            ..discovery::Backend::default()
        }),
    }
}

/// One part of a clusterset service: where, since when, with which ports, and its backend or why it has none.
struct Part {
    cluster: ClusterName,
    exported_at: i64,
    ports: Vec<discovery::Port>,
    session: String,
    backend: Result<discovery::Backend, Refusal>,
}

fn of_set(
    world: &World,
    objects: &Objects,
    parts: &Parts<'_>,
    key: &ServiceKey,
    set: &Set<'_>,
) -> discovery::Destination {
    let mut destination = named(key);
    if !set.federated {
        destination.dns_names.clear();
    }
    destination.dns_names.push(clusterset_name(&set.key));
    let mut members = members(world, objects, parts, set);
    // The oldest export wins where they differ (MCS); 0 says nothing and is taken for the youngest.
    members.sort_by_key(|member| {
        (if member.exported_at == 0 { i64::MAX } else { member.exported_at }, member.cluster.clone())
    });
    destination.ports = union(&members);
    destination.session = members.first().map_or_else(|| "auto".to_owned(), |member| member.session.clone());
    let mut refusals = Vec::new();
    let mut backends = BTreeMap::new();
    for member in members {
        match member.backend {
            Ok(mut backend) => {
                backend.ports = port_map(&destination.ports, &member.ports);
                backends.insert(member.cluster, backend);
            }
            Err(refusal) => refusals.push(refusal),
        }
    }
    destination.tiers = tiers(&world.cluster, objects.policies.get(&set.key), backends);
    if destination.tiers.is_empty() {
        refuse(&mut destination, summary(&set.key, refusals));
    }
    destination
}

fn members(world: &World, objects: &Objects, parts: &Parts<'_>, set: &Set<'_>) -> Vec<Part> {
    let mut members = Vec::new();
    if let Some(service) = parts.local.get(&set.key).filter(|_| set.local) {
        let nobody = || {
            Refusal::new(
                Code::NoEndpoint,
                format!("no endpoint of {} is ready in {}", set.key, world.cluster),
                format!("look at the EndpointSlices of {} and at the workloads behind them", set.key),
            )
        };
        members.push(Part {
            cluster: world.cluster.clone(),
            exported_at: set.local_since,
            ports: local::discovery_ports(service.service),
            session: local::session(service.service),
            backend: local_backend(world, objects, &set.key, service).ok_or_else(nobody),
        });
    }
    members.extend(set.mirrors.iter().map(|mirror| Part {
        cluster: mirror.cluster.clone(),
        exported_at: mirror.offer.exported_at,
        ports: offered_ports(&mirror.offer),
        session: mirror.offer.session.clone(),
        backend: mirror_backend(world, objects, mirror),
    }));
    members
}

/// The reason that stands for all: the one that will pass soonest.
fn summary(key: &ServiceKey, refusals: Vec<Refusal>) -> Refusal {
    let rank = |refusal: &Refusal| match refusal.code {
        Code::NoEndpoint => 0,
        Code::PeerUnreachable => 1,
        _ => 2,
    };
    let first = refusals.into_iter().min_by_key(rank);
    first.unwrap_or_else(|| {
        Refusal::new(Code::NotExported, format!("no cluster offers {key}"), "export it in one of the clusters")
    })
}

/// Ports of all, merged by name first, then by number (MCS). Of two ports with one name the older export's number
/// holds; a name or number that is taken is not taken twice.
fn union(members: &[Part]) -> Vec<discovery::Port> {
    let mut ports: Vec<discovery::Port> = Vec::new();
    for port in members.iter().flat_map(|member| &member.ports) {
        let same = |known: &discovery::Port| same_port(known, port);
        if !ports.iter().any(same) {
            ports.push(port.clone());
        }
    }
    ports
}

fn same_port(a: &discovery::Port, b: &discovery::Port) -> bool {
    (!a.name.is_empty() && a.name == b.name) || (a.port == b.port && a.protocol == b.protocol)
}

/// The backend's number for each of the destination's ports, 0 where it does not serve it; empty when all are equal.
fn port_map(destination: &[discovery::Port], backend: &[discovery::Port]) -> Vec<u32> {
    let number = |port: &discovery::Port| {
        let by_name = backend.iter().find(|b| !port.name.is_empty() && b.name == port.name);
        let by_number = || backend.iter().find(|b| b.port == port.port && b.protocol == port.protocol);
        by_name.or_else(by_number).map_or(0, |b| b.port)
    };
    let map: Vec<u32> = destination.iter().map(number).collect();
    let same = map.iter().zip(destination).all(|(number, port)| *number == port.port);
    if same { Vec::new() } else { map }
}

/// This cluster first, all the others next; or as the policy says, with those that it does not name last.
fn tiers(
    own: &ClusterName,
    policy: Option<&FailoverPolicy>,
    mut backends: BTreeMap<ClusterName, discovery::Backend>,
) -> Vec<discovery::Tier> {
    let mut tiers = Vec::new();
    let percent = policy.map_or(0, |policy| u32::from(policy.spec.minimum_healthy_percent));
    for declared in policy.iter().flat_map(|policy| &policy.spec.tiers) {
        let members = declared.clusters.iter().filter_map(|cluster| {
            let backend = backends.remove(&cluster.name)?;
            Some(discovery::Backend { weight: cluster.weight, ..backend })
        });
        tiers.push(members.collect::<Vec<_>>());
    }
    if policy.is_none() {
        tiers.push(backends.remove(own).into_iter().collect());
    }
    tiers.push(backends.into_values().collect());
    let filled = tiers.into_iter().filter(|members| !members.is_empty());
    filled.map(|backends| discovery::Tier { backends, min_healthy_percent: percent }).collect()
}

/// The clusters that a policy names and that are neither linked nor this one.
pub fn unknown_clusters(world: &World, objects: &Objects, policy: &FailoverPolicy) -> BTreeSet<ClusterName> {
    let named = policy.spec.tiers.iter().flat_map(|tier| &tier.clusters).map(|cluster| cluster.name.clone());
    named.filter(|name| *name != world.cluster && !objects.links.contains_key(name)).collect()
}
