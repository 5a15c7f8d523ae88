//! Listeners follow the tables.

use std::net::SocketAddr;

use hawser_tunnel::testing::Pki;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::setup::*;

#[tokio::test]
async fn listeners_come_and_go_with_the_tables() {
    let mut doors = Doors::open("127.70.1.0/24", tables(vec![destination("shop/a", vec![port("http", 8080)])]));
    let a = doors.address("shop/a").await;
    assert!(TcpStream::connect((a, 8080)).await.is_ok());
    assert!(TcpStream::connect((a, 8081)).await.is_err());

    let both = vec![
        destination("shop/a", vec![port("http", 8081)]),
        destination("shop/b", vec![port("http", 8080), port("admin", 9090)]),
    ];
    doors.context.set_tables(tables(both));
    let b = doors.address("shop/b").await;
    assert_ne!(a, b);
    assert_eq!(doors.address("shop/a").await, a);
    for (address, number, open) in [(a, 8080, false), (a, 8081, true), (b, 8080, true), (b, 9090, true)] {
        assert_eq!(TcpStream::connect((address, number)).await.is_ok(), open, "{address}:{number}");
    }

    doors.context.set_tables(tables(vec![]));
    doors.until(|bound| bound.destinations.is_empty()).await;
    assert!(TcpStream::connect((b, 8080)).await.is_err());
    doors.context.process.drain.cancel();
}

#[tokio::test]
async fn addresses_survive_a_restart_and_a_change_of_neighbours() {
    let names: Vec<String> = (0..20).map(|n| format!("shop/s{n}")).collect();
    let of = |names: &[String]| tables(names.iter().map(|n| destination(n, vec![port("", 80)])).collect());
    let mut first = Doors::open("127.70.2.0/27", of(&names));
    let before = first.until(|b| b.destinations.len() == 20).await;
    first.context.process.drain.cancel();
    let kept = names[5..].to_vec();
    let mut second = Doors::open_in("127.70.2.0/27", of(&kept), first.dir);
    let after = second.until(|b| b.destinations.len() == 15).await;
    for name in &kept {
        assert_eq!(after.destinations[&key(name)].address, before.destinations[&key(name)].address, "{name}");
    }
    second.context.process.drain.cancel();
}

#[tokio::test]
async fn a_port_in_use_gets_another_and_the_status_says_why() {
    let fixed = "127.70.3.7".parse().unwrap();
    let taken = TcpListener::bind("127.70.3.7:8080").await.unwrap();
    let _shifted = TcpListener::bind("127.70.3.7:18081").await.unwrap();
    let _taken_too = TcpListener::bind("127.70.3.7:8081").await.unwrap();
    let _high = TcpListener::bind("127.70.3.7:60000").await.unwrap();
    let mut a = destination("shop/a", vec![port("", 8080), port("", 8081), port("", 18080), port("", 60000)]);
    a.fixed_address = Some(fixed);
    let mut doors = Doors::open("127.70.4.0/24", tables(vec![a]));
    let bound = doors.until(|b| !b.destinations.is_empty()).await;
    let status = bound.status();
    let row = |number: u32| status.iter().find(|l| l.port == number).unwrap();
    // 8080 + 10000 is what another port of the service declares: that one keeps its own number.
    assert_eq!(row(18080).bound, "127.70.3.7:18080");
    assert_eq!(row(18080).reason, "");
    for number in [8080, 8081, 60000] {
        let row = row(number);
        let at: SocketAddr = row.bound.parse().unwrap();
        assert_eq!(at.ip(), fixed);
        assert_eq!(row.reason, format!("port {number} is in use by another program"));
        assert!(TcpStream::connect(at).await.is_ok(), "{at}");
    }
    drop(taken);
    let page = bound.page();
    assert_eq!(page["listeners"][0]["namespace"], "shop");
    assert_eq!(page["listeners"].as_array().unwrap().len(), 4);
    doors.context.process.drain.cancel();
}

#[tokio::test]
async fn a_port_that_was_taken_is_moved_to_10000_above() {
    let fixed = "127.70.5.7".parse().unwrap();
    let _taken = TcpListener::bind("127.70.5.7:443").await.unwrap();
    let mut a = destination("shop/a", vec![port("https", 443)]);
    a.fixed_address = Some(fixed);
    let mut doors = Doors::open("127.70.5.0/24", tables(vec![a]));
    let bound = doors.until(|b| !b.destinations.is_empty()).await;
    assert_eq!(bound.destinations[&key("shop/a")].ports[0].bound, Some(10443));
    doors.context.process.drain.cancel();
}

#[tokio::test]
async fn bytes_go_from_a_virtual_address_to_the_application_and_back() {
    let pki = Pki::new();
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = context(&pki, "checkout");
    let mut fronts = tables(vec![]);
    let inbound = fronted("shop/checkout:9000", app.local_addr().unwrap());
    fronts.inbound.insert(inbound.port.clone(), inbound.into());
    server.set_tables(fronts);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(hawser_proxy::inbound::Inbound::new(server.clone()).serve(listener));

    let mut checkout = destination("shop/checkout", vec![port("", 9000)]);
    checkout.ports[0].app_protocol = hawser_api::labels::APP_PROTOCOL_OPAQUE.into();
    checkout.tiers = local("shop/checkout", at);
    let web = context(&pki, "web");
    web.set_tables(tables(vec![checkout]));
    let mut doors = Doors::keep(web, "127.70.6.0/24", tempfile::tempdir().unwrap());
    let address = doors.address("shop/checkout").await;
    let mut socket = TcpStream::connect((address, 9000)).await.unwrap();
    socket.write_all(b"question").await.unwrap();
    socket.shutdown().await.unwrap();
    let (mut carried, _) = in_time(app.accept()).await.unwrap();
    let mut question = String::new();
    in_time(carried.read_to_string(&mut question)).await.unwrap();
    carried.write_all(b"answer").await.unwrap();
    drop(carried);
    let mut answer = String::new();
    in_time(socket.read_to_string(&mut answer)).await.unwrap();
    assert_eq!((question.as_str(), answer.as_str()), ("question", "answer"));
    doors.context.process.drain.cancel();
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_a_place() {
    let context = context(&Pki::new(), "web");
    context.set_tables(tables(vec![destination("shop/a", vec![port("", 8080)])]));
    let room = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
    let mut doors = Doors::with_room(context, "127.70.7.0/24", tempfile::tempdir().unwrap(), room);
    let address = doors.address("shop/a").await;
    let mut first = TcpStream::connect((address, 8080)).await.unwrap();
    let mut second = TcpStream::connect((address, 8080)).await.unwrap();
    second.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut reply = [0; 12];
    let waiting = second.read_exact(&mut reply);
    tokio::pin!(waiting);
    assert!(tokio::time::timeout(std::time::Duration::from_millis(200), &mut waiting).await.is_err());
    first.shutdown().await.unwrap();
    drop(first);
    in_time(waiting).await.unwrap();
    assert_eq!(&reply, b"HTTP/1.1 503");
    doors.context.process.drain.cancel();
}
