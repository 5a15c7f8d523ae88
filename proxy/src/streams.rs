//! The streams that are alive: what `/streams` shows, what is cut, and where each leaves its access record at its end.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hawser_api::objects::link::Transport;
use hawser_api::{ClusterName, Code, Namespace, SpiffeId};
use hawser_tunnel::splice::Traffic;
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Which way a stream goes, seen from the workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the workload.
    Inbound,
    /// From the workload.
    Outbound,
}

impl Direction {
    /// The word in records, metrics and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// What a stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// One HTTP request and its answer.
    Http,
    /// One opaque connection, or an upgraded one.
    Tcp,
}

impl Kind {
    /// The word in records and pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
        }
    }
}

/// What all streams of one session have in common.
#[derive(Debug, Clone)]
pub struct Path {
    /// Which way.
    pub direction: Direction,
    /// The caller's verified identity.
    pub client_id: Option<SpiffeId>,
    /// The server's verified identity.
    pub server_id: Option<SpiffeId>,
    /// The other end's cluster; for inbound streams of other trust domains as far as it is known.
    pub cluster: Option<ClusterName>,
    /// The peer's gateway that the session runs through.
    pub gateway: Option<Namespace>,
    /// The tunnel's transport; `None`: straight inside the cluster.
    pub transport: Option<Transport>,
    /// `shared` or `dedicated`.
    pub session: &'static str,
    /// The endpoint's id.
    pub endpoint: Arc<str>,
}

/// A stream while it lives.
#[derive(Debug)]
pub struct Live {
    /// How it goes.
    pub path: Arc<Path>,
    /// `namespace/name:port`, as its caller names it.
    pub destination: Arc<str>,
    /// What it carries.
    pub kind: Kind,
    /// Since when.
    pub started: Instant,
    /// Its bytes so far.
    pub traffic: Arc<Traffic>,
    /// Cuts it; `None`: it is cut with its session.
    pub cut: Option<CancellationToken>,
}

/// How a stream ended, for its record.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The request's method.
    pub method: Option<http::Method>,
    /// The answer's status.
    pub status: Option<u16>,
    /// Why there was none, or why the stream was cut.
    pub refusal: Option<Code>,
    /// How a TCP stream ended, or `finished`, `reset`.
    pub ended: &'static str,
    /// W3C trace context, may be empty.
    pub traceparent: String,
}

/// The registry. Sharded, because every request passes through it.
#[derive(Debug)]
pub struct Streams {
    shards: [Mutex<HashMap<u64, Arc<Live>>>; 8],
    next: AtomicU64,
}

impl Default for Streams {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()), next: AtomicU64::new(0) }
    }
}

/// A registered stream: its owner keeps it and ends it with [`end`](Entry::end).
#[derive(Debug)]
pub struct Entry {
    streams: Arc<Streams>,
    number: u64,
    live: Arc<Live>,
}

impl Streams {
    /// Registers a stream.
    pub fn begin(self: &Arc<Self>, live: Live) -> Entry {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let live = Arc::new(live);
        self.shard(number).lock().insert(number, live.clone());
        Entry { streams: self.clone(), number, live }
    }

    fn shard(&self, number: u64) -> &Mutex<HashMap<u64, Arc<Live>>> {
        let [first, ..] = &self.shards;
        // The remainder is always in range; `first` only spares an index.
        usize::try_from(number % 8).ok().and_then(|at| self.shards.get(at)).unwrap_or(first)
    }

    /// All that live now.
    pub fn all(&self) -> Vec<Arc<Live>> {
        self.shards.iter().flat_map(|shard| shard.lock().values().cloned().collect::<Vec<_>>()).collect()
    }

    /// How many live now.
    pub fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Cuts those that the predicate picks and that have a token; says how many.
    pub fn cut(&self, which: impl Fn(&Live) -> bool) -> usize {
        let picked = self.all().into_iter().filter(|live| which(live));
        picked.filter_map(|live| live.cut.clone()).map(|token| token.cancel()).count()
    }

