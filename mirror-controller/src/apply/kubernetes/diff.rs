//! Pure: what should exist, what does → what is to be written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hawser_api::objects::core::{EndpointPortSpec, EndpointSpec, ServicePortSpec};
use hawser_api::objects::import::SessionAffinity;
use hawser_api::objects::{EndpointSlice, Metadata, Object, Service, ServiceImport};
use hawser_api::{ClusterName, Namespace, ServiceKey, labels};

use super::mark;
use crate::plan::Plan;
use crate::plan::owned::{Kind, ObjectKey, Owned, owned};
use crate::watch::kubernetes::fill::{Entry, Fill, Kept};
use crate::watch::kubernetes::kind::Kind as Watched;
use crate::watch::kubernetes::read::Name;

/// What is to be done about one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// It is not there.
    Create {
        /// Addresses that it had before somebody deleted it, to have again if they are free; those of an import's Service.
        addresses: Vec<IpAddr>,
    },
    /// It is ours, and not as it should be.
    Update {
        /// Its UID: of another incarnation nothing is known.
        uid: String,
        /// What is wanted was applied to it already, and somebody undid it.
        repair: bool,
    },
    /// It is ours, and somebody added ports to it. Those are theirs by the rules of server-side apply, and a mirror with
    /// ports that its peer does not offer is wrong, or with one without a name no longer valid: all are put back at once.
    Ports {
        /// Its UID.
        uid: String,
        /// Its state that was looked at.
        version: u64,
    },
    /// It is ours, and should not be there.
    Delete {
        /// Its UID.
        uid: String,
    },
    /// Something is there that is not ours; it stays.
    Collide,
}

/// One object, and what is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub key: ObjectKey,
    /// What.
    pub verb: Verb,
}

/// What belongs to one service: done in order, and left at the first failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Namespace and name of the Service.
    pub name: (Namespace, String),
    /// In the order in which it is done.
    pub changes: Vec<Change>,
}

impl Group {
    /// Somebody undid what was applied before, and nothing else is amiss.
    pub fn is_repair(&self) -> bool {
        let undone = |change: &Change| matches!(change.verb, Verb::Update { repair: true, .. } | Verb::Ports { .. });
        self.changes.iter().all(undone)
    }
}

/// A plan, and a digest of each object in it: made once a plan, compared often.
#[derive(Debug, Default)]
pub struct Wanted {
    /// The plan.
    pub plan: Arc<Plan>,
    digests: BTreeMap<(Kind, Namespace, String), String>,
}

impl Wanted {
    /// Of this plan.
    #[cfg(test)]
    pub fn new(plan: Arc<Plan>) -> Self {
        Self::default().next(plan)
    }

    /// Of the plan that follows. What is the same in both keeps its digest.
    #[must_use]
    pub fn next(mut self, plan: Arc<Plan>) -> Self {
        let former = owned(&self.plan);
        let mut former = former.iter().peekable();
        let mut digests = BTreeMap::new();
        // Both are in order.
        for (key, object) in owned(&plan) {
            while former.next_if(|(known, _)| *known < key).is_some() {}
            let same = former.next_if(|(known, _)| *known == key).is_some_and(|(_, known)| *known == object);
            let name = whole(&key);
            let known = same.then(|| self.digests.remove(&name)).flatten();
            digests.insert(name, known.unwrap_or_else(|| digest(&object)));
        }
        Self { plan, digests }
    }

    /// The digest of an object in it.
    pub fn digest(&self, key: &ObjectKey) -> Option<&str> {
        self.digests.get(&whole(key)).map(String::as_str)
    }
}

fn whole(key: &ObjectKey) -> (Kind, Namespace, String) {
    (key.kind, key.namespace.clone(), key.name.clone())
}

