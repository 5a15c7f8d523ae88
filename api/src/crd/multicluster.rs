//! The multi-cluster services API (KEP-1645): `ServiceExport` and `ServiceImport`, field by field as its release
//! [`RELEASE`] defines them, so that what another implementation wrote stays readable, and the other way round.
//!
//! Both versions have one schema; `v1beta1` is what is stored. Nothing here is stricter than the standard's own
//! definitions: a rule of ours would refuse objects of other tools, so that the loader's rules are reported in
//! conditions instead.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

use super::definition::custom_resource;
use super::schema;
use super::upgrade::{RELEASE_LABEL, REVISION_LABEL};

/// The group of both.
pub(super) const GROUP: &str = "multicluster.x-k8s.io";
/// The standard's release.
pub(super) const RELEASE: &str = "v0.5.0";
/// Its count of changes to the definitions since then.
pub(super) const REVISION: &str = "0";

/// `ServiceExport`.
pub(super) fn export() -> CustomResourceDefinition {
    let words =
        |about: &str| json!({ "type": "object", "description": about, "additionalProperties": { "type": "string" } });
    let spec = json!({
        "type": "object",
        "properties": {
            "exportedLabels": words("Labels that the ServiceImport bears in importing clusters."),
            "exportedAnnotations": words("Annotations that the ServiceImport bears in importing clusters."),
        },
    });
    let status = json!({ "type": "object", "properties": { "conditions": schema::conditions() } });
    let about = "Offers the Service of the same name and namespace to other clusters.";
    define("ServiceExport", ["svcex", "svcexport"], about, json!({ "spec": spec, "status": status }), &[])
}

/// `ServiceImport`.
pub(super) fn import() -> CustomResourceDefinition {
    let columns = [
        json!({ "name": "Type", "type": "string", "jsonPath": ".spec.type", "description": "The type of this ServiceImport" }),
        json!({ "name": "IP", "type": "string", "jsonPath": ".spec.ips", "description": "The VIP for this ServiceImport" }),
    ];
    let about = "A service that other clusters export, as this cluster imports it. Hawser writes it; do not edit it.";
    let properties = json!({ "spec": import_spec(), "status": import_status() });
    define("ServiceImport", ["svcim", "svcimport"], about, properties, &columns)
}

fn import_spec() -> Value {
    let text = json!({ "type": "string" });
    let pair = json!({ "type": "array", "maxItems": 2, "items": text });
    let seconds =
        json!({ "type": "object", "properties": { "timeoutSeconds": { "type": "integer", "format": "int32" } } });
    json!({
        "type": "object",
        "required": ["ports", "type"],
        "properties": {
            "ports": {
                "type": "array",
                "description": "Ports of all exporters.",
                "x-kubernetes-list-type": "atomic",
                "items": {
                    "type": "object",
                    "required": ["port"],
                    "properties": {
                        "name": text,
                        "protocol": text,
                        "appProtocol": text,
                        "port": { "type": "integer", "format": "int32" },
                    },
                },
            },
            "ips": pair,
            "ipFamilies": pair,
            "type": { "type": "string", "enum": ["ClusterSetIP", "Headless"] },
            "sessionAffinity": text,
            "sessionAffinityConfig": { "type": "object", "properties": { "clientIP": seconds } },
            "internalTrafficPolicy": text,
            "trafficDistribution": text,
        },
    })
}

/// With `endpointSliceObjects`, which the standard's text asks for and its release does not have yet: a status field
/// more hurts no reader.
fn import_status() -> Value {
    json!({
        "type": "object",
        "properties": {
            "endpointSliceObjects": { "type": "string", "enum": ["Present", "Absent"] },
            "clusters": {
                "type": "array",
                "description": "The clusters that export it.",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["cluster"],
                "items": {
                    "type": "object",
                    "required": ["cluster"],
                    "properties": { "cluster": { "type": "string" } },
                },
            },
            "conditions": schema::conditions(),
        },
    })
}

fn define(kind: &str, short: [&str; 2], about: &str, properties: Value, columns: &[Value]) -> CustomResourceDefinition {
    let properties = schema::with(properties, Some(("metadata", json!({ "type": "object" }))));
    let age = json!({ "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp" });
    let columns: Vec<&Value> = columns.iter().chain([&age]).collect();
    let version = |name: &str, storage: bool| {
        json!({
            "name": name,
            "served": true,
            "storage": storage,
            "schema": { "openAPIV3Schema": { "type": "object", "description": about, "properties": properties } },
            "subresources": { "status": {} },
            "additionalPrinterColumns": columns,
        })
    };
    let singular = kind.to_lowercase();
    let labels = BTreeMap::from([(RELEASE_LABEL, RELEASE), (REVISION_LABEL, REVISION)]);
    custom_resource(&json!({
        "metadata": { "name": format!("{singular}s.{GROUP}"), "labels": labels },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": format!("{kind}List"),
                "plural": format!("{singular}s"),
                "singular": singular,
                "shortNames": short,
            },
            "versions": [version("v1alpha1", false), version("v1beta1", true)],
        },
    }))
}
