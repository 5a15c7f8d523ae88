//! One HTTP/2 stream as a byte stream: what an HTTP/1.1 connection inside a CONNECT stream runs on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most that goes into one DATA frame.
const CHUNK_MAX: usize = 64 << 10;

/// Both halves of an HTTP/2 stream. Shutting down sends END_STREAM; the peer's END_STREAM is the end of reading, its
/// RST_STREAM an error. The window is given back for what was read. Dropped before its shutdown, it resets the stream.
#[derive(Debug)]
pub struct StreamIo {
    send: SendStream<Bytes>,
    recv: RecvStream,
    received: Bytes,
    ended: bool,
}

impl StreamIo {
    /// From the two halves.
    pub fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        Self { send, recv, received: Bytes::new(), ended: false }
    }

    /// Resets the stream.
    pub fn reset(mut self) {
        self.ended = true;
        self.send.send_reset(Reason::CANCEL);
    }
}

impl Drop for StreamIo {
    fn drop(&mut self) {
        if !self.ended {
            self.send.send_reset(Reason::CANCEL);
        }
    }
}

impl AsyncRead for StreamIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.received.is_empty() {
            match ready!(this.recv.poll_data(cx)) {
                Some(Ok(data)) => this.received = data,
                Some(Err(error)) => return Poll::Ready(Err(reset(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = this.received.len().min(buffer.remaining());
        buffer.put_slice(this.received.get(..count).unwrap_or_default());
        this.received.advance(count);
        // Fails only for more than was received.
        let _ = this.recv.flow_control().release_capacity(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        this.send.reserve_capacity(data.len().min(CHUNK_MAX));
        while this.send.capacity() == 0 {
            match ready!(this.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(reset(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let count = data.len().min(this.send.capacity()).min(CHUNK_MAX);
        let chunk = Bytes::copy_from_slice(data.get(..count).unwrap_or_default());
        this.send.send_data(chunk, false).map_err(reset)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's driver sends what is queued.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ended {
            this.ended = true;
            this.send.send_data(Bytes::new(), true).map_err(reset)?;
        }
        Poll::Ready(Ok(()))
    }
}

fn reset(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
    }
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}
