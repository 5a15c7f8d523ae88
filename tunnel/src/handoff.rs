//! The end of a TCP tunnel's outer session, record by record, so that no byte behind close_notify is consumed.
//!
//! ```text
//! socket ─▶ inbox ─ one record at a time ─▶ rustls ─▶ plain ─▶ frames
//!              └─ behind close_notify: untouched, becomes the stream's `early` bytes
//! socket ◀─ outbox ◀─ rustls ◀─ frame, close_notify
//! ```
//!
//! No I/O and no clock: [`tcp`](crate::tcp) moves the bytes. rustls by itself would read as much as its buffer takes;
//! what follows close_notify belongs to the sealed session, and whoever swallows it has destroyed it.

use std::io::{Read, Write};
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use crate::frame;
use crate::tls::{HandshakeError, SERVER_NAME};

/// ALPN of the outer session, over TCP and over QUIC.
pub const ALPN: &[u8] = b"hawser/1";
/// Length of a record's header (RFC 8446 section 5.1), in bytes.
pub const RECORD_HEADER: usize = 5;
/// Longest record body (RFC 8446 section 5.2: 2^14 and 256 of expansion), in bytes.
pub const RECORD_MAX: usize = 16 * 1024 + 256;
/// What is read from the socket at once: a handshake flight fits, and an idle session keeps no more.
const READ: usize = 8 * 1024;

/// Why bytes are no TLS record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotARecord {
    /// The first byte names no content type of TLS 1.3.
    #[error("the bytes are not TLS")]
    ContentType,
    /// The body would be longer than the standard allows.
    #[error("a record of {0} bytes: at most {RECORD_MAX} are allowed")]
    TooLong(usize),
}

/// The whole length of the record that begins here, header included; `None` while its header is incomplete.
pub fn record_length(bytes: &[u8]) -> Result<Option<usize>, NotARecord> {
    match bytes {
        // change_cipher_spec, alert, handshake, application_data
        [kind, ..] if !(20..=23).contains(kind) => Err(NotARecord::ContentType),
        [_, _, _, high, low, ..] => {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            if length > RECORD_MAX { Err(NotARecord::TooLong(length)) } else { Ok(Some(RECORD_HEADER + length)) }
        }
        _ => Ok(None),
    }
}

/// One outer session.
pub(crate) struct Outer {
    tls: Box<Connection>,
    inbox: BytesMut,
    plain: BytesMut,
    outbox: BytesMut,
    peer_ended: bool,
}

impl Outer {
    /// The dialling side.
    pub(crate) fn client(config: Arc<ClientConfig>) -> Result<Self, HandshakeError> {
        // Whom we talk to is decided by the SPIFFE ID; the name is never sent nor compared.
        let name = ServerName::try_from(SERVER_NAME).map_err(|e| protocol(e.to_string()))?;
        Ok(Self::new(ClientConnection::new(config, name).map_err(|e| HandshakeError::from(&e))?.into()))
    }

    /// The accepting side.
    pub(crate) fn server(config: Arc<ServerConfig>) -> Result<Self, HandshakeError> {
        Ok(Self::new(ServerConnection::new(config).map_err(|e| HandshakeError::from(&e))?.into()))
    }

    /// The accepting side, for a ClientHello that has been read.
    pub(crate) fn accepted(tls: ServerConnection) -> Self {
        Self::new(tls.into())
    }

