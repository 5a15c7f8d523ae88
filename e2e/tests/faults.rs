//! What a fabric must survive, under a constant load of requests and of long transfers whose content is checked.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hawser_e2e::client::{self, Request, Via};
use hawser_e2e::load::{Load, Rate};
use hawser_e2e::relay::Relay;
use hawser_e2e::servers::Server;
use hawser_e2e::shop::Shop;
use hawser_e2e::transfer::Transfer;
use hawser_e2e::yaml::{self, Service};
use hawser_e2e::{Daemon, Fabric, Plan, eventually, within};
use serde_json::Value;

/// New work moves to what is left within this, and what the machine takes anyway: see [`slack`].
const MOVES: Duration = Duration::from_secs(1);
/// What was withdrawn is cut within this.
const CUT: Duration = Duration::from_secs(5);
/// A dead cluster is withdrawn everywhere within this.
const WITHDRAWN: Duration = Duration::from_secs(3);

fn get(via: &Via) -> Load {
    Load::start(via, &Request::get("/"), &Rate::default())
}

/// A few times what the slowest request took while all was well: on a machine that is busy with other things, bounds
/// are longer by that.
async fn slack(load: &Load) -> Result<Duration> {
    more(load, 80).await?;
    Ok(load.report().slowest() * 4)
}

/// Waits until this many more requests have been answered, whatever the answer.
async fn more(load: &Load, count: usize) -> Result<()> {
    let until = load.count() + count;
    eventually("more requests", async || {
        ensure!(load.count() >= until, "{} so far", load.count());
        Ok(())
    })
    .await
}

/// Waits until this transfer has moved on.
async fn moves(transfer: &Transfer) -> Result<()> {
    let from = transfer.received();
    eventually("the transfer to move", async || {
        ensure!(transfer.received() > from + 100_000, "stands at {}, ended: {}", from, transfer.has_ended());
        Ok(())
    })
    .await
}

