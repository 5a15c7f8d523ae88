//! The handshake of a sealed session: rustls does it, record by record, and then hands over its secrets.
//!
//! rustls sees one whole record at a time, so that when it is done, nothing behind the handshake has been consumed. The
//! client's last flight is not sent here: it leaves together with the first bytes of the session.

use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::kernel::KernelConnection;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{CommonState, ExtractedSecrets};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::keys::Keys;
use super::outbox::UNSENT_MAX;
use super::record::{HEADER, RECORD_MAX, Records};
use crate::stream::TunnelStream;
use crate::tls::{HandshakeError, SERVER_NAME};

/// Received at a time; a flight with two certificates is about 2 KB.
const READ: usize = 4 << 10;
/// Most that a peer may make us hold during a handshake; rustls bounds each message to 64 KiB.
const RECEIVED_MAX: usize = 128 << 10;

/// A session whose handshake is over.
pub(crate) struct Handshaken {
    pub(crate) stream: TunnelStream,
    pub(crate) records: Records,
    /// Ciphertext that came behind the handshake.
    pub(crate) received: Vec<u8>,
    /// What we must send before anything else.
    pub(crate) unsent: Vec<u8>,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) alpn: Vec<u8>,
}

/// The dialling side.
pub(crate) async fn client(
    stream: TunnelStream,
    config: Arc<rustls::ClientConfig>,
) -> Result<Handshaken, HandshakeError> {
    drive(stream, Handshake::client(config)?).await
}

/// The accepting side.
pub(crate) async fn server(
    stream: TunnelStream,
    config: Arc<rustls::ServerConfig>,
) -> Result<Handshaken, HandshakeError> {
    drive(stream, Handshake::server(config)?).await
}

async fn drive<S: Side>(mut stream: TunnelStream, mut handshake: Handshake<S>) -> Result<Handshaken, HandshakeError> {
    if let TunnelStream::Tcp { socket, .. } = &stream {
        crate::tcp::prepare(socket)?;
    }
    loop {
        let progress = handshake.advance();
        if !matches!(progress, Ok(Progress::Done)) || handshake.unsent.len() > UNSENT_MAX {
            // After an error this is the alert that tells the peer why; whether or not it arrives, it is over.
            let sent = send(&mut stream, &mut handshake.unsent).await;
            if progress.is_ok() {
                sent?;
            }
        }
        if progress? == Progress::Done {
            return handshake.finish(stream);
        }
        handshake.received.reserve(READ);
        let mut limited = (&mut stream).take(READ as u64);
        if limited.read_buf(&mut handshake.received).await? == 0 {
            let detail = "the peer closed the connection during the handshake".to_owned();
            return Err(HandshakeError { reason: "io", detail });
        }
    }
}

async fn send(stream: &mut TunnelStream, unsent: &mut Vec<u8>) -> std::io::Result<()> {
    if !unsent.is_empty() {
        stream.write_all(unsent).await?;
        stream.flush().await?;
        unsent.clear();
    }
    Ok(())
}

pub(crate) enum Step {
    /// Call again.
    Again,
    /// Bytes of the peer are needed.
    Blocked,
    /// The handshake is over.
    Done,
}

/// What the client's and the server's connection have in common, for a handshake.
pub(crate) trait Side {
    /// Processes whole records; returns how many bytes are used up.
    fn step(&mut self, received: &mut [u8], unsent: &mut Vec<u8>) -> (usize, Result<Step, rustls::Error>);
    fn state(&self) -> &CommonState;
    fn into_secrets(self) -> Result<(ExtractedSecrets, Keys), rustls::Error>;
}

impl Side for UnbufferedClientConnection {
    fn step(&mut self, received: &mut [u8], unsent: &mut Vec<u8>) -> (usize, Result<Step, rustls::Error>) {
        advance(self.process_tls_records(received), unsent)
    }
    fn state(&self) -> &CommonState {
        self
    }
    fn into_secrets(self) -> Result<(ExtractedSecrets, Keys), rustls::Error> {
        let (secrets, keys): (_, KernelConnection<ClientConnectionData>) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Keys::Client(Box::new(keys))))
    }
}

impl Side for UnbufferedServerConnection {
    fn step(&mut self, received: &mut [u8], unsent: &mut Vec<u8>) -> (usize, Result<Step, rustls::Error>) {
        advance(self.process_tls_records(received), unsent)
    }
    fn state(&self) -> &CommonState {
        self
    }
    fn into_secrets(self) -> Result<(ExtractedSecrets, Keys), rustls::Error> {
        let (secrets, keys): (_, KernelConnection<ServerConnectionData>) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Keys::Server(Box::new(keys))))
    }
}

fn advance<D>(status: UnbufferedStatus<'_, '_, D>, unsent: &mut Vec<u8>) -> (usize, Result<Step, rustls::Error>) {
    let early = || rustls::Error::General("data before the handshake was over".to_owned());
    let step = match status.state {
        Ok(ConnectionState::EncodeTlsData(mut data)) => encode(unsent, |room| data.encode(room)),
        Ok(ConnectionState::TransmitTlsData(data)) => {
            // Sent before the next read, or with the first data.
            data.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Step::Blocked),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Step::Done),
        Ok(_) => Err(early()),
        Err(error) => Err(error),
    };
    (status.discard, step)
}

