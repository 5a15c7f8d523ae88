//! `ServiceImport` (`multicluster.x-k8s.io`): what this cluster imports under one name and namespace, whichever clusters
//! export it. Only Hawser writes it; users read it, and cluster DNS serves `clusterset.local` from it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Metadata;
use super::link::Condition;

/// The version that is written.
pub const MCS_VERSION: &str = "multicluster.x-k8s.io/v1beta1";

/// A service of the same name and namespace in other clusters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceImport {
    /// [`MCS_VERSION`]
    pub api_version: String,
    /// `ServiceImport`
    pub kind: String,
    /// Name and namespace of the exported Services.
    pub metadata: Metadata,
    /// The rest.
    pub spec: ServiceImportSpec,
}

impl ServiceImport {
    /// One of this name, to be written.
    pub fn new(metadata: Metadata, spec: ServiceImportSpec) -> Self {
        Self { api_version: MCS_VERSION.to_owned(), kind: "ServiceImport".to_owned(), metadata, spec }
    }
}

/// See [`ServiceImport`]. Fields follow the exporting Services as the oldest export has them, ports as their union.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceImportSpec {
    /// Ports of all exporters.
    pub ports: Vec<ImportPort>,
    /// Its addresses in this cluster, one a family; empty while there are none, and where it is headless.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
    /// Families of the addresses, in the order of `ips`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_families: Vec<IpFamily>,
    /// With one address, or an address for each endpoint.
    #[serde(rename = "type")]
    pub kind: ImportType,
    /// Whether a client keeps its endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_affinity: Option<SessionAffinity>,
    /// For how long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_affinity_config: Option<SessionAffinityConfig>,
    /// `Cluster` or `Local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal_traffic_policy: Option<TrafficPolicy>,
    /// Such as `PreferClose`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<String>,
}

/// One port of a [`ServiceImport`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImportPort {
    /// Name, required where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `TCP` (default), `UDP` or `SCTP`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Such as `http`, `kubernetes.io/h2c`, `hawser.dev/opaque`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
    /// The number by which it is called.
    pub port: u16,
}

/// How a [`ServiceImport`] is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImportType {
    /// By one address a family.
    #[default]
    ClusterSetIP,
    /// By its endpoints' own addresses.
    Headless,
}

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum IpFamily {
    /// 32 bits.
    IPv4,
    /// 128 bits.
    IPv6,
}

impl IpFamily {
    /// The word in objects.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IPv4 => "IPv4",
            Self::IPv6 => "IPv6",
        }
    }

    /// From that word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::IPv4, Self::IPv6].into_iter().find(|family| family.as_str() == word)
    }

    /// Of this address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv6() { Self::IPv6 } else { Self::IPv4 }
    }
}

/// As a Service's `sessionAffinity`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionAffinity {
    /// Every connection is placed anew.
    #[default]
    None,
    /// A client's address keeps its endpoint.
    ClientIP,
}

/// As a Service's `sessionAffinityConfig`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionAffinityConfig {
    /// Of [`SessionAffinity::ClientIP`].
    #[serde(default, rename = "clientIP", skip_serializing_if = "Option::is_none")]
    pub client_ip: Option<ClientIpConfig>,
}

impl SessionAffinityConfig {
    /// Of clients' addresses, for so many seconds.
    pub fn of_seconds(timeout_seconds: u32) -> Self {
        Self { client_ip: Some(ClientIpConfig { timeout_seconds: Some(timeout_seconds) }) }
    }
}

/// See [`SessionAffinityConfig`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientIpConfig {
    /// 1 to 86400; absent: 10800.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
}

/// As a Service's `internalTrafficPolicy`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// Any endpoint.
    #[default]
    Cluster,
    /// Endpoints of the client's own node.
    Local,
}

/// Where a [`ServiceImport`] stands; written beside the object.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceImportStatus {
    /// Whether its EndpointSlices are in this cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint_slice_objects: Option<Presence>,
    /// The clusters that export it.
    pub clusters: Vec<ImportCluster>,
    /// `Ready`.
    pub conditions: Vec<Condition>,
}

/// See [`ServiceImportStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Presence {
    /// They are.
    Present,
    /// They are not.
    Absent,
}

/// An exporting cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ImportCluster {
    /// A Link's name, or this cluster's own.
    pub cluster: String,
}
