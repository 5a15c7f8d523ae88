//! How many certificates a second a trust anchor issues: renewals over its Unix socket, with the audit log synced to the
//! disk before each answer, as in production.
//!
//! `cargo run --release -p hawser-trust-anchor --example issue_rate -- [SECONDS] [CLIENTS]`
//!
//! The trust anchor runs as a process of its own (this program again), so that its processor time can be told from the
//! clients': the last figure is certificates a second of one core of the trust anchor.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a program that measures, for people to run"
)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hawser_api::proto::issuer::issue_request::Attestation;
use hawser_api::proto::issuer::issuer_client::IssuerClient;
use hawser_api::proto::issuer::{IssueRequest, Renewal};
use hawser_runtime::clock;
use hawser_trust_anchor::{Config, hierarchy, join};
use hawser_tunnel::identity::channel;
use rcgen::{CertificateParams, KeyPair, SigningKey};

fn config(directory: &Path) -> Config {
    let at = |name: &str| directory.join(name);
    serde_json::from_value(serde_json::json!({
        "process": {
            "name": "east/trust-anchor", "admin": "127.0.0.1:0", "runFile": at("run.json"), "drainSeconds": 1,
        },
        "cluster": "east", "trustDomain": "east.hawser.test", "state": at("store"), "socket": at("anchor.sock"),
        "rootCertificate": at("root/root.crt"),
    }))
    .unwrap()
}

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--serve") {
        let config = config(Path::new(&arguments[1]));
        let process = config.process.clone();
        let serve = |process| hawser_trust_anchor::run(config, process);
        return hawser_runtime::process::run("trust-anchor", process, serve).unwrap();
    }
    let number = |at: usize, otherwise| arguments.get(at).map_or(otherwise, |text| text.parse().unwrap());
    let (seconds, clients) = (number(0, 5), number(1, 64));
    tokio::runtime::Runtime::new().unwrap().block_on(measure(seconds, clients));
}

async fn measure(seconds: u64, clients: u64) {
    let directory = std::env::temp_dir().join(format!("hawser-issue-rate-{}", std::process::id()));
    let at = |name: &str| directory.join(name);
    hierarchy::init_root(&at("root"), "test", clock::now()).unwrap();
    let domain = "east.hawser.test".parse().unwrap();
    let csr = hierarchy::make_csr(&at("store"), &domain).unwrap();
    hierarchy::sign_intermediate(&at("root"), &csr, None, clock::now()).unwrap();
    let mut server = std::process::Command::new(std::env::current_exe().unwrap());
    let mut server = server.arg("--serve").arg(&directory).env("RUST_LOG", "error").spawn().unwrap();
    while !at("run.json").exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let issued = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for n in 0..clients {
        let request = renewal(&at("anchor.sock"), &at("store"), n).await;
        tasks.push(tokio::spawn(ask(at("anchor.sock"), request, Arc::clone(&issued))));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = (issued.load(Ordering::Relaxed), processor_ticks(server.id()));
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let after = (issued.load(Ordering::Relaxed), processor_ticks(server.id()));
    server.kill().unwrap();
    server.wait().unwrap();
    let count = u32::try_from(after.0 - before.0).unwrap();
    let busy = f64::from(u32::try_from(after.1 - before.1).unwrap()) / 100.0;
    let _ = std::fs::remove_dir_all(&directory);
    let rate = f64::from(count) / f64::from(u32::try_from(seconds).unwrap());
    println!("{count} certificates in {seconds} s by {clients} clients: {rate:.0}/s");
    println!("the trust anchor's processor time: {busy:.2} s, so {:.0}/s a core", f64::from(count) / busy);
}

/// A request that can be sent again and again: of an identity that is limited, so each client has several.
async fn renewal(socket: &Path, store: &Path, n: u64) -> Vec<IssueRequest> {
    let mut client = IssuerClient::new(channel(socket).await.unwrap());
    let mut requests = Vec::new();
    for m in 0..40 {
        let key = KeyPair::generate().unwrap();
        let id = format!("spiffe://east.hawser.test/ns/shop/sa/web-{n}-{m}").parse().unwrap();
        let token = join::register(store, &id, Duration::from_secs(60), clock::now()).unwrap();
        let csr = |key: &KeyPair| CertificateParams::default().serialize_request(key).unwrap().der().to_vec();
        let request = IssueRequest { csr: csr(&key), attestation: Some(Attestation::JoinToken(token)) };
        let chain = client.issue(request).await.unwrap().into_inner().chain;
        let csr = csr(&KeyPair::generate().unwrap());
        let signature = key.sign(&csr).unwrap();
        requests.push(IssueRequest { csr, attestation: Some(Attestation::Renewal(Renewal { chain, signature })) });
    }
    requests
}

async fn ask(socket: PathBuf, requests: Vec<IssueRequest>, issued: Arc<AtomicU64>) {
    let mut client = IssuerClient::new(channel(&socket).await.unwrap());
    for request in requests.iter().cycle() {
        match client.issue(request.clone()).await {
            Ok(_) => {
                issued.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// User and system time of a process, in hundredths of a second (proc(5)).
fn processor_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
