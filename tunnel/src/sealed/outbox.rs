//! The sending half: payload gathered into records side by side, sealed in place, written in one go.

use std::io::{self, IoSliceMut};
use std::task::{Context, Poll, ready};

use super::app::App;
use super::buffer::{Buffer, RECORDS};
use super::inbox::broken;
use super::record::{ALERT, HEADER, KEY_UPDATE, PAYLOAD_MAX, RECORD, RecordError, Records, TAIL};
use super::wire;
use crate::stream::TunnelStream;

/// Room that is kept free behind the data: a key update may have to go in front, an alert must always fit.
const RESERVE: usize = KEY_UPDATE + ALERT;

/// Most that [`Outbox::with`] takes: leaves room for a preface.
pub(crate) const UNSENT_MAX: usize = 8 << 10;

/// Bytes on their way out: sealed ones in front, then the payload of a record that is still open.
#[derive(Default)]
pub(crate) struct Outbox {
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
    // Payload bytes behind `end` + HEADER, not yet sealed.
    open: usize,
    // The application's last read filled a small buffer, so the next may as well be large.
    bulk: bool,
}

impl Outbox {
    /// Starts with bytes that are to be sent as they are: the end of the handshake, at most [`UNSENT_MAX`].
    pub(crate) fn with(unsent: &[u8]) -> Self {
        let mut outbox = Self::default();
        if !unsent.is_empty() {
            let mut buffer = Buffer::small();
            buffer.bytes.iter_mut().zip(unsent).for_each(|(slot, byte)| *slot = *byte);
            outbox.end = unsent.len().min(UNSENT_MAX);
            outbox.buffer = Some(buffer);
        }
        outbox
    }

    /// Takes as much of `data` as fits; 0 when it is full.
    pub(crate) fn put(&mut self, records: &mut Records, mut data: &[u8]) -> Result<usize, RecordError> {
        let whole = data.len();
        while !data.is_empty() {
            let taken = self.put_some(records, data)?;
            data = data.get(taken..).unwrap_or_default();
            if taken == 0 && !self.grow() {
                break;
            }
        }
        Ok(whole - data.len())
    }

    fn put_some(&mut self, records: &mut Records, data: &[u8]) -> Result<usize, RecordError> {
        if self.open == 0 && records.key_update_due() {
            if self.room().len() < KEY_UPDATE + HEADER + TAIL {
                return Ok(0);
            }
            self.key_update(records)?;
        }
        let whole = data.get(..PAYLOAD_MAX).filter(|_| self.open == 0);
        let (end, open) = (self.end, self.open);
        let room = self.room();
        if let Some(payload) = whole {
            // A whole record is sealed from where it lies.
            let Some(record) = room.get_mut(..RECORD) else { return Ok(0) };
            records.seal_from(payload, record)?;
            self.end = end + RECORD;
            return Ok(PAYLOAD_MAX);
        }
        let most = room.len().saturating_sub(HEADER + TAIL).min(PAYLOAD_MAX);
        let count = most.saturating_sub(open).min(data.len());
        let slots = room.get_mut(HEADER + open..HEADER + open + count).unwrap_or_default();
        slots.copy_from_slice(data.get(..count).unwrap_or_default());
        self.open += count;
        if self.open == PAYLOAD_MAX {
            self.seal(records)?;
        }
        Ok(count)
    }

