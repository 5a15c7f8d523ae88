//! Which endpoint gets the next request or connection: the cheaper of two random ones.
//!
//! An endpoint's cost is its peak-sensitive moving average of the time to an answer, times the streams that it has
//! open and one. An answer that has not come counts as slow as it is late by now, so that a hung endpoint gets no
//! more work long before anybody knows that it hangs. Failures raise the average; too many in a row eject the endpoint
//! for a while, after which one stream at a time is let through until one succeeds.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How fast an average forgets: as Finagle and Linkerd have it.
const DECAY: Duration = Duration::from_secs(10);
/// What is assumed of an endpoint that has answered nothing yet. It is forgotten fast, or a new endpoint beside quick
/// ones would wait for its first request for half a minute.
const INITIAL: Duration = Duration::from_millis(30);
const INITIAL_DECAY: Duration = Duration::from_secs(1);
/// Each failed answer makes the endpoint count as this many times slower, for a moment: it gets a fraction of the work
/// for seconds, not nothing for minutes, because every application answers 5xx now and then.
const PENALTY: f64 = 4.0;
/// The penalties of several failures together.
const PENALTY_MAX: f64 = 64.0;
/// How fast penalties are forgotten: the largest is down to double after eight seconds.
const PENALTY_DECAY: Duration = Duration::from_secs(2);
/// Failed answers in a row that eject: what Envoy and Linkerd use as default is 5 and 7.
const FAILED_ANSWERS: u32 = 5;
/// How long the first ejection lasts; each further one twice as long, up to [`EJECT_MAX`].
const EJECT_FIRST: Duration = Duration::from_secs(1);
const EJECT_MAX: Duration = Duration::from_secs(10);

/// What went wrong with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The endpoint could not be reached, or hung up before it answered: it is ejected at once.
    Connection,
    /// It answered with a 5xx, or refused.
    Answer,
}

/// Whether an endpoint takes new work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    In,
    /// It was ejected and may show itself with one stream.
    Probation,
    /// It is ejected, or on probation with its one stream open.
    Out,
}

/// What is known of one endpoint.
#[derive(Debug)]
pub struct Load {
    open: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Seconds.
    average: f64,
    at: Instant,
    sampled: bool,
    /// How many times slower it counts for its failures, less one; and since when.
    penalty: f64,
    penalised: Instant,
    /// Streams that wait for their answer.
    waiting: u32,
    /// When the endpoint last answered, or began to have somebody waiting.
    progress: Instant,
    failures: u32,
    ejections: u32,
    until: Option<Instant>,
    probing: bool,
}

impl State {
    fn average(&self, now: Instant) -> f64 {
        let decay = if self.sampled { DECAY } else { INITIAL_DECAY };
        let idle = now.saturating_duration_since(self.at).as_secs_f64();
        self.average * (-idle / decay.as_secs_f64()).exp()
    }

    fn sample(&mut self, now: Instant, seconds: f64) {
        let average = self.average(now);
        let first = !self.sampled;
        // A peak is believed at once; what is quicker than the average only pulls it down as time passes.
        self.average = if first || seconds > average {
            seconds
        } else {
            let keep = (-now.saturating_duration_since(self.at).as_secs_f64() / DECAY.as_secs_f64()).exp();
            self.average * keep + seconds * (1.0 - keep)
        };
        self.at = now;
        self.sampled = true;
    }

    fn penalty(&self, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.penalised).as_secs_f64();
        1.0 + self.penalty * (-since / PENALTY_DECAY.as_secs_f64()).exp()
    }

    fn penalise(&mut self, now: Instant) {
        self.penalty = (self.penalty(now) * PENALTY).min(PENALTY_MAX) - 1.0;
        self.penalised = now;
    }

    fn standing(&self, now: Instant) -> Standing {
        match self.until {
            None => Standing::In,
            Some(until) if now < until || self.probing => Standing::Out,
            Some(_) => Standing::Probation,
        }
    }
}

impl Load {
    /// Of an endpoint that has done nothing yet.
    pub fn new(now: Instant) -> Self {
        let state = State {
            average: INITIAL.as_secs_f64(),
            at: now,
            sampled: false,
            penalty: 0.0,
            penalised: now,
            waiting: 0,
            progress: now,
            failures: 0,
            ejections: 0,
            until: None,
            probing: false,
        };
        Self { open: AtomicU32::new(0), state: Mutex::new(state) }
    }

