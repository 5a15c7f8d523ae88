//! The roles. A verb that is not argued for here is not granted.

use hawser_api::labels::{self, BUNDLE_CONFIG_MAP, GATEWAY_ACCOUNT, MIRROR_CONTROLLER_ACCOUNT, TRUST_ANCHOR_ACCOUNT};

use super::{Grant, Role};

/// One a daemon, in Hawser's own namespace.
pub(in crate::install) const ACCOUNTS: &[&str] = &[GATEWAY_ACCOUNT, MIRROR_CONTROLLER_ACCOUNT, TRUST_ANCHOR_ACCOUNT];

const CORE: &str = "";
const HAWSER: &str = "hawser.dev";
const MULTICLUSTER: &str = "multicluster.x-k8s.io";

/// All of them. The gateway has none: it asks its own control plane, never the API server.
pub(crate) const ROLES: &[Role] = &[
    EXPORTER,
    LINKER,
    LINKER_BUNDLE,
    MIRROR_CONTROLLER,
    MIRROR_CONTROLLER_LEASE,
    READER,
    TRUST_ANCHOR,
    TRUST_ANCHOR_BUNDLE,
];

const MIRROR_CONTROLLER: Role = Role {
    name: "hawser-mirror-controller",
    local: false,
    account: Some(MIRROR_CONTROLLER_ACCOUNT),
    within: &[],
    about: "What the mirror controller reads in every namespace, and what it writes. It may not touch Secrets, \
            ConfigMaps or workloads, and makes no namespace.",
    grants: &[
        Grant {
            group: CORE,
            resources: &["namespaces"],
            names: &[],
            verbs: &["list", "watch"],
            why: "Peers' services are put only into namespaces that are there: it must know which are. It never makes one.",
        },
        Grant {
            group: CORE,
            resources: &["pods"],
            names: &[],
            verbs: &["list", "watch"],
            why: "The service account of an exported Pod is its identity; nothing else of a Pod is kept.",
        },
        Grant {
            group: CORE,
            resources: &["services"],
            names: &[],
            verbs: &["create", "delete", "list", "patch", "watch"],
            why: "Reads which Services are exported (list, watch) and applies mirrors (patch; create, where there is none) \
                  and takes back those that it made (delete). It touches only what bears its mark; RBAC cannot say that.",
        },
        Grant {
            group: "discovery.k8s.io",
            resources: &["endpointslices"],
            names: &[],
            verbs: &["create", "delete", "list", "patch", "watch"],
            why: "Reads where exported Services' Pods are, and applies the endpoints of mirrors, in the same way.",
        },
        Grant {
            group: MULTICLUSTER,
            resources: &["serviceimports"],
            names: &[],
            verbs: &["create", "delete", "list", "patch", "watch"],
            why: "Applies what is imported, and sees whether somebody changed or deleted it.",
        },
        Grant {
            group: MULTICLUSTER,
            resources: &["serviceexports"],
            names: &[],
            verbs: &["list", "watch"],
            why: "Reads what users export; it never exports anything itself.",
        },
        Grant {
            group: HAWSER,
            resources: &["failoverpolicies"],
            names: &[],
            verbs: &["list", "watch"],
            why: "Reads in which order clusters serve a service.",
        },
        Grant {
            group: HAWSER,
            resources: &["links"],
            names: &[],
            verbs: &["list", "patch", "watch"],
            why: "Reads who the peers are. Patch is for one field: the finalizer that lets a deleted Link wait until what it \
                  made is gone.",
        },
        Grant {
            group: HAWSER,
            resources: &["links/status"],
            names: &[],
            verbs: &["patch"],
            why: "Says where each Link stands.",
        },
        Grant {
            group: MULTICLUSTER,
            resources: &["serviceexports/status", "serviceimports/status"],
            names: &[],
            verbs: &["patch"],
            why: "Says who imports an export and which conflicts there are, and which clusters an import comes from.",
        },
    ],
};

