//! Pure: the mirror controller's resources → [`Tables`]. A resource that cannot be read is left out, with a problem that
//! names it; the rest stands.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use hawser_api::proto::discovery::{self as wire, resource::Kind};
use hawser_api::{ClusterName, Code, Refusal, ServiceKey, ServicePort, SpiffeId, TrustDomain};
use hawser_runtime::subscribe::Table;
use hawser_tunnel::pool::GatewayPath;

use crate::table::{
    Backend, Destination, Endpoint, Inbound, InboundTarget, Peer, PeerGateway, Port, Reach, SessionMode, Tables, Tier,
};

/// Tables, and what could not be read.
#[derive(Debug, Default)]
pub struct Read {
    /// The snapshot.
    pub tables: Tables,
    /// One line each, with the resource's key.
    pub problems: Vec<String>,
}

/// Reads all resources of `table`; `own` is this cluster's name.
pub fn read(table: &Table, own: &ClusterName) -> Read {
    let mut read = Read { tables: Tables { version: table.version, ..Tables::default() }, problems: Vec::new() };
    for (key, resource) in &table.resources {
        if let Err(problem) = put(&mut read.tables, resource, own) {
            read.problems.push(format!("{key}: {problem}"));
        }
    }
    read.tables.names = names(&read.tables.destinations, &mut read.problems);
    read
}

/// Why a resource cannot be read.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error(transparent)]
    Name(#[from] hawser_api::names::NameError),
    #[error("{0:?} is not an address with a port")]
    Address(String),
    #[error("{0} is not a port from 1 to 65535")]
    Port(u32),
    #[error("{0}")]
    Transport(#[from] hawser_api::objects::link::UnknownTransport),
    #[error("{0:?} is not an IPv4 address")]
    VirtualAddress(String),
}

fn put(tables: &mut Tables, resource: &wire::Resource, own: &ClusterName) -> Result<(), Problem> {
    match &resource.kind {
        Some(Kind::Destination(d)) => {
            let destination = destination(d, resource.changed_at_ms, own)?;
            tables.destinations.insert(destination.key.clone(), Arc::new(destination));
        }
        Some(Kind::Inbound(i)) => {
            let inbound = inbound(i)?;
            tables.inbound.insert(inbound.port.clone(), Arc::new(inbound));
        }
        Some(Kind::Peer(p)) => {
            let peer = peer(p)?;
            tables.peers.insert(peer.cluster.clone(), Arc::new(peer));
        }
        // Gateways' resources, or those of a newer controller.
        Some(Kind::Export(_)) | None => {}
    }
    Ok(())
}

/// Every DNS name leads to one destination: where two claim a name, the first in order keeps it, at every restart.
fn names(
    destinations: &HashMap<ServiceKey, Arc<Destination>>,
    problems: &mut Vec<String>,
) -> HashMap<String, ServiceKey> {
    let mut sorted: Vec<_> = destinations.values().collect();
    sorted.sort_by(|a, b| a.key.cmp(&b.key));
    let mut names: HashMap<String, ServiceKey> = HashMap::new();
    for destination in sorted {
        for name in destination.dns_names.iter().chain(&destination.headless_names) {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            match names.get(&name) {
                Some(first) if *first != destination.key => {
                    problems.push(format!("{}: the name {name} already belongs to {first}", destination.key));
                }
                _ => {
                    names.insert(name, destination.key.clone());
                }
            }
        }
    }
    names
}

fn destination(d: &wire::Destination, changed_at_ms: i64, own: &ClusterName) -> Result<Destination, Problem> {
    let key = ServiceKey::parse(&d.namespace, &d.name)?;
    let unavailable = d.unavailable_code.parse::<Code>().ok().map(|code| Refusal {
        code,
        message: d.unavailable_message.clone(),
        remedy: d.unavailable_remedy.clone(),
        retry_after: None,
    });
    let fixed_address = match d.virtual_address.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| Problem::VirtualAddress(text.to_owned()))?),
    };
    Ok(Destination {
        key,
        dns_names: d.dns_names.clone(),
        group_names: d.group_names.clone(),
        headless_names: d.headless_names.clone(),
        ports: d.ports.iter().map(port).collect::<Result<_, _>>()?,
        tiers: d.tiers.iter().map(|t| tier(t, own)).collect::<Result<_, _>>()?,
        session: match d.session.as_str() {
            "shared" => SessionMode::Shared,
            "dedicated" => SessionMode::Dedicated,
            _ => SessionMode::Auto,
        },
        fixed_address,
        unavailable,
        changed_at_ms,
    })
}

