use serde_json::{Value, json};

use super::upgrade::{RELEASE_LABEL, REVISION_LABEL, Reason, Verdict, decide};
use super::*;
use crate::objects::import::{ImportCluster, Presence, ServiceImportStatus};
use crate::objects::link::{Condition, LinkStatus};
use crate::objects::load::{Problem, checked, parse};
use crate::objects::{Object, ServiceImport};

const ACCEPTED: &str = include_str!("../../testdata/accepted.yaml");
const REFUSED: &str = include_str!("../../testdata/refused.yaml");
const MALFORMED: &str = include_str!("../../testdata/malformed.yaml");
const UNKNOWN: &str = include_str!("../../testdata/unknown.yaml");

/// The documents of a file, each with the text of the comment before it.
fn documents(text: &'static str) -> Vec<(&'static str, &'static str)> {
    let said = |document: &'static str| document.strip_prefix("# ").and_then(|rest| rest.lines().next());
    text.split("\n---\n").skip(1).map(|document| (said(document).unwrap_or_default(), document)).collect()
}

/// As whoever watches an API server reads it: what only servers write is cut off, and the rest held to the rules of files.
fn resource(mut json: Value) -> Result<Object, Vec<Problem>> {
    json.as_object_mut().unwrap().remove("status");
    checked("the resource", &json)
}

fn definition(kind: &str) -> CustomResourceDefinition {
    definitions().into_iter().find(|definition| definition.spec.names.kind == kind).unwrap()
}

/// The schema in which a kind is stored.
fn stored(kind: &str) -> Value {
    let version = definition(kind).spec.versions.into_iter().find(|version| version.storage).unwrap();
    serde_json::to_value(version.schema.unwrap().open_api_v3_schema.unwrap()).unwrap()
}

/// Every node of a schema with its path.
fn walk(path: &str, node: &Value, see: &mut dyn FnMut(&str, &Value)) {
    see(path, node);
    for (name, child) in node["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), child, see);
    }
    for name in ["items", "additionalProperties"] {
        if node[name].is_object() {
            walk(&format!("{path}[]"), &node[name], see);
        }
    }
}

