//! The door for callers: sealed sessions over TCP, from other proxies of this cluster or through its gateways.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::Connection;
use hawser_api::Code;
use hawser_tunnel::sealed::{self, Accepted, SealedStream, SharedServer};
use hawser_tunnel::stream::TunnelStream;
use hawser_tunnel::tls::VerifiedPeer;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::sessions::Session;
use super::{Inbound, request, tcp};
use crate::streams::Direction;

/// After a failed accept (descriptors used up), so that the loop does not spin.
const PAUSE: Duration = Duration::from_millis(50);
/// How often idle connections to applications are looked at.
const UPKEEP: Duration = Duration::from_secs(5);
/// A caller is asked to open another session this long before its certificate ends (or a tenth of what is left, if that
/// is less), so that streams can end by themselves.
const EARLY: Duration = Duration::from_secs(60);
/// After a renewal of our own certificate, the longest that sessions are still given new streams.
const RENEWED: Duration = Duration::from_secs(5);
/// For the last frame of a session that is ended.
const GOODBYE: Duration = Duration::from_millis(100);
/// What streams need to notice that their session is over and to leave their records.
const AFTERWARDS: Duration = Duration::from_secs(5);
/// A caller that is gone without a word is noticed after some 30 s, and its applications' connections with it.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);

impl Inbound {
    /// Accepts until the process drains; sessions then go on until their streams have ended.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let drain = self.context.process.drain.clone();
        let work = async { tokio::join!(self.accept(&listener), self.upkeep()) };
        drain.run_until_cancelled(work).await;
    }

    async fn accept(self: &Arc<Self>, listener: &TcpListener) {
        let handshakes = Arc::new(Semaphore::new(self.limits.handshakes));
        loop {
            let Ok(place) = handshakes.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((socket, remote)) => {
                    let inbound = self.clone();
                    self.context.process.spawn(async move { inbound.connection(socket, remote, place).await });
                }
                Err(error) => {
                    tracing::debug!(%error, "accept failed");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn upkeep(&self) {
        loop {
            tokio::time::sleep(UPKEEP).await;
            self.targets.prune();
        }
    }

    async fn connection(self: Arc<Self>, socket: TcpStream, remote: SocketAddr, place: OwnedSemaphorePermit) {
        let _ = socket.set_nodelay(true);
        let (time, interval, retries) = KEEPALIVE;
        let keepalive = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
        let _ = SockRef::from(&socket).set_tcp_keepalive(&keepalive);
        self.handshaking.inc();
        let stream = TunnelStream::from(socket);
        let accepted = sealed::accept(stream, &self.context.credentials, self.limits.handshake).await;
        self.handshaking.dec();
        drop(place);
        match accepted {
            Ok(Accepted::Shared(server)) => self.shared(server).await,
            Ok(Accepted::Dedicated { session, target }) => tcp::dedicated(&self, session, target).await,
            Err(error) => {
                self.context.metrics.handshake_failed(Direction::Inbound, error.reason);
                tracing::info!(%remote, reason = error.reason, detail = error.detail, "no sealed session");
            }
        }
    }

    /// Serves the streams of a shared session until it is over.
    async fn shared(self: &Arc<Self>, server: SharedServer) {
        let SharedServer { peer, mut connection } = server;
        let guard = match self.sessions.enter(&peer, "shared", &self.context) {
            Ok(guard) => guard,
            Err(refusal) => {
                tracing::warn!(client_id = %peer.id(), %refusal, "a session was refused");
                self.context.metrics.refused(Direction::Inbound, refusal.code);
                return close(connection, Reason::ENHANCE_YOUR_CALM).await;
            }
        };
        let session = guard.session.clone();
        // Whoever lost our trust during the handshake was not listed when the others were checked.
        if !self.context.credentials.still_trusts(&peer) {
            session.cut(Code::NotLinked);
        }
        let mut streams = JoinSet::new();
        self.streams(&session, &mut connection, &mut streams).await;
        // Fails the streams, which then leave their records.
        if session.cut.is_cancelled() {
            close(connection, Reason::CANCEL).await;
        } else {
            drop(connection);
        }
        let ended = async { while streams.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(AFTERWARDS, ended).await;
    }

    /// Takes streams until the session ends, is cut, or its caller's certificate ends.
    async fn streams(
        self: &Arc<Self>,
        session: &Arc<Session>,
        connection: &mut Connection<SealedStream, Bytes>,
        streams: &mut JoinSet<()>,
    ) {
        let leave = self.leave(session);
        let end = tokio::time::sleep(session.remaining());
        tokio::pin!(leave, end);
        let mut leaving = false;
        loop {
            tokio::select! {
                biased;
                () = session.cut.cancelled() => return,
                () = &mut end => session.cut(Code::NotLinked),
                () = &mut leave, if !leaving => {
                    leaving = true;
                    connection.graceful_shutdown();
                }
                Some(_) = streams.join_next(), if !streams.is_empty() => {}
                accepted = connection.accept() => {
                    let Some(Ok((request, respond))) = accepted else { return };
                    streams.spawn(request::serve(self.clone(), session.clone(), request, respond));
                }
            }
        }
    }

    /// Waits until callers should open another session: this process drains, a certificate ends soon, or we have a newer
    /// one: what rests on the old one is not to last until that ends, its issuer may wait to retire.
    async fn leave(&self, session: &Session) {
        let remaining = session.remaining();
        let early = tokio::time::sleep(remaining.saturating_sub(EARLY.min(remaining / 10)));
        tokio::select! {
            () = self.context.process.drain.cancelled() => {}
            () = early => {}
            () = self.renewed(&session.peer) => {}
        }
    }

    /// Until we have another certificate than the session's, and a moment more: not all callers come at once.
    async fn renewed(&self, peer: &VerifiedPeer) {
        self.context.credentials.shows_another(peer).await;
        tokio::time::sleep(RENEWED.mul_f64(rand::random_range(0.0..1.0))).await;
    }
}

/// Ends a session at once, and says why if the caller reads.
async fn close(mut connection: Connection<SealedStream, Bytes>, reason: Reason) {
    connection.abrupt_shutdown(reason);
    let closed = std::future::poll_fn(|cx| connection.poll_closed(cx));
    let _ = tokio::time::timeout(GOODBYE, closed).await;
}
