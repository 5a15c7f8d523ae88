//! Reads the log, file after file and line after line, and says whether it is whole.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use hawser_tunnel::kept::Kept;

use super::Line;
use super::head::{HEAD, Head};
use super::segments::{self, LOG};
use crate::hex;

/// Longest line that is read; ours are under 10 KiB.
const LINE_MAX: u64 = 64 * 1024;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// Number of the last line that is in the chain; they count from 1.
    pub entries: u64,
    /// SHA-256 of that line; empty before the first.
    pub last: String,
    /// Where it is broken, if it is.
    pub broken: Option<String>,
    /// How many files are full.
    pub full: u64,
    /// Full files that are gone and were not to be read.
    pub(super) missing: Option<String>,
    /// Bytes up to the end of the last whole line of the file that is written.
    pub(super) length: u64,
}

/// Reads the log in a trust anchor's store, all of it, and shows each line in turn.
pub fn read(store: &Path, see: impl FnMut(&Line)) -> io::Result<Reading> {
    if !store.join(LOG).exists() && segments::full(store)?.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("{} has no {LOG}", store.display())));
    }
    read_from(&Kept::open(store)?, 1, see)
}

/// Reads what may have lines of this time or later, and the newest full file in any case.
pub(super) fn read_since(kept: &Kept, since_ms: i64, see: impl FnMut(&Line)) -> io::Result<Reading> {
    let mut from = 1;
    for number in segments::full(kept.directory())?.into_iter().rev() {
        from = number;
        if first(&kept.directory().join(segments::name(number)))?.is_none_or(|line| line.time_ms < since_ms) {
            break;
        }
    }
    let mut reading = read_from(kept, from, see)?;
    let there = segments::full(kept.directory())?;
    let missing: Vec<_> = (1..from).filter(|number| !there.contains(number)).map(segments::name).collect();
    if !missing.is_empty() {
        reading.missing = Some(format!("files of the audit log are missing: {}", missing.join(" ")));
    }
    Ok(reading)
}

fn first(path: &Path) -> io::Result<Option<Line>> {
    let mut text = Vec::new();
    BufReader::new(File::open(path)?.take(LINE_MAX)).read_until(b'\n', &mut text)?;
    Ok(serde_json::from_slice(&text).ok())
}

fn read_from(kept: &Kept, from: u64, see: impl FnMut(&Line)) -> io::Result<Reading> {
    let (directory, head) = (kept.directory(), Head::read(kept)?);
    let there = segments::full(directory)?.last().copied().unwrap_or_default();
    let full = head.as_ref().map_or(there, |head| head.full.max(there));
    let hash_at_head = head.as_ref().filter(|head| head.seq == 0).map(|_| String::new());
    let reading = Reading { full, ..Reading::default() };
    let mut chain = Chain { reading, head, hash_at_head, begun: from <= 1, see };
    for number in from..=full {
        let name = segments::name(number);
        let rest = match File::open(directory.join(&name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Some(format!("{name} is missing")),
            file => chain.file(&file?)?.then(|| format!("{name} ends within a line")),
        };
        if chain.reading.broken.is_none() {
            chain.reading.broken = rest;
        }
        if chain.reading.broken.is_some() {
            return Ok(chain.reading);
        }
    }
    chain.reading.length = 0;
    match File::open(directory.join(LOG)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        // Its end may be what a crash left of a line; `length` leaves it out.
        file => drop(chain.file(&file?)?),
    }
    Ok(chain.end())
}

/// What is read so far.
struct Chain<S> {
    reading: Reading,
    head: Option<Head>,
    /// The hash of the line that the head speaks of, once it has been read.
    hash_at_head: Option<String>,
    /// The first line that is read must follow the one before it; else it is taken as it is, and the head vouches for it.
    begun: bool,
    see: S,
}

impl<S: FnMut(&Line)> Chain<S> {
    /// Reads a file; whether there is something behind its last whole line.
    fn file(&mut self, file: &File) -> io::Result<bool> {
        let mut lines = BufReader::new(file);
        self.reading.length = 0;
        loop {
            let mut text = Vec::new();
            (&mut lines).take(LINE_MAX).read_until(b'\n', &mut text)?;
            let Some(line) = text.strip_suffix(b"\n") else { return Ok(!text.is_empty()) };
            if let Err(broken) = self.take(line) {
                self.reading.broken = Some(broken);
                return Ok(false);
            }
            self.reading.length += text.len() as u64;
            if self.head.as_ref().is_some_and(|head| head.seq == self.reading.entries) {
                self.hash_at_head = Some(self.reading.last.clone());
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        let at = self.reading.entries + 1;
        let line: Line = serde_json::from_slice(bytes).map_err(|e| format!("line {at}: {e}"))?;
        if !self.begun {
            self.begun = true;
            (self.reading.entries, self.reading.last) = (line.seq.saturating_sub(1), line.prev.clone());
        }
        let at = self.reading.entries + 1;
        if line.seq != at {
            return Err(format!("line {at} says that it is line {}", line.seq));
        }
        if line.prev != self.reading.last {
            return Err(format!("line {at} does not follow line {}", at - 1));
        }
        (self.see)(&line);
        self.reading.last = hex::sha256(bytes);
        self.reading.entries = at;
        Ok(())
    }

    fn end(mut self) -> Reading {
        let entries = self.reading.entries;
        self.reading.broken = self.reading.broken.or_else(|| match self.head {
            None if entries > 0 => Some(format!("{HEAD} is missing or was changed")),
            Some(head) if head.seq > entries => Some(format!("it has {entries} lines, and {} were written", head.seq)),
            Some(head) if self.hash_at_head.as_ref() != Some(&head.hash) => {
                Some(format!("line {} is not the one that was written", head.seq))
            }
            _ => None,
        });
        self.reading
    }
}
