//! This cluster's own services: ports, endpoints, and the proxies that front them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use hawser_api::objects::cluster::ProxySpec;
use hawser_api::objects::core::{EndpointSlice, EndpointSpec, Service, ServicePortSpec, TargetPort, TargetRef};
use hawser_api::proto::discovery;
use hawser_api::{Namespace, ServiceKey, ServiceName, SpiffeId, labels};

use super::names::fnv;
use crate::catalog::standard::{HOSTS_MAX, Host};
use crate::world::{Objects, World};

/// A service of this cluster.
#[derive(Debug)]
pub struct LocalService<'w> {
    /// The object.
    pub service: &'w Service,
    /// Its workloads, sorted by slice and address.
    pub endpoints: Vec<LocalEndpoint>,
    /// The identities of the proxies that front them.
    pub identities: BTreeSet<SpiffeId>,
    /// Why some of what its slices say cannot be used.
    pub warnings: Vec<String>,
}

/// One workload.
#[derive(Debug)]
pub struct LocalEndpoint {
    /// Opaque, the same as long as slice, address and ports are.
    pub id: String,
    /// The proxy that fronts it.
    pub proxy: Fronting,
    /// Takes new work.
    pub ready: bool,
    /// The workload's address.
    pub address: IpAddr,
    /// Its host name, where it has one.
    pub hostname: Option<ServiceName>,
    /// Service port and workload's port.
    pub ports: Vec<(u16, u16)>,
}

impl LocalEndpoint {
    /// The name by which it is called: its host name, or its id.
    pub fn host(&self) -> Option<ServiceName> {
        self.hostname.clone().or_else(|| self.id.parse().ok())
    }
}

/// The proxy that fronts a workload: one of the Cluster's, or the one beside a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fronting {
    /// The name under which it subscribes: a ProxySpec's, or the Pod's, as `namespace/name`.
    pub name: String,
    /// Where it accepts sealed sessions.
    pub inbound: SocketAddr,
    // Namespace and service account of its identity.
    account: (Namespace, Namespace),
}

impl LocalService<'_> {
    /// Whether any endpoint takes new work.
    pub fn ready(&self) -> usize {
        self.endpoints.iter().filter(|endpoint| endpoint.ready).count()
    }

    /// Of a headless service: its ready endpoints by name, each once though it may be in a slice of each family.
    pub fn hosts(&self) -> Vec<Host> {
        let ready = self.endpoints.iter().filter(|endpoint| endpoint.ready && self.service.spec.is_headless());
        let mut hosts: BTreeMap<ServiceName, Host> = BTreeMap::new();
        for endpoint in ready {
            let Some(name) = endpoint.host() else { continue };
            hosts.entry(name.clone()).or_insert_with(|| Host { name, endpoint: endpoint.id.clone() });
        }
        hosts.into_values().take(HOSTS_MAX).collect()
    }

    /// The endpoints as discovery carries them; for one port, or for all.
    pub fn discovery_endpoints(&self, port: Option<u16>) -> Vec<discovery::Endpoint> {
        let all = self.service.spec.ports.len();
        let serves = |endpoint: &&LocalEndpoint| port.is_none_or(|port| endpoint.ports.iter().any(|(p, _)| *p == port));
        let convert = |endpoint: &LocalEndpoint| discovery::Endpoint {
            id: endpoint.id.clone(),
            inbound: endpoint.proxy.inbound.to_string(),
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
        let proxy = match fronting(objects, endpoint, address) {
            Ok(found) => found,
            Err(warning) => {
                local.warnings.push(format!("endpoint {address} of EndpointSlice {}: {warning}", slice.metadata.name));
                continue;
            }
        };
        let (namespace, account) = &proxy.account;
        let identity = SpiffeId::service_account(&world.domain, namespace.as_str(), account.as_str());
        local.identities.extend(identity.ok());
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        let id = endpoint_id(slice, address, &ports);
        let hostname = endpoint.hostname.as_deref().and_then(|name| name.parse().ok());
        local.endpoints.push(LocalEndpoint { id, proxy, ready, address, hostname, ports: ports.clone() });
    }
}

/// The proxy beside the Pod that an endpoint names, or the Cluster's proxy that it names, else the Cluster's first that
/// takes sealed sessions.
fn fronting(objects: &Objects, endpoint: &EndpointSpec, address: IpAddr) -> Result<Fronting, String> {
    let target = endpoint.target_ref.as_ref();
    if let Some(target) = target.filter(|target| target.kind == "Pod") {
        return beside(objects, target, address);
    }
    let proxies = objects.proxies();
    let Some(target) = target.filter(|target| target.kind == "Proxy") else {
        let first = proxies.iter().find_map(of_cluster);
        return first.ok_or_else(|| "no proxy of the Cluster has an inbound address".to_owned());
    };
    let proxy = proxies.iter().find(|proxy| proxy.name.as_str() == target.name);
    let proxy = proxy.ok_or_else(|| format!("the Cluster has no proxy {}", target.name))?;
    of_cluster(proxy).ok_or_else(|| format!("proxy {} has no inbound address", target.name))
}

