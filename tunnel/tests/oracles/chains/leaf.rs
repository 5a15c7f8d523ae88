//! One thing changed in the leaf.

use super::*;

/// What is changed in the leaf's fields before its extensions.
pub(super) const LEAF_FIELDS: &[Row] = &[
    ("nothing", GOOD, Before(|_| ())),
    ("leaf: version 1", "not a version 3 certificate", Before(|s| s.leaf.version = None)),
    ("leaf: version 2", "not a version 3 certificate", Before(|s| s.leaf.version = Some(1))),
    ("leaf: version 4", "not a version 3 certificate", Before(|s| s.leaf.version = Some(3))),
    ("leaf: serial number 0", GOOD, Before(|s| s.leaf.serial = vec![0])),
    ("leaf: negative serial number", GOOD, Before(|s| s.leaf.serial = vec![0x80, 1])),
    ("leaf: serial number of 20 bytes", GOOD, Before(|s| s.leaf.serial = vec![0x7f; 20])),
    ("leaf: serial number of 20 bytes and a sign", GOOD, Before(|s| s.leaf.serial = [&[0][..], &[0xff; 20]].concat())),
    (
        "leaf: serial number of 40 bytes",
        "a serial number of 40 bytes, more than 21",
        Before(|s| s.leaf.serial = vec![0x7f; 40]),
    ),
    (
        "leaf: two algorithms",
        "its certificate: SignatureAlgorithmMismatch",
        Before(|s| s.leaf.algorithm = Some(nonsense())),
    ),
    ("leaf: another issuer's name", "issued its certificate", Before(|s| s.leaf.issuer = name("nobody"))),
    ("leaf: no issuer's name", "issued its certificate", Before(|s| s.leaf.issuer = name(""))),
    ("leaf: over for a second", "its certificate ended 1 s ago", Before(|s| s.leaf.not_after = time(at(NOW - 1)))),
    (
        "leaf: over for a year",
        "its certificate ended 31536000 s ago",
        Before(|s| {
            s.leaf.not_before = time(at(NOW - 366 * 24 * HOUR));
            s.leaf.not_after = time(at(NOW - 365 * 24 * HOUR));
        }),
    ),
    (
        "leaf: begins in a second",
        "its certificate begins in 1 s: compare the clocks",
        Before(|s| s.leaf.not_before = time(at(NOW + 1))),
    ),
    ("leaf: begins now", GOOD, Before(|s| s.leaf.not_before = time(at(NOW)))),
    ("leaf: ends now", GOOD, Before(|s| s.leaf.not_after = time(at(NOW)))),
    (
        "leaf: ends before it begins",
        "its certificate begins in 3600 s: compare the clocks",
        Before(|s| {
            s.leaf.not_before = time(at(NOW + HOUR));
            s.leaf.not_after = time(at(NOW - HOUR));
        }),
    ),
    (
        "leaf: lives a year",
        "a leaf that lives longer than 169 hours",
        Before(|s| s.leaf.not_after = time(at(NOW + 365 * 24 * HOUR))),
    ),
    (
        "leaf: lives until 9999",
        "a leaf that lives longer than 169 hours",
        Before(|s| s.leaf.not_after = tlv(0x18, b"99991231235959Z")),
    ),
    ("leaf: generalized time before 2050", GOOD, Before(|s| s.leaf.not_after = generalized_time(at(NOW + HOUR)))),
    (
        "leaf: time without seconds",
        "its certificate: BadDerTime",
        Before(|s| s.leaf.not_after = tlv(0x17, b"3003171800Z")),
    ),
    (
        "leaf: time with an offset",
        "its certificate: BadDerTime",
        Before(|s| s.leaf.not_after = tlv(0x17, b"300317184640+0000")),
    ),
    ("leaf: time in month 13", "not a certificate", Before(|s| s.leaf.not_after = tlv(0x17, b"301317184640Z"))),
    ("leaf: time that is text", "not a certificate", Before(|s| s.leaf.not_after = tlv(0x17, b"soon"))),
    (
        "leaf: no subject, names critical",
        GOOD,
        Before(|s| {
            s.leaf.subject = name("");
            s.set_leaf_names(&[&s.id.clone()]);
        }),
    ),
    (
        "leaf: no subject, names not critical",
        "an empty subject and alternative names that are not critical",
        Before(|s| {
            s.leaf.subject = name("");
            s.leaf.set(x::NAMES, false, names(&[uri(&s.id)]));
        }),
    ),
    ("leaf: subject of its issuer", GOOD, Before(|s| s.leaf.subject = s.leaf.issuer.clone())),
    ("leaf: another key", GOOD, Before(|s| s.leaf.key = s.other.spki())),
    ("leaf: its issuer's key", GOOD, Before(|s| s.leaf.key = s.leaf_signer.spki())),
    ("leaf: a key that is none", "not a certificate", Before(|s| s.leaf.key = vec![5, 0])),
    ("leaf: signed by itself", "Signature", Before(|s| s.leaf_signer = s.keys[2])),
    ("leaf: signed by a stranger", "Signature", Before(|s| s.leaf_signer = s.other)),
    ("leaf: spoilt signature", "Signature", After(|_, b| b.chain[0] = spoil(&b.chain[0]))),
    (
        "leaf: empty signature",
        "Signature",
        After(|s, b| {
            b.chain[0] = assemble(&s.leaf.body(&s.leaf_signer.algorithm), &s.leaf_signer.algorithm, &[]);
        }),
    ),
    (
        "leaf: bytes behind it",
        "bytes behind the certificate",
        After(|_, b| {
            let mut bytes = b.chain[0].to_vec();
            bytes.push(0);
            b.chain[0] = bytes.into();
        }),
    ),
    (
        "leaf: cut short",
        "not a certificate",
        After(|_, b| {
            let bytes = b.chain[0].to_vec();
            b.chain[0] = bytes[..bytes.len() - 1].to_vec().into();
        }),
    ),
    ("leaf: not a certificate", "not a certificate", After(|_, b| b.chain[0] = vec![0x30, 3, 2, 1, 0].into())),
];

