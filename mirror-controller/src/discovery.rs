//! Discovery: what this cluster's own proxies and gateways are to do, over a Unix socket.

pub mod listen;
pub mod table;
