//! Admin pages: the statuses as JSON.

use std::sync::Arc;

use hawser_api::proto::discovery::{Dependence, LoadedAnchors, OwnLeaf};
use hawser_api::proto::issuer::{LinkedPeer, Validator};
use hawser_runtime::Process;
use hawser_runtime::clock;
use hawser_tunnel::tls::Credentials;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::fabric::Fabric;
use crate::plan::{Plan, proof};
use crate::status::Statuses;
use crate::world::Store;

/// Adds `/links`, `/exports`, `/mirrors`, `/endpoints`, `/listeners` and `/objects`.
pub(crate) fn add(process: &Process, plans: &watch::Receiver<Option<Arc<Plan>>>) {
    page(process, "/links", plans, |statuses| json!({ "links": statuses.links }));
    page(process, "/exports", plans, |statuses| json!({ "exports": statuses.exports }));
    page(process, "/mirrors", plans, |statuses| json!({ "mirrors": statuses.mirrors }));
    page(process, "/endpoints", plans, |statuses| json!({ "endpoints": statuses.endpoints }));
    page(process, "/listeners", plans, |statuses| json!({ "listeners": statuses.listeners }));
    page(process, "/objects", plans, |statuses| json!(statuses.objects));
}

fn page(
    process: &Process,
    path: &'static str,
    plans: &watch::Receiver<Option<Arc<Plan>>>,
    pick: fn(&Statuses) -> Value,
) {
    let plans = plans.clone();
    process.pages.add(path, move |_query| {
        let plan = plans.borrow().clone();
        plan.map_or_else(|| pick(&Statuses::default()), |plan| pick(&plan.statuses))
    });
}

/// Adds `/trust`: who has loaded which anchors, what each peer says of ours, and when every anchor in force ends.
pub(crate) fn trust(process: &Process, fabric: &Fabric, store: &Store, credentials: &Credentials) {
    let (fabric, store, credentials) = (fabric.clone(), store.clone(), credentials.clone());
    process.pages.add("/trust", move |_query| {
        let report = proof::report(&store.now(), &fabric.known(), fabric.own(), crate::now_ms());
        let report = report.unwrap_or_default();
        let ends = credentials.anchor_ends().into_iter().map(|(domain, authority, end)| {
            json!({ "trustDomain": domain, "authority": authority.to_string(), "notAfter": clock::millis(end) / 1000 })
        });
        json!({
            "nowMs": crate::now_ms(),
            "validators": report.validators.iter().map(validator).collect::<Vec<_>>(),
            "peers": report.peers.iter().map(peer).collect::<Vec<_>>(),
            "anchors": ends.collect::<Vec<_>>(),
        })
    });
}

fn validator(validator: &Validator) -> Value {
    let trust = validator.trust.clone().unwrap_or_default();
    let loaded = |loaded: &LoadedAnchors| {
        json!({
            "trustDomain": loaded.trust_domain,
            "sequence": loaded.sequence,
            "authorities": loaded.authorities.iter().map(|key| hex(key)).collect::<Vec<_>>(),
        })
    };
    let leaf = |leaf: &OwnLeaf| {
        json!({
            "spiffeId": leaf.spiffe_id,
            "serial": leaf.serial,
            "issuer": hex(&leaf.issuer),
            "anchor": hex(&leaf.anchor),
            "notAfter": leaf.not_after_ms / 1000,
        })
    };
    let rests = |rests: &Dependence| {
        json!({
            "trustDomain": rests.trust_domain,
            "authority": hex(&rests.authority),
            "live": rests.live,
            "until": rests.until_ms / 1000,
        })
    };
    json!({
        "dependences": trust.dependences.iter().map(rests).collect::<Vec<_>>(),
        "name": validator.name,
        "kind": validator.kind,
        "connected": validator.connected,
        "seenMs": validator.seen_ms,
        "speaks": validator.trust.is_some(),
        "loaded": trust.loaded.iter().map(loaded).collect::<Vec<_>>(),
        "leaf": trust.leaf.as_ref().map(leaf),
    })
}

fn peer(peer: &LinkedPeer) -> Value {
    let told = peer.acknowledgement.as_ref().map(|told| {
        json!({
            "sequence": told.sequence,
            "authorities": told.authorities.iter().map(|key| hex(key)).collect::<Vec<_>>(),
            "validators": told.validators,
            "silent": told.silent,
            "pinned": told.pinned,
        })
    });
    json!({
        "cluster": peer.cluster,
        "trustDomain": peer.trust_domain,
        "alive": peer.alive,
        "seenMs": peer.seen_ms,
        "acknowledgement": told,
        "clockAheadMs": peer.clock_known.then_some(peer.clock_ahead_ms),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
