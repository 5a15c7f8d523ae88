//! The key of QUIC's stateless resets (RFC 9000 section 10.3), kept over restarts: diallers of a gateway that was killed
//! then learn within a round trip that their connections are gone, instead of waiting for silence.

use std::fs;
use std::path::Path;

use hawser_runtime::file;

const LENGTH: usize = 32;

/// The key beside this file; made if there is none. `None` if it can be neither read nor kept: resets then help only
/// while this process lives.
pub(crate) fn key(beside: &Path) -> Option<[u8; LENGTH]> {
    let path = beside.with_file_name("reset-key");
    if let Some(key) = fs::read(&path).ok().and_then(|bytes| bytes.try_into().ok()) {
        return Some(key);
    }
    let key: [u8; LENGTH] = rand::random();
    match file::replace(&path, &key) {
        Ok(()) => Some(key),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the reset key cannot be kept");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_stays_the_same_and_a_broken_one_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let tables = directory.path().join("tables");
        let first = key(&tables).unwrap();
        assert_eq!(key(&tables), Some(first));
        fs::write(directory.path().join("reset-key"), b"short").unwrap();
        let second = key(&tables).unwrap();
        assert_ne!(second, first);
        assert_eq!(key(&tables), Some(second));
    }

    #[test]
    fn without_a_place_to_keep_it_there_is_none() {
        assert_eq!(key(Path::new("/proc/none/tables")), None);
    }
}
