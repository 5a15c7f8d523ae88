//! What applications meet: virtual addresses, DNS, SOCKS5; and a whole proxy from its configuration.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests, where a panic is the report")]

mod dns;
mod listen;
mod setup;
mod socks;
mod whole;
