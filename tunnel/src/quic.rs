//! Tunnels over QUIC: one connection per peer and gateway, one bidirectional stream per sealed session.
//!
//! quinn's defaults are for the open internet and one application; ours are here, each with its reason. rustls's
//! configuration comes from [`Credentials`](crate::tls::Credentials) and has no early data, so quinn has none either.

mod ids;
mod link;
mod socket;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quinn::congestion::CubicConfig;
use quinn::{AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use rustls_pki_types::CertificateDer;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::frame;
use crate::stream::TunnelStream;
use crate::tls::HandshakeError;

pub(crate) use link::Link;

/// Code of a stream that ended by a reset.
pub(crate) const RESET: VarInt = VarInt::from_u32(1);
/// Code of an open that nobody waits for any more.
const ABANDONED: VarInt = VarInt::from_u32(2);
/// Code of a connection that was cut by policy.
pub(crate) const CUT: VarInt = VarInt::from_u32(3);
/// Code of a connection that ended in order, after its last stream.
pub(crate) const DONE: VarInt = VarInt::from_u32(0);

/// A dialler that hears nothing for this long holds the gateway for dead, and what runs through it is free to go
/// elsewhere. Both ends use the smaller of their values (RFC 9000 section 10.1), but never less than three times the
/// probe timeout, so that a slow path is given its time.
const DIALLER_IDLE: Duration = Duration::from_millis(1500);
/// Five tries within [`DIALLER_IDLE`], so that lost packets or a busy machine kill nothing.
const KEEP_ALIVE: Duration = Duration::from_millis(300);
/// How often a dialler looks whether anything came, and after how many looks in vain a connection gets no new streams:
/// by then two keep-alives have gone unanswered.
const LOOK: (Duration, u32) = (Duration::from_millis(250), 3);
/// The accepting side keeps a silent connection for this long at most, whatever the dialler proposes.
const LISTENER_IDLE: Duration = Duration::from_secs(10);
/// One stream may have this much unread: 200 Mb/s over 160 ms. A peer that never reads holds no more.
const STREAM_WINDOW: u32 = 4 << 20;
/// All streams of a connection together; larger than one stream's, so that one that stands still blocks no other.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Unacknowledged bytes that are kept per connection.
const SEND_WINDOW: u64 = 8 << 20;
/// Kernel buffers of a UDP socket. The default of 208 KiB overflows in a millisecond at full speed; the kernel gives
/// what its own limit allows.
const SOCKET_BUFFER: usize = 8 << 20;
/// Largest datagram between ends on one machine. A packet costs more than its bytes do, and the loopback device takes
/// 64 KiB; elsewhere the path's MTU is discovered from below.
const LOOPBACK_DATAGRAM: u16 = 16_000;
/// One stream's window between ends on one machine, where a round trip takes microseconds: what is unread then still
/// lies in the processor's cache.
const LOOPBACK_WINDOW: u32 = 1 << 20;
/// Datagrams of that size that are acknowledged together, at a tenth less CPU than one in two.
const LOOPBACK_ACKNOWLEDGED: u32 = 4;
/// Connections whose handshake nobody has begun yet; quinn would keep 65,536.
const INCOMING_MAX: usize = 1024;
/// Bytes kept for one of these and for all of them together.
const INCOMING_BYTES: (u64, u64) = (64 << 10, 16 << 20);

/// Which end of a connection a configuration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Dialler,
    /// With the number of streams that a peer may have open.
    Listener(u32),
}

/// The transport parameters towards `remote`.
pub(crate) fn transport_config(end: End, remote: IpAddr) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    let (idle, streams) = match end {
        End::Dialler => (DIALLER_IDLE, 0),
        End::Listener(streams) => (LISTENER_IDLE, streams),
    };
    config
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(IdleTimeout::try_from(idle).ok())
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(SEND_WINDOW)
        .datagram_receive_buffer_size(None)
        // The spin bit shows observers the round trip.
        .allow_spin(false);
    if end == End::Dialler {
        config.keep_alive_interval(Some(KEEP_ALIVE));
    }
    if remote.is_loopback() {
        suit_loopback(&mut config);
    }
    Arc::new(config)
}

fn suit_loopback(config: &mut TransportConfig) {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(LOOPBACK_DATAGRAM);
    let mut congestion = CubicConfig::default();
    // Ten of these datagrams, as RFC 9002 section 7.2 has it for small ones.
    congestion.initial_window(10 * u64::from(LOOPBACK_DATAGRAM));
    let mut acknowledgements = AckFrequencyConfig::default();
    acknowledgements.ack_eliciting_threshold(LOOPBACK_ACKNOWLEDGED.into());
    config
        .initial_mtu(LOOPBACK_DATAGRAM)
        .mtu_discovery_config(Some(discovery))
        .stream_receive_window(LOOPBACK_WINDOW.into())
        .congestion_controller_factory(Arc::new(congestion))
        .ack_frequency_config(Some(acknowledgements));
}

/// The dialling side's configuration.
pub(crate) fn client_config(
    tls: Arc<rustls::ClientConfig>,
    remote: IpAddr,
) -> Result<quinn::ClientConfig, HandshakeError> {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).map_err(|e| protocol(&e))?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    config.transport_config(transport_config(End::Dialler, remote));
    Ok(config)
}

/// The accepting side's configuration.
pub(crate) fn server_config(
    tls: Arc<rustls::ServerConfig>,
    streams: u32,
    remote: IpAddr,
) -> Result<quinn::ServerConfig, HandshakeError> {
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).map_err(|e| protocol(&e))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(transport_config(End::Listener(streams), remote))
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES.0)
        .incoming_buffer_size_total(INCOMING_BYTES.1)
        // Behind a balancer that does not read connection IDs a migrated connection reaches another gateway.
        .migration(false);
    Ok(config)
}

