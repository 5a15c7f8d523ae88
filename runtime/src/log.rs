//! Logs: one line an event on stderr, `plain` or `json` by HAWSER_LOG_FORMAT, level by HAWSER_LOG.

/// Sets up logging for this process; a second call does nothing.
pub fn init() {
    unimplemented!()
}
