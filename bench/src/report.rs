//! results.json, and RESULTS.md made from it: lost rows first.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::mirror::{self, CHANGES, SERVICES};
use crate::rows::HALF_LOAD_RATE;
use crate::trust::{self, ISSUE_CLIENTS};

/// Everything that one run measured.
#[derive(Serialize, Deserialize)]
pub(crate) struct Results {
    machine: Machine,
    rounds: usize,
    rows: Vec<Row>,
}

/// One row over all chains.
#[derive(Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: String,
    /// `higher` or `lower`.
    pub(crate) better: String,
    /// Chain, or whom it was measured of, to median.
    pub(crate) values: BTreeMap<String, f64>,
    /// Who could not be measured, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) missing: BTreeMap<String, String>,
}

/// What the run ran on.
#[derive(Serialize, Deserialize)]
struct Machine {
    cpu: String,
    cores: usize,
    memory_gb: u64,
    kernel: String,
    peers: BTreeMap<String, String>,
}

/// A row's target against a peer in the same run: the column that it holds for, the peer's, and the ratio to reach.
const TARGETS: &[(&str, &str, &str, f64)] = &[
    ("gateway_cpu_s_per_gb", "hawser_tcp", "envoy", 0.2),
    ("bulk_gbps_8", "hawser_tcp", "envoy", 1.2),
    ("bulk_gbps_8", "hawser_quic", "envoy", 0.5),
    ("egress_cpu_s_per_gb", "hawser_tcp", "envoy", 1.0),
    ("inbound_cpu_s_per_gb", "hawser_tcp", "envoy", 1.0),
    ("connections_per_s", "hawser_tcp", "envoy", 5.0),
    ("first_byte_new_connection_us", "hawser_tcp", "envoy", 0.5),
    ("http1_rps", "hawser_tcp", "envoy", 1.0),
    ("http1_p99_ms_at_half_load", "hawser_tcp", "envoy", 1.0),
    ("handshakes_tcp_per_s_per_core", "hawser", "openssl", 1.0),
    ("verify_chain_us", "hawser", "openssl", 1.0),
    ("issue_per_s", "hawser", "step_ca", 2.0),
    ("issue_per_s_per_core", "hawser", "step_ca", 2.0),
    ("mirror_10k_services_per_s", "hawser", "apiserver_ceiling", 0.7),
];

/// Targets in the row's own unit.
const BOUNDS: &[(&str, &str, f64)] = &[
    ("rss_mb_at_rest_proxy", "hawser_tcp", 20.0),
    ("rss_mb_at_rest_gateway", "hawser_tcp", 30.0),
    ("idle_connection_kb", "hawser_tcp", 16.0),
    ("endpoint_change_ms_p99", "hawser", 300.0),
    ("mirror_rss_mb_10k", "hawser", 150.0),
    ("mirror_restart_writes", "hawser", 0.0),
];

/// Of the rows that are measured on chains: columns, and who of them are peers of the column that rows are sorted by.
const CHAINS: Columns = Columns {
    all: &["raw", "hawser_tcp", "hawser_quic", "envoy", "haproxy", "nginx"],
    own: "hawser_tcp",
    peers: &["envoy", "haproxy", "nginx"],
};

/// Of the rows about trust.
const TRUST: Columns = Columns {
    all: &["hawser", "hawser_known_peer", "openssl", "step_ca", "step_ca_token"],
    own: "hawser",
    peers: &["openssl", "step_ca"],
};

/// Of the rows about mirrors at an API server.
const MIRROR: Columns = Columns { all: &["hawser", "apiserver_ceiling"], own: "hawser", peers: &[] };

struct Columns {
    all: &'static [&'static str],
    own: &'static str,
    peers: &'static [&'static str],
}

impl Results {
    /// With the machine's facts.
    pub(crate) fn new(rounds: usize, rows: Vec<Row>) -> Self {
        Self { machine: machine(), rounds, rows }
    }
}

fn machine() -> Machine {
    let field = |file: &str, key: &str| {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_owned())
    };
    let memory: u64 = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    Machine {
        cpu: field("/proc/cpuinfo", "model name"),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        memory_gb: memory / 1_000_000,
        kernel,
        peers: versions(),
    }
}

