//! HTTP of applications: each request goes to the backend and endpoint that are best for it, and is tried elsewhere when
//! that is harmless and may help.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use hawser_api::labels::{HEADER_TARGET, HEADER_VERSION};
use hawser_api::{Code, Refusal};
use http::request::Parts;
use http::uri::{Scheme, Uri};
use http::{HeaderMap, HeaderValue, Method, Request, Response, Version, header};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::{Instant, Sleep};

use super::answer::{Abort, Answer, Far, WHOLE_MAX, read_ahead};
use super::exchange::{Answered, Exchange, Failure, Upload, finish};
use super::io::AppIo;
use super::retry::{self, PLACES_MAX, TRIES_MAX};
use super::target::Leg;
use super::trip::Trip;
use super::{App, upgrade};
use crate::balance;
use crate::headers;
use crate::route::{Choice, Tried};
use crate::session::{NoPlace, Ticket};

/// Head bytes of an application's HTTP/1 request: what the far side takes, with room for what the proxies add.
const HEAD_MAX: usize = 56 << 10;
/// What an application may have in flight: on loopback this is never what limits.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Streams that one application connection may have open.
const STREAMS: u32 = 1024;
/// Headers of one HTTP/1 message; hyper's own default.
const HEADERS_MAX: usize = 100;

/// Serves an application that speaks HTTP/1.
pub(super) async fn carry1(app: Arc<App>, io: AppIo) {
    let drain = app.context.process.drain.clone();
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(app.context.settings.head)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_MAX)
        .auto_date_header(false);
    let io = TokioIo::new(io.patient(app.clone()));
    let service = service_fn(move |request| serve(app.clone(), request));
    let mut connection = std::pin::pin!(server.serve_connection(io, service).with_upgrades());
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    log(ended);
}

/// Serves an application that speaks HTTP/2.
pub(super) async fn carry2(app: Arc<App>, io: AppIo) {
    let drain = app.context.process.drain.clone();
    let mut server = http2::Builder::new(Tasks(app.clone()));
    server
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(HEAD_MAX).unwrap_or(u32::MAX))
        .auto_date_header(false);
    let service = service_fn(move |request| serve(app.clone(), request));
    let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(io), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    log(ended);
}

fn log(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "an application's HTTP connection ended");
    }
}

/// Runs hyper's tasks as this process's.
#[derive(Clone)]
struct Tasks(Arc<App>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.0.context.process.spawn(task);
    }
}

/// One request. It counts from the moment that hyper has it, not from this future's first turn: a half-closed
/// connection without requests is over.
fn serve(app: Arc<App>, request: Request<Incoming>) -> impl Future<Output = Result<Response<Answer>, Abort>> {
    let (parts, body) = request.into_parts();
    let trip = Trip::new(app, &parts);
    travel(trip, parts, body)
}

async fn travel(mut trip: Trip, mut parts: Parts, body: Incoming) -> Result<Response<Answer>, Abort> {
    let upgrades = headers::wants_upgrade(&parts);
    let head = match Head::new(&mut parts, upgrades) {
        Ok(head) => head.traced(trip.trace()),
        Err(refusal) => return Ok(refuse(trip, &refusal)),
    };
    if upgrades {
        return upgrade::carry(trip, head, Request::from_parts(parts, body)).await;
    }
    let mut journey = Journey::new(head, Upload::new(body));
    let mut found = None;
    loop {
        let place = match found.take() {
            Some(place) => Ok(place),
            None => journey.search.place(&trip.app).await,
        };
        let (leg, ticket) = match place {
            Ok(place) => place,
            Err(refusal) => return Ok(refuse(trip, &refusal)),
        };
        match journey.attempt(&mut trip, &leg, ticket).await {
            Attempt::Answered(response, rest) => return Ok(journey.deliver(trip, response, rest)),
            Attempt::Again(place) => found = place,
            Attempt::Refused(refusal) => return Ok(refuse(trip, &refusal)),
            Attempt::Aborted(abort) => return Err(abort),
        }
    }
}

/// Hawser's own answer.
pub(super) fn refuse(mut trip: Trip, refusal: &Refusal) -> Response<Answer> {
    trip.refused(refusal);
    let response = headers::refusal_response(refusal, trip.grpc);
    trip.answered(response.status());
    trip.completed();
    response.map(|body| Answer::Own(Some(body), trip))
}

