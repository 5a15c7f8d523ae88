//! The verifier: whether a chain proves a SPIFFE ID now. Pure, with the time as an argument, the same for both
//! directions and both transports.
//!
//! ```text
//! chain ─▶ bounds ─▶ leaf profile: one URI SAN, an SVID ─▶ trust domain ─▶ that domain's anchors, no others
//!       ─▶ a path from an anchor to the leaf's issuer, by the rules that this anchor is held to ([`Rules`])
//!       ─▶ signature, times and critical extensions of the leaf (webpki) ─▶ Svid
//! ```
//!
//! rustls-webpki refuses every chain with a URI name constraint, also one that permits the leaf. So the steps from the
//! anchor to the leaf's issuer, and the constraint, are checked here, and webpki gets that issuer as its anchor.
//!
//! | | must | may | may not |
//! |---|---|---|---|
//! | leaf | one URI name, a SPIFFE ID with a path; critical key usage with digitalSignature; a week of life at most | DNS names; server *and* client authentication | be an authority or sign for one; have a path length, unknown critical extensions, anything twice |
//! | intermediate, [`Rules::Fabric`] | name the leaf's trust domain, be constrained to it (critical), path length 0, critical key usage with keyCertSign, critical basic constraints, be signed by the anchor | | sign another authority |
//! | authority, [`Rules::Spiffe`] | critical key usage with keyCertSign, critical basic constraints, room in its path length | name the trust domain, be constrained to it; be one of three | name another trust domain; have other constraints; have the key of another trust domain's anchor |
//! | anchor | be an authority that may sign, be within its times | name its trust domain, be constrained to it; issue leaves itself, if it names it or is dedicated | name another; have unknown critical extensions |
//!
//! The tables of `tests/oracles` have a row for each of these, with what OpenSSL and certvalidator think of it; `tests/graphs`
//! tries paths against a model, and `tests/pathological` what a chain may cost.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use hawser_api::{SpiffeId, TrustDomain};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm};

mod anchor;
mod path;
mod profile;
#[cfg(test)]
mod tests;

pub use anchor::Anchor;
pub use profile::{Leaf, name_constraint};

use path::Search;

/// Longest chain that is looked at: leaf, intermediate, and what a careless peer adds (its root, an old intermediate).
pub const CHAIN_MAX: usize = 4;
/// Largest certificate that is looked at, in bytes. Ours are about 600; RSA chains of others stay under 4 KiB.
pub const CERTIFICATE_MAX: usize = 16 * 1024;
/// Most anchors of one trust domain, as many as a bundle may have.
pub const ANCHORS_MAX: usize = hawser_api::bundle::KEYS_MAX;
/// Longest life of a leaf. Ours live a day; a week leaves room for other issuers and still bounds a stolen key.
pub const LEAF_LIFETIME_MAX: Duration = Duration::from_secs(7 * 24 * 3600 + 3600);
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

/// By which rules the path between an anchor and a leaf is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rules {
    /// X509-SVID sections 3 to 5 and no more: authorities below the anchor name this trust domain or none, are
    /// constrained to it or not at all, and the anchor may issue leaves itself. Safe below an anchor that stands above
    /// one trust domain only: whoever it signs is of that trust domain.
    Spiffe,
    /// Those of a root that stands above several trust domains: exactly one authority below it, which names the leaf's
    /// trust domain, is constrained to it and issues leaves only. So no cluster mints identities of another.
    Fabric,
}

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
    /// The keys that the path rests on: the leaf's issuer first, the anchor last; one where the anchor issued the leaf.
    pub authorities: Arc<[AuthorityId]>,
    /// The strictest rules that the path keeps, whichever its anchor is held to.
    pub keeps: Rules,
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

    Search::new(&leaf, leaf_der, &domain, anchors, now).run(rest)
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

fn fingerprint(subject: &[u8], key: &[u8]) -> Fingerprint {
    let mut context = digest::Context::new(&digest::SHA256);
    // Both are DER and carry their own lengths, so no two pairs make the same input.
    context.update(subject);
    context.update(key);
    let mut out = Fingerprint::default();
    out.copy_from_slice(context.finish().as_ref());
    out
}
