//! Chains that are right, and chains that are broken in exactly one thing.

use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};

use x509_parser::prelude::{FromDer, GeneralName, NameConstraints};

use super::*;

mod bounds;
mod paths;

const EAST: &str = "east.example";
const LEAF_ID: &str = "spiffe://east.example/ns/shop/sa/web";

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// The time of these tests.
const NOW: u64 = 2_000_000_000;
const HOUR: u64 = 3600;

fn domain(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

struct Keys {
    root: KeyPair,
    intermediate: KeyPair,
    leaf: KeyPair,
    other: KeyPair,
}

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    let new = || KeyPair::generate().unwrap();
    KEYS.get_or_init(|| Keys { root: new(), intermediate: new(), leaf: new(), other: new() })
}

/// What a chain is made of; each test breaks one thing.
struct Parts {
    root: CertificateParams,
    intermediate: CertificateParams,
    leaf: CertificateParams,
    /// Who really signs the intermediate and the leaf.
    intermediate_signer: &'static KeyPair,
    leaf_signer: &'static KeyPair,
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = at(NOW - HOUR).into();
    params.not_after = at(NOW + HOUR).into();
    params
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn extension(oid: &[u64], critical: bool, contents: &[u8]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, contents.to_vec());
    extension.set_criticality(critical);
    extension
}

const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
const ALTERNATIVE_NAME: &[u64] = &[2, 5, 29, 17];
const NAME_CONSTRAINTS: &[u64] = &[2, 5, 29, 30];
const UNKNOWN: &[u64] = &[1, 3, 6, 1, 4, 1, 99999, 1];

fn constrained_to(name: &str) -> Vec<CustomExtension> {
    vec![extension(NAME_CONSTRAINTS, true, &name_constraint(&domain(name)))]
}

impl Parts {
    fn good() -> Self {
        let mut root = named("root");
        root.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let mut intermediate = named("east");
        intermediate.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        intermediate.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        intermediate.subject_alt_names = vec![uri("spiffe://east.example")];
        intermediate.custom_extensions = constrained_to(EAST);
        let mut leaf = named("leaf");
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        leaf.subject_alt_names = vec![uri(LEAF_ID)];
        Self { root, intermediate, leaf, intermediate_signer: &keys().root, leaf_signer: &keys().intermediate }
    }

    fn root(&self) -> CertificateDer<'static> {
        self.root.self_signed(&keys().root).unwrap().der().clone()
    }

    fn intermediate(&self) -> CertificateDer<'static> {
        let issuer = rcgen::Issuer::from_params(&self.root, self.intermediate_signer);
        self.intermediate.signed_by(&keys().intermediate, &issuer).unwrap().der().clone()
    }

    fn leaf(&self) -> CertificateDer<'static> {
        let issuer = rcgen::Issuer::from_params(&self.intermediate, self.leaf_signer);
        self.leaf.signed_by(&keys().leaf, &issuer).unwrap().der().clone()
    }

    /// Leaf, intermediate; the root is the anchor of east.example.
    fn verify(&self) -> Result<Svid, VerifyError> {
        let anchors = [Anchor::read(&self.root(), &domain(EAST))?];
        check(&[self.leaf(), self.intermediate()], &anchors, NOW)
    }
}

