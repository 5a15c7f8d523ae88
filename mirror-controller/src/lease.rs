//! Which of several replicas writes: the holder of a Lease (`coordination.k8s.io/v1`).
//!
//! All replicas watch, plan, and serve discovery and catalogs; one of them writes. It asks before every single write
//! whether it still may ([`Leadership::permit`]), and is told how long the write may take at most. Clocks of
//! different machines are never compared: a follower measures with its own how long the record has not changed.
//!
//! [`Elector`] decides, and knows no I/O and no clock.

use std::time::Duration;

use hawser_api::Namespace;
use hawser_runtime::{Process, clock};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::metrics::Metrics;

/// Name of the Lease.
pub const NAME: &str = "hawser-mirror-controller";
/// So long a follower sees no renewal before it takes over: with half a second between looks and a slow answer, that is
/// within 15 s of a kill.
pub const LEASE: Duration = Duration::from_secs(10);
/// A holder renews this often.
const RENEW: Duration = Duration::from_secs(2);
/// A holder that has not renewed for so long begins no write any more. What is left until [`LEASE`] is the longest that a
/// write may take, so that none is under way when somebody else begins.
const DEADLINE: Duration = Duration::from_secs(6);
/// A follower looks this often: a lease that was given up is taken within two seconds, on a busy machine too.
const RETRY: Duration = Duration::from_millis(500);
/// So long a write that is under way may hold up that the lease is given up.
const HAND_OVER: Duration = Duration::from_millis(800);
/// One request about the lease.
const REQUEST: Duration = Duration::from_secs(3);

/// Whether this replica may write. Clone to share.
#[derive(Debug, Clone)]
pub struct Leadership {
    until: watch::Receiver<Option<Instant>>,
    under_way: TaskTracker,
}

/// The right to one write. While there is one, the lease is not given up.
#[derive(Debug)]
pub struct Permit {
    /// The write must be over within this time.
    pub within: Duration,
    _under_way: TaskTrackerToken,
}

impl Leadership {
    /// The right to write now, if this replica is the one that writes.
    pub fn permit(&self) -> Option<Permit> {
        // In this order: who gives the lease up closes first and then waits for what has begun.
        let under_way = self.under_way.token();
        let until = (*self.until.borrow())?;
        let now = clock::monotonic();
        (now < until).then_some(Permit { within: LEASE - DEADLINE, _under_way: under_way })
    }

    /// Whether this replica is the one that writes.
    pub fn leads(&self) -> bool {
        self.permit().is_some()
    }

    /// Waits until this replica becomes or ceases to be the one that writes.
    pub async fn changed(&mut self) {
        let led = self.leads();
        loop {
            if self.until.changed().await.is_err() {
                // The elector is gone, and with it every claim.
                return std::future::pending().await;
            }
            if self.leads() != led {
                return;
            }
        }
    }
}

/// What a Lease says, as far as it matters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; empty: nobody.
    pub holder: String,
    /// Changes with every renewal.
    pub version: String,
    /// So long it holds without renewal, as its holder wrote.
    pub lasts: Duration,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Write our name into it.
    Claim,
    /// Another holds it: look again later.
    Follow,
}

/// Decides.
#[derive(Debug)]
pub struct Elector {
    me: String,
    seen: Option<(Record, Instant)>,
}

impl Elector {
    /// For the replica of this name, which no other bears, not even the same replica after a restart.
    pub fn new(me: String) -> Self {
        Self { me, seen: None }
    }

    /// The Lease says this now; `None`: there is none.
    pub fn decide(&mut self, record: Option<&Record>, now: Instant) -> Step {
        let Some(record) = record else {
            self.seen = None;
            return Step::Claim;
        };
        if self.seen.as_ref().is_none_or(|(seen, _)| seen != record) {
            self.seen = Some((record.clone(), now));
        }
        let since = self.seen.as_ref().map_or(now, |(_, since)| *since);
        let free = record.holder.is_empty() || record.holder == self.me;
        // A holder may have written a longer time than ours, never one that makes us impatient.
        let over = now.duration_since(since) >= record.lasts.max(LEASE);
        if free || over { Step::Claim } else { Step::Follow }
    }
}

