//! What is printed besides roles.

use anyhow::Result;
use hawser_api::labels::{BUNDLE_CONFIG_MAP, SYSTEM_NAMESPACE};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Map, Value, json};

use super::text::{self, Document};

/// On everything that is printed.
pub(super) fn labels() -> Map<String, Value> {
    Map::from_iter([("app.kubernetes.io/part-of".into(), json!("hawser"))])
}

/// The namespace of Hawser's own parts. Its Pods need no privilege, and none can have one.
pub(super) fn namespace() -> Result<Document> {
    text::document(&json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": SYSTEM_NAMESPACE,
            "labels": {
                "app.kubernetes.io/part-of": "hawser",
                "pod-security.kubernetes.io/enforce": "restricted",
            },
        },
    }))
}

/// Where the trust anchor puts the bundle. Empty, so that applying it again takes nothing out.
pub(super) fn bundle() -> Result<Document> {
    text::document(&json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": BUNDLE_CONFIG_MAP, "namespace": SYSTEM_NAMESPACE, "labels": labels() },
    }))
}

/// CustomResourceDefinitions, in the order in which they come.
pub(super) fn definitions(definitions: &[CustomResourceDefinition]) -> Result<Vec<Document>> {
    definitions.iter().map(text::document).collect()
}
