//! Keeps a process's identity fresh: asks this cluster's trust anchor for a leaf over its Unix socket, puts it into
//! [`Credentials`], renews at half life with a new key, and keeps the last one on disk so that a restart needs nobody.

use std::path::PathBuf;

use crate::Clock;
use crate::tls::Credentials;

/// Where an identity comes from and where it is kept.
#[derive(Debug, Clone)]
pub struct IdentitySource {
    /// The trust anchor's Unix socket.
    pub socket: PathBuf,
    /// File with a one-time join token, read at each try that needs one; may be absent.
    pub join_token: PathBuf,
    /// Directory for key, chain and bundle (made 0700; files 0600, written and renamed).
    pub store: PathBuf,
}

/// Runs until dropped: loads what is on disk, then asks and renews. Errors are logged and tried again with backoff.
pub async fn keep(_credentials: Credentials, _source: IdentitySource, _clock: Clock) {
    unimplemented!()
}
