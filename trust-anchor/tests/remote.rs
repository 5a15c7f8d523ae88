//! The trust anchor's TCP door, as processes of other pods meet it. No API server answers here; what becomes of a service
//! account token when one does is e2e's matter.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's panic is its report")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use hawser_api::TrustDomain;
use hawser_api::config::{IdentityConfig, Issuer, RemoteIssuer};
use hawser_api::proto::trust::RevokeRequest;
use hawser_api::proto::trust::revoke_request::What;
use hawser_api::proto::trust::trust_client::TrustClient;
use hawser_runtime::{Process, clock};
use hawser_trust_anchor::{Config, audit, hierarchy, join};
use hawser_tunnel::identity::{Door, IdentitySource, TokenFile, channel, keep, report_fabric, watch_bundle};
use hawser_tunnel::tls::Credentials;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

const WEB: &str = "spiffe://east.hawser.test/ns/shop/sa/web";
const CONTROLLER: &str = "spiffe://east.hawser.test/ns/hawser-system/sa/mirror-controller";
const PATIENCE: Duration = Duration::from_secs(20);

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn domain() -> TrustDomain {
    "east.hawser.test".parse().unwrap()
}

/// A trust anchor with a TCP door and an API server that nobody runs.
struct Anchor {
    directory: tempfile::TempDir,
    address: SocketAddr,
    daemon: JoinHandle<anyhow::Result<()>>,
    process: Process,
}

