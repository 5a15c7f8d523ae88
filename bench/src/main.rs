//! Measures Hawser next to its peers: client → egress → gateway → inbound → server, all on this machine.
//!
//! ```text
//! run    starts every chain (chain, hawser, peers), then alternates over them row by row (rows), measures handshakes and
//!        issuing next to OpenSSL and step-ca (trust), and writes report
//! mirror measures mirrors at a real API server (mirror), and puts its rows beside the others
//! serve  the server at the end of a chain, pinned to the load's core
//! load   one measurement from the client's end, pinned to the load's core, printed as JSON
//! ```
//!
//! Load and server share core 0; every proxy of a chain shares core 1: what is measured is the proxies' own work.

mod chain;
mod hawser;
mod load;
mod mirror;
mod peers;
mod process;
mod report;
mod rows;
mod serve;
mod trust;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Measures Hawser next to its peers on one path, in one run")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures every row on every chain and writes results.json and RESULTS.md.
    Run {
        /// Where the results go.
        #[arg(long, default_value = "bench")]
        out: PathBuf,
        /// The hawser binary (release build).
        #[arg(long, default_value = "target/release/hawser")]
        hawser: PathBuf,
        /// The Envoy binary; without it that column stays empty.
        #[arg(long)]
        envoy: Option<PathBuf>,
        /// The folder with the examples `verify_speed` and `issue_rate` (release build).
        #[arg(long, default_value = "target/release/examples")]
        examples: PathBuf,
        /// The folder with `step-ca` and its `load`; without them that column stays empty, and says so.
        #[arg(long, default_value = "bench/.cache/step-ca")]
        step_ca: PathBuf,
        /// Measurements per row and chain; the median counts.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Only these chains (comma-separated), for trying things out.
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// Only these rows (comma-separated).
        #[arg(long, value_delimiter = ',')]
        rows: Vec<String>,
    },
    /// Mirrors services at a real API server; its rows take the place of those of the same name in results.json.
    Mirror {
        /// Where the results are.
        #[arg(long, default_value = "bench")]
        out: PathBuf,
        /// The hawser binary (release build).
        #[arg(long, default_value = "target/release/hawser")]
        hawser: PathBuf,
        /// The folder with the example `mirror_rate` (release build).
        #[arg(long, default_value = "target/release/examples")]
        examples: PathBuf,
    },
    /// Renders RESULTS.md from results.json.
    Render {
        /// The folder that holds both.
        #[arg(long, default_value = "bench")]
        out: PathBuf,
    },
    /// The server at the end of a chain.
    Serve {
        /// Where to listen.
        #[arg(long)]
        listen: SocketAddr,
    },
    /// One measurement from the client's end.
    Load {
        /// Where the chain begins.
        #[arg(long)]
        to: SocketAddr,
        #[command(subcommand)]
        kind: load::Kind,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Run { out, hawser, envoy, examples, step_ca, rounds, only, rows } => {
            let binaries = chain::Binaries { hawser, envoy };
            let programs = trust::Programs { examples, step_ca };
            let results = rows::measure((&binaries, &programs), rounds, &only, &rows)?;
            report::write(&out, &results)
        }
        Command::Mirror { out, hawser, examples } => report::replace(&out, mirror::measure(&examples, &hawser)),
        Command::Render { out } => report::render(&out),
        Command::Serve { listen } => serve::run(listen),
        Command::Load { to, kind } => load::run(to, &kind),
    }
}
