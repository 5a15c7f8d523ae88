//! The receiving half: large reads, records opened where they lie, payloads handed out without a copy.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::task::{Context, Poll, ready};

use super::buffer::{Buffer, SMALL};
use super::record::{Event, RecordError, Records};
use super::wire;
use crate::stream::TunnelStream;

/// Payloads handed out together; as many as one vectored write takes in one go without the kernel allocating.
pub(crate) const SLICES: usize = 32;

/// What there is to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    /// Payload, through [`Inbox::slices`].
    Data,
    /// The peer said close_notify; there will be no more.
    Closed,
}

/// Received bytes: opened payloads in front, then records not yet opened.
#[derive(Default)]
pub(crate) struct Inbox {
    buffer: Option<Buffer>,
    // Records not yet opened.
    sealed: Range<usize>,
    // The last read filled its buffer, so the next may as well be large.
    bulk: bool,
    closed: bool,
}

impl Inbox {
    /// Starts with ciphertext that was read together with the handshake: less than one of its reads.
    pub(crate) fn with(received: &[u8]) -> Self {
        let mut inbox = Self::default();
        if !received.is_empty() {
            let mut buffer = Buffer::small();
            buffer.bytes.iter_mut().zip(received).for_each(|(slot, byte)| *slot = *byte);
            inbox.sealed = 0..received.len().min(buffer.bytes.len());
            inbox.buffer = Some(buffer);
        }
        inbox
    }

    /// Whether payload waits to be taken.
    pub(crate) fn has_data(&self) -> bool {
        self.buffer.as_ref().is_some_and(|buffer| !buffer.segments.is_empty())
    }

    /// The first payload that waits.
    pub(crate) fn first(&self) -> &[u8] {
        let Some(buffer) = &self.buffer else { return &[] };
        buffer.segments.front().and_then(|range| buffer.bytes.get(range.clone())).unwrap_or_default()
    }

    /// Payloads that wait, in order.
    pub(crate) fn slices(&self) -> ([IoSlice<'_>; SLICES], usize) {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let Some(buffer) = &self.buffer else { return (slices, 0) };
        let mut count = 0;
        for (slot, range) in slices.iter_mut().zip(&buffer.segments) {
            *slot = IoSlice::new(buffer.bytes.get(range.clone()).unwrap_or_default());
            count += 1;
        }
        (slices, count)
    }

    /// This much payload has been taken.
    pub(crate) fn consume(&mut self, mut count: usize) {
        let Some(buffer) = &mut self.buffer else { return };
        while let Some(front) = buffer.segments.front_mut() {
            if count < front.len() {
                front.start += count;
                return;
            }
            count -= front.len();
            buffer.segments.pop_front();
        }
        self.give_back();
    }

    /// Makes payload available: opens what is there, else reads. An end without close_notify is an error (RFC 8446
    /// section 6.1): someone may have cut the stream short.
    pub(crate) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut TunnelStream,
        records: &mut Records,
    ) -> Poll<io::Result<Filled>> {
        loop {
            if self.has_data() {
                return Poll::Ready(Ok(Filled::Data));
            }
            if self.closed {
                return Poll::Ready(Ok(Filled::Closed));
            }
            let more = self.open(records).map_err(broken)?;
            if self.has_data() || self.closed || more {
                continue;
            }
            let read = self.poll_read(cx, stream);
            if read.is_pending() {
                self.shrink();
            }
            if ready!(read)? == 0 {
                return Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the session was cut short: no close_notify",
                )));
            }
        }
    }

    /// Opens whole records up to [`SLICES`] payloads; true if one was opened.
    fn open(&mut self, records: &mut Records) -> Result<bool, RecordError> {
        let Some(buffer) = &mut self.buffer else { return Ok(false) };
        let mut any = false;
        while buffer.segments.len() < SLICES && !self.sealed.is_empty() {
            let Some(input) = buffer.bytes.get_mut(self.sealed.clone()) else { break };
            let Some(opened) = records.open(input)? else { break };
            any = true;
            if let Event::Data(range) = &opened.event {
                buffer.segments.push_back(self.sealed.start + range.start..self.sealed.start + range.end);
            }
            self.sealed.start += opened.consumed;
            if opened.event == Event::Closed {
                // Whatever follows does not count.
                self.sealed.start = self.sealed.end;
                self.closed = true;
            }
        }
        Ok(any)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, stream: &mut TunnelStream) -> Poll<io::Result<usize>> {
        ready!(wire::poll_readable(stream, cx))?;
        self.make_room();
        let Some(buffer) = &mut self.buffer else { return Poll::Ready(Ok(0)) };
        let Some(room) = buffer.bytes.get_mut(self.sealed.end..) else { return Poll::Ready(Ok(0)) };
        let read = ready!(wire::poll_read(stream, cx, room))?;
        self.bulk = if self.bulk { read >= SMALL / 2 } else { read == room.len() };
        self.sealed.end += read;
        Poll::Ready(Ok(read))
    }

    /// A buffer of the right size with the unopened rest at its start. There is no payload in it.
    fn make_room(&mut self) {
        let Some(buffer) = &mut self.buffer else {
            self.buffer = Some(Buffer::sized(self.bulk));
            self.sealed = 0..0;
            return;
        };
        if self.bulk && !buffer.is_large() {
            self.move_to(Buffer::large());
        } else if self.sealed.start > 0 {
            buffer.bytes.copy_within(self.sealed.clone(), 0);
            self.sealed = 0..self.sealed.len();
        }
    }

    /// Nothing to read: an incomplete record waits in a small buffer, nothing at all in none.
    fn shrink(&mut self) {
        self.give_back();
        let large = self.buffer.as_ref().is_some_and(Buffer::is_large);
        if large && self.sealed.len() <= SMALL {
            self.move_to(Buffer::small());
        }
    }

    fn move_to(&mut self, mut to: Buffer) {
        let rest = self.buffer.as_ref().and_then(|buffer| buffer.bytes.get(self.sealed.clone())).unwrap_or_default();
        let Some(room) = to.bytes.get_mut(..rest.len()) else { return };
        room.copy_from_slice(rest);
        self.sealed = 0..rest.len();
        self.buffer = Some(to);
    }

    #[cfg(test)]
    pub(crate) fn holds_buffer(&self) -> bool {
        self.buffer.is_some()
    }

    fn give_back(&mut self) {
        if self.sealed.is_empty() && !self.has_data() {
            self.buffer = None;
            self.sealed = 0..0;
        }
    }
}

/// A broken record layer as an I/O error; the alert that tells the peer is found again by [`record_error`].
pub(crate) fn broken(error: RecordError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// The record error inside an I/O error, if that is what it is.
pub(crate) fn record_error(error: &io::Error) -> Option<RecordError> {
    error.get_ref()?.downcast_ref::<RecordError>().copied()
}
