//! The content of `/destinations`: what `hawser why` shows of each name.

use std::sync::Arc;

use hawser_api::objects::link::Transport;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::target::{Leg, Target};
use crate::context::Context;
use crate::session::{Member, Pool};
use crate::table::{Backend, Destination, Reach};

/// Every destination: its tiers as the table has them, and for ports in use each endpoint with its standing.
pub fn destinations(context: &Context) -> Value {
    let tables = context.tables_owned();
    let targets = context.sessions.targets();
    let mut all: Vec<_> = tables.destinations.values().collect();
    all.sort_by(|a, b| a.key.cmp(&b.key));
    let row = |destination: &&Arc<Destination>| {
        let used: Vec<Value> = targets
            .iter()
            .filter(|target| target.plan().destination.key == destination.key)
            .map(|target| port(context, target))
            .collect();
        json!({
            "name": destination.key.to_string(),
            "dnsNames": destination.dns_names,
            "ports": destination.ports.iter().map(|p| json!({
                "name": p.name, "port": p.number, "protocol": if p.udp { "UDP" } else { "TCP" }, "appProtocol": p.app_protocol,
            })).collect::<Vec<_>>(),
            "tiers": destination.tiers.iter().map(|tier| json!({
                "minHealthyPercent": tier.min_healthy_percent,
                "backends": tier.backends.iter().map(|b| backend(context, b)).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
            "unavailable": destination.unavailable.as_ref().map(|refusal| json!({
                "code": refusal.code.as_str(), "message": refusal.message, "remedy": refusal.remedy,
            })),
            "inUse": used,
        })
    };
    json!({ "version": tables.version, "destinations": all.iter().map(row).collect::<Vec<_>>() })
}

fn backend(context: &Context, backend: &Arc<Backend>) -> Value {
    let tables = context.tables();
    let peer = tables.peers.get(&backend.cluster);
    let (reach, ready) = match &backend.reach {
        Reach::Local(endpoints) => ("local", endpoints.iter().filter(|e| e.ready).count()),
        Reach::Remote { endpoints_ready } => ("remote", usize::try_from(*endpoints_ready).unwrap_or(usize::MAX)),
    };
    json!({
        "cluster": backend.cluster,
        "service": backend.service.to_string(),
        "weight": backend.weight,
        "region": backend.region,
        "reach": reach,
        "endpointsReady": ready,
        "alive": peer.map(|peer| peer.alive),
        "gateways": peer.map(|peer| peer.gateways.iter().map(|gateway| json!({
            "name": gateway.path.gateway,
            "address": gateway.path.address.to_string(),
            "down": gateway.down,
            "transport": context.dialer.transport_in_use(&gateway.path).map(Transport::as_str),
        })).collect::<Vec<_>>()),
    })
}

fn port(context: &Context, target: &Target) -> Value {
    let plan = target.plan();
    let tiers = plan.tiers().iter().map(|tier| tier.iter().map(|leg| row(context, leg)).collect::<Vec<_>>());
    json!({
        "port": target.port,
        "session": if target.bulk.dedicated(plan.destination.session) { "dedicated" } else { "shared" },
        "tiers": tiers.collect::<Vec<_>>(),
    })
}

fn row(context: &Context, leg: &Arc<Leg>) -> Value {
    let (pool, now) = (&leg.pool, Instant::now());
    let unreachable = pool.trouble();
    json!({
        "cluster": pool.cluster,
        "target": pool.target.to_string(),
        "healthyPercent": pool.health(),
        "unreachable": unreachable.map(|refusal| refusal.to_string()),
        "endpoints": pool.members().iter().map(|m| member(m, now)).chain(left_out(context, pool)).collect::<Vec<_>>(),
    })
}

fn member(member: &Arc<Member>, now: Instant) -> Value {
    let out = member.out_because(now);
    let session = member.live();
    json!({
        "endpoint": &*member.id,
        "state": if out.is_some() { "out" } else { "in" },
        "reason": out,
        "ewmaMs": member.load.average(now).as_secs_f64() * 1e3,
        "open": member.load.open(),
        "session": session.as_ref().map(|session| json!({
            "serverId": session.hold.peer.id(),
            "gateway": session.path.gateway,
            "transport": session.path.transport.map(Transport::as_str),
            "open": session.open(),
            "ageMs": u64::try_from(session.since.elapsed().as_millis()).unwrap_or(u64::MAX),
        })),
    })
}

/// Endpoints of this cluster that the table says take no new work.
fn left_out(context: &Context, pool: &Pool) -> Vec<Value> {
    let backend = pool.backend();
    let (true, Reach::Local(endpoints)) = (pool.cluster == context.cluster, &backend.reach) else { return Vec::new() };
    let row = |e: &crate::table::Endpoint| json!({ "endpoint": &*e.id, "state": "out", "reason": "not ready", "open": 0 });
    endpoints.iter().filter(|e| !e.ready).map(row).collect()
}
