//! Objects that in a whole cluster somebody else would make: nodes, namespaces, pods that run.

use std::net::IpAddr;

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

/// A ready node. EndpointSlices have endpoints only of pods whose node exists.
pub async fn node(client: &Client, name: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let labels = json!({ "topology.kubernetes.io/zone": "zone-a", "kubernetes.io/hostname": name });
    let node = json!({ "metadata": { "name": name, "labels": labels } });
    nodes.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
    patch_status(&nodes, name, &json!({ "conditions": [ready()] })).await?;
    Ok(())
}

/// A namespace; the name that it got begins with this and is nobody else's.
pub async fn namespace(client: &Client, prefix: &str) -> Result<String> {
    let namespace = serde_json::from_value(json!({ "metadata": { "generateName": format!("{prefix}-") } }))?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    Ok(namespaces.create(&PostParams::default(), &namespace).await?.name_any())
}

/// A service account.
pub async fn service_account(client: &Client, namespace: &str, name: &str) -> Result<()> {
    let account = serde_json::from_value(json!({ "metadata": { "name": name } }))?;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    accounts.create(&PostParams::default(), &account).await?;
    Ok(())
}

/// A pod that runs, as far as its API server knows.
#[derive(Debug, Clone)]
pub struct ReadyPod<'a> {
    /// Where.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// For the selectors of Services.
    pub labels: &'a [(&'a str, &'a str)],
    /// An API server takes no loopback address for an endpoint.
    pub address: IpAddr,
    /// Need not exist, unless tokens are asked for.
    pub service_account: &'a str,
}

impl ReadyPod<'_> {
    /// Makes it, on `node-0`.
    pub async fn create(&self, client: &Client) -> Result<Pod> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), self.namespace);
        let labels: serde_json::Map<String, Value> =
            self.labels.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let pod = json!({
            "metadata": { "name": self.name, "labels": labels },
            "spec": {
                "nodeName": "node-0",
                "serviceAccountName": self.service_account,
                "containers": [{ "name": "app", "image": "registry.invalid/app" }],
            },
        });
        pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
        set_ready(client, self.namespace, self.name, Some(self.address)).await
    }
}

/// What a kubelet would say: the pod is ready at this address, or no longer ready.
pub async fn set_ready(client: &Client, namespace: &str, name: &str, address: Option<IpAddr>) -> Result<Pod> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let status = match address {
        Some(ip) => json!({
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
            "conditions": [ready(), { "type": "ContainersReady", "status": "True" }],
        }),
        None => json!({ "conditions": [{ "type": "Ready", "status": "False" }] }),
    };
    patch_status(&pods, name, &status).await
}

/// A token of a service account for these audiences, bound to a pod if one is named, as a projected volume has it.
pub async fn token(
    client: &Client,
    (namespace, account): (&str, &str),
    pod: Option<&Pod>,
    audiences: &[&str],
) -> Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let bound = pod.map(|pod| BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: Some(pod.name_any()),
        uid: pod.uid(),
    });
    let audiences = audiences.iter().map(|audience| (*audience).to_owned()).collect();
    let spec = TokenRequestSpec { audiences, bound_object_ref: bound, expiration_seconds: Some(3600) };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let answer = accounts.create_token_request(account, &PostParams::default(), &request).await?;
    Ok(answer.status.context("no token in the answer")?.token)
}

async fn patch_status<K>(api: &Api<K>, name: &str, status: &Value) -> Result<K>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let patch = Patch::Merge(json!({ "status": status }));
    Ok(api.patch_status(name, &PatchParams::default(), &patch).await?)
}

fn ready() -> Value {
    json!({ "type": "Ready", "status": "True" })
}
