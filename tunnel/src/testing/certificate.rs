//! Certificates field by field, for tests: each field can be what no library would write.
//!
//! ```
//! use hawser_tunnel::testing::certificate::{self as x509, Certificate, Key};
//! let key = Key::p256();
//! let now = hawser_tunnel::testing::clock();
//! let root = Certificate::authority("root", &key, "root", &key, now).signed_by(&key);
//! # assert!(root.len() > 200);
//! ```

use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PublicKeyData, RsaKeySize, SigningKey};
use rustls_pki_types::CertificateDer;

/// A key with the AlgorithmIdentifier of its signatures.
pub struct Key {
    /// The pair.
    pub pair: KeyPair,
    /// DER.
    pub algorithm: Vec<u8>,
}

impl Key {
    /// ECDSA P-256 with SHA-256.
    pub fn p256() -> Self {
        let pair = KeyPair::generate().unwrap();
        Self { pair, algorithm: sequence(&[oid(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2])]) }
    }

    /// ECDSA P-384 with SHA-384.
    pub fn p384() -> Self {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        Self { pair, algorithm: sequence(&[oid(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3])]) }
    }

    /// Ed25519.
    pub fn ed25519() -> Self {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        Self { pair, algorithm: sequence(&[oid(&[0x2b, 0x65, 0x70])]) }
    }

    /// RSA of this size, PKCS#1 with SHA-256.
    pub fn rsa(size: RsaKeySize) -> Self {
        let pair = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, size).unwrap();
        let null = vec![5, 0];
        Self { pair, algorithm: sequence(&[oid(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11]), null]) }
    }

    /// Its SubjectPublicKeyInfo.
    pub fn spki(&self) -> Vec<u8> {
        self.pair.subject_public_key_info()
    }

    /// Ten bytes that name it.
    pub fn identifier(&self) -> Vec<u8> {
        use aws_lc_rs::digest::{SHA256, digest};
        digest(&SHA256, &self.spki()).as_ref().iter().copied().take(10).collect()
    }
}

/// One extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extension {
    /// The OID's contents: `2.5.29.x` as `[0x55, 0x1d, x]`.
    pub oid: Vec<u8>,
    /// Whether a reader that does not know it must refuse the certificate.
    pub critical: bool,
    /// DER, or anything else.
    pub value: Vec<u8>,
}

/// A certificate before it is signed; every field is DER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// 2 is version 3; `None` is version 1.
    pub version: Option<u8>,
    /// The INTEGER's contents.
    pub serial: Vec<u8>,
    /// The algorithm as the signed part names it; by default that of the key.
    pub algorithm: Option<Vec<u8>>,
    /// Name.
    pub issuer: Vec<u8>,
    /// Time.
    pub not_before: Vec<u8>,
    /// Time.
    pub not_after: Vec<u8>,
    /// Name.
    pub subject: Vec<u8>,
    /// SubjectPublicKeyInfo.
    pub key: Vec<u8>,
    /// What stands between key and extensions: unique identifiers of version 2.
    pub unique: Vec<u8>,
    /// In this order.
    pub extensions: Vec<Extension>,
}

/// Of `2.5.29.x`.
pub mod extension {
    /// subjectKeyIdentifier
    pub const SUBJECT_KEY: u8 = 14;
    /// keyUsage
    pub const KEY_USAGE: u8 = 15;
    /// subjectAltName
    pub const NAMES: u8 = 17;
    /// basicConstraints
    pub const BASIC: u8 = 19;
    /// nameConstraints
    pub const NAME_CONSTRAINTS: u8 = 30;
    /// authorityKeyIdentifier
    pub const AUTHORITY_KEY: u8 = 35;
    /// extKeyUsage
    pub const EXTENDED: u8 = 37;
}
use extension as x;

/// digitalSignature, as [`key_usage`] wants it.
pub const SIGN: u16 = 1 << 0;
/// keyCertSign
pub const CERT_SIGN: u16 = 1 << 5;
/// cRLSign
pub const CRL_SIGN: u16 = 1 << 6;
/// serverAuth (id-kp 1) and clientAuth (id-kp 2).
pub const BOTH_ENDS: &[u8] = &[1, 2];

