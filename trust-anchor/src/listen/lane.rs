//! Who is served when: a lane for each kind of request, and no newcomer behind a herd.
//!
//! ```text
//! renewals ─────────────▶ queue ─▶ turn: not while a newcomer has been overtaken often enough ─▶ served, some at a time
//! newcomers, gateways, ─▶ queue ──────────────────────────────────────────────────────────────▶ served, some at a time
//! mirror controllers
//! ```
//!
//! What is promised to whoever is in the first lane, in renewals and not in seconds, so that it holds on any machine:
//! between its arrival and its answer at most [`OVERTAKEN_MAX`] renewals begin, whatever waits.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hawser_runtime::{Process, clock};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use crate::refused::Refused;

/// Longest wait in the queue. Clients wait longer than that for an answer.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Renewals that may begin while one of the first lane is there: about as many as are signed and synced to the disk in the
/// time that its own token and its own line in the audit log take. Renewals are not starved by it: each newcomer lets this
/// many pass.
const OVERTAKEN_MAX: u64 = 32;
/// From a free lane to the longest wait.
const BUCKETS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0];
/// Up to the promise, and one that must stay empty.
const OVERTAKEN: [f64; 8] = [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, OVERTAKEN_MAX as f64, 2.0 * OVERTAKEN_MAX as f64];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Name {
    lane: &'static str,
}

/// How long each lane's requests took.
#[derive(Debug)]
pub(super) struct Metrics {
    waited: Family<Name, Histogram, fn() -> Histogram>,
    answered: Family<Name, Histogram, fn() -> Histogram>,
    overtaken: Histogram,
}

impl Metrics {
    pub(super) fn new(process: &Process) -> Self {
        let seconds: fn() -> Histogram = || Histogram::new(BUCKETS);
        let metrics = Self {
            waited: Family::new_with_constructor(seconds),
            answered: Family::new_with_constructor(seconds),
            overtaken: Histogram::new(OVERTAKEN),
        };
        let mut registry = process.registry.lock();
        let waited = "From a request's arrival to its turn, by lane";
        registry.register("hawser_issuer_wait_seconds", waited, metrics.waited.clone());
        let answered = "From a request's arrival to its answer, by lane";
        registry.register("hawser_issuer_answer_seconds", answered, metrics.answered.clone());
        let overtaken = "Renewals that began while somebody of the first lane was there";
        registry.register("hawser_issuer_overtaken", overtaken, metrics.overtaken.clone());
        drop(registry);
        metrics
    }
}

/// Who may wait and who is served, of one kind of request.
pub(super) struct Lane {
    queue: Arc<Semaphore>,
    served: Arc<Semaphore>,
    precedence: Precedence,
    waited: Histogram,
    answered: Histogram,
}

enum Precedence {
    /// Waits for nobody but its like.
    Own,
    /// Goes before the herd.
    First(Arc<Turns>, Histogram),
    /// Lets the first lane go before it.
    Herd(Arc<Turns>),
}

/// Both lanes of those who want certificates: the herd's and the first, each with how many may be in it, and how many of
/// those are served at a time.
pub(super) fn pair(herd: (usize, usize), first: (usize, usize), metrics: &Metrics) -> (Lane, Lane) {
    let turns = Arc::new(Turns::default());
    let ahead = Precedence::First(Arc::clone(&turns), metrics.overtaken.clone());
    (Lane::new("herd", herd, Precedence::Herd(turns), metrics), Lane::new("first", first, ahead, metrics))
}

impl Lane {
    /// A lane that has nothing to do with the others.
    pub(super) fn alone(name: &'static str, queue: usize, served: usize, metrics: &Metrics) -> Self {
        Self::new(name, (queue, served), Precedence::Own, metrics)
    }

    fn new(lane: &'static str, (queue, served): (usize, usize), precedence: Precedence, metrics: &Metrics) -> Self {
        Self {
            queue: Arc::new(Semaphore::new(queue)),
            served: Arc::new(Semaphore::new(served)),
            precedence,
            waited: metrics.waited.get_or_create_owned(&Name { lane }),
            answered: metrics.answered.get_or_create_owned(&Name { lane }),
        }
    }

    /// A place, for as long as it is held; refused rather than waited for long.
    pub(super) async fn place(&self) -> Result<Place, Refused> {
        let arrived = clock::monotonic();
        let queued = Arc::clone(&self.queue).try_acquire_owned().map_err(|_| Refused::Busy)?;
        let ahead = match &self.precedence {
            Precedence::First(turns, overtaken) => Some(turns.ahead(overtaken.clone())),
            _ => None,
        };
        let turn = async {
            let served = Arc::clone(&self.served).acquire_owned().await;
            if let Precedence::Herd(turns) = &self.precedence {
                turns.begin().await;
            }
            served
        };
        let served = timeout(WAIT_MAX, turn).await.map_err(|_| Refused::Busy)?.map_err(|_| Refused::Busy)?;
        self.waited.observe((clock::monotonic() - arrived).as_secs_f64());
        let place =
            Place { arrived, answered: self.answered.clone(), _ahead: ahead, served: Some(served), _queued: queued };
        Ok(place)
    }
}

