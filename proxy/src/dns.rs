//! DNS for the names of our destinations: authoritative for `cluster.local` and `clusterset.local`, and for nothing else.
//!
//! ```text
//! tables + bound listeners ─▶ Zone (an immutable snapshot) ─▶ respond (pure: bytes → bytes) ◀─▶ UDP, TCP
//! ```
//!
//! Answers follow the Kubernetes DNS specification 1.1.0 and the multi-cluster services schema 1.0.0: a name's A record is
//! its virtual address, SRV names the port that is really bound. A headless service of the clusterset has the addresses of
//! its ready endpoints, each of which is `<host>.<cluster>.<service>.…` as well; `<cluster>.<service>.…` is nothing. Search
//! lists are the resolver's business.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hawser_api::ServiceKey;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, NS, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};

use crate::context::Context;
use crate::listen::Bound;
use crate::table::Tables;

/// The zones that we answer for.
const ZONES: [&str; 2] = ["cluster.local", "clusterset.local"];
/// Of every record, seconds, and of "no such name" too: what Kubernetes uses, short enough to see a mirror come and go.
const TTL: u32 = 5;
/// Largest answer over UDP when the client says nothing (RFC 1035 section 2.3.4).
const PLAIN: usize = 512;
/// Largest answer over UDP whatever the client says: what passes every path without fragments (DNS flag day 2020).
const PAYLOAD: usize = 1232;
/// Largest query over TCP: one question and EDNS options fit ten times.
const QUERY_MAX: usize = 4096;
/// TCP connections at a time. Resolvers come back over UDP; more wait in the kernel's backlog.
const CONNECTIONS: usize = 64;
/// A TCP connection may be silent this long (RFC 7766 section 6.2.3 asks for seconds).
const SILENCE: Duration = Duration::from_secs(5);
/// After a failed accept or receive, so that the loop does not spin.
const PAUSE: Duration = Duration::from_millis(50);

/// What there is to say, as an immutable snapshot.
#[derive(Debug, Default)]
pub struct Zone {
    nodes: HashMap<String, Node>,
    serial: u32,
}

/// What one name has; nothing: a name that only has others below it.
#[derive(Debug, Default, Clone)]
struct Node {
    /// Several: those of a headless service's endpoints.
    addresses: Vec<Ipv4Addr>,
    services: Vec<(u16, Name)>,
    text: Option<&'static str>,
}

impl Zone {
    /// From the tables and from what is bound. `server` is our own address, the zones' name server.
    pub fn new(tables: &Tables, bound: &Bound, server: IpAddr) -> Self {
        let serial = u32::try_from(tables.version & u64::from(u32::MAX)).unwrap_or_default();
        let mut zone = Self { nodes: HashMap::new(), serial };
        for apex in ZONES {
            let node = zone.node(&format!("ns.dns.{apex}"));
            if let IpAddr::V4(address) = server {
                node.addresses.push(address);
            }
        }
        zone.node("dns-version.clusterset.local").text = Some("1.0.0");
        zone.node("dns-version.cluster.local").text = Some("1.1.0");
        let headless: HashSet<&String> = tables.destinations.values().flat_map(|d| &d.headless_names).collect();
        for (name, key) in tables.names.iter().filter(|(name, _)| !headless.contains(name)) {
            zone.destination(name, name, (tables, bound, key));
        }
        // Sorted, so that one state has one zone.
        let mut members: Vec<_> = tables.destinations.values().filter(|d| !d.group_names.is_empty()).collect();
        members.sort_by(|a, b| a.key.cmp(&b.key));
        for member in members {
            let Some(own) = member.dns_names.first() else { continue };
            for group in &member.group_names {
                zone.destination(group, own, (tables, bound, &member.key));
            }
        }
        zone
    }

    /// A name that leads to a destination, with its ports; SRV records name `target`.
    fn destination(&mut self, name: &str, target: &str, (tables, bound, key): (&Tables, &Bound, &ServiceKey)) {
        let Some(target) = absolute(target).filter(|_| apex(name).is_some()) else { return };
        let doors = bound.destinations.get(key);
        self.node(name).addresses.extend(doors.map(|d| d.address));
        let Some(destination) = tables.destinations.get(key) else { return };
        for port in destination.ports.iter().filter(|p| !p.udp) {
            let door = doors.and_then(|d| d.ports.iter().find(|b| b.number == port.number));
            let Some(number) = door.and_then(|b| b.bound) else { continue };
            self.service(name, (number, target.clone()));
            if !port.name.is_empty() {
                let label = port.name.to_ascii_lowercase();
                self.service(&format!("_{label}._tcp.{name}"), (number, target.clone()));
            }
        }
    }

