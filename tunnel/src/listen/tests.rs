//! Peers that are hostile, broken or slow: each is answered or cut, within its deadline, and disturbs nobody else.

use std::time::Duration;

use bytes::BytesMut;
use hawser_api::proto::tunnel::Open;
use hawser_api::{Code, Refusal};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::*;
use crate::handoff::{ALPN, Outer};
use crate::open::{OpenRequest, OpenedAnswer, read_answer};
use crate::quic::Link;
use crate::stream::TunnelStream;
use crate::tcp::OpenFailure;
use crate::testing::{Pki, begin, id};

const GATEWAY: &str = "/ns/hawser-system/sa/gateway";
const SOON: Duration = Duration::from_secs(20);

struct Scene {
    pki: Pki,
    west: Credentials,
    listener: TunnelListener,
}

fn quick() -> ListenConfig {
    let short = Duration::from_millis(400);
    ListenConfig { handshake_timeout: short, open_timeout: short, warm_timeout: short, ..ListenConfig::default() }
}

impl Scene {
    async fn new(config: ListenConfig) -> Self {
        let pki = Pki::new();
        let west = pki.linked("west", "/ns/shop/sa/web", &["east"]);
        let east = pki.linked("east", GATEWAY, &["west"]);
        let listener = TunnelListener::bind("127.0.0.1:0".parse().unwrap(), east, config).await.unwrap();
        Self { pki, west, listener }
    }

    fn expect(&self) -> Expect {
        Expect::Identities(Arc::new([id("east", GATEWAY)]))
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.listener.local_addr()).await.unwrap()
    }

    async fn connect_from(&self, from: [u8; 4]) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        socket.connect(self.listener.local_addr()).await.unwrap()
    }

    async fn incoming(&self) -> Incoming {
        timeout(SOON, self.listener.accept()).await.unwrap().unwrap()
    }

    /// A tunnel over TCP whose dialling side is driven by hand.
    async fn tunnel(&self) -> (Client, Tunnel) {
        let mut client = Client::new(self.connect().await, &self.west, &self.expect());
        let (tunnel, ()) = tokio::join!(async { self.incoming().await.handshake().await.unwrap() }, client.handshake());
        (client, tunnel)
    }

    async fn link(&self) -> (Link, Tunnel) {
        let endpoint = quic::endpoint("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let expect = self.expect();
        let connect = Link::connect(&endpoint, self.listener.local_addr(), &self.west, &expect);
        let (link, tunnel) = tokio::join!(connect, async { self.incoming().await.handshake().await.unwrap() });
        (link.unwrap(), tunnel)
    }
}

struct Client {
    socket: TcpStream,
    outer: Outer,
}

impl Client {
    fn new(socket: TcpStream, credentials: &Credentials, expect: &Expect) -> Self {
        Self { socket, outer: Outer::client(credentials.client_config(expect, ALPN).unwrap()).unwrap() }
    }

    async fn handshake(&mut self) {
        while self.outer.is_handshaking() {
            self.flush().await;
            self.receive().await.unwrap();
        }
        self.flush().await;
    }

    fn unsent(&mut self) -> BytesMut {
        self.outer.outbox().split()
    }

    async fn flush(&mut self) {
        let unsent = self.unsent();
        self.socket.write_all(&unsent).await.unwrap();
    }

    async fn receive(&mut self) -> Result<(), HandshakeError> {
        let read = timeout(SOON, self.socket.read_buf(self.outer.inbox())).await.unwrap().unwrap_or(0);
        if read == 0 {
            return Err(HandshakeError { reason: "io", detail: "over".to_owned() });
        }
        self.outer.process()
    }

    async fn answer(&mut self) -> Result<OpenedAnswer, Refusal> {
        loop {
            if let Some(frame) = self.outer.take_frame().unwrap() {
                return read_answer(&frame);
            }
            self.receive().await.unwrap();
        }
    }

    async fn is_closed(&mut self) -> bool {
        matches!(timeout(SOON, self.socket.read(&mut [0; 64])).await.unwrap(), Ok(0) | Err(_))
    }
}

fn open_frame() -> bytes::Bytes {
    OpenRequest::any("shop/checkout:80".parse().unwrap()).to_frame().unwrap()
}

fn yes() -> OpenedAnswer {
    OpenedAnswer { endpoint: "e1".into(), endpoints_ready: 1 }
}

