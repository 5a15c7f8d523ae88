//! The last known tables on disk: what a process serves when it starts while the mirror controller is down.
//!
//! `HAWSERT1`, eight bytes of checksum (FNV-1a over the rest, big endian), then one prost-encoded snapshot `Update`.
//! The checksum finds torn and mixed-up files, not forgers: who can write here can read the keys as well.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hawser_api::proto::discovery::Update;
use prost::Message;
use tokio::sync::watch;

use crate::file;
use crate::subscribe::{Table, merge};

const MAGIC: &[u8; 8] = b"HAWSERT1";
/// Tables that change faster than this are written together: a disk is slower than a rollout.
const WRITE_PAUSE: Duration = Duration::from_secs(1);

/// The tables of an earlier run; `None` where there are none, or none that can be trusted.
pub(crate) fn load(path: &Path) -> Option<Table> {
    let content = match std::fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the last known tables cannot be read");
            return None;
        }
    };
    let table = decode(&content);
    if table.is_none() {
        tracing::warn!(path = %path.display(), "the last known tables are damaged and were not used");
    }
    table
}

/// Writes every change since `tables` was subscribed, at most once a second, until dropped. Changes count from this call, not from the first poll.
pub(crate) fn keep(path: PathBuf, mut tables: watch::Receiver<Arc<Table>>) -> impl Future<Output = ()> {
    // What was there before this call came from the file itself.
    tables.mark_unchanged();
    async move {
        while tables.changed().await.is_ok() {
            let table = tables.borrow_and_update().clone();
            let target = path.clone();
            let written = tokio::task::spawn_blocking(move || file::replace(&target, &encode(&table))).await;
            if let Ok(Err(error)) = written {
                tracing::warn!(%error, path = %path.display(), "the last known tables could not be written");
            }
            tokio::time::sleep(WRITE_PAUSE).await;
        }
        // No sender: the daemon ends.
        std::future::pending().await
    }
}

pub(crate) fn encode(table: &Table) -> Vec<u8> {
    let changed = table.resources.values().map(|resource| (**resource).clone()).collect();
    let body = Update { version: table.version, snapshot: true, changed, removed: Vec::new() }.encode_to_vec();
    [MAGIC.as_slice(), &checksum(&body).to_be_bytes(), &body].concat()
}

pub(crate) fn decode(content: &[u8]) -> Option<Table> {
    let rest = content.strip_prefix(MAGIC.as_slice())?;
    let (sum, body) = rest.split_first_chunk::<8>()?;
    if u64::from_be_bytes(*sum) != checksum(body) {
        return None;
    }
    let update = Update::decode(body).ok().filter(|update| update.snapshot)?;
    let table = merge(None, &Table::default(), update).ok()?;
    Some(Table { version: 0, ..table })
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use hawser_api::proto::discovery::{Peer, Resource, resource};
    use proptest::prelude::*;

    use super::*;

    fn table() -> Table {
        let peer = |name: &str| Resource {
            key: format!("peer/{name}"),
            changed_at_ms: 7,
            kind: Some(resource::Kind::Peer(Peer { cluster: name.to_owned(), ..Peer::default() })),
        };
        let update =
            Update { version: 9, snapshot: true, changed: vec![peer("east"), peer("north")], removed: Vec::new() };
        merge(None, &Table::default(), update).unwrap()
    }

    #[test]
    fn what_was_kept_is_loaded_as_version_zero() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tables");
        assert!(load(&path).is_none());
        file::replace(&path, &encode(&table())).unwrap();
        let loaded = load(&path).unwrap();
        assert_eq!(loaded.version, 0);
        assert_eq!(loaded.resources, table().resources);
    }

    #[test]
    fn a_torn_or_changed_file_is_not_used() {
        let whole = encode(&table());
        for end in 0..whole.len() {
            assert!(decode(&whole[..end]).is_none(), "cut at {end}");
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x40;
            assert!(decode(&flipped).is_none(), "flipped at {at}");
        }
    }

    #[tokio::test]
    async fn every_change_reaches_the_disk_but_not_more_than_once_a_second() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tables");
        let tables = watch::Sender::new(Arc::new(Table::default()));
        let keep = keep(path.clone(), tables.subscribe());
        let drive = async {
            tables.send_replace(Arc::new(table()));
            while load(&path).is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let limit = tokio::time::timeout(Duration::from_secs(30), drive);
        tokio::select! { () = keep => unreachable!(), done = limit => done.unwrap() }
        assert_eq!(load(&path).unwrap().resources.len(), 2);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(content in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode(&content);
            let _ = decode(&[MAGIC.as_slice(), &checksum(&content).to_be_bytes(), &content].concat());
        }
    }
}
