//! Opens a pool's sessions, each in a task of its own, so that nobody's impatience ends what others wait for.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use hawser_api::objects::link::Transport;
use hawser_api::{Code, Refusal};
use hawser_runtime::clock;
use hawser_tunnel::open::OpenRequest;
use hawser_tunnel::pool::GatewayPath;
use hawser_tunnel::sealed::{self, Driver};
use hawser_tunnel::stream::TunnelStream;
use hawser_tunnel::tls::{Expect, VerifiedPeer};
use tokio::time::Instant;

use super::flight::Waiting;
use super::member::{Hold, Life, Member, Session};
use super::pool::Pool;
use crate::balance::Failure;
use crate::context::Context;
use crate::dial;
use crate::streams::{Direction, Path};

/// A session to this endpoint.
pub(super) fn member(context: &Arc<Context>, pool: &Arc<Pool>, member: &Arc<Member>) -> Waiting<Arc<Session>> {
    member.flight.join(&context.process, || {
        let (context, pool, member) = (context.clone(), pool.clone(), member.clone());
        async move {
            let begun = Instant::now();
            let outcome = to_member(&context, &pool, &member).await;
            let failed = outcome.is_err();
            member.unreachable.store(failed, Ordering::Relaxed);
            if failed {
                let now = Instant::now();
                member.load.begin(now);
                member.load.failed(now, now - begun, Failure::Connection);
                member.load.end();
                context.metrics.ejected(&pool.target.to_string(), "connection");
                pool.lost(&member);
            }
            count(&context, &pool, "shared", outcome.as_ref().err());
            pool.refresh(Instant::now());
            outcome
        }
    })
}

async fn to_member(context: &Arc<Context>, pool: &Arc<Pool>, member: &Arc<Member>) -> Result<Arc<Session>, Refusal> {
    let reached = match member.address {
        Some(address) => Reached::local(dial::connect(context, address).await?, member.id.clone()),
        None => through_gateway(context, pool, Some(&member.id)).await?,
    };
    let session = seal(context, pool, member, reached).await?;
    member.session.store(Some(session.clone()));
    pool.track(&session.hold);
    still_trusted(context, &session.hold);
    Ok(session)
}

/// A session to any far endpoint, and the member that it makes.
pub(super) fn far(context: &Arc<Context>, pool: &Arc<Pool>) -> Waiting<(Arc<Member>, Arc<Session>)> {
    pool.flight().join(&context.process, || {
        let (context, pool) = (context.clone(), pool.clone());
        async move {
            let outcome = to_any(&context, &pool).await;
            count(&context, &pool, "shared", outcome.as_ref().err());
            if let Err(refusal) = &outcome {
                pool.failed(refusal);
            }
            outcome
        }
    })
}

async fn to_any(context: &Arc<Context>, pool: &Arc<Pool>) -> Result<(Arc<Member>, Arc<Session>), Refusal> {
    let reached = through_gateway(context, pool, None).await?;
    let ready = reached.ready;
    let member = Arc::new(Member::new(reached.endpoint.clone(), None));
    let session = seal(context, pool, &member, reached).await?;
    member.session.store(Some(session.clone()));
    pool.joined(&member, &session, ready);
    still_trusted(context, &session.hold);
    Ok((member, session))
}

/// A byte stream that leads to an endpoint's proxy.
pub(crate) struct Reached {
    pub(crate) stream: TunnelStream,
    pub(crate) endpoint: Arc<str>,
    pub(crate) gateway: Option<GatewayPath>,
    pub(crate) transport: Option<Transport>,
    ready: u32,
}

impl Reached {
    pub(crate) fn local(socket: tokio::net::TcpStream, endpoint: Arc<str>) -> Self {
        Self { stream: socket.into(), endpoint, gateway: None, transport: None, ready: 0 }
    }

    /// What all streams over it have in common.
    pub(crate) fn path(&self, context: &Context, pool: &Pool, session: &'static str) -> Path {
        Path {
            direction: Direction::Outbound,
            client_id: context.credentials.identity().map(|identity| identity.id().clone()),
            server_id: None,
            cluster: Some(pool.cluster.clone()),
            gateway: self.gateway.as_ref().map(|path| path.gateway.clone()),
            transport: self.transport,
            session,
            endpoint: self.endpoint.clone(),
        }
    }
}

