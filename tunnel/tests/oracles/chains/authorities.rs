//! One thing changed in the intermediate, the root, or around the chain.

use super::*;

/// What is changed in the intermediate, held to our profile.
pub(super) const INTERMEDIATE: &[Row] = &[
    ("intermediate: version 1", "not a version 3 certificate", Before(|s| s.intermediate.version = None)),
    (
        "intermediate: two algorithms",
        "the intermediate: it names two signature algorithms",
        Before(|s| s.intermediate.algorithm = Some(nonsense())),
    ),
    (
        "intermediate: another issuer's name",
        "signed the intermediate",
        Before(|s| s.intermediate.issuer = name("nobody")),
    ),
    ("intermediate: another name", "issued its certificate", Before(|s| s.intermediate.subject = name("nobody"))),
    (
        "intermediate: over for a second",
        "the intermediate ended 1 s ago",
        Before(|s| s.intermediate.not_after = time(at(NOW - 1))),
    ),
    (
        "intermediate: begins in a second",
        "the intermediate begins in 1 s: compare the clocks",
        Before(|s| s.intermediate.not_before = time(at(NOW + 1))),
    ),
    ("intermediate: ends before its leaf", GOOD, Before(|s| s.intermediate.not_after = time(at(NOW + 60)))),
    (
        "intermediate: lives until 2055",
        GOOD,
        Before(|s| {
            s.intermediate.not_after = time(at(NOW + 25 * 365 * 24 * HOUR));
        }),
    ),
    ("intermediate: another key", "Signature", Before(|s| s.intermediate.key = s.other.spki())),
    (
        "intermediate: signed by a stranger",
        "the intermediate: the authority of its issuer's name did not sign it",
        Before(|s| s.intermediate_signer = s.other),
    ),
    (
        "intermediate: signed by itself",
        "the intermediate: the authority of its issuer's name did not sign it",
        Before(|s| s.intermediate_signer = s.keys[1]),
    ),
    (
        "intermediate: spoilt signature",
        "the intermediate: the authority of its issuer's name did not sign it",
        After(|s, b| {
            let whole = s.intermediate.signed_by(s.intermediate_signer);
            let at = b.chain.iter().position(|der| der.len() == whole.len() && der[..99] == whole[..99]);
            let at = at.unwrap_or(b.chain.iter().rposition(|der| *der != b.anchors[0]).unwrap());
            b.chain[at] = spoil(&b.chain[at]);
        }),
    ),
    (
        "intermediate: not an authority",
        "not an authority",
        Before(|s| s.intermediate.set(x::BASIC, true, basic(false, None))),
    ),
    ("intermediate: no basic constraints", "not an authority", Before(|s| s.intermediate.unset(x::BASIC))),
    (
        "intermediate: basic constraints not critical",
        "the intermediate has basic constraints that are not critical",
        Before(|s| {
            s.intermediate.set(x::BASIC, false, basic(true, Some(0)));
        }),
    ),
    (
        "intermediate: path length 1",
        "the intermediate may sign other authorities: its path length is not 0",
        Before(|s| s.intermediate.set(x::BASIC, true, basic(true, Some(1)))),
    ),
    (
        "intermediate: no path length",
        "the intermediate may sign other authorities: its path length is not 0",
        Before(|s| s.intermediate.set(x::BASIC, true, basic(true, None))),
    ),
    (
        "intermediate: no key usage",
        "an authority whose key may not sign certificates",
        Before(|s| s.intermediate.unset(x::KEY_USAGE)),
    ),
    (
        "intermediate: may not sign certificates",
        "an authority whose key may not sign certificates",
        Before(|s| {
            s.intermediate.set(x::KEY_USAGE, true, key_usage(CRL_SIGN));
        }),
    ),
    (
        "intermediate: may sign certificates only",
        GOOD,
        Before(|s| {
            s.intermediate.set(x::KEY_USAGE, true, key_usage(CERT_SIGN));
        }),
    ),
    (
        "intermediate: key usage not critical",
        "the intermediate has a key usage that is not critical",
        Before(|s| {
            s.intermediate.set(x::KEY_USAGE, false, key_usage(CERT_SIGN));
        }),
    ),
    (
        "intermediate: for servers only",
        "an authority whose extended key usage leaves out server or client authentication",
        Before(|s| s.intermediate.set(x::EXTENDED, false, extended(&[1]))),
    ),
    (
        "intermediate: for mail only",
        "an authority whose extended key usage leaves out server or client authentication",
        Before(|s| s.intermediate.set(x::EXTENDED, false, extended(EMAIL))),
    ),
    ("intermediate: for both", GOOD, Before(|s| s.intermediate.set(x::EXTENDED, false, extended(BOTH_ENDS)))),
    ("intermediate: no name", "is an authority of no trust domain", Before(|s| s.intermediate.unset(x::NAMES))),
    (
        "intermediate: another trust domain",
        "is an authority of west.example",
        Before(|s| {
            s.intermediate.set(x::NAMES, false, names(&[uri("spiffe://west.example")]));
        }),
    ),
    (
        "intermediate: an ID with a path",
        "an authority whose URI name is no trust domain",
        Before(|s| {
            let list = names(&[uri(&format!("spiffe://{}/authority", s.domain))]);
            s.intermediate.set(x::NAMES, false, list);
        }),
    ),
    (
        "intermediate: two trust domains",
        "an authority with several URI names",
        Before(|s| {
            let list = names(&[uri(&format!("spiffe://{}", s.domain)), uri("spiffe://west.example")]);
            s.intermediate.set(x::NAMES, false, list);
        }),
    ),
    (
        "intermediate: a DNS name too",
        GOOD,
        Before(|s| {
            let list = names(&[dns("ca"), uri(&format!("spiffe://{}", s.domain))]);
            s.intermediate.set(x::NAMES, false, list);
        }),
    ),
    (
        "intermediate: no constraint",
        "no critical name constraint that permits exactly",
        Before(|s| s.intermediate.unset(x::NAME_CONSTRAINTS)),
    ),
    (
        "intermediate: constrained to another",
        "no critical name constraint that permits exactly",
        Before(|s| s.constrain(&[uri("west.example")], &[])),
    ),
    (
        "intermediate: constrained to two",
        "no critical name constraint that permits exactly",
        Before(|s| s.constrain(&[uri(&s.domain.clone()), uri("west.example")], &[])),
    ),
    (
        "intermediate: constrained to what is below",
        "no critical name constraint that permits exactly",
        Before(|s| s.constrain(&[uri(&format!(".{}", s.domain))], &[])),
    ),
    (
        "intermediate: all but another",
        "no critical name constraint that permits exactly",
        Before(|s| s.constrain(&[], &[uri("west.example")])),
    ),
    (
        "intermediate: all but this",
        "no critical name constraint that permits exactly",
        Before(|s| s.constrain(&[], &[uri(&s.domain.clone())])),
    ),
    (
        "intermediate: this and not this",
        "no critical name constraint that permits exactly",
        Before(|s| {
            s.constrain(&[uri(&s.domain.clone())], &[uri(&s.domain.clone())]);
        }),
    ),
    (
        "intermediate: constraint in capitals",
        GOOD,
        Before(|s| {
            s.constrain(&[uri(&s.domain.to_ascii_uppercase())], &[]);
        }),
    ),
    (
        "intermediate: constraint not critical",
        "no critical name constraint that permits exactly",
        Before(|s| {
            let same = name_constraints(&[uri(&s.domain)], &[]);
            s.intermediate.set(x::NAME_CONSTRAINTS, false, same);
        }),
    ),
    (
        "intermediate: an empty constraint",
        "no critical name constraint that permits exactly",
        Before(|s| s.constrain(&[], &[])),
    ),
    (
        "intermediate: an unknown critical extension",
        "an authority with the unknown critical extension 1.3.6.1.4.1.99999.1",
        Before(|s| {
            s.intermediate.add(UNKNOWN, true, vec![5, 0]);
        }),
    ),
    ("intermediate: an unknown extension", GOOD, Before(|s| s.intermediate.add(UNKNOWN, false, vec![5, 0]))),
    (
        "intermediate: key usage twice",
        "an extension occurs twice",
        Before(|s| {
            s.intermediate.add(&[0x55, 0x1d, x::KEY_USAGE], true, key_usage(CERT_SIGN));
        }),
    ),
    (
        "intermediate: no key identifiers",
        GOOD,
        Before(|s| {
            s.intermediate.unset(x::AUTHORITY_KEY);
            s.intermediate.unset(x::SUBJECT_KEY);
        }),
    ),
    (
        "intermediate: its own issuer by name",
        "signed the intermediate",
        Before(|s| s.intermediate.issuer = s.intermediate.subject.clone()),
    ),
];

