//! The endpoint over real sockets, asked as a stranger asks.

use std::path::Path;

use hawser_api::SpiffeId;
use hawser_api::bundle::Bundle;
use hawser_api::labels::{SYSTEM_NAMESPACE, TRUST_ANCHOR_ACCOUNT};
use hawser_tunnel::https::Client;
use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::*;
use crate::audit;
use crate::config::Config;
use crate::hierarchy::{init_root, make_csr, sign_intermediate};

const GET: &str = "GET /bundle HTTP/1.1\r\nhost: x\r\n\r\n";
/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

fn config(directory: &Path) -> Config {
    let value = serde_json::json!({
        "process": {
            "name": "west/trust-anchor", "admin": "127.0.0.1:0", "runFile": directory.join("run.json"), "drainSeconds": 1,
        },
        "cluster": "west", "trustDomain": "west.example", "state": directory.join("store"),
        "socket": directory.join("s"), "rootCertificate": directory.join("root/root.crt"),
    });
    serde_json::from_value(value).unwrap()
}

struct Site {
    directory: tempfile::TempDir,
    authority: Arc<Authority>,
    process: Process,
    address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Site {
    /// With a bundle and an intermediate; `https_web` has its files in the same directory.
    async fn start(profile: BundleProfile) -> Self {
        let directory = tempfile::tempdir().unwrap();
        init_root(&directory.path().join("root"), "one", clock::now()).unwrap();
        let csr = make_csr(&directory.path().join("store"), &"west.example".parse().unwrap()).unwrap();
        sign_intermediate(&directory.path().join("root"), &csr, None, clock::now()).unwrap();
        let process = Process::detached();
        let authority = Authority::open(&config(directory.path()), &process).unwrap();
        authority.driver.lock().look(&authority, clock::now());
        let web = |name: &str| (profile == BundleProfile::HttpsWeb).then(|| directory.path().join(name));
        let (certificate, key) = (web("web.crt"), web("web.key"));
        let config = BundleEndpointConfig { address: "127.0.0.1:0".parse().unwrap(), profile, certificate, key };
        let listener = bind(&config).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(Arc::clone(&authority), listener, config, process.clone()));
        Self { directory, authority, process, address, serving }
    }

    /// A client that knows the endpoint by what is published.
    fn spiffe(&self) -> Client {
        let bundle = Bundle::parse(&self.authority.bundle.borrow()).unwrap();
        let domain = self.authority.credentials.own_domain();
        let id = SpiffeId::service_account(domain, SYSTEM_NAMESPACE, TRUST_ANCHOR_ACCOUNT).unwrap();
        Client::spiffe(domain, &bundle, &id, clock::now).unwrap()
    }

    /// Writes a certificate of its own for 127.0.0.1; gives back a client that knows it.
    fn certificate(&self) -> Client {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        std::fs::write(self.directory.path().join("web.key"), key.serialize_pem()).unwrap();
        std::fs::write(self.directory.path().join("web.crt"), &pem).unwrap();
        Client::web(pem.as_bytes(), clock::now).unwrap()
    }

    async fn ask(&self, client: &Client, request: &str) -> anyhow::Result<String> {
        let asked = async {
            let socket = TcpStream::connect(self.address).await?;
            let mut stream = client.connect(socket, "127.0.0.1").await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        };
        timeout(PATIENCE, asked).await.unwrap()
    }

    /// Serial numbers of the SVIDs that the endpoint was issued.
    fn issued(&self) -> Vec<String> {
        let mut serials = Vec::new();
        let reading = audit::read(&self.directory.path().join("store"), |line| {
            if line.entry.event == "issue" && line.entry.caller.via == "itself" {
                serials.push(line.entry.serial.clone());
            }
        });
        assert_eq!(reading.unwrap().broken, None);
        serials
    }

