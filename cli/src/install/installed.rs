//! Looks at a cluster before anything is printed for it.

use anyhow::{Context, Result};
use hawser_api::crd::upgrade::{Verdict, decide};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use tokio::time::timeout;

use crate::kubernetes::{ANSWER_MAX, Cluster};
use crate::print;

/// Those that the cluster should take; what is left out is said on stderr.
pub(super) async fn leave_out(
    definitions: Vec<CustomResourceDefinition>,
    cluster: &Cluster,
) -> Result<Vec<CustomResourceDefinition>> {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let mut wanted = Vec::new();
    for ours in definitions {
        let name = ours.metadata.name.clone().unwrap_or_default();
        let answer = timeout(ANSWER_MAX, api.get_opt(&name)).await.context("the API server does not answer")?;
        let installed = answer.with_context(|| format!("whether {name} is installed"))?;
        match decide(installed.as_ref(), &ours) {
            Verdict::Keep(reason) => print::note(format!("left out {name}, which is installed: {reason}")),
            Verdict::Create | Verdict::Replace => wanted.push(ours),
        }
    }
    Ok(wanted)
}
