//! The join door: hands one stranger's request to the trust anchor and the reply back. Nothing of either is read here,
//! and nothing else can be reached through it.

use std::time::Duration;

use hawser_runtime::clock;
use hawser_tunnel::identity::redeem_link;
use hawser_tunnel::listen::Knock;
use tokio::time::timeout;

use crate::Gateway;

/// For the trust anchor's answer: a few writes to disk, after a few others.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Answers, or closes.
pub(crate) async fn answer(gateway: &Gateway, knock: Knock) {
    let remote = knock.remote();
    let asked = redeem_link(&gateway.issuer, knock.request().to_vec(), remote.to_string());
    let outcome = match timeout(ANSWER_MAX, asked).await {
        Ok(Ok(reply)) => knock.reply(&reply).await.map_err(|e| e.to_string()),
        Ok(Err(reason)) => Err(reason),
        Err(_) => Err("the trust anchor took too long".to_owned()),
    };
    gateway.metrics.joined(if outcome.is_ok() { "answered" } else { "failed" });
    if let Err(reason) = outcome
        && let Some(left_out) = gateway.said.again("join", clock::monotonic())
    {
        tracing::warn!(%remote, reason, left_out, "a request at the join door was not answered");
    }
}
