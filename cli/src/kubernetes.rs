//! A Kubernetes cluster as commands name it, as kubectl does, and its API server's answers as plain JSON.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::Value;
use tokio::time::timeout;

/// For one answer of an API server.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Flags of every command that may be for a Kubernetes cluster.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct KubeArgs {
    /// A kubeconfig file; by default $KUBECONFIG, or ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// A context of it; by default, where --kubeconfig is given, its current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// Act as this user there.
    #[arg(long = "as", value_name = "USER")]
    user: Option<String>,
}

/// An API server.
pub(crate) struct Cluster {
    /// To ask it by.
    pub(crate) client: Client,
    /// The context's name, for people.
    pub(crate) name: String,
}

impl KubeArgs {
    /// Whether a Kubernetes cluster was named at all.
    pub(crate) fn asked(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

    /// Nothing is asked yet.
    pub(crate) async fn cluster(&self) -> Result<Cluster> {
        let kubeconfig = match &self.kubeconfig {
            Some(path) => Kubeconfig::read_from(path).with_context(|| path.display().to_string())?,
            None => Kubeconfig::read().context("no kubeconfig\nhint: --kubeconfig FILE, or set KUBECONFIG")?,
        };
        let name = self.context.clone().or_else(|| kubeconfig.current_context.clone()).unwrap_or_default();
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let mut config =
            Config::from_custom_kubeconfig(kubeconfig, &options).await.context("the kubeconfig cannot be used")?;
        if self.user.is_some() {
            config.auth_info.impersonate.clone_from(&self.user);
        }
        Ok(Cluster { client: Client::try_from(config)?, name })
    }
}

impl Cluster {
    /// What is at a path; `Null`: nothing is.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, String> {
        self.ask(Request::get(path).body(Vec::new())).await
    }

    /// What the API server makes of `body`.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, String> {
        let request = Request::post(path).header("content-type", "application/json");
        self.ask(request.body(body.to_string().into_bytes())).await
    }

    /// Server-side apply; fields that somebody else owns are refused.
    pub(crate) async fn apply(&self, path: &str, object: &Value) -> Result<Value, String> {
        let request = Request::patch(path).header("content-type", "application/apply-patch+yaml");
        self.ask(request.body(object.to_string().into_bytes())).await
    }

    /// What was there; `Null`: nothing was.
    pub(crate) async fn delete(&self, path: &str) -> Result<Value, String> {
        self.ask(Request::delete(path).body(Vec::new())).await
    }

    async fn ask(&self, request: http::Result<Request<Vec<u8>>>) -> Result<Value, String> {
        let request = request.map_err(|e| e.to_string())?;
        match timeout(ANSWER_MAX, self.client.request(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(Value::Null),
            Ok(Err(kube::Error::Api(status))) => Err(status.message.clone()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", ANSWER_MAX.as_secs())),
        }
    }
}
