//! Sealed sessions to destinations' endpoints, shared by all requests and connections of this proxy.

use std::sync::Weak;

use crate::context::Context;

/// The pool.
#[derive(Debug, Default)]
pub struct Sessions {}

/// Looks after the sessions until the context is gone.
pub async fn keep(_context: Weak<Context>) {}
