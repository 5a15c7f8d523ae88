//! A trust anchor and processes that keep their identities by it: first certificate, renewal, restarts, outages.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's panic is its report"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hawser_api::bundle::Bundle;
use hawser_api::objects::link::BundleProfile;
use hawser_api::proto::issuer::issue_request::Attestation;
use hawser_api::proto::issuer::issuer_client::IssuerClient;
use hawser_api::proto::issuer::{IssueReply, IssueRequest, Renewal};
use hawser_api::{SpiffeId, TrustDomain};
use hawser_runtime::config::ProcessConfig;
use hawser_runtime::{Process, clock};
use hawser_trust_anchor::{BundleEndpointConfig, Config, WorkloadConfig, hierarchy, join};
use hawser_tunnel::identity::{Door, IdentitySource, TokenFile, keep};
use hawser_tunnel::tls::{Anchors, Credentials, Identity};
use rcgen::{CertificateParams, KeyPair, SigningKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::task::JoinHandle;

const WEB: &str = "spiffe://east.hawser.test/ns/shop/sa/web";
const GATEWAY: &str = "spiffe://east.hawser.test/ns/hawser-system/sa/gateway";

/// Longest wait for a condition; tests are long done by then.
const PATIENCE: Duration = Duration::from_secs(20);

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn domain() -> TrustDomain {
    "east.hawser.test".parse().unwrap()
}

/// A cluster's trust anchor in a directory of its own, as a task.
struct Anchor {
    directory: tempfile::TempDir,
    workload_ttl: u64,
    running: Option<(JoinHandle<anyhow::Result<()>>, Process)>,
}

impl Anchor {
    fn new(workload_ttl: u64) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), workload_ttl, running: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn store(&self) -> PathBuf {
        self.path("store")
    }

    fn sign_hierarchy(&self) {
        let now = clock::now();
        if !self.path("root").exists() {
            hierarchy::init_root(&self.path("root"), "test", now).unwrap();
        }
        let csr = hierarchy::make_csr(&self.store(), &domain()).unwrap();
        hierarchy::sign_intermediate(&self.path("root"), &csr, Some(&domain()), now).unwrap();
    }

    fn config(&self) -> Config {
        Config {
            process: ProcessConfig {
                name: "east/trust-anchor".into(),
                admin: "127.0.0.1:0".parse().unwrap(),
                run_file: self.path("run.json"),
                drain_seconds: 1,
            },
            cluster: "east".parse().unwrap(),
            trust_domain: domain(),
            state: self.store(),
            socket: self.path("anchor.sock"),
            root_certificate: self.path("root/root.crt"),
            workload_ttl_seconds: self.workload_ttl,
            gateway_ttl_seconds: 1_000_000,
            kubernetes: None,
            links: None,
            bundle_endpoint: None,
            workload: None,
        }
    }

    async fn start(&mut self) -> Process {
        let process = Process::detached();
        let daemon = tokio::spawn(hawser_trust_anchor::run(self.config(), process.clone()));
        self.running = Some((daemon, process.clone()));
        until("the socket", || self.path("anchor.sock").exists()).await;
        process
    }

    async fn started(workload_ttl: u64) -> Self {
        let mut anchor = Self::new(workload_ttl);
        anchor.sign_hierarchy();
        let process = anchor.start().await;
        tokio::time::timeout(PATIENCE, process.until_ready()).await.unwrap();
        anchor
    }

    async fn stop(&mut self) {
        let (daemon, process) = self.running.take().unwrap();
        process.drain.cancel();
        tokio::time::timeout(PATIENCE, daemon).await.unwrap().unwrap().unwrap();
        process.stop.cancel();
    }

    fn token(&self, id: &str) -> String {
        join::register(&self.store(), &id.parse().unwrap(), Duration::from_secs(60), clock::now()).unwrap()
    }

    /// What a process would be configured with; its join token is written.
    fn source(&self, name: &str, id: &str) -> IdentitySource {
        let token = self.path(&format!("{name}.token"));
        std::fs::write(&token, format!("{}\n", self.token(id))).unwrap();
        IdentitySource {
            door: Door::Socket(self.path("anchor.sock")),
            token: TokenFile::Join(token),
            store: self.path(name),
        }
    }

    async fn ask(&self, csr: &[u8], attestation: Option<Attestation>) -> Result<IssueReply, tonic::Status> {
        let socket = self.path("anchor.sock");
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
        });
        let channel = tonic::transport::Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await
            .map_err(|e| tonic::Status::unavailable(e.to_string()))?;
        let request = IssueRequest { csr: csr.to_vec(), attestation };
        Ok(IssuerClient::new(channel).issue(request).await?.into_inner())
    }
}

