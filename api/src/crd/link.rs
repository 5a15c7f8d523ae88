//! `Link` as a custom resource: cluster-scoped, for a peer is a peer of the whole cluster.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::json;

use super::definition::{Column, Kind, NAME, keyed};
use super::rules::{Bound, Rule};
use super::schema;
use crate::objects::link::{GATEWAYS_MAX, LinkSpec, LinkStatus, NAMESPACES_MAX};

const LINK: Kind = Kind {
    kind: "Link",
    plural: "links",
    short: "hlink",
    scope: "Cluster",
    about: "This cluster's record of one peer: where its gateways are, whom to trust there, what to import.",
    columns: &[
        Column { name: "Region", kind: "string", path: ".spec.region", wide: false },
        Column { name: "Ready", kind: "string", path: ".status.conditions[?(@.type==\"Ready\")].status", wide: false },
        Column { name: "Reason", kind: "string", path: ".status.conditions[?(@.type==\"Ready\")].reason", wide: false },
        Column { name: "Offered", kind: "integer", path: ".status.offered", wide: false },
        Column { name: "Imported", kind: "integer", path: ".status.imported", wide: false },
        Column { name: "Age", kind: "date", path: ".metadata.creationTimestamp", wide: false },
        Column { name: "Trust domain", kind: "string", path: ".spec.trustDomain", wide: true },
        Column { name: "Transport", kind: "string", path: ".status.gateways[0].transport", wide: true },
    ],
};

/// The definition.
pub(super) fn definition() -> CustomResourceDefinition {
    let mut status = schema::of::<LinkStatus>();
    if let Some(conditions) = schema::at(&mut status, "conditions") {
        conditions.clear();
        conditions.extend(schema::conditions().as_object().cloned().unwrap_or_default());
    }
    let rules: Vec<Rule> = NAME.into_iter().chain(RULES).collect();
    LINK.define(schema::of::<LinkSpec>(), status, &bounds(), &rules)
}

/// Lists have ends, texts too: without them no API server takes a rule about them.
fn bounds() -> Vec<Bound> {
    vec![
        Bound { at: "spec.gateways", says: keyed("name", GATEWAYS_MAX) },
        Bound { at: "spec.gateways[].address", says: json!({ "maxLength": 64 }) },
        Bound { at: "spec.region", says: json!({ "maxLength": 253 }) },
        Bound { at: "spec.bundleEndpoint.url", says: json!({ "maxLength": 2048 }) },
        Bound { at: "spec.import.nameTemplate", says: json!({ "maxLength": 253 }) },
        Bound { at: "spec.import.namespaces", says: keyed("from", NAMESPACES_MAX) },
        Bound { at: "status.gateways", says: keyed("name", GATEWAYS_MAX) },
    ]
}

const BUNDLE_OUT: &str = "paste the peer's bundle into spec.bundle, or take the endpoint out";
const URL: &str = "write it like https://bundles.example.org/east";
const TEMPLATE: &str = "write it with {service}, and {cluster} if you like, such as {service}-{cluster}";
const WEB: &str = "take it out, or write profile: https_web";
const SPIFFE: &str = "take it out, or write profile: https_spiffe";

