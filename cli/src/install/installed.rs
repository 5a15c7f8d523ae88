//! Looks at a cluster before anything is printed for it.

use std::time::Duration;

use anyhow::{Context, Result};
use hawser_api::crd::upgrade::{Verdict, decide};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use tokio::time::timeout;

use super::Lookup;
use crate::print;

/// For one answer of an API server.
const ANSWER_MAX: Duration = Duration::from_secs(10);

impl Lookup {
    /// Somebody named a cluster.
    pub(super) fn asked(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

    async fn client(&self) -> Result<Client> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let config = match &self.kubeconfig {
            Some(path) => {
                let kubeconfig = Kubeconfig::read_from(path).with_context(|| path.display().to_string())?;
                Config::from_custom_kubeconfig(kubeconfig, &options).await
            }
            None => Config::from_kubeconfig(&options).await,
        };
        Ok(Client::try_from(config.context("the kubeconfig cannot be used")?)?)
    }
}

/// Those that the cluster should take; what is left out is said on stderr.
pub(super) async fn leave_out(
    definitions: Vec<CustomResourceDefinition>,
    lookup: &Lookup,
) -> Result<Vec<CustomResourceDefinition>> {
    let api: Api<CustomResourceDefinition> = Api::all(lookup.client().await?);
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
