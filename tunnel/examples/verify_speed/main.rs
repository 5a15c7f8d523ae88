//! What verification and full mutual handshakes cost: a chain of ours from DER to verdict, TLS 1.3 in memory (as over
//! TCP, without the sockets) and over QUIC, and OpenSSL's figures for the same certificates. Prints JSON; times are CPU
//! time, so others on the machine matter little.
//! `cargo run --release -p hawser-tunnel --features testing --example verify_speed [count]`
//!
//! `cold`: no chain was seen before, as after a change of anchors. `again`: the peer is one that was proved before. OpenSSL
//! keeps nothing, and agrees on keys by X25519; ours offer X25519MLKEM768 as well and take it.

use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hawser_tunnel::testing::{Minted, Pki, clock, configs, domain};
use hawser_tunnel::tls::{Anchors, Credentials, Identity};
use hawser_tunnel::verify::{Anchor, verify};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustix::time::{ClockId, clock_gettime};
use rustls::{ClientConnection, ServerConfig, ServerConnection};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const ALPN: &[u8] = b"hawser/1";
/// Peers that the accepting side has not seen, between two changes of its anchors.
const STRANGERS: usize = 64;
const HOUR: Duration = Duration::from_secs(3600);
/// For the next to dial, and for the last to hear that it was closed.
const PATIENCE: Duration = Duration::from_secs(10);

/// CPU time of this thread, in nanoseconds.
fn cpu() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or_default()
}

fn main() -> Outcome<()> {
    let count: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(3000);
    let pki = Pki::new();
    let minted = pki.mint("west", "/ns/shop/sa/web", HOUR);
    let report = json!({
        "count": count,
        "chain_bytes": minted.chain.iter().map(|der| der.len()).sum::<usize>(),
        "verify_cold_us": micros(verification(&pki, &minted.chain, count)?),
        "tls_in_memory": { "cold": in_memory(&pki, count, true)?, "again": in_memory(&pki, count, false)? },
        "quic_loopback": { "cold": quic(&pki, count, true)?, "again": quic(&pki, count, false)? },
        "openssl": openssl(&pki, &minted, count).unwrap_or_else(|error| json!({ "missing": error.to_string() })),
    });
    #[expect(clippy::print_stdout, reason = "the report")]
    {
        println!("{report:#}");
    }
    Ok(())
}

fn micros(nanoseconds: u64) -> f64 {
    (nanoseconds / 10) as f64 / 100.0
}

/// Of one side: what a handshake costs it, and how many a core does in a second.
fn side(nanoseconds: u64) -> Value {
    json!({ "us": micros(nanoseconds), "per_second_per_core": 1_000_000_000 / nanoseconds.max(1) })
}

fn verification(pki: &Pki, chain: &[CertificateDer<'_>], count: usize) -> Outcome<u64> {
    let anchors = [Anchor::read(pki.root(), &domain("west"))?];
    let before = cpu();
    for _ in 0..count {
        std::hint::black_box(verify(chain, clock(), |_| Some(&anchors))?);
    }
    Ok((cpu() - before) / count as u64)
}

fn stranger(pki: &Pki, cluster: &str, index: usize) -> Outcome<Credentials> {
    let credentials = Credentials::new(domain(cluster), clock);
    let minted = pki.mint(cluster, &format!("/ns/shop/sa/web-{index}"), HOUR);
    credentials.set_identity(Identity::new(minted.chain, minted.key)?);
    credentials.set_anchors(&domain(cluster), Anchors::Bundle(pki.bundle()));
    Ok(credentials)
}

fn in_memory(pki: &Pki, count: usize, cold: bool) -> Outcome<Value> {
    let accepting = stranger(pki, "west", 0)?;
    let (mut client_spent, mut server_spent, mut done) = (0, 0, 0);
    let known = stranger(pki, "west", 1)?;
    if !cold {
        handshake(&known, configs(&known, &accepting, ALPN)?.1, &mut 0, &mut 0)?;
    }
    while done < count as u64 {
        for dialling in &peers(pki, &accepting, &known, cold)? {
            let server = configs(dialling, &accepting, ALPN)?.1;
            handshake(dialling, server, &mut client_spent, &mut server_spent)?;
            done += 1;
        }
    }
    Ok(json!({ "client": side(client_spent / done), "server": side(server_spent / done) }))
}

/// Who dials next: peers of whom nothing is proved, after a change of anchors, or one that is known.
fn peers(pki: &Pki, accepting: &Credentials, known: &Credentials, cold: bool) -> Outcome<Vec<Credentials>> {
    if !cold {
        return Ok(vec![known.clone(); STRANGERS]);
    }
    accepting.remove_anchors(&domain("west"));
    accepting.set_anchors(&domain("west"), Anchors::Bundle(pki.bundle()));
    (0..STRANGERS).map(|index| stranger(pki, "west", index)).collect()
}

/// One full handshake through buffers, with what each side spends on it.
fn handshake(dialling: &Credentials, server: Arc<ServerConfig>, near: &mut u64, far: &mut u64) -> Outcome<()> {
    let config = configs(dialling, dialling, ALPN)?.0;
    let mut at = cpu();
    let mut client = ClientConnection::new(config, "hawser.invalid".try_into()?)?;
    *near += lap(&mut at);
    let mut server = ServerConnection::new(server)?;
    *far += lap(&mut at);
    let mut wire = Vec::with_capacity(8192);
    while client.is_handshaking() || server.is_handshaking() {
        while client.wants_write() {
            client.write_tls(&mut wire)?;
        }
        *near += lap(&mut at);
        let mut arrived = &wire[..];
        while !arrived.is_empty() {
            server.read_tls(&mut arrived)?;
            server.process_new_packets()?;
        }
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire)?;
        }
        *far += lap(&mut at);
        let mut arrived = &wire[..];
        while !arrived.is_empty() {
            client.read_tls(&mut arrived)?;
            client.process_new_packets()?;
        }
        wire.clear();
        *near += lap(&mut at);
    }
    Ok(())
}

