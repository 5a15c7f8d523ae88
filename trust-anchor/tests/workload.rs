//! The Workload API as a client in this very process sees it.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's panic is its report"
)]

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use hawser_api::proto::issuer::issuer_client::IssuerClient;
use hawser_api::proto::issuer::{FabricReport, LinkedPeer};
use hawser_api::proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use hawser_api::proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest, X509svidResponse,
};
use hawser_runtime::config::ProcessConfig;
use hawser_runtime::{Process, clock};
use hawser_trust_anchor::{Config, WorkloadConfig, hierarchy};
use hawser_tunnel::testing::Pki;
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
    let edited = SystemTime::now();
    while message.svids[0].hint != "second" {
        message = next(&mut stream).await.unwrap().unwrap();
    }
    assert!(edited.elapsed().unwrap() < Duration::from_secs(2), "an edit takes effect within a second");
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
