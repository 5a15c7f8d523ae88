//! Only what is exported can be reached, whatever a peer's process does; nobody can answer in a server's place.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use hawser_api::objects::link::Transport;
use hawser_e2e::client::{self, Request};
use hawser_e2e::intruder::{self, Client, Rogue};
use hawser_e2e::relay::Relay;
use hawser_e2e::shop::Shop;
use hawser_e2e::yaml::Service;
use hawser_e2e::{Fabric, Plan, eventually};
use hawser_tunnel::open::OpenRequest;
use hawser_tunnel::stream::TunnelStream;
use serde_json::Value;
use tokio::net::TcpStream;

/// What east has and west may not reach, and what nobody has.
const FORBIDDEN: &[&str] = &[
    "shop/secret:80",
    "shop/secret:8080",
    "shop/ledger:80", // exported to north alone
    "shop/checkout:81",
    "shop/checkout:8080", // the application's own port
    "shop/checkout:4143", // the inbound proxy's
    "shop/checkout:443",
    "pay/checkout:80",
    "default/checkout:80",
    "shop/checkout-east:80",
    "shop/checkout-west:80",
    "shop/checkout-federated:80",
    "shop/files:80",
    "shop/127-0-0-1:80",
    "shop/localhost:80",
    "apps/client:1080",
    "hawser-system/catalog:80",
    "hawser-system/gateway:7443",
    "hawser-system/issuer:443",
    "hawser-system/trust-anchor:443",
    "hawser-system/discovery:443",
    "hawser-system/mirror-controller:443",
];

/// Targets of streams inside a session that are no names at all.
const NO_NAMES: &[&[u8]] = &[
    b"",
    b"shop/checkout",
    b"checkout:80",
    b"shop/checkout:0",
    b"shop/checkout:080",
    b"shop/checkout:+80",
    b"shop/checkout:65616",
    b"shop/Checkout:80",
    b"SHOP/CHECKOUT:80",
    b"shop/checkout:80 ",
    b" shop/checkout:80",
    b"shop/checkout:80,shop/secret:80",
    b"shop/checkout:80/../secret:80",
    b"shop/../shop/checkout:80",
    b"shop//checkout:80",
    b"shop/checkout.:80",
    b"shop/checkout.shop:80",
    b"shop/*:80",
    b"127.0.0.1:8080",
    b"shop/127.0.0.1:8080",
    b"[::1]:8080",
    "shop/che\u{441}kout:80".as_bytes(),
    b"shop/check%6fut:80",
    b"\xff\xfe",
];

/// A shop in east, with one service more that is exported to another cluster only.
async fn open_shop(fabric: &mut Fabric) -> Result<Shop> {
    let shop = fabric.up_with_shop().await?;
    let ledger = Service::http("shop/ledger", &[(fabric.workload("east", 0), "server-0")]);
    fabric.put("east", &Service { export_to: vec!["north".to_owned()], ..ledger })?;
    eventually("the ledger to be exported", async || export(fabric, "shop", "ledger").await).await?;
    Ok(shop)
}

fn gateway(fabric: &Fabric) -> Result<SocketAddr> {
    Ok(fabric.gateways("east").first().context("no gateway")?.1)
}

