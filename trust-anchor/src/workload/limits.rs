//! How much one caller may ask for, so that another is served: connections and streams at a time, calls in time.
//! Pure but for the lock; `now` is an argument.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Connections of one user: a host's agents and proxies have one or two each.
pub(super) const CONNECTIONS_PER_USER: usize = 512;
/// Connections at all; each may cost a few tens of kilobytes.
pub(super) const CONNECTIONS_MAX: usize = 2048;
/// Streams of one identity: a service with more processes than this on one machine shares a proxy.
pub(super) const STREAMS_PER_IDENTITY: usize = 256;
/// Streams of one user.
pub(super) const STREAMS_PER_USER: usize = 1024;
/// Streams at all.
pub(super) const STREAMS_MAX: usize = 4096;
/// Calls of one identity at once, and each second from then on. Clients that lost their stream come back within a
/// second; a caller that asks for a JWT-SVID with every request keeps it until it is over.
const CALLS: Rate = Rate { burst: 200.0, per_second: 50.0 };
/// Connections of one user at once, and each second: before it is known who that is.
const CONNECTS: Rate = Rate { burst: 600.0, per_second: 100.0 };
/// Denials of one user that are on record at once, and each second: who asks on and on fills no disk.
const DENIALS: Rate = Rate { burst: 10.0, per_second: 1.0 / 60.0 };
/// Names that are remembered; of more, those that asked least are forgotten.
const NAMES_MAX: usize = 16_384;

/// How often names whose buckets are full are forgotten.
const SWEEP: Duration = Duration::from_secs(1);

/// Which bound was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Limited {
    /// Too many at a time of one identity.
    #[error("too many streams of this identity")]
    Identity,
    /// Too many at a time of one user.
    #[error("too many streams of this user")]
    User,
    /// Too many at a time.
    #[error("too many streams")]
    All,
    /// Too many calls in time.
    #[error("too many calls of this identity in a short time")]
    Rate,
}

impl Limited {
    /// Stable word for metrics.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::User => "user",
            Self::All => "all",
            Self::Rate => "rate",
        }
    }
}

/// A token bucket's numbers.
#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: f64,
    per_second: f64,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn filled(self, rate: Rate, now: Instant) -> Self {
        let more = now.saturating_duration_since(self.at).as_secs_f64() * rate.per_second;
        Self { left: (self.left + more).min(rate.burst), at: now }
    }
}

/// Buckets by name; those that are full again need no memory.
#[derive(Debug)]
struct Buckets<K> {
    rate: Rate,
    all: HashMap<K, Bucket>,
    /// When those that are full were last forgotten: looking through all at each call would cost more than it saves.
    swept: Option<Instant>,
}

impl<K: Eq + Hash> Buckets<K> {
    fn new(rate: Rate) -> Self {
        Self { rate, all: HashMap::new(), swept: None }
    }

    fn take(&mut self, name: K, now: Instant) -> bool {
        let rate = self.rate;
        let due = self.swept.is_none_or(|at| now.saturating_duration_since(at) >= SWEEP);
        if self.all.len() >= NAMES_MAX && due {
            self.swept = Some(now);
            self.all.retain(|_, bucket| bucket.filled(rate, now).left < rate.burst);
        }
        if self.all.len() >= NAMES_MAX && !self.all.contains_key(&name) {
            return false;
        }
        let bucket = self.all.entry(name).or_insert(Bucket { left: rate.burst, at: now });
        *bucket = bucket.filled(rate, now);
        let enough = bucket.left >= 1.0;
        if enough {
            bucket.left -= 1.0;
        }
        enough
    }
}

/// Who is counted: an identity that was attested, or a user who has none.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Who {
    /// By the name of its first entry.
    Identity(String),
    /// By the user's number.
    User(u32),
}

#[derive(Debug)]
struct Counts {
    streams: HashMap<Who, usize>,
    connections: HashMap<u32, usize>,
    connected: usize,
    streaming: usize,
    calls: Buckets<Who>,
    connects: Buckets<u32>,
    denials: Buckets<u32>,
}

/// Shared by all connections.
#[derive(Debug, Clone)]
pub(super) struct Limits(Arc<Mutex<Counts>>);

/// Room for something; given back when dropped.
#[derive(Debug)]
pub(super) struct Room {
    limits: Limits,
    what: What,
}

#[derive(Debug)]
enum What {
    Connection(u32),
    Stream(Who, u32),
}

