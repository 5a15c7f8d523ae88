//! The API server as this process reaches it: with a deadline for every request, and with what it says about when to come
//! back.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::config::KubernetesConfig;

/// The field manager of everything that is written here.
pub const MANAGER: &str = "hawser-mirror-controller";
/// Longest answer that is read: an EndpointSlice of a thousand endpoints is far shorter.
const ANSWER_MAX: usize = 4 << 20;
/// Longest that an API server's wish to be left alone is heeded.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// A client for the API server that the configuration names.
pub async fn connect(config: &KubernetesConfig) -> anyhow::Result<Client> {
    let options = KubeConfigOptions { context: config.context.clone(), ..KubeConfigOptions::default() };
    let mut client = match (&config.kubeconfig, &config.context) {
        (Some(path), _) => {
            let read = Kubeconfig::read_from(path);
            let read = read.with_context(|| format!("kubernetes.kubeconfig: cannot read {}", path.display()))?;
            let config = Config::from_custom_kubeconfig(read, &options).await;
            config.with_context(|| format!("kubernetes.kubeconfig: {} cannot be used", path.display()))?
        }
        (None, Some(context)) => {
            let config = Config::from_kubeconfig(&options).await;
            config.with_context(|| format!("kubernetes.context: {context} cannot be used"))?
        }
        (None, None) => Config::infer().await.context(
            "kubernetes: neither a Pod's service account nor a kubeconfig is here; hint: name one in kubernetes.kubeconfig",
        )?,
    };
    // Retries are paced where it is known what hangs on them.
    client.default_retry = false;
    Client::try_from(client).context("kubernetes: no client can be made of the configuration")
}

/// What the API server answered.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: Bytes,
    /// When it wants to be asked again.
    pub retry_after: Option<Duration>,
}

impl Answer {
    /// The message of a `Status` object, or what else the body says.
    pub fn message(&self) -> String {
        let status: Option<kube::core::Status> = serde_json::from_slice(&self.body).ok();
        let text = match status.filter(|status| !status.message.is_empty()) {
            Some(status) => status.message,
            None => format!("{} {}", self.status, String::from_utf8_lossy(&self.body)),
        };
        text.chars().filter(|c| !c.is_control()).take(400).collect()
    }
}

/// Sends one request. An error is one of the way, never the API server's answer.
pub async fn send(client: &Client, request: http::Request<Vec<u8>>, within: Duration) -> Result<Answer, String> {
    let exchange = async {
        let response = client.send(request.map(Body::from)).await.map_err(|error| error.to_string())?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_MAX).collect().await.map_err(|error| error.to_string())?;
        let after = head.headers.get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let retry_after = after.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
        Ok(Answer { status: head.status, body: body.to_bytes(), retry_after })
    };
    match tokio::time::timeout(within, exchange).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("the API server has not answered within {} ms", within.as_millis())),
    }
}