/// What an API server keeps: fields that the schema knows (apiextensions' pruning), with its defaults.
fn keep(schema: &Value, value: &mut Value, top: bool) {
    match value {
        Value::Object(fields) => {
            if schema["additionalProperties"].is_object() || (top && schema["properties"].is_null()) {
                return;
            }
            fields.retain(|name, value| {
                !value.is_null()
                    && (schema["properties"][name].is_object() || top && matches!(&**name, "apiVersion" | "kind"))
            });
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                if !property["default"].is_null() && !fields.contains_key(name) {
                    fields.insert(name.clone(), property["default"].clone());
                }
                if let Some(child) = fields.get_mut(name).filter(|_| !(top && name == "metadata")) {
                    keep(property, child, false);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| keep(&schema["items"], item, false)),
        _ => {}
    }
}

#[test]
fn every_schema_is_structural() {
    const KNOWN_FORMATS: &[&str] = &["int32", "int64", "date-time"];
    for definition in definitions() {
        let name = definition.metadata.name.clone().unwrap();
        assert_eq!(name, format!("{}.{}", definition.spec.names.plural, definition.spec.group));
        assert_eq!(definition.spec.versions.iter().filter(|version| version.storage).count(), 1, "{name}");
        walk(&name, &stored(&definition.spec.names.kind), &mut |path, node| {
            assert!(node["type"].is_string(), "{path} has no type: {node}");
            for word in ["oneOf", "anyOf", "allOf", "not", "nullable", "$ref", "title", "uniqueItems"] {
                assert!(node[word].is_null(), "{path} has {word}: {node}");
            }
            if let Some(format) = node["format"].as_str() {
                assert!(KNOWN_FORMATS.contains(&format), "{path}: Kubernetes does not know the format {format}");
            }
            let description = node["description"].as_str().unwrap_or_default();
            assert!(!description.contains("[`") && !description.contains('\n'), "{path}: {description}");
        });
    }
}

#[test]
fn every_rule_and_bound_of_ours_has_its_place() {
    let mut rules = 0;
    for kind in ["Link", "FailoverPolicy"] {
        walk(kind, &stored(kind), &mut |_, node| {
            rules += node["x-kubernetes-validations"].as_array().map_or(0, Vec::len);
        });
    }
    assert_eq!(rules, 2 * 2 + 18 + 5, "a rule's path is not in the schema");
    let link = stored("Link");
    assert_eq!(link["properties"]["spec"]["properties"]["gateways"]["x-kubernetes-list-map-keys"], json!(["name"]));
    assert_eq!(link["properties"]["status"]["properties"]["conditions"]["x-kubernetes-list-map-keys"], json!(["type"]));
}

#[test]
fn what_files_refuse_is_refused_in_the_same_words() {
    let mut messages = Vec::new();
    for kind in ["Link", "FailoverPolicy"] {
        walk(kind, &stored(kind), &mut |_, node| {
            let rules = node["x-kubernetes-validations"].as_array().into_iter().flatten();
            messages.extend(rules.map(|rule| (rule["message"].as_str().unwrap().to_owned(), false)));
        });
    }
    for (words, document) in documents(REFUSED) {
        let problems = parse("refused.yaml", document).expect_err(document);
        assert!(problems.iter().any(|p| p.reason.contains(words)), "{words:?} is not in {problems:#?}");
        let said = messages.iter_mut().filter(|(message, _)| message.starts_with(words));
        assert!(said.map(|(_, seen)| *seen = true).count() > 0, "no rule says {words:?}");
    }
    for (_, document) in documents(MALFORMED) {
        parse("malformed.yaml", document).expect_err(document);
    }
    let unseen: Vec<_> = messages.iter().filter(|(_, seen)| !seen).collect();
    assert!(unseen.is_empty(), "no refused object is held up to these rules: {unseen:#?}");
}

#[test]
fn a_file_and_a_resource_of_the_same_text_are_equal_objects() {
    let mut kinds = Vec::new();
    for (_, document) in documents(ACCEPTED) {
        let file = parse("accepted.yaml", document).unwrap().remove(0).object;
        // As an API server returns it: pruned, defaults filled in, and with what only servers write.
        let mut json: Value = serde_saphyr::from_str(document).unwrap();
        keep(&stored(file.kind()), &mut json, true);
        json["metadata"]["uid"] = json!("0b5c4f3e-6a3e-4f2e-9d6f-0d6b3c0b7a11");
        json["metadata"]["generation"] = json!(3);
        json["metadata"]["resourceVersion"] = json!("41");
        json["metadata"]["managedFields"] = json!([{ "manager": "kubectl", "fieldsV1": { "f:spec": {} } }]);
        json["status"] = json!({ "conditions": [] });
        let read = resource(json).unwrap();
        // A server counts editions, and a file has none.
        assert_eq!((read.metadata().generation, file.metadata().generation), (3, 0));
        assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(&file).unwrap());
        kinds.push(file.kind());
    }
    kinds.dedup();
    assert_eq!(kinds, ["Link", "FailoverPolicy", "ServiceExport"]);
}

#[test]
fn a_field_that_nothing_reads_is_refused_in_files_and_dropped_by_servers() {
    for (field, document) in documents(UNKNOWN) {
        let problems = parse("unknown.yaml", document).expect_err(document);
        assert!(problems[0].reason.contains(&format!("unknown field `{field}`")), "{problems:#?}");
        let mut json: Value = serde_saphyr::from_str(document).unwrap();
        let kind = json["kind"].as_str().unwrap().to_owned();
        // What a server without the definition, or with a later one, would hand out.
        let problems = resource(json.clone()).unwrap_err();
        assert!(problems[0].reason.contains(&format!("unknown field `{field}`")), "{problems:#?}");
        keep(&stored(&kind), &mut json, true);
        assert!(!json.to_string().contains(field), "{json}");
        resource(json).unwrap();
    }
}

