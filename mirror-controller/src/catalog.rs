//! The catalog: what one cluster exports to another, as a gRPC stream inside a sealed session.
//!
//! ```text
//! exporter                                         importer
//! plan ─▶ listen (by verified peer) ─▶ grpc ═══▶ grpc ─ limits ─▶ accept (pure) ─▶ world
//! ```
//!
//! tonic would want to own the connection; here it is a sealed session's HTTP/2, so the few bytes of gRPC framing are
//! in [`grpc`]. Everything that comes from a peer is hostile until [`accept`] has looked at it.

pub mod accept;
pub mod grpc;
pub mod limits;
pub mod listen;
pub mod ports;
pub mod standard;

use std::time::Duration;

/// An update without changes is sent this often. A quarter of the lease: two may be lost and one late.
pub const HEARTBEAT: Duration = Duration::from_millis(500);
/// How long what was said may be believed. With it a dead cluster is withdrawn within 3 s.
pub const LEASE: Duration = Duration::from_secs(2);
/// The path of the method that tells (gRPC over HTTP/2).
pub const WATCH_PATH: &str = "/hawser.catalog.v1.Catalog/Watch";
/// The path of the method that takes back what was made of it.
pub const ACKNOWLEDGE_PATH: &str = "/hawser.catalog.v1.Catalog/Acknowledge";
