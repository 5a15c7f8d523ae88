//! What one link, and all links together, may take up. Counted in values that give back what they took when dropped.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hawser_api::{ClusterName, Code, Refusal};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::LimitsConfig;

/// How soon a peer that has too much open may try again: about as long as a short stream lives.
const ROOM_AFTER: Duration = Duration::from_secs(1);

/// The counters.
#[derive(Debug)]
pub struct Limits {
    config: LimitsConfig,
    tunnels: Arc<AtomicUsize>,
    // Keyed by links of this cluster's own table only, so it cannot grow by what peers send.
    links: Mutex<HashMap<ClusterName, Arc<Usage>>>,
}

#[derive(Debug)]
struct Usage {
    tunnels: Arc<AtomicUsize>,
    streams: Arc<AtomicUsize>,
    opens: Mutex<Bucket>,
}

/// One unit that counts until it is dropped.
#[derive(Debug)]
pub struct Slot {
    count: Arc<AtomicUsize>,
}

impl Slot {
    fn take(count: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let more = |n: usize| (n < most).then_some(n + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self { count: Arc::clone(count) })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Limits {
    /// With nothing taken.
    pub fn new(config: LimitsConfig) -> Self {
        Self { config, tunnels: Arc::default(), links: Mutex::default() }
    }

    /// Room for one more tunnel of anybody, before its handshake.
    pub fn take_tunnel(&self) -> Option<Slot> {
        Slot::take(&self.tunnels, self.config.tunnels)
    }

    /// Room for one more tunnel of this link.
    pub fn take_link_tunnel(&self, link: &ClusterName) -> Result<Slot, Refusal> {
        let most = self.config.tunnels_per_link;
        Slot::take(&self.usage(link).tunnels, most).ok_or_else(|| overloaded(link, "tunnels", most, ROOM_AFTER))
    }

    /// Room for one more live stream of this link.
    pub fn take_stream(&self, link: &ClusterName) -> Result<Slot, Refusal> {
        let most = self.config.streams_per_link;
        Slot::take(&self.usage(link).streams, most).ok_or_else(|| overloaded(link, "streams", most, ROOM_AFTER))
    }

    /// Counts one open of this link against its rate.
    pub fn take_open(&self, link: &ClusterName, now: Instant) -> Result<(), Refusal> {
        let rate = self.config.opens_per_second_per_link;
        let most = usize::try_from(rate).unwrap_or(usize::MAX);
        let taken = self.usage(link).opens.lock().take(now, f64::from(rate));
        taken.map_err(|after| overloaded(link, "opens a second", most, after))
    }

    /// Live streams of this link.
    pub fn streams(&self, link: &ClusterName) -> usize {
        self.usage(link).streams.load(Ordering::Relaxed)
    }

    /// Tunnels of this link.
    pub fn tunnels(&self, link: &ClusterName) -> usize {
        self.usage(link).tunnels.load(Ordering::Relaxed)
    }

    fn usage(&self, link: &ClusterName) -> Arc<Usage> {
        let mut links = self.links.lock();
        let usage = links.entry(link.clone()).or_insert_with(|| {
            let opens = Mutex::new(Bucket { level: 0.0, at: None });
            Arc::new(Usage { tunnels: Arc::default(), streams: Arc::default(), opens })
        });
        Arc::clone(usage)
    }
}

fn overloaded(link: &ClusterName, what: &str, most: usize, after: Duration) -> Refusal {
    Refusal::new(
        Code::Overloaded,
        format!("{link} has reached its limit of {most} {what} at this gateway"),
        "add a gateway, or raise the limits in this gateway's configuration",
    )
    .retry_after(after)
}

/// A token bucket that holds two seconds' worth. Pure: time is an argument.
#[derive(Debug)]
struct Bucket {
    // Tokens that are missing: 0 is full, so that a new bucket needs no time.
    level: f64,
    at: Option<Instant>,
}

impl Bucket {
    const SECONDS: f64 = 2.0;

    fn take(&mut self, now: Instant, rate: f64) -> Result<(), Duration> {
        let passed = self.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        self.level = (self.level - passed * rate).max(0.0);
        self.at = Some(now);
        if self.level + 1.0 > rate * Self::SECONDS {
            let wait = (self.level + 1.0 - rate * Self::SECONDS) / rate.max(1.0);
            // At least a millisecond: the wire knows no less, and 0 would mean "not stated".
            return Err(Duration::from_secs_f64(wait.clamp(0.001, 60.0)));
        }
        self.level += 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits::new(LimitsConfig {
            streams_per_link: 2,
            opens_per_second_per_link: 10,
            tunnels_per_link: 1,
            tunnels: 3,
        })
    }

    fn west() -> ClusterName {
        "west".parse().unwrap()
    }

    #[test]
    fn what_is_dropped_can_be_taken_again_and_links_do_not_share() {
        let limits = limits();
        let first = limits.take_stream(&west()).unwrap();
        let _second = limits.take_stream(&west()).unwrap();
        let refusal = limits.take_stream(&west()).unwrap_err();
        assert_eq!(refusal.code, Code::Overloaded);
        assert!(refusal.retry_after.is_some());
        assert!(limits.take_stream(&"north".parse().unwrap()).is_ok());
        drop(first);
        assert!(limits.take_stream(&west()).is_ok());
    }

    #[test]
    fn tunnels_have_a_limit_for_each_link_and_one_for_all() {
        let limits = limits();
        let _link = limits.take_link_tunnel(&west()).unwrap();
        assert_eq!(limits.take_link_tunnel(&west()).unwrap_err().code, Code::Overloaded);
        let all: Vec<_> = std::iter::from_fn(|| limits.take_tunnel()).collect();
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn opens_are_let_through_at_the_rate_with_a_burst_of_two_seconds() {
        let limits = limits();
        let begin = Instant::now();
        for _ in 0..20 {
            limits.take_open(&west(), begin).unwrap();
        }
        let refusal = limits.take_open(&west(), begin).unwrap_err();
        assert_eq!(refusal.code, Code::Overloaded);
        let after = refusal.retry_after.unwrap();
        assert!(after >= Duration::from_millis(1) && after <= Duration::from_millis(101), "{after:?}");
        assert!(limits.take_open(&west(), begin + Duration::from_millis(101)).is_ok());
        assert!(limits.take_open(&west(), begin + Duration::from_millis(102)).is_err());
        // A clock that goes back neither fills nor panics.
        assert!(limits.take_open(&west(), begin).is_err());
    }
}