#[test]
fn what_is_written_into_a_status_survives_the_schema() {
    let condition =
        Condition { kind: "Ready".into(), status: "True".into(), reason: "Ready".into(), message: "it is".into() };
    let mut link =
        json!({ "spec": {}, "status": LinkStatus { conditions: vec![condition.clone()], ..LinkStatus::default() } });
    let before = link.clone();
    keep(&stored("Link")["properties"]["status"], &mut link["status"], false);
    assert_eq!(link, before);

    let status = ServiceImportStatus {
        endpoint_slice_objects: Some(Presence::Present),
        clusters: vec![ImportCluster { cluster: "east".into() }],
        conditions: vec![condition],
    };
    let import: ServiceImport = serde_json::from_value(json!({
        "apiVersion": crate::objects::import::MCS_VERSION,
        "kind": "ServiceImport",
        "metadata": { "name": "checkout", "namespace": "shop" },
        "spec": {
            "type": "ClusterSetIP",
            "ports": [{ "name": "http", "protocol": "TCP", "appProtocol": "http", "port": 80 }],
            "ips": ["10.0.0.7"],
            "ipFamilies": ["IPv4"],
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": 10 } },
            "internalTrafficPolicy": "Cluster",
            "trafficDistribution": "PreferClose",
        },
    }))
    .unwrap();
    let mut json = serde_json::to_value(&import).unwrap();
    json["status"] = serde_json::to_value(&status).unwrap();
    let before = json.clone();
    keep(&stored("ServiceImport"), &mut json, true);
    assert_eq!(json, before);
    assert_eq!(serde_json::from_value::<ServiceImport>(json).unwrap(), import);
}

#[test]
fn both_versions_of_a_standard_kind_are_served_and_the_later_is_stored() {
    for kind in ["ServiceExport", "ServiceImport"] {
        let definition = definition(kind);
        let versions: Vec<_> = definition.spec.versions.iter().map(|v| (&*v.name, v.served, v.storage)).collect();
        assert_eq!(versions, [("v1alpha1", true, false), ("v1beta1", true, true)]);
        assert_eq!(definition.spec.versions[0].schema, definition.spec.versions[1].schema);
    }
}

#[test]
fn an_installed_definition_is_replaced_only_by_a_later_one() {
    let ours = definition("ServiceExport");
    let installed = |release: Option<&str>, revision: &str, versions: &[&str]| {
        let mut definition = ours.clone();
        let labels = definition.metadata.labels.as_mut().unwrap();
        labels.remove(RELEASE_LABEL);
        labels.extend(release.map(|release| (RELEASE_LABEL.to_owned(), release.to_owned())));
        labels.insert(REVISION_LABEL.to_owned(), revision.to_owned());
        let template = definition.spec.versions[1].clone();
        definition.spec.versions.clear();
        for name in versions {
            let mut version = template.clone();
            version.name = (*name).to_owned();
            definition.spec.versions.push(version);
        }
        definition
    };
    let both = &["v1alpha1", "v1beta1"][..];
    let rows = [
        (installed(Some("v0.4.2"), "3", both), Verdict::Replace),
        (installed(Some("v0.5.0"), "0", both), Verdict::Replace),
        (installed(Some("v0.5.0"), "1", both), Verdict::Keep(Reason::Newer)),
        (installed(Some("v0.10.0"), "0", both), Verdict::Keep(Reason::Newer)),
        (installed(Some("v0.5.0"), "0", &["v1alpha1", "v1beta1", "v1"]), Verdict::Keep(Reason::OtherVersion)),
        (installed(None, "0", both), Verdict::Keep(Reason::Unlabelled)),
        (installed(Some("latest"), "0", both), Verdict::Keep(Reason::Unlabelled)),
        (installed(None, "0", &["v1alpha1"]), Verdict::Replace),
        (installed(Some("v0.3.0"), "0", &["v1alpha1"]), Verdict::Replace),
    ];
    for (installed, verdict) in rows {
        assert_eq!(decide(Some(&installed), &ours), verdict, "{:?}", installed.metadata.labels);
    }
    assert_eq!(decide(None, &ours), Verdict::Create);
    // Objects may still be stored in a version that is served no more.
    let mut gone = installed(Some("v0.4.0"), "0", both);
    gone.status = serde_json::from_value(json!({ "storedVersions": ["v1alpha2", "v1beta1"] })).unwrap();
    assert_eq!(decide(Some(&gone), &ours), Verdict::Keep(Reason::OtherVersion));
    // Our own kinds are nobody else's.
    let link = definition("Link");
    assert_eq!(decide(Some(&link), &link), Verdict::Replace);
}
