//! Against endpoints in this process: who may answer, and what may be answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hawser_api::SpiffeId;
use hawser_tunnel::https::Server;
use hawser_tunnel::testing::{Pki, clock, domain, id};
use hawser_tunnel::tls::{Anchors, Credentials, Identity};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

const ANCHOR: &str = "/ns/hawser-system/sa/trust-anchor";

/// Takes everything that parses, as the first bundle of a peer would be.
struct Keeps(Mutex<(Option<Bundle>, Vec<String>)>, Option<Credentials>);

impl Keeps {
    fn with(bundle: Option<Bundle>) -> Self {
        Self(Mutex::new((bundle, Vec::new())), None)
    }
}

impl Taker for &Keeps {
    fn held(&self) -> Option<Bundle> {
        self.0.lock().0.clone()
    }
    fn vouched(&self, id: &SpiffeId) -> Result<Client, String> {
        let credentials = self.1.as_ref().ok_or("nobody else is linked")?;
        Client::vouched(credentials, id, clock).map_err(|e| e.to_string())
    }
    async fn offer(&self, document: &str) -> Result<(), String> {
        self.0.lock().0 = Some(Bundle::parse(document).map_err(|e| e.to_string())?);
        Ok(())
    }
    fn trouble(&self, why: &str) {
        self.0.lock().1.push(why.to_owned());
    }
}

/// Says the same answer to every request, with this certificate.
async fn serve(server: Server, answer: String) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = asked.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let Ok(mut stream) = server.accept(socket).await else { continue };
            let mut request = vec![0; 4096];
            if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                counted.fetch_add(1, Ordering::Relaxed);
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        }
    });
    (address, asked)
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn identity(pki: &Pki, cluster: &str, path: &str) -> Server {
    let minted = pki.mint(cluster, path, Duration::from_secs(600));
    Server::spiffe(&Identity::new(minted.chain, minted.key).unwrap(), clock).unwrap()
}

fn spiffe(address: SocketAddr, id: SpiffeId) -> Endpoint {
    let endpoint = BundleEndpoint {
        url: format!("https://{address}/bundle"),
        profile: BundleProfile::HttpsSpiffe,
        endpoint_spiffe_id: Some(id),
        ca_file: None,
        follow_redirects: false,
    };
    Endpoint { peer: "east".parse().unwrap(), domain: domain("east"), endpoint }
}

fn bundle(pki: &Pki, sequence: u64) -> Bundle {
    Bundle { sequence, ..pki.bundle() }
}

#[tokio::test]
async fn the_bundle_held_proves_the_first_fetch_and_the_fetched_one_the_next() {
    let (old, new) = (Pki::new(), Pki::new());
    // It is served under the old root, and brings the new one alone.
    let (address, _) = serve(identity(&old, "east", ANCHOR), ok(&bundle(&new, 2).to_document())).await;
    let keeps = Keeps::with(Some(bundle(&old, 1)));
    let endpoint = spiffe(address, id("east", ANCHOR));
    endpoint.round(&&keeps, &mut None).await.unwrap();
    assert_eq!((&keeps).held().unwrap().sequence, 2);
    // Who still answers under the old root is nobody any more.
    let error = endpoint.round(&&keeps, &mut None).await.unwrap_err();
    assert!(error.contains("untrusted"), "{error}");
    let (address, _) = serve(identity(&new, "east", ANCHOR), ok(&bundle(&new, 3).to_document())).await;
    spiffe(address, id("east", ANCHOR)).round(&&keeps, &mut None).await.unwrap();
    assert_eq!((&keeps).held().unwrap().sequence, 3);
}

#[tokio::test]
async fn an_endpoint_with_another_identity_another_root_or_no_bundle_to_judge_by_is_not_asked() {
    let (pki, evil) = (Pki::new(), Pki::new());
    for (server, held) in [
        (identity(&pki, "east", "/ns/shop/sa/web"), Some(bundle(&pki, 1))),
        (identity(&evil, "east", ANCHOR), Some(bundle(&pki, 1))),
        (identity(&pki, "north", ANCHOR), Some(bundle(&pki, 1))),
        (identity(&pki, "east", ANCHOR), Some(Bundle::default())),
        (identity(&pki, "east", ANCHOR), None),
    ] {
        let (address, asked) = serve(server, ok(&bundle(&evil, 9).to_document())).await;
        let keeps = Keeps::with(held.clone());
        spiffe(address, id("east", ANCHOR)).round(&&keeps, &mut None).await.unwrap_err();
        assert_eq!((&keeps).held(), held);
        assert_eq!(asked.load(Ordering::Relaxed), 0, "no request was sent");
    }
}

#[tokio::test]
async fn an_endpoint_of_another_trust_domain_is_proved_by_that_ones_bundle_and_not_by_the_one_it_serves() {
    let (east, north) = (Pki::new(), Pki::new());
    let credentials = Credentials::new(domain("west"), clock);
    assert!(credentials.set_anchors(&domain("north"), Anchors::Bundle(bundle(&north, 1))).is_empty());
    let asked_of = async |server: Server, id: SpiffeId, linked: bool| {
        let (address, asked) = serve(server, ok(&bundle(&east, 2).to_document())).await;
        let keeps = Keeps(Mutex::new((Some(bundle(&east, 1)), Vec::new())), linked.then(|| credentials.clone()));
        let done = spiffe(address, id).round(&&keeps, &mut None).await;
        let sequence = (&keeps).held().unwrap().sequence;
        assert_eq!((sequence == 2, asked.load(Ordering::Relaxed) == 1), (done.is_ok(), done.is_ok()), "{done:?}");
        done.is_ok()
    };
    assert!(asked_of(identity(&north, "north", ANCHOR), id("north", ANCHOR), true).await);
    // Not linked; of the right name under the root of the bundle that is asked for; another identity of north's.
    assert!(!asked_of(identity(&north, "north", ANCHOR), id("north", ANCHOR), false).await);
    assert!(!asked_of(identity(&east, "north", ANCHOR), id("north", ANCHOR), true).await);
    assert!(!asked_of(identity(&north, "north", "/ns/shop/sa/web"), id("north", ANCHOR), true).await);
    // North's bundle is no word about an endpoint of the peer's own, whoever signed that.
    assert!(!asked_of(identity(&north, "east", ANCHOR), id("east", ANCHOR), true).await);
}