    fn service(&mut self, name: &str, service: (u16, Name)) {
        let services = &mut self.node(name).services;
        if !services.contains(&service) {
            services.push(service);
        }
    }

    /// The node of a name, made with every name above it up to the zone's: these exist, if only to be empty.
    fn node(&mut self, name: &str) -> &mut Node {
        let mut above = name;
        while let Some((_, rest)) = above.split_once('.').filter(|(_, rest)| apex(rest).is_some()) {
            self.nodes.entry(rest.to_owned()).or_default();
            above = rest;
        }
        self.nodes.entry(name.to_owned()).or_default()
    }
}

fn absolute(name: &str) -> Option<Name> {
    Name::from_ascii(format!("{name}.")).ok()
}

/// The zone that a name (lower case, no trailing dot) is in.
fn apex(name: &str) -> Option<&'static str> {
    let within = |zone: &&str| name.strip_suffix(*zone).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    ZONES.into_iter().find(within)
}

/// The answer to a message, if it deserves one. Pure and total: `udp` bounds the answer's size.
pub fn respond(zone: &Zone, message: &[u8], udp: bool) -> Option<Vec<u8>> {
    let query = match Message::from_vec(message) {
        Ok(query) => query,
        Err(_) => return malformed(message),
    };
    // An answer to an answer would be a loop.
    if query.metadata.message_type == MessageType::Response {
        return None;
    }
    let mut response = Message::response(query.metadata.id, query.metadata.op_code);
    response.metadata.recursion_desired = query.metadata.recursion_desired;
    response.add_queries(query.queries.iter().take(1).cloned());
    let code = answer(zone, &query, &mut response);
    response.metadata.response_code = code;
    let limit = limit(&query, udp);
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(u16::try_from(PAYLOAD).unwrap_or(512));
        edns.set_rcode_high(code.high());
        response.set_edns(edns);
    }
    let bytes = response.to_vec().ok()?;
    if bytes.len() <= limit { Some(bytes) } else { response.truncate().to_vec().ok() }
}

fn limit(query: &Message, udp: bool) -> usize {
    if !udp {
        return usize::from(u16::MAX);
    }
    query.edns.as_ref().map_or(PLAIN, |edns| usize::from(edns.max_payload()).clamp(PLAIN, PAYLOAD))
}

/// A header that can be read gets FORMERR (RFC 1035 section 4.1.1); anything else is noise.
fn malformed(message: &[u8]) -> Option<Vec<u8>> {
    let [high, low, flags, ..] = message else { return None };
    if message.len() < 12 || flags & 0x80 != 0 {
        return None;
    }
    let id = u16::from_be_bytes([*high, *low]);
    Message::error_msg(id, OpCode::from_u8((flags >> 3) & 0xf), ResponseCode::FormErr).to_vec().ok()
}

fn answer(zone: &Zone, query: &Message, response: &mut Message) -> ResponseCode {
    if query.metadata.op_code != OpCode::Query {
        return ResponseCode::NotImp;
    }
    if query.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return ResponseCode::BADVERS;
    }
    let [question] = query.queries.as_slice() else { return ResponseCode::FormErr };
    let asked = question.name().to_ascii().to_ascii_lowercase();
    let asked = asked.strip_suffix('.').unwrap_or(&asked);
    let (IN, Some(apex)) = (question.query_class(), apex(asked)) else { return ResponseCode::Refused };
    if matches!(question.query_type(), RecordType::AXFR | RecordType::IXFR) {
        return ResponseCode::Refused;
    }
    response.metadata.authoritative = true;
    let Some(node) = zone.nodes.get(asked) else {
        response.authorities.extend(soa(zone, apex));
        return ResponseCode::NXDomain;
    };
    records(zone, node, question, asked, response);
    if response.answers.is_empty() {
        response.authorities.extend(soa(zone, apex));
    }
    ResponseCode::NoError
}

const IN: DNSClass = DNSClass::IN;

fn records(zone: &Zone, node: &Node, question: &Query, asked: &str, response: &mut Message) {
    let kind = question.query_type();
    let wants = |other| kind == other || kind == RecordType::ANY;
    // The name as it was asked: resolvers that mix case on purpose compare it.
    let record = |data| Record::from_rdata(question.name().clone(), TTL, data);
    if wants(RecordType::A) {
        response.answers.extend(node.addresses.iter().map(|a| record(RData::A(A(*a)))));
    }
    if wants(RecordType::TXT) {
        response.answers.extend(node.text.map(|t| record(RData::TXT(TXT::new(vec![t.to_owned()])))));
    }
    if wants(RecordType::SRV) {
        for (port, target) in &node.services {
            response.answers.push(record(RData::SRV(SRV::new(0, 100, *port, target.clone()))));
            let name = target.to_ascii();
            let node = zone.nodes.get(name.strip_suffix('.').unwrap_or(&name));
            for address in node.into_iter().flat_map(|node| &node.addresses) {
                let glue = Record::from_rdata(target.clone(), TTL, RData::A(A(*address)));
                if !response.additionals.contains(&glue) {
                    response.additionals.push(glue);
                }
            }
        }
    }
    if !ZONES.contains(&asked) {
        return;
    }
    if wants(RecordType::SOA) {
        response.answers.extend(soa(zone, asked));
    }
    if wants(RecordType::NS) {
        response.answers.extend(absolute(&format!("ns.dns.{asked}")).map(|name| record(RData::NS(NS(name)))));
    }
}

