//! The wire between clusters and between proxies.
//!
//! ```text
//!  app ─▶ proxy(out) ═══════ tunnel (outer mTLS, ALPN hawser/1) ═══════▶ gateway ─▶ proxy(in) ─▶ app
//!           └──────────────── sealed session (inner mTLS, ALPN h2 | hawser-tcp/1) ──────┘
//!
//!  dialling side                                     accepting side
//!  pool::Dialer::open ─ quic │ tcp+handoff ═══▶ listen::TunnelListener ─▶ Incoming ─▶ Tunnel ─▶ Arrival
//!        │ Opening{ TunnelStream }                     │ refuse │ accept ─▶ TunnelStream ─▶ splice ─▶ upstream
//!        ▼                                                                                    │
//!  sealed::connect ═══════════════ TLS inside the TunnelStream ═══════════════▶ sealed::accept ◀┘
//! ```
//!
//! A handshake is a chain of types, each consumed to give the next; [`tls::VerifiedPeer`] is minted in [`tls`] alone.
//! rustls and quinn are used in this crate and in no other.

pub mod frame;
pub mod handoff;
pub mod https;
pub mod identity;
pub mod join;
pub mod kept;
pub mod listen;
pub mod open;
pub mod pool;
pub mod quic;
pub mod report;
pub mod sealed;
#[cfg(any(test, feature = "testing"))]
pub mod sim;
pub mod splice;
pub mod stream;
pub mod tcp;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;
pub mod verify;

/// Where the time comes from: `hawser_runtime::clock::now` in daemons, anything in tests.
pub type Clock = fn() -> std::time::SystemTime;
