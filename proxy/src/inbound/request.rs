//! One stream of a shared session: admitted, handed to what carries it, recorded at its end.

use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, Method, Request, request};
use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use hawser_api::labels::{HEADER_CARRIES, HEADER_TARGET, HEADER_VERSION};
use hawser_api::{Code, Refusal, ServicePort};
use hawser_tunnel::splice::Traffic;
use tokio::time::Instant;

use super::admit::{self, Permit};
use super::body::Broken;
use super::sessions::{Route, Session};
use super::{Inbound, h2c, http, tcp, upgrade};
use crate::headers;
use crate::streams::{Direction, Entry, Kind, Live, Outcome, Path};

/// A stream that was admitted.
pub(super) struct Stream {
    /// Whose application it goes to.
    pub inbound: Arc<Inbound>,
    /// The session that it came in.
    pub session: Arc<Session>,
    /// What it asks for.
    pub route: Arc<Route>,
    /// Proof that it may.
    pub permit: Permit,
    /// Its bytes so far; `sent` is what the application sends.
    pub traffic: Arc<Traffic>,
    /// When its head was here.
    pub started: Instant,
}

impl Stream {
    /// Lists the stream as going to this endpoint.
    pub(super) fn begin(&self, endpoint: &Arc<str>, kind: Kind) -> Entry {
        let context = &self.inbound.context;
        context.streams.begin(Live {
            path: self.session.path(&self.route, endpoint, context),
            destination: self.route.text.clone(),
            kind,
            started: self.started,
            traffic: self.traffic.clone(),
            cut: None,
        })
    }
}

/// How a stream ended.
pub(super) struct Ending {
    /// The status that the application gave.
    pub status: Option<u16>,
    /// A word for the record.
    pub ended: &'static str,
}

impl Ending {
    /// A broken stream's.
    pub(super) fn broken(status: Option<u16>, how: Broken) -> Self {
        let ended = match how {
            Broken::Caller(_) => "peer_reset",
            Broken::Application(_) => "upstream_reset",
        };
        Self { status, ended }
    }
}

/// Serves one stream of a shared session.
pub(super) async fn serve(
    inbound: Arc<Inbound>,
    session: Arc<Session>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let started = Instant::now();
    let (parts, recv) = request.into_parts();
    let admitted = admitted(&inbound, &session, &parts.headers).map_err(|refusal| unless_ready(&inbound, refusal));
    match admitted.and_then(|admitted| Ok((admitted, session.place()?))) {
        Ok(((route, permit), _place)) => {
            let stream = Stream { inbound, session, route, permit, traffic: Arc::default(), started };
            dispatch(&stream, parts, recv, &mut respond).await;
        }
        Err(refusal) => {
            refuse(&mut respond, &refusal, headers::is_grpc(&parts.headers));
            inbound.context.metrics.refused(Direction::Inbound, refusal.code);
            let target = target(&parts.headers).map_or_else(|_| String::new(), |t| t.to_string());
            record_refused(&inbound, &session, &target, &parts, refusal.code);
        }
    }
}

fn target(headers: &HeaderMap) -> Result<ServicePort, Refusal> {
    let bad = |message: String| {
        Refusal::new(Code::BadRequest, message, "is the caller's proxy of another version? see its log")
    };
    let mut all = headers.get_all(HEADER_TARGET).iter();
    let (Some(text), None) = (all.next(), all.next()) else {
        return Err(bad(format!("a stream must have exactly one {HEADER_TARGET} header")));
    };
    let text = text.to_str().map_err(|_| bad(format!("the {HEADER_TARGET} header is not text")))?;
    text.parse().map_err(|e| bad(format!("{HEADER_TARGET}: {e}")))
}

/// Asks `admit` for this stream; what was looked up for an earlier stream to the same port holds while the tables do.
fn admitted(inbound: &Inbound, session: &Session, headers: &HeaderMap) -> Result<(Arc<Route>, Permit), Refusal> {
    let context = &inbound.context;
    let text = headers.get(HEADER_TARGET).map_or(&b""[..], |v| v.as_bytes());
    let single = headers.get_all(HEADER_TARGET).iter().count() == 1;
    if let Some(route) = session.known(text).filter(|_| single) {
        let tables = context.tables();
        let ask = || admit::admit(session.peer.id(), context.credentials.own_domain(), &route.target, &tables);
        let permit = route.permit(&tables, ask)?;
        return Ok((route, permit));
    }
    let target = target(headers)?;
    let ask = || admit::admit(session.peer.id(), context.credentials.own_domain(), &target, &context.tables());
    ask()?;
    let route = session.note(text, &target, context)?;
    // Again, now that `recheck` can see the port: a change in between would otherwise be missed.
    Ok((route, ask()?))
}

