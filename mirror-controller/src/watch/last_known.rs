//! The last known catalogs on disk: a restart with every peer down still knows the names.

use std::io;
use std::path::{Path, PathBuf};

use hawser_api::proto::catalog::Update;
use hawser_api::{ClusterName, TrustDomain};
use prost::Message;

use crate::apply::files::replace;
use crate::catalog::{accept, limits};
use crate::world::Catalog;

fn path(directory: &Path, peer: &ClusterName) -> PathBuf {
    directory.join(format!("{peer}.catalog"))
}

/// What a former run knew of this peer, held to the same rules as what comes from the peer itself.
pub fn load(directory: &Path, peer: &ClusterName, domain: &TrustDomain) -> Option<Catalog> {
    let bytes = std::fs::read(path(directory, peer)).ok()?;
    limits::check_update(&bytes).ok()?;
    let update = Update::decode(bytes.as_slice()).ok()?;
    Some(accept::update(&Catalog::default(), &update, domain))
}

/// Keeps what is known of this peer.
pub fn save(directory: &Path, peer: &ClusterName, catalog: &Catalog) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    replace(&path(directory, peer), &accept::snapshot(catalog).encode_to_vec())
}

/// Forgets a peer that is not linked any more.
pub fn forget(directory: &Path, peer: &ClusterName) {
    let _ = std::fs::remove_file(path(directory, peer));
}
