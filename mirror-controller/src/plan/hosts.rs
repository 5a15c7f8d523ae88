//! Endpoints of headless services of the clusterset, each under a name of its own:
//! `<host>.<cluster>.<service>.<namespace>.svc.clusterset.local`.
//!
//! Clusters are no flat network, so that a far endpoint's own address would lead nowhere: each gets a local name that
//! stands for it, and through that an address here.

use std::collections::{BTreeMap, BTreeSet};

use hawser_api::names::LABEL_MAX;
use hawser_api::objects::link::RefusedImport;
use hawser_api::{ClusterName, ServiceKey};

use super::clusterset::Set;
use super::local::LocalService;
use super::mirrors::{Mirror, Mirrors, Standing};
use super::{clusterset_name, names};
use crate::catalog::standard::Host;
use crate::world::{Objects, World};

/// Endpoints of one peer that get an address here; each costs its listeners at every proxy.
pub const HOSTS_OF_PEER_MAX: usize = 4096;

/// One endpoint.
#[derive(Debug, Clone)]
pub struct Member<'p> {
    /// Its local name.
    pub key: ServiceKey,
    /// Where it is.
    pub cluster: ClusterName,
    /// Its name there, and what a tunnel names it by.
    pub host: Host,
    /// The peer's service that it belongs to; `None`: this cluster's own.
    pub mirror: Option<&'p Mirror>,
}

impl Member<'_> {
    /// The standard's name for it.
    pub fn dns_name(&self, set: &ServiceKey) -> String {
        format!("{}.{}.{}", self.host.name, self.cluster, clusterset_name(set))
    }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Hosts<'p> {
    /// By the common name of the service.
    pub by_set: BTreeMap<ServiceKey, Vec<Member<'p>>>,
    /// By peer: those that get no name.
    pub refused: BTreeMap<ClusterName, Vec<RefusedImport>>,
}

/// Names the ready endpoints of every service that is headless in the clusterset.
pub fn hosts<'p>(
    world: &World,
    objects: &Objects,
    local: &BTreeMap<ServiceKey, LocalService<'_>>,
    mirrors: &Mirrors,
    sets: &'p [Set<'_>],
) -> Hosts<'p> {
    let mut hosts = Hosts::default();
    let mut taken: BTreeSet<ServiceKey> = BTreeSet::new();
    let mut count: BTreeMap<&ClusterName, usize> = BTreeMap::new();
    for set in sets.iter().filter(|set| set.settled.standard.headless) {
        let own = local.get(&set.key).filter(|_| set.local).map(LocalService::hosts).unwrap_or_default();
        let mut members: Vec<Member<'p>> =
            own.into_iter().filter_map(|host| member(set, &world.cluster, host, None)).collect();
        for mirror in set.mirrors.iter().filter(|mirror| mirror.standing == Standing::Live) {
            for host in &mirror.offer.standard.hosts {
                let seen = count.entry(&mirror.cluster).or_default();
                *seen += 1;
                let named =
                    member(set, &mirror.cluster, host.clone(), Some(mirror)).filter(|_| *seen <= HOSTS_OF_PEER_MAX);
                members.extend(named);
            }
        }
        let free = |member: &Member<'_>| {
            !objects.services.contains_key(&member.key) && !mirrors.by_name.contains_key(&member.key)
        };
        members.retain(|member| free(member) && taken.insert(member.key.clone()));
        refuse(set, &members, &mut hosts.refused);
        hosts.by_set.insert(set.key.clone(), members);
    }
    hosts
}

fn member<'p>(set: &Set<'_>, cluster: &ClusterName, host: Host, mirror: Option<&'p Mirror>) -> Option<Member<'p>> {
    let suffix = format!("-{cluster}");
    let room = LABEL_MAX.checked_sub(suffix.len())?;
    let name = names::fit(&format!("{}-{}", set.key.name, host.name), room)?;
    let name = format!("{name}{suffix}").parse().ok()?;
    let key = ServiceKey { namespace: set.key.namespace.clone(), name };
    Some(Member { key, cluster: cluster.clone(), host, mirror })
}

/// One line a service: how many of its endpoints have no name.
fn refuse(set: &Set<'_>, members: &[Member<'_>], refused: &mut BTreeMap<ClusterName, Vec<RefusedImport>>) {
    for mirror in set.mirrors.iter().filter(|mirror| mirror.standing == Standing::Live) {
        let told = mirror.offer.standard.hosts.len();
        let named = members.iter().filter(|member| member.mirror.is_some() && member.cluster == mirror.cluster).count();
        if named < told {
            let reason = format!(
                "{} of its {told} endpoints get no name here: of one peer {HOSTS_OF_PEER_MAX} do, and none whose local name is taken",
                told - named
            );
            let refused = refused.entry(mirror.cluster.clone()).or_default();
            refused.push(RefusedImport { service: mirror.offer.service.to_string(), reason });
        }
    }
}
