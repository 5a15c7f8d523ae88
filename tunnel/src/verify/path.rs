//! The search for a path from an anchor to the leaf. What flows in is a leaf that keeps the profile, the rest of its chain
//! and the anchors of its trust domain; what flows out is the proof or the reason of the most promising failure.
//!
//! ```text
//! leaf ◀─ anchor                                   an anchor that issues leaves itself
//! leaf ◀─ issuer ◀─ anchor                         ours: the issuer keeps the profile of an intermediate
//! leaf ◀─ issuer ◀─ authority (◀─ authority) ◀─ anchor    below a dedicated anchor only
//! ```

use std::time::{SystemTime, UNIX_EPOCH};

use hawser_api::TrustDomain;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::anchor::{Anchor, signed};
use super::profile::{Issuer, Leaf};
use super::{ALGORITHMS, Rules, Svid, VerifyError, in_time};

/// Signatures checked for one chain, so that many anchors of one name cost a hostile peer more than us.
const SIGNATURES_MAX: usize = 8;

/// One search; the signatures that it spends are counted over all its branches.
pub(super) struct Search<'s> {
    leaf: &'s Leaf,
    leaf_der: &'s CertificateDer<'s>,
    domain: &'s TrustDomain,
    anchors: &'s [Anchor],
    now: SystemTime,
    signatures: usize,
}

/// The authorities of a path that is being tried, the leaf's issuer first.
type Path<'p> = Vec<&'p Candidate<'p>>;

/// An authority that the chain brings.
struct Candidate<'c> {
    der: &'c CertificateDer<'c>,
    issuer: Issuer,
}

impl<'s> Search<'s> {
    pub(super) fn new(
        leaf: &'s Leaf,
        leaf_der: &'s CertificateDer<'s>,
        domain: &'s TrustDomain,
        anchors: &'s [Anchor],
        now: SystemTime,
    ) -> Self {
        Self { leaf, leaf_der, domain, anchors, now, signatures: 0 }
    }

