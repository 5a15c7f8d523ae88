//! Pure: what validators said → what a peer is told, and what the trust anchor is told.
//!
//! What is not proved is not said: a validator that should be there and has not spoken lately is counted as silent, and
//! an anchor counts only where everybody who spoke holds it.

use std::collections::{BTreeMap, BTreeSet};

use hawser_api::TrustDomain;
use hawser_api::proto::catalog::{self, TrustAcknowledgement};
use hawser_api::proto::discovery::{LoadedAnchors, TrustReport};
use hawser_api::proto::issuer::{FabricReport, LinkedPeer, Validator};
use hawser_tunnel::report::AUTHORITIES_MAX;

use crate::fabric::{self, Kind, Known};
use crate::world::{Objects, World};

/// A validator that said nothing for longer is silent: it repeats itself every few seconds.
pub const FRESH_MS: i64 = 10_000;
/// All peers' bundles in one report; what is beyond it is left out. Ordinary ones are two kilobytes each.
const BUNDLES_MAX: usize = 4 << 20;

/// Every validator that should be there, heard or not, and who else is connected.
pub fn validators(world: &World, known: &Known, own: TrustReport, now_ms: i64) -> Vec<Validator> {
    let objects = world.objects.as_deref();
    let mut names: BTreeSet<fabric::Validator> = objects.map(expected).unwrap_or_default();
    names.extend(known.validators.iter().filter(|(_, heard)| heard.connected).map(|(name, _)| name.clone()));
    let mut all: Vec<_> = names.into_iter().map(|name| validator(known, name)).collect();
    all.push(Validator {
        name: world.cluster.to_string(),
        kind: Kind::MirrorController.as_str().to_owned(),
        connected: true,
        seen_ms: now_ms,
        trust: Some(own),
    });
    all
}

fn expected(objects: &Objects) -> BTreeSet<fabric::Validator> {
    let spec = objects.cluster.as_ref().map(|cluster| &cluster.spec);
    let gateways = spec.into_iter().flat_map(|spec| &spec.gateways).map(|g| (Kind::Gateway, g.name.to_string()));
    let proxies = spec.into_iter().flat_map(|spec| &spec.proxies).map(|p| (Kind::Proxy, p.name.to_string()));
    gateways.chain(proxies).collect()
}

fn validator(known: &Known, of: fabric::Validator) -> Validator {
    let heard = known.validators.get(&of);
    let (kind, name) = of;
    Validator {
        name,
        kind: kind.as_str().to_owned(),
        connected: heard.is_some_and(|heard| heard.connected),
        seen_ms: heard.map_or(0, |heard| heard.seen_ms),
        trust: heard.and_then(|heard| heard.trust.as_deref().cloned()),
    }
}

/// What it says counts: it is there, and spoke lately. What its clock says is not asked; it is ours.
fn speaks(validator: &Validator, now_ms: i64) -> Option<&TrustReport> {
    let fresh = validator.connected && now_ms.saturating_sub(validator.seen_ms).abs() <= FRESH_MS;
    validator.trust.as_ref().filter(|_| fresh)
}

/// What all of them together say of one trust domain.
pub fn acknowledgement(
    validators: &[Validator],
    domain: &TrustDomain,
    pinned: bool,
    now_ms: i64,
) -> TrustAcknowledgement {
    let speaking: Vec<&TrustReport> = validators.iter().filter_map(|validator| speaks(validator, now_ms)).collect();
    let of_domain = |report: &&TrustReport| loaded(report, domain).cloned().unwrap_or_default();
    let held: Vec<LoadedAnchors> = speaking.iter().map(of_domain).collect();
    let everywhere = |key: &&Vec<u8>| held.iter().all(|held| held.authorities.contains(*key));
    let authorities = held.first().map(|first| first.authorities.iter().filter(everywhere).cloned().collect());
    TrustAcknowledgement {
        sequence: held.iter().map(|held| held.sequence).min().unwrap_or_default(),
        authorities: authorities.unwrap_or_default(),
        dependences: dependences(validators, domain),
        validators: count(validators.len()),
        silent: count(validators.len() - speaking.len()),
        pinned,
        now_ms,
    }
}

