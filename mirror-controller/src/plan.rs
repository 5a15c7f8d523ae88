//! Pure: what is known → what is to be.
//!
//! ```text
//! world ─▶ local (services, endpoints, their proxies)
//!       ─▶ exports (who may have what)      ─▶ catalogs, Export and Inbound resources
//!       ─▶ mirrors (peers' offers, renamed) ─▶ mirror objects
//!       ─▶ clusterset (who takes part, settled by conflicts) ─▶ hosts ─▶ imports
//!       ─▶ destinations (local, mirrors, clusterset, hosts) ─▶ Destination resources
//!       ─▶ peers                            ─▶ Peer resources
//!       ─▶ statuses
//! plan ─▶ owned (every object that should exist, for apply)
//! what validators say ─▶ proof (what peers and the trust anchor are told)
//! ```
//!
//! The same world gives the same plan, whatever happened before.

pub mod bundle;
pub mod clocks;
pub mod clusterset;
pub mod conflicts;
pub mod destinations;
pub mod exports;
pub mod hosts;
pub mod imports;
pub mod local;
pub mod made;
pub mod mirrors;
pub mod names;
pub mod owned;
pub mod proof;
pub mod record;
pub mod statuses;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hawser_api::objects::Link;
use hawser_api::proto::{catalog, discovery};
use hawser_api::{ClusterName, Namespace, ServiceKey, labels};

pub use owned::owned;

use crate::status::Statuses;
use crate::world::{Objects, PeerState, World};

/// Resources by key.
pub type Resources = BTreeMap<String, discovery::resource::Kind>;

/// What is to be.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// What each linked cluster is offered.
    pub catalogs: BTreeMap<ClusterName, BTreeMap<ServiceKey, catalog::Service>>,
    /// What every proxy gets.
    pub destinations: Resources,
    /// What single proxies get, by the proxy's name ([`local::Fronting::name`]).
    pub inbound: BTreeMap<String, Resources>,
    /// What gateways get.
    pub exports: Resources,
    /// What proxies and gateways get.
    pub peers: Resources,
    /// Mirror objects, by their local name.
    pub mirrors: BTreeMap<ServiceKey, mirrors::MirrorObject>,
    /// ServiceImports with what gives them addresses and endpoints, by name.
    pub imports: BTreeMap<ServiceKey, imports::ImportObject>,
    /// Linked clusters of which it is known what they offer. What stands of others stays.
    pub heard: BTreeSet<ClusterName>,
    /// What users read.
    pub statuses: Statuses,
}

/// Decides everything. `None` while the user's objects, or what was last known of a linked cluster, have not been read:
/// nothing may be concluded from that, least of all that there is nothing.
pub fn plan(world: &World) -> Option<Plan> {
    let objects = world.objects.as_deref()?;
    if objects.links.keys().any(|link| !world.peers.contains_key(link)) {
        return None;
    }
    let local = local::local(world, objects);
    let exports = exports::exports(world, objects);
    let mirrors = mirrors::mirrors(world, objects);
    let sets = clusterset::sets(world, objects, &exports, &mirrors);
    let hosts = hosts::hosts(world, objects, &local, &mirrors, &sets);
    let mut plan = Plan {
        catalogs: exports::catalogs(world, objects, &exports, &local),
        inbound: exports::inbound(objects, &exports, &local),
        exports: exports::gateway_tables(world, objects, &exports, &local),
        peers: peers(world, objects),
        mirrors: mirrors::objects(world, objects, &mirrors),
        heard: heard(world, objects),
        ..Plan::default()
    };
    plan.destinations = destinations::destinations(
        world,
        objects,
        &destinations::Parts { local: &local, mirrors: &mirrors, sets: &sets, hosts: &hosts },
    );
    plan.statuses = statuses::statuses(
        world,
        objects,
        &statuses::Parts { local: &local, exports: &exports, mirrors: &mirrors, sets: &sets, hosts: &hosts },
    );
    plan.imports = imports::imports(world, objects, &imports::Parts { local: &local, sets: &sets, hosts: &hosts });
    Some(plan)
}

fn heard(world: &World, objects: &Objects) -> BTreeSet<ClusterName> {
    let heard = |name: &&ClusterName| world.peers.get(*name).is_some_and(|peer| peer.heard);
    objects.links.keys().filter(heard).cloned().collect()
}

/// One Peer a Link.
fn peers(world: &World, objects: &Objects) -> Resources {
    let mut peers = Resources::new();
    for (name, link) in &objects.links {
        let state = world.peers.get(name);
        let gateways = link.spec.gateways.iter().map(|gateway| discovery::PeerGateway {
            name: gateway.name.to_string(),
            address: gateway.address.to_string(),
            // A gateway that has not been probed yet is as good as any.
            down: state.and_then(|state| state.gateways.get(&gateway.name)).is_some_and(|known| !known.alive),
        });
        let peer = discovery::Peer {
            cluster: name.to_string(),
            trust_domain: link.spec.trust_domain.to_string(),
            gateways: gateways.collect(),
            transport: link.spec.transport.as_str().to_owned(),
            bundle: document(link, state),
            region: region(world, objects, name),
            alive: state.is_some_and(|state| state.alive),
        };
        peers.insert(format!("peer/{name}"), discovery::resource::Kind::Peer(peer));
    }
    peers
}

/// The peer's anchors in force; those of the Link where the Link has just become another's.
fn document(link: &Link, state: Option<&Arc<PeerState>>) -> String {
    let known = state.and_then(|state| state.bundle.as_ref());
    let known = known.filter(|known| known.domain == link.spec.trust_domain);
    known.map_or_else(|| link.spec.bundle.clone().unwrap_or_default(), |known| known.document.clone())
}

/// A cluster's region: what this cluster's own objects say, else what the peer says.
fn region(world: &World, objects: &Objects, cluster: &ClusterName) -> String {
    if *cluster == world.cluster {
        return objects.cluster.as_ref().map(|cluster| cluster.spec.region.clone()).unwrap_or_default();
    }
    let declared = objects.links.get(cluster).map(|link| link.spec.region.clone()).unwrap_or_default();
    if !declared.is_empty() {
        return declared;
    }
    world.peers.get(cluster).map(|state| state.catalog.region.clone()).unwrap_or_default()
}

/// `checkout.shop.svc.cluster.local`
fn cluster_name(service: &ServiceKey) -> String {
    format!("{}.{}.svc.cluster.local", service.name, service.namespace)
}

/// `checkout.shop.svc.clusterset.local`
fn clusterset_name(service: &ServiceKey) -> String {
    format!("{}.{}.svc.clusterset.local", service.name, service.namespace)
}

/// Namespaces that are never taken from a peer, nor exported from: their names mean something to a cluster itself.
fn reserved(namespace: &Namespace) -> bool {
    namespace.as_str() == labels::SYSTEM_NAMESPACE || namespace.as_str().starts_with("kube-")
}

#[cfg(test)]
pub(crate) mod tests;