    /// Takes what the application's socket has, up to a buffer's worth, with one system call; 0 at its end.
    pub(crate) fn take_from(&mut self, records: &mut Records, app: &App) -> io::Result<usize> {
        if records.key_update_due() {
            self.key_update(records).map_err(broken)?;
        }
        if self.buffer.is_none() && self.bulk {
            self.buffer = Some(Buffer::large());
        }
        let room = self.room();
        let asked = room.len() / RECORD * PAYLOAD_MAX;
        if asked == 0 {
            // Only when called with bytes unsent: to read nothing would look like the application's end.
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut slices: [IoSliceMut<'_>; RECORDS] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let mut count = 0;
        for (slot, record) in slices.iter_mut().zip(room.chunks_exact_mut(RECORD)) {
            *slot = IoSliceMut::new(record.get_mut(HEADER..HEADER + PAYLOAD_MAX).unwrap_or_default());
            count += 1;
        }
        let read = app.read(slices.get_mut(..count).unwrap_or_default())?;
        self.bulk = if self.bulk { read >= PAYLOAD_MAX / 2 } else { read == asked };
        let mut left = read;
        while left > 0 {
            self.open = left.min(PAYLOAD_MAX);
            left -= self.open;
            // Without a key update in between: the next payload lies right behind. A key lasts longer than a batch.
            self.seal_open(records).map_err(broken)?;
        }
        Ok(read)
    }

    /// Seals what is still open, so that all can be sent.
    pub(crate) fn seal(&mut self, records: &mut Records) -> Result<(), RecordError> {
        if self.open == 0 {
            return Ok(());
        }
        if records.key_update_due() {
            // Between two records, so in front of this one.
            let Some(buffer) = &mut self.buffer else { return Ok(()) };
            let record = self.end..self.end + HEADER + self.open;
            buffer.bytes.copy_within(record, self.end + KEY_UPDATE);
            self.control(KEY_UPDATE, |room| records.seal_key_update(room))?;
        }
        self.seal_open(records)
    }

    fn seal_open(&mut self, records: &mut Records) -> Result<(), RecordError> {
        let length = HEADER + self.open + TAIL;
        self.open = 0;
        self.control(length, |room| records.seal(room))
    }

    /// Says close_notify; nothing may follow.
    pub(crate) fn close(&mut self, records: &mut Records) -> Result<(), RecordError> {
        self.seal(records)?;
        self.control(ALERT, |room| records.seal_close(room))
    }

    /// Tells the peer what it did wrong; nothing may follow.
    pub(crate) fn alert(&mut self, records: &mut Records, alert: u8) -> Result<(), RecordError> {
        self.seal(records)?;
        self.control(ALERT, |room| records.seal_alert(alert, room))
    }

    /// Writes all that is sealed, and gives the buffer back when nothing is left in it.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>, stream: &mut TunnelStream) -> Poll<io::Result<()>> {
        while self.start < self.end {
            let Some(buffer) = &self.buffer else { break };
            let sealed = buffer.bytes.get(self.start..self.end).unwrap_or_default();
            self.start += ready!(wire::poll_write(stream, cx, sealed))?;
        }
        if self.open == 0 {
            self.buffer = None;
            self.start = 0;
            self.end = 0;
        }
        Poll::Ready(Ok(()))
    }

    #[cfg(test)]
    pub(crate) fn holds_buffer(&self) -> bool {
        self.buffer.is_some()
    }

    fn key_update(&mut self, records: &mut Records) -> Result<(), RecordError> {
        self.control(KEY_UPDATE, |room| records.seal_key_update(room))
    }

    /// Appends a record of this length that `seal` writes.
    fn control(
        &mut self,
        length: usize,
        seal: impl FnOnce(&mut [u8]) -> Result<(), RecordError>,
    ) -> Result<(), RecordError> {
        let bytes = &mut self.buffer.get_or_insert_with(Buffer::small).bytes;
        let room = bytes.get_mut(self.end..self.end + length).ok_or(RecordError::Exhausted)?;
        seal(room)?;
        self.end += length;
        Ok(())
    }

    /// Room for data behind what is sealed.
    fn room(&mut self) -> &mut [u8] {
        let bytes = &mut self.buffer.get_or_insert_with(Buffer::small).bytes;
        let limit = bytes.len().saturating_sub(RESERVE);
        bytes.get_mut(self.end..limit).unwrap_or_default()
    }

    /// A small buffer that is full becomes a large one, once.
    fn grow(&mut self) -> bool {
        let Some(buffer) = self.buffer.as_ref().filter(|buffer| !buffer.is_large()) else { return false };
        let mut large = Buffer::large();
        if !large.is_large() {
            return false;
        }
        let used = self.start..self.end + HEADER * usize::from(self.open > 0) + self.open;
        let (Some(from), Some(to)) = (buffer.bytes.get(used.clone()), large.bytes.get_mut(..used.len())) else {
            return false;
        };
        to.copy_from_slice(from);
        self.end -= self.start;
        self.start = 0;
        self.buffer = Some(large);
        true
    }
}
