//! Bodies between a shared session's stream and an application.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::HeaderMap;
use bytes::Bytes;
use futures_util::task::AtomicWaker;
use h2::{Reason, RecvStream, SendStream};
use hawser_tunnel::splice::Traffic;
use http_body::{Body, Frame, SizeHint};

use crate::headers;

/// A caller that takes nothing of an answer for this long is given up: it holds an application's connection. Longer
/// than people pause a download, shorter than descriptors last against a hostile one.
const STALLED: Duration = Duration::from_secs(300);

/// Which end stopped a body before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// The caller reset the stream, or its session is over.
    Caller(Reason),
    /// The application did.
    Application(Reason),
}

const HELD: u8 = 0;
const OPEN: u8 = 1;
const STOPPED: u8 = 2;

/// The far side of an [`Upload`], which hyper owns.
#[derive(Debug, Default)]
pub(super) struct Control {
    state: AtomicU8,
    ended: AtomicBool,
    failed: AtomicBool,
    waker: AtomicWaker,
}

impl Control {
    /// `held`: nothing is given before [`open`](Self::open), as `Expect: 100-continue` wants it.
    pub(super) fn new(held: bool) -> Arc<Self> {
        let state = AtomicU8::new(if held { HELD } else { OPEN });
        Arc::new(Self { state, ..Self::default() })
    }

    /// Whether the body still waits.
    pub(super) fn is_held(&self) -> bool {
        self.state.load(Ordering::Acquire) == HELD
    }

    /// The application wants the body.
    pub(super) fn open(&self) {
        let _ = self.state.compare_exchange(HELD, OPEN, Ordering::AcqRel, Ordering::Acquire);
        self.waker.wake();
    }

    /// Nobody wants the rest: hyper drops its connection, and the caller's stream is told.
    pub(super) fn stop(&self) {
        self.state.store(STOPPED, Ordering::Release);
        self.waker.wake();
    }

    /// The application has the whole body.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// The caller broke off.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}

/// A caller's request body on its way into hyper's client.
pub(super) struct Upload {
    recv: RecvStream,
    length: Option<u64>,
    left: u64,
    traffic: Arc<Traffic>,
    control: Arc<Control>,
}

impl Upload {
    /// From a stream; `length` is what `content-length` says.
    pub(super) fn new(recv: RecvStream, length: Option<u64>, traffic: Arc<Traffic>, control: Arc<Control>) -> Self {
        if recv.is_end_stream() {
            control.ended.store(true, Ordering::Release);
        }
        Self { recv, length, left: length.unwrap_or_default(), traffic, control }
    }

    fn take(&mut self, data: &Bytes) {
        // Given back at once: hyper takes more only when it has room for it.
        let _ = self.recv.flow_control().release_capacity(data.len());
        let taken = u64::try_from(data.len()).unwrap_or_default();
        self.traffic.received.fetch_add(taken, Ordering::Relaxed);
        self.left = self.left.saturating_sub(taken);
        // hyper does not ask again after the last byte of a known length.
        if self.length.is_some() && self.left == 0 {
            self.control.ended.store(true, Ordering::Release);
        }
    }

    fn fail(&self) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.control.failed.store(true, Ordering::Release);
        Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.control.waker.register(cx.waker());
        match self.control.state.load(Ordering::Acquire) {
            HELD => return Poll::Pending,
            OPEN => {}
            _ => return Poll::Ready(Some(Err(io::ErrorKind::Interrupted.into()))),
        }
        match std::task::ready!(self.recv.poll_data(cx)) {
            Some(Ok(data)) => {
                self.take(&data);
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            Some(Err(_)) => return self.fail(),
            None => {}
        }
        match std::task::ready!(self.recv.poll_trailers(cx)) {
            Ok(trailers) => {
                self.control.ended.store(true, Ordering::Release);
                Poll::Ready(trailers.map(|mut trailers| {
                    headers::strip_trailers(&mut trailers);
                    Ok(Frame::trailers(trailers))
                }))
            }
            Err(_) => self.fail(),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.recv.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, |_| SizeHint::with_exact(self.left))
    }
}

/// Sends an application's answer to the caller, whole, with backpressure; notices when the caller breaks off meanwhile.
pub(super) async fn download<B>(mut body: B, send: &mut SendStream<Bytes>, traffic: &Traffic) -> Result<(), Broken>
where
    B: Body<Data = Bytes> + Unpin,
{
    loop {
        let frame = std::future::poll_fn(|cx| match Pin::new(&mut body).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => poll_reset(send, cx).map(|reason| Err(Broken::Caller(reason))),
        });
        let frame = match frame.await? {
            None => return send_all(send, Bytes::new(), true).await,
            Some(Ok(frame)) => frame,
            Some(Err(_)) => return Err(Broken::Application(Reason::INTERNAL_ERROR)),
        };
        let trailers = match frame.into_data() {
            Ok(data) => {
                traffic.sent.fetch_add(u64::try_from(data.len()).unwrap_or_default(), Ordering::Relaxed);
                let last = body.is_end_stream();
                send_all(send, data, last).await?;
                if last {
                    return Ok(());
                }
                continue;
            }
            Err(other) => other.into_trailers(),
        };
        if let Ok(trailers) = trailers {
            return send_trailers(send, trailers);
        }
    }
}

/// Ends a message with trailers.
pub(super) fn send_trailers(send: &mut SendStream<Bytes>, mut trailers: HeaderMap) -> Result<(), Broken> {
    headers::strip_trailers(&mut trailers);
    send.send_trailers(trailers).map_err(|e| Broken::Caller(e.reason().unwrap_or(Reason::CANCEL)))
}

/// Sends data as the receiver's window allows.
pub(super) async fn send_all(send: &mut SendStream<Bytes>, mut data: Bytes, last: bool) -> Result<(), Broken> {
    let broken = |e: h2::Error| Broken::Caller(e.reason().unwrap_or(Reason::CANCEL));
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let mut room = send.capacity();
        if room == 0 {
            let more = tokio::time::timeout(STALLED, std::future::poll_fn(|cx| send.poll_capacity(cx))).await;
            room = match more {
                Ok(Some(room)) => room.map_err(broken)?,
                Ok(None) => return Err(Broken::Caller(Reason::CANCEL)),
                Err(_) => return Err(Broken::Caller(Reason::ENHANCE_YOUR_CALM)),
            };
        }
        let part = data.split_to(room.min(data.len()));
        let end = last && data.is_empty();
        send.send_data(part, end).map_err(broken)?;
        if end {
            return Ok(());
        }
    }
    if last { send.send_data(Bytes::new(), true).map_err(broken) } else { Ok(()) }
}

/// Ready when the other end has reset the stream or its connection is over.
pub(super) fn poll_reset(send: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Reason> {
    send.poll_reset(cx).map(|reset| reset.unwrap_or(Reason::CANCEL))
}
