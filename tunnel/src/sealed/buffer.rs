//! Buffers that belong to whoever has bytes in them: taken when a socket is ready, given back when drained, so that an
//! idle connection holds none. The last one given back is the next one taken, still warm in the cache.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::record::{KEY_UPDATE, RECORD};

/// Room for one full record and a control record before it: what a connection with little to say uses.
pub(crate) const SMALL: usize = RECORD + SLACK;
/// Full records in a large buffer. Each burst of bytes wakes its reader, which costs far more than the system call where
/// that reader sleeps on another core; half a megabyte at a time is as good as a whole one, and a quarter much worse.
pub(crate) const RECORDS: usize = 32;
/// Small enough for a core's own cache.
pub(crate) const LARGE: usize = RECORDS * RECORD + SLACK;
/// A key update and an alert fit beside the data, and the longest record of a peer beside a short rest.
const SLACK: usize = 512;
const _: () = assert!(SLACK >= 2 * KEY_UPDATE && SMALL >= super::record::RECORD_MAX);

/// Large buffers in use by all threads together (128 MiB); beyond this, connections make do with small ones.
const LARGE_MAX: usize = 256;
/// Kept per thread and size when nobody uses them: 2 MiB and 0.5 MiB.
const KEPT_LARGE: usize = 4;
const KEPT_SMALL: usize = 32;

static LARGE_IN_USE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static POOL: RefCell<Pool> = const { RefCell::new(Pool { small: Vec::new(), large: Vec::new() }) };
}

struct Pool {
    small: Vec<Parts>,
    large: Vec<Parts>,
}

struct Parts {
    bytes: Box<[u8]>,
    segments: VecDeque<Range<usize>>,
}

/// A buffer on loan. What an earlier user left in it is not cleared, so readers keep to what they have written.
pub(crate) struct Buffer {
    pub(crate) bytes: Box<[u8]>,
    /// Where opened payloads lie, for receiving.
    pub(crate) segments: VecDeque<Range<usize>>,
}

impl Buffer {
    /// [`SMALL`] bytes.
    pub(crate) fn small() -> Self {
        Self::take(SMALL, |pool| pool.small.pop())
    }

    /// [`LARGE`] bytes, or [`SMALL`] where too many large ones are in use.
    pub(crate) fn large() -> Self {
        if LARGE_IN_USE.fetch_add(1, Ordering::Relaxed) >= LARGE_MAX {
            LARGE_IN_USE.fetch_sub(1, Ordering::Relaxed);
            return Self::small();
        }
        Self::take(LARGE, |pool| pool.large.pop())
    }

    /// Large or small.
    pub(crate) fn sized(large: bool) -> Self {
        if large { Self::large() } else { Self::small() }
    }

    /// Whether it is a large one.
    pub(crate) fn is_large(&self) -> bool {
        self.bytes.len() > SMALL
    }

    fn take(size: usize, kept: impl FnOnce(&mut Pool) -> Option<Parts>) -> Self {
        // A thread that is ending has no pool any more.
        let parts = POOL.try_with(|pool| kept(&mut pool.borrow_mut())).ok().flatten();
        let parts =
            parts.unwrap_or_else(|| Parts { bytes: vec![0; size].into_boxed_slice(), segments: VecDeque::new() });
        Self { bytes: parts.bytes, segments: parts.segments }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let large = self.is_large();
        if large {
            LARGE_IN_USE.fetch_sub(1, Ordering::Relaxed);
        }
        self.segments.clear();
        let parts = Parts { bytes: std::mem::take(&mut self.bytes), segments: std::mem::take(&mut self.segments) };
        let _ = POOL.try_with(|pool| {
            let pool = &mut *pool.borrow_mut();
            let (kept, most) = if large { (&mut pool.large, KEPT_LARGE) } else { (&mut pool.small, KEPT_SMALL) };
            if kept.len() < most {
                kept.push(parts);
            }
        });
    }
}
