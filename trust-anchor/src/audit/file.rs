//! The one writer: lines into the file, the file's end, and the next file.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use hawser_runtime::clock;
use hawser_tunnel::kept::Kept;
use tokio::time::Instant;

use super::head::{HEAD, Head};
use super::read::Reading;
use super::segments::{LOG, NEXT, name};
use super::{Entry, Line, Outcome};
use crate::hex;

/// An entry, and what is to happen when it is written or cannot be.
pub(super) struct Waiting {
    pub(super) entry: Entry,
    pub(super) time_ms: i64,
    pub(super) then: Box<dyn FnOnce(Outcome) + Send>,
}

/// The file that is written, and its head.
pub(super) struct Log {
    kept: Kept,
    log: File,
    head_file: File,
    head: Head,
    /// When the head that was written has to be on disk, if it is not.
    head_due: Option<Instant>,
    length: u64,
    segment: u64,
}

/// The head may be on disk this much later than the lines that it knows: a sync of its own for each would be every second
/// one, and a process that is killed loses nothing that was written. After a loss of power it may know less than the log.
const HEAD_LAG: Duration = Duration::from_secs(1);

fn open(directory: &Path, name: &str) -> io::Result<File> {
    let path = directory.join(name);
    OpenOptions::new().create(true).read(true).write(true).truncate(false).mode(0o600).open(path)
}

impl Log {
    /// Goes on behind what was read; what a crash left of a line, that nobody was answered for, is cut off.
    pub(super) fn open(kept: &Kept, reading: &Reading, segment: u64) -> io::Result<Self> {
        let directory = kept.directory();
        let log = open(directory, LOG)?;
        log.set_len(reading.length)?;
        let head_file = open(directory, HEAD)?;
        File::open(directory)?.sync_all()?;
        let head = Head { seq: reading.entries, hash: reading.last.clone(), full: reading.full };
        // It may be behind, by one batch after a crash and by HEAD_LAG after a loss of power.
        head.write(kept, &head_file)?;
        head_file.sync_data()?;
        Ok(Self { kept: kept.clone(), log, head_file, head, head_due: None, length: reading.length, segment })
    }

    /// Writes all that wait, and tells each what became of it.
    pub(super) fn write(&mut self, batch: Vec<Waiting>) {
        let (mut text, mut next) = (String::new(), self.head.clone());
        let mut answers = Vec::new();
        for waiting in batch {
            let (seq, prev) = (next.seq + 1, next.hash.clone());
            let line = Line { seq, time_ms: waiting.time_ms, entry: waiting.entry, prev };
            let outcome = match serde_json::to_string(&line) {
                Ok(line) => {
                    next = Head { seq, hash: hex::sha256(line.as_bytes()), ..next };
                    text.push_str(&line);
                    text.push('\n');
                    Ok(seq)
                }
                Err(error) => Err(error.to_string()),
            };
            answers.push((waiting.then, outcome));
        }
        let written = self.commit(&text, next);
        for (then, outcome) in answers {
            then(outcome.and_then(|seq| written.as_ref().map(|()| seq).map_err(ToString::to_string)));
        }
    }

    fn commit(&mut self, text: &str, mut next: Head) -> io::Result<()> {
        self.kept.allow()?;
        if self.length >= self.segment {
            self.turn()?;
            next.full = self.head.full;
        }
        let length = self.length + text.len() as u64;
        let appended = self.log.write_all_at(text.as_bytes(), self.length).and_then(|()| {
            self.kept.allow()?;
            self.log.sync_data()
        });
        if let Err(error) = appended {
            // Half of it would break the chain for what comes next.
            let _ = self.log.set_len(self.length);
            return Err(error);
        }
        (self.length, self.head) = (length, next);
        self.kept.allow()?;
        self.head.write(&self.kept, &self.head_file)?;
        self.head_due.get_or_insert_with(|| clock::monotonic() + HEAD_LAG);
        Ok(())
    }

    /// How long nothing need be done for the head; `None`: not until there is another line.
    pub(super) fn head_rests(&self) -> Option<Duration> {
        self.head_due.map(|due| due.saturating_duration_since(clock::monotonic()))
    }

    /// Sees to it that the head is on disk.
    pub(super) fn sync_head(&mut self) -> io::Result<()> {
        self.head_due = None;
        self.kept.allow()?;
        self.head_file.sync_data()
    }

    /// The file is full: it gets its number, and another takes its place. The other is made first, so that a disk that
    /// is full changes nothing.
    fn turn(&mut self) -> io::Result<()> {
        self.sync_head()?;
        let directory = self.kept.directory();
        // What a failure left behind the last line would be in the middle of the chain.
        self.log.set_len(self.length)?;
        self.log.sync_all()?;
        let next = open(directory, NEXT)?;
        next.set_len(0)?;
        self.kept.allow()?;
        match fs::rename(directory.join(LOG), directory.join(name(self.head.full + 1))) {
            // A former try came as far as this.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        self.kept.allow()?;
        fs::rename(directory.join(NEXT), directory.join(LOG))?;
        File::open(directory)?.sync_all()?;
        self.log = next;
        self.length = 0;
        self.head.full += 1;
        Ok(())
    }
}
