//! The chains: each is a good one of some variant with exactly one thing changed, and says what the verifier must think.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hawser_tunnel::testing::certificate::{Certificate, Key, extension as x, *};
use rcgen::RsaKeySize;
use rustls_pki_types::CertificateDer;

mod authorities;
mod foreign;
mod leaf;

use authorities::{INTERMEDIATE, ROOT_AND_CHAIN};
use foreign::{ISTIO, SPIRE};
use leaf::{LEAF_EXTENSIONS, LEAF_FIELDS, LEAF_NAMES};

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

/// All rows with the shape that they are about.
pub(crate) fn rows() -> impl Iterator<Item = (Shape, &'static Row)> {
    let fabric = [LEAF_FIELDS, LEAF_NAMES, LEAF_EXTENSIONS, INTERMEDIATE, ROOT_AND_CHAIN].into_iter().flatten();
    let fabric = fabric.map(|row| (Shape::Fabric, row));
    fabric.chain(SPIRE.iter().map(|row| (Shape::Spire, row))).chain(ISTIO.iter().map(|row| (Shape::Istio, row)))
}