/// Before the first tables nobody can be admitted, which says nothing about what is exported.
pub(super) fn unless_ready(inbound: &Inbound, refusal: Refusal) -> Refusal {
    if refusal.code != Code::NotExported || *inbound.context.tables_changed().borrow() > 0 {
        return refusal;
    }
    let remedy = "wait a moment; if it lasts, look at the mirror controller's log";
    Refusal::new(Code::NotReady, "the proxy has no tables yet", remedy).retry_after(Duration::from_secs(1))
}

async fn dispatch(stream: &Stream, parts: request::Parts, recv: RecvStream, respond: &mut SendResponse<Bytes>) {
    let method = parts.method.clone();
    let grpc = headers::is_grpc(&parts.headers);
    let trace = headers::traceparent(&parts.headers).unwrap_or_default().to_owned();
    let carries = parts.headers.get(HEADER_CARRIES).map_or(&b"tcp"[..], |v| v.as_bytes());
    let mut outcome = Outcome { method: Some(method.clone()), traceparent: trace, ..Outcome::default() };
    let result = if method != Method::CONNECT {
        let h2 = parts.headers.get(HEADER_VERSION).is_some_and(|v| v == "2");
        if h2 {
            h2c::forward(stream, parts, recv, respond).await
        } else {
            http::forward(stream, parts, recv, respond).await
        }
    } else {
        outcome.method = None;
        match carries {
            b"tcp" => tcp::stream(stream, recv, respond).await,
            b"http/1.1" => upgrade::serve(stream, recv, respond).await,
            _ => Err(Refusal::new(
                Code::Version,
                format!("this proxy does not know what {HEADER_CARRIES} says"),
                "upgrade this cluster's proxies, or use an older version at the caller's",
            )),
        }
    };
    let context = &stream.inbound.context;
    let http = outcome.method.is_some();
    match result {
        Ok((entry, ending)) => {
            if http {
                stream.route.metrics.request(ending.status, stream.started.elapsed());
            }
            outcome.status = ending.status;
            outcome.ended = ending.ended;
            outcome.refusal = stream.session.why();
            entry.end(&outcome);
        }
        Err(refusal) => {
            refuse(respond, &refusal, grpc);
            context.metrics.refused(Direction::Inbound, refusal.code);
            if http {
                stream.route.metrics.request(None, stream.started.elapsed());
            }
            outcome.status = Some(refusal.code.http_status());
            outcome.refusal = Some(refusal.code);
            outcome.ended = "refused";
            stream.begin(&Arc::from(""), if http { Kind::Http } else { Kind::Tcp }).end(&outcome);
        }
    }
}

/// Answers a stream with a refusal: small enough to go out whole, whatever the window.
fn refuse(respond: &mut SendResponse<Bytes>, refusal: &Refusal, grpc: bool) {
    let (parts, body) = headers::refusal_response(refusal, grpc).into_parts();
    let ended = body.is_empty();
    if let Ok(mut send) = respond.send_response(::http::Response::from_parts(parts, ()), ended)
        && !ended
    {
        let _ = send.send_data(body, true);
    }
}

fn record_refused(inbound: &Inbound, session: &Session, target: &str, parts: &request::Parts, code: Code) {
    let live = Live {
        path: Arc::new(Path {
            direction: Direction::Inbound,
            client_id: Some(session.peer.id().clone()),
            server_id: inbound.context.credentials.identity().map(|i| i.id().clone()),
            cluster: None,
            gateway: None,
            transport: None,
            session: session.form,
            endpoint: Arc::from(""),
        }),
        destination: target.into(),
        kind: if parts.method == Method::CONNECT { Kind::Tcp } else { Kind::Http },
        started: Instant::now(),
        traffic: Arc::default(),
        cut: None,
    };
    let outcome = Outcome {
        method: Some(parts.method.clone()),
        status: Some(code.http_status()),
        refusal: Some(code),
        ended: "refused",
        traceparent: headers::traceparent(&parts.headers).unwrap_or_default().to_owned(),
    };
    crate::streams::record(&live, &outcome);
}

/// Resets a stream whose application broke off, with the reason that it gave.
pub(super) fn reset(respond: &mut SendResponse<Bytes>, broken: Broken) {
    let (Broken::Application(reason) | Broken::Caller(reason)) = broken;
    respond.send_reset(reason);
}
