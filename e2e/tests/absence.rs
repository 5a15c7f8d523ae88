//! A cluster that was away while another changed its trust: who catches up by himself, who is waited for, and what
//! repairs the one who slept through all of it.

#![expect(clippy::indexing_slicing, reason = "of JSON: what is missing is null")]

use anyhow::{Context, Result, ensure};
use hawser_e2e::client::{self, Request};
use hawser_e2e::load::{Load, Rate};
use hawser_e2e::shop::Shop;
use hawser_e2e::{Fabric, Plan, eventually};
use serde_json::Value;

const EAST: &str = "east.hawser.test";

fn apart() -> Plan {
    Plan { apart: true, ..Plan::over("auto") }
}

/// Clusters under different roots, linked by their bundles; west can call east's shop.
async fn federated(fabric: &mut Fabric) -> Result<Shop> {
    let shop = Shop::open(fabric, "east").await?;
    fabric.up().await?;
    fabric.link_by_bundles().await?;
    fabric.answers(&fabric.checkout(), 200).await?;
    Ok(shop)
}

async fn sees_west(fabric: &Fabric, alive: bool) -> Result<()> {
    let waited = eventually("east to see whether west is there", async || {
        let bundle = of(&fabric.trust_status("east").await?, "west")?;
        ensure!(bundle["alive"] == alive, "{bundle}");
        Ok(())
    });
    waited.await.map(|_| ())
}

/// West is stopped, and east begins; it does not go on without west's word before an operator has said so.
async fn east_goes_on_without_west(fabric: &mut Fabric, level: &str, until: &str) -> Result<()> {
    // Whom nobody has heard of yet is not missed.
    sees_west(fabric, true).await?;
    fabric.kill_cluster("west").await?;
    // Until its lease is over what it said last counts.
    sees_west(fabric, false).await?;
    let begin = ["rotate", level, "--pause-at", until, "--wait", "6"];
    let begin: &[&str] = if until == "retired" { &["rotate", level, "--wait", "6"] } else { &begin };
    let refused = fabric.trust_of_refuses("east", begin).await?;
    ensure!(refused.contains("cluster/west") && refused.contains("is published after"), "{refused}");
    ensure!(refused.contains("--exclude NAME"), "no remedy: {refused}");
    fabric.trust_of("east", &["rotate", "--exclude", "west", "--reason", "it is being moved"]).await?;
    Ok(())
}

/// A linked cluster's bundle as a cluster holds it, from its status.
fn of(status: &Value, peer: &str) -> Result<Value> {
    let mut bundles = status.get("bundles").and_then(Value::as_array).into_iter().flatten();
    bundles.find(|bundle| bundle["cluster"] == peer).cloned().with_context(|| format!("{peer} is not linked: {status}"))
}