    /// Relative cost of one more stream. Nothing is cheaper than the one stream that an endpoint on probation may have:
    /// it would otherwise wait for its chance until its old figures are forgotten.
    pub fn cost(&self, now: Instant) -> f64 {
        let state = self.state.lock();
        if state.standing(now) == Standing::Probation {
            return 0.0;
        }
        let late = if state.waiting == 0 { 0.0 } else { now.saturating_duration_since(state.progress).as_secs_f64() };
        // The floor keeps the number of open streams in the product when an average has decayed to nothing.
        state.average(now).max(late).max(1e-6) * state.penalty(now) * f64::from(self.open().saturating_add(1))
    }

    /// Whether it takes new work.
    pub fn standing(&self, now: Instant) -> Standing {
        self.state.lock().standing(now)
    }

    /// Until when it is ejected, if it is.
    pub fn ejected_until(&self) -> Option<Instant> {
        self.state.lock().until
    }

    /// Streams open now.
    pub fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// The average time to an answer.
    pub fn average(&self, now: Instant) -> Duration {
        Duration::try_from_secs_f64(self.state.lock().average(now)).unwrap_or_default()
    }

    /// A stream begins; it waits for its answer.
    pub fn begin(&self, now: Instant) {
        self.open.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock();
        if state.waiting == 0 {
            state.progress = now;
        }
        state.waiting = state.waiting.saturating_add(1);
        state.probing |= state.until.is_some();
    }

    /// A stream that waited got its answer after `took`; the ejection, if there was one, is over.
    pub fn answered(&self, now: Instant, took: Duration) {
        let mut state = self.state.lock();
        state.settle(now);
        if state.until.take().is_some() {
            // What it did before it was away says nothing of it now.
            state.sampled = false;
            state.penalty = 0.0;
        }
        state.sample(now, took.as_secs_f64());
        state.failures = 0;
        // A second ejection soon after the first lasts longer; a good spell is not forgotten either.
        state.ejections = state.ejections.saturating_sub(1);
    }

    /// A stream that waited failed after `took`. Says whether the endpoint was ejected for it.
    pub fn failed(&self, now: Instant, took: Duration, failure: Failure) -> bool {
        let mut state = self.state.lock();
        state.settle(now);
        state.penalise(now);
        if took.as_secs_f64() > state.average(now) {
            // A quick failure says nothing of how quick answers are; a slow one does.
            state.sample(now, took.as_secs_f64());
        }
        state.failures = state.failures.saturating_add(1);
        if state.until.is_some_and(|until| now < until) {
            // It is out already; what was open at that moment fails too and says nothing new.
            return false;
        }
        let again = state.until.is_some();
        if failure == Failure::Answer && state.failures < FAILED_ANSWERS && !again {
            return false;
        }
        let lasts = EJECT_FIRST.saturating_mul(1_u32.checked_shl(state.ejections).unwrap_or(u32::MAX)).min(EJECT_MAX);
        state.until = Some(now + lasts);
        state.ejections = state.ejections.saturating_add(1).min(16);
        state.failures = 0;
        true
    }

    /// A stream that waited was given up by its caller after `took`: an answer would have taken longer than that.
    pub fn abandoned(&self, now: Instant, took: Duration) {
        let mut state = self.state.lock();
        state.settle(now);
        if took.as_secs_f64() > state.average(now) {
            state.sample(now, took.as_secs_f64());
        }
    }

    /// A stream ended; whatever it waited for has been reported before.
    pub fn end(&self) {
        // Every end has its begin; the check only keeps a mistake from wrapping round to four thousand million.
        let _ = self.open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| open.checked_sub(1));
    }
}

impl State {
    /// One stream less waits.
    fn settle(&mut self, now: Instant) {
        self.waiting = self.waiting.saturating_sub(1);
        self.progress = now;
        self.probing = false;
    }
}

