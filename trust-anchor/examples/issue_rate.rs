//! How many certificates a second a trust anchor issues: renewals over its Unix socket, with the audit log synced to the
//! disk before each answer, as in production.
//!
//! `cargo run --release -p hawser-trust-anchor --example issue_rate -- [SECONDS] [CLIENTS] [CORE]`
//!
//! The trust anchor runs as a process of its own (this program again; on `CORE` alone, if one is named), so that its
//! processor time can be told from the clients'. Prints one JSON object: certificates issued, seconds, and seconds of a
//! core that the trust anchor used for them.

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

use futures_util::future::join_all;
use hawser_api::proto::issuer::issue_request::Attestation;
use hawser_api::proto::issuer::issuer_client::IssuerClient;
use hawser_api::proto::issuer::{IssueRequest, Renewal};
use hawser_runtime::clock;
use hawser_trust_anchor::{Config, hierarchy, join};
use hawser_tunnel::identity::channel;
use rcgen::{CertificateParams, KeyPair, SigningKey};

/// As in the `hawser` command.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

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
    let core = arguments.get(2).cloned();
    tokio::runtime::Runtime::new().unwrap().block_on(measure(seconds, clients, core));
}

/// This program again, as the trust anchor.
fn serve(directory: &Path, core: Option<String>) -> std::process::Child {
    let own = std::env::current_exe().unwrap();
    let mut command = match core {
        Some(core) => {
            let mut command = std::process::Command::new("taskset");
            command.args(["-c", &core]).arg(own).env("HAWSER_THREADS", "1");
            command
        }
        None => std::process::Command::new(own),
    };
    // As much of a log as in production, to nowhere.
    command.arg("--serve").arg(directory).stderr(std::process::Stdio::null()).spawn().unwrap()
}

async fn measure(seconds: u64, clients: u64, core: Option<String>) {
    let directory = std::env::temp_dir().join(format!("hawser-issue-rate-{}", std::process::id()));
    let at = |name: &str| directory.join(name);
    hierarchy::init_root(&at("root"), "test", clock::now()).unwrap();
    let domain = "east.hawser.test".parse().unwrap();
    let csr = hierarchy::make_csr(&at("store"), &domain).unwrap();
    hierarchy::sign_intermediate(&at("root"), &csr, None, clock::now()).unwrap();
    let mut server = serve(&directory, core);
    while !at("run.json").exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let issued = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    let all: Vec<_> = (0..clients).collect();
    for some in all.chunks(JOINING) {
        let (socket, store) = (at("anchor.sock"), at("store"));
        let joined = join_all(some.iter().map(|n| renewals(&socket, &store, *n))).await;
        let ask = |requests| tokio::spawn(ask(socket.clone(), requests, Arc::clone(&issued)));
        tasks.extend(joined.into_iter().map(ask));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (start, count, busy) = (clock::monotonic(), issued.load(Ordering::Relaxed), processor_seconds(server.id()));
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let report = serde_json::json!({
        "issued": issued.load(Ordering::Relaxed) - count,
        "seconds": (clock::monotonic() - start).as_secs_f64(),
        "server_cpu_seconds": processor_seconds(server.id()) - busy,
    });
    server.kill().unwrap();
    server.wait().unwrap();
    let _ = std::fs::remove_dir_all(&directory);
    println!("{report}");
}

/// Identities of one client: none asks so often that it is held back.
const IDENTITIES: usize = 8;
/// Clients that are made ready at a time.
const JOINING: usize = 16;

/// Requests that can be sent again and again, each of another identity.
async fn renewals(socket: &Path, store: &Path, n: u64) -> Vec<IssueRequest> {
    let mut client = IssuerClient::new(channel(socket).await.unwrap());
    let mut requests = Vec::new();
    for m in 0..IDENTITIES {
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

/// Seconds of a core that a process has used, user and system, ended threads included (proc(5); in hundredths).
fn processor_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}
