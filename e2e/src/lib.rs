//! Whole fabrics of real processes, and what is done to them.
//!
//! ```text
//!  yaml ──▶ fabric ──▶ hawser up DIR ──▶ a child process per daemon
//!             │                              ▲ kill -9, SIGSTOP (daemon)
//!  servers ◀──┴── proxies ◀── client ◀── load (HTTP at a bounded rate), transfer (long TCP, checked by hash)
//!  kubernetes ──▶ etcd, kube-apiserver, controllers of each cluster
//!  clock: a cluster's own time of day
//!  relay: a gateway's address that can drop UDP         place: loopback addresses that no other fabric has
//! ```
//!
//! A test that lacks what it needs fails with the command that provides it.

pub mod binary;
pub mod client;
pub mod clock;
pub mod daemon;
pub mod fabric;
pub mod intruder;
pub mod kubernetes;
pub mod load;
pub mod place;
pub mod process;
pub mod relay;
pub mod servers;
pub mod shop;
pub mod spire;
pub mod transfer;
mod trust;
pub mod wait;
pub mod yaml;

pub use daemon::Daemon;
pub use fabric::{Fabric, Plan};
pub use wait::{eventually, within};
