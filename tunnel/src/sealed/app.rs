//! An application's connection, as both kinds of session use it.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::stream::reset_on_close;

/// A socket whose reset is noticed even when nobody reads it any more.
pub(crate) struct App {
    socket: Arc<TcpStream>,
    watch: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl App {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self { socket: Arc::new(socket), watch: None }
    }

    /// Resolves when a read is worth a buffer.
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_read_ready(cx)
    }

    /// Reads once; `WouldBlock` where nothing is there, 0 at the end.
    pub(crate) fn read(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let asked = slices.iter().map(|slice| slice.len()).sum();
        self.once(Interest::READABLE, asked, || rustix::io::readv(&*self.socket, slices))
    }

    /// Writes once.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let asked = slices.iter().map(|slice| slice.len()).sum();
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            let written = self.once(Interest::WRITABLE, asked, || rustix::io::writev(&*self.socket, slices));
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    /// One system call. Less than was asked for means that there is no more for now: the runtime is told so at once
    /// (with the readiness that it had before the call, so that no later event is lost), which saves a second call.
    fn once(
        &self,
        interest: Interest,
        asked: usize,
        call: impl FnOnce() -> rustix::io::Result<usize>,
    ) -> io::Result<usize> {
        let mut moved = 0;
        let result = self.socket.try_io(interest, || {
            moved = call()?;
            if (1..asked).contains(&moved) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match result {
            Err(_) if moved > 0 => Ok(moved),
            result => result.map(|()| moved),
        }
    }

    /// Passes the end on.
    pub(crate) fn shutdown(&self) {
        // Fails only where the application is gone, which the other direction notices.
        let _ = socket2::SockRef::from(&*self.socket).shutdown(Shutdown::Write);
    }

    /// Resolves when the connection has failed. For when its end has been read, after which reads tell no more.
    pub(crate) fn poll_failed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let watch = self.watch.get_or_insert_with(|| {
            let socket = self.socket.clone();
            // Fails only when the runtime shuts down.
            Box::pin(async move { drop(socket.ready(Interest::ERROR).await) })
        });
        watch.as_mut().poll(cx)
    }

    /// Closing it from now on resets it.
    pub(crate) fn reset(&self) {
        reset_on_close(&self.socket);
    }
}
