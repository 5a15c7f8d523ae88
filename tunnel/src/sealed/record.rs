//! TLS 1.3 records (RFC 8446 section 5), opened and sealed in place, without I/O.
//!
//! rustls does the handshake and keeps the key schedule; from then on this unit moves the bytes, because reading and
//! writing in large pieces without a copy or an allocation per record halves what a byte costs. Its whole contract:
//!
//! ```text
//! received bytes ─▶ Records::open ─▶ Data(where it lies) │ Quiet │ Closed │ RecordError ─▶ Records::seal_alert
//! bytes to send  ─▶ Records::seal / seal_from ─▶ one record      (key_update_due? seal_key_update first)
//! the last word  ─▶ Records::seal_close
//! ```
//!
//! Whatever a peer sends gives a value of [`RecordError`] at worst; after one, nothing is opened any more.

use std::ops::Range;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

use super::keys::Keys;

/// Bytes before a record's payload: type, legacy version, length.
pub(crate) const HEADER: usize = 5;
/// Most plaintext in one record (section 5.1).
pub(crate) const PAYLOAD_MAX: usize = 1 << 14;
/// Bytes behind a payload: the inner content type and the authentication tag.
pub(crate) const TAIL: usize = 1 + TAG;
/// A full record as we seal it: we never pad.
pub(crate) const RECORD: usize = HEADER + PAYLOAD_MAX + TAIL;
/// The longest record that a peer may send (section 5.2).
pub(crate) const RECORD_MAX: usize = HEADER + CIPHERTEXT_MAX;
/// A sealed `KeyUpdate`.
pub(crate) const KEY_UPDATE: usize = HEADER + 5 + TAIL;
/// A sealed alert.
pub(crate) const ALERT: usize = HEADER + 2 + TAIL;

const TAG: usize = 16;
const CIPHERTEXT_MAX: usize = (1 << 14) + 256;
/// Records sealed under one key. AES-GCM must change its key before 2^24.5 full records (section 5.5); half of 2^24
/// leaves a margin for a batch that is under way, and still is 128 GiB.
const KEY_LIFE: u64 = 1 << 23;
/// Records in a row that bring no data: each costs us a decryption and gives nothing. rustls bounds key updates alike;
/// OpenSSL sends two tickets, a busy server a dozen.
const QUIET_MAX: u8 = 32;
/// Longest `NewSessionTicket` that is skipped over: rustls's own limit for handshake messages.
const TICKET_MAX: usize = 0xffff;

const TYPE_ALERT: u8 = 21;
const TYPE_HANDSHAKE: u8 = 22;
const TYPE_DATA: u8 = 23;

const HANDSHAKE_TICKET: u8 = 4;
const HANDSHAKE_KEY_UPDATE: u8 = 24;

const ALERT_CLOSE_NOTIFY: u8 = 0;
const ALERT_USER_CANCELED: u8 = 90;

/// Why a session is over. Except for the last two, the peer broke the protocol or someone tampered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The authentication tag does not fit: tampered, reordered, replayed or sealed under another key.
    #[error("a record does not authenticate")]
    BadMac,
    /// Longer than section 5.2 allows.
    #[error("a record is longer than TLS allows")]
    Overflow,
    /// A record or message that has no place here.
    #[error("unexpected {0}")]
    Unexpected(&'static str),
    /// Too many records in a row without data.
    #[error("too many records without data")]
    Flood,
    /// The peer ended the session with this alert (section 6.2).
    #[error("the peer sent alert {0}")]
    Alert(u8),
    /// No more keys: sequence numbers are used up, or keys cannot be derived.
    #[error("no keys left")]
    Exhausted,
}

impl RecordError {
    /// The alert that tells the peer (section 6.2); none in answer to an alert.
    pub fn alert(self) -> Option<u8> {
        match self {
            Self::BadMac => Some(20),
            Self::Overflow => Some(22),
            Self::Unexpected(_) | Self::Flood => Some(10),
            Self::Exhausted => Some(80),
            Self::Alert(_) => None,
        }
    }
}

/// What the first record of the input was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Application data, now in clear at this place of the input; never empty.
    Data(Range<usize>),
    /// Something that brings no data.
    Quiet,
    /// close_notify: nothing that follows counts.
    Closed,
}

