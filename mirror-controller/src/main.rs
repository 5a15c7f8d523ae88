//! The mirror controller as a program of its own, for images that hold nothing else.

use std::path::PathBuf;

use clap::Parser;
use hawser_mirror_controller::{Config, run};

/// Watches objects and peers' catalogs, writes mirrors, serves discovery.
#[derive(Parser)]
#[command(name = "hawser-mirror-controller", version)]
struct Arguments {
    /// The configuration file.
    #[arg(long)]
    config: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config: Config = hawser_runtime::config::load(&arguments.config)?;
    hawser_runtime::process::run("mirror-controller", config.process.clone(), |process| run(config, process))
}
