//! The chains: each is a good one of some variant with exactly one thing changed, and says what the verifier must think.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hawser_tunnel::testing::certificate::{Certificate, Key, extension as x, *};
use rcgen::RsaKeySize;
use rustls_pki_types::CertificateDer;

/// The time of all these chains: 2030-03-17, so that both kinds of ASN.1 time are at hand.
pub(crate) const NOW: u64 = 1_900_000_000;
const HOUR: u64 = 3600;

pub(crate) fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// What one row changes: before the certificates are signed, or after.
pub(crate) enum Change {
    Before(fn(&mut Scene)),
    After(fn(&Scene, &mut Built)),
}
pub(crate) use Change::{After, Before};

/// A row: what is changed, what the verifier must say of it, how.
pub(crate) type Row = (&'static str, &'static str, Change);
/// It is accepted.
pub(crate) const GOOD: &str = "";

/// Where a chain's trust comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    /// Root, intermediate by our profile, leaf.
    Fabric,
    /// SPIRE under an upstream, by its own bundle.
    Spire,
    /// istiod's self-signed root issues leaves.
    Istio,
}

/// A chain before it is signed.
pub(crate) struct Scene {
    pub(crate) shape: Shape,
    pub(crate) domain: String,
    pub(crate) id: String,
    pub(crate) root: Certificate,
    pub(crate) intermediate: Certificate,
    pub(crate) leaf: Certificate,
    pub(crate) intermediate_signer: &'static Key,
    pub(crate) leaf_signer: &'static Key,
    pub(crate) keys: [&'static Key; 3],
    /// Nobody's.
    pub(crate) other: &'static Key,
    pub(crate) now: u64,
    /// Strangers and the root behind what is needed.
    extras: u64,
}

/// A chain as it is sent, and the anchors of its trust domain.
pub(crate) struct Built {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) anchors: Vec<CertificateDer<'static>>,
}

/// Small, quick and the same each time.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// Three roles and a stranger, each with every kind of key; P-256, the most used, several times.
fn pool() -> &'static [[Key; 6]; 4] {
    static POOL: OnceLock<[[Key; 6]; 4]> = OnceLock::new();
    let kinds = || [Key::p256(), Key::p256(), Key::p256(), Key::p384(), Key::ed25519(), Key::rsa(RsaKeySize::_2048)];
    POOL.get_or_init(|| [kinds(), kinds(), kinds(), kinds()])
}

const DOMAINS: &[&str] = &["east.example", "e", "east-1.prod.example.org", "a.b.c.d.e.f.example"];

impl Scene {
    /// A good chain; `variant` chooses keys, names, and what a chain may have beside.
    pub(crate) fn new(shape: Shape, variant: u64) -> Self {
        let mut dice = Dice(variant);
        let mut key = |role: usize| &pool()[role][dice.roll(6) as usize];
        let keys = [key(0), key(1), key(2)];
        let [root_key, key, leaf_key] = keys;
        let domain = DOMAINS[dice.roll(DOMAINS.len() as u64) as usize].to_owned();
        let id = format!("spiffe://{domain}/ns/shop-{}/sa/Web_{variant}", dice.roll(100));
        let now = at(NOW);
        let mut root = Certificate::authority("root", root_key, "root", root_key, now);
        let mut intermediate = Certificate::authority("issuer", key, "root", root_key, now);
        let (issuer, issuer_key) = if shape == Shape::Istio { ("root", root_key) } else { ("issuer", key) };
        let mut leaf = Certificate::svid(&id, leaf_key, issuer, issuer_key, now);
        // Issuer and serial number together name a certificate; the leaf's serial number follows below.
        root.serial = vec![1];
        intermediate.serial = vec![2];
        if shape != Shape::Istio {
            intermediate.set(x::NAMES, false, names(&[uri(&format!("spiffe://{domain}"))]));
        }
        if shape == Shape::Fabric {
            root.set(x::BASIC, true, basic(true, Some(1)));
            intermediate.set(x::BASIC, true, basic(true, Some(0)));
            intermediate.set(x::NAME_CONSTRAINTS, true, name_constraints(&[uri(&domain)], &[]));
        }
        match dice.roll(4) {
            0 => leaf.set(x::NAMES, false, names(&[dns("web.shop.svc"), uri(&id)])),
            1 => leaf.set(x::NAMES, true, names(&[uri(&id)])),
            2 => leaf.unset(x::EXTENDED),
            _ => {}
        }
        if dice.roll(3) == 0 {
            leaf.extensions.reverse();
        }
        leaf.serial = (0..=dice.roll(15) as u8).map(|byte| byte + 3).collect();
        let extras = dice.roll(4);
        let intermediate_signer = root_key;
        let (leaf_signer, other) = (issuer_key, &pool()[3][0]);
        let now = NOW;
        Self { shape, domain, id, root, intermediate, leaf, intermediate_signer, leaf_signer, keys, other, now, extras }
    }