fn versions() -> BTreeMap<String, String> {
    let first_line = |program: &str, argument: &str| {
        let output = std::process::Command::new(program).arg(argument).output().ok()?;
        let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
        String::from_utf8_lossy(&text).lines().next().map(|line| line.chars().take(60).collect::<String>())
    };
    [("haproxy", "-v"), ("nginx", "-v"), ("wrk", "-v"), ("h2load", "--version"), ("openssl", "version")]
        .into_iter()
        .filter_map(|(program, argument)| Some((program.to_owned(), first_line(program, argument)?)))
        .collect()
}

/// Writes both files.
pub(crate) fn write(out: &Path, results: &Results) -> Result<()> {
    std::fs::write(out.join("results.json"), serde_json::to_string_pretty(results)? + "\n")?;
    render(out)
}

/// Puts rows where those of the same names were, and writes both files. The others stay, and what they ran on.
pub(crate) fn replace(out: &Path, rows: Vec<Row>) -> Result<()> {
    let mut results = read(out)?;
    results.rows.retain(|known| rows.iter().all(|row| row.name != known.name));
    results.rows.extend(rows);
    write(out, &results)
}

fn read(out: &Path) -> Result<Results> {
    let path = out.join("results.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("{} is missing: make bench", path.display()))?;
    Ok(serde_json::from_str(&text)?)
}

/// Writes RESULTS.md from results.json.
pub(crate) fn render(out: &Path) -> Result<()> {
    std::fs::write(out.join("RESULTS.md"), page(&read(out)?)?)?;
    Ok(())
}

/// How the rows about trust are to be read.
fn trust_reading() -> String {
    format!(
        "Full mutual TLS 1.3 handshakes a second of one core, the accepting side alone, in CPU time: in memory for TLS as \
         it goes over TCP, over loopback sockets for QUIC. `hawser` verifies a peer that it has not seen since the last \
         change of anchors, `hawser_known_peer` one that it has; OpenSSL (as Debian has it) has the same certificates, keeps \
         nothing, and agrees on keys by X25519, Hawser by X25519MLKEM768. Verification is one chain of leaf and \
         intermediate from DER to verdict. Issuing is {ISSUE_CLIENTS} holders of P-256 certificates who ask for the next, \
         for another key, on connections that they keep (`hawser`: renewal over the Unix socket; `step_ca`: `/1.0/rekey` \
         over mutual TLS, its database as `step ca init` makes it; `step_ca_token`: `/1.0/sign` with one-time tokens); \
         both write to the same disk and sync before they answer. Per core: of the issuer's own CPU time."
    )
}

/// How the rows about mirrors are to be read.
fn mirror_reading() -> String {
    format!(
        "{SERVICES} services of a peer on plain machines, in 100 namespaces, become Services, EndpointSlices and \
         ServiceImports at a kube-apiserver (with etcd without fsync, on the same cores as everything else): from the first \
         file that the peer exports to the last status. `apiserver_ceiling` is a client with as many requests at once that \
         applies objects like these and has nothing to think about, measured before and behind, the mean of both. A change \
         is the one endpoint of a service that goes or comes back at the peer, from the file to the mirror's EndpointSlice \
         as a watch tells it, {CHANGES} times with everything else in place. Memory is the peak. Restart: requests that \
         change anything, of a controller that finds everything in place. One pass, no median."
    )
}

fn page(results: &Results) -> Result<String> {
    let mut text = String::from("# Results\n\n");
    let machine = &results.machine;
    writeln!(
        text,
        "Medians of {} rounds, alternating over the chains in one run. Repeat with `make bench`.\n\n\
         {} cores of {}, {} GB, Linux {}. Load and server share core 0, every proxy of a chain shares core 1: \
         read ratios, not absolutes. TLS 1.3, P-256 certificates, AES-128-GCM, no session resumption anywhere (Hawser \
         verifies every peer every time; the others are set to do the same). HTTP/1.1 by wrk with 32 connections, \
         HTTP/2 by h2load with 8 connections of 16 streams, 1 KiB answers from nginx. Half load is {HALF_LOAD_RATE} \
         requests a second for every chain, latency counted from when a request was due. The peers' configurations \
         are in `bench/peers`.\n",
        results.rounds, machine.cores, machine.cpu, machine.memory_gb, machine.kernel
    )?;
    for (peer, version) in &machine.peers {
        writeln!(text, "- {peer}: {version}")?;
    }
    targets(&mut text, results)?;
    let (trust, others): (Vec<&Row>, Vec<&Row>) = results.rows.iter().partition(|row| trust::is_row(&row.name));
    let (mirror, chains): (Vec<&Row>, Vec<&Row>) = others.into_iter().partition(|row| mirror::is_row(&row.name));
    if !chains.is_empty() {
        writeln!(text, "\n## Every row, those in which a peer beats Hawser over TCP first\n")?;
        table(&mut text, &CHAINS, chains)?;
    }
    if !trust.is_empty() {
        writeln!(text, "\n## Trust: handshakes, verification, issuing\n\n{}\n", trust_reading())?;
        table(&mut text, &TRUST, trust)?;
    }
    if !mirror.is_empty() {
        writeln!(text, "\n## Mirrors at an API server\n\n{}\n", mirror_reading())?;
        table(&mut text, &MIRROR, mirror)?;
    }
    Ok(text)
}

/// How a target went.
struct Verdict {
    line: String,
    lost: bool,
}

fn targets(text: &mut String, results: &Results) -> Result<()> {
    let find = |row: &str| results.rows.iter().find(|r| r.name == row);
    let against_peers = TARGETS.iter().filter_map(|(name, column, peer, target)| {
        let row = find(name)?;
        let ratio = row.values.get(*column)? / row.values.get(*peer)?;
        let lost = if row.better == "higher" { ratio < *target } else { ratio > *target };
        let sign = if row.better == "higher" { "≥" } else { "≤" };
        let peer = display(peer);
        let line = format!("| {name} | {column} | {ratio:.2} × {peer} | {sign} {target} × | {} |", word(lost));
        Some(Verdict { line, lost })
    });
    let bounds = BOUNDS.iter().filter_map(|(name, column, target)| {
        let row = find(name)?;
        let value = *row.values.get(*column)?;
        let lost = value > *target;
        let line =
            format!("| {name} | {column} | {value:.1} {} | ≤ {target} {} | {} |", row.unit, row.unit, word(lost));
        Some(Verdict { line, lost })
    });
    let mut verdicts: Vec<Verdict> = against_peers.chain(bounds).collect();
    verdicts.sort_by_key(|verdict| !verdict.lost);
    writeln!(text, "\n## Targets, lost ones first\n\n| row | column | measured | to reach | |\n|---|---|---|---|---|")?;
    for verdict in verdicts {
        writeln!(text, "{}", verdict.line)?;
    }
    Ok(())
}

fn display(peer: &str) -> &str {
    match peer {
        "envoy" => "Envoy",
        "openssl" => "OpenSSL",
        "step_ca" => "step-ca",
        "apiserver_ceiling" => "the API server's ceiling",
        other => other,
    }
}

fn word(lost: bool) -> &'static str {
    if lost { "**lost**" } else { "reached" }
}