/// The zone's SOA: in the authority section it says for how long a "no" holds (RFC 2308 section 3).
fn soa(zone: &Zone, apex: &str) -> Option<Record> {
    let server = absolute(&format!("ns.dns.{apex}"))?;
    let mailbox = absolute(&format!("hostmaster.{apex}"))?;
    let data = SOA::new(server, mailbox, zone.serial, 7200, 1800, 86_400, TTL);
    Some(Record::from_rdata(absolute(apex)?, TTL, RData::SOA(data)))
}

/// The two sockets.
#[derive(Debug)]
pub struct Server {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Server {
    /// Binds UDP and TCP; port 0 takes a port that is free for both.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        // What is free for TCP is nearly always free for UDP: a few tries are enough.
        let tries = if address.port() == 0 { 16 } else { 1 };
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..tries {
            let tcp = TcpListener::bind(address).await?;
            match UdpSocket::bind(tcp.local_addr()?).await {
                Ok(udp) => return Ok(Self { udp, tcp }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The address in use.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Answers until the process stops: names are needed while it drains.
    pub async fn serve(self, context: Arc<Context>, bound: watch::Receiver<Arc<Bound>>) {
        let address = self.local_addr().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |a| a.ip());
        let zone = Arc::new(ArcSwap::from_pointee(Zone::new(&context.tables(), &bound.borrow(), address)));
        context.process.spawn(follow(context.clone(), bound, zone.clone(), address));
        context.process.spawn(serve_tcp(context.clone(), self.tcp, zone.clone()));
        serve_udp(self.udp, zone).await;
    }
}

/// Keeps the snapshot up to date.
async fn follow(
    context: Arc<Context>,
    mut bound: watch::Receiver<Arc<Bound>>,
    zone: Arc<ArcSwap<Zone>>,
    address: IpAddr,
) {
    let mut tables = context.tables_changed();
    loop {
        let doors = bound.borrow_and_update().clone();
        zone.store(Arc::new(Zone::new(&context.tables(), &doors, address)));
        tokio::select! {
            changed = tables.changed() => if changed.is_err() { return },
            // No virtual network: the tables alone decide.
            changed = bound.changed() => if changed.is_err() && tables.changed().await.is_err() { return },
        }
    }
}

async fn serve_udp(socket: UdpSocket, zone: Arc<ArcSwap<Zone>>) {
    let mut buffer = vec![0; QUERY_MAX];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "dns: receive failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let response = buffer.get(..length).and_then(|query| respond(&zone.load(), query, true));
        if let Some(response) = response {
            // Never waits for room: a lost answer is asked for again.
            let _ = socket.try_send_to(&response, client);
        }
    }
}

async fn serve_tcp(context: Arc<Context>, listener: TcpListener, zone: Arc<ArcSwap<Zone>>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((client, _)) => {
                let zone = zone.clone();
                context.process.spawn(async move {
                    let _ = converse(client, &zone).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "dns: accept failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Queries and answers of one TCP connection, in order (RFC 7766), until it is silent, wrong or over.
async fn converse(mut client: TcpStream, zone: &ArcSwap<Zone>) -> io::Result<()> {
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let mut buffer = vec![0; QUERY_MAX];
    loop {
        let read = async {
            let length = usize::from(client.read_u16().await?);
            let query = buffer.get_mut(..length).ok_or(io::ErrorKind::InvalidData)?;
            client.read_exact(query).await?;
            Ok::<_, io::Error>(length)
        };
        let length = tokio::time::timeout(SILENCE, read).await.map_err(late)??;
        let response = buffer.get(..length).and_then(|query| respond(&zone.load(), query, false));
        let Some(response) = response else { return Ok(()) };
        let mut framed = u16::try_from(response.len()).map_err(io::Error::other)?.to_be_bytes().to_vec();
        framed.extend_from_slice(&response);
        tokio::time::timeout(SILENCE, client.write_all(&framed)).await.map_err(late)??;
    }
}
