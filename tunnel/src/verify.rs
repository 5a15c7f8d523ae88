//! The verifier: whether a chain proves a SPIFFE ID now. Pure, with the time as an argument, the same for both
//! directions and both transports.
//!
//! ```text
//! chain ─▶ bounds ─▶ leaf profile: one URI SAN, an SVID ─▶ trust domain ─▶ that domain's anchors, no others
//!       ─▶ an issuer of that very domain: the anchor itself, or an intermediate that an anchor signed
//!       ─▶ signature, times and critical extensions of the leaf (webpki) ─▶ Svid
//! ```
//!
//! rustls-webpki refuses every chain with a URI name constraint, also one that permits the leaf. So the step from
//! anchor to intermediate, and the constraint, are checked here, and webpki gets the intermediate as its anchor.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use hawser_api::{SpiffeId, TrustDomain};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};

mod anchor;
mod profile;
#[cfg(test)]
mod tests;

pub use anchor::Anchor;
pub use profile::{Leaf, name_constraint};

use profile::Issuer;

/// Longest chain that is looked at: leaf, intermediate, and what a careless peer adds (its root, an old intermediate).
pub const CHAIN_MAX: usize = 4;
/// Largest certificate that is looked at, in bytes. Ours are about 600; RSA chains of others stay under 4 KiB.
pub const CERTIFICATE_MAX: usize = 16 * 1024;
/// Most anchors of one trust domain, as many as a bundle may have.
pub const ANCHORS_MAX: usize = hawser_api::bundle::KEYS_MAX;
/// Longest life of a leaf. Ours live a day; a week leaves room for other issuers and still bounds a stolen key.
pub const LEAF_LIFETIME_MAX: Duration = Duration::from_secs(7 * 24 * 3600 + 3600);
/// Signatures checked for one chain, so that many anchors of one name cost a hostile peer more than us.
const SIGNATURES_MAX: usize = 8;

/// What tells one authority's key from another's: SHA-256 over its SubjectPublicKeyInfo. A root and an intermediate that
/// are signed anew with the same key stay the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AuthorityId(pub [u8; 32]);

impl AuthorityId {
    /// Of a SubjectPublicKeyInfo, DER.
    pub fn of_key(spki: &[u8]) -> Self {
        let mut out = [0; 32];
        out.copy_from_slice(digest::digest(&digest::SHA256, spki).as_ref());
        Self(out)
    }
}

impl std::fmt::Display for AuthorityId {
    /// Lower-case hex.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for AuthorityId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl TryFrom<&[u8]> for AuthorityId {
    type Error = std::array::TryFromSliceError;
    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self(bytes.try_into()?))
    }
}

/// What tells one anchor from another: SHA-256 over its subject and its key.
pub type Fingerprint = [u8; 32];

/// What a chain proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Svid {
    /// Whom.
    pub id: SpiffeId,
    /// When the last certificate of the path begins.
    pub not_before: SystemTime,
    /// When the first certificate of the path ends.
    pub not_after: SystemTime,
    /// The leaf's serial number, lower-case hex.
    pub serial: String,
    /// The anchor that the path ends in.
    pub anchor: Fingerprint,
    /// The keys that the path rests on: the leaf's issuer first, the anchor last; the same twice where the anchor issued
    /// the leaf.
    pub authorities: [AuthorityId; 2],
}

impl Svid {
    /// Whether the path that proved it holds at `now`: nothing else about it changes with time.
    pub fn holds(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// Why a chain proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// More than we look at.
    #[error("{0}")]
    TooLarge(String),
    /// Not a certificate, or one that breaks the X509-SVID profile.
    #[error("{0}")]
    Profile(String),
    /// Its trust domain has no anchors here.
    #[error("no anchors of trust domain {0} here: its cluster is not linked, or its bundle is empty")]
    NoAnchors(TrustDomain),
    /// No path to an anchor of its trust domain.
    #[error("{0}")]
    Untrusted(String),
    /// A certificate of the path is over.
    #[error("{what} ended {} s ago", since(*now, *not_after))]
    Expired {
        /// Which one.
        what: &'static str,
        /// The time of this check.
        now: SystemTime,
        /// Its end.
        not_after: SystemTime,
    },
    /// A certificate of the path has not begun.
    #[error("{what} begins in {} s: compare the clocks", since(*not_before, *now))]
    NotYetValid {
        /// Which one.
        what: &'static str,
        /// The time of this check.
        now: SystemTime,
        /// Its begin.
        not_before: SystemTime,
    },
    /// Proved, but somebody else was expected.
    #[error("the peer is {0}, which is none of the identities that serve here")]
    WrongIdentity(SpiffeId),
    /// Proved, but denied by hand.
    #[error("{0} is on the deny-list")]
    Denied(SpiffeId),
}

impl VerifyError {
    /// A stable word for metrics, one of [`HandshakeError::reason`](crate::tls::HandshakeError::reason).
    pub fn reason(&self) -> &'static str {
        match self {
            Self::TooLarge(_) => "too_large",
            Self::Profile(_) | Self::NoAnchors(_) | Self::Untrusted(_) => "untrusted",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::WrongIdentity(_) => "wrong_identity",
            Self::Denied(_) => "denied",
        }
    }
}

