//! Pure: what of a plan belongs into the cluster's one audit log, and what is to be told so that it is there.
//!
//! ```text
//! world, plan ─▶ facts ─┐
//!                       ├─▶ tell: what came, changed or went since the log was told ─▶ link, unlink, export, …
//! told before ──────────┘
//! ```
//!
//! The difference of two states is told, not what happened between them: whatever was lost on the way, also while the
//! trust anchor was down, the log says in the end what holds.

use std::collections::BTreeMap;

use aws_lc_rs::digest;
use hawser_api::proto::catalog;
use hawser_api::proto::issuer::AuditEvent;
use hawser_api::{ClusterName, ServiceKey};
use hawser_tunnel::join::authority;

use super::Plan;
use crate::world::{PeerBundle, PeerState, Source, World};

/// Facts that are told one by one; of more, one fact says how many there are, and changes with each of them.
pub const FACTS_MAX: usize = 16_384;
/// Longest detail of an event: the log takes 4 KiB of all of it.
const DETAIL_MAX: usize = 2000;

/// What a fact is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A cluster is linked, by its name and trust domain.
    Link,
    /// A service is exported.
    Export,
    /// A linked cluster's anchors, by its trust domain.
    Bundle,
}

impl Kind {
    /// The log's word for what came or changed, and for what went.
    fn events(self) -> (&'static str, &'static str) {
        match self {
            Self::Link => ("link", "unlink"),
            Self::Export => ("export", "unexport"),
            Self::Bundle => ("bundle", "bundle"),
        }
    }
}

/// What holds now, with its details.
pub type Facts = BTreeMap<(Kind, String), String>;

/// What the log was told: a hash of each fact's details, by its kind and name.
pub type Told = BTreeMap<String, String>;

/// One event, and what it makes of [`Told`].
#[derive(Debug, Clone, PartialEq)]
pub struct Telling {
    /// For the log.
    pub event: AuditEvent,
    /// The fact.
    pub key: String,
    /// Its hash; `None`: it is gone.
    pub hash: Option<String>,
}

/// What belongs into the log, by the plan and the world that it was made of.
pub fn facts(world: &World, plan: &Plan) -> Facts {
    let mut facts = links(world);
    facts.extend(exports(plan).into_iter().map(|(service, detail)| ((Kind::Export, service.to_string()), detail)));
    if facts.len() > FACTS_MAX {
        let more: String = facts.iter().skip(FACTS_MAX).map(|(key, detail)| format!("{key:?} {detail}")).collect();
        let last = format!("and {} more", facts.len() - FACTS_MAX);
        facts = facts.into_iter().take(FACTS_MAX).collect();
        facts.insert((Kind::Export, last), format!("too many to be told one by one: {}", hash(&more)));
    }
    facts
}

fn links(world: &World) -> Facts {
    let mut facts = Facts::new();
    for (name, link) in world.objects.iter().flat_map(|objects| &objects.links) {
        let domain = &link.spec.trust_domain;
        let gateways: Vec<_> = link.spec.gateways.iter().map(|gateway| gateway.address.to_string()).collect();
        facts.insert((Kind::Link, format!("{name} ({domain})")), format!("gateways {}", gateways.join(" ")));
        let bundle = world.peers.get(name).and_then(|peer: &std::sync::Arc<PeerState>| peer.bundle.as_ref());
        if let Some(bundle) = bundle.filter(|bundle| bundle.domain == *domain) {
            facts.insert((Kind::Bundle, domain.to_string()), anchors(name, bundle));
        }
    }
    facts
}

fn anchors(cluster: &ClusterName, held: &PeerBundle) -> String {
    if held.source == Source::OwnRoot {
        return format!("of {cluster}: under our own root");
    }
    let keys = held.bundle.x509_authorities.iter();
    let keys: Vec<_> = keys.map(|der| authority(der).map_or_else(|| "malformed".into(), |id| id.to_string())).collect();
    let (source, sequence) = (held.source.as_str(), held.bundle.sequence);
    format!("of {cluster}: from {source}, sequence {sequence}, keys {}", keys.join(" "))
}

/// Each service that somebody is offered: to whom, and which ports.
fn exports(plan: &Plan) -> BTreeMap<ServiceKey, String> {
    let mut all: BTreeMap<&ServiceKey, (Vec<&str>, &catalog::Service)> = BTreeMap::new();
    for (cluster, offers) in &plan.catalogs {
        for (service, offer) in offers {
            all.entry(service).or_insert_with(|| (Vec::new(), offer)).0.push(cluster.as_str());
        }
    }
    let detail = |(clusters, offer): (Vec<&str>, &catalog::Service)| {
        let ports: Vec<_> = offer.ports.iter().map(|port| port.port.to_string()).collect();
        format!("to {}; ports {}", clusters.join(" "), ports.join(" "))
    };
    all.into_iter().map(|(service, offered)| (service.clone(), detail(offered))).collect()
}

