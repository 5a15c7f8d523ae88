//! `ServiceExport` (`multicluster.x-k8s.io`): the standard way to offer a service to other clusters.

use serde::{Deserialize, Serialize};

use super::Metadata;

/// Exports the Service of the same name and namespace; the annotation `hawser.dev/export-to` narrows to whom.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceExport {
    /// `multicluster.x-k8s.io/v1beta1` or `…/v1alpha1`
    pub api_version: String,
    /// `ServiceExport`
    pub kind: String,
    /// Name and namespace of the Service.
    pub metadata: Metadata,
}
