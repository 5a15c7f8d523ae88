//! What the objects that we make of peers' services have in common.

use std::collections::BTreeMap;

use hawser_api::objects::core::{EndpointPortSpec, EndpointSlice, EndpointSpec, Service, ServicePortSpec, ServiceSpec};
use hawser_api::objects::import::SessionAffinityConfig;
use hawser_api::objects::{Link, Metadata};

use crate::catalog::standard::{Affinity, Standard};
use crate::world::{OfferedPort, PeerState, Protocol};

/// The one distribution that every API server since 1.31 takes; another would have the whole Service refused.
const PREFER_CLOSE: &str = "PreferClose";

/// A Service of the ports that are carried. What a Service says of its clients is passed on; `internalTrafficPolicy` is
/// not: its endpoints are gateways, none of which is on the caller's node.
pub fn service(metadata: Metadata, ports: &[OfferedPort], standard: &Standard) -> Service {
    let distribution = Some(standard.traffic_distribution.clone()).filter(|word| word == PREFER_CLOSE);
    let dual = (standard.ip_families.len() > 1).then(|| "PreferDualStack".to_owned());
    Service {
        api_version: "v1".to_owned(),
        kind: "Service".to_owned(),
        metadata,
        spec: ServiceSpec {
            ports: service_ports(ports),
            session_affinity: (standard.affinity != Affinity::None).then(|| standard.affinity.as_str().to_owned()),
            session_affinity_config: affinity_config(standard),
            traffic_distribution: distribution,
            ip_family_policy: dual,
            ..ServiceSpec::default()
        },
    }
}

/// How long a client stays, where the exporter says it.
pub fn affinity_config(standard: &Standard) -> Option<SessionAffinityConfig> {
    standard.affinity.seconds().map(SessionAffinityConfig::of_seconds)
}

/// Kubernetes wants names where there are several ports, and united ones may have none.
fn service_ports(ports: &[OfferedPort]) -> Vec<ServicePortSpec> {
    let carried: Vec<&OfferedPort> = ports.iter().filter(|port| port.protocol == Protocol::Tcp).collect();
    let several = carried.len() > 1;
    let one = |port: &&OfferedPort| ServicePortSpec {
        name: text(&port.name).or_else(|| several.then(|| format!("port-{}", port.number))),
        port: port.number,
        target_port: None,
        protocol: Some(port.protocol.as_str().to_owned()),
        app_protocol: text(&port.app_protocol),
    };
    carried.iter().map(one).collect()
}

/// Nothing where it is empty.
pub fn text(word: &str) -> Option<String> {
    Some(word.to_owned()).filter(|word| !word.is_empty())
}

/// Where a peer's gateways are, one slice for each port number and family that they listen on. `metadata` names them all:
/// what tells them apart is added.
pub fn gateway_slices(metadata: &Metadata, link: &Link, state: &PeerState, usable: bool) -> Vec<EndpointSlice> {
    let port = |number| EndpointPortSpec {
        name: Some("gateway".into()),
        port: number,
        protocol: Some("TCP".into()),
        app_protocol: None,
    };
    let by_port = gateway_endpoints(link, state, usable);
    let one = |((number, v6), endpoints): ((u16, bool), Vec<EndpointSpec>)| {
        let name = format!("{}-{number}{}", metadata.name, if v6 { "-v6" } else { "" });
        slice(Metadata { name, ..metadata.clone() }, v6, endpoints, vec![port(number)])
    };
    by_port.into_iter().map(one).collect()
}

/// An EndpointSlice of one family.
pub fn slice(
    metadata: Metadata,
    v6: bool,
    endpoints: Vec<EndpointSpec>,
    ports: Vec<EndpointPortSpec>,
) -> EndpointSlice {
    EndpointSlice {
        api_version: "discovery.k8s.io/v1".to_owned(),
        kind: "EndpointSlice".to_owned(),
        metadata,
        address_type: Some(if v6 { "IPv6" } else { "IPv4" }.to_owned()),
        endpoints,
        ports,
    }
}

/// The peer's gateways that answer, by port number and address family.
fn gateway_endpoints(link: &Link, state: &PeerState, usable: bool) -> BTreeMap<(u16, bool), Vec<EndpointSpec>> {
    let mut by_port: BTreeMap<(u16, bool), Vec<EndpointSpec>> = BTreeMap::new();
    for gateway in &link.spec.gateways {
        let endpoints = by_port.entry((gateway.address.port(), gateway.address.is_ipv6())).or_default();
        let down = state.gateways.get(&gateway.name).is_some_and(|known| !known.alive);
        if usable && !down {
            endpoints.push(EndpointSpec {
                addresses: vec![gateway.address.ip().to_string()],
                conditions: None,
                hostname: None,
                target_ref: None,
            });
        }
    }
    by_port
}