fn port_number(number: u32) -> Result<u16, Problem> {
    u16::try_from(number).ok().filter(|n| *n != 0).ok_or(Problem::Port(number))
}

fn address(text: &str) -> Result<SocketAddr, Problem> {
    text.parse().map_err(|_| Problem::Address(text.to_owned()))
}

fn port(p: &wire::Port) -> Result<Port, Problem> {
    Ok(Port {
        name: p.name.clone(),
        number: port_number(p.port)?,
        udp: p.protocol.eq_ignore_ascii_case("udp"),
        app_protocol: p.app_protocol.clone(),
    })
}

fn tier(t: &wire::Tier, own: &ClusterName) -> Result<Tier, Problem> {
    let backends = t.backends.iter().map(|b| backend(b, own).map(Arc::new)).collect::<Result<_, _>>()?;
    let min_healthy_percent = u8::try_from(t.min_healthy_percent.min(100)).unwrap_or(100);
    Ok(Tier { backends, min_healthy_percent })
}

fn backend(b: &wire::Backend, own: &ClusterName) -> Result<Backend, Problem> {
    let cluster: ClusterName = b.cluster.parse()?;
    let reach = if cluster == *own {
        Reach::Local(b.endpoints.iter().map(endpoint).collect::<Result<_, _>>()?)
    } else {
        Reach::Remote { endpoints_ready: b.endpoints_ready }
    };
    Ok(Backend {
        reach,
        cluster,
        weight: b.weight,
        service: ServiceKey::parse(&b.namespace, &b.name)?,
        identities: b.identities.iter().map(|id| id.parse::<SpiffeId>()).collect::<Result<_, _>>()?,
        only: Some(b.endpoint.as_str().into()).filter(|id: &Arc<str>| !id.is_empty()),
        region: b.region.clone(),
        // 0 is no port, and means that.
        ports: b.ports.iter().map(|p| u16::try_from(*p).map_err(|_| Problem::Port(*p))).collect::<Result<_, _>>()?,
    })
}

fn endpoint(e: &wire::Endpoint) -> Result<Endpoint, Problem> {
    Ok(Endpoint {
        id: e.id.as_str().into(),
        inbound: address(&e.inbound)?,
        ready: e.ready,
        ports: e.ports.iter().map(|p| port_number(*p)).collect::<Result<_, _>>()?,
    })
}

fn inbound(i: &wire::Inbound) -> Result<Inbound, Problem> {
    let target = |t: &wire::InboundTarget| {
        Ok::<_, Problem>(InboundTarget { id: t.id.as_str().into(), address: address(&t.address)?, ready: t.ready })
    };
    Ok(Inbound {
        port: ServicePort::parse(&i.namespace, &i.name, i.port)?,
        targets: i.targets.iter().map(target).collect::<Result<_, _>>()?,
        trust_domains: i.trust_domains.iter().map(|d| d.parse::<TrustDomain>()).collect::<Result<_, _>>()?,
        app_protocol: i.app_protocol.clone(),
    })
}

