//! What is common to all ways of carrying: waiting, writing, passing an end on, letting others run.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::Interest;
use tokio::net::TcpStream;

/// One stream moves this much and then lets the others of its thread run.
const TURN: usize = 1 << 20;

/// Resolves when the connection has failed: a reset that comes while nobody reads.
pub(super) async fn failed(socket: &TcpStream) -> io::Error {
    loop {
        match socket.ready(Interest::ERROR).await {
            Ok(ready) if ready.is_error() => {
                let error = socket.take_error().ok().flatten();
                return error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
            }
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => return error,
        }
    }
}

/// Writes everything and counts what was written.
pub(super) async fn write_all(to: &TcpStream, mut bytes: &[u8], count: &AtomicU64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = write_some(to, &[IoSlice::new(bytes)]).await?;
        count.fetch_add(written as u64, Ordering::Relaxed);
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// Writes at least one byte of these, waiting for room.
pub(super) async fn write_some(to: &TcpStream, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
    loop {
        match to.try_write_vectored(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
            written => return written,
        }
    }
}

/// Passes the end of the other direction on.
pub(super) fn half_close(to: &TcpStream) -> io::Result<()> {
    match socket2::SockRef::from(to).shutdown(std::net::Shutdown::Write) {
        // Reset or closed meanwhile: whoever reads it finds that out.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        done => done,
    }
}

/// Counts what one direction moved since it last let others run.
#[derive(Debug, Default)]
pub(super) struct Turn(usize);

impl Turn {
    pub(super) async fn moved(&mut self, bytes: usize) {
        self.0 += bytes;
        if self.0 >= TURN {
            self.0 = 0;
            tokio::task::yield_now().await;
        }
    }
}