fn table(text: &mut String, columns: &Columns, mut rows: Vec<&Row>) -> Result<()> {
    writeln!(text, "| row | unit | better | {} |", columns.all.join(" | "))?;
    writeln!(text, "|---|---|---|{}", "---|".repeat(columns.all.len()))?;
    rows.sort_by_key(|row| !beaten(row, columns));
    for row in &rows {
        let cell = |column: &&str| match row.values.get(*column) {
            Some(value) => short(*value),
            None if row.missing.contains_key(*column) => "missing".to_owned(),
            None => "–".to_owned(),
        };
        let cells: Vec<String> = columns.all.iter().map(cell).collect();
        writeln!(text, "| {} | {} | {} | {} |", row.name, row.unit, row.better, cells.join(" | "))?;
    }
    let missing: BTreeMap<&str, &str> =
        rows.iter().flat_map(|row| &row.missing).map(|(who, why)| (who.as_str(), why.as_str())).collect();
    for (who, why) in missing {
        writeln!(text, "\n{} is missing: {why}", display(who))?;
    }
    Ok(())
}

/// Whether any peer has a better value than Hawser.
fn beaten(row: &Row, columns: &Columns) -> bool {
    let Some(own) = row.values.get(columns.own) else { return false };
    let mut peers = columns.peers.iter().filter_map(|peer| row.values.get(*peer));
    peers.any(|peer| if row.better == "higher" { peer > own } else { peer < own })
}

fn short(value: f64) -> String {
    match value {
        v if v >= 1000.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}
