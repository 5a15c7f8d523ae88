//! Opens a CONNECT stream in a shared session: what opaque connections and upgrades run in.

use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use hawser_api::labels::{HEADER_CARRIES, HEADER_TARGET};
use hawser_api::{Code, Refusal};
use http::{HeaderValue, Method, Request, Uri};

use super::target::Leg;
use crate::balance::Failure;
use crate::headers;
use crate::session::Ticket;

/// From the stream's head to the far application's connection: its own connect time-out is shorter.
const ANSWER: Duration = Duration::from_secs(5);
/// Of a refusal's body.
const BODY_MAX: usize = 4 << 10;

/// Both halves of an open stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) send: SendStream<Bytes>,
    pub(super) recv: RecvStream,
}

/// Opens a stream that carries `tcp` or `http/1.1`, and books how that went. `trace` is the caller's trace context.
pub(super) async fn open(
    leg: &Leg,
    ticket: &mut Ticket,
    carries: &'static str,
    trace: Option<&HeaderValue>,
) -> Result<Stream, Refusal> {
    let mut head = Request::new(());
    *head.method_mut() = Method::CONNECT;
    *head.uri_mut() = Uri::from(leg.pool.authority.clone());
    let all = head.headers_mut();
    all.insert(HEADER_TARGET, leg.pool.target_header.clone());
    all.insert(HEADER_CARRIES, HeaderValue::from_static(carries));
    if let Some(trace) = trace {
        all.insert(headers::HEADER_TRACE, trace.clone());
    }
    let answered = tokio::time::timeout(ANSWER, answer(ticket, head)).await;
    let refusal = match answered {
        Ok(Ok(Ok(stream))) => {
            ticket.answered();
            return Ok(stream);
        }
        Ok(Ok(Err(refusal))) if !refusal.code.retry_elsewhere() => {
            ticket.answered();
            return Err(refusal);
        }
        Ok(Ok(Err(refusal))) => {
            ticket.failed(Failure::Answer);
            return Err(refusal);
        }
        Ok(Err(error)) => broken(ticket, &error),
        Err(_) => {
            let message = format!("endpoint {} did not answer within {ANSWER:?}", ticket.member.id);
            Refusal::new(Code::TimedOut, message, "check that its application accepts connections")
        }
    };
    ticket.failed(Failure::Connection);
    Err(refusal)
}

/// The stream or its session failed before there was an answer.
fn broken(ticket: &Ticket, error: &h2::Error) -> Refusal {
    if !(error.is_reset() && error.is_remote()) {
        ticket.retire();
    }
    let code = ticket.session.hold.cut_because().unwrap_or(Code::EndpointUnreachable);
    let message = format!("endpoint {} ended the stream without an answer: {error}", ticket.member.id);
    Refusal::new(code, message, "see the log of the proxy beside it")
}

async fn answer(ticket: &Ticket, head: Request<()>) -> Result<Result<Stream, Refusal>, h2::Error> {
    let (response, send) = ticket.session.requests().send_request(head, false)?;
    let response = response.await?;
    if response.status().is_success() {
        return Ok(Ok(Stream { send, recv: response.into_body() }));
    }
    let code = headers::refusal_code(response.headers()).unwrap_or(Code::EndpointUnreachable);
    let mut body = response.into_body();
    let mut text = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        let room = BODY_MAX.saturating_sub(text.len());
        text.extend_from_slice(data.get(..data.len().min(room)).unwrap_or_default());
        let _ = body.flow_control().release_capacity(data.len());
        if text.len() >= BODY_MAX {
            break;
        }
    }
    Ok(Err(headers::parse_refusal(code, &String::from_utf8_lossy(&text))))
}
