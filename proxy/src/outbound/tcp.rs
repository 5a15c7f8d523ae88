//! Opaque connections: each gets a stream of a shared session, or a session of its own.
//!
//! Until the far application has accepted, nothing was lost and the next endpoint, gateway or cluster is tried. What
//! cannot be carried is reset, so that the application sees at once that this was no orderly end.

use std::sync::Arc;

use bytes::Bytes;
use hawser_api::Refusal;
use hawser_tunnel::sealed;
use hawser_tunnel::splice::{Ended, Traffic};
use http::HeaderValue;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::http::Search;
use super::retry::PLACES_MAX;
use super::target::Leg;
use super::{App, connect, dedicated, trip};
use crate::headers;
use crate::metrics::Way;
use crate::session::{Hold, Ticket};
use crate::streams::{Direction, Entry, Kind, Live, Outcome, Path, record, recorded};

/// Carries a connection from which `early` has been read.
pub(super) async fn carry(app: &Arc<App>, socket: TcpStream, early: Bytes) {
    let mode = app.target.plan().destination.session;
    let begun = Instant::now();
    let trace = recorded().then(headers::new_trace);
    let outcome = if app.target.bulk.dedicated(mode) {
        match dedicated::open(app).await {
            Ok(opened) => return dedicated::carry(app, opened, socket, early).await,
            Err(refusal) => Err(refusal),
        }
    } else {
        shared(app, trace.as_ref()).await
    };
    match outcome {
        Ok((leg, ticket, stream)) => {
            let (path, hold) = (ticket.session.path.clone(), ticket.session.hold.clone());
            let carried = Carried::begin(app, &leg, path, &hold).traced(trace);
            let (traffic, cut) = (carried.traffic.clone(), carried.cut.clone());
            let ended = sealed::carry_stream(stream.send, stream.recv, socket, early, traffic, cut).await;
            carried.end(ended);
        }
        Err(refusal) => refuse(app, &socket, &refusal, begun),
    }
}

/// A stream of a shared session.
async fn shared(app: &Arc<App>, trace: Option<&HeaderValue>) -> Result<(Arc<Leg>, Ticket, connect::Stream), Refusal> {
    let mut search = Search::default();
    let mut tries = 0;
    loop {
        let (leg, mut ticket) = search.place(app).await?;
        tries += 1;
        match connect::open(&leg, &mut ticket, "tcp", trace).await {
            Ok(stream) => return Ok((leg, ticket, stream)),
            Err(refusal) if tries >= PLACES_MAX || !refusal.code.retry_elsewhere() => return Err(refusal),
            Err(refusal) => {
                search.avoid(&ticket);
                search.because(refusal);
            }
        }
    }
}

/// A connection that is being carried; booked once at its end, also when its task is dropped.
pub(super) struct Carried {
    pub(super) traffic: Arc<Traffic>,
    pub(super) cut: CancellationToken,
    app: Arc<App>,
    leg: Arc<Leg>,
    hold: Arc<Hold>,
    trace: Option<HeaderValue>,
    entry: Option<Entry>,
    ended: Ended,
}

impl Carried {
    pub(super) fn begin(app: &Arc<App>, leg: &Arc<Leg>, path: Arc<Path>, hold: &Arc<Hold>) -> Self {
        let traffic = Arc::new(Traffic::default());
        let cut = hold.stop().child_token();
        app.target.bulk.begin(&traffic);
        leg.metrics.tcp_opens.inc();
        leg.metrics.tcp_open_now.inc();
        leg.metrics.tcp_sent.begin(&traffic, Way::Sent);
        leg.metrics.tcp_received.begin(&traffic, Way::Received);
        let live = Live {
            path,
            destination: app.target.label.clone(),
            kind: Kind::Tcp,
            started: Instant::now(),
            traffic: traffic.clone(),
            cut: Some(cut.clone()),
        };
        let entry = Some(app.context.streams.begin(live));
        let (app, leg, hold) = (app.clone(), leg.clone(), hold.clone());
        Self { traffic, cut, app, leg, hold, trace: None, entry, ended: Ended::Cut }
    }

    /// With this trace context in its record.
    pub(super) fn traced(mut self, trace: Option<HeaderValue>) -> Self {
        self.trace = trace;
        self
    }

    /// It ended so.
    pub(super) fn end(mut self, ended: Ended) {
        self.ended = ended;
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        let Self { app, leg, .. } = self;
        app.target.bulk.end(&self.traffic);
        leg.metrics.tcp_open_now.dec();
        leg.metrics.tcp_sent.end(&self.traffic);
        leg.metrics.tcp_received.end(&self.traffic);
        // The stream's end of a cut session looks like the peer's.
        let refusal = self.hold.cut_because();
        let ended = if refusal.is_some() && self.ended != Ended::Finished { Ended::Cut } else { self.ended };
        app.context.metrics.tcp_closed(Direction::Outbound, ended.as_str());
        if let Some(code) = refusal.filter(|_| ended == Ended::Cut) {
            tracing::warn!(destination = &*app.target.label, client = %app.client, %code, "connection cut");
        }
        let traceparent = self.trace.as_ref().and_then(|t| t.to_str().ok()).unwrap_or_default().to_owned();
        if let Some(entry) = self.entry.take() {
            entry.end(&Outcome { refusal, ended: ended.as_str(), traceparent, ..Outcome::default() });
        }
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