/// FNV-1a over the object's JSON: not for secrecy, only so that another object has another one.
fn digest(object: &Owned<'_>) -> String {
    let text = serde_json::to_vec(object).unwrap_or_default();
    let hash = text
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

/// For whom something may be made, or be taken away: Links, and Namespaces for what is of no single Link.
#[derive(Debug, Default)]
pub struct Links {
    // UID of each Link that stays and bears our finalizer.
    held: BTreeMap<String, String>,
    // UIDs of all Links, whatever becomes of them.
    all: BTreeSet<String>,
    // UID of each Namespace; `None` where it is not known which there are, or there are no ServiceImports.
    namespaces: Option<BTreeMap<String, String>>,
    // This cluster's own name.
    own: String,
    // UIDs of Links whose objects stay whatever the plan says: nothing has been heard of the peer yet, or what the Link
    // says is not in force.
    silent: BTreeSet<String>,
}

impl Links {
    /// `None`: which Links there are is not known, and nothing may be done.
    pub fn new(fill: &Fill, own: &ClusterName, heard: &BTreeSet<ClusterName>) -> Option<Self> {
        let mut links = Self { own: own.to_string(), ..Self::default() };
        links.all = fill.links()?.map(|link| link.facts.uid.clone()).collect();
        for link in fill.links()?.filter(|link| !link.facts.leaving) {
            if link.facts.held() {
                links.held.insert(link.name.to_owned(), link.facts.uid.clone());
            }
            if !heard.iter().any(|name| name.as_str() == link.name) {
                links.silent.insert(link.facts.uid.clone());
            }
        }
        if fill.is_listed(Watched::ServiceImport) && fill.is_listed(Watched::Namespace) {
            let uid = |(name, entry): (&Name, &Entry)| (name.1.clone(), entry.facts.uid.clone());
            links.namespaces = Some(fill.all(Watched::Namespace).map(uid).collect());
        }
        Some(links)
    }

    /// The UID to which this object is bound: its Link's, or, where it is of no single Link (an import of several
    /// clusters, and what serves it here), its Namespace's. `None`: it is not made now.
    pub fn owner(&self, metadata: &Metadata) -> Option<&str> {
        let of_namespace = || self.namespaces.as_ref()?.get(metadata.namespace_or_default()).map(String::as_str);
        match origin(metadata) {
            Origin::Mirror(cluster) => self.held.get(cluster).map(String::as_str),
            Origin::Import(Some(cluster)) if cluster != self.own => {
                of_namespace().and_then(|_| self.held.get(cluster)).map(String::as_str)
            }
            Origin::Import(_) => of_namespace(),
        }
    }

    /// Whether this object of ours stays though it is in no plan: of what it depends on too little is known.
    fn keeps(&self, made: &Metadata) -> bool {
        let Some(owner) = owner_of(made) else { return true };
        match origin(made) {
            // Any Link may be one of those that it is of.
            Origin::Import(_) if !self.all.contains(owner) => self.namespaces.is_none() || !self.silent.is_empty(),
            _ => self.silent.contains(owner),
        }
    }
}

/// What an object of ours is.
enum Origin<'m> {
    /// Of one peer's service.
    Mirror(&'m str),
    /// Of a service that several clusters may offer; of a slice, the cluster that serves it.
    Import(Option<&'m str>),
}

fn origin(metadata: &Metadata) -> Origin<'_> {
    let label = |label: &str| metadata.labels.get(label).map(String::as_str);
    match label(labels::MIRROR_OF_CLUSTER) {
        Some(cluster) => Origin::Mirror(cluster),
        None => Origin::Import(label(labels::MCS_SOURCE_CLUSTER)),
    }
}

/// What is to be written, by service, in order of name.
pub fn diff(wanted: &Wanted, links: &Links, fill: &Fill) -> Vec<Group> {
    let mut changes: BTreeMap<(Namespace, String), Vec<Change>> = BTreeMap::new();
    let mut add = |key: ObjectKey, verb: Verb| {
        let group = changes.entry((key.namespace.clone(), key.service.clone())).or_default();
        group.push(Change { key, verb });
    };
    let former = fill.former_addresses();
    for (key, object) in owned(&wanted.plan) {
        let Some(owner) = links.owner(object.metadata()) else { continue };
        let name = (key.namespace.to_string(), key.name.clone());
        let verb = match fill.get(watched(key.kind), &name) {
            None => Verb::Create { addresses: addresses(&key, &former) },
            Some(Entry { kept: Kept::Made(made), facts }) if has_others_ports(made, &object) => {
                Verb::Ports { uid: facts.uid.clone(), version: facts.version }
            }
            Some(Entry { kept, facts }) => match kept.made() {
                Some(made) => {
                    let applied = made.annotations.get(labels::APPLIED).map(String::as_str);
                    let same = owner_of(made) == Some(owner) && applied == wanted.digest(&key);
                    if same && covers(kept, &object) {
                        continue;
                    }
                    Verb::Update { uid: facts.uid.clone(), repair: same }
                }
                None => Verb::Collide,
            },
        };
        add(key, verb);
    }
    for (key, uid) in stale(wanted, links, fill) {
        add(key, Verb::Delete { uid });
    }
    let group = |(name, mut changes): ((Namespace, String), Vec<Change>)| {
        // What is made: the Service first. What goes: the Service last, so that it still says whose the rest is.
        changes.sort_by(|a, b| order(a).cmp(&order(b)));
        Group { name, changes }
    };
    changes.into_iter().map(group).collect()
}

fn addresses(key: &ObjectKey, former: &BTreeMap<ServiceKey, Vec<IpAddr>>) -> Vec<IpAddr> {
    let service = || ServiceKey::parse(key.namespace.as_str(), &key.name).ok();
    let service = (key.kind == Kind::Service).then(service).flatten();
    service.and_then(|service| former.get(&service).cloned()).unwrap_or_default()
}

fn order(change: &Change) -> (bool, u8, &str) {
    let rank = match change.key.kind {
        Kind::Service => 0,
        Kind::EndpointSlice => 1,
        Kind::ServiceImport => 2,
    };
    let deleted = matches!(change.verb, Verb::Delete { .. });
    (deleted, if deleted { 255 - rank } else { rank }, &change.key.name)
}

/// What is ours and not wanted.
fn stale(wanted: &Wanted, links: &Links, fill: &Fill) -> Vec<(ObjectKey, String)> {
    let mut stale = Vec::new();
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::ServiceImport] {
        for (name, entry) in fill.all(watched(kind)) {
            let Some(made) = entry.kept.made() else { continue };
            let Some(key) = key_of(kind, name, made) else { continue };
            if !links.keeps(made) && !entry.facts.leaving && wanted.digest(&key).is_none() {
                stale.push((key, entry.facts.uid.clone()));
            }
        }
    }
    stale
}

