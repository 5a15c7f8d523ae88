//! What the gateway knows, as one immutable snapshot: made by `watch` from the mirror controller's resources, read by
//! `admit` and `route`.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use hawser_api::bundle::Bundle;
use hawser_api::proto::discovery::resource::Kind;
use hawser_api::proto::discovery::{self as wire, Resource};
use hawser_api::{ClusterName, ServicePort, TrustDomain};
use hawser_tunnel::tls::Anchors;

/// The snapshot.
#[derive(Debug, Default)]
pub struct Tables {
    /// What is let in.
    pub exports: HashMap<ServicePort, Arc<Export>>,
    /// The linked clusters, by the only thing about them that a certificate proves.
    pub peers: HashMap<TrustDomain, Arc<Peer>>,
    /// The controller's version of this state; 0: from disk, or nothing yet.
    pub version: u64,
}

/// A service port that is offered.
#[derive(Debug)]
pub struct Export {
    /// What an `Open` must name, exactly.
    pub port: ServicePort,
    /// The links that may reach it.
    pub clusters: HashSet<ClusterName>,
    /// Its workloads.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// One workload of an export.
#[derive(Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Opaque, stable.
    pub id: Arc<str>,
    /// Where its proxy accepts sealed sessions.
    pub inbound: SocketAddr,
    /// Takes new work.
    pub ready: bool,
}

/// A linked cluster.
#[derive(Debug)]
pub struct Peer {
    /// The link's name here.
    pub cluster: ClusterName,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// Whom its certificates must hang under.
    pub anchors: Anchors,
    /// Its catalog's lease is fresh; for people, admission does not ask.
    pub alive: bool,
}

impl Tables {
    /// From the controller's resources; what cannot be used is left out (nothing is let in by it) and told.
    pub fn build<'a>(
        version: u64,
        resources: impl Iterator<Item = &'a Resource>,
        own: &TrustDomain,
    ) -> (Self, Vec<String>) {
        let mut tables = Self { version, ..Self::default() };
        let mut problems = Vec::new();
        for resource in resources {
            let added = match &resource.kind {
                Some(Kind::Export(export)) => tables.add_export(export),
                Some(Kind::Peer(peer)) => tables.add_peer(peer, own),
                // Destinations and inbound ports are the proxies'; a later version may know more kinds.
                _ => Ok(()),
            };
            if let Err(problem) = added {
                problems.push(format!("{}: {problem}", resource.key));
            }
        }
        (tables, problems)
    }

    fn add_export(&mut self, export: &wire::Export) -> Result<(), String> {
        let port = ServicePort::parse(&export.namespace, &export.name, export.port).map_err(|e| e.to_string())?;
        let number = u32::from(port.port);
        let endpoints = export.endpoints.iter().filter(|e| e.ports.is_empty() || e.ports.contains(&number));
        let endpoints = endpoints.map(read_endpoint).collect::<Result<_, _>>()?;
        let clusters = export.clusters.iter().map(|name| name.parse()).collect::<Result<_, _>>();
        let clusters = clusters.map_err(|e: hawser_api::names::NameError| e.to_string())?;
        self.exports.insert(port.clone(), Arc::new(Export { port, clusters, endpoints }));
        Ok(())
    }

    fn add_peer(&mut self, peer: &wire::Peer, own: &TrustDomain) -> Result<(), String> {
        let cluster: ClusterName = peer.cluster.parse().map_err(|e: hawser_api::names::NameError| e.to_string())?;
        let trust_domain: TrustDomain =
            peer.trust_domain.parse().map_err(|e: hawser_api::names::NameError| e.to_string())?;
        if trust_domain == *own {
            // Else a link could replace this cluster's own anchors.
            return Err(format!("has this cluster's own trust domain {own}"));
        }
        if let Some(other) = self.peers.get(&trust_domain) {
            // Else it would depend on the order which link's exports the peer reaches.
            return Err(format!("has the same trust domain {trust_domain} as link {}", other.cluster));
        }
        let anchors = match peer.bundle.as_str() {
            "" => Anchors::OwnRoot,
            document => Anchors::Bundle(Bundle::parse(document).map_err(|e| e.to_string())?),
        };
        self.peers.insert(trust_domain.clone(), Arc::new(Peer { cluster, trust_domain, anchors, alive: peer.alive }));
        Ok(())
    }
}

fn read_endpoint(endpoint: &wire::Endpoint) -> Result<Arc<Endpoint>, String> {
    let inbound = endpoint.inbound.parse().map_err(|_| format!("endpoint {:?} has no address", endpoint.id))?;
    Ok(Arc::new(Endpoint { id: endpoint.id.as_str().into(), inbound, ready: endpoint.ready }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(key: &str, kind: Kind) -> Resource {
        Resource { key: key.into(), changed_at_ms: 0, kind: Some(kind) }
    }

    fn peer(cluster: &str, trust_domain: &str) -> Resource {
        let peer = wire::Peer { cluster: cluster.into(), trust_domain: trust_domain.into(), ..Default::default() };
        resource(&format!("peer/{cluster}"), Kind::Peer(peer))
    }

    fn build(resources: &[Resource]) -> (Tables, Vec<String>) {
        Tables::build(1, resources.iter(), &"east.example".parse().unwrap())
    }

    #[test]
    fn a_peer_with_our_own_trust_domain_is_left_out() {
        let (tables, problems) = build(&[peer("liar", "EAST.example")]);
        assert!(tables.peers.is_empty());
        assert!(problems[0].contains("own trust domain"), "{problems:?}");
    }

    #[test]
    fn of_two_links_to_one_trust_domain_the_first_by_name_counts() {
        let (tables, problems) = build(&[peer("a", "west.example"), peer("b", "west.example")]);
        assert_eq!(tables.peers[&"west.example".parse().unwrap()].cluster.as_str(), "a");
        assert_eq!(problems.len(), 1);
    }

    #[test]
    fn an_export_keeps_only_the_endpoints_that_serve_its_port() {
        let endpoint = |id: &str, ports: Vec<u32>| wire::Endpoint {
            id: id.into(),
            inbound: "127.0.0.1:1".into(),
            ready: true,
            ports,
        };
        let export = wire::Export {
            namespace: "shop".into(),
            name: "checkout".into(),
            port: 80,
            clusters: vec!["west".into()],
            endpoints: vec![endpoint("all", vec![]), endpoint("this", vec![80]), endpoint("other", vec![81])],
        };
        let (tables, problems) = build(&[resource("export/shop/checkout/80", Kind::Export(export))]);
        assert_eq!(problems, Vec::<String>::new());
        let ids: Vec<_> = tables.exports.values().next().unwrap().endpoints.iter().map(|e| e.id.to_string()).collect();
        assert_eq!(ids, ["all", "this"]);
    }

    #[test]
    fn an_export_that_cannot_be_read_lets_nothing_in() {
        for (name, port, address) in [("Checkout", 80, "127.0.0.1:1"), ("checkout", 0, "127.0.0.1:1"), ("a", 80, "x")] {
            let endpoints = vec![wire::Endpoint { inbound: address.into(), ..Default::default() }];
            let export = wire::Export {
                namespace: "shop".into(),
                name: name.into(),
                port,
                clusters: vec!["west".into()],
                endpoints,
            };
            let (tables, problems) = build(&[resource("export/x", Kind::Export(export))]);
            assert!(tables.exports.is_empty());
            assert_eq!(problems.len(), 1);
        }
    }
}
