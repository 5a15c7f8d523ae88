//! A simulated network for tests: latency, loss and partition under tokio's paused time.
//!
//! ```text
//! Network ─┬─ datagrams(a, b) ─▶ two UDP sockets for quinn: what is lost is lost
//!          └─ stream() ────────▶ two ends of a TCP-like stream: what is lost comes later, and all behind it
//! ```
//!
//! Draws come from a seed, so that a run can be repeated. A partition counts what it swallowed: a test of one asserts
//! that it was one.

mod datagrams;
mod stream;

use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::time::Instant;

pub use datagrams::Socket;
pub use stream::End;

/// After this long a sender of a stream sends again what was lost (RFC 6298's minimum as Linux has it).
const RETRANSMIT: Duration = Duration::from_millis(200);

/// The conditions between two hosts; clones are the same network.
#[derive(Debug, Clone)]
pub struct Network(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    latency: Duration,
    loss_permille: u32,
    partitioned: bool,
    swallowed: u64,
    random: SmallRng,
    // Readers of streams that wait for the end of a partition.
    waiting: Vec<Waker>,
}

impl Network {
    /// Delivers everything after `latency`, one way.
    pub fn new(latency: Duration, seed: u64) -> Self {
        let random = SmallRng::seed_from_u64(seed);
        let (loss_permille, partitioned, swallowed, waiting) = Default::default();
        Self(Arc::new(Mutex::new(State { latency, loss_permille, partitioned, swallowed, random, waiting })))
    }

    /// From now on loses this many of a thousand datagrams, or delays so many writes of a stream.
    pub fn lose(&self, permille: u32) {
        self.0.lock().loss_permille = permille;
    }

    /// From now on nothing gets through, or everything again.
    pub fn partition(&self, partitioned: bool) {
        let mut state = self.0.lock();
        state.partitioned = partitioned;
        if !partitioned {
            state.waiting.drain(..).for_each(Waker::wake);
        }
    }

    /// Datagrams that were lost or met a partition.
    pub fn swallowed(&self) -> u64 {
        self.0.lock().swallowed
    }

    /// When a datagram that is sent now arrives; `None`: never.
    fn arrival(&self) -> Option<Instant> {
        let mut state = self.0.lock();
        if state.partitioned || state.is_lost() {
            state.swallowed += 1;
            return None;
        }
        Some(Instant::now() + state.latency)
    }

    /// When bytes of a stream that are sent now arrive, if nothing stands in the way until then.
    fn arrival_at_last(&self) -> Instant {
        let mut state = self.0.lock();
        let mut delay = state.latency;
        while state.is_lost() {
            delay += RETRANSMIT;
        }
        Instant::now() + delay
    }

    /// Whether a partition stands between; if so, the task is woken at its end.
    fn is_partitioned(&self, cx: &Context<'_>) -> bool {
        let mut state = self.0.lock();
        if state.partitioned {
            state.waiting.push(cx.waker().clone());
        }
        state.partitioned
    }
}

impl State {
    fn is_lost(&mut self) -> bool {
        self.loss_permille > 0 && self.random.random_range(0..1000) < self.loss_permille
    }
}

#[cfg(test)]
mod tests;
