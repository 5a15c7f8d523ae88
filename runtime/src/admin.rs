//! The admin server: `/live`, `/ready`, `/metrics` (OpenMetrics text) and the daemon's own JSON pages.

use std::sync::Arc;

use parking_lot::Mutex;

type Page = Arc<dyn Fn(&str) -> serde_json::Value + Send + Sync>;

/// JSON pages by path.
#[derive(Clone, Default)]
pub struct Pages {
    pages: Arc<Mutex<std::collections::BTreeMap<&'static str, Page>>>,
}

impl Pages {
    /// Serves `page(query)` under `path` (such as `/streams`).
    pub fn add(&self, path: &'static str, page: impl Fn(&str) -> serde_json::Value + Send + Sync + 'static) {
        self.pages.lock().insert(path, Arc::new(page));
    }
}
