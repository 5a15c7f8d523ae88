//! Reads a certificate signing request (PKCS#10, RFC 2986): its key, the proof that the asker has it, and the URI
//! names that it asks for. Nothing else in it is looked at.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::der_parser::Oid;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ECDSA_WITH_SHA256};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension};
use x509_parser::x509::SubjectPublicKeyInfo as ParsedKey;

/// Largest request that is looked at, in bytes; ours are about 300.
pub(crate) const CSR_MAX: usize = 16 * 1024;

/// A request whose asker has proved to hold the key.
#[derive(Debug)]
pub(crate) struct Request {
    /// An ECDSA P-256 key, the only kind that we certify: small chains, cheap handshakes.
    pub(crate) public_key: SubjectPublicKeyInfo,
    /// SHA-256 of the key, lower-case hex, for the audit log.
    pub(crate) key_hash: String,
    /// URI names asked for.
    pub(crate) uris: Vec<String>,
}

/// Reads a request and checks its signature by its own key.
pub(crate) fn read(der: &[u8]) -> Result<Request, String> {
    if der.len() > CSR_MAX {
        return Err(format!("{} bytes, more than {CSR_MAX}", der.len()));
    }
    let (rest, csr) = X509CertificationRequest::from_der(der).map_err(|e| format!("not PKCS#10: {e}"))?;
    if !rest.is_empty() {
        return Err("bytes behind the request".into());
    }
    let info = &csr.certification_request_info;
    let point = p256_point(&info.subject_pki).ok_or("its key is not ECDSA P-256")?;
    if csr.signature_algorithm.algorithm != OID_SIG_ECDSA_WITH_SHA256 {
        return Err("its signature is not ECDSA with SHA-256".into());
    }
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
        .verify(info.raw, &csr.signature_value.data)
        .map_err(|_| "its signature is not by its key")?;
    let public_key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|e| e.to_string())?;
    Ok(Request { public_key, key_hash: crate::hex::sha256(info.subject_pki.raw), uris: uris(&csr) })
}

/// The bits of a P-256 key, or `None` for any other key.
pub(crate) fn p256_point<'k>(key: &'k ParsedKey<'_>) -> Option<&'k [u8]> {
    let curve = key.algorithm.parameters.as_ref().and_then(|any| Oid::try_from(any).ok());
    let is_p256 = key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_EC_P256);
    is_p256.then_some(key.subject_public_key.data.as_ref())
}

fn uris(csr: &X509CertificationRequest<'_>) -> Vec<String> {
    let mut uris = Vec::new();
    for extension in csr.requested_extensions().into_iter().flatten() {
        if let ParsedExtension::SubjectAlternativeName(names) = extension {
            uris.extend(names.general_names.iter().filter_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            }));
        }
    }
    uris
}
