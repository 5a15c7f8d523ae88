//! The only place that reads the time of day.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now.
#[expect(clippy::disallowed_methods, reason = "this is the place")]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Milliseconds since the epoch; 0 before it.
pub fn millis(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// Now, for durations: never goes back, and stands still in tests that pause tokio's time.
pub fn monotonic() -> tokio::time::Instant {
    tokio::time::Instant::now()
}