#[tokio::test]
async fn profiles_do_not_stand_in_for_each_other() {
    let (pki, directory) = (Pki::new(), tempfile::tempdir().unwrap());
    let (chain, key) = web(directory.path());
    let document = ok(&bundle(&pki, 2).to_document());
    let (address, _) = serve(Server::web(&chain, &key, clock).unwrap(), document.clone()).await;
    let mut endpoint = spiffe(address, id("east", ANCHOR));
    endpoint.round(&&Keeps::with(Some(bundle(&pki, 1))), &mut None).await.unwrap_err();
    endpoint.endpoint.profile = BundleProfile::HttpsWeb;
    endpoint.endpoint.endpoint_spiffe_id = None;
    endpoint.endpoint.ca_file = Some(directory.path().join("ca.pem"));
    // Nothing needs to be held: a web certificate is proved by its own authorities.
    endpoint.round(&&Keeps::with(None), &mut None).await.unwrap();
    let (address, _) = serve(identity(&pki, "east", ANCHOR), document).await;
    endpoint.endpoint.url = format!("https://{address}/");
    endpoint.round(&&Keeps::with(None), &mut None).await.unwrap_err();
}

/// A certificate for 127.0.0.1 and its authority, in files.
fn web(directory: &Path) -> (Vec<u8>, Vec<u8>) {
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"])
        .args(["-subj", "/CN=bundles", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "key.pem", "-out", "ca.pem"])
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let read = |name: &str| std::fs::read(directory.join(name)).unwrap();
    (read("ca.pem"), read("key.pem"))
}

#[tokio::test]
async fn what_is_no_bundle_too_large_or_another_status_changes_nothing() {
    let pki = Pki::new();
    let large = format!("{{\"keys\": [], \"pad\": \"{}\"}}", "x".repeat(1 << 20));
    let keys = vec![r#"{"kty":"EC","use":"jwt-svid","kid":"a"}"#; 101].join(",");
    for answer in [
        ok("{}"),
        ok("not JSON"),
        ok(&large),
        ok(&format!("{{\"keys\": [{keys}]}}")),
        ok(r#"{"keys":[],"keys":[]}"#),
        "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 301 Moved\r\nlocation: https://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\u{fffd}".to_owned(),
        "garbage\r\n\r\n".to_owned(),
        String::new(),
    ] {
        let (address, _) = serve(identity(&pki, "east", ANCHOR), answer.clone()).await;
        let keeps = Keeps::with(Some(bundle(&pki, 1)));
        let done = spiffe(address, id("east", ANCHOR)).round(&&keeps, &mut None).await;
        assert!(done.is_err(), "{answer:.100}");
        assert_eq!((&keeps).held(), Some(bundle(&pki, 1)));
    }
}

#[tokio::test]
async fn redirects_are_followed_only_if_told_and_only_to_who_is_proved_and_not_ours() {
    let pki = Pki::new();
    let (goal, asked) = serve(identity(&pki, "east", ANCHOR), ok(&bundle(&pki, 2).to_document())).await;
    let to = |location: &str| format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
    for location in [format!("https://{goal}/"), "http://192.0.2.1/".into(), "https://u@192.0.2.1/".into(), "".into()] {
        let (address, _) = serve(identity(&pki, "east", ANCHOR), to(&location)).await;
        let mut endpoint = spiffe(address, id("east", ANCHOR));
        for follow in [false, true] {
            endpoint.endpoint.follow_redirects = follow;
            // Followed, but not to an address of this machine: only the local configuration may name one.
            endpoint.round(&&Keeps::with(Some(bundle(&pki, 1))), &mut None).await.unwrap_err();
        }
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    // Another path of the same endpoint, for ever.
    let (address, asked) = serve(identity(&pki, "east", ANCHOR), to("/again")).await;
    let mut endpoint = spiffe(address, id("east", ANCHOR));
    endpoint.endpoint.follow_redirects = true;
    let error = endpoint.round(&&Keeps::with(Some(bundle(&pki, 1))), &mut None).await.unwrap_err();
    assert!(error.contains("redirects"), "{error}");
    assert_eq!(asked.load(Ordering::Relaxed), 4);
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_the_next_try_is_at_the_next_tick() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let keeps = Keeps::with(Some(Bundle { refresh_hint: Some(60), ..bundle(&Pki::new(), 1) }));
    let following = spiffe(nobody, id("east", ANCHOR)).follow(&keeps);
    assert!(tokio::time::timeout(Duration::from_secs(600), following).await.is_err());
    let tries = keeps.0.lock().1.len();
    assert!((9..=12).contains(&tries), "{tries} tries in ten minutes at a hint of one");
}

#[test]
fn the_hint_is_followed_within_bounds() {
    for (hint, least, most) in [(None, 270, 330), (Some(0), 1, 3), (Some(60), 54, 66), (Some(u32::MAX), 3240, 3960)] {
        let pause = pause(hint).as_secs();
        assert!((least..=most).contains(&pause), "{hint:?}: {pause}");
    }
}
