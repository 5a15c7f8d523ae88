//! OpenSSL as the other end: megabytes both ways, with key updates that it asks for and that it only does.

use std::path::PathBuf;
use std::process::Stdio;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::splice::Ended;
use crate::testing::Minted;

const ALPN: &str = "hawser-tcp/1";

/// Texts without a letter that OpenSSL's programs take for a command.
fn text(length: usize) -> Vec<u8> {
    noise(length / 2).iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect()
}

struct OpenSsl {
    child: Child,
    stdin: ChildStdin,
    stdout: tokio::task::JoinHandle<Vec<u8>>,
    directory: tempfile::TempDir,
}

impl OpenSsl {
    /// `s_client` or `s_server` with a certificate of ours.
    fn start(command: &str, address: &str, Minted { chain, key }: Minted) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| -> PathBuf {
            let path = directory.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let mut child = Command::new("openssl")
            .args([command, address, "-tls1_3", "-alpn", ALPN, "-certform", "DER", "-keyform", "DER"])
            .arg("-cert")
            .arg(file("leaf.der", &chain[0]))
            .arg("-key")
            .arg(file("key.der", key.secret_der()))
            .arg("-cert_chain")
            .arg(file("chain.pem", pem(&chain[1]).as_bytes()))
            .args(["-msg", "-msgfile"])
            .arg(directory.path().join("messages"))
            .args(if command == "s_server" { &["-Verify", "2", "-naccept", "1"][..] } else { &[] })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("openssl is needed: apt-get install openssl");
        let (stdin, mut out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let stdout = tokio::spawn(async move {
            let mut all = Vec::new();
            out.read_to_end(&mut all).await.unwrap();
            all
        });
        Self { child, stdin, stdout, directory }
    }

    async fn says(&mut self, bytes: &[u8]) {
        self.stdin.write_all(bytes).await.unwrap();
        self.stdin.flush().await.unwrap();
    }

    async fn until(&self, way: &str, name: &str, count: usize) {
        let waiting = async {
            while self.messages(way, name) < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        in_time(waiting).await;
    }

    /// How many handshake messages of this name went this way (`>>>` or `<<<`).
    fn messages(&self, way: &str, name: &str) -> usize {
        let log = std::fs::read_to_string(self.directory.path().join("messages")).unwrap();
        log.lines().filter(|line| line.starts_with(way) && line.contains(name)).count()
    }
}

fn pem(der: &[u8]) -> String {
    let output = {
        use std::io::Write;
        let mut child = std::process::Command::new("openssl")
            .args(["x509", "-inform", "DER"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("openssl is needed: apt-get install openssl");
        child.stdin.take().unwrap().write_all(der).unwrap();
        child.wait_with_output().unwrap()
    };
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// Three megabytes each way with key updates of both kinds in between, against this end of ours.
async fn exchange(mut openssl: OpenSsl, session: Dedicated) -> (OpenSsl, Vec<u8>) {
    let (mut app, carried) = tcp_pair().await;
    let relay = tokio::spawn(session.relay(carried, Bytes::new(), Arc::default(), CancellationToken::new()));
    let mut answers = Vec::new();
    for (index, command) in ["K\n", "k\n", "K\n"].iter().enumerate() {
        answers.extend(megabyte(&mut openssl, &mut app).await);
        // Everything has arrived, so that this is the first that the program reads.
        openssl.says(command.as_bytes()).await;
        openssl.until(">>>", "KeyUpdate", index + 1).await;
    }
    answers.extend(megabyte(&mut openssl, &mut app).await);
    app.shutdown().await.unwrap();
    openssl.until("<<<", "Alert", 1).await;
    assert_eq!(openssl.messages("<<<", "KeyUpdate"), 2, "one answer to each that asked");
    drop(std::mem::replace(&mut openssl.stdin, idle_stdin()));
    let ended = in_time(relay).await.unwrap();
    assert!(matches!(ended, Ended::Finished | Ended::PeerReset), "{ended:?}");
    (openssl, answers)
}

/// One megabyte each way at the same time; returns what the program was told.
async fn megabyte(openssl: &mut OpenSsl, app: &mut TcpStream) -> Vec<u8> {
    let (up, down) = (text(1 << 20), text(1 << 20));
    let (mut read, mut write) = app.split();
    let mut got = vec![0; up.len()];
    let both = async { tokio::join!(openssl.says(&up), write.write_all(&down), read.read_exact(&mut got)) };
    let ((), wrote, read) = in_time(both).await;
    wrote.unwrap();
    read.unwrap();
    assert!(got == up);
    down
}

/// A pipe that nobody reads: stands in for one that was closed.
fn idle_stdin() -> ChildStdin {
    Command::new("true").stdin(Stdio::piped()).spawn().unwrap().stdin.take().unwrap()
}

async fn printed(openssl: OpenSsl, answers: &[u8]) {
    let OpenSsl { mut child, stdout, .. } = openssl;
    in_time(child.wait()).await.unwrap();
    let stdout = without(&in_time(stdout).await.unwrap(), &[b"SSL_do_handshake -> 1\n", b"Read BLOCK\n"]);
    let start = stdout.windows(64).position(|window| window == &answers[..64]).expect("the answers");
    assert!(stdout[start..].starts_with(answers));
}

/// What the program says about itself lies between what it received.
fn without(text: &[u8], remarks: &[&[u8]]) -> Vec<u8> {
    let (mut kept, mut left) = (Vec::new(), text);
    while let Some((byte, rest)) = left.split_first() {
        match remarks.iter().find_map(|remark| left.strip_prefix(*remark)) {
            Some(behind) => left = behind,
            None => {
                kept.push(*byte);
                left = rest;
            }
        }
    }
    kept
}

#[tokio::test]
async fn an_openssl_client_and_we_exchange_megabytes_and_change_keys() {
    let pki = Pki::new();
    let server = pki.credentials("west", "/ns/shop/sa/checkout");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("-connect={}", listener.local_addr().unwrap());
    let minted = pki.mint("west", "/ns/shop/sa/web", Duration::from_secs(600));
    let mut openssl = OpenSsl::start("s_client", &address, minted);
    let (socket, _) = in_time(listener.accept()).await.unwrap();
    let mut preface = Vec::new();
    preface::ask(&mut preface, &Ends::target()).await.unwrap();
    let (accepted, ()) = tokio::join!(accept(socket.into(), &server, DEADLINE), openssl.says(&preface));
    let Accepted::Dedicated { mut session, target } = accepted.unwrap() else { panic!("a shared session") };
    assert_eq!((target, session.peer.id()), (Ends::target(), &id("west", "/ns/shop/sa/web")));
    session.confirm().await.unwrap();
    let (openssl, answers) = exchange(openssl, session).await;
    printed(openssl, &answers).await;
}

#[tokio::test]
async fn an_openssl_server_and_we_exchange_megabytes_and_change_keys() {
    let pki = Pki::new();
    let client = pki.credentials("west", "/ns/shop/sa/web");
    // OpenSSL binds by itself: a port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let minted = pki.mint("west", "/ns/shop/sa/checkout", Duration::from_secs(600));
    let mut openssl = OpenSsl::start("s_server", &format!("-accept={address}"), minted);
    let dial = async {
        loop {
            match TcpStream::connect(address).await {
                Ok(socket) => return socket,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let socket = in_time(dial).await;
    let expect = Expect::Identities(Arc::new([id("west", "/ns/shop/sa/checkout")]));
    let target = Ends::target();
    let connect = connect_dedicated(socket.into(), &client, &expect, &target);
    let (session, ()) = tokio::join!(connect, openssl.says(&[0]));
    let (openssl, answers) = exchange(openssl, session.unwrap()).await;
    printed(openssl, &answers).await;
}
