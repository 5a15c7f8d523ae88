//! Labels and annotations, as users write them and as we put them on what we make.

/// Label on a Service: `"true"` exports it to every linked peer, or to those that [`EXPORT_TO`] names.
pub const EXPORT: &str = "hawser.dev/export";
/// Annotation on an exported Service or ServiceExport: comma-separated names of the clusters that may import it.
pub const EXPORT_TO: &str = "hawser.dev/export-to";
/// Label on a Service: `"true"` makes services of the same name and namespace in several clusters one.
pub const FEDERATED: &str = "hawser.dev/federated";
/// Annotation on a Service: `auto` (default), `shared` or `dedicated` sealed sessions.
pub const SESSION: &str = "hawser.dev/session";
/// Label on every object that we make: names the cluster that it mirrors.
pub const MIRROR_OF_CLUSTER: &str = "hawser.dev/mirror-of-cluster";
/// Annotation on a mirror: the service as the exporting cluster names it, `namespace/name`.
pub const MIRROR_OF_SERVICE: &str = "hawser.dev/mirror-of-service";
/// Label on every object that we make (Kubernetes recommended labels).
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`].
pub const MANAGED_BY_HAWSER: &str = "hawser";
/// Annotation on every object that we make in an API server: the UID of the Link that it was made for, and its own name.
pub const OWNER: &str = "hawser.dev/owner";
/// Annotation on every object that we make in an API server: a digest of what was applied, so that what is not wanted of it
/// any more is noticed.
pub const APPLIED: &str = "hawser.dev/applied";
/// Finalizer on a Link: it stays until everything that was made for it is gone.
pub const UNLINK: &str = "hawser.dev/unlink";
/// `appProtocol` of a port whose bytes must not be looked at (server speaks first, or privacy).
pub const APP_PROTOCOL_OPAQUE: &str = "hawser.dev/opaque";
/// The standard label that ties an EndpointSlice to its Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// MCS: ties an EndpointSlice to its ServiceImport.
pub const MCS_SERVICE_NAME: &str = "multicluster.kubernetes.io/service-name";
/// MCS: the cluster that an EndpointSlice comes from.
pub const MCS_SOURCE_CLUSTER: &str = "multicluster.kubernetes.io/source-cluster";
/// The standard label that says which controller an EndpointSlice belongs to: Kubernetes' own leaves others' alone.
pub const SLICE_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// The value of [`SLICE_MANAGED_BY`].
pub const SLICE_MANAGED_BY_HAWSER: &str = "mirror-controller.hawser.dev";

/// The namespace of Hawser's own services.
pub const SYSTEM_NAMESPACE: &str = "hawser-system";
/// The catalog's service name in [`SYSTEM_NAMESPACE`].
pub const CATALOG_SERVICE: &str = "catalog";
/// The catalog's service port.
pub const CATALOG_PORT: u16 = 443;

/// Where the proxy beside a Pod accepts sealed sessions, unless the mirror controller is configured otherwise: the number
/// by which meshes' inbound proxies are customarily found, in no range that Linux takes ephemeral ports from.
pub const INBOUND_PORT: u16 = 4143;

/// A service in [`SYSTEM_NAMESPACE`] that every gateway answers by itself, to any linked peer: `Opened`, then the end.
pub const PING_SERVICE: &str = "ping";
/// Service account, in [`SYSTEM_NAMESPACE`], of every gateway of a cluster.
pub const GATEWAY_ACCOUNT: &str = "gateway";
/// Service account, in [`SYSTEM_NAMESPACE`], of a cluster's mirror controller.
pub const MIRROR_CONTROLLER_ACCOUNT: &str = "mirror-controller";
/// Service account, in [`SYSTEM_NAMESPACE`], of a cluster's trust anchor; it issues its own certificate.
pub const TRUST_ANCHOR_ACCOUNT: &str = "trust-anchor";
/// Lease, in [`SYSTEM_NAMESPACE`], by which a mirror controller's replicas agree on the one that writes.
pub const MIRROR_CONTROLLER_LEASE: &str = "hawser-mirror-controller";
/// ConfigMap, in [`SYSTEM_NAMESPACE`], in which a cluster's trust anchor publishes the bundle that it is known by.
pub const BUNDLE_CONFIG_MAP: &str = "hawser-bundle";

/// Pseudo-header of every stream inside a shared sealed session: the service port that it wants,
/// `namespace/name:port`. Set by the outbound proxy, checked and removed by the inbound proxy.
pub const HEADER_TARGET: &str = "hawser-target";
/// What runs inside a CONNECT stream of a shared sealed session: `tcp` (default) or `http/1.1` (an upgrade).
pub const HEADER_CARRIES: &str = "hawser-carries";
/// The HTTP version in which the application spoke, so that it comes out as it went in: `1.0`, `1.1` or `2`.
pub const HEADER_VERSION: &str = "hawser-version";
/// Header that the inbound proxy sets to the caller's verified SPIFFE ID; stripped from whatever a caller sends.
pub const HEADER_CLIENT_ID: &str = "x-hawser-client-id";
/// Header on a response that Hawser itself made: the refusal's stable code.
pub const HEADER_REFUSAL: &str = "x-hawser-refusal";
/// Headers by which meshes tell identities; a caller's own copies are removed at both proxies.
pub const IDENTITY_HEADERS: &[&str] = &[
    HEADER_CLIENT_ID,
    "x-hawser-server-id",
    "x-forwarded-client-cert",
    "l5d-client-id",
    "l5d-remote-ip",
    "l5d-server-id",
    "x-spiffe-id",
];