/// A request that is served; it has been answered when this goes.
pub(super) struct Place {
    arrived: Instant,
    answered: Histogram,
    _ahead: Option<Ahead>,
    served: Option<OwnedSemaphorePermit>,
    _queued: OwnedSemaphorePermit,
}

impl Place {
    /// What is left is to wait for the disk: the next may be served.
    pub(super) fn worked(&mut self) {
        self.served = None;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.answered.observe((clock::monotonic() - self.arrived).as_secs_f64());
    }
}

/// Who of the first lane is there, and how many renewals had begun when each came.
#[derive(Default)]
struct Turns {
    state: Mutex<State>,
    gone: Notify,
}

#[derive(Default)]
struct State {
    /// Renewals that have begun.
    begun: u64,
    arrivals: u64,
    /// By arrival, so that the first is the one that was overtaken most often.
    ahead: BTreeMap<u64, u64>,
}

impl State {
    /// Counts a renewal as begun, if it may.
    fn begin(&mut self) -> bool {
        let may = self.ahead.values().next().is_none_or(|at| self.begun - at < OVERTAKEN_MAX);
        self.begun += u64::from(may);
        may
    }
}

impl Turns {
    fn ahead(self: &Arc<Self>, overtaken: Histogram) -> Ahead {
        let mut state = self.state.lock();
        state.arrivals += 1;
        let (arrival, begun) = (state.arrivals, state.begun);
        state.ahead.insert(arrival, begun);
        Ahead { turns: Arc::clone(self), arrival, overtaken }
    }

    async fn begin(&self) {
        loop {
            // Before the look: who goes in between is noticed.
            let gone = self.gone.notified();
            if self.state.lock().begin() {
                return;
            }
            gone.await;
        }
    }
}

/// Somebody of the first lane who is there.
struct Ahead {
    turns: Arc<Turns>,
    arrival: u64,
    overtaken: Histogram,
}

impl Drop for Ahead {
    fn drop(&mut self) {
        let mut state = self.turns.state.lock();
        let by = state.ahead.remove(&self.arrival).map_or(0, |at| state.begun - at);
        drop(state);
        self.overtaken.observe(u32::try_from(by).map_or(f64::INFINITY, f64::from));
        self.turns.gone.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::task::unconstrained;

    use super::*;

    fn lanes() -> (Lane, Lane) {
        pair((256, 256), (2, 1), &Metrics::new(&Process::detached()))
    }

    /// Renewals that begin at once, of this many that come; tokio's budget, which a test soon exceeds, is no reason to wait.
    fn begun(herd: &Lane, come: usize) -> usize {
        (0..come).filter(|_| unconstrained(herd.place()).now_or_never().is_some_and(|place| place.is_ok())).count()
    }

    #[tokio::test]
    async fn a_newcomer_is_overtaken_by_a_few_renewals_whatever_waits() {
        let (herd, first) = lanes();
        assert_eq!(begun(&herd, 100), 100, "nobody is there");
        let newcomer = first.place().await.unwrap();
        assert_eq!(begun(&herd, 100), 32);
        assert_eq!(begun(&herd, 100), 0);
        drop(newcomer);
        assert_eq!(begun(&herd, 100), 100);
    }

    #[tokio::test]
    async fn newcomers_who_follow_one_another_do_not_starve_renewals() {
        let (herd, first) = lanes();
        let mut newcomer = first.place().await.unwrap();
        for _ in 0..10 {
            assert_eq!(begun(&herd, 100), 32);
            let waits = first.place();
            tokio::pin!(waits);
            assert!(waits.as_mut().now_or_never().is_none(), "one is served at a time");
            assert_eq!(begun(&herd, 100), 0);
            drop(newcomer);
            newcomer = waits.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_renewal_that_waits_for_a_newcomer_begins_when_that_is_answered() {
        let (herd, first) = lanes();
        let newcomer = first.place().await.unwrap();
        assert_eq!(begun(&herd, 100), 32);
        let (renewal, ()) = tokio::join!(herd.place(), async { drop(newcomer) });
        renewal.unwrap();
    }

    #[tokio::test]
    async fn who_finds_no_room_is_sent_away_at_once_and_who_waits_too_long_later() {
        let (_, first) = lanes();
        let _served = first.place().await.unwrap();
        let before = clock::monotonic();
        let (waited, turned_away) = tokio::join!(first.place(), first.place());
        assert!(matches!((waited, turned_away), (Err(Refused::Busy), Err(Refused::Busy))));
        assert!(clock::monotonic() - before >= WAIT_MAX);
    }
}
