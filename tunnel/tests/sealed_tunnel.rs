//! Sealed sessions inside tunnels: through a gateway that sees nothing of them, over both transports.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a panic is a test's report")]

mod tunnel_support;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hawser_api::ServicePort;
use hawser_api::objects::link::Transport;
use hawser_tunnel::sealed::{self, Accepted, Dedicated, carry_stream};
use hawser_tunnel::splice::Ended;
use hawser_tunnel::stream::TunnelStream;
use hawser_tunnel::testing::id;
use hawser_tunnel::tls::Expect;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tunnel_support::{BOTH, Fabric, Gateway, path, pattern, request};

const SOON: Duration = Duration::from_secs(20);
const SERVER: &str = "/ns/shop/sa/checkout";

/// West's end of a tunnel to east, and east's end of what comes out of it.
struct Reached {
    fabric: Fabric,
    _gateway: Gateway,
    near: TunnelStream,
    far: TcpStream,
}

impl Reached {
    async fn over(transport: Transport) -> Self {
        let fabric = Fabric::new();
        let inbound = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = fabric.gateway(inbound.local_addr().unwrap()).await;
        let opening = fabric.dialer().open(&path(gateway.address, transport), &request()).await.unwrap();
        let (far, _) = timeout(SOON, inbound.accept()).await.unwrap().unwrap();
        Self { fabric, _gateway: gateway, near: opening.stream, far }
    }

    fn expect() -> Expect {
        Expect::Identities(Arc::new([id("east", SERVER)]))
    }

    async fn accept(fabric: &Fabric, far: TcpStream) -> Accepted {
        let server = fabric.pki.linked("east", SERVER, &["west"]);
        sealed::accept(far.into(), &server, SOON).await.unwrap()
    }
}

struct App {
    socket: TcpStream,
    ended: JoinHandle<Ended>,
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

async fn app(session: Dedicated) -> App {
    let (socket, carried) = pair().await;
    let relay = session.relay(carried, Bytes::new(), Arc::default(), CancellationToken::new());
    App { socket, ended: tokio::spawn(relay) }
}

/// Two applications with a dedicated session through a tunnel between them.
async fn dedicated(transport: Transport) -> (App, App, Gateway) {
    let Reached { fabric, _gateway, near, far } = Reached::over(transport).await;
    let target: ServicePort = "shop/checkout:80".parse().unwrap();
    let expect = Reached::expect();
    let connect = sealed::connect_dedicated(near, &fabric.west, &expect, &target);
    let accept = async {
        let Accepted::Dedicated { mut session, target } = Reached::accept(&fabric, far).await else {
            panic!("a shared session");
        };
        assert_eq!(target.to_string(), "shop/checkout:80");
        session.confirm().await.unwrap();
        session
    };
    let (near, far) = timeout(SOON, async { tokio::join!(connect, accept) }).await.unwrap();
    (app(near.unwrap()).await, app(far).await, _gateway)
}

async fn there_and_back(near: App, far: App) {
    let sent = pattern(8 << 20);
    let (mut read, mut write) = near.socket.into_split();
    let (mut far_read, mut far_write) = far.socket.into_split();
    let echo = tokio::spawn(async move {
        tokio::io::copy(&mut far_read, &mut far_write).await.unwrap();
        far_write.shutdown().await.unwrap();
    });
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut got = Vec::new();
    timeout(SOON, read.read_to_end(&mut got)).await.unwrap().unwrap();
    assert!(got == expected, "{} bytes came back", got.len());
    writer.await.unwrap();
    echo.await.unwrap();
    for ended in [near.ended, far.ended] {
        assert_eq!(timeout(SOON, ended).await.unwrap().unwrap(), Ended::Finished);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dedicated_session_runs_through_a_tunnel_of_either_kind() {
    for transport in BOTH {
        let (near, far, _gateway) = dedicated(transport).await;
        there_and_back(near, far).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_goes_through_a_tunnel_of_either_kind_in_both_directions() {
    for (transport, from_near) in BOTH.iter().flat_map(|transport| [(*transport, true), (*transport, false)]) {
        let (near, far, _gateway) = dedicated(transport).await;
        let (mut from, mut to) = if from_near { (near, far) } else { (far, near) };
        from.socket.write_all(b"x").await.unwrap();
        timeout(SOON, to.socket.read_u8()).await.unwrap().unwrap();
        from.socket.set_zero_linger().unwrap();
        drop(from.socket);
        let error = timeout(SOON, to.socket.read_u8()).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{transport:?}");
        assert_eq!(timeout(SOON, from.ended).await.unwrap().unwrap(), Ended::UpstreamReset);
        assert_eq!(timeout(SOON, to.ended).await.unwrap().unwrap(), Ended::PeerReset);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_session_runs_through_a_tunnel_of_either_kind() {
    for transport in BOTH {
        let Reached { fabric, _gateway, near, far } = Reached::over(transport).await;
        let expect = Reached::expect();
        let connect = async {
            let shared = sealed::connect_shared(near, &fabric.west, &expect, Duration::from_secs(60)).await;
            let (client, driver) = shared.unwrap();
            tokio::spawn(driver);
            client
        };
        let (client, accepted) = tokio::join!(connect, Reached::accept(&fabric, far));
        let Accepted::Shared(mut server) = accepted else { panic!("a dedicated session") };
        assert_eq!((client.peer.id(), server.peer.id()), (&id("east", SERVER), fabric.west.identity().unwrap().id()));
        let mut requests = client.requests.clone().ready().await.unwrap();
        let request = http::Request::connect("checkout.shop:80").body(()).unwrap();
        let (response, send) = requests.send_request(request, false).unwrap();
        let (request, mut respond) = timeout(SOON, server.connection.accept()).await.unwrap().unwrap().unwrap();
        let far_send = respond.send_response(http::Response::new(()), false).unwrap();
        tokio::spawn(async move { while let Some(Ok(_)) = server.connection.accept().await {} });
        let recv = timeout(SOON, response).await.unwrap().unwrap().into_body();
        let near = carried(send, recv).await;
        let far = carried(far_send, request.into_body()).await;
        there_and_back(near, far).await;
    }
}

async fn carried(send: h2::SendStream<Bytes>, recv: h2::RecvStream) -> App {
    let (socket, carried) = pair().await;
    let carry = carry_stream(send, recv, carried, Bytes::new(), Arc::default(), CancellationToken::new());
    App { socket, ended: tokio::spawn(carry) }
}
