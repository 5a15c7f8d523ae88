//! The audit log: what this cluster's trust did, one line of JSON each, in a chain that shows what was changed or cut.
//!
//! ```text
//! entries ─▶ queue ─▶ one writer for all that wait: append ─▶ fsync ─▶ head ─▶ fsync ─▶ answers
//! ```
//!
//! Each line has the SHA-256 of the line before it, and `audit.head` has the last line's number and hash under the
//! store's key, so that a log cut short is noticed. Nothing is answered before its line is on disk: who cannot be
//! recorded gets no certificate, and a step that cannot be recorded is not taken. The head is written behind the log, so
//! a crash leaves at most lines that the head does not know yet; they are in the chain and count.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::time::SystemTime;

use hawser_tunnel::kept::Kept;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::hex;

mod read;

pub use read::{Reading, read};

const LOG: &str = "audit.log";
const HEAD: &str = "audit.head";
/// Two copies of the head, written in turn: a torn one leaves the other.
const HEAD_SIZE: usize = 512;
/// Longest text of one field: others of the cluster may fill it.
const TEXT_MAX: usize = 2048;
/// The chain's begin.
const FIRST: &str = "";

/// Who caused it, as far as it is attested.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Caller {
    /// Its SPIFFE ID, if a certificate or a token proved one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub spiffe_id: String,
    /// The user of its process, by the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its process, by the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// How it was attested.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub via: String,
}

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Entry {
    /// issue | denial | rotation | bundle | revoke | taint | break-glass | clock | link | unlink | export | ….
    pub event: String,
    /// Whom or what it is about.
    pub subject: String,
    /// More of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Who caused it.
    pub caller: Caller,
    /// Of a certificate: its serial number.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub serial: String,
    /// SHA-256 of its key.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key_sha256: String,
    /// The authority that issued it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub issuer: String,
    /// The certificate that it takes the place of, by serial number.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub replaces: String,
    /// Its end, milliseconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after_ms: Option<i64>,
}

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Line {
    /// Counts from 1 without a gap.
    pub seq: u64,
    /// When, by this machine's clock, milliseconds since the epoch.
    pub time_ms: i64,
    /// What.
    #[serde(flatten)]
    pub entry: Entry,
    /// SHA-256 of the line before, hex; empty in the first.
    pub prev: String,
}

type Outcome = Result<u64, String>;

struct Waiting {
    entry: Entry,
    time_ms: i64,
    outcome: Arc<Mutex<Option<Outcome>>>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    writing: bool,
}

/// The log of one process: shared by all who have something to say.
pub(crate) struct Audit {
    queue: Mutex<Queue>,
    written: Condvar,
    log: Mutex<Log>,
    /// What was found wrong at the start, if anything was.
    pub(crate) trouble: Option<String>,
}

