//! The Workload API as a client in this very process sees it.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test's panic is its report")]

use std::path::PathBuf;
use std::time::Duration;

use hawser_api::proto::issuer::issuer_client::IssuerClient;
use hawser_api::proto::issuer::{FabricReport, LinkedPeer};
use hawser_api::proto::sds::secret::Type;
use hawser_api::proto::sds::secret_discovery_service_client::SecretDiscoveryServiceClient;
use hawser_api::proto::sds::{DiscoveryRequest, DiscoveryResponse, Secret, SpiffeCertValidatorConfig};
use hawser_api::proto::trust::RevokeRequest;
use hawser_api::proto::trust::revoke_request::What;
use hawser_api::proto::trust::trust_client::TrustClient;
use hawser_api::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use hawser_api::proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest, X509svidResponse,
};
use hawser_runtime::config::ProcessConfig;
use hawser_runtime::{Process, clock};
use hawser_trust_anchor::audit::{self, Caller, Entry};
use hawser_trust_anchor::{Config, WorkloadConfig, hierarchy};
use hawser_tunnel::testing::Pki;
use prost::Message;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Longest wait for a condition; tests are long done by then.
const PATIENCE: Duration = Duration::from_secs(20);

struct Anchor {
    directory: tempfile::TempDir,
    process: Process,
    daemon: tokio::task::JoinHandle<anyhow::Result<()>>,
}

fn entry(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: hawser.dev/v1alpha1\nkind: WorkloadIdentity\nmetadata: {{name: {name}}}\nspec:\n  \
         spiffeId: /ns/shop/sa/{name}\n{rest}"
    )
}

fn uid() -> u32 {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap())
}

