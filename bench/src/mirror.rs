//! What a mirror controller does at a real API server, by the example `mirror_rate`; its rows.
//!
//! API server, etcd, both clusters and the program that measures share all cores: it is the system that is measured, next to
//! what the same API server gives a client that has nothing to think about.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::report::Row;
use crate::rows::progress;

/// Services of the peer.
pub(crate) const SERVICES: u32 = 10_000;
/// Changes of one of them, when all are there.
pub(crate) const CHANGES: u32 = 100;
/// Longer than any machine takes that may take part: to wait for more would lose the rest of the run.
const PATIENCE_S: u32 = 3600;

/// Every row: its name, unit, better direction, and for each column where its value is in the report.
type Source = (&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)]);

const ROWS: &[Source] = &[
    (
        "mirror_10k_services_per_s",
        "1/s",
        "higher",
        &[("hawser", "/services_per_s"), ("apiserver_ceiling", "/ceiling_per_s")],
    ),
    ("endpoint_change_ms_p50", "ms", "lower", &[("hawser", "/change_ms_p50")]),
    ("endpoint_change_ms_p99", "ms", "lower", &[("hawser", "/change_ms_p99")]),
    ("mirror_rss_mb_10k", "MB", "lower", &[("hawser", "/rss_mb_peak")]),
    ("mirror_cpu_ms_per_service", "ms", "lower", &[("hawser", "/cpu_ms_per_service")]),
    ("mirror_requests_per_service", "requests", "lower", &[("hawser", "/requests_per_service")]),
    ("mirror_restart_writes", "requests", "lower", &[("hawser", "/restart_writes")]),
];

/// Whether this row is one of these.
pub(crate) fn is_row(name: &str) -> bool {
    ROWS.iter().any(|(row, ..)| *row == name)
}

/// Measures once: it takes minutes, and its two ceilings, before and behind, say how steady the machine was. Rows that could
/// not be measured say why.
pub(crate) fn measure(examples: &Path, hawser: &Path) -> Vec<Row> {
    progress(&format!("{SERVICES} services mirrored at an API server"));
    let report = run(examples, hawser);
    if let Err(error) = &report {
        progress(&format!("  failed: {error:#}"));
    }
    let row = |(name, unit, better, columns): &Source| {
        let value = |pointer: &str| report.as_ref().ok()?.pointer(pointer)?.as_f64();
        let values: BTreeMap<String, f64> =
            columns.iter().filter_map(|(column, pointer)| Some(((*column).to_owned(), value(pointer)?))).collect();
        let missing = report.as_ref().err().map(|error| ("hawser".to_owned(), format!("{error:#}")));
        Row {
            name: (*name).into(),
            unit: (*unit).into(),
            better: (*better).into(),
            values,
            missing: missing.into_iter().collect(),
        }
    };
    ROWS.iter().map(row).collect()
}

fn run(examples: &Path, hawser: &Path) -> Result<Value> {
    let hawser = hawser.canonicalize().with_context(|| format!("no {}", hawser.display()))?;
    let mut command = Command::new("timeout");
    command.arg("--kill-after=5").arg(PATIENCE_S.to_string()).arg(examples.join("mirror_rate"));
    command.arg(SERVICES.to_string()).arg(CHANGES.to_string());
    let output = command.env("HAWSER_BIN", hawser).stdin(Stdio::null()).output().context("cannot run mirror_rate")?;
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        let cause: Vec<&str> = words.lines().filter(|line| !line.trim().is_empty()).take(3).collect();
        bail!("mirror_rate: {}: {}", output.status, cause.join(" "));
    }
    let mut report: Value = serde_json::from_slice(&output.stdout).context("mirror_rate printed no JSON")?;
    let ceilings = ["/ceiling_per_s_before", "/ceiling_per_s_after"];
    let ceilings: Vec<f64> = ceilings.iter().filter_map(|at| report.pointer(at)?.as_f64()).collect();
    let [before, after] = ceilings.as_slice() else { bail!("no ceiling in the report: {report}") };
    let ceiling = Value::from((before + after) / 2.0);
    report.as_object_mut().context("no object")?.insert("ceiling_per_s".to_owned(), ceiling);
    Ok(report)
}