/// What is changed in the leaf's names.
pub(super) const LEAF_NAMES: &[Row] = &[
    ("name: none", "0 URI names where an SVID has exactly one", Before(|s| s.leaf.unset(x::NAMES))),
    (
        "name: an empty list",
        "0 URI names where an SVID has exactly one",
        Before(|s| s.leaf.set(x::NAMES, true, names(&[]))),
    ),
    (
        "name: DNS only",
        "0 URI names where an SVID has exactly one",
        Before(|s| s.leaf.set(x::NAMES, true, names(&[dns("east.example")]))),
    ),
    (
        "name: mail only",
        "0 URI names where an SVID has exactly one",
        Before(|s| s.leaf.set(x::NAMES, true, names(&[tlv(0x81, b"a@east.example")]))),
    ),
    (
        "name: two IDs",
        "2 URI names where an SVID has exactly one",
        Before(|s| s.set_leaf_names(&[&s.id.clone(), &format!("{}x", s.id)])),
    ),
    (
        "name: the same ID twice",
        "2 URI names where an SVID has exactly one",
        Before(|s| s.set_leaf_names(&[&s.id.clone(), &s.id.clone()])),
    ),
    (
        "name: an ID and a web address",
        "2 URI names where an SVID has exactly one",
        Before(|s| {
            s.set_leaf_names(&[&s.id.clone(), &format!("https://{}/", s.domain)]);
        }),
    ),
    (
        "name: an ID beside DNS, address and mail",
        GOOD,
        Before(|s| {
            let list = [dns("web"), uri(&s.id), tlv(0x87, &[127, 0, 0, 1]), tlv(0x81, b"a@east.example")];
            s.leaf.set(x::NAMES, false, names(&list));
        }),
    ),
    ("name: a web address", "must start with spiffe://", Before(|s| s.name_leaf("https://DOMAIN/ns/a"))),
    ("name: no scheme", "must start with spiffe://", Before(|s| s.name_leaf("//DOMAIN/ns/a"))),
    (
        "name: no path",
        "has no path: it names a trust domain, not a workload",
        Before(|s| s.name_leaf("spiffe://DOMAIN")),
    ),
    ("name: the root path", "has an empty path segment or a trailing '/'", Before(|s| s.name_leaf("spiffe://DOMAIN/"))),
    (
        "name: a trailing slash",
        "has an empty path segment or a trailing '/'",
        Before(|s| s.name_leaf("spiffe://DOMAIN/a/")),
    ),
    (
        "name: an empty segment",
        "has an empty path segment or a trailing '/'",
        Before(|s| s.name_leaf("spiffe://DOMAIN/a//b")),
    ),
    ("name: a dot segment", "has a '.' or '..' path segment", Before(|s| s.name_leaf("spiffe://DOMAIN/a/./b"))),
    ("name: two dots", "has a '.' or '..' path segment", Before(|s| s.name_leaf("spiffe://DOMAIN/a/../b"))),
    (
        "name: a port",
        "may contain only letters, digits, '.', '-' and '_'",
        Before(|s| s.name_leaf("spiffe://DOMAIN:443/a")),
    ),
    (
        "name: user information",
        "may contain only letters, digits, '.', '-' and '_'",
        Before(|s| s.name_leaf("spiffe://u@DOMAIN/a")),
    ),
    (
        "name: a query",
        "may contain only letters, digits, '.', '-' and '_' in its path",
        Before(|s| s.name_leaf("spiffe://DOMAIN/a?b")),
    ),
    (
        "name: a fragment",
        "may contain only letters, digits, '.', '-' and '_' in its path",
        Before(|s| s.name_leaf("spiffe://DOMAIN/a#b")),
    ),
    (
        "name: percent in the path",
        "may contain only letters, digits, '.', '-' and '_' in its path",
        Before(|s| s.name_leaf("spiffe://DOMAIN/a%20b")),
    ),
    (
        "name: a blank behind",
        "may contain only letters, digits, '.', '-' and '_' in its path",
        Before(|s| s.name_leaf("spiffe://DOMAIN/a ")),
    ),
    (
        "name: a nul byte",
        "may contain only letters, digits, '.', '-' and '_' in its path",
        Before(|s| s.name_leaf("spiffe://DOMAIN/a\0b")),
    ),
    (
        "name: letters beyond ASCII",
        "may contain only letters, digits, '.', '-' and '_' in its path",
        Before(|s| s.name_leaf("spiffe://DOMAIN/ä")),
    ),
    ("name: scheme in capitals", GOOD, Before(|s| s.name_leaf("SPIFFE://DOMAIN/a"))),
    (
        "name: trust domain in capitals",
        GOOD,
        Before(|s| {
            let text = format!("spiffe://{}/a", s.domain.to_ascii_uppercase());
            s.set_leaf_names(&[&text]);
        }),
    ),
    (
        "name: 2048 bytes",
        GOOD,
        Before(|s| {
            let head = format!("spiffe://{}/", s.domain);
            let text = format!("{head}{}", "a".repeat(2048 - head.len()));
            s.set_leaf_names(&[&text]);
        }),
    ),
    (
        "name: 2049 bytes",
        "is longer than 2048 bytes",
        Before(|s| {
            let head = format!("spiffe://{}/", s.domain);
            let text = format!("{head}{}", "a".repeat(2049 - head.len()));
            s.set_leaf_names(&[&text]);
        }),
    ),
    ("name: another trust domain", "no anchors of trust domain", Before(|s| s.name_leaf("spiffe://west.example/a"))),
    ("name: below the trust domain", "no anchors of trust domain", Before(|s| s.name_leaf("spiffe://sub.DOMAIN/a"))),
    (
        "name: a trust domain that begins like it",
        "no anchors of trust domain",
        Before(|s| s.name_leaf("spiffe://DOMAIN.evil/a")),
    ),
    (
        "name: a trust domain with a dot behind",
        "no anchors of trust domain",
        Before(|s| s.name_leaf("spiffe://DOMAIN./a")),
    ),
    ("name: no trust domain", "is empty", Before(|s| s.name_leaf("spiffe:///a"))),
    ("name: malformed", "a malformed extension", Before(|s| s.leaf.set(x::NAMES, true, vec![0x30, 0x7f, 1]))),
];

