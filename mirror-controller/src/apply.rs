//! The only writers. One file a kind of place to which mirrors and statuses are written.

pub mod files;
pub mod kubernetes;