/// Opens a tunnel to the pool's service port: to this endpoint, to the pool's only one, or to one that we do not have.
pub(crate) async fn through_gateway(
    context: &Arc<Context>,
    pool: &Arc<Pool>,
    endpoint: Option<&str>,
) -> Result<Reached, Refusal> {
    let peer = pool.peer().ok_or_else(|| {
        let message = format!("cluster {} is not linked", pool.cluster);
        Refusal::new(Code::NotLinked, message, "create a Link for it")
    })?;
    let endpoint = endpoint.or(pool.only.as_deref());
    let avoid = if endpoint.is_some() { Vec::new() } else { pool.avoid() };
    let request = OpenRequest {
        target: pool.target.clone(),
        endpoint: endpoint.map(str::to_owned),
        avoid,
        traceparent: String::new(),
    };
    let (gateway, opening) = dial::open(context, &peer, &request).await?;
    Ok(Reached {
        stream: opening.stream,
        endpoint: opening.opened.endpoint.into(),
        gateway: Some(gateway),
        transport: Some(opening.transport),
        ready: opening.opened.endpoints_ready,
    })
}

/// Whom we expect at the other end.
pub(crate) fn expect(pool: &Pool) -> Expect {
    Expect::Identities(pool.backend().identities.clone())
}

/// Does the inner handshake and starts the session's driver.
async fn seal(
    context: &Arc<Context>,
    pool: &Arc<Pool>,
    member: &Arc<Member>,
    reached: Reached,
) -> Result<Arc<Session>, Refusal> {
    let mut path = reached.path(context, pool, "shared");
    let (settings, expect) = (&context.settings, expect(pool));
    let moved = reached.stream.moved();
    let connect = sealed::connect_shared(reached.stream, &context.credentials, &expect, settings.keepalive);
    let (client, driver) = in_time(settings.connect, connect).await?;
    path.server_id = Some(client.peer.id().clone());
    let life = life(&client.peer);
    let session = Arc::new(Session::new(client, path, (reached.gateway, moved), life));
    drive(context, pool, member, &session, driver);
    Ok(session)
}

fn life(peer: &VerifiedPeer) -> Life {
    let now = clock::now();
    let own = peer.ours_not_after().unwrap_or(now);
    Life::new(now, own, peer.not_after())
}

/// What a dedicated session to this peer rests on.
pub(crate) fn hold(context: &Context, pool: &Pool, peer: &VerifiedPeer) -> Arc<Hold> {
    let hold = Arc::new(Hold::new(peer.clone(), life(peer)));
    pool.track(&hold);
    still_trusted(context, &hold);
    hold
}

/// Whoever lost our trust during the handshake was not listed when the others were checked.
fn still_trusted(context: &Context, hold: &Hold) {
    if !context.credentials.still_trusts(&hold.peer) {
        hold.cut(Code::NotLinked);
    }
}

pub(crate) async fn in_time<T>(
    limit: Duration,
    connect: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    tokio::time::timeout(limit, connect).await.unwrap_or_else(|_| {
        let message = format!("the endpoint's proxy did not finish the handshake within {limit:?}");
        Err(Refusal::new(Code::TimedOut, message, "check that the endpoint's proxy runs and is not overloaded"))
    })
}

fn drive(context: &Arc<Context>, pool: &Arc<Pool>, member: &Arc<Member>, session: &Arc<Session>, driver: Driver) {
    // Neither the pool nor the session is kept by its driver: both may go while it runs, and it ends with the session.
    let (context, pool, member) = (Arc::downgrade(context), Arc::downgrade(pool), Arc::downgrade(member));
    let (stop, gone) = (session.hold.stop().clone(), Arc::downgrade(session));
    let process = context.upgrade().map(|context| context.process.clone());
    let task = async move {
        let by_itself = stop.run_until_cancelled(driver).await.is_some();
        let Some(session) = gone.upgrade() else { return };
        session.hold.ended();
        let (Some(pool), Some(member)) = (pool.upgrade(), member.upgrade()) else { return };
        if !member.session.load().as_ref().is_some_and(|now| Arc::ptr_eq(now, &session)) {
            // It was taken out of use before.
            return;
        }
        member.session.store(None);
        let Some(context) = context.upgrade().filter(|_| by_itself) else { return };
        if let Some(gateway) = &session.gateway {
            context.sessions.gateways.suspect(gateway);
        }
        pool.lost(&member);
        pool.tend(&context, Instant::now());
    };
    if let Some(process) = process {
        process.spawn(task);
    }
}

fn count(context: &Context, pool: &Pool, session: &'static str, failed: Option<&Refusal>) {
    if let Some(refusal) = failed {
        tracing::debug!(cluster = %pool.cluster, target = %pool.target, %refusal, "no session");
    }
    context.metrics.session_opened(
        pool.cluster.as_str(),
        session,
        failed.map_or("ok", |refusal| refusal.code.as_str()),
    );
}

/// Whether a certificate that ends then is still good.
pub(super) fn is_past(at: SystemTime) -> bool {
    clock::now() >= at
}
