//! Opaque connections: each gets a stream of a shared session, or a session of its own.
//!
//! Until the far application has accepted, nothing was lost and the next endpoint, gateway or cluster is tried. What
//! cannot be carried is reset, so that the application sees at once that this was no orderly end.

use std::sync::Arc;

use bytes::Bytes;
use hawser_api::Refusal;
use hawser_tunnel::sealed;
use hawser_tunnel::splice::{Ended, Traffic};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::http::Search;
use super::retry::PLACES_MAX;
use super::target::Leg;
use super::{App, connect, dedicated, trip};
use crate::session::{Hold, Ticket};
use crate::streams::{Direction, Entry, Kind, Live, Outcome, Path, record};

/// Carries a connection from which `early` has been read.
pub(super) async fn carry(app: &Arc<App>, socket: TcpStream, early: Bytes) {
    let mode = app.target.plan().destination.session;
    let begun = Instant::now();
    let outcome = if app.target.bulk.dedicated(mode) {
        match dedicated::open(app).await {
            Ok(opened) => return dedicated::carry(app, opened, socket, early).await,
            Err(refusal) => Err(refusal),
        }
    } else {
        shared(app).await
    };
    match outcome {
        Ok((leg, ticket, stream)) => {
            let (path, hold) = (ticket.session.path.clone(), ticket.session.hold.clone());
            let carried = Carried::begin(app, &leg, path, &hold);
            let (traffic, cut) = (carried.traffic.clone(), carried.cut.clone());
            let ended = sealed::carry_stream(stream.send, stream.recv, socket, early, traffic, cut).await;
            carried.end(app, &leg, ended, &hold);
        }
        Err(refusal) => refuse(app, &socket, &refusal, begun),
    }
}

/// A stream of a shared session.
async fn shared(app: &Arc<App>) -> Result<(Arc<Leg>, Ticket, connect::Stream), Refusal> {
    let mut search = Search::default();
    let mut tries = 0;
    loop {
        let (leg, mut ticket) = search.place(app).await?;
        tries += 1;
        match connect::open(&leg, &mut ticket, "tcp", None).await {
            Ok(stream) => return Ok((leg, ticket, stream)),
            Err(refusal) if tries >= PLACES_MAX || !refusal.code.retry_elsewhere() => return Err(refusal),
            Err(refusal) => {
                search.avoid(&ticket);
                search.because(refusal);
            }
        }
    }
}

/// A connection that is being carried.
pub(super) struct Carried {
    pub(super) traffic: Arc<Traffic>,
    pub(super) cut: CancellationToken,
    entry: Entry,
}

impl Carried {
    pub(super) fn begin(app: &App, leg: &Leg, path: Arc<Path>, hold: &Hold) -> Self {
        let traffic = Arc::new(Traffic::default());
        let cut = hold.stop().child_token();
        app.target.bulk.begin(&traffic);
        leg.metrics.tcp_opens.inc();
        leg.metrics.tcp_open_now.inc();
        let live = Live {
            path,
            destination: app.target.label.clone(),
            kind: Kind::Tcp,
            started: Instant::now(),
            traffic: traffic.clone(),
            cut: Some(cut.clone()),
        };
        Self { traffic, cut, entry: app.context.streams.begin(live) }
    }

    /// Books the connection's end, once.
    pub(super) fn end(self, app: &App, leg: &Leg, ended: Ended, hold: &Hold) {
        use std::sync::atomic::Ordering::Relaxed;
        app.target.bulk.end(&self.traffic);
        leg.metrics.tcp_open_now.dec();
        leg.metrics.tcp_sent.inc_by(self.traffic.sent.load(Relaxed));
        leg.metrics.tcp_received.inc_by(self.traffic.received.load(Relaxed));
        // The stream's end of a cut session looks like the peer's.
        let refusal = hold.cut_because();
        let ended = if refusal.is_some() && ended != Ended::Finished { Ended::Cut } else { ended };
        app.context.metrics.tcp_closed(Direction::Outbound, ended.as_str());
        if let Some(code) = refusal.filter(|_| ended == Ended::Cut) {
            tracing::warn!(destination = &*app.target.label, client = %app.client, %code, "connection cut");
        }
        self.entry.end(&Outcome { refusal, ended: ended.as_str(), ..Outcome::default() });
    }
}

/// Resets the application's connection and says why in the log.
pub(super) fn refuse(app: &App, socket: &TcpStream, refusal: &Refusal, begun: Instant) {
    // A plain close would look like an orderly end of what was never begun.
    if let Err(error) = SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO)) {
        tracing::debug!(%error, "no reset");
    }
    let (destination, client) = (&*app.target.label, app.client);
    tracing::warn!(destination, %client, code = %refusal.code, message = refusal.message, hint = refusal.remedy, "connection refused");
    app.context.metrics.refused(Direction::Outbound, refusal.code);
    app.context.metrics.tcp_closed(Direction::Outbound, "refused");
    let live = Live {
        path: Arc::new(trip::nowhere(app)),
        destination: app.target.label.clone(),
        kind: Kind::Tcp,
        started: begun,
        traffic: Arc::default(),
        cut: None,
    };
    record(&live, &Outcome { refusal: Some(refusal.code), ended: "refused", ..Outcome::default() });
}
