//! The join door of a listener: what keeps strangers without a certificate from costing much, and the one exchange
//! that they get.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::server::Accepted;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::server::TlsStream;

use super::slots::prefix;
use crate::join::{REQUEST_MAX, receive, send};
use crate::tls::HandshakeError;

/// Bounds of the join door; [`Default`] argues for each value.
#[derive(Debug, Clone)]
pub struct DoorConfig {
    /// Handshakes and requests at a time.
    pub at_once: usize,
    /// From the connection to the whole request, and again for the reply.
    pub deadline: Duration,
    /// Knocks a second from one /24 (IPv6: /48), with ten seconds' worth at once.
    pub per_second_per_prefix: f64,
    /// Knocks a second from everywhere, with ten seconds' worth at once.
    pub per_second: f64,
}

impl Default for DoorConfig {
    fn default() -> Self {
        Self {
            // Clusters are joined by people: two at the same moment are a coincidence.
            at_once: 4,
            deadline: Duration::from_secs(5),
            per_second_per_prefix: 1.0,
            per_second: 5.0,
        }
    }
}

/// What became of those who knocked, for metrics.
#[derive(Debug, Default)]
pub struct Knocks {
    /// Let in to their handshake.
    pub taken: AtomicU64,
    /// Closed because others were being served.
    pub busy: AtomicU64,
    /// Closed because too many came from there, or from everywhere.
    pub too_often: AtomicU64,
}

/// Most prefixes that are remembered; of more, those that are full again are forgotten first.
const PREFIXES_MAX: usize = 4096;
/// A bucket holds this many seconds' worth.
const BURST: f64 = 10.0;

/// The door of one listener.
#[derive(Debug)]
pub(super) struct Door {
    config: DoorConfig,
    slots: Arc<Semaphore>,
    rates: Mutex<Rates>,
    pub(super) knocks: Knocks,
}

impl Door {
    pub(super) fn new(config: DoorConfig) -> Self {
        let slots = Arc::new(Semaphore::new(config.at_once));
        Self { config, slots, rates: Mutex::default(), knocks: Knocks::default() }
    }

    /// Room for one more, before its handshake costs anything.
    pub(super) fn admit(&self, from: IpAddr) -> Result<OwnedSemaphorePermit, HandshakeError> {
        let refused = |detail: &str| HandshakeError { reason: "too_often", detail: detail.to_owned() };
        if !self.rates.lock().take(from, Instant::now(), &self.config) {
            self.knocks.too_often.fetch_add(1, Ordering::Relaxed);
            return Err(refused("too many knocks at the join door"));
        }
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| {
            self.knocks.busy.fetch_add(1, Ordering::Relaxed);
            refused("others are at the join door")
        })?;
        self.knocks.taken.fetch_add(1, Ordering::Relaxed);
        Ok(slot)
    }

    /// The handshake and the request.
    pub(super) async fn serve(
        &self,
        accepted: Accepted,
        socket: TcpStream,
        config: Arc<rustls::ServerConfig>,
        (remote, slot): (SocketAddr, OwnedSemaphorePermit),
    ) -> Result<Knock, HandshakeError> {
        let until = Instant::now() + self.config.deadline;
        let start = tokio_rustls::StartHandshake::from_parts(accepted, socket);
        let late = |_| HandshakeError::timed_out("the join door");
        let mut stream = timeout_at(until, start.into_stream(config)).await.map_err(late)??;
        let request = timeout_at(until, receive(&mut stream, REQUEST_MAX)).await.map_err(late)??;
        Ok(Knock { stream: Box::new(stream), request, remote, deadline: self.config.deadline, _slot: slot })
    }
}

/// One request of a stranger, complete.
#[derive(Debug)]
pub struct Knock {
    stream: Box<TlsStream<TcpStream>>,
    request: Vec<u8>,
    remote: SocketAddr,
    deadline: Duration,
    // Held until the reply is out.
    _slot: OwnedSemaphorePermit,
}

impl Knock {
    /// What it asks; at most [`REQUEST_MAX`] bytes, and nothing else is known of it.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// From where (which proves nothing).
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// The one answer; the connection is over afterwards.
    pub async fn reply(mut self, reply: &[u8]) -> Result<(), HandshakeError> {
        let sent = async {
            send(&mut self.stream, reply).await?;
            tokio::io::AsyncWriteExt::shutdown(&mut self.stream).await.map_err(HandshakeError::from)
        };
        tokio::time::timeout(self.deadline, sent).await.map_err(|_| HandshakeError::timed_out("the join door"))?
    }
}

/// Token buckets. Pure: time is an argument.
#[derive(Debug, Default)]
struct Rates {
    all: Bucket,
    prefixes: HashMap<u64, Bucket>,
}

impl Rates {
    fn take(&mut self, from: IpAddr, now: Instant, config: &DoorConfig) -> bool {
        let rate = config.per_second_per_prefix;
        if self.prefixes.len() >= PREFIXES_MAX {
            self.prefixes.retain(|_, bucket| !bucket.is_full(now, rate));
            if self.prefixes.len() >= PREFIXES_MAX {
                return false;
            }
        }
        // The prefix first: one that floods must not use up what is there for all.
        let bucket = self.prefixes.entry(prefix(from)).or_default();
        bucket.take(now, rate) && self.all.take(now, config.per_second)
    }
}

#[derive(Debug, Default)]
struct Bucket {
    // What is missing: 0 is full.
    used: f64,
    at: Option<Instant>,
}

impl Bucket {
    fn settle(&mut self, now: Instant, rate: f64) {
        let passed = self.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        self.used = (self.used - passed * rate).max(0.0);
        self.at = Some(now);
    }

    fn take(&mut self, now: Instant, rate: f64) -> bool {
        self.settle(now, rate);
        if self.used + 1.0 > rate * BURST {
            return false;
        }
        self.used += 1.0;
        true
    }

    fn is_full(&mut self, now: Instant, rate: f64) -> bool {
        self.settle(now, rate);
        self.used <= 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_that_floods_is_stopped_and_others_are_not() {
        let (mut rates, config, now) = (Rates::default(), DoorConfig::default(), Instant::now());
        let flood = (0..200_u8).filter(|n| rates.take(IpAddr::from([192, 0, 2, *n]), now, &config)).count();
        assert_eq!(flood, 10);
        assert!(rates.take(IpAddr::from([198, 51, 100, 1]), now, &config));
        // The same prefix written as IPv6 is the same.
        assert!(!rates.take("::ffff:192.0.2.7".parse().unwrap(), now, &config));
        assert!(rates.take(IpAddr::from([192, 0, 2, 1]), now + Duration::from_secs(1), &config));
    }

    #[test]
    fn many_prefixes_together_are_stopped_too_and_take_bounded_room() {
        let (mut rates, config, now) = (Rates::default(), DoorConfig::default(), Instant::now());
        let many = 20_000_u32;
        let taken = (0..many).filter(|n| rates.take(IpAddr::from((n << 8).to_be_bytes()), now, &config)).count();
        assert_eq!(taken, 50);
        assert!(rates.prefixes.len() <= PREFIXES_MAX);
        let later = now + Duration::from_secs(60);
        assert!(rates.take(IpAddr::from([203, 0, 113, 1]), later, &config), "what is full again is forgotten");
    }
}
