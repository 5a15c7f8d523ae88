//! `Link`: this cluster's record of one peer.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Metadata;
use crate::names::{ClusterName, Namespace, SpiffeId, TrustDomain};

/// More gateways than this in one link help nobody, and each is probed every second.
pub const GATEWAYS_MAX: usize = 32;
/// Most namespaces of one peer that are mapped by name.
pub const NAMESPACES_MAX: usize = 1000;

/// A peer: `metadata.name` is the name by which this cluster calls it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Link {
    /// `hawser.dev/v1alpha1`
    pub api_version: String,
    /// `Link`
    pub kind: String,
    /// Name.
    pub metadata: Metadata,
    /// The rest.
    pub spec: LinkSpec,
}

/// See [`Link`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LinkSpec {
    /// The peer's trust domain.
    pub trust_domain: TrustDomain,
    /// The peer's anchors as a SPIFFE JWKS document; absent: the peer hangs under this cluster's own root, and is held
    /// to its own trust domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
    /// What becomes of `bundle` when the peer's anchors change.
    #[serde(default, skip_serializing_if = "BundleUpdates::is_default")]
    pub bundle_updates: BundleUpdates,
    /// The peer's SPIFFE bundle endpoint, asked besides the tunnel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle_endpoint: Option<BundleEndpoint>,
    /// Where the peer's gateways are.
    pub gateways: Vec<LinkGateway>,
    /// How to reach them.
    #[serde(default)]
    pub transport: Transport,
    /// The peer's region.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// What to take of what the peer offers; absent: everything, into namespaces of the same name.
    #[serde(default)]
    pub import: Import,
}

/// Whether a peer's anchors may change without a change of the Link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum BundleUpdates {
    /// The Link's bundle is the first; what the peer publishes later takes its place.
    #[default]
    Follow,
    /// The Link's bundle is the only one: somebody changes it by hand.
    Pinned,
}

impl BundleUpdates {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Where a trust domain's bundle can be fetched (SPIFFE Federation section 5.2). None of the fields follows from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BundleEndpoint {
    /// `https://…`, without user information.
    pub url: String,
    /// How the endpoint proves who it is. There is no falling back to the other one.
    pub profile: BundleProfile,
    /// Of `https_spiffe`: the endpoint's SPIFFE ID. If it is of another trust domain than the Link, that one must be
    /// linked as well: its bundle proves the endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint_spiffe_id: Option<SpiffeId>,
    /// Of `https_web`: the authorities that may have signed its certificate, a PEM file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Whether a redirect is followed, to another `https` URL under the same profile; absent: it is refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follow_redirects: bool,
}

/// How a bundle endpoint proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum BundleProfile {
    /// By a certificate for the URL's host name, of a public or a private authority.
    #[serde(rename = "https_web")]
    HttpsWeb,
    /// By an X509-SVID.
    #[serde(rename = "https_spiffe")]
    HttpsSpiffe,
}

impl BundleProfile {
    /// The specification's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HttpsWeb => "https_web",
            Self::HttpsSpiffe => "https_spiffe",
        }
    }
}

/// One of a peer's gateways.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LinkGateway {
    /// A name for people and metrics.
    pub name: Namespace,
    /// Address and port, UDP and TCP.
    pub address: SocketAddr,
}

/// Which transport tunnels use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// QUIC only.
    Quic,
    /// TCP only.
    Tcp,
    /// Races both with a head start for QUIC, and falls back where UDP is dropped.
    #[default]
    Auto,
}

impl Transport {
    /// The word used in objects, on the wire and as a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quic => "quic",
            Self::Tcp => "tcp",
            Self::Auto => "auto",
        }
    }
}

impl std::str::FromStr for Transport {
    type Err = UnknownTransport;
    fn from_str(text: &str) -> Result<Self, UnknownTransport> {
        [Self::Quic, Self::Tcp, Self::Auto].into_iter().find(|t| t.as_str() == text).ok_or(UnknownTransport)
    }
}

/// A word that names no transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the transport is one of quic, tcp and auto")]
pub struct UnknownTransport;

/// What is taken from a peer, and under which names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Import {
    /// Namespaces of the peer that are taken, and the local namespace that each becomes; absent: all, unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<Vec<NamespaceMap>>,
    /// A mirror's name: `{service}` and `{cluster}` are replaced; absent: `{service}-{cluster}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_template: Option<String>,
}

/// One namespace of the peer and what it is called here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamespaceMap {
    /// At the peer.
    pub from: Namespace,
    /// Here; absent: the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Namespace>,
}

/// Where a link stands, one a peer; written beside the object.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct LinkStatus {
    /// `Ready`, `CatalogFresh`, `GatewayReachable`, `TrustCurrent`.
    pub conditions: Vec<Condition>,
    /// Transport in use, per gateway.
    pub gateways: Vec<LinkGatewayStatus>,
    /// Services that the peer offers.
    pub offered: u32,
    /// Services that are mirrored here.
    pub imported: u32,
    /// Services that are not, and why.
    pub refused: Vec<RefusedImport>,
    /// The peer's region as its catalog says.
    pub region: String,
    /// The peer's anchors.
    pub bundle: LinkBundleStatus,
    /// The peer's clock minus ours, milliseconds; absent: not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_ahead_ms: Option<i64>,
}

/// Whom this cluster trusts at the other end of a link, and since when.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct LinkBundleStatus {
    /// `own_root`, `manifest`, `tunnel`, `https_web`, `https_spiffe` or `accepted`.
    pub source: String,
    /// The sequence in force; 0 under our own root, and where the peer gives none.
    pub sequence: u64,
    /// The highest that the peer has offered.
    pub offered: u64,
    /// By how much the one in force is behind.
    pub lag: u64,
    /// `spec.bundleUpdates` is `pinned`.
    pub pinned: bool,
    /// When the peer last said what its bundle is, milliseconds since the epoch (to half a minute); 0: never.
    pub refreshed_ms: i64,
    /// Why what it offered was not taken; empty: it was.
    pub trouble: String,
}

/// One gateway of a link as the mirror controller last saw it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct LinkGatewayStatus {
    /// The gateway's name in the Link.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Answers probes.
    pub alive: bool,
    /// `quic` or `tcp`.
    pub transport: String,
    /// Round trip of the last probe, microseconds.
    pub round_trip_us: u64,
}

/// A service that was offered and not taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RefusedImport {
    /// As the peer names it (cut and cleaned).
    pub service: String,
    /// Why.
    pub reason: String,
}

/// A Kubernetes-style condition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Such as `Ready`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word.
    pub reason: String,
    /// A sentence with the remedy.
    pub message: String,
}

/// A peer's name and its local objects' suffix are the same thing.
pub fn peer_name(link: &Link) -> Result<ClusterName, crate::names::NameError> {
    link.metadata.name.parse()
}
