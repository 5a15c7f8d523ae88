//! Path building over graphs of authorities: the cases of BetterTLS (Netflix/bettertls, suite `pathbuilding`), and the
//! graphs that rotation makes, each chain of them against a model that looks at every path.
//!
//! BetterTLS' own certificates say nothing here: their leaves are web servers', which the profile refuses before any path
//! is looked at. So its graphs are built anew with SVIDs, by the plain rules of SPIFFE where they are deeper than ours.
//! What does not fit into a chain of [`CHAIN_MAX`] is refused whole, and what fits is tried in every order.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is the report")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hawser_tunnel::testing::certificate::{Certificate, Key, extension as x, *};
use hawser_tunnel::testing::clock;
use hawser_tunnel::verify::{Anchor, CHAIN_MAX, Rules, Svid, VerifyError, verify};
use rustls_pki_types::CertificateDer;

const DOMAIN: &str = "east.example";
const ID: &str = "spiffe://east.example/ns/shop/sa/web";

/// From whom to whom an authority's certificate leads.
type Edge = (&'static str, &'static str);

/// What makes an edge invalid: BetterTLS' reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Expired,
    NameConstraints,
    BadEku,
    MissingBasicConstraints,
    NotACa,
    DeprecatedCrypto,
}

const FAULTS: [Fault; 6] = [
    Fault::Expired,
    Fault::NameConstraints,
    Fault::BadEku,
    Fault::MissingBasicConstraints,
    Fault::NotACa,
    Fault::DeprecatedCrypto,
];

/// Authorities with their keys; certificates between them are made when they are asked for, and kept.
struct World {
    keys: BTreeMap<&'static str, Key>,
    leaf_key: Key,
    now: SystemTime,
    rules: Rules,
}

impl World {
    fn new(edges: &[Edge], rules: Rules) -> Self {
        let names: BTreeSet<&str> = edges.iter().flat_map(|(from, to)| [*from, *to]).collect();
        let keys = names.into_iter().map(|name| (name, Key::p256())).collect();
        Self { keys, leaf_key: Key::p256(), now: clock(), rules }
    }

    fn leaf(&self, issuer: &'static str) -> CertificateDer<'static> {
        let key = &self.keys[issuer];
        Certificate::svid(ID, &self.leaf_key, issuer, key, self.now).signed_by(key)
    }

    fn edge(&self, (from, to): Edge, fault: Option<Fault>) -> CertificateDer<'static> {
        let (issuer, key) = (&self.keys[from], &self.keys[to]);
        let mut certificate = Certificate::authority(to, key, from, issuer, self.now);
        if self.rules == Rules::Fabric {
            certificate.set(x::BASIC, true, basic(true, Some(0)));
            certificate.set(x::NAMES, false, names(&[uri(&format!("spiffe://{DOMAIN}"))]));
            certificate.set(x::NAME_CONSTRAINTS, true, name_constraints(&[uri(DOMAIN)], &[]));
        }
        match fault {
            None => {}
            Some(Fault::Expired) => certificate.not_after = time(self.now - Duration::from_secs(60)),
            Some(Fault::NameConstraints) => {
                certificate.set(x::NAME_CONSTRAINTS, true, name_constraints(&[uri("bad.example")], &[]));
            }
            Some(Fault::BadEku) => certificate.set(x::EXTENDED, false, extended(&[4])),
            Some(Fault::MissingBasicConstraints) => certificate.unset(x::BASIC),
            Some(Fault::NotACa) => certificate.set(x::BASIC, true, basic(false, None)),
            // ecdsa-with-SHA1. Nobody here makes such signatures any more; that it is named is enough.
            Some(Fault::DeprecatedCrypto) => {
                let sha1 = sequence(&[oid(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1])]);
                let body = {
                    certificate.algorithm = Some(sha1.clone());
                    certificate.body(&sha1)
                };
                let signature = rcgen::SigningKey::sign(&issuer.pair, &body).unwrap();
                return assemble(&body, &sha1, &signature);
            }
        }
        certificate.signed_by(issuer)
    }

    fn anchor(&self, name: &'static str) -> Anchor {
        let key = &self.keys[name];
        let der = Certificate::authority(name, key, name, key, self.now).signed_by(key);
        let anchor = Anchor::read(&der, &DOMAIN.parse().unwrap()).unwrap();
        if self.rules == Rules::Spiffe { anchor.dedicated(Arc::default()) } else { anchor }
    }

    fn judge(&self, chain: &[CertificateDer<'_>], anchors: &[Anchor]) -> Result<Svid, VerifyError> {
        verify(chain, self.now, |domain| (domain.as_str() == DOMAIN).then_some(anchors))
    }
}

