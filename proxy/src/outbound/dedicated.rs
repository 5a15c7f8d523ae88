//! A sealed session for one opaque connection: a handshake at its beginning, and no framing after it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hawser_api::Refusal;
use hawser_tunnel::sealed::{self, Dedicated};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::App;
use super::http::Search;
use super::target::Leg;
use super::tcp::Carried;
use crate::balance::Failure;
use crate::dial;
use crate::session::{self, Hold, Member, NoPlace, Pool, Reached};
use crate::streams::Path;
use crate::table::Reach;

/// For handshake, preface and the far application's connection.
const CONFIRM: Duration = Duration::from_secs(5);

/// A session that stands.
pub(super) struct Opened {
    leg: Arc<Leg>,
    session: Dedicated,
    path: Arc<Path>,
    hold: Arc<Hold>,
    visit: Option<Visit>,
}

/// One connection at an endpoint of this cluster, for the balancer's books.
struct Visit {
    member: Arc<Member>,
    begun: Instant,
    reported: bool,
}

impl Visit {
    fn begin(member: Arc<Member>) -> Self {
        let begun = Instant::now();
        member.load.begin(begun);
        Self { member, begun, reported: false }
    }

    fn report(&mut self, well: bool) {
        self.reported = true;
        let now = Instant::now();
        let took = now.saturating_duration_since(self.begun);
        if well {
            self.member.load.answered(now, took);
        } else {
            self.member.load.failed(now, took, Failure::Connection);
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if !self.reported {
            self.member.load.abandoned(Instant::now(), self.begun.elapsed());
        }
        self.member.load.end();
    }
}

/// Opens a session, wherever one can be had.
pub(super) async fn open(app: &Arc<App>) -> Result<Opened, Refusal> {
    let mut search = Search::default();
    loop {
        let (leg, choice) = search.backend(app)?;
        let local = matches!(leg.pool.backend().reach, Reach::Local(_));
        let chosen = leg.pool.choose(Instant::now(), search.members(), choice.last_resort);
        let member = chosen.filter(|_| local);
        let number = member.as_ref().map(|member| member.number);
        let outcome = match member {
            None if local => Err(leg.pool.nobody()),
            // Behind gateways they choose for us.
            member => to(app, &leg, member, choice.last_resort).await,
        };
        match outcome {
            Ok(opened) => return Ok(opened),
            Err(refusal) if !refusal.code.retry_elsewhere() => return Err(refusal),
            Err(refusal) => search.failed(app, choice, NoPlace { refusal, member: number })?,
        }
    }
}

/// Opens a session to this endpoint, or to one that a gateway chooses.
async fn to(app: &Arc<App>, leg: &Arc<Leg>, member: Option<Arc<Member>>, last_resort: bool) -> Result<Opened, Refusal> {
    let (context, pool) = (&app.context, &leg.pool);
    let patience = if last_resort { CONFIRM } else { context.settings.connect };
    let mut visit = member.map(Visit::begin);
    let connect = connect(app, pool, visit.as_ref().map(|visit| &visit.member));
    let outcome = session::in_time(patience, connect).await;
    if let Some(visit) = &mut visit {
        visit.report(outcome.as_ref().err().is_none_or(|refusal| !refusal.code.retry_elsewhere()));
    }
    let word = outcome.as_ref().err().map_or("ok", |refusal| refusal.code.as_str());
    context.metrics.session_opened(pool.cluster.as_str(), "dedicated", word);
    let (session, path) = outcome?;
    let hold = session::hold(context, pool, &session.peer);
    Ok(Opened { leg: leg.clone(), session, path: Arc::new(path), hold, visit })
}

async fn connect(app: &Arc<App>, pool: &Arc<Pool>, member: Option<&Arc<Member>>) -> Result<(Dedicated, Path), Refusal> {
    let context = &app.context;
    let reached = match member.and_then(|member| Some((member, member.address()?))) {
        Some((member, address)) => Reached::local(dial::connect(context, address).await?, member.id.clone()),
        None => session::through_gateway(context, pool, None).await?,
    };
    let mut path = reached.path(context, pool, "dedicated");
    let expect = session::expect(pool);
    let connect = sealed::connect_dedicated(reached.stream, &context.credentials, &expect, &pool.target);
    let session = connect.await?;
    path.server_id = Some(session.peer.id().clone());
    Ok((session, path))
}

/// Carries a connection in a session of its own.
pub(super) async fn carry(app: &Arc<App>, opened: Opened, socket: TcpStream, early: Bytes) {
    let Opened { leg, session, path, hold, visit } = opened;
    let carried = Carried::begin(app, &leg, path, &hold);
    let ended = session.relay(socket, early, carried.traffic.clone(), carried.cut.clone()).await;
    carried.end(ended);
    hold.finish();
    drop(visit);
}
