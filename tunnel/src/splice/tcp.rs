//! TCP to TCP, through pipes.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::TcpStream;

use super::copy::{Turn, failed, half_close, write_all};
use super::pipe::Lease;
use super::{Broken, Side, Traffic};

type End<'a> = (&'a TcpStream, Side);

/// Both directions; the first failure ends both.
pub(super) async fn carry(tunnel: &TcpStream, upstream: &TcpStream, traffic: &Traffic) -> Result<(), Broken> {
    let (tunnel, upstream) = ((tunnel, Side::Tunnel), (upstream, Side::Upstream));
    let out = direction(tunnel, upstream, &traffic.sent);
    let back = direction(upstream, tunnel, &traffic.received);
    futures_util::try_join!(out, back).map(|_| ())
}

async fn direction(from: End<'_>, to: End<'_>, count: &AtomicU64) -> Result<(), Broken> {
    let mut turn = Turn::default();
    loop {
        tokio::select! {
            biased;
            ready = from.0.readable() => ready.map_err(|e| Broken::new(from.1, e))?,
            error = failed(to.0) => return Err(Broken::new(to.1, error)),
        }
        let moved = match Lease::take() {
            Ok(lease) => through_pipe(lease, from, to, count).await?,
            // No descriptors left for a pipe.
            Err(_) => through_buffer(from, to, count).await?,
        };
        match moved {
            Some(0) => return half_close(to.0).map_err(|e| Broken::new(to.1, e)),
            Some(bytes) => turn.moved(bytes).await,
            None => {}
        }
    }
}

/// One round: what the socket has, as much as a pipe takes. `None`: it had nothing after all.
async fn through_pipe(mut pipe: Lease, from: End<'_>, to: End<'_>, count: &AtomicU64) -> Result<Option<usize>, Broken> {
    let filled = match pipe.fill(from.0) {
        Ok(filled) => filled,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
        Err(error) => return Err(Broken::new(from.1, error)),
    };
    while pipe.held() > 0 {
        match pipe.empty(to.0) {
            Ok(moved) => {
                count.fetch_add(moved as u64, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => tokio::select! {
                biased;
                ready = to.0.writable() => ready.map_err(|e| Broken::new(to.1, e))?,
                error = failed(from.0) => return Err(Broken::new(from.1, error)),
            },
            Err(error) => return Err(Broken::new(to.1, error)),
        }
    }
    Ok(Some(filled))
}

/// The same by way of memory.
async fn through_buffer(from: End<'_>, to: End<'_>, count: &AtomicU64) -> Result<Option<usize>, Broken> {
    let mut buffer = Vec::with_capacity(16 << 10);
    match from.0.try_read_buf(&mut buffer) {
        Ok(read) => {
            write_all(to.0, &buffer, count).await.map_err(|e| Broken::new(to.1, e))?;
            Ok(Some(read))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(Broken::new(from.1, error)),
    }
}