/// A record that has been opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Bytes of the input that it took.
    pub consumed: usize,
    /// What it was.
    pub event: Event,
}

/// One direction's key with its sequence number.
struct Direction {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Direction {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordError> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(RecordError::Exhausted),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| RecordError::Exhausted)?;
        let iv = iv.as_ref().try_into().map_err(|_| RecordError::Exhausted)?;
        Ok(Self { key: LessSafeKey::new(key), iv, sequence })
    }

    /// The next record's nonce (section 5.3): never the same twice, because the sequence number never wraps.
    fn nonce(&mut self) -> Result<Nonce, RecordError> {
        let mut nonce = self.iv;
        for (byte, sequence) in nonce.iter_mut().skip(4).zip(self.sequence.to_be_bytes()) {
            *byte ^= sequence;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(RecordError::Exhausted)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// A handshake message after the handshake, of which only so much is kept as tells what to skip.
#[derive(Debug, Default)]
struct Message {
    header: [u8; 4],
    have: usize,
    to_skip: usize,
}

/// Both directions of a session whose handshake is over.
pub struct Records {
    keys: Keys,
    tx: Direction,
    rx: Direction,
    key_life: u64,
    quiet: u8,
    owes_key_update: bool,
    message: Message,
    over: Option<Result<(), RecordError>>,
}

impl Records {
    pub(crate) fn new(secrets: rustls::ExtractedSecrets, keys: Keys) -> Result<Self, RecordError> {
        Ok(Self {
            tx: Direction::new(secrets.tx)?,
            rx: Direction::new(secrets.rx)?,
            keys,
            key_life: KEY_LIFE,
            quiet: 0,
            owes_key_update: false,
            message: Message::default(),
            over: None,
        })
    }

    /// Changes the sending key after so many records.
    #[cfg(test)]
    pub(crate) fn change_keys_after(&mut self, records: u64) {
        self.key_life = records;
    }

    /// Opens the first record of `input` in place; `None` when it is not all there.
    pub fn open(&mut self, input: &mut [u8]) -> Result<Option<Opened>, RecordError> {
        match self.over {
            Some(Err(error)) => return Err(error),
            Some(Ok(())) => return Ok(Some(Opened { consumed: input.len(), event: Event::Closed })),
            None => {}
        }
        let opened = self.open_first(input);
        match &opened {
            Ok(Some(Opened { event: Event::Closed, .. })) => self.over = Some(Ok(())),
            Err(error) => self.over = Some(Err(*error)),
            Ok(_) => {}
        }
        opened
    }

    fn open_first(&mut self, input: &mut [u8]) -> Result<Option<Opened>, RecordError> {
        let Some((header, rest)) = input.split_first_chunk_mut::<HEADER>() else {
            return check_header(input).map(|_| None);
        };
        let length = check_header(header)?;
        let Some(sealed) = rest.get_mut(..length) else { return Ok(None) };
        let clear = length.checked_sub(TAG).filter(|clear| *clear > 0).ok_or(RecordError::BadMac)?;
        let (text, tag) = sealed.split_at_mut(clear);
        let nonce = self.rx.nonce()?;
        self.rx
            .key
            .open_in_place_separate_tag(nonce, Aad::from(*header), tag, text)
            .map_err(|_| RecordError::BadMac)?;
        let event = self.read(text)?;
        Ok(Some(Opened { consumed: HEADER + length, event }))
    }

    /// An authenticated record: payload, content type, zeros.
    fn read(&mut self, text: &[u8]) -> Result<Event, RecordError> {
        if text.len() > PAYLOAD_MAX + 1 {
            return Err(RecordError::Overflow);
        }
        let end = text.iter().rposition(|byte| *byte != 0).ok_or(RecordError::Unexpected("record without a type"))?;
        let (payload, rest) = text.split_at(end);
        let kind = rest.first().copied().unwrap_or_default();
        if self.message.have > 0 && kind != TYPE_HANDSHAKE {
            return Err(RecordError::Unexpected("record inside a handshake message"));
        }
        if kind == TYPE_DATA && !payload.is_empty() {
            self.quiet = 0;
            return Ok(Event::Data(HEADER..HEADER + payload.len()));
        }
        self.quiet += 1;
        if self.quiet > QUIET_MAX {
            return Err(RecordError::Flood);
        }
        match kind {
            TYPE_DATA => Ok(Event::Quiet),
            TYPE_ALERT => read_alert(payload),
            TYPE_HANDSHAKE => self.read_handshake(payload),
            _ => Err(RecordError::Unexpected("content type")),
        }
    }

    /// Tickets are skipped (we never resume), key updates obeyed, all else refused (section 4.6).
    fn read_handshake(&mut self, payload: &[u8]) -> Result<Event, RecordError> {
        if payload.is_empty() {
            return Err(RecordError::Unexpected("empty handshake record"));
        }
        let mut left = payload.iter();
        while let Some(byte) = left.next() {
            let client = self.keys.is_client();
            let message = &mut self.message;
            if let Some(slot) = message.header.get_mut(message.have) {
                *slot = *byte;
                message.have += 1;
                if message.have == message.header.len() {
                    message.to_skip = message_length(message.header, client)?;
                }
                continue;
            }
            if message.header.first() == Some(&HANDSHAKE_KEY_UPDATE) {
                // Section 5.1: no message may span a change of keys.
                if left.next().is_some() {
                    return Err(RecordError::Unexpected("bytes behind a key update"));
                }
                self.message = Message::default();
                self.update_received_key(*byte)?;
                continue;
            }
            let skipped = message.to_skip.min(left.len() + 1);
            message.to_skip -= skipped;
            if skipped > 1 {
                left.nth(skipped - 2);
            }
            if message.to_skip == 0 {
                self.message = Message::default();
            }
        }
        Ok(Event::Quiet)
    }

    fn update_received_key(&mut self, request: u8) -> Result<(), RecordError> {
        match request {
            0 => {}
            1 => self.owes_key_update = true,
            _ => return Err(RecordError::Unexpected("key update request")),
        }
        self.rx = Direction::new(self.keys.next_rx()?)?;
        Ok(())
    }

    /// Whether [`seal_key_update`](Self::seal_key_update) must come before more data: the peer asked (section 4.6.3),
    /// or the key has done its work (section 5.5).
    pub fn key_update_due(&self) -> bool {
        self.owes_key_update || self.tx.sequence >= self.key_life
    }

    /// Seals a `KeyUpdate` and changes our key. `record` is `KEY_UPDATE` bytes.
    pub fn seal_key_update(&mut self, record: &mut [u8]) -> Result<(), RecordError> {
        // update_not_requested: the peer watches its own keys.
        self.seal_update(record, 0)
    }

    /// The same, asking for the peer's in turn.
    #[cfg(test)]
    pub(crate) fn seal_key_update_asking(&mut self, record: &mut [u8]) -> Result<(), RecordError> {
        self.seal_update(record, 1)
    }

    fn seal_update(&mut self, record: &mut [u8], request: u8) -> Result<(), RecordError> {
        put(record, &[HANDSHAKE_KEY_UPDATE, 0, 0, 1, request])?;
        self.seal_kind(record, TYPE_HANDSHAKE)?;
        self.tx = Direction::new(self.keys.next_tx()?)?;
        self.owes_key_update = false;
        Ok(())
    }

    /// Seals in place: the payload lies between `HEADER` and `TAIL` bytes of room.
    pub fn seal(&mut self, record: &mut [u8]) -> Result<(), RecordError> {
        self.seal_kind(record, TYPE_DATA)
    }

    /// Seals `payload` into `record`, which is `HEADER` + `TAIL` bytes longer; saves a copy where the payload is
    /// not ours to overwrite.
    pub fn seal_from(&mut self, payload: &[u8], record: &mut [u8]) -> Result<(), RecordError> {
        let header = write_header(record)?;
        let nonce = self.tx.nonce()?;
        let body = record.get_mut(HEADER..).unwrap_or_default();
        let (sealed, tail) = body.split_at_mut_checked(payload.len()).ok_or(RecordError::Overflow)?;
        self.tx
            .key
            .seal_out_of_place_scatter(nonce, Aad::from(header), payload, sealed, &[TYPE_DATA], tail)
            .map_err(|_| RecordError::Exhausted)
    }

    /// Seals close_notify into `ALERT` bytes. Nothing may be sealed behind it.
    pub fn seal_close(&mut self, record: &mut [u8]) -> Result<(), RecordError> {
        put(record, &[1, ALERT_CLOSE_NOTIFY])?;
        self.seal_kind(record, TYPE_ALERT)
    }

    /// Seals a fatal alert into `ALERT` bytes. Nothing may be sealed behind it.
    pub fn seal_alert(&mut self, alert: u8, record: &mut [u8]) -> Result<(), RecordError> {
        put(record, &[2, alert])?;
        self.seal_kind(record, TYPE_ALERT)
    }

    pub(super) fn seal_kind(&mut self, record: &mut [u8], kind: u8) -> Result<(), RecordError> {
        let header = write_header(record)?;
        let nonce = self.tx.nonce()?;
        let body = record.get_mut(HEADER..).unwrap_or_default();
        let payload = body.len().checked_sub(TAIL).ok_or(RecordError::Overflow)?;
        let (text, tail) = body.split_at_mut(payload);
        self.tx
            .key
            .seal_in_place_scatter(nonce, Aad::from(header), text, &[kind], tail)
            .map_err(|_| RecordError::Exhausted)
    }
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Nothing of the keys.
        f.debug_struct("Records").field("sent", &self.tx.sequence).field("received", &self.rx.sequence).finish()
    }
}

/// What can be said of a header, or of the part that is there; the length when it is whole.
fn check_header(header: &[u8]) -> Result<usize, RecordError> {
    // The two bytes of legacy version are to be ignored (section 5.1); they are authenticated all the same.
    if header.first().is_some_and(|kind| *kind != TYPE_DATA) {
        return Err(RecordError::Unexpected("record in clear"));
    }
    let length = match *header {
        [_, _, _, high, low] => usize::from(u16::from_be_bytes([high, low])),
        _ => 0,
    };
    if length > CIPHERTEXT_MAX {
        return Err(RecordError::Overflow);
    }
    Ok(length)
}

/// Checks the header of a message that comes after the handshake.
fn message_length([kind, a, b, c]: [u8; 4], client: bool) -> Result<usize, RecordError> {
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    match kind {
        HANDSHAKE_KEY_UPDATE if length == 1 => Ok(length),
        // Only servers send tickets.
        HANDSHAKE_TICKET if client && (1..=TICKET_MAX).contains(&length) => Ok(length),
        _ => Err(RecordError::Unexpected("handshake message")),
    }
}

fn read_alert(payload: &[u8]) -> Result<Event, RecordError> {
    // The level is to be ignored (section 6).
    match *payload {
        [_, ALERT_CLOSE_NOTIFY] => Ok(Event::Closed),
        [_, ALERT_USER_CANCELED] => Ok(Event::Quiet),
        [_, alert] => Err(RecordError::Alert(alert)),
        _ => Err(RecordError::Unexpected("length of an alert")),
    }
}

/// Writes the header of a record that fills the slice, and returns it: it is what the tag also covers.
fn write_header(record: &mut [u8]) -> Result<[u8; HEADER], RecordError> {
    let length = record.len().checked_sub(HEADER).filter(|length| *length <= PAYLOAD_MAX + TAIL);
    let length = length.and_then(|length| u16::try_from(length).ok()).ok_or(RecordError::Overflow)?;
    let [high, low] = length.to_be_bytes();
    let header = [TYPE_DATA, 3, 3, high, low];
    let room = record.first_chunk_mut::<HEADER>().ok_or(RecordError::Overflow)?;
    *room = header;
    Ok(header)
}

fn put(record: &mut [u8], message: &[u8]) -> Result<(), RecordError> {
    if record.len() != HEADER + message.len() + TAIL {
        return Err(RecordError::Overflow);
    }
    record.iter_mut().skip(HEADER).zip(message).for_each(|(slot, byte)| *slot = *byte);
    Ok(())
}

#[cfg(test)]
mod tests;
