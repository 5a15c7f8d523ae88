//! The outbound side over real sockets, against the real inbound side.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "in tests a panic is the report")]

mod basics;
mod http;
mod lifecycle;
mod lifetimes;
mod support;
mod trouble;
mod upgrade;
