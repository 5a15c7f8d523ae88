//! Keeps what peers can cause from filling the log: each reason is told once a second, with how often it was not.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Often enough to see what goes on, rarely enough that a flood is no second flood here.
const EVERY: Duration = Duration::from_secs(1);

/// When each reason was last told. Reasons are words of a closed set, so this does not grow.
#[derive(Debug, Default)]
pub(crate) struct Said {
    last: Mutex<HashMap<&'static str, (Instant, u64)>>,
}

impl Said {
    /// Whether to tell this reason now; if so, how many were left out since it was last told.
    pub(crate) fn again(&self, reason: &'static str, now: Instant) -> Option<u64> {
        let mut last = self.last.lock();
        match last.get_mut(reason) {
            Some((at, left_out)) if now.saturating_duration_since(*at) < EVERY => {
                *left_out += 1;
                None
            }
            _ => Some(last.insert(reason, (now, 0)).map_or(0, |(_, left_out)| left_out)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_once_a_second_with_what_was_left_out() {
        let (said, now) = (Said::default(), Instant::now());
        assert_eq!(said.again("untrusted", now), Some(0));
        assert_eq!(said.again("untrusted", now), None);
        assert_eq!(said.again("expired", now), Some(0));
        assert_eq!(said.again("untrusted", now + EVERY / 2), None);
        assert_eq!(said.again("untrusted", now + EVERY), Some(2));
        assert_eq!(said.again("untrusted", now + EVERY * 2), Some(0));
    }
}
