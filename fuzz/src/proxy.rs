//! What an application may send to its proxy: the first bytes of a connection, DNS, SOCKS5.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};

use hawser_api::ServiceKey;
use hawser_proxy::detect::{PEEK_MAX, Protocol, detect as look};
use hawser_proxy::dns::{Zone, respond};
use hawser_proxy::listen::{Bound, BoundDestination, BoundPort};
use hawser_proxy::socks::{Stop, find, handshake};
use hawser_proxy::table::{Destination, Port, SessionMode, Tables};

use super::ready;

/// More bytes never change a decision, and a full look always decides.
pub fn detect(data: &[u8]) -> bool {
    let seen = data.get(..PEEK_MAX).unwrap_or(data);
    let decided = look(seen);
    assert!(decided.is_some() || seen.len() < PEEK_MAX);
    if decided == Some(Protocol::Http2) {
        assert!(seen.starts_with(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"));
    }
    for end in 0..seen.len() {
        let early = look(&seen[..end]);
        assert!(early.is_none() || early == decided, "{early:?} after {end} bytes, then {decided:?}");
    }
    matches!(decided, Some(Protocol::Http1 | Protocol::Http2))
}

/// Any message is answered within its limit, to whoever asked, or not at all; and an answer is never answered.
pub fn dns(data: &[u8]) -> bool {
    static ZONE: OnceLock<Zone> = OnceLock::new();
    let zone = ZONE.get_or_init(|| {
        let (tables, bound) = destinations();
        Zone::new(tables, bound, IpAddr::V4(Ipv4Addr::LOCALHOST))
    });
    let mut answered = false;
    for udp in [true, false] {
        let Some(answer) = respond(zone, data, udp) else { continue };
        assert!(answer.len() >= 12 && answer.len() <= if udp { 1232 } else { usize::from(u16::MAX) });
        assert_eq!(answer.get(..2), data.get(..2), "an answer to somebody else");
        assert_ne!(answer[2] & 0x80, 0, "not an answer");
        assert_eq!(respond(zone, &answer, udp), None, "an answer to an answer");
        // The last four bits of the flags: 0 is NOERROR.
        answered |= answer[3] & 0xf == 0;
    }
    answered
}

/// A request counts only when it is whole, what the client hears before it is one method selection, and what is found
/// is what the tables have.
pub fn socks(data: &[u8]) -> bool {
    let mut said = Vec::new();
    let mut left = data;
    let asked = ready(handshake(&mut tokio::io::join(&mut left, &mut said)));
    let consumed = data.len() - left.len();
    assert!(consumed <= 520, "{consumed} bytes of one request");
    assert!(said.is_empty() || said == [5, 0] || said == [5, 0xff]);
    let Ok((host, port)) = asked else { return false };
    assert_eq!(said, [5, 0]);
    let cut = ready(handshake(&mut tokio::io::join(&data[..consumed - 1], Vec::new())));
    assert_eq!(cut, Err(Stop::Close));
    let (tables, bound) = destinations();
    let Ok((destination, number)) = find(tables, bound, &host, port) else { return false };
    assert!(destination.ports.iter().any(|p| p.number == number && !p.udp));
    true
}

/// Two services, one with a stand-in for a port that could not be bound.
fn destinations() -> &'static (Tables, Bound) {
    static ALL: OnceLock<(Tables, Bound)> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut tables = Tables::default();
        let mut bound = Bound::default();
        for (last, name, zone) in [(1, "checkout", "cluster.local"), (2, "cart", "clusterset.local")] {
            let key = ServiceKey::parse("shop", name).expect("a service");
            let dns = format!("{name}.shop.svc.{zone}");
            let port = |number, udp| Port { name: "http".into(), number, udp, app_protocol: String::new() };
            let destination = Destination {
                key: key.clone(),
                dns_names: vec![dns.clone()],
                group_names: Vec::new(),
                headless_names: Vec::new(),
                ports: vec![port(80, false), port(53, true)],
                tiers: Vec::new(),
                session: SessionMode::Auto,
                fixed_address: None,
                unavailable: None,
                changed_at_ms: 0,
            };
            tables.destinations.insert(key.clone(), Arc::new(destination));
            tables.names.insert(dns, key.clone());
            let address = Ipv4Addr::new(127, 65, 0, last);
            let ports = vec![BoundPort { number: 80, bound: Some(10_080), reason: "privileged".into() }];
            bound.by_address.insert(address, key.clone());
            bound.destinations.insert(key, BoundDestination { address, problem: None, ports });
        }
        (tables, bound)
    })
}
