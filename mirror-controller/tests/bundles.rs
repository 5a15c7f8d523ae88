//! Clusters under roots of their own: how the anchors of one reach the other, and what is not taken.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "used by tests only, where a panic is the report")]

mod support;

use std::sync::Arc;

use hawser_api::bundle::Bundle;
use hawser_api::proto::discovery::resource::Kind;
use hawser_api::proto::issuer::{self, AcceptedBundle};
use hawser_tunnel::testing::{Pki, domain};
use serde_json::Value;
use support::anchor::Anchor;
use support::{Cluster, Subscriber, anchor, until, within};

/// What an operator accepted by hand.
fn accepted(sequence: u64, roots: &[Vec<u8>]) -> issuer::Bundle {
    let bundle = Bundle { sequence, x509_authorities: roots.to_vec(), ..Bundle::default() };
    let (trust_domain, document) = (domain("east").to_string(), bundle.to_document());
    // The anchor's own bundle has to be one.
    let own = Bundle { sequence: 1, ..Bundle::default() }.to_document();
    let accepted = vec![AcceptedBundle { trust_domain, document, accepted_ms: 1 }];
    issuer::Bundle { document: own, accepted, ..issuer::Bundle::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_an_operator_accepts_by_hand_repairs_what_the_tunnel_cannot() {
    let mut apart = Apart::new().await;
    let text = std::fs::read_to_string(apart.west.path("objects/cluster.yaml")).unwrap();
    apart.west.write("cluster.yaml", &format!("{text}  bundleUpdates: pinned\n"));
    until("the pin", || apart.link()["bundle"]["pinned"] == true).await;
    apart.east.kill();
    let wests = anchor::listen(&apart.west.path("trust-anchor.sock"));
    wests.published.send_replace(accepted(7, &apart.roots));
    apart.in_force(7, "accepted").await;
    // It is a floor like any other, and an older one that is accepted changes nothing.
    wests.published.send_replace(accepted(6, &apart.roots[..1]));
    apart.west.controller.take().unwrap().kill();
    apart.west.start();
    apart.in_force(7, "accepted").await;
}

/// West and east under different roots, and east's trust anchor.
struct Apart {
    west: Cluster,
    east: Cluster,
    anchor: Anchor,
    roots: Vec<Vec<u8>>,
    wests: Vec<u8>,
}

impl Apart {
    async fn new() -> Self {
        let (wests, easts, next) = (Arc::new(Pki::new()), Arc::new(Pki::new()), Pki::new());
        let mut west = Cluster::apart(&wests, "west", "east", easts.bundle()).await;
        let mut east = Cluster::apart(&easts, "east", "west", wests.bundle()).await;
        west.link(&[&east]);
        east.link(&[&west]);
        let anchor = anchor::listen(&east.path("trust-anchor.sock"));
        west.start();
        east.start();
        let roots = vec![easts.root().to_vec(), next.root().to_vec()];
        Self { west, east, anchor, roots, wests: wests.root().to_vec() }
    }

    /// East's trust anchor publishes the first so many of its roots.
    fn publish(&self, sequence: u64, roots: usize) {
        self.publish_these(sequence, self.roots[..roots].to_vec());
    }

    fn publish_these(&self, sequence: u64, x509_authorities: Vec<Vec<u8>>) {
        let bundle = Bundle { sequence, x509_authorities, ..Bundle::default() };
        self.anchor.published.send_replace(issuer::Bundle { document: bundle.to_document(), ..Default::default() });
    }

    fn link(&self) -> Value {
        self.west.controller().page("/links")["links"][0].clone()
    }

    async fn in_force(&self, sequence: u64, source: &str) {
        until(&format!("sequence {sequence} from {source}"), || {
            let bundle = &self.link()["bundle"];
            bundle["sequence"] == sequence && bundle["source"] == source
        })
        .await;
    }

    fn trust_current(&self) -> (String, String) {
        let conditions = self.link()["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|c| c["type"] == "TrustCurrent").unwrap_or_default();
        (found["reason"].as_str().unwrap_or_default().into(), found["message"].as_str().unwrap_or_default().into())
    }
}

async fn peer_sequence(proxy: &mut Subscriber, sequence: u64) {
    let holds =
        |table: &hawser_runtime::subscribe::Table| match table.resources.get("peer/east").map(|r| r.kind.clone()) {
            Some(Some(Kind::Peer(peer))) => Bundle::parse(&peer.bundle).is_ok_and(|bundle| bundle.sequence == sequence),
            _ => false,
        };
    within("the bundle in a proxy's table", proxy.tables.wait_for(|table| holds(table))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peers_new_anchors_reach_every_proxy_and_the_old_ones_never_come_back() {
    let mut apart = Apart::new().await;
    apart.in_force(1, "manifest").await;
    let mut proxy = apart.west.proxy("web");
    apart.publish(5, 2);
    apart.in_force(5, "tunnel").await;
    peer_sequence(&mut proxy, 5).await;
    assert_eq!(apart.trust_current().0, "Current");

    // A publisher that was set back, and one that brings our own key.
    apart.publish(4, 1);
    until("a refusal of what is older", || apart.trust_current().1.contains("lower than 5")).await;
    apart.publish_these(6, vec![apart.roots[0].clone(), apart.wests.clone()]);
    until("a refusal of our own key", || apart.trust_current().1.contains("anchor of our own")).await;
    apart.in_force(5, "tunnel").await;

    // A restart with the Link as it was, and nobody there to ask.
    apart.east.kill();
    let kept = apart.west.path("state/bundles/east.bundle.json");
    let fifth = std::fs::read(&kept).unwrap();
    apart.west.controller.take().unwrap().kill();
    apart.west.start();
    apart.in_force(5, "tunnel").await;

    // An old file in the place of the newer one.
    let (directory, floors) = (apart.west.path("state/bundles"), apart.west.path("state/bundles/floors.json"));
    assert!(directory.is_dir() && floors.is_file());
    apart.west.controller.take().unwrap().kill();
    let text = String::from_utf8(fifth).unwrap();
    std::fs::write(&kept, text.replacen("tunnel", "accept", 1)).unwrap();
    apart.west.start();
    until("that nobody is trusted", || apart.trust_current().1.contains("not as it was kept")).await;
    // The way out: the operator writes what is true now.
    apart.east.bundle =
        Bundle { sequence: 6, x509_authorities: apart.roots.clone(), ..Bundle::default() }.to_document();
    apart.west.link(&[&apart.east]);
    apart.in_force(6, "manifest").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_without_keys_means_that_nobody_is_trusted() {
    let apart = Apart::new().await;
    until("the catalog", || apart.link()["conditions"][1]["status"] == "True").await;
    apart.publish(5, 0);
    until("nobody", || apart.trust_current().0 == "Nobody").await;
    until("the end of what was live", || apart.link()["conditions"][1]["status"] == "False").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_link_pins_is_not_followed_and_both_sides_say_so() {
    let mut apart = Apart::new().await;
    let text = std::fs::read_to_string(apart.west.path("objects/cluster.yaml")).unwrap();
    apart.west.write("cluster.yaml", &format!("{text}  bundleUpdates: pinned\n"));
    until("the pin", || apart.link()["bundle"]["pinned"] == true).await;
    apart.publish(5, 2);
    until("the offer", || apart.link()["bundle"]["offered"] == 5).await;
    assert_eq!((apart.link()["bundle"]["sequence"].clone(), apart.trust_current().0.as_str()), (1.into(), "Pinned"));
    let pinned = |report: &issuer::FabricReport| {
        report.peers.iter().any(|peer| peer.acknowledgement.as_ref().is_some_and(|told| told.pinned))
    };
    within("the word of it at the peer", apart.anchor.heard.wait_for(pinned)).await.unwrap();
}
