//! One anchor of one trust domain.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use hawser_api::TrustDomain;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::AlgorithmIdentifier;

use super::profile::{Constraint, Issuer};
use super::{ALGORITHMS, AuthorityId, CERTIFICATE_MAX, Fingerprint, Rules, VerifyError, fingerprint};

/// A certificate that we were told to trust for one trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    pub(super) der: CertificateDer<'static>,
    pub(super) issuer: Issuer,
    pub(super) fingerprint: Fingerprint,
    /// The keys of other trust domains' anchors, if this one stands above its own trust domain alone.
    dedicated: Option<Arc<BTreeSet<AuthorityId>>>,
}

impl Anchor {
    /// Reads a certificate as an anchor of `domain`: an authority that names no other trust domain. It is held to
    /// [`Rules::Fabric`].
    pub fn read(der: &[u8], domain: &TrustDomain) -> Result<Self, VerifyError> {
        if der.len() > CERTIFICATE_MAX {
            return Err(VerifyError::TooLarge(format!(
                "an anchor of {} bytes, more than {CERTIFICATE_MAX}",
                der.len()
            )));
        }
        let der = CertificateDer::from(der.to_vec());
        let issuer = Issuer::read(&der)?;
        if let Some(other) = issuer.domain.as_ref().filter(|d| *d != domain) {
            return Err(VerifyError::Profile(format!("is an authority of {other}, not of {domain}")));
        }
        match &issuer.constraint {
            Constraint::None => {}
            Constraint::Uri(host) if host == domain.as_str() => {}
            _ => return Err(VerifyError::Profile(format!("has name constraints other than the URI host {domain}"))),
        }
        let fingerprint = fingerprint(&issuer.subject, &issuer.key);
        Ok(Self { der, issuer, fingerprint, dedicated: None })
    }

    /// Holds it to [`Rules::Spiffe`]: only for an anchor that came in a bundle of this one trust domain, and whose key
    /// is in no other's. `elsewhere` are the keys of all other trust domains' anchors: an authority below this anchor
    /// that has one of them is of another trust domain, whatever it calls itself.
    pub fn dedicated(self, elsewhere: Arc<BTreeSet<AuthorityId>>) -> Self {
        Self { dedicated: Some(elsewhere), ..self }
    }

    /// By which rules paths below it are judged.
    pub fn rules(&self) -> Rules {
        if self.dedicated.is_some() { Rules::Spiffe } else { Rules::Fabric }
    }

    /// Whether this key is known to be an anchor of another trust domain.
    pub(crate) fn is_elsewhere(&self, key: &AuthorityId) -> bool {
        self.dedicated.as_ref().is_some_and(|elsewhere| elsewhere.contains(key))
    }

    /// Whether it has the shape of a root that stands above several trust domains: none of its own, and one authority
    /// below it.
    pub fn is_fabric_root(&self) -> bool {
        self.issuer.domain.is_none() && self.issuer.path_length == Some(1)
    }

    /// When it ends.
    pub fn not_after(&self) -> SystemTime {
        self.issuer.not_after
    }

    /// The certificate.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// What tells its key from others.
    pub fn authority(&self) -> AuthorityId {
        self.issuer.authority()
    }

    /// What tells it from others.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

/// Whether the key of `authority` signed `der`, another authority's certificate.
pub(super) fn signed(authority: &CertificateDer<'_>, der: &[u8]) -> Result<(), VerifyError> {
    let refused = |why: &str| VerifyError::Untrusted(format!("the intermediate: {why}"));
    let (_, cert) = X509Certificate::from_der(der).map_err(|_| refused("malformed"))?;
    // RFC 5280 section 4.1.1.2: the algorithm is named twice and must be the same.
    if cert.signature_algorithm != cert.tbs_certificate.signature {
        return Err(refused("it names two signature algorithms"));
    }
    let algorithm = algorithm_der(&cert.signature_algorithm);
    let authority = webpki::EndEntityCert::try_from(authority).map_err(|_| refused("its issuer is malformed"))?;
    let body = cert.tbs_certificate.as_ref();
    let signature = cert.signature_value.data.as_ref();
    let mut candidates = ALGORITHMS.iter().filter(|a| a.signature_alg_id().as_ref() == algorithm);
    if candidates.any(|a| authority.verify_signature(*a, body, signature).is_ok()) {
        return Ok(());
    }
    Err(refused("the authority of its issuer's name did not sign it"))
}

/// The contents of an AlgorithmIdentifier, as [`SignatureVerificationAlgorithm::signature_alg_id`] has them:
/// the OID, and NULL where the parameters are NULL. Others match no algorithm.
///
/// [`SignatureVerificationAlgorithm::signature_alg_id`]: rustls_pki_types::SignatureVerificationAlgorithm::signature_alg_id
fn algorithm_der(algorithm: &AlgorithmIdentifier<'_>) -> Vec<u8> {
    let oid = algorithm.algorithm.as_bytes();
    let mut out = vec![0x06, u8::try_from(oid.len()).unwrap_or(u8::MAX)];
    out.extend_from_slice(oid);
    if let Some(parameters) = &algorithm.parameters {
        let null = parameters.tag() == x509_parser::der_parser::asn1_rs::Tag::Null && parameters.data.is_empty();
        out.extend_from_slice(if null { &[0x05, 0x00] } else { &[0xff] });
    }
    out
}
