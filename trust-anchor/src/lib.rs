//! Hawser's trust anchor: a cluster's issuer, and the hierarchy above it.
//!
//! ```text
//! process ─▶ listen ─▶ admit (token │ renewal) ─▶ issue (pure) ─▶ signer ─▶ audit ─▶ leaf + intermediate + bundle
//! pod ─TLS─▶   │                                                         ▲
//!              └─▶ kubernetes: TokenReview, pod                          │
//! root.crt, intermediate.crt ─▶ watch ─▶ drive ─▶ bundle, signer ────────┘──▶ WatchBundle to all processes
//!                                          ▲
//! operator ─▶ listen/operator ─▶ rotate (pure) ◀─ evidence: who has loaded what, what rests on what, the clocks
//! any SPIFFE software ─▶ federate (https) ─▶ the bundle
//! a stranger with a token ─▶ gateway ─▶ listen ─▶ link ─▶ a Link object
//!
//! processes that are not ours ─▶ workload (SPIFFE's Workload API, Envoy's SDS) ─▶ issue …
//!
//! hierarchy   root → intermediate, done by `hawser up` or by hand where the root lives
//! ```
//!
//! The root's key is not needed here and should not be here.

use std::sync::Arc;

use hawser_runtime::Process;

use kubernetes::Kubernetes;

mod accepted;
mod admit;
pub mod audit;
mod authority;
mod clocks;
mod config;
mod csr;
mod drive;
mod federate;
mod hex;
pub mod hierarchy;
mod issue;
pub mod join;
mod kubernetes;
mod limit;
pub mod link;
mod listen;
mod metrics;
mod record;
mod refused;
mod revoke;
mod rotate;
mod signer;
mod store;
mod svid;
mod watch;
mod workload;

pub use config::{Config, WorkloadConfig};
pub use federate::BundleEndpointConfig;
pub use kubernetes::KubernetesConfig;

/// Runs a trust anchor until it has drained.
pub async fn run(config: Config, process: Process) -> anyhow::Result<()> {
    for condition in ["bundle", "intermediate", "listening"] {
        process.set_ready(condition, false);
    }
    let authority = authority::Authority::open(&config, &process)?;
    // Before the bundle is made: its keys are in it.
    let workload = config.workload.as_ref().map(|workload| workload::open(workload, Arc::clone(&authority), &process));
    let workload = workload.transpose()?;
    process.spawn(watch::follow(Arc::clone(&authority), process.clone()));
    let listener = listen::bind(&config.socket, 0o600)?;
    tracing::info!(socket = %config.socket.display(), cluster = %config.cluster, domain = %config.trust_domain, "listening");
    process.set_ready("listening", true);
    if let Some(endpoint) = config.bundle_endpoint {
        let listener = federate::bind(&endpoint).await?;
        process.spawn(federate::serve(Arc::clone(&authority), listener, endpoint, process.clone()));
    }
    let pods = match &config.kubernetes {
        Some(kubernetes) => {
            let api = Kubernetes::open(kubernetes, &config.cluster, &config.trust_domain).await?;
            let api = kubernetes::follow(api, kubernetes, &authority, &process);
            Some((api, listen::remote::bind(kubernetes.listen).await?))
        }
        None => None,
    };
    let issuer = listen::serve(authority, listener, pods, &process);
    match workload {
        Some(workload) => tokio::try_join!(issuer, workload).map(|_| ()),
        None => issuer.await,
    }
}
