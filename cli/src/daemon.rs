//! Each daemon as a subcommand: what `hawser-gateway` and its like do in an image of their own.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;

/// Which daemon, and its configuration.
#[derive(Debug, Subcommand)]
pub(crate) enum Daemon {
    /// Run a gateway: the cluster's door for its peers.
    Gateway(ConfigArg),
    /// Run a proxy beside, or for, a workload.
    Proxy(ConfigArg),
    /// Run the mirror controller: catalogs of peers in, mirrors and tables out.
    MirrorController(ConfigArg),
    /// Run the trust anchor: certificates for this cluster's processes.
    TrustAnchor(ConfigArg),
}

/// `--config`
#[derive(Debug, clap::Args)]
pub(crate) struct ConfigArg {
    /// The daemon's YAML configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Runs until the daemon has drained.
pub(crate) fn run(_daemon: &Daemon) -> Result<()> {
    anyhow::bail!("not yet")
}