/// Whether valid edges lead from one of the sources to the leaf's issuer.
fn reachable(edges: &[Edge], sources: &[&'static str], issuer: &str) -> bool {
    let mut reached: BTreeSet<&str> = sources.iter().copied().collect();
    loop {
        let more: Vec<&str> =
            edges.iter().filter(|(from, to)| reached.contains(from) && !reached.contains(to)).map(|e| e.1).collect();
        if more.is_empty() {
            return reached.contains(issuer);
        }
        reached.extend(more);
    }
}

const LINEAR: &[Edge] = &[("Trust Anchor", "ICA"), ("ICA", "EE")];
const TWO_ROOTS: &[Edge] = &[("Root1", "ICA"), ("Root2", "ICA"), ("ICA", "EE")];
/// RFC 4158 section 2.3.
const FIGURE_SEVEN: &[Edge] =
    &[("Trust Anchor", "A"), ("Trust Anchor", "C"), ("A", "C"), ("C", "A"), ("A", "B"), ("C", "B"), ("B", "EE")];
/// RFC 4158 section 2.4, the part between the anchor and the leaf; BetterTLS sends two dozen certificates more.
const BRIDGE: &[Edge] = &[
    ("TA Z", "Bridge CA"),
    ("Bridge CA", "TA Z"),
    ("TA X", "Bridge CA"),
    ("Bridge CA", "TA X"),
    ("TA X", "L"),
    ("L", "N"),
    ("N", "EE"),
];

/// A case: graph, anchor, edges that are made invalid in each way, whether a path is left.
type Case = (&'static [Edge], &'static str, &'static [Edge], bool);

/// All cases of the suite but the bridge's to node D, which is its case to EE with other names.
const CASES: &[Case] = &[
    (LINEAR, "Trust Anchor", &[], true),
    (LINEAR, "Trust Anchor", &[("Trust Anchor", "ICA")], false),
    (LINEAR, "ICA", &[("Trust Anchor", "ICA")], true),
    (TWO_ROOTS, "Root1", &[], true),
    (TWO_ROOTS, "Root2", &[], true),
    (TWO_ROOTS, "Root1", &[("Root2", "ICA")], true),
    (TWO_ROOTS, "Root2", &[("Root1", "ICA")], true),
    (TWO_ROOTS, "Root1", &[("Root1", "ICA")], false),
    (TWO_ROOTS, "Root2", &[("Root2", "ICA")], false),
    (FIGURE_SEVEN, "Trust Anchor", &[], true),
    (FIGURE_SEVEN, "Trust Anchor", &[("Trust Anchor", "C"), ("A", "B")], true),
    (FIGURE_SEVEN, "Trust Anchor", &[("Trust Anchor", "A"), ("C", "B")], true),
    (BRIDGE, "TA Z", &[], true),
    (BRIDGE, "TA Z", &[("TA X", "Bridge CA")], true),
    (BRIDGE, "TA Z", &[("Bridge CA", "TA X")], false),
    (BRIDGE, "TA Z", &[("TA Z", "Bridge CA")], false),
];

/// In every way to make them invalid, and under both rules where the graph is no deeper than our profile.
#[test]
fn the_cases_of_bettertls_that_fit_into_a_chain_are_decided_as_it_says() {
    let (mut fit, mut refused_whole) = (0, 0);
    for (graph, source, invalid, must) in CASES {
        let (authorities, _): (Vec<Edge>, Vec<Edge>) = graph.iter().partition(|(_, to)| *to != "EE");
        let issuer = graph.last().unwrap().0;
        let model: Vec<Edge> = authorities.iter().filter(|edge| !invalid.contains(edge)).copied().collect();
        assert_eq!(reachable(&model, &[source], issuer), *must, "the model: {graph:?} {source} {invalid:?}");
        let shallow = authorities.iter().all(|(_, to)| *to == issuer) && *source != issuer;
        let rules = if shallow { &[Rules::Spiffe, Rules::Fabric][..] } else { &[Rules::Spiffe] };
        for (rules, fault) in rules.iter().flat_map(|rules| FAULTS.map(|fault| (*rules, fault))) {
            let world = World::new(graph, rules);
            let mut chain = vec![world.leaf(issuer)];
            chain.extend(authorities.iter().map(|edge| world.edge(*edge, invalid.contains(edge).then_some(fault))));
            let verdict = world.judge(&chain, &[world.anchor(source)]);
            if chain.len() > CHAIN_MAX {
                assert_eq!(verdict.unwrap_err().reason(), "too_large");
                refused_whole += 1;
            } else {
                assert_eq!(verdict.is_ok(), *must, "{graph:?} {source} {invalid:?} {fault:?} {rules:?}: {verdict:?}");
                fit += 1;
            }
        }
    }
    assert_eq!((fit, refused_whole), (9 * 6 + 8 * 6, 7 * 6));
}

/// All ordered selections of up to `most` of these.
fn selections(of: usize, most: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    let mut last = all.clone();
    for _ in 0..most {
        last = last
            .iter()
            .flat_map(|chosen| {
                (0..of)
                    .filter(|next| !chosen.contains(next))
                    .map(|next| [&chosen[..], &[next]].concat())
                    .collect::<Vec<_>>()
            })
            .collect();
        all.extend(last.clone());
    }
    all
}

/// Whatever of a graph a peer sends, in whatever order, with any one edge expired: the verdict is the model's.
fn every_chain_is_decided_as_the_model_says(graph: &'static [Edge], source: &'static str) -> usize {
    let (authorities, _): (Vec<Edge>, Vec<Edge>) = graph.iter().partition(|(_, to)| *to != "EE");
    let issuer = graph.last().unwrap().0;
    let world = World::new(graph, Rules::Spiffe);
    let (leaf, anchors) = (world.leaf(issuer), [world.anchor(source)]);
    let certificates = |fault| authorities.iter().map(|edge| world.edge(*edge, fault)).collect::<Vec<_>>();
    let (good, bad) = (certificates(None), certificates(Some(Fault::Expired)));
    let mut judged = 0;
    for selection in selections(authorities.len(), CHAIN_MAX - 1) {
        for invalid in std::iter::once(None).chain(selection.iter().copied().map(Some)) {
            let mut chain = vec![leaf.clone()];
            chain
                .extend(selection.iter().map(|i| if invalid == Some(*i) { bad[*i].clone() } else { good[*i].clone() }));
            let valid: Vec<Edge> = selection.iter().filter(|i| invalid != Some(**i)).map(|i| authorities[*i]).collect();
            let verdict = world.judge(&chain, &anchors);
            let must = reachable(&valid, &[source], issuer);
            assert_eq!(verdict.is_ok(), must, "{valid:?} of {selection:?}: {verdict:?}");
            judged += 1;
        }
    }
    judged
}

#[test]
fn every_chain_out_of_figure_seven_and_of_the_bridge_is_decided_as_the_model_says() {
    assert!(every_chain_is_decided_as_the_model_says(FIGURE_SEVEN, "Trust Anchor") > 500);
    // The anchor is TA X: from TA Z it is four authorities to the leaf, one more than a chain brings.
    assert!(every_chain_is_decided_as_the_model_says(BRIDGE, "TA X") > 500);
}

/// What a peer may have at hand while roots and intermediates rotate: the certificate, and whether by our profile it leads
/// from `R1` or `R2` to the leaf's issuer.
struct AtHand {
    what: &'static str,
    der: CertificateDer<'static>,
    leads_from: Option<&'static str>,
}

fn at_hand(world: &World) -> Vec<AtHand> {
    let edge = |what, edge: Edge, fault: Option<Fault>| AtHand {
        what,
        der: world.edge(edge, fault),
        leads_from: (fault.is_none() && edge.1 == "I").then_some(edge.0),
    };
    let root = |what, name| AtHand { what, der: world.anchor(name).der().clone(), leads_from: None };
    let other = |what, bytes: Vec<u8>| AtHand { what, der: bytes.into(), leads_from: None };
    vec![
        edge("I by R1", ("R1", "I"), None),
        edge("I by R2", ("R2", "I"), None),
        edge("I by R1, expired", ("R1", "I"), Some(Fault::Expired)),
        edge("I by R2, of another constraint", ("R2", "I"), Some(Fault::NameConstraints)),
        edge("I by a stranger", ("R3", "I"), None),
        edge("the intermediate before", ("R1", "I before"), None),
        edge("R2 by R1", ("R1", "R2"), None),
        root("R1 itself", "R1"),
        other("no certificate", vec![0x30, 3, 2, 1, 0]),
    ]
}

#[test]
fn every_chain_that_rotation_makes_is_decided_as_the_model_says() {
    let graph = &[("R1", "I"), ("R2", "I"), ("R3", "I"), ("R1", "I before"), ("R1", "R2")];
    let world = World::new(graph, Rules::Fabric);
    let leaf = world.leaf("I");
    let at_hand = at_hand(&world);
    let selections = selections(at_hand.len(), CHAIN_MAX - 1);
    let mut judged = 0;
    // Before, while and after both are anchors; in either order; none.
    for names in [&["R1"][..], &["R1", "R2"], &["R2", "R1"], &["R2"], &[]] {
        let anchors: Vec<Anchor> = names.iter().map(|name| world.anchor(name)).collect();
        for selection in &selections {
            let mut chain = vec![leaf.clone()];
            chain.extend(selection.iter().map(|i| at_hand[*i].der.clone()));
            let must = selection.iter().any(|i| at_hand[*i].leads_from.is_some_and(|root| names.contains(&root)));
            let verdict = world.judge(&chain, &anchors);
            let said = || selection.iter().map(|i| at_hand[*i].what).collect::<Vec<_>>();
            assert_eq!(verdict.is_ok(), must, "{:?} by {names:?}: {verdict:?}", said());
            judged += 1;
        }
    }
    assert_eq!(judged, 5 * (1 + 9 + 9 * 8 + 9 * 8 * 7));
}

/// Two roots in force of which one is over: what hangs under the other stands, and what hangs under both is as good as the
/// other makes it.
#[test]
fn a_root_that_is_over_takes_only_its_own_paths_with_it() {
    let graph = &[("R1", "I"), ("R2", "I")];
    let world = World::new(graph, Rules::Fabric);
    let key = &world.keys["R1"];
    let mut over = Certificate::authority("R1", key, "R1", key, world.now);
    over.not_after = time(world.now - Duration::from_secs(1));
    let over = Anchor::read(&over.signed_by(key), &DOMAIN.parse().unwrap()).unwrap();
    let (leaf, first, second) = (world.leaf("I"), world.edge(("R1", "I"), None), world.edge(("R2", "I"), None));
    for anchors in [[over.clone(), world.anchor("R2")], [world.anchor("R2"), over]] {
        assert_eq!(world.judge(&[leaf.clone(), first.clone()], &anchors).unwrap_err().reason(), "expired");
        for chain in [[leaf.clone(), first.clone(), second.clone()], [leaf.clone(), second.clone(), first.clone()]] {
            let svid = world.judge(&chain, &anchors).unwrap();
            assert_eq!(svid.anchor, world.anchor("R2").fingerprint());
        }
    }
}