const MIRROR_CONTROLLER_LEASE: Role = Role {
    name: "hawser-mirror-controller",
    local: true,
    account: Some(MIRROR_CONTROLLER_ACCOUNT),
    within: &[],
    about: "How the mirror controller's replicas agree on which of them writes.",
    grants: &[
        Grant {
            group: "coordination.k8s.io",
            resources: &["leases"],
            names: &[],
            verbs: &["create"],
            why: "Makes the Lease the first time; a name cannot be asked for when something is created.",
        },
        Grant {
            group: "coordination.k8s.io",
            resources: &["leases"],
            names: &[labels::MIRROR_CONTROLLER_LEASE],
            verbs: &["get", "patch", "update"],
            why: "Holds, renews and hands over its own Lease, and no other.",
        },
    ],
};

const TRUST_ANCHOR: Role = Role {
    name: "hawser-trust-anchor",
    local: false,
    account: Some(TRUST_ANCHOR_ACCOUNT),
    within: &[],
    about: "What the trust anchor asks about a Pod that wants a certificate.",
    grants: &[
        Grant {
            group: "authentication.k8s.io",
            resources: &["tokenreviews"],
            names: &[],
            verbs: &["create"],
            why: "Asks whose a service account token is. Only this daemon may: whoever reviews tokens is shown them.",
        },
        Grant {
            group: CORE,
            resources: &["pods"],
            names: &[],
            verbs: &["get"],
            why: "Sees whether the Pod that a token is bound to is there, with that UID and that service account. One at a \
                  time, by name: it can neither list nor watch.",
        },
    ],
};

const TRUST_ANCHOR_BUNDLE: Role = Role {
    name: "hawser-trust-anchor",
    local: true,
    account: Some(TRUST_ANCHOR_ACCOUNT),
    within: &[],
    about: "Where the trust anchor publishes what Pods know it by.",
    grants: &[Grant {
        group: CORE,
        resources: &["configmaps"],
        names: &[BUNDLE_CONFIG_MAP],
        verbs: &["patch"],
        why: "Keeps this cluster's anchors, which are public, in the one ConfigMap that is made for them at installation: \
              it could not make one.",
    }],
};

const READER: Role = Role {
    name: "hawser-reader",
    local: false,
    account: None,
    within: &["view", "edit", "admin"],
    about: "For everybody who may look: what is linked, exported and imported, and how it stands. Nothing in these objects is \
            secret: a Link's bundle holds public keys.",
    grants: &[
        Grant {
            group: HAWSER,
            resources: &["failoverpolicies", "links"],
            names: &[],
            verbs: &["get", "list", "watch"],
            why: "kubectl get, describe and --watch.",
        },
        Grant {
            group: MULTICLUSTER,
            resources: &["serviceexports", "serviceimports"],
            names: &[],
            verbs: &["get", "list", "watch"],
            why: "The same. Nobody but the mirror controller needs to write ServiceImports.",
        },
    ],
};

const EXPORTER: Role = Role {
    name: "hawser-exporter",
    local: false,
    account: None,
    within: &["edit", "admin"],
    about: "For those who own services: in their namespaces they offer them to other clusters. Whoever may edit a Service can \
            export it by its label anyway, so that `edit` takes this in.",
    grants: &[
        Grant {
            group: MULTICLUSTER,
            resources: &["serviceexports"],
            names: &[],
            verbs: &["create", "delete", "patch", "update"],
            why: "Exports, changes and takes back. Not its status: that is the mirror controller's.",
        },
        Grant {
            group: HAWSER,
            resources: &["failoverpolicies"],
            names: &[],
            verbs: &["create", "delete", "patch", "update"],
            why: "Decides in which order clusters serve a service of the namespace.",
        },
    ],
};

const LINKER: Role = Role {
    name: "hawser-linker",
    local: false,
    account: None,
    within: &[],
    about: "For those who decide which clusters this one is tied to: a Link says whose certificates are trusted. No role of \
            Kubernetes takes it in; bind it by hand.",
    grants: &[Grant {
        group: HAWSER,
        resources: &["links"],
        names: &[],
        verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
        why: "Links, changes and unlinks, and sees how it stands.",
    }],
};

const LINKER_BUNDLE: Role = Role {
    name: "hawser-linker",
    local: true,
    account: None,
    within: &[],
    about: "The same people's, in Hawser's own namespace; bind it beside the other.",
    grants: &[Grant {
        group: CORE,
        resources: &["configmaps"],
        names: &[BUNDLE_CONFIG_MAP],
        verbs: &["get"],
        why: "What this cluster is called, and its anchors, which are public: `hawser link` says and compares them.",
    }],
};