/// Appends what rustls encodes, whose size it tells at the first try.
fn encode(
    unsent: &mut Vec<u8>,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<Step, rustls::Error> {
    let Err(EncodeError::InsufficientSize(needed)) = encode(&mut []) else { return Ok(Step::Again) };
    let start = unsent.len();
    unsent.resize(start + needed.required_size, 0);
    encode(unsent.get_mut(start..).unwrap_or_default())
        .map(|_| Step::Again)
        .map_err(|e| rustls::Error::General(format!("{e:?}")))
}

/// A handshake without I/O.
pub(crate) struct Handshake<S> {
    connection: S,
    /// What came and is not used up; append to it.
    pub(crate) received: Vec<u8>,
    // How much of `received` rustls may see: whole records.
    offered: usize,
    /// What is to be sent; take it out.
    pub(crate) unsent: Vec<u8>,
}

/// How far a handshake has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Bytes of the peer are needed.
    Blocked,
    /// It is over.
    Done,
}

impl Handshake<UnbufferedClientConnection> {
    pub(crate) fn client(config: Arc<rustls::ClientConfig>) -> Result<Self, HandshakeError> {
        let name = ServerName::try_from(SERVER_NAME).map_err(|e| protocol(e.to_string()))?;
        let connection = UnbufferedClientConnection::new(config, name).map_err(|e| HandshakeError::from(&e))?;
        Ok(Self::new(connection))
    }
}

impl Handshake<UnbufferedServerConnection> {
    pub(crate) fn server(config: Arc<rustls::ServerConfig>) -> Result<Self, HandshakeError> {
        let connection = UnbufferedServerConnection::new(config).map_err(|e| HandshakeError::from(&e))?;
        Ok(Self::new(connection))
    }
}

impl<S: Side> Handshake<S> {
    fn new(connection: S) -> Self {
        Self { connection, received: Vec::new(), offered: 0, unsent: Vec::new() }
    }

    /// Goes on as far as the received bytes carry. After an error an alert for the peer may be in `unsent`.
    pub(crate) fn advance(&mut self) -> Result<Progress, HandshakeError> {
        loop {
            let offered = self.received.get_mut(..self.offered).unwrap_or_default();
            let (used, step) = self.connection.step(offered, &mut self.unsent);
            self.received.drain(..used.min(self.offered));
            self.offered = self.offered.saturating_sub(used);
            match step {
                Ok(Step::Again) => {}
                Ok(Step::Blocked) if self.offer()? => {}
                Ok(Step::Blocked) => return Ok(Progress::Blocked),
                Ok(Step::Done) => return Ok(Progress::Done),
                Err(error) => {
                    self.alert();
                    return Err((&error).into());
                }
            }
        }
    }

    /// Lets rustls see one more record, if it is all there.
    fn offer(&mut self) -> Result<bool, HandshakeError> {
        if self.received.len() > RECEIVED_MAX {
            return Err(HandshakeError { reason: "too_large", detail: "the handshake is too long".to_owned() });
        }
        let behind = self.received.get(self.offered..).unwrap_or_default();
        let length = record_length(behind)?.filter(|length| behind.len() >= *length);
        self.offered += length.unwrap_or_default();
        Ok(length.is_some())
    }

    /// After an error rustls has an alert for the peer.
    fn alert(&mut self) {
        while self.connection.state().wants_write() {
            let (_, Ok(Step::Again)) = self.connection.step(&mut [], &mut self.unsent) else { break };
        }
    }

    /// Takes the secrets out; what follows belongs to our record layer.
    pub(crate) fn finish(self, stream: TunnelStream) -> Result<Handshaken, HandshakeError> {
        let state = self.connection.state();
        let chain = state.peer_certificates().unwrap_or_default().to_vec();
        let alpn = state.alpn_protocol().unwrap_or_default().to_vec();
        let (records, received, unsent) = self.into_records()?;
        Ok(Handshaken { stream, records, received, unsent, chain, alpn })
    }

    /// The record layer, what came behind the handshake, and what is still to be sent.
    pub(crate) fn into_records(self) -> Result<(Records, Vec<u8>, Vec<u8>), HandshakeError> {
        let (secrets, keys) = self.connection.into_secrets().map_err(|e| HandshakeError::from(&e))?;
        let records = Records::new(secrets, keys).map_err(|e| protocol(e.to_string()))?;
        Ok((records, self.received, self.unsent))
    }
}

/// The length of the record that starts here, header included, once its header is there.
fn record_length(bytes: &[u8]) -> Result<Option<usize>, HandshakeError> {
    // Said at the first byte: who speaks another protocol may be waiting for us.
    if bytes.first().is_some_and(|kind| !(20..=23).contains(kind)) {
        return Err(protocol("this is not TLS".to_owned()));
    }
    let Some([_, _, _, high, low]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let length = HEADER + usize::from(u16::from_be_bytes([*high, *low]));
    if length > RECORD_MAX {
        return Err(HandshakeError { reason: "too_large", detail: "a record is longer than TLS allows".to_owned() });
    }
    Ok(Some(length))
}

fn protocol(detail: String) -> HandshakeError {
    HandshakeError { reason: "protocol", detail }
}