    fn new(tls: Connection) -> Self {
        let (inbox, plain, outbox) = Default::default();
        Self { tls: Box::new(tls), inbox, plain, outbox, peer_ended: false }
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// The other side's certificates, leaf first, and whether it agreed to our protocol.
    pub(crate) fn peer(&self) -> Result<&[rustls::pki_types::CertificateDer<'static>], HandshakeError> {
        if self.tls.alpn_protocol() != Some(ALPN) {
            return Err(HandshakeError { reason: "alpn", detail: "the peer does not speak hawser/1".to_owned() });
        }
        Ok(self.tls.peer_certificates().unwrap_or_default())
    }

    /// Where received bytes go; call [`process`](Self::process) afterwards.
    pub(crate) fn inbox(&mut self) -> &mut BytesMut {
        self.inbox.reserve(READ);
        &mut self.inbox
    }

    /// Whether anything of the next record is there, or anything decrypted.
    pub(crate) fn has_begun(&self) -> bool {
        !self.inbox.is_empty() || !self.plain.is_empty() || self.peer_ended
    }

    /// Whether the other side has sent its close_notify.
    pub(crate) fn peer_ended(&self) -> bool {
        self.peer_ended
    }

    /// Hands whole records to rustls, up to and including close_notify.
    pub(crate) fn process(&mut self) -> Result<(), HandshakeError> {
        while !self.peer_ended {
            let length = record_length(&self.inbox).map_err(|e| protocol(e.to_string()))?;
            let Some(length) = length.filter(|length| self.inbox.len() >= *length) else {
                return Ok(());
            };
            let record = self.inbox.split_to(length);
            self.take_record(&record)?;
        }
        Ok(())
    }

    fn take_record(&mut self, mut record: &[u8]) -> Result<(), HandshakeError> {
        while !record.is_empty() {
            let read = self.tls.read_tls(&mut record).map_err(|e| protocol(e.to_string()))?;
            if read == 0 {
                return Err(protocol("a handshake message is too long".to_owned()));
            }
        }
        let state = self.tls.process_new_packets().map_err(|e| HandshakeError::from(&e))?;
        let waiting = state.plaintext_bytes_to_read();
        if self.plain.len() + waiting > frame::PREFIX + frame::PAYLOAD_MAX {
            return Err(HandshakeError { reason: "too_large", detail: "more than one frame was sent".to_owned() });
        }
        let mut reader = self.tls.reader().take(waiting as u64);
        std::io::copy(&mut reader, &mut (&mut self.plain).writer()).map_err(|e| protocol(e.to_string()))?;
        self.peer_ended = state.peer_has_closed();
        Ok(())
    }

    /// The next frame, if it is complete.
    pub(crate) fn take_frame(&mut self) -> Result<Option<Bytes>, HandshakeError> {
        frame::decode(&mut self.plain).map_err(|e| HandshakeError { reason: "too_large", detail: e.to_string() })
    }

    /// Whether bytes are left that belong to no complete frame.
    pub(crate) fn has_plain(&self) -> bool {
        !self.plain.is_empty()
    }

    /// The last that we say: a frame and close_notify; together with what is still unsent it leaves as one segment.
    pub(crate) fn finish_with(&mut self, frame: &[u8]) -> Result<(), HandshakeError> {
        self.tls.writer().write_all(frame).map_err(|e| protocol(e.to_string()))?;
        self.end();
        Ok(())
    }

    /// Bytes and no end: what a well-behaved side never does.
    #[cfg(test)]
    pub(crate) fn say(&mut self, bytes: &[u8]) {
        self.tls.writer().write_all(bytes).unwrap();
    }

    /// close_notify and nothing else.
    pub(crate) fn end(&mut self) {
        self.tls.send_close_notify();
    }

    /// What is to be sent; take off its front what was.
    pub(crate) fn outbox(&mut self) -> &mut BytesMut {
        while self.tls.wants_write() {
            // Writing into memory cannot fail.
            if self.tls.write_tls(&mut (&mut self.outbox).writer()).is_err() {
                break;
            }
        }
        &mut self.outbox
    }

    /// What was received behind close_notify. rustls's state ends here: an idle carried stream keeps none.
    pub(crate) fn into_early(self) -> BytesMut {
        // An empty buffer would keep its 8 KiB for as long as the stream lives.
        if self.inbox.is_empty() { BytesMut::new() } else { self.inbox }
    }
}

impl std::fmt::Debug for Outer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outer").field("peer_ended", &self.peer_ended).finish_non_exhaustive()
    }
}

fn protocol(detail: String) -> HandshakeError {
    HandshakeError { reason: "protocol", detail }
}
