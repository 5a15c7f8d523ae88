//! An application's socket against a sealed session: both directions in one task, each with an end of its own.
//!
//! ```text
//! app ─ readv into records ─ seal in place ─ one write ─▶ session      end ─▶ close_notify     RST ─▶ reset
//! app ◀─ writev of payloads ─ open in place ─ one read ── session      close_notify ─▶ FIN     cut short ─▶ RST
//! ```

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::app::App;
use super::inbox::Filled;
use super::stream::SealedStream;
use super::wire;
use crate::splice::{Ended, Traffic};

/// Bytes moved before other tasks of the thread get their turn: about a millisecond's work.
const TURN: usize = 1 << 20;

/// One direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// The end has been read and is being passed on.
    Ending,
    Over,
}

/// A session and the connection that it carries.
pub(crate) struct Relay {
    session: SealedStream,
    app: App,
    early: Bytes,
    traffic: Arc<Traffic>,
    up: Way,
    down: Way,
    // Whether the session's stream may still tell of a reset after close_notify.
    watched: bool,
    turn: usize,
}

impl Relay {
    pub(crate) fn new(session: SealedStream, app: TcpStream, early: Bytes, traffic: Arc<Traffic>) -> Self {
        Self { session, app: App::new(app), early, traffic, up: Way::Open, down: Way::Open, watched: true, turn: 0 }
    }

    /// Carries until both directions are over, one side is reset (the other is then reset too), or `cut` fires.
    pub(crate) fn run(self, cut: CancellationToken) -> impl Future<Output = Ended> + Send + 'static {
        let mut carried = Some(self);
        let mut cut = Box::pin(cut.cancelled_owned());
        poll_fn(move |cx| {
            let Some(relay) = &mut carried else { return Poll::Pending };
            let ended = match cut.as_mut().poll(cx) {
                Poll::Ready(()) => Ended::Cut,
                Poll::Pending => ready!(relay.poll(cx)),
            };
            if let Some(relay) = carried.take().filter(|_| ended != Ended::Finished) {
                relay.app.reset();
                relay.session.reset();
            }
            Poll::Ready(ended)
        })
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        self.turn = TURN;
        let (up, down) = (self.poll_up(cx), self.poll_down(cx));
        match (up, down) {
            (Poll::Ready(Err(ended)), _) | (_, Poll::Ready(Err(ended))) => Poll::Ready(ended),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ended::Finished),
            (up, down) => {
                if self.turn == 0 {
                    cx.waker().wake_by_ref();
                }
                self.poll_failed(cx, up.is_ready(), down.is_ready())
            }
        }
    }

    /// While one direction is over and the other waits, neither side's reset would show in it.
    fn poll_failed(&mut self, cx: &mut Context<'_>, up_over: bool, down_over: bool) -> Poll<Ended> {
        if up_over {
            ready!(self.app.poll_failed(cx));
            return Poll::Ready(Ended::UpstreamReset);
        }
        while down_over && self.watched {
            let mut ignored = [0; 256];
            match ready!(wire::poll_read(&mut self.session.stream, cx, &mut ignored)) {
                Err(_) => return Poll::Ready(Ended::PeerReset),
                // An end, or bytes that no longer count: nothing more can be learnt here.
                Ok(_) => self.watched = false,
            }
        }
        Poll::Pending
    }

    /// From the application into the session.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        loop {
            let SealedStream { outbox, records, stream, .. } = &mut self.session;
            ready!(outbox.poll_send(cx, stream)).map_err(|_| Ended::PeerReset)?;
            match self.up {
                Way::Over => return Poll::Ready(Ok(())),
                // close_notify is out. The stream below stays open, so that a reset can still be told.
                Way::Ending => self.up = Way::Over,
                Way::Open if !self.early.is_empty() => {
                    let taken = outbox.put(records, &self.early).and_then(|n| outbox.seal(records).map(|()| n));
                    let taken = taken.map_err(|_| Ended::PeerReset)?;
                    self.early.advance(taken);
                    self.traffic.sent.fetch_add(taken as u64, Ordering::Relaxed);
                }
                Way::Open if self.turn == 0 => return Poll::Pending,
                Way::Open => {
                    ready!(self.app.poll_readable(cx)).map_err(|_| Ended::UpstreamReset)?;
                    self.take_from_app()?;
                }
            }
        }
    }

    fn take_from_app(&mut self) -> Result<(), Ended> {
        let SealedStream { outbox, records, closed, .. } = &mut self.session;
        match outbox.take_from(records, &self.app) {
            Ok(0) => {
                outbox.close(records).map_err(|_| Ended::PeerReset)?;
                *closed = true;
                self.up = Way::Ending;
            }
            Ok(count) => {
                self.traffic.sent.fetch_add(count as u64, Ordering::Relaxed);
                self.turn = self.turn.saturating_sub(count);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(Ended::UpstreamReset),
        }
        Ok(())
    }

    /// From the session to the application.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        loop {
            match self.down {
                Way::Over => return Poll::Ready(Ok(())),
                Way::Ending => {
                    self.app.shutdown();
                    self.down = Way::Over;
                }
                Way::Open if self.session.inbox.has_data() => ready!(self.poll_give(cx))?,
                Way::Open if self.turn == 0 => return Poll::Pending,
                Way::Open => {
                    let SealedStream { inbox, records, stream, .. } = &mut self.session;
                    match ready!(inbox.poll_fill(cx, stream, records)) {
                        Ok(Filled::Data) => {}
                        Ok(Filled::Closed) => self.down = Way::Ending,
                        Err(error) => {
                            self.session.tell(cx, &error);
                            return Poll::Ready(Err(Ended::PeerReset));
                        }
                    }
                }
            }
        }
    }

    fn poll_give(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let inbox = &mut self.session.inbox;
        let (slices, count) = inbox.slices();
        let slices = slices.get(..count).unwrap_or_default();
        let given = ready!(self.app.poll_write(cx, slices));
        let given = given.ok().filter(|given| *given > 0).ok_or(Ended::UpstreamReset)?;
        inbox.consume(given);
        self.traffic.received.fetch_add(given as u64, Ordering::Relaxed);
        self.turn = self.turn.saturating_sub(given);
        Poll::Ready(Ok(()))
    }
}
