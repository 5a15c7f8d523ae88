//! Rules that types cannot say, as CEL (`x-kubernetes-validations`).

use serde_json::{Value, json};

use super::schema;

/// A rule of one field: what must hold, and the words of the file loader for when it does not.
pub(super) struct Rule {
    /// Where `self` is, such as `spec.gateways[]`; empty: the whole object.
    pub(super) at: &'static str,
    /// The field below it that an error names, such as `.bundleUpdates`; empty: `at` itself.
    pub(super) field: &'static str,
    /// The CEL expression.
    pub(super) holds: &'static str,
    /// What is wrong.
    pub(super) reason: &'static str,
    /// What to do.
    pub(super) remedy: &'static str,
}

/// A bound or a list's kind, which a schema says without CEL.
pub(super) struct Bound {
    /// As [`Rule::at`].
    pub(super) at: &'static str,
    /// Keywords and their values.
    pub(super) says: Value,
}

impl Rule {
    /// The error's text, as the loader prints reason and hint.
    pub(super) fn message(&self) -> String {
        format!("{}; {}", self.reason, self.remedy)
    }
}

/// Puts bounds and rules where they belong; comes back with the paths that are not there.
pub(super) fn attach(whole: &mut Value, bounds: &[Bound], rules: &[Rule]) -> Vec<&'static str> {
    let mut lost = Vec::new();
    for bound in bounds {
        let says = bound.says.as_object().cloned().unwrap_or_default();
        match schema::at(whole, bound.at) {
            Some(node) => node.extend(says),
            None => lost.push(bound.at),
        }
    }
    for rule in rules {
        let entry = json!({ "rule": rule.holds, "message": rule.message() });
        let entry = schema::with(entry, Some(rule.field).filter(|f| !f.is_empty()).map(|f| ("fieldPath", f.into())));
        let list = schema::at(whole, rule.at).map(|node| node.entry("x-kubernetes-validations").or_insert(json!([])));
        match list {
            Some(Value::Array(list)) => list.push(entry),
            _ => lost.push(rule.at),
        }
    }
    lost
}
