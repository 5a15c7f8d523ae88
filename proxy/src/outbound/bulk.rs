//! Which sealed session an opaque connection gets: a place in a shared one, which costs nothing to open, or one of its
//! own, which costs a handshake and then moves bulk without HTTP/2's framing and second flow control.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use hawser_tunnel::splice::Traffic;
use parking_lot::Mutex;

use crate::table::SessionMode;

/// Connections that are remembered: enough that one odd one does not decide, few enough to follow a change.
const RECENT: usize = 16;
/// Mean bytes from which a handshake is worth it. It costs each end about a millisecond of CPU, which is what framing
/// and a second flow control cost on the order of ten megabytes; a tenth of that, because bulk in a shared session also
/// slows the requests beside it.
const MUCH: u64 = 1 << 20;
/// A service that has dedicated sessions keeps them until its mean falls below this, lest it swing to and fro.
const LITTLE: u64 = 256 << 10;

/// What a destination's recent connections carried.
#[derive(Debug, Default)]
pub(crate) struct Bulk {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ended: VecDeque<u64>,
    live: VecDeque<Weak<Traffic>>,
    dedicated: bool,
}

impl Bulk {
    /// Whether a new connection gets a session of its own.
    pub(crate) fn dedicated(&self, mode: SessionMode) -> bool {
        match mode {
            SessionMode::Shared => false,
            SessionMode::Dedicated => true,
            SessionMode::Auto => {
                let mut state = self.state.lock();
                let live = state.live.iter().filter_map(Weak::upgrade).map(|t| bytes(&t));
                let recent: Vec<u64> = state.ended.iter().copied().chain(live).collect();
                state.dedicated = decide(&recent, state.dedicated);
                state.dedicated
            }
        }
    }

    /// A connection begins.
    pub(crate) fn begin(&self, traffic: &Arc<Traffic>) {
        let mut state = self.state.lock();
        state.live.retain(|live| live.strong_count() > 0);
        if state.live.len() >= RECENT {
            state.live.pop_front();
        }
        state.live.push_back(Arc::downgrade(traffic));
    }

    /// A connection has ended.
    pub(crate) fn end(&self, traffic: &Arc<Traffic>) {
        let mut state = self.state.lock();
        state.live.retain(|live| !std::ptr::eq(live.as_ptr(), Arc::as_ptr(traffic)));
        if state.ended.len() >= RECENT {
            state.ended.pop_front();
        }
        state.ended.push_back(bytes(traffic));
    }
}

fn bytes(traffic: &Traffic) -> u64 {
    traffic.sent.load(Ordering::Relaxed).saturating_add(traffic.received.load(Ordering::Relaxed))
}

/// The rule: by the mean of what recent connections have carried, ended or not, with some inertia.
fn decide(recent: &[u64], dedicated: bool) -> bool {
    let Some(count) = u64::try_from(recent.len()).ok().filter(|count| *count > 0) else { return dedicated };
    let mean = recent.iter().fold(0_u64, |sum, bytes| sum.saturating_add(*bytes)) / count;
    mean >= if dedicated { LITTLE } else { MUCH }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_recent_connections_decides_with_some_inertia() {
        const MB: u64 = 1 << 20;
        for (recent, before, after) in [
            (&[][..], false, false),
            (&[], true, true),
            (&[100, 2_000, 300], false, false),
            (&[10 * MB], false, true),
            // One bulk transfer among many small ones is no pattern; several are.
            (&[8 * MB, 0, 0, 0, 0, 0, 0, 0, 0, 0], false, false),
            (&[8 * MB, 0, 8 * MB, 0, 0, 0, 0, 0], false, true),
            (&[MB / 2, MB / 2], false, false),
            (&[MB / 2, MB / 2], true, true),
            (&[MB / 8, MB / 8], true, false),
            (&[u64::MAX, u64::MAX], false, true),
        ] {
            assert_eq!(decide(recent, before), after, "{recent:?} {before}");
        }
    }

    #[test]
    fn a_transfer_counts_while_it_runs_and_the_object_can_fix_the_choice() {
        let bulk = Bulk::default();
        let traffic = Arc::new(Traffic::default());
        bulk.begin(&traffic);
        assert!(!bulk.dedicated(SessionMode::Auto));
        traffic.received.store(100 << 20, Ordering::Relaxed);
        assert!(bulk.dedicated(SessionMode::Auto));
        assert!(!bulk.dedicated(SessionMode::Shared));
        bulk.end(&traffic);
        drop(traffic);
        assert!(bulk.dedicated(SessionMode::Auto));
        for _ in 0..2 * RECENT {
            let small = Arc::new(Traffic::default());
            bulk.begin(&small);
            bulk.end(&small);
        }
        assert!(!bulk.dedicated(SessionMode::Auto));
        assert!(bulk.dedicated(SessionMode::Dedicated));
    }
}