/// What is to be told, what went first: a Link's end before its successor.
pub fn tell(told: &Told, facts: &Facts, reporter: &str) -> Vec<Telling> {
    let name = |kind: Kind, subject: &str| format!("{} {subject}", kind.events().0);
    let known: BTreeMap<String, (Kind, &str, &str)> = facts
        .iter()
        .map(|((kind, subject), detail)| (name(*kind, subject), (*kind, subject.as_str(), detail.as_str())))
        .collect();
    let event = |event: &str, subject: &str, detail: &str| AuditEvent {
        event: event.to_owned(),
        subject: subject.to_owned(),
        detail: detail.chars().take(DETAIL_MAX).collect(),
        reporter: reporter.to_owned(),
    };
    let gone = told.keys().filter(|key| !known.contains_key(*key)).filter_map(|key| {
        let (word, subject) = key.split_once(' ')?;
        let kind = [Kind::Link, Kind::Export, Kind::Bundle].into_iter().find(|kind| kind.events().0 == word)?;
        let detail = if kind == Kind::Bundle { "trusted no more" } else { "" };
        Some(Telling { event: event(kind.events().1, subject, detail), key: key.clone(), hash: None })
    });
    let mut tellings: Vec<_> = gone.collect();
    for (key, (kind, subject, detail)) in known {
        let hash = hash(detail);
        if told.get(&key) != Some(&hash) {
            tellings.push(Telling { event: event(kind.events().0, subject, detail), key, hash: Some(hash) });
        }
    }
    tellings
}

/// Eight bytes are enough to notice a change.
fn hash(text: &str) -> String {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts_of(facts: &[(Kind, &str, &str)]) -> Facts {
        facts.iter().map(|(kind, name, detail)| ((*kind, (*name).to_owned()), (*detail).to_owned())).collect()
    }

    fn take(told: &mut Told, telling: Telling) -> (String, String, String) {
        match telling.hash {
            Some(hash) => drop(told.insert(telling.key, hash)),
            None => drop(told.remove(&telling.key)),
        }
        (telling.event.event, telling.event.subject, telling.event.detail)
    }

    fn told(told: &mut Told, facts: &Facts) -> Vec<(String, String, String)> {
        tell(told, facts, "spiffe://x/y").into_iter().map(|telling| take(told, telling)).collect()
    }

    fn lines(lines: &[(&str, &str, &str)]) -> Vec<(String, String, String)> {
        lines.iter().map(|(a, b, c)| ((*a).to_owned(), (*b).to_owned(), (*c).to_owned())).collect()
    }

    #[test]
    fn what_comes_changes_and_goes_is_told_once() {
        let mut log = Told::new();
        let all = [
            (Kind::Link, "east (east.test)", "gateways a"),
            (Kind::Export, "shop/web", "to east; ports 80"),
            (Kind::Bundle, "east.test", "sequence 1"),
        ];
        let begun = told(&mut log, &facts_of(&all));
        assert_eq!(begun.len(), 3);
        assert!(begun.contains(&lines(&[("link", "east (east.test)", "gateways a")])[0]));
        assert_eq!(told(&mut log, &facts_of(&all)), []);
        let mut rotated = all;
        rotated[2].2 = "sequence 2";
        assert_eq!(told(&mut log, &facts_of(&rotated)), lines(&[("bundle", "east.test", "sequence 2")]));
        let unexported = [rotated[0], rotated[2]];
        assert_eq!(told(&mut log, &facts_of(&unexported)), lines(&[("unexport", "shop/web", "")]));
        let gone = told(&mut log, &Facts::new());
        assert_eq!(gone, lines(&[("bundle", "east.test", "trusted no more"), ("unlink", "east (east.test)", "")]));
        assert_eq!(log, Told::new());
    }

    #[test]
    fn a_link_that_becomes_anothers_ends_first() {
        let mut log = Told::new();
        told(&mut log, &facts_of(&[(Kind::Link, "east (z.test)", "")]));
        let said = told(&mut log, &facts_of(&[(Kind::Link, "east (a.test)", "")]));
        assert_eq!(said, lines(&[("unlink", "east (z.test)", ""), ("link", "east (a.test)", "")]));
    }

    #[test]
    fn details_are_cut_and_a_change_behind_the_cut_is_told_all_the_same() {
        let long = "k".repeat(DETAIL_MAX);
        let mut log = Told::new();
        let of = |detail: &str| facts_of(&[(Kind::Bundle, "east.test", detail)]);
        assert_eq!(told(&mut log, &of(&format!("{long}1")))[0].2.len(), DETAIL_MAX);
        assert_eq!(told(&mut log, &of(&format!("{long}2"))).len(), 1);
    }

    proptest! {
        /// Whatever was told before, and wherever telling stopped, in the end the log has what holds and no more.
        #[test]
        fn the_log_says_in_the_end_what_holds(states in proptest::collection::vec(
            proptest::collection::btree_map((0..3usize, 0..4u8), 0..3u8, 0..8), 1..6), stops in proptest::collection::vec(0..8usize, 6)) {
            let kinds = [Kind::Link, Kind::Export, Kind::Bundle];
            let mut log = Told::new();
            for (state, stop) in states.iter().zip(stops) {
                let facts: Facts = state.iter()
                    .map(|((kind, name), detail)| ((kinds[*kind], name.to_string()), detail.to_string())).collect();
                // The trust anchor goes down after `stop` events.
                for telling in tell(&log, &facts, "").into_iter().take(stop) {
                    take(&mut log, telling);
                }
                let mut whole = log.clone();
                told(&mut whole, &facts);
                prop_assert_eq!(whole.len(), facts.len());
                let named = |(kind, name): &(Kind, String)| format!("{} {name}", kind.events().0);
                let held = facts.keys().map(named).all(|key| whole.contains_key(&key));
                prop_assert!(held);
                prop_assert_eq!(told(&mut whole, &facts), []);
            }
        }
    }
}