/// West has what east publishes now, by the tunnel.
async fn has_caught_up(fabric: &Fabric) -> Result<()> {
    eventually("west to hold east's present bundle", async || {
        let held = of(&fabric.trust_status("west").await?, "east")?;
        let published = fabric.trust_status("east").await?;
        ensure!(held["sequence"] == published["sequence"], "{held} instead of {}", published["sequence"]);
        ensure!(held["source"] == "tunnel", "{held}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_while_old_and_new_overlap_catches_up_over_the_tunnel() -> Result<()> {
    Fabric::test(Plan { own_roots: true, ..apart() }, async |fabric| {
        let _shop = federated(fabric).await?;
        east_goes_on_without_west(fabric, "root", "proved").await?;
        fabric.rotation_reaches("east", "proved").await?;
        fabric.start("west").await?;
        has_caught_up(fabric).await?;
        fabric.answers(&fabric.checkout(), 200).await?;
        // From here on it is there, and notices nothing: the bundle without the old root reaches it by the tunnel too.
        let load = Load::start(&fabric.checkout(), &Request::get("/"), &Rate::default());
        fabric.trust_of("east", &["rotate", "--resume", "--wait", "150"]).await?;
        has_caught_up(fabric).await?;
        load.finish().await.expect_flawless(50)?;
        let excluded = fabric.trust_status("east").await?.pointer("/rotation/excluded").cloned().unwrap_or_default();
        ensure!(excluded.to_string().contains("it is being moved"), "who was left behind is not on record: {excluded}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_slept_past_the_old_root_is_repaired_by_hand_and_by_nothing_but_what_the_pin_names() -> Result<()> {
    Fabric::test(Plan { own_roots: true, ..apart() }, async |fabric| {
        let _shop = federated(fabric).await?;
        east_goes_on_without_west(fabric, "root", "retired").await?;
        fabric.trust_of("east", &["rotate", "--resume", "--wait", "150"]).await?;
        fabric.start("west").await?;
        // The old bundle proves nobody of east's: nothing goes through, and the Link says what is wrong.
        eventually("west to say why east is away", async || {
            let link = fabric.daemon("west", "mirror-controller", "")?.page("/links").await?.to_string();
            ensure!(link.contains("hold the other's current bundle"), "{link}");
            Ok(())
        })
        .await?;
        let answer = client::call(&fabric.checkout(), &Request::get("/")).await?;
        ensure!(answer.status >= 500, "{}", answer.summary());

        let (document, pin) = fabric.shown_bundle("east").await?;
        let file = fabric.state_of("west").join("carried.json");
        std::fs::write(&file, &document)?;
        let file = file.to_str().context("no UTF-8")?;
        let accept = async |pin: &str| {
            let arguments = ["bundle", "accept", "--trust-domain", EAST, "--pin", pin, file];
            fabric.trust_of("west", &arguments).await
        };
        let refused = accept(&"0".repeat(64)).await.err().context("a wrong pin was taken")?.to_string();
        ensure!(refused.contains("not the pin that was given"), "{refused}");
        ensure!(refused.contains("compare with `hawser trust bundle show`"), "no remedy: {refused}");
        // The same to whoever reads it, and yet not what was shown: one blank more.
        std::fs::write(file, format!("{document} "))?;
        ensure!(accept(&pin).await.is_err(), "a document that the pin does not name was taken");
        ensure!(client::call(&fabric.checkout(), &Request::get("/")).await?.status >= 500, "it was repaired by that");

        std::fs::write(file, &document)?;
        accept(&pin).await?;
        fabric.answers(&fabric.checkout(), 200).await?;
        fabric.trust_of("west", &["audit", "verify"]).await?;
        // It is a peer like before: what comes next reaches it by the tunnel again.
        fabric.trust_of("east", &["rotate", "root", "--wait", "150"]).await?;
        has_caught_up(fabric).await?;
        fabric.answers(&fabric.checkout(), 200).await.map(|_| ())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn under_a_shared_root_who_was_away_has_nothing_to_catch_up_with_when_an_intermediate_is_replaced() -> Result<()>
{
    Fabric::test(apart(), async |fabric| {
        let _shop = fabric.up_with_shop().await?;
        east_goes_on_without_west(fabric, "intermediate", "retired").await?;
        fabric.trust_of("east", &["rotate", "--resume", "--wait", "150"]).await?;
        fabric.start("west").await?;
        fabric.answers(&fabric.checkout(), 200).await.map(|_| ())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_root_is_not_replaced_before_who_is_away_has_come_back() -> Result<()> {
    Fabric::test(apart(), async |fabric| {
        let _shop = fabric.up_with_shop().await?;
        fabric.kill_cluster("west").await?;
        let refused = fabric.trust_refuses(&["rotate", "root", "--wait", "6"]).await?;
        ensure!(refused.contains("west"), "{refused}");
        let state = fabric.rotation_state("east").await?;
        ensure!(["idle", "prepared", "published"].contains(&state.as_str()), "east is {state} without west");
        fabric.start("west").await?;
        fabric.answers(&fabric.checkout(), 200).await?;
        let load = Load::start(&fabric.checkout(), &Request::get("/"), &Rate::default());
        fabric.trust(&["rotate", "root", "--wait", "150"]).await?;
        for cluster in ["east", "west"] {
            fabric.rotation_reaches(cluster, "retired").await?;
        }
        load.finish().await.expect_flawless(50)
    })
    .await
}
