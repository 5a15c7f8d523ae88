//! An application's socket against one stream of a shared session: opaque TCP as an HTTP/2 CONNECT.
//!
//! ```text
//! app ─ readable? ─ capacity? ─ read ─ DATA ─▶ stream       end ─▶ END_STREAM      RST ─▶ RST_STREAM
//! app ◀─ write ─ then give the window back ─── stream       END_STREAM ─▶ FIN      RST_STREAM ─▶ RST
//! ```
//!
//! Nothing is read from the application before the stream has room for it, and the window is given back only for what
//! the application has taken: a slow reader at one end is felt at the other.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::app::App;
use super::buffer::{Buffer, SMALL};
use crate::splice::{Ended, Traffic};

/// Read from an application that says little.
const CHUNK_MIN: usize = 4 << 10;
/// Read from one that says much: a full DATA frame.
const CHUNK_MAX: usize = 64 << 10;
/// Pieces that are written to the application together.
const SLICES: usize = 16;
/// Frames shorter than this are put together as they come. Kept apart, each would cost several times its payload, and
/// HTTP/2 ends a connection in which too many of them wait.
const SHORT: usize = 2 << 10;
/// Bytes moved before other tasks of the thread get their turn.
const TURN: usize = 512 << 10;

/// Carries between the application's connection (from which `early` has been read) and an HTTP/2 stream, until both
/// directions are over, one side is reset (the other is then reset too), or `cut` fires. `Traffic::sent` counts what
/// goes into the stream; `PeerReset` is the stream's end of it, `UpstreamReset` the application's.
#[expect(
    clippy::too_many_arguments,
    reason = "a socket and a stream, each with its two halves; a struct would only rename them"
)]
pub async fn carry_stream(
    send: SendStream<Bytes>,
    recv: RecvStream,
    app: TcpStream,
    early: Bytes,
    traffic: Arc<Traffic>,
    cut: CancellationToken,
) -> Ended {
    let (up, down) = (Up::new(send, early), Down::new(recv));
    let mut carried = Carried { app: App::new(app), up, down, traffic, turn: 0 };
    let ended = tokio::select! {
        biased;
        () = cut.cancelled() => Ended::Cut,
        ended = poll_fn(|cx| carried.poll(cx)) => ended,
    };
    if ended != Ended::Finished {
        carried.app.reset();
        carried.up.stream.send_reset(Reason::CANCEL);
    }
    ended
}

struct Carried {
    app: App,
    up: Up,
    down: Down,
    traffic: Arc<Traffic>,
    turn: usize,
}

/// From the application into the stream.
struct Up {
    stream: SendStream<Bytes>,
    early: Bytes,
    chunk: usize,
    over: bool,
}

/// From the stream to the application.
struct Down {
    stream: RecvStream,
    queue: VecDeque<Bytes>,
    // Short frames, behind the queue.
    tail: BytesMut,
    ended: bool,
    over: bool,
}

