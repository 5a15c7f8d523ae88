//! Certificates that end, and identities, serial numbers and clusters that are revoked, while they are in use.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hawser_e2e::client::{self, Request, Via};
use hawser_e2e::load::{Load, Rate};
use hawser_e2e::transfer::Transfer;
use hawser_e2e::{Fabric, Plan, eventually, within};

/// What was revoked is cut within this, everywhere in the cluster.
const CUT: Duration = Duration::from_secs(5);
const CALLER: &str = "spiffe://west.hawser.test/ns/apps/sa/web";

/// Waits until this transfer has been cut; it must have carried something before.
async fn cut(transfer: &Transfer, why: &str) -> Result<()> {
    ensure!(transfer.received() > 0, "nothing came before");
    within(CUT, &format!("the transfer to be cut ({why})"), async || {
        ensure!(transfer.has_ended(), "it goes on");
        Ok(())
    })
    .await
    .map(|_| ())
}

async fn carrying(via: &Via) -> Result<Transfer> {
    let transfer = Transfer::start(via, 3).await?;
    eventually("some bytes", async || {
        ensure!(transfer.received() > 10_000 && !transfer.has_ended());
        Ok(())
    })
    .await?;
    Ok(transfer)
}

async fn refused(via: &Via) -> Result<()> {
    within(CUT, "the call to be refused", async || {
        if let Ok(answer) = client::call(via, &Request::get("/")).await {
            ensure!(answer.status != 200, "still answered: {}", answer.summary());
        }
        Ok(())
    })
    .await
    .map(|_| ())
}

async fn revoked_and_back(transport: &'static str, what: &[&str]) -> Result<()> {
    Fabric::test(Plan::over(transport), async |fabric| {
        let _shop = fabric.up_with_shop().await?;
        let transfer = carrying(&fabric.files()).await?;
        let revoke = [&["revoke"][..], what, &["--cluster", "east"][..]].concat();
        fabric.trust(&revoke).await?;
        cut(&transfer, "revoked").await?;
        refused(&fabric.checkout()).await?;
        // It does not come back by a restart of those who refuse it, nor of the trust anchor.
        for daemon in fabric.daemons("east")? {
            daemon.kill()?;
            fabric.replaced(&daemon).await?;
            refused(&fabric.checkout()).await?;
        }
        fabric.trust(&[&revoke[..], &["--undo"][..]].concat()).await?;
        fabric.answers(&fabric.checkout(), 200).await?;
        fabric.trust(&["audit", "verify"]).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_identity_is_cut_within_seconds_over_quic_and_stays_out() -> Result<()> {
    revoked_and_back("quic", &["identity", CALLER]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_cluster_is_cut_within_seconds_over_tcp_and_stays_out() -> Result<()> {
    revoked_and_back("tcp", &["cluster", "west.hawser.test"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_serial_number_is_cut_and_its_holder_s_next_certificate_is_not() -> Result<()> {
    Fabric::test(Plan::over("auto"), async |fabric| {
        let _shop = fabric.up_with_shop().await?;
        let transfer = carrying(&fabric.files()).await?;
        let serial = fabric.serial("west", "proxy", "client").await?;
        fabric.trust(&["revoke", "serial", &format!("west.hawser.test/{serial}"), "--cluster", "east"]).await?;
        cut(&transfer, "its serial number is revoked").await?;
        refused(&fabric.checkout()).await?;
        fabric.trust(&["rotate", "leaf", "--cluster", "west"]).await?;
        fabric.answers(&fabric.checkout(), 200).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn links_exports_and_anchors_are_on_record_and_so_is_what_changed_while_nothing_could_be_recorded() -> Result<()>
{
    Fabric::test(Plan::over("auto"), async |fabric| {
        let shop = fabric.up_with_shop().await?;
        let (west, link) = ("west.hawser.test", "west (west.hawser.test)");
        for (event, subject) in
            [("link", link), ("bundle", west), ("bundle", "east.hawser.test"), ("export", "shop/stock")]
        {
            fabric.on_record("east", event, subject).await?;
        }
        // It hangs, and nobody is told; meanwhile things change, and then it dies.
        let anchor = fabric.daemon("east", "trust-anchor", "")?;
        anchor.stop()?;
        fabric.put("east", &shop.stock(fabric).private())?;
        fabric.remove("east", "link-west.yaml")?;
        refused(&fabric.checkout()).await?;
        anchor.kill()?;
        fabric.replaced(&anchor).await?;
        fabric.on_record("east", "unexport", "shop/stock").await?;
        fabric.on_record("east", "unlink", link).await?;
        fabric.trust(&["audit", "verify"]).await?;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_seconds_cost_no_request() -> Result<()> {
    for transport in ["quic", "tcp"] {
        Fabric::test(Plan { ttl: Some(6), ..Plan::over(transport) }, async |fabric| {
            let _shop = fabric.up_with_shop().await?;
            let load = Load::start(&fabric.checkout(), &Request::get("/"), &Rate::default());
            let begun = Instant::now();
            let first = fabric.serial("west", "proxy", "client").await?;
            while begun.elapsed() < Duration::from_secs(20) {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            ensure!(fabric.serial("west", "proxy", "client").await? != first, "no renewal in three lives");
            load.finish().await.expect_flawless(400)
        })
        .await?;
    }
    Ok(())
}