/// The same but for the time, which changes always.
pub fn same(a: &TrustAcknowledgement, b: &TrustAcknowledgement) -> bool {
    *a == TrustAcknowledgement { now_ms: a.now_ms, ..b.clone() }
}

fn loaded<'r>(report: &'r TrustReport, domain: &TrustDomain) -> Option<&'r LoadedAnchors> {
    report.loaded.iter().find(|loaded| loaded.trust_domain == domain.as_str())
}

/// Summed over all, also over those that do not speak any more: what they had may still live. Under no name: what has
/// none, and what is too much.
fn dependences(validators: &[Validator], domain: &TrustDomain) -> Vec<catalog::Dependence> {
    let mut sums: BTreeMap<&[u8], (u64, i64)> = BTreeMap::new();
    let reports = validators.iter().filter_map(|validator| validator.trust.as_ref());
    for one in reports.flat_map(|report| &report.dependences).filter(|one| one.trust_domain == domain.as_str()) {
        let sum = sums.entry(&one.authority).or_default();
        *sum = (sum.0.saturating_add(one.live), sum.1.max(one.until_ms));
    }
    let (mut live, mut until_ms) = sums.remove(&[][..]).unwrap_or_default();
    let mut named: Vec<_> = sums.into_iter().collect();
    named.sort_by_key(|(_, (live, _))| std::cmp::Reverse(*live));
    for (_, rest) in named.split_off(named.len().min(AUTHORITIES_MAX)) {
        (live, until_ms) = (live.saturating_add(rest.0), until_ms.max(rest.1));
    }
    let wire =
        |(key, (live, until_ms)): (&[u8], (u64, i64))| catalog::Dependence { authority: key.to_vec(), live, until_ms };
    let rest = (live > 0).then_some((&[][..], (live, until_ms)));
    named.into_iter().chain(rest).map(wire).collect()
}

