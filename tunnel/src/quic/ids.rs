//! Connection IDs (RFC 9000 section 5.1) that mean nothing.
//!
//! quinn's own generator signs each ID with a key of the process, and drops what bears another signature before it
//! thinks of a stateless reset. A gateway that has come back would so be silent to every dialler of the one before it,
//! although it holds the secret of the resets (section 10.3). Resets are as safe without: they are smaller than what
//! they answer, and at most one goes out in 20 ms.

use quinn::{ConnectionId, ConnectionIdGenerator};

/// As long as quinn's own.
const LENGTH: usize = 8;

/// Random bytes.
#[derive(Debug)]
pub(super) struct Random;

impl ConnectionIdGenerator for Random {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; LENGTH]>())
    }

    fn cid_len(&self) -> usize {
        LENGTH
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}
