//! The admin server's pages: what is live, what is offered, who is linked.

use std::net::SocketAddr;
use std::sync::Arc;

use hawser_runtime::{Process, clock};
use serde_json::{Value, json};

use crate::Gateway;
use crate::config::Config;

/// Adds `/streams`, `/exports`, `/peers` and `/gateway`.
pub(crate) fn add(gateway: &Arc<Gateway>, listening: SocketAddr, config: &Config, process: &Process) {
    let of = |page: fn(&Gateway) -> Value| {
        let gateway = Arc::clone(gateway);
        move |_query: &str| page(&gateway)
    };
    process.pages.add("/streams", of(streams));
    process.pages.add("/exports", of(exports));
    process.pages.add("/peers", of(peers));
    let about = json!({ "cluster": config.cluster, "gateway": config.name, "listen": listening });
    process.pages.add("/gateway", move |_| about.clone());
}

/// One row a live stream.
fn streams(gateway: &Gateway) -> Value {
    let now = clock::now();
    let row = |live: Arc<crate::streams::Live>| {
        let age = now.duration_since(live.begun).unwrap_or_default();
        json!({
            "direction": "inbound",
            "kind": "tcp",
            "clientId": live.peer.id(),
            "serial": live.peer.serial(),
            "destination": live.target.to_string(),
            "cluster": live.link,
            "gateway": gateway.name,
            "transport": live.transport.as_str(),
            "endpoint": &*live.endpoint,
            "ageMs": u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            "bytesSent": live.traffic.sent(),
            "bytesReceived": live.traffic.received(),
        })
    };
    json!({ "streams": gateway.streams.list().into_iter().map(row).collect::<Value>() })
}

/// One row an export, sorted, with its endpoints as they are seen here.
fn exports(gateway: &Gateway) -> Value {
    let tables = gateway.tables.load();
    let mut exports: Vec<_> = tables.exports.values().collect();
    exports.sort_by(|a, b| a.port.cmp(&b.port));
    let now = clock::monotonic();
    let endpoint = |endpoint: &Arc<crate::table::Endpoint>| {
        let load = gateway.endpoints.load(&endpoint.id, now);
        json!({
            "id": &*endpoint.id,
            "inbound": endpoint.inbound,
            "ready": endpoint.ready,
            "down": load.down,
            "open": load.open,
        })
    };
    let row = |export: &Arc<crate::table::Export>| {
        let mut clusters: Vec<_> = export.clusters.iter().collect();
        clusters.sort();
        json!({
            "namespace": export.port.service.namespace,
            "name": export.port.service.name,
            "port": export.port.port,
            "clusters": clusters,
            "endpoints": export.endpoints.iter().map(endpoint).collect::<Value>(),
        })
    };
    json!({ "exports": exports.into_iter().map(row).collect::<Value>() })
}

/// One row a link, sorted.
fn peers(gateway: &Gateway) -> Value {
    let tables = gateway.tables.load();
    let mut peers: Vec<_> = tables.peers.values().collect();
    peers.sort_by(|a, b| a.cluster.cmp(&b.cluster));
    let row = |peer: &Arc<crate::table::Peer>| {
        json!({
            "cluster": peer.cluster,
            "trustDomain": peer.trust_domain,
            "alive": peer.alive,
            "tunnels": gateway.limits.tunnels(&peer.cluster),
            "streams": gateway.limits.streams(&peer.cluster),
        })
    };
    json!({ "peers": peers.into_iter().map(row).collect::<Value>() })
}