async fn early_of(stream: TunnelStream, most: usize) -> Vec<u8> {
    let mut got = Vec::new();
    let mut limited = stream.take(most as u64);
    timeout(SOON, limited.read_to_end(&mut got)).await.unwrap().unwrap();
    got
}

#[tokio::test]
async fn bytes_pipelined_behind_close_notify_arrive_intact_however_they_are_cut() {
    // Looks like TLS records too: the sealed session's first flight does.
    let sealed: Vec<u8> = [22, 3, 1, 0, 5].into_iter().chain((0..40_000).map(|n| (n % 251) as u8)).collect();
    for piece in [1 << 20, 7_000, 100, 1] {
        let scene = Scene::new(ListenConfig::default()).await;
        let (mut client, mut tunnel) = scene.tunnel().await;
        client.outer.finish_with(&open_frame()).unwrap();
        let mut wire = client.unsent();
        let sealed = if piece == 1 { &sealed[..200] } else { &sealed[..] };
        wire.extend_from_slice(sealed);
        let send = async {
            for part in wire.chunks(piece) {
                client.socket.write_all(part).await.unwrap();
                client.socket.set_nodelay(true).unwrap();
                tokio::task::yield_now().await;
            }
        };
        let serve = async {
            let arrival = timeout(SOON, tunnel.next_open()).await.unwrap().unwrap();
            assert_eq!(arrival.request().target.to_string(), "shop/checkout:80");
            early_of(arrival.accept(&yes()).await.unwrap(), sealed.len()).await
        };
        let ((), got) = tokio::join!(send, serve);
        assert!(got == sealed, "in pieces of {piece}: {} bytes", got.len());
    }
}

#[tokio::test]
async fn finished_open_and_close_notify_are_taken_from_one_flight() {
    let scene = Scene::new(ListenConfig::default()).await;
    let mut client = Client::new(scene.connect().await, &scene.west, &scene.expect());
    let serve = tokio::spawn({
        let incoming = scene.incoming().await;
        async move {
            let mut tunnel = incoming.handshake().await.unwrap();
            tunnel.next_open().await.unwrap().accept(&yes()).await.unwrap()
        }
    });
    client.flush().await;
    while client.outer.is_handshaking() {
        client.receive().await.unwrap();
    }
    client.outer.finish_with(&open_frame()).unwrap();
    let flight = client.unsent();
    client.socket.write_all(&flight).await.unwrap();
    assert_eq!(client.answer().await, Ok(yes()));
    serve.await.unwrap();
}

