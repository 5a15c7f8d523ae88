//! Rows about trust: what a handshake, a verification and a certificate cost, next to OpenSSL on the same certificates and
//! to step-ca on the same disk.
//!
//! ```text
//! verify_speed (an example of tunnel) ─▶ handshakes, verification: Hawser's and OpenSSL's, in CPU time
//! issue_rate (an example of trust-anchor) │ step-ca and bench/peers/step-ca ─▶ certificates: clients on the load's core,
//!                                                                            the issuer on the proxies'
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{LOAD_CORE, PROXY_CORE, Running, free_address, output, wait_for};
use crate::report::Row;
use crate::rows::{median, number, progress};

/// Every row with its unit and the better direction.
const ROWS: &[(&str, &str, &str)] = &[
    ("handshakes_tcp_per_s_per_core", "1/s", "higher"),
    ("handshakes_quic_per_s_per_core", "1/s", "higher"),
    ("verify_chain_us", "µs", "lower"),
    ("issue_per_s", "1/s", "higher"),
    ("issue_per_s_per_core", "1/s", "higher"),
];

/// Rows of `verify_speed`: row, column, where its report has the value.
const COSTS: &[(&str, &str, &str)] = &[
    ("handshakes_tcp_per_s_per_core", "hawser", "/tls_in_memory/cold/server/per_second_per_core"),
    ("handshakes_tcp_per_s_per_core", "hawser_known_peer", "/tls_in_memory/again/server/per_second_per_core"),
    ("handshakes_tcp_per_s_per_core", "openssl", "/openssl/tls_in_memory/server/per_second_per_core"),
    ("handshakes_quic_per_s_per_core", "hawser", "/quic_loopback/cold/server/per_second_per_core"),
    ("handshakes_quic_per_s_per_core", "hawser_known_peer", "/quic_loopback/again/server/per_second_per_core"),
    ("verify_chain_us", "hawser", "/verify_cold_us"),
    ("verify_chain_us", "openssl", "/openssl/verify_us"),
];

/// Handshakes and verifications of each kind in a round.
const COUNT: &str = "1000";
/// Measured in a round, behind a second to warm up.
const ISSUE_SECONDS: &str = "4";
/// Who ask for certificates at once, each on a connection of its own.
pub(crate) const ISSUE_CLIENTS: &str = "64";

/// Programs that measure, and whom they measure against.
pub(crate) struct Programs {
    /// Where cargo puts examples.
    pub(crate) examples: PathBuf,
    /// Holds `step-ca`, and `load` of `bench/peers/step-ca`.
    pub(crate) step_ca: PathBuf,
}

/// Row and column to what was measured.
type Found = BTreeMap<(&'static str, &'static str), Vec<f64>>;

/// Whether it is a row of ours.
pub(crate) fn is_row(name: &str) -> bool {
    ROWS.iter().any(|(row, ..)| *row == name)
}

/// Measures the rows that are wanted; none wanted: all.
pub(crate) fn measure(programs: &Programs, rounds: usize, wanted: &[String]) -> Vec<Row> {
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|want| want == name);
    let mut found = Found::new();
    let mut missing = BTreeMap::new();
    for round in 1..=rounds {
        if COSTS.iter().any(|(row, ..)| wants(row)) {
            attempt(&format!("handshakes, verification {round}/{rounds}"), &mut missing, "openssl", || {
                costs(programs, &mut found)
            });
        }
        if wants("issue_per_s") || wants("issue_per_s_per_core") {
            attempt(&format!("issue {round}/{rounds} hawser"), &mut missing, "hawser", || {
                own_issuer(programs, &mut found)
            });
            attempt(&format!("issue {round}/{rounds} step-ca"), &mut missing, "step_ca", || {
                step_ca(programs, &mut found)
            });
        }
    }
    ROWS.iter().filter(|row| wants(row.0)).map(|row| to_row(row, &found, &missing)).collect()
}

