//! What is linked, exported and trusted reaches the trust anchor's audit log, over a real socket.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "used by tests only, where a panic is the report")]

mod support;

use std::sync::Arc;

use hawser_tunnel::testing::Pki;
use support::anchor::{self, Anchor};
use support::{Cluster, EXPORTED, service, until, within};

/// Links and what is exported by west, which stands alone: nothing of this needs an answer of east.
async fn west() -> (Cluster, Cluster) {
    let pki = Arc::new(Pki::new());
    let west = Cluster::new(&pki, "west", &["east"], 1).await;
    let east = Cluster::new(&pki, "east", &["west"], 1).await;
    west.link(&[&east]);
    west.write("web.yaml", &service("web", EXPORTED));
    (west, east)
}

/// The next events, in any order among themselves.
async fn next(anchor: &Anchor, seen: &mut usize, wanted: &[(&str, &str)]) {
    let mut recorded = anchor.recorded.clone();
    within("events", recorded.wait_for(|all| all.len() >= *seen + wanted.len())).await.unwrap();
    let all = recorded.borrow().clone();
    let mut new: Vec<_> = all[*seen..].iter().map(|event| (event.event.as_str(), event.subject.as_str())).collect();
    let mut wanted = wanted.to_vec();
    new.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(new, wanted, "{all:?}");
    *seen = all.len();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_changes_and_goes_is_recorded_once_whenever_the_log_can_be_written() {
    let (mut west, _east) = west().await;
    west.start();
    // It comes late.
    until("a catalog for east", || west.controller().page("/exports").to_string().contains("web")).await;
    let (anchor, mut seen) = (anchor::listen(&west.path("trust-anchor.sock")), 0);
    let link = ("link", "east (east.hawser.test)");
    next(&anchor, &mut seen, &[link, ("bundle", "east.hawser.test"), ("export", "shop/web")]).await;
    let first = anchor.recorded.borrow()[0].clone();
    assert_eq!(first.reporter, "spiffe://west.hawser.test/ns/hawser-system/sa/mirror-controller");

    west.write(
        "web.yaml",
        &service("web", &EXPORTED.replace("labels", "annotations: {hawser.dev/export-to: nobody}, labels")),
    );
    next(&anchor, &mut seen, &[("unexport", "shop/web")]).await;

    // While nothing is recorded, one service comes and goes, and the Link goes for good: that alone is told, and each half
    // of it once, though there is room for one event before there is room for the other.
    anchor.room.send_replace(0);
    let exported = |name: &'static str| west.controller().page("/exports").to_string().contains(name);
    west.write("late.yaml", &service("late", EXPORTED));
    until("an export", || exported("late")).await;
    west.write("late.yaml", &service("late", ""));
    until("its end", || !exported("late")).await;
    west.link(&[]);
    until("no Link", || west.controller().page("/links")["links"].as_array().is_some_and(Vec::is_empty)).await;
    anchor.room.send_replace(1);
    within("one event", anchor.recorded.clone().wait_for(|all| all.len() > seen)).await.unwrap();
    anchor.room.send_replace(usize::MAX);
    next(&anchor, &mut seen, &[("bundle", "east.hawser.test"), ("unlink", "east (east.hawser.test)")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_tells_what_has_changed_meanwhile_and_nothing_again() {
    let (mut west, _east) = west().await;
    let (anchor, mut seen) = (anchor::listen(&west.path("trust-anchor.sock")), 0);
    west.start();
    let link = ("link", "east (east.hawser.test)");
    next(&anchor, &mut seen, &[link, ("bundle", "east.hawser.test"), ("export", "shop/web")]).await;
    until("what was told on disk", || west.path("state/record/told.json").exists()).await;
    west.controller.take().unwrap().kill();
    west.write("web.yaml", &service("web", ""));
    west.write("files.yaml", &service("files", EXPORTED));
    west.start();
    next(&anchor, &mut seen, &[("unexport", "shop/web"), ("export", "shop/files")]).await;
}
