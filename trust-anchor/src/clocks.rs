//! Whether this machine's clock can be relied on: it is compared with the monotonic one, which nobody sets, and with
//! those of linked clusters.
//!
//! What is decided by it, and why:
//!
//! | the clock | a step of a rotation | certificates |
//! |---|---|---|
//! | has moved, and peers confirm it now | goes on | go on |
//! | has moved, and peers have not confirmed it yet | refused | refused for [`SETTLE`] at most: the old ones still hold |
//! | has moved, and no peer can be asked | refused for [`SETTLE`] | go on: a suspended machine must come back |
//! | differs from two peers or more, and agrees with none | refused | refused: they would refuse what is signed |

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::authority::Authority;
use crate::rotate::ClockEvidence;
use crate::rotate::evidence::{CLOCK_AGREES, REPORT_AGE_MAX};

/// After that long a move that nobody spoke against is taken for the truth.
const SETTLE: Duration = Duration::from_secs(600);
/// Clocks that run differently fast are set beside one another anew this often: 60 s in an hour is no drift.
const REBASE: Duration = Duration::from_secs(3600);
/// Reports that were on their way when the clock moved speak of the time before.
const REPORT_LAG: Duration = Duration::from_secs(20);

/// Both clocks, as they were set beside one another last.
#[derive(Debug, Default)]
pub(crate) struct Clocks {
    base: Option<(SystemTime, Instant)>,
    /// By how much the wall clock has moved, seconds, and when that was seen.
    moved: Option<(i64, Instant)>,
}

impl Clocks {
    pub(crate) fn moved_s(&self) -> Option<i64> {
        self.moved.map(|(by, _)| by)
    }

    /// Looks at both clocks and at what linked clusters say, and tells the issuer.
    pub(crate) fn look(&mut self, wall: SystemTime, mono: Instant, authority: &Authority) {
        let fabric = authority.fabric.borrow().clone();
        let fresh = fabric.filter(|(_, at)| mono.saturating_duration_since(*at) <= REPORT_AGE_MAX);
        let evidence = ClockEvidence::new(fresh.as_ref().map(|(report, _)| report), self.moved_s());
        let before = self.moved_s();
        self.judge(wall, mono, fresh.map(|(_, at)| at), &evidence);
        if before != self.moved_s() {
            let what = self.moved_s().map_or("relied on again".to_owned(), |by| format!("moved by {by} s"));
            authority.audit_or_log("clock", &what, "", wall);
        }
        authority.clock_trouble.store(self.trouble(&evidence).map(std::sync::Arc::new));
    }

    /// The decision, from both clocks, the time of the newest report and what it says.
    fn judge(&mut self, wall: SystemTime, mono: Instant, reported: Option<Instant>, evidence: &ClockEvidence) {
        let (base_wall, base_mono) = *self.base.get_or_insert((wall, mono));
        let apart = apart(base_wall, wall) - i64::try_from((mono - base_mono).as_secs()).unwrap_or(i64::MAX);
        if apart.unsigned_abs() <= CLOCK_AGREES.as_secs() {
            self.moved = None;
            if mono - base_mono > REBASE {
                self.base = Some((wall, mono));
            }
            return;
        }
        let since =
            self.moved.filter(|(by, _)| by.abs_diff(apart) <= CLOCK_AGREES.as_secs()).map_or(mono, |(_, at)| at);
        self.moved = Some((apart, since));
        let confirmed = evidence.confirmed() && reported.is_some_and(|at| at >= since + REPORT_LAG);
        let settled = mono - since >= SETTLE && !evidence.wrong();
        if confirmed || settled {
            self.base = Some((wall, mono));
            self.moved = None;
        }
    }

    /// Why nothing is issued, if nothing is.
    fn trouble(&self, evidence: &ClockEvidence) -> Option<String> {
        if evidence.wrong() {
            let differ: Vec<_> = evidence.differ.iter().map(|(name, ahead)| format!("{name} {ahead} ms")).collect();
            return Some(format!("the clock differs from those of linked clusters: {}", differ.join(", ")));
        }
        let moved = self.moved_s().filter(|_| evidence.alive > 0)?;
        Some(format!("the clock has moved by {moved} s, and linked clusters have not confirmed it yet"))
    }
}

