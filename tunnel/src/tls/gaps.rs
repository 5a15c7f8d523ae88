//! What handshakes that failed say of their peers' clocks.
//!
//! Where clocks differ by more than certificates live no session stands in which a peer could tell its time. The
//! certificate that is refused then still tells it: its issuer dated it by that clock.

use std::collections::BTreeMap;
use std::time::Duration;

use hawser_api::TrustDomain;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::trust::Trust;
use crate::identity::BACKDATE;
use crate::verify::{Rules, VerifyError};

/// Who is dialled again and again says it again; who is not may have put its clock right.
const FRESH: Duration = Duration::from_secs(30);

/// How far a peer's clock is from ours, at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockGap {
    /// Its certificate begins in what is the future here: its clock is ahead of ours.
    Ahead(Duration),
    /// Its certificate is over here: its clock is behind ours, or it has not been able to renew.
    Behind(Duration),
}

impl ClockGap {
    /// As a difference: the peer's clock minus ours, milliseconds.
    pub fn ahead_ms(self) -> i64 {
        let millis = |gap: Duration| i64::try_from(gap.as_millis()).unwrap_or(i64::MAX);
        match self {
            Self::Ahead(gap) => millis(gap),
            Self::Behind(gap) => -millis(gap),
        }
    }
}

impl Trust {
    /// Of a chain that was refused for this reason, if it would have been taken at another time. What nobody whom we
    /// trust has signed says nothing.
    pub(super) fn clock_gap(
        &self,
        chain: &[rustls_pki_types::CertificateDer<'_>],
        refused: &VerifyError,
    ) -> Option<(TrustDomain, ClockGap)> {
        let (at, gap) = match refused {
            VerifyError::NotYetValid { now, not_before, .. } => {
                (*not_before, ClockGap::Ahead(not_before.duration_since(*now).ok()?))
            }
            VerifyError::Expired { now, not_after, .. } => {
                (*not_after, ClockGap::Behind(now.duration_since(*not_after).ok()?))
            }
            _ => return None,
        };
        let svid = self.verify(chain, &super::Expect::Trusted, at).ok()?;
        let gap = match gap {
            // Our own issuers date back by so much; of others' it is not known.
            ClockGap::Ahead(gap) if svid.keeps == Rules::Fabric => ClockGap::Ahead(gap + BACKDATE),
            gap => gap,
        };
        Some((svid.id.trust_domain(), gap))
    }
}

/// The last of each trust domain: those that have anchors here, and no others.
#[derive(Debug, Default)]
pub(super) struct Gaps(Mutex<BTreeMap<TrustDomain, (ClockGap, Instant)>>);

impl Gaps {
    pub(super) fn note(&self, domain: TrustDomain, gap: ClockGap) {
        self.0.lock().insert(domain, (gap, Instant::now()));
    }

    /// One of it was taken.
    pub(super) fn forget(&self, domain: &TrustDomain) {
        self.0.lock().remove(domain);
    }

    pub(super) fn of(&self, domain: &TrustDomain) -> Option<ClockGap> {
        self.0.lock().get(domain).filter(|(_, at)| at.elapsed() < FRESH).map(|(gap, _)| *gap)
    }
}
