//! What users read: one entry an object, the same in the status files, on the admin pages and in `hawser get`.

use hawser_api::objects::link::{Condition, LinkStatus};
use hawser_api::objects::load::Problem;
use serde::{Deserialize, Serialize};

/// All of it. In files and on pages each list stands in an object under its own name: `{"links": […]}`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statuses {
    /// `status/links.json` and `/links`.
    pub links: Vec<LinkEntry>,
    /// `status/exports.json` and `/exports`.
    pub exports: Vec<ExportEntry>,
    /// `status/mirrors.json` and `/mirrors`.
    pub mirrors: Vec<MirrorEntry>,
    /// `/endpoints`.
    pub endpoints: Vec<EndpointEntry>,
    /// `status/listeners.json` and `/listeners`.
    pub listeners: Vec<ListenerEntry>,
    /// `status/objects.json` and `/objects`.
    pub objects: ObjectsEntry,
}

/// One Link.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkEntry {
    /// The peer's name here.
    pub name: String,
    /// Its trust domain.
    pub trust_domain: String,
    /// Its region.
    pub region: String,
    /// `quic`, `tcp` or `auto`, as the Link asks.
    pub transport: String,
    /// Where it stands.
    #[serde(flatten)]
    pub status: LinkStatus,
    /// Of which edition of the Link this is said; for `observedGeneration`.
    #[serde(skip)]
    pub generation: i64,
}

/// One service that is marked for export.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportEntry {
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub name: String,
    /// `label` or `ServiceExport`.
    pub by: String,
    /// The clusters that may have it.
    pub clusters: Vec<String>,
    /// Its ports.
    pub ports: Vec<u16>,
    /// Its ready endpoints.
    pub endpoints_ready: u32,
    /// It is one service with those of the same name and namespace elsewhere.
    pub federated: bool,
    /// `Valid`, `Ready`, `Conflict` (MCS), `ClustersKnown`, `Imported`.
    pub conditions: Vec<Condition>,
    /// Those of them that have it, as they say.
    #[serde(default)]
    pub imported_by: Vec<String>,
    /// The clusters that do not take it, as they say.
    pub rejections: Vec<RejectionEntry>,
    /// Of which edition of the ServiceExport this is said; for `observedGeneration`.
    #[serde(skip)]
    pub generation: i64,
}

/// A cluster that does not take what is exported to it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RejectionEntry {
    /// The importing cluster.
    pub cluster: String,
    /// Its reason, cut and cleaned.
    pub reason: String,
}

/// One peer's service under its local name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MirrorEntry {
    /// The local namespace.
    pub namespace: String,
    /// The local name.
    pub name: String,
    /// The peer.
    pub cluster: String,
    /// The service as the peer names it, `namespace/name`.
    pub service: String,
    /// The names by which it can be called.
    pub dns_names: Vec<String>,
    /// Its ports.
    pub ports: Vec<u16>,
    /// Ready endpoints behind the peer's gateways.
    pub endpoints_ready: u32,
    /// It is one service with those of the same name and namespace elsewhere.
    pub federated: bool,
    /// `live`, `stale` (the peer's lease is over) or `withdrawn` (the peer exports it no more).
    pub standing: String,
}

/// One workload of this cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointEntry {
    /// The cluster that it is in: this one.
    pub cluster: String,
    /// Its service's namespace.
    pub namespace: String,
    /// Its service's name.
    pub service: String,
    /// Opaque id, as it is in access records.
    pub id: String,
    /// The workload's address.
    pub address: String,
    /// The workload's ports.
    pub ports: Vec<u16>,
    /// The proxy that fronts it.
    pub proxy: String,
    /// Where that proxy accepts sealed sessions.
    pub inbound: String,
    /// Takes new work.
    pub ready: bool,
}

/// One port that a proxy has bound (or not).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerEntry {
    /// The proxy.
    pub proxy: String,
    /// The destination's namespace.
    pub namespace: String,
    /// The destination's name.
    pub name: String,
    /// The port that the object names.
    pub port: u32,
    /// What is bound instead; empty: as asked.
    pub bound: String,
    /// Why that differs.
    pub reason: String,
}

/// The user's objects as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectsEntry {
    /// Services in force.
    pub services: u32,
    /// EndpointSlices in force.
    pub endpoint_slices: u32,
    /// ServiceExports in force.
    pub service_exports: u32,
    /// Links in force.
    pub links: u32,
    /// FailoverPolicies in force.
    pub failover_policies: u32,
    /// Why files were refused; what was in force from them still is.
    pub problems: Vec<Problem>,
    /// What is in force and will not do what it says.
    pub warnings: Vec<Warning>,
}

/// An object that will not do what it says.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Warning {
    /// Such as `Service shop/checkout`.
    pub object: String,
    /// What, why, and what to do.
    pub message: String,
}
