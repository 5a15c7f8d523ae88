//! ServiceImports (KEP-1645): one for every service that any cluster exports to this one, or this one exports, in every
//! namespace that is there; with the Services that give it addresses and the EndpointSlices that say where it is served.
//!
//! ```text
//! clusterset (who takes part, settled by conflicts) + hosts ─▶ import, derived Services, slices
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;

use hawser_api::objects::Metadata;
use hawser_api::objects::core::{EndpointConditions, EndpointPortSpec, EndpointSlice, EndpointSpec, Service};
use hawser_api::objects::import::{
    ImportCluster, ImportPort, ImportType, IpFamily, Presence, ServiceImport, ServiceImportSpec, ServiceImportStatus,
    SessionAffinity,
};
use hawser_api::objects::link::Condition;
use hawser_api::{ClusterName, ServiceKey, labels};

use super::clusterset::Set;
use super::hosts::{Hosts, Member};
use super::local::{LocalEndpoint, LocalService};
use super::made;
use super::mirrors::{Mirror, Standing};
use super::statuses::condition;
use crate::catalog::standard::Affinity;
use crate::world::{Objects, OfferedPort, Protocol, World};

/// Endpoints in one slice of our own, as Kubernetes' controller does it.
const SLICE_MAX: usize = 100;

/// What is written for one import.
#[derive(Debug, Clone, PartialEq)]
pub struct ImportObject {
    /// The ServiceImport.
    pub import: ServiceImport,
    /// Where it stands.
    pub status: ServiceImportStatus,
    /// Services that have the API server give addresses: one for the whole, or one for each far endpoint of a headless
    /// service. None where there is no API server: proxies give addresses then.
    pub derived: Vec<Service>,
    /// Where it is served, at least one for each cluster that serves it.
    pub slices: Vec<EndpointSlice>,
}

/// What the other parts of the plan found.
#[derive(Debug)]
pub struct Parts<'p> {
    /// This cluster's services.
    pub local: &'p BTreeMap<ServiceKey, LocalService<'p>>,
    /// Services of the clusterset.
    pub sets: &'p [Set<'p>],
    /// Endpoints of headless ones.
    pub hosts: &'p Hosts<'p>,
}

/// All imports by name. None is in a namespace that is not there: what a peer offers into one is no mirror, and in no set.
pub fn imports(world: &World, objects: &Objects, parts: &Parts<'_>) -> BTreeMap<ServiceKey, ImportObject> {
    let sets = parts.sets.iter().filter(|set| set.offered());
    sets.map(|set| (set.key.clone(), Making { world, objects, parts, set }.object())).collect()
}

/// What endpoints of one slice have in common: being IPv6, and the Service's ports with the workload's.
type Alike<'l> = (bool, &'l [(u16, u16)]);

/// One import in the making.
struct Making<'p> {
    world: &'p World,
    objects: &'p Objects,
    parts: &'p Parts<'p>,
    set: &'p Set<'p>,
}

