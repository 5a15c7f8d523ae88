//! Peers' offers under local names: what is taken, what is refused and why.

use std::collections::BTreeMap;
use std::sync::Arc;

use hawser_api::names::{LABEL_MAX, NameError};
use hawser_api::objects::Link;
use hawser_api::objects::Metadata;
use hawser_api::objects::core::{EndpointSlice, Service};
use hawser_api::objects::link::{Import, RefusedImport};
use hawser_api::{ClusterName, Namespace, ServiceKey, ServiceName, labels};

use super::{made, names, reserved};
use crate::world::{Objects, Offer, PeerState, World};

/// How many mirrors one peer may cause; its other offers are refused.
pub const MIRRORS_MAX: usize = 10_000;

/// Whether a mirror can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Offered, and the peer's lease is fresh.
    Live,
    /// Offered when last heard; the lease is over.
    Stale,
    /// Not offered any more; the name is kept so that callers are told why.
    Withdrawn,
}

/// One peer's service under its local name.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// The local name.
    pub key: ServiceKey,
    /// The peer.
    pub cluster: ClusterName,
    /// The namespace that the peer's is called here.
    pub namespace: Namespace,
    /// What it offers.
    pub offer: Arc<Offer>,
    /// Whether it can be called.
    pub standing: Standing,
}

impl Mirror {
    /// The peer's service by its own name in the local namespace: what MCS calls the same service.
    pub fn same_as(&self) -> ServiceKey {
        ServiceKey { namespace: self.namespace.clone(), name: self.offer.service.name.clone() }
    }
}

/// All mirrors by local name, and what each peer's offers were refused for.
#[derive(Debug, Default)]
pub struct Mirrors {
    /// By local name.
    pub by_name: BTreeMap<ServiceKey, Mirror>,
    /// By peer: offers that are not mirrored.
    pub refused: BTreeMap<ClusterName, Vec<RefusedImport>>,
}

/// Decides what is mirrored, under which names.
pub fn mirrors(world: &World, objects: &Objects) -> Mirrors {
    let mut mirrors = Mirrors::default();
    let mut claims: BTreeMap<ServiceKey, Vec<Mirror>> = BTreeMap::new();
    for (cluster, link) in &objects.links {
        let Some(state) = world.peers.get(cluster) else { continue };
        let refused = mirrors.refused.entry(cluster.clone()).or_default();
        refused.extend(state.catalog.refused.iter().cloned());
        let offers = standing(state).take(MIRRORS_MAX * 2);
        for (offer, standing) in offers {
            match local_name(cluster, link, offer) {
                Ok((key, namespace)) => {
                    let mirror = Mirror {
                        key: key.clone(),
                        cluster: cluster.clone(),
                        namespace,
                        offer: offer.clone(),
                        standing,
                    };
                    claims.entry(key).or_default().push(mirror);
                }
                Err(reason) if standing != Standing::Withdrawn => {
                    refused.push(RefusedImport { service: offer.service.to_string(), reason });
                }
                Err(_) => {}
            }
        }
    }
    for (key, claim) in claims {
        if objects.namespaces.as_ref().is_some_and(|namespaces| !namespaces.contains(&key.namespace)) {
            refuse_without_namespace(&mut mirrors, &key, &claim);
            continue;
        }
        settle(objects, &mut mirrors, key, claim);
    }
    mirrors
}

fn standing(state: &PeerState) -> impl Iterator<Item = (&Arc<Offer>, Standing)> {
    let offered = if state.alive { Standing::Live } else { Standing::Stale };
    let offers = state.catalog.offers.values().map(move |offer| (offer, offered));
    offers.chain(state.catalog.withdrawn.values().map(|offer| (offer, Standing::Withdrawn)))
}

/// A namespace is never made: what is in it would be governed by a peer's choice of names.
fn refuse_without_namespace(mirrors: &mut Mirrors, key: &ServiceKey, claim: &[Mirror]) {
    for mirror in claim.iter().filter(|mirror| mirror.standing != Standing::Withdrawn) {
        let reason = format!(
            "there is no namespace {} here: make it, or map {} to another in the Link's spec.import.namespaces",
            key.namespace, mirror.offer.service.namespace
        );
        let refused = mirrors.refused.entry(mirror.cluster.clone()).or_default();
        refused.push(RefusedImport { service: mirror.offer.service.to_string(), reason });
    }
}

