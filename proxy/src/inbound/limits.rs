//! How much callers can make the inbound side hold.

use std::time::Duration;

/// Bounds of the inbound side; [`Default`] argues for each value.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Handshakes in flight; more wait in the kernel's backlog.
    pub handshakes: usize,
    /// From accept to a session.
    pub handshake: Duration,
    /// Sessions of one caller.
    pub sessions_per_caller: usize,
    /// Sessions of all callers.
    pub sessions: usize,
    /// Streams of one caller, in all its sessions.
    pub streams_per_caller: usize,
    /// Service ports that one session may use.
    pub targets_per_session: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Each costs a millisecond of CPU and some 100 KB for at most the next line's time.
            handshakes: 256,
            // Two round trips over a WAN, with one packet lost.
            handshake: Duration::from_secs(5),
            // A dedicated session is one application connection, so this is also how many bulk connections one
            // identity can have to this proxy; some 16 KB each.
            sessions_per_caller: 4096,
            sessions: 16_384,
            // Each may be a connection to an application; more than one server process usually takes.
            streams_per_caller: 16_384,
            // Proxies use one; each costs a few hundred bytes.
            targets_per_session: 64,
        }
    }
}