fn lap(at: &mut u64) -> u64 {
    let now = cpu();
    now - std::mem::replace(at, now)
}

/// Over loopback, one after the other, each end on a thread of its own; sockets and timers are in it.
fn quic(pki: &Pki, count: usize, cold: bool) -> Outcome<Value> {
    let (accepting, known) = (stranger(pki, "west", 0)?, stranger(pki, "west", 1)?);
    let server = configs(&known, &accepting, ALPN)?.1;
    let (told, address) = std::sync::mpsc::channel();
    let all = count.div_ceil(STRANGERS) * STRANGERS;
    let serving = std::thread::spawn(move || serve(server, all, &told));
    let address = address.recv()?;
    let (spent, done) = runtime()?.block_on(async {
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse()?)?;
        let (mut spent, mut done) = (0, 0);
        while done < count as u64 {
            for dialling in &peers(pki, &accepting, &known, cold)? {
                let config = dials(dialling)?;
                let before = cpu();
                let near = endpoint.connect_with(config, address, "hawser.invalid")?.await?;
                // The other end has all of it when it closes.
                near.closed().await;
                spent += cpu() - before;
                done += 1;
            }
        }
        Outcome::Ok((spent, done))
    })?;
    let (server_spent, served) = serving.join().map_err(|_| "the accepting end panicked")??;
    Ok(json!({ "client": side(spent / done), "server": side(server_spent / served) }))
}

/// The accepting end of so many handshakes: what it spent, on how many.
fn serve(config: Arc<ServerConfig>, all: usize, told: &std::sync::mpsc::Sender<SocketAddr>) -> Outcome<(u64, u64)> {
    runtime()?.block_on(async {
        let config = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(config)?));
        let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse()?)?;
        told.send(endpoint.local_addr()?)?;
        let before = cpu();
        for _ in 0..all {
            let next = tokio::time::timeout(PATIENCE, endpoint.accept()).await;
            let far = next.map_err(|_| "nobody dials any more")?.ok_or("the endpoint is closed")?.await?;
            far.close(0u32.into(), b"");
        }
        let spent = cpu() - before;
        let _ = tokio::time::timeout(PATIENCE, endpoint.wait_idle()).await;
        Ok((spent, u64::try_from(all)?))
    })
}

fn dials(dialling: &Credentials) -> Outcome<quinn::ClientConfig> {
    let config = configs(dialling, dialling, ALPN)?.0;
    Ok(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?)))
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

/// Compiles `openssl.c` and runs it on the same certificates.
fn openssl(pki: &Pki, minted: &Minted, count: usize) -> Outcome<Value> {
    let directory = tempfile::tempdir()?;
    let write = |name: &str, text: String| std::fs::write(directory.path().join(name), text);
    let PrivateKeyDer::Pkcs8(key) = &minted.key else { return Err("not PKCS#8".into()) };
    write("key.pem", pem("PRIVATE KEY", key.secret_pkcs8_der()))?;
    let chain: Vec<String> = minted.chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
    write("chain.pem", chain.concat())?;
    write("issuer.pem", chain.get(1).cloned().unwrap_or_default())?;
    write("root.pem", pem("CERTIFICATE", pki.root()))?;
    write("openssl.c", include_str!("openssl.c").into())?;
    let program = directory.path().join("openssl");
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-o"]).arg(&program).arg(directory.path().join("openssl.c")).args(["-lssl", "-lcrypto"]);
    if !compiler.status()?.success() {
        return Err("openssl.c does not compile: apt-get install gcc libssl-dev".into());
    }
    let output = Command::new(program).arg(directory.path()).arg(count.to_string()).output()?;
    let text = String::from_utf8(output.stdout)?;
    let figures: Vec<u64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [client, server, verification] = figures[..] else {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    };
    let version = String::from_utf8(Command::new("openssl").arg("version").output()?.stdout)?;
    Ok(json!({
        "version": version.trim(),
        "verify_us": micros(verification),
        "tls_in_memory": { "client": side(client), "server": side(server) },
    }))
}
