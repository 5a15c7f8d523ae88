//! The ciphertext side of a session: a [`TunnelStream`] with polls that fit large buffers.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::stream::TunnelStream;

/// Resolves when a read is worth a buffer. Over QUIC only the read itself can tell.
pub(crate) fn poll_readable(stream: &TunnelStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    match stream {
        TunnelStream::Tcp { socket, early } if early.is_empty() => socket.poll_read_ready(cx),
        _ => Poll::Ready(Ok(())),
    }
}

/// Reads what is there, 0 at the end.
pub(crate) fn poll_read(stream: &mut TunnelStream, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
    let mut buffer = ReadBuf::new(buffer);
    match stream {
        TunnelStream::Tcp { early, .. } if !early.is_empty() => {
            let count = early.len().min(buffer.remaining());
            buffer.put_slice(early.get(..count).unwrap_or_default());
            early.advance(count);
            if early.is_empty() {
                *early = bytes::BytesMut::new();
            }
        }
        TunnelStream::Tcp { socket, .. } => ready!(Pin::new(socket).poll_read(cx, &mut buffer))?,
        TunnelStream::Quic { recv, .. } => ready!(AsyncRead::poll_read(Pin::new(recv), cx, &mut buffer))?,
    }
    Poll::Ready(Ok(buffer.filled().len()))
}

/// Writes some.
pub(crate) fn poll_write(stream: &mut TunnelStream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    let written = match stream {
        TunnelStream::Tcp { socket, .. } => ready!(Pin::new(socket).poll_write(cx, bytes))?,
        TunnelStream::Quic { send, .. } => ready!(AsyncWrite::poll_write(Pin::new(send), cx, bytes))?,
    };
    if written == 0 && !bytes.is_empty() {
        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
    }
    Poll::Ready(Ok(written))
}

/// Ends our direction of the stream below TLS.
pub(crate) fn poll_shutdown(stream: &mut TunnelStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    match stream {
        TunnelStream::Tcp { socket, .. } => Pin::new(socket).poll_shutdown(cx),
        TunnelStream::Quic { send, .. } => AsyncWrite::poll_shutdown(Pin::new(send), cx),
    }
}