impl Certificate {
    /// What any certificate has, for an hour each way from `now`.
    pub fn new(subject: &str, key: &Key, issuer: &str, issuer_key: &Key, now: SystemTime) -> Self {
        let mut certificate = Self {
            version: Some(2),
            serial: vec![0x01, 0x42],
            algorithm: None,
            issuer: name(issuer),
            not_before: time(now - Duration::from_secs(3600)),
            not_after: time(now + Duration::from_secs(3600)),
            subject: name(subject),
            key: key.spki(),
            unique: Vec::new(),
            extensions: Vec::new(),
        };
        certificate.set(x::SUBJECT_KEY, false, tlv(4, &key.identifier()));
        certificate.set(x::AUTHORITY_KEY, false, sequence(&[tlv(0x80, &issuer_key.identifier())]));
        certificate
    }

    /// An authority without a path length, a name of its own or constraints.
    pub fn authority(subject: &str, key: &Key, issuer: &str, issuer_key: &Key, now: SystemTime) -> Self {
        let mut certificate = Self::new(subject, key, issuer, issuer_key, now);
        certificate.set(x::BASIC, true, basic(true, None));
        certificate.set(x::KEY_USAGE, true, key_usage(CERT_SIGN | CRL_SIGN));
        certificate
    }

    /// An X509-SVID of this ID.
    pub fn svid(id: &str, key: &Key, issuer: &str, issuer_key: &Key, now: SystemTime) -> Self {
        let mut certificate = Self::new("workload", key, issuer, issuer_key, now);
        certificate.set(x::BASIC, true, basic(false, None));
        certificate.set(x::KEY_USAGE, true, key_usage(SIGN));
        certificate.set(x::EXTENDED, false, extended(BOTH_ENDS));
        certificate.set(x::NAMES, false, names(&[uri(id)]));
        certificate
    }

    /// Sets the extension `2.5.29.which`, in its place if it is there.
    pub fn set(&mut self, which: u8, critical: bool, value: Vec<u8>) {
        let new = Extension { oid: vec![0x55, 0x1d, which], critical, value };
        match self.extensions.iter_mut().find(|known| known.oid == new.oid) {
            Some(known) => *known = new,
            None => self.extensions.push(new),
        }
    }

    /// Takes the extension `2.5.29.which` away.
    pub fn unset(&mut self, which: u8) {
        self.extensions.retain(|known| known.oid != [0x55, 0x1d, which]);
    }

    /// Adds an extension, also one that is there already.
    pub fn add(&mut self, oid: &[u8], critical: bool, value: Vec<u8>) {
        self.extensions.push(Extension { oid: oid.to_vec(), critical, value });
    }

    /// The part that is signed.
    pub fn body(&self, algorithm: &[u8]) -> Vec<u8> {
        let version = self.version.map(|v| tlv(0xa0, &tlv(2, &[v]))).unwrap_or_default();
        let algorithm = self.algorithm.clone().unwrap_or_else(|| algorithm.to_vec());
        let validity = sequence(&[self.not_before.clone(), self.not_after.clone()]);
        let extensions: Vec<Vec<u8>> = self.extensions.iter().map(Extension::der).collect();
        let extensions = if extensions.is_empty() { Vec::new() } else { tlv(0xa3, &sequence(&extensions)) };
        sequence(&[
            version,
            tlv(2, &self.serial),
            algorithm,
            self.issuer.clone(),
            validity,
            self.subject.clone(),
            self.key.clone(),
            self.unique.clone(),
            extensions,
        ])
    }

    /// The certificate, signed.
    pub fn signed_by(&self, key: &Key) -> CertificateDer<'static> {
        let body = self.body(&key.algorithm);
        let signature = key.pair.sign(&body).unwrap();
        assemble(&body, &key.algorithm, &signature)
    }
}

/// A certificate of its three parts.
pub fn assemble(body: &[u8], algorithm: &[u8], signature: &[u8]) -> CertificateDer<'static> {
    let mut bits = vec![0];
    bits.extend_from_slice(signature);
    sequence(&[body.to_vec(), algorithm.to_vec(), tlv(3, &bits)]).into()
}

