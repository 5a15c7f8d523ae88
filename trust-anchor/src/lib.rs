//! Hawser's trust anchor: a cluster's issuer, and the hierarchy above it.
//!
//! ```text
//! process ─▶ listen ─▶ admit (join token │ renewal) ─▶ issue (pure) ─▶ signer ─▶ audit ─▶ leaf + intermediate + bundle
//!                                                                        ▲
//! root.crt, intermediate.crt ─▶ watch ─▶ drive ─▶ bundle, signer ────────┘──▶ WatchBundle to all processes
//!                                          ▲
//! operator ─▶ listen/operator ─▶ rotate (pure) ◀─ evidence: who has loaded what, what rests on what, the clocks
//! a stranger with a token ─▶ gateway ─▶ listen ─▶ link ─▶ a Link object
//!
//! hierarchy   root → intermediate, done by `hawser up` or by hand where the root lives
//! ```
//!
//! The root's key is not needed here and should not be here.

use std::sync::Arc;

use hawser_runtime::Process;

mod accepted;
mod admit;
pub mod audit;
mod authority;
mod clocks;
mod config;
mod csr;
mod drive;
mod hex;
pub mod hierarchy;
mod issue;
pub mod join;
mod limit;
pub mod link;
mod listen;
mod record;
mod refused;
mod revoke;
mod rotate;
mod signer;
mod store;
mod watch;

pub use config::Config;

/// Runs a trust anchor until it has drained.
pub async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    for condition in ["bundle", "intermediate", "listening"] {
        process.set_ready(condition, false);
    }
    let authority = authority::Authority::open(&config, &process)?;
    process.spawn(watch::follow(Arc::clone(&authority), process.clone()));
    let listener = listen::bind(&config.socket)?;
    tracing::info!(socket = %config.socket.display(), cluster = %config.cluster, domain = %config.trust_domain, "listening");
    process.set_ready("listening", true);
    listen::serve(authority, listener, &process).await
}
