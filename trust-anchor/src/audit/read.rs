//! Reads the log and says whether it is whole.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use hawser_tunnel::kept::Kept;
use serde_json::Value;

use super::{FIRST, HEAD, HEAD_SIZE, LOG, Line};
use crate::hex;

/// Longest line that is read; ours are under 10 KiB.
const LINE_MAX: usize = 64 * 1024;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// Lines that are in the chain.
    pub entries: u64,
    /// SHA-256 of the last of them.
    pub last: String,
    /// Where it is broken, if it is.
    pub broken: Option<String>,
    /// Bytes up to the end of the last whole line.
    pub(super) length: u64,
}

/// Reads the log in a trust anchor's store, and shows each line in turn.
pub fn read(store: &Path, see: impl FnMut(&Line)) -> io::Result<Reading> {
    if !store.join(LOG).exists() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{} has no {LOG}", store.display())));
    }
    read_with(&Kept::open(store)?, see)
}

pub(super) fn read_with(kept: &Kept, mut see: impl FnMut(&Line)) -> io::Result<Reading> {
    let head = head(kept)?;
    let path = kept.directory().join(LOG);
    let mut reading = Reading { last: FIRST.to_owned(), ..Reading::default() };
    let file = match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        file => Some(file?),
    };
    let mut hash_at_head = (head.as_ref().is_some_and(|head| head.0 == 0)).then(|| FIRST.to_owned());
    let mut lines = file.map(BufReader::new);
    while let Some(lines) = &mut lines {
        let mut text = Vec::new();
        io::Read::take(&mut *lines, LINE_MAX as u64).read_until(b'\n', &mut text)?;
        if text.last() != Some(&b'\n') {
            // The end, or what a crash left of a line; `length` leaves it out.
            break;
        }
        if let Err(broken) = take(&text, &mut reading, &mut see) {
            reading.broken = Some(broken);
            return Ok(reading);
        }
        if head.as_ref().is_some_and(|head| head.0 == reading.entries) {
            hash_at_head = Some(reading.last.clone());
        }
    }
    reading.broken = match head {
        None if reading.entries > 0 => Some(format!("{HEAD} is missing or was changed")),
        Some((seq, _)) if seq > reading.entries => {
            Some(format!("it has {} lines, and {seq} were written", reading.entries))
        }
        Some((seq, hash)) if hash_at_head.as_ref() != Some(&hash) => {
            Some(format!("line {seq} is not the one that was written"))
        }
        _ => None,
    };
    Ok(reading)
}

fn take(text: &[u8], reading: &mut Reading, see: &mut impl FnMut(&Line)) -> Result<(), String> {
    let at = reading.entries + 1;
    let bytes = text.strip_suffix(b"\n").unwrap_or(text);
    let line: Line = serde_json::from_slice(bytes).map_err(|e| format!("line {at}: {e}"))?;
    if line.seq != at {
        return Err(format!("line {at} says that it is line {}", line.seq));
    }
    if line.prev != reading.last {
        return Err(format!("line {at} does not follow line {}", at - 1));
    }
    see(&line);
    reading.last = hex::sha256(bytes);
    reading.entries = at;
    reading.length += text.len() as u64;
    Ok(())
}

/// Number and hash of the last line that is known to have been written.
fn head(kept: &Kept) -> io::Result<Option<(u64, String)>> {
    let content = match fs::read(kept.directory().join(HEAD)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        content => content?,
    };
    let heads = content.chunks(HEAD_SIZE).filter_map(|slot| {
        let value: Value = serde_json::from_slice(slot).ok()?;
        let head = value.get("head")?;
        let genuine = value.get("mac")?.as_str()? == kept.tag(HEAD, head.to_string().as_bytes());
        let found = (head.get("seq")?.as_u64()?, head.get("hash")?.as_str()?.to_owned());
        genuine.then_some(found)
    });
    Ok(heads.max())
}
