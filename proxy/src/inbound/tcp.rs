//! Opaque connections: a CONNECT stream of a shared session, or a dedicated session, and the application's socket.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use hawser_api::{Code, Refusal, ServicePort};
use hawser_tunnel::sealed::{self, Dedicated};
use hawser_tunnel::splice::Ended;
use tokio::time::Instant;

use super::request::{Ending, Stream, unless_ready};
use super::sessions::{Route, Session};
use super::{Inbound, admit, dial};
use crate::streams::{Direction, Entry, Kind, Outcome};

/// Carries a CONNECT stream; the answer is 200 only when the application has accepted.
pub(super) async fn stream(
    stream: &Stream,
    recv: RecvStream,
    respond: &mut SendResponse<Bytes>,
) -> Result<(Entry, Ending), Refusal> {
    let context = &stream.inbound.context;
    let (chosen, app) = dial::connect(context, &stream.inbound.targets, &stream.permit).await?;
    let entry = stream.begin(&chosen.id, Kind::Tcp);
    let Ok(send) = respond.send_response(::http::Response::new(()), false) else {
        return Ok((entry, Ending { status: None, ended: Ended::PeerReset.as_str() }));
    };
    opened(&stream.route);
    let cut = stream.session.cut.clone();
    let ended = sealed::carry_stream(send, recv, app, Bytes::new(), stream.traffic.clone(), cut).await;
    closed(stream, ended);
    Ok((entry, Ending { status: Some(200), ended: ended.as_str() }))
}

fn opened(route: &Route) {
    route.metrics.tcp_opens.inc();
    route.metrics.tcp_open_now.inc();
}

fn closed(stream: &Stream, ended: Ended) {
    let metrics = &stream.route.metrics;
    metrics.tcp_open_now.dec();
    // Seen from callers; `Traffic` is seen from the session's near end.
    metrics.tcp_sent.inc_by(stream.traffic.received.load(Ordering::Relaxed));
    metrics.tcp_received.inc_by(stream.traffic.sent.load(Ordering::Relaxed));
    stream.inbound.context.metrics.tcp_closed(Direction::Inbound, ended.as_str());
}

/// Serves a dedicated session.
pub(super) async fn dedicated(inbound: &Arc<Inbound>, mut dedicated: Dedicated, target: ServicePort) {
    let context = &inbound.context;
    let started = Instant::now();
    let entered = inbound.sessions.enter(&dedicated.peer, "dedicated", context);
    let admitted = entered.and_then(|guard| Ok((admitted(inbound, &guard.session, &target)?, guard)));
    let ((stream, _guard), (chosen, app)) = match admitted {
        Ok((stream, guard)) => match dial::connect(context, &inbound.targets, &stream.permit).await {
            Ok(connected) => ((stream, guard), connected),
            Err(refusal) => {
                stream.begin(&Arc::from(""), Kind::Tcp).end(&refused(refusal.code));
                return refuse(inbound, dedicated, &refusal).await;
            }
        },
        Err(refusal) => {
            let refusal = unless_ready(inbound, refusal);
            tracing::info!(client_id = %dedicated.peer.id(), %target, %refusal, "a dedicated session was refused");
            return refuse(inbound, dedicated, &refusal).await;
        }
    };
    let stream = Stream { started, ..stream };
    let entry = stream.begin(&chosen.id, Kind::Tcp);
    if dedicated.confirm().await.is_err() {
        return entry.end(&Outcome { ended: Ended::PeerReset.as_str(), ..Outcome::default() });
    }
    opened(&stream.route);
    let session = stream.session.clone();
    let relay = dedicated.relay(app, Bytes::new(), stream.traffic.clone(), session.cut.clone());
    let expire = async {
        tokio::time::sleep(session.remaining()).await;
        session.cut(Code::NotLinked);
        std::future::pending().await
    };
    let ended = tokio::select! { ended = relay => ended, never = expire => never };
    closed(&stream, ended);
    entry.end(&Outcome { ended: ended.as_str(), refusal: session.why(), ..Outcome::default() });
}

fn refused(code: Code) -> Outcome {
    Outcome { refusal: Some(code), ended: "refused", ..Outcome::default() }
}

fn admitted(inbound: &Arc<Inbound>, session: &Arc<Session>, target: &ServicePort) -> Result<Stream, Refusal> {
    let context = &inbound.context;
    let ask = || admit::admit(session.peer.id(), context.credentials.own_domain(), target, &context.tables());
    ask()?;
    let route = session.note(target.to_string().as_bytes(), target, context)?;
    // Again, now that `recheck` can see the port: a change in between would otherwise be missed.
    let permit = ask()?;
    Ok(Stream {
        inbound: inbound.clone(),
        session: session.clone(),
        route,
        permit,
        traffic: Arc::default(),
        started: Instant::now(),
    })
}

async fn refuse(inbound: &Inbound, dedicated: Dedicated, refusal: &Refusal) {
    inbound.context.metrics.refused(Direction::Inbound, refusal.code);
    let _ = dedicated.refuse(refusal).await;
}
