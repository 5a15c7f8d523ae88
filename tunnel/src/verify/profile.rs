//! What a certificate must look like: the X509-SVID profile for leaves, and ours for those who issue them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hawser_api::{SpiffeId, TrustDomain};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, KeyUsage, ParsedExtension, X509Certificate, X509Version};
use x509_parser::time::ASN1Time;

use super::{AuthorityId, LEAF_LIFETIME_MAX, VerifyError};

/// Longest serial number, in bytes: 20, and one that keeps it positive (RFC 5280 section 4.1.2.2). Logs and deny-lists have it.
const SERIAL_MAX: usize = 21;

fn breaks<T>(rule: impl Into<String>) -> Result<T, VerifyError> {
    Err(VerifyError::Profile(rule.into()))
}

fn read(der: &[u8]) -> Result<X509Certificate<'_>, VerifyError> {
    let (rest, cert) =
        X509Certificate::from_der(der).map_err(|e| VerifyError::Profile(format!("not a certificate: {e}")))?;
    if !rest.is_empty() {
        return breaks("bytes behind the certificate");
    }
    if cert.version() != X509Version::V3 {
        return breaks("not a version 3 certificate");
    }
    // RFC 5280 section 4.2: no extension twice; which one counts would depend on the reader.
    if cert.extensions_map().is_err() {
        return breaks("an extension occurs twice");
    }
    let malformed =
        |e: &ParsedExtension<'_>| matches!(e, ParsedExtension::ParseError { .. } | ParsedExtension::Unparsed);
    if cert.extensions().iter().any(|e| malformed(e.parsed_extension())) {
        return breaks("a malformed extension");
    }
    Ok(cert)
}

fn time(time: ASN1Time) -> SystemTime {
    u64::try_from(time.timestamp()).map_or(UNIX_EPOCH, |seconds| UNIX_EPOCH + Duration::from_secs(seconds))
}

fn uris<'c>(cert: &'c X509Certificate<'_>) -> Vec<&'c str> {
    let san = cert.subject_alternative_name().ok().flatten();
    let names = san.map(|san| san.value.general_names.as_slice()).unwrap_or_default();
    names.iter().filter_map(|n| if let GeneralName::URI(uri) = n { Some(*uri) } else { None }).collect()
}

/// The key usage and whether it is critical.
fn key_usage<'c>(cert: &'c X509Certificate<'_>) -> Option<(&'c KeyUsage, bool)> {
    cert.key_usage().ok().flatten().map(|usage| (usage.value, usage.critical))
}

/// A leaf that keeps the X509-SVID profile (X509-SVID sections 3 and 4). Says nothing about who issued it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    /// Its begin.
    pub not_before: SystemTime,
    /// Its end.
    pub not_after: SystemTime,
    /// Lower-case hex.
    pub serial: String,
    pub(super) issuer: Vec<u8>,
}

impl Leaf {
    /// Reads a leaf and holds it to the profile.
    pub fn read(der: &CertificateDer<'_>) -> Result<Self, VerifyError> {
        let cert = read(der)?;
        let id = Self::only_id(&cert)?;
        Self::usages(&cert)?;
        let (not_before, not_after) = (time(cert.validity().not_before), time(cert.validity().not_after));
        if not_after.duration_since(not_before).unwrap_or_default() > LEAF_LIFETIME_MAX {
            return breaks(format!("a leaf that lives longer than {} hours", LEAF_LIFETIME_MAX.as_secs() / 3600));
        }
        let serial = cert.raw_serial();
        if serial.len() > SERIAL_MAX {
            return breaks(format!("a serial number of {} bytes, more than {SERIAL_MAX}", serial.len()));
        }
        let serial = hex(serial);
        Ok(Self { id, not_before, not_after, serial, issuer: cert.tbs_certificate.issuer.as_raw().to_vec() })
    }

    fn only_id(cert: &X509Certificate<'_>) -> Result<SpiffeId, VerifyError> {
        let uris = uris(cert);
        let [uri] = uris.as_slice() else {
            return breaks(format!("{} URI names where an SVID has exactly one", uris.len()));
        };
        // RFC 5280 section 4.1.2.6: a name that is not in the subject must be in a critical extension.
        let critical = cert.subject_alternative_name().ok().flatten().is_some_and(|san| san.critical);
        if cert.subject().iter().next().is_none() && !critical {
            return breaks("an empty subject and alternative names that are not critical");
        }
        uri.parse().map_err(|e: hawser_api::names::NameError| VerifyError::Profile(e.to_string()))
    }