/// Takes part in the election until the process drains, and then gives the lease up at once.
pub async fn run(client: Client, namespace: Namespace, (process, metrics): (Process, Metrics), until: Until) {
    let api: Api<Lease> = Api::namespaced(client, namespace.as_str());
    let me = format!("{}_{:016x}", host(), rand::random::<u64>());
    let mut replica = Replica { api, elector: Elector::new(me.clone()), me, held: None, until, metrics };
    process.drain.run_until_cancelled(replica.take_part()).await;
    replica.give_up().await;
}

/// The elector's end of a [`Leadership`].
#[derive(Debug)]
pub struct Until {
    until: watch::Sender<Option<Instant>>,
    under_way: TaskTracker,
}

/// Both ends; nobody leads yet.
pub fn channel() -> (Until, Leadership) {
    let (sender, receiver) = watch::channel(None);
    let under_way = TaskTracker::new();
    (Until { until: sender, under_way: under_way.clone() }, Leadership { until: receiver, under_way })
}

struct Replica {
    api: Api<Lease>,
    elector: Elector,
    me: String,
    // The Lease as we wrote it last, while we hold it.
    held: Option<Lease>,
    until: Until,
    metrics: Metrics,
}

impl Replica {
    async fn take_part(&mut self) {
        loop {
            let pause = match self.turn().await {
                Ok(true) => RENEW,
                Ok(false) => RETRY,
                Err(error) => {
                    tracing::debug!(%error, "the lease cannot be read or written; tried again");
                    // Somebody may have written it: look before writing again.
                    self.held = None;
                    RETRY
                }
            };
            self.tell();
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.9..1.0))).await;
            self.tell();
        }
    }

    /// Looks, and writes if it is ours to write. Whether it is ours now.
    async fn turn(&mut self) -> Result<bool, String> {
        let held = match self.held.take() {
            Some(held) => Some(held),
            None => within(self.api.get_opt(NAME)).await?,
        };
        if self.elector.decide(held.as_ref().map(record).as_ref(), clock::monotonic()) == Step::Follow {
            self.until.until.send_replace(None);
            return Ok(false);
        }
        let began = clock::monotonic();
        let claim = self.claim(held.as_ref());
        let post = PostParams { field_manager: Some(NAME.to_owned()), ..PostParams::default() };
        let written = match &held {
            None => within(self.api.create(&post, &claim)).await?,
            // Only if nobody else has written it meanwhile: the version that was read goes along.
            Some(_) => within(self.api.replace(NAME, &post, &claim)).await?,
        };
        if self.until.until.borrow().is_none() {
            tracing::info!(replica = self.me, "this replica writes from now on");
        }
        self.held = Some(written);
        self.until.until.send_replace(Some(began + DEADLINE));
        Ok(true)
    }

    fn claim(&self, held: Option<&Lease>) -> Lease {
        let mut claim = held.cloned().unwrap_or_default();
        claim.metadata.name = Some(NAME.to_owned());
        let now = MicroTime(timestamp());
        let spec = claim.spec.get_or_insert_with(LeaseSpec::default);
        if spec.holder_identity.as_deref() != Some(&self.me) {
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
        }
        spec.holder_identity = Some(self.me.clone());
        spec.lease_duration_seconds = i32::try_from(LEASE.as_secs()).ok();
        spec.renew_time = Some(now);
        claim
    }

    /// A claim that ran out is withdrawn, so that who waits for a change hears of it.
    fn tell(&self) {
        let over = |until: &mut Option<Instant>| {
            let over = until.is_some_and(|until| until <= clock::monotonic());
            if over {
                tracing::warn!("the lease could not be renewed: this replica writes nothing until it is");
                *until = None;
            }
            over
        };
        self.until.until.send_if_modified(over);
        self.metrics.leads(self.until.until.borrow().is_some());
    }

    /// Begins no write, lets what is under way end, and then lets another begin.
    async fn give_up(&mut self) {
        self.until.until.send_replace(None);
        self.metrics.leads(false);
        self.until.under_way.close();
        if tokio::time::timeout(HAND_OVER, self.until.under_way.wait()).await.is_err() {
            // It may still take effect: only the lease's end is late enough to be safe.
            return tracing::info!("a write is still under way: the lease is not given up but runs out");
        }
        let Some(mut held) = self.held.take() else { return };
        if let Some(spec) = &mut held.spec {
            spec.holder_identity = None;
            spec.renew_time = Some(MicroTime(timestamp()));
        }
        if let Err(error) = within(self.api.replace(NAME, &PostParams::default(), &held)).await {
            tracing::debug!(%error, "the lease is not given up: it runs out");
        }
    }
}