/// Kills a daemon under the load and waits until another runs in its place and the load has gone on for a while.
async fn kill_and_wait(fabric: &Fabric, daemon: &Daemon, load: &Load) -> Result<()> {
    daemon.kill()?;
    fabric.replaced(daemon).await?;
    more(load, 40).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_control_plane_costs_nothing() -> Result<()> {
    Fabric::test(Plan::over("auto"), async |fabric| {
        let _shop = fabric.up_with_shop().await?;
        let load = get(&fabric.checkout());
        let transfer = Transfer::start(&fabric.files(), 1).await?;
        for cluster in ["west", "east"] {
            for kind in ["trust-anchor", "mirror-controller"] {
                kill_and_wait(fabric, &fabric.daemon(cluster, kind, "")?, &load).await?;
            }
        }
        // The caller's own gateway is not on the way either.
        kill_and_wait(fabric, &fabric.daemon("west", "gateway", "g0")?, &load).await?;
        load.finish().await.expect_flawless(200)?;
        transfer.finish().await?.result
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_a_server_s_proxy_fails_no_idempotent_request() -> Result<()> {
    Fabric::test(Plan::over("auto"), async |fabric| {
        let _shop = fabric.up_with_shop().await?;
        let load = get(&fabric.checkout());
        more(&load, 40).await?;
        for name in ["server-0", "server-1"] {
            kill_and_wait(fabric, &fabric.daemon("east", "proxy", name)?, &load).await?;
        }
        let killed = Instant::now();
        eventually("both to serve again", async || {
            let report = load.report().since(killed);
            ensure!(report.instances().len() == 2, "{}", report.summary());
            Ok(())
        })
        .await?;
        load.finish().await.expect_flawless(120)?;
        // Whatever was cut by a kill was cut, not changed.
        let transfer = Transfer::start(&fabric.files(), 2).await?;
        moves(&transfer).await?;
        transfer.finish().await?.result
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_the_caller_s_proxy_costs_its_callers_until_it_is_back_and_no_longer() -> Result<()> {
    Fabric::test(Plan::over("auto"), async |fabric| {
        let _shop = fabric.up_with_shop().await?;
        let load = get(&fabric.checkout());
        let bound = MOVES + slack(&load).await?;
        let proxy = fabric.daemon("west", "proxy", "client")?;
        let killed = Instant::now();
        proxy.kill()?;
        fabric.replaced(&proxy).await?;
        let back = Instant::now();
        more(&load, 160).await?;
        let report = load.finish().await;
        let trouble = report.trouble_after(killed);
        ensure!(trouble < back.duration_since(killed) + bound, "trouble for {trouble:?}: {}", report.summary());
        report.before(killed - Duration::from_millis(100)).expect_flawless(20)
    })
    .await
}

/// East with two gateways.
fn two_gateways() -> Plan {
    Plan { gateways: 2, ..Plan::over("auto") }
}

/// Long transfers until each of east's gateways carries at least one.
async fn transfers_over_both(fabric: &Fabric) -> Result<Vec<Transfer>> {
    let gateways = [fabric.daemon("east", "gateway", "g0")?, fabric.daemon("east", "gateway", "g1")?];
    let mut transfers = Vec::new();
    for seed in 0..16 {
        transfers.push(Transfer::start(&fabric.files(), seed).await?);
        let mut carrying = 0;
        for gateway in &gateways {
            let streams = gateway.page("/streams").await?;
            carrying += usize::from(streams.to_string().contains("shop/files:9000"));
        }
        if carrying == gateways.len() {
            break;
        }
    }
    Ok(transfers)
}

/// A new connection that carries something and ends well; how long its first byte took.
async fn new_connection(via: &Via) -> Result<Duration> {
    let begun = Instant::now();
    let transfer = Transfer::start(via, 7).await?;
    eventually("a first byte", async || {
        ensure!(transfer.received() > 0 || transfer.has_ended());
        Ok(())
    })
    .await?;
    let took = begun.elapsed();
    let outcome = transfer.finish().await?;
    outcome.result?;
    ensure!(outcome.received > 0, "closed without a byte");
    Ok(took)
}

/// New connections, one after the other, until `bound` and a second more have passed since the kill: how long it took
/// until the first succeeded after the last that did not. What was opened before anybody could know of the kill may be
/// reset, but not hang.
async fn new_work_moves(fabric: &Fabric, killed: Instant, bound: Duration) -> Result<Duration> {
    let mut moved = Duration::ZERO;
    while killed.elapsed() < bound + Duration::from_secs(1) {
        let after = killed.elapsed();
        match new_connection(&fabric.files()).await {
            Ok(took) if moved.is_zero() || took > bound => moved = after + took,
            Ok(_) => {}
            Err(error) if after < bound => {
                moved = Duration::ZERO;
                ensure!(!format!("{error:#}").contains("corrupt"), "{error:#}");
            }
            Err(error) => return Err(error.context(format!("{after:?} after the kill"))),
        }
    }
    Ok(moved)
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_one_of_two_gateways_fails_no_idempotent_request_and_new_work_moves_within_a_second() -> Result<()> {
    Fabric::test(two_gateways(), async |fabric| {
        let _shop = fabric.up_with_shop().await?;
        let load = get(&fabric.checkout());
        let transfers = transfers_over_both(fabric).await?;
        let bound = MOVES + slack(&load).await?;
        for name in ["g0", "g1"] {
            let gateway = fabric.daemon("east", "gateway", name)?;
            let killed = Instant::now();
            gateway.kill()?;
            let moved = new_work_moves(fabric, killed, bound).await?;
            ensure!(moved < bound, "new work moved after {moved:?}, not {bound:?}");
            fabric.replaced(&gateway).await?;
            more(&load, 40).await?;
        }
        let report = load.finish().await;
        report.expect_flawless(100)?;
        ensure!(report.slowest() < bound * 2, "{}", report.summary());
        for transfer in transfers {
            let outcome = transfer.finish().await?;
            // Through a gateway that was killed it was cut; never changed.
            let told = outcome.result.err().map(|error| format!("{error:#}")).unwrap_or_default();
            ensure!(!told.contains("corrupt"), "{told}");
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_hangs_is_left_for_the_other_and_used_again_when_it_wakes() -> Result<()> {
    Fabric::test(two_gateways(), async |fabric| {
        let _shop = fabric.up_with_shop().await?;
        let load = get(&fabric.checkout());
        let bound = MOVES + slack(&load).await?;
        let gateway = fabric.daemon("east", "gateway", "g0")?;
        gateway.stop()?;
        let stopped = Instant::now();
        more(&load, 240).await?;
        let calm = Instant::now();
        more(&load, 80).await?;
        gateway.resume()?;
        let resumed = Instant::now();
        more(&load, 160).await?;
        let report = load.finish().await;
        report.expect_flawless(300)?;
        ensure!(report.slowest() < bound * 4, "{}", report.summary());
        let settled = report.since(calm);
        ensure!(settled.slowest() < bound, "{:?} after the stop: {}", calm - stopped, settled.summary());
        ensure!(report.since(resumed).slowest() < bound, "{}", report.since(resumed).summary());
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_endpoints_callers_are_told_at_once_and_served_again_when_one_is_back() -> Result<()> {
    Fabric::test(Plan::over("auto"), async |fabric| {
        let mut shop = fabric.up_with_shop().await?;
        // One application gone: the other serves all.
        let load = get(&fabric.checkout());
        more(&load, 40).await?;
        shop.kill("east-0")?;
        more(&load, 80).await?;
        load.finish().await.expect_flawless(100)?;
        // The last one too.
        shop.kill("east-1")?;
        let begun = Instant::now();
        let answer = client::call(&fabric.checkout(), &Request::get("/")).await?;
        ensure!(matches!(answer.status, 502..=504), "{} {}", answer.summary(), answer.text());
        ensure!(answer.refusal().is_some() && answer.text().contains("hint: "), "{answer:?}");
        ensure!(begun.elapsed() < Duration::from_secs(3), "told after {:?}", begun.elapsed());
        shop.revive(fabric, "east-1").await?;
        fabric.answers(&fabric.checkout(), 200).await?;
        // No endpoint in the objects.
        fabric.put("east", &Service::http("shop/checkout", &[]))?;
        let answer = fabric.answers(&fabric.checkout(), 503).await?;
        ensure!(answer.refusal() == Some("no_endpoint"), "{} {}", answer.summary(), answer.text());
        fabric.put("east", &shop.checkout(fabric))?;
        fabric.answers(&fabric.checkout(), 200).await?;
        Ok(())
    })
    .await
}

/// Three clusters, each with processes of its own; east and north serve one checkout.
async fn two_that_serve(fabric: &mut Fabric) -> Result<(Shop, Shop)> {
    fabric.write("west", "failover.yaml", &yaml::failover("shop/checkout", &["east", "north"]))?;
    let shops = (Shop::open(fabric, "east").await?, Shop::open(fabric, "north").await?);
    fabric.up().await?;
    fabric.answers(&fabric.checkout(), 200).await?;
    fabric.answers(&fabric.by_name("west", "checkout-north.shop", 80), 200).await?;
    fabric.answers(&fabric.federated(), 200).await?;
    Ok(shops)
}

/// Waits until the proxies of west and north have east among their backends, or no longer have it.
async fn listed(fabric: &Fabric, limit: Duration, yes: bool) -> Result<Duration> {
    let what = if yes { "east to be back" } else { "east to be withdrawn" };
    let ((), took) = within(limit, what, async || {
        for cluster in ["west", "north"] {
            let page = fabric.daemon(cluster, "proxy", "client")?.page("/destinations").await?;
            let backends: usize = destinations(&page).map(|destination| backends_of(destination, "east")).sum();
            ensure!((backends > 0) == yes, "{cluster} has {backends} of east");
        }
        Ok(())
    })
    .await?;
    Ok(took)
}

fn destinations(page: &Value) -> impl Iterator<Item = &Value> {
    page.get("destinations").and_then(Value::as_array).into_iter().flatten()
}

fn backends_of(destination: &Value, cluster: &str) -> usize {
    let list = |value: &'_ Value, field: &str| value.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    let tiers = list(destination, "tiers");
    tiers.iter().flat_map(|tier| list(tier, "backends")).filter(|backend| backend["cluster"] == cluster).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_dies_is_withdrawn_within_three_seconds_and_back_when_it_returns() -> Result<()> {
    Fabric::test(Plan { north: true, apart: true, ..Plan::over("auto") }, async |fabric| {
        let _shops = two_that_serve(fabric).await?;
        let load = get(&fabric.federated());
        let other = Transfer::start(&fabric.by_name("west", "files-north.shop", 9000), 3).await?;
        let slack = slack(&load).await?;
        ensure!(load.report().instances().keys().all(|name| name.starts_with("east")), "{}", load.report().summary());
        fabric.kill_cluster("east").await?;
        listed(fabric, WITHDRAWN + slack, false).await?;
        // Who asks for east by name is told why, at once.
        let told = client::call(&fabric.checkout(), &Request::get("/")).await?;
        ensure!(told.refusal() == Some("peer_unreachable"), "{} {}", told.summary(), told.text());
        more(&load, 160).await?;
        fabric.start("east").await?;
        let back = listed(fabric, Duration::from_secs(10), true).await?;
        more(&load, 160).await?;
        let report = load.finish().await;
        report.expect_flawless(300)?;
        let last = report.samples.last().and_then(|sample| sample.outcome.clone().ok()).unwrap_or_default();
        ensure!(last.starts_with("east"), "not back {back:?} after its return: {}", report.summary());
        other.finish().await?.result
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_hangs_is_withdrawn_within_three_seconds_and_back_when_it_wakes() -> Result<()> {
    Fabric::test(Plan { north: true, ..Plan::over("auto") }, async |fabric| {
        let _shops = two_that_serve(fabric).await?;
        let load = get(&fabric.federated());
        let slack = slack(&load).await?;
        let daemons = fabric.daemons("east")?;
        daemons.iter().try_for_each(Daemon::stop)?;
        listed(fabric, WITHDRAWN + slack, false).await?;
        more(&load, 160).await?;
        daemons.iter().try_for_each(Daemon::resume)?;
        listed(fabric, Duration::from_secs(15), true).await?;
        more(&load, 160).await?;
        let report = load.finish().await;
        report.expect_flawless(300)?;
        ensure!(report.slowest() < Duration::from_secs(5) + slack, "{}", report.summary());
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn when_udp_is_dropped_midway_tcp_takes_over() -> Result<()> {
    Fabric::test(Plan { relayed: true, ..Plan::over("auto") }, async |fabric| {
        let shop = Shop::open(fabric, "east").await?;
        let gateway = fabric.gateways("east").first().context("no gateway")?.1;
        let relay = Relay::start(fabric.relay_address(), gateway).await?;
        fabric.up().await?;
        fabric.answers(&fabric.checkout(), 200).await?;
        let load = get(&fabric.checkout());
        let bound = MOVES + slack(&load).await?;
        ensure!(relay.udp_passed() > 100, "QUIC is not in use: {relay:?}");
        relay.drop_udp(true);
        let dropped = Instant::now();
        more(&load, 240).await?;
        let report = load.finish().await;
        report.expect_flawless(300)?;
        ensure!(report.slowest() < bound * 4, "{}", report.summary());
        ensure!(relay.tcp_accepted() > 0, "TCP was not used: {relay:?}");
        // New connections too, and without waiting for UDP each time.
        ensure!(dropped.elapsed() > Duration::from_secs(1));
        let begun = Instant::now();
        let transfer = Transfer::start(&fabric.files(), 4).await?;
        moves(&transfer).await?;
        ensure!(begun.elapsed() < bound * 2, "{:?}", begun.elapsed());
        transfer.finish().await?.result?;
        drop(shop);
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_process_starts_and_serves_with_all_peers_down() -> Result<()> {
    Fabric::test(Plan { apart: true, ..Plan::over("auto") }, async |fabric| {
        let _shop = Shop::open(fabric, "east").await?;
        let _server = Server::http(fabric.workload("west", 0), "west-local").await?;
        let local = Service::http("shop/local", &[(fabric.workload("west", 0), "server-0")]).private();
        fabric.put("west", &local)?;
        fabric.up().await?;
        fabric.answers(&fabric.checkout(), 200).await?;
        let local = fabric.by_name("west", "local.shop", 80);
        fabric.answers(&local, 200).await?;
        fabric.down().await;

        fabric.start("west").await?;
        fabric.answers(&local, 200).await?;
        let begun = Instant::now();
        let told = client::call(&fabric.checkout(), &Request::get("/")).await;
        let took = begun.elapsed();
        ensure!(told.as_ref().map_or(true, |answer| answer.status >= 500), "answered without east: {told:?}");
        ensure!(took < Duration::from_secs(5), "told after {took:?}");
        fabric.start("east").await?;
        fabric.answers(&fabric.checkout(), 200).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_and_a_gateway_that_restart_while_the_control_plane_hangs_serve_what_they_knew() -> Result<()> {
    Fabric::test(Plan::over("auto"), async |fabric| {
        let _shop = fabric.up_with_shop().await?;
        let known = fabric.state().join("west/proxies/client/tables");
        eventually("what is known to be on disk", async || {
            let tables = std::fs::read(&known)?;
            ensure!(tables.windows(13).any(|part| part == b"checkout-east"), "{} does not have it", known.display());
            Ok(())
        })
        .await?;
        let mut control = Vec::new();
        for cluster in ["west", "east"] {
            control.push(fabric.daemon(cluster, "trust-anchor", "")?);
            control.push(fabric.daemon(cluster, "mirror-controller", "")?);
        }
        control.iter().try_for_each(Daemon::stop)?;
        for (cluster, kind, name) in [
            ("west", "proxy", "client"),
            ("east", "gateway", "g0"),
            ("east", "proxy", "server-0"),
            ("east", "proxy", "server-1"),
        ] {
            let daemon = fabric.daemon(cluster, kind, name)?;
            daemon.kill()?;
            fabric.replaced(&daemon).await.with_context(|| format!("{cluster} {kind} {name}"))?;
        }
        fabric.answers(&fabric.checkout(), 200).await?;
        control.iter().try_for_each(Daemon::resume)?;
        fabric.answers(&fabric.checkout(), 200).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_cuts_what_it_withdraws_within_five_seconds_and_touches_nothing_else() -> Result<()> {
    Fabric::test(Plan { north: true, ..Plan::over("auto") }, async |fabric| {
        let shop = fabric.up_with_shop().await?;
        let from_north = fabric.by_name("north", "files-east.shop", 9000);
        eventually("north to reach east", async || from_north.connect().await.map(drop)).await?;
        let load = get(&fabric.checkout());
        let files = Transfer::start(&fabric.files(), 1).await?;
        let stock = Transfer::start(&fabric.stock(), 2).await?;
        let of_north = Transfer::start(&from_north, 3).await?;
        moves(&stock).await?;

        // An export.
        let mut withdrawn = shop.stock(fabric);
        withdrawn.exported = false;
        fabric.put("east", &withdrawn)?;
        ends(&stock, CUT).await.context("stock, whose export was withdrawn")?;
        moves(&files).await?;
        fabric.put("east", &shop.stock(fabric))?;
        eventually("stock to be back", async || new_connection(&fabric.stock()).await.map(drop)).await?;

        // A mistake: refused, and what was in force stays.
        fabric.write("east", "service-shop-stock.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: [}\n")?;
        let again = Transfer::start(&fabric.stock(), 5).await?;
        more(&load, 120).await?;
        moves(&again).await?;
        fabric.put("east", &shop.stock(fabric))?;

        load.finish().await.expect_flawless(120)?;
        again.finish().await?.result?;

        // A link, seen from the side that is called.
        fabric.remove("east", "link-west.yaml")?;
        ends(&files, CUT).await.context("files, whose link was removed")?;
        moves(&of_north).await?;
        of_north.finish().await?.result
    })
    .await
}

/// Waits until a transfer has been cut.
async fn ends(transfer: &Transfer, limit: Duration) -> Result<()> {
    within(limit, "a transfer to be cut", async || {
        ensure!(transfer.has_ended(), "it goes on");
        Ok(())
    })
    .await?;
    Ok(())
}
