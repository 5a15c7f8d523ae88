//! The standard proxy, beside or for a workload.
//!
//! ```text
//! outbound: app ─▶ listen (virtual address │ socks) ─▶ detect ─▶ route ─▶ balance ─▶ dial ═▶ session ═▶ carry
//! inbound:  session ─▶ listen ─▶ admit (every stream) ─▶ dial ─▶ app
//! names:    app ─▶ dns ─▶ table
//! tables:   mirror controller ─▶ watch ─▶ table (an immutable snapshot that everything above reads)
//! ```

pub mod context;
pub mod metrics;
pub mod outbound;
pub mod session;
pub mod streams;
pub mod table;
