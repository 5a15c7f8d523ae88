//! Live streams: what runs now, for whom, and the handle that cuts each.
//!
//! A stream is entered before it carries its first byte and checked again right then, so that a change that came between
//! its admission and its entry is not missed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use hawser_api::objects::link::Transport;
use hawser_api::{ClusterName, Code, ServicePort};
use hawser_tunnel::splice::Traffic;
use hawser_tunnel::tls::{Credentials, VerifiedPeer};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::admit::admit;
use crate::table::Tables;

/// How long a stream may outlive the certificate with which it was opened: issuers backdate by as much, so clocks that
/// differ by less cut nothing early.
pub const GRACE: Duration = Duration::from_secs(60);

/// One live stream.
#[derive(Debug)]
pub struct Live {
    /// The caller's cluster.
    pub link: ClusterName,
    /// What it reaches.
    pub target: ServicePort,
    /// The caller, with its certificate's serial and end.
    pub peer: VerifiedPeer,
    /// The endpoint's id.
    pub endpoint: Arc<str>,
    /// Over what.
    pub transport: Transport,
    /// When it was opened.
    pub begun: SystemTime,
    /// What it has carried.
    pub traffic: Arc<Traffic>,
    /// Ends it.
    pub end: End,
}

/// Ends a stream, once, with a reason.
#[derive(Debug, Default)]
pub struct End {
    token: CancellationToken,
    reason: OnceLock<&'static str>,
}

impl End {
    /// Cuts, for a reason that is a stable word.
    pub fn cut(&self, reason: &'static str) {
        if self.reason.set(reason).is_ok() {
            self.token.cancel();
        }
    }

    /// Fires when it is cut.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Why it was cut, if it was.
    pub fn reason(&self) -> Option<&'static str> {
        self.reason.get().copied()
    }
}

/// Bytes of one link, in both directions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bytes {
    /// From the link to endpoints.
    pub sent: u64,
    /// From endpoints to the link.
    pub received: u64,
}

impl Bytes {
    fn add(&mut self, traffic: &Traffic) {
        self.sent += traffic.sent();
        self.received += traffic.received();
    }
}

/// The index of live streams.
#[derive(Debug, Default)]
pub struct Streams {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    live: HashMap<u64, Arc<Live>>,
    // Bytes of streams that have ended; under the same lock as `live`, so that sums never go back.
    ended: BTreeMap<ClusterName, Bytes>,
}

/// A place in the index, given back when dropped.
#[derive(Debug)]
pub struct Entry {
    streams: Arc<Streams>,
    key: u64,
    /// The stream.
    pub live: Arc<Live>,
}

impl Streams {
    /// Enters a stream.
    pub fn enter(self: &Arc<Self>, live: Live) -> Entry {
        let live = Arc::new(live);
        let mut inner = self.inner.lock();
        inner.next += 1;
        let key = inner.next;
        inner.live.insert(key, Arc::clone(&live));
        Entry { streams: Arc::clone(self), key, live }
    }

    /// Every stream there is now.
    pub fn list(&self) -> Vec<Arc<Live>> {
        self.inner.lock().live.values().cloned().collect()
    }

    /// Cuts every stream for which `verdict` has a reason; returns how many.
    pub fn cut_where(&self, verdict: impl Fn(&Live) -> Option<&'static str>) -> usize {
        let cut = |live: &Arc<Live>| verdict(live).map(|reason| live.end.cut(reason));
        self.list().iter().filter_map(cut).count()
    }

    /// Bytes of every link since the start, live streams included.
    pub fn bytes(&self) -> BTreeMap<ClusterName, Bytes> {
        let inner = self.inner.lock();
        let mut sums = inner.ended.clone();
        for live in inner.live.values() {
            sums.entry(live.link.clone()).or_default().add(&live.traffic);
        }
        sums
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut inner = self.streams.inner.lock();
        inner.live.remove(&self.key);
        inner.ended.entry(self.live.link.clone()).or_default().add(&self.live.traffic);
    }
}

/// Why a live stream may not go on, if it may not.
pub fn verdict(tables: &Tables, credentials: &Credentials, live: &Live, now: SystemTime) -> Option<&'static str> {
    if let Err(refusal) = admit(tables, live.peer.id(), &live.target) {
        return Some(if refusal.code == Code::NotLinked { "not_linked" } else { "not_exported" });
    }
    let over = expired(live, now);
    over.or_else(|| (!credentials.still_anchored(&live.peer)).then_some("untrusted"))
}

/// Whether its certificate ended too long ago.
pub fn expired(live: &Live, now: SystemTime) -> Option<&'static str> {
    outlived(live.peer.not_after(), now).then_some("certificate_expired")
}

fn outlived(not_after: SystemTime, now: SystemTime) -> bool {
    now.duration_since(not_after).is_ok_and(|over| over > GRACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_outlives_its_certificate_by_the_grace_and_no_more() {
        let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert!(!outlived(end, end - Duration::from_secs(1)));
        assert!(!outlived(end, end + GRACE));
        assert!(outlived(end, end + GRACE + Duration::from_millis(1)));
    }

    #[test]
    fn a_stream_is_cut_once_and_keeps_the_first_reason() {
        let end = End::default();
        end.cut("not_exported");
        end.cut("drained");
        assert!(end.token().is_cancelled());
        assert_eq!(end.reason(), Some("not_exported"));
    }
}
