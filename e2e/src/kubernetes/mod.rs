//! Real Kubernetes control planes on loopback, and what is done to them.
//!
//! ```text
//!  etcd ◀── kube-apiserver ◀── kube-controller-manager      ControlPlane: one cluster's, each a process (part)
//!                 ▲    ▲
//!                 │    └── faults ◀── whoever is under test: delays, error storms, cut watches
//!         kubectl, coredns, objects (nodes, ready pods, tokens)
//! ```
//!
//! There are no nodes and no kubelet: a pod is ready because a test says so ([`objects::ReadyPod`]), and a workload is
//! a server on loopback that a test runs itself. Everything else is as in a real cluster: etcd, validation and CEL,
//! server-side apply, RBAC, tokens, EndpointSlices, garbage collection, watches.

pub mod coredns;
mod credentials;
pub mod faults;
pub mod objects;
pub mod part;
mod plane;
mod program;
mod scratch;
pub mod site;

pub use faults::Faults;
pub use part::Part;
pub use plane::{ControlPlane, Saved};
pub use site::Site;