    /// Finds a path, through these other certificates of the chain, in whatever order they came.
    pub(super) fn run(&mut self, rest: &[CertificateDer<'_>]) -> Result<Svid, VerifyError> {
        self.by_anchor().or_else(|direct| self.by_intermediate(rest).map_err(|through| through.unwrap_or(direct)))
    }

    /// The leaf's issuer is an anchor.
    fn by_anchor(&mut self) -> Result<Svid, VerifyError> {
        let mut why = VerifyError::Untrusted(format!("no anchor of {} issued its certificate", self.domain));
        let anchors = self.anchors;
        for anchor in anchors.iter().filter(|a| a.issuer.subject == self.leaf.issuer) {
            match self.issued_by_anchor(anchor) {
                Ok(svid) => return Ok(svid),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    fn issued_by_anchor(&mut self, anchor: &Anchor) -> Result<Svid, VerifyError> {
        let named = anchor.issuer.domain.as_ref() == Some(self.domain);
        if !named && anchor.rules() == Rules::Fabric {
            return Err(VerifyError::Untrusted("a root issued its certificate without an intermediate".into()));
        }
        in_time("the anchor", self.now, anchor.issuer.not_before, anchor.issuer.not_after)?;
        self.leaf_signed_by(&anchor.der)?;
        Ok(self.proved(anchor, &Vec::new()))
    }

    /// An anchor that the chain brings too is judged as an anchor and as nothing else.
    fn is_anchor(&self, der: &CertificateDer<'_>) -> bool {
        self.anchors.iter().any(|anchor| anchor.der == *der)
    }

    /// The leaf's issuer is in the chain; `None` if there is no candidate in the chain.
    fn by_intermediate(&mut self, rest: &[CertificateDer<'_>]) -> Result<Svid, Option<VerifyError>> {
        let mut why = None;
        let mut candidates = Vec::with_capacity(rest.len());
        for der in rest.iter().filter(|der| !self.is_anchor(der)) {
            match Issuer::read(der) {
                Ok(issuer) => candidates.push(Candidate { der, issuer }),
                // It may be a stranger that no path needs; if it was needed, this is the reason to give.
                Err(error) => why = Some(error),
            }
        }
        for candidate in candidates.iter().filter(|c| c.issuer.subject == self.leaf.issuer) {
            match self.issued_by(candidate, &candidates) {
                Ok(svid) => return Ok(svid),
                Err(error) => why = Some(error),
            }
        }
        Err(why)
    }

    fn issued_by(&mut self, candidate: &Candidate<'_>, all: &[Candidate<'_>]) -> Result<Svid, VerifyError> {
        let mut path = vec![candidate];
        self.may_stand_in(&path)?;
        let anchor = self.anchored(&mut path, all)?;
        self.leaf_signed_by(candidate.der)?;
        Ok(self.proved(anchor, &path))
    }

    fn loosest(&self) -> Rules {
        self.anchors.iter().map(Anchor::rules).min().unwrap_or(Rules::Fabric)
    }

    /// Whether the uppermost authority of this path can be part of any: by the loosest rules of the anchors here.
    fn may_stand_in(&self, path: &Path<'_>) -> Result<(), VerifyError> {
        let Some((top, below)) = path.split_last() else { return Ok(()) };
        match self.loosest() {
            Rules::Fabric => top.issuer.intermediate_of(self.domain)?,
            Rules::Spiffe => top.issuer.authority_below(self.domain, below.len())?,
        }
        in_time("the intermediate", self.now, top.issuer.not_before, top.issuer.not_after)
    }

    /// The anchor above the path, which grows upwards through other certificates of the chain where the rules let it.
    fn anchored<'p>(&mut self, path: &mut Path<'p>, all: &'p [Candidate<'p>]) -> Result<&'s Anchor, VerifyError> {
        let mut why = match self.anchor_above(path) {
            Err(error) if self.loosest() == Rules::Spiffe => error,
            known => return known,
        };
        for next in all {
            let Some(top) = path.last().copied() else { break };
            if next.issuer.subject != top.issuer.issuer || path.iter().any(|known| std::ptr::eq(*known, next)) {
                continue;
            }
            path.push(next);
            let found = self
                .may_stand_in(path)
                .and_then(|()| self.spend_signature())
                .and_then(|()| signed(next.der, top.der))
                .and_then(|()| self.anchored(path, all));
            match found {
                Ok(anchor) => return Ok(anchor),
                Err(error) => why = error,
            }
            path.pop();
        }
        Err(why)
    }

    /// An anchor that signed the path's uppermost authority and whose rules the path keeps.
    fn anchor_above(&mut self, path: &Path<'_>) -> Result<&'s Anchor, VerifyError> {
        let mut why = VerifyError::Untrusted(format!("no anchor of {} signed the intermediate", self.domain));
        let Some(top) = path.last() else { return Err(why) };
        let anchors = self.anchors;
        for anchor in anchors.iter().filter(|a| a.issuer.subject == top.issuer.issuer && a.issuer.spans(path.len())) {
            let checked = in_time("the anchor", self.now, anchor.issuer.not_before, anchor.issuer.not_after)
                .and_then(|()| self.keeps_rules_of(anchor, path))
                .and_then(|()| self.spend_signature())
                .and_then(|()| signed(&anchor.der, top.der));
            match checked {
                Ok(()) => return Ok(anchor),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    fn keeps_rules_of(&self, anchor: &Anchor, path: &Path<'_>) -> Result<(), VerifyError> {
        if anchor.rules() == Rules::Fabric {
            return self.keeps_fabric(path);
        }
        let keys = path.iter().map(|candidate| candidate.issuer.authority());
        if keys.into_iter().any(|key| anchor.is_elsewhere(&key)) {
            return Err(VerifyError::Untrusted("the intermediate's key is an anchor of another trust domain".into()));
        }
        Ok(())
    }

    fn keeps_fabric(&self, path: &Path<'_>) -> Result<(), VerifyError> {
        match path.as_slice() {
            [only] => only.issuer.intermediate_of(self.domain),
            _ => Err(VerifyError::Untrusted("more than one intermediate below a root of several trust domains".into())),
        }
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

    fn proved(&self, anchor: &Anchor, path: &Path<'_>) -> Svid {
        let authorities = || path.iter().map(|c| &c.issuer).chain([&anchor.issuer]);
        let strict = match path.as_slice() {
            [] => anchor.issuer.domain.as_ref() == Some(self.domain),
            _ => self.keeps_fabric(path).is_ok(),
        };
        Svid {
            id: self.leaf.id.clone(),
            not_before: authorities().map(|i| i.not_before).fold(self.leaf.not_before, SystemTime::max),
            not_after: authorities().map(|i| i.not_after).fold(self.leaf.not_after, SystemTime::min),
            serial: self.leaf.serial.clone(),
            anchor: anchor.fingerprint,
            authorities: authorities().map(Issuer::authority).collect(),
            keeps: if strict { Rules::Fabric } else { Rules::Spiffe },
        }
    }
}