impl Extension {
    fn der(&self) -> Vec<u8> {
        let critical = if self.critical { vec![1, 1, 0xff] } else { Vec::new() };
        sequence(&[oid(&self.oid), critical, tlv(4, &self.value)])
    }
}

/// DER of one value.
pub fn tlv(tag: u8, contents: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match contents.len() {
        short @ 0..=0x7f => out.push(short as u8),
        long => {
            let bytes: Vec<u8> = long.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
            out.push(0x80 | bytes.len() as u8);
            out.extend(bytes);
        }
    }
    out.extend_from_slice(contents);
    out
}

/// A SEQUENCE of these.
pub fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

/// An OBJECT IDENTIFIER of these contents.
pub fn oid(contents: &[u8]) -> Vec<u8> {
    tlv(6, contents)
}

/// A Name with one common name; none at all if it is empty.
pub fn name(common: &str) -> Vec<u8> {
    if common.is_empty() {
        return sequence(&[]);
    }
    let attribute = sequence(&[oid(&[0x55, 0x04, 0x03]), tlv(0x0c, common.as_bytes())]);
    sequence(&[tlv(0x31, &attribute)])
}

/// UTCTime until 2049, GeneralizedTime from then on (RFC 5280 section 4.1.2.5).
pub fn time(at: SystemTime) -> Vec<u8> {
    let t = time::OffsetDateTime::from(at);
    if t.year() < 2050 { utc_time(at) } else { generalized_time(at) }
}

/// UTCTime.
pub fn utc_time(at: SystemTime) -> Vec<u8> {
    let t = time::OffsetDateTime::from(at);
    let year = t.year() % 100;
    tlv(0x17, format!("{year:02}{}", rest_of_time(t)).as_bytes())
}

/// GeneralizedTime.
pub fn generalized_time(at: SystemTime) -> Vec<u8> {
    let t = time::OffsetDateTime::from(at);
    tlv(0x18, format!("{:04}{}", t.year(), rest_of_time(t)).as_bytes())
}

fn rest_of_time(t: time::OffsetDateTime) -> String {
    let month = u8::from(t.month());
    format!("{month:02}{:02}{:02}{:02}{:02}Z", t.day(), t.hour(), t.minute(), t.second())
}

/// BasicConstraints.
pub fn basic(authority: bool, path_length: Option<u8>) -> Vec<u8> {
    let authority = if authority { vec![1, 1, 0xff] } else { Vec::new() };
    sequence(&[authority, path_length.map(|length| tlv(2, &[length])).unwrap_or_default()])
}

/// KeyUsage; bit n of `bits` is bit n of the standard.
pub fn key_usage(bits: u16) -> Vec<u8> {
    let used = 16 - bits.leading_zeros();
    let mut bytes: Vec<u8> = (0..used.div_ceil(8)).map(|i| ((bits >> (8 * i)) as u8).reverse_bits()).collect();
    bytes.insert(0, (8 - used % 8) as u8 % 8);
    tlv(3, &bytes)
}

/// ExtendedKeyUsage of these purposes below id-kp.
pub fn extended(purposes: &[u8]) -> Vec<u8> {
    let purpose = |last: &u8| oid(&[0x2b, 6, 1, 5, 5, 7, 3, *last]);
    sequence(&purposes.iter().map(purpose).collect::<Vec<_>>())
}

/// GeneralNames.
pub fn names(names: &[Vec<u8>]) -> Vec<u8> {
    sequence(names)
}

/// A URI as a GeneralName.
pub fn uri(text: &str) -> Vec<u8> {
    tlv(0x86, text.as_bytes())
}

/// A DNS name as a GeneralName.
pub fn dns(text: &str) -> Vec<u8> {
    tlv(0x82, text.as_bytes())
}

/// NameConstraints of GeneralNames.
pub fn name_constraints(permitted: &[Vec<u8>], excluded: &[Vec<u8>]) -> Vec<u8> {
    let trees = |tag, bases: &[Vec<u8>]| {
        let trees: Vec<Vec<u8>> = bases.iter().map(|base| sequence(std::slice::from_ref(base))).collect();
        if trees.is_empty() { Vec::new() } else { tlv(tag, &trees.concat()) }
    };
    sequence(&[trees(0xa0, permitted), trees(0xa1, excluded)])
}
