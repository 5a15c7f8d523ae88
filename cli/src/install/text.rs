//! Documents as one YAML stream.

use anyhow::Result;
use serde::Serialize;
use serde_json::{Map, Value};

/// What is at the top of the stream.
const HEAD: &str = concat!("# Printed by `hawser install`, version ", env!("CARGO_PKG_VERSION"), ".\n");

/// One document.
pub(super) type Document = String;

/// A document: keys in the order of the alphabet, so that the same value is the same text.
pub(super) fn document(value: &impl Serialize) -> Result<Document> {
    let value = without_nulls(serde_json::to_value(value)?);
    Ok(serde_saphyr::to_string(&value)?)
}

/// All of them, each behind its `---`.
pub(super) fn stream(documents: &[Document]) -> String {
    documents.iter().fold(HEAD.to_owned(), |text, document| text + "---\n" + document.trim_end() + "\n")
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(name, value)| (name, without_nulls(value))).collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        value => value,
    }
}
