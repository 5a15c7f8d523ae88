//! The files of the log: the one that is written, and the full ones by number.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::head::HEAD;

/// The file that is written.
pub(super) const LOG: &str = "audit.log";
/// The file that will be written, before the full one has gone.
pub(super) const NEXT: &str = "audit.next";

/// Of a full file; they count from 1.
pub(super) fn name(number: u64) -> String {
    format!("audit-{number:06}.log")
}

fn number(name: &str) -> Option<u64> {
    name.strip_prefix("audit-")?.strip_suffix(".log")?.parse().ok()
}

/// The numbers of the full files that are there, in order.
pub(super) fn full(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for file in fs::read_dir(directory)? {
        numbers.extend(file?.file_name().to_str().and_then(number));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// Moves all files into a directory of their own. The head goes last: who dies half-way finds a log that is broken
/// still, and goes on.
pub(super) fn set_aside(directory: &Path, at_ms: i64) -> io::Result<PathBuf> {
    let aside = directory.join(format!("audit.broken-{at_ms}"));
    match fs::create_dir(&aside) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let full = full(directory)?.into_iter().map(name);
    for name in [LOG.to_owned()].into_iter().chain(full).chain([HEAD.to_owned()]) {
        match fs::rename(directory.join(&name), aside.join(&name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    File::open(directory)?.sync_all()?;
    Ok(aside)
}