/// A request's head, as it goes to any far side.
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    /// What h2 is told: with HTTP/2 it would insist on an authority, which an HTTP/1.0 request may lack.
    version: Version,
    expects_continue: bool,
}

impl Head {
    /// Takes what must not go on from the application's head, and adds what the far side needs.
    fn new(parts: &mut Parts, upgrades: bool) -> Result<Self, Refusal> {
        headers::check_framing(parts)?;
        let authority = headers::take_authority(parts)?;
        headers::strip_identity(&mut parts.headers);
        let expects_continue = headers::has_token(&parts.headers, &header::EXPECT, "100-continue");
        let mut all = std::mem::take(&mut parts.headers);
        if !upgrades {
            headers::strip_hop_by_hop(&mut all);
        }
        all.insert(HEADER_VERSION, headers::version_word(parts.version));
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        let version = if authority.is_some() { Version::HTTP_2 } else { Version::HTTP_11 };
        uri.scheme = authority.as_ref().map(|_| uri.scheme.unwrap_or(Scheme::HTTP));
        uri.authority = authority;
        if parts.method == Method::CONNECT {
            (uri.scheme, uri.path_and_query) = (None, None);
        } else if uri.path_and_query.is_none() {
            uri.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
        }
        let uri = Uri::from_parts(uri).map_err(|error| {
            let message = format!("the request's target is malformed: {error}");
            Refusal::new(Code::BadRequest, message, "send a target as in RFC 9112 section 3.2")
        })?;
        Ok(Self { method: parts.method.clone(), uri, headers: all, version, expects_continue })
    }

    /// Marks it for the records of both proxies.
    fn traced(mut self, trace: Option<&HeaderValue>) -> Self {
        if let Some(trace) = trace.filter(|_| !self.headers.contains_key(headers::TRACEPARENT)) {
            self.headers.insert(headers::HEADER_TRACE, trace.clone());
        }
        self
    }

    fn to_request(&self, target: &HeaderValue) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert(HEADER_TARGET, target.clone());
        request
    }
}

/// A backend and a place in a session to one of its endpoints.
pub(super) type Place = (Arc<Leg>, Ticket);

/// One request's tries.
struct Journey {
    head: Head,
    upload: Upload,
    search: Search,
    tries: u32,
}

/// A search for a place: what was tried and why it did not serve.
#[derive(Default)]
pub(super) struct Search {
    backends: Tried,
    members: Vec<u64>,
    places: u32,
    /// Everything was tried as it should be: once more, also what is ejected, and with all patience.
    desperate: bool,
    last: Option<Refusal>,
}

impl Search {
    /// The next backend and whether it is to be asked as a last resort, or the reason why there is none.
    pub(super) fn backend(&mut self, app: &App) -> Result<(Arc<Leg>, Choice), Refusal> {
        let plan = app.target.plan();
        loop {
            match plan.route(self.backends) {
                Ok((choice, leg)) => {
                    let last_resort = choice.last_resort || self.desperate;
                    return Ok((leg.clone(), Choice { last_resort, ..choice }));
                }
                // The last failure says more than that all were tried.
                Err(refusal) if self.desperate || self.places == 0 => return Err(self.last.take().unwrap_or(refusal)),
                Err(_) => {
                    self.desperate = true;
                    self.backends = Tried::default();
                    self.members.clear();
                }
            }
        }
    }

    /// The next place, or the reason why there is none.
    pub(super) async fn place(&mut self, app: &App) -> Result<Place, Refusal> {
        loop {
            let (leg, choice) = self.backend(app)?;
            match leg.pool.place(&app.context, &self.members, choice.last_resort).await {
                Ok(ticket) => return Ok((leg, ticket)),
                Err(no) => self.failed(app, choice, no)?,
            }
        }
    }

    /// A place was not to be had; says when enough were asked for.
    pub(super) fn failed(&mut self, app: &App, choice: Choice, no: NoPlace) -> Result<(), Refusal> {
        self.places += 1;
        match no.member {
            Some(member) => self.members.push(member),
            None => self.backends.mark(&app.target.plan().destination, choice.position),
        }
        // That nobody is left says less than what was wrong with those that were there.
        if self.last.is_none() || no.refusal.code != Code::NoEndpoint {
            self.because(no.refusal);
        }
        if self.places < PLACES_MAX { Ok(()) } else { Err(self.last.take().unwrap_or_else(|| nobody(app))) }
    }

    /// What the caller is told when nothing is left.
    pub(super) fn because(&mut self, refusal: Refusal) {
        self.last = Some(refusal);
    }

