//! A plan as it is given out: versioned, with resources that did not change shared between versions, so that what a
//! subscriber lacks is found by comparing pointers.

use std::collections::BTreeMap;
use std::sync::Arc;

use hawser_api::proto::catalog;
use hawser_api::proto::discovery::{Resource, Role, Update};
use hawser_api::{ClusterName, ServiceKey, TrustDomain};

use crate::plan::{Plan, Resources};
use crate::world::World;

/// Resources by key.
pub type Table = BTreeMap<String, Arc<Resource>>;

/// What is given out.
#[derive(Debug, Clone)]
pub struct Published {
    /// Grows with every change, also over restarts (it begins at the time of day in milliseconds).
    pub version: u64,
    /// For every proxy.
    pub destinations: Table,
    /// For single proxies.
    pub inbound: BTreeMap<String, Table>,
    /// For gateways.
    pub exports: Table,
    /// For proxies and gateways.
    pub peers: Table,
    /// What each linked cluster is offered.
    pub catalogs: BTreeMap<ClusterName, Arc<BTreeMap<ServiceKey, catalog::Service>>>,
    /// Whose trust domain is which link's.
    pub links: BTreeMap<TrustDomain, ClusterName>,
    /// This cluster's region.
    pub region: String,
}

/// The next version; `None` when nothing that is given out differs.
pub fn next(previous: Option<&Published>, plan: &Plan, world: &World) -> Option<Published> {
    let objects = world.objects.as_deref()?;
    let nothing = Table::new();
    let at_ms = world.changed_at_ms;
    let share = |new: &Resources, old: &Table| share(new, old, at_ms);
    let inbound = plan.inbound.iter().map(|(proxy, resources)| {
        let old = previous.and_then(|previous| previous.inbound.get(proxy)).unwrap_or(&nothing);
        (proxy.clone(), share(resources, old))
    });
    let catalogs = plan.catalogs.iter().map(|(cluster, offers)| {
        let old = previous.and_then(|previous| previous.catalogs.get(cluster)).filter(|old| ***old == *offers);
        (cluster.clone(), old.cloned().unwrap_or_else(|| Arc::new(offers.clone())))
    });
    let links = objects.links.iter().map(|(name, link)| (link.spec.trust_domain.clone(), name.clone()));
    let next = Published {
        version: previous.map_or_else(|| u64::try_from(at_ms).unwrap_or(0), |previous| previous.version) + 1,
        destinations: share(&plan.destinations, previous.map_or(&nothing, |p| &p.destinations)),
        inbound: inbound.collect(),
        exports: share(&plan.exports, previous.map_or(&nothing, |p| &p.exports)),
        peers: share(&plan.peers, previous.map_or(&nothing, |p| &p.peers)),
        catalogs: catalogs.collect(),
        links: links.collect(),
        region: objects.cluster.as_ref().map(|cluster| cluster.spec.region.clone()).unwrap_or_default(),
    };
    previous.is_none_or(|previous| differs(previous, &next)).then_some(next)
}

/// Takes over the old resource where its content is the same: its time of change stays what it was.
fn share(new: &Resources, old: &Table, at_ms: i64) -> Table {
    let one = |(key, kind): (&String, &hawser_api::proto::discovery::resource::Kind)| {
        let same = old.get(key).filter(|old| old.kind.as_ref() == Some(kind));
        let fresh = || Arc::new(Resource { key: key.clone(), changed_at_ms: at_ms, kind: Some(kind.clone()) });
        (key.clone(), same.cloned().unwrap_or_else(fresh))
    };
    new.iter().map(one).collect()
}

fn same(a: &Table, b: &Table) -> bool {
    a.len() == b.len() && a.values().zip(b.values()).all(|(a, b)| Arc::ptr_eq(a, b))
}

fn differs(a: &Published, b: &Published) -> bool {
    let inbound = a.inbound.len() == b.inbound.len()
        && a.inbound.iter().zip(&b.inbound).all(|((p, a), (q, b))| p == q && same(a, b));
    let catalogs = a.catalogs.len() == b.catalogs.len()
        && a.catalogs.iter().zip(&b.catalogs).all(|((p, a), (q, b))| p == q && Arc::ptr_eq(a, b));
    let tables = same(&a.destinations, &b.destinations) && same(&a.exports, &b.exports) && same(&a.peers, &b.peers);
    !(inbound && catalogs && tables && a.links == b.links && a.region == b.region)
}

impl Published {
    /// Everything that one subscriber gets.
    pub fn table(&self, role: Role, name: &str) -> Table {
        let mut table = self.peers.clone();
        match role {
            Role::Gateway => table.extend(self.exports.clone()),
            Role::Proxy => {
                table.extend(self.destinations.clone());
                table.extend(self.inbound.get(name).cloned().unwrap_or_default());
            }
            Role::Unspecified => {}
        }
        table
    }
}

/// What leads from `sent` to `wanted`; everything when nothing was sent yet.
pub fn update(version: u64, sent: Option<&Table>, wanted: &Table) -> Update {
    let nothing = Table::new();
    let known = sent.unwrap_or(&nothing);
    let lacks =
        |(key, resource): &(&String, &Arc<Resource>)| known.get(*key).is_none_or(|old| !Arc::ptr_eq(old, resource));
    Update {
        version,
        snapshot: sent.is_none(),
        changed: wanted.iter().filter(lacks).map(|(_, resource)| Resource::clone(resource)).collect(),
        removed: known.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect(),
    }
}
