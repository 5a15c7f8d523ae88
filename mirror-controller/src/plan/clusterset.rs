//! Services that several clusters offer as one: MCS (`<name>.<namespace>.svc.clusterset.local`) and federated ones.
//!
//! Namespace sameness: what bears one name in one namespace is one service, if its own cluster exports it. This
//! cluster's Service takes part when it is exported or federated, never merely because a peer uses its name.

use std::collections::BTreeMap;

use hawser_api::{ServiceKey, labels};

use super::exports::{Export, labelled};
use super::mirrors::{Mirror, Mirrors, Standing};
use crate::world::{Objects, World};

/// One service of the clusterset.
#[derive(Debug)]
pub struct Set<'m> {
    /// Name and namespace that all have in common.
    pub key: ServiceKey,
    /// This cluster takes part.
    pub local: bool,
    /// Since when this cluster exports it, seconds since the epoch; 0: not said.
    pub local_since: i64,
    /// The peers' parts, by cluster.
    pub mirrors: Vec<&'m Mirror>,
    /// At least one of them says that it is federated.
    pub federated: bool,
    /// Where its names are answered.
    pub at: At,
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
    _world: &World,
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
            let local_since = exports.get(&key).map_or(0, |export| export.exported_at);
            let at = place(objects, mirrors, &key, local, federated, &parts);
            Set { key, local, local_since, mirrors: parts, federated, at }
        })
        .collect()
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
    let suffix = if federated { "federated" } else { "clusterset" };
    let Ok(name) = format!("{}-{suffix}", key.name).parse() else {
        return At::Nowhere(format!("{}-{suffix} would be longer than a name may be", key.name));
    };
    let own = ServiceKey { namespace: key.namespace.clone(), name };
    if objects.services.contains_key(&own) || mirrors.by_name.contains_key(&own) {
        return At::Nowhere(format!("{own} is already the name of something else: rename that"));
    }
    At::Own(own)
}
