//! What a check looks at in a Kubernetes cluster: objects, as its API server has them. [`judge`] turns them into findings.

use std::time::UNIX_EPOCH;

use futures_util::{StreamExt, stream};
use hawser_api::labels::SYSTEM_NAMESPACE;
use hawser_runtime::clock;
use serde_json::Value;

use super::Category;
use crate::kubernetes::Cluster;

mod judge;
mod needs;

use needs::{Need, needs};

/// Questions about permissions at a time: there are some forty.
const REVIEWS_AT_ONCE: usize = 8;

/// What an API server said to one question: nothing (`Null`), something, or why not.
type Answer = Result<Value, String>;

/// One cluster.
struct Seen {
    cluster: String,
    /// Seconds since the epoch.
    now: f64,
    version: Value,
    definitions: Answer,
    namespace: Answer,
    deployments: Answer,
    leases: Answer,
    /// Whether the daemons may do what they have to.
    reviews: Vec<(Need, Answer)>,
    links: Answer,
    exported: Answer,
    exports: Answer,
    mirrors: Answer,
    slices: Answer,
}

/// Looks at a cluster and judges it.
pub(super) async fn check(cluster: &Cluster) -> Vec<Category> {
    match cluster.get("/version").await {
        Ok(version) => judge::judge(&look(cluster, version).await),
        // A dozen deadlines one after the other would say no more.
        Err(reason) => judge::unreachable(&cluster.name, reason),
    }
}

async fn look(cluster: &Cluster, version: Value) -> Seen {
    let own = |kind: &str| format!("/apis/{kind}?labelSelector=app.kubernetes.io%2Fpart-of%3Dhawser");
    let review = |need: Need| async move {
        let answer = cluster.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &need.review()).await;
        (need, answer)
    };
    let reviews = stream::iter(needs()).map(review).buffered(REVIEWS_AT_ONCE).collect().await;
    Seen {
        cluster: cluster.name.clone(),
        now: clock::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
        version,
        definitions: cluster.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions").await,
        namespace: cluster.get(&format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}")).await,
        deployments: cluster.get(&own(&format!("apps/v1/namespaces/{SYSTEM_NAMESPACE}/deployments"))).await,
        leases: cluster.get(&format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM_NAMESPACE}/leases")).await,
        reviews,
        links: cluster.get("/apis/hawser.dev/v1alpha1/links").await,
        exported: cluster.get("/api/v1/services?labelSelector=hawser.dev%2Fexport%3Dtrue").await,
        exports: cluster.get("/apis/multicluster.x-k8s.io/v1beta1/serviceexports").await,
        mirrors: cluster.get("/api/v1/services?labelSelector=app.kubernetes.io%2Fmanaged-by%3Dhawser").await,
        slices: cluster.get("/apis/discovery.k8s.io/v1/endpointslices").await,
    }
}
