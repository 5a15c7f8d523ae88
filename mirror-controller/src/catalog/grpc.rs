//! gRPC over an HTTP/2 connection that is already there: length-prefixed messages and trailers (gRPC over HTTP/2,
//! "Requests" and "Responses"). No compression.

use std::future::poll_fn;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue};
use prost::Message;

use super::limits::{MESSAGE_MAX, OverLimit};

/// Compressed flag and length.
const PREFIX: usize = 5;
/// A peer that does not read for this long loses its stream: longer than its lease it believes nothing anyway.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a stream of messages is over.
#[derive(Debug, thiserror::Error)]
pub enum GrpcError {
    /// The connection or the stream failed.
    #[error("the stream failed: {0}")]
    Transport(#[from] h2::Error),
    /// A message breaks a bound.
    #[error("{0}")]
    OverLimit(#[from] OverLimit),
    /// A message is longer than [`MESSAGE_MAX`].
    #[error("a message of {0} bytes is longer than {MESSAGE_MAX}")]
    TooLong(usize),
    /// Compression was never negotiated.
    #[error("a message is compressed, which was not agreed on")]
    Compressed,
    /// Not the message that it should be.
    #[error("a message cannot be decoded: {0}")]
    Decode(#[from] prost::DecodeError),
    /// The stream ended inside a message.
    #[error("the stream ended inside a message")]
    Truncated,
    /// The server ended the call.
    #[error("the call ended with gRPC status {code}: {message}")]
    Status {
        /// `grpc-status`; 0 is an orderly end.
        code: u32,
        /// `grpc-message`, cut and cleaned.
        message: String,
    },
    /// The reader does not read.
    #[error("nothing was read for {WRITE_TIMEOUT:?}")]
    Stuck,
}

/// A message with its prefix.
pub fn encode(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    bytes.extend_from_slice(&message.encode_to_vec());
    bytes.freeze()
}

/// Takes messages out of a body.
pub struct Reader {
    body: RecvStream,
    buffer: BytesMut,
    check: fn(&[u8]) -> Result<(), OverLimit>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("buffered", &self.buffer.len()).finish()
    }
}

impl Reader {
    /// Each message is held to `check` before it is decoded.
    pub fn new(body: RecvStream, check: fn(&[u8]) -> Result<(), OverLimit>) -> Self {
        Self { body, buffer: BytesMut::new(), check }
    }

    /// The next message; `None` when the body has ended. Cancel safe.
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, GrpcError> {
        loop {
            if let Some(message) = take(&mut self.buffer)? {
                (self.check)(&message)?;
                return Ok(Some(M::decode(message)?));
            }
            match self.body.data().await {
                Some(data) => {
                    let data = data?;
                    // Given back at once: what is kept is bounded by the longest message.
                    self.body.flow_control().release_capacity(data.len())?;
                    self.buffer.extend_from_slice(&data);
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(GrpcError::Truncated),
            }
        }
    }

    /// After the end: how the call ended.
    pub async fn status(&mut self) -> GrpcError {
        match self.body.trailers().await {
            Ok(trailers) => status(&trailers.unwrap_or_default()),
            Err(error) => error.into(),
        }
    }
}

/// One whole message off the front; `None` while it is incomplete, and then nothing is taken.
pub fn take(buffer: &mut BytesMut) -> Result<Option<Bytes>, GrpcError> {
    let Some(([flag], [a, b, c, d])) = buffer.first_chunk::<PREFIX>().map(|[f, rest @ ..]| ([*f], *rest)) else {
        return Ok(None);
    };
    if flag != 0 {
        return Err(GrpcError::Compressed);
    }
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if length > MESSAGE_MAX {
        return Err(GrpcError::TooLong(length));
    }
    if buffer.len() < PREFIX + length {
        return Ok(None);
    }
    buffer.advance(PREFIX);
    Ok(Some(buffer.split_to(length).freeze()))
}

/// What trailers, or headers without a body, say about the call's end.
pub fn status(trailers: &HeaderMap) -> GrpcError {
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok());
    // 2: UNKNOWN, as gRPC wants it where nothing was said.
    let code = text("grpc-status").and_then(|code| code.parse().ok()).unwrap_or(2);
    let message = text("grpc-message").unwrap_or_default();
    GrpcError::Status { code, message: message.chars().filter(|c| !c.is_control()).take(200).collect() }
}

/// Trailers that end a call.
pub fn trailers(code: u32, message: &str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(code));
    if let Ok(message) = HeaderValue::from_str(message) {
        trailers.insert("grpc-message", message);
    }
    trailers
}

/// Sends all of it as the reader makes room.
pub async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), GrpcError> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = tokio::time::timeout(WRITE_TIMEOUT, poll_fn(|context| stream.poll_capacity(context)));
        let room = room.await.map_err(|_| GrpcError::Stuck)?;
        // `None`: the stream is not open for sending any more.
        let room = room.ok_or(GrpcError::Truncated)??;
        let part = data.split_to(room.min(data.len()));
        stream.send_data(part, false)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_api::proto::catalog::ServiceName;

    #[test]
    fn messages_come_out_as_they_went_in_however_they_are_cut() {
        let names = ["a", "bb", ""].map(|name| ServiceName { namespace: "shop".into(), name: name.into() });
        let wire: Vec<u8> = names.iter().flat_map(|name| encode(name).to_vec()).collect();
        for cut in 0..wire.len() {
            let mut buffer = BytesMut::new();
            let mut found = Vec::new();
            for part in [&wire[..cut], &wire[cut..]] {
                buffer.extend_from_slice(part);
                while let Some(message) = take(&mut buffer).unwrap() {
                    found.push(ServiceName::decode(message).unwrap());
                }
            }
            assert_eq!(found, names);
        }
    }

    #[test]
    fn a_message_that_says_it_is_long_is_refused_before_it_comes() {
        let mut buffer = BytesMut::from(&[0, 0xff, 0xff, 0xff, 0xff][..]);
        assert!(matches!(take(&mut buffer), Err(GrpcError::TooLong(_))));
        let mut buffer = BytesMut::from(&[1, 0, 0, 0, 0][..]);
        assert!(matches!(take(&mut buffer), Err(GrpcError::Compressed)));
    }

    #[test]
    fn a_status_is_read_back_cut_and_cleaned() {
        let GrpcError::Status { code, message } = status(&trailers(7, "not linked")) else { panic!() };
        assert_eq!((code, message.as_str()), (7, "not linked"));
        let GrpcError::Status { code, .. } = status(&HeaderMap::new()) else { panic!() };
        assert_eq!(code, 2);
    }
}
