//! One try of one request on one session: head and body out, the answer's head back.
//!
//! The body goes out while the answer is awaited, under the stream's flow control, and goes on after an answer that came
//! early. What was sent is kept up to a bound, so that another endpoint can be given the same.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use hawser_tunnel::splice::Traffic;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::retry::REPLAY_MAX;
use crate::headers;

/// A request's body on its way.
#[derive(Debug)]
pub(super) struct Upload {
    body: Incoming,
    /// What has been read of it, while it is short enough to be sent again.
    kept: Vec<Bytes>,
    kept_bytes: usize,
    /// How many of `kept` have been taken for this try.
    taken: usize,
    /// All of it can be sent again.
    whole: bool,
    /// Being sent.
    chunk: Bytes,
    trailers: Option<HeaderMap>,
    read_to_end: bool,
}

/// Why a body did not go out.
#[derive(Debug)]
pub(super) enum Stuck {
    /// The application broke off.
    App(hyper::Error),
    /// The far side wants no more; the answer says why, if there is one.
    Far,
}

impl Upload {
    pub(super) fn new(body: Incoming) -> Self {
        let read_to_end = body.is_end_stream();
        Self {
            body,
            kept: Vec::new(),
            kept_bytes: 0,
            taken: 0,
            whole: true,
            chunk: Bytes::new(),
            trailers: None,
            read_to_end,
        }
    }

    /// Nothing is left to send.
    fn is_empty(&self) -> bool {
        self.chunk.is_empty() && self.taken == self.kept.len() && self.read_to_end && self.trailers.is_none()
    }

    /// Whether another try could be given the same body.
    pub(super) fn replayable(&self) -> bool {
        self.whole
    }

    /// Starts again from the beginning.
    pub(super) fn rewind(&mut self) {
        self.taken = 0;
        self.chunk = Bytes::new();
    }

    /// There will be no other try.
    pub(super) fn settle(&mut self) {
        self.whole = false;
        // What has not been taken for this try must still be sent.
        self.kept.drain(..self.taken.min(self.kept.len()));
        self.taken = 0;
    }

    /// Sends until the end.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut SendStream<Bytes>,
        traffic: &Traffic,
    ) -> Poll<Result<(), Stuck>> {
        loop {
            if !self.chunk.is_empty() {
                if ready!(self.poll_chunk(cx, stream, traffic))? {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            if let Some(kept) = self.kept.get(self.taken) {
                self.chunk = kept.clone();
                self.taken += 1;
                continue;
            }
            if self.read_to_end {
                return Poll::Ready(self.finish(stream));
            }
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => self.take(frame.transpose().map_err(Stuck::App)?),
                // While the application is silent, nothing else would tell that the far side wants no more.
                Poll::Pending => return stream.poll_reset(cx).map(|_| Err(Stuck::Far)),
            }
        }
    }

    /// Sends as much of the chunk as there is room for; says whether that was the end.
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut SendStream<Bytes>,
        traffic: &Traffic,
    ) -> Poll<Result<bool, Stuck>> {
        stream.reserve_capacity(self.chunk.len());
        while stream.capacity() == 0 {
            match ready!(stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Err(Stuck::Far)),
            }
        }
        let data = self.chunk.split_to(stream.capacity().min(self.chunk.len()));
        traffic.sent.fetch_add(data.len() as u64, Ordering::Relaxed);
        let more = self.trailers.is_some() || !(self.read_to_end || self.body.is_end_stream());
        let last = self.chunk.is_empty() && self.taken == self.kept.len() && !more;
        self.read_to_end |= last;
        stream.send_data(data, last).map_err(|_| Stuck::Far)?;
        Poll::Ready(Ok(last))
    }

    fn finish(&mut self, stream: &mut SendStream<Bytes>) -> Result<(), Stuck> {
        let sent = match &self.trailers {
            Some(trailers) => stream.send_trailers(trailers.clone()),
            None => stream.send_data(Bytes::new(), true),
        };
        sent.map_err(|_| Stuck::Far)
    }

    fn take(&mut self, frame: Option<hyper::body::Frame<Bytes>>) {
        let Some(frame) = frame else {
            self.read_to_end = true;
            return;
        };
        match frame.into_data() {
            Ok(data) => self.keep(data),
            Err(frame) => {
                self.trailers = frame.into_trailers().ok().map(|mut trailers| {
                    headers::strip_trailers(&mut trailers);
                    trailers
                });
                self.read_to_end = true;
            }
        }
    }

    fn keep(&mut self, data: Bytes) {
        self.kept_bytes += data.len();
        if self.whole && self.kept_bytes <= REPLAY_MAX {
            self.kept.push(data.clone());
            self.taken = self.kept.len();
        } else if self.whole {
            self.settle();
        }
        self.chunk = data;
    }
}

