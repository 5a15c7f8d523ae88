//! Two clusters on this machine: calls by name, over both transports, with the caller known to the server.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use hawser_e2e::client::{self, Connection, Request, Via};
use hawser_e2e::servers::{Server, seen, told};
use hawser_e2e::transfer::Transfer;
use hawser_e2e::yaml::Service;
use hawser_e2e::{Fabric, Plan, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CALLER: &str = "spiffe://west.hawser.test/ns/apps/sa/web";

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_called_by_name_over_quic_and_sees_the_caller() -> Result<()> {
    called_by_name("quic").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_called_by_name_over_tcp_and_sees_the_caller() -> Result<()> {
    called_by_name("tcp").await
}

async fn called_by_name(transport: &'static str) -> Result<()> {
    Fabric::test(Plan::over(transport), async |fabric| {
        let _shop = fabric.up_with_shop().await?;
        let by_address = fabric.by_address("west", "shop/checkout-east", 80).await?;
        for via in [fabric.checkout(), by_address] {
            both_instances_answer(&via).await?;
            the_caller_is_told(&via).await?;
            bodies_arrive(&via).await?;
        }
        bytes_arrive(&fabric.files()).await?;
        transport_is(fabric, transport).await
    })
    .await
}

async fn both_instances_answer(via: &Via) -> Result<()> {
    let mut connection = Connection::open(via).await?;
    let mut instances = BTreeSet::new();
    // The second session is made in the background, while the first serves.
    eventually("answers of both instances on one connection", async || {
        let answer = connection.send(&Request::get("/a/path?with=query")).await?.json()?;
        ensure!(told(&answer, "path") == "/a/path?with=query", "{answer}");
        instances.insert(told(&answer, "instance"));
        ensure!(instances.len() == 2, "only {instances:?}");
        Ok(())
    })
    .await
}

/// Headers by which a caller might pass for somebody else.
const FORGED: &[&str] = &[
    "x-hawser-client-id",
    "X-Hawser-Client-Id",
    "X-HAWSER-CLIENT-ID",
    "x_hawser_client_id",
    "x-hawser-server-id",
    "x-forwarded-client-cert",
    "X-Forwarded-Client-Cert",
    "x_forwarded_client_cert",
    "l5d-client-id",
    "L5d-Client-Id",
    "x-spiffe-id",
    "x_spiffe_id",
];

async fn the_caller_is_told(via: &Via) -> Result<()> {
    for name in FORGED {
        let forged = "spiffe://east.hawser.test/ns/shop/sa/admin";
        let answer = client::call(via, &Request::get("/").header(name, forged).header("x-mine", "kept")).await?;
        ensure!(answer.status == 200, "{name}: {}", answer.summary());
        let answer = answer.json()?;
        ensure!(seen(&answer, "x-hawser-client-id").as_deref() == Some(CALLER), "{name} was believed: {answer}");
        ensure!(!answer.to_string().contains(forged), "{name} went through: {answer}");
        ensure!(seen(&answer, "x-mine").as_deref() == Some("kept"), "{answer}");
    }
    Ok(())
}

async fn bodies_arrive(via: &Via) -> Result<()> {
    let mut connection = Connection::open(via).await?;
    for size in [1, 1000, 100_000, 3_000_000] {
        let answer = connection.send(&Request::post("/", &vec![7; size])).await?.json()?;
        ensure!(told(&answer, "received") == size.to_string(), "{size}: {answer}");
    }
    let head = Request { method: "HEAD".to_owned(), ..Request::get("/") };
    ensure!(connection.send(&head).await?.status == 200);
    ensure!(connection.send(&Request::get("/status/404")).await?.status == 404);
    Ok(())
}

async fn bytes_arrive(via: &Via) -> Result<()> {
    let transfer = Transfer::start(via, 1).await?;
    eventually("some echo", async || {
        ensure!(transfer.received() > 300_000, "{} so far", transfer.received());
        Ok(())
    })
    .await?;
    // The end of one direction is passed on, and the other goes on to its own.
    transfer.finish().await?.result
}

/// What the gateway says about the transport in use.
async fn transport_is(fabric: &Fabric, transport: &str) -> Result<()> {
    let gateway = fabric.daemon("east", "gateway", "g0")?;
    let sample = |transport: &str| format!("hawser_tcp_open_total{{link=\"west\",transport=\"{transport}\"}}");
    ensure!(gateway.metric(&sample(transport)).await? > 0.0);
    let other = if transport == "quic" { "tcp" } else { "quic" };
    ensure!(gateway.metric(&sample(other)).await.is_err(), "{other} was used too");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_exported_cannot_be_called_and_what_is_withdrawn_says_so() -> Result<()> {
    Fabric::test(Plan::over("auto"), async |fabric| {
        let shop = fabric.up_with_shop().await?;
        let secret = fabric.by_name("west", "secret-east.shop", 80);
        let error = client::call(&secret, &Request::get("/")).await.err().context("a secret was told")?;
        ensure!(format!("{error:#}").contains("socks: reply 4"), "no such name: {error:#}");

        let by_address = fabric.by_address("west", "shop/checkout-east", 80).await?;
        let mut connection = Connection::open(&by_address).await?;
        ensure!(connection.send(&Request::get("/")).await?.status == 200);
        let mut service = shop.checkout(fabric);
        service.exported = false;
        fabric.put("east", &service)?;
        // On the connection that was there, and where it was reached before.
        let refused = eventually("a refusal", async || {
            let answer = match connection.send(&Request::get("/")).await {
                Ok(answer) => answer,
                Err(_) => client::call(&by_address, &Request::get("/")).await?,
            };
            ensure!(answer.status != 200, "still answered");
            Ok(answer)
        })
        .await?;
        ensure!(matches!(refused.status, 403 | 503), "{} {}", refused.summary(), refused.text());
        ensure!(refused.refusal().is_some(), "no code: {refused:?}");
        ensure!(refused.text().contains("hint: "), "no remedy: {}", refused.text());
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn opaque_connections_run_in_shared_and_in_dedicated_sessions() -> Result<()> {
    Fabric::test(Plan::over("auto"), async |fabric| {
        let at = |host| fabric.workload("east", host);
        let _echo = Server::echo(at(0)).await?;
        let _greeter = Server::greeter(at(1), "220 east speaks first\r\n").await?;
        for session in ["shared", "dedicated", "auto"] {
            let name = format!("shop/echo-{session}");
            fabric.put("east", &Service::tcp(&name, &[(at(0), "server-0")]).session(session))?;
        }
        fabric.put("east", &Service::tcp("shop/mail", &[(at(1), "server-1")]))?;
        fabric.up().await?;
        for session in ["shared", "dedicated", "auto"] {
            let via = fabric.by_name("west", &format!("echo-{session}-east.shop"), 9000);
            eventually("the service", async || via.connect().await.map(drop)).await?;
            bytes_arrive(&via).await.with_context(|| session.to_owned())?;
        }
        let mut mail = fabric.by_name("west", "mail-east.shop", 9000).connect().await?;
        let mut greeting = [0; 23];
        tokio::time::timeout(client::DEADLINE, mail.read_exact(&mut greeting)).await.context("no greeting")??;
        ensure!(&greeting == b"220 east speaks first\r\n");
        mail.write_all(b"QUIT").await?;
        let mut echo = [0; 4];
        tokio::time::timeout(client::DEADLINE, mail.read_exact(&mut echo)).await.context("no echo")??;
        ensure!(&echo == b"QUIT");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn local_services_are_called_by_name_too_and_only_from_their_own_cluster() -> Result<()> {
    Fabric::test(Plan::over("auto"), async |fabric| {
        let _server = Server::http(fabric.workload("west", 0), "west-local").await?;
        let local = Service::http("shop/local", &[(fabric.workload("west", 0), "server-0")]).private();
        fabric.put("west", &local)?;
        fabric.up().await?;
        let answer = fabric.answers(&fabric.by_name("west", "local.shop", 80), 200).await?.json()?;
        ensure!(told(&answer, "instance") == "west-local", "{answer}");
        ensure!(seen(&answer, "x-hawser-client-id").as_deref() == Some(CALLER), "{answer}");
        for name in ["local.shop", "local-west.shop"] {
            let via = fabric.by_name("east", name, 80);
            ensure!(client::call(&via, &Request::get("/")).await.is_err(), "{name} was called from east");
        }
        Ok(())
    })
    .await
}