#[tokio::test]
async fn whoever_says_nothing_is_cut_by_the_handshake_deadline() {
    let scene = Scene::new(quick()).await;
    let mut silent = scene.connect().await;
    let began = Instant::now();
    let error = scene.incoming().await.handshake().await.unwrap_err();
    assert_eq!(error.reason, "timed_out");
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(silent.read(&mut [0; 8]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_byte_now_and_then_does_not_stretch_the_handshake_deadline() {
    let scene = Scene::new(quick()).await;
    let mut client = Client::new(scene.connect().await, &scene.west, &scene.expect());
    let hello = client.unsent();
    let drip = async {
        for byte in &hello {
            if client.socket.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let shake = async { scene.incoming().await.handshake().await.unwrap_err() };
    let error = tokio::select! {
        error = shake => error,
        () = drip => panic!("the listener waited for the last byte"),
    };
    assert_eq!(error.reason, "timed_out");
}

#[tokio::test]
async fn garbage_is_refused_at_its_first_byte() {
    let scene = Scene::new(ListenConfig::default()).await;
    let oversized = [&[22, 3, 1, 0xff, 0xff][..], &[0; 100]].concat();
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 300], &oversized] {
        let mut client = scene.connect().await;
        client.write_all(garbage).await.unwrap();
        let error = scene.incoming().await.handshake().await.unwrap_err();
        assert_eq!(error.reason, "protocol", "{error}");
    }
}

#[tokio::test]
async fn a_tunnel_that_never_opens_ends_after_its_warm_time() {
    let scene = Scene::new(quick()).await;
    let (mut client, mut tunnel) = scene.tunnel().await;
    assert!(timeout(SOON, tunnel.next_open()).await.unwrap().is_none());
    drop(tunnel);
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn an_open_that_is_begun_and_not_finished_is_cut() {
    // Half a record; a frame without close_notify; half a frame in a whole record.
    let config = ListenConfig { warm_timeout: SOON * 2, ..quick() };
    for case in 0..3 {
        let scene = Scene::new(config.clone()).await;
        let (mut client, mut tunnel) = scene.tunnel().await;
        let frame = open_frame();
        let part = if case == 2 { &frame[..5] } else { &frame[..] };
        client.outer.say(part);
        let wire = client.unsent();
        let wire = if case == 0 { &wire[..wire.len() - 3] } else { &wire[..] };
        client.socket.write_all(wire).await.unwrap();
        assert!(timeout(SOON, tunnel.next_open()).await.unwrap().is_none(), "case {case}");
        drop(tunnel);
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn what_is_no_open_is_answered_and_never_seen() {
    let frame = |open: &Open| crate::frame::encode(&open.encode_to_vec()).unwrap().to_vec();
    let twice = [&open_frame()[..], &open_frame()[..]].concat();
    let cases = [
        (vec![0x7f, 0xff], Code::BadRequest),
        (frame(&Open { version: 1, ..Open::default() }), Code::BadRequest),
        (frame(&Open { version: 0, ..Open::default() }), Code::Version),
        (crate::frame::encode(&[0xff; 40]).unwrap().to_vec(), Code::BadRequest),
        (twice, Code::BadRequest),
    ];
    for (bytes, code) in cases {
        let scene = Scene::new(ListenConfig::default()).await;
        let (mut client, mut tunnel) = scene.tunnel().await;
        client.outer.finish_with(&bytes).unwrap();
        client.flush().await;
        let (seen, answer) = tokio::join!(tunnel.next_open(), async {
            let answer = client.answer().await;
            client.socket.shutdown().await.unwrap();
            answer
        });
        assert!(seen.is_none());
        assert_eq!(answer.unwrap_err().code, code, "{bytes:?}");
    }
}

#[tokio::test]
async fn a_refusal_survives_bytes_that_were_pipelined_in_good_faith() {
    let scene = Scene::new(ListenConfig::default()).await;
    let (mut client, mut tunnel) = scene.tunnel().await;
    client.outer.finish_with(&open_frame()).unwrap();
    let mut wire = client.unsent();
    wire.extend_from_slice(&[22; 4000]);
    client.socket.write_all(&wire).await.unwrap();
    let arrival = tunnel.next_open().await.unwrap();
    let refusal = Refusal::new(Code::NoEndpoint, "nobody home", "start one");
    let refuse = arrival.refuse(&refusal);
    let ((), answer) = tokio::join!(refuse, async {
        // Late enough that a reset would have overtaken it.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let answer = client.answer().await;
        client.socket.shutdown().await.unwrap();
        answer
    });
    assert_eq!(answer, Err(refusal));
}

#[tokio::test]
async fn a_quic_stream_that_says_nothing_holds_up_no_other() {
    let scene = Scene::new(quick()).await;
    let (link, mut tunnel) = scene.link().await;
    let mut idle = link.raw_stream(&[0x00]).await;
    let arrival = tokio::select! {
        arrival = tunnel.next_open() => arrival.unwrap(),
        _ = link.open(open_frame()) => panic!("nobody has answered"),
    };
    assert_eq!(arrival.request().target.to_string(), "shop/checkout:80");
    let wait = async { while tunnel.next_open().await.is_some() {} };
    let mut buffer = [0; 8];
    let reset = tokio::select! {
        () = wait => panic!("the connection goes on"),
        reset = timeout(SOON, idle.1.read(&mut buffer)) => reset.unwrap(),
    };
    assert!(matches!(reset, Err(quinn::ReadError::Reset(_))), "{reset:?}");
}

#[tokio::test]
async fn a_quic_frame_over_the_limit_is_refused() {
    let scene = Scene::new(ListenConfig::default()).await;
    let (link, mut tunnel) = scene.link().await;
    let open = link.open(bytes::Bytes::from_static(&[0x7f, 0xff]));
    let outcome = tokio::select! {
        outcome = open => outcome,
        _ = tunnel.next_open() => panic!("never seen"),
    };
    assert!(matches!(outcome, Err(OpenFailure::Refused(refusal)) if refusal.code == Code::BadRequest));
}

#[tokio::test]
async fn more_handshakes_than_allowed_are_dropped_and_the_slots_come_back() {
    let scene = Scene::new(ListenConfig { handshakes: 4, ..quick() }).await;
    let mut idle = Vec::new();
    let mut shaking = tokio::task::JoinSet::new();
    for _ in 0..4 {
        idle.push(scene.connect().await);
        shaking.spawn(scene.incoming().await.handshake());
    }
    let mut fifth = scene.connect().await;
    let mut buffer = [0; 8];
    let dropped = tokio::select! {
        _ = scene.listener.accept() => panic!("a fifth was let in"),
        read = fifth.read(&mut buffer) => read,
    };
    assert!(dropped.is_err() || dropped.is_ok_and(|read| read == 0));
    assert_eq!(scene.listener.turned().dropped.load(Ordering::Relaxed), 1);
    while let Some(done) = shaking.join_next().await {
        assert_eq!(done.unwrap().unwrap_err().reason, "timed_out");
    }
    scene.tunnel().await;
}

#[tokio::test]
async fn a_crowded_listener_has_quic_diallers_prove_their_address_and_serves_them() {
    let scene = Scene::new(ListenConfig { handshakes: 4, ..ListenConfig::default() }).await;
    let mut idle = Vec::new();
    let mut waiting = Vec::new();
    for _ in 0..3 {
        idle.push(scene.connect().await);
        waiting.push(scene.incoming().await);
    }
    let (_link, tunnel) = scene.link().await;
    assert_eq!(tunnel.peer().id(), &id("west", "/ns/shop/sa/web"));
    assert_eq!(scene.listener.turned().retried.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_prefix_that_holds_half_of_all_handshakes_gets_no_more_and_others_come_in() {
    let scene = Scene::new(ListenConfig { handshakes: 8, handshakes_per_prefix: 1, ..ListenConfig::default() }).await;
    let mut idle = Vec::new();
    let mut waiting = Vec::new();
    for _ in 0..5 {
        idle.push(scene.connect_from([127, 77, 0, 1]).await);
        waiting.push(scene.incoming().await);
    }
    let mut sixth = scene.connect_from([127, 77, 0, 2]).await;
    let mut buffer = [0; 8];
    let turned = tokio::select! {
        _ = scene.listener.accept() => panic!("a sixth of one prefix was let in"),
        read = timeout(SOON, sixth.read(&mut buffer)) => read.unwrap(),
    };
    assert!(turned.is_err() || turned.is_ok_and(|read| read == 0));
    assert_eq!((scene.listener.turned().prefix.load(Ordering::Relaxed), scene.listener.in_flight()), (1, 5));
    scene.tunnel().await;
}

#[tokio::test]
async fn a_stranger_is_refused_and_told_so() {
    let scene = Scene::new(ListenConfig::default()).await;
    let north = scene.pki.linked("north", "/ns/shop/sa/web", &["east"]);
    let expect = scene.expect();
    let over_tcp = async {
        let session = Session::connect(scene.listener.local_addr(), north.client_config(&expect, ALPN).unwrap()).await;
        session.unwrap().open(&open_frame()).await.unwrap_err()
    };
    let (told, error) = tokio::join!(over_tcp, async { scene.incoming().await.handshake().await.unwrap_err() });
    assert_eq!(error.reason, "untrusted");
    assert!(matches!(told, OpenFailure::Lost(error) if error.reason == "refused_by_peer"));

    let endpoint = quic::endpoint("127.0.0.1:0".parse().unwrap(), None).unwrap();
    let over_quic = async {
        match Link::connect(&endpoint, scene.listener.local_addr(), &north, &expect).await {
            Ok(link) => match link.open(open_frame()).await.unwrap_err() {
                OpenFailure::Lost(error) => error,
                OpenFailure::Refused(refusal) => panic!("{refusal}"),
            },
            Err(error) => error,
        }
    };
    let (told, error) = tokio::join!(over_quic, async { scene.incoming().await.handshake().await.unwrap_err() });
    assert_eq!(error.reason, "untrusted");
    assert_eq!(told.reason, "refused_by_peer");
}

#[tokio::test]
async fn a_listener_without_an_identity_says_so_and_serves_as_soon_as_it_has_one() {
    let pki = Pki::new();
    let nobody = Credentials::new(crate::testing::domain("east"), crate::testing::clock);
    let listener = TunnelListener::bind("127.0.0.1:0".parse().unwrap(), nobody.clone(), quick()).await.unwrap();
    let west = pki.linked("west", "/ns/shop/sa/web", &["east"]);
    let _client = TcpStream::connect(listener.local_addr()).await.unwrap();
    let incoming = listener.accept().await.unwrap();
    assert_eq!(incoming.handshake().await.unwrap_err().reason, "no_identity");

    let scene = Scene { pki, west, listener };
    let become_east = async {
        tokio::task::yield_now().await;
        nobody.set_anchors(&crate::testing::domain("east"), crate::tls::Anchors::Bundle(scene.pki.bundle()));
        nobody.set_anchors(&crate::testing::domain("west"), crate::tls::Anchors::OwnRoot);
        nobody.set_identity(scene.pki.identity("east", GATEWAY));
    };
    let ((_link, tunnel), ()) = tokio::join!(scene.link(), become_east);
    assert_eq!(tunnel.peer().id(), &id("west", "/ns/shop/sa/web"));
}

#[tokio::test]
async fn a_closed_listener_takes_nobody_and_leaves_the_others_alone() {
    let scene = Scene::new(ListenConfig::default()).await;
    let (link, mut tunnel) = scene.link().await;
    scene.listener.close();
    assert!(scene.listener.accept().await.is_none());
    let opened = tokio::join!(link.open(open_frame()), async {
        tunnel.next_open().await.unwrap().accept(&yes()).await.unwrap()
    });
    assert_eq!(opened.0.unwrap().0, yes());
}

#[tokio::test]
async fn a_tunnel_that_goes_away_refuses_new_opens_and_ends_after_its_streams() {
    let scene = Scene::new(ListenConfig::default()).await;
    let (link, mut tunnel) = scene.link().await;
    let (opened, server_stream) = tokio::join!(link.open(open_frame()), async {
        tunnel.next_open().await.unwrap().accept(&yes()).await.unwrap()
    });
    let (_, client_stream) = opened.unwrap();
    tunnel.go_away();
    let refused = tokio::select! {
        refused = link.open(open_frame()) => refused.unwrap_err(),
        _ = tunnel.next_open() => panic!("not while a stream lives"),
    };
    assert!(matches!(refused, OpenFailure::Refused(refusal) if refusal.code == Code::Draining));
    assert!(link.closed().is_none());
    drop((server_stream, client_stream));
    assert!(timeout(SOON, tunnel.next_open()).await.unwrap().is_none());
    timeout(SOON, link.until_closed()).await.unwrap();
}

#[tokio::test]
async fn a_warm_connection_is_told_to_go_by_close_notify() {
    let scene = Scene::new(ListenConfig::default()).await;
    let (mut client, mut tunnel) = scene.tunnel().await;
    tunnel.go_away();
    assert!(timeout(SOON, tunnel.next_open()).await.unwrap().is_none());
    while !client.outer.peer_ended() {
        client.receive().await.unwrap();
    }
}

#[tokio::test]
async fn an_open_that_nobody_waits_for_any_more_is_reset() {
    let scene = Scene::new(ListenConfig::default()).await;
    let (link, mut tunnel) = scene.link().await;
    let arrival = tokio::select! {
        arrival = tunnel.next_open() => arrival.unwrap(),
        _ = link.open(open_frame()) => panic!("nobody has answered"),
    };
    // The dialler's future is gone by now.
    match arrival.accept(&yes()).await {
        Ok(mut stream) => {
            let error = timeout(SOON, stream.read(&mut [0; 8])).await.unwrap().expect_err("a reset, not an end");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        Err(error) => assert!(error.to_string().contains("stopped"), "{error}"),
    }
}

#[tokio::test]
async fn a_gateway_that_is_renewed_during_a_handshake_knows_what_the_tunnel_rests_on() {
    let scene = Scene::new(ListenConfig::default()).await;
    let gateway = scene.listener.shared.credentials.clone();
    let handshake = async || {
        let mut handshake = std::pin::pin!(scene.incoming().await.handshake());
        begin(handshake.as_mut()).await;
        gateway.set_identity(scene.pki.identity("east", GATEWAY));
        handshake.await.unwrap()
    };

    let mut client = Client::new(scene.connect().await, &scene.west, &scene.expect());
    let (tunnel, ()) = tokio::join!(handshake(), client.handshake());
    assert!(!gateway.still_shows(tunnel.peer()), "over TCP");

    let endpoint = quic::endpoint("127.0.0.1:0".parse().unwrap(), None).unwrap();
    let expect = scene.expect();
    let connect = Link::connect(&endpoint, scene.listener.local_addr(), &scene.west, &expect);
    let (_link, tunnel) = tokio::join!(connect, handshake());
    assert!(!gateway.still_shows(tunnel.peer()), "over QUIC");

    let (_link, tunnel) = scene.link().await;
    assert!(gateway.still_shows(tunnel.peer()), "the next one");
}