fn since(later: SystemTime, earlier: SystemTime) -> u64 {
    later.duration_since(earlier).map_or(0, |d| d.as_secs())
}

/// The signatures that we accept: what foreign authorities use, without SHA-1 and short RSA keys.
pub(crate) static ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = webpki::ALL_VERIFICATION_ALGS;

/// Whether `chain` (leaf first) proves an identity at `now`, by the anchors that `anchors_of` gives for its trust domain.
pub fn verify<'a, F>(chain: &[CertificateDer<'_>], now: SystemTime, anchors_of: F) -> Result<Svid, VerifyError>
where
    F: FnOnce(&TrustDomain) -> Option<&'a [Anchor]>,
{
    let (leaf_der, rest) = within_bounds(chain)?;
    let leaf = Leaf::read(leaf_der)?;
    let domain = leaf.id.trust_domain();
    let anchors = anchors_of(&domain).filter(|anchors| !anchors.is_empty());
    let anchors = anchors.ok_or_else(|| VerifyError::NoAnchors(domain.clone()))?;
    in_time("its certificate", now, leaf.not_before, leaf.not_after)?;

    let mut search = Search { leaf: &leaf, leaf_der, domain: &domain, anchors, now, signatures: 0 };
    search.by_anchor().or_else(|direct| search.by_intermediate(rest).map_err(|through| through.unwrap_or(direct)))
}

fn within_bounds<'c, 'd>(
    chain: &'c [CertificateDer<'d>],
) -> Result<(&'c CertificateDer<'d>, &'c [CertificateDer<'d>]), VerifyError> {
    if chain.len() > CHAIN_MAX {
        return Err(VerifyError::TooLarge(format!("a chain of {} certificates, more than {CHAIN_MAX}", chain.len())));
    }
    if let Some(large) = chain.iter().map(|c| c.len()).find(|len| *len > CERTIFICATE_MAX) {
        return Err(VerifyError::TooLarge(format!("a certificate of {large} bytes, more than {CERTIFICATE_MAX}")));
    }
    chain.split_first().ok_or_else(|| VerifyError::Profile("no certificate".into()))
}

fn in_time(
    what: &'static str,
    now: SystemTime,
    not_before: SystemTime,
    not_after: SystemTime,
) -> Result<(), VerifyError> {
    if now < not_before {
        return Err(VerifyError::NotYetValid { what, now, not_before });
    }
    if now > not_after {
        return Err(VerifyError::Expired { what, now, not_after });
    }
    Ok(())
}

/// The search for the leaf's issuer.
struct Search<'s> {
    leaf: &'s Leaf,
    leaf_der: &'s CertificateDer<'s>,
    domain: &'s TrustDomain,
    anchors: &'s [Anchor],
    now: SystemTime,
    signatures: usize,
}

