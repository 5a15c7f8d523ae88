//! Two clusters with a mirror controller each, linked through gateways over real sockets.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "used by tests only, where a panic is the report")]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hawser_tunnel::testing::Pki;
use support::{Cluster, EXPORTED, service, until, within};

/// West and east, linked to each other; east has this many gateways and exports `checkout`.
async fn fabric(gateways: usize) -> (Cluster, Cluster) {
    let pki = Arc::new(Pki::new());
    let mut west = Cluster::new(&pki, "west", &["east"], 1).await;
    let mut east = Cluster::new(&pki, "east", &["west"], gateways).await;
    west.link(&[&east]);
    east.link(&[&west]);
    east.write("checkout.yaml", &service("checkout", EXPORTED));
    west.start();
    east.start();
    (west, east)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_becomes_a_mirror_and_goes_when_it_is_withdrawn() {
    let (west, east) = fabric(1).await;
    let mut web = west.proxy("web");
    let mirror = web.destination("checkout-east", |d| !d.tiers.is_empty()).await;
    assert_eq!(mirror.tiers[0].backends[0].identities, ["spiffe://east.hawser.test/ns/shop/sa/back"]);
    assert_eq!(mirror.dns_names, ["checkout-east.shop.svc.cluster.local", "checkout.shop.svc.clusterset.local"]);
    let file = west.path("output/mirrors/shop.checkout-east.yaml");
    until("the mirror's file", || file.exists()).await;

    east.write("checkout.yaml", &service("checkout", ""));
    let withdrawn = web.destination("checkout-east", |d| d.tiers.is_empty()).await;
    assert_eq!(withdrawn.unavailable_code, "not_exported");
    until("the mirror's file to go", || !file.exists()).await;

    let begun = Instant::now();
    east.write("checkout.yaml", &service("checkout", EXPORTED));
    web.destination("checkout-east", |d| !d.tiers.is_empty()).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "an edit takes effect within a second, also at the peer");

    let links = west.controller().page("/links");
    assert_eq!(links["links"][0]["imported"], 1);
    until("a gateway that answers", || {
        let links = west.controller().page("/links");
        links["links"][0]["conditions"][0]["status"] == "True" && links["links"][0]["gateways"][0]["alive"] == true
    })
    .await;
    let metrics = west.controller().metrics();
    assert!(metrics.contains("hawser_link_services{link=\"east\",state=\"imported\"} 1"), "{metrics}");
    assert!(metrics.contains("hawser_gateway_alive{link=\"east\",gateway=\"g0\"} 1"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_hangs_is_withdrawn_within_three_seconds_and_comes_back() {
    let (west, east) = fabric(1).await;
    let mut web = west.proxy("web");
    web.destination("checkout-east", |d| !d.tiers.is_empty()).await;
    let begun = Instant::now();
    east.gateways[0].mute.store(true, Ordering::Relaxed);
    let dead = web.destination("checkout-east", |d| d.tiers.is_empty()).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "withdrawn after {:?}", begun.elapsed());
    assert_eq!(dead.unavailable_code, "peer_unreachable");
    assert!(dead.unavailable_remedy.contains("hawser check"));
    let alive = || west.controller().page("/links")["links"][0]["gateways"][0]["alive"].clone();
    until("the gateway to count as down", || alive() == false).await;
    east.gateways[0].mute.store(false, Ordering::Relaxed);
    web.destination("checkout-east", |d| !d.tiers.is_empty()).await;
    until("the gateway to count as alive", || alive() == true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_killed_is_withdrawn_within_three_seconds() {
    let (west, mut east) = fabric(1).await;
    let mut web = west.proxy("web");
    web.destination("checkout-east", |d| !d.tiers.is_empty()).await;
    let begun = Instant::now();
    east.kill();
    let dead = web.destination("checkout-east", |d| d.tiers.is_empty()).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "withdrawn after {:?}", begun.elapsed());
    assert_eq!(dead.unavailable_code, "peer_unreachable");
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_one_of_two_gateways_withdraws_nothing() {
    let (west, east) = fabric(2).await;
    let mut web = west.proxy("web");
    web.destination("checkout-east", |d| !d.tiers.is_empty()).await;
    until("both gateways", || {
        let gateways = west.controller().page("/links")["links"][0]["gateways"].clone();
        gateways.as_array().unwrap().iter().all(|gateway| gateway["alive"] == true)
    })
    .await;
    for lost in &east.gateways {
        let mut seen = web.tables.clone();
        seen.borrow_and_update();
        lost.mute.store(true, Ordering::Relaxed);
        // Longer than the lease: whoever held the stream, it has moved, and nobody saw the mirror go.
        let withdrawn = seen.wait_for(|table| {
            let resource = &table.resources["destination/shop/checkout-east"];
            matches!(&resource.kind, Some(hawser_api::proto::discovery::resource::Kind::Destination(d)) if d.tiers.is_empty())
        });
        assert!(tokio::time::timeout(Duration::from_secs(4), withdrawn).await.is_err());
        lost.mute.store(false, Ordering::Relaxed);
        until("it to be back", || {
            let gateways = west.controller().page("/links")["links"][0]["gateways"].clone();
            gateways.as_array().unwrap().iter().all(|gateway| gateway["alive"] == true)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_every_peer_down_knows_the_names() {
    let (mut west, mut east) = fabric(1).await;
    let mut web = west.proxy("web");
    web.destination("checkout-east", |d| !d.tiers.is_empty()).await;
    let kept = west.path("state/catalogs/east.catalog");
    until("the catalog on disk", || kept.exists()).await;
    east.kill();
    west.controller.take().unwrap().kill();
    west.start();
    // A new subscriber, with nothing on disk.
    let mut other = west.proxy("other");
    let found = other.destination("checkout-east", |d| d.tiers.is_empty()).await;
    assert_eq!(found.unavailable_code, "peer_unreachable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_the_peer_up_drops_nothing() {
    let (mut west, _east) = fabric(1).await;
    let mut web = west.proxy("web");
    web.destination("checkout-east", |d| !d.tiers.is_empty()).await;
    until("the catalog on disk", || west.path("state/catalogs/east.catalog").exists()).await;
    let version = web.tables.borrow().version;
    west.controller.take().unwrap().kill();
    west.start();
    let mut seen = web.tables.clone();
    let dropped = |table: &Arc<hawser_runtime::subscribe::Table>| {
        let resource = table.resources.get("destination/shop/checkout-east").and_then(|r| r.kind.clone());
        !matches!(resource, Some(hawser_api::proto::discovery::resource::Kind::Destination(d)) if !d.tiers.is_empty())
    };
    let watching = tokio::time::timeout(Duration::from_secs(4), seen.wait_for(dropped));
    assert!(watching.await.is_err(), "the mirror was gone for a moment");
    assert!(web.tables.borrow().version > version, "the new controller was not heard");
}

#[tokio::test(flavor = "multi_thread")]
async fn unlinking_takes_the_mirrors_away_and_the_exporter_stops_telling() {
    let (west, east) = fabric(1).await;
    let mut web = west.proxy("web");
    web.destination("checkout-east", |d| !d.tiers.is_empty()).await;
    // East no longer links west: west hears nothing more, and is told why.
    east.link(&[]);
    let dead = web.destination("checkout-east", |d| d.tiers.is_empty()).await;
    assert_eq!(dead.unavailable_code, "peer_unreachable");
    west.link(&[]);
    web.gone("checkout-east").await;
    until("the link's entry to go", || west.controller().page("/links")["links"].as_array().unwrap().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_drains_ends() {
    let (mut west, _east) = fabric(1).await;
    let mut web = west.proxy("web");
    web.destination("checkout-east", |d| !d.tiers.is_empty()).await;
    let controller = west.controller.take().unwrap();
    controller.process.drain.cancel();
    within("the end", controller.served).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exporter_is_told_what_its_peer_does_not_take() {
    let (west, east) = fabric(1).await;
    let mut web = west.proxy("web");
    web.destination("checkout-east", |d| !d.tiers.is_empty()).await;
    let rejections = || east.controller().page("/exports")["exports"][0]["rejections"].clone();
    assert_eq!(rejections(), serde_json::json!([]));
    // The name of the mirror is taken.
    west.write("mine.yaml", &service("checkout-east", ""));
    until("the rejection", || rejections()[0]["cluster"] == "west").await;
    // Why is told to west's users alone: it would say what west has.
    assert_eq!(rejections()[0]["reason"], "this cluster does not take it: its Link's status says why");
    let refused = west.controller().page("/links")["links"][0]["refused"][0]["reason"].clone();
    assert!(refused.as_str().unwrap().contains("a Service of this cluster"), "{refused}");
    std::fs::remove_file(west.path("objects/mine.yaml")).unwrap();
    until("the rejection to go", || rejections() == serde_json::json!([])).await;
}