/// One name, one service. A local Service is never displaced; of several mirrors none is guessed, because a peer could
/// choose its names so as to stand in the place of another peer's.
fn settle(objects: &Objects, mirrors: &mut Mirrors, key: ServiceKey, claim: Vec<Mirror>) {
    let mut refuse = |mirror: &Mirror, reason: String| {
        if mirror.standing == Standing::Withdrawn {
            return;
        }
        let refused = mirrors.refused.entry(mirror.cluster.clone()).or_default();
        refused.push(RefusedImport { service: mirror.offer.service.to_string(), reason });
    };
    if objects.services.contains_key(&key) {
        for mirror in &claim {
            refuse(mirror, format!("its mirror would be called {key}, which is a Service of this cluster"));
        }
        return;
    }
    let standing: Vec<&Mirror> = claim.iter().filter(|mirror| mirror.standing != Standing::Withdrawn).collect();
    if standing.len() > 1 {
        for mirror in &standing {
            let other = standing
                .iter()
                .find(|other| other.cluster != mirror.cluster || other.offer.service != mirror.offer.service);
            let other = other.map(|other| format!("{} of {}", other.offer.service, other.cluster)).unwrap_or_default();
            refuse(
                mirror,
                format!("its mirror would be called {key}, and so would that of {other}: set spec.import.nameTemplate"),
            );
        }
        return;
    }
    let chosen = standing.first().copied().or(claim.first()).cloned();
    mirrors.by_name.extend(chosen.map(|mirror| (key, mirror)));
}

/// Local name and namespace of an offer, or why it is not taken.
fn local_name(cluster: &ClusterName, link: &Link, offer: &Offer) -> Result<(ServiceKey, Namespace), String> {
    let namespace = local_namespace(&link.spec.import, &offer.service.namespace)?;
    if offer.service.namespace.as_str() == "default" && offer.service.name.as_str() == "kubernetes" {
        return Err("default/kubernetes is every cluster's own API server".to_owned());
    }
    let template = link.spec.import.name_template.as_deref().unwrap_or("{service}-{cluster}");
    let name = mirror_name(template, cluster, offer.service.name.as_str())?;
    Ok((ServiceKey { namespace: namespace.clone(), name }, namespace))
}

/// By the template; where that is too long, the service's own name is cut, so that what tells peers apart stays whole and
/// none can choose its names to stand in another's place.
fn mirror_name(template: &str, cluster: &ClusterName, service: &str) -> Result<ServiceName, String> {
    let template = template.replace("{cluster}", cluster.as_str());
    let times = template.matches("{service}").count();
    let fixed = template.len() - times * "{service}".len();
    let room = LABEL_MAX.saturating_sub(fixed).checked_div(times).unwrap_or(LABEL_MAX);
    let service = names::fit(service, room).ok_or_else(|| {
        format!("its mirror cannot be named: {template:?} leaves {room} characters for the name of the service")
    })?;
    let name = template.replace("{service}", &service).parse();
    name.map_err(|error: NameError| format!("its mirror cannot be named: {error}"))
}

fn local_namespace(import: &Import, theirs: &Namespace) -> Result<Namespace, String> {
    let local = match &import.namespaces {
        None => theirs.clone(),
        Some(maps) => {
            let map = maps.iter().find(|map| map.from == *theirs);
            let map =
                map.ok_or_else(|| format!("namespace {theirs} is not among the Link's spec.import.namespaces"))?;
            map.to.clone().unwrap_or_else(|| theirs.clone())
        }
    };
    if reserved(&local) {
        return Err(format!("namespace {local} is reserved: map it to another in the Link's spec.import.namespaces"));
    }
    Ok(local)
}

/// What is written for one mirror.
#[derive(Debug, Clone, PartialEq)]
pub struct MirrorObject {
    /// The mirror's Service.
    pub service: Service,
    /// Where the peer's gateways are, one slice for each port number that they listen on.
    pub slices: Vec<EndpointSlice>,
}

/// The objects of everything that is offered. Labels and annotations are ours alone; addresses are the Link's gateways
/// and nothing that the peer said.
pub fn objects(world: &World, objects: &Objects, mirrors: &Mirrors) -> BTreeMap<ServiceKey, MirrorObject> {
    let offered = mirrors.by_name.iter().filter(|(_, mirror)| mirror.standing != Standing::Withdrawn);
    offered
        .filter_map(|(key, mirror)| {
            let link = objects.links.get(&mirror.cluster)?;
            let state = world.peers.get(&mirror.cluster)?;
            Some((key.clone(), object(mirror, link, state)))
        })
        .collect()
}

fn object(mirror: &Mirror, link: &Link, state: &PeerState) -> MirrorObject {
    let marks = BTreeMap::from([
        (labels::MANAGED_BY.to_owned(), labels::MANAGED_BY_HAWSER.to_owned()),
        (labels::MIRROR_OF_CLUSTER.to_owned(), mirror.cluster.to_string()),
    ]);
    let of = BTreeMap::from([(labels::MIRROR_OF_SERVICE.to_owned(), mirror.offer.service.to_string())]);
    let metadata = |name: String, labels: BTreeMap<String, String>| Metadata {
        name,
        namespace: Some(mirror.key.namespace.clone()),
        labels,
        annotations: of.clone(),
        ..Metadata::default()
    };
    let service = made::service(
        metadata(mirror.key.name.to_string(), marks.clone()),
        &mirror.offer.ports,
        &mirror.offer.standard,
    );
    let mut slice_marks = marks;
    slice_marks.insert(labels::SERVICE_NAME.to_owned(), mirror.key.name.to_string());
    let usable = mirror.standing == Standing::Live && mirror.offer.endpoints_ready > 0;
    let slices = made::gateway_slices(&metadata(mirror.key.name.to_string(), slice_marks), link, state, usable);
    MirrorObject { service, slices }
}
