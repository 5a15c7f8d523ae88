//! `FailoverPolicy` as a custom resource.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::json;

use super::definition::{Column, Kind, NAME, conditions_only, keyed};
use super::rules::{Bound, Rule};
use super::schema;
use crate::objects::policy::{FailoverSpec, TIER_CLUSTERS_MAX, TIERS_MAX, WEIGHT_MAX};

const POLICY: Kind = Kind {
    kind: "FailoverPolicy",
    plural: "failoverpolicies",
    short: "hfp",
    scope: "Namespaced",
    about: "In which order, and in which shares, clusters serve the federated service of the same name and namespace.",
    columns: &[
        Column { name: "First", kind: "string", path: ".spec.tiers[0].clusters[*].name", wide: false },
        Column { name: "Then", kind: "string", path: ".spec.tiers[1].clusters[*].name", wide: false },
        Column { name: "Minimum", kind: "integer", path: ".spec.minimumHealthyPercent", wide: false },
        Column { name: "Age", kind: "date", path: ".metadata.creationTimestamp", wide: false },
    ],
};

/// The definition.
pub(super) fn definition() -> CustomResourceDefinition {
    let bounds = [
        Bound { at: "spec.minimumHealthyPercent", says: json!({ "maximum": 100 }) },
        Bound { at: "spec.tiers", says: json!({ "maxItems": TIERS_MAX }) },
        Bound { at: "spec.tiers[].clusters", says: keyed("name", TIER_CLUSTERS_MAX) },
    ];
    let rules: Vec<Rule> = NAME.into_iter().chain(RULES).collect();
    POLICY.define(schema::of::<FailoverSpec>(), conditions_only(), &bounds, &rules)
}

const RULES: [Rule; 5] = [
    Rule {
        at: "spec.tiers",
        field: "",
        holds: "size(self) > 0",
        reason: "is empty",
        remedy: "list at least one tier of clusters",
    },
    Rule {
        at: "spec.tiers",
        field: "",
        holds: "self.all(a, a.clusters.all(x, self.exists_one(b, b.clusters.exists(y, y.name == x.name))))",
        reason: "is the same as in another tier",
        remedy: "each may occur once",
    },
    Rule {
        at: "spec.tiers[].clusters",
        field: "",
        holds: "size(self) > 0",
        reason: "is empty",
        remedy: "name its clusters, or take the tier out",
    },
    Rule {
        at: "spec.tiers[].clusters",
        field: "",
        holds: "size(self) == 0 || self.exists(c, !has(c.weight) || c.weight > 0)",
        reason: "gives every cluster weight 0",
        remedy: "give at least one a weight",
    },
    Rule {
        at: "spec.tiers[].clusters[].weight",
        field: "",
        holds: "self <= 1000000",
        reason: "is more than 1000000",
        remedy: "weights are shares: use smaller numbers",
    },
];

// The rule's text has to say the number itself.
const _: () = assert!(WEIGHT_MAX == 1_000_000);
