//! `transport: auto`: QUIC with a head start, TCP where QUIC does not get through.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::path::{Path, Terms};
use super::{Failure, Opened};
use crate::quic::Link;
use crate::tcp::Session;

/// An open on a live QUIC connection that brought back nothing at all, not even an acknowledgement, for this long (or
/// for three round trips) has probably met a path that drops UDP.
const SUSPICIOUS: Duration = Duration::from_millis(300);
/// When TCP has failed at once, there is little hope for QUIC, and somebody waits who may have another gateway.
const GRACE: Duration = Duration::from_millis(500);

pub(super) async fn open(path: &Arc<Path>, frame: Bytes) -> Result<Opened, Failure> {
    if let Some(link) = path.live_link() {
        match open_on_live(path, &link, frame.clone()).await {
            Err(failure) if link.closed().is_some() || failure.is_draining() => path.forget_link(&link),
            outcome => return outcome,
        }
    }
    if path.prefers_tcp() {
        return path.open_tcp(frame).await.inspect_err(|failure| {
            if matches!(failure, Failure::Unreached(_)) {
                path.prefer_tcp(false);
            }
        });
    }
    match connect(path).await? {
        Winner::Quic(link) => path.open_on_link(&link, frame).await,
        Winner::Tcp(session) => path.open_on_session(session, &frame).await,
    }
}

enum Winner {
    Quic(Link),
    Tcp(Session),
}

/// Whichever handshake is done first.
async fn connect(path: &Arc<Path>) -> Result<Winner, Failure> {
    let head_start = path.shared().config.quic_head_start;
    let mut quic = std::pin::pin!(path.link());
    match timeout(head_start, &mut quic).await {
        Ok(Ok(link)) => return Ok(Winner::Quic(link)),
        Ok(Err(failure)) => {
            tracing::debug!(gateway = %path.gateway().address, ?failure, "QUIC failed; trying TCP");
            return tcp_session(path).await.map(|session| won_by_tcp(path, session));
        }
        Err(_) => {}
    }
    let mut tcp = std::pin::pin!(tcp_session(path));
    tokio::select! {
        link = &mut quic => match link {
            Ok(link) => Ok(Winner::Quic(link)),
            Err(_) => tcp.await.map(|session| won_by_tcp(path, session)),
        },
        session = &mut tcp => match session {
            Ok(session) => Ok(won_by_tcp(path, session)),
            Err(failure) => match timeout(GRACE, quic).await {
                Ok(Ok(link)) => Ok(Winner::Quic(link)),
                _ => Err(failure),
            },
        },
    }
}

fn won_by_tcp(path: &Arc<Path>, session: Session) -> Winner {
    path.prefer_tcp(true);
    path.keep_warm();
    Winner::Tcp(session)
}

async fn tcp_session(path: &Arc<Path>) -> Result<Session, Failure> {
    match path.take_warm() {
        Some(session) => Ok(session),
        None => path.connect_tcp().await.map(|(session, _): (Session, Terms)| session),
    }
}

/// On a live connection; TCP is tried beside it as soon as the path looks dead.
async fn open_on_live(path: &Arc<Path>, link: &Link, frame: Bytes) -> Result<Opened, Failure> {
    let heard = link.heard();
    let mut quic = std::pin::pin!(path.open_on_link(link, frame.clone()));
    tokio::select! {
        outcome = &mut quic => return outcome,
        () = sleep(SUSPICIOUS.max(link.rtt() * 3)) => {}
    }
    if link.heard() != heard {
        return quic.await;
    }
    let mut tcp = std::pin::pin!(tcp_session(path));
    let session = tokio::select! {
        outcome = &mut quic => return outcome,
        session = &mut tcp => session,
    };
    // Its streams may still be alive, or end by their own deadline; new ones go elsewhere.
    path.forget_link(link);
    match session {
        Ok(session) => {
            path.prefer_tcp(true);
            path.keep_warm();
            path.open_on_session(session, &frame).await
        }
        Err(failure) => timeout(GRACE, quic).await.unwrap_or(Err(failure)),
    }
}