impl Making<'_> {
    fn object(&self) -> ImportObject {
        let standard = &self.set.settled.standard;
        let slices: Vec<EndpointSlice> = self.local_slices().into_iter().chain(self.far_slices()).collect();
        let (ips, ip_families) = self.addresses();
        let spec = ServiceImportSpec {
            ports: self.set.settled.ports.iter().map(import_port).collect(),
            ips,
            ip_families,
            kind: if standard.headless { ImportType::Headless } else { ImportType::ClusterSetIP },
            session_affinity: Some(match standard.affinity {
                Affinity::None => SessionAffinity::None,
                Affinity::ClientIp(_) => SessionAffinity::ClientIP,
            }),
            session_affinity_config: made::affinity_config(standard),
            internal_traffic_policy: standard.internal_traffic_policy,
            traffic_distribution: made::text(&standard.traffic_distribution),
        };
        let mut metadata = self.metadata(self.set.key.name.to_string());
        for (key, value) in &standard.labels {
            metadata.labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
        metadata.annotations.clone_from(&standard.annotations);
        let status = self.status(&slices, &spec);
        ImportObject { import: ServiceImport::new(metadata, spec), status, derived: self.derived(), slices }
    }

    fn metadata(&self, name: String) -> Metadata {
        Metadata {
            name,
            namespace: Some(self.set.key.namespace.clone()),
            labels: BTreeMap::from([(labels::MANAGED_BY.to_owned(), labels::MANAGED_BY_HAWSER.to_owned())]),
            ..Metadata::default()
        }
    }

    fn headless(&self) -> bool {
        self.set.settled.standard.headless
    }

    /// This cluster's addresses for it, in the order of families of the oldest export; those that there are where it has
    /// none of that kind: what a caller's family is makes no difference to a tunnel.
    fn addresses(&self) -> (Vec<IpAddr>, Vec<IpFamily>) {
        let wanted = &self.set.settled.standard.ip_families;
        if self.headless() {
            return (Vec::new(), wanted.clone());
        }
        let given = self.set.own_key().and_then(|key| self.objects.cluster_ips.get(&key));
        let given = given.map(Vec::as_slice).unwrap_or_default();
        let of = |family: &IpFamily| given.iter().find(|ip| IpFamily::of(**ip) == *family).copied();
        let mut ips: Vec<IpAddr> = wanted.iter().filter_map(of).collect();
        if ips.is_empty() {
            ips.extend_from_slice(given);
        }
        let families = if ips.is_empty() { wanted.clone() } else { ips.iter().map(|ip| IpFamily::of(*ip)).collect() };
        (ips, families)
    }

    fn derived(&self) -> Vec<Service> {
        if self.objects.namespaces.is_none() {
            return Vec::new();
        }
        let settled = &self.set.settled;
        let service = |key: &ServiceKey| {
            let mut service = made::service(self.metadata(key.name.to_string()), &settled.ports, &settled.standard);
            service.spec.ip_family_policy = Some("PreferDualStack".to_owned());
            service
        };
        if self.headless() {
            return self.far_members().map(|member| service(&member.key)).collect();
        }
        // A Service without a port that is carried would be refused.
        let carried = settled.ports.iter().any(|port| port.protocol == Protocol::Tcp);
        self.set.own_key().iter().filter(|_| carried).map(service).collect()
    }

    fn far_members(&self) -> impl Iterator<Item = &Member<'_>> {
        let members = self.parts.hosts.by_set.get(&self.set.key);
        members.into_iter().flatten().filter(|member| member.mirror.is_some())
    }

    /// Never tied to the exported Service itself: in its own cluster these would be endpoints of it a second time.
    fn slice_metadata(&self, cluster: &ClusterName, end: &str) -> Metadata {
        // A dot, as no mirror's slice has one.
        let mut metadata = self.metadata(format!("{}.{cluster}{end}", self.set.key.name));
        let mut mark = |key: &str, value: &str| metadata.labels.insert(key.to_owned(), value.to_owned());
        mark(labels::SLICE_MANAGED_BY, labels::SLICE_MANAGED_BY_HAWSER);
        mark(labels::MCS_SERVICE_NAME, self.set.key.name.as_str());
        mark(labels::MCS_SOURCE_CLUSTER, cluster.as_str());
        let derived = self.set.own_key().filter(|_| !self.headless() && self.objects.namespaces.is_some());
        if let Some(derived) = derived {
            mark(labels::SERVICE_NAME, derived.name.as_str());
        }
        metadata
    }

    /// Peers that serve it: where their gateways are, or the addresses that stand for their endpoints.
    fn far_slices(&self) -> Vec<EndpointSlice> {
        let live = self.set.mirrors.iter().filter(|mirror| mirror.standing == Standing::Live);
        if self.headless() {
            return live.flat_map(|mirror| self.host_slices(mirror)).collect();
        }
        let serving = live.filter(|mirror| mirror.offer.endpoints_ready > 0);
        let slices = serving.filter_map(|mirror| {
            let (link, state) = (self.objects.links.get(&mirror.cluster)?, self.world.peers.get(&mirror.cluster)?);
            Some(made::gateway_slices(&self.slice_metadata(&mirror.cluster, ""), link, state, true))
        });
        slices.flatten().collect()
    }

    fn host_slices(&self, mirror: &Mirror) -> Vec<EndpointSlice> {
        let mut by_family: BTreeMap<IpFamily, Vec<EndpointSpec>> = BTreeMap::new();
        for member in self.far_members().filter(|member| member.cluster == mirror.cluster) {
            for ip in self.objects.cluster_ips.get(&member.key).into_iter().flatten() {
                let endpoint = endpoint(*ip, true, Some(member.host.name.to_string()));
                by_family.entry(IpFamily::of(*ip)).or_default().push(endpoint);
            }
        }
        let carried = self.set.settled.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
        let ports: Vec<EndpointPortSpec> = carried.map(|port| slice_port(port, port.number)).collect();
        let one = |(family, endpoints): (IpFamily, Vec<EndpointSpec>)| {
            let v6 = family == IpFamily::IPv6;
            let metadata = self.slice_metadata(&mirror.cluster, if v6 { "-v6" } else { "" });
            made::slice(metadata, v6, endpoints, ports.clone())
        };
        by_family.into_iter().map(one).collect()
    }

    /// This cluster's own endpoints, where they are.
    fn local_slices(&self) -> Vec<EndpointSlice> {
        let local = self.parts.local.get(&self.set.key).filter(|_| self.set.local);
        let mut alike: BTreeMap<Alike<'_>, Vec<&LocalEndpoint>> = BTreeMap::new();
        for endpoint in local.iter().flat_map(|local| &local.endpoints) {
            alike.entry((endpoint.address.is_ipv6(), &endpoint.ports)).or_default().push(endpoint);
        }
        let chunks =
            alike.iter().flat_map(|(key, endpoints)| endpoints.chunks(SLICE_MAX).map(move |some| (*key, some)));
        let one = |(index, ((v6, ports), some)): (usize, (Alike<'_>, &[&LocalEndpoint]))| {
            let hostname = |endpoint: &LocalEndpoint| endpoint.hostname.as_ref().map(ToString::to_string);
            let endpoints = some.iter().map(|e| endpoint(e.address, e.ready, hostname(e))).collect();
            let metadata = self.slice_metadata(&self.world.cluster, &format!("-{index}"));
            made::slice(metadata, v6, endpoints, self.local_ports(ports))
        };
        chunks.enumerate().map(one).collect()
    }

    /// The workload's number for each port of the import that this cluster's Service has.
    fn local_ports(&self, ports: &[(u16, u16)]) -> Vec<EndpointPortSpec> {
        let target = |port: &OfferedPort| ports.iter().find(|(number, _)| *number == port.number).map(|(_, to)| *to);
        let all = self.set.settled.ports.iter();
        all.filter_map(|port| Some(slice_port(port, target(port)?))).collect()
    }

    fn status(&self, slices: &[EndpointSlice], spec: &ServiceImportSpec) -> ServiceImportStatus {
        let mut clusters: Vec<ImportCluster> =
            self.set.settled.order.iter().map(|name| ImportCluster { cluster: name.to_string() }).collect();
        clusters.sort();
        ServiceImportStatus {
            endpoint_slice_objects: Some(if slices.is_empty() { Presence::Absent } else { Presence::Present }),
            clusters,
            conditions: vec![self.ready(spec)],
        }
    }

    fn ready(&self, spec: &ServiceImportSpec) -> Condition {
        let declared: Vec<String> = self.set.settled.ports.iter().filter_map(not_carried).collect();
        let note = if declared.is_empty() {
            String::new()
        } else {
            format!("; {} not carried: tunnels carry TCP", declared.join(", "))
        };
        let waiting = !self.headless() && self.objects.namespaces.is_some() && spec.ips.is_empty();
        if waiting {
            return condition("Ready", false, "Pending", format!("the API server has given it no address yet{note}"));
        }
        condition("Ready", true, "Ready", format!("it can be called{note}"))
    }
}

fn not_carried(port: &OfferedPort) -> Option<String> {
    (port.protocol != Protocol::Tcp).then(|| format!("{} {}", port.protocol.as_str(), port.number))
}

fn import_port(port: &OfferedPort) -> ImportPort {
    ImportPort {
        name: made::text(&port.name),
        protocol: Some(port.protocol.as_str().to_owned()),
        app_protocol: made::text(&port.app_protocol),
        port: port.number,
    }
}

fn slice_port(port: &OfferedPort, number: u16) -> EndpointPortSpec {
    EndpointPortSpec {
        name: made::text(&port.name),
        port: number,
        protocol: Some(port.protocol.as_str().to_owned()),
        app_protocol: made::text(&port.app_protocol),
    }
}

fn endpoint(address: IpAddr, ready: bool, hostname: Option<String>) -> EndpointSpec {
    EndpointSpec {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions { ready: Some(ready) }),
        hostname,
        target_ref: None,
    }
}

#[cfg(test)]
mod tests;
