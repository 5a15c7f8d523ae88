//! Pure: when what failed is tried again, and what others undo again and again is put back.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Pauses after failures in a row: quick for what mends itself, seldom for what somebody must mend.
const PAUSE: std::ops::Range<Duration> = Duration::from_millis(200)..Duration::from_secs(30);

/// So many repairs of one thing follow at once.
const REPAIRS: u32 = 4;
/// Who has not changed it for this long is not fighting.
const CALM: Duration = Duration::from_secs(60);

/// What has failed, by what it is, and when it may be tried again.
#[derive(Debug)]
pub struct Pacing<K> {
    tries: BTreeMap<K, Try>,
    // The API server asked everybody to wait.
    held_until: Option<Instant>,
}

#[derive(Debug)]
struct Try {
    failed: u32,
    at: Instant,
    repaired: u32,
    repaired_at: Instant,
}

impl Try {
    fn new(now: Instant) -> Self {
        Self { failed: 0, at: now, repaired: 0, repaired_at: now }
    }

    fn fights(&self, now: Instant) -> bool {
        self.repaired > 0 && now.duration_since(self.repaired_at) < CALM
    }
}

impl<K> Default for Pacing<K> {
    fn default() -> Self {
        Self { tries: BTreeMap::new(), held_until: None }
    }
}

impl<K: Ord + Clone> Pacing<K> {
    /// Whether it may be tried now.
    pub fn ready(&self, key: &K, now: Instant) -> bool {
        self.held_until.is_none_or(|until| until <= now) && self.tries.get(key).is_none_or(|known| known.at <= now)
    }

    /// It failed: `after` is what the API server asked for, `jitter` from 0.5 to 1 keeps those apart that failed together.
    pub fn failed(&mut self, key: K, now: Instant, after: Option<Duration>, jitter: f64) {
        let known = self.tries.entry(key).or_insert_with(|| Try::new(now));
        let pause = PAUSE.start.saturating_mul(1 << known.failed.min(16)).min(PAUSE.end).mul_f64(jitter);
        known.failed = known.failed.saturating_add(1);
        known.at = now + after.map_or(pause, |after| after.max(pause));
    }

    /// The API server asked for a pause of everybody.
    pub fn hold(&mut self, now: Instant, after: Duration) {
        let until = now + after;
        self.held_until = Some(self.held_until.map_or(until, |held| held.max(until)));
    }

    /// It succeeded.
    pub fn succeeded(&mut self, key: &K, now: Instant) {
        if self.tries.get(key).is_some_and(|known| known.fights(now)) {
            self.tries.entry(key.clone()).and_modify(|known| known.failed = 0);
        } else {
            self.tries.remove(key);
        }
    }

    /// It was put back as it was before. Whoever changes it each time, by a webhook or a controller, is not to be fought
    /// with all that the API server has: it is put back ever more seldom.
    pub fn repaired(&mut self, key: K, now: Instant) {
        let known = self.tries.entry(key).or_insert_with(|| Try::new(now));
        known.repaired = if known.fights(now) { known.repaired.saturating_add(1) } else { 1 };
        (known.failed, known.repaired_at) = (0, now);
        let Some(beyond) = known.repaired.checked_sub(REPAIRS) else { return };
        known.at = now + PAUSE.start.saturating_mul(1 << beyond.min(16)).min(PAUSE.end);
    }

    /// Only what is still to be done stays, and what is fought over.
    pub fn retain(&mut self, now: Instant, wanted: impl Fn(&K) -> bool) {
        self.tries.retain(|key, known| wanted(key) || known.fights(now));
    }

    /// When something that waits may be tried; `None`: nothing waits.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        let first = self.tries.values().map(|known| known.at).filter(|at| *at > now).min();
        let held = self.held_until.filter(|until| *until > now);
        match (first, held) {
            (Some(first), Some(held)) => Some(first.max(held)),
            (first, held) => first.or(held),
        }
    }
}

#[cfg(test)]
mod tests {
    use hawser_runtime::clock;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_fails_again_and_again_is_tried_ever_more_seldom_and_holds_up_nothing_else() {
        let now = clock::monotonic();
        let mut pacing = Pacing::default();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            pacing.failed("a", now, None, 1.0);
            pauses.push(pacing.next(now).unwrap() - now);
        }
        assert_eq!(pauses[..3], [200, 400, 800].map(Duration::from_millis));
        assert_eq!(pauses[11], PAUSE.end);
        assert!(!pacing.ready(&"a", now) && pacing.ready(&"b", now));
        assert!(pacing.ready(&"a", now + PAUSE.end));
        pacing.succeeded(&"a", now);
        assert_eq!(pacing.next(now), None);
        pacing.failed("a", now, None, 1.0);
        assert_eq!(pacing.next(now).unwrap() - now, PAUSE.start, "a success begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn who_undoes_it_each_time_is_not_fought_with_all_that_there_is() {
        let start = clock::monotonic();
        let (mut now, mut pacing, mut pauses) = (start, Pacing::default(), Vec::new());
        for _ in 0..16 {
            pacing.repaired("a", now);
            // It is right for a moment, and then wrong again.
            pacing.retain(now, |_| false);
            let next = pacing.next(now).unwrap_or(now);
            assert!(pacing.ready(&"a", next) && pacing.ready(&"b", now));
            pauses.push(next - now);
            now = next;
        }
        assert_eq!(pauses[..6], [0, 0, 0, 200, 400, 800].map(Duration::from_millis));
        assert_eq!(pauses[15], PAUSE.end);
        pacing.repaired("a", now + CALM);
        assert_eq!(pacing.next(now + CALM), None, "it was left alone for a while");
        pacing.retain(now + CALM * 2, |_| false);
        assert_eq!(pacing.tries.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_asks_for_time_gets_it_from_everybody() {
        let now = clock::monotonic();
        let mut pacing = Pacing::default();
        pacing.failed("a", now, Some(Duration::from_secs(7)), 0.5);
        assert!(!pacing.ready(&"a", now + Duration::from_secs(6)));
        pacing.hold(now, Duration::from_secs(3));
        pacing.hold(now, Duration::from_secs(2));
        assert!(!pacing.ready(&"b", now + Duration::from_millis(2900)));
        assert!(pacing.ready(&"b", now + Duration::from_secs(3)));
    }
}