fn csr(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

fn by_token(token: &str) -> Option<Attestation> {
    Some(Attestation::JoinToken(token.to_owned()))
}

fn certificates(reply: &IssueReply) -> Vec<CertificateDer<'static>> {
    reply.chain.iter().map(|der| CertificateDer::from(der.clone())).collect()
}

/// A process of the cluster.
struct Kept {
    credentials: Credentials,
    task: JoinHandle<()>,
}

impl Kept {
    fn start(source: IdentitySource) -> Self {
        let credentials = Credentials::new(domain(), clock::now);
        let task = tokio::spawn(keep(credentials.clone(), source, clock::now));
        Self { credentials, task }
    }

    async fn identity(&self) -> Arc<Identity> {
        until("an identity", || self.credentials.identity().is_some()).await;
        self.credentials.identity().unwrap()
    }

    async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

fn public_key(identity: &Identity) -> Vec<u8> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, leaf) = X509Certificate::from_der(&identity.chain()[0]).unwrap();
    leaf.public_key().raw.to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_joins_by_its_token_and_renews_with_a_new_key() {
    let anchor = Anchor::started(4).await;
    let kept = Kept::start(anchor.source("web", WEB));
    let first = kept.identity().await;
    assert_eq!(first.id().as_str(), WEB);
    let remaining = first.not_after().duration_since(clock::now()).unwrap();
    assert!(remaining <= Duration::from_secs(4), "{remaining:?}");

    let end = first.not_after();
    until("a renewal", || kept.credentials.identity().unwrap().not_after() > end).await;
    let second = kept.credentials.identity().unwrap();
    assert!(clock::now() < end, "renewed only after the first was over");
    assert_eq!(second.id(), first.id());
    assert_ne!(public_key(&second), public_key(&first));
    assert!(kept.credentials.proves(second.chain()).is_ok());
    // Past one whole life of the first, by timer alone, without any traffic.
    until("a third", || kept.credentials.identity().unwrap().not_after() > second.not_after()).await;
    kept.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_with_the_trust_anchor_down_serves_from_disk() {
    let mut anchor = Anchor::started(3600).await;
    let source = anchor.source("web", WEB);
    let kept = Kept::start(source.clone());
    let before = kept.identity().await;
    until("the identity on disk", || source.store.join("svid.pem").exists()).await;
    kept.stop().await;
    anchor.stop().await;
    std::fs::remove_file(anchor.path("web.token")).unwrap();

    for file in ["svid.pem", "bundle.json"] {
        let mode = std::fs::metadata(source.store.join(file)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let again = Kept::start(source);
    let after = again.identity().await;
    assert_eq!(after.chain(), before.chain());
    // And it trusts its own cluster: an identity without anchors would be of little use.
    assert!(again.credentials.proves(after.chain()).is_ok());
    again.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_starts_before_its_trust_anchor_joins_when_that_comes() {
    let mut anchor = Anchor::new(3600);
    let source = anchor.source("web", WEB);
    let kept = Kept::start(source);
    // The trust anchor comes without root and intermediate, asks for what it needs, and waits.
    let process = anchor.start().await;
    until("the request", || anchor.store().join("intermediate.csr").exists()).await;
    assert_eq!(process.unmet(), ["bundle", "intermediate"]);
    hierarchy::init_root(&anchor.path("root"), "test", clock::now()).unwrap();
    assert!(kept.credentials.identity().is_none());

    let csr = anchor.store().join("intermediate.csr");
    hierarchy::sign_intermediate(&anchor.path("root"), &csr, None, clock::now()).unwrap();
    assert_eq!(kept.identity().await.id().as_str(), WEB);
    assert!(process.unmet().is_empty());
    kept.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_token_is_refused_and_the_holder_of_the_certificate_renews() {
    let anchor = Anchor::started(3600).await;
    let token = anchor.token(WEB);
    let (first, second) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let reply = anchor.ask(&csr(&first), by_token(&token)).await.unwrap();
    let status = anchor.ask(&csr(&second), by_token(&token)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::PermissionDenied);
    assert!(status.message().contains("has been used"), "{status}");
    assert!(status.message().contains("hint: "), "{status}");

    let request = csr(&second);
    let renewal = |signer: &KeyPair, signed: &[u8]| {
        let signature = signer.sign(signed).unwrap();
        Some(Attestation::Renewal(Renewal { chain: reply.chain.clone(), signature }))
    };
    // Not by somebody who has the certificate and not its key, not for another request, not with the old key.
    for (what, csr_der, attestation) in [
        ("another key's signature", request.clone(), renewal(&second, &request)),
        ("another request", request.clone(), renewal(&first, b"something else")),
        ("the same key", csr(&first), renewal(&first, &csr(&first))),
    ] {
        // ECDSA requests differ each time: sign the one that is sent.
        let attestation = if what == "the same key" { renewal(&first, &csr_der) } else { attestation };
        assert!(anchor.ask(&csr_der, attestation).await.is_err(), "{what}");
    }
    let renewed = anchor.ask(&request, renewal(&first, &request)).await.unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(second.serialize_der()));
    assert_eq!(Identity::new(certificates(&renewed), key).unwrap().id().as_str(), WEB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_hierarchy_renews_nothing() {
    let anchor = Anchor::started(3600).await;
    let other = hawser_tunnel::testing::Pki::new();
    let minted = other.mint("east", "/ns/shop/sa/web", Duration::from_secs(600));
    let PrivateKeyDer::Pkcs8(key) = &minted.key else { panic!("not PKCS#8") };
    let signer = KeyPair::try_from(key.secret_pkcs8_der()).unwrap();
    let request = csr(&KeyPair::generate().unwrap());
    let chain = minted.chain.iter().map(|der| der.to_vec()).collect();
    let renewal = Renewal { chain, signature: signer.sign(&request).unwrap() };
    let status = anchor.ask(&request, Some(Attestation::Renewal(renewal))).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::PermissionDenied, "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_request_does_not_use_up_the_token() {
    let anchor = Anchor::started(3600).await;
    let token = anchor.token(WEB);
    let key = KeyPair::generate().unwrap();
    let mut forged = csr(&key);
    *forged.last_mut().unwrap() ^= 1;
    let other_kind = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    for (what, csr) in [
        ("nothing", Vec::new()),
        ("not PKCS#10", vec![0x30; 100]),
        ("a broken signature", forged),
        ("a key of another kind", csr(&other_kind)),
        ("too large", vec![0x30; 100_000]),
    ] {
        let status = anchor.ask(&csr, by_token(&token)).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{what}: {status}");
    }
    let status = anchor.ask(&csr(&key), None).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    anchor.ask(&csr(&key), by_token(&token)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_request_only_the_key_counts() {
    let anchor = Anchor::started(3600).await;
    let key = KeyPair::generate().unwrap();
    let mut greedy = CertificateParams::new(vec!["admin.example".to_owned()]).unwrap();
    greedy.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    greedy.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    greedy.subject_alt_names.push(rcgen::SanType::URI("spiffe://east.hawser.test/ns/root".try_into().unwrap()));
    let request = greedy.serialize_request(&key).unwrap().der().to_vec();
    let reply = anchor.ask(&request, by_token(&anchor.token(WEB))).await.unwrap();
    let text = openssl_text(&reply.chain[0]);
    for absent in ["admin.example", "ns/root", "CA:TRUE", "Certificate Sign"] {
        assert!(!text.contains(absent), "{absent} in\n{text}");
    }
    assert!(text.contains(&format!("URI:{WEB}")), "{text}");
}

fn openssl_text(der: &[u8]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("leaf.der");
    std::fs::write(&path, der).unwrap();
    let out = std::process::Command::new("openssl")
        .args(["x509", "-inform", "DER", "-noout", "-text", "-in"])
        .arg(&path)
        .output()
        .expect("this test needs openssl: apt-get install openssl");
    String::from_utf8(out.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_gets_an_hour_at_most() {
    let anchor = Anchor::started(1_000_000).await;
    let gateway = anchor.ask(&csr(&KeyPair::generate().unwrap()), by_token(&anchor.token(GATEWAY))).await.unwrap();
    let web = anchor.ask(&csr(&KeyPair::generate().unwrap()), by_token(&anchor.token(WEB))).await.unwrap();
    let life = |reply: &IssueReply| {
        let credentials = Credentials::new(domain(), clock::now);
        credentials.set_anchors(&domain(), Anchors::Bundle(Bundle::parse(&reply.bundle).unwrap()));
        let svid = credentials.proves(&certificates(reply)).unwrap();
        svid.not_after.duration_since(clock::now()).unwrap()
    };
    assert!(life(&gateway) <= Duration::from_secs(3600) && life(&gateway) > Duration::from_secs(3500));
    assert!(life(&web) <= Duration::from_secs(86_400) && life(&web) > Duration::from_secs(86_300));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_root_reaches_every_process_without_a_restart() {
    let anchor = Anchor::started(3600).await;
    let kept = Kept::start(anchor.source("web", WEB));
    kept.identity().await;
    let root = anchor.path("root/root.crt");
    let both = hierarchy_of_two(&anchor, &root);
    let sequence = |store: &Path| Bundle::parse(&std::fs::read_to_string(store.join("bundle.json")).unwrap()).unwrap();
    let before = sequence(&anchor.path("web"));
    std::fs::write(&root, both).unwrap();
    until("two anchors on disk", || sequence(&anchor.path("web")).x509_authorities.len() == 2).await;
    assert!(sequence(&anchor.path("web")).sequence > before.sequence);
    assert!(kept.credentials.proves(kept.credentials.identity().unwrap().chain()).is_ok());

    // A file that is no certificate changes nothing.
    std::fs::write(&root, "-----BEGIN NONSENSE-----").unwrap();
    let reply = anchor.ask(&csr(&KeyPair::generate().unwrap()), by_token(&anchor.token(WEB))).await.unwrap();
    assert_eq!(Bundle::parse(&reply.bundle).unwrap().x509_authorities.len(), 2);
    kept.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_that_is_gone_at_once_takes_its_certificates_with_it_and_tokens_bring_new_ones() {
    let anchor = Anchor::started(3600).await;
    let source = anchor.source("web", WEB);
    let kept = Kept::start(source.clone());
    let first = kept.identity().await;

    // Revoked: the old root is out of the bundle, and the intermediate is signed by a new one.
    let second = hierarchy::init_root(&anchor.path("second"), "second", clock::now()).unwrap();
    std::fs::copy(&second, anchor.path("root/root.crt")).unwrap();
    std::fs::copy(anchor.path("second/root.key"), anchor.path("root/root.key")).unwrap();
    anchor.sign_hierarchy();
    until("the old certificate proves nothing", || kept.credentials.proves(first.chain()).is_err()).await;

    std::fs::write(anchor.path("web.token"), anchor.token(WEB)).unwrap();
    until("a new identity", || {
        let identity = kept.credentials.identity().unwrap();
        identity.chain() != first.chain() && kept.credentials.proves(identity.chain()).is_ok()
    })
    .await;
    kept.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_and_unusable_is_replaced() {
    let anchor = Anchor::started(3600).await;
    let old = hawser_tunnel::testing::Pki::at(clock::now() - Duration::from_secs(7200));
    let over = svid_pem(&old.mint("east", "/ns/shop/sa/web", Duration::from_secs(3600)));
    let foreign = svid_pem(&old.mint("west", "/ns/shop/sa/web", Duration::from_secs(86_000)));
    for (name, svid, bundle) in [
        ("garbage", b"garbage".to_vec(), "garbage"),
        ("over", over.into_bytes(), "{}"),
        ("foreign", foreign.into_bytes(), "{\"keys\":[]}"),
    ] {
        let source = anchor.source(name, WEB);
        std::fs::create_dir_all(&source.store).unwrap();
        std::fs::write(source.store.join("svid.pem"), svid).unwrap();
        std::fs::write(source.store.join("bundle.json"), bundle).unwrap();
        let kept = Kept::start(source);
        let identity = kept.identity().await;
        assert_eq!(identity.id().as_str(), WEB, "{name}");
        until("trust in its own cluster", || kept.credentials.proves(identity.chain()).is_ok()).await;
        kept.stop().await;
    }
}

fn svid_pem(minted: &hawser_tunnel::testing::Minted) -> String {
    use base64::Engine;
    let PrivateKeyDer::Pkcs8(key) = &minted.key else { panic!("not PKCS#8") };
    let pem = |label: &str, der: &[u8]| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    };
    let certificates: String = minted.chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
    pem("PRIVATE KEY", key.secret_pkcs8_der()) + &certificates
}

fn hierarchy_of_two(anchor: &Anchor, root: &Path) -> String {
    let second = hierarchy::init_root(&anchor.path("second"), "second", clock::now()).unwrap();
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    format!("{}{}", read(root), read(&second))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_socket_is_private_and_one_trust_anchor_uses_a_store() {
    let anchor = Anchor::started(3600).await;
    let mode = std::fs::metadata(anchor.path("anchor.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = hawser_trust_anchor::run(anchor.config(), Process::detached()).await;
    let error = format!("{:#}", second.unwrap_err());
    assert!(error.contains("another trust anchor uses"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_does_not_wait_for_those_who_watch_the_bundle() {
    let mut anchor = Anchor::started(3600).await;
    let kept = Kept::start(anchor.source("web", WEB));
    kept.identity().await;
    let before = tokio::time::Instant::now();
    anchor.stop().await;
    assert!(before.elapsed() < Duration::from_secs(5));
    // And whoever is there goes on when the trust anchor is back.
    anchor.start().await;
    let id: SpiffeId = WEB.parse().unwrap();
    assert_eq!(*kept.identity().await.id(), id);
    kept.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_who_ask_at_once_are_served_or_told_to_come_back() {
    let anchor = Arc::new(Anchor::started(3600).await);
    let asks: Vec<_> = (0..400)
        .map(|_| {
            let anchor = Arc::clone(&anchor);
            let token = anchor.token(WEB);
            tokio::spawn(async move { anchor.ask(&csr(&KeyPair::generate().unwrap()), by_token(&token)).await })
        })
        .collect();
    let mut served = 0;
    for ask in asks {
        match ask.await.unwrap() {
            Ok(_) => served += 1,
            Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status}"),
        }
    }
    assert!(served >= 200, "{served} of 400 were served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_issued_and_refused_is_counted() {
    let mut anchor = Anchor::new(3600);
    anchor.sign_hierarchy();
    let process = anchor.start().await;
    tokio::time::timeout(PATIENCE, process.until_ready()).await.unwrap();
    anchor.ask(&csr(&KeyPair::generate().unwrap()), by_token(&anchor.token(WEB))).await.unwrap();
    anchor.ask(&csr(&KeyPair::generate().unwrap()), by_token(&"0".repeat(64))).await.unwrap_err();
    let text = metrics(&process);
    for line in [
        "hawser_issuer_issued_total 1",
        "hawser_issuer_refused_total{reason=\"token_unknown\"} 1",
        "hawser_certificate_expiry_timestamp_seconds{kind=\"root\"} ",
        "hawser_certificate_expiry_timestamp_seconds{kind=\"intermediate\"} ",
        "hawser_rotation_state{level=\"root\",state=\"none\"} 1",
        "hawser_rotation_state{level=\"root\",state=\"active\"} 0",
        "hawser_rotation_state{level=\"intermediate\",state=\"none\"} 1",
        "hawser_rotation_refused{level=\"root\"} 0",
        "hawser_rotation_leaves_to_renew 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

fn metrics(process: &Process) -> String {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &process.registry.lock()).unwrap();
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_bundle_endpoint_s_certificate_and_the_jwt_key_end_is_known_before_anybody_asks() {
    let anchor = Anchor::new(3600);
    anchor.sign_hierarchy();
    let address = "127.0.0.1:0".parse().unwrap();
    let endpoint = BundleEndpointConfig { address, profile: BundleProfile::HttpsSpiffe, certificate: None, key: None };
    let workload = WorkloadConfig {
        socket: anchor.path("open/workload.sock"),
        objects: anchor.path("objects"),
        jwt_key_seconds: 600,
        jwt_ttl_seconds: 60,
    };
    let config = Config { bundle_endpoint: Some(endpoint), workload: Some(workload), ..anchor.config() };
    let process = Process::detached();
    let before = clock::millis(clock::now()) / 1000;
    let daemon = tokio::spawn(hawser_trust_anchor::run(config, process.clone()));
    let ends = |kind: &str| -> Option<i64> {
        let sample = format!("hawser_certificate_expiry_timestamp_seconds{{kind=\"{kind}\"}} ");
        metrics(&process).lines().find_map(|line| line.strip_prefix(&sample)?.parse().ok())
    };
    until("both ends", || ends("bundle_endpoint").is_some() && ends("jwt_key").is_some()).await;
    let after = clock::millis(clock::now()) / 1000;
    for (kind, life) in [("bundle_endpoint", 3600), ("jwt_key", 600)] {
        let end = ends(kind).unwrap();
        assert!((before + life..=after + life).contains(&end), "{kind}: {before} {end} {after}");
    }
    process.drain.cancel();
    tokio::time::timeout(PATIENCE, daemon).await.unwrap().unwrap().unwrap();
    process.stop.cancel();
}