impl Carried {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        self.turn = TURN;
        let (up, down) = (self.poll_up(cx), self.poll_down(cx));
        match (up, down) {
            (Poll::Ready(Err(ended)), _) | (_, Poll::Ready(Err(ended))) => Poll::Ready(ended),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ended::Finished),
            (up, _) => {
                if self.turn == 0 {
                    cx.waker().wake_by_ref();
                }
                // Once its end has been read, nothing else would tell that the application is gone.
                if up.is_ready() { self.app.poll_failed(cx).map(|()| Ended::UpstreamReset) } else { Poll::Pending }
            }
        }
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        if !self.up.over {
            let moved = self.move_up(cx);
            if moved.is_ready() {
                return moved;
            }
        }
        // While this direction waits or is over, nothing else would tell that the peer gave the stream up.
        match self.up.stream.poll_reset(cx) {
            Poll::Ready(Ok(Reason::NO_ERROR)) if self.up.over => Poll::Ready(Ok(())),
            Poll::Ready(Err(_)) if self.up.over && self.down.ended => Poll::Ready(Ok(())),
            Poll::Ready(_) => Poll::Ready(Err(Ended::PeerReset)),
            Poll::Pending if self.up.over => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }

    fn move_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        loop {
            if self.turn == 0 {
                return Poll::Pending;
            }
            if !self.up.early.is_empty() {
                let room = ready!(self.up.poll_room(cx, self.up.early.len()))?;
                let data = self.up.early.split_to(room.min(self.up.early.len()));
                self.send(data)?;
                continue;
            }
            ready!(self.app.poll_readable(cx)).map_err(|_| Ended::UpstreamReset)?;
            let room = ready!(self.up.poll_room(cx, self.up.chunk))?.min(self.up.chunk);
            match self.up.read(&self.app, room) {
                Ok(data) if data.is_empty() => {
                    self.up.over = true;
                    self.up.stream.send_data(Bytes::new(), true).map_err(|_| Ended::PeerReset)?;
                    return Poll::Ready(Ok(()));
                }
                Ok(data) => self.send(data)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // What is assigned here is missing elsewhere: an idle stream holds no window.
                    self.up.stream.reserve_capacity(0);
                }
                Err(_) => return Poll::Ready(Err(Ended::UpstreamReset)),
            }
        }
    }

    fn send(&mut self, data: Bytes) -> Result<(), Ended> {
        let count = data.len();
        self.up.stream.send_data(data, false).map_err(|_| Ended::PeerReset)?;
        self.traffic.sent.fetch_add(count as u64, Ordering::Relaxed);
        self.turn = self.turn.saturating_sub(count);
        Ok(())
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        loop {
            if self.down.over {
                return Poll::Ready(Ok(()));
            }
            self.down.poll_receive(cx)?;
            if self.down.is_empty() {
                if !self.down.ended {
                    return Poll::Pending;
                }
                self.app.shutdown();
                self.down.over = true;
                continue;
            }
            if self.turn == 0 {
                return Poll::Pending;
            }
            ready!(self.poll_give(cx))?;
        }
    }

    fn poll_give(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut count = 0;
        let pieces = self.down.queue.iter().map(AsRef::as_ref).chain([self.down.tail.as_ref()]);
        for (slot, piece) in slices.iter_mut().zip(pieces) {
            *slot = IoSlice::new(piece);
            count += 1;
        }
        let slices = slices.get(..count).unwrap_or_default();
        let given = ready!(self.app.poll_write(cx, slices));
        let given = given.ok().filter(|given| *given > 0).ok_or(Ended::UpstreamReset)?;
        self.down.taken(given);
        self.traffic.received.fetch_add(given as u64, Ordering::Relaxed);
        self.turn = self.turn.saturating_sub(given);
        Poll::Ready(Ok(()))
    }
}

impl Up {
    fn new(stream: SendStream<Bytes>, early: Bytes) -> Self {
        Self { stream, early, chunk: CHUNK_MIN, over: false }
    }

    /// How much may be sent now; waits until it is something.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, Ended>> {
        self.stream.reserve_capacity(wanted.min(CHUNK_MAX));
        loop {
            let room = self.stream.capacity();
            if room > 0 {
                return Poll::Ready(Ok(room));
            }
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                _ => return Poll::Ready(Err(Ended::PeerReset)),
            }
        }
    }

    /// Reads once, at most `room` bytes; empty at the application's end. What is queued for HTTP/2 is as large as what
    /// was read, however large the buffer.
    fn read(&mut self, app: &App, room: usize) -> io::Result<Bytes> {
        let mut buffer = Buffer::sized(room > SMALL);
        let room = buffer.bytes.get_mut(..room.min(CHUNK_MAX)).unwrap_or_default();
        let read = app.read(&mut [IoSliceMut::new(room)])?;
        self.chunk = match read {
            read if read == self.chunk => (self.chunk * 4).min(CHUNK_MAX),
            read if read < self.chunk / 4 => (self.chunk / 2).max(CHUNK_MIN),
            _ => self.chunk,
        };
        Ok(Bytes::copy_from_slice(room.get(..read).unwrap_or_default()))
    }
}

impl Down {
    fn new(stream: RecvStream) -> Self {
        Self { stream, queue: VecDeque::new(), tail: BytesMut::new(), ended: false, over: false }
    }

    fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.tail.is_empty()
    }

    /// Takes all that has come: as much as the stream's window, which is given back only in [`taken`](Self::taken).
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Result<(), Ended> {
        while !self.ended {
            match self.stream.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) if data.is_empty() => {}
                Poll::Ready(Some(Ok(data))) if data.len() < SHORT && !self.is_empty() => self.tail.put(data),
                Poll::Ready(Some(Ok(data))) => {
                    self.end_tail();
                    self.queue.push_back(data);
                }
                Poll::Ready(Some(Err(_))) => return Err(Ended::PeerReset),
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            self.queue.push_back(self.tail.split().freeze());
        }
    }

    /// The application has taken this much: only now may the peer send as much again.
    fn taken(&mut self, count: usize) {
        // Fails only for more than was received.
        let _ = self.stream.flow_control().release_capacity(count);
        let mut left = count;
        while let Some(front) = self.queue.front_mut() {
            if left < front.len() {
                front.advance(left);
                return;
            }
            left -= front.len();
            self.queue.pop_front();
        }
        self.tail.advance(left.min(self.tail.len()));
        if self.is_empty() {
            // An idle stream holds no memory.
            (self.queue, self.tail) = Default::default();
        }
    }
}
