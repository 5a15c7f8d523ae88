//! The story, a step a function. A step does one thing, knows what it expects, and says what it saw.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::{Instant, sleep};

use super::call::{self, Served};
use super::stage::Stage;
use crate::http::Answer;
use crate::page::{is, text};
use crate::up::control::Operation;

type Played<'a> = Pin<Box<dyn Future<Output = Result<String>> + 'a>>;

/// One step.
pub(crate) struct Step {
    /// What is done, and what is expected.
    pub(crate) title: &'static str,
    /// Does it and says what was seen.
    pub(crate) play: for<'a> fn(&'a Stage) -> Played<'a>,
}

/// All of it, in order. Every step leaves the fabric as it found it.
pub(crate) const STEPS: &[Step] = &[
    Step { title: "hawser up: one process a daemon, all ready", play: |stage| Box::pin(ready(stage)) },
    Step { title: "west calls its own catalog by name", play: |stage| Box::pin(local(stage)) },
    Step { title: "west calls checkout-east over QUIC; east sees who calls", play: |stage| Box::pin(quic(stage)) },
    Step { title: "the Link is edited to tcp; the same call over TCP", play: |stage| Box::pin(tcp(stage)) },
    Step { title: "kill -9 one of checkout's two instances; no call fails", play: |stage| Box::pin(instance(stage)) },
    Step { title: "kill -9 one of east's two gateways; no call fails", play: |stage| Box::pin(gateway(stage)) },
    Step { title: "kill -9 all of east; stock goes on from west alone", play: |stage| Box::pin(cluster(stage)) },
    Step { title: "east returns and is used again", play: |stage| Box::pin(returns(stage)) },
    Step { title: "east withdraws checkout; the caller is told why", play: |stage| Box::pin(withdrawn(stage)) },
    Step { title: "east exports checkout again", play: |stage| Box::pin(exported(stage)) },
];

const CHECKOUT: &str = "checkout-east.shop.svc.cluster.local";
const STOCK: &str = "stock.shop.svc.clusterset.local";
const CALLER: &str = "spiffe://west.demo.hawser/ns/shop/sa/web";
const INSTANCE: &str = "east/app-checkout-1";
const GATEWAY: &str = "east/gateway-0";

fn is_good(answer: &Answer) -> bool {
    answer.status.is_success()
}

async fn ready(stage: &Stage) -> Result<String> {
    let all = stage.ready().await?;
    let apps = all.iter().filter(|line| line.kind == "workload").count();
    Ok(format!("{} daemons and {apps} applications run", all.len() - apps))
}

async fn local(stage: &Stage) -> Result<String> {
    let answer = stage.caller("catalog.shop.svc.cluster.local", 80)?.until(is_good).await?;
    let bound = stage.bound("shop/catalog", 80).await?;
    call::get_at(&bound).await.with_context(|| format!("calling {bound}"))?;
    Ok(format!("{} answered, by name and at {bound}", Served::by(&answer)))
}

async fn quic(stage: &Stage) -> Result<String> {
    over(stage, "quic").await
}

async fn tcp(stage: &Stage) -> Result<String> {
    stage.edit("west/link-east.yaml", "transport: quic", "transport: tcp")?;
    let saw = over(stage, "tcp").await;
    stage.edit("west/link-east.yaml", "transport: tcp", "transport: quic")?;
    saw
}

/// Calls until the proxy says that its endpoints are reached by this transport.
async fn over(stage: &Stage, transport: &str) -> Result<String> {
    let checkout = stage.caller(CHECKOUT, 8080)?;
    let deadline = Instant::now() + Duration::from_secs(15);
    loop {
        let answer = checkout.until(is_good).await?;
        let served = Served::by(&answer);
        if served.client != CALLER {
            bail!("{served} took the caller for {:?}, not for {CALLER}", served.client);
        }
        let endpoints = stage.endpoints("shop/checkout-east").await?;
        let used: Vec<_> = endpoints.iter().filter(|row| is(row, "in")).map(|row| text(row, "transport")).collect();
        if used.iter().any(|used| used == transport) {
            return Ok(format!("{served} answered over {transport}; it saw {CALLER}"));
        }
        if Instant::now() > deadline {
            bail!("the proxy reaches its endpoints by {used:?}, not by {transport}");
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// Kills something under a caller that keeps calling, and brings it back afterwards.
async fn unharmed(stage: &Stage, victim: &str) -> Result<String> {
    let checkout = stage.caller(CHECKOUT, 8080)?;
    checkout.until(is_good).await?;
    let calls = checkout.keep_calling(Duration::from_millis(2500));
    let kill = async {
        sleep(Duration::from_millis(400)).await;
        stage.control(Operation::Kill, victim).await
    };
    let (tally, killed) = tokio::join!(calls, kill);
    killed?;
    let saw = tally.unharmed();
    stage.control(Operation::Start, victim).await?;
    saw
}

async fn instance(stage: &Stage) -> Result<String> {
    let saw = unharmed(stage, INSTANCE).await?;
    stage.caller(CHECKOUT, 8080)?.until_served_by(|who| who.starts_with("checkout-1 ")).await?;
    Ok(format!("{saw}; started again, it serves again"))
}

async fn gateway(stage: &Stage) -> Result<String> {
    unharmed(stage, GATEWAY).await
}

async fn cluster(stage: &Stage) -> Result<String> {
    let stock = stage.caller(STOCK, 8080)?;
    for cluster in ["west", "east"] {
        stock.until_served_by(|who| who.ends_with(cluster)).await?;
    }
    let calls = stock.keep_calling(Duration::from_millis(4000));
    let kill = async {
        sleep(Duration::from_millis(400)).await;
        stage.control(Operation::Kill, "east").await
    };
    let (tally, killed) = tokio::join!(calls, kill);
    killed?;
    let saw = tally.unharmed()?;
    if tally.last.cluster != "west" {
        bail!("the last answer came from {}, which is gone", tally.last);
    }
    let answer = stage.caller(CHECKOUT, 8080)?.until(|answer| !is_good(answer)).await?;
    Ok(format!("{saw}\n      checkout-east: {}", call::summary(&answer)))
}

async fn returns(stage: &Stage) -> Result<String> {
    stage.control(Operation::Start, "east").await?;
    let began = Instant::now();
    stage.caller(CHECKOUT, 8080)?.until(is_good).await?;
    stage.caller(STOCK, 8080)?.until_served_by(|who| who.ends_with("east")).await?;
    Ok(format!("checkout-east and east's stock answer {:.1} s after the start", began.elapsed().as_secs_f64()))
}

async fn withdrawn(stage: &Stage) -> Result<String> {
    stage.edit("east/checkout.yaml", "hawser.dev/export: \"true\"", "hawser.dev/export: \"false\"")?;
    let began = Instant::now();
    let told = |answer: &Answer| answer.status == 403 && answer.header("x-hawser-refusal") == "not_exported";
    let answer = stage.caller(CHECKOUT, 8080)?.until(told).await?;
    if !String::from_utf8_lossy(&answer.body).contains("hint: ") {
        bail!("the answer has no hint: {}", call::summary(&answer));
    }
    let took = began.elapsed().as_millis();
    Ok(format!("after {took} ms: {}", call::summary(&answer)))
}

async fn exported(stage: &Stage) -> Result<String> {
    stage.edit("east/checkout.yaml", "hawser.dev/export: \"false\"", "hawser.dev/export: \"true\"")?;
    let answer = stage.caller(CHECKOUT, 8080)?.until(is_good).await?;
    Ok(format!("{} answers again", Served::by(&answer)))
}
