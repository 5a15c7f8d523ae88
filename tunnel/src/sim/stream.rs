//! A TCP-like stream: in order, late, never lost while both ends live.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Network;

/// Bytes under way in one direction before a writer has to wait.
const WINDOW: usize = 256 << 10;

/// One end of a stream; dropping it ends its direction.
#[derive(Debug)]
pub struct End {
    network: Network,
    incoming: Arc<Mutex<Direction>>,
    outgoing: Arc<Mutex<Direction>>,
    timer: Pin<Box<Sleep>>,
}

#[derive(Debug, Default)]
struct Direction {
    segments: VecDeque<(Instant, VecDeque<u8>)>,
    under_way: usize,
    ended: Option<Instant>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Network {
    /// Two ends of a stream.
    pub fn stream(&self) -> (End, End) {
        let (there, back) = (Arc::<Mutex<Direction>>::default(), Arc::<Mutex<Direction>>::default());
        let end = |incoming: &Arc<Mutex<Direction>>, outgoing: &Arc<Mutex<Direction>>| End {
            network: self.clone(),
            incoming: incoming.clone(),
            outgoing: outgoing.clone(),
            timer: Box::pin(sleep_until(Instant::now())),
        };
        (end(&back, &there), end(&there, &back))
    }
}

impl Direction {
    /// In order: nothing arrives before what was sent before it.
    fn not_before(&self, arrival: Instant) -> Instant {
        self.segments.back().map_or(arrival, |(last, _)| arrival.max(*last))
    }

    fn end(&mut self, arrival: Instant) {
        let arrival = self.not_before(arrival);
        self.ended.get_or_insert(arrival);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.network.is_partitioned(cx) {
            return Poll::Pending;
        }
        let mut incoming = this.incoming.lock();
        incoming.reader = Some(cx.waker().clone());
        let next = incoming.segments.front().map(|(arrival, _)| *arrival).or(incoming.ended);
        let Some(arrival) = next else { return Poll::Pending };
        if arrival > Instant::now() {
            this.timer.as_mut().reset(arrival);
            std::task::ready!(this.timer.as_mut().poll(cx));
        }
        while buf.remaining() > 0 {
            let Some((arrival, segment)) = incoming.segments.front_mut() else { break };
            if *arrival > Instant::now() {
                break;
            }
            let (bytes, _) = segment.as_slices();
            let taken = bytes.len().min(buf.remaining());
            buf.put_slice(bytes.get(..taken).unwrap_or_default());
            segment.drain(..taken);
            if segment.is_empty() {
                incoming.segments.pop_front();
            }
            incoming.under_way -= taken;
        }
        if let Some(writer) = incoming.writer.take() {
            writer.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut outgoing = self.outgoing.lock();
        if outgoing.ended.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = WINDOW - outgoing.under_way;
        if room == 0 {
            outgoing.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let bytes: VecDeque<u8> = buf.iter().take(room).copied().collect();
        let length = bytes.len();
        let arrival = outgoing.not_before(self.network.arrival_at_last());
        outgoing.segments.push_back((arrival, bytes));
        outgoing.under_way += length;
        if let Some(reader) = outgoing.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outgoing.lock().end(self.network.arrival_at_last());
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.outgoing.lock().end(self.network.arrival_at_last());
    }
}
