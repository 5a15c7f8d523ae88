//! An object as the API server gives it → the reduced form that is kept.
//!
//! Of ten thousand Services only what is read later may stay in memory: no managed fields, no status, no labels and
//! annotations of others.

use std::net::IpAddr;

use hawser_api::labels;
use hawser_api::objects::load::{self, Problem};
use hawser_api::objects::{Object, ServiceImport, ServiceImportSpec};
use hawser_api::{ClusterName, Namespace, TrustDomain};
use kube::core::DynamicObject;
use serde_json::{Map, Value, json};

use super::kind::Kind;
use crate::apply::kubernetes::mark;
use crate::kubernetes::MANAGER;
use crate::watch::not_ourselves;

/// Beginnings of labels and annotations that mean something here.
const KEPT: &[&str] = &[
    "hawser.dev/",
    labels::MANAGED_BY,
    labels::SERVICE_NAME,
    "multicluster.kubernetes.io/",
    "multicluster.x-k8s.io/",
    "endpointslice.kubernetes.io/managed-by",
];

/// Namespace (empty: none) and name.
pub type Name = (String, String);

/// What one object says.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// That it is there.
    Namespace,
    /// The service account of a Pod.
    Pod(Namespace),
    /// What a user declares, with what was found wrong. An invalid object says nothing, and what it said before stays.
    Declared(Result<Box<Object>, Vec<Problem>>),
    /// Something that bears our mark.
    Made(Box<Object>),
    /// A ServiceImport that bears our mark.
    Import(Box<ServiceImport>),
    /// A ServiceImport of somebody else's.
    Others,
    /// Nothing that concerns anybody here, whatever it said before.
    Nothing,
}

/// One object.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Which.
    pub name: Name,
    /// What it says.
    pub said: Said,
    /// What the API server says about it; kept where something is written to it.
    pub facts: Facts,
}

/// What the API server says about an object.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Which incarnation it is.
    pub uid: String,
    /// Of two states of one incarnation the newer has the higher one.
    pub version: u64,
    /// Which edition of the spec it is.
    pub generation: i64,
    /// Somebody deleted it, and it waits for its finalizers.
    pub leaving: bool,
    /// What it waits for when somebody deletes it; of kinds that we put a finalizer of ours on.
    pub finalizers: Vec<String>,
    /// Addresses that were given to it.
    pub addresses: Vec<IpAddr>,
    /// Its status, of kinds whose status we write; of conditions those that we wrote.
    pub status: Value,
    /// The version of the API that it was read in.
    pub api_version: String,
}

impl Facts {
    /// It bears our finalizer.
    pub fn held(&self) -> bool {
        self.finalizers.iter().any(|finalizer| finalizer == labels::UNLINK)
    }
}

/// Reduces one object. `None`: it has no name, as no object of an API server.
pub fn seen(kind: Kind, api_version: &str, object: DynamicObject, own: &(ClusterName, TrustDomain)) -> Option<Seen> {
    let name = (object.metadata.namespace.clone().unwrap_or_default(), object.metadata.name.clone()?);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let said = match kind {
        Kind::Namespace => Said::Namespace,
        Kind::Pod => {
            let account = object.data.pointer("/spec/serviceAccountName").and_then(text);
            account.unwrap_or_else(|| "default".to_owned()).parse().map_or(Said::Nothing, Said::Pod)
        }
        Kind::ServiceImport if ours(&object) => import(api_version, &object).map_or(Said::Others, Said::Import),
        Kind::ServiceImport => Said::Others,
        Kind::EndpointSlice if !ours(&object) && !tied(&object) => Said::Nothing,
        _ => declared(kind, api_version, &object, own),
    };
    let facts = match (&said, kind) {
        (Said::Made(_) | Said::Import(_) | Said::Nothing, _)
        | (_, Kind::Link | Kind::ServiceExport | Kind::Namespace) => facts(kind, api_version, &object),
        _ => Facts::default(),
    };
    Some(Seen { name, said, facts })
}

/// One that we made. Of one that somebody has made unreadable the name alone is known: it is not as it should be.
fn import(api_version: &str, object: &DynamicObject) -> Option<Box<ServiceImport>> {
    let value = reduced(Kind::ServiceImport, api_version, object);
    let whole = serde_json::from_value(value.clone());
    let import = whole.or_else(|_| {
        let metadata = serde_json::from_value(value.get("metadata").cloned().unwrap_or_default())?;
        serde_json::Result::Ok(ServiceImport::new(metadata, ServiceImportSpec::default()))
    });
    import.ok().map(Box::new)
}

