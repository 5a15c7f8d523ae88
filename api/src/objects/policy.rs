//! `FailoverPolicy`: in which order, and in which shares, clusters serve a federated service.

use serde::{Deserialize, Serialize};

use super::Metadata;
use crate::names::ClusterName;

/// Most tiers of one policy; what no tier names comes last anyway.
pub const TIERS_MAX: usize = 16;
/// Most clusters of one tier.
pub const TIER_CLUSTERS_MAX: usize = 32;
/// Largest share.
pub const WEIGHT_MAX: u32 = 1_000_000;

/// Applies to the federated service of the same name and namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailoverPolicy {
    /// `hawser.dev/v1alpha1`
    pub api_version: String,
    /// `FailoverPolicy`
    pub kind: String,
    /// Name and namespace of the service.
    pub metadata: Metadata,
    /// The rest.
    pub spec: FailoverSpec,
}

/// See [`FailoverPolicy`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailoverSpec {
    /// In order of preference; clusters that no tier names come last, together.
    pub tiers: Vec<FailoverTier>,
    /// A tier is left when less than this share of its endpoints is healthy, 0 to 100; 0: when none is.
    #[serde(default)]
    pub minimum_healthy_percent: u8,
}

/// Clusters that are used together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailoverTier {
    /// The clusters and their shares.
    pub clusters: Vec<WeightedCluster>,
}

/// One cluster's share in a tier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WeightedCluster {
    /// The cluster: a Link's name, or this cluster's own.
    pub name: ClusterName,
    /// Relative to the tier's other clusters; absent: 1.
    #[serde(default = "one")]
    pub weight: u32,
}

fn one() -> u32 {
    1
}
