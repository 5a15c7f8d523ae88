//! The gateway as a program of its own.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use hawser_gateway::{Config, run};

/// A cluster's door: lets in what this cluster exports to the caller's cluster, and nothing else.
#[derive(Parser)]
#[command(name = "hawser-gateway", version)]
struct Arguments {
    /// Configuration file (YAML).
    #[arg(long)]
    config: PathBuf,
}

fn main() -> ExitCode {
    match start(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the last words of a program that cannot start")]
            {
                eprintln!("hawser-gateway: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> anyhow::Result<()> {
    let config: Config = hawser_runtime::config::load(&arguments.config)?;
    hawser_runtime::process::run("gateway", config.process.clone(), |process| run(config, process))
}
