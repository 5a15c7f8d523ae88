//! The byte stream in which a sealed session runs: an opened tunnel, or a plain TCP connection inside one cluster.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

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
    },
}

impl From<TcpStream> for TunnelStream {
    fn from(socket: TcpStream) -> Self {
        Self::Tcp { socket, early: bytes::BytesMut::new() }
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(self: Pin<&mut Self>, _cx: &mut Context<'_>, _buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        unimplemented!()
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, _cx: &mut Context<'_>, _buf: &[u8]) -> Poll<io::Result<usize>> {
        unimplemented!()
    }
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        unimplemented!()
    }
    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        unimplemented!()
    }
}