/// What the trust anchor is told. `None` before the user's objects are known: who should be there cannot be said.
pub fn report(world: &World, known: &Known, own: TrustReport, now_ms: i64) -> Option<FabricReport> {
    let objects = world.objects.as_deref()?;
    let mut room = BUNDLES_MAX;
    let peers = objects.links.iter().map(|(name, link)| {
        let state = world.peers.get(name);
        let trust = known.peers.get(name).cloned().unwrap_or_default();
        let mut peer = LinkedPeer {
            cluster: name.to_string(),
            trust_domain: link.spec.trust_domain.to_string(),
            alive: state.is_some_and(|state| state.alive),
            seen_ms: trust.seen_ms,
            acknowledgement: trust.acknowledgement,
            clock_ahead_ms: trust.clock_ahead_ms.unwrap_or_default(),
            clock_known: trust.clock_ahead_ms.is_some(),
            dated_ahead: trust.dated_ahead,
            ..LinkedPeer::default()
        };
        if let Some(bundle) = state.and_then(|state| state.bundle.as_deref()) {
            peer.bundle.clone_from(&bundle.document);
            bundle.source.as_str().clone_into(&mut peer.source);
            peer.trouble.clone_from(&bundle.trouble);
            (peer.offered_sequence, peer.refreshed_ms) = (bundle.offered, bundle.refreshed_ms);
        }
        match room.checked_sub(peer.bundle.len()) {
            Some(left) => room = left,
            None => peer.bundle.clear(),
        }
        peer
    });
    Some(FabricReport { peers: peers.collect(), validators: validators(world, known, own, now_ms) })
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_api::proto::discovery::Dependence;

    const NOW: i64 = 1_000_000;

    fn east() -> TrustDomain {
        "east.example".parse().unwrap()
    }

    fn holds(sequence: u64, keys: &[u8]) -> TrustReport {
        let authorities = keys.iter().map(|key| vec![*key; 32]).collect();
        let loaded = LoadedAnchors { trust_domain: "east.example".into(), sequence, authorities };
        TrustReport { loaded: vec![loaded], ..TrustReport::default() }
    }

    fn validator(name: &str, trust: Option<TrustReport>) -> Validator {
        Validator { name: name.into(), kind: "proxy".into(), connected: true, seen_ms: NOW - 1000, trust }
    }

    #[test]
    fn an_anchor_counts_only_where_everybody_holds_it() {
        let all = [validator("a", Some(holds(7, &[1, 2]))), validator("b", Some(holds(6, &[2, 3])))];
        let told = acknowledgement(&all, &east(), false, NOW);
        assert_eq!((told.sequence, told.validators, told.silent), (6, 2, 0));
        assert_eq!(told.authorities, [vec![2; 32]]);
        // One that has no anchors of the domain proves nothing for anybody.
        let lacking = [validator("a", Some(holds(7, &[1]))), validator("b", Some(TrustReport::default()))];
        let told = acknowledgement(&lacking, &east(), false, NOW);
        assert_eq!((told.sequence, told.authorities.len(), told.silent), (0, 0, 0));
    }

    #[test]
    fn who_is_gone_late_or_of_an_older_version_is_silent() {
        let good = validator("good", Some(holds(7, &[1])));
        let gone = Validator { connected: false, ..validator("gone", Some(holds(7, &[1]))) };
        let late = Validator { seen_ms: NOW - FRESH_MS - 1, ..validator("late", Some(holds(7, &[1]))) };
        let old = validator("old", None);
        let told = acknowledgement(&[good, gone, late, old], &east(), true, NOW);
        assert_eq!((told.validators, told.silent, told.pinned), (4, 3, true));
        assert_eq!(told.authorities, [vec![1; 32]]);
    }

    #[test]
    fn what_the_silent_had_still_counts_as_live() {
        let mut trust = holds(7, &[1]);
        let dependence = |key: Vec<u8>, live, domain: &str| Dependence {
            trust_domain: domain.into(),
            authority: key,
            live,
            until_ms: 5 + i64::try_from(live).unwrap(),
        };
        trust.dependences =
            vec![dependence(vec![1; 32], 2, "east.example"), dependence(vec![1; 32], 9, "north.example")];
        let gone = Validator { connected: false, ..validator("gone", Some(trust.clone())) };
        let told = acknowledgement(&[validator("a", Some(trust)), gone], &east(), false, NOW);
        let wire: Vec<_> = told.dependences.iter().map(|d| (d.authority.clone(), d.live, d.until_ms)).collect();
        assert_eq!(wire, [(vec![1; 32], 4, 7)]);
    }

    #[test]
    fn too_many_authorities_become_one_sum_without_a_name() {
        let mut trust = holds(7, &[1]);
        let one = |at: usize| Dependence {
            trust_domain: "east.example".into(),
            authority: at.to_be_bytes().to_vec(),
            live: 1,
            until_ms: 1,
        };
        trust.dependences = (0..100).map(one).collect();
        let told = acknowledgement(&[validator("a", Some(trust))], &east(), false, NOW).dependences;
        assert_eq!(told.len(), AUTHORITIES_MAX + 1);
        assert_eq!(told.iter().map(|d| d.live).sum::<u64>(), 100);
        assert!(told.last().unwrap().authority.is_empty());
    }

    #[test]
    fn who_should_be_there_comes_from_the_objects_and_is_listed_before_it_spoke() {
        let mut world = World::new("west".parse().unwrap(), "west.example".parse().unwrap());
        assert_eq!(report(&world, &Known::default(), TrustReport::default(), NOW), None);
        let text = "apiVersion: hawser.dev/v1alpha1\nkind: Cluster\nmetadata: {name: west}\nspec:\n  fabricDomain: example\n  \
                    gateways: [{name: g0, listen: 127.0.0.1:7443}]\n  \
                    proxies: [{name: web, namespace: shop, serviceAccount: web}]\n";
        world.objects = Some(std::sync::Arc::new(super::super::tests::objects(text)));
        let told = report(&world, &Known::default(), TrustReport::default(), NOW).unwrap();
        let names: Vec<_> =
            told.validators.iter().map(|v| (v.kind.as_str(), v.name.as_str(), v.connected, v.seen_ms)).collect();
        let own = ("mirror-controller", "west", true, NOW);
        assert_eq!(names, [("gateway", "g0", false, 0), ("proxy", "web", false, 0), own]);
    }
}
