//! What the trust anchor asks of and tells the API server: whose a service account token is, and this cluster's name, trust
//! domain and bundle in a ConfigMap. All decisions are [`token_review`]'s.
//!
//! RBAC that this needs, and nothing more: `create tokenreviews` and `get pods` in the cluster, `patch` on the one
//! ConfigMap by name.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use hawser_api::labels::{MANAGED_BY, MANAGED_BY_HAWSER, SYSTEM_NAMESPACE};
use hawser_api::{ClusterName, TrustDomain};
use hawser_runtime::Process;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::timeout;

use crate::admit::token_review::{Reviewed, TokenRefused, admitted, claims, reviewed};
use crate::authority::Authority;

/// For both questions about one token. A pod waits for its certificate meanwhile, and asks again.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// For one write of the bundle.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// From one look at the published bundle to the next: what somebody changed by hand is put right.
const REPEAT: Duration = Duration::from_secs(300);
/// After a write that failed.
const PAUSE: Duration = Duration::from_secs(2);
/// Owner of the ConfigMap's fields.
const FIELD_MANAGER: &str = "hawser-trust-anchor";
/// The key under which the ConfigMap holds the bundle.
const BUNDLE_KEY: &str = "bundle.json";

/// A trust anchor of a Kubernetes cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KubernetesConfig {
    /// Where pods ask for certificates, TCP.
    pub listen: SocketAddr,
    /// How the API server is reached; absent: as every pod reaches it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<PathBuf>,
    /// The ConfigMap in `hawser-system` by which pods know the trust anchor; absent: somebody else publishes the bundle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle_config_map: Option<String>,
}

/// The API server, for one cluster's trust anchor.
pub(crate) struct Kubernetes {
    client: Client,
    /// The one audience of the tokens that are taken.
    audience: String,
    cluster: ClusterName,
    domain: TrustDomain,
}

impl Kubernetes {
    /// Nothing is asked yet: the API server may be down.
    pub(crate) async fn open(
        config: &KubernetesConfig,
        cluster: &ClusterName,
        domain: &TrustDomain,
    ) -> anyhow::Result<Self> {
        let config = match &config.kubeconfig {
            Some(path) => {
                let kubeconfig = Kubeconfig::read_from(path).with_context(|| path.display().to_string())?;
                kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?
            }
            None => kube::Config::incluster().context("this is no pod\nhint: set kubernetes.kubeconfig")?,
        };
        let client = Client::try_from(config).context("the API server's address or credentials")?;
        let (cluster, domain) = (cluster.clone(), domain.clone());
        Ok(Self { client, audience: format!("hawser.dev/{cluster}"), cluster, domain })
    }

    /// Whose a token is.
    pub(crate) async fn review(&self, token: &str, now: SystemTime) -> Result<Reviewed, TokenRefused> {
        let claims = claims(token, &self.audience, now)?;
        let asked = async {
            let spec = TokenReviewSpec { audiences: Some(vec![self.audience.clone()]), token: Some(token.to_owned()) };
            let review = TokenReview { spec, ..TokenReview::default() };
            let review = Api::all(self.client.clone()).create(&PostParams::default(), &review).await;
            let status = review.map_err(|e| unanswered(&e))?.status.unwrap_or_default();
            reviewed(&claims, &status, &self.audience)?;
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &claims.namespace);
            let pod = pods.get_opt(&claims.pod).await.map_err(|e| unanswered(&e))?;
            admitted(&claims, pod.as_ref(), &self.domain)
        };
        within(asked).await
    }

    /// Keeps the ConfigMap as the bundle is, until dropped.
    pub(crate) async fn publish(self: Arc<Self>, name: String, authority: Arc<Authority>) {
        let mut bundles = authority.bundle.subscribe();
        loop {
            let document = bundles.borrow_and_update().clone();
            let again = if document.is_empty() { REPEAT } else { self.write(&name, &document).await };
            tokio::select! {
                changed = bundles.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(again) => {}
            }
        }
    }

    /// Server-side apply: the same again is no write. What comes back is when to look again.
    async fn write(&self, name: &str, document: &str) -> Duration {
        let wanted = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": name, "labels": { MANAGED_BY: MANAGED_BY_HAWSER } },
            "data": { BUNDLE_KEY: document, "cluster": self.cluster, "trustDomain": self.domain },
        });
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        let how = PatchParams::apply(FIELD_MANAGER).force();
        let written = timeout(WRITE_MAX, maps.patch(name, &how, &Patch::Apply(&wanted))).await;
        let failed = match written {
            Ok(Ok(_)) => return REPEAT,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the API server does not answer".to_owned(),
        };
        tracing::warn!(name, error = failed, "the bundle is not in its ConfigMap; tried again");
        PAUSE
    }
}

/// Starts what the API server is told, and returns what it is asked by.
pub(crate) fn follow(
    kubernetes: Kubernetes,
    config: &KubernetesConfig,
    authority: &Arc<Authority>,
    process: &Process,
) -> Arc<Kubernetes> {
    let kubernetes = Arc::new(kubernetes);
    if let Some(name) = config.bundle_config_map.clone() {
        process.spawn(Arc::clone(&kubernetes).publish(name, Arc::clone(authority)));
    }
    kubernetes
}

fn unanswered(error: &kube::Error) -> TokenRefused {
    TokenRefused::Unanswered(error.to_string().chars().filter(|c| !c.is_control()).take(200).collect())
}

async fn within<T>(asked: impl Future<Output = Result<T, TokenRefused>>) -> Result<T, TokenRefused> {
    timeout(ANSWER_MAX, asked).await.map_err(|_| TokenRefused::Unanswered("it does not answer".to_owned()))?
}