    fn usages(cert: &X509Certificate<'_>) -> Result<(), VerifyError> {
        if let Ok(Some(basic)) = cert.basic_constraints() {
            if basic.value.ca {
                return breaks("an authority, not a leaf");
            }
            // RFC 5280 section 4.2.1.9: only an authority has one; who wrote it meant one or the other.
            if basic.value.path_len_constraint.is_some() {
                return breaks("a path length in a leaf");
            }
        }
        match key_usage(cert) {
            None => return breaks("a leaf without key usage"),
            Some((_, false)) => return breaks("a key usage that is not critical"),
            Some((usage, true)) if usage.key_cert_sign() || usage.crl_sign() => {
                return breaks("a leaf whose key may sign certificates or revocation lists");
            }
            Some((usage, true)) if !usage.digital_signature() => {
                return breaks("a leaf whose key may not make signatures");
            }
            Some(_) => {}
        }
        let extended = cert.extended_key_usage().ok().flatten();
        if extended.is_some_and(|eku| !(eku.value.server_auth && eku.value.client_auth)) {
            return breaks("an extended key usage without both server and client authentication");
        }
        Ok(())
    }
}

/// What an authority's name constraints say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Constraint {
    None,
    /// Critical, permits URIs of exactly this host, and says nothing else.
    Uri(String),
    Other,
}

/// A certificate that may issue: an anchor, or an intermediate of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Issuer {
    pub(super) subject: Vec<u8>,
    pub(super) issuer: Vec<u8>,
    pub(super) key: Vec<u8>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
    pub(super) path_length: Option<u32>,
    /// The trust domain that its own SPIFFE ID names.
    pub(super) domain: Option<TrustDomain>,
    pub(super) constraint: Constraint,
    /// Key usage and basic constraints, both (X509-SVID section 4.3, RFC 5280 section 4.2.1.9).
    critical: [bool; 2],
}

impl Issuer {
    pub(super) fn read(der: &CertificateDer<'_>) -> Result<Self, VerifyError> {
        let cert = read(der)?;
        let Some(basic) = cert.basic_constraints().ok().flatten().filter(|basic| basic.value.ca) else {
            return breaks("not an authority");
        };
        let Some((_, usage_critical)) = key_usage(&cert).filter(|(usage, _)| usage.key_cert_sign()) else {
            return breaks("an authority whose key may not sign certificates");
        };
        understood(&cert)?;
        Ok(Self {
            subject: cert.tbs_certificate.subject.as_raw().to_vec(),
            issuer: cert.tbs_certificate.issuer.as_raw().to_vec(),
            key: cert.public_key().raw.to_vec(),
            not_before: time(cert.validity().not_before),
            not_after: time(cert.validity().not_after),
            path_length: basic.value.path_len_constraint,
            domain: own_domain(&cert)?,
            constraint: constraint(&cert),
            critical: [usage_critical, basic.critical],
        })
    }

    /// What tells its key from others.
    pub(super) fn authority(&self) -> AuthorityId {
        AuthorityId::of_key(&self.key)
    }

    fn marked_critical(&self) -> Result<(), VerifyError> {
        match self.critical {
            [true, true] => Ok(()),
            [false, _] => breaks("the intermediate has a key usage that is not critical"),
            [true, false] => breaks("the intermediate has basic constraints that are not critical"),
        }
    }

    /// Whether a path with so many authorities below this one keeps its path length. Authorities of the same subject and
    /// issuer count too, which RFC 5280 section 4.2.1.9 would let pass.
    pub(super) fn spans(&self, below: usize) -> bool {
        self.path_length.is_none_or(|most| usize::try_from(most).is_ok_and(|most| below <= most))
    }

    /// Whether it keeps the rules of X509-SVID for an authority below an anchor of `domain` alone, with so many
    /// authorities between it and the leaf.
    pub(super) fn authority_below(&self, domain: &TrustDomain, below: usize) -> Result<(), VerifyError> {
        let breaks = |rule: String| breaks(format!("the intermediate {rule}"));
        self.marked_critical()?;
        if !self.spans(below) {
            return breaks("may not sign other authorities: its path length is too short".into());
        }
        if let Some(other) = self.domain.as_ref().filter(|named| *named != domain) {
            return breaks(format!("is an authority of {other}, the leaf is of {domain}"));
        }
        match &self.constraint {
            Constraint::None => Ok(()),
            Constraint::Uri(host) if host == domain.as_str() => Ok(()),
            _ => breaks(format!("has name constraints other than the URI host {domain}")),
        }
    }

