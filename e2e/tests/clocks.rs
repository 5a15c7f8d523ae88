//! Clocks that are set while a fabric runs, of one cluster and of all: what is measured, shown and refused, and that
//! nobody is stuck when the clock is right again.
//!
//! Certificates live [`TTL`] seconds here, so a clock that is two hours off is past all of them, one way or the other.

use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hawser_e2e::client::{self, Request};
use hawser_e2e::{Fabric, Plan, within};
use serde_json::Value;

const TTL: u64 = 30;
const TWO_HOURS: i64 = 2 * 3600;
/// Longer than roots live.
const TWELVE_YEARS: i64 = 12 * 365 * 86_400;
/// Processes look at the clock every ten seconds at least, and after failures pause up to fifteen.
const NOTICED: Duration = Duration::from_secs(90);

/// West and east with a clock each, both right.
fn plan() -> Plan {
    Plan { apart: true, clocks: true, ttl: Some(TTL), ..Plan::over("auto") }
}

/// A peer's clock minus the cluster's own, as `hawser trust status` shows it; seconds.
async fn ahead(fabric: &Fabric, of: &str, peer: &str) -> Result<i64> {
    let status = fabric.trust_status(of).await?;
    let mut bundles = status.get("bundles").and_then(Value::as_array).into_iter().flatten();
    let bundle = bundles.find(|bundle| bundle["cluster"] == peer).with_context(|| format!("no {peer} in {status}"))?;
    Ok(bundle["clockAheadMs"].as_i64().with_context(|| format!("not measured: {bundle}"))? / 1000)
}

async fn shows(fabric: &Fabric, of: &str, peer: &str, range: RangeInclusive<i64>) -> Result<()> {
    let what = format!("{of} to show {peer}'s clock in {range:?}");
    let waited = within(NOTICED, &what, async || {
        let ahead = ahead(fabric, of, peer).await?;
        ensure!(range.contains(&ahead), "{ahead} s");
        Ok(())
    });
    waited.await.map(|_| ())
}

async fn call(fabric: &Fabric) -> Result<()> {
    let answer = client::call(&fabric.checkout(), &Request::get("/")).await?;
    ensure!(answer.status == 200, "{} {}", answer.summary(), answer.text());
    Ok(())
}

/// Calls go through with another certificate than before: what was open before the clock was set is no recovery.
async fn recovers(fabric: &Fabric) -> Result<()> {
    let before = fabric.serial("west", "proxy", "client").await?;
    renews(fabric, ("west", "proxy", "client"), &before).await?;
    within(NOTICED, "calls to go through again", async || call(fabric).await).await?;
    Ok(())
}

/// Another certificate than this one, by whatever clock.
async fn renews(fabric: &Fabric, (cluster, kind, name): (&str, &str, &str), before: &str) -> Result<()> {
    let what = format!("another certificate of {cluster}'s {kind} {name}");
    let waited = within(NOTICED, &what, async || {
        ensure!(fabric.serial(cluster, kind, name).await? != before, "still {before}");
        Ok(())
    });
    waited.await.map(|_| ())
}

async fn link_says(fabric: &Fabric, of: &str, what: &str) -> Result<()> {
    let wanted = format!("{of}'s Link to say {what:?}");
    let waited = within(NOTICED, &wanted, async || {
        let link = fabric.daemon(of, "mirror-controller", "")?.page("/links").await?.to_string();
        ensure!(link.contains(what), "{link}");
        Ok(())
    });
    waited.await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_two_hours_ahead_is_shown_to_be_activates_nothing_and_comes_back() -> Result<()> {
    Fabric::test(plan(), async |fabric| {
        let _shop = fabric.up_with_shop().await?;
        shows(fabric, "east", "west", -5..=5).await?;
        let before = fabric.serial("west", "proxy", "client").await?;
        let clock = fabric.clock("west")?;
        clock.set(TWO_HOURS)?;
        // No session stands any more: what is shown is what the certificates of the handshake say.
        shows(fabric, "east", "west", 7_100..=7_201).await?;
        shows(fabric, "west", "east", -7_201..=-7_100).await?;
        link_says(fabric, "east", "compare the clocks").await?;
        let check = fabric.checked("east").await?;
        ensure!(check.contains("seconds ahead: certificates are refused"), "{check}");
        // West goes on by its own time, which makes certificates that have not begun once that is over.
        renews(fabric, ("west", "proxy", "client"), &before).await?;
        let refused = fabric.trust_of_refuses("east", &["rotate", "intermediate", "--wait", "5"]).await?;
        ensure!(refused.contains("cluster/west"), "{refused}");
        fabric.trust_of("east", &["rotate", "--exclude", "west"]).await?;
        let refused = fabric.trust_of_refuses("east", &["rotate", "--resume", "--wait", "5"]).await?;
        ensure!(refused.contains("the clocks of 0 of 1 linked clusters agree with ours: west 7"), "{refused}");
        ensure!(fabric.rotation_state("east").await? == "proved", "it went on");

        clock.set(0)?;
        recovers(fabric).await?;
        shows(fabric, "east", "west", -5..=5).await?;
        shows(fabric, "west", "east", -5..=5).await?;
        // It has been told to go on.
        fabric.rotation_reaches("east", "retired").await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_two_hours_behind_is_shown_to_be_and_comes_back() -> Result<()> {
    Fabric::test(plan(), async |fabric| {
        let _shop = fabric.up_with_shop().await?;
        let before = fabric.serial("west", "proxy", "client").await?;
        let clock = fabric.clock("west")?;
        clock.set(-TWO_HOURS)?;
        shows(fabric, "west", "east", 7_100..=7_201).await?;
        renews(fabric, ("west", "proxy", "client"), &before).await?;
        shows(fabric, "east", "west", -7_201..=-7_100).await?;
        link_says(fabric, "west", "compare the clocks").await?;
        let refused = fabric.trust_of_refuses("west", &["rotate", "intermediate", "--wait", "5"]).await?;
        ensure!(!refused.contains("is active") && !refused.contains("is draining"), "{refused}");
        // When the clock is right again all that was issued meanwhile is long over.
        clock.set(0)?;
        recovers(fabric).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn past_the_end_of_every_certificate_nothing_is_issued_and_all_of_it_is_over_with_the_mistake() -> Result<()> {
    Fabric::test(plan(), async |fabric| {
        let _shop = fabric.up_with_shop().await?;
        let (west, east) = (fabric.clock("west")?, fabric.clock("east")?);
        for clock in [&west, &east] {
            clock.set(TWELVE_YEARS)?;
        }
        let waited = within(NOTICED, "calls to be refused", async || {
            let answer = client::call(&fabric.checkout(), &Request::get("/")).await?;
            ensure!(answer.status >= 500, "{}", answer.summary());
            Ok(())
        });
        waited.await?;
        let check = fabric.checked("east").await?;
        ensure!(check.contains("not in order") && check.contains("has ended"), "{check}");
        let serial = fabric.serial("east", "gateway", "g0").await?;
        for clock in [&west, &east] {
            clock.set(0)?;
        }
        recovers(fabric).await?;
        renews(fabric, ("east", "gateway", "g0"), &serial).await?;
        recovers(fabric).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fabric_that_slept_for_hours_goes_on() -> Result<()> {
    Fabric::test(plan(), async |fabric| {
        let _shop = fabric.up_with_shop().await?;
        // What a suspended machine finds when it wakes: every certificate is over, and nobody can renew by his.
        for cluster in ["west", "east"] {
            fabric.clock(cluster)?.set(TWO_HOURS)?;
        }
        recovers(fabric).await
    })
    .await
}