impl Anchor {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        hierarchy::init_root(&path("root"), "test", clock::now()).unwrap();
        let csr = hierarchy::make_csr(&path("store"), &domain()).unwrap();
        hierarchy::sign_intermediate(&path("root"), &csr, None, clock::now()).unwrap();
        // Free a moment ago; nobody else listens on this process's ports.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{ "name": "x", "cluster": { "server": format!("http://{nobody}") } }],
            "users": [{ "name": "x", "user": {} }],
            "contexts": [{ "name": "x", "context": { "cluster": "x", "user": "x" } }],
        });
        std::fs::write(path("kubeconfig"), kubeconfig.to_string()).unwrap();
        let config: Config = serde_json::from_value(json!({
            "process": {
                "name": "east/trust-anchor", "admin": "127.0.0.1:0", "runFile": path("run.json"), "drainSeconds": 1,
            },
            "cluster": "east", "trustDomain": "east.hawser.test", "state": path("store"),
            "socket": path("anchor.sock"), "rootCertificate": path("root/root.crt"),
            "kubernetes": { "listen": address, "kubeconfig": path("kubeconfig") },
        }))
        .unwrap();
        let process = Process::detached();
        let daemon = tokio::spawn(hawser_trust_anchor::run(config, process.clone()));
        tokio::time::timeout(PATIENCE, process.until_ready()).await.unwrap();
        let anchor = Self { directory, address, daemon, process };
        let socket = anchor.path("anchor.sock");
        let bundle = hawser_tunnel::identity::own_bundle(&socket).await.unwrap();
        std::fs::write(anchor.path("bundle.json"), bundle).unwrap();
        anchor
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn config(&self, bundle: &str) -> IdentityConfig {
        let remote = RemoteIssuer {
            address: self.address.to_string(),
            bundle: self.path(bundle),
            token: self.path("account.token"),
        };
        IdentityConfig { trust_domain: domain(), issuer: Issuer::Remote(remote), store: self.path("unused") }
    }

    /// A process elsewhere that has a one-time token for this identity.
    fn member(&self, name: &str, id: &str, bundle: &str) -> (Credentials, Door, JoinHandle<()>) {
        let text = join::register(&self.path("store"), &id.parse().unwrap(), Duration::from_secs(60), clock::now());
        let token = self.path(&format!("{name}.token"));
        std::fs::write(&token, text.unwrap()).unwrap();
        let credentials = Credentials::new(domain(), clock::now);
        let door = Door::new(&self.config(bundle), &credentials);
        let source = IdentitySource { door: door.clone(), token: TokenFile::Join(token), store: self.path(name) };
        let task = tokio::spawn(keep(credentials.clone(), source, clock::now));
        (credentials, door, task)
    }

    async fn revoke(&self, id: &str) {
        let mut operator = TrustClient::new(channel(&self.path("anchor.sock")).await.unwrap());
        operator.revoke(RevokeRequest { what: Some(What::Identity(id.into())), undo: false }).await.unwrap();
    }

    /// Stops it, and says to whom certificates were issued.
    async fn stop(self) -> Vec<String> {
        self.process.drain.cancel();
        tokio::time::timeout(PATIENCE, self.daemon).await.unwrap().unwrap().unwrap();
        self.process.stop.cancel();
        let mut issued = Vec::new();
        let store = self.directory.path().join("store");
        let see = |line: &audit::Line| issued.extend((line.entry.event == "issue").then(|| line.entry.subject.clone()));
        audit::read(&store, see).unwrap();
        issued
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_elsewhere_gets_its_certificate_and_follows_the_bundle_over_tls() {
    let anchor = Anchor::start().await;
    let (web, door, web_task) = anchor.member("web", WEB, "bundle.json");
    until("an identity", async || web.identity().is_some()).await;
    assert_eq!(web.identity().unwrap().id().as_str(), WEB);
    let told = watch_bundle(&door).await.unwrap().message().await.unwrap().unwrap();
    assert_eq!(told.document, std::fs::read_to_string(anchor.path("bundle.json")).unwrap());
    // Whether a rotation may go on is not a workload's to say.
    let refused = report_fabric(&door, tokio_stream::empty()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");
    let (controller, door, controller_task) = anchor.member("controller", CONTROLLER, "bundle.json");
    until("the controller's identity", async || controller.identity().is_some()).await;
    report_fabric(&door, tokio_stream::empty()).await.unwrap();
    for task in [web_task, controller_task] {
        task.abort();
    }
    anchor.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_revoked_is_cut_off_in_the_middle_of_what_he_says_and_gets_in_no_more() {
    let anchor = Anchor::start().await;
    let (controller, door, task) = anchor.member("controller", CONTROLLER, "bundle.json");
    until("an identity", async || controller.identity().is_some()).await;
    task.abort();
    let mut told = watch_bundle(&door).await.unwrap();
    told.message().await.unwrap().unwrap();
    let says = tokio::spawn({
        let door = door.clone();
        async move { report_fabric(&door, tokio_stream::pending()).await }
    });
    anchor.revoke(CONTROLLER).await;
    let followed = async { while let Ok(Some(_)) = told.message().await {} };
    tokio::time::timeout(PATIENCE, followed).await.expect("the bundle is followed no more");
    let said = tokio::time::timeout(PATIENCE, says).await.expect("nothing is said any more").unwrap();
    assert!(said.is_err(), "the trust anchor took leave of him");
    assert!(watch_bundle(&door).await.is_err());
    // Others stay.
    let (web, door, task) = anchor.member("web", WEB, "bundle.json");
    until("another's identity", async || web.identity().is_some()).await;
    watch_bundle(&door).await.unwrap().message().await.unwrap().unwrap();
    task.abort();
    anchor.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_no_certificate_may_ask_for_one_and_for_nothing_else() {
    let anchor = Anchor::start().await;
    let nobody = Credentials::new(domain(), clock::now);
    let door = Door::new(&anchor.config("bundle.json"), &nobody);
    // Without an identity our own client does not even try.
    assert!(watch_bundle(&door).await.is_err());
    // In clear, and silent: neither holds the door.
    let mut clear = TcpStream::connect(anchor.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut clear, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, clear.read_to_end(&mut answer)).await.unwrap();
    assert!(!answer.starts_with(b"\0\0"), "HTTP/2 was spoken in clear");
    anchor.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trust_anchor_that_the_mounted_bundle_does_not_prove_is_told_no_token() {
    let anchor = Anchor::start().await;
    hierarchy::init_root(&anchor.path("other"), "other", clock::now()).unwrap();
    let other = std::fs::read(anchor.path("other/root.crt")).unwrap();
    let (_, pem) = x509_parser::pem::parse_x509_pem(&other).unwrap();
    let bundle = hawser_api::bundle::Bundle {
        sequence: 1,
        x509_authorities: vec![pem.contents],
        ..hawser_api::bundle::Bundle::default()
    };
    std::fs::write(anchor.path("other.json"), bundle.to_document()).unwrap();
    let (web, _, task) = anchor.member("web", WEB, "other.json");
    let honest = anchor.member("honest", CONTROLLER, "bundle.json");
    until("another's identity", async || honest.0.identity().is_some()).await;
    assert!(web.identity().is_none());
    task.abort();
    honest.2.abort();
    let issued = anchor.stop().await;
    assert!(!issued.iter().any(|subject| subject == WEB), "{issued:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_account_token_that_nobody_can_vouch_for_gets_nothing() {
    use base64::Engine;
    let anchor = Anchor::start().await;
    let claims = json!({
        "aud": ["hawser.dev/east"], "exp": 4_000_000_000_u64,
        "kubernetes.io": {
            "namespace": "shop", "serviceaccount": { "name": "web", "uid": "a" }, "pod": { "name": "web-1", "uid": "b" },
        },
    });
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(claims.to_string());
    std::fs::write(anchor.path("account.token"), format!("e30.{claims}.c2ln\n")).unwrap();
    let credentials = Credentials::new(domain(), clock::now);
    let source = IdentitySource::new(&anchor.config("bundle.json"), &credentials);
    let task = tokio::spawn(keep(credentials.clone(), source, clock::now));
    let metrics = || {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &anchor.process.registry.lock()).unwrap();
        text
    };
    until("a refusal", async || metrics().contains(r#"hawser_issuer_refused_total{reason="api_server_unanswered"}"#))
        .await;
    assert!(credentials.identity().is_none());
    task.abort();
    anchor.stop().await;
}
