//! What is known: one immutable snapshot, filled by `watch` and read by `plan`.
//!
//! A change makes a new snapshot; parts that did not change are shared with the old one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hawser_api::objects::cluster::ProxySpec;
use hawser_api::objects::link::{LinkGatewayStatus, RefusedImport};
use hawser_api::objects::load::{Located, Problem};
use hawser_api::objects::{Cluster, EndpointSlice, FailoverPolicy, Link, Object, Service, ServiceExport};
use hawser_api::proto::discovery::Listener;
use hawser_api::{ClusterName, Namespace, ServiceKey, ServiceName, SpiffeId, TrustDomain};
use tokio::sync::watch;

use crate::catalog::standard::{self, Standard};

/// The snapshot.
#[derive(Debug, Clone)]
pub struct World {
    /// This cluster.
    pub cluster: ClusterName,
    /// Its trust domain.
    pub domain: TrustDomain,
    /// Where this process accepts sealed sessions to the catalog; `None` before the listener stands.
    pub catalog_listen: Option<SocketAddr>,
    /// What the user declares; `None` before the first reading.
    pub objects: Option<Arc<Objects>>,
    /// What is known of each linked cluster.
    pub peers: BTreeMap<ClusterName, Arc<PeerState>>,
    /// What could not be written to an API server, by object.
    pub unwritten: Arc<BTreeMap<String, Unwritten>>,
    /// What proxies report of their listeners, by the proxy's name.
    pub listeners: BTreeMap<String, Arc<Vec<Listener>>>,
    /// When the latest change that led to this snapshot happened, milliseconds since the epoch.
    pub changed_at_ms: i64,
}

/// Something that should be in the API server and is not, or not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unwritten {
    /// The peer whose service it mirrors.
    pub cluster: ClusterName,
    /// That service, as the peer names it.
    pub service: String,
    /// Why, and what to do.
    pub reason: String,
}

/// The user's objects by kind and name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Objects {
    /// What this cluster's own machine needs.
    pub cluster: Option<Cluster>,
    /// Services.
    pub services: BTreeMap<ServiceKey, Service>,
    /// EndpointSlices by the service that they belong to.
    pub slices: BTreeMap<ServiceKey, Vec<EndpointSlice>>,
    /// ServiceExports.
    pub exports: BTreeMap<ServiceKey, ServiceExport>,
    /// Links by the peer's name.
    pub links: BTreeMap<ClusterName, Link>,
    /// FailoverPolicies by the service that they apply to.
    pub policies: BTreeMap<ServiceKey, FailoverPolicy>,
    /// The namespaces that there are; `None`: every one is, as for files.
    pub namespaces: Option<BTreeSet<Namespace>>,
    /// Addresses that the API server gave to Services that we made; none where there is no API server.
    pub cluster_ips: BTreeMap<ServiceKey, Vec<IpAddr>>,
    /// The service account of each Pod, by the Pod's namespace and name.
    pub pods: BTreeMap<(Namespace, String), Namespace>,
    /// Where the proxy beside a Pod accepts sealed sessions; `None`: at [`labels::INBOUND_PORT`].
    ///
    /// [`labels::INBOUND_PORT`]: hawser_api::labels::INBOUND_PORT
    pub inbound_port: Option<u16>,
    /// Why files were refused; what was in force from them is above.
    pub problems: Vec<Problem>,
}

