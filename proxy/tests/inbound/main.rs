//! The inbound side over real sockets: sealed sessions from a client made of `hawser-tunnel`, applications made of raw
//! sockets, so that the exact bytes on both sides are seen.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests, where a panic is the report")]

mod admission;
mod h2c;
mod http;
mod limits;
mod setup;
mod tcp;
mod upgrade;