    /// Whether it keeps our profile of an intermediate of `domain`: issues leaves only, names that trust domain as
    /// its own, and is constrained to it. So a stolen key of one cluster mints no identity of another.
    pub(super) fn intermediate_of(&self, domain: &TrustDomain) -> Result<(), VerifyError> {
        let breaks = |rule: String| breaks(format!("the intermediate {rule}"));
        self.marked_critical()?;
        if self.path_length != Some(0) {
            return breaks("may sign other authorities: its path length is not 0".into());
        }
        if self.domain.as_ref() != Some(domain) {
            let whose = self.domain.as_ref().map_or_else(|| "no trust domain".into(), ToString::to_string);
            return breaks(format!("is an authority of {whose}, the leaf is of {domain}"));
        }
        if self.constraint != Constraint::Uri(domain.as_str().to_owned()) {
            return breaks(format!("has no critical name constraint that permits exactly URIs of {domain}"));
        }
        Ok(())
    }
}

/// The trust domain that an authority's own SPIFFE ID names; it has no path (X509-SVID section 3.2).
fn own_domain(cert: &X509Certificate<'_>) -> Result<Option<TrustDomain>, VerifyError> {
    match uris(cert).as_slice() {
        [] => Ok(None),
        [uri] => {
            let scheme = uri.get(..9).filter(|scheme| scheme.eq_ignore_ascii_case("spiffe://"));
            let domain = scheme.and(uri.get(9..)).and_then(|host| host.parse().ok());
            domain.map(Some).map_or_else(|| breaks("an authority whose URI name is no trust domain"), Ok)
        }
        _ => breaks("an authority with several URI names"),
    }
}

/// Refuses critical extensions that this verifier does not judge (RFC 5280 section 4.2), and an extended key usage
/// that would not let the leaf do what it is for.
fn understood(cert: &X509Certificate<'_>) -> Result<(), VerifyError> {
    for extension in cert.extensions().iter().filter(|e| e.critical) {
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(_)
            | ParsedExtension::KeyUsage(_)
            | ParsedExtension::ExtendedKeyUsage(_)
            | ParsedExtension::SubjectAlternativeName(_)
            | ParsedExtension::NameConstraints(_) => {}
            _ => return breaks(format!("an authority with the unknown critical extension {}", extension.oid)),
        }
    }
    let extended = cert.extended_key_usage().ok().flatten();
    if extended.is_some_and(|eku| !(eku.value.any || eku.value.server_auth && eku.value.client_auth)) {
        return breaks("an authority whose extended key usage leaves out server or client authentication");
    }
    Ok(())
}

fn constraint(cert: &X509Certificate<'_>) -> Constraint {
    let Ok(Some(constraints)) = cert.name_constraints() else {
        return Constraint::None;
    };
    let excluded = constraints.value.excluded_subtrees.as_ref().is_some_and(|trees| !trees.is_empty());
    let permitted = constraints.value.permitted_subtrees.as_deref().unwrap_or_default();
    match permitted.iter().map(|tree| &tree.base).collect::<Vec<_>>().as_slice() {
        [GeneralName::URI(host)] if constraints.critical && !excluded => Constraint::Uri(host.to_ascii_lowercase()),
        _ => Constraint::Other,
    }
}

/// The contents of a name constraints extension (OID 2.5.29.30) that permits URIs of exactly this trust domain
/// (RFC 5280 section 4.2.1.10: a host without a leading dot means that host alone).
pub fn name_constraint(domain: &TrustDomain) -> Vec<u8> {
    let host = tlv(0x86, domain.as_str().as_bytes()); // [6] uniformResourceIdentifier
    let subtree = tlv(0x30, &host);
    let permitted = tlv(0xa0, &subtree);
    tlv(0x30, &permitted)
}

/// DER of one value; a trust domain's name is at most 255 bytes, so two bytes of length are enough.
fn tlv(tag: u8, contents: &[u8]) -> Vec<u8> {
    let length = u16::try_from(contents.len()).unwrap_or(u16::MAX);
    let [high, low] = length.to_be_bytes();
    let mut out = match (high, low) {
        (0, 0..=0x7f) => vec![tag, low],
        (0, _) => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    out.extend_from_slice(contents);
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