fn west(fabric: &Fabric, transport: Transport) -> Result<Client> {
    let stolen = intruder::steal(fabric, "west", "proxies/client")?;
    Client::new(stolen, gateway(fabric)?, transport)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_refuses_every_name_that_is_not_exported_to_the_caller() -> Result<()> {
    Fabric::test(Plan { north: true, ..Plan::over("auto") }, async |fabric| {
        let _shop = open_shop(fabric).await?;
        for transport in [Transport::Quic, Transport::Tcp] {
            let west = west(fabric, transport)?;
            west.opened("shop/checkout:80", None).await?;
            for target in FORBIDDEN {
                let answer = west.open(&OpenRequest::any(target.parse()?)).await?;
                let refusal = answer.err().with_context(|| format!("{target} was opened"))?;
                ensure!(refusal.code.as_str() == "not_exported", "{target}: {refusal}");
                ensure!(!refusal.remedy.is_empty(), "{target}: no remedy");
            }
            // The identity counts, not the road: north's own may open the ledger, and not west's exports by name.
            let north = intruder::steal(fabric, "north", "proxies/client")?;
            let north = Client::new(north, gateway(fabric)?, transport)?;
            north.opened("shop/ledger:80", None).await?;
            // A workload of east itself has no link to come in by.
            let own = Client::new(intruder::steal(fabric, "east", "proxies/client")?, gateway(fabric)?, transport)?;
            let refusal = own.open(&OpenRequest::any("shop/checkout:80".parse()?)).await?.err();
            let refusal = refusal.context("east's own workload came in through the gateway")?;
            ensure!(refusal.code.as_str() == "not_linked", "{refusal}");
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_was_opened_for_one_port_carries_no_stream_to_what_is_not_exported() -> Result<()> {
    Fabric::test(Plan { north: true, ..Plan::over("auto") }, async |fabric| {
        let _shop = open_shop(fabric).await?;
        for transport in [Transport::Quic, Transport::Tcp] {
            let west = west(fabric, transport)?;
            for endpoint in endpoints(fabric).await? {
                let stream = west.opened("shop/checkout:80", Some(&endpoint)).await?.stream;
                refused_inside(&west, stream).await.with_context(|| format!("{transport:?} {endpoint}"))?;
                refused_dedicated(&west, &endpoint).await.with_context(|| format!("{transport:?} {endpoint}"))?;
            }
        }
        Ok(())
    })
    .await
}

/// An export as east's gateway tells it.
async fn export(fabric: &Fabric, namespace: &str, name: &str) -> Result<Value> {
    let page = fabric.daemon("east", "gateway", "g0")?.page("/exports").await?;
    let exports = page.get("exports").and_then(Value::as_array).context("no exports")?;
    let found = exports.iter().find(|export| export["namespace"] == namespace && export["name"] == name);
    found.cloned().with_context(|| format!("{namespace}/{name} is not exported: {page}"))
}

/// The ids of the checkout's endpoints.
async fn endpoints(fabric: &Fabric) -> Result<Vec<String>> {
    let export = export(fabric, "shop", "checkout").await?;
    let endpoints = export.get("endpoints").and_then(Value::as_array).context("no endpoints")?;
    let ids: Vec<_> = endpoints.iter().filter_map(|endpoint| Some(endpoint["id"].as_str()?.to_owned())).collect();
    ensure!(ids.len() == 2, "{ids:?}");
    Ok(ids)
}

async fn refused_dedicated(west: &Client, endpoint: &str) -> Result<()> {
    for target in FORBIDDEN {
        let stream = west.opened("shop/checkout:80", Some(endpoint)).await?.stream;
        let refusal = west.dedicated(stream, target).await?.err();
        let refusal = refusal.with_context(|| format!("{target} was reached"))?;
        ensure!(refusal.code.as_str() == "not_exported", "dedicated, {target}: {refusal}");
    }
    Ok(())
}

async fn refused_inside(west: &Client, stream: TunnelStream) -> Result<()> {
    let session = west.shared(stream).await?;
    ensure!(session.server() == "spiffe://east.hawser.test/ns/shop/sa/checkout", "{}", session.server());
    for method in ["GET", "CONNECT"] {
        for target in FORBIDDEN {
            let answer = session.ask(method, &[target.as_bytes()]).await.with_context(|| (*target).to_owned())?;
            ensure!(answer == (403, "not_exported".to_owned()), "{method} {target}: {answer:?}");
        }
        for target in NO_NAMES {
            let text = String::from_utf8_lossy(target);
            let (status, code) = session.ask(method, &[target]).await.with_context(|| text.to_string())?;
            ensure!(matches!(status, 400 | 403) && !code.is_empty(), "{method} {text:?}: {status} {code}");
        }
        let none = session.ask(method, &[]).await?;
        ensure!(matches!(none.0, 400 | 403), "{method} without a target: {none:?}");
        let two: [&[u8]; 2] = [b"shop/checkout:80", b"shop/secret:80"];
        for targets in [two, [two[1], two[0]], [two[0], two[0]]] {
            let answer = session.ask(method, &targets).await?;
            ensure!(matches!(answer.0, 400 | 403), "{method} with two targets: {answer:?}");
        }
    }
    // The same session serves what it was opened for, before and after.
    ensure!(session.ask("GET", &[b"shop/checkout:80"]).await?.0 == 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_s_proxy_holds_the_line_alone_where_a_caller_gets_past_the_gateway() -> Result<()> {
    Fabric::test(Plan { north: true, ..Plan::over("auto") }, async |fabric| {
        let _shop = open_shop(fabric).await?;
        let west = west(fabric, Transport::Tcp)?;
        for proxy in [fabric.inbound("east", 0), fabric.inbound("east", 1)] {
            let stream = TunnelStream::from(TcpStream::connect(proxy).await?);
            refused_inside(&west, stream).await.with_context(|| format!("straight to {proxy}"))?;
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_answers_in_a_server_s_place_is_refused_by_the_caller() -> Result<()> {
    Fabric::test(Plan { relayed: true, ..Plan::over("auto") }, async |fabric| {
        let shop = Shop::open(fabric, "east").await?;
        let relay = Relay::start(fabric.relay_address(), gateway(fabric)?).await?;
        fabric.up().await?;
        fabric.answers(&fabric.checkout(), 200).await?;
        let catalog = catalog(fabric).await?;
        let served = (shop.server("east-0")?.accepted(), shop.server("east-1")?.accepted());
        drop(relay);
        // With the true gateway's certificate: the tunnel is in order, the server is not. As the gateway itself, and as
        // another workload of the same cluster.
        for store in ["gateways/g0", "proxies/client"] {
            let door = intruder::steal(fabric, "east", "gateways/g0")?;
            let server = intruder::steal(fabric, "east", store)?;
            let rogue = eventually("the address to be free", async || {
                Rogue::start(fabric.relay_address(), door.clone(), server.clone(), catalog).await
            })
            .await?;
            let answer = eventually("the caller to meet the rogue", async || {
                let answer = client::call(&fabric.checkout(), &Request::get("/")).await?;
                ensure!(rogue.tried() > 0 && answer.status == 502, "{} {}", answer.summary(), answer.text());
                Ok(answer)
            })
            .await?;
            ensure!(answer.refusal() == Some("wrong_identity"), "{} {}", answer.summary(), answer.text());
            ensure!(rogue.fooled() == 0, "a request reached the rogue as {store}");
        }
        ensure!(served == (shop.server("east-0")?.accepted(), shop.server("east-1")?.accepted()));
        Ok(())
    })
    .await
}

/// Where east's catalog listens, behind its gateway.
async fn catalog(fabric: &Fabric) -> Result<SocketAddr> {
    let export = export(fabric, "hawser-system", "catalog").await?;
    let inbound = export.pointer("/endpoints/0/inbound").and_then(Value::as_str);
    Ok(inbound.context("no catalog")?.parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_without_a_gateway_s_identity_is_no_gateway() -> Result<()> {
    Fabric::test(Plan { relayed: true, ..Plan::over("auto") }, async |fabric| {
        let _shop = Shop::open(fabric, "east").await?;
        let relay = Relay::start(fabric.relay_address(), gateway(fabric)?).await?;
        fabric.up().await?;
        fabric.answers(&fabric.checkout(), 200).await?;
        let catalog = catalog(fabric).await?;
        drop(relay);
        let door = intruder::steal(fabric, "east", "proxies/server-0")?;
        let rogue = eventually("the address to be free", async || {
            Rogue::start(fabric.relay_address(), door.clone(), door.clone(), catalog).await
        })
        .await?;
        eventually("the caller to be told", async || {
            let answer = client::call(&fabric.checkout(), &Request::get("/")).await;
            // When the catalog's lease is over the name is gone, which is as good a no.
            ensure!(answer.as_ref().map_or(true, |answer| answer.status >= 500), "{answer:?}");
            Ok(())
        })
        .await?;
        ensure!(rogue.tried() == 0, "a tunnel to the rogue was used");
        Ok(())
    })
    .await
}
