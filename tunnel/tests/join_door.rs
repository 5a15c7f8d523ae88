//! The join door: who may knock, what it costs, and that it opens nothing else.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hawser_tunnel::join::{self, Pinned, REQUEST_MAX, ask, authority};
use hawser_tunnel::listen::{DoorConfig, Entered, Knock, ListenConfig, TunnelListener};
use hawser_tunnel::testing::{Pki, anybody, clock, id};
use hawser_tunnel::tls::{Credentials, HandshakeError};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const GATEWAY: &str = "/ns/hawser-system/sa/gateway";

/// A listener that answers each knock with what it said, reversed, and tells what it heard.
struct Door {
    address: SocketAddr,
    listener: Arc<TunnelListener>,
    heard: mpsc::UnboundedReceiver<Result<&'static str, HandshakeError>>,
}

/// Says what it was asked, backwards.
async fn answered(knock: Knock) -> Result<&'static str, HandshakeError> {
    let reply: Vec<u8> = knock.request().iter().rev().copied().collect();
    knock.reply(&reply).await.map(|()| "knock")
}

impl Door {
    async fn open(credentials: Credentials, door: DoorConfig) -> Self {
        let config = ListenConfig { door: Some(door), ..ListenConfig::default() };
        let listener = TunnelListener::bind("127.0.0.1:0".parse().unwrap(), credentials, config).await.unwrap();
        let (listener, (tell, heard)) = (Arc::new(listener), mpsc::unbounded_channel());
        let (address, accepting) = (listener.local_addr(), listener.clone());
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let tell = tell.clone();
                tokio::spawn(async move {
                    let said = match incoming.enter().await {
                        Ok(Entered::Tunnel(_)) => Ok("tunnel"),
                        Ok(Entered::Knock(knock)) => answered(knock).await,
                        Err(error) => Err(error),
                    };
                    let _ = tell.send(said);
                });
            }
        });
        Self { address, listener, heard }
    }

    async fn heard(&mut self) -> Result<&'static str, HandshakeError> {
        tokio::time::timeout(Duration::from_secs(20), self.heard.recv()).await.unwrap().unwrap()
    }
}

fn generous() -> DoorConfig {
    DoorConfig { per_second_per_prefix: 1000.0, per_second: 1000.0, ..DoorConfig::default() }
}

fn pinned(pki: &Pki) -> Pinned {
    Pinned { identity: id("east", GATEWAY), pins: vec![authority(pki.root()).unwrap()] }
}

#[tokio::test]
async fn a_stranger_gets_one_answer_from_the_gateway_whose_root_is_pinned() {
    let pki = Pki::new();
    let mut door = Door::open(pki.credentials("east", GATEWAY), generous()).await;
    assert_eq!(ask(door.address, pinned(&pki), b"abc", clock).await.unwrap(), b"cba");
    assert_eq!(door.heard().await, Ok("knock"));
    let large = vec![7; REQUEST_MAX];
    assert_eq!(ask(door.address, pinned(&pki), &large, clock).await.unwrap().len(), REQUEST_MAX);
}

#[tokio::test]
async fn who_is_not_what_the_token_pins_gets_not_a_byte_of_the_request() {
    let (pki, evil) = (Pki::new(), Pki::new());
    for (credentials, why) in [
        // A man in the middle with a root of his own and the very same names.
        (evil.credentials("east", GATEWAY), "pinned key"),
        // A workload of the right cluster, and the gateway of another cluster under the right root.
        (pki.credentials("east", "/ns/shop/sa/web"), "none of the identities"),
        (pki.credentials("north", GATEWAY), "north"),
    ] {
        let mut door = Door::open(credentials, generous()).await;
        let error = ask(door.address, pinned(&pki), b"secret", clock).await.unwrap_err();
        assert!(["untrusted", "wrong_identity"].contains(&error.reason), "{error}");
        assert!(error.detail.contains(why), "{error}");
        assert!(door.heard().await.is_err(), "nothing was heard");
    }
}