fn key_of(kind: Kind, name: &Name, made: &Metadata) -> Option<ObjectKey> {
    let service = match kind {
        Kind::Service | Kind::ServiceImport => name.1.clone(),
        // Somebody may have taken the label off.
        Kind::EndpointSlice => made.labels.get(labels::SERVICE_NAME).unwrap_or(&name.1).clone(),
    };
    Some(ObjectKey { namespace: name.0.parse().ok()?, service, kind, name: name.1.clone() })
}

/// The UID of the Link for which it was made, or of the Namespace.
pub fn owner_of(made: &Metadata) -> Option<&str> {
    mark::owner(&made.annotations, made.namespace_or_default(), &made.name)
}

/// The same kind, as it is watched.
pub fn watched(kind: Kind) -> Watched {
    match kind {
        Kind::Service => Watched::Service,
        Kind::EndpointSlice => Watched::EndpointSlice,
        Kind::ServiceImport => Watched::ServiceImport,
    }
}

/// Whether what is there says everything that is wanted. What others added beside it is theirs.
fn covers(kept: &Kept, wanted: &Owned<'_>) -> bool {
    let (Some(theirs), ours) = (kept.made(), wanted.metadata()) else { return false };
    let has = |all: &BTreeMap<String, String>, some: &BTreeMap<String, String>| {
        some.iter().all(|(key, value)| all.get(key) == Some(value))
    };
    if !has(&theirs.labels, &ours.labels) || !has(&theirs.annotations, &ours.annotations) {
        return false;
    }
    match (kept, wanted) {
        (Kept::Import(made), Owned::ServiceImport(wanted, _)) => covers_import(made, wanted),
        (Kept::Made(made), _) => match (made.as_ref(), wanted) {
            (Object::Service(made), Owned::Service(wanted)) => covers_service(made, wanted),
            (Object::EndpointSlice(made), Owned::EndpointSlice(wanted)) => covers_slice(made, wanted),
            _ => false,
        },
        _ => false,
    }
}

