//! OpenSSL at the other end: it takes our certificates, we take its handshakes, and nothing of ours can be resumed.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::*;
use crate::testing::Minted;

const PATIENCE: Duration = Duration::from_secs(20);

fn openssl(arguments: &[&str]) -> Command {
    let mut command = Command::new("openssl");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

fn start(mut command: Command) -> Child {
    command.spawn().expect("this test needs openssl: apt-get install openssl")
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

/// Files as OpenSSL wants them.
struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new(pki: &Pki, minted: &Minted) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let PrivateKeyDer::Pkcs8(key) = &minted.key else { panic!("not PKCS#8") };
        let write = |name: &str, content: String| std::fs::write(directory.path().join(name), content).unwrap();
        write("key.pem", pem("PRIVATE KEY", key.secret_pkcs8_der()));
        write("leaf.pem", pem("CERTIFICATE", &minted.chain[0]));
        write("chain.pem", pem("CERTIFICATE", &minted.chain[1]));
        write("root.pem", pem("CERTIFICATE", pki.root()));
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn identity(&self, command: &mut Command) {
        let file = |name: &str| self.path(name).display().to_string();
        command.args(["-cert", &file("leaf.pem"), "-key", &file("key.pem")]);
        command.args(["-cert_chain", &file("chain.pem"), "-CAfile", &file("root.pem")]);
        command.args(["-verify_return_error", "-x509_strict", "-alpn", "hawser/1"]);
    }
}

/// Accepts one connection, answers `hello` with `world`.
async fn serve_one(listener: &TcpListener, credentials: &Credentials) -> Result<VerifiedPeer, HandshakeError> {
    let (socket, _) = listener.accept().await.unwrap();
    let acceptor = TlsAcceptor::from(credentials.server_config(&[ALPN]).unwrap());
    let mut session = acceptor.accept(socket).await?;
    let mut hello = [0; 6];
    session.read_exact(&mut hello).await?;
    assert_eq!(&hello, b"hello\n");
    assert_eq!(session.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
    session.write_all(b"world\n").await?;
    session.shutdown().await?;
    credentials.verified(session.get_ref().1.peer_certificates().unwrap(), &Expect::Trusted, None)
}

async fn s_client(address: &str, files: Option<&Files>, more: &[&str]) -> String {
    let mut command = openssl(&["s_client", "-connect", address, "-noservername", "-ign_eof"]);
    command.args(more);
    if let Some(files) = files {
        files.identity(&mut command);
    }
    let mut child = start(command);
    child.stdin.take().unwrap().write_all(b"hello\n").await.unwrap();
    let output = timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[tokio::test]
async fn an_openssl_client_is_served_and_can_resume_nothing() {
    let pki = Pki::new();
    let east = pki.linked("east", "/ns/shop/sa/checkout", &["west"]);
    let files = Files::new(&pki, &pki.mint("west", "/ns/shop/sa/web", Duration::from_secs(600)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let kept = files.path("session.pem").display().to_string();

    let keep = ["-sess_out", &kept];
    let (peer, said) = tokio::join!(serve_one(&listener, &east), s_client(&address, Some(&files), &keep));
    assert_eq!(peer.unwrap().id().as_str(), "spiffe://west.hawser.test/ns/shop/sa/web");
    assert!(said.contains("world"), "{said}");
    for line in
        ["TLSv1.3", "ALPN protocol: hawser/1", "Verify return code: 0 (ok)", "No client certificate CA names sent"]
    {
        assert!(said.contains(line), "{line} is not in\n{said}");
    }
    assert!(!said.contains("New Session Ticket"), "a ticket was sent:\n{said}");
    assert!(!Path::new(&kept).exists() || !std::fs::read_to_string(&kept).unwrap().contains("BEGIN SSL SESSION"));
}

#[tokio::test]
async fn older_protocol_versions_are_refused() {
    let pki = Pki::new();
    let east = pki.credentials("east", "/a");
    let files = Files::new(&pki, &pki.mint("east", "/b", Duration::from_secs(600)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (peer, said) = tokio::join!(serve_one(&listener, &east), s_client(&address, Some(&files), &["-tls1_2"]));
    assert_eq!(peer.unwrap_err().reason, "protocol");
    assert!(said.contains("alert protocol version"), "{said}");
}

#[tokio::test]
async fn an_openssl_client_without_a_certificate_is_told_to_bring_one() {
    let pki = Pki::new();
    let east = pki.credentials("east", "/a");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (peer, said) = tokio::join!(serve_one(&listener, &east), s_client(&address, None, &["-alpn", "hawser/1"]));
    assert_eq!(peer.unwrap_err().reason, "untrusted");
    assert!(said.contains("alert certificate required"), "{said}");
}

struct Server {
    child: Child,
    address: String,
}

/// `openssl s_server` that demands a certificate; with `-rev` it sends back each line reversed.
async fn s_server(files: &Files, more: &[&str]) -> Server {
    let mut command = openssl(&["s_server", "-accept", "127.0.0.1:0", "-Verify", "3", "-tls1_3"]);
    command.args(more);
    files.identity(&mut command);
    let mut child = start(command);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = timeout(PATIENCE, async {
        loop {
            let line = lines.next_line().await.unwrap().expect("s_server ended");
            if let Some(address) = line.strip_prefix("ACCEPT ") {
                return address.to_owned();
            }
        }
    });
    let address = address.await.unwrap();
    // What it goes on to say must be read, or it blocks.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Server { child, address }
}

#[tokio::test]
async fn an_openssl_server_takes_our_certificate_and_its_tickets_are_left_alone() {
    let pki = Pki::new();
    let west = pki.linked("west", "/ns/shop/sa/web", &["east"]);
    let files = Files::new(&pki, &pki.mint("east", "/ns/shop/sa/checkout", Duration::from_secs(600)));
    let mut server = s_server(&files, &["-rev"]).await;
    let expect = only(id("east", "/ns/shop/sa/checkout"));
    for _ in 0..2 {
        let socket = TcpStream::connect(&server.address).await.unwrap();
        let connector = TlsConnector::from(west.client_config(&expect, ALPN).unwrap());
        let mut session = connector.connect(ServerName::try_from(SERVER_NAME).unwrap(), socket).await.unwrap();
        session.write_all(b"hello\n").await.unwrap();
        let mut answer = [0; 6];
        timeout(PATIENCE, session.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"olleh\n");
        assert_eq!(session.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        let peer = west.verified(session.get_ref().1.peer_certificates().unwrap(), &expect, None).unwrap();
        assert_eq!(*peer.id(), id("east", "/ns/shop/sa/checkout"));
    }
    // Another identity of the same cluster is not the one that was called.
    let socket = TcpStream::connect(&server.address).await.unwrap();
    let connector = TlsConnector::from(west.client_config(&only(id("east", "/ns/shop/sa/other")), ALPN).unwrap());
    let refused = connector.connect(ServerName::try_from(SERVER_NAME).unwrap(), socket).await;
    assert_eq!(failure(refused).reason, "wrong_identity");
    server.child.kill().await.unwrap();
}

/// A session with a ticket and early data, as a client keeps it: of an OpenSSL server with the same identity as ours, for
/// ours gives none.
async fn kept_session(files: &Files) -> String {
    let mut server = s_server(files, &["-early_data", "-max_early_data", "16384"]).await;
    let kept = files.path("session.pem").display().to_string();
    let mut command = openssl(&["s_client", "-connect", &server.address, "-noservername", "-sess_out", &kept]);
    files.identity(&mut command);
    let mut client = start(command);
    // It keeps the session when the ticket comes; its input stays open until then.
    let there = || std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("END SSL SESSION"));
    let came = async {
        while !there() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, came).await.unwrap();
    client.kill().await.unwrap();
    server.child.kill().await.unwrap();
    kept
}

/// T9, T10: a client that brings a session and early data is met with a full handshake, and with a refusal once it is
/// unlinked or denied.
#[tokio::test]
async fn an_openssl_client_that_brings_a_session_and_early_data_is_verified_all_the_same() {
    let pki = Pki::new();
    let east = pki.linked("east", "/ns/shop/sa/checkout", &["west"]);
    let files = Files::new(&pki, &pki.mint("west", "/ns/shop/sa/web", Duration::from_secs(600)));
    let kept = kept_session(&files).await;
    let early = files.path("early").display().to_string();
    std::fs::write(&early, "delete everything\n").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();

    for more in [&["-sess_in", &kept][..], &["-sess_in", &kept, "-early_data", &early]] {
        let (peer, said) = tokio::join!(serve_one(&listener, &east), s_client(&address, Some(&files), more));
        // What is served begins with `hello`: early data would have come first.
        assert_eq!(peer.unwrap().id().as_str(), "spiffe://west.hawser.test/ns/shop/sa/web");
        assert!(said.contains("world") && said.contains("New, TLSv1.3"), "{said}");
        assert!(!said.contains("Reused") && !said.contains("Early data was accepted"), "{said}");
        assert_eq!(more.len() == 4, said.contains("Early data was rejected"), "{said}");
    }
    let denials = Denials { identities: [id("west", "/ns/shop/sa/web")].into(), ..Denials::default() };
    east.set_denied(denials);
    let more = ["-sess_in", &kept, "-early_data", &early];
    let (peer, _) = tokio::join!(serve_one(&listener, &east), s_client(&address, Some(&files), &more));
    assert_eq!(peer.unwrap_err().reason, "denied");
    east.set_denied(Denials::default());
    east.remove_anchors(&domain("west"));
    let (peer, _) = tokio::join!(serve_one(&listener, &east), s_client(&address, Some(&files), &more));
    assert_eq!(peer.unwrap_err().reason, "untrusted");
}
