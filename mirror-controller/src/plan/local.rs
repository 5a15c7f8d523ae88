//! This cluster's own services: ports, endpoints, and the proxies that front them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hawser_api::objects::cluster::ProxySpec;
use hawser_api::objects::core::{EndpointSlice, EndpointSpec, Service, ServicePortSpec, TargetPort};
use hawser_api::proto::discovery;
use hawser_api::{ServiceKey, SpiffeId, labels};

use crate::world::{Objects, World};

/// A service of this cluster.
#[derive(Debug)]
pub struct LocalService<'w> {
    /// The object.
    pub service: &'w Service,
    /// Its workloads, sorted by slice and address.
    pub endpoints: Vec<LocalEndpoint<'w>>,
    /// The identities of the proxies that front them.
    pub identities: BTreeSet<SpiffeId>,
    /// Why some of what its slices say cannot be used.
    pub warnings: Vec<String>,
}

/// One workload.
#[derive(Debug)]
pub struct LocalEndpoint<'w> {
    /// Opaque, the same as long as slice, address and ports are.
    pub id: String,
    /// The proxy that fronts it.
    pub proxy: &'w ProxySpec,
    /// Where that proxy accepts sealed sessions.
    pub inbound: std::net::SocketAddr,
    /// Takes new work.
    pub ready: bool,
    /// The workload's address.
    pub address: IpAddr,
    /// Service port and workload's port.
    pub ports: Vec<(u16, u16)>,
}

impl LocalService<'_> {
    /// Whether any endpoint takes new work.
    pub fn ready(&self) -> usize {
        self.endpoints.iter().filter(|endpoint| endpoint.ready).count()
    }

    /// The endpoints as discovery carries them; for one port, or for all.
    pub fn discovery_endpoints(&self, port: Option<u16>) -> Vec<discovery::Endpoint> {
        let all = self.service.spec.ports.len();
        let serves =
            |endpoint: &&LocalEndpoint<'_>| port.is_none_or(|port| endpoint.ports.iter().any(|(p, _)| *p == port));
        let convert = |endpoint: &LocalEndpoint<'_>| discovery::Endpoint {
            id: endpoint.id.clone(),
            inbound: endpoint.inbound.to_string(),
            ready: endpoint.ready,
            ports: match port {
                Some(_) => Vec::new(),
                None if endpoint.ports.len() == all => Vec::new(),
                None => endpoint.ports.iter().map(|(port, _)| u32::from(*port)).collect(),
            },
        };
        self.endpoints.iter().filter(serves).map(convert).collect()
    }
}

/// Whether this port's traffic is carried: TCP alone; other protocols are left out with a warning.
pub fn carried(port: &ServicePortSpec) -> bool {
    port.protocol.as_deref().unwrap_or("TCP") == "TCP"
}

/// The annotation's word, or `auto`.
pub fn session(service: &Service) -> String {
    service.metadata.annotations.get(labels::SESSION).cloned().unwrap_or_else(|| "auto".to_owned())
}

/// All services of this cluster.
pub fn local<'w>(world: &World, objects: &'w Objects) -> BTreeMap<ServiceKey, LocalService<'w>> {
    let one = |(key, service): (&ServiceKey, &'w Service)| {
        let mut local =
            LocalService { service, endpoints: Vec::new(), identities: BTreeSet::new(), warnings: Vec::new() };
        for slice in objects.slices.get(key).into_iter().flatten() {
            add_slice(world, objects, slice, &mut local);
        }
        (key.clone(), local)
    };
    objects.services.iter().map(one).collect()
}

fn add_slice<'w>(world: &World, objects: &'w Objects, slice: &EndpointSlice, local: &mut LocalService<'w>) {
    let ports: Vec<(u16, u16)> =
        local.service.spec.ports.iter().filter_map(|port| Some((port.port, workload_port(port, slice)?))).collect();
    if ports.is_empty() {
        local.warnings.push(format!("EndpointSlice {} has no port of the Service's", slice.metadata.name));
        return;
    }
    for endpoint in &slice.endpoints {
        let Some(address) = endpoint.addresses.first().and_then(|address| address.parse::<IpAddr>().ok()) else {
            continue;
        };
        let (proxy, inbound) = match fronting(objects, endpoint) {
            Ok(found) => found,
            Err(warning) => {
                local.warnings.push(format!("endpoint {address} of EndpointSlice {}: {warning}", slice.metadata.name));
                continue;
            }
        };
        let identity =
            SpiffeId::service_account(&world.domain, proxy.namespace.as_str(), proxy.service_account.as_str());
        local.identities.extend(identity.ok());
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        let id = endpoint_id(slice, address, &ports);
        local.endpoints.push(LocalEndpoint { id, proxy, inbound, ready, address, ports: ports.clone() });
    }
}

/// The proxy that an endpoint names, else the first that takes sealed sessions.
fn fronting<'w>(
    objects: &'w Objects,
    endpoint: &EndpointSpec,
) -> Result<(&'w ProxySpec, std::net::SocketAddr), String> {
    let named = endpoint.target_ref.as_ref().filter(|target| target.kind == "Proxy");
    let proxies = objects.proxies();
    let Some(target) = named else {
        let first = proxies.iter().find_map(|proxy| Some((proxy, proxy.inbound?)));
        return first.ok_or_else(|| "no proxy of the Cluster has an inbound address".to_owned());
    };
    let proxy = proxies.iter().find(|proxy| proxy.name.as_str() == target.name);
    let proxy = proxy.ok_or_else(|| format!("the Cluster has no proxy {}", target.name))?;
    let inbound = proxy.inbound.ok_or_else(|| format!("proxy {} has no inbound address", target.name))?;
    Ok((proxy, inbound))
}

/// Kubernetes ties a Service's port to a slice's by name; a hand-written slice may do it by number, or not at all.
fn workload_port(port: &ServicePortSpec, slice: &EndpointSlice) -> Option<u16> {
    if slice.ports.is_empty() {
        return match &port.target_port {
            Some(TargetPort::Number(number)) => Some(*number),
            Some(TargetPort::Name(_)) => None,
            None => Some(port.port),
        };
    }
    let named = |name: &str| slice.ports.iter().find(|p| p.name.as_deref().unwrap_or_default() == name);
    let found = match (&port.target_port, port.name.as_deref()) {
        (_, name) if named(name.unwrap_or_default()).is_some() => named(name.unwrap_or_default()),
        (Some(TargetPort::Name(name)), _) => named(name),
        (Some(TargetPort::Number(number)), _) => slice.ports.iter().find(|p| p.port == *number),
        (None, _) => slice.ports.iter().find(|p| p.port == port.port),
    };
    found.map(|port| port.port)
}

/// FNV-1a: not for secrecy, only so that an id is short, the same in every version, and says nothing.
fn endpoint_id(slice: &EndpointSlice, address: IpAddr, ports: &[(u16, u16)]) -> String {
    let text = format!("{}/{}/{address}/{ports:?}", slice.metadata.namespace_or_default(), slice.metadata.name);
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("{hash:016x}")
}

/// The Service's ports as discovery carries them.
pub fn discovery_ports(service: &Service) -> Vec<discovery::Port> {
    let convert = |port: &ServicePortSpec| discovery::Port {
        name: port.name.clone().unwrap_or_default(),
        port: u32::from(port.port),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        app_protocol: port.app_protocol.clone().unwrap_or_default(),
    };
    service.spec.ports.iter().map(convert).collect()
}