/// What is changed in the leaf's other extensions.
pub(super) const LEAF_EXTENSIONS: &[Row] = &[
    ("leaf: an authority", "an authority, not a leaf", Before(|s| s.leaf.set(x::BASIC, true, basic(true, None)))),
    (
        "leaf: an authority of length 0",
        "an authority, not a leaf",
        Before(|s| s.leaf.set(x::BASIC, true, basic(true, Some(0)))),
    ),
    ("leaf: no basic constraints", GOOD, Before(|s| s.leaf.unset(x::BASIC))),
    ("leaf: basic constraints not critical", GOOD, Before(|s| s.leaf.set(x::BASIC, false, basic(false, None)))),
    (
        "leaf: a path length without being an authority",
        "a path length in a leaf",
        Before(|s| {
            s.leaf.set(x::BASIC, true, basic(false, Some(0)));
        }),
    ),
    (
        "leaf: basic constraints that are no DER",
        "a malformed extension",
        Before(|s| s.leaf.set(x::BASIC, true, vec![0x30, 5])),
    ),
    ("leaf: no key usage", "a leaf without key usage", Before(|s| s.leaf.unset(x::KEY_USAGE))),
    (
        "leaf: key usage not critical",
        "a key usage that is not critical",
        Before(|s| s.leaf.set(x::KEY_USAGE, false, key_usage(SIGN))),
    ),
    (
        "leaf: may sign certificates",
        "a leaf whose key may sign certificates or revocation lists",
        Before(|s| {
            s.leaf.set(x::KEY_USAGE, true, key_usage(SIGN | CERT_SIGN));
        }),
    ),
    (
        "leaf: may sign revocation lists",
        "a leaf whose key may sign certificates or revocation lists",
        Before(|s| {
            s.leaf.set(x::KEY_USAGE, true, key_usage(SIGN | CRL_SIGN));
        }),
    ),
    (
        "leaf: may agree on keys only",
        "a leaf whose key may not make signatures",
        Before(|s| s.leaf.set(x::KEY_USAGE, true, key_usage(1 << 4))),
    ),
    (
        "leaf: may do nothing",
        "a leaf whose key may not make signatures",
        Before(|s| s.leaf.set(x::KEY_USAGE, true, vec![3, 1, 0])),
    ),
    (
        "leaf: may sign and agree on keys",
        GOOD,
        Before(|s| {
            s.leaf.set(x::KEY_USAGE, true, key_usage(SIGN | 1 << 4));
        }),
    ),
    ("leaf: key usage that is no DER", "a malformed extension", Before(|s| s.leaf.set(x::KEY_USAGE, true, vec![5, 0]))),
    (
        "leaf: for servers only",
        "an extended key usage without both server and client authentication",
        Before(|s| s.leaf.set(x::EXTENDED, false, extended(&[1]))),
    ),
    (
        "leaf: for clients only",
        "an extended key usage without both server and client authentication",
        Before(|s| s.leaf.set(x::EXTENDED, false, extended(&[2]))),
    ),
    (
        "leaf: for mail only",
        "an extended key usage without both server and client authentication",
        Before(|s| s.leaf.set(x::EXTENDED, false, extended(EMAIL))),
    ),
    (
        "leaf: for any purpose",
        "an extended key usage without both server and client authentication",
        Before(|s| s.leaf.set(x::EXTENDED, false, any_purpose())),
    ),
    (
        "leaf: for no purpose",
        "an extended key usage without both server and client authentication",
        Before(|s| s.leaf.set(x::EXTENDED, false, extended(&[]))),
    ),
    ("leaf: for both and mail", GOOD, Before(|s| s.leaf.set(x::EXTENDED, false, extended(&[1, 2, 4])))),
    ("leaf: for both, critical", GOOD, Before(|s| s.leaf.set(x::EXTENDED, true, extended(BOTH_ENDS)))),
    ("leaf: no purposes named", GOOD, Before(|s| s.leaf.unset(x::EXTENDED))),
    (
        "leaf: no key identifiers",
        GOOD,
        Before(|s| {
            s.leaf.unset(x::AUTHORITY_KEY);
            s.leaf.unset(x::SUBJECT_KEY);
        }),
    ),
    (
        "leaf: another key's authority identifier",
        GOOD,
        Before(|s| {
            s.leaf.set(x::AUTHORITY_KEY, false, sequence(&[tlv(0x80, &[9; 10])]));
        }),
    ),
    (
        "leaf: an unknown critical extension",
        "its certificate: UnsupportedCriticalExtension",
        Before(|s| s.leaf.add(UNKNOWN, true, vec![5, 0])),
    ),
    ("leaf: an unknown extension", GOOD, Before(|s| s.leaf.add(UNKNOWN, false, vec![5, 0]))),
    (
        "leaf: key usage twice",
        "an extension occurs twice",
        Before(|s| {
            s.leaf.add(&[0x55, 0x1d, x::KEY_USAGE], true, key_usage(SIGN));
        }),
    ),
    (
        "leaf: names twice",
        "an extension occurs twice",
        Before(|s| {
            let again = names(&[uri(&s.id)]);
            s.leaf.add(&[0x55, 0x1d, x::NAMES], true, again);
        }),
    ),
    (
        "leaf: an unknown extension twice",
        "an extension occurs twice",
        Before(|s| {
            s.leaf.add(UNKNOWN, false, vec![5, 0]);
            s.leaf.add(UNKNOWN, false, vec![5, 0]);
        }),
    ),
    ("leaf: no extensions", "0 URI names where an SVID has exactly one", Before(|s| s.leaf.extensions.clear())),
];
