//! Asks the trust anchors of the state directory's clusters.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use hawser_api::ClusterName;
use hawser_api::proto::trust::trust_client::TrustClient;
use hawser_api::proto::trust::{StatusReply, StatusRequest};
use tokio::time::timeout;

use crate::state::{State, StateArg};

/// For one answer; a step writes to the disk a few times.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// A status of the largest size: a thousand leaves, a bundle a linked cluster.
const MESSAGE_MAX: usize = 64 * 1024 * 1024;

/// Which clusters are meant.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Which {
    /// This cluster only; otherwise every cluster of the state directory.
    #[arg(long, value_name = "NAME")]
    pub(crate) cluster: Option<ClusterName>,
    #[command(flatten)]
    pub(crate) state: StateArg,
}

impl Which {
    pub(crate) fn state(&self) -> Result<State> {
        State::existing(&self.state.state)
    }

    pub(crate) fn clusters(&self) -> Result<Vec<Anchor>> {
        let state = self.state()?;
        let names = match &self.cluster {
            Some(name) => vec![name.clone()],
            None => state.clusters(),
        };
        if names.is_empty() {
            bail!("no cluster has ever run in {}\nhint: start a fabric with `hawser up DIR`", state.path().display());
        }
        names.into_iter().map(|name| Ok(Anchor { socket: state.cluster(&name)?.issuer_socket(), name })).collect()
    }

    /// The one that is meant, where only one can be.
    pub(crate) fn one(&self) -> Result<Anchor> {
        let mut all = self.clusters()?;
        match (all.pop(), all.pop()) {
            (Some(one), None) => Ok(one),
            _ => bail!("more than one cluster is here\nhint: name one with --cluster"),
        }
    }
}

/// One cluster's trust anchor.
#[derive(Debug, Clone)]
pub(crate) struct Anchor {
    pub(crate) name: ClusterName,
    socket: std::path::PathBuf,
}

/// The client that a question is asked with.
macro_rules! ask {
    ($anchor:expr, $method:ident, $request:expr) => {
        $anchor.ask(async |mut client| client.$method($request).await.map(|reply| reply.into_inner()))
    };
}
pub(crate) use ask;

type Client = TrustClient<hawser_tunnel::identity::Channel>;
type Status = hawser_tunnel::identity::Status;

impl Anchor {
    pub(crate) async fn ask<T>(&self, ask: impl AsyncFnOnce(Client) -> Result<T, Status>) -> Result<T> {
        let asked = async {
            let channel = hawser_tunnel::identity::channel(&self.socket).await?;
            ask(TrustClient::new(channel).max_decoding_message_size(MESSAGE_MAX)).await
        };
        let answered = timeout(ANSWER_MAX, asked).await.map_err(|_| anyhow!("its trust anchor does not answer"));
        let answered = answered.and_then(|answered| answered.map_err(|status| anyhow!("{}", status.message())));
        answered.with_context(|| format!("cluster {}", self.name))
    }

    pub(crate) async fn status(&self) -> Result<StatusReply> {
        ask!(self, status, StatusRequest {}).await
    }
}
