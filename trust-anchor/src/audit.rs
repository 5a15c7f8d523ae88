//! The audit log: what this cluster's trust did, one line of JSON each, in a chain that shows what was changed or cut.
//!
//! ```text
//! entries ─▶ queue ─▶ one thread writes all that wait: append ─▶ fsync ─▶ head ─▶ answers
//!                                                     └─ full: audit.log becomes audit-000001.log, and another begins
//! ```
//!
//! Each line has the SHA-256 of the line before it, also over the border of two files, and `audit.head` has the last
//! line's number and hash and how many files are full, under the store's key, so that a log cut short is noticed.
//! Nothing is answered before its line is on disk: who cannot be recorded gets no certificate, and a step that cannot be
//! recorded is not taken. The head is written behind the log, and synced within a second, so a crash leaves at most lines
//! that the head does not know yet; they are in the chain and count.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SendError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use hawser_tunnel::kept::Kept;
use serde::{Deserialize, Serialize};

mod file;
mod head;
mod read;
mod segments;

use file::{Log, Waiting};
pub use read::{Reading, read};

/// A file that is as long as this is full: some 40,000 lines, which are read within a tenth of a second.
const SEGMENT_MAX: u64 = 16 * 1024 * 1024;
/// Longest text of one field: others of the cluster may fill it.
const TEXT_MAX: usize = 2048;

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
    /// Its group, by the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Its process, by the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// What its process runs, where that was looked at.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub executable: String,
    /// How it was attested.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub via: String,
}

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Entry {
    /// issue | issue-jwt | denial | rotation | bundle | revoke | taint | break-glass | clock | link | unlink | export |
    /// unexport | chain-broken | ….
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

/// How the log is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keeping {
    /// A file is full when it is as long as this.
    pub(crate) segment: u64,
    /// Lines that are older than this say nothing of what is in use, and need not be read at the start.
    pub(crate) life: Duration,
}

impl Keeping {
    /// With files of the usual length.
    pub(crate) fn lines_of(life: Duration) -> Self {
        Self { segment: SEGMENT_MAX, life }
    }
}

/// Entries that wait for the writer; who comes with more is held up until there is room. More than may come at once from
/// where nobody may be held up: the lanes of the issuer hold fewer, each with one entry.
pub(crate) const QUEUE_MAX: usize = 1024;

/// The log of one process: shared by all who have something to say. One thread writes; it ends with this.
pub(crate) struct Audit {
    queue: Option<SyncSender<Waiting>>,
    writer: Option<JoinHandle<()>>,
    /// What was found wrong at the start, if anything was.
    pub(crate) trouble: Option<String>,
}

impl Drop for Audit {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Audit {
    /// Opens the log and looks through as much of it as may speak of what is in use; the rest is for `verify`. One that
    /// was changed or cut is set aside, loudly, and another begun: a cluster must not stand still because somebody
    /// deleted a file, and the files are there to be looked at.
    pub(crate) fn open(kept: &Kept, keeping: Keeping, now: SystemTime, see: impl FnMut(&Line)) -> io::Result<Self> {
        let since = hawser_runtime::clock::millis(now.checked_sub(keeping.life).unwrap_or(now));
        let mut reading = read::read_since(kept, since, see)?;
        let mut entry = None;
        if let Some(broken) = reading.broken.take() {
            let aside = segments::set_aside(kept.directory(), hawser_runtime::clock::millis(now))?;
            tracing::error!(broken, aside = %aside.display(), "the audit log was changed or cut");
            let detail = format!("the audit log was changed or cut: {broken}; it was set aside as {}", aside.display());
            entry =
                Some(Entry { event: "chain-broken".into(), subject: segments::LOG.into(), detail, ..Entry::default() });
            reading = Reading::default();
        }
        let trouble = entry.as_ref().map(|entry| entry.detail.clone()).or_else(|| reading.missing.clone());
        let log = Log::open(kept, &reading, keeping.segment)?;
        let (queue, waiting) = sync_channel(QUEUE_MAX);
        let writer = std::thread::Builder::new().name("audit-log".into()).spawn(move || follow(log, &waiting))?;
        let audit = Self { queue: Some(queue), writer: Some(writer), trouble };
        if let Some(entry) = entry {
            audit.append(entry, now).map_err(io::Error::other)?;
        }
        Ok(audit)
    }

    /// Appends an entry; on disk when it returns. Blocks: not for an async thread.
    pub(crate) fn append(&self, entry: Entry, now: SystemTime) -> Outcome {
        let (answer, outcome) = sync_channel(1);
        self.append_then(entry, now, move |outcome| {
            let _ = answer.send(outcome);
        });
        outcome.recv().unwrap_or_else(|_| Err("its writer has ended".into()))
    }

    /// Appends an entry, and does `then` once it is on disk or known not to be: on the writer's thread, so briefly. Whoever
    /// comes while others are written waits for the next turn, and all who wait then share one sync of the disk.
    pub(crate) fn append_then(&self, mut entry: Entry, now: SystemTime, then: impl FnOnce(Outcome) + Send + 'static) {
        let Caller { spiffe_id, executable, .. } = &mut entry.caller;
        for text in [&mut entry.subject, &mut entry.detail, spiffe_id, executable] {
            *text = text.chars().take(TEXT_MAX).collect();
        }
        let waiting = Waiting { entry, time_ms: hawser_runtime::clock::millis(now), then: Box::new(then) };
        if let Some(queue) = &self.queue
            && let Err(SendError(waiting)) = queue.send(waiting)
        {
            (waiting.then)(Err("its writer has ended".into()));
        }
    }
}

/// Who is not alone waits this long for others, with whom he shares a sync of the disk: less than that takes, and most of
/// what a certificate costs in a herd. Who is alone waits for nobody.
const GATHER: Duration = Duration::from_millis(2);

/// Writes until nobody can come any more.
fn follow(mut log: Log, waiting: &Receiver<Waiting>) {
    let mut alone = true;
    loop {
        let next = match log.head_rests() {
            Some(Duration::ZERO) => Err(RecvTimeoutError::Timeout),
            Some(rest) => waiting.recv_timeout(rest),
            None => waiting.recv().map_err(RecvTimeoutError::from),
        };
        let first = match next {
            Ok(first) => first,
            Err(RecvTimeoutError::Timeout) => {
                sync_head(&mut log);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => break sync_head(&mut log),
        };
        if !alone {
            std::thread::sleep(GATHER);
        }
        let batch: Vec<_> = std::iter::once(first).chain(waiting.try_iter().take(QUEUE_MAX)).collect();
        alone = batch.len() == 1;
        log.write(batch);
    }
}

fn sync_head(log: &mut Log) {
    if let Err(error) = log.sync_head() {
        tracing::warn!(%error, "the audit log's head is not on disk");
    }
}

#[cfg(test)]
mod tests;
