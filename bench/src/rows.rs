//! The rows: what is measured on every chain, in turn, so that what else the machine does meets all of them alike.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::chain::{Binaries, Chain, Origin};
use crate::process::{LOAD_CORE, cpu_seconds, output, pinned, resident_bytes};
use crate::report::{Results, Row};
use crate::trust::Programs;
use crate::{hawser, peers, trust};

/// One round's values of one chain: row name to value.
type Values = BTreeMap<&'static str, f64>;

/// Every row with its unit and the better direction.
const ROWS: &[(&str, &str, &str)] = &[
    ("bulk_gbps_1", "Gb/s", "higher"),
    ("bulk_gbps_8", "Gb/s", "higher"),
    ("gateway_cpu_s_per_gb", "s/GB", "lower"),
    ("egress_cpu_s_per_gb", "s/GB", "lower"),
    ("inbound_cpu_s_per_gb", "s/GB", "lower"),
    ("http1_rps", "1/s", "higher"),
    ("http2_rps", "1/s", "higher"),
    ("http1_p50_ms_at_half_load", "ms", "lower"),
    ("http1_p99_ms_at_half_load", "ms", "lower"),
    ("connections_per_s", "1/s", "higher"),
    ("gateway_cpu_us_per_connection", "µs", "lower"),
    ("first_byte_new_connection_us", "µs", "lower"),
    ("first_byte_new_connection_p99_us", "µs", "lower"),
    ("rss_mb_at_rest_proxy", "MB", "lower"),
    ("rss_mb_at_rest_gateway", "MB", "lower"),
    ("idle_connection_kb", "KB", "lower"),
];

/// A measurement that gives one or more rows.
struct Measurement {
    rows: &'static [&'static str],
    run: fn(&Chain, &mut Values) -> Result<()>,
}

/// In the order in which they run; rest comes first, while the processes are new.
const MEASUREMENTS: &[Measurement] = &[
    Measurement { rows: &["rss_mb_at_rest_proxy", "rss_mb_at_rest_gateway"], run: at_rest },
    Measurement { rows: &["bulk_gbps_1"], run: bulk_one },
    Measurement {
        rows: &["bulk_gbps_8", "gateway_cpu_s_per_gb", "egress_cpu_s_per_gb", "inbound_cpu_s_per_gb"],
        run: bulk_eight,
    },
    Measurement { rows: &["http1_rps"], run: http1 },
    Measurement { rows: &["http2_rps"], run: http2 },
    Measurement { rows: &["http1_p50_ms_at_half_load", "http1_p99_ms_at_half_load"], run: half_load },
    Measurement { rows: &["connections_per_s", "gateway_cpu_us_per_connection"], run: connections },
    Measurement { rows: &["first_byte_new_connection_us", "first_byte_new_connection_p99_us"], run: first_byte },
    Measurement { rows: &["idle_connection_kb"], run: idle },
];

/// Starts all chains and measures everything; a value that could not be had is missing, and said on stderr.
pub(crate) fn measure(
    (binaries, programs): (&Binaries, &Programs),
    rounds: usize,
    only: &[String],
    rows: &[String],
) -> Result<Results> {
    let mut measured = Vec::new();
    if MEASUREMENTS.iter().any(|m| wanted(m, rows)) {
        measured = chains(binaries, rounds, only, rows)?;
    }
    // Chains that are named leave the others out, and what is no chain.
    if only.is_empty() || !rows.is_empty() {
        measured.extend(trust::measure(programs, rounds, rows));
    }
    Ok(Results::new(rounds, measured))
}

