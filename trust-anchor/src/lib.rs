//! Hawser's trust anchor: a cluster's issuer, and the hierarchy above it.
//!
//! ```text
//! process ─▶ listen ─▶ admit (join token │ renewal) ─▶ issue (pure) ─▶ store (signs) ─▶ leaf + intermediate + bundle
//!                                                                        ▲
//! root.crt, intermediate.crt ─▶ watch ─▶ bundle, signer ─────────────────┘──▶ WatchBundle to all processes
//!
//! hierarchy   root → intermediate, done by `hawser up` or by hand where the root lives
//! ```
//!
//! The root's key is not needed here and should not be here.

use std::sync::Arc;

use hawser_runtime::Process;

mod admit;
mod authority;
mod config;
mod csr;
mod hex;
pub mod hierarchy;
mod issue;
pub mod join;
mod listen;
mod record;
mod refused;
mod store;
mod watch;

pub use config::Config;

/// Runs a trust anchor until it has drained.
pub async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    for condition in ["bundle", "intermediate", "listening"] {
        process.set_ready(condition, false);
    }
    let authority = authority::Authority::open(&config, &process)?;
    process.spawn(watch::follow(Arc::clone(&authority), config.root_certificate.clone(), process.clone()));
    let listener = listen::bind(&config.socket)?;
    tracing::info!(socket = %config.socket.display(), cluster = %config.cluster, domain = %config.trust_domain, "listening");
    process.set_ready("listening", true);
    listen::serve(authority, listener, &process).await
}
