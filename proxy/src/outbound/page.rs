//! The content of `/destinations`: what `hawser why` shows of each name.

use std::collections::BTreeMap;
use std::sync::Arc;

use hawser_api::objects::link::Transport;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::target::Target;
use crate::context::Context;
use crate::listen::{Bound, BoundDestination};
use crate::route::{Position, Tried};
use crate::session::{Member, Pool};
use crate::table::{Backend, Destination, Endpoint, Peer, Port, Reach, SessionMode, Tables};

/// Every destination: its names and doors, and by tier each endpoint with its standing.
pub fn destinations(context: &Context, bound: &Bound) -> Value {
    let tables = context.tables_owned();
    let used = context.sessions.targets();
    let mut all: Vec<_> = tables.destinations.values().collect();
    all.sort_by(|a, b| a.key.cmp(&b.key));
    let view = |destination: &Arc<Destination>| {
        let used = used.iter().filter(|target| target.plan().destination.key == destination.key).cloned().collect();
        View { context, tables: &tables, destination: destination.clone(), used }
    };
    let rows: Vec<Value> = all.into_iter().map(|d| view(d).row(bound.destinations.get(&d.key))).collect();
    json!({ "version": tables.version, "destinations": rows })
}

/// One destination, with those of its ports that are in use.
struct View<'a> {
    context: &'a Context,
    tables: &'a Tables,
    destination: Arc<Destination>,
    used: Vec<Arc<Target>>,
}

impl View<'_> {
    fn row(&self, doors: Option<&BoundDestination>) -> Value {
        let it = &self.destination;
        let unavailable = it.unavailable.as_ref().map(
            |refusal| json!({ "code": refusal.code.as_str(), "message": refusal.message, "remedy": refusal.remedy }),
        );
        json!({
            "namespace": it.key.namespace,
            "name": it.key.name,
            "dnsNames": it.dns_names,
            "address": doors.map(|doors| doors.address),
            "problem": doors.and_then(|doors| doors.problem.clone()),
            "ports": it.ports.iter().map(|port| door(port, doors)).collect::<Vec<_>>(),
            "session": self.session(),
            "unavailable": unavailable,
            "tiers": (0..it.tiers.len()).map(|tier| self.tier(tier)).collect::<Vec<_>>(),
        })
    }

    /// As the object says; for `auto`, what it comes to.
    fn session(&self) -> &'static str {
        let mode = self.destination.session;
        let dedicated = self.used.iter().any(|target| target.bulk.dedicated(mode));
        match mode {
            SessionMode::Shared => "shared",
            SessionMode::Dedicated => "dedicated",
            SessionMode::Auto if dedicated => "auto (dedicated)",
            SessionMode::Auto => "auto",
        }
    }

    /// The tier that the next request would go to.
    fn current(&self) -> usize {
        let route =
            |target: &Arc<Target>| target.plan().route(Tried::default()).ok().map(|(choice, _)| choice.position.tier);
        self.used.iter().find_map(route).unwrap_or_default()
    }

    fn tier(&self, tier: usize) -> Value {
        let Some(it) = self.destination.tiers.get(tier) else { return Value::Null };
        let backends = it.backends.iter().enumerate();
        json!({
            "inUse": tier == self.current(),
            "minHealthyPercent": it.min_healthy_percent,
            "backends": backends.map(|(at, b)| self.backend(b, Position { tier, backend: at })).collect::<Vec<_>>(),
        })
    }

    fn backend(&self, backend: &Arc<Backend>, at: Position) -> Value {
        let peer = self.tables.peers.get(&backend.cluster);
        let pools: Vec<Arc<Pool>> = self.used.iter().filter_map(|target| target.plan().pool(at)).collect();
        let (local, ready) = match &backend.reach {
            Reach::Local(endpoints) => (true, endpoints.iter().filter(|e| e.ready).count()),
            Reach::Remote { endpoints_ready } => (false, usize::try_from(*endpoints_ready).unwrap_or(usize::MAX)),
        };
        json!({
            "cluster": backend.cluster,
            "local": local,
            "region": backend.region,
            "weight": backend.weight,
            "service": backend.service.to_string(),
            "identities": &*backend.identities,
            "endpointsReady": ready,
            "alive": local || peer.is_some_and(|peer| peer.alive),
            "healthyPercent": pools.iter().map(|pool| pool.health()).min(),
            "unreachable": pools.iter().find_map(|pool| pool.trouble()).map(|refusal| refusal.to_string()),
            "endpoints": self.endpoints(backend, peer, &pools),
        })
    }

    /// Endpoints in use first, under their ids; then what else the tables know.
    fn endpoints(&self, backend: &Backend, peer: Option<&Arc<Peer>>, pools: &[Arc<Pool>]) -> Vec<Value> {
        let now = Instant::now();
        let mut rows: BTreeMap<String, Value> = BTreeMap::new();
        for one in pools.iter().flat_map(|pool| pool.members().iter().cloned().collect::<Vec<_>>()) {
            rows.entry(one.id.to_string()).or_insert_with(|| member(&one, now));
        }
        match (&backend.reach, peer) {
            (Reach::Local(endpoints), _) => {
                for endpoint in endpoints {
                    rows.entry(endpoint.id.to_string()).or_insert_with(|| unused(endpoint));
                }
            }
            (Reach::Remote { .. }, Some(peer)) if rows.is_empty() => {
                return peer.gateways.iter().map(|gateway| self.gateway(peer, gateway)).collect();
            }
            (Reach::Remote { .. }, _) => {}
        }
        rows.into_values().collect()
    }

    /// How a peer would be reached, while nothing is open to it.
    fn gateway(&self, peer: &Peer, gateway: &crate::table::PeerGateway) -> Value {
        let reason = match (peer.alive, gateway.down) {
            (false, _) => "the peer's catalog is silent",
            (true, true) => "the gateway does not answer probes",
            (true, false) => "",
        };
        let transport = self.context.dialer.transport_in_use(&gateway.path).unwrap_or(gateway.path.transport);
        json!({
            "id": null,
            "in": reason.is_empty(),
            "reason": reason,
            "gateway": gateway.path.gateway,
            "transport": transport.as_str(),
            "address": gateway.path.address.to_string(),
            "open": 0,
        })
    }
}

