//! An application's connection as HTTP sees it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::App;

/// A client that has sent its requests may close its direction and wait for the answers. Most that close have gone, and
/// then the far side should not go on working: so the end counts at once when nothing is asked, and after this long
/// when something is.
const HALF_CLOSED: Duration = Duration::from_secs(10);

/// The connection, with what detection has read of it, and with ends that come late while answers are due.
#[derive(Debug)]
pub(super) struct AppIo {
    socket: TcpStream,
    early: Bytes,
    from: Option<Arc<App>>,
    ended: Option<Pin<Box<Sleep>>>,
}

impl AppIo {
    pub(super) fn new(socket: TcpStream, early: Bytes) -> Self {
        Self { socket, early, from: None, ended: None }
    }

    /// Ends come late while this connection has requests in flight.
    pub(super) fn patient(mut self, from: Arc<App>) -> Self {
        self.from = Some(from);
        self
    }

    /// The end was read: says it now, or later.
    fn end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let due =
            |from: &Arc<App>| from.in_flight.load(Ordering::Relaxed) > 0 && !from.switched.load(Ordering::Relaxed);
        if !self.from.as_ref().is_some_and(due) {
            return Poll::Ready(Ok(()));
        }
        let timer = self.ended.get_or_insert_with(|| Box::pin(tokio::time::sleep(HALF_CLOSED)));
        timer.as_mut().poll(cx).map(Ok)
    }
}

impl AsyncRead for AppIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.early.is_empty() {
            let count = this.early.len().min(buffer.remaining());
            buffer.put_slice(this.early.get(..count).unwrap_or_default());
            this.early.advance(count);
            return Poll::Ready(Ok(()));
        }
        if this.ended.is_some() {
            return this.end(cx);
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(cx, buffer))?;
        if buffer.filled().len() == before && buffer.remaining() > 0 { this.end(cx) } else { Poll::Ready(Ok(())) }
    }
}

impl AsyncWrite for AppIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
