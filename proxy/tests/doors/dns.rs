//! DNS, by tables of questions and over both transports.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use hawser_proxy::dns::{Server, Zone, respond};
use hawser_proxy::listen::{Bound, BoundDestination, BoundPort};
use hawser_proxy::table::Tables;
use hawser_tunnel::testing::Pki;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;

use crate::setup::*;

const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn shop() -> (Tables, Bound) {
    let mut checkout = destination("shop/checkout-east", vec![port("http", 80), port("", 9090), port("metrics", 80)]);
    checkout.dns_names.push("checkout.shop.svc.clusterset.local".into());
    checkout.dns_names.push("stray.example.com".into());
    let mut bound = Bound::default();
    let door = |number, at| BoundPort { number, bound: Some(at), reason: String::new() };
    bound.destinations.insert(
        key("shop/checkout-east"),
        BoundDestination {
            address: "127.65.0.9".parse().unwrap(),
            problem: None,
            ports: vec![door(80, 10080), door(9090, 9090)],
        },
    );
    let waiting = destination("shop/waiting", vec![port("http", 80)]);
    (tables(vec![checkout, waiting]), bound)
}

fn zone() -> Zone {
    let (tables, bound) = shop();
    Zone::new(&tables, &bound, SERVER)
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn ask(message: &Message) -> Message {
    let bytes = respond(&zone(), &message.to_vec().unwrap(), true).unwrap();
    let answer = Message::from_vec(&bytes).unwrap();
    assert_eq!(answer.metadata.id, message.metadata.id);
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    assert!(!answer.metadata.recursion_available);
    answer
}

fn data(message: &Message) -> Vec<String> {
    message.answers.iter().map(|r| r.data.to_string()).collect()
}

#[test]
fn every_kind_of_question_gets_its_answer() {
    use RecordType::{A, AAAA, ANY, NS, SRV, TXT};
    let a = "127.65.0.9";
    let srv = |port: u16, name: &str| format!("0 100 {port} {name}");
    let east = "checkout-east.shop.svc.cluster.local.";
    let set = "checkout.shop.svc.clusterset.local.";
    let none: Vec<String> = vec![];
    let table: Vec<(&str, RecordType, ResponseCode, Vec<String>)> = vec![
        (east, A, ResponseCode::NoError, vec![a.into()]),
        (set, A, ResponseCode::NoError, vec![a.into()]),
        ("CheckOut-EAST.shop.SVC.cluster.local.", A, ResponseCode::NoError, vec![a.into()]),
        (east, AAAA, ResponseCode::NoError, none.clone()),
        (east, TXT, ResponseCode::NoError, none.clone()),
        (east, ANY, ResponseCode::NoError, vec![a.into(), srv(10080, east), srv(9090, east)]),
        (east, SRV, ResponseCode::NoError, vec![srv(10080, east), srv(9090, east)]),
        ("_http._tcp.checkout-east.shop.svc.cluster.local.", SRV, ResponseCode::NoError, vec![srv(10080, east)]),
        ("_HTTP._TCP.checkout.shop.svc.clusterset.local.", SRV, ResponseCode::NoError, vec![srv(10080, set)]),
        ("_http._tcp.checkout.shop.svc.clusterset.local.", A, ResponseCode::NoError, none.clone()),
        ("_http._udp.checkout.shop.svc.clusterset.local.", SRV, ResponseCode::NXDomain, none.clone()),
        ("_grpc._tcp.checkout.shop.svc.clusterset.local.", SRV, ResponseCode::NXDomain, none.clone()),
        ("waiting.shop.svc.cluster.local.", A, ResponseCode::NoError, none.clone()),
        ("ghost.shop.svc.cluster.local.", A, ResponseCode::NXDomain, none.clone()),
        ("ghost.shop.svc.cluster.local.", AAAA, ResponseCode::NXDomain, none.clone()),
        ("checkout-east.other.svc.cluster.local.", A, ResponseCode::NXDomain, none.clone()),
        ("east.checkout.shop.svc.clusterset.local.", A, ResponseCode::NXDomain, none.clone()),
        ("shop.svc.cluster.local.", A, ResponseCode::NoError, none.clone()),
        ("svc.cluster.local.", A, ResponseCode::NoError, none.clone()),
        ("cluster.local.", NS, ResponseCode::NoError, vec!["ns.dns.cluster.local.".into()]),
        ("ns.dns.cluster.local.", A, ResponseCode::NoError, vec!["127.0.0.1".into()]),
        ("dns-version.clusterset.local.", TXT, ResponseCode::NoError, vec!["1.0.0".into()]),
        ("checkout-east.shop.", A, ResponseCode::Refused, none.clone()),
        ("stray.example.com.", A, ResponseCode::Refused, none.clone()),
        ("example.com.", A, ResponseCode::Refused, none.clone()),
        ("evilcluster.local.", A, ResponseCode::Refused, none.clone()),
        ("local.", A, ResponseCode::Refused, none.clone()),
        (".", NS, ResponseCode::Refused, none.clone()),
        ("1.0.0.127.in-addr.arpa.", RecordType::PTR, ResponseCode::Refused, none.clone()),
        ("cluster.local.", RecordType::AXFR, ResponseCode::Refused, none.clone()),
    ];
    for (name, kind, code, expected) in table {
        let answer = ask(&query(name, kind));
        assert_eq!(answer.metadata.response_code, code, "{name} {kind}");
        assert_eq!(data(&answer), expected, "{name} {kind}");
        assert_eq!(answer.metadata.authoritative, code != ResponseCode::Refused, "{name} {kind}");
        assert!(answer.answers.iter().all(|r| r.ttl == 5), "{name} {kind}");
        // The question and the owner keep the case in which they were asked.
        assert_eq!(answer.queries[0].name().to_ascii(), name);
        assert!(answer.answers.iter().all(|r| r.name.to_ascii() == name), "{name} {kind}");
        let soa: Vec<_> = answer.authorities.iter().map(hickory_proto::rr::Record::record_type).collect();
        let negative = expected.is_empty() && code != ResponseCode::Refused;
        assert_eq!(soa, if negative { vec![RecordType::SOA] } else { vec![] }, "{name} {kind}");
    }
}

/// A headless service of the clusterset with two endpoints in east and one in north, as many as are `ready`.
fn headless(ready: usize) -> Zone {
    let set = "db.shop.svc.clusterset.local";
    let mut whole = destination("shop/db-clusterset", vec![port("sql", 5432)]);
    whole.dns_names.clear();
    whole.headless_names = vec![set.into()];
    let mut all = vec![whole];
    let mut bound = Bound::default();
    let door = BoundPort { number: 5432, bound: Some(5432), reason: String::new() };
    let mut bind = |service: &str, address: &str| {
        let address = address.parse().unwrap();
        let doors = BoundDestination { address, problem: None, ports: vec![door.clone()] };
        bound.destinations.insert(key(service), doors);
    };
    bind("shop/db-clusterset", "127.65.0.1");
    for (host, cluster, last) in
        [("db-0", "east", 2), ("db-1", "east", 3), ("db-0", "north", 4)].into_iter().take(ready)
    {
        let service = format!("shop/db-{host}-{cluster}");
        let mut member = destination(&service, vec![port("sql", 5432)]);
        member.dns_names = vec![format!("{host}.{cluster}.{set}")];
        member.group_names = vec![set.into()];
        all.push(member);
        bind(&service, &format!("127.65.0.{last}"));
    }
    let mut tables = tables(all);
    tables.names.insert(set.into(), key("shop/db-clusterset"));
    Zone::new(&tables, &bound, SERVER)
}

#[test]
fn a_headless_service_of_the_clusterset_is_its_ready_endpoints_each_by_its_name() {
    use RecordType::{A, SRV};
    let ask = |zone: &Zone, name: &str, kind: RecordType| {
        let bytes = respond(zone, &query(name, kind).to_vec().unwrap(), true).unwrap();
        let answer = Message::from_vec(&bytes).unwrap();
        let mut data = data(&answer);
        data.sort();
        (answer.metadata.response_code, data, answer.additionals.len())
    };
    let zone = headless(3);
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let set = "db.shop.svc.clusterset.local.";
    let all = names(&["127.65.0.2", "127.65.0.3", "127.65.0.4"]);
    assert_eq!(ask(&zone, set, A), (ResponseCode::NoError, all, 0));
    let one = format!("db-1.east.{set}");
    assert_eq!(ask(&zone, &one, A), (ResponseCode::NoError, names(&["127.65.0.3"]), 0));
    // A cluster's part of it has no name of its own: it is there only to be empty.
    assert_eq!(ask(&zone, &format!("east.{set}"), A), (ResponseCode::NoError, names(&[]), 0));
    assert_eq!(ask(&zone, &format!("south.{set}"), A).0, ResponseCode::NXDomain);
    assert_eq!(ask(&zone, &format!("db-9.east.{set}"), A).0, ResponseCode::NXDomain);
    // SRV: one for each endpoint, with its address.
    let targets = ["db-0.east", "db-0.north", "db-1.east"].map(|name| format!("0 100 5432 {name}.{set}"));
    for name in [set.to_owned(), format!("_sql._tcp.{set}")] {
        assert_eq!(ask(&zone, &name, SRV), (ResponseCode::NoError, targets.to_vec(), 3), "{name}");
    }
    assert_eq!(ask(&zone, &format!("_sql._udp.{set}"), SRV).0, ResponseCode::NXDomain);
    // None ready: there is no such name.
    assert_eq!(ask(&headless(0), set, A).0, ResponseCode::NXDomain);
}

#[test]
fn an_srv_answer_brings_the_address_along() {
    let answer = ask(&query("_http._tcp.checkout-east.shop.svc.cluster.local.", RecordType::SRV));
    assert_eq!(answer.additionals.len(), 1);
    assert_eq!(answer.additionals[0].data.to_string(), "127.65.0.9");
}

#[test]
fn a_no_says_for_how_long_it_holds() {
    let answer = ask(&query("ghost.shop.svc.cluster.local.", RecordType::A));
    let soa = &answer.authorities[0];
    assert_eq!((soa.name.to_ascii().as_str(), soa.ttl), ("cluster.local.", 5));
    let text = soa.data.to_string();
    assert!(text.ends_with(" 7 7200 1800 86400 5"), "{text}");
}

#[test]
fn odd_messages_get_the_code_that_they_deserve() {
    let name = "checkout-east.shop.svc.cluster.local.";
    let mut chaos = query(name, RecordType::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    let mut two = query(name, RecordType::A);
    two.add_query(two.queries[0].clone());
    let mut none = query(name, RecordType::A);
    none.queries.clear();
    let mut update = query(name, RecordType::A);
    update.metadata.op_code = OpCode::Notify;
    let mut edns = query(name, RecordType::A);
    let mut version = Edns::new();
    version.set_version(1);
    edns.set_edns(version);
    for (message, code) in [
        (&chaos, ResponseCode::Refused),
        (&two, ResponseCode::FormErr),
        (&none, ResponseCode::FormErr),
        (&update, ResponseCode::NotImp),
        (&edns, ResponseCode::BADVERS),
    ] {
        // As numbers: BADVERS and BADSIG are both 16.
        assert_eq!(u16::from(ask(message).metadata.response_code), u16::from(code));
    }
    let mut response = query(name, RecordType::A);
    response.metadata.message_type = MessageType::Response;
    assert_eq!(respond(&zone(), &response.to_vec().unwrap(), true), None);
}

#[test]
fn hostile_bytes_get_formerr_or_nothing() {
    let good = query("checkout-east.shop.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    assert_eq!(respond(&zone(), &[], true), None);
    assert_eq!(respond(&zone(), &good[..11], true), None);
    let cut = respond(&zone(), &good[..20], true).unwrap();
    assert_eq!(Message::from_vec(&cut).unwrap().metadata.response_code, ResponseCode::FormErr);
    // A name that points at itself.
    let mut looped = good[..12].to_vec();
    looped.extend_from_slice(&[0xc0, 0x0c, 0, 1, 0, 1]);
    let back = respond(&zone(), &looped, true).unwrap();
    assert_eq!(Message::from_vec(&back).unwrap().metadata.response_code, ResponseCode::FormErr);
    // Counts that promise more than there is.
    let mut promising = good.clone();
    promising[6..12].fill(0xff);
    assert!(respond(&zone(), &promising, true).is_some_and(|b| b.len() < 64));
}

#[test]
fn an_answer_that_does_not_fit_is_cut_and_says_so() {
    let ports: Vec<_> = (1..=200).map(|n| port(&format!("p{n}"), n)).collect();
    let door = |n: u16| BoundPort { number: n, bound: Some(n), reason: String::new() };
    let many = BoundDestination {
        address: "127.65.0.1".parse().unwrap(),
        problem: None,
        ports: (1..=200).map(door).collect(),
    };
    let bound = Bound { destinations: [(key("shop/many"), many)].into(), ..Bound::default() };
    let zone = Zone::new(&tables(vec![destination("shop/many", ports)]), &bound, SERVER);
    let mut message = query("many.shop.svc.cluster.local.", RecordType::SRV);
    for (payload, most) in [(None, 512), (Some(600), 600), (Some(65_535), 1232)] {
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        let bytes = respond(&zone, &message.to_vec().unwrap(), true).unwrap();
        assert!(bytes.len() <= most, "{} > {most}", bytes.len());
        let answer = Message::from_vec(&bytes).unwrap();
        assert!(answer.metadata.truncation && answer.answers.is_empty());
    }
    let bytes = respond(&zone, &message.to_vec().unwrap(), false).unwrap();
    assert_eq!(Message::from_vec(&bytes).unwrap().answers.len(), 200);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_or_answer_at_length(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let answer = respond(&zone(), &bytes, true);
        prop_assert!(answer.is_none_or(|a| a.len() <= 1232));
    }
}

async fn over_tcp(socket: &mut TcpStream, message: &Message) -> Message {
    let bytes = message.to_vec().unwrap();
    socket.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
    socket.write_all(&bytes).await.unwrap();
    let length = in_time(socket.read_u16()).await.unwrap();
    let mut answer = vec![0; usize::from(length)];
    in_time(socket.read_exact(&mut answer)).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

#[tokio::test]
async fn both_transports_answer_and_follow_the_tables() {
    let context = context(&Pki::new(), "web");
    let (sender, bound) = watch::channel(Arc::<Bound>::default());
    let server = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(server.serve(context.clone(), bound));
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    udp.connect(address).await.unwrap();
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let question = query("checkout-east.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(over_tcp(&mut tcp, &question).await.metadata.response_code, ResponseCode::NXDomain);

    let (tables, doors) = shop();
    sender.send(Arc::new(doors)).unwrap();
    context.set_tables(tables);
    let answer = in_time(async {
        loop {
            // What is not DNS must not stop the server.
            udp.send(b"noise").await.unwrap();
            udp.send(&question.to_vec().unwrap()).await.unwrap();
            let mut buffer = [0; 1500];
            let length = udp.recv(&mut buffer).await.unwrap();
            let answer = Message::from_vec(&buffer[..length]).unwrap();
            if !answer.answers.is_empty() {
                break answer;
            }
        }
    })
    .await;
    assert_eq!(data(&answer), ["127.65.0.9"]);
    // The same connection, several questions.
    for _ in 0..3 {
        assert_eq!(data(&over_tcp(&mut tcp, &question).await), ["127.65.0.9"]);
    }
}

#[tokio::test]
async fn a_tcp_client_that_breaks_the_framing_is_dropped() {
    let context = context(&Pki::new(), "web");
    let (_sender, bound) = watch::channel(Arc::<Bound>::default());
    let server = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(server.serve(context, bound));
    for bytes in [&[0xff, 0xff][..], &[0, 3, 1, 2, 3], &[0, 0]] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        let _ = in_time(socket.read_to_end(&mut rest)).await;
        assert!(rest.is_empty(), "{bytes:?}");
    }
}

#[tokio::test]
async fn silent_tcp_clients_take_so_many_places_and_none_of_udps() {
    let context = context(&Pki::new(), "web");
    let (_sender, bound) = watch::channel(Arc::<Bound>::default());
    let server = Server::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(server.serve(context, bound));
    let question = query("ghost.shop.svc.cluster.local.", RecordType::A);
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    udp.connect(address).await.unwrap();
    udp.send(&question.to_vec().unwrap()).await.unwrap();
    assert!(in_time(udp.recv(&mut [0; 512])).await.unwrap() > 12);
    // Waits for a place: one of the silent ones has to go first.
    let mut late = TcpStream::connect(address).await.unwrap();
    let waiting = over_tcp(&mut late, &question);
    tokio::pin!(waiting);
    assert!(tokio::time::timeout(std::time::Duration::from_millis(200), &mut waiting).await.is_err());
    silent.pop();
    assert_eq!(waiting.await.metadata.response_code, ResponseCode::NXDomain);
}
