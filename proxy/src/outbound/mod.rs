//! What applications send: detected, routed, balanced, dialled and carried.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use crate::context::Context;
use crate::table::Destination;

/// Carries one connection of an application to a destination's port, until it ends.
pub async fn carry(
    _context: Arc<Context>,
    _destination: Arc<Destination>,
    _port: u16,
    _app: TcpStream,
    _client: SocketAddr,
) {
}