fn peer(p: &wire::Peer) -> Result<Peer, Problem> {
    let cluster: ClusterName = p.cluster.parse()?;
    let trust_domain: TrustDomain = p.trust_domain.parse()?;
    let transport = if p.transport.is_empty() { Default::default() } else { p.transport.parse()? };
    let gateway = |g: &wire::PeerGateway| {
        let path = GatewayPath {
            cluster: cluster.clone(),
            gateway: g.name.parse()?,
            address: address(&g.address)?,
            trust_domain: trust_domain.clone(),
            transport,
        };
        Ok::<_, Problem>(PeerGateway { path, down: g.down })
    };
    let mut gateways = p.gateways.iter().map(gateway).collect::<Result<Vec<_>, _>>()?;
    // Stable: the Link's order within those that are up.
    gateways.sort_by_key(|g| g.down);
    Ok(Peer { gateways, alive: p.alive, cluster, trust_domain })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(resources: Vec<(&str, Kind)>) -> Table {
        let resources = resources
            .into_iter()
            .map(|(key, kind)| {
                let resource = wire::Resource { key: key.into(), changed_at_ms: 7, kind: Some(kind) };
                (key.to_owned(), Arc::new(resource))
            })
            .collect();
        Table { version: 3, resources }
    }

    fn checkout() -> wire::Destination {
        wire::Destination {
            namespace: "shop".into(),
            name: "checkout-east".into(),
            dns_names: vec!["Checkout-East.shop.svc.cluster.local.".into()],
            ports: vec![wire::Port { port: 80, ..Default::default() }],
            tiers: vec![wire::Tier {
                backends: vec![
                    wire::Backend {
                        cluster: "east".into(),
                        weight: 1,
                        namespace: "shop".into(),
                        name: "checkout".into(),
                        identities: vec!["spiffe://east.example.org/ns/shop/sa/checkout".into()],
                        endpoints_ready: 2,
                        ..Default::default()
                    },
                    wire::Backend {
                        cluster: "west".into(),
                        ports: vec![0],
                        namespace: "shop".into(),
                        name: "checkout".into(),
                        endpoints: vec![wire::Endpoint {
                            id: "e1".into(),
                            inbound: "127.0.0.1:4143".into(),
                            ready: true,
                            ports: vec![80],
                        }],
                        ..Default::default()
                    },
                ],
                min_healthy_percent: 200,
            }],
            ..Default::default()
        }
    }

    #[test]
    fn a_destination_is_read_with_local_and_remote_backends() {
        let read = read(
            &table(vec![("destination/shop/checkout-east", Kind::Destination(checkout()))]),
            &"west".parse().unwrap(),
        );
        assert_eq!(read.problems, Vec::<String>::new());
        let key: ServiceKey = "shop/checkout-east".parse().unwrap();
        assert_eq!(read.tables.names.get("checkout-east.shop.svc.cluster.local"), Some(&key));
        assert_eq!(read.tables.version, 3);
        let destination = &read.tables.destinations[&key];
        assert_eq!(destination.changed_at_ms, 7);
        let tier = &destination.tiers[0];
        assert_eq!(tier.min_healthy_percent, 100);
        assert!(matches!(tier.backends[0].reach, Reach::Remote { endpoints_ready: 2 }));
        assert_eq!(tier.backends[1].ports, [0]);
        assert!(matches!(&tier.backends[1].reach, Reach::Local(e) if e.len() == 1 && e[0].ready));
    }

    #[test]
    fn a_resource_that_cannot_be_read_is_named_and_the_rest_stands() {
        let mut bad = checkout();
        bad.name = "Not A Name".into();
        let mut bad_port = checkout();
        bad_port.name = "other".into();
        bad_port.ports[0].port = 65_536;
        let read = read(
            &table(vec![
                ("destination/a", Kind::Destination(checkout())),
                ("destination/b", Kind::Destination(bad)),
                ("destination/c", Kind::Destination(bad_port)),
            ]),
            &"west".parse().unwrap(),
        );
        assert_eq!(read.tables.destinations.len(), 1);
        assert_eq!(read.problems.len(), 2);
        assert!(read.problems[0].starts_with("destination/b: service name"), "{:?}", read.problems);
        assert!(read.problems[1].contains("65536"), "{:?}", read.problems);
    }

    #[test]
    fn a_name_that_two_claim_stays_with_the_first_in_order() {
        let mut second = checkout();
        second.name = "a-thief".into();
        let first = "shop/a-thief".parse::<ServiceKey>().unwrap();
        let read = read(
            &table(vec![
                ("destination/1", Kind::Destination(checkout())),
                ("destination/2", Kind::Destination(second)),
            ]),
            &"west".parse().unwrap(),
        );
        assert_eq!(read.tables.names["checkout-east.shop.svc.cluster.local"], first);
        assert_eq!(read.problems.len(), 1);
    }

    #[test]
    fn gateways_that_are_down_come_last() {
        let gateway =
            |name: &str, down| wire::PeerGateway { name: name.into(), address: "127.0.0.1:7443".into(), down };
        let peer = wire::Peer {
            cluster: "east".into(),
            trust_domain: "east.example.org".into(),
            gateways: vec![gateway("a", true), gateway("b", false), gateway("c", false)],
            transport: "tcp".into(),
            alive: true,
            ..Default::default()
        };
        let read = read(&table(vec![("peer/east", Kind::Peer(peer))]), &"west".parse().unwrap());
        let names: Vec<_> =
            read.tables.peers[&"east".parse().unwrap()].gateways.iter().map(|g| g.path.gateway.to_string()).collect();
        assert_eq!(names, ["b", "c", "a"]);
    }
}
