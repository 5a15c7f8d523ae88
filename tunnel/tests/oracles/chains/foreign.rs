//! One thing changed in chains as SPIRE and istiod make them.

use super::*;

/// What is changed in a chain of SPIRE's make, below the anchors of its own bundle.
pub(super) const SPIRE: &[Row] = &[
    ("spire: nothing", GOOD, Before(|_| ())),
    ("spire: no name", GOOD, Before(|s| s.intermediate.unset(x::NAMES))),
    (
        "spire: another trust domain",
        "is an authority of west.example",
        Before(|s| {
            s.intermediate.set(x::NAMES, false, names(&[uri("spiffe://west.example")]));
        }),
    ),
    (
        "spire: an ID with a path",
        "an authority whose URI name is no trust domain",
        Before(|s| {
            let list = names(&[uri(&format!("spiffe://{}/server", s.domain))]);
            s.intermediate.set(x::NAMES, false, list);
        }),
    ),
    ("spire: constrained to this", GOOD, Before(|s| s.constrain(&[uri(&s.domain.clone())], &[]))),
    (
        "spire: constrained to another",
        "name constraints other than the URI host",
        Before(|s| s.constrain(&[uri("west.example")], &[])),
    ),
    ("spire: path length 0", GOOD, Before(|s| s.intermediate.set(x::BASIC, true, basic(true, Some(0))))),
    ("spire: path length 3", GOOD, Before(|s| s.intermediate.set(x::BASIC, true, basic(true, Some(3))))),
    (
        "spire: root with path length 0",
        "signed the intermediate",
        Before(|s| s.root.set(x::BASIC, true, basic(true, Some(0)))),
    ),
    ("spire: not an authority", "not an authority", Before(|s| s.intermediate.set(x::BASIC, true, basic(false, None)))),
    (
        "spire: may not sign certificates",
        "an authority whose key may not sign certificates",
        Before(|s| {
            s.intermediate.set(x::KEY_USAGE, true, key_usage(CRL_SIGN));
        }),
    ),
    (
        "spire: over for a second",
        "the intermediate ended 1 s ago",
        Before(|s| s.intermediate.not_after = time(at(NOW - 1))),
    ),
    (
        "spire: signed by a stranger",
        "the intermediate: the authority of its issuer's name did not sign it",
        Before(|s| s.intermediate_signer = s.other),
    ),
    (
        "spire: the upstream issued the leaf",
        GOOD,
        Before(|s| {
            s.leaf.issuer = name("root");
            s.leaf.set(x::AUTHORITY_KEY, false, sequence(&[tlv(0x80, &s.keys[0].identifier())]));
            s.leaf_signer = s.keys[0];
        }),
    ),
    ("spire: one more authority", GOOD, After(|s, b| one_more(s, b, None, None))),
    ("spire: one more authority, path length 1 above", GOOD, After(|s, b| one_more(s, b, Some(1), None))),
    (
        "spire: one more authority, path length 0 above",
        "the intermediate may not sign other authorities: its path length is too short",
        After(|s, b| one_more(s, b, Some(0), None)),
    ),
    (
        "spire: one more authority of another trust domain",
        "is an authority of west.example",
        After(|s, b| {
            one_more(s, b, None, Some("spiffe://west.example"));
        }),
    ),
    (
        "spire: leaf for servers only",
        "an extended key usage without both server and client authentication",
        Before(|s| s.leaf.set(x::EXTENDED, false, extended(&[1]))),
    ),
    (
        "spire: leaf over for a second",
        "its certificate ended 1 s ago",
        Before(|s| s.leaf.not_after = time(at(NOW - 1))),
    ),
];

/// Root, upper authority, SPIRE, leaf.
fn one_more(s: &Scene, b: &mut Built, length: Option<u8>, named: Option<&str>) {
    let mut upper = Certificate::authority("upper", s.other, "root", s.keys[0], at(NOW));
    upper.set(x::BASIC, true, basic(true, length));
    if let Some(named) = named {
        upper.set(x::NAMES, false, names(&[uri(named)]));
    }
    let mut spire = s.intermediate.clone();
    spire.issuer = name("upper");
    spire.set(x::AUTHORITY_KEY, false, sequence(&[tlv(0x80, &s.other.identifier())]));
    b.chain = vec![s.leaf.signed_by(s.leaf_signer), spire.signed_by(s.other), upper.signed_by(s.keys[0])];
}

/// What is changed in a chain of istiod's make, below the anchors of its own bundle.
pub(super) const ISTIO: &[Row] = &[
    ("istio: nothing", GOOD, Before(|_| ())),
    ("istio: path length 0", GOOD, Before(|s| s.root.set(x::BASIC, true, basic(true, Some(0))))),
    (
        "istio: root of another trust domain",
        "is an authority of west.example",
        Before(|s| {
            s.root.set(x::NAMES, false, names(&[uri("spiffe://west.example")]));
        }),
    ),
    ("istio: root not an authority", "not an authority", Before(|s| s.root.set(x::BASIC, true, basic(false, None)))),
    ("istio: root over for a second", "the anchor ended 1 s ago", Before(|s| s.root.not_after = time(at(NOW - 1)))),
    ("istio: signed by a stranger", "Signature", Before(|s| s.leaf_signer = s.other)),
    ("istio: another trust domain", "no anchors of trust domain", Before(|s| s.name_leaf("spiffe://west.example/a"))),
    ("istio: no key usage", "a leaf without key usage", Before(|s| s.leaf.unset(x::KEY_USAGE))),
];
