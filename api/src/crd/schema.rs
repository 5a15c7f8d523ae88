//! From a Rust type to a structural schema.

use kube::core::schema::{OptionalEnum, StructuralSchemaRewriter};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// The structural schema of a type.
pub(super) fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let settings = settings.with_transform(StructuralSchemaRewriter).with_transform(OptionalEnum);
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    tidy(&mut schema);
    schema
}

/// An object with another entry.
pub(super) fn with(mut object: Value, entry: Option<(&str, Value)>) -> Value {
    if let Some(object) = object.as_object_mut() {
        object.extend(entry.map(|(name, value)| (name.to_owned(), value)));
    }
    object
}

/// What an API server would warn of, or `kubectl explain` show badly.
fn tidy(schema: &mut Value) {
    let Value::Object(node) = schema else { return };
    // Absent and null are one thing to the file loader; so they are to an API server, which drops a null unless told.
    node.remove("nullable");
    node.remove("title");
    if let Some(Value::Array(words)) = node.get_mut("enum") {
        words.retain(|word| !word.is_null());
    }
    formats(node);
    if let Some(Value::String(text)) = node.get("description") {
        let text = text.replace("[`", "`").replace("`]", "`").replace('\n', " ");
        let text = if text.starts_with("See `") { None } else { Some(text) };
        node.remove("description");
        node.extend(text.map(|text| ("description".to_owned(), text.into())));
    }
    if let Some(Value::Object(properties)) = node.get_mut("properties") {
        properties.values_mut().for_each(tidy);
    }
    for name in ["items", "additionalProperties"] {
        node.get_mut(name).into_iter().for_each(tidy);
    }
}

/// Kubernetes knows no unsigned formats; the bounds say the same.
fn formats(node: &mut Map<String, Value>) {
    let (format, most) = match node.get("format").and_then(Value::as_str) {
        Some("uint8") => ("int32", Some(255)),
        Some("uint16") => ("int32", Some(65_535)),
        Some("uint32") => ("int64", Some(u64::from(u32::MAX))),
        Some("uint64") => ("int64", None),
        _ => return,
    };
    node.insert("format".into(), format.into());
    // A bound of ours is narrower than the type's.
    if let (Some(most), None) = (most, node.get("maximum")) {
        node.insert("maximum".into(), most.into());
    }
}

/// Conditions as all of Kubernetes writes them, one a type.
pub(super) fn conditions() -> Value {
    json!({
        "type": "array",
        "description": "What holds now, and since when.",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "type": {
                    "type": "string",
                    "description": "What it is about.",
                    "maxLength": 316,
                    "pattern": r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
                },
                "status": { "type": "string", "enum": ["True", "False", "Unknown"] },
                "reason": {
                    "type": "string",
                    "description": "One word.",
                    "minLength": 1,
                    "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                },
                "message": { "type": "string", "description": "A sentence with the remedy.", "maxLength": 32_768 },
                "observedGeneration": {
                    "type": "integer",
                    "format": "int64",
                    "minimum": 0,
                    "description": "The object's generation that was looked at.",
                },
                "lastTransitionTime": {
                    "type": "string",
                    "format": "date-time",
                    "description": "When the status last changed.",
                },
            },
        },
    })
}

/// The node of a field such as `spec.gateways[].address`; empty: the whole.
pub(super) fn at<'a>(schema: &'a mut Value, path: &str) -> Option<&'a mut Map<String, Value>> {
    let mut node = schema;
    for step in path.split('.').filter(|step| !step.is_empty()) {
        let (name, items) = step.strip_suffix("[]").map_or((step, false), |name| (name, true));
        node = node.get_mut("properties")?.get_mut(name)?;
        if items {
            node = node.get_mut("items")?;
        }
    }
    node.as_object_mut()
}