impl Anchor {
    async fn start(objects: &[(&str, String)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (domain, now) = ("east.hawser.test".parse().unwrap(), clock::now());
        hierarchy::init_root(&path("root"), "test", now).unwrap();
        let csr = hierarchy::make_csr(&path("store"), &domain).unwrap();
        hierarchy::sign_intermediate(&path("root"), &csr, Some(&domain), now).unwrap();
        std::fs::create_dir(path("objects")).unwrap();
        for (file, text) in objects {
            std::fs::write(path("objects").join(file), text).unwrap();
        }
        let config = serde_json::json!({
            "process": ProcessConfig {
                name: "east/trust-anchor".into(),
                admin: "127.0.0.1:0".parse().unwrap(),
                run_file: path("run.json"),
                drain_seconds: 1,
            },
            "cluster": "east",
            "trustDomain": domain,
            "state": path("store"),
            "socket": path("anchor.sock"),
            "rootCertificate": path("root/root.crt"),
            "workload": WorkloadConfig {
                socket: path("open/workload.sock"),
                objects: path("objects"),
                jwt_key_seconds: 600,
                jwt_ttl_seconds: 60,
            },
        });
        let config: Config = serde_json::from_value(config).unwrap();
        let process = Process::detached();
        let daemon = tokio::spawn(hawser_trust_anchor::run(config, process.clone()));
        tokio::time::timeout(PATIENCE, process.until_ready()).await.unwrap();
        Self { directory, process, daemon }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn put(&self, file: &str, text: &str) {
        std::fs::write(self.path("objects").join(file), text).unwrap();
    }

    async fn channel(&self, socket: &str) -> Channel {
        let socket = self.path(socket);
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
        endpoint.connect_with_connector(connector).await.unwrap()
    }

    async fn client(&self) -> SpiffeWorkloadApiClient<Channel> {
        SpiffeWorkloadApiClient::new(self.channel("open/workload.sock").await)
    }

    /// The first message of a new stream, once there is one; and the stream.
    async fn svids(&self) -> (X509svidResponse, Streaming<X509svidResponse>) {
        let mut client = self.client().await;
        let asked = async {
            loop {
                match client.fetch_x509svid(with_header(X509svidRequest {})).await {
                    Ok(stream) => {
                        let mut stream = stream.into_inner();
                        match stream.message().await {
                            Ok(first) => break (first.unwrap(), stream),
                            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
                        }
                    }
                    Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.expect("an SVID")
    }

    /// Lines of the audit log.
    fn recorded(&self, event: &str) -> Vec<Entry> {
        let mut entries = Vec::new();
        let reading = audit::read(&self.path("store"), |line| entries.push(line.entry.clone())).unwrap();
        assert_eq!(reading.broken, None);
        entries.retain(|entry| entry.event == event);
        entries
    }

    async fn stop(self) {
        self.process.drain.cancel();
        tokio::time::timeout(PATIENCE, self.daemon).await.unwrap().unwrap().unwrap();
        self.process.stop.cancel();
    }
}

fn with_header<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

async fn next<T>(stream: &mut Streaming<T>) -> Result<Option<T>, Status> {
    tokio::time::timeout(PATIENCE, stream.message()).await.expect("a message")
}

fn leaf(response: &X509svidResponse) -> X509Certificate<'_> {
    X509Certificate::from_der(&response.svids[0].x509_svid).unwrap().1
}

#[tokio::test]
async fn a_stream_begins_at_once_and_goes_on_with_new_keys_until_the_identity_is_taken_back() {
    let rest = format!("  selectors: {{uid: {}}}\n  ttlSeconds: 2\n  hint: first\n  dnsNames: [web.test]\n", uid());
    let anchor = Anchor::start(&[("web.yaml", entry("web", &rest))]).await;
    let (mut message, mut stream) = anchor.svids().await;
    let (mut serials, mut keys) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    for _ in 0..4 {
        let svid = &message.svids[0];
        assert_eq!(
            (svid.spiffe_id.as_str(), svid.hint.as_str()),
            ("spiffe://east.hawser.test/ns/shop/sa/web", "first")
        );
        let leaf = leaf(&message);
        assert!(serials.insert(leaf.raw_serial().to_vec()), "each message has a new certificate");
        assert!(keys.insert(leaf.public_key().raw.to_vec()), "with a new key");
        let key = rcgen::KeyPair::try_from(svid.x509_svid_key.as_slice()).expect("PKCS#8");
        assert_eq!(rcgen::PublicKeyData::subject_public_key_info(&key), leaf.public_key().raw, "of this certificate");
        assert!(leaf.basic_constraints().unwrap().is_some_and(|b| !b.value.ca), "clients refuse one without");
        let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names.len(), 2, "{names:?}");
        let life = leaf.validity().not_after.timestamp() - clock::millis(clock::now()) / 1000;
        assert!((0..=2).contains(&life), "{life} s");
        assert!(message.federated_bundles.is_empty());
        message = next(&mut stream).await.unwrap().unwrap();
    }
    // The same identity on another stream: the same SVID, not one more.
    anchor.put("web.yaml", &entry("web", &rest.replace("first", "second").replace("ttlSeconds: 2", "ttlSeconds: 600")));
    let edited = clock::monotonic();
    while message.svids[0].hint != "second" {
        message = next(&mut stream).await.unwrap().unwrap();
    }
    assert!(edited.elapsed() < Duration::from_secs(2), "an edit takes effect within a second");
    let (other, _stream) = anchor.svids().await;
    assert_eq!(leaf(&other).raw_serial(), leaf(&message).raw_serial());
    anchor.put("web.yaml", "not: [an object");
    let (same, _stream) = anchor.svids().await;
    assert_eq!(same, other, "a bad edit changes nothing");
    anchor.put("web.yaml", &entry("web", "  selectors: {uid: 4000000000}\n"));
    let over = next(&mut stream).await.unwrap_err();
    assert_eq!((over.code(), over.message()), (Code::PermissionDenied, "no identity issued"));
    anchor.stop().await;
}

#[tokio::test]
async fn calls_without_the_security_header_and_calls_of_nobody_are_refused() {
    let anchor = Anchor::start(&[("web.yaml", entry("web", &format!("  selectors: {{uid: {}}}\n", uid())))]).await;
    drop(anchor.svids().await);
    let mut client = anchor.client().await;
    let codes = |status: Status| status.code();
    assert_eq!(client.fetch_x509svid(X509svidRequest {}).await.map_err(codes).err(), Some(Code::InvalidArgument));
    assert_eq!(
        client.fetch_x509_bundles(X509BundlesRequest {}).await.map_err(codes).err(),
        Some(Code::InvalidArgument)
    );
    assert_eq!(client.fetch_jwt_bundles(JwtBundlesRequest {}).await.map_err(codes).err(), Some(Code::InvalidArgument));
    let jwt = JwtsvidRequest { audience: vec!["db".into()], ..JwtsvidRequest::default() };
    assert_eq!(client.fetch_jwtsvid(jwt.clone()).await.map_err(codes).err(), Some(Code::InvalidArgument));
    let validate = ValidateJwtsvidRequest { audience: "db".into(), svid: "x".into() };
    assert_eq!(client.validate_jwtsvid(validate).await.map_err(codes).err(), Some(Code::InvalidArgument));
    for wrong in ["false", "True", ""] {
        let mut request = Request::new(X509svidRequest {});
        request.metadata_mut().insert("workload.spiffe.io", wrong.parse().unwrap());
        assert_eq!(client.fetch_x509svid(request).await.map_err(codes).err(), Some(Code::InvalidArgument), "{wrong:?}");
    }
    anchor.put("web.yaml", &entry("web", "  selectors: {uid: 4000000000}\n"));
    let refused = async {
        loop {
            match client.fetch_jwtsvid(with_header(jwt.clone())).await {
                Err(status) => break status,
                Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let refused = tokio::time::timeout(PATIENCE, refused).await.unwrap();
    assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "no identity issued"));
    anchor.stop().await;
}

#[tokio::test]
async fn a_thousand_streams_are_held_within_bounds_and_given_back() {
    let anchor = Anchor::start(&[("web.yaml", entry("web", &format!("  selectors: {{uid: {}}}\n", uid())))]).await;
    drop(anchor.svids().await);
    let client = anchor.client().await;
    let (mut held, mut refused) = (Vec::new(), 0);
    for round in 0..20 {
        // On connections of their own, as a noisy program would.
        let mut client = if round % 2 == 0 { anchor.client().await } else { client.clone() };
        for _ in 0..50 {
            match tokio::time::timeout(Duration::from_secs(5), client.fetch_x509svid(with_header(X509svidRequest {})))
                .await
            {
                Ok(Ok(stream)) => held.push(stream.into_inner()),
                Ok(Err(status)) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status}");
                    refused += 1;
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(held.len() <= 256 && held.len() >= 128, "{} are held", held.len());
    assert!(refused >= 700, "{refused} are refused");
    for stream in &mut held {
        assert_eq!(next(stream).await.unwrap().unwrap().svids.len(), 1);
    }
    drop(held);
    // Once they are gone, others are served again: the bounds are not used up for ever.
    let (message, _stream) = anchor.svids().await;
    assert_eq!(message.svids.len(), 1);
    anchor.stop().await;
}

#[tokio::test]
async fn peers_bundles_come_with_the_report_and_jwt_svids_hold_where_they_should() {
    let rest = format!("  selectors: {{uid: {}}}\n  federatesWith: [west, bad]\n  jwtTtlSeconds: 30\n", uid());
    let anchor = Anchor::start(&[("web.yaml", entry("web", &rest))]).await;
    let west = Pki::new().bundle();
    let peer = |cluster: &str, domain: &str, bundle: String| LinkedPeer {
        cluster: cluster.into(),
        trust_domain: domain.into(),
        bundle,
        ..LinkedPeer::default()
    };
    let report = FabricReport {
        peers: vec![
            peer("west", "west.hawser.test", west.to_document()),
            peer("bad", "bad.hawser.test", "nonsense".into()),
            peer("other", "other.hawser.test", west.to_document()),
            peer("self", "east.hawser.test", west.to_document()),
        ],
        ..FabricReport::default()
    };
    let mut issuer = IssuerClient::new(anchor.channel("anchor.sock").await);
    issuer.report_fabric(tokio_stream::iter([report])).await.unwrap();
    let (mut message, mut stream) = anchor.svids().await;
    while message.federated_bundles.is_empty() {
        message = next(&mut stream).await.unwrap().unwrap();
    }
    let expected =
        std::collections::BTreeMap::from([("spiffe://west.hawser.test".to_owned(), west.x509_authorities.concat())]);
    assert_eq!(message.federated_bundles, expected);
    let mut client = anchor.client().await;
    let bundles = client.fetch_x509_bundles(with_header(X509BundlesRequest {})).await.unwrap().into_inner();
    let bundles = next(&mut { bundles }).await.unwrap().unwrap().bundles;
    assert_eq!(bundles.keys().collect::<Vec<_>>(), ["spiffe://east.hawser.test", "spiffe://west.hawser.test"]);
    assert_eq!(bundles["spiffe://east.hawser.test"], message.svids[0].bundle);

    let ask = JwtsvidRequest { audience: vec!["db".into(), "cache".into()], spiffe_id: String::new() };
    let signed = client.fetch_jwtsvid(with_header(ask.clone())).await.unwrap().into_inner().svids.remove(0);
    assert_eq!(signed.spiffe_id, "spiffe://east.hawser.test/ns/shop/sa/web");
    let header: Vec<u8> = base64::Engine::decode(
        &base64::engine::general_purpose::URL_SAFE_NO_PAD,
        signed.svid.split('.').next().unwrap(),
    )
    .unwrap();
    let header: serde_json::Value = serde_json::from_slice(&header).unwrap();
    assert_eq!(header.as_object().unwrap().keys().collect::<Vec<_>>(), ["alg", "kid", "typ"]);
    let check = |audience: &str, svid: &str| {
        with_header(ValidateJwtsvidRequest { audience: audience.into(), svid: svid.into() })
    };
    let valid = client.validate_jwtsvid(check("cache", &signed.svid)).await.unwrap().into_inner();
    assert_eq!(valid.spiffe_id, signed.spiffe_id);
    assert!(valid.claims.unwrap().fields.contains_key("exp"));
    let refused = client.validate_jwtsvid(check("mail", &signed.svid)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let jwks = client.fetch_jwt_bundles(with_header(JwtBundlesRequest {})).await.unwrap().into_inner();
    let jwks = next(&mut { jwks }).await.unwrap().unwrap().bundles;
    let own =
        hawser_api::bundle::Bundle::parse(std::str::from_utf8(&jwks["spiffe://east.hawser.test"]).unwrap()).unwrap();
    assert!(own.jwt_authorities.iter().any(|key| key.key_id == header["kid"]), "the key is published");
    let foreign = JwtsvidRequest { spiffe_id: "spiffe://east.hawser.test/ns/shop/sa/admin".into(), ..ask.clone() };
    assert_eq!(client.fetch_jwtsvid(with_header(foreign)).await.unwrap_err().code(), Code::PermissionDenied);
    let nobody = JwtsvidRequest { audience: vec![], ..ask };
    assert_eq!(client.fetch_jwtsvid(with_header(nobody)).await.unwrap_err().code(), Code::InvalidArgument);
    anchor.stop().await;
}

#[tokio::test]
async fn everybody_may_open_the_socket_and_only_its_owner_the_issuers() {
    let anchor = Anchor::start(&[]).await;
    let mode = |name: &str| {
        let metadata = std::fs::metadata(anchor.path(name)).unwrap();
        std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777
    };
    assert_eq!((mode("open/workload.sock"), mode("anchor.sock")), (0o666, 0o600));
    anchor.stop().await;
}

#[tokio::test]
async fn a_revoked_certificate_is_replaced_and_a_revoked_identity_gets_nothing_more() {
    let anchor = Anchor::start(&[("web.yaml", entry("web", &format!("  selectors: {{uid: {}}}\n", uid())))]).await;
    let (first, mut stream) = anchor.svids().await;
    let operator = TrustClient::new(anchor.channel("anchor.sock").await);
    let revoke = |what| {
        let request = RevokeRequest { what: Some(what), ..RevokeRequest::default() };
        let mut operator = operator.clone();
        async move { operator.revoke(request).await.unwrap() }
    };
    let serial: String = leaf(&first).raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
    revoke(What::Serial(serial)).await;
    let second = next(&mut stream).await.unwrap().unwrap();
    assert_ne!(leaf(&second).raw_serial(), leaf(&first).raw_serial());
    let mut client = anchor.client().await;
    let ask = JwtsvidRequest { audience: vec!["db".into()], ..JwtsvidRequest::default() };
    let token = client.fetch_jwtsvid(with_header(ask.clone())).await.unwrap().into_inner().svids.remove(0).svid;
    let check = ValidateJwtsvidRequest { audience: "db".into(), svid: token };
    client.validate_jwtsvid(with_header(check.clone())).await.unwrap();
    revoke(What::Identity(second.svids[0].spiffe_id.clone())).await;
    let over = next(&mut stream).await.unwrap_err();
    assert_eq!(over.code(), Code::PermissionDenied, "{over}");
    assert_eq!(client.fetch_jwtsvid(with_header(ask)).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(client.validate_jwtsvid(with_header(check)).await.unwrap_err().code(), Code::InvalidArgument);
    anchor.stop().await;
}

/// This process, as the kernel tells.
fn ourselves(spiffe_id: &str) -> Caller {
    let gid = std::os::unix::fs::MetadataExt::gid(&std::fs::metadata("/proc/self").unwrap());
    Caller {
        spiffe_id: spiffe_id.into(),
        uid: Some(uid()),
        gid: Some(gid),
        pid: i32::try_from(std::process::id()).ok(),
        executable: std::env::current_exe().unwrap().display().to_string(),
        via: "workload_api".into(),
    }
}

#[tokio::test]
async fn each_svid_is_on_record_with_the_process_that_asked_for_it() {
    let anchor = Anchor::start(&[("web.yaml", entry("web", &format!("  selectors: {{uid: {}}}\n", uid())))]).await;
    let (message, _stream) = anchor.svids().await;
    let id = "spiffe://east.hawser.test/ns/shop/sa/web";
    let issued = anchor.recorded("issue").into_iter().find(|issued| issued.subject == id).unwrap();
    assert_eq!(issued.caller, ourselves(id));
    let serial: String = leaf(&message).raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(issued.serial, serial);
    let ask = JwtsvidRequest { audience: vec!["db".into(), "cache".into()], ..JwtsvidRequest::default() };
    let mut client = anchor.client().await;
    client.fetch_jwtsvid(with_header(ask)).await.unwrap();
    let issued = anchor.recorded("issue-jwt").pop().unwrap();
    assert_eq!((issued.subject.as_str(), issued.detail.as_str(), &issued.caller), (id, "for db cache", &ourselves(id)));
    assert!(!issued.issuer.is_empty() && issued.not_after_ms.is_some());
    anchor.stop().await;
}

#[tokio::test]
async fn who_is_nobody_is_on_record_and_cannot_fill_the_disk() {
    let anchor = Anchor::start(&[("web.yaml", entry("web", "  selectors: {uid: 4000000000}\n"))]).await;
    let mut client = anchor.client().await;
    let mut refused = 0;
    while refused < 100 {
        let status = client.fetch_x509svid(with_header(X509svidRequest {})).await.unwrap_err();
        refused += u32::from(status.code() == Code::PermissionDenied);
    }
    let denied = anchor.recorded("denial");
    assert_eq!(denied.len(), 10, "{denied:?}");
    assert_eq!((denied[0].detail.as_str(), &denied[0].caller), ("no identity issued", &ourselves("")));
    anchor.stop().await;
}

fn names(response: &DiscoveryResponse) -> Vec<String> {
    response.resources.iter().map(|any| Secret::decode(any.value.as_slice()).unwrap().name).collect()
}

#[tokio::test]
async fn an_envoy_gets_the_secrets_that_it_names_and_another_when_they_change() {
    let rest = format!("  selectors: {{uid: {}}}\n  ttlSeconds: 2\n", uid());
    let anchor = Anchor::start(&[("web.yaml", entry("web", &rest))]).await;
    drop(anchor.svids().await);
    let mut client = SecretDiscoveryServiceClient::new(anchor.channel("open/workload.sock").await);
    let (send, requests) = tokio::sync::mpsc::channel(8);
    let ask = |names: &[&str], nonce: &str| DiscoveryRequest {
        resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
        response_nonce: nonce.to_owned(),
        ..DiscoveryRequest::default()
    };
    let id = "spiffe://east.hawser.test/ns/shop/sa/web";
    let all = ["default", id, "ROOTCA", "ALL", "spiffe://east.hawser.test"];
    send.send(ask(&all, "")).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut stream = client.stream_secrets(requests).await.unwrap().into_inner();
    let first = next(&mut stream).await.unwrap().unwrap();
    let mut sorted = names(&first);
    sorted.sort();
    let mut expected = all.map(str::to_owned).to_vec();
    expected.sort();
    assert_eq!(sorted, expected);
    let secret = |response: &DiscoveryResponse, name: &str| {
        let secrets = response.resources.iter().map(|any| Secret::decode(any.value.as_slice()).unwrap());
        secrets.into_iter().find(|secret| secret.name == name).unwrap().r#type.unwrap()
    };
    // The anchors are bound to their trust domain: a plain list would let each speak for every other.
    let Type::ValidationContext(context) = secret(&first, "ALL") else { panic!("a validation context") };
    let validator = context.custom_validator_config.unwrap().typed_config.unwrap();
    assert!(validator.type_url.ends_with(".SPIFFECertValidatorConfig"));
    let validator = SpiffeCertValidatorConfig::decode(validator.value.as_slice()).unwrap();
    assert_eq!(validator.trust_domains.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["east.hawser.test"]);
    // Taken, then refused: no answer to either, but the next certificate comes all the same.
    send.send(ask(&all, &first.nonce)).await.unwrap();
    let second = next(&mut stream).await.unwrap().unwrap();
    assert_ne!(secret(&second, "default"), secret(&first, "default"));
    assert_eq!(secret(&second, "ALL"), secret(&first, "ALL"));
    let refusal = hawser_api::proto::sds::Status { code: 3, message: "bad".into() };
    send.send(DiscoveryRequest { error_detail: Some(refusal), ..ask(&all, &second.nonce) }).await.unwrap();
    let third = next(&mut stream).await.unwrap().unwrap();
    assert_ne!(third.nonce, second.nonce);
    // Other names are answered at once.
    send.send(ask(&["ROOTCA"], &third.nonce)).await.unwrap();
    let mut fourth = next(&mut stream).await.unwrap().unwrap();
    while names(&fourth).len() > 1 {
        fourth = next(&mut stream).await.unwrap().unwrap();
    }
    assert_eq!(names(&fourth), ["ROOTCA"]);
    let everything = client.fetch_secrets(ask(&[], "")).await.unwrap().into_inner();
    assert_eq!(names(&everything), [id, "spiffe://east.hawser.test"]);
    for unknown in ["spiffe://east.hawser.test/ns/shop/sa/admin", "spiffe://west.hawser.test", "x"] {
        let refused = client.fetch_secrets(ask(&[unknown], "")).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{unknown}");
    }
    anchor.stop().await;
}