/// The cheaper of two random ones out of `count`, by index. `cost` is `None` for those that may not be chosen; `draw`
/// gives random numbers.
pub fn pick(count: usize, mut draw: impl FnMut() -> u64, cost: impl Fn(usize) -> Option<f64>) -> Option<usize> {
    if count < 2 {
        return (count == 1 && cost(0).is_some()).then_some(0);
    }
    let mut below = |n: usize| usize::try_from(draw() % u64::try_from(n).unwrap_or(1)).unwrap_or_default();
    let first = below(count);
    let second = (first + 1 + below(count - 1)) % count;
    if let (Some(a), Some(b)) = (cost(first), cost(second)) {
        return Some(if b < a { second } else { first });
    }
    // Some may not be chosen: two random ones of the others.
    let allowed: Vec<(usize, f64)> = (0..count).filter_map(|at| Some((at, cost(at)?))).collect();
    if allowed.is_empty() {
        return None;
    }
    let first = below(allowed.len());
    let second = if allowed.len() > 1 { (first + 1 + below(allowed.len() - 1)) % allowed.len() } else { first };
    let two = [allowed.get(first), allowed.get(second)];
    two.into_iter().flatten().min_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| *at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn stream(load: &Load, now: Instant, took: Duration) -> Instant {
        load.begin(now);
        load.answered(now + took, took);
        load.end();
        now + took
    }

    fn fail(load: &Load, now: Instant, failure: Failure) -> bool {
        load.begin(now);
        let ejected = load.failed(now, Duration::ZERO, failure);
        load.end();
        ejected
    }

    #[test]
    fn a_peak_is_believed_at_once_and_forgotten_slowly() {
        let mut now = Instant::now();
        let load = Load::new(now);
        now = stream(&load, now, 2 * MS);
        assert_eq!(load.average(now).as_millis(), 2);
        now = stream(&load, now, 100 * MS);
        assert_eq!(load.average(now).as_millis(), 100);
        now += DECAY;
        now = stream(&load, now, 2 * MS);
        let average = load.average(now).as_millis();
        assert!((35..45).contains(&average), "{average}");
    }

    #[test]
    fn what_has_not_answered_yet_gets_its_chance_within_seconds() {
        let now = Instant::now();
        let load = Load::new(now);
        assert_eq!(load.average(now), INITIAL);
        assert!(load.average(now + Duration::from_secs(5)) < MS);
        // The first answer replaces the assumption.
        let later = stream(&load, now, 5 * MS);
        assert_eq!(load.average(later).as_millis(), 5);
    }

    #[test]
    fn an_answer_that_does_not_come_costs_as_much_as_it_is_late() {
        let mut now = Instant::now();
        let (hung, well) = (Load::new(now), Load::new(now));
        now = stream(&hung, now, MS);
        now = stream(&well, now, 2 * MS);
        hung.begin(now);
        well.begin(now);
        well.answered(now + MS, MS);
        now += 50 * MS;
        assert!(hung.cost(now) > 5.0 * well.cost(now));
    }

    #[test]
    fn callers_that_give_up_leave_word_of_how_long_they_waited() {
        let mut now = Instant::now();
        let load = Load::new(now);
        now = stream(&load, now, MS);
        load.begin(now);
        now += 200 * MS;
        load.abandoned(now, 200 * MS);
        load.end();
        assert_eq!(load.average(now).as_millis(), 200);
    }

    #[test]
    fn a_failed_connection_ejects_at_once_and_five_failed_answers_in_a_row_do() {
        let now = Instant::now();
        let load = Load::new(now);
        assert!(fail(&load, now, Failure::Connection));
        assert_eq!(load.standing(now), Standing::Out);

        let load = Load::new(now);
        for _ in 0..4 {
            assert!(!fail(&load, now, Failure::Answer));
        }
        stream(&load, now, MS);
        for _ in 0..4 {
            assert!(!fail(&load, now, Failure::Answer), "an answer in between starts the count again");
        }
        assert!(fail(&load, now, Failure::Answer));
        assert_eq!(load.standing(now), Standing::Out);
    }

    #[test]
    fn after_an_ejection_one_stream_at_a_time_decides() {
        let mut now = Instant::now();
        let load = Load::new(now);
        fail(&load, now, Failure::Connection);
        now += EJECT_FIRST;
        assert_eq!(load.standing(now), Standing::Probation);
        load.begin(now);
        assert_eq!(load.standing(now), Standing::Out);
        // Given up by its caller: nothing was learnt, the next may try.
        load.abandoned(now, Duration::ZERO);
        load.end();
        assert_eq!(load.standing(now), Standing::Probation);
        // A failure ejects for twice as long, even if it is only an answer.
        assert!(fail(&load, now, Failure::Answer));
        assert_eq!(load.standing(now + EJECT_FIRST), Standing::Out);
        now += 2 * EJECT_FIRST;
        assert_eq!(load.standing(now), Standing::Probation);
        now = stream(&load, now, MS);
        assert_eq!(load.standing(now), Standing::In);
    }

    #[test]
    fn an_ejection_never_lasts_longer_than_its_maximum() {
        let mut now = Instant::now();
        let load = Load::new(now);
        for _ in 0..100 {
            assert!(fail(&load, now, Failure::Connection));
            now += EJECT_MAX;
            assert_eq!(load.standing(now), Standing::Probation);
        }
    }

    #[test]
    fn an_endpoint_that_was_away_is_back_at_its_full_share_after_one_answer() {
        let mut now = Instant::now();
        let load = Load::new(now);
        now = stream(&load, now, MS);
        for _ in 0..5 {
            fail(&load, now, Failure::Answer);
        }
        load.begin(now);
        load.failed(now, Duration::from_millis(1400), Failure::Connection);
        load.end();
        now += EJECT_FIRST;
        assert_eq!(load.standing(now), Standing::Probation);
        assert!(load.cost(now) < 1e-6, "it is the first to be asked");
        now = stream(&load, now, 2 * MS);
        assert!(load.cost(now) < 0.0025, "{}", load.cost(now));
    }

    #[test]
    fn a_single_failure_is_forgotten_within_seconds() {
        let mut now = Instant::now();
        let load = Load::new(now);
        now = stream(&load, now, MS);
        let before = load.cost(now);
        fail(&load, now, Failure::Answer);
        assert!(load.cost(now) > 3.0 * before);
        now += Duration::from_secs(8);
        assert!(load.cost(now) < 1.1 * before);
    }

    #[test]
    fn what_fails_together_ejects_once() {
        let now = Instant::now();
        let load = Load::new(now);
        (0..50).for_each(|_| load.begin(now));
        let ejected = (0..50).filter(|_| load.failed(now, MS, Failure::Connection)).count();
        assert_eq!(ejected, 1);
        assert_eq!(load.standing(now + EJECT_FIRST), Standing::Probation);
    }

    /// The formula of tower's `PeakEwma`, as its documentation gives it.
    fn oracle(samples: &[(u64, u64)]) -> f64 {
        let mut average: Option<f64> = None;
        for (gap, sample) in samples {
            let (gap, sample) =
                (Duration::from_millis(*gap).as_secs_f64(), Duration::from_millis(*sample).as_secs_f64());
            average = Some(match average {
                None => sample,
                Some(average) => {
                    let decay = (-gap / DECAY.as_secs_f64()).exp();
                    if sample > average * decay { sample } else { average * decay + sample * (1.0 - decay) }
                }
            });
        }
        average.unwrap_or_default()
    }

    proptest! {
        #[test]
        fn averages_are_those_of_the_known_formula(samples in prop::collection::vec((0_u64..20_000, 0_u64..5_000), 1..50)) {
            let mut now = Instant::now();
            let load = Load::new(now);
            for (gap, sample) in &samples {
                now += Duration::from_millis(*gap);
                load.begin(now);
                load.answered(now, Duration::from_millis(*sample));
                load.end();
            }
            let (ours, theirs) = (load.state.lock().average, oracle(&samples));
            prop_assert!((ours - theirs).abs() < 1e-6, "{} {}", ours, theirs);
        }

        #[test]
        fn only_allowed_ones_are_picked_and_one_is_when_there_is_any(
            costs in prop::collection::vec(prop::option::of(0.0_f64..10.0), 0..12), seed: u64
        ) {
            let mut state = seed;
            let draw = || { state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1); state >> 33 };
            match pick(costs.len(), draw, |at| costs[at]) {
                Some(at) => prop_assert!(costs[at].is_some()),
                None => prop_assert!(costs.iter().all(Option::is_none)),
            }
        }

        #[test]
        fn counts_never_wrap(events in prop::collection::vec(0_u8..5, 0..200)) {
            let now = Instant::now();
            let load = Load::new(now);
            for event in events {
                match event {
                    0 => load.begin(now),
                    1 => load.answered(now, MS),
                    2 => { load.failed(now, MS, Failure::Answer); }
                    3 => load.abandoned(now, MS),
                    _ => load.end(),
                }
            }
            prop_assert!(load.open() <= 200);
            prop_assert!(load.cost(now).is_finite() && load.cost(now) >= 0.0);
        }
    }

    #[test]
    fn equal_endpoints_share_equally_and_a_slow_one_gets_little() {
        let now = Instant::now();
        let loads: Vec<Load> = (0..4).map(|_| Load::new(now)).collect();
        for (load, took) in loads.iter().zip([1, 1, 1, 20]) {
            stream(load, now, took * MS);
        }
        let mut state = 7_u64;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        let mut counts = [0; 4];
        for _ in 0..4_000 {
            let at = pick(4, &mut draw, |at| Some(loads[at].cost(now))).unwrap();
            counts[at] += 1;
        }
        assert_eq!(counts[3], 0, "the slow one never wins against a quick idle one: {counts:?}");
        // Equal costs: the first drawn wins, which is uniform; the slow one's share goes to the others.
        assert!(counts[..3].iter().all(|n| (1_150..1_520).contains(n)), "{counts:?}");
    }
}
