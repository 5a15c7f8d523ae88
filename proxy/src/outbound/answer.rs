//! The way back: the body of an answer, as hyper wants it, with its flow control and its end.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use hawser_tunnel::splice::Traffic;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::trip::Trip;
use crate::headers;
use crate::session::Ticket;

/// An answer's body.
pub(super) enum Answer {
    /// Hawser's own.
    Own(
        Option<Bytes>,
        #[expect(dead_code, reason = "kept until the answer has been sent: its end is the trip's")] Trip,
    ),
    /// None: the connection becomes something else.
    Empty,
    /// From a stream of a shared session.
    Far(Box<Far>),
    /// From an HTTP/1.1 connection inside a stream.
    Inside(Box<Inside>),
}

/// Longest answer that is read whole before the application gets any of it, so that what dies midway can still be asked
/// elsewhere. Such an answer comes in one piece with its head as a rule: waiting for its end costs nothing then.
pub(super) const WHOLE_MAX: u64 = 16 * 1024;

/// Reads `length` bytes of an answer ahead, or what there is of them.
pub(super) async fn read_ahead(body: &mut RecvStream, length: u64) -> Result<VecDeque<Bytes>, h2::Error> {
    let mut early = VecDeque::new();
    let mut read = 0;
    while read < length {
        match body.data().await {
            Some(Ok(data)) => {
                let _ = body.flow_control().release_capacity(data.len());
                read += data.len() as u64;
                early.push_back(data);
            }
            // The answer is whole, and the rest of the request is not wanted (RFC 9113 section 8.1).
            Some(Err(error)) if error.is_reset() && error.reason() == Some(h2::Reason::NO_ERROR) => break,
            Some(Err(error)) => return Err(error),
            None => break,
        }
    }
    Ok(early)
}

/// A body that comes from a stream.
pub(super) struct Far {
    /// What was read ahead.
    pub(super) early: VecDeque<Bytes>,
    pub(super) body: RecvStream,
    pub(super) trip: Trip,
    pub(super) traffic: Arc<Traffic>,
    /// Its place in the session, until the answer's end.
    pub(super) ticket: Ticket,
    /// Its request's body, if nobody asked for it: dropped with the answer, which resets what is left of the stream.
    #[expect(dead_code, reason = "only held")]
    pub(super) held: Option<SendStream<Bytes>>,
    pub(super) data_over: bool,
    pub(super) broken: Option<h2::Error>,
}

/// A body that comes out of an HTTP/1.1 connection inside a stream.
pub(super) struct Inside {
    pub(super) body: Incoming,
    pub(super) trip: Trip,
    pub(super) traffic: Arc<Traffic>,
    #[expect(dead_code, reason = "its place in the session, until the answer's end")]
    pub(super) ticket: Ticket,
}

/// Why an answer breaks off. hyper looks for the `h2::Error` in it and resets an HTTP/2 stream with its reason; an
/// HTTP/1.1 connection it closes.
#[derive(Debug, thiserror::Error)]
pub(super) enum Abort {
    /// The far stream or its session failed.
    #[error("the answer broke off: {0}")]
    Far(#[from] h2::Error),
    /// The connection inside the stream failed, or the application's own.
    #[error("the exchange broke off: {0}")]
    Http(#[from] hyper::Error),
}

impl Far {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Abort>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error.into())));
        }
        while !self.data_over {
            let next = match self.early.pop_front() {
                Some(data) => Some(Ok(data)),
                None => ready!(self.body.poll_data(cx)).map(|data| {
                    // hyper asks for the next only when it has room for it: what it takes may be sent again.
                    data.inspect(|data| drop(self.body.flow_control().release_capacity(data.len())))
                }),
            };
            match next {
                Some(Ok(data)) => {
                    self.traffic.received.fetch_add(data.len() as u64, Ordering::Relaxed);
                    if self.early.is_empty() && self.body.is_end_stream() {
                        self.trip.completed();
                    }
                    if !data.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                }
                Some(Err(error)) => return self.failed(cx, error),
                None => self.data_over = true,
            }
        }
        match ready!(self.body.poll_trailers(cx)) {
            Ok(trailers) => {
                self.trip.completed();
                Poll::Ready(trailers.map(|mut trailers| {
                    headers::strip_trailers(&mut trailers);
                    Ok(Frame::trailers(trailers))
                }))
            }
            Err(error) => self.failed(cx, error),
        }
    }

    fn failed(&mut self, cx: &Context<'_>, error: h2::Error) -> Poll<Option<Result<Frame<Bytes>, Abort>>> {
        if error.reason() == Some(h2::Reason::NO_ERROR) && error.is_reset() {
            // The answer was whole and the rest of the request is not wanted (RFC 9113 section 8.1).
            self.trip.completed();
            return Poll::Ready(None);
        }
        if let Some(code) = self.ticket.session.hold.cut_because() {
            self.trip.cut(code);
        }
        // hyper drops what it has not written when a body fails: one turn lets it write what came before.
        self.broken = Some(error);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Inside {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Abort>>> {
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            None => {
                self.trip.completed();
                Poll::Ready(None)
            }
            Some(Ok(frame)) => {
                let count = frame.data_ref().map_or(0, Bytes::len);
                self.traffic.received.fetch_add(count as u64, Ordering::Relaxed);
                if self.body.is_end_stream() {
                    self.trip.completed();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error.into()))),
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Abort;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Abort>>> {
        match self.get_mut() {
            Self::Own(body, _) => Poll::Ready(body.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b)))),
            Self::Empty => Poll::Ready(None),
            Self::Far(far) => far.poll(cx),
            Self::Inside(inside) => inside.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body, _) => body.as_ref().is_none_or(Bytes::is_empty),
            Self::Empty => true,
            Self::Far(far) => far.early.is_empty() && far.body.is_end_stream(),
            Self::Inside(inside) => inside.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body, _) => SizeHint::with_exact(body.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Empty => SizeHint::with_exact(0),
            // hyper takes the length from the answer's own header, if it has one.
            Self::Far(_) => SizeHint::default(),
            Self::Inside(inside) => inside.body.size_hint(),
        }
    }
}
