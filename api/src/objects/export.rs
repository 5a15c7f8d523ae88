//! `ServiceExport` (`multicluster.x-k8s.io`): the standard way to offer a service to other clusters.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Metadata;

/// Most labels, and most annotations, of one export: they travel in every catalog that offers the service.
pub const EXPORTED_MAX: usize = 32;
/// Longest value of one, bytes; the same holds. (Kubernetes ends a label's value at 63.)
pub const EXPORTED_VALUE_MAX: usize = 1024;

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
    /// What importing clusters see besides the Service; most exports leave it out.
    #[serde(default, skip_serializing_if = "ServiceExportSpec::is_empty")]
    pub spec: ServiceExportSpec,
}

/// Since v1beta1. Labels and annotations of the Service or of the ServiceExport itself are never copied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceExportSpec {
    /// Labels that the ServiceImport bears in importing clusters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exported_labels: BTreeMap<String, String>,
    /// Annotations that the ServiceImport bears in importing clusters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exported_annotations: BTreeMap<String, String>,
}

impl ServiceExportSpec {
    /// Says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
