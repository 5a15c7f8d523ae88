//! Services that several clusters offer as one: MCS (`<name>.<namespace>.svc.clusterset.local`) and federated ones.
//!
//! Namespace sameness: what bears one name in one namespace is one service, if its own cluster exports it. This
//! cluster's Service takes part when it is exported or federated, never merely because a peer uses its name.

use std::collections::BTreeMap;

use hawser_api::{ServiceKey, labels};

use super::conflicts::{self, Exporter, Settled};
use super::exports::{Export, labelled};
use super::mirrors::{Mirror, Mirrors, Standing};
use super::names;
use crate::catalog::standard::{self, Standard};
use crate::world::{Objects, World};

/// One service of the clusterset.
#[derive(Debug)]
pub struct Set<'m> {
    /// Name and namespace that all have in common.
    pub key: ServiceKey,
    /// This cluster takes part.
    pub local: bool,
    /// This cluster exports it; otherwise it takes part only as federated, or not at all.
    pub exported: bool,
    /// The peers' parts, by cluster.
    pub mirrors: Vec<&'m Mirror>,
    /// At least one of them says that it is federated.
    pub federated: bool,
    /// What its clusters agree on, or is settled between them; those that withdrew it have no say.
    pub settled: Settled,
    /// Where its names are answered.
    pub at: At,
}

impl Set<'_> {
    /// Any cluster exports it still, as far as is known: it is to be imported.
    pub fn offered(&self) -> bool {
        self.exported || self.mirrors.iter().any(|mirror| mirror.standing != Standing::Withdrawn)
    }

    /// The local name of what stands for all of it.
    pub fn own_key(&self) -> Option<ServiceKey> {
        own_key(&self.key, self.federated)
    }
}

/// Where the names of a [`Set`] are answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// By a destination of its own with this local name.
    Own(ServiceKey),
    /// By the one destination that there is anyway.
    Existing(ServiceKey),
    /// Nowhere: why.
    Nowhere(String),
}

/// All services of the clusterset, by their common name.
pub fn sets<'m>(
    world: &World,
    objects: &Objects,
    exports: &BTreeMap<ServiceKey, Export>,
    mirrors: &'m Mirrors,
) -> Vec<Set<'m>> {
    let mut groups: BTreeMap<ServiceKey, Vec<&Mirror>> = BTreeMap::new();
    for mirror in mirrors.by_name.values() {
        groups.entry(mirror.same_as()).or_default().push(mirror);
    }
    let federated_here = |key: &ServiceKey| objects.services.get(key).is_some_and(|s| labelled(s, labels::FEDERATED));
    let exported_here = |key: &ServiceKey| exports.get(key).is_some_and(|export| export.invalid.is_none());
    for key in objects.services.keys().filter(|key| federated_here(key) || exported_here(key)) {
        groups.entry(key.clone()).or_default();
    }
    groups
        .into_iter()
        .map(|(key, mut parts)| {
            parts.sort_by(|a, b| a.cluster.cmp(&b.cluster));
            let local = federated_here(&key) || exported_here(&key);
            let federated = federated_here(&key) || parts.iter().any(|part| part.offer.federated);
            let own = local.then(|| own_account(objects, exports, &key));
            let settled = settled(world, objects, own.as_ref(), &parts);
            let at = place(objects, mirrors, &key, local, federated, &parts);
            let exported = exported_here(&key);
            Set { key, local, exported, mirrors: parts, federated, settled, at }
        })
        .collect()
}

/// This cluster's account of its Service, and since when it exports it.
fn own_account(objects: &Objects, exports: &BTreeMap<ServiceKey, Export>, key: &ServiceKey) -> (i64, Standard) {
    if let Some(export) = exports.get(key).filter(|export| export.invalid.is_none()) {
        return (export.exported_at_us, export.standard.clone());
    }
    (0, objects.services.get(key).map(|service| standard::of(service, None)).unwrap_or_default())
}

fn settled(world: &World, objects: &Objects, own: Option<&(i64, Standard)>, parts: &[&Mirror]) -> Settled {
    let own = own.map(|(since_us, standard)| Exporter {
        cluster: &world.cluster,
        domain: &world.domain,
        since_us: *since_us,
        standard,
    });
    let offered = parts.iter().filter(|part| part.standing != Standing::Withdrawn);
    let peers = offered.filter_map(|part| {
        Some(Exporter {
            cluster: &part.cluster,
            domain: &objects.links.get(&part.cluster)?.spec.trust_domain,
            since_us: part.offer.exported_at_us,
            standard: &part.offer.standard,
        })
    });
    conflicts::settle(own.into_iter().chain(peers).collect())
}

/// The Services that may give the service of this name its addresses.
pub fn derived_keys(key: &ServiceKey) -> impl Iterator<Item = ServiceKey> {
    [false, true].into_iter().filter_map(|federated| own_key(key, federated))
}

fn own_key(key: &ServiceKey, federated: bool) -> Option<ServiceKey> {
    let name = names::with_suffix(key.name.as_str(), if federated { "-federated" } else { "-clusterset" })?;
    Some(ServiceKey { namespace: key.namespace.clone(), name })
}

#[expect(clippy::too_many_arguments, reason = "one pure rule over what its only caller has just worked out")]
fn place(
    objects: &Objects,
    mirrors: &Mirrors,
    key: &ServiceKey,
    local: bool,
    federated: bool,
    parts: &[&Mirror],
) -> At {
    let offered = parts.iter().filter(|part| part.standing != Standing::Withdrawn).count() + usize::from(local);
    if !federated && offered <= 1 {
        let offered = parts.iter().find(|part| part.standing != Standing::Withdrawn).or(parts.first());
        return match offered {
            _ if local => At::Existing(key.clone()),
            Some(part) => At::Existing(part.key.clone()),
            None => At::Nowhere("nobody offers it".to_owned()),
        };
    }
    let Some(own) = own_key(key, federated) else { return At::Nowhere(format!("{key} leaves no room for a name")) };
    if objects.services.contains_key(&own) || mirrors.by_name.contains_key(&own) {
        return At::Nowhere(format!("{own} is already the name of something else: rename that"));
    }
    At::Own(own)
}
