//! What fills the world: one file a source. Nothing here decides.

pub mod catalog;
pub mod endpoint;
pub mod fabric;
pub mod files;
pub mod gateways;
pub mod kubernetes;
pub mod last_known;
pub mod links;
pub mod own;
pub mod record;

use hawser_api::objects::Link;
use hawser_api::objects::load::Problem;
use hawser_api::{ClusterName, TrustDomain};
use hawser_tunnel::tls::Credentials;

/// Waits until this process is somebody. Before that nothing can be dialled, and what cannot be dialled for want of a
/// certificate of our own says nothing about a peer.
async fn somebody(credentials: &Credentials) {
    let mut generation = credentials.generation();
    while credentials.identity().is_none() && generation.changed().await.is_ok() {}
}

/// A Link to ourselves would have us trust a peer as we trust our own. `at` is where the Link stands.
fn not_ourselves(link: &Link, own: &(ClusterName, TrustDomain), (file, line): (&str, u64)) -> Vec<Problem> {
    let name = (link.metadata.name == own.0.as_str()).then_some(("metadata.name", own.0.as_str()));
    let domain = (link.spec.trust_domain == own.1).then_some(("spec.trustDomain", own.1.as_str()));
    let problem = |(field, value): (&str, &str)| Problem {
        file: file.to_owned(),
        line,
        field: field.to_owned(),
        reason: format!("{value} is this cluster's own"),
        remedy: "name the peer's".to_owned(),
    };
    name.into_iter().chain(domain).map(problem).collect()
}
