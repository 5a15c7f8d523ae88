//! `hawser get`: what the daemons know, as a table or for scripts.

use std::path::PathBuf;

use anyhow::Result;
use hawser_api::ClusterName;
use serde_json::{Value, json};

use crate::page::{self, at, condition, list, number, text};
use crate::print::{self, Output};
use crate::state::{State, StateArg};
use crate::{admin, columns};

/// What can be listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Resource {
    /// This cluster's record of each peer, and where it stands.
    Links,
    /// Services that are offered to other clusters.
    Exports,
    /// Peers' services under their local names.
    Mirrors,
    /// This cluster's own workloads.
    Endpoints,
    /// Streams that are live now, at proxies and gateways.
    Streams,
    /// Addresses that proxies have bound for names.
    Listeners,
    /// Certificates that are in force.
    Identities,
}

impl Resource {
    /// Its name on pages and in files.
    fn as_str(self) -> &'static str {
        match self {
            Self::Links => "links",
            Self::Exports => "exports",
            Self::Mirrors => "mirrors",
            Self::Endpoints => "endpoints",
            Self::Streams => "streams",
            Self::Listeners => "listeners",
            Self::Identities => "identities",
        }
    }

    /// Which daemons know it.
    fn daemons(self) -> &'static [&'static str] {
        match self {
            Self::Links | Self::Exports | Self::Mirrors | Self::Endpoints => &["mirror-controller"],
            Self::Streams => &["gateway", "proxy"],
            Self::Listeners => &["proxy"],
            Self::Identities => &["trust-anchor"],
        }
    }
}

/// List links, exports, mirrors, endpoints, streams, listeners or identities.
///
/// Reads the admin pages of the daemons of a state directory; of a daemon that is down, the status that it wrote last.
#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    /// What to list.
    resource: Resource,
    #[command(flatten)]
    state: StateArg,
    /// One cluster only.
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
    /// How to show it.
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

/// Lists them.
pub(crate) async fn run(args: &Get) -> Result<()> {
    let state = State::existing(&args.state.state)?;
    let clusters = args.cluster.clone().map_or_else(|| state.clusters(), |cluster| vec![cluster]);
    let mut rows = Vec::new();
    for cluster in &clusters {
        rows.extend(collect(&state, cluster, args.resource).await?);
    }
    match args.output {
        Output::Json | Output::Yaml => {
            print::out(print::value(&json!({ args.resource.as_str(): rows }), args.output)?);
        }
        Output::Table | Output::Wide => show(args.resource, &rows, args.output == Output::Wide),
    }
    Ok(())
}

/// A table of rows, or that there are none.
pub(crate) fn show(resource: Resource, rows: &[Value], wide: bool) {
    if rows.is_empty() {
        print::note(format!("no {} found", resource.as_str()));
        return;
    }
    let columns: Vec<_> = columns::of(resource).iter().filter(|column| wide || !column.wide).collect();
    let headings: Vec<_> = columns.iter().map(|column| column.heading).collect();
    let cells: Vec<Vec<String>> =
        rows.iter().map(|row| columns.iter().map(|column| (column.cell)(row)).collect()).collect();
    print::out(print::table(&headings, &cells));
}

/// The rows of one cluster, each with the cluster's and the daemon's name.
pub(crate) async fn collect(state: &State, cluster: &ClusterName, resource: Resource) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    let mut answered = false;
    for kind in resource.daemons() {
        for run in admin::runs(state, cluster, Some(kind))? {
            match run.page(&format!("/{}", resource.as_str())).await {
                Ok(page) => {
                    answered = true;
                    let rows = page::rows(&page, resource.as_str());
                    all.extend(rows.into_iter().map(|row| named(row, cluster, Some(&run.label()))));
                }
                Err(error) => print::note(format!("{error:#}")),
            }
        }
    }
    if !answered {
        all = last_written(state.cluster(cluster)?.status(resource.as_str()), cluster, resource);
    }
    Ok(all)
}

fn last_written(path: PathBuf, cluster: &ClusterName, resource: Resource) -> Vec<Value> {
    let page = std::fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str::<Value>(&text).ok());
    let Some(page) = page else {
        print::note(format!("{cluster}: no {} answers\nhint: hawser check", resource.daemons().join(" or ")));
        return Vec::new();
    };
    print::note(format!("{cluster}: nobody answers; this was written last: {}", path.display()));
    page::rows(&page, resource.as_str()).into_iter().map(|row| named(row, cluster, None)).collect()
}

/// `inCluster` and `process` beside whatever the daemon says; `cluster` in a row is often the peer.
fn named(mut row: Value, cluster: &ClusterName, process: Option<&str>) -> Value {
    if let Value::Object(fields) = &mut row {
        fields.insert("inCluster".to_owned(), json!(cluster));
        if let Some(process) = process {
            fields.entry("process").or_insert_with(|| json!(process));
        }
    }
    row
}

/// `2/3`: gateways that answer.
pub(crate) fn gateways_alive(row: &Value) -> String {
    let gateways = gateways(row);
    let alive = gateways.iter().filter(|gateway| page::is(gateway, "alive")).count();
    format!("{alive}/{}", gateways.len())
}

/// A link's gateways, wherever the row has them.
pub(crate) fn gateways(row: &Value) -> &[Value] {
    match list(row, "status.gateways") {
        [] => list(row, "gateways"),
        gateways => gateways,
    }
}

/// The best round trip of a link's gateways.
pub(crate) fn round_trip(row: &Value) -> String {
    let alive = gateways(row).iter().filter(|gateway| page::is(gateway, "alive"));
    let best = alive.map(|gateway| number(gateway, "roundTripUs")).filter(|us| *us > 0.0).reduce(f64::min);
    best.map(|us| format!("{:.1} ms", us / 1000.0)).unwrap_or_default()
}

/// `Ready`, or the reason why not.
pub(crate) fn ready(row: &Value) -> String {
    match condition(row, "Ready") {
        Some(condition) if at(condition, "status") == "True" => "True".to_owned(),
        Some(condition) => format!("{} ({})", text(condition, "status"), text(condition, "reason")),
        None => String::new(),
    }
}
