//! `hawser process`: look at, stop and start the processes of a running `hawser up`.

use anyhow::{Context, Result};
use serde_json::json;

use crate::print::{self, Output};
use crate::state::{State, StateArg};
use crate::up::control::{self, Operation, Request};

/// List, stop, kill or start processes of a running `hawser up`.
///
/// What is stopped or killed stays away until it is started again; what dies by itself is started again at once.
#[derive(Debug, clap::Args)]
pub(crate) struct Process {
    /// What to do.
    #[arg(value_name = "ACTION", default_value = "status")]
    operation: Operation,
    /// `east` for a whole cluster, `east/gateway-0` for one process; absent: everything, for `status` alone.
    #[arg(value_name = "CLUSTER[/PROCESS]", required_if_eq_any([("operation", "stop"), ("operation", "kill"), ("operation", "start")]))]
    target: Option<String>,
    #[command(flatten)]
    state: StateArg,
    /// How to show it.
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

/// Asks the `hawser up` that runs there.
pub(crate) async fn run(args: &Process) -> Result<()> {
    let state = State::existing(&args.state.state)?;
    let (cluster, process) = match args.target.as_deref().map(|target| target.split_once('/').unwrap_or((target, ""))) {
        None => (None, None),
        Some((cluster, process)) => {
            let cluster = cluster.parse().context("the target is CLUSTER or CLUSTER/PROCESS")?;
            (Some(cluster), Some(process.to_owned()).filter(|process| !process.is_empty()))
        }
    };
    let reply = control::ask(&state, &Request { op: args.operation, cluster, process }).await?;
    match args.output {
        Output::Json | Output::Yaml => print::out(print::value(&json!({ "processes": reply.processes }), args.output)?),
        _ => {
            let rows: Vec<Vec<String>> = reply
                .processes
                .iter()
                .map(|line| {
                    let name = format!("{}/{}", line.cluster, line.process);
                    let pid = line.pid.map(|pid| pid.to_string()).unwrap_or_default();
                    vec![name, line.state.clone(), pid, line.restarts.to_string(), line.last_exit.clone()]
                })
                .collect();
            print::out(print::table(&["PROCESS", "STATE", "PID", "RESTARTS", "LAST EXIT"], &rows));
        }
    }
    Ok(())
}