impl Audit {
    /// Opens the log and looks through all of it. One that was changed or cut is set aside, loudly, and another begun:
    /// a cluster must not stand still because somebody deleted a file, and the file is there to be looked at.
    pub(crate) fn open(kept: &Kept, now: SystemTime, see: impl FnMut(&Line)) -> io::Result<Self> {
        let reading = read::read_with(kept, see)?;
        let directory = kept.directory();
        let mut trouble = None;
        let (mut seq, mut last) = (reading.entries, reading.last.clone());
        if let Some(broken) = reading.broken {
            let at = hawser_runtime::clock::millis(now);
            let aside = directory.join(format!("{LOG}.broken-{at}"));
            for name in [LOG, HEAD] {
                match std::fs::rename(directory.join(name), directory.join(format!("{name}.broken-{at}"))) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
            tracing::error!(broken, aside = %aside.display(), "the audit log was changed or cut");
            (seq, last) = (0, FIRST.to_owned());
            trouble =
                Some(format!("the audit log was changed or cut: {broken}; it was set aside as {}", aside.display()));
        }
        let open = |name: &str| {
            OpenOptions::new()
                .create(true)
                .read(true)
                .write(true)
                .truncate(false)
                .mode(0o600)
                .open(directory.join(name))
        };
        let log = open(LOG)?;
        // What a crash left of a line that nobody was answered for.
        let length = if trouble.is_some() { 0 } else { reading.length };
        log.set_len(length)?;
        File::open(directory)?.sync_all()?;
        let log = Log { kept: kept.clone(), log, head: open(HEAD)?, seq, last, length };
        let audit = Self { queue: Mutex::default(), written: Condvar::new(), log: Mutex::new(log), trouble };
        if let Some(trouble) = &audit.trouble {
            let entry = Entry {
                event: "chain-broken".into(),
                subject: LOG.into(),
                detail: trouble.clone(),
                ..Entry::default()
            };
            audit.append(entry, now).map_err(io::Error::other)?;
        }
        Ok(audit)
    }

    /// Appends an entry; on disk when it returns. Whoever comes while others are written waits for the next turn, and
    /// all who wait then share one sync of the disk. Blocks: not for an async thread.
    pub(crate) fn append(&self, mut entry: Entry, now: SystemTime) -> Outcome {
        for text in [&mut entry.subject, &mut entry.detail, &mut entry.caller.spiffe_id] {
            *text = text.chars().take(TEXT_MAX).collect();
        }
        let outcome = Arc::new(Mutex::new(None));
        let time_ms = hawser_runtime::clock::millis(now);
        let mut queue = self.queue.lock();
        queue.waiting.push(Waiting { entry, time_ms, outcome: Arc::clone(&outcome) });
        loop {
            if let Some(outcome) = outcome.lock().take() {
                return outcome;
            }
            if queue.writing {
                self.written.wait(&mut queue);
                continue;
            }
            queue.writing = true;
            let batch = std::mem::take(&mut queue.waiting);
            drop(queue);
            self.log.lock().write(batch);
            queue = self.queue.lock();
            queue.writing = false;
            self.written.notify_all();
        }
    }
}

struct Log {
    kept: Kept,
    log: File,
    head: File,
    seq: u64,
    last: String,
    length: u64,
}

impl Log {
    fn write(&mut self, batch: Vec<Waiting>) {
        let (mut text, mut seq, mut last) = (String::new(), self.seq, self.last.clone());
        let mut answers = Vec::new();
        for waiting in batch {
            let line = Line { seq: seq + 1, time_ms: waiting.time_ms, entry: waiting.entry, prev: last.clone() };
            let outcome = match serde_json::to_string(&line) {
                Ok(line) => {
                    seq += 1;
                    last = hex::sha256(line.as_bytes());
                    text.push_str(&line);
                    text.push('\n');
                    Ok(seq)
                }
                Err(error) => Err(error.to_string()),
            };
            answers.push((waiting.outcome, outcome));
        }
        let written = self.commit(&text, seq, &last);
        for (slot, outcome) in answers {
            let outcome = outcome.and_then(|seq| written.as_ref().map(|()| seq).map_err(ToString::to_string));
            *slot.lock() = Some(outcome);
        }
    }

    fn commit(&mut self, text: &str, seq: u64, last: &str) -> io::Result<()> {
        self.kept.allow()?;
        let length = self.length + text.len() as u64;
        let appended = self.log.write_all_at(text.as_bytes(), self.length).and_then(|()| self.log.sync_data());
        if let Err(error) = appended {
            // Half of it would break the chain for what comes next.
            let _ = self.log.set_len(self.length);
            return Err(error);
        }
        (self.seq, self.length, self.last) = (seq, length, last.to_owned());
        self.write_head()
    }

    fn write_head(&mut self) -> io::Result<()> {
        let content = json!({ "seq": self.seq, "hash": self.last, "length": self.length });
        let mac = self.kept.tag(HEAD, content.to_string().as_bytes());
        let mut text = json!({ "head": content, "mac": mac }).to_string();
        text.extend(std::iter::repeat_n(' ', HEAD_SIZE.saturating_sub(text.len() + 1)));
        text.push('\n');
        let at = (self.seq % 2) * HEAD_SIZE as u64;
        self.head.write_all_at(text.as_bytes(), at)?;
        self.head.flush()?;
        self.head.sync_data()
    }
}

#[cfg(test)]
mod tests;
