//! Rotation and revocation over the trust anchor's socket, as an operator and the processes of a cluster see them.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's panic is its report")]

use std::path::PathBuf;
use std::time::Duration;

use hawser_api::TrustDomain;
use hawser_api::proto::issuer::issuer_client::IssuerClient;
use hawser_api::proto::issuer::{AuditEvent, FabricReport, Validator};
use hawser_api::proto::trust::revoke_request::What;
use hawser_api::proto::trust::trust_client::TrustClient;
use hawser_api::proto::trust::{
    AcceptBundleRequest, ProvideRequest, RevokeRequest, RotateRequest, ShowBundleRequest, StatusReply, StatusRequest,
    TaintRequest,
};
use hawser_runtime::{Process, clock};
use hawser_trust_anchor::{Config, audit, hierarchy, join};
use hawser_tunnel::identity::{Channel, Door, IdentitySource, TokenFile, channel, keep};
use hawser_tunnel::report;
use hawser_tunnel::tls::Credentials;
use serde_json::json;
use tokio::task::JoinHandle;

const WEB: &str = "spiffe://east.hawser.test/ns/shop/sa/web";
const PATIENCE: Duration = Duration::from_secs(30);

async fn until<T>(what: &str, mut holds: impl AsyncFnMut() -> Option<T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(found) = holds().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"))
}

fn domain() -> TrustDomain {
    "east.hawser.test".parse().unwrap()
}

struct Cluster {
    directory: tempfile::TempDir,
    running: Option<(JoinHandle<anyhow::Result<()>>, Process)>,
}

impl Cluster {
    async fn start() -> Self {
        let mut cluster = Self { directory: tempfile::tempdir().unwrap(), running: None };
        hierarchy::init_root(&cluster.path("root"), "test", clock::now()).unwrap();
        let csr = hierarchy::make_csr(&cluster.path("store"), &domain()).unwrap();
        hierarchy::sign_intermediate(&cluster.path("root"), &csr, None, clock::now()).unwrap();
        cluster.up().await;
        cluster
    }

    async fn up(&mut self) {
        let config: Config = serde_json::from_value(json!({
            "process": {
                "name": "east/trust-anchor", "admin": "127.0.0.1:0", "runFile": self.path("run.json"), "drainSeconds": 1,
            },
            "cluster": "east", "trustDomain": "east.hawser.test", "state": self.path("store"),
            "socket": self.path("anchor.sock"), "rootCertificate": self.path("root/root.crt"),
        }))
        .unwrap();
        let process = Process::detached();
        let daemon = tokio::spawn(hawser_trust_anchor::run(config, process.clone()));
        tokio::time::timeout(PATIENCE, process.until_ready()).await.unwrap();
        self.running = Some((daemon, process));
    }

    async fn down(&mut self) {
        let (daemon, process) = self.running.take().unwrap();
        process.drain.cancel();
        tokio::time::timeout(PATIENCE, daemon).await.unwrap().unwrap().unwrap();
        process.stop.cancel();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn channel(&self) -> Channel {
        channel(&self.path("anchor.sock")).await.unwrap()
    }

    async fn trust(&self) -> TrustClient<Channel> {
        TrustClient::new(self.channel().await)
    }

    async fn status(&self) -> StatusReply {
        self.trust().await.status(StatusRequest {}).await.unwrap().into_inner()
    }

    async fn revoke(&self, what: What, undo: bool) -> Result<StatusReply, tonic::Status> {
        let request = RevokeRequest { what: Some(what), undo };
        self.trust().await.revoke(request).await.map(tonic::Response::into_inner)
    }

    fn source(&self, name: &str, id: &str) -> IdentitySource {
        let text = join::register(&self.path("store"), &id.parse().unwrap(), Duration::from_secs(60), clock::now());
        let token = self.path(&format!("{name}.token"));
        std::fs::write(&token, text.unwrap()).unwrap();
        IdentitySource {
            door: Door::Socket(self.path("anchor.sock")),
            token: TokenFile::Join(token),
            store: self.path(name),
        }
    }

    fn signed_by(&self, root: &str, request: &str) -> Vec<u8> {
        let signed = hierarchy::sign_request(&self.path(root), request.as_bytes(), Some(&domain()), clock::now());
        signed.unwrap().0.into_bytes()
    }
}

struct Member {
    credentials: Credentials,
    task: JoinHandle<()>,
}

impl Member {
    async fn start(source: IdentitySource) -> Self {
        let credentials = Credentials::new(domain(), clock::now);
        let task = tokio::spawn(keep(credentials.clone(), source, clock::now));
        let member = Self { credentials, task };
        until("an identity", async || member.credentials.identity()).await;
        member
    }