fn door(port: &Port, doors: Option<&BoundDestination>) -> Value {
    let door = doors.and_then(|doors| doors.ports.iter().find(|door| door.number == port.number));
    let bound = doors.zip(door.and_then(|door| door.bound)).map(|(doors, bound)| format!("{}:{bound}", doors.address));
    json!({
        "port": port.number,
        "name": port.name,
        "protocol": if port.udp { "UDP" } else { "TCP" },
        "appProtocol": port.app_protocol,
        "bound": bound,
        "reason": door.map_or("", |door| door.reason.as_str()),
    })
}

fn member(member: &Arc<Member>, now: Instant) -> Value {
    let out = member.out_because(now);
    let session = member.live();
    let path = session.as_ref().map(|session| &session.path);
    let transport = path.map(|path| path.transport.map_or("direct", Transport::as_str));
    json!({
        "id": &*member.id,
        "in": out.is_none(),
        "reason": out.unwrap_or_default(),
        "gateway": path.and_then(|path| path.gateway.clone()),
        "transport": transport.or(member.address().map(|_| "direct")),
        "address": member.address().map(|address| address.to_string()),
        "ewmaMs": member.load.average(now).as_secs_f64() * 1e3,
        "open": member.load.open(),
        "serverId": session.as_ref().map(|session| session.hold.peer.id().clone()),
        "sessionAgeMs": session.as_ref().map(|s| u64::try_from(s.since.elapsed().as_millis()).unwrap_or(u64::MAX)),
    })
}

/// An endpoint of this cluster that nothing has been sent to.
fn unused(endpoint: &Endpoint) -> Value {
    json!({
        "id": &*endpoint.id,
        "in": endpoint.ready,
        "reason": if endpoint.ready { "" } else { "not ready" },
        "gateway": null,
        "transport": "direct",
        "address": endpoint.inbound.to_string(),
        "open": 0,
    })
}