impl Limits {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Counts {
            streams: HashMap::new(),
            connections: HashMap::new(),
            connected: 0,
            streaming: 0,
            calls: Buckets::new(CALLS),
            connects: Buckets::new(CONNECTS),
            denials: Buckets::new(DENIALS),
        })))
    }

    /// Room for a connection of this user.
    pub(super) fn connect(&self, uid: u32, now: Instant) -> Option<Room> {
        let mut counts = self.0.lock();
        let own = counts.connections.get(&uid).copied().unwrap_or_default();
        if own >= CONNECTIONS_PER_USER || counts.connected >= CONNECTIONS_MAX || !counts.connects.take(uid, now) {
            return None;
        }
        counts.connections.insert(uid, own + 1);
        counts.connected += 1;
        Some(Room { limits: self.clone(), what: What::Connection(uid) })
    }

    /// Whether one more call is within bounds.
    pub(super) fn call(&self, who: &Who, now: Instant) -> Result<(), Limited> {
        if self.0.lock().calls.take(who.clone(), now) { Ok(()) } else { Err(Limited::Rate) }
    }

    /// Whether a denial of this user is to be on record.
    pub(super) fn denial(&self, uid: u32, now: Instant) -> bool {
        self.0.lock().denials.take(uid, now)
    }

    /// Room for a stream.
    pub(super) fn stream(&self, who: Who, uid: u32) -> Result<Room, Limited> {
        let mut counts = self.0.lock();
        let of = |counts: &Counts, who: &Who| counts.streams.get(who).copied().unwrap_or_default();
        let user = Who::User(uid);
        if of(&counts, &who) >= STREAMS_PER_IDENTITY {
            return Err(Limited::Identity);
        }
        if of(&counts, &user) >= STREAMS_PER_USER {
            return Err(Limited::User);
        }
        if counts.streaming >= STREAMS_MAX {
            return Err(Limited::All);
        }
        counts.streaming += 1;
        *counts.streams.entry(user).or_default() += 1;
        *counts.streams.entry(who.clone()).or_default() += 1;
        Ok(Room { limits: self.clone(), what: What::Stream(who, uid) })
    }

    /// Connections and streams at the moment.
    pub(super) fn held(&self) -> (usize, usize) {
        let counts = self.0.lock();
        (counts.connected, counts.streaming)
    }
}

fn less<K: Eq + Hash>(counts: &mut HashMap<K, usize>, name: &K) {
    if let Some(count) = counts.get_mut(name) {
        *count -= 1;
        if *count == 0 {
            counts.remove(name);
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut counts = self.limits.0.lock();
        match &self.what {
            What::Connection(uid) => {
                less(&mut counts.connections, uid);
                counts.connected -= 1;
            }
            What::Stream(who, uid) => {
                less(&mut counts.streams, who);
                less(&mut counts.streams, &Who::User(*uid));
                counts.streaming -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> Who {
        Who::Identity("web".into())
    }

    #[tokio::test]
    async fn one_identity_that_asks_without_end_is_held_back_and_another_is_not() {
        let limits = Limits::new();
        let now = Instant::now();
        let served = (0..10_000).filter(|_| limits.call(&web(), now).is_ok()).count();
        assert_eq!(served, 200);
        assert_eq!(limits.call(&web(), now), Err(Limited::Rate));
        assert_eq!(limits.call(&Who::Identity("db".into()), now), Ok(()));
        let later = now + Duration::from_secs(1);
        assert_eq!((0..10_000).filter(|_| limits.call(&web(), later).is_ok()).count(), 50);
    }

    #[test]
    fn streams_are_bounded_by_identity_by_user_and_at_all_and_given_back() {
        let limits = Limits::new();
        let mut rooms: Vec<_> = (0..STREAMS_PER_IDENTITY).map(|_| limits.stream(web(), 1).unwrap()).collect();
        assert_eq!(limits.stream(web(), 1).unwrap_err(), Limited::Identity);
        assert_eq!(limits.stream(web(), 2).unwrap_err(), Limited::Identity);
        for n in 0..STREAMS_PER_USER - STREAMS_PER_IDENTITY {
            rooms.push(limits.stream(Who::Identity(n.to_string()), 1).unwrap());
        }
        assert_eq!(limits.stream(Who::Identity("new".into()), 1).unwrap_err(), Limited::User);
        let mut uid = 2;
        while limits.held().1 < STREAMS_MAX {
            uid += 1;
            rooms.push(limits.stream(Who::Identity(format!("u{uid}")), uid).unwrap());
        }
        assert_eq!(limits.stream(Who::Identity("new".into()), 2).unwrap_err(), Limited::All);
        rooms.clear();
        assert_eq!(limits.held(), (0, 0));
        assert!(limits.stream(web(), 1).is_ok());
    }

    #[test]
    fn connections_are_bounded_by_user_and_at_all() {
        let limits = Limits::new();
        let now = Instant::now();
        let rooms: Vec<_> = (0..CONNECTIONS_PER_USER + 10).filter_map(|_| limits.connect(1, now)).collect();
        assert_eq!(rooms.len(), CONNECTIONS_PER_USER);
        let others: Vec<_> = (2..10_000).filter_map(|uid| limits.connect(uid, now)).collect();
        assert_eq!(rooms.len() + others.len(), CONNECTIONS_MAX);
        drop((rooms, others));
        assert_eq!(limits.held().0, 0);
    }

    #[test]
    fn names_without_end_cost_bounded_memory() {
        let limits = Limits::new();
        let now = Instant::now();
        for uid in 0..100_000 {
            let _ = limits.call(&Who::User(uid), now);
        }
        assert!(limits.0.lock().calls.all.len() <= NAMES_MAX);
        assert_eq!(limits.call(&web(), now + Duration::from_secs(10)), Ok(()), "all are full again and forgotten");
    }
}