impl<'s> Search<'s> {
    /// The leaf's issuer is an anchor.
    fn by_anchor(&mut self) -> Result<Svid, VerifyError> {
        let mut why = VerifyError::Untrusted(format!("no anchor of {} issued its certificate", self.domain));
        for anchor in self.anchors.iter().filter(|a| a.issuer.subject == self.leaf.issuer) {
            match self.issued_by_anchor(anchor) {
                Ok(svid) => return Ok(svid),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    fn issued_by_anchor(&mut self, anchor: &Anchor) -> Result<Svid, VerifyError> {
        if anchor.issuer.domain.as_ref() != Some(self.domain) {
            return Err(VerifyError::Untrusted("a root issued its certificate without an intermediate".into()));
        }
        in_time("the anchor", self.now, anchor.issuer.not_before, anchor.issuer.not_after)?;
        self.leaf_signed_by(&anchor.der)?;
        Ok(self.proved(anchor, &anchor.issuer))
    }

    /// The leaf's issuer is in the chain and was signed by an anchor; `None` if there is no candidate in the chain.
    fn by_intermediate(&mut self, rest: &[CertificateDer<'_>]) -> Result<Svid, Option<VerifyError>> {
        let mut why = None;
        for der in rest {
            match self.issued_by(der) {
                Ok(Some(svid)) => return Ok(svid),
                Ok(None) => {}
                Err(error) => why = Some(error),
            }
        }
        Err(why)
    }

    fn issued_by(&mut self, der: &CertificateDer<'_>) -> Result<Option<Svid>, VerifyError> {
        let issuer = Issuer::read(der)?;
        if issuer.subject != self.leaf.issuer {
            return Ok(None);
        }
        issuer.intermediate_of(self.domain)?;
        in_time("the intermediate", self.now, issuer.not_before, issuer.not_after)?;
        let anchor = self.anchor_of(der, &issuer)?;
        self.leaf_signed_by(der)?;
        Ok(Some(self.proved(anchor, &issuer)))
    }

    fn anchor_of(&mut self, der: &CertificateDer<'_>, issuer: &Issuer) -> Result<&'s Anchor, VerifyError> {
        let mut why = VerifyError::Untrusted(format!("no anchor of {} signed the intermediate", self.domain));
        let anchors = self.anchors;
        for anchor in anchors.iter().filter(|a| a.issuer.subject == issuer.issuer && a.issuer.path_length != Some(0)) {
            let checked = in_time("the anchor", self.now, anchor.issuer.not_before, anchor.issuer.not_after)
                .and_then(|()| self.spend_signature())
                .and_then(|()| anchor.signed(der));
            match checked {
                Ok(()) => return Ok(anchor),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    /// Signature, times and critical extensions of the leaf, with its issuer's certificate as the anchor.
    fn leaf_signed_by(&mut self, issuer: &CertificateDer<'_>) -> Result<(), VerifyError> {
        self.spend_signature()?;
        let refused = |error: webpki::Error| VerifyError::Untrusted(format!("its certificate: {error}"));
        let mut anchor = webpki::anchor_from_trusted_cert(issuer).map_err(refused)?;
        anchor.name_constraints = None;
        let leaf = webpki::EndEntityCert::try_from(self.leaf_der).map_err(refused)?;
        let now = UnixTime::since_unix_epoch(self.now.duration_since(UNIX_EPOCH).unwrap_or_default());
        // Both usages were demanded by the profile; webpki wants to be asked for one.
        let usage = webpki::KeyUsage::client_auth();
        leaf.verify_for_usage(ALGORITHMS, &[anchor], &[], now, usage, None, None).map_err(refused)?;
        Ok(())
    }

    fn spend_signature(&mut self) -> Result<(), VerifyError> {
        self.signatures += 1;
        if self.signatures > SIGNATURES_MAX {
            return Err(VerifyError::TooLarge(format!(
                "a chain that takes more than {SIGNATURES_MAX} signature checks"
            )));
        }
        Ok(())
    }

    fn proved(&self, anchor: &Anchor, issuer: &Issuer) -> Svid {
        Svid {
            id: self.leaf.id.clone(),
            not_before: self.leaf.not_before.max(issuer.not_before).max(anchor.issuer.not_before),
            not_after: self.leaf.not_after.min(issuer.not_after).min(anchor.issuer.not_after),
            serial: self.leaf.serial.clone(),
            anchor: anchor.fingerprint,
            authorities: [issuer.authority(), anchor.issuer.authority()],
        }
    }
}

fn fingerprint(subject: &[u8], key: &[u8]) -> Fingerprint {
    let mut context = digest::Context::new(&digest::SHA256);
    // Both are DER and carry their own lengths, so no two pairs make the same input.
    context.update(subject);
    context.update(key);
    let mut out = Fingerprint::default();
    out.copy_from_slice(context.finish().as_ref());
    out
}