impl Objects {
    /// Sorts what the loader found. Names have been checked by it: what would not parse is left out.
    pub fn new<'a>(located: impl IntoIterator<Item = &'a Located>) -> Self {
        Self::of(located.into_iter().map(|located| &located.object))
    }

    /// Sorts objects that have been checked.
    pub fn of<'a>(declared: impl IntoIterator<Item = &'a Object>) -> Self {
        let mut objects = Self::default();
        for object in declared {
            objects.insert(object);
        }
        for slices in objects.slices.values_mut() {
            slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        }
        objects
    }

    fn insert(&mut self, object: &Object) {
        let metadata = object.metadata();
        let key = ServiceKey::parse(metadata.namespace_or_default(), &metadata.name).ok();
        match (object, key) {
            (Object::Cluster(cluster), _) => self.cluster = Some(cluster.clone()),
            (Object::Link(link), _) => {
                if let Ok(name) = link.metadata.name.parse() {
                    self.links.insert(name, link.clone());
                }
            }
            (Object::EndpointSlice(slice), _) => {
                let service = slice.metadata.labels.get(hawser_api::labels::SERVICE_NAME);
                let name = service.and_then(|name| name.parse::<ServiceName>().ok());
                let namespace = metadata.namespace_or_default().parse::<Namespace>().ok();
                if let (Some(namespace), Some(name)) = (namespace, name) {
                    self.slices.entry(ServiceKey { namespace, name }).or_default().push(slice.clone());
                }
            }
            (Object::Service(service), Some(key)) => {
                self.services.insert(key, service.clone());
            }
            (Object::ServiceExport(export), Some(key)) => {
                self.exports.insert(key, export.clone());
            }
            (Object::FailoverPolicy(policy), Some(key)) => {
                self.policies.insert(key, policy.clone());
            }
            _ => {}
        }
    }

    /// The cluster's proxies.
    pub fn proxies(&self) -> &[ProxySpec] {
        self.cluster.as_ref().map_or(&[], |cluster| &cluster.spec.proxies)
    }
}

/// What is known of one linked cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PeerState {
    /// What it offers, as last heard.
    pub catalog: Arc<Catalog>,
    /// What it offers has been heard, in this life or a former one of this process: what is not offered is not merely
    /// not heard of.
    pub heard: bool,
    /// Its lease is fresh: what it offers may be used.
    pub alive: bool,
    /// Its gateways, as last probed.
    pub gateways: BTreeMap<Namespace, GatewayState>,
    /// Why there is no session to its catalog; `None` while there is one.
    pub trouble: Option<hawser_api::Refusal>,
    /// It has told what it does not take.
    pub acknowledged: bool,
    /// What it does not take of what is exported to it, and why.
    pub rejections: Arc<BTreeMap<ServiceKey, String>>,
    /// Its anchors in force; `None` before they were decided.
    pub bundle: Option<Arc<PeerBundle>>,
    /// Its clock minus ours, milliseconds, coarsely; `None`: not measured.
    pub clock_ahead_ms: Option<i64>,
}

/// Where a peer's anchors come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// It hangs under our own root.
    OwnRoot,
    /// The Link itself.
    Manifest,
    /// The peer, over its catalog's session.
    Tunnel,
    /// A bundle endpoint with a web certificate.
    HttpsWeb,
    /// A bundle endpoint with an SVID.
    HttpsSpiffe,
    /// An operator, by hand.
    Accepted,
}

impl Source {
    const ALL: [Self; 6] =
        [Self::OwnRoot, Self::Manifest, Self::Tunnel, Self::HttpsWeb, Self::HttpsSpiffe, Self::Accepted];

    /// The word in statuses and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OwnRoot => "own_root",
            Self::Manifest => "manifest",
            Self::Tunnel => "tunnel",
            Self::HttpsWeb => "https_web",
            Self::HttpsSpiffe => "https_spiffe",
            Self::Accepted => "accepted",
        }
    }

    /// From that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.as_str() == word)
    }
}

/// A peer's anchors in force, and what it has offered.
#[derive(Debug, Clone, PartialEq)]
pub struct PeerBundle {
    /// Whose anchors these are.
    pub domain: TrustDomain,
    /// The bundle, a SPIFFE JWKS document; empty: under our own root.
    pub document: String,
    /// The same, read.
    pub bundle: hawser_api::bundle::Bundle,
    /// Where it came from.
    pub source: Source,
    /// The Link does not let it be replaced.
    pub pinned: bool,
    /// The highest sequence that it has offered.
    pub offered: u64,
    /// When it last said what its bundle is, milliseconds since the epoch, coarsely; 0: never.
    pub refreshed_ms: i64,
    /// Why what it offered, or what the Link says, is not in force; empty: it is.
    pub trouble: String,
}

/// One gateway of a peer, as last probed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GatewayState {
    /// It answers.
    pub alive: bool,
    /// `quic` or `tcp`; empty before the first answer.
    pub transport: String,
    /// Of the last answer that changed the picture, microseconds.
    pub round_trip_us: u64,
    /// Why it does not answer; empty while it does.
    pub trouble: String,
}