    pub(crate) fn root_der(&self) -> CertificateDer<'static> {
        self.root.signed_by(self.keys[0])
    }

    pub(crate) fn stranger(&self) -> CertificateDer<'static> {
        Certificate::authority("stranger", self.other, "stranger", self.other, at(NOW)).signed_by(self.other)
    }

    pub(crate) fn build(&self) -> Built {
        let root = self.root_der();
        let mut chain = vec![self.leaf.signed_by(self.leaf_signer)];
        if self.shape != Shape::Istio {
            chain.push(self.intermediate.signed_by(self.intermediate_signer));
        }
        match self.extras {
            0 => chain.push(root.clone()),
            1 => chain.insert(1, self.stranger()),
            _ => {}
        }
        Built { chain, anchors: vec![root] }
    }

    pub(crate) fn set_leaf_names(&mut self, texts: &[&str]) {
        let uris: Vec<Vec<u8>> = texts.iter().map(|text| uri(text)).collect();
        self.leaf.set(x::NAMES, true, names(&uris));
    }

    /// The leaf's one URI name, with what goes for the trust domain put in for `DOMAIN`.
    fn name_leaf(&mut self, text: &str) {
        let text = text.replace("DOMAIN", &self.domain);
        self.set_leaf_names(&[&text]);
    }

    fn constrain(&mut self, permitted: &[Vec<u8>], excluded: &[Vec<u8>]) {
        self.intermediate.set(x::NAME_CONSTRAINTS, true, name_constraints(permitted, excluded));
    }
}

const UNKNOWN: &[u8] = &[0x2b, 6, 1, 4, 1, 0x86, 0x8d, 0x1f, 1];
const EMAIL: &[u8] = &[4];

fn any_purpose() -> Vec<u8> {
    sequence(&[oid(&[0x55, 0x1d, 37, 0])])
}

/// An algorithm that is none of anybody's.
fn nonsense() -> Vec<u8> {
    sequence(&[oid(&[0x2a, 0x03, 0x04])])
}

/// Changes the last byte of a certificate, which is part of the signature.
fn spoil(der: &CertificateDer<'_>) -> CertificateDer<'static> {
    let mut bytes = der.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    bytes.into()
}

/// What is changed in the leaf's fields before its extensions.
pub(crate) const LEAF_FIELDS: &[Row] = &[
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
pub(crate) const LEAF_NAMES: &[Row] = &[
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
pub(crate) const LEAF_EXTENSIONS: &[Row] = &[
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

/// What is changed in the intermediate, held to our profile.
pub(crate) const INTERMEDIATE: &[Row] = &[
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
pub(crate) const ROOT_AND_CHAIN: &[Row] = &[
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

/// What is changed in a chain of SPIRE's make, below the anchors of its own bundle.
pub(crate) const SPIRE: &[Row] = &[
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
pub(crate) const ISTIO: &[Row] = &[
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

/// All rows with the shape that they are about.
pub(crate) fn rows() -> impl Iterator<Item = (Shape, &'static Row)> {
    let fabric = [LEAF_FIELDS, LEAF_NAMES, LEAF_EXTENSIONS, INTERMEDIATE, ROOT_AND_CHAIN].into_iter().flatten();
    let fabric = fabric.map(|row| (Shape::Fabric, row));
    fabric.chain(SPIRE.iter().map(|row| (Shape::Spire, row))).chain(ISTIO.iter().map(|row| (Shape::Istio, row)))
}
