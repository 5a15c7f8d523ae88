//! `Cluster`: what a standalone cluster's own machine needs. On Kubernetes the chart's values say the same.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Metadata;
use super::link::BundleProfile;
use crate::names::{Namespace, TrustDomain};

/// A standalone cluster; exactly one document a directory. `metadata.name` is the cluster's name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cluster {
    /// `hawser.dev/v1alpha1`
    pub api_version: String,
    /// `Cluster`
    pub kind: String,
    /// Name and labels.
    pub metadata: Metadata,
    /// The rest.
    pub spec: ClusterSpec,
}

/// See [`Cluster`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterSpec {
    /// A region's name, for preference and for people.
    #[serde(default)]
    pub region: String,
    /// The fabric's DNS domain; the trust domain is `<cluster>.<fabricDomain>`.
    pub fabric_domain: TrustDomain,
    /// How long certificates live; absent: the longest that the issuer allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificates: Option<CertificateSpec>,
    /// The cluster's gateways, a process each.
    #[serde(default)]
    pub gateways: Vec<GatewaySpec>,
    /// Where this cluster's bundle is served as a SPIFFE bundle endpoint; absent: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle_endpoint: Option<BundleEndpointSpec>,
    /// The cluster's proxies, a process each.
    #[serde(default)]
    pub proxies: Vec<ProxySpec>,
    /// Programs that `hawser up` starts beside the daemons, for trying things out.
    #[serde(default)]
    pub workloads: Vec<WorkloadSpec>,
}

/// How long the cluster's certificates live, seconds. Each process renews at half life.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CertificateSpec {
    /// Of workloads, at most a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_ttl_seconds: Option<u64>,
    /// Of gateways and the mirror controller, at most an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_ttl_seconds: Option<u64>,
}

/// A SPIFFE bundle endpoint of our own (SPIFFE Federation section 5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BundleEndpointSpec {
    /// Where it listens, TCP.
    pub address: SocketAddr,
    /// How it proves who it is.
    pub profile: BundleProfile,
    /// Of `https_web`: its certificate chain, a PEM file, relative to this file's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// Of `https_web`: its key, a PEM file, relative to this file's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

/// One gateway process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewaySpec {
    /// Unique among the cluster's gateways.
    pub name: Namespace,
    /// Where it listens, UDP and TCP with one number; the customary port is 7443.
    pub listen: SocketAddr,
}

/// One proxy process, which speaks for one identity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxySpec {
    /// Unique among the cluster's proxies; EndpointSlices name it as `targetRef: {kind: Proxy, name: …}`.
    pub name: Namespace,
    /// Namespace of its identity.
    pub namespace: Namespace,
    /// Service account of its identity: `spiffe://<trust domain>/ns/<namespace>/sa/<serviceAccount>`.
    pub service_account: Namespace,
    /// Where it accepts sealed sessions for the workloads that it fronts; absent: it fronts none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound: Option<SocketAddr>,
    /// Loopback network from which it takes virtual addresses for what its applications call, inside 127.64.0.0/10,
    /// such as `127.65.0.0/16`; absent: none are bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_network: Option<String>,
    /// Where it answers SOCKS5 (RFC 1928); absent: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socks: Option<SocketAddr>,
    /// Where it answers DNS over UDP and TCP; absent: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<SocketAddr>,
}

/// One program that `hawser up` runs, restarted when it ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSpec {
    /// Unique among the cluster's workloads.
    pub name: Namespace,
    /// Program and arguments; a program called `hawser` is this very binary.
    pub command: Vec<String>,
}