async fn within<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(REQUEST, request).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err("the API server does not answer".to_owned()),
    }
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let lasts = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        lasts: lasts.map_or(LEASE, Duration::from_secs),
    }
}

fn timestamp() -> jiff::Timestamp {
    jiff::Timestamp::try_from(clock::now()).unwrap_or_default()
}

/// The Pod's name, by which people find the replica.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-' || *c == '.').collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn held_by(holder: &str, version: u64) -> Record {
        Record { holder: holder.to_owned(), version: version.to_string(), lasts: LEASE }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_taken_when_it_is_new_free_ours_or_silent_for_too_long() {
        let now = clock::monotonic();
        let mut elector = Elector::new("me".to_owned());
        assert_eq!(elector.decide(None, now), Step::Claim);
        assert_eq!(elector.decide(Some(&held_by("", 1)), now), Step::Claim);
        assert_eq!(elector.decide(Some(&held_by("me", 2)), now), Step::Claim);
        assert_eq!(elector.decide(Some(&held_by("other", 3)), now), Step::Follow);
        let nearly = now + LEASE - Duration::from_millis(1);
        assert_eq!(elector.decide(Some(&held_by("other", 3)), nearly), Step::Follow);
        assert_eq!(elector.decide(Some(&held_by("other", 4)), nearly), Step::Follow, "it was renewed");
        assert_eq!(elector.decide(Some(&held_by("other", 4)), now + LEASE), Step::Follow);
        assert_eq!(elector.decide(Some(&held_by("other", 4)), nearly + LEASE), Step::Claim);
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_that_was_not_renewed_permits_no_write() {
        let (until, leadership) = channel();
        assert!(leadership.permit().is_none());
        until.until.send_replace(Some(clock::monotonic() + DEADLINE));
        tokio::time::advance(DEADLINE - Duration::from_millis(1)).await;
        assert_eq!(leadership.permit().map(|permit| permit.within), Some(LEASE - DEADLINE));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(leadership.permit().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_lease_is_not_given_up_while_a_write_is_under_way() {
        let (until, leadership) = channel();
        until.until.send_replace(Some(clock::monotonic() + DEADLINE));
        let permit = leadership.permit().unwrap();
        until.until.send_replace(None);
        until.under_way.close();
        let ended = tokio::time::timeout(HAND_OVER, until.under_way.wait()).await;
        assert!(ended.is_err());
        drop(permit);
        assert!(leadership.permit().is_none());
        tokio::time::timeout(HAND_OVER, until.under_way.wait()).await.unwrap();
    }

    proptest! {
        /// Two replicas that see the record late, each by its own clock: never may both write, for whatever one begins to
        /// write is over when the other begins.
        #[test]
        fn two_replicas_never_write_at_once(steps in prop::collection::vec((0..2usize, 0..3000u64, any::<bool>()), 1..200)) {
            let start = clock_start();
            let mut now = start;
            let mut electors = [Elector::new("0".to_owned()), Elector::new("1".to_owned())];
            let mut record: Option<Record> = None;
            let mut version = 0;
            // When each may write until, and when a write that it began last would be over at the latest.
            let mut until = [start; 2];
            for (who, pass, reaches) in steps {
                now += Duration::from_millis(pass);
                let step = electors[who].decide(record.as_ref(), now);
                if step == Step::Claim && reaches {
                    let other = 1 - who;
                    let mine = record.as_ref().is_some_and(|record| record.holder == who.to_string());
                    if !mine {
                        prop_assert!(until[other] + (LEASE - DEADLINE) <= now || until[other] == start);
                    }
                    version += 1;
                    record = Some(held_by(&who.to_string(), version));
                    until[who] = now + DEADLINE;
                }
            }
        }
    }

    fn clock_start() -> Instant {
        clock::monotonic()
    }
}
