//! What a leaf will say: pure, from the request's key, the attested subject and the time.

use std::time::{Duration, SystemTime};

use hawser_api::labels::{GATEWAY_ACCOUNT, MIRROR_CONTROLLER_ACCOUNT, SYSTEM_NAMESPACE};
use hawser_api::{SpiffeId, TrustDomain};
use hawser_tunnel::identity::BACKDATE;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
    SubjectPublicKeyInfo,
};

use crate::csr::Request;
use crate::hierarchy::{serial, whole_seconds};
use crate::refused::Refused;

/// A workload's key is out in the open: a day bounds what a stolen one is good for.
pub(crate) const WORKLOAD_LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// A gateway is the cluster's door, and a mirror controller speaks for the whole cluster.
pub(crate) const GATEWAY_LIFETIME_MAX: Duration = Duration::from_secs(3600);

/// How long leaves live, as configured; the limits above hold whatever is configured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lifetimes {
    /// Workloads.
    pub(crate) workload: Duration,
    /// Gateways and mirror controllers.
    pub(crate) gateway: Duration,
}

/// By what an issuer is bound.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// The trust domain that it issues for.
    pub(crate) domain: TrustDomain,
    /// How long its leaves live.
    pub(crate) lifetimes: Lifetimes,
    /// Its own end.
    pub(crate) not_after: SystemTime,
}

/// A leaf, ready to be signed.
#[derive(Debug)]
pub(crate) struct Template {
    /// Whose.
    pub(crate) id: SpiffeId,
    /// The key that it certifies.
    pub(crate) public_key: SubjectPublicKeyInfo,
    /// SHA-256 of that key.
    pub(crate) key_hash: String,
    /// Its begin.
    pub(crate) not_before: SystemTime,
    /// Its end.
    pub(crate) not_after: SystemTime,
    /// DNS names beside the identity, for peers that look at these.
    pub(crate) dns_names: Vec<String>,
}

/// Decides on a leaf for `subject`. Of the request only the key counts: what else it asks for is not looked at.
pub(crate) fn issue(request: Request, subject: &SpiffeId, terms: &Terms, now: SystemTime) -> Result<Template, Refused> {
    if subject.trust_domain() != terms.domain {
        return Err(Refused::OtherDomain(subject.clone()));
    }
    if now >= terms.not_after {
        return Err(Refused::IssuerExpired(terms.domain.clone()));
    }
    let not_after = (now + lifetime(subject, &terms.lifetimes)).min(terms.not_after);
    Ok(Template {
        id: subject.clone(),
        public_key: request.public_key,
        key_hash: request.key_hash,
        not_before: now - BACKDATE,
        not_after,
        dns_names: Vec::new(),
    })
}

fn lifetime(subject: &SpiffeId, lifetimes: &Lifetimes) -> Duration {
    if is_system(subject) {
        lifetimes.gateway.min(GATEWAY_LIFETIME_MAX)
    } else {
        lifetimes.workload.min(WORKLOAD_LIFETIME_MAX)
    }
}

/// Whether it is a gateway or a mirror controller.
pub(crate) fn is_system(subject: &SpiffeId) -> bool {
    let system = |account| subject.path() == format!("/ns/{SYSTEM_NAMESPACE}/sa/{account}");
    system(GATEWAY_ACCOUNT) || system(MIRROR_CONTROLLER_ACCOUNT)
}

impl Template {
    /// As rcgen wants it: an X509-SVID (X509-SVID section 4) that also passes `openssl verify -x509_strict`.
    pub(crate) fn params(&self) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::default();
        // The name is in the alternative names; the subject is there because some tools show nothing else.
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Hawser");
        params.subject_alt_names = vec![SanType::URI(self.id.as_str().try_into()?)];
        for name in &self.dns_names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        // Explicit: SPIFFE libraries refuse a leaf without basic constraints.
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial());
        params.not_before = whole_seconds(self.not_before);
        params.not_after = whole_seconds(self.not_after);
        Ok(params)
    }
}

#[cfg(test)]
mod tests;
