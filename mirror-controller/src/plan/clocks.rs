//! Pure: what a peer says its clock shows → how far it is ahead of ours.
//!
//! What is told is old when it arrives, by the way it took and by whatever held it up: each sample is too low, and the
//! highest of a few is the best. Half the round trip to the nearest of the peer's gateways makes up for the way.

use std::collections::VecDeque;

use crate::world::PeerState;

/// Samples that are looked at: eight seconds of heartbeats. A clock that is set back is noticed when the last of before
/// has gone.
const SAMPLES: usize = 16;

/// The last samples of one peer.
#[derive(Debug, Default)]
pub struct Estimate {
    samples: VecDeque<i64>,
}

impl Estimate {
    /// The peer's clock showed `told_ms`, ours `now_ms` when that arrived; how far the peer's is ahead, milliseconds.
    pub fn heard(&mut self, told_ms: i64, now_ms: i64, round_trip_us: u64) -> i64 {
        let way = i64::try_from(round_trip_us / 2000).unwrap_or(i64::MAX);
        self.samples.push_back(told_ms.saturating_add(way).saturating_sub(now_ms));
        if self.samples.len() > SAMPLES {
            self.samples.pop_front();
        }
        self.samples.iter().copied().max().unwrap_or_default()
    }
}

/// The round trip to the nearest gateway that answers, microseconds; 0: none does.
pub fn round_trip_us(peer: &PeerState) -> u64 {
    let alive = peer.gateways.values().filter(|gateway| gateway.alive && gateway.round_trip_us > 0);
    alive.map(|gateway| gateway.round_trip_us).min().unwrap_or_default()
}

/// What is known, and that it is so much at least, to the same side → what to go by.
pub fn at_least(known: Option<i64>, bound: i64) -> i64 {
    let fits = |known: &i64| known.signum() == bound.signum() && known.unsigned_abs() >= bound.unsigned_abs();
    known.filter(fits).unwrap_or(bound)
}

/// Whether people should be told of this change: what is told makes a plan.
pub fn tells(known: Option<i64>, now: i64) -> bool {
    known.is_none_or(|known| known.abs_diff(now) >= 500)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_held_up_on_its_way_does_not_count() {
        let mut estimate = Estimate::default();
        let mut ahead = 0;
        for held_up in [400, 20, 900, 150] {
            // The peer is two hours ahead; a heartbeat takes 20 ms and what holds it up.
            ahead = estimate.heard(7_200_000 + 1_000, 1_000 + held_up, 40_000);
        }
        assert_eq!(ahead, 7_200_000);
    }

    #[test]
    fn a_clock_that_is_set_back_is_noticed_and_one_that_jumps_ahead_at_once() {
        let mut estimate = Estimate::default();
        estimate.heard(1_000, 1_000, 0);
        assert_eq!(estimate.heard(61_500, 1_500, 0), 60_000);
        let last = (0..SAMPLES).map(|_| estimate.heard(2_000, 2_000, 0)).last();
        assert_eq!(last, Some(0));
        assert!(tells(Some(0), -600) && !tells(Some(0), 400) && tells(None, 0));
    }

    #[test]
    fn what_was_measured_is_kept_as_long_as_it_agrees_with_what_is_sure() {
        assert_eq!(at_least(None, -5), -5);
        assert_eq!(at_least(Some(-7_200_000), -5_000), -7_200_000);
        assert_eq!(at_least(Some(-4_000), -5_000), -5_000);
        assert_eq!(at_least(Some(7_200_000), -5_000), -5_000);
        assert_eq!(at_least(Some(0), 5_000), 5_000);
    }

    #[test]
    fn no_number_of_a_peer_overflows() {
        let mut estimate = Estimate::default();
        let _ = estimate.heard(i64::MIN, i64::MAX, u64::MAX);
        let _ = estimate.heard(i64::MAX, i64::MIN, u64::MAX);
    }
}