fn check(chain: &[CertificateDer<'_>], anchors: &[Anchor], now: u64) -> Result<Svid, VerifyError> {
    verify(chain, at(now), |asked| (asked.as_str() == EAST).then_some(anchors))
}

#[test]
fn a_good_chain_proves_its_identity() {
    let parts = Parts::good();
    let svid = parts.verify().unwrap();
    assert_eq!(svid.id.as_str(), LEAF_ID);
    assert_eq!(svid.not_after, at(NOW + HOUR));
    assert_eq!(svid.anchor, Anchor::read(&parts.root(), &domain(EAST)).unwrap().fingerprint());
}

/// What is broken, how, and what the refusal says.
type Row = (&'static str, fn(&mut Parts), &'static str);

fn refused(rows: &[Row]) {
    for (what, break_it, says) in rows {
        let mut parts = Parts::good();
        break_it(&mut parts);
        match parts.verify() {
            Ok(svid) => panic!("{what}: accepted as {}", svid.id),
            Err(error) => assert!(error.to_string().contains(says), "{what}: {error:?} does not say {says:?}"),
        }
    }
}

/// What is different, and how.
type Change = (&'static str, fn(&mut Parts));

fn accepted(rows: &[Change]) {
    for (what, change) in rows {
        let mut parts = Parts::good();
        change(&mut parts);
        assert!(parts.verify().is_ok(), "{what}: {:?}", parts.verify());
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn a_leaf_with_one_fault_is_refused() {
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyAgreement, KeyCertSign};
    let rows: &[Row] = &[
        ("no name", |p| p.leaf.subject_alt_names.clear(), "0 URI names"),
        ("two IDs", |p| p.leaf.subject_alt_names.push(uri("spiffe://east.example/b")), "2 URI names"),
        ("the same ID twice", |p| p.leaf.subject_alt_names.push(uri(LEAF_ID)), "2 URI names"),
        ("an ID and a web address", |p| p.leaf.subject_alt_names.push(uri("https://east.example/")), "2 URI names"),
        ("a web address", |p| p.leaf.subject_alt_names = vec![uri("https://east.example/a")], "spiffe://"),
        (
            "a DNS name only",
            |p| p.leaf.subject_alt_names = vec![SanType::DnsName(EAST.try_into().unwrap())],
            "0 URI names",
        ),
        ("no path", |p| p.leaf.subject_alt_names = vec![uri("spiffe://east.example")], "no path"),
        ("the root path", |p| p.leaf.subject_alt_names = vec![uri("spiffe://east.example/")], "empty path segment"),
        ("a dot segment", |p| p.leaf.subject_alt_names = vec![uri("spiffe://east.example/a/../b")], "'..'"),
        ("a port", |p| p.leaf.subject_alt_names = vec![uri("spiffe://east.example:1/a")], "trust domain"),
        ("a query", |p| p.leaf.subject_alt_names = vec![uri("spiffe://east.example/a?b")], "path"),
        (
            "an ID that is too long",
            |p| p.leaf.subject_alt_names = vec![uri(&format!("spiffe://east.example/{}", "a".repeat(2048)))],
            "longer than 2048",
        ),
        (
            "another trust domain",
            |p| p.leaf.subject_alt_names = vec![uri("spiffe://west.example/a")],
            "no anchors of trust domain west.example",
        ),
        (
            "a trust domain that begins like ours",
            |p| p.leaf.subject_alt_names = vec![uri("spiffe://east.example.evil/a")],
            "no anchors",
        ),
        ("an authority", |p| p.leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), "an authority, not a leaf"),
        ("no key usage", |p| p.leaf.key_usages.clear(), "without key usage"),
        (
            "a key usage that is not critical",
            |p| {
                p.leaf.key_usages.clear();
                p.leaf.custom_extensions = vec![extension(KEY_USAGE, false, &[3, 2, 7, 0x80])];
            },
            "not critical",
        ),
        ("may sign certificates", |p| p.leaf.key_usages = vec![DigitalSignature, KeyCertSign], "may sign"),
        ("may sign revocation lists", |p| p.leaf.key_usages = vec![DigitalSignature, CrlSign], "may sign"),
        ("may not sign at all", |p| p.leaf.key_usages = vec![KeyAgreement], "may not make signatures"),
        (
            "for servers only",
            |p| p.leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            "both server and client",
        ),
        (
            "for clients only",
            |p| p.leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            "both server and client",
        ),
        (
            "for e-mail",
            |p| p.leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection],
            "both server and client",
        ),
        (
            "an empty subject, names not critical",
            |p| {
                p.leaf.distinguished_name = DistinguishedName::new();
                let mut names = vec![0x30, 2 + LEAF_ID.len() as u8, 0x86, LEAF_ID.len() as u8];
                names.extend_from_slice(LEAF_ID.as_bytes());
                p.leaf.subject_alt_names.clear();
                p.leaf.custom_extensions = vec![extension(ALTERNATIVE_NAME, false, &names)];
            },
            "not critical",
        ),
        (
            "an unknown critical extension",
            |p| p.leaf.custom_extensions = vec![extension(UNKNOWN, true, &[5, 0])],
            "UnsupportedCriticalExtension",
        ),
        (
            "an extension twice",
            |p| {
                let again = extension(KEY_USAGE, true, &[3, 2, 7, 0x80]);
                p.leaf.custom_extensions = vec![again];
            },
            "occurs twice",
        ),
        (
            "names that are not DER",
            |p| {
                p.leaf.subject_alt_names.clear();
                p.leaf.custom_extensions = vec![extension(ALTERNATIVE_NAME, false, &[0x30, 0x7f, 1])];
            },
            "malformed extension",
        ),
        ("a life of ten years", |p| p.leaf.not_after = at(NOW + 10 * 365 * 24 * HOUR).into(), "lives longer"),
        ("signed by another key", |p| p.leaf_signer = &keys().other, "InvalidSignature"),
    ];
    refused(rows);
}

#[test]
fn what_a_leaf_may_have_is_accepted() {
    accepted(&[
        ("a DNS name beside the ID", |p| {
            p.leaf.subject_alt_names.push(SanType::DnsName("web.shop.svc".try_into().unwrap()));
        }),
        ("no extended key usage", |p| p.leaf.extended_key_usages.clear()),
        ("no basic constraints", |p| p.leaf.is_ca = IsCa::NoCa),
        ("an empty subject, names critical", |p| p.leaf.distinguished_name = DistinguishedName::new()),
        ("an ID in capitals", |p| {
            p.leaf.subject_alt_names = vec![uri("SPIFFE://East.Example/ns/shop/sa/web")];
        }),
        ("an unknown extension that is not critical", |p| {
            p.leaf.custom_extensions = vec![extension(UNKNOWN, false, &[5, 0])];
        }),
        ("key agreement beside signatures", |p| p.leaf.key_usages.push(KeyUsagePurpose::KeyAgreement)),
    ]);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn an_intermediate_with_one_fault_is_refused() {
    let rows: &[Row] = &[
        ("not an authority", |p| p.intermediate.is_ca = IsCa::ExplicitNoCa, "not an authority"),
        ("no basic constraints", |p| p.intermediate.is_ca = IsCa::NoCa, "not an authority"),
        ("path length 1", |p| p.intermediate.is_ca = IsCa::Ca(BasicConstraints::Constrained(1)), "path length"),
        ("no path length", |p| p.intermediate.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), "path length"),
        ("no key usage", |p| p.intermediate.key_usages.clear(), "may not sign certificates"),
        (
            "may not sign certificates",
            |p| p.intermediate.key_usages = vec![KeyUsagePurpose::CrlSign],
            "may not sign certificates",
        ),
        (
            "a key usage that is not critical",
            |p| {
                p.intermediate.key_usages.clear();
                p.intermediate.custom_extensions.push(extension(KEY_USAGE, false, &[3, 2, 2, 4]));
            },
            "not critical",
        ),
        ("no trust domain", |p| p.intermediate.subject_alt_names.clear(), "authority of no trust domain"),
        (
            "another trust domain",
            |p| p.intermediate.subject_alt_names = vec![uri("spiffe://west.example")],
            "authority of west.example",
        ),
        (
            "an ID with a path",
            |p| p.intermediate.subject_alt_names = vec![uri("spiffe://east.example/a")],
            "is no trust domain",
        ),
        (
            "two trust domains",
            |p| p.intermediate.subject_alt_names.push(uri("spiffe://west.example")),
            "several URI names",
        ),
        ("no name constraint", |p| p.intermediate.custom_extensions.clear(), "name constraint"),
        (
            "constrained to another",
            |p| p.intermediate.custom_extensions = constrained_to("west.example"),
            "name constraint",
        ),
        (
            "constrained to subdomains",
            |p| p.intermediate.custom_extensions = constrained_to(".east.example"),
            "name constraint",
        ),
        (
            "a constraint that is not critical",
            |p| {
                let constraint = name_constraint(&domain(EAST));
                p.intermediate.custom_extensions = vec![extension(NAME_CONSTRAINTS, false, &constraint)];
            },
            "name constraint",
        ),
        (
            "constrained to two",
            |p| {
                // permitted { URI "a", URI "b" }
                let both = [0x30, 12, 0xa0, 10, 0x30, 3, 0x86, 1, b'a', 0x30, 3, 0x86, 1, b'b'];
                p.intermediate.custom_extensions = vec![extension(NAME_CONSTRAINTS, true, &both)];
            },
            "name constraint",
        ),
        (
            "constrained by exclusion",
            |p| {
                let mut excluded = name_constraint(&domain(EAST));
                excluded[2] = 0xa1;
                p.intermediate.custom_extensions = vec![extension(NAME_CONSTRAINTS, true, &excluded)];
            },
            "name constraint",
        ),
        (
            "an unknown critical extension",
            |p| p.intermediate.custom_extensions.push(extension(UNKNOWN, true, &[5, 0])),
            "unknown critical extension",
        ),
        (
            "for servers only",
            |p| p.intermediate.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            "leaves out server or client",
        ),
        ("signed by another key", |p| p.intermediate_signer = &keys().other, "did not sign it"),
        ("over", |p| p.intermediate.not_after = at(NOW - 1).into(), "the intermediate ended 1 s ago"),
        (
            "not begun",
            |p| p.intermediate.not_before = at(NOW + 5).into(),
            "the intermediate begins in 5 s: compare the clocks",
        ),
    ];
    refused(rows);
}

#[test]
fn an_anchor_with_one_fault_is_refused() {
    let rows: &[Row] = &[
        ("not an authority", |p| p.root.is_ca = IsCa::ExplicitNoCa, "not an authority"),
        ("may not sign", |p| p.root.key_usages = vec![KeyUsagePurpose::DigitalSignature], "may not sign certificates"),
        ("path length 0", |p| p.root.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)), "signed the intermediate"),
        (
            "of another trust domain",
            |p| p.root.subject_alt_names = vec![uri("spiffe://west.example")],
            "is an authority of west.example, not of east.example",
        ),
        (
            "constrained to another trust domain",
            |p| p.root.custom_extensions = constrained_to("west.example"),
            "name constraints other than",
        ),
        (
            "an unknown critical extension",
            |p| p.root.custom_extensions.push(extension(UNKNOWN, true, &[5, 0])),
            "unknown critical extension",
        ),
        ("over", |p| p.root.not_after = at(NOW - 1).into(), "the anchor ended 1 s ago"),
        ("not begun", |p| p.root.not_before = at(NOW + 1).into(), "the anchor begins in 1 s"),
    ];
    refused(rows);
    accepted(&[
        ("of this trust domain", |p| p.root.subject_alt_names = vec![uri("spiffe://EAST.example")]),
        ("constrained to this trust domain", |p| p.root.custom_extensions = constrained_to(EAST)),
        ("no path length", |p| p.root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
        ("with a DNS name", |p| p.root.subject_alt_names = vec![SanType::DnsName("ca".try_into().unwrap())]),
    ]);
}
