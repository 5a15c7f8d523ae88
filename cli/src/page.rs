//! Reading JSON pages leniently: a newer or older daemon may say more or less than this command knows.

use serde_json::Value;

/// The rows of a page: the page itself, or its list of that name.
pub(crate) fn rows(page: &Value, name: &str) -> Vec<Value> {
    page.as_array().or_else(|| page.get(name)?.as_array()).cloned().unwrap_or_default()
}

/// A field by its path (`status.imported`).
pub(crate) fn at<'a>(row: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(row, |value, name| value.get(name).unwrap_or(&Value::Null))
}

/// A field as text: lists joined with commas, nothing for null.
pub(crate) fn text(row: &Value, path: &str) -> String {
    plain(at(row, path))
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// A list field.
pub(crate) fn list<'a>(row: &'a Value, path: &str) -> &'a [Value] {
    at(row, path).as_array().map_or(&[], Vec::as_slice)
}

/// A number, 0 where it is missing.
pub(crate) fn number(row: &Value, path: &str) -> f64 {
    at(row, path).as_f64().unwrap_or(0.0)
}

/// A truth, false where it is missing.
pub(crate) fn is(row: &Value, path: &str) -> bool {
    at(row, path).as_bool().unwrap_or(false)
}

/// The service that a row is about, `namespace/name`.
pub(crate) fn service(row: &Value) -> String {
    match (at(row, "namespace").as_str(), at(row, "name").as_str()) {
        (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
        _ => text(row, "service"),
    }
}

/// The status of a condition: `True`, `False`, `Unknown`; empty where it is missing.
pub(crate) fn condition<'a>(row: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = [list(row, "conditions"), list(row, "status.conditions")];
    conditions.into_iter().flatten().find(|condition| at(condition, "type") == kind)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_page_may_be_the_list_or_hold_it() {
        assert_eq!(rows(&json!([1]), "links").len(), 1);
        assert_eq!(rows(&json!({"links": [1, 2]}), "links").len(), 2);
        assert!(rows(&json!({"other": 1}), "links").is_empty());
    }

    #[test]
    fn what_is_missing_is_empty() {
        let row = json!({"a": {"b": ["x", 2]}, "namespace": "shop", "name": "checkout"});
        assert_eq!(text(&row, "a.b"), "x,2");
        assert_eq!(text(&row, "a.c.d"), "");
        assert_eq!(service(&row), "shop/checkout");
        assert_eq!(number(&row, "n"), 0.0);
    }
}
