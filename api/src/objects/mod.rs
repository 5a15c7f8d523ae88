//! What users declare, the same kinds and fields as on Kubernetes.
//!
//! One file a kind that is ours; the Kubernetes kinds that we read are in [`core`]. Unknown fields in our own kinds are
//! errors; in Kubernetes' kinds they are passed over, so that a manifest from a real cluster can be used as it is.

pub mod cluster;
pub mod core;
pub mod export;
pub mod identity;
pub mod import;
pub mod link;
pub mod load;
pub mod policy;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use cluster::{Cluster, ClusterSpec, GatewaySpec, ProxySpec, WorkloadSpec};
pub use core::{EndpointSlice, Service};
pub use export::{ServiceExport, ServiceExportSpec};
pub use identity::{Selectors, WorkloadIdentity, WorkloadIdentitySpec};
pub use import::{ServiceImport, ServiceImportSpec};
pub use link::{Link, LinkSpec};
pub use policy::{FailoverPolicy, FailoverSpec};

use crate::names::Namespace;

/// API group and version of our own kinds.
pub const GROUP_VERSION: &str = "hawser.dev/v1alpha1";

/// The parts of Kubernetes' ObjectMeta that we read or write.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// The object's name.
    pub name: String,
    /// The namespace; `default` where a namespaced kind leaves it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// When the object was made (RFC 3339); files may leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<String>,
    /// Which edition of the object's spec this is, as an API server counts; 0 in a file. It is the API server's to say.
    #[serde(default, skip_serializing)]
    pub generation: i64,
}

/// One declared object of a kind that Hawser reads.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Object {
    /// What a standalone cluster's own machine needs.
    Cluster(Cluster),
    /// A Kubernetes Service.
    Service(Service),
    /// A Kubernetes EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// An MCS ServiceExport.
    ServiceExport(ServiceExport),
    /// A link to a peer.
    Link(Link),
    /// A failover policy.
    FailoverPolicy(FailoverPolicy),
    /// An identity for local processes.
    WorkloadIdentity(WorkloadIdentity),
}
