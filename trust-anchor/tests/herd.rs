//! Ten thousand who renew at once after an outage: all are served in the end, memory stays bounded, and a newcomer does
//! not wait.
//!
//! The trust anchor is a process of its own, and the newcomer a thread of its own, as they are in life: in one runtime with
//! ten thousand clients, what is measured is how those share it. That a newcomer is not behind the herd is then asserted
//! by what the trust anchor says: how many renewals began before each answer, and how long each waited for its turn. Both
//! hold on a machine that is slow or busy; that the answer is there within a second by the newcomer's own clock is asserted
//! of optimised builds alone.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test's panic is its report")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hawser_api::proto::issuer::issue_request::Attestation;
use hawser_api::proto::issuer::issuer_client::IssuerClient;
use hawser_api::proto::issuer::{IssueReply, IssueRequest, Renewal};
use hawser_runtime::clock;
use hawser_trust_anchor::{hierarchy, join};
use hawser_tunnel::identity::{Channel, channel};
use rcgen::{CertificateParams, KeyPair, SigningKey};
use serde_json::{Value, json};
use tokio::task::JoinSet;

const HERD: usize = 10_000;
/// Connections that the herd shares, as that many processes would have.
const CONNECTIONS: usize = 32;
/// Identities of the herd.
const IDENTITIES: usize = 500;
const PATIENCE: Duration = Duration::from_secs(300);

type Client = IssuerClient<Channel>;

/// A trust anchor, a process of its own.
struct Anchor {
    directory: tempfile::TempDir,
    child: Child,
    admin: SocketAddr,
}

