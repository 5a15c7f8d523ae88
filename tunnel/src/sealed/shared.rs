//! Shared sessions: HTTP/2 inside a sealed session, and a driver that notices a peer that no longer answers.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::{Ping, PingPong};
use hawser_api::{Code, Refusal};
use tokio::time::{Instant, Sleep};

pub use super::carry::carry_stream;
use super::stream::{Activity, SealedStream};
pub use super::stream_io::StreamIo;
use crate::tls::{HandshakeError, VerifiedPeer};

/// What one stream may have in flight: 2 MiB fill 160 Mb/s over 100 ms, and a reader that stops costs no more.
const STREAM_WINDOW: u32 = 2 << 20;
/// What all together may: several stalled streams must not use it up (equal windows can deadlock).
const CONNECTION_WINDOW: u32 = 16 << 20;
/// DATA frames: four full records. Larger ones would hold up the other streams' frames for longer.
const FRAME: u32 = 64 << 10;
/// All headers of a message, decoded (RFC 9113 section 6.5.2).
const HEADER_LIST: u32 = 64 << 10;
/// Streams that one caller may have open in one session; beyond it, the client opens another session.
const STREAMS: u32 = 1000;
/// Unsent bytes that one stream may hold.
const SEND_BUFFER: usize = 256 << 10;
/// How much more rarely a session that nobody uses is asked whether it lives: every four keepalives.
const IDLE_FACTOR: u32 = 8;

/// A client's shared session: HTTP/2 inside the sealed session. Clone to send concurrently.
#[derive(Clone, Debug)]
pub struct SharedClient {
    /// Sends requests; `ready()` waits for room.
    pub requests: h2::client::SendRequest<Bytes>,
    /// Who serves.
    pub peer: VerifiedPeer,
    owed: Arc<Owed>,
}

impl SharedClient {
    /// How long a PING has been out without anything heard since; zero: nothing is owed. A peer that owes an answer for
    /// longer than a round trip takes is suspect: what can go elsewhere should. Takes no lock.
    pub fn overdue(&self) -> Duration {
        self.owed.since().map_or(Duration::ZERO, |since| Instant::now().saturating_duration_since(since))
    }
}

/// Since when an answer is owed.
#[derive(Debug)]
struct Owed {
    start: Instant,
    // Nanoseconds after `start`; 0: nothing is owed.
    asked: AtomicU64,
}

impl Owed {
    fn since(&self) -> Option<Instant> {
        let asked = self.asked.load(Ordering::Relaxed);
        (asked > 0).then(|| self.start + Duration::from_nanos(asked))
    }

    fn set(&self, asked: Option<Instant>) {
        let nanos = asked.map_or(0, |at| at.saturating_duration_since(self.start).as_nanos().max(1));
        self.asked.store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Drives a shared session; ends when it is over: closed, failed, silent for too long, or all clients dropped and all
/// streams ended. Whoever gets it must run it; dropping it ends the session.
pub type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The server's end of a shared session.
pub struct SharedServer {
    /// The caller.
    pub peer: VerifiedPeer,
    /// Its streams.
    pub connection: h2::server::Connection<SealedStream, Bytes>,
}

/// The dialling side. Nothing is sent before the driver runs, so that the end of the handshake, the HTTP/2 preface and
/// the first request leave together.
pub(super) async fn client(
    stream: SealedStream,
    peer: VerifiedPeer,
    keepalive: Duration,
) -> Result<(SharedClient, Driver), Refusal> {
    let activity = stream.activity();
    let handshake = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        // Until the server's SETTINGS say so, assume what it will say.
        .initial_max_send_streams(STREAMS as usize)
        .enable_push(false)
        .handshake(stream);
    let (requests, mut connection) = handshake.await.map_err(|error| {
        let message = format!("the endpoint speaks no HTTP/2: {error}");
        Refusal::new(Code::EndpointUnreachable, message, "check that a Hawser proxy listens at the endpoint")
    })?;
    let pings = connection.ping_pong();
    let owed = Arc::new(Owed { start: Instant::now(), asked: AtomicU64::new(0) });
    let watch = pings.map(|pings| Watch::new(pings, activity, keepalive, owed.clone()));
    let driver = Driving { connection: Some(connection), watch };
    Ok((SharedClient { requests, peer, owed }, Box::pin(driver)))
}

/// The accepting side.
pub(super) async fn server(stream: SealedStream, peer: VerifiedPeer) -> Result<SharedServer, HandshakeError> {
    let connection = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_header_list_size(HEADER_LIST)
        .max_concurrent_streams(STREAMS)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake(stream)
        .await
        .map_err(|error| {
            let reason = if error.is_io() { "io" } else { "protocol" };
            HandshakeError { reason, detail: format!("HTTP/2: {error}") }
        })?;
    Ok(SharedServer { peer, connection })
}

/// The future behind [`Driver`].
struct Driving {
    // None once it is over: dropping the connection is what fails the streams.
    connection: Option<h2::client::Connection<SealedStream, Bytes>>,
    watch: Option<Watch>,
}

impl Future for Driving {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        loop {
            let Some(connection) = &mut this.connection else { return Poll::Ready(()) };
            if let Poll::Ready(result) = Pin::new(connection).poll(cx) {
                if let Err(error) = result {
                    tracing::debug!(%error, "a shared session failed");
                }
                this.connection = None;
                return Poll::Ready(());
            }
            let Some(watch) = &mut this.watch else { return Poll::Pending };
            match watch.poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Verdict::Asked) => {}
                Poll::Ready(Verdict::Silent) => {
                    tracing::debug!("a shared session ended: its peer does not answer");
                    this.connection = None;
                }
            }
        }
    }
}