/// An import is ours as a whole: nobody has anything to add.
fn covers_import(made: &ServiceImport, wanted: &ServiceImport) -> bool {
    let plain = |import: &ServiceImport| {
        let mut spec = import.spec.clone();
        for port in &mut spec.ports {
            port.protocol.get_or_insert_with(|| protocol(None).to_owned());
        }
        spec.session_affinity = spec.session_affinity.or(Some(SessionAffinity::None));
        spec
    };
    plain(made) == plain(wanted)
}

fn covers_service(made: &Service, wanted: &Service) -> bool {
    let same = |made: &ServicePortSpec, wanted: &ServicePortSpec| {
        let target = wanted.target_port.is_none() || made.target_port == wanted.target_port;
        made.name == wanted.name
            && made.port == wanted.port
            && protocol(made.protocol.as_deref()) == protocol(wanted.protocol.as_deref())
            && made.app_protocol == wanted.app_protocol
            && target
    };
    // What the plan leaves open is the API server's to choose.
    let open = |made: &Option<String>, wanted: &Option<String>| wanted.is_none() || made == wanted;
    wanted.spec.ports.iter().all(|port| made.spec.ports.iter().any(|known| same(known, port)))
        && open(&made.spec.session_affinity, &wanted.spec.session_affinity)
        && open(&made.spec.traffic_distribution, &wanted.spec.traffic_distribution)
        && open(&made.spec.ip_family_policy, &wanted.spec.ip_family_policy)
}

fn has_others_ports(made: &Object, wanted: &Owned<'_>) -> bool {
    let (Object::Service(made), Owned::Service(wanted)) = (made, wanted) else { return false };
    let key = |port: &ServicePortSpec| (port.port, protocol(port.protocol.as_deref()).to_owned());
    let wanted: BTreeSet<_> = wanted.spec.ports.iter().map(key).collect();
    made.spec.ports.iter().any(|port| !wanted.contains(&key(port)))
}

fn covers_slice(made: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let port = |made: &EndpointPortSpec, wanted: &EndpointPortSpec| {
        made.name.as_deref().unwrap_or_default() == wanted.name.as_deref().unwrap_or_default()
            && made.port == wanted.port
            && protocol(made.protocol.as_deref()) == protocol(wanted.protocol.as_deref())
            && made.app_protocol == wanted.app_protocol
    };
    let endpoint = |made: &EndpointSpec, wanted: &EndpointSpec| {
        let ready = |endpoint: &EndpointSpec| endpoint.conditions.as_ref().and_then(|conditions| conditions.ready);
        made.addresses == wanted.addresses
            && ready(made).unwrap_or(true) == ready(wanted).unwrap_or(true)
            && made.hostname == wanted.hostname
    };
    let all = |same: usize, made: usize, wanted: usize| made == wanted && same == wanted;
    let ports = made.ports.iter().zip(&wanted.ports).filter(|(made, wanted)| port(made, wanted)).count();
    let endpoints =
        made.endpoints.iter().zip(&wanted.endpoints).filter(|(made, wanted)| endpoint(made, wanted)).count();
    made.address_type == wanted.address_type
        && all(ports, made.ports.len(), wanted.ports.len())
        && all(endpoints, made.endpoints.len(), wanted.endpoints.len())
}

fn protocol(protocol: Option<&str>) -> &str {
    protocol.unwrap_or("TCP")
}

#[cfg(test)]
mod tests;
