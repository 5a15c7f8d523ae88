//! What every part of the proxy is handed.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hawser_api::ClusterName;
use hawser_runtime::Process;
use hawser_tunnel::pool::{Dialer, DialerConfig};
use hawser_tunnel::tls::Credentials;
use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::session::Sessions;
use crate::streams::Streams;
use crate::table::Tables;

/// Deadlines and sizes; [`Default`] argues for each value.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long detection waits for an application's first bytes before it calls the connection opaque.
    pub detect: Duration,
    /// How long a request's head may take.
    pub head: Duration,
    /// A shared session with open streams from which nothing came for this long is asked, and given this long again.
    pub keepalive: Duration,
    /// An open that was not answered for this long is tried through another gateway as well.
    pub hedge: Duration,
    /// For a sealed session's handshake, and for a connection inside the cluster.
    pub connect: Duration,
    /// A shared session without streams is closed after this long.
    pub idle: Duration,
    /// After `Expect: 100-continue`, how long a body is held back for the server's word.
    pub expect_continue: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // Long enough for a client behind a slow resolver or handshake of its own, short enough for a person to
            // wait when a server-speaks-first port was not declared.
            detect: Duration::from_secs(3),
            // As nginx and Apache have it within a factor of two; a slow head costs one task and a small buffer.
            head: Duration::from_secs(30),
            // Twice this is how long a hung endpoint can hold a request; a WAN round trip is a third of it.
            keepalive: Duration::from_millis(700),
            hedge: Duration::from_millis(700),
            // One lost SYN (1 s) and a handshake.
            connect: Duration::from_secs(2),
            // A handshake each five minutes costs nothing; an idle session holds some 100 KB at each end.
            idle: Duration::from_secs(300),
            // What curl waits by itself.
            expect_continue: Duration::from_secs(1),
        }
    }
}

/// What every part of the proxy is handed.
pub struct Context {
    /// The proxy's name in the Cluster object.
    pub name: String,
    /// The cluster that it is in.
    pub cluster: ClusterName,
    /// Who we are and whom we trust.
    pub credentials: Credentials,
    /// Opens tunnels.
    pub dialer: Dialer,
    /// Tasks, drain, pages.
    pub process: Process,
    /// Metric families.
    pub metrics: Arc<Metrics>,
    /// Sealed sessions to destinations' endpoints.
    pub sessions: Sessions,
    /// Streams that live now.
    pub streams: Arc<Streams>,
    /// Deadlines and sizes.
    pub settings: Settings,
    tables: ArcSwap<Tables>,
    changed: watch::Sender<u64>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("name", &self.name).field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Context {
    /// A proxy that knows nothing yet, and the task that looks after its sessions.
    pub fn new(
        name: String,
        cluster: ClusterName,
        credentials: Credentials,
        process: Process,
        settings: Settings,
    ) -> Arc<Self> {
        let dialer = Dialer::new(credentials.clone(), DialerConfig::default());
        let metrics = Metrics::register(&mut process.registry.lock());
        let context = Arc::new(Self {
            name,
            cluster,
            credentials,
            dialer,
            process,
            metrics,
            sessions: Sessions::default(),
            streams: Arc::default(),
            settings,
            tables: ArcSwap::default(),
            changed: watch::Sender::new(0),
        });
        context.process.spawn(crate::session::keep(Arc::downgrade(&context)));
        context
    }

    /// The snapshot in force.
    pub fn tables(&self) -> arc_swap::Guard<Arc<Tables>> {
        self.tables.load()
    }

    /// The snapshot in force, to keep.
    pub fn tables_owned(&self) -> Arc<Tables> {
        self.tables.load_full()
    }

    /// From now on this is the snapshot. Sessions and listeners follow.
    pub fn set_tables(&self, tables: Tables) {
        self.tables.store(Arc::new(tables));
        self.sessions.apply(self);
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Changes after every [`set_tables`](Self::set_tables).
    pub fn tables_changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