    /// The content of `/streams`, oldest first.
    pub fn page(&self) -> serde_json::Value {
        let mut all = self.all();
        all.sort_by_key(|live| live.started);
        let row = |live: &Arc<Live>| {
            json!({
                "direction": live.path.direction.as_str(),
                "kind": live.kind.as_str(),
                "clientId": live.path.client_id,
                "serverId": live.path.server_id,
                "destination": &*live.destination,
                "cluster": live.path.cluster,
                "gateway": live.path.gateway,
                "transport": live.path.transport.map(Transport::as_str),
                "session": live.path.session,
                "endpoint": &*live.path.endpoint,
                "ageMs": u64::try_from(live.started.elapsed().as_millis()).unwrap_or(u64::MAX),
                "bytesSent": live.traffic.sent.load(Ordering::Relaxed),
                "bytesReceived": live.traffic.received.load(Ordering::Relaxed),
            })
        };
        json!({ "count": all.len(), "streams": all.iter().map(row).collect::<Vec<_>>() })
    }
}

impl Entry {
    /// The stream.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Ends the stream and writes its access record.
    pub fn end(self, outcome: &Outcome) {
        record(&self.live, outcome);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.streams.shard(self.number).lock().remove(&self.number);
    }
}

/// Whether anybody wants access records.
pub fn recorded() -> bool {
    tracing::enabled!(target: "access", tracing::Level::INFO)
}

/// Writes the one access record of a stream.
pub fn record(live: &Live, outcome: &Outcome) {
    if !recorded() {
        return;
    }
    let path = &*live.path;
    tracing::info!(
        target: "access",
        direction = path.direction.as_str(),
        kind = live.kind.as_str(),
        client_id = path.client_id.as_ref().map(SpiffeId::as_str),
        server_id = path.server_id.as_ref().map(SpiffeId::as_str),
        destination = &*live.destination,
        cluster = path.cluster.as_ref().map(ClusterName::as_str),
        gateway = path.gateway.as_ref().map(Namespace::as_str),
        transport = path.transport.map(Transport::as_str),
        session = path.session,
        endpoint = &*path.endpoint,
        method = outcome.method.as_ref().map(http::Method::as_str),
        status = outcome.status,
        refusal = outcome.refusal.map(Code::as_str),
        ended = outcome.ended,
        bytes_sent = live.traffic.sent.load(Ordering::Relaxed),
        bytes_received = live.traffic.received.load(Ordering::Relaxed),
        duration_ms = u64::try_from(live.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        traceparent = Some(outcome.traceparent.as_str()).filter(|t| !t.is_empty()),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(direction: Direction, cut: Option<CancellationToken>) -> Live {
        let path = Path {
            direction,
            client_id: None,
            server_id: None,
            cluster: None,
            gateway: None,
            transport: None,
            session: "shared",
            endpoint: "e".into(),
        };
        Live {
            path: Arc::new(path),
            destination: "shop/checkout:80".into(),
            kind: Kind::Tcp,
            started: Instant::now(),
            traffic: Arc::default(),
            cut,
        }
    }

    #[test]
    fn a_stream_is_listed_until_it_ends_and_can_be_cut() {
        let streams = Arc::new(Streams::default());
        let token = CancellationToken::new();
        let first = streams.begin(live(Direction::Inbound, Some(token.clone())));
        let second = streams.begin(live(Direction::Outbound, None));
        assert_eq!(streams.count(), 2);
        assert_eq!(streams.page()["count"], 2);
        assert_eq!(streams.cut(|live| live.path.direction == Direction::Outbound), 0);
        assert_eq!(streams.cut(|_| true), 1);
        assert!(token.is_cancelled());
        first.end(&Outcome::default());
        drop(second);
        assert_eq!(streams.count(), 0);
    }
}
