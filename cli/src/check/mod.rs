//! `hawser check`: is everything as it should be, and if not, what to do.
//!
//! What is seen is collected first; [`judge`] turns it into findings and touches nothing.

mod anchor;
mod judge;
mod kubernetes;
mod seen;
mod trust;

use std::process::ExitCode;

use anstyle::AnsiColor;
use anyhow::Result;
use hawser_api::ClusterName;
use serde::Serialize;
use serde_json::json;

use crate::kubernetes::KubeArgs;
use crate::print;
use crate::state::{State, StateArg};

/// How findings are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Every check under its category.
    Table,
    /// One JSON document.
    Json,
    /// Only what is not in order.
    Short,
}

/// Check processes, identities, links, gateways, exports, mirrors and listeners.
///
/// With --context or --kubeconfig: the objects of a Kubernetes cluster, as its API server has them.
///
/// Exit status 0: all is in order, or there are warnings only; 1: something is not.
#[derive(Debug, clap::Args)]
pub(crate) struct Check {
    #[command(flatten)]
    state: StateArg,
    #[command(flatten)]
    kubernetes: KubeArgs,
    /// One cluster only.
    #[arg(long, value_name = "NAME")]
    cluster: Option<ClusterName>,
    /// How to show it.
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Outcome {
    Success,
    Warning,
    Error,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Finding {
    /// Which check it is.
    pub(crate) anchor: anchor::Anchor,
    /// What was looked at, and what is so when it succeeds.
    pub(crate) description: String,
    pub(crate) result: Outcome,
    /// What is wrong.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) error: String,
    /// What to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) hint: String,
}

/// Checks about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Category {
    /// Such as `west: links`.
    pub(crate) category_name: String,
    pub(crate) checks: Vec<Finding>,
}

/// Looks, judges and shows.
pub(crate) async fn run(args: &Check) -> Result<ExitCode> {
    let categories = if args.kubernetes.asked() {
        kubernetes::check(&args.kubernetes.cluster().await?).await
    } else {
        standalone(args).await?
    };
    let worst = categories.iter().flat_map(|category| &category.checks).map(|check| check.result).max();
    let good = worst != Some(Outcome::Error);
    match args.output {
        Format::Json => {
            print::out(print::value(&json!({ "success": good, "categories": categories }), print::Output::Json)?)
        }
        format => show(&categories, format == Format::Short, worst.unwrap_or(Outcome::Success)),
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn standalone(args: &Check) -> Result<Vec<Category>> {
    let state = State::existing(&args.state.state)?;
    let clusters = args.cluster.clone().map_or_else(|| state.clusters(), |cluster| vec![cluster]);
    let mut categories = Vec::new();
    if clusters.is_empty() {
        categories.push(judge::nothing(&state));
    }
    for cluster in &clusters {
        let seen = seen::look(&state, cluster).await?;
        categories.extend(judge::judge(&seen));
    }
    Ok(categories)
}

fn show(categories: &[Category], short: bool, worst: Outcome) {
    for category in categories {
        let shown: Vec<_> = category.checks.iter().filter(|check| !short || check.result != Outcome::Success).collect();
        if shown.is_empty() {
            continue;
        }
        print::out(&category.category_name);
        print::out("-".repeat(category.category_name.chars().count()));
        for check in shown {
            print::out(format!("{} {}", mark(check.result), check.description));
            for line in check.error.lines() {
                print::out(format!("    {line}"));
            }
            if !check.hint.is_empty() {
                print::out(format!("    hint: {}", check.hint));
            }
            if check.result != Outcome::Success {
                print::out(print::dim(format!("    see docs/check.md#{}", check.anchor)));
            }
        }
        print::out("");
    }
    print::out(match worst {
        Outcome::Success => "all is in order".to_owned(),
        Outcome::Warning => "in order, with warnings".to_owned(),
        Outcome::Error => "not in order".to_owned(),
    });
}

fn mark(outcome: Outcome) -> String {
    match outcome {
        Outcome::Success => print::coloured(AnsiColor::Green, '\u{221a}'),
        Outcome::Warning => print::coloured(AnsiColor::Yellow, '\u{203c}'),
        Outcome::Error => print::coloured(AnsiColor::Red, '\u{d7}'),
    }
}