/// It says which Service it belongs to.
fn tied(slice: &DynamicObject) -> bool {
    slice.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(labels::SERVICE_NAME))
}

fn declared(kind: Kind, api_version: &str, object: &DynamicObject, own: &(ClusterName, TrustDomain)) -> Said {
    let value = reduced(kind, api_version, object);
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let origin = match object.metadata.namespace.as_deref() {
        Some(namespace) => format!("{} {namespace}/{name}", kind.as_str()),
        None => format!("{} {name}", kind.as_str()),
    };
    if ours(object) {
        // Somebody may have made of it what cannot be read: it is ours still, and not as it should be.
        let made = load::unchecked(&origin, &value).or_else(|_| load::unchecked(&origin, &bare(&value)));
        return made.map_or_else(|problems| Said::Declared(Err(problems)), |made| Said::Made(Box::new(made)));
    }
    let checked = load::checked(&origin, &value).and_then(|object| {
        let ourselves = match &object {
            Object::Link(link) => not_ourselves(link, own, (&origin, 0)),
            _ => Vec::new(),
        };
        if ourselves.is_empty() { Ok(Box::new(object)) } else { Err(ourselves) }
    });
    Said::Declared(checked)
}

/// It bears our mark. The labels that say the same are for people, and put back where they were taken off.
fn ours(object: &DynamicObject) -> bool {
    let metadata = &object.metadata;
    let (namespace, name) = (metadata.namespace.as_deref(), metadata.name.as_deref());
    let annotations = metadata.annotations.as_ref();
    annotations.is_some_and(|all| mark::owner(all, namespace.unwrap_or_default(), name.unwrap_or_default()).is_some())
}

/// The parts that Hawser's own types have, as JSON.
fn reduced(kind: Kind, api_version: &str, object: &DynamicObject) -> Value {
    let mut value = Map::new();
    value.insert("apiVersion".to_owned(), json!(api_version));
    value.insert("kind".to_owned(), json!(kind.as_str()));
    let metadata = &object.metadata;
    let kept = |all: &Option<std::collections::BTreeMap<String, String>>| -> Map<String, Value> {
        let kept = all.iter().flatten().filter(|(key, _)| KEPT.iter().any(|start| key.starts_with(start)));
        kept.map(|(key, value)| (key.clone(), json!(value))).collect()
    };
    let mut reduced = json!({
        "name": metadata.name,
        "labels": kept(&metadata.labels),
        "annotations": kept(&metadata.annotations),
    });
    if matches!(kind, Kind::Link | Kind::ServiceExport)
        && let (Some(generation), Some(reduced)) = (metadata.generation, reduced.as_object_mut())
    {
        reduced.insert("generation".to_owned(), json!(generation));
    }
    if let (Some(namespace), Some(reduced)) = (&metadata.namespace, reduced.as_object_mut()) {
        reduced.insert("namespace".to_owned(), json!(namespace));
    }
    if let (Some(time), Some(reduced)) = (&metadata.creation_timestamp, reduced.as_object_mut()) {
        reduced.insert("creationTimestamp".to_owned(), json!(time));
    }
    value.insert("metadata".to_owned(), reduced);
    for (key, part) in object.data.as_object().into_iter().flatten() {
        // Kinds of ours refuse fields that they do not know; a status is not the user's to declare. An API server writes an
        // empty list as null.
        if !part.is_null() && !matches!(key.as_str(), "status" | "apiVersion" | "kind" | "metadata") {
            value.insert(key.clone(), part.clone());
        }
    }
    Value::Object(value)
}

/// Without all that it says of more than itself.
fn bare(value: &Value) -> Value {
    let kept = |(key, _): &(&String, &Value)| matches!(key.as_str(), "apiVersion" | "kind" | "metadata");
    let fields = value.as_object().into_iter().flatten().filter(kept);
    Value::Object(fields.map(|(key, part)| (key.clone(), part.clone())).collect())
}