fn chains(binaries: &Binaries, rounds: usize, only: &[String], rows: &[String]) -> Result<Vec<Row>> {
    let origin = Origin::start()?;
    let chains = start(binaries, &origin, only)?;
    let mut all: BTreeMap<(&str, &'static str), Vec<f64>> = BTreeMap::new();
    for measurement in MEASUREMENTS.iter().filter(|m| wanted(m, rows)) {
        for round in 0..rounds {
            for chain in &chains {
                let mut values = Values::new();
                progress(&format!("{} {}/{rounds} {}", measurement.rows.join(" "), round + 1, chain.name));
                if let Err(error) = (measurement.run)(chain, &mut values) {
                    progress(&format!("  failed: {error:#}"));
                }
                for (row, value) in values {
                    all.entry((chain.name, row)).or_default().push(value);
                }
            }
        }
    }
    Ok(ROWS.iter().filter_map(|row| to_row(row, &chains, &all)).collect())
}

fn wanted(measurement: &Measurement, rows: &[String]) -> bool {
    rows.is_empty() || measurement.rows.iter().any(|row| rows.iter().any(|want| want == row))
}

#[expect(clippy::print_stderr, reason = "a run takes minutes: whoever waits wants to see that it moves")]
pub(crate) fn progress(text: &str) {
    eprintln!("{text}");
}

fn start(binaries: &Binaries, origin: &Origin, only: &[String]) -> Result<Vec<Chain>> {
    let wants = |name: &str| only.is_empty() || only.iter().any(|want| want == name);
    let mut chains = Vec::new();
    if wants("raw") {
        chains.push(Chain::raw(origin));
    }
    for (name, transport) in [("hawser_tcp", "tcp"), ("hawser_quic", "quic")] {
        if wants(name) {
            chains.push(hawser::chain(name, transport, &binaries.hawser, origin)?);
        }
    }
    if let Some(envoy) = binaries.envoy.as_ref().filter(|_| wants("envoy")) {
        chains.push(peers::envoy(envoy, origin)?);
    }
    if wants("haproxy") {
        chains.push(peers::haproxy(origin)?);
    }
    if wants("nginx") {
        chains.push(peers::nginx(origin)?);
    }
    Ok(chains)
}

fn to_row(
    (name, unit, better): &(&'static str, &'static str, &'static str),
    chains: &[Chain],
    all: &BTreeMap<(&str, &'static str), Vec<f64>>,
) -> Option<Row> {
    let values: BTreeMap<String, f64> = chains
        .iter()
        .filter_map(|chain| Some((chain.name.to_owned(), median(all.get(&(chain.name, name))?)?)))
        .collect();
    let row = |values| Row {
        name: (*name).into(),
        unit: (*unit).into(),
        better: (*better).into(),
        values,
        missing: BTreeMap::new(),
    };
    (!values.is_empty()).then(|| row(values))
}

pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// Runs `hawser-bench load` on the load's core.
fn load(to: SocketAddr, arguments: &[&str]) -> Result<Value> {
    let own = std::env::current_exe()?.display().to_string();
    let mut all = vec!["load".to_owned(), "--to".to_owned(), to.to_string()];
    all.extend(arguments.iter().map(|&a| a.to_owned()));
    Ok(serde_json::from_str(&output(LOAD_CORE, &own, &all)?)?)
}

pub(crate) fn number(value: &Value, field: &str) -> Result<f64> {
    value.get(field).and_then(Value::as_f64).with_context(|| format!("no {field} in {value}"))
}

fn cpu(pids: &[u32]) -> f64 {
    pids.iter().map(|pid| cpu_seconds(*pid)).sum()
}

const MB: f64 = 1e6;

fn at_rest(chain: &Chain, values: &mut Values) -> Result<()> {
    let resident = |pids: &[u32]| pids.iter().map(|pid| resident_bytes(*pid)).sum::<f64>() / MB;
    if !chain.gateway.is_empty() {
        values.insert("rss_mb_at_rest_proxy", resident(&chain.egress).max(resident(&chain.inbound)));
        values.insert("rss_mb_at_rest_gateway", resident(&chain.gateway));
    }
    Ok(())
}

fn bulk_one(chain: &Chain, values: &mut Values) -> Result<()> {
    let result = load(chain.tcp, &["bulk", "--streams", "1", "--seconds", "3"])?;
    values.insert("bulk_gbps_1", number(&result, "bytes")? * 8.0 / 1e9 / number(&result, "seconds")?);
    Ok(())
}

fn bulk_eight(chain: &Chain, values: &mut Values) -> Result<()> {
    let before = (cpu(&chain.gateway), cpu(&chain.egress), cpu(&chain.inbound));
    let result = load(chain.tcp, &["bulk", "--streams", "8", "--seconds", "3"])?;
    let gigabytes = number(&result, "bytes")? / 1e9;
    values.insert("bulk_gbps_8", gigabytes * 8.0 / number(&result, "seconds")?);
    if !chain.gateway.is_empty() {
        values.insert("gateway_cpu_s_per_gb", (cpu(&chain.gateway) - before.0) / gigabytes);
        values.insert("egress_cpu_s_per_gb", (cpu(&chain.egress) - before.1) / gigabytes);
        values.insert("inbound_cpu_s_per_gb", (cpu(&chain.inbound) - before.2) / gigabytes);
    }
    Ok(())
}

fn http1(chain: &Chain, values: &mut Values) -> Result<()> {
    values.insert("http1_rps", wrk(chain.http1)?);
    Ok(())
}

/// Requests per second by wrk, 32 connections.
fn wrk(to: SocketAddr) -> Result<f64> {
    let url = format!("http://{to}/1k");
    let text = output(LOAD_CORE, "wrk", &["-t1", "-c32", "-d3s", &url].map(str::to_owned))?;
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        bail!("wrk saw errors: {text}");
    }
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:")).context("no rate from wrk")?;
    Ok(line.trim().parse()?)
}

fn http2(chain: &Chain, values: &mut Values) -> Result<()> {
    let url = format!("http://{}/1k", chain.http2);
    let text =
        output(LOAD_CORE, "h2load", &["-c8", "-m16", "-t1", "-D3", "--warm-up-time=1", &url].map(str::to_owned))?;
    // "finished in 4.00s, 12345.67 req/s, 12.34MB/s"
    let rate = text
        .lines()
        .find_map(|line| line.strip_prefix("finished in "))
        .and_then(|line| line.split(", ").find_map(|part| part.strip_suffix(" req/s")))
        .context("no rate from h2load")?;
    let clean = text.lines().any(|line| line.starts_with("requests:") && line.contains(" 0 failed, 0 errored"));
    if !clean {
        bail!("h2load saw errors: {text}");
    }
    values.insert("http2_rps", rate.parse()?);
    Ok(())
}

/// The same offered rate for all: about half of what Envoy's chain can do on a machine like the one that the design was
/// measured on; in RESULTS.md beside the row.
pub(crate) const HALF_LOAD_RATE: &str = "2000";

fn half_load(chain: &Chain, values: &mut Values) -> Result<()> {
    let arguments = ["http-rate", "--rate", HALF_LOAD_RATE, "--seconds", "4", "--connections", "32"];
    let result = load(chain.http1, &arguments)?;
    if number(&result, "failed")? > 0.0 {
        bail!("requests failed: {result}");
    }
    values.insert("http1_p50_ms_at_half_load", number(&result, "p50_ms")?);
    values.insert("http1_p99_ms_at_half_load", number(&result, "p99_ms")?);
    Ok(())
}

fn connections(chain: &Chain, values: &mut Values) -> Result<()> {
    let before = cpu(&chain.gateway);
    let result = load(chain.tcp, &["connections", "--workers", "16", "--seconds", "2"])?;
    if number(&result, "failed")? > 0.0 {
        bail!("connections failed: {result}");
    }
    let done = number(&result, "connections")?;
    values.insert("connections_per_s", done / number(&result, "seconds")?);
    if !chain.gateway.is_empty() {
        values.insert("gateway_cpu_us_per_connection", (cpu(&chain.gateway) - before) * 1e6 / done);
    }
    Ok(())
}

fn first_byte(chain: &Chain, values: &mut Values) -> Result<()> {
    let result = load(chain.tcp, &["first-byte", "--count", "200"])?;
    values.insert("first_byte_new_connection_us", number(&result, "p50_us")?);
    values.insert("first_byte_new_connection_p99_us", number(&result, "p99_us")?);
    Ok(())
}

/// How many connections the memory of one is measured by.
const IDLE: usize = 400;

fn idle(chain: &Chain, values: &mut Values) -> Result<()> {
    if chain.gateway.is_empty() {
        return Ok(());
    }
    let resident = || chain.gateway.iter().map(|pid| resident_bytes(*pid)).sum::<f64>();
    let before = resident();
    let own = std::env::current_exe()?.display().to_string();
    let arguments = ["load", "--to", &chain.dedicated.to_string(), "idle", "--count", &IDLE.to_string()];
    let mut command = pinned(LOAD_CORE, &own, &arguments.map(str::to_owned));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    let stdout = child.stdout.take().context("no output")?;
    BufReader::new(stdout).read_line(&mut line)?;
    // What was taken for the handshakes is given back in the first moments of rest.
    std::thread::sleep(Duration::from_secs(2));
    let after = resident();
    drop(child.stdin.take());
    let status = child.wait()?;
    if !status.success() || !line.contains("open") {
        bail!("idle connections could not be held");
    }
    values.insert("idle_connection_kb", ((after - before) / IDLE as f64 / 1e3).max(0.0));
    Ok(())
}
