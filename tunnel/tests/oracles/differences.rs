//! Where the others differ, and why that is right. A row is refused by the verifier and taken by those who are named, unless
//! its reason says that it is the other way round.

use Who::{Certvalidator, OpenSsl};

/// Who differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    OpenSsl,
    Certvalidator,
}

/// Who, on which rows, why.
pub(crate) type Difference = (&'static [Who], &'static [&'static str], &'static str);

const BOTH: &[Who] = &[OpenSsl, Certvalidator];

pub(crate) const DIFFERENCES: &[Difference] = &[
    (
        BOTH,
        &[
            "name: none",
            "name: DNS only",
            "name: mail only",
            "name: a web address",
            "name: an ID and a web address",
            "name: two IDs",
            "name: the same ID twice",
        ],
        "X509-SVID section 2: exactly one URI name, and it is a SPIFFE ID. X.509 knows no such rule.",
    ),
    (
        BOTH,
        &[
            "name: no path",
            "name: the root path",
            "name: a trailing slash",
            "name: an empty segment",
            "name: a dot segment",
            "name: two dots",
            "name: a port",
            "name: a query",
            "name: a fragment",
            "name: percent in the path",
            "name: a blank behind",
            "name: a nul byte",
            "name: 2049 bytes",
        ],
        "SPIFFE-ID sections 2.1 to 2.3. Name constraints look at the host of a URI and at nothing else of it.",
    ),
    (
        &[OpenSsl],
        &["name: letters beyond ASCII"],
        "RFC 5280 section 4.2.1.6: a URI is an IA5String. OpenSSL looks at its host only.",
    ),
    (
        &[Certvalidator],
        &["name: no scheme", "name: user information", "name: a trust domain with a dot behind"],
        "SPIFFE-ID section 2.1. certvalidator finds the permitted host in them; OpenSSL does not.",
    ),
    (
        BOTH,
        &["leaf: lives a year", "leaf: lives until 9999"],
        "Our own bound on the life of a leaf: a stolen key is worth nothing after a week.",
    ),
    (
        BOTH,
        &["leaf: an authority", "leaf: may sign revocation lists", "leaf: key usage not critical"],
        "X509-SVID sections 4.1 and 4.3, of leaves. X.509 lets an authority authenticate itself.",
    ),
    (
        &[Certvalidator],
        &["leaf: an authority of length 0", "leaf: may sign certificates"],
        "The same; OpenSSL in strict mode refuses these two for being inconsistent.",
    ),
    (
        &[OpenSsl],
        &["leaf: no key usage", "istio: no key usage", "leaf: may agree on keys only"],
        "X509-SVID section 4.3: digitalSignature. For OpenSSL no key usage is every usage, and key agreement will do for
         TLS before 1.3. certvalidator was asked for digitalSignature.",
    ),
    (
        BOTH,
        &["intermediate: key usage not critical", "intermediate: constraint not critical"],
        "X509-SVID section 4.3 and RFC 5280 section 4.2.1.10: authorities must mark them so; the others read them anyway.",
    ),
    (
        BOTH,
        &[
            "intermediate: no name",
            "intermediate: another trust domain",
            "intermediate: two trust domains",
            "intermediate: an ID with a path",
            "root: another trust domain",
            "spire: another trust domain",
            "spire: an ID with a path",
            "spire: one more authority of another trust domain",
            "istio: root of another trust domain",
        ],
        "X509-SVID section 3.2 and our profile: an authority names its trust domain. X.509 gives its names no meaning.",
    ),
    (
        BOTH,
        &[
            "intermediate: no constraint",
            "intermediate: an empty constraint",
            "intermediate: constrained to two",
            "intermediate: all but another",
        ],
        "Our profile: constrained to exactly its own trust domain, or a stolen key mints the identities of others.",
    ),
    (
        BOTH,
        &["intermediate: path length 1", "intermediate: no path length"],
        "Our profile: an intermediate issues leaves only. The chain at hand is within these lengths.",
    ),
    (
        BOTH,
        &["path: the root issued the leaf", "path: two authorities with room for both"],
        "Our profile: leaf, one intermediate, root. Below a dedicated anchor both would do.",
    ),
    (
        BOTH,
        &["istio: another trust domain"],
        "The anchors are of one trust domain and the leaf is of another: what SPIFFE adds to X.509. Nothing in the chain
         says so, only where its anchor came from.",
    ),
    (BOTH, &["anchors: the leaf"], "An anchor is an authority. The others take any certificate that they are told to trust."),
    (BOTH, &["chain: five", "chain: one of 17 KiB", "leaf: serial number of 40 bytes"], "Our bounds on what a stranger may make us parse."),
    (
        &[OpenSsl],
        &["leaf: bytes behind it"],
        "OpenSSL's reader of PEM stops at the end of the certificate; over TLS it refuses this as well.",
    ),
    (
        BOTH,
        &["leaf: version 4", "leaf: an unknown extension twice"],
        "RFC 5280 sections 4.1.2.1 and 4.2: there is no such version, and no extension occurs twice.",
    ),
    (
        BOTH,
        &["leaf: another key's authority identifier"],
        "The other way round. RFC 5280 section 4.2.1.1: the identifier helps to find the issuer; the signature proves it.",
    ),
    (
        &[OpenSsl],
        &["leaf: no key identifiers", "intermediate: no key identifiers"],
        "The other way round. Strict mode demands the identifiers of authorities' own making; nothing is proved by them.",
    ),
    (
        &[OpenSsl],
        &["leaf: ends now"],
        "The other way round. RFC 5280 section 4.1.2.5: valid through notAfter, inclusive.",
    ),
    (
        &[Certvalidator],
        &["chain: garbage behind"],
        "The other way round. It parses all of what is sent; what no path needs does not matter to the verifier.",
    ),
    (
        &[Certvalidator],
        &[
            "root: version 1",
            "root: not an authority",
            "root: no basic constraints",
            "root: path length 0",
            "root: may not sign certificates",
            "root: no key usage",
            "root: over for a second",
            "root: begins in a second",
            "root: for servers only",
            "root: constrained to another",
            "root: an unknown critical extension",
            "spire: root with path length 0",
            "istio: root not an authority",
            "istio: root over for a second",
        ],
        "RFC 5280 section 6.1.1 takes of an anchor its name and its key. The verifier holds it to what it says of itself,
         as OpenSSL does, or an overlap of two roots would never end.",
    ),
    (
        &[Certvalidator],
        &[
            "leaf: version 1",
            "leaf: version 2",
            "leaf: two algorithms",
            "leaf: key usage twice",
            "leaf: names twice",
            "leaf: no subject, names not critical",
            "leaf: time without seconds",
            "leaf: time with an offset",
            "leaf: a key that is none",
            "name: an empty list",
            "intermediate: version 1",
            "intermediate: two algorithms",
            "intermediate: key usage twice",
            "leaf: a path length without being an authority",
            "intermediate: basic constraints not critical",
        ],
        "RFC 5280 sections 4.1 and 4.2, of the form of certificates. It reads them leniently; OpenSSL does not.",
    ),
    (
        &[Certvalidator],
        &["intermediate: no key usage", "intermediate: for servers only", "intermediate: for mail only"],
        "It takes an authority without key usage for one that may sign, and asks the leaf alone for its purposes.",
    ),
];