impl Anchor {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        hierarchy::init_root(&at("root"), "test", clock::now()).unwrap();
        let domain = "east.hawser.test".parse().unwrap();
        let csr = hierarchy::make_csr(&at("store"), &domain).unwrap();
        hierarchy::sign_intermediate(&at("root"), &csr, None, clock::now()).unwrap();
        // JSON is YAML too.
        let config = json!({
            "process": {
                "name": "east/trust-anchor", "admin": "127.0.0.1:0", "runFile": at("run.json"), "drainSeconds": 1,
            },
            "cluster": "east", "trustDomain": "east.hawser.test", "state": at("store"), "socket": at("anchor.sock"),
            "rootCertificate": at("root/root.crt"),
        });
        std::fs::write(at("config.yaml"), config.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_hawser-trust-anchor"));
        let mut child = command.arg("--config").arg(at("config.yaml")).env("HAWSER_LOG", "warn").spawn().unwrap();
        // It is written when the trust anchor is ready.
        while !at("run.json").exists() {
            assert_eq!(child.try_wait().unwrap(), None, "the trust anchor has ended");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let run: Value = serde_json::from_slice(&std::fs::read(at("run.json")).unwrap()).unwrap();
        let admin = run["admin"].as_str().unwrap().parse().unwrap();
        Self { directory, child, admin }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("anchor.sock")
    }

    fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// SIGSTOP or SIGCONT.
    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// One sample of its metrics.
    fn metric(&self, sample: &str) -> f64 {
        let mut socket = TcpStream::connect(self.admin).unwrap();
        write!(socket, "GET /metrics HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n", self.admin).unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{sample} is not in\n{text}")).parse().unwrap()
    }
}

impl Drop for Anchor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn client(socket: &Path) -> Client {
    IssuerClient::new(channel(socket).await.unwrap())
}

fn csr(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

fn id(n: usize) -> String {
    format!("spiffe://east.hawser.test/ns/shop/sa/web-{n}")
}

fn token(store: &Path, id: &str) -> String {
    join::register(store, &id.parse().unwrap(), Duration::from_secs(60), clock::now()).unwrap()
}

async fn join(client: &mut Client, token: String, key: &KeyPair) -> Result<IssueReply, tonic::Status> {
    let request = IssueRequest { csr: csr(key), attestation: Some(Attestation::JoinToken(token)) };
    client.issue(request).await.map(tonic::Response::into_inner)
}

fn renewal(chain: &[Vec<u8>], key: &KeyPair) -> IssueRequest {
    let csr = csr(&KeyPair::generate().unwrap());
    let signature = key.sign(&csr).unwrap();
    IssueRequest { csr, attestation: Some(Attestation::Renewal(Renewal { chain: chain.to_vec(), signature })) }
}

#[derive(Default)]
struct Seen {
    asked: AtomicU64,
    served: AtomicU64,
    shed: AtomicU64,
    hinted: AtomicU64,
    lost: AtomicU64,
    over: AtomicBool,
}

/// One of the herd: asks until it is served, and heeds the hint.
async fn renew(mut client: Client, request: IssueRequest, seen: Arc<Seen>) {
    seen.asked.fetch_add(1, Ordering::Relaxed);
    // As `identity::keep` does: it doubles up to 15 s.
    for pause in [1000, 2000, 4000, 8000].into_iter().chain(std::iter::repeat(15_000)) {
        match client.issue(request.clone()).await {
            Ok(reply) => {
                assert_eq!(reply.into_inner().chain.len(), 2);
                seen.served.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Err(status) => {
                // A machine that is slow enough loses a connection's PING now and then.
                let lost = status.code() == tonic::Code::Cancelled || status.message().contains("transport");
                assert!(lost || status.code() == tonic::Code::Unavailable, "{status}");
                seen.lost.fetch_add(lost.into(), Ordering::Relaxed);
                seen.shed.fetch_add(1, Ordering::Relaxed);
                seen.hinted
                    .fetch_add(status.metadata().contains_key("grpc-retry-pushback-ms").into(), Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(rand::random_range(pause / 2..pause))).await;
            }
        }
    }
}

/// Somebody who has no certificate yet, again and again while the herd is there: how long each waited.
async fn newcomers(socket: PathBuf, store: PathBuf, seen: Arc<Seen>) -> Vec<Duration> {
    let mut client = client(&socket).await;
    let mut waited = Vec::new();
    while !seen.over.load(Ordering::Relaxed) {
        let (key, token) = (KeyPair::generate().unwrap(), token(&store, "spiffe://east.hawser.test/ns/shop/sa/new"));
        let asked = clock::monotonic();
        join(&mut client, token, &key).await.unwrap();
        waited.push(clock::monotonic() - asked);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    waited
}

/// Holders of a certificate each, and the herd's requests by them.
async fn requests(anchor: &Anchor) -> Vec<IssueRequest> {
    let mut first = client(&anchor.socket()).await;
    let mut holders = Vec::new();
    for n in 0..IDENTITIES {
        let key = KeyPair::generate().unwrap();
        let chain = join(&mut first, token(&anchor.store(), &id(n)), &key).await.unwrap().chain;
        holders.push((chain, key));
    }
    (0..HERD).map(|n| &holders[n % IDENTITIES]).map(|(chain, key)| renewal(chain, key)).collect()
}

/// The herd asks while the trust anchor hangs, and all that its connections may carry is there when it goes on: however
/// fast the machine, that is more than it has room for.
async fn herd(anchor: &Anchor, requests: Vec<IssueRequest>, seen: &Arc<Seen>) -> JoinSet<()> {
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(client(&anchor.socket()).await);
    }
    // Each has heard how many requests it may carry at once.
    for (client, request) in clients.iter_mut().zip(&requests) {
        client.issue(request.clone()).await.unwrap();
    }
    anchor.signal(rustix::process::Signal::STOP);
    let mut herd = JoinSet::new();
    for (n, request) in requests.into_iter().enumerate() {
        herd.spawn(renew(clients[n % CONNECTIONS].clone(), request, Arc::clone(seen)));
    }
    while seen.asked.load(Ordering::Relaxed) < HERD as u64 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    anchor.signal(rustix::process::Signal::CONT);
    herd
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_herd_of_ten_thousand_is_served_and_a_newcomer_does_not_wait_for_it() {
    let anchor = Anchor::start().await;
    let requests = requests(&anchor).await;
    let seen = Arc::new(Seen::default());
    let (socket, store, watched) = (anchor.socket(), anchor.store(), Arc::clone(&seen));
    let before = anchor.resident_kib();
    let mut herd = herd(&anchor, requests, &seen).await;
    let started = clock::monotonic();
    let newcomers = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(newcomers(socket, store, watched))
    });
    let served = async { while herd.join_next().await.transpose().unwrap().is_some() {} };
    tokio::time::timeout(PATIENCE, served).await.unwrap();
    let took = clock::monotonic() - started;
    seen.over.store(true, Ordering::Relaxed);
    let waited = newcomers.join().unwrap();
    let longest = waited.iter().max().unwrap();
    let lost = seen.lost.load(Ordering::Relaxed);
    let (shed, hinted) = (seen.shed.load(Ordering::Relaxed) - lost, seen.hinted.load(Ordering::Relaxed));
    let grown = anchor.resident_kib().saturating_sub(before) / 1024;
    println!(
        "{lost} lost; {HERD} renewals in {took:?}, {shed} shed; {} newcomers, longest wait {longest:?}; {grown} MiB more",
        waited.len(),
    );
    assert_eq!(seen.served.load(Ordering::Relaxed), HERD as u64);
    assert!(shed > 0 && shed == hinted, "who is sent away is told when to come back: {shed} {hinted}");
    let first = anchor.metric("hawser_issuer_wait_seconds_count{lane=\"first\"}");
    assert!(first >= (IDENTITIES + waited.len()) as f64, "{first}");
    let in_turn = anchor.metric("hawser_issuer_overtaken_bucket{le=\"32.0\"}");
    assert_eq!(in_turn, first, "each newcomer is behind at most so many renewals");
    let at_once = anchor.metric("hawser_issuer_wait_seconds_bucket{le=\"1.0\",lane=\"first\"}");
    assert_eq!(at_once, first, "each newcomer has its turn within a second");
    if !cfg!(debug_assertions) {
        assert!(*longest < Duration::from_secs(1), "newcomers waited {waited:?}");
    }
    assert!(grown < 256, "{grown} MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_identity_that_asks_without_end_is_told_to_wait_and_others_are_not() {
    let anchor = Anchor::start().await;
    let mut client = client(&anchor.socket()).await;
    let key = KeyPair::generate().unwrap();
    let chain = join(&mut client, token(&anchor.store(), &id(0)), &key).await.unwrap().chain;
    let mut refused = None;
    for _ in 0..2000 {
        if let Err(status) = client.issue(renewal(&chain, &key)).await {
            refused = Some(status);
            break;
        }
    }
    let refused = refused.unwrap();
    assert!(refused.message().contains("too_many"), "{refused}");
    let other = KeyPair::generate().unwrap();
    join(&mut client, token(&anchor.store(), &id(1)), &other).await.unwrap();
}
