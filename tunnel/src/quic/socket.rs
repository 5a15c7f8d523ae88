//! The UDP socket under an endpoint: large kernel buffers, large datagrams, batches that the kernel takes.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use socket2::{Domain, Protocol, Type};

/// Largest UDP payload over IPv4, in bytes: what one system call sends or receives at most, offloaded or not.
pub(crate) const DATAGRAM_MAX: u16 = 65_507;

/// A non-blocking UDP socket with buffers as near to `buffer` as the kernel allows.
pub(crate) fn bind(address: SocketAddr, buffer: usize) -> io::Result<std::net::UdpSocket> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // Clamped by net.core.[rw]mem_max, never an error worth failing for.
    let _ = socket.set_recv_buffer_size(buffer);
    let _ = socket.set_send_buffer_size(buffer);
    let granted = socket.recv_buffer_size().unwrap_or(0);
    if granted < buffer {
        tracing::debug!(
            granted,
            wanted = buffer,
            "the kernel limits UDP buffers: raise net.core.rmem_max and wmem_max"
        );
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// quinn's socket with two corrections for large datagrams.
///
/// quinn reserves (largest datagram) × (most segments per receive) bytes for each of 32 receives, which would be 128 MiB;
/// but whatever the kernel merges never exceeds one largest datagram. And quinn sends batches of up to ten datagrams,
/// which the kernel refuses beyond 64 KiB; such a batch goes out in several.
#[derive(Debug)]
pub(crate) struct Socket(Arc<dyn AsyncUdpSocket>);

impl Socket {
    pub(crate) fn new(inner: Arc<dyn AsyncUdpSocket>) -> Self {
        Self(inner)
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.0.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let fits = transmit.segment_size.map_or(usize::MAX, |size| batch(size) * size);
        if transmit.contents.len() <= fits {
            return self.0.try_send(transmit);
        }
        // If the socket fills up midway quinn sends the whole batch again, and the peer drops what it has twice.
        for contents in transmit.contents.chunks(fits) {
            self.0.try_send(&Transmit {
                destination: transmit.destination,
                ecn: transmit.ecn,
                contents,
                segment_size: transmit.segment_size,
                src_ip: transmit.src_ip,
            })?;
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.0.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        1
    }

    fn may_fragment(&self) -> bool {
        self.0.may_fragment()
    }
}

/// How many datagrams of this size the kernel takes in one call.
fn batch(segment: usize) -> usize {
    (usize::from(DATAGRAM_MAX) / segment.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_never_exceeds_what_the_kernel_takes_and_is_never_empty() {
        for segment in [1, 1200, 1452, 8952, 16_000, 40_000, 65_507] {
            let datagrams = batch(segment);
            assert!(datagrams >= 1 && datagrams * segment <= usize::from(DATAGRAM_MAX), "{segment}");
        }
        assert_eq!(batch(70_000), 1);
    }
}
