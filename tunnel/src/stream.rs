//! The byte stream in which a sealed session runs: an opened tunnel, or a plain TCP connection inside one cluster.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::quic::{RESET, StreamGuard};

/// Bytes in both directions, each with an end of its own.
#[derive(Debug)]
pub enum TunnelStream {
    /// A TCP connection whose outer session (if there was one) is over. `early` was read behind its close_notify.
    Tcp {
        /// The connection.
        socket: TcpStream,
        /// Already received, to be read first.
        early: bytes::BytesMut,
    },
    /// One bidirectional stream of a QUIC connection.
    Quic {
        /// Towards the peer.
        send: quinn::SendStream,
        /// From the peer.
        recv: quinn::RecvStream,
        /// Keeps the connection; to be dropped last.
        guard: StreamGuard,
    },
}

impl TunnelStream {
    /// Fires when what leads to the far end is replaced while this stream lives on: a session that serves many should be
    /// opened anew then, or an old certificate is held in use for as long as it lasts. `None` where nothing is in between.
    pub fn moved(&self) -> Option<CancellationToken> {
        match self {
            Self::Tcp { .. } => None,
            Self::Quic { guard, .. } => Some(guard.retired()),
        }
    }

    /// Ends both directions at once, so that the peer sees a reset and not an end.
    pub fn reset(self) {
        match self {
            Self::Tcp { socket, .. } => reset_on_close(&socket),
            Self::Quic { mut send, mut recv, guard } => {
                // Either half may have ended by itself.
                let _ = send.reset(RESET);
                let _ = recv.stop(RESET);
                drop(guard);
            }
        }
    }
}

/// Closing this socket sends RST and drops what is unsent.
pub(crate) fn reset_on_close(socket: &TcpStream) {
    // Fails only on a socket that is gone already.
    let _ = socket.set_zero_linger();
}

impl From<TcpStream> for TunnelStream {
    fn from(socket: TcpStream) -> Self {
        Self::Tcp { socket, early: bytes::BytesMut::new() }
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp { socket, early } if early.is_empty() => Pin::new(socket).poll_read(cx, buf),
            Self::Tcp { early, .. } => {
                let taken = early.len().min(buf.remaining());
                buf.put_slice(early.get(..taken).unwrap_or_default());
                early.advance(taken);
                if early.is_empty() {
                    // Gives the memory back: the stream may live long.
                    *early = bytes::BytesMut::new();
                }
                Poll::Ready(Ok(()))
            }
            Self::Quic { recv, .. } => AsyncRead::poll_read(Pin::new(recv), cx, buf),
        }
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp { socket, .. } => Pin::new(socket).poll_write(cx, buf),
            Self::Quic { send, .. } => AsyncWrite::poll_write(Pin::new(send), cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp { socket, .. } => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Quic { send, .. } => {
                let first = bufs.iter().find(|b| !b.is_empty()).map_or(&[][..], |b| b);
                AsyncWrite::poll_write(Pin::new(send), cx, first)
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self, Self::Tcp { .. })
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Neither keeps anything back: TCP is the kernel's, and quinn's driver sends by itself.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp { socket, .. } => Pin::new(socket).poll_shutdown(cx),
            Self::Quic { send, .. } => AsyncWrite::poll_shutdown(Pin::new(send), cx),
        }
    }
}
