//! Who signs whom: a root, which may stay offline, signs one intermediate per cluster, and that signs leaves.
//!
//! ```text
//! init_root(dir)            dir/root.key, dir/root.crt                    once per fabric, where the root lives
//! make_csr(store, domain)   store/intermediate.key, store/intermediate.csr   in the cluster; the key never leaves
//! sign_intermediate(dir, csr)   intermediate.crt beside the CSR               where the root lives
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hawser_api::TrustDomain;
use hawser_runtime::file;
use hawser_tunnel::identity::BACKDATE;
use hawser_tunnel::verify::{AuthorityId, name_constraint};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{csr, hex};

mod token;

use token::RootKey;
pub use token::{Token, has_key};

/// Ten years: replacing a root is a rotation, and the root signs only a few times a year.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Ninety days bound what a stolen cluster key is good for.
pub const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(90 * 86_400);

const NAME_CONSTRAINTS: &[u64] = &[2, 5, 29, 30];
const REQUEST: &str = "CERTIFICATE REQUEST";

/// Names of the files in the root's directory and in a trust anchor's store.
pub mod names {
    /// The root's certificates, PEM; several while a root is being replaced.
    pub const ROOT_CERTIFICATE: &str = "root.crt";
    /// The root's key, PKCS#8 PEM.
    pub const ROOT_KEY: &str = "root.key";
    /// Where the root's key is, if it is on a token; JSON.
    pub const ROOT_TOKEN: &str = "root.token";
    /// The intermediate's certificate, PEM.
    pub const INTERMEDIATE_CERTIFICATE: &str = "intermediate.crt";
    /// The intermediate's key, PKCS#8 PEM.
    pub const INTERMEDIATE_KEY: &str = "intermediate.key";
    /// The intermediate's signing request, PEM.
    pub const INTERMEDIATE_CSR: &str = "intermediate.csr";
}

/// Why a certificate of the hierarchy cannot be made. The message names the file and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum HierarchyError {
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file has not the content that it should have.
    #[error("{path}: {reason}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There is a root already: making another would cut off all that hangs under it.
    #[error("{path} is there already\nhint: take another directory, or remove it if nothing hangs under it")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The request is for somebody else.
    #[error("the request is for trust domain {asked}, not for {expected}")]
    OtherDomain {
        /// What the request says.
        asked: TrustDomain,
        /// What the caller expects.
        expected: TrustDomain,
    },
    /// The root is over, or begins later.
    #[error(
        "{path}: the root is not valid now\nhint: compare the clock with its dates: openssl x509 -dates -in {path}"
    )]
    RootNotValid {
        /// The root's certificate.
        path: PathBuf,
    },
    /// The cryptography refused.
    #[error("cannot sign: {0}")]
    Sign(#[from] rcgen::Error),
}

/// A signed intermediate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// Its cluster's trust domain.
    pub domain: TrustDomain,
    /// Where it was written.
    pub path: PathBuf,
    /// Its end.
    pub not_after: SystemTime,
}

fn read(path: &Path) -> Result<Vec<u8>, HierarchyError> {
    fs::read(path).map_err(|error| HierarchyError::Io { path: path.to_owned(), error })
}

fn write(path: &Path, content: &str) -> Result<(), HierarchyError> {
    file::replace(path, content.as_bytes()).map_err(|error| HierarchyError::Io { path: path.to_owned(), error })
}

fn content(path: &Path, reason: impl ToString) -> HierarchyError {
    HierarchyError::Content { path: path.to_owned(), reason: reason.to_string() }
}

/// Reads a private key, PKCS#8 PEM.
pub(crate) fn read_key(path: &Path) -> Result<KeyPair, HierarchyError> {
    let pem = String::from_utf8(read(path)?).map_err(|_| content(path, "not PEM"))?;
    KeyPair::from_pem(&pem).map_err(|e| content(path, e))
}

/// Reads all certificates of a PEM file; at least one.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, HierarchyError> {
    let pem = read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|e| content(path, e))?;
    if certificates.is_empty() {
        return Err(content(path, "no certificate in it"));
    }
    Ok(certificates)
}

/// Makes a root in `dir` (made 0700): `root.key` and `root.crt`. `name` is for people; the subject also has the key's
/// fingerprint, because two authorities of one subject confuse every verifier. Returns the certificate's path.
pub fn init_root(dir: &Path, name: &str, now: SystemTime) -> Result<PathBuf, HierarchyError> {
    vacant(dir)?;
    let key = KeyPair::generate()?;
    // The key first: a certificate without its key would be published and could sign nothing.
    write(&dir.join(names::ROOT_KEY), &key.serialize_pem())?;
    self_sign(dir, name, &RootKey::File(key), now)
}

