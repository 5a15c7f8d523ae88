//! Logs: one line an event on stderr, never on stdout.
//!
//! `HAWSER_LOG_FORMAT` is `plain` (default) or `json`; `HAWSER_LOG` is a filter such as `info,hawser_gateway=debug`.
//! Access records are events with the target `access` at level info. They are off unless `HAWSER_LOG` asks for them
//! (`HAWSER_LOG=info` or `HAWSER_LOG=access=info`): a busy proxy would otherwise write more than it carries.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

/// The target of access records.
pub const ACCESS: &str = "access";

const DEFAULT_FILTER: &str = "info,access=off";

/// Sets up logging for this process; a second call does nothing.
pub fn init() {
    let asked = std::env::var("HAWSER_LOG").ok().filter(|text| !text.is_empty());
    let (filter, refused) = filter(asked.as_deref());
    let layer = match std::env::var("HAWSER_LOG_FORMAT").as_deref() {
        Ok("json") => fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed(),
        _ => fmt::layer().with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr).boxed(),
    };
    // An error here means that a subscriber is in place already, as in tests that run several daemons.
    let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
    if let Some(reason) = refused {
        tracing::warn!(hint = "HAWSER_LOG=info,hawser_proxy=debug", "HAWSER_LOG is no filter: {reason}");
    }
}

/// A filter that cannot be read falls back to the default, with the reason: a typing error must not silence a daemon.
fn filter(asked: Option<&str>) -> (EnvFilter, Option<String>) {
    match EnvFilter::try_new(asked.unwrap_or(DEFAULT_FILTER)) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(DEFAULT_FILTER), Some(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_cannot_be_read_falls_back_and_says_why() {
        let (filter, refused) = filter(Some("hawser=loudly"));
        assert_eq!(filter.to_string(), EnvFilter::new(DEFAULT_FILTER).to_string());
        assert!(refused.is_some());
    }

    #[test]
    fn what_is_asked_for_is_used() {
        let (filter, refused) = filter(Some("debug"));
        assert_eq!(filter.to_string(), "debug");
        assert!(refused.is_none());
    }
}