/// Why a try came to nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The application broke off its request.
    App(hyper::Error),
    /// The session takes no more streams: nothing was sent.
    Unsent(h2::Error),
    /// The stream or the session failed.
    Far(h2::Error),
}

/// What came of a try.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) response: Response<RecvStream>,
    /// The rest of the body still has to be sent here.
    pub(super) stream: Option<SendStream<Bytes>>,
    /// The server answered without asking for the body that it was offered: the stream ends with the answer, and the
    /// application is not asked for the body either.
    pub(super) held: Option<SendStream<Bytes>>,
}

/// A try under way.
pub(super) struct Exchange<'a> {
    response: ResponseFuture,
    stream: Option<SendStream<Bytes>>,
    upload: &'a mut Upload,
    traffic: Arc<Traffic>,
    /// The body is held back until the server asks for it, or this has passed (RFC 9110 section 10.1.1).
    hold: Option<Pin<Box<Sleep>>>,
}

impl<'a> Exchange<'a> {
    /// Sends the head.
    pub(super) fn begin(
        requests: &mut h2::client::SendRequest<Bytes>,
        head: Request<()>,
        upload: &'a mut Upload,
        traffic: Arc<Traffic>,
        hold: Option<Pin<Box<Sleep>>>,
    ) -> Result<Self, h2::Error> {
        let empty = upload.is_empty();
        let (response, stream) = requests.send_request(head, empty)?;
        Ok(Self { response, stream: (!empty).then_some(stream), upload, traffic, hold: hold.filter(|_| !empty) })
    }

    /// Whether another try could be given the same request.
    pub(super) fn replayable(&self) -> bool {
        self.upload.replayable()
    }

    /// Whether the body is still held back.
    fn poll_hold(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(hold) = &mut self.hold else { return false };
        loop {
            match self.response.poll_informational(cx) {
                Poll::Ready(Some(Ok(response))) if response.status() == StatusCode::CONTINUE => break,
                // Other interim answers: hyper has no way to pass them on.
                Poll::Ready(Some(Ok(_))) => {}
                // The final answer is here and will be read below.
                Poll::Ready(_) => return true,
                Poll::Pending if hold.as_mut().poll(cx).is_pending() => return true,
                Poll::Pending => break,
            }
        }
        self.hold = None;
        false
    }
}

impl Future for Exchange<'_> {
    type Output = Result<Answered, Failure>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if !this.poll_hold(cx)
            && let Some(stream) = &mut this.stream
        {
            match this.upload.poll(cx, stream, &this.traffic) {
                Poll::Ready(Err(Stuck::App(error))) => return Poll::Ready(Err(Failure::App(error))),
                Poll::Ready(_) => this.stream = None,
                Poll::Pending => {}
            }
        }
        let response = ready!(Pin::new(&mut this.response).poll(cx)).map_err(Failure::Far)?;
        let stream = this.stream.take();
        let (stream, held) = if this.hold.is_some() { (None, stream) } else { (stream, None) };
        Poll::Ready(Ok(Answered { response, stream, held }))
    }
}

/// Sends the rest of a body after its answer has begun.
pub(super) async fn finish(mut upload: Upload, mut stream: SendStream<Bytes>, traffic: Arc<Traffic>) {
    let sent = std::future::poll_fn(|cx| upload.poll(cx, &mut stream, &traffic)).await;
    if let Err(Stuck::App(error)) = sent {
        tracing::debug!(%error, "the application broke off its request");
        stream.send_reset(h2::Reason::CANCEL);
    }
}
