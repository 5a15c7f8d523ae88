//! What is known to have been written: number and hash of the last line, and how many files are full, under the store's
//! key.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use hawser_tunnel::kept::Kept;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(super) const HEAD: &str = "audit.head";
/// Two copies of the head, written in turn: a torn one leaves the other.
pub(super) const SIZE: usize = 512;

/// One copy.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Head {
    /// Number of the last line.
    pub(super) seq: u64,
    /// Its hash.
    pub(super) hash: String,
    /// How many files are full.
    #[serde(default)]
    pub(super) full: u64,
}

impl Head {
    /// The newest of the copies that are genuine.
    pub(super) fn read(kept: &Kept) -> io::Result<Option<Self>> {
        let content = match fs::read(kept.directory().join(HEAD)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            content => content?,
        };
        let heads = content.chunks(SIZE).filter_map(|slot| {
            let value: Value = serde_json::from_slice(slot).ok()?;
            let head = value.get("head")?;
            let genuine = value.get("mac")?.as_str()? == kept.tag(HEAD, head.to_string().as_bytes());
            genuine.then(|| serde_json::from_value(head.clone()).ok()).flatten()
        });
        Ok(heads.max())
    }

    /// Writes one of the copies; on disk when that is synced.
    pub(super) fn write(&self, kept: &Kept, file: &File) -> io::Result<()> {
        let content = json!(self);
        let mac = kept.tag(HEAD, content.to_string().as_bytes());
        let mut text = json!({ "head": content, "mac": mac }).to_string();
        text.extend(std::iter::repeat_n(' ', SIZE.saturating_sub(text.len() + 1)));
        text.push('\n');
        let at = (self.seq % 2) * SIZE as u64;
        file.write_all_at(text.as_bytes(), at)
    }
}