    /// Waits until the session owes a sign of life, and then for a place elsewhere. If there is none, for ever: what was
    /// sent may still be answered.
    async fn elsewhere(&mut self, app: &App, ticket: &Ticket) -> Place {
        ticket.session.suspected().await;
        self.avoid(ticket);
        if let Some(place) = self.other(app).await
            && app.target.budget.spend(Instant::now())
        {
            return place;
        }
        std::future::pending().await
    }

    /// A place that is no worse: at no endpoint that is ejected, or owes a sign of life itself.
    async fn other(&mut self, app: &App) -> Option<Place> {
        loop {
            let (leg, choice) = self.backend(app).ok()?;
            if self.desperate {
                return None;
            }
            match leg.pool.place(&app.context, &self.members, false).await {
                Ok(ticket) => return Some((leg, ticket)),
                Err(no) => self.failed(app, choice, no).ok()?,
            }
        }
    }

    /// This endpoint failed; another is wanted.
    pub(super) fn avoid(&mut self, ticket: &Ticket) {
        self.members.push(ticket.member.number);
    }

    /// Endpoints that are not to be tried again.
    pub(super) fn members(&self) -> &[u64] {
        &self.members
    }
}

fn nobody(app: &App) -> Refusal {
    let message = format!("no endpoint of {} could be reached", app.target.label);
    Refusal::new(Code::NoEndpoint, message, "see the proxy's /destinations page")
}

/// What came of a try.
enum Attempt {
    Answered(Response<h2::RecvStream>, Rest),
    /// It is to be tried again, here if a place was found already.
    Again(Option<Place>),
    Refused(Refusal),
    Aborted(Abort),
}

/// What can be read ahead of an answer that is to be whole before it is given away: nothing if it is long, or if its
/// length is not known.
async fn short_answer(response: Option<&mut Response<h2::RecvStream>>) -> Result<VecDeque<Bytes>, h2::Error> {
    let Some(response) = response else { return Ok(VecDeque::new()) };
    let length = response.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    match length.filter(|length| *length <= WHOLE_MAX && !response.body().is_end_stream()) {
        Some(length) => read_ahead(response.body_mut(), length).await,
        None => Ok(VecDeque::new()),
    }
}

/// What an answered try leaves behind.
struct Rest {
    /// What was read ahead of the answer's body.
    early: VecDeque<Bytes>,
    stream: Option<h2::SendStream<Bytes>>,
    held: Option<h2::SendStream<Bytes>>,
    traffic: Arc<hawser_tunnel::splice::Traffic>,
    ticket: Ticket,
}

impl Journey {
    fn new(head: Head, upload: Upload) -> Self {
        Self { head, upload, search: Search::default(), tries: 0 }
    }

    fn hold(&self, trip: &Trip) -> Option<Pin<Box<Sleep>>> {
        let wait = trip.app.context.settings.expect_continue;
        self.head.expects_continue.then(|| Box::pin(tokio::time::sleep(wait)))
    }

    async fn attempt(&mut self, trip: &mut Trip, leg: &Arc<Leg>, mut ticket: Ticket) -> Attempt {
        self.tries += 1;
        let traffic = trip.goes(leg, &ticket);
        let hold = self.hold(trip);
        let mut requests = ticket.session.requests();
        let head = self.head.to_request(&leg.pool.target_header);
        let harmless = retry::idempotent(&self.head.method) && self.tries < TRIES_MAX;
        let (search, app) = (&mut self.search, &trip.app);
        let outcome = match Exchange::begin(&mut requests, head, &mut self.upload, traffic.clone(), hold) {
            Ok(mut exchange) => {
                let first = tokio::select! {
                    biased;
                    outcome = &mut exchange => Ok(outcome),
                    place = search.elsewhere(app, &ticket), if harmless => Err(place),
                };
                match first {
                    Ok(outcome) => outcome,
                    Err(place) if exchange.replayable() => {
                        drop(exchange);
                        self.upload.rewind();
                        return Attempt::Again(Some(place));
                    }
                    Err(_) => exchange.await,
                }
            }
            Err(error) => Err(Failure::Unsent(error)),
        };
        match outcome {
            Ok(Answered { mut response, stream, held }) => {
                if self.judge(trip, &response, &mut ticket) {
                    return Attempt::Again(None);
                }
                let ahead = Some(&mut response).filter(|_| harmless && stream.is_none() && held.is_none());
                match short_answer(ahead).await {
                    Ok(early) => Attempt::Answered(response, Rest { early, stream, held, traffic, ticket }),
                    Err(error) => self.failed(trip, (error, false), ticket),
                }
            }
            Err(Failure::App(error)) => Attempt::Aborted(error.into()),
            Err(Failure::Unsent(error)) => self.failed(trip, (error, true), ticket),
            Err(Failure::Far(error)) => {
                let unseen = retry::unprocessed(&error);
                self.failed(trip, (error, unseen), ticket)
            }
        }
    }

