//! SOCKS5, byte by byte and with curl.

use std::net::SocketAddr;
use std::sync::Arc;

use hawser_proxy::inbound::Inbound;
use hawser_proxy::socks::Socks;
use hawser_tunnel::testing::Pki;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::setup::*;

/// A SOCKS port whose proxy knows `shop/checkout:80`, served by an HTTP application that answers everything with `hello`.
struct Served {
    socks: SocketAddr,
    doors: Doors,
}

async fn serve(network: &str) -> Served {
    let pki = Pki::new();
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = context(&pki, "checkout");
    let mut fronts = tables(vec![]);
    let inbound = fronted("shop/checkout:80", app.local_addr().unwrap());
    fronts.inbound.insert(inbound.port.clone(), inbound.into());
    server.set_tables(fronts);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(Inbound::new(server).serve(listener));
    tokio::spawn(hello(app));

    let web = context(&pki, "web");
    let mut checkout = destination("shop/checkout", vec![port("http", 80)]);
    checkout.dns_names.push("checkout.shop.svc.clusterset.local".into());
    checkout.tiers = local("shop/checkout", at);
    web.set_tables(tables(vec![checkout]));
    let mut doors = Doors::keep(web, network, tempfile::tempdir().unwrap());
    doors.address("shop/checkout").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socks = listener.local_addr().unwrap();
    let serving = Socks { context: doors.context.clone(), bound: doors.bound.clone(), room: doors.room.clone() };
    tokio::spawn(Arc::new(serving).serve(listener));
    Served { socks, doors }
}

async fn hello(app: TcpListener) {
    loop {
        let (mut socket, _) = app.accept().await.unwrap();
        tokio::spawn(async move {
            let mut head = Vec::new();
            while socket.read_buf(&mut head).await.is_ok_and(|n| n > 0) {
                if head.windows(4).any(|w| w == b"\r\n\r\n") {
                    head.clear();
                    socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await.unwrap();
                }
            }
        });
    }
}

/// Sends bytes, ends, and returns everything that comes back.
async fn exchange(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(to).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let _ = socket.shutdown().await;
    let mut back = Vec::new();
    let _ = in_time(socket.read_to_end(&mut back)).await;
    back
}

fn by_name(name: &str, port: u16) -> Vec<u8> {
    let mut bytes = vec![5, 1, 0, 5, 1, 0, 3, u8::try_from(name.len()).unwrap()];
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(&port.to_be_bytes());
    bytes
}

fn by_address(address: std::net::Ipv4Addr, port: u16) -> Vec<u8> {
    let mut bytes = vec![5, 1, 0, 5, 1, 0, 1];
    bytes.extend_from_slice(&address.octets());
    bytes.extend_from_slice(&port.to_be_bytes());
    bytes
}

#[tokio::test]
async fn every_request_gets_the_reply_that_rfc_1928_has_for_it() {
    let mut served = serve("127.70.10.0/24").await;
    let address = served.doors.address("shop/checkout").await;
    let bound = served.doors.bound.borrow().clone();
    let door = bound.destinations[&key("shop/checkout")].ports[0].bound.unwrap();
    for (bytes, reply) in [
        (by_name("checkout.shop.svc.cluster.local", 80), 0),
        (by_name("Checkout.Shop.svc.cluster.local.", 80), 0),
        (by_name("checkout.shop.svc", 80), 0),
        (by_name("checkout.shop", 80), 0),
        (by_name("checkout.shop.svc.clusterset.local", 80), 0),
        (by_address(address, 80), 0),
        (by_address(address, door), 0),
        (by_name("checkout.shop", 81), 5),
        (by_address(address, 81), 5),
        (by_name("ghost.shop.svc.cluster.local", 80), 4),
        (by_name("ghost.shop.svc", 80), 4),
        (by_address("127.70.10.254".parse().unwrap(), 80), 4),
        (by_name("checkout", 80), 2),
        (by_name("example.com", 80), 2),
        (by_name("localhost", 80), 2),
        (by_name("127.0.0.1", 80), 2),
        (by_name("evilcluster.local", 80), 2),
        (by_name("", 80), 2),
        (by_name("\u{fffd}\0.shop", 80), 2),
        (by_address("127.0.0.1".parse().unwrap(), 22), 2),
        (by_address("10.0.0.1".parse().unwrap(), 80), 2),
        ([&[5, 1, 0, 5, 1, 0, 4][..], &[0; 18]].concat(), 8),
        ([&[5, 1, 0, 5, 1, 0, 9][..], &[0; 18]].concat(), 8),
        ([&[5, 1, 0, 5, 2, 0, 1][..], &[127, 0, 0, 1, 0, 80]].concat(), 7),
        ([&[5, 1, 0, 5, 3, 0, 1][..], &[127, 0, 0, 1, 0, 80]].concat(), 7),
    ] {
        let back = exchange(served.socks, &bytes).await;
        assert_eq!(back.get(..2), Some(&[5, 0][..]), "{bytes:?} {back:?}");
        assert_eq!(back.get(2..12), Some(&[5, reply, 0, 1, 0, 0, 0, 0, 0, 0][..]), "{bytes:?}");
    }
}

#[tokio::test]
async fn what_is_not_socks_5_gets_no_further() {
    let served = serve("127.70.11.0/24").await;
    for (bytes, back) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], &b""[..]),
        (&[4, 1, 0, 80, 127, 0, 0, 1, 0], b""),
        (&[5, 0], &[5, 0xff]),
        (&[5, 2, 1, 2], &[5, 0xff]),
        (&[5, 1, 0, 4, 1, 0, 1, 127, 0, 0, 1, 0, 80], &[5, 0]),
        (&[5], b""),
        (&[5, 1, 0, 5, 1, 0, 3, 255, b'a'], &[5, 0]),
        (&[], b""),
    ] {
        assert_eq!(exchange(served.socks, bytes).await, back, "{bytes:?}");
    }
}

#[tokio::test]
async fn a_request_goes_through_to_the_application() {
    let served = serve("127.70.12.0/24").await;
    let mut socket = TcpStream::connect(served.socks).await.unwrap();
    // All at once, as a client that does not wait for the method's answer may.
    let mut bytes = by_name("checkout.shop", 80);
    bytes.extend_from_slice(b"GET / HTTP/1.1\r\nHost: checkout.shop\r\nConnection: close\r\n\r\n");
    socket.write_all(&bytes).await.unwrap();
    let mut back = Vec::new();
    in_time(socket.read_to_end(&mut back)).await.unwrap();
    let text = String::from_utf8_lossy(&back[12..]).into_owned();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("hello"), "{text}");
}

#[tokio::test]
async fn curl_reaches_a_name_through_the_socks_port() {
    let served = serve("127.70.13.0/24").await;
    let curl = tokio::process::Command::new("curl")
        .args(["-sS", "--noproxy", "", "--max-time", "10", "--socks5-hostname", &served.socks.to_string()])
        .arg("http://checkout.shop.svc.cluster.local/")
        .output();
    let output = curl.await.unwrap_or_else(|e| panic!("curl cannot be run ({e}): apt-get install curl"));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello", "{}", String::from_utf8_lossy(&output.stderr));
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_handshake_panic_or_read_on(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..700)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut left = bytes.as_slice();
        let mut stream = tokio::io::join(&mut left, tokio::io::sink());
        let _ = runtime.block_on(hawser_proxy::socks::handshake(&mut stream));
        proptest::prop_assert!(bytes.len() - left.len() <= 520);
    }
}
