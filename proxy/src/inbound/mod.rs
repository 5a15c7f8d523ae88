//! What callers send: sealed sessions only, every stream admitted by itself, then handed to the application.
//!
//! ```text
//! listen ─ sealed::accept ─┬ shared: each stream ─ admit ─ dial ─┬ http     HTTP/1.1 or h2c to the application
//!                          │                                     ├ upgrade  HTTP/1.1 inside a CONNECT stream
//!                          │                                     └ tcp      bytes inside a CONNECT stream
//!                          └ dedicated ─ admit ─ dial ─ tcp
//! ```
//!
//! [`Inbound::recheck`] runs after every change of tables or credentials and cuts the sessions that are no longer
//! admitted.

pub mod admit;
mod body;
mod dial;
mod h2c;
mod http;
mod limits;
mod listen;
mod request;
mod sessions;
mod tcp;
mod upgrade;

use std::sync::Arc;

use hawser_api::{Code, Refusal, SpiffeId};
use prometheus_client::metrics::gauge::Gauge;
use serde_json::json;

use crate::context::Context;
use dial::Targets;
pub use limits::Limits;
use sessions::Sessions;

/// The inbound side of a proxy.
pub struct Inbound {
    context: Arc<Context>,
    sessions: Arc<Sessions>,
    targets: Targets,
    limits: Limits,
    handshaking: Gauge,
}

impl Inbound {
    /// With nobody connected.
    pub fn new(context: Arc<Context>) -> Arc<Self> {
        Self::with_limits(context, Limits::default())
    }

    /// The same, with other bounds.
    pub fn with_limits(context: Arc<Context>, limits: Limits) -> Arc<Self> {
        let sessions = Arc::new(Sessions::new(&limits));
        let handshaking = Gauge::default();
        let mut registry = context.process.registry.lock();
        registry.register("hawser_inbound_handshakes", "Sealed sessions in their handshake now", handshaking.clone());
        registry.register("hawser_inbound_sessions", "Sealed sessions of callers now", sessions.count().clone());
        drop(registry);
        Arc::new(Self { context, sessions, targets: Targets::default(), limits, handshaking })
    }

    /// What it was made with.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Checks every live session again: whom we no longer trust, and who uses a port that is no longer exported to him,
    /// is cut. Forgets applications that are gone.
    pub fn recheck(&self) {
        let tables = self.context.tables_owned();
        let own = self.context.credentials.own_domain();
        for session in self.sessions.all() {
            if !self.context.credentials.still_trusts(&session.peer) {
                session.cut(Code::NotLinked);
                continue;
            }
            let refused = |target| admit::admit(session.peer.id(), own, target, &tables).err();
            if let Some(refusal) = session.targets().iter().find_map(refused) {
                session.cut(refusal.code);
            }
        }
        self.targets.retain(&tables);
    }

    /// The content of `/inbound`: what is fronted, for whom, and who is connected.
    pub fn page(&self) -> serde_json::Value {
        let tables = self.context.tables_owned();
        let mut ports: Vec<_> = tables.inbound.values().collect();
        ports.sort_by(|a, b| a.port.cmp(&b.port));
        let target = |t: &crate::table::InboundTarget| {
            json!({
                "id": &*t.id,
                "address": t.address,
                "ready": t.ready,
                "open": self.targets.open(t.address),
            })
        };
        let port = |i: &Arc<crate::table::Inbound>| {
            let mut domains: Vec<_> = i.trust_domains.iter().map(ToString::to_string).collect();
            domains.sort();
            json!({
                "namespace": i.port.service.namespace,
                "name": i.port.service.name,
                "port": i.port.port,
                "appProtocol": i.app_protocol,
                "trustDomains": domains,
                "targets": i.targets.iter().map(target).collect::<Vec<_>>(),
            })
        };
        json!({
            "inbound": ports.into_iter().map(port).collect::<Vec<_>>(),
            "sessions": self.sessions.by_identity().iter().map(|(id, n)| row(id, *n)).collect::<Vec<_>>(),
        })
    }
}

fn row(id: &SpiffeId, sessions: usize) -> serde_json::Value {
    json!({ "clientId": id, "sessions": sessions })
}

/// An application that accepted a connection and then did not speak its protocol.
fn unreachable(address: std::net::SocketAddr, error: &dyn std::fmt::Display) -> Refusal {
    let remedy = "check that the port's appProtocol is what the application speaks";
    Refusal::new(Code::EndpointUnreachable, format!("the application at {address} gave no connection: {error}"), remedy)
}
