//! `hawser-trust-anchor --config FILE`

use std::path::PathBuf;

use clap::Parser;
use hawser_trust_anchor::Config;

/// Issues this cluster's certificates.
#[derive(Parser)]
#[command(name = "hawser-trust-anchor", version)]
struct Arguments {
    /// Configuration, YAML.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config: Config = hawser_runtime::config::load(&arguments.config)?;
    let process = config.process.clone();
    hawser_runtime::process::run("trust-anchor", process, |process| hawser_trust_anchor::run(config, process))
}
