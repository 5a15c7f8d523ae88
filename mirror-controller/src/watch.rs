//! What fills the world: one file a source. Nothing here decides.

pub mod catalog;
pub mod endpoint;
pub mod fabric;
pub mod files;
pub mod gateways;
pub mod last_known;
pub mod links;
pub mod own;
pub mod record;

use hawser_tunnel::tls::Credentials;

/// Waits until this process is somebody. Before that nothing can be dialled, and what cannot be dialled for want of a
/// certificate of our own says nothing about a peer.
async fn somebody(credentials: &Credentials) {
    let mut generation = credentials.generation();
    while credentials.identity().is_none() && generation.changed().await.is_ok() {}
}
