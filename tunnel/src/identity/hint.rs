//! When a process should renew: at half life, or before.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hawser_api::proto::issuer::Bundle;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::verify::AuthorityId;

/// Whatever we are told, the whole fabric does not renew more slowly than that.
const WITHIN_MAX: Duration = Duration::from_secs(600);

/// After which part of its life a certificate is renewed: half of it, ten per cent more or less, so that processes that
/// were started together do not ask together for ever.
pub fn renewal_after(life: Duration) -> Duration {
    life.mul_f64(rand::random_range(0.45..0.55))
}

/// What the trust anchor says about the certificates that are out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Hint {
    /// Who has a leaf of another issuer renews.
    issuer: Option<AuthorityId>,
    /// Who has a leaf from before this time renews.
    before: Option<SystemTime>,
    /// At a random moment within this time.
    pub(super) within: Duration,
}

impl Hint {
    pub(super) fn new(bundle: &Bundle) -> Self {
        let before = u64::try_from(bundle.reissue_before_ms).unwrap_or_default();
        Self {
            issuer: AuthorityId::try_from(bundle.active_issuer.as_slice()).ok(),
            before: (before > 0).then(|| UNIX_EPOCH + Duration::from_millis(before)),
            within: Duration::from_millis(bundle.renew_within_ms.into()).min(WITHIN_MAX),
        }
    }

    /// Whether it means the holder of this chain, which began at that time.
    pub(super) fn means(&self, chain: &[CertificateDer<'_>], begun: SystemTime) -> bool {
        let ours = chain.get(1).and_then(|der| X509Certificate::from_der(der).ok());
        let ours = ours.map(|(_, cert)| AuthorityId::of_key(cert.public_key().raw));
        let other = ours.is_some_and(|ours| self.issuer.is_some_and(|issuer| issuer != ours));
        other || self.before.is_some_and(|before| begun < before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_that_began_together_renew_over_a_tenth_of_their_life() {
        let life = Duration::from_secs(1000);
        let all: Vec<u64> = (0..1000).map(|_| renewal_after(life).as_secs()).collect();
        assert!(all.iter().all(|seconds| (450..550).contains(seconds)));
        // Each of the ten hundredths of a life has its share.
        for tenth in 45..55 {
            let share = all.iter().filter(|seconds| **seconds / 10 == tenth).count();
            assert!((40..200).contains(&share), "{share} at {tenth} %");
        }
    }
}
