//! Every level of the hierarchy rotated under load, in the right order and in every wrong one.
//!
//! `west` calls `east` over QUIC and `north` over TCP; all three hang under one root.

use anyhow::{Result, ensure};
use hawser_e2e::client::{Request, Via};
use hawser_e2e::load::{Load, Rate};
use hawser_e2e::shop::Shop;
use hawser_e2e::transfer::Transfer;
use hawser_e2e::{Fabric, Plan, yaml};

const STATES: [&str; 5] = ["prepared", "published", "proved", "active", "draining"];

/// Three clusters; west's link to north is TCP, all others QUIC.
async fn three(fabric: &mut Fabric) -> Result<(Shop, Shop)> {
    let shops = (Shop::open(fabric, "east").await?, Shop::open(fabric, "north").await?);
    fabric.write("west", "link-north.yaml", &yaml::link("north", "tcp", &fabric.gateways("north")))?;
    fabric.up().await?;
    fabric.answers(&fabric.checkout(), 200).await?;
    fabric.answers(&north(fabric), 200).await?;
    Ok(shops)
}

fn north(fabric: &Fabric) -> Via {
    fabric.by_name("west", "checkout-north.shop", 80)
}

/// A thousand requests a second together, as far as the machine gives them.
fn load(via: &Via) -> Load {
    Load::start(via, &Request::get("/"), &Rate { per_second: 500, workers: 8 })
}

/// A rotation to its end; where it does not come to it, what every process holds is part of the error.
async fn settled(fabric: &Fabric, arguments: &[&str]) -> Result<()> {
    let Err(mut error) = fabric.trust(arguments).await else { return Ok(()) };
    for cluster in ["west", "east"] {
        let page = fabric.daemon(cluster, "mirror-controller", "")?.page("/trust").await?;
        error = error.context(format!("{cluster}: {}", page.get("validators").cloned().unwrap_or_default()));
    }
    Err(error)
}

/// One level in every cluster, with two transfers that run into the middle of it.
async fn rotated(fabric: &Fabric, level: &str, transfers: [Transfer; 2]) -> Result<()> {
    let is_leaf = level == "leaf";
    if is_leaf {
        fabric.trust(&["rotate", level]).await?;
    } else {
        // A transfer holds the certificates that it began with: it is waited for, and not cut.
        fabric.trust(&["rotate", level, "--pause-at", "draining", "--wait", "150"]).await?;
    }
    for transfer in transfers {
        ensure!(!transfer.has_ended(), "a transfer was cut while the {level} was replaced");
        transfer.finish().await?.result?;
    }
    if is_leaf {
        return Ok(());
    }
    settled(fabric, &["rotate", "--resume", "--wait", "150"]).await?;
    for cluster in ["west", "east", "north"] {
        fabric.rotation_reaches(cluster, "retired").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn leaf_intermediate_and_root_are_replaced_under_load_and_nothing_fails() -> Result<()> {
    Fabric::test(Plan { north: true, ..Plan::over("quic") }, async |fabric| {
        let _shops = three(fabric).await?;
        let loads = [load(&fabric.checkout()), load(&north(fabric))];
        let before = fabric.serial("east", "gateway", "g0").await?;
        for level in ["leaf", "intermediate", "root"] {
            let transfers = [
                Transfer::start(&fabric.files(), 1).await?,
                Transfer::start(&fabric.by_name("west", "files-north.shop", 9000), 2).await?,
            ];
            rotated(fabric, level, transfers).await?;
        }
        ensure!(fabric.serial("east", "gateway", "g0").await? != before, "the gateway still has its first certificate");
        for load in loads {
            let report = load.finish().await;
            eprintln!("{}", report.summary());
            report.expect_flawless(1000)?;
        }
        fabric.trust(&["audit", "verify"]).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_waits_for_who_is_missing_and_says_who() -> Result<()> {
    Fabric::test(Plan::over("auto"), async |fabric| {
        let _shop = fabric.up_with_shop().await?;
        let load = load(&fabric.checkout());
        let proxy = fabric.daemon("east", "proxy", "server-1")?;
        proxy.stop()?;
        let refused = fabric.trust_refuses(&["rotate", "root", "--wait", "12"]).await?;
        ensure!(refused.contains("proxy/server-1") && refused.contains("is published after"), "{refused}");
        // Whoever was left behind by name is cut off, and nobody else.
        ensure!(fabric.trust_refuses(&["rotate", "--exclude", "nobody"]).await?.contains("no rotation waits for"));
        proxy.resume()?;
        settled(fabric, &["rotate", "--resume", "--wait", "150"]).await?;
        // The proxy that stood still cost at most what it was asked while nobody knew.
        let report = load.finish().await;
        ensure!(report.failures().len() < report.samples.len() / 10, "{}", report.summary());
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trust_anchor_that_is_killed_in_any_state_goes_on_where_it_was() -> Result<()> {
    Fabric::test(Plan::over("auto"), async |fabric| {
        let _shop = fabric.up_with_shop().await?;
        let load = load(&fabric.checkout());
        for state in STATES {
            let next = if state == "prepared" { "intermediate" } else { "--resume" };
            fabric.trust(&["rotate", next, "--cluster", "east", "--pause-at", state]).await?;
            fabric.rotation_reaches("east", state).await?;
            let anchor = fabric.daemon("east", "trust-anchor", "")?;
            anchor.kill()?;
            fabric.replaced(&anchor).await?;
            ensure!(fabric.rotation_state("east").await? == state, "the restart moved it from {state}");
        }
        fabric.trust(&["rotate", "--resume", "--cluster", "east"]).await?;
        fabric.rotation_reaches("east", "retired").await?;
        load.finish().await.expect_flawless(200)?;
        fabric.trust(&["audit", "verify"]).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_state_can_be_left_backwards_and_the_next_attempt_succeeds() -> Result<()> {
    Fabric::test(Plan::over("auto"), async |fabric| {
        let _shop = fabric.up_with_shop().await?;
        let load = load(&fabric.checkout());
        for state in ["prepared", "published", "proved", "active"] {
            fabric.trust(&["rotate", "intermediate", "--cluster", "east", "--pause-at", state]).await?;
            fabric.rotation_reaches("east", state).await?;
            while fabric.rotation_state("east").await? != "idle" {
                fabric.trust(&["rotate", "--rollback", "--cluster", "east"]).await?;
            }
        }
        settled(fabric, &["rotate", "intermediate", "--cluster", "east", "--wait", "150"]).await?;
        load.finish().await.expect_flawless(200)
    })
    .await
}