/// An endpoint on this UDP address. It can dial; it accepts once it has a server configuration.
pub(crate) fn endpoint(address: SocketAddr, reset_key: Option<&[u8; 32]>) -> io::Result<quinn::Endpoint> {
    let udp = socket::bind(address, SOCKET_BUFFER)?;
    let udp = quinn::Runtime::wrap_udp_socket(&quinn::TokioRuntime, udp)?;
    endpoint_on(Arc::new(socket::Socket::new(udp)), reset_key)
}

/// The same on a socket that is there.
pub(crate) fn endpoint_on(
    socket: Arc<dyn quinn::AsyncUdpSocket>,
    reset_key: Option<&[u8; 32]>,
) -> io::Result<quinn::Endpoint> {
    let mut config = EndpointConfig::default();
    if let Some(key) = reset_key {
        config.reset_key(Arc::new(aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key)));
        config.cid_generator(|| Box::new(ids::Random));
    }
    config.max_udp_payload_size(socket::DATAGRAM_MAX).map_err(io::Error::other)?;
    quinn::Endpoint::new_with_abstract_socket(config, None, socket, Arc::new(quinn::TokioRuntime))
}

/// The other end's certificates, leaf first.
pub(crate) fn peer_chain(connection: &quinn::Connection) -> Vec<CertificateDer<'static>> {
    let chain = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    chain.map(|chain| *chain).unwrap_or_default()
}

/// How many streams of a connection live.
#[derive(Debug, Default)]
pub(crate) struct Live {
    streams: AtomicUsize,
    idle: Notify,
    /// From now on there is another connection for new streams: its gateway has a newer certificate, or ends.
    retired: CancellationToken,
}

impl Live {
    pub(crate) fn count(&self) -> usize {
        self.streams.load(Ordering::Acquire)
    }

    /// Resolves when no stream lives.
    pub(crate) async fn idle(&self) {
        loop {
            let notified = self.idle.notified();
            if self.count() == 0 {
                return;
            }
            notified.await;
        }
    }

    pub(crate) fn guard(self: &Arc<Self>) -> StreamGuard {
        self.streams.fetch_add(1, Ordering::AcqRel);
        StreamGuard(self.clone())
    }
}

/// Stands for one live stream: a connection that takes no more streams ends after the last of them.
#[derive(Debug)]
pub struct StreamGuard(Arc<Live>);

impl StreamGuard {
    /// Fires when the connection takes no more streams.
    pub(crate) fn retired(&self) -> CancellationToken {
        self.0.retired.clone()
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        if self.0.streams.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

/// What was written before a stream ended may still be under way, and closing a connection drops it.
const LINGER: Duration = Duration::from_secs(30);

/// Keeps a retired connection until its streams have ended, then ends it.
pub(crate) async fn drain(connection: quinn::Connection, live: Arc<Live>) {
    tokio::select! {
        _ = connection.closed() => return,
        () = live.idle() => {}
    }
    // A dialler that found nothing more to do here closes first.
    let _ = tokio::time::timeout(LINGER, connection.closed()).await;
    connection.close(DONE, b"done");
}

/// The halves of a stream that is being opened: dropped before it is, both are reset.
#[derive(Debug)]
pub(crate) struct Halves(Option<(quinn::SendStream, quinn::RecvStream, StreamGuard)>);

impl Halves {
    pub(crate) fn new(send: quinn::SendStream, recv: quinn::RecvStream, guard: StreamGuard) -> Self {
        Self(Some((send, recv, guard)))
    }

    /// Reads one frame and not a byte more. Not cancel safe: to be dropped with its stream.
    pub(crate) async fn read_frame(&mut self) -> Result<Bytes, HandshakeError> {
        let Some((_, recv, _)) = &mut self.0 else {
            return Err(protocol(&"the stream is gone"));
        };
        let mut prefix = [0; frame::PREFIX];
        recv.read_exact(&mut prefix).await.map_err(|e| read_failure(&e))?;
        let length =
            frame::stated_length(prefix).map_err(|e| HandshakeError { reason: "too_large", detail: e.to_string() })?;
        let mut payload = vec![0; length];
        recv.read_exact(&mut payload).await.map_err(|e| read_failure(&e))?;
        Ok(payload.into())
    }

    pub(crate) async fn write(&mut self, frame: Bytes) -> Result<(), HandshakeError> {
        let Some((send, _, _)) = &mut self.0 else {
            return Err(protocol(&"the stream is gone"));
        };
        send.write_chunk(frame).await.map_err(|e| HandshakeError { reason: "io", detail: e.to_string() })
    }

    /// Ends the stream in order: what was written arrives.
    pub(crate) fn finish(mut self) {
        if let Some((mut send, mut recv, _guard)) = self.0.take() {
            let _ = send.finish();
            let _ = recv.stop(ABANDONED);
        }
    }

    pub(crate) fn into_stream(mut self) -> Option<TunnelStream> {
        self.0.take().map(|(send, recv, guard)| TunnelStream::Quic { send, recv, guard })
    }
}

impl Drop for Halves {
    fn drop(&mut self) {
        if let Some((send, recv, _)) = &mut self.0 {
            let _ = send.reset(ABANDONED);
            let _ = recv.stop(ABANDONED);
        }
    }
}

fn read_failure(error: &quinn::ReadExactError) -> HandshakeError {
    match error {
        quinn::ReadExactError::ReadError(quinn::ReadError::ConnectionLost(lost)) => lost.into(),
        other => HandshakeError { reason: "io", detail: other.to_string() },
    }
}

fn protocol(error: &impl std::fmt::Display) -> HandshakeError {
    HandshakeError { reason: "protocol", detail: error.to_string() }
}