impl GatewayState {
    /// As the Link's status shows it.
    pub fn status(&self, name: &Namespace, address: SocketAddr) -> LinkGatewayStatus {
        LinkGatewayStatus {
            name: name.to_string(),
            address: address.to_string(),
            alive: self.alive,
            transport: self.transport.clone(),
            round_trip_us: self.round_trip_us,
        }
    }
}

/// What a peer offers to this cluster, validated.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Catalog {
    /// By the service's name at the peer.
    pub offers: BTreeMap<ServiceKey, Arc<Offer>>,
    /// What it offered before and does not any more; kept so that callers are told why.
    pub withdrawn: BTreeMap<ServiceKey, Arc<Offer>>,
    /// Entries that broke a rule.
    pub refused: Vec<RefusedImport>,
    /// The peer's region as it says; may be empty.
    pub region: String,
}

/// One service that a peer offers.
#[derive(Debug, Clone, PartialEq)]
pub struct Offer {
    /// Its name at the peer.
    pub service: ServiceKey,
    /// Its ports; at least one.
    pub ports: Vec<OfferedPort>,
    /// Who may answer for it; at least one, all of the peer's trust domain.
    pub identities: Vec<SpiffeId>,
    /// Ready endpoints behind the peer's gateways.
    pub endpoints_ready: u32,
    /// It is one service with those of the same name and namespace elsewhere.
    pub federated: bool,
    /// When it was exported, microseconds since the epoch; 0: not said.
    pub exported_at_us: i64,
    /// `auto`, `shared` or `dedicated`.
    pub session: String,
    /// What MCS reads of it.
    pub standard: Standard,
}

/// One port of an [`Offer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedPort {
    /// May be empty.
    pub name: String,
    /// 1 to 65535.
    pub number: u16,
    /// Only TCP is carried.
    pub protocol: Protocol,
    /// May be empty.
    pub app_protocol: String,
}

impl OfferedPort {
    /// What it takes in memory, roughly, bytes.
    pub fn size(&self) -> usize {
        64 + self.name.len() + self.app_protocol.len()
    }
}

/// A port's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// Carried.
    Tcp,
    /// Declared.
    Udp,
    /// Declared.
    Sctp,
}

impl Protocol {
    /// Kubernetes' word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// From that word; nothing is TCP.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "" | "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl Offer {
    /// What it takes in memory, roughly and without what every offer takes, bytes.
    pub fn size(&self) -> usize {
        let ports: usize = self.ports.iter().map(OfferedPort::size).sum();
        let identities: usize = self.identities.iter().map(|id| 32 + id.as_str().len()).sum();
        256 + ports + identities + standard::size(&self.standard)
    }
}

impl World {
    /// Nothing is known yet.
    pub fn new(cluster: ClusterName, domain: TrustDomain) -> Self {
        Self {
            cluster,
            domain,
            catalog_listen: None,
            objects: None,
            peers: BTreeMap::new(),
            unwritten: Arc::default(),
            listeners: BTreeMap::new(),
            changed_at_ms: 0,
        }
    }
}

/// Where the snapshot is kept. Clone to share.
#[derive(Debug, Clone)]
pub struct Store(Arc<watch::Sender<Arc<World>>>);

impl Store {
    /// With this snapshot.
    pub fn new(world: World) -> Self {
        Self(Arc::new(watch::Sender::new(Arc::new(world))))
    }

    /// Replaces the snapshot if `change` says that it changed it; `at_ms` is when what led to it happened.
    pub fn update(&self, at_ms: i64, change: impl FnOnce(&mut World) -> bool) {
        self.0.send_if_modified(|world| {
            let mut next = World::clone(world);
            let changed = change(&mut next);
            if changed {
                next.changed_at_ms = at_ms;
                *world = Arc::new(next);
            }
            changed
        });
    }

    /// Changes what is known of one peer. A peer that is not linked is not there to be changed.
    pub fn update_peer(&self, at_ms: i64, peer: &ClusterName, change: impl FnOnce(&mut PeerState) -> bool) {
        self.update(at_ms, |world| {
            let Some(state) = world.peers.get_mut(peer) else { return false };
            let mut next = PeerState::clone(state);
            let changed = change(&mut next);
            if changed {
                *state = Arc::new(next);
            }
            changed
        });
    }

    /// The snapshot as it is now.
    pub fn now(&self) -> Arc<World> {
        self.0.borrow().clone()
    }

    /// The snapshot as it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<World>> {
        self.0.subscribe()
    }
}