fn attempt(
    what: &str,
    missing: &mut BTreeMap<&'static str, String>,
    who: &'static str,
    run: impl FnOnce() -> Result<()>,
) {
    progress(what);
    if let Err(error) = run() {
        progress(&format!("  failed: {error:#}"));
        missing.insert(who, format!("{error:#}"));
    }
}

fn to_row(
    (name, unit, better): &(&'static str, &'static str, &'static str),
    found: &Found,
    missing: &BTreeMap<&'static str, String>,
) -> Row {
    let of = found.iter().filter(|((row, _), _)| row == name);
    let values: BTreeMap<String, f64> =
        of.filter_map(|((_, column), all)| Some(((*column).to_owned(), median(all)?))).collect();
    let belongs = |who: &str| (who == "step_ca") == name.starts_with("issue_");
    let missing = missing
        .iter()
        .filter(|(who, _)| !values.contains_key(**who) && (belongs(who) || **who == "hawser"))
        .map(|(who, why)| ((*who).to_owned(), why.clone()))
        .collect();
    Row { name: (*name).into(), unit: (*unit).into(), better: (*better).into(), values, missing }
}

fn costs(programs: &Programs, found: &mut Found) -> Result<()> {
    let report = run(PROXY_CORE, &programs.examples.join("verify_speed"), &[COUNT])?;
    for (row, column, pointer) in COSTS {
        if let Some(value) = report.pointer(pointer).and_then(Value::as_f64) {
            found.entry((row, column)).or_default().push(value);
        }
    }
    match report.pointer("/openssl/missing").and_then(Value::as_str) {
        Some(why) => bail!("OpenSSL was not measured: {why}"),
        None => Ok(()),
    }
}

fn own_issuer(programs: &Programs, found: &mut Found) -> Result<()> {
    let arguments = [ISSUE_SECONDS, ISSUE_CLIENTS, &PROXY_CORE.to_string()];
    let report = run(LOAD_CORE, &programs.examples.join("issue_rate"), &arguments)?;
    issued(&report, "hawser", found)
}

/// A database and keys of its own in each round.
fn step_ca(programs: &Programs, found: &mut Found) -> Result<()> {
    let (server, load) = (programs.step_ca.join("step-ca"), programs.step_ca.join("load"));
    if !server.exists() || !load.exists() {
        bail!("step-ca is not built: install Go (https://go.dev/doc/install) and repeat `make bench`");
    }
    let directory = tempfile::Builder::new().prefix("hawser-bench-step-ca").tempdir()?;
    let (dir, address) = (directory.path().display().to_string(), free_address("127.0.0.1")?);
    output(LOAD_CORE, &load.display().to_string(), &["setup".into(), dir.clone(), address.to_string()])?;
    let config = directory.path().join("ca.json").display().to_string();
    let running = Running::start(PROXY_CORE, &server.display().to_string(), &[config], true)?;
    wait_for(address, "step-ca")?;
    let pid = running.pid().to_string();
    let report = run(LOAD_CORE, &load, &["issue", &dir, &address.to_string(), &pid, ISSUE_SECONDS, ISSUE_CLIENTS])?;
    issued(report.get("rekey").context("no renewals in step-ca's report")?, "step_ca", found)?;
    issued(report.get("sign").context("no tokens in step-ca's report")?, "step_ca_token", found)
}

fn issued(report: &Value, column: &'static str, found: &mut Found) -> Result<()> {
    let count = number(report, "issued")?;
    let mut add = |row, value| found.entry((row, column)).or_default().push(value);
    add("issue_per_s", count / number(report, "seconds")?);
    add("issue_per_s_per_core", count / number(report, "server_cpu_seconds")?);
    Ok(())
}

fn run(core: usize, program: &Path, arguments: &[&str]) -> Result<Value> {
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    Ok(serde_json::from_str(&output(core, &program.display().to_string(), &arguments)?)?)
}
