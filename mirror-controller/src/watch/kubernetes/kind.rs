//! The kinds that are watched.

use kube::core::{ApiResource, GroupVersionKind};

/// A kind that is watched, in the order in which objects of one name depend on one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Where something can be put.
    Namespace,
    /// The user's Services, and those that we made.
    Service,
    /// Where Services' Pods are, and what we made.
    EndpointSlice,
    /// Which service account each Pod has.
    Pod,
    /// MCS.
    ServiceExport,
    /// MCS; only those that we made.
    ServiceImport,
    /// Ours.
    Link,
    /// Ours.
    FailoverPolicy,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Namespace,
        Self::Service,
        Self::EndpointSlice,
        Self::Pod,
        Self::ServiceExport,
        Self::ServiceImport,
        Self::Link,
        Self::FailoverPolicy,
    ];

    /// Group and versions, the newest first; and the kind.
    fn names(self) -> (&'static str, &'static [&'static str], &'static str) {
        match self {
            Self::Namespace => ("", &["v1"], "Namespace"),
            Self::Service => ("", &["v1"], "Service"),
            Self::EndpointSlice => ("discovery.k8s.io", &["v1"], "EndpointSlice"),
            Self::Pod => ("", &["v1"], "Pod"),
            Self::ServiceExport => ("multicluster.x-k8s.io", &["v1beta1", "v1alpha1"], "ServiceExport"),
            Self::ServiceImport => ("multicluster.x-k8s.io", &["v1beta1"], "ServiceImport"),
            Self::Link => ("hawser.dev", &["v1alpha1"], "Link"),
            Self::FailoverPolicy => ("hawser.dev", &["v1alpha1"], "FailoverPolicy"),
        }
    }

    /// As URLs and roles name it.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::Pod => "pods",
            Self::ServiceExport => "serviceexports",
            Self::ServiceImport => "serviceimports",
            Self::Link => "links",
            Self::FailoverPolicy => "failoverpolicies",
        }
    }

    /// As objects name it.
    pub fn as_str(self) -> &'static str {
        self.names().2
    }

    /// Where it is served. `turn` counts the tries that found nothing: an older API server may serve an older version.
    pub fn resource(self, turn: usize) -> ApiResource {
        let (group, versions, kind) = self.names();
        let version = versions.iter().cycle().nth(turn % versions.len().max(1)).copied().unwrap_or("v1");
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), self.plural())
    }

    /// Nothing may be concluded before this kind has been listed: without it Services would seem to be gone, and names to
    /// be free. The others come with CustomResourceDefinitions, or their absence only withholds what hangs on them.
    pub fn needed(self) -> bool {
        matches!(self, Self::Service | Self::EndpointSlice)
    }

    /// What to do when the API server does not know it.
    pub fn remedy_when_missing(self) -> &'static str {
        match self {
            Self::ServiceExport | Self::ServiceImport | Self::Link | Self::FailoverPolicy => {
                "install the definitions: hawser install --crds-only | kubectl apply --server-side -f -"
            }
            _ => "this is no API server of Kubernetes: correct `kubernetes.kubeconfig` or `kubernetes.context`",
        }
    }
}