/// Seconds from one to the other, negative if it is earlier.
fn apart(from: SystemTime, to: SystemTime) -> i64 {
    let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    to.duration_since(from).map_or_else(|back| -seconds(back.duration()), seconds)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const WALL: u64 = 1_000_000;

    struct Both {
        clocks: Clocks,
        start: Instant,
    }

    impl Both {
        fn new() -> Self {
            let both = Self { clocks: Clocks::default(), start: Instant::now() };
            both.at(0, 0, None, &alone())
        }

        /// `wall` is by how much the wall clock is off after `mono` seconds.
        fn at(mut self, mono: u64, wall: i64, reported: Option<u64>, evidence: &ClockEvidence) -> Self {
            let time = UNIX_EPOCH + Duration::from_secs((WALL + mono).saturating_add_signed(wall));
            let reported = reported.map(|at| self.start + Duration::from_secs(at));
            self.clocks.judge(time, self.start + Duration::from_secs(mono), reported, evidence);
            self
        }
    }

    fn alone() -> ClockEvidence {
        ClockEvidence::default()
    }

    fn peers(agree: usize, differ: usize) -> ClockEvidence {
        let differ = (0..differ).map(|n| (format!("peer-{n}"), 7_200_000)).collect();
        ClockEvidence { moved_s: None, alive: 3, agree, differ }
    }

    #[test]
    fn two_hours_forward_or_back_are_noticed_and_a_minute_is_not() {
        assert_eq!(Both::new().at(10, 60, None, &alone()).clocks.moved_s(), None);
        for by in [7200, -7200, 61] {
            let both = Both::new().at(10, by, None, &alone());
            assert_eq!(both.clocks.moved_s(), Some(by));
            assert!(both.clocks.trouble(&alone()).is_none(), "nobody can be asked: certificates go on");
            assert!(both.clocks.trouble(&peers(0, 1)).is_some(), "a peer can be asked and has not confirmed");
        }
    }

    #[test]
    fn a_clock_that_is_set_back_to_what_it_was_is_relied_on_again() {
        assert_eq!(Both::new().at(10, 7200, None, &alone()).at(20, 0, None, &alone()).clocks.moved_s(), None);
    }

    #[test]
    fn peers_confirm_a_move_but_not_with_what_they_said_before_it() {
        let both = Both::new().at(10, 7200, Some(9), &peers(3, 0));
        let both = both.at(25, 7200, Some(25), &peers(3, 0));
        assert_eq!(both.clocks.moved_s(), Some(7200), "that report may have been on its way");
        assert_eq!(both.at(31, 7200, Some(30), &peers(3, 0)).clocks.moved_s(), None);
    }

    #[test]
    fn a_move_that_two_peers_speak_against_never_settles() {
        let both = Both::new().at(10, 7200, None, &peers(0, 2)).at(10_000, 7200, Some(9_999), &peers(0, 2));
        assert_eq!(both.clocks.moved_s(), Some(7200));
        assert!(both.clocks.trouble(&peers(0, 2)).unwrap().contains("peer-1 7200000 ms"));
    }

    #[test]
    fn a_move_that_nobody_speaks_against_settles_in_time() {
        let both = Both::new().at(10, 7200, None, &alone()).at(600, 7200, None, &alone());
        assert_eq!(both.clocks.moved_s(), Some(7200));
        assert_eq!(both.at(611, 7200, None, &alone()).clocks.moved_s(), None);
    }

    #[test]
    fn a_second_move_begins_anew() {
        let both = Both::new().at(10, 7200, None, &alone()).at(500, 14_400, None, &alone());
        assert_eq!(both.at(700, 14_400, None, &alone()).clocks.moved_s(), Some(14_400));
    }

    #[test]
    fn clocks_that_drift_are_set_beside_one_another_anew() {
        let both = Both::new().at(3700, 50, None, &alone()).at(7400, 100, None, &alone());
        assert_eq!(both.clocks.moved_s(), None);
    }
}
