//! One attempt that many wait for: the first caller starts it, the others share its outcome, and it goes on when they
//! give up.

use std::sync::Arc;

use hawser_api::{Code, Refusal};
use hawser_runtime::Process;
use parking_lot::Mutex;
use tokio::sync::watch;

type Outcome<T> = Option<Result<T, Refusal>>;

/// At most one attempt at a time.
#[derive(Debug)]
pub(super) struct Flight<T> {
    now: Arc<Mutex<Option<watch::Receiver<Outcome<T>>>>>,
}

impl<T> Default for Flight<T> {
    fn default() -> Self {
        Self { now: Arc::default() }
    }
}

/// An attempt under way.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    outcome: watch::Receiver<Outcome<T>>,
}

impl<T: Clone + Send + Sync + 'static> Flight<T> {
    /// Joins the attempt under way, or starts one.
    pub(super) fn join<F>(&self, process: &Process, start: impl FnOnce() -> F) -> Waiting<T>
    where
        F: Future<Output = Result<T, Refusal>> + Send + 'static,
    {
        let mut now = self.now.lock();
        // A receiver whose sender is gone belongs to a task that was stopped: its attempt is over.
        if let Some(outcome) = now.as_ref().filter(|outcome| outcome.has_changed().is_ok()) {
            return Waiting { outcome: outcome.clone() };
        }
        let (done, outcome) = watch::channel(None);
        *now = Some(outcome.clone());
        let (attempt, slot) = (start(), self.now.clone());
        process.spawn(async move {
            let result = attempt.await;
            // In this order: who comes between the two lines still shares this outcome.
            let _ = done.send(Some(result));
            *slot.lock() = None;
        });
        Waiting { outcome }
    }

    /// Whether an attempt is under way.
    pub(super) fn under_way(&self) -> bool {
        self.now.lock().is_some()
    }
}

impl<T: Clone> Waiting<T> {
    /// Its outcome.
    pub(super) async fn outcome(mut self) -> Result<T, Refusal> {
        let stopped = || Refusal::new(Code::Draining, "this proxy is stopping", "try again when it is back");
        match self.outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or_else(|| Err(stopped())),
            Err(_) => Err(stopped()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[tokio::test]
    async fn many_callers_share_one_attempt_and_the_next_starts_another() {
        let (process, flight, started) = (Process::detached(), Flight::default(), Arc::new(AtomicU32::new(0)));
        let start = || {
            let started = started.clone();
            move || async move {
                let number = started.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
                Ok(number)
            }
        };
        let waiting: Vec<_> = (0..100).map(|_| flight.join(&process, start())).collect();
        for one in waiting {
            assert_eq!(one.outcome().await.unwrap(), 0);
        }
        while flight.under_way() {
            tokio::task::yield_now().await;
        }
        assert_eq!(flight.join(&process, start()).outcome().await.unwrap(), 1);
    }

    #[tokio::test]
    async fn an_attempt_goes_on_when_its_starter_gives_up() {
        let (process, flight) = (Process::detached(), Flight::default());
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let first = flight.join(&process, || async move {
            let _ = gone.await;
            Ok(7)
        });
        drop(first);
        let second = flight.join(&process, || async { Ok(8) });
        go.send(()).unwrap();
        assert_eq!(second.outcome().await.unwrap(), 7);
    }
}
