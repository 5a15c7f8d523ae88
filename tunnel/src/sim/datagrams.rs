//! Two UDP sockets for quinn.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Network;

/// One end of a pair of UDP sockets.
#[derive(Debug)]
pub struct Socket {
    address: SocketAddr,
    network: Network,
    mine: Arc<Mutex<Queue>>,
    theirs: Arc<Mutex<Queue>>,
    timer: Mutex<Pin<Box<Sleep>>>,
}

#[derive(Debug, Default)]
struct Queue {
    // In the order of their arrival: the latency is one and the same.
    datagrams: VecDeque<(Instant, SocketAddr, Vec<u8>)>,
    reader: Option<Waker>,
}

impl Network {
    /// A socket on each address; either reaches only the other.
    pub fn datagrams(&self, a: SocketAddr, b: SocketAddr) -> (Arc<Socket>, Arc<Socket>) {
        let (to_a, to_b) = (Arc::<Mutex<Queue>>::default(), Arc::<Mutex<Queue>>::default());
        let end = |address, mine: &Arc<Mutex<Queue>>, theirs: &Arc<Mutex<Queue>>| {
            let timer = Mutex::new(Box::pin(sleep_until(Instant::now())));
            Arc::new(Socket { address, network: self.clone(), mine: mine.clone(), theirs: theirs.clone(), timer })
        };
        (end(a, &to_a, &to_b), end(b, &to_b, &to_a))
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let size = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        for datagram in transmit.contents.chunks(size) {
            let Some(arrival) = self.network.arrival() else { continue };
            let mut queue = self.theirs.lock();
            queue.datagrams.push_back((arrival, self.address, datagram.to_vec()));
            if let Some(reader) = queue.reader.take() {
                reader.wake();
            }
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (Some(buf), Some(meta)) = (bufs.first_mut(), meta.first_mut()) else {
            return Poll::Ready(Ok(0));
        };
        let mut timer = self.timer.lock();
        let mut queue = self.mine.lock();
        queue.reader = Some(cx.waker().clone());
        let Some((arrival, ..)) = queue.datagrams.front() else {
            return Poll::Pending;
        };
        if *arrival > Instant::now() {
            timer.as_mut().reset(*arrival);
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        let Some((_, addr, datagram)) = queue.datagrams.pop_front() else {
            return Poll::Pending;
        };
        let length = datagram.len().min(buf.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..length), datagram.get(..length)) {
            to.copy_from_slice(from);
        }
        *meta = RecvMeta { addr, len: length, stride: length, ..RecvMeta::default() };
        Poll::Ready(Ok(1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
