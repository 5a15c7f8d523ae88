//! `transport: auto`: QUIC with a head start, TCP where QUIC does not get through.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout};

use super::path::Path;
use super::{Failure, Opened};
use crate::quic::Link;
use crate::tcp::Session;

/// When TCP has failed, there is little hope for QUIC, and somebody waits who may have another gateway. QUIC gets this
/// long, or three times what TCP took: a refusal tells the round trip.
const GRACE: Duration = Duration::from_millis(100);

pub(super) async fn open(path: &Arc<Path>, frame: Bytes) -> Result<Opened, Failure> {
    if let Some(link) = path.live_link() {
        let instead = async {
            path.forget_link(&link);
            anew(path, frame.clone()).await
        };
        return path.open_on_live(&link, frame.clone(), instead).await;
    }
    anew(path, frame).await
}

/// Without a connection to go by: TCP if it won lately, else a race.
async fn anew(path: &Arc<Path>, frame: Bytes) -> Result<Opened, Failure> {
    if path.prefers_tcp() {
        return path.open_tcp(frame).await.inspect_err(|failure| {
            if matches!(failure, Failure::Unreached(_)) {
                path.prefer_tcp(false);
            }
        });
    }
    match connect(path).await? {
        Winner::Quic(link) => path.open_on_link(&link, frame).await,
        Winner::Tcp(session) => {
            path.prefer_tcp(true);
            path.keep_warm();
            path.open_on_session(*session, &frame).await
        }
    }
}

enum Winner {
    Quic(Link),
    Tcp(Box<Session>),
}

/// Whichever handshake is done first.
async fn connect(path: &Arc<Path>) -> Result<Winner, Failure> {
    let mut quic = std::pin::pin!(path.link());
    match timeout(path.shared().config.quic_head_start, &mut quic).await {
        Ok(Ok(link)) => return Ok(Winner::Quic(link)),
        Ok(Err(failure)) => {
            tracing::debug!(gateway = %path.gateway().address, ?failure, "QUIC failed; trying TCP");
            return tcp_session(path).await;
        }
        Err(_) => {}
    }
    let began = Instant::now();
    let mut tcp = std::pin::pin!(tcp_session(path));
    tokio::select! {
        link = &mut quic => match link {
            Ok(link) => Ok(Winner::Quic(link)),
            Err(_) => tcp.await,
        },
        won = &mut tcp => match won {
            Ok(won) => Ok(won),
            Err(failure) => match timeout(GRACE.max(began.elapsed() * 3), quic).await {
                Ok(Ok(link)) => Ok(Winner::Quic(link)),
                _ => Err(failure),
            },
        },
    }
}

async fn tcp_session(path: &Arc<Path>) -> Result<Winner, Failure> {
    let session = match path.take_warm() {
        Some(session) => session,
        None => path.connect_tcp().await?.0,
    };
    Ok(Winner::Tcp(Box::new(session)))
}
