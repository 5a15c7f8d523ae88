//! The objects as custom resources of Kubernetes.
//!
//! ```text
//! objects::LinkSpec ── schemars ─▶ schema ── tidy ─▶ structural schema ◀── rules (CEL) ── link, policy
//!                                                          └─▶ CustomResourceDefinition
//! multicluster   MCS's two kinds, as the standard's release has them
//! upgrade        whether a definition that is installed already may be replaced
//! ```
//!
//! Schemas are made from the structs that files are read into, so that the two cannot drift apart; the rules say what the
//! file loader's checks say, in the same words. What CEL cannot see stays with those checks, which whoever reads a
//! resource applies too: labels and annotations, whether a bundle can be parsed, and what holds between objects (two
//! Links of one trust domain).

mod definition;
mod link;
mod multicluster;
mod names;
mod policy;
mod rules;
mod schema;
pub mod upgrade;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

/// Every definition that Hawser needs, in the order of their names.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let mut all = vec![policy::definition(), link::definition(), multicluster::export(), multicluster::import()];
    all.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    all
}

#[cfg(test)]
mod tests;
