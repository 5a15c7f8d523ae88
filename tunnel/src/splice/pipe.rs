//! Pipes for splice(2), shared by the streams of a thread.
//!
//! A pipe belongs to a stream only from the moment when its socket has bytes until these have left, so that streams
//! which do nothing own none. rustix's calls are safe: descriptors are borrowed for the call, and no memory is shared.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// What a pipe is asked to hold, in bytes: the largest that the kernel gives without privilege. Fewer, larger moves
/// halve the cost of a byte against the default.
const WANTED: usize = 1 << 20;
/// What a pipe holds when no more is granted (`fs.pipe-user-pages-soft` is used up).
const DEFAULT: usize = 64 << 10;
/// Empty pipes that a thread keeps; they hold no pages, only two descriptors each.
const KEPT: usize = 32;

thread_local! {
    static POOL: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

#[derive(Debug)]
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    size: usize,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC)?;
        let size = fcntl_setpipe_size(&write, WANTED).unwrap_or(DEFAULT);
        Ok(Self { read, write, size })
    }
}

/// A pipe in use. Dropped empty it goes back to the thread's pool; dropped with bytes inside it is closed.
#[derive(Debug)]
pub(super) struct Lease {
    pipe: Option<Pipe>,
    held: usize,
}

impl Lease {
    pub(super) fn take() -> io::Result<Self> {
        let kept = POOL.with_borrow_mut(Vec::pop);
        let pipe = kept.map_or_else(Pipe::new, Ok)?;
        Ok(Self { pipe: Some(pipe), held: 0 })
    }

    /// Bytes inside.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Moves what the socket has into the empty pipe; 0 is the end of the stream.
    pub(super) fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        let pipe = self.pipe()?;
        let moved = from.try_io(Interest::READABLE, || transfer(from, &pipe.write, pipe.size))?;
        self.held += moved;
        Ok(moved)
    }

    /// Moves what the pipe has into the socket, as much as that takes.
    pub(super) fn empty(&mut self, to: &TcpStream) -> io::Result<usize> {
        let held = self.held;
        let pipe = self.pipe()?;
        let moved = to.try_io(Interest::WRITABLE, || transfer(&pipe.read, to, held))?;
        self.held = held.saturating_sub(moved);
        Ok(moved)
    }

    fn pipe(&self) -> io::Result<&Pipe> {
        self.pipe.as_ref().ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(pipe) = self.pipe.take().filter(|_| self.held == 0) else { return };
        // The pool is gone when its thread ends; then the pipe is simply closed.
        let _ = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < KEPT {
                pool.push(pipe);
            }
        });
    }
}

fn transfer(from: &impl AsFd, to: &impl AsFd, length: usize) -> io::Result<usize> {
    loop {
        match splice(from, None, to, None, length, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
            Err(rustix::io::Errno::INTR) => {}
            moved => return Ok(moved?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (a, b) = tokio::join!(TcpStream::connect(address), listener.accept());
        (a.unwrap(), b.unwrap().0)
    }

    #[tokio::test]
    async fn bytes_go_through_and_the_empty_pipe_is_used_again() {
        let (mut app, near) = pair().await;
        let (far, mut upstream) = pair().await;
        app.write_all(b"hello").await.unwrap();
        near.readable().await.unwrap();
        let mut lease = Lease::take().unwrap();
        assert_eq!(lease.fill(&near).unwrap(), 5);
        assert_eq!(lease.empty(&far).unwrap(), 5);
        assert_eq!(lease.held(), 0);
        drop(lease);
        assert_eq!(POOL.with_borrow(Vec::len), 1);
        let mut got = [0; 5];
        upstream.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"hello");
        // The end of the stream is 0 bytes.
        app.shutdown().await.unwrap();
        let mut lease = Lease::take().unwrap();
        assert_eq!(POOL.with_borrow(Vec::len), 0);
        while matches!(lease.fill(&near), Err(e) if e.kind() == io::ErrorKind::WouldBlock) {
            near.readable().await.unwrap();
        }
        assert_eq!(lease.fill(&near).unwrap(), 0);
    }

    #[tokio::test]
    async fn a_pipe_with_bytes_inside_never_reaches_another_stream() {
        let (mut app, near) = pair().await;
        app.write_all(b"secret").await.unwrap();
        near.readable().await.unwrap();
        let mut lease = Lease::take().unwrap();
        assert_eq!(lease.fill(&near).unwrap(), 6);
        drop(lease);
        assert_eq!(POOL.with_borrow(Vec::len), 0);
    }
}