const RULES: [Rule; 18] = [
    Rule {
        at: "spec.region",
        field: "",
        holds: "self.matches('^[A-Za-z0-9_.-]*$') && size(self) <= 63",
        reason: "is not a plain word",
        remedy: "use letters, digits, '-', '_' and '.', at most 63",
    },
    Rule {
        at: "spec.gateways",
        field: "",
        holds: "size(self) > 0",
        reason: "is empty",
        remedy: "say where at least one of the peer's gateways listens",
    },
    Rule {
        at: "spec.gateways",
        field: "",
        holds: "self.all(a, self.exists_one(b, b.address == a.address))",
        reason: "is the same as in another item",
        remedy: "each may occur once",
    },
    Rule {
        at: "spec.gateways[].address",
        field: "",
        // An IPv4 address, or an IPv6 address in brackets (which has a colon), then a port.
        holds: r"self.matches('^([0-9.]+|\\[[0-9a-fA-F.]*:[0-9a-fA-F:.]*\\]):[0-9]{1,5}$') && isIP(self.substring(0, self.lastIndexOf(':')).replace('[', '').replace(']', '')) && int(self.substring(self.lastIndexOf(':') + 1)) <= 65535",
        reason: "invalid socket address syntax",
        remedy: "write it like 192.0.2.7:7443 or [2001:db8::7]:7443",
    },
    Rule {
        at: "spec.gateways[].address",
        field: "",
        holds: "!self.matches(':0+$')",
        reason: "has no port",
        remedy: "name the port: others must know where to connect",
    },
    Rule {
        at: "spec.gateways[].address",
        field: "",
        holds: r"!self.matches('^(0\\.0\\.0\\.0|\\[[0:]+(0\\.0\\.0\\.0)?\\]):')",
        reason: "is no address that can be dialled",
        remedy: "write the gateway's own address",
    },
    Rule {
        at: "spec",
        field: ".bundleUpdates",
        holds: "!has(self.bundleUpdates) || self.bundleUpdates != 'pinned' || has(self.bundle)",
        reason: "pins a bundle that is not there",
        remedy: "paste the peer's bundle into spec.bundle, or take spec.bundleUpdates out",
    },
    Rule {
        at: "spec",
        field: ".bundleEndpoint",
        holds: "!has(self.bundleEndpoint) || has(self.bundle)",
        reason: "has nothing to refresh: without spec.bundle the peer hangs under this cluster's own root",
        remedy: BUNDLE_OUT,
    },
    Rule {
        at: "spec",
        field: ".bundleEndpoint",
        holds: "!has(self.bundleEndpoint) || !has(self.bundleUpdates) || self.bundleUpdates != 'pinned'",
        reason: "would change a bundle that spec.bundleUpdates pins",
        remedy: "take out spec.bundleUpdates, or the endpoint",
    },
    Rule {
        at: "spec.bundleEndpoint.url",
        field: "",
        holds: "self.startsWith('https://')",
        reason: "is not an https URL",
        remedy: URL,
    },
    Rule {
        at: "spec.bundleEndpoint.url",
        field: "",
        holds: "!self.matches('^https://([/?#:]|$)')",
        reason: "names no host",
        remedy: URL,
    },
    Rule {
        at: "spec.bundleEndpoint.url",
        field: "",
        holds: "!self.matches('^https://[^/?#]*@')",
        reason: "has user information",
        remedy: "leave out what is before the '@'",
    },
    Rule {
        at: "spec.bundleEndpoint.url",
        field: "",
        holds: "self.matches('^[!-~]*$')",
        reason: "is not plain ASCII without spaces, at most 2048 bytes",
        remedy: URL,
    },
    Rule {
        at: "spec.bundleEndpoint",
        field: ".endpointSpiffeId",
        holds: "self.profile != 'https_spiffe' || has(self.endpointSpiffeId)",
        reason: "is missing",
        remedy: "https_spiffe needs the endpoint's SPIFFE ID",
    },
    Rule {
        at: "spec.bundleEndpoint",
        field: ".endpointSpiffeId",
        holds: "self.profile == 'https_spiffe' || !has(self.endpointSpiffeId)",
        reason: "is not looked at by https_web",
        remedy: SPIFFE,
    },
    Rule {
        at: "spec.bundleEndpoint",
        field: ".caFile",
        holds: "self.profile != 'https_spiffe' || !has(self.caFile)",
        reason: "is not looked at by https_spiffe",
        remedy: WEB,
    },
    Rule {
        at: "spec.import.nameTemplate",
        field: "",
        holds: "self.contains('{service}')",
        reason: "does not contain {service}",
        remedy: TEMPLATE,
    },
    // What a service called `x` would be called here if the peer were called `x`: with a longer name of the peer, whoever
    // reads the Link says it.
    Rule {
        at: "spec.import.nameTemplate",
        field: "",
        holds: "self.replace('{service}', 'x').replace('{cluster}', 'x').matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$')",
        reason: "gives names like none that a Service may have",
        remedy: TEMPLATE,
    },
];
