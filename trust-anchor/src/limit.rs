//! No identity asks for so many certificates that others wait: a bucket of tokens each.

use std::collections::HashMap;

use hawser_api::SpiffeId;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::refused::Refused;

/// Certificates at once: every replica of a large deployment, which all have one identity, after an outage.
const BURST: f64 = 200.0;
/// And then a second: a thousand replicas that live for minutes.
const RATE: f64 = 10.0;
/// Most identities that are counted; full buckets are forgotten first.
const COUNTED_MAX: usize = 16_384;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn refill(&mut self, now: Instant) {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * RATE;
        self.left = (self.left + gained).min(BURST);
        self.at = now;
    }
}

/// Of all identities.
#[derive(Debug, Default)]
pub(crate) struct Limits(Mutex<HashMap<SpiffeId, Bucket>>);

impl Limits {
    /// One certificate for this identity, if it has one left.
    pub(crate) fn take(&self, id: &SpiffeId, now: Instant) -> Result<(), Refused> {
        let mut buckets = self.0.lock();
        if buckets.len() >= COUNTED_MAX && !buckets.contains_key(id) {
            buckets.retain(|_, bucket| {
                bucket.refill(now);
                bucket.left < BURST
            });
            // All of them are in use: rather forget what was than refuse a newcomer.
            if buckets.len() >= COUNTED_MAX {
                buckets.clear();
            }
        }
        let bucket = buckets.entry(id.clone()).or_insert(Bucket { left: BURST, at: now });
        bucket.refill(now);
        if bucket.left < 1.0 {
            return Err(Refused::TooMany(id.clone()));
        }
        bucket.left -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn id(n: usize) -> SpiffeId {
        format!("spiffe://east.example/ns/a/sa/b{n}").parse().unwrap()
    }

    #[test]
    fn one_identity_gets_a_burst_and_then_a_rate_and_others_do_not_notice() {
        let (limits, now) = (Limits::default(), Instant::now());
        let got = (0..1000).filter(|_| limits.take(&id(0), now).is_ok()).count();
        assert_eq!(got, 200);
        limits.take(&id(1), now).unwrap();
        let later = now + Duration::from_secs(2);
        assert_eq!((0..1000).filter(|_| limits.take(&id(0), later).is_ok()).count(), 20);
    }

    #[test]
    fn the_number_of_identities_that_are_counted_is_bounded() {
        let (limits, now) = (Limits::default(), Instant::now());
        for n in 0..COUNTED_MAX * 2 {
            limits.take(&id(n), now).unwrap();
        }
        assert!(limits.0.lock().len() <= COUNTED_MAX);
    }
}
