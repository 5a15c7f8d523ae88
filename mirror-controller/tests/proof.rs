//! Who has loaded what reaches peers and the trust anchor, over real sockets.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "used by tests only, where a panic is the report")]

mod support;

use std::sync::Arc;

use hawser_api::proto::discovery::{Role, Status};
use hawser_api::proto::issuer::{FabricReport, LinkedPeer};
use hawser_tunnel::report;
use hawser_tunnel::testing::Pki;
use support::{Cluster, Subscriber, anchor, until, within};
use tokio::sync::watch;

/// A validator of a cluster that reports what these credentials hold.
fn validator(cluster: &Cluster, pki: &Pki, role: Role, name: &str) -> Subscriber {
    let credentials =
        pki.linked(cluster.name, "/ns/shop/sa/back", &[if cluster.name == "west" { "east" } else { "west" }]);
    let trust = Some(report::trust(&credentials));
    let subscriber =
        Subscriber::new(cluster.path("discovery.sock"), cluster.path(&format!("tables-{name}")), role, name);
    subscriber.status.send_replace(Status { role: role.into(), name: name.into(), trust, ..Status::default() });
    subscriber
}

async fn peer(
    heard: &mut watch::Receiver<FabricReport>,
    what: &str,
    wanted: impl Fn(&LinkedPeer) -> bool,
) -> LinkedPeer {
    let find = |report: &FabricReport| report.peers.first().filter(|peer| wanted(peer)).cloned();
    let report = within(what, heard.wait_for(|report| find(report).is_some())).await.unwrap().clone();
    find(&report).unwrap()
}

fn silent(peer: &LinkedPeer) -> Option<(u32, u32)> {
    peer.acknowledgement.as_ref().map(|told| (told.validators, told.silent))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trust_anchor_learns_what_the_validators_of_a_peer_have_loaded() {
    let pki = Arc::new(Pki::new());
    let mut west = Cluster::new(&pki, "west", &["east"], 1).await;
    let mut east = Cluster::new(&pki, "east", &["west"], 1).await;
    west.link(&[&east]);
    east.link(&[&west]);
    let mut heard = anchor::listen(&east.path("trust-anchor.sock")).heard;
    west.start();
    east.start();

    // West's one proxy has not spoken: its gateway and its mirror controller alone are no proof.
    let told = peer(&mut heard, "an acknowledgement", |peer| silent(peer) == Some((3, 1))).await;
    assert!(told.alive && told.seen_ms > 0);
    let root = report::trust(&pki.credentials("east", "/ns/x/sa/y")).loaded[0].authorities.clone();

    let proxy = validator(&west, &pki, Role::Proxy, "back");
    let told = peer(&mut heard, "all validators", |peer| silent(peer) == Some((3, 0))).await;
    let acknowledgement = told.acknowledgement.unwrap();
    assert_eq!(acknowledgement.authorities, root, "all hold east's root, which is their own");
    assert!(acknowledgement.now_ms > 0);
    // The catalog's own session rests on east's authorities.
    assert!(acknowledgement.dependences.iter().any(|one| one.authority == root[0] && one.live > 0));

    // Both clusters go by one clock here, and each sees that; who holds what is on a page.
    until("the peer's clock", || {
        let links = west.controller().page("/links");
        links["links"][0]["clockAheadMs"].as_i64().is_some_and(|ahead| ahead.abs() < 2_000)
    })
    .await;
    let page = west.controller().page("/trust");
    let speaks = page["validators"].as_array().unwrap().iter().filter(|row| row["speaks"] == true).count();
    assert_eq!(speaks, 3);
    assert!(page["anchors"].as_array().unwrap().iter().all(|row| row["notAfter"].as_i64().unwrap() > 0));
    until("the metrics of it", || {
        let metrics = west.controller().metrics();
        [
            "hawser_peer_clock_ahead_seconds{link=\"east\"}",
            "hawser_anchor_expiry_timestamp_seconds{cluster=\"east\",anchor=\"first\"}",
        ]
        .iter()
        .all(|series| metrics.contains(series))
    })
    .await;

    drop(proxy);
    peer(&mut heard, "its going", |peer| silent(peer) == Some((3, 1))).await;

    // One that is not in the objects validates as long as it is connected.
    let stray = validator(&west, &pki, Role::Gateway, "stray");
    peer(&mut heard, "the stray", |peer| silent(peer) == Some((4, 1))).await;
    drop(stray);
    peer(&mut heard, "its going", |peer| silent(peer) == Some((3, 1))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trust_anchor_that_comes_late_or_again_is_told_all_of_it() {
    let pki = Arc::new(Pki::new());
    let mut west = Cluster::new(&pki, "west", &["east"], 1).await;
    west.link(&[]);
    west.start();
    let _proxy = validator(&west, &pki, Role::Proxy, "back");
    let mut heard = anchor::listen(&west.path("trust-anchor.sock")).heard;
    let complete = |report: &FabricReport| {
        report.validators.len() == 3 && report.validators.iter().all(|v| v.connected && v.trust.is_some())
    };
    let report = within("a whole report", heard.wait_for(complete)).await.unwrap().clone();
    let kinds: Vec<_> = report.validators.iter().map(|v| (v.kind.as_str(), v.name.as_str())).collect();
    assert_eq!(kinds, [("gateway", "g0"), ("proxy", "back"), ("mirror-controller", "west")]);
    // It is said again without a change, so that who listens knows that it holds.
    heard.mark_unchanged();
    within("the same again", heard.changed()).await.unwrap();
}
