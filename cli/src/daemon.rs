//! Each daemon as a subcommand: what `hawser-gateway` and its like do in an image of their own.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use hawser_runtime::{config, process};

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
pub(crate) fn run(daemon: &Daemon) -> Result<()> {
    match daemon {
        Daemon::Gateway(args) => {
            let config: hawser_gateway::Config = config::load(&args.config)?;
            process::run("gateway", config.process.clone(), |process| hawser_gateway::run(config, process))
        }
        Daemon::Proxy(args) => {
            let config: hawser_proxy::Config = config::load(&args.config)?;
            process::run("proxy", config.process.clone(), |process| hawser_proxy::run(config, process))
        }
        Daemon::MirrorController(args) => {
            let config: hawser_mirror_controller::Config = config::load(&args.config)?;
            process::run("mirror-controller", config.process.clone(), |process| {
                hawser_mirror_controller::run(config, process)
            })
        }
        Daemon::TrustAnchor(args) => {
            let config: hawser_trust_anchor::Config = config::load(&args.config)?;
            process::run("trust-anchor", config.process.clone(), |process| hawser_trust_anchor::run(config, process))
        }
    }
}