/// What is changed in the root and around the chain.
pub(super) const ROOT_AND_CHAIN: &[Row] = &[
    ("root: version 1", "not a version 3 certificate", Before(|s| s.root.version = None)),
    ("root: not an authority", "not an authority", Before(|s| s.root.set(x::BASIC, true, basic(false, None)))),
    ("root: no basic constraints", "not an authority", Before(|s| s.root.unset(x::BASIC))),
    ("root: path length 0", "signed the intermediate", Before(|s| s.root.set(x::BASIC, true, basic(true, Some(0))))),
    ("root: path length 2", GOOD, Before(|s| s.root.set(x::BASIC, true, basic(true, Some(2))))),
    ("root: no path length", GOOD, Before(|s| s.root.set(x::BASIC, true, basic(true, None)))),
    (
        "root: may not sign certificates",
        "an authority whose key may not sign certificates",
        Before(|s| s.root.set(x::KEY_USAGE, true, key_usage(CRL_SIGN))),
    ),
    ("root: no key usage", "an authority whose key may not sign certificates", Before(|s| s.root.unset(x::KEY_USAGE))),
    ("root: over for a second", "the anchor ended 1 s ago", Before(|s| s.root.not_after = time(at(NOW - 1)))),
    (
        "root: begins in a second",
        "the anchor begins in 1 s: compare the clocks",
        Before(|s| s.root.not_before = time(at(NOW + 1))),
    ),
    (
        "root: another key",
        "the intermediate: the authority of its issuer's name did not sign it",
        Before(|s| s.root.key = s.other.spki()),
    ),
    ("root: another name", "signed the intermediate", Before(|s| s.root.subject = name("nobody"))),
    (
        "root: for servers only",
        "an authority whose extended key usage leaves out server or client authentication",
        Before(|s| s.root.set(x::EXTENDED, false, extended(&[1]))),
    ),
    (
        "root: another trust domain",
        "is an authority of west.example",
        Before(|s| s.root.set(x::NAMES, false, names(&[uri("spiffe://west.example")]))),
    ),
    (
        "root: this trust domain",
        GOOD,
        Before(|s| {
            let list = names(&[uri(&format!("spiffe://{}", s.domain))]);
            s.root.set(x::NAMES, false, list);
        }),
    ),
    (
        "root: constrained to another",
        "name constraints other than the URI host",
        Before(|s| {
            s.root.set(x::NAME_CONSTRAINTS, true, name_constraints(&[uri("west.example")], &[]));
        }),
    ),
    (
        "root: constrained to this",
        GOOD,
        Before(|s| {
            let same = name_constraints(&[uri(&s.domain)], &[]);
            s.root.set(x::NAME_CONSTRAINTS, true, same);
        }),
    ),
    (
        "root: an unknown critical extension",
        "an authority with the unknown critical extension 1.3.6.1.4.1.99999.1",
        Before(|s| s.root.add(UNKNOWN, true, vec![5, 0])),
    ),
    ("root: spoilt signature", GOOD, After(|_, b| b.anchors[0] = spoil(&b.anchors[0]))),
    ("anchors: none", "no anchors of trust domain", After(|_, b| b.anchors.clear())),
    ("anchors: a stranger", "signed the intermediate", After(|s, b| b.anchors = vec![s.stranger()])),
    (
        "anchors: a stranger of the same name",
        "the intermediate: the authority of its issuer's name did not sign it",
        After(|s, b| {
            b.anchors = vec![Certificate::authority("root", s.other, "root", s.other, at(NOW)).signed_by(s.other)];
            b.chain.retain(|der| *der != s.root_der());
        }),
    ),
    (
        "anchors: a stranger of the same name first",
        GOOD,
        After(|s, b| {
            b.anchors.insert(0, Certificate::authority("root", s.other, "root", s.other, at(NOW)).signed_by(s.other));
        }),
    ),
    (
        "anchors: the intermediate",
        GOOD,
        After(|s, b| b.anchors = vec![s.intermediate.signed_by(s.intermediate_signer)]),
    ),
    ("anchors: the leaf", "not an authority", After(|_, b| b.anchors = vec![b.chain[0].clone()])),
    ("chain: no intermediate", "issued its certificate", After(|_, b| b.chain.truncate(1))),
    ("chain: the other way round", GOOD, After(|_, b| b.chain[1..].reverse())),
    (
        "chain: the intermediate twice",
        GOOD,
        After(|s, b| {
            b.chain.truncate(2);
            b.chain.push(s.intermediate.signed_by(s.intermediate_signer));
            b.chain.push(s.intermediate.signed_by(s.intermediate_signer));
            b.chain.remove(1);
        }),
    ),
    ("chain: the leaf again", GOOD, After(|_, b| b.chain.push(b.chain[0].clone()))),
    (
        "chain: another leaf of the same",
        GOOD,
        After(|s, b| {
            let mut leaf = s.leaf.clone();
            leaf.serial = vec![0x77];
            b.chain.push(leaf.signed_by(s.leaf_signer));
        }),
    ),
    (
        "chain: the intermediate first",
        "has no path: it names a trust domain, not a workload",
        After(|s, b| {
            b.chain = vec![s.intermediate.signed_by(s.intermediate_signer), b.chain[0].clone()];
        }),
    ),
    (
        "chain: garbage behind",
        GOOD,
        After(|_, b| {
            b.chain.truncate(3);
            b.chain.push(vec![0x30, 3, 2, 1, 0].into());
        }),
    ),
    (
        "chain: five",
        "a chain of 5 certificates, more than 4",
        After(|s, b| {
            while b.chain.len() < 5 {
                b.chain.push(s.stranger());
            }
        }),
    ),
    (
        "chain: one of 17 KiB",
        "a certificate of 17",
        After(|s, b| {
            let mut large = Certificate::authority("large", s.other, "large", s.other, at(NOW));
            large.add(UNKNOWN, false, tlv(4, &vec![0; 17 * 1024]));
            b.chain.push(large.signed_by(s.other));
            b.chain.truncate(4);
        }),
    ),
    (
        "path: the root issued the leaf",
        "a root issued its certificate without an intermediate",
        Before(|s| {
            s.leaf.issuer = name("root");
            s.leaf.set(x::AUTHORITY_KEY, false, sequence(&[tlv(0x80, &s.keys[0].identifier())]));
            s.leaf_signer = s.keys[0];
        }),
    ),
    (
        "path: another leaf issued the leaf",
        "not an authority",
        After(|s, b| {
            let (key, signer) = (s.other, s.leaf_signer);
            let mut issuer = Certificate::svid(&s.id, key, "issuer", signer, at(NOW));
            issuer.subject = name("leaf");
            let mut leaf = s.leaf.clone();
            leaf.issuer = name("leaf");
            leaf.set(x::AUTHORITY_KEY, false, sequence(&[tlv(0x80, &key.identifier())]));
            b.chain =
                vec![leaf.signed_by(key), issuer.signed_by(signer), s.intermediate.signed_by(s.intermediate_signer)];
        }),
    ),
    (
        "path: an authority below the intermediate",
        "signed the intermediate",
        After(|s, b| {
            let (key, signer) = (s.other, s.keys[1]);
            let mut below = s.intermediate.clone();
            below.subject = name("below");
            below.issuer = name("issuer");
            below.key = key.spki();
            below.set(x::SUBJECT_KEY, false, tlv(4, &key.identifier()));
            below.set(x::AUTHORITY_KEY, false, sequence(&[tlv(0x80, &signer.identifier())]));
            let mut leaf = s.leaf.clone();
            leaf.issuer = name("below");
            leaf.set(x::AUTHORITY_KEY, false, sequence(&[tlv(0x80, &key.identifier())]));
            b.chain =
                vec![leaf.signed_by(key), below.signed_by(signer), s.intermediate.signed_by(s.intermediate_signer)];
        }),
    ),
    (
        "path: two authorities with room for both",
        "signed the intermediate",
        After(|s, b| {
            let (key, signer) = (s.other, s.keys[1]);
            let mut upper = s.intermediate.clone();
            upper.set(x::BASIC, true, basic(true, Some(1)));
            let mut below = s.intermediate.clone();
            below.subject = name("below");
            below.issuer = name("issuer");
            below.key = key.spki();
            below.set(x::SUBJECT_KEY, false, tlv(4, &key.identifier()));
            below.set(x::AUTHORITY_KEY, false, sequence(&[tlv(0x80, &signer.identifier())]));
            let mut leaf = s.leaf.clone();
            leaf.issuer = name("below");
            leaf.set(x::AUTHORITY_KEY, false, sequence(&[tlv(0x80, &key.identifier())]));
            let mut root = s.root.clone();
            root.set(x::BASIC, true, basic(true, Some(2)));
            b.anchors = vec![root.signed_by(s.keys[0])];
            b.chain = vec![leaf.signed_by(key), below.signed_by(signer), upper.signed_by(s.intermediate_signer)];
        }),
    ),
];
