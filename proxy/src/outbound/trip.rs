//! One request, from its head to the end of its answer: what is counted and recorded of it, once, however it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use hawser_api::{Code, Refusal};
use hawser_tunnel::splice::Traffic;
use http::{HeaderValue, Method, request};
use tokio::time::Instant;

use super::App;
use super::target::Leg;
use crate::headers;
use crate::session::Ticket;
use crate::streams::{Direction, Entry, Kind, Live, Outcome, Path, record, recorded};

/// One request.
#[derive(Debug)]
pub(super) struct Trip {
    pub(super) app: Arc<App>,
    pub(super) method: Method,
    pub(super) grpc: bool,
    /// Over HTTP/2, where a reset is an answer.
    pub(super) http2: bool,
    begun: Instant,
    traceparent: Option<HeaderValue>,
    leg: Option<Arc<Leg>>,
    entry: Option<Entry>,
    status: Option<u16>,
    refusal: Option<Code>,
    complete: bool,
}

impl Trip {
    /// Begins; where the caller has no trace context and records are kept, one is made up for them.
    pub(super) fn new(app: Arc<App>, head: &request::Parts) -> Self {
        app.in_flight.fetch_add(1, Ordering::Relaxed);
        app.target.budget.earn();
        Self {
            method: head.method.clone(),
            grpc: headers::is_grpc(&head.headers),
            http2: head.version == http::Version::HTTP_2,
            begun: Instant::now(),
            traceparent: head
                .headers
                .get(headers::TRACEPARENT)
                .cloned()
                .or_else(|| recorded().then(headers::new_trace)),
            leg: None,
            entry: None,
            status: None,
            refusal: None,
            complete: false,
            app,
        }
    }

    /// The trace context that goes with it.
    pub(super) fn trace(&self) -> Option<&HeaderValue> {
        self.traceparent.as_ref()
    }

    /// It goes this way now.
    pub(super) fn goes(&mut self, leg: &Arc<Leg>, ticket: &Ticket) -> Arc<Traffic> {
        let traffic = Arc::new(Traffic::default());
        let live = Live {
            path: ticket.session.path.clone(),
            destination: self.app.target.label.clone(),
            kind: Kind::Http,
            started: self.begun,
            traffic: traffic.clone(),
            cut: None,
        };
        self.leg = Some(leg.clone());
        self.entry = Some(self.app.context.streams.begin(live));
        traffic
    }

    /// It was answered with this status.
    pub(super) fn answered(&mut self, status: http::StatusCode) {
        self.status = Some(status.as_u16());
    }

    /// It was refused.
    pub(super) fn refused(&mut self, refusal: &Refusal) {
        self.refusal = Some(refusal.code);
        self.app.context.metrics.refused(Direction::Outbound, refusal.code);
        tracing::debug!(destination = &*self.app.target.label, client = %self.app.client, %refusal, "refused");
    }

    /// The endpoint's standing has changed: the next request is routed by it.
    pub(super) fn changed(&self) {
        if let Some(leg) = &self.leg {
            leg.pool.refresh(Instant::now());
        }
    }

    /// Its answer has come to its end.
    pub(super) fn completed(&mut self) {
        self.complete = true;
    }

    /// The session was cut under it.
    pub(super) fn cut(&mut self, code: Code) {
        self.refusal = Some(code);
    }

    fn metrics(&self) {
        // A refusal counts as one whatever its status: Hawser made it, not the application.
        let status = self.status.filter(|_| self.refusal.is_none());
        let took = self.begun.elapsed();
        match &self.leg {
            Some(leg) => leg.metrics.request(status, took),
            None => self.app.target.plan().nowhere.request(status, took),
        }
    }
}

impl Drop for Trip {
    fn drop(&mut self) {
        self.app.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.metrics();
        if !recorded() {
            return;
        }
        let traceparent = self.traceparent.as_ref().and_then(|value| value.to_str().ok()).unwrap_or_default();
        let outcome = Outcome {
            method: Some(self.method.clone()),
            status: self.status,
            refusal: self.refusal,
            ended: if self.complete { "finished" } else { "reset" },
            traceparent: traceparent.chars().take(64).collect(),
        };
        match self.entry.take() {
            Some(entry) => entry.end(&outcome),
            None => record(&self.nowhere(), &outcome),
        }
    }
}

impl Trip {
    /// What is recorded of a request that reached nobody.
    fn nowhere(&self) -> Live {
        Live {
            path: Arc::new(nowhere(&self.app)),
            destination: self.app.target.label.clone(),
            kind: Kind::Http,
            started: self.begun,
            traffic: Arc::default(),
            cut: None,
        }
    }
}

/// The path of what reached nobody.
pub(super) fn nowhere(app: &App) -> Path {
    Path {
        direction: Direction::Outbound,
        client_id: app.context.credentials.identity().map(|identity| identity.id().clone()),
        server_id: None,
        cluster: None,
        gateway: None,
        transport: None,
        session: "",
        endpoint: "".into(),
    }
}