/// Whether the peer still answers: whatever comes counts as an answer.
struct Watch {
    pings: PingPong,
    activity: Arc<Activity>,
    keepalive: Duration,
    // In halves of `keepalive`; grows while nothing but pings passes.
    patience: u32,
    heard: u64,
    said: u64,
    // When something was heard last, or first said after a long silence, or the PING was sent.
    since: Instant,
    asked: bool,
    owed: Arc<Owed>,
    timer: Pin<Box<Sleep>>,
}

enum Verdict {
    /// A PING is to be sent: the connection must be polled again.
    Asked,
    /// The peer is gone.
    Silent,
}

impl Watch {
    fn new(pings: PingPong, activity: Arc<Activity>, keepalive: Duration, owed: Arc<Owed>) -> Self {
        let timer = Box::pin(tokio::time::sleep(keepalive / 2));
        let since = Instant::now();
        Self { pings, activity, keepalive, patience: 1, heard: 0, said: 0, since, asked: false, owed, timer }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Verdict> {
        if self.asked {
            self.await_answer(cx);
        } else {
            self.note_activity();
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let due = self.since + self.wait();
            if due > Instant::now() {
                // Something was heard since the timer was set.
                self.timer.as_mut().reset(due);
            } else if self.asked {
                return Poll::Ready(Verdict::Silent);
            } else if self.ask(cx) {
                return Poll::Ready(Verdict::Asked);
            }
        }
        Poll::Pending
    }

    fn wait(&self) -> Duration {
        if self.asked { self.keepalive } else { self.keepalive / 2 * self.patience }
    }

    fn ask(&mut self, cx: &mut Context<'_>) -> bool {
        // The answer to an earlier PING may have come behind other things that were heard.
        let _ = self.pings.poll_pong(cx);
        // Refused where that answer is still out, or the connection is over: then the next turn asks.
        self.asked = self.pings.send_ping(Ping::opaque()).is_ok();
        self.restart();
        self.owed.set(self.asked.then_some(self.since));
        self.asked
    }

    fn await_answer(&mut self, cx: &mut Context<'_>) {
        let answered = self.pings.poll_pong(cx).is_ready();
        let (heard, said) = (self.activity.heard(), self.activity.said());
        if !answered && heard == self.heard {
            return;
        }
        // Only the PING and its answer have passed: nobody uses the session.
        let idle = answered && heard - self.heard <= PING && said - self.said <= PING;
        self.patience = if idle { (self.patience * 2).min(IDLE_FACTOR) } else { 1 };
        self.asked = false;
        self.owed.set(None);
        (self.heard, self.said) = (heard, said);
        self.restart();
    }

    fn note_activity(&mut self) {
        let (heard, said) = (self.activity.heard(), self.activity.said());
        if self.patience > 1 && (heard != self.heard || said != self.said) {
            self.patience = 1;
            self.restart();
        } else if heard != self.heard {
            // The timer is moved when it fires, not for each frame.
            self.since = Instant::now();
        }
        (self.heard, self.said) = (heard, said);
    }

    fn restart(&mut self) {
        self.since = Instant::now();
        let due = self.since + self.wait();
        self.timer.as_mut().reset(due);
    }
}

/// A PING frame's length (RFC 9113 section 6.7).
const PING: u64 = 17;
