//! Whether a definition that is in a cluster already may be replaced by ours: several tools bring the definitions of the
//! multi-cluster services API, and the oldest of them must not take fields away from the others.

use std::collections::BTreeSet;
use std::fmt;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

/// The release of the multi-cluster services API that a definition is of.
pub const RELEASE_LABEL: &str = "multicluster.x-k8s.io/release-version";
/// Counts the changes of a definition since that release.
pub const REVISION_LABEL: &str = "multicluster.x-k8s.io/crd-schema-revision";

/// What becomes of a definition of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// There is none: ours is made.
    Create,
    /// There is an older one, or our own: ours takes its place.
    Replace,
    /// The one that is there stays.
    Keep(Reason),
}

/// Why an installed definition stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It is of a later release or revision of the standard.
    Newer,
    /// It has a version that ours does not have, in which objects may be stored.
    OtherVersion,
    /// It has all of our versions and does not say of which release it is.
    Unlabelled,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Newer => "it is of a later release of the standard",
            Self::OtherVersion => "it has a version that Hawser does not know",
            Self::Unlabelled => "it serves all versions that Hawser uses, and does not say of which release it is",
        })
    }
}

/// Decides for one definition of ours; `installed` is the one of the same name in the cluster.
pub fn decide(installed: Option<&CustomResourceDefinition>, ours: &CustomResourceDefinition) -> Verdict {
    let Some(installed) = installed else { return Verdict::Create };
    let Some(own) = release(ours) else { return Verdict::Replace };
    if !versions(installed).is_subset(&versions(ours)) {
        return Verdict::Keep(Reason::OtherVersion);
    }
    match release(installed) {
        Some(theirs) if theirs > own => Verdict::Keep(Reason::Newer),
        None if versions(installed) == versions(ours) => Verdict::Keep(Reason::Unlabelled),
        _ => Verdict::Replace,
    }
}

/// Versions that are served, or in which something may be stored.
fn versions(definition: &CustomResourceDefinition) -> BTreeSet<&str> {
    let stored = definition.status.iter().flat_map(|status| status.stored_versions.iter().flatten());
    definition.spec.versions.iter().map(|version| version.name.as_str()).chain(stored.map(String::as_str)).collect()
}

/// Release and revision as numbers; a definition without a release that can be read has none.
fn release(definition: &CustomResourceDefinition) -> Option<([u32; 3], u32)> {
    let labels = definition.metadata.labels.as_ref()?;
    let text = labels.get(RELEASE_LABEL)?;
    let mut parts = text.strip_prefix('v').unwrap_or(text).split(['-', '+']).next()?.split('.').map(str::parse);
    let triple = [parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?];
    let revision = labels.get(REVISION_LABEL).and_then(|text| text.parse().ok()).unwrap_or(0);
    Some((triple, revision))
}
