//! Follows a peer's SPIFFE bundle endpoint (SPIFFE Federation section 5): asks at the pace that the bundle itself gives,
//! and offers what it gets. Nothing is decided here about whether it takes effect.
//!
//! ```text
//! Link's bundleEndpoint ─▶ fetch (resolve once, dial that address, TLS by profile, GET) ─▶ Bundles::offer ─┐
//!        ▲  https_spiffe: the bundle in force proves the endpoint                                         │
//!        └────────────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! An `https_spiffe` endpoint may be of another trust domain than the bundle that it serves. Then the bundle of that one
//! proves it, as it is in force here: it must be linked. Whoever has its keys can then say what the peer's anchors are,
//! within what [`crate::bundles`] lets any source say: no key of ours, nor of another peer.

use std::path::Path;
use std::time::Duration;

use aws_lc_rs::digest;
use hawser_api::bundle::Bundle;
use hawser_api::objects::link::{BundleEndpoint, BundleProfile};
use hawser_api::{ClusterName, SpiffeId, TrustDomain};
use hawser_runtime::clock;
use hawser_tunnel::https::Client;

mod fetch;

pub use fetch::{Url, UrlError};

/// Without a hint (SPIFFE Trust Domain and Bundle section 4.1.3).
const REFRESH: Duration = Duration::from_secs(300);
/// The peer's hint is followed within these bounds: no peer makes us hammer it, or forget it.
const REFRESH_MIN: Duration = Duration::from_secs(2);
const REFRESH_MAX: Duration = Duration::from_secs(3600);
/// The authorities that Debian's and Alpine's `ca-certificates` install.
const PUBLIC_AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Largest file of authorities.
const AUTHORITIES_MAX: u64 = 4 << 20;

/// What is in force, and what takes offers.
pub trait Taker: Send + Sync {
    /// The bundle in force for the peer; `None` before one was decided.
    fn held(&self) -> Option<Bundle>;
    /// A client for an endpoint that is not of the peer's own trust domain: by what is in force for that one.
    fn vouched(&self, id: &SpiffeId) -> Result<Client, String>;
    /// What was fetched; the reason if it is not taken.
    fn offer(&self, document: &str) -> impl Future<Output = Result<(), String>> + Send;
    /// Why nothing could be fetched.
    fn trouble(&self, why: &str);
}

/// One peer's endpoint.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The peer.
    pub peer: ClusterName,
    /// Its trust domain.
    pub domain: TrustDomain,
    /// Where and how.
    pub endpoint: BundleEndpoint,
}

impl Endpoint {
    /// Runs until dropped.
    pub async fn follow(self, taker: impl Taker) {
        let mut hint = taker.held().and_then(|bundle| bundle.refresh_hint);
        loop {
            if let Err(reason) = self.round(&taker, &mut hint).await {
                tracing::warn!(
                    cluster = %self.peer, url = self.endpoint.url, profile = self.endpoint.profile.as_str(), reason,
                    "the peer's bundle cannot be refreshed; the one in force stays, and the next try is at the next tick"
                );
                taker.trouble(&reason);
            }
            tokio::time::sleep(pause(hint)).await;
        }
    }

    /// One fetch and one offer; `hint` becomes what the document says, whether it is taken or not.
    async fn round(&self, taker: &impl Taker, hint: &mut Option<u32>) -> Result<(), String> {
        let held = taker.held();
        let client = self.client(taker, held.as_ref()).await?;
        let url = Url::parse(&self.endpoint.url).map_err(|e| e.to_string())?;
        let document = fetch::get(&url, &client, self.endpoint.follow_redirects).await?;
        let bundle = Bundle::parse(&document).map_err(|e| e.to_string())?;
        *hint = bundle.refresh_hint;
        tracing::info!(
            cluster = %self.peer, url = self.endpoint.url, profile = self.endpoint.profile.as_str(),
            sequence = bundle.sequence, sha256 = sha256(&document), "fetched the peer's bundle"
        );
        taker.offer(&document).await
    }

    /// Made anew each time: after a fetch it is the fetched bundle that proves the endpoint, and files change.
    async fn client(&self, taker: &impl Taker, held: Option<&Bundle>) -> Result<Client, String> {
        match self.endpoint.profile {
            BundleProfile::HttpsSpiffe => {
                let id = self.endpoint.endpoint_spiffe_id.as_ref().ok_or("endpointSpiffeId is missing")?;
                if id.trust_domain() != self.domain {
                    return taker.vouched(id);
                }
                let held = held.ok_or("there is no bundle yet that could prove the endpoint")?;
                Client::spiffe(&self.domain, held, id, clock::now).map_err(|e| e.to_string())
            }
            BundleProfile::HttpsWeb => {
                let file = self.endpoint.ca_file.as_deref().unwrap_or(Path::new(PUBLIC_AUTHORITIES));
                let failed = |error: String| format!("the authorities in {}: {error}", file.display());
                let length = tokio::fs::metadata(file).await.map_err(|e| failed(e.to_string()))?.len();
                if length > AUTHORITIES_MAX {
                    return Err(failed(format!("{length} bytes, more than {AUTHORITIES_MAX}")));
                }
                let authorities = tokio::fs::read(file).await.map_err(|e| failed(e.to_string()))?;
                Client::web(&authorities, clock::now).map_err(|e| failed(e.to_string()))
            }
        }
    }
}

/// Until the next fetch, ten per cent more or less: clusters that were started together do not ask together for ever.
fn pause(hint: Option<u32>) -> Duration {
    let hint = hint.map_or(REFRESH, |seconds| Duration::from_secs(seconds.into()));
    hint.clamp(REFRESH_MIN, REFRESH_MAX).mul_f64(rand::random_range(0.9..1.1))
}

fn sha256(document: &str) -> String {
    let hash = digest::digest(&digest::SHA256, document.as_bytes());
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
