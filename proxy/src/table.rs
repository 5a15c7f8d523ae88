//! What the proxy knows, as one immutable snapshot: made by `watch` from the mirror controller's resources, read by
//! `route`, `balance`, `admit` and `dns`.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use hawser_api::{ClusterName, Namespace, Refusal, ServiceKey, ServicePort, SpiffeId, TrustDomain};
use hawser_tunnel::pool::GatewayPath;

/// The snapshot.
#[derive(Debug, Default)]
pub struct Tables {
    /// What applications can call.
    pub destinations: HashMap<ServiceKey, Arc<Destination>>,
    /// Fully qualified lower-case DNS name, without a trailing dot, to destination.
    pub names: HashMap<String, ServiceKey>,
    /// What this proxy fronts.
    pub inbound: HashMap<ServicePort, Arc<Inbound>>,
    /// The linked clusters.
    pub peers: HashMap<ClusterName, Arc<Peer>>,
    /// The controller's version of this state; 0: from disk, or nothing yet.
    pub version: u64,
}

/// A name that applications can call.
#[derive(Debug)]
pub struct Destination {
    /// Its local name.
    pub key: ServiceKey,
    /// Its DNS names.
    pub dns_names: Vec<String>,
    /// Names that it shares with others: DNS answers with the addresses of all.
    pub group_names: Vec<String>,
    /// Names by which it is called, and which DNS answers only with what shares them.
    pub headless_names: Vec<String>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// In order of preference.
    pub tiers: Vec<Tier>,
    /// Which sealed sessions opaque connections use.
    pub session: SessionMode,
    /// The virtual address that the object fixes, if any.
    pub fixed_address: Option<Ipv4Addr>,
    /// Why nothing can be called, when no tier has a backend.
    pub unavailable: Option<Refusal>,
    /// When the change that led to this state happened, milliseconds since the epoch.
    pub changed_at_ms: i64,
}

/// A port of a destination.
#[derive(Debug, Clone)]
pub struct Port {
    /// Its name, may be empty.
    pub name: String,
    /// The number.
    pub number: u16,
    /// UDP; everything else is TCP.
    pub udp: bool,
    /// Such as `http`, `kubernetes.io/h2c`, `hawser.dev/opaque`; may be empty.
    pub app_protocol: String,
}

/// Which sealed sessions opaque connections use; HTTP always uses shared ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SessionMode {
    /// Shared, and dedicated where recent connections carried much.
    #[default]
    Auto,
    /// Always shared.
    Shared,
    /// Always dedicated.
    Dedicated,
}

/// Backends that are used together.
#[derive(Debug)]
pub struct Tier {
    /// One a cluster.
    pub backends: Vec<Arc<Backend>>,
    /// The tier is left when less than this share is healthy, percent; 0: when none is.
    pub min_healthy_percent: u8,
}

/// One cluster's share of a destination.
#[derive(Debug)]
pub struct Backend {
    /// The cluster; this one's own name for local endpoints.
    pub cluster: ClusterName,
    /// Its share in the tier.
    pub weight: u32,
    /// The service as that cluster names it.
    pub service: ServiceKey,
    /// Who may answer.
    pub identities: Arc<[SpiffeId]>,
    /// How to reach it.
    pub reach: Reach,
    /// This endpoint and no other.
    pub only: Option<Arc<str>>,
    /// Its region, may be empty.
    pub region: String,
    /// The backend's port for each of the destination's, by position; empty: the same numbers; 0: it does not serve that
    /// port, whose traffic goes to other backends only.
    pub ports: Vec<u16>,
}

/// How a backend is reached.
#[derive(Debug)]
pub enum Reach {
    /// In this cluster: straight to the endpoints' proxies.
    Local(Vec<Endpoint>),
    /// Through the gateways of the peer (see [`Tables::peers`]); the number of endpoints ready behind them.
    Remote {
        /// How many endpoints the peer's catalog says are ready.
        endpoints_ready: u32,
    },
}

/// One local workload.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Opaque, stable.
    pub id: Arc<str>,
    /// Where its proxy accepts sealed sessions.
    pub inbound: SocketAddr,
    /// Takes new work.
    pub ready: bool,
    /// Service ports that it serves; empty: all.
    pub ports: Vec<u16>,
}

/// A service port that this proxy fronts.
#[derive(Debug)]
pub struct Inbound {
    /// What a stream must name.
    pub port: ServicePort,
    /// Where the application listens.
    pub targets: Vec<InboundTarget>,
    /// Trust domains of other clusters that are let in; this cluster's own always is.
    pub trust_domains: HashSet<TrustDomain>,
    /// As the Service says, may be empty.
    pub app_protocol: String,
}

/// Where an application listens.
#[derive(Debug, Clone)]
pub struct InboundTarget {
    /// The endpoint's id.
    pub id: Arc<str>,
    /// The application's address.
    pub address: SocketAddr,
    /// Takes new work.
    pub ready: bool,
}

/// A linked cluster.
#[derive(Debug)]
pub struct Peer {
    /// Its name here.
    pub cluster: ClusterName,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// Its gateways; those that probes find down have `down` set and come last.
    pub gateways: Vec<PeerGateway>,
    /// Its catalog's lease is fresh.
    pub alive: bool,
}

/// A gateway of a linked cluster.
#[derive(Debug, Clone)]
pub struct PeerGateway {
    /// How to reach it.
    pub path: GatewayPath,
    /// The mirror controller's probes of it fail.
    pub down: bool,
}

/// A proxy's name in the Cluster object.
pub type ProxyName = Namespace;