    async fn stop(self) {
        self.process.drain.cancel();
        timeout(PATIENCE, self.serving).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn anybody_reads_the_bundle_as_it_is_published_and_nothing_else_can_be_asked() {
    let site = Site::start(BundleProfile::HttpsSpiffe).await;
    let client = site.spiffe();
    let answer = site.ask(&client, GET).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-type: application/json"), "{head}");
    assert_eq!(body, *site.authority.bundle.borrow());
    for (request, status) in [
        (GET.replace("GET", "POST"), "405"),
        (GET.replace("GET", "HEAD"), "405"),
        (GET.replace("HTTP/1.1", "HTTP/9.9"), "400"),
        (GET.replace("host: x", &format!("host: {}", "x".repeat(20_000))), "431"),
    ] {
        let answer = site.ask(&client, &request).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:.20}: {answer}");
        assert!(!answer.contains("keys"), "{answer}");
    }
    site.authority.bundle.send_replace(String::new());
    assert!(site.ask(&client, GET).await.unwrap().starts_with("HTTP/1.1 503"), "there is nothing to give yet");
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_svid_serves_all_until_half_its_life_or_until_another_authority_signs() {
    let site = Site::start(BundleProfile::HttpsSpiffe).await;
    for _ in 0..5 {
        site.ask(&site.spiffe(), GET).await.unwrap();
    }
    assert_eq!(site.issued().len(), 1);

    let config = BundleEndpointConfig {
        address: site.address,
        profile: BundleProfile::HttpsSpiffe,
        certificate: None,
        key: None,
    };
    // By this test's time from here on, so that the endpoint that serves renews nothing by its own.
    site.process.stop.cancel();
    let endpoint = Endpoint { authority: Arc::clone(&site.authority), config, proof: Mutex::new(None) };
    let now = clock::now();
    for (after, issued) in [(0, 1), (11, 1), (13, 2), (24, 2)] {
        endpoint.server(now + Duration::from_secs(after * 3600)).unwrap();
        assert_eq!(site.issued().len(), issued, "after {after} h");
    }
    // Another intermediate under the same root: the SVID is good for an hour yet, its issuer is not.
    let store = site.directory.path().join("store");
    std::fs::remove_file(store.join("intermediate.key")).unwrap();
    let csr = make_csr(&store, &"west.example".parse().unwrap()).unwrap();
    sign_intermediate(&site.directory.path().join("root"), &csr, None, clock::now()).unwrap();
    site.authority.driver.lock().look(&site.authority, clock::now());
    endpoint.server(now + Duration::from_secs(24 * 3600)).unwrap();
    assert_eq!(site.issued().len(), 3);
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_certificate_is_read_anew_and_a_bad_one_leaves_nobody_served_by_the_old_name() {
    let site = Site::start(BundleProfile::HttpsWeb).await;
    site.ask(&site.spiffe(), GET).await.expect_err("there are no files yet");
    let first = site.certificate();
    site.ask(&first, GET).await.unwrap();
    site.ask(&site.spiffe(), GET).await.expect_err("it has no SVID");
    let second = site.certificate();
    site.ask(&second, GET).await.unwrap();
    site.ask(&first, GET).await.expect_err("the first certificate is replaced");
    std::fs::write(site.directory.path().join("web.crt"), "nonsense").unwrap();
    site.ask(&second, GET).await.expect_err("the file holds no certificate");
    let third = site.certificate();
    site.ask(&third, GET).await.unwrap();
    assert_eq!(site.issued(), Vec::<String>::new());
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_all_places_is_closed_in_time_and_others_are_served_then() {
    let site = Site::start(BundleProfile::HttpsSpiffe).await;
    let client = site.spiffe();
    site.ask(&client, GET).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        held.push(TcpStream::connect(site.address).await.unwrap());
    }
    // They are accepted one after the other, so that this one, which comes last, is closed unseen.
    site.ask(&client, GET).await.expect_err("there is no room");
    let begun = clock::monotonic();
    for mut silent in held {
        let read = timeout(PATIENCE, silent.read(&mut [0; 1])).await.expect("it is closed in time");
        assert!(matches!(read, Ok(0) | Err(_)));
    }
    assert!(begun.elapsed() <= CONNECTION_MAX + Duration::from_secs(5));
    site.ask(&client, GET).await.unwrap();
    site.stop().await;
}
