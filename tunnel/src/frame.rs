//! Length-prefixed frames: two bytes big endian, then at most 16 KiB.
//!
//! Pure: bytes in, frames out. Every length that a peer states is checked before anything is kept for it.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Longest payload, in bytes: an `Open` with every field at its limit needs a tenth of it, so that later versions have
/// room, and a peer can make us keep no more than this per stream.
pub const PAYLOAD_MAX: usize = 16 * 1024;
/// Length of the prefix, in bytes.
pub const PREFIX: usize = 2;

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {length} bytes: at most {PAYLOAD_MAX} are allowed")]
pub struct TooLong {
    /// The length that was stated or asked for.
    pub length: usize,
}

/// The payload as a frame.
pub fn encode(payload: &[u8]) -> Result<Bytes, TooLong> {
    let length = check(payload.len())?;
    let mut frame = BytesMut::with_capacity(PREFIX + payload.len());
    frame.put_u16(length);
    frame.put_slice(payload);
    Ok(frame.freeze())
}

/// The payload length that a prefix states.
pub fn stated_length(prefix: [u8; PREFIX]) -> Result<usize, TooLong> {
    check(usize::from(u16::from_be_bytes(prefix))).map(usize::from)
}

/// Takes the first frame's payload off the front; `None` while it is incomplete, and then nothing is taken.
pub fn decode(bytes: &mut BytesMut) -> Result<Option<Bytes>, TooLong> {
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else {
        return Ok(None);
    };
    let length = stated_length(*prefix)?;
    if bytes.len() < PREFIX + length {
        return Ok(None);
    }
    bytes.advance(PREFIX);
    Ok(Some(bytes.split_to(length).freeze()))
}

fn check(length: usize) -> Result<u16, TooLong> {
    u16::try_from(length).ok().filter(|_| length <= PAYLOAD_MAX).ok_or(TooLong { length })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_one_byte_over_the_limit_is_refused_before_its_payload_comes() {
        assert!(encode(&[0; PAYLOAD_MAX]).is_ok());
        assert_eq!(encode(&[0; PAYLOAD_MAX + 1]), Err(TooLong { length: PAYLOAD_MAX + 1 }));
        let mut prefix = BytesMut::from(&[0x40, 0x01][..]);
        assert_eq!(decode(&mut prefix), Err(TooLong { length: PAYLOAD_MAX + 1 }));
    }

    #[test]
    fn an_incomplete_frame_takes_nothing() {
        let frame = encode(b"hello").unwrap();
        for end in 0..frame.len() {
            let mut bytes = BytesMut::from(&frame[..end]);
            assert_eq!(decode(&mut bytes), Ok(None));
            assert_eq!(bytes, frame[..end]);
        }
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_they_are_cut(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..6),
            step in 1usize..40,
        ) {
            let wire: Vec<u8> = payloads.iter().flat_map(|p| encode(p).unwrap()).collect();
            let mut bytes = BytesMut::new();
            let mut seen = Vec::new();
            for piece in wire.chunks(step) {
                bytes.extend_from_slice(piece);
                while let Some(payload) = decode(&mut bytes).unwrap() {
                    seen.push(payload.to_vec());
                }
            }
            prop_assert_eq!(seen, payloads);
            prop_assert!(bytes.is_empty());
        }

        #[test]
        fn any_bytes_at_all_give_a_frame_or_a_refusal(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut bytes = BytesMut::from(&bytes[..]);
            let _ = decode(&mut bytes);
        }
    }
}
