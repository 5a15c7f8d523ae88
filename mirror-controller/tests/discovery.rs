//! Discovery over its real socket: what subscribers get, and what is made of what they report.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "used by tests only, where a panic is the report")]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use hawser_api::proto::discovery::discovery_client::DiscoveryClient;
use hawser_api::proto::discovery::{Listener, Role, Update, WatchRequest};
use hawser_tunnel::testing::Pki;
use hyper_util::rt::TokioIo;
use support::{Cluster, EXPORTED, service, until, within};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

async fn alone() -> Cluster {
    let pki = Arc::new(Pki::new());
    let mut west = Cluster::new(&pki, "west", &[], 0).await;
    west.link(&[]);
    west.write("checkout.yaml", &service("checkout", EXPORTED));
    west.start();
    west
}

async fn client(cluster: &Cluster) -> DiscoveryClient<Channel> {
    let socket = cluster.path("discovery.sock");
    until("the socket", || socket.exists()).await;
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://controller").connect_with_connector(connector).await.unwrap();
    DiscoveryClient::new(channel)
}

fn request(role: Role, name: &str) -> WatchRequest {
    WatchRequest { role: role.into(), name: name.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_this_user_may_open_the_socket() {
    let west = alone().await;
    client(&west).await;
    let mode = std::fs::metadata(west.path("discovery.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_gets_its_own_resources() {
    let west = alone().await;
    let mut client = client(&west).await;
    let kinds = |update: &Update| {
        let mut kinds: Vec<String> =
            update.changed.iter().map(|r| r.key.split('/').next().unwrap().to_owned()).collect();
        kinds.dedup();
        kinds
    };
    let mut first = async |role, name| {
        let mut updates = client.watch(request(role, name)).await.unwrap().into_inner();
        let update = within("a snapshot", updates.message()).await.unwrap().unwrap();
        assert!(update.snapshot);
        kinds(&update)
    };
    assert_eq!(first(Role::Proxy, "back").await, ["destination", "inbound"]);
    assert_eq!(first(Role::Proxy, "unknown").await, ["destination"]);
    // Nobody is linked: nothing is let in.
    assert_eq!(first(Role::Gateway, "g0").await, Vec::<String>::new());
    let refused = client.watch(request(Role::Unspecified, "")).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_that_reads_slowly_gets_fewer_updates_and_the_same_end() {
    let west = alone().await;
    let mut slow = client(&west).await.watch(request(Role::Proxy, "back")).await.unwrap().into_inner();
    let snapshot = within("a snapshot", slow.message()).await.unwrap().unwrap();
    let mut quick = west.proxy("back");
    for count in 1..=8 {
        // Large enough that what is not read fills HTTP/2's windows.
        let services: Vec<String> = (0..200).map(|n| service(&format!("s{n}-{count}"), "")).collect();
        west.write("many.yaml", &services.join("---\n"));
        quick.destination(&format!("s199-{count}"), |_| true).await;
    }
    let mut known: std::collections::BTreeSet<String> = snapshot.changed.into_iter().map(|r| r.key).collect();
    let wanted: std::collections::BTreeSet<String> = quick.resources().keys().cloned().collect();
    let mut version = snapshot.version;
    while known != wanted {
        let update = within("an update", slow.message()).await.unwrap().unwrap();
        assert!(update.version > version && !update.snapshot);
        version = update.version;
        update.removed.iter().for_each(|key| assert!(known.remove(key), "{key} was not there"));
        known.extend(update.changed.into_iter().map(|r| r.key));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_reports_of_its_listeners_can_be_read() {
    let west = alone().await;
    let proxy = west.proxy("web");
    let listener = Listener {
        namespace: "shop".into(),
        name: "checkout".into(),
        port: 80,
        bound: "127.65.0.1:10080".into(),
        reason: "ports below 1024 may not be bound".into(),
    };
    proxy.status.send_modify(|status| status.listeners = vec![listener]);
    until("the page", || west.controller().page("/listeners")["listeners"][0]["bound"] == "127.65.0.1:10080").await;
    let file = west.path("output/status/listeners.json");
    let read = || std::fs::read_to_string(&file).unwrap_or_default();
    until("the file", || read().contains("ports below 1024 may not be bound")).await;
    drop(proxy);
    until("a proxy that is gone to be forgotten", || !read().contains("10080")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_edit_changes_nothing_and_is_told_everywhere() {
    let west = alone().await;
    let mut web = west.proxy("web");
    web.destination("checkout", |d| !d.tiers.is_empty()).await;
    let gauge = |value: u8| format!("hawser_config_last_reload_successful {value}");
    until("a good start", || west.controller().metrics().contains(&gauge(1))).await;
    west.write("checkout.yaml", &service("checkout", EXPORTED).replace("port: 80}", "port: 0}"));
    until("the metric", || west.controller().metrics().contains(&gauge(0))).await;
    until("the page", || west.controller().page("/objects")["problems"][0]["line"] == 4).await;
    let file = west.path("output/status/objects.json");
    until("the file", || std::fs::read_to_string(&file).unwrap_or_default().contains("spec.ports[0].port")).await;
    assert!(web.resources().contains_key("destination/shop/checkout"));
    west.write("checkout.yaml", &service("checkout", ""));
    until("the metric", || west.controller().metrics().contains(&gauge(1))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_waits_for_tables_and_identity() {
    let west = alone().await;
    within("readiness", west.controller().process.until_ready()).await;
    assert_eq!(west.controller().process.unmet(), Vec::<String>::new());
}