    fn serial(&self) -> String {
        let identity = self.credentials.identity().unwrap();
        self.credentials.proves(identity.chain()).map(|svid| svid.serial).unwrap_or_default()
    }

    async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// A mirror controller that reports what this process has loaded, truly, until it is dropped.
fn reporter(cluster: &Cluster, member: &Member) -> JoinHandle<()> {
    let (socket, credentials) = (cluster.path("anchor.sock"), member.credentials.clone());
    tokio::spawn(async move {
        let mut client = IssuerClient::new(channel(&socket).await.unwrap());
        let reports = futures_util::stream::unfold((), move |()| {
            let trust = Some(report::trust(&credentials));
            let validator = Validator {
                name: "web".into(),
                kind: "proxy".into(),
                connected: true,
                seen_ms: clock::millis(clock::now()),
                trust,
            };
            let report = FabricReport { validators: vec![validator], peers: Vec::new() };
            async move {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Some((report, ()))
            }
        });
        let _ = client.report_fabric(reports).await;
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_is_replaced_under_a_running_process_which_renews_before_the_old_one_goes() {
    let cluster = Cluster::start().await;
    let member = Member::start(cluster.source("web", WEB)).await;
    let first = member.serial();
    hierarchy::init_root(&cluster.path("next"), "next", clock::now()).unwrap();
    let root = std::fs::read(cluster.path("next/root.crt")).unwrap();
    let mut trust = cluster.trust().await;
    trust.rotate(RotateRequest { level: "root".into(), ..RotateRequest::default() }).await.unwrap();
    let status = trust.provide(ProvideRequest { certificate: root }).await.unwrap().into_inner();
    let rotation = status.rotation.unwrap();
    assert_eq!(rotation.state, "published");
    // Nobody reports: the refusal says so, and nothing goes on.
    assert_eq!(rotation.missing[0].who, "mirror-controller");
    assert!(!status.request.is_empty());

    let reporting = reporter(&cluster, &member);
    let certificate = cluster.signed_by("next", &status.request);
    trust.provide(ProvideRequest { certificate }).await.unwrap();
    let over = async || {
        let rotation = cluster.status().await.rotation?;
        (rotation.state == "retired").then_some(rotation)
    };
    until("the old root's end", over).await;
    assert_ne!(member.serial(), first, "it has renewed");
    let anchor = hierarchy::authority_of(&std::fs::read(cluster.path("next/root.crt")).unwrap()).unwrap();
    let holds = || member.credentials.loaded()[0].authorities.clone();
    until("the new root alone", async || (holds() == [anchor]).then_some(())).await;
    assert!(member.serial() != String::new(), "what it presents holds by it");
    let mut states = Vec::new();
    let reading = audit::read(&cluster.path("store"), |line| {
        if line.entry.event == "rotation" {
            states.push(line.entry.subject.clone());
        }
    });
    assert_eq!(reading.unwrap().broken, None);
    let entered: Vec<_> = states.iter().filter_map(|state| state.strip_prefix("root ")).collect();
    assert_eq!(entered, ["begun", "prepared", "published", "proved", "active", "draining", "retired"]);
    reporting.abort();
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_revoked_gets_nothing_and_every_process_knows_at_once_and_after_a_restart() {
    let mut cluster = Cluster::start().await;
    let source = cluster.source("web", WEB);
    let member = Member::start(source.clone()).await;
    let victim = Member::start(cluster.source("victim", "spiffe://east.hawser.test/ns/shop/sa/victim")).await;
    let chain = victim.credentials.identity().unwrap().chain().to_vec();
    assert!(member.credentials.proves(&chain).is_ok());

    let asked = clock::monotonic();
    let identity = "spiffe://east.hawser.test/ns/shop/sa/victim".to_owned();
    cluster.revoke(What::Identity(identity.clone()), false).await.unwrap();
    until("a denial", async || member.credentials.proves(&chain).is_err().then_some(())).await;
    assert!(clock::monotonic() - asked < Duration::from_secs(1), "told at once");
    let nothing = RotateRequest { level: "nothing".into(), ..RotateRequest::default() };
    let refused = cluster.trust().await.rotate(nothing).await.unwrap_err();
    assert!(refused.message().contains("hint: name leaf"));

    // It may neither renew nor join.
    let token = cluster.source("other", &identity);
    let credentials = Credentials::new(domain(), clock::now);
    let task = tokio::spawn(keep(credentials.clone(), token, clock::now));
    let denied = async || {
        let mut denied = false;
        let _ = audit::read(&cluster.path("store"), |line| denied |= line.entry.subject == "denied");
        denied.then_some(())
    };
    until("a denial in the audit log", denied).await;
    assert!(credentials.identity().is_none());
    task.abort();

    // Both the process and the trust anchor know it after a restart, the process with nobody to ask.
    until("the list on disk", async || source.store.join("denied.json").exists().then_some(())).await;
    member.stop().await;
    cluster.down().await;
    let member = Member::start(source.clone()).await;
    assert!(member.credentials.proves(&chain).is_err());
    cluster.up().await;
    assert_eq!(cluster.status().await.denied.unwrap().identities, std::slice::from_ref(&identity));
    // And undone, it is trusted again.
    cluster.revoke(What::Identity(identity), true).await.unwrap();
    until("an end of the denial", async || member.credentials.proves(&chain).is_ok().then_some(())).await;
    member.stop().await;
    victim.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clusters_serials_and_keys_are_revoked_and_what_cannot_be_is_refused_with_a_remedy() {
    let cluster = Cluster::start().await;
    let member = Member::start(cluster.source("web", WEB)).await;
    let other = Member::start(cluster.source("other", WEB)).await;
    let chain = other.credentials.identity().unwrap().chain().to_vec();
    cluster.revoke(What::Serial(other.serial().to_uppercase()), false).await.unwrap();
    until("a denial", async || member.credentials.proves(&chain).is_err().then_some(())).await;
    assert!(member.credentials.proves(member.credentials.identity().unwrap().chain()).is_ok(), "the same identity");
    let status = cluster.revoke(What::TrustDomain("west.hawser.test".into()), false).await.unwrap();
    assert_eq!(status.denied.unwrap().trust_domains, ["west.hawser.test"]);
    let signer = status.authorities.iter().find(|a| a.kind == "intermediate").unwrap().id.clone();
    for (what, undo) in [
        (What::TrustDomain("east.hawser.test".into()), false),
        (What::TrustDomain("not a domain".into()), false),
        (What::Identity("not an id".into()), false),
        (What::Serial("not a serial".into()), false),
        (What::Serial(member.serial()), true),
        (What::Authority(vec![1; 31]), false),
        (What::Authority(signer), false),
    ] {
        let refused = cluster.revoke(what.clone(), undo).await.unwrap_err();
        assert!(refused.message().contains("hint: "), "{what:?} {refused}");
    }
    member.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_leaves_are_renewed_soon_when_they_are_tainted() {
    let cluster = Cluster::start().await;
    let member = Member::start(cluster.source("web", WEB)).await;
    let first = member.serial();
    // Issued in the second of the taint is issued after it: certificates have whole seconds.
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.trust().await.taint(TaintRequest::default()).await.unwrap();
    until("a renewal", async || (member.serial() != first).then_some(())).await;
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_by_hand_must_be_what_its_pin_says_and_is_recorded() {
    let cluster = Cluster::start().await;
    let mut trust = cluster.trust().await;
    let shown = trust.show_bundle(ShowBundleRequest::default()).await.unwrap().into_inner();
    let accept = |domain: &str, document: &str, pin: &str| AcceptBundleRequest {
        trust_domain: domain.into(),
        document: document.into(),
        pin: pin.into(),
    };
    let west = "west.hawser.test";
    for request in [
        accept(west, &shown.document, &"0".repeat(64)),
        accept(west, &format!("{} ", shown.document), &shown.pin),
        accept("east.hawser.test", &shown.document, &shown.pin),
        accept(west, "{}", "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"),
    ] {
        let refused = trust.accept_bundle(request.clone()).await.unwrap_err();
        assert!(refused.message().contains("hint: "), "{request:?} {refused}");
    }
    trust.accept_bundle(accept(west, &shown.document, &shown.pin.to_uppercase())).await.unwrap();
    let mut client = IssuerClient::new(cluster.channel().await);
    let mut told = client.watch_bundle(hawser_api::proto::issuer::WatchBundleRequest {}).await.unwrap().into_inner();
    let told = told.message().await.unwrap().unwrap();
    assert_eq!((told.accepted[0].trust_domain.as_str(), &told.accepted[0].document), (west, &shown.document));
    let event = AuditEvent { event: "link".into(), subject: "cluster/west".into(), ..AuditEvent::default() };
    let recorded = client.audit(event).await.unwrap().into_inner().sequence;
    assert!(client.audit(AuditEvent { detail: "x".repeat(5000), ..AuditEvent::default() }).await.is_err());
    let mut events = Vec::new();
    let _ = audit::read(&cluster.path("store"), |line| events.push((line.seq, line.entry.event.clone())));
    assert!(events.iter().any(|(_, event)| event == "break-glass"));
    assert_eq!(events.last(), Some(&(recorded, "link".to_owned())));
}
