//! What the definitions of our own kinds have in common.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};

use super::rules::{self, Bound, Rule};
use super::schema;

/// API group of our own kinds.
const GROUP: &str = "hawser.dev";
/// Their one version.
const VERSION: &str = "v1alpha1";

/// One kind of ours, besides its schema.
pub(super) struct Kind {
    /// Such as `Link`.
    pub(super) kind: &'static str,
    /// Such as `links`.
    pub(super) plural: &'static str,
    /// For people who type.
    pub(super) short: &'static str,
    /// Such as `Cluster`.
    pub(super) scope: &'static str,
    /// What it is, a sentence.
    pub(super) about: &'static str,
    /// What `kubectl get` shows.
    pub(super) columns: &'static [Column],
}

/// A column of `kubectl get`.
pub(super) struct Column {
    /// Its head.
    pub(super) name: &'static str,
    /// `string`, `integer` or `date`.
    pub(super) kind: &'static str,
    /// Where it is.
    pub(super) path: &'static str,
    /// Only with `-o wide`.
    pub(super) wide: bool,
}

impl Kind {
    /// The definition, with this schema of `spec` and of `status`.
    pub(super) fn define(
        &self,
        spec: Value,
        status: Value,
        bounds: &[Bound],
        rules: &[Rule],
    ) -> CustomResourceDefinition {
        let mut whole = json!({
            "type": "object",
            "description": self.about,
            "required": ["spec"],
            "properties": { "metadata": { "type": "object" }, "spec": spec, "status": status },
        });
        let lost = rules::attach(&mut whole, bounds, rules);
        debug_assert!(lost.is_empty(), "{} has no {lost:?}", self.kind);
        custom_resource(&json!({
            "metadata": { "name": format!("{}.{GROUP}", self.plural) },
            "spec": {
                "group": GROUP,
                "scope": self.scope,
                "names": {
                    "kind": self.kind,
                    "listKind": format!("{}List", self.kind),
                    "plural": self.plural,
                    "singular": self.kind.to_lowercase(),
                    "shortNames": [self.short],
                    "categories": ["hawser"],
                },
                "versions": [{
                    "name": VERSION,
                    "served": true,
                    "storage": true,
                    "schema": { "openAPIV3Schema": whole },
                    "subresources": { "status": {} },
                    "additionalPrinterColumns": self.columns.iter().map(Column::entry).collect::<Vec<_>>(),
                }],
            },
        }))
    }
}

impl Column {
    fn entry(&self) -> Value {
        let entry = json!({ "name": self.name, "type": self.kind, "jsonPath": self.path });
        schema::with(entry, self.wide.then(|| ("priority", 1.into())))
    }
}

/// From its JSON, without `apiVersion` and `kind`.
pub(super) fn custom_resource(json: &Value) -> CustomResourceDefinition {
    #[expect(clippy::expect_used, reason = "made of constants alone: whether it reads is decided before a release")]
    serde_json::from_value(json.clone()).expect("a definition of ours is a CustomResourceDefinition")
}

/// The object's name is one DNS label: the words of [`crate::names`].
pub(super) const NAME: [Rule; 2] = [
    Rule {
        at: "",
        field: "",
        holds: "self.metadata.name.matches('^[-a-z0-9]*$')",
        reason: "may contain only lower-case letters, digits and '-'",
        remedy: "use a DNS label: a to z, 0 to 9 and '-', at most 63",
    },
    Rule {
        at: "",
        field: "",
        holds: "size(self.metadata.name) <= 63",
        reason: "is longer than 63 characters",
        remedy: "use a DNS label: a to z, 0 to 9 and '-', at most 63",
    },
];

/// For [`Bound::says`] of lists whose items are told apart by one field.
pub(super) fn keyed(by: &str, most: usize) -> Value {
    json!({ "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [by], "maxItems": most })
}

/// The schema of a status that has conditions only.
pub(super) fn conditions_only() -> Value {
    json!({ "type": "object", "properties": { "conditions": schema::conditions() } })
}
