//! `hawser-proxy --config FILE`

use std::path::PathBuf;

use clap::Parser;
use hawser_proxy::Config;

/// Hawser's proxy.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// The configuration, one YAML file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let config: Config = hawser_runtime::config::load(&args.config)?;
    hawser_runtime::process::run("proxy", config.process.clone(), |process| hawser_proxy::run(config, process))
}