#[tokio::test]
async fn a_man_in_the_middle_who_sends_the_pinned_root_along_proves_nothing_by_it() {
    let (pki, evil) = (Pki::new(), Pki::new());
    let credentials = evil.credentials("east", GATEWAY);
    // The true root beside his own: his chain still ends in a key that is not pinned.
    let both = hawser_api::bundle::Bundle {
        sequence: 2,
        x509_authorities: vec![evil.root().to_vec(), pki.root().to_vec()],
        ..Default::default()
    };
    let dropped =
        credentials.set_anchors(&"east.hawser.test".parse().unwrap(), hawser_tunnel::tls::Anchors::Bundle(both));
    assert_eq!(dropped, Vec::<String>::new());
    let mut door = Door::open(credentials, generous()).await;
    let error = ask(door.address, pinned(&pki), b"secret", clock).await.unwrap_err();
    assert_eq!(error.reason, "untrusted", "{error}");
    assert!(door.heard().await.is_err());
}

#[tokio::test]
async fn tunnels_demand_a_certificate_although_the_door_does_not() {
    let pki = Pki::new();
    let mut door = Door::open(pki.credentials("east", GATEWAY), generous()).await;
    for protocols in [&[][..], &[&b"hawser/1"[..]], &[b"hawser-join/1", b"hawser/1"], &[b"hawser/1", b"hawser-join/1"]]
    {
        // TLS 1.3 lets the client believe that it is in until it reads.
        if let Ok(mut stream) = dial(door.address, protocols).await {
            assert_ne!(stream.get_ref().1.alpn_protocol(), Some(join::ALPN), "{protocols:?}");
            let _ = stream.write_all(&[0; 8]).await;
            assert!(!matches!(stream.read(&mut [0; 8]).await, Ok(1..)), "{protocols:?}");
        }
        let error = door.heard().await.unwrap_err();
        assert!(["untrusted", "protocol", "no_identity"].contains(&error.reason), "{protocols:?}: {error}");
    }
    assert!(dial(door.address, &[b"h2"]).await.is_err());
    assert_eq!(door.heard().await.unwrap_err().reason, "alpn");
    let mut stream = dial(door.address, &[join::ALPN]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(join::ALPN));
    // What opens a tunnel opens nothing here: it is taken for a request, and too long.
    stream.write_all(&[0xff; 64]).await.unwrap();
    assert_eq!(door.heard().await.unwrap_err().reason, "too_large");
}

#[tokio::test]
async fn who_asks_for_too_much_too_slowly_or_too_often_is_closed() {
    let pki = Pki::new();
    let config = DoorConfig { at_once: 2, deadline: Duration::from_millis(400), ..generous() };
    let mut door = Door::open(pki.credentials("east", GATEWAY), config).await;
    let too_large = ask(door.address, pinned(&pki), &vec![7; REQUEST_MAX + 1], clock).await;
    assert!(too_large.is_err());
    assert_eq!(door.heard().await.unwrap_err().reason, "too_large");

    let begun = Instant::now();
    let mut slow = Vec::new();
    for _ in 0..2 {
        let mut stream = dial(door.address, &[join::ALPN]).await.unwrap();
        stream.write_all(&[0, 0, 1, 0, 7]).await.unwrap();
        slow.push(stream);
    }
    // Both places are taken: others are closed before their handshake, whatever they pay.
    assert!(dial(door.address, &[join::ALPN]).await.is_err());
    assert_eq!(door.heard().await.unwrap_err().reason, "too_often");
    for _ in 0..2 {
        assert_eq!(door.heard().await.unwrap_err().reason, "timed_out");
    }
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(ask(door.address, pinned(&pki), b"abc", clock).await.unwrap(), b"cba");
    assert_eq!(door.listener.knocks().unwrap().busy.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_flood_of_knocks_costs_ten_handshakes_and_leaves_tunnels_alone() {
    let pki = Pki::new();
    let door = Door::open(pki.credentials("east", GATEWAY), DoorConfig::default()).await;
    let mut answered = 0;
    for _ in 0..60 {
        answered += usize::from(ask(door.address, pinned(&pki), b"guess", clock).await.is_ok());
    }
    // Ten at once, and one a second: this takes well under five.
    assert!((10..16).contains(&answered), "{answered}");
    let knocks = door.listener.knocks().unwrap();
    assert_eq!(knocks.too_often.load(Ordering::Relaxed), 60 - u64::try_from(answered).unwrap());
}

/// A client without a certificate that takes any server.
async fn dial(address: SocketAddr, protocols: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut config = anybody().with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let socket = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("hawser.invalid").unwrap(), socket).await
}
