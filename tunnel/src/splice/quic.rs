//! QUIC to TCP: what came in datagrams leaves in one writev; what is read from TCP is given to quinn uncopied.

use std::io::{self, IoSlice};
use std::sync::atomic::Ordering;

use bytes::{Buf, Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::copy::{Turn, failed, half_close};
use super::{Broken, Ended, Side, Traffic, until_cut};
use crate::quic::RESET;

/// Chunks that are written at once: one a datagram.
const CHUNKS: usize = 32;
/// The first read of a direction, and the least.
const READ_MIN: usize = 4 << 10;
/// The largest; a socket that always has more is read this much at a time.
const READ_MAX: usize = 256 << 10;

/// Both halves of a stream: dropped without an [`end`](Self::end), they are reset.
pub(super) struct Halves {
    send: SendStream,
    recv: RecvStream,
    ended: bool,
}

impl Halves {
    pub(super) fn new(send: SendStream, recv: RecvStream) -> Self {
        Self { send, recv, ended: false }
    }

    pub(super) fn end(&mut self, ended: Ended) {
        self.ended = ended == Ended::Finished;
    }
}

impl Drop for Halves {
    fn drop(&mut self) {
        if !self.ended {
            // Either may have ended by itself.
            let _ = self.send.reset(RESET);
            let _ = self.recv.stop(RESET);
        }
    }
}

pub(super) async fn carry(
    halves: &mut Halves,
    upstream: &TcpStream,
    traffic: &Traffic,
    cut: &CancellationToken,
) -> Ended {
    let out = to_upstream(&mut halves.recv, upstream, traffic);
    let back = to_tunnel(&mut halves.send, upstream, traffic);
    until_cut(async { futures_util::try_join!(out, back).map(|_| ()) }, cut).await
}

async fn to_upstream(recv: &mut RecvStream, upstream: &TcpStream, traffic: &Traffic) -> Result<(), Broken> {
    let mut turn = Turn::default();
    loop {
        let mut chunks = [const { Bytes::new() }; CHUNKS];
        let read = tokio::select! {
            biased;
            read = recv.read_chunks(&mut chunks) => read.map_err(|e| Broken::new(Side::Tunnel, e))?,
            error = failed(upstream) => return Err(Broken::new(Side::Upstream, error)),
        };
        let Some(read) = read else {
            return half_close(upstream).map_err(|e| Broken::new(Side::Upstream, e));
        };
        let mut left = chunks.get_mut(..read).unwrap_or_default();
        while !left.is_empty() {
            let written = match upstream.try_write_vectored(&slices(left)) {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    writable(upstream, recv).await?;
                    continue;
                }
                Err(error) => return Err(Broken::new(Side::Upstream, error)),
            };
            traffic.sent.fetch_add(written as u64, Ordering::Relaxed);
            let through = advance(left, written);
            left = left.split_at_mut(through).1;
            turn.moved(written).await;
        }
    }
}

/// Waits for room at the upstream; a reset of the stream meanwhile ends the wait.
async fn writable(upstream: &TcpStream, recv: &mut RecvStream) -> Result<(), Broken> {
    tokio::select! {
        biased;
        ready = upstream.writable() => ready.map_err(|e| Broken::new(Side::Upstream, e)),
        Err(error) = reset(recv) => Err(Broken::new(Side::Tunnel, error)),
    }
}

/// Fails when the stream is reset or its connection is lost; succeeds when neither can happen any more.
async fn reset(recv: &mut RecvStream) -> io::Result<()> {
    match recv.received_reset().await {
        Ok(Some(code)) => Err(ReadError::Reset(code).into()),
        Ok(None) => Ok(()),
        Err(_) => Err(io::ErrorKind::ConnectionReset.into()),
    }
}

fn slices(chunks: &[Bytes]) -> [IoSlice<'_>; CHUNKS] {
    std::array::from_fn(|at| IoSlice::new(chunks.get(at).map_or(&[][..], |chunk| chunk)))
}

/// Takes `written` bytes off the front and says how many chunks are through.
fn advance(chunks: &mut [Bytes], mut written: usize) -> usize {
    let mut through = 0;
    for chunk in chunks {
        let taken = written.min(chunk.len());
        chunk.advance(taken);
        written -= taken;
        if !chunk.is_empty() {
            break;
        }
        through += 1;
    }
    through
}

async fn to_tunnel(send: &mut SendStream, upstream: &TcpStream, traffic: &Traffic) -> Result<(), Broken> {
    let lost = |error: io::Error| Broken::new(Side::Tunnel, error);
    let mut stopped = std::pin::pin!(send.stopped());
    let mut size = READ_MIN;
    let mut turn = Turn::default();
    loop {
        tokio::select! {
            biased;
            ready = upstream.readable() => ready.map_err(|e| Broken::new(Side::Upstream, e))?,
            _ = &mut stopped => return Err(lost(io::ErrorKind::ConnectionReset.into())),
        }
        let mut buffer = BytesMut::with_capacity(size);
        match upstream.try_read_buf(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                // quinn keeps the whole buffer until the last byte of it is acknowledged.
                let sparse = read < size / 4;
                let chunk = if sparse { Bytes::copy_from_slice(&buffer) } else { buffer.freeze() };
                size = if read == size { (size * 4).min(READ_MAX) } else { read.next_power_of_two().max(READ_MIN) };
                tokio::select! {
                    biased;
                    written = send.write_chunk(chunk) => written.map_err(|e| lost(e.into()))?,
                    error = failed(upstream) => return Err(Broken::new(Side::Upstream, error)),
                }
                traffic.received.fetch_add(read as u64, Ordering::Relaxed);
                turn.moved(read).await;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(Broken::new(Side::Upstream, error)),
        }
    }
    // Closed meanwhile is found by `stopped`.
    let _ = send.finish();
    // Until the peer has it all: the connection may be ended after the last stream.
    match stopped.await {
        Ok(None) => Ok(()),
        _ => Err(lost(io::ErrorKind::ConnectionReset.into())),
    }
}
