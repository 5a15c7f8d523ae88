//! HTTP requests at a constant rate, each with its time and outcome.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::client::{Connection, Request, Via};

/// What is sent, and how often.
#[derive(Debug, Clone)]
pub struct Rate {
    /// Requests a second, all workers together.
    pub per_second: u32,
    /// Connections, each with one request at a time.
    pub workers: u32,
}

impl Default for Rate {
    fn default() -> Self {
        Self { per_second: 80, workers: 4 }
    }
}

/// One request.
#[derive(Debug, Clone)]
pub struct Sample {
    /// When it was sent.
    pub at: Instant,
    /// Until its answer.
    pub took: Duration,
    /// Which instance answered, or what went wrong.
    pub outcome: Result<String, String>,
}

/// A running load.
#[derive(Debug)]
pub struct Load {
    samples: Arc<Mutex<Vec<Sample>>>,
    stop: CancellationToken,
    workers: JoinSet<()>,
}

impl Load {
    /// Starts.
    pub fn start(via: &Via, request: &Request, rate: &Rate) -> Self {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let stop = CancellationToken::new();
        let mut workers = JoinSet::new();
        let pause = Duration::from_secs(1) * rate.workers / rate.per_second.max(1);
        for number in 0..rate.workers {
            let worker =
                Worker { via: via.clone(), request: request.clone(), connection: None, samples: Arc::clone(&samples) };
            let first = pause * number / rate.workers.max(1);
            workers.spawn(worker.run(first, pause, stop.clone()));
        }
        Self { samples, stop, workers }
    }

    /// How many requests have had their answer or failed.
    pub fn count(&self) -> usize {
        self.samples.lock().len()
    }

    /// What was seen so far.
    pub fn report(&self) -> Report {
        let mut samples = self.samples.lock().clone();
        samples.sort_by_key(|sample| sample.at);
        Report { samples }
    }

    /// Ends when every request that was sent has its answer.
    pub async fn finish(mut self) -> Report {
        self.stop.cancel();
        while self.workers.join_next().await.is_some() {}
        self.report()
    }
}

struct Worker {
    via: Via,
    request: Request,
    connection: Option<Connection>,
    samples: Arc<Mutex<Vec<Sample>>>,
}

impl Worker {
    async fn run(mut self, first: Duration, pause: Duration, stop: CancellationToken) {
        tokio::time::sleep(first).await;
        let mut ticks = interval(pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let at = Instant::now();
            let outcome = self.request().await;
            self.samples.lock().push(Sample { at, took: at.elapsed(), outcome });
        }
    }

    async fn request(&mut self) -> Result<String, String> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(&self.via).await.map_err(|error| format!("{error:#}"))?,
        };
        let answer = connection.send(&self.request).await.map_err(|error| format!("{error:#}"))?;
        if answer.status != 200 {
            return Err(answer.summary());
        }
        let closing = answer.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        self.connection = (!closing).then_some(connection);
        let instance = answer.json().ok().and_then(|json| Some(json.get("instance")?.as_str()?.to_owned()));
        Ok(instance.unwrap_or_default())
    }
}

/// What a load saw.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// In order of sending.
    pub samples: Vec<Sample>,
}

impl Report {
    /// Those that failed.
    pub fn failures(&self) -> Vec<&Sample> {
        self.samples.iter().filter(|sample| sample.outcome.is_err()).collect()
    }

    /// Those that were sent from `from` on.
    #[must_use]
    pub fn since(&self, from: Instant) -> Self {
        Self { samples: self.samples.iter().filter(|sample| sample.at >= from).cloned().collect() }
    }

    /// Those that were sent before `until`.
    #[must_use]
    pub fn before(&self, until: Instant) -> Self {
        Self { samples: self.samples.iter().filter(|sample| sample.at < until).cloned().collect() }
    }

    /// How often each instance answered.
    pub fn instances(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for instance in self.samples.iter().filter_map(|sample| sample.outcome.as_deref().ok()) {
            *counts.entry(instance).or_default() += 1;
        }
        counts
    }

    /// The longest that a request took.
    pub fn slowest(&self) -> Duration {
        self.samples.iter().map(|sample| sample.took).max().unwrap_or_default()
    }

    /// So many in a hundred requests took no longer than this.
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut all: Vec<_> = self.samples.iter().map(|sample| sample.took).collect();
        all.sort_unstable();
        all.get(all.len() * percent / 100).or(all.last()).copied().unwrap_or_default()
    }

    /// From `from` until the last failure was over; zero without failures.
    pub fn trouble_after(&self, from: Instant) -> Duration {
        let over = |sample: &Sample| (sample.at + sample.took).saturating_duration_since(from);
        self.since(from).samples.iter().filter(|sample| sample.outcome.is_err()).map(over).max().unwrap_or_default()
    }

    /// Counts by outcome, for messages.
    pub fn summary(&self) -> String {
        let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
        for sample in self.failures() {
            *reasons.entry(sample.outcome.as_ref().err().map_or("", String::as_str)).or_default() += 1;
        }
        let first = self.samples.first().map(|sample| sample.at);
        let at = |sample: &&Sample| first.map(|first| sample.at.duration_since(first));
        let when = (self.failures().first().and_then(at), self.failures().last().and_then(at));
        let (sent, failed, slowest) = (self.samples.len(), self.failures().len(), self.slowest());
        format!(
            "{sent} requests, {failed} failed {reasons:?} first and last at {when:?}, slowest {slowest:?}, by {:?}",
            self.instances()
        )
    }

    /// An error that tells all, unless at least `least` were sent and none failed.
    pub fn expect_flawless(&self, least: usize) -> Result<()> {
        anyhow::ensure!(self.samples.len() >= least && self.failures().is_empty(), "{}", self.summary());
        Ok(())
    }
}