fn of_cluster(proxy: &ProxySpec) -> Option<Fronting> {
    let account = (proxy.namespace.clone(), proxy.service_account.clone());
    Some(Fronting { name: proxy.name.to_string(), inbound: proxy.inbound?, account })
}

/// A Pod's own proxy listens at the Pod's address, and speaks for the Pod's service account.
fn beside(objects: &Objects, target: &TargetRef, address: IpAddr) -> Result<Fronting, String> {
    let namespace =
        target.namespace.clone().ok_or_else(|| format!("Pod {} is named without namespace", target.name))?;
    let key = (namespace, target.name.clone());
    let account = objects.pods.get(&key);
    let account = account.ok_or_else(|| format!("Pod {}/{} is not known, nor its service account", key.0, key.1))?;
    let inbound = SocketAddr::new(address, objects.inbound_port.unwrap_or(labels::INBOUND_PORT));
    Ok(Fronting { name: format!("{}/{}", key.0, key.1), inbound, account: (key.0, account.clone()) })
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

/// Short, the same in every version, and it says nothing.
fn endpoint_id(slice: &EndpointSlice, address: IpAddr, ports: &[(u16, u16)]) -> String {
    let text = format!("{}/{}/{address}/{ports:?}", slice.metadata.namespace_or_default(), slice.metadata.name);
    format!("{:016x}", fnv(&text))
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::plan::plan;
    use crate::plan::tests::{EXPORTED, WEST, offer, offered, service, world};

    /// The same service, its endpoint a Pod's.
    fn of_pod(name: &str) -> String {
        let ip = "{addresses: [10.1.0.7], targetRef: {kind: Pod, namespace: shop, name: web-1}}";
        service(name, EXPORTED).replace("{addresses: [127.0.0.1]}", ip)
    }

    fn with(text: &str, change: impl FnOnce(&mut Objects)) -> World {
        let mut world = world(text);
        let mut objects = Objects::clone(world.objects.as_deref().unwrap());
        change(&mut objects);
        world.objects = Some(Arc::new(objects));
        world
    }

    #[test]
    fn a_pod_is_fronted_by_its_own_proxy_under_its_own_service_account() {
        let key = ("shop".parse().unwrap(), "web-1".to_owned());
        let world = with(&format!("{WEST}{}", of_pod("web")), |objects| {
            objects.pods.insert(key, "shopkeeper".parse().unwrap());
        });
        let plan = plan(&world).unwrap();
        let offered = plan.catalogs[&"east".parse().unwrap()].values().next().unwrap();
        assert_eq!(offered.identities, ["spiffe://west.example/ns/shop/sa/shopkeeper"]);
        assert_eq!(offered.endpoints_ready, 1);
        assert_eq!(plan.inbound.keys().collect::<Vec<_>>(), ["shop/web-1"]);
        assert_eq!(plan.statuses.endpoints[0].inbound, "10.1.0.7:4143");
    }

    #[test]
    fn a_pod_that_is_not_known_is_left_out_and_its_service_says_so() {
        let plan = plan(&with(&format!("{WEST}{}", of_pod("web")), |_| {})).unwrap();
        assert!(plan.inbound.is_empty());
        let told = plan.statuses.objects.warnings.iter().any(|w| w.message.contains("Pod shop/web-1 is not known"));
        assert!(told, "{:?}", plan.statuses.objects.warnings);
    }

    #[test]
    fn nothing_is_mirrored_into_a_namespace_that_is_not_there() {
        for (namespaces, mirrored) in [(vec!["shop"], 1), (vec!["other"], 0)] {
            let mut world = with(WEST, |objects| {
                objects.namespaces = Some(namespaces.iter().map(|name| name.parse().unwrap()).collect());
            });
            offer(&mut world, "east", vec![offered("east", "checkout", 1, false)]);
            let plan = plan(&world).unwrap();
            assert_eq!(plan.mirrors.len(), mirrored);
            let refused: Vec<_> = plan.statuses.links[0].status.refused.iter().map(|r| &r.reason).collect();
            assert_eq!(refused.len(), 1 - mirrored, "{refused:?}");
            assert!(refused.iter().all(|reason| reason.contains("no namespace shop")), "{refused:?}");
        }
    }
}