    /// Books an answer; says whether the request is to be tried elsewhere instead of giving it to the application.
    fn judge(&mut self, trip: &Trip, response: &Response<h2::RecvStream>, ticket: &mut Ticket) -> bool {
        let refused = headers::refusal_code(response.headers());
        if refused.is_none_or(|code| !code.retry_elsewhere()) && response.status().as_u16() < 500 {
            ticket.answered();
            return false;
        }
        self.book(trip, ticket, balance::Failure::Answer);
        // The application's own failures are its answers.
        let Some(code) = refused else { return false };
        code.retry_elsewhere() && self.again(trip, retry::unseen(code), ticket)
    }

    fn book(&self, trip: &Trip, ticket: &mut Ticket, failure: balance::Failure) {
        if ticket.failed(failure) {
            trip.changed();
            let what = if failure == balance::Failure::Answer { "answers" } else { "connection" };
            trip.app.context.metrics.ejected(&trip.app.target.label, what);
        }
    }

    fn failed(&mut self, trip: &mut Trip, (error, unseen): (h2::Error, bool), mut ticket: Ticket) -> Attempt {
        let cut = ticket.session.hold.cut_because();
        let one_stream = error.is_reset() && error.is_remote();
        let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
        self.book(
            trip,
            &mut ticket,
            if one_stream && !refused { balance::Failure::Answer } else { balance::Failure::Connection },
        );
        if !one_stream {
            ticket.retire();
        }
        if cut.is_none_or(Code::retry_elsewhere) && self.again(trip, unseen, &ticket) {
            return Attempt::Again(None);
        }
        if trip.http2 && one_stream {
            // The application's own word to its caller: pass it on as it is.
            return Attempt::Aborted(error.into());
        }
        let code = cut.unwrap_or(Code::EndpointUnreachable);
        let endpoint = &ticket.member.id;
        let message =
            format!("endpoint {endpoint} of {} ended the request without an answer: {error}", trip.app.target.label);
        Attempt::Refused(Refusal::new(code, message, "see the log of the server and of the proxy beside it"))
    }

    /// Whether the request may be tried elsewhere; if so, prepares that.
    fn again(&mut self, trip: &Trip, unseen: bool, ticket: &Ticket) -> bool {
        let harmless = unseen || retry::idempotent(&self.head.method);
        if !harmless || !self.upload.replayable() || self.tries >= TRIES_MAX {
            return false;
        }
        let (metrics, label) = (&trip.app.context.metrics, &trip.app.target.label);
        if !trip.app.target.budget.spend(Instant::now()) {
            metrics.retry(label, "no_budget");
            return false;
        }
        self.search.avoid(ticket);
        self.upload.rewind();
        true
    }

    /// Gives the answer to the application, and goes on with the body if some of it is left.
    fn deliver(self, mut trip: Trip, response: Response<h2::RecvStream>, rest: Rest) -> Response<Answer> {
        let context = trip.app.context.clone();
        let (mut parts, body) = response.into_parts();
        if self.tries > 1 {
            let outcome = if parts.status.as_u16() < 500 { "success" } else { "failure" };
            context.metrics.retry(&trip.app.target.label, outcome);
        }
        headers::strip_hop_by_hop(&mut parts.headers);
        parts.version = Version::HTTP_11;
        trip.answered(parts.status);
        if let Some(code) = headers::refusal_code(&parts.headers) {
            trip.cut(code);
        }
        let Rest { early, stream, held, traffic, ticket } = rest;
        if let Some(stream) = stream {
            let mut upload = self.upload;
            upload.settle();
            context.process.spawn(finish(upload, stream, traffic.clone()));
        }
        if early.is_empty() && body.is_end_stream() {
            trip.completed();
        }
        let far = Far { early, body, trip, traffic, ticket, held, data_over: false, broken: None };
        Response::from_parts(parts, Answer::Far(Box::new(far)))
    }
}
