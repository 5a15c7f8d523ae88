//! What applications of this cluster can call: local services, mirrors, and services of the clusterset.

use std::collections::{BTreeMap, BTreeSet};

use hawser_api::objects::load::VIRTUAL_NETWORK;
use hawser_api::objects::policy::FailoverPolicy;
use hawser_api::proto::discovery;
use hawser_api::{ClusterName, Code, Refusal, ServiceKey};

use super::clusterset::{At, Set};
use super::conflicts::served_as;
use super::hosts::{Hosts, Member};
use super::local::{self, LocalService};
use super::mirrors::{Mirror, Mirrors, Standing};
use super::{Resources, cluster_name, clusterset_name, region};
use crate::catalog::standard;
use crate::world::{Objects, OfferedPort, Protocol, World};

/// What the other parts of the plan found.
#[derive(Debug)]
pub struct Parts<'p> {
    /// This cluster's services.
    pub local: &'p BTreeMap<ServiceKey, LocalService<'p>>,
    /// Peers' services.
    pub mirrors: &'p Mirrors,
    /// Services of the clusterset.
    pub sets: &'p [Set<'p>],
    /// Endpoints of headless ones.
    pub hosts: &'p Hosts<'p>,
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
                    called(destination, set);
                }
            }
            At::Own(key) => {
                found.insert(key.clone(), of_set(world, objects, parts, key, set));
            }
            At::Nowhere(_) => {}
        }
    }
    for set in parts.sets {
        for member in parts.hosts.by_set.get(&set.key).into_iter().flatten() {
            found.insert(member.key.clone(), of_member(world, objects, parts, set, member));
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
    destination.ports = mirror.offer.ports.iter().map(discovery_port).collect();
    destination.session.clone_from(&mirror.offer.session);
    match mirror_backend(world, objects, mirror) {
        Ok(backend) => destination.tiers = vec![tier(vec![backend])],
        Err(refusal) => refuse(&mut destination, refusal),
    }
    destination
}

fn discovery_port(port: &OfferedPort) -> discovery::Port {
    discovery::Port {
        name: port.name.clone(),
        port: u32::from(port.number),
        protocol: port.protocol.as_str().to_owned(),
        app_protocol: port.app_protocol.clone(),
    }
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

/// One part of a clusterset service: its ports, and its backend or why it has none.
struct Part {
    ports: Vec<OfferedPort>,
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
    called(&mut destination, set);
    let mut members = members(world, objects, parts, set);
    let united = carried(&set.settled.ports);
    destination.ports = united.iter().map(discovery_port).collect();
    let oldest = set.settled.order.first().and_then(|cluster| members.get(cluster));
    destination.session = oldest.map_or_else(|| "auto".to_owned(), |member| member.session.clone());
    let mut refusals = Vec::new();
    let mut backends = BTreeMap::new();
    for cluster in &set.settled.order {
        let Some(member) = members.remove(cluster) else { continue };
        match member.backend {
            Ok(mut backend) => {
                backend.ports = port_map(&united, &member.ports, set.federated);
                backends.insert(cluster.clone(), backend);
            }
            Err(refusal) => refusals.push(refusal),
        }
    }
    refusals.extend(members.into_values().filter_map(|withdrawn| withdrawn.backend.err()));
    destination.tiers = tiers(&world.cluster, objects.policies.get(&set.key), backends);
    if destination.tiers.is_empty() {
        refuse(&mut destination, summary(&set.key, refusals));
    }
    destination
}

/// By the standard's name: of a headless service DNS answers it with its endpoints.
fn called(destination: &mut discovery::Destination, set: &Set<'_>) {
    let headless = set.settled.standard.headless;
    let names = if headless { &mut destination.headless_names } else { &mut destination.dns_names };
    names.push(clusterset_name(&set.key));
}

fn members(world: &World, objects: &Objects, parts: &Parts<'_>, set: &Set<'_>) -> BTreeMap<ClusterName, Part> {
    let mut members = BTreeMap::new();
    if let Some(service) = parts.local.get(&set.key).filter(|_| set.local) {
        let nobody = || {
            Refusal::new(
                Code::NoEndpoint,
                format!("no endpoint of {} is ready in {}", set.key, world.cluster),
                format!("look at the EndpointSlices of {} and at the workloads behind them", set.key),
            )
        };
        let part = Part {
            ports: standard::of(service.service, None).ports,
            session: local::session(service.service),
            backend: local_backend(world, objects, &set.key, service).ok_or_else(nobody),
        };
        members.insert(world.cluster.clone(), part);
    }
    members.extend(set.mirrors.iter().map(|mirror| {
        let part = Part {
            ports: mirror.offer.ports.clone(),
            session: mirror.offer.session.clone(),
            backend: mirror_backend(world, objects, mirror),
        };
        (mirror.cluster.clone(), part)
    }));
    members
}

/// One endpoint of a headless service of the clusterset, by its own name; whoever asks for the service's name is told the
/// addresses of all of them.
fn of_member(
    world: &World,
    objects: &Objects,
    parts: &Parts<'_>,
    set: &Set<'_>,
    member: &Member<'_>,
) -> discovery::Destination {
    let mut destination = named(&member.key);
    destination.dns_names = vec![member.dns_name(&set.key)];
    destination.group_names = vec![clusterset_name(&set.key)];
    let united = carried(&set.settled.ports);
    destination.ports = united.iter().map(discovery_port).collect();
    let found = members(world, objects, parts, set).remove(&member.cluster);
    let Some(part) = found else { return destination };
    destination.session = part.session;
    match part.backend {
        Ok(mut backend) => {
            backend.ports = port_map(&united, &part.ports, set.federated);
            backend.endpoints.retain(|endpoint| endpoint.id == member.host.endpoint);
            backend.endpoint.clone_from(&member.host.endpoint);
            destination.tiers = vec![tier(vec![backend])];
        }
        Err(refusal) => refuse(&mut destination, refusal),
    }
    destination
}

fn carried(ports: &[OfferedPort]) -> Vec<OfferedPort> {
    ports.iter().filter(|port| port.protocol == Protocol::Tcp).cloned().collect()
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

/// The backend's number for each of the destination's ports, 0 where it does not serve it; empty when all are equal.
fn port_map(destination: &[OfferedPort], backend: &[OfferedPort], federated: bool) -> Vec<u32> {
    let number = |port: &OfferedPort| served_as(port, backend, federated).map_or(0, u32::from);
    let map: Vec<u32> = destination.iter().map(number).collect();
    let same = map.iter().zip(destination).all(|(number, port)| *number == u32::from(port.number));
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