/// The same with a key that a token makes and never gives out: `root.token` says where it is.
pub fn init_root_on_token(dir: &Path, name: &str, token: &Token, now: SystemTime) -> Result<PathBuf, HierarchyError> {
    vacant(dir)?;
    let key = RootKey::make(dir, token)?;
    self_sign(dir, name, &key, now)
}

fn vacant(dir: &Path) -> Result<(), HierarchyError> {
    let files = [names::ROOT_KEY, names::ROOT_TOKEN, names::ROOT_CERTIFICATE].map(|name| dir.join(name));
    match files.into_iter().find(|path| path.exists()) {
        Some(path) => Err(HierarchyError::Exists { path }),
        None => Ok(()),
    }
}

fn self_sign(dir: &Path, name: &str, key: &RootKey, now: SystemTime) -> Result<PathBuf, HierarchyError> {
    let mut params = authority(&format!("{name} root"), key, now, now + ROOT_LIFETIME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    let path = dir.join(names::ROOT_CERTIFICATE);
    write(&path, &params.self_signed(key)?.pem())?;
    Ok(path)
}

/// Makes the key of a cluster's intermediate and a request for its certificate in the trust anchor's store; what is
/// there already and fits the trust domain stays. Returns the request's path.
pub fn make_csr(store: &Path, domain: &TrustDomain) -> Result<PathBuf, HierarchyError> {
    let (key_path, csr_path) = (store.join(names::INTERMEDIATE_KEY), store.join(names::INTERMEDIATE_CSR));
    let key = if key_path.exists() { read_key(&key_path)? } else { KeyPair::generate()? };
    if !key_path.exists() {
        write(&key_path, &key.serialize_pem())?;
    }
    let fits = read_csr(&csr_path)
        .is_ok_and(|(asked, request)| asked == *domain && request.public_key.der_bytes() == key.der_bytes());
    if !fits {
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished(domain.as_str(), &key);
        params.subject_alt_names = vec![SanType::URI(domain.id().try_into()?)];
        let csr = params.serialize_request(&key)?;
        write(&csr_path, &csr.pem()?)?;
    }
    Ok(csr_path)
}

fn read_csr(path: &Path) -> Result<(TrustDomain, csr::Request), HierarchyError> {
    parse_csr(path, &read(path)?)
}

fn parse_csr(path: &Path, pem: &[u8]) -> Result<(TrustDomain, csr::Request), HierarchyError> {
    let der = CertificateSigningRequestDer::from_pem_slice(pem)
        .map_err(|e| content(path, format!("no {REQUEST} in it: {e}")))?;
    let request = csr::read(&der).map_err(|reason| content(path, reason))?;
    let [uri] = request.uris.as_slice() else {
        return Err(content(path, "does not ask for exactly one URI name, the trust domain"));
    };
    let domain = uri.strip_prefix("spiffe://").and_then(|host| host.parse().ok());
    let domain = domain.ok_or_else(|| content(path, format!("asks for {uri:?}, which is no trust domain")))?;
    Ok((domain, request))
}

/// Signs a cluster's intermediate with the root in `root_dir`, and writes `intermediate.crt` beside the request.
/// `expected`: the trust domain that the request must be for, where the caller knows it.
pub fn sign_intermediate(
    root_dir: &Path,
    csr_path: &Path,
    expected: Option<&TrustDomain>,
    now: SystemTime,
) -> Result<Signed, HierarchyError> {
    let request = read(csr_path)?;
    let (pem, mut signed) = sign_request(root_dir, &request, expected, now).map_err(|error| match error {
        HierarchyError::Content { path, reason } if path.as_os_str() == REQUEST => content(csr_path, reason),
        error => error,
    })?;
    signed.path = csr_path.with_file_name(names::INTERMEDIATE_CERTIFICATE);
    write(&signed.path, &pem)?;
    Ok(signed)
}

/// The same for a request that is no file here: returns the certificate, PEM.
pub fn sign_request(
    root_dir: &Path,
    request: &[u8],
    expected: Option<&TrustDomain>,
    now: SystemTime,
) -> Result<(String, Signed), HierarchyError> {
    let (domain, request) = parse_csr(Path::new(REQUEST), request)?;
    if let Some(expected) = expected.filter(|expected| **expected != domain) {
        return Err(HierarchyError::OtherDomain { asked: domain, expected: expected.clone() });
    }
    let root = Root::open(root_dir, now)?;
    let not_after = (now + INTERMEDIATE_LIFETIME).min(root.not_after);
    let mut params = authority(domain.as_str(), &request.public_key, now, not_after);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.subject_alt_names = vec![SanType::URI(domain.id().try_into()?)];
    params.use_authority_key_identifier_extension = true;
    // rcgen has no URI form of a name constraint.
    let mut constraint = CustomExtension::from_oid_content(NAME_CONSTRAINTS, name_constraint(&domain));
    constraint.set_criticality(true);
    params.custom_extensions = vec![constraint];
    let certificate = params.signed_by(&request.public_key, &root.issuer)?;
    root.named_as_issuer_in(certificate.der())?;
    Ok((certificate.pem(), Signed { domain, path: PathBuf::new(), not_after }))
}

struct Root {
    path: PathBuf,
    issuer: Issuer<'static, RootKey>,
    subject: Vec<u8>,
    not_after: SystemTime,
}

impl Root {
    /// The certificate of `root.crt` that belongs to `root.key`: the file may hold several.
    fn open(dir: &Path, now: SystemTime) -> Result<Self, HierarchyError> {
        let path = dir.join(names::ROOT_CERTIFICATE);
        let key = RootKey::open(dir)?;
        for der in read_certificates(&path)? {
            let (_, cert) = X509Certificate::from_der(&der).map_err(|e| content(&path, e))?;
            if cert.public_key().raw != key.subject_public_key_info() {
                continue;
            }
            let (not_before, not_after) = validity(&cert);
            if now < not_before || now >= not_after {
                return Err(HierarchyError::RootNotValid { path });
            }
            let subject = cert.subject().as_raw().to_vec();
            return Ok(Self { path, issuer: Issuer::from_ca_cert_der(&der, key)?, subject, not_after });
        }
        Err(content(&path, format!("no certificate of the key in {}", names::ROOT_KEY)))
    }

    /// rcgen writes the issuer's name anew from its parts; a root made elsewhere may encode it differently, and then
    /// no verifier would find the way from the intermediate to it.
    fn named_as_issuer_in(&self, der: &[u8]) -> Result<(), HierarchyError> {
        let (_, cert) = X509Certificate::from_der(der).map_err(|e| content(&self.path, e))?;
        if cert.issuer().as_raw() != self.subject {
            return Err(content(&self.path, "its subject is encoded in a way that cannot be reproduced"));
        }
        Ok(())
    }
}

/// What people want to know of an authority.
pub(crate) struct Description {
    pub(crate) subject: String,
    /// Lower-case hex.
    pub(crate) serial: String,
    pub(crate) until: SystemTime,
}

/// Reads a certificate for people.
pub(crate) fn describe(der: &CertificateDer<'_>) -> Option<Description> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    let (_, until) = validity(&cert);
    Some(Description { subject: cert.subject().to_string(), serial: hex::encode(cert.raw_serial()), until })
}

/// The key of a certificate in PEM.
pub fn authority_of(pem: &[u8]) -> Option<AuthorityId> {
    let der = CertificateDer::from_pem_slice(pem).ok()?;
    let (_, cert) = X509Certificate::from_der(&der).ok()?;
    Some(AuthorityId::of_key(cert.public_key().raw))
}

/// In PEM.
pub(crate) fn certificate_pem(der: &CertificateDer<'_>) -> String {
    hawser_tunnel::identity::certificate_pem(der)
}

fn validity(cert: &X509Certificate<'_>) -> (SystemTime, SystemTime) {
    let time = |time: x509_parser::time::ASN1Time| -> SystemTime { time.to_datetime().into() };
    (time(cert.validity().not_before), time(cert.validity().not_after))
}

pub(crate) fn authority(
    name: &str,
    key: &impl PublicKeyData,
    now: SystemTime,
    not_after: SystemTime,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished(name, key);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial());
    params.not_before = whole_seconds(now - BACKDATE);
    params.not_after = whole_seconds(not_after);
    params
}

fn distinguished(name: &str, key: &impl PublicKeyData) -> DistinguishedName {
    let fingerprint: String = hex::sha256(&key.subject_public_key_info()).chars().take(16).collect();
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::OrganizationName, "Hawser");
    // RFC 5280 appendix A.1: at most 64 characters; the whole trust domain is in the URI name.
    let name: String = name.chars().take(64 - 17).collect();
    distinguished.push(DnType::CommonName, format!("{name} {fingerprint}"));
    distinguished
}

/// 127 random bits, never 0, so that nobody can guess what will be signed (CA/Browser Forum asks for 64).
pub(crate) fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    let [first, ..] = &mut bytes;
    *first = *first & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// X.509 times have whole seconds; rounded down, so that nothing ends later than was meant.
pub(crate) fn whole_seconds(time: SystemTime) -> OffsetDateTime {
    let time = OffsetDateTime::from(time);
    time.replace_nanosecond(0).unwrap_or(time)
}

#[cfg(test)]
mod tests;