fn facts(kind: Kind, api_version: &str, object: &DynamicObject) -> Facts {
    let metadata = &object.metadata;
    // Nobody asks for the addresses of mirrors, of which there are thousands.
    let mirror = metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(labels::MIRROR_OF_CLUSTER));
    let addresses = object.data.pointer("/spec/clusterIPs").filter(|_| !mirror).and_then(Value::as_array);
    let addresses = addresses.into_iter().flatten();
    Facts {
        uid: metadata.uid.clone().unwrap_or_default(),
        version: metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0),
        generation: metadata.generation.unwrap_or(0),
        leaving: metadata.deletion_timestamp.is_some(),
        finalizers: match kind {
            Kind::Link => metadata.finalizers.clone().unwrap_or_default(),
            _ => Vec::new(),
        },
        addresses: addresses.filter_map(|ip| ip.as_str()?.parse().ok()).collect(),
        status: match kind {
            Kind::Link | Kind::ServiceExport | Kind::ServiceImport => own_status(object),
            _ => Value::Null,
        },
        api_version: match kind {
            Kind::Link | Kind::ServiceExport | Kind::ServiceImport => api_version.to_owned(),
            _ => String::new(),
        },
    }
}

/// Without the conditions that others wrote, which are none of our business: an API server says who manages what.
fn own_status(object: &DynamicObject) -> Value {
    let mut status = object.data.get("status").cloned().unwrap_or(Value::Null);
    let ours = object.metadata.managed_fields.iter().flatten().filter(|entry| {
        let of = [&entry.manager, &entry.operation, &entry.subresource].map(Option::as_deref);
        of == [Some(MANAGER), Some("Apply"), Some("status")]
    });
    // One for each version of the API that it was ever written in.
    let ours = ours.filter_map(|entry| entry.fields_v1.as_ref()?.0.pointer("/f:status/f:conditions")?.as_object());
    let ours: Vec<_> = ours.filter(|fields| fields.keys().any(|key| key.starts_with("k:"))).collect();
    // Who owns the list as a whole, where the definition has it so, owns each item.
    if let (Some(all), false) = (status.get_mut("conditions").and_then(Value::as_array_mut), ours.is_empty()) {
        all.retain(|condition| {
            let key = condition.get("type").map(|kind| format!("k:{}", json!({ "type": kind })));
            key.is_some_and(|key| ours.iter().any(|fields| fields.contains_key(&key)))
        });
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Link with two conditions, and who wrote which, in which version of the API.
    fn conditions_of(managers: &[(&str, &str, &str, Value)]) -> Vec<String> {
        let managers: Vec<Value> = managers
            .iter()
            .map(|(manager, operation, version, conditions)| {
                json!({ "manager": manager, "operation": operation, "apiVersion": version, "subresource": "status",
                    "fieldsV1": { "f:status": { "f:conditions": conditions } } })
            })
            .collect();
        let link = json!({
            "apiVersion": "hawser.dev/v1alpha1", "kind": "Link",
            "metadata": { "name": "east", "managedFields": managers },
            "status": { "conditions": [{ "type": "Ready" }, { "type": "example.com/Reviewed" }] },
        });
        let status = own_status(&serde_json::from_value(link).unwrap());
        let conditions = status["conditions"].as_array().unwrap();
        conditions.iter().map(|condition| condition["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn of_conditions_only_ours_are_known() {
        let item = |kind: &str| (format!("k:{}", json!({ "type": kind })), json!({ ".": {} }));
        let items = |kinds: &[&str]| Value::Object(kinds.iter().map(|kind| item(kind)).collect());
        let (ours, both) = (items(&["Ready"]), items(&["Ready", "example.com/Reviewed"]));
        let theirs = ("reviewer", "Apply", "hawser.dev/v1alpha1", items(&["example.com/Reviewed"]));
        let by_us = |version, conditions| (MANAGER, "Apply", version, conditions);
        assert_eq!(conditions_of(&[by_us("hawser.dev/v1alpha1", ours.clone()), theirs.clone()]), ["Ready"]);
        // Written in one version of the API before, and in another now.
        let versions = [by_us("hawser.dev/v1", items(&[])), by_us("hawser.dev/v1alpha1", ours.clone()), theirs.clone()];
        assert_eq!(conditions_of(&versions), ["Ready"]);
        assert_eq!(
            conditions_of(&[by_us("hawser.dev/v1", items(&["Other"])), by_us("hawser.dev/v1alpha1", ours)]),
            ["Ready"]
        );
        // The list is ours as a whole, or nobody says whose it is: then each is compared.
        for managers in
            [vec![by_us("hawser.dev/v1alpha1", json!({}))], vec![theirs], vec![(MANAGER, "Update", "", both)]]
        {
            assert_eq!(conditions_of(&managers), ["Ready", "example.com/Reviewed"]);
        }
    }
}
