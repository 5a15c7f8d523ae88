//! A sealed session as a byte stream: what HTTP/2 runs on.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::handshake::Handshaken;
use super::inbox::{Filled, Inbox, broken, record_error};
use super::outbox::Outbox;
use super::record::Records;
use super::wire;
use crate::stream::TunnelStream;

/// Plaintext over a sealed session.
///
/// Writes are gathered: they leave when a buffer is full, and at a flush. Shutting down says close_notify, and reading
/// gives the end only after the peer's; a stream that was cut short gives an error. Dropping it without a shutdown is
/// therefore seen as a reset by the peer.
pub struct SealedStream {
    pub(crate) stream: TunnelStream,
    pub(crate) records: Records,
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox,
    pub(crate) closed: bool,
    activity: Arc<Activity>,
}

/// Counts what passes, for whoever watches whether a peer still answers.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    heard: AtomicU64,
    said: AtomicU64,
}

impl Activity {
    /// Grows with everything that comes.
    pub(crate) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// Grows with everything that goes.
    pub(crate) fn said(&self) -> u64 {
        self.said.load(Ordering::Relaxed)
    }
}

impl SealedStream {
    pub(crate) fn new(session: Handshaken) -> Self {
        Self {
            inbox: Inbox::with(&session.received),
            outbox: Outbox::with(&session.unsent),
            stream: session.stream,
            records: session.records,
            closed: false,
            activity: Arc::default(),
        }
    }

    pub(crate) fn activity(&self) -> Arc<Activity> {
        self.activity.clone()
    }

    /// Ends the session so that the peer sees a reset.
    pub(crate) fn reset(self) {
        self.stream.reset();
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbox.poll_send(cx, &mut self.stream)
    }

    /// Tells the peer that it broke the protocol, if that goes without waiting.
    pub(crate) fn tell(&mut self, cx: &mut Context<'_>, error: &io::Error) {
        let Some(alert) = record_error(error).and_then(|error| error.alert()) else { return };
        if !self.closed && self.outbox.alert(&mut self.records, alert).is_ok() {
            self.closed = true;
            let _ = self.poll_send(cx);
        }
    }

    fn put(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut taken = self.outbox.put(&mut self.records, data).map_err(broken)?;
        if taken == 0 && !data.is_empty() {
            self.outbox.seal(&mut self.records).map_err(broken)?;
            ready!(self.poll_send(cx))?;
            taken = self.outbox.put(&mut self.records, data).map_err(broken)?;
        }
        self.activity.said.fetch_add(taken as u64, Ordering::Relaxed);
        Poll::Ready(Ok(taken))
    }
}

impl AsyncRead for SealedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let filled = match ready!(this.inbox.poll_fill(cx, &mut this.stream, &mut this.records)) {
            Ok(filled) => filled,
            Err(error) => {
                this.tell(cx, &error);
                return Poll::Ready(Err(error));
            }
        };
        if filled == Filled::Closed {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        while buffer.remaining() > 0 && this.inbox.has_data() {
            let payload = this.inbox.first();
            let count = payload.len().min(buffer.remaining());
            buffer.put_slice(payload.get(..count).unwrap_or_default());
            this.inbox.consume(count);
        }
        let count = buffer.filled().len() - before;
        this.activity.heard.fetch_add(count as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SealedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().put(cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut taken = 0;
        for data in slices.iter().filter(|slice| !slice.is_empty()) {
            match this.put(cx, data) {
                Poll::Ready(Ok(count)) => {
                    taken += count;
                    if count < data.len() {
                        break;
                    }
                }
                // What was taken counts; the next call meets the rest again.
                _ if taken > 0 => break,
                other => return other,
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closed {
            this.outbox.seal(&mut this.records).map_err(broken)?;
        }
        this.poll_send(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closed {
            this.outbox.close(&mut this.records).map_err(broken)?;
            this.closed = true;
        }
        ready!(this.poll_send(cx))?;
        wire::poll_shutdown(&mut this.stream, cx)
    }
}

impl std::fmt::Debug for SealedStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SealedStream").field("records", &self.records).field("closed", &self.closed).finish()
    }
}
