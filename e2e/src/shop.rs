//! What most tests call: a shop of a few services in one cluster, each behind two proxies.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::client::{self, Answer, Request, Via};
use crate::fabric::Fabric;
use crate::servers::Server;
use crate::wait::eventually;
use crate::yaml::Service;

/// The applications of one cluster's shop, by instance.
///
/// - `shop/checkout:80`: HTTP, instances `<cluster>-0` and `<cluster>-1`, exported, federated
/// - `shop/files:9000`: opaque TCP that echoes, two instances, exported
/// - `shop/stock:9000`: the same once more, to be withdrawn while `files` goes on
/// - `shop/secret:80`: HTTP, not exported
#[derive(Debug)]
pub struct Shop {
    cluster: String,
    servers: BTreeMap<String, Server>,
}

impl Shop {
    /// Starts the applications and writes the objects.
    pub async fn open(fabric: &Fabric, cluster: &str) -> Result<Self> {
        let at = |host| fabric.workload(cluster, host);
        let mut servers = BTreeMap::new();
        for number in 0..2u8 {
            let instance = format!("{cluster}-{number}");
            servers.insert(instance.clone(), Server::http(at(number), &instance).await?);
            servers.insert(format!("files-{number}"), Server::echo(at(10 + number)).await?);
            servers.insert(format!("stock-{number}"), Server::echo(at(20 + number)).await?);
        }
        servers.insert("secret".to_owned(), Server::http(at(30), "secret").await?);
        let shop = Self { cluster: cluster.to_owned(), servers };
        for service in shop.services(fabric) {
            fabric.put(cluster, &service)?;
        }
        Ok(shop)
    }

    fn services(&self, fabric: &Fabric) -> Vec<Service> {
        let secret = [(fabric.workload(&self.cluster, 30), "server-0")];
        vec![
            self.checkout(fabric),
            self.tcp(fabric, "shop/files", 10),
            self.tcp(fabric, "shop/stock", 20),
            Service::http("shop/secret", &secret).private(),
        ]
    }

    /// `shop/checkout` as it is first written.
    pub fn checkout(&self, fabric: &Fabric) -> Service {
        let at = |host| fabric.workload(&self.cluster, host);
        Service::http("shop/checkout", &[(at(0), "server-0"), (at(1), "server-1")]).federated()
    }

    /// `shop/stock` as it is first written.
    pub fn stock(&self, fabric: &Fabric) -> Service {
        self.tcp(fabric, "shop/stock", 20)
    }

    fn tcp(&self, fabric: &Fabric, key: &str, host: u8) -> Service {
        let at = |host| fabric.workload(&self.cluster, host);
        Service::tcp(key, &[(at(host), "server-0"), (at(host + 1), "server-1")])
    }

    /// Ends an application as kill -9 would.
    pub fn kill(&mut self, instance: &str) -> Result<()> {
        self.servers.remove(instance).map(drop).with_context(|| format!("no instance {instance}"))
    }

    /// Starts an HTTP application that was killed.
    pub async fn revive(&mut self, fabric: &Fabric, instance: &str) -> Result<()> {
        let number = instance.rsplit('-').next().and_then(|n| n.parse().ok()).context("no number")?;
        let server = Server::http(fabric.workload(&self.cluster, number), instance).await?;
        self.servers.insert(instance.to_owned(), server);
        Ok(())
    }

    /// An application.
    pub fn server(&self, instance: &str) -> Result<&Server> {
        self.servers.get(instance).with_context(|| format!("no instance {instance}"))
    }
}

impl Fabric {
    /// A shop in `east` and the fabric up, with `west` able to call it.
    pub async fn up_with_shop(&mut self) -> Result<Shop> {
        let shop = Shop::open(self, "east").await?;
        self.up().await?;
        self.answers(&self.checkout(), 200).await?;
        Ok(shop)
    }

    /// East's checkout as west's applications call it.
    pub fn checkout(&self) -> Via {
        self.by_name("west", "checkout-east.shop", 80)
    }

    /// The checkout of all clusters as west's applications call it.
    pub fn federated(&self) -> Via {
        self.by_name("west", "checkout.shop.svc.clusterset.local", 80)
    }

    /// East's files as west's applications call it.
    pub fn files(&self) -> Via {
        self.by_name("west", "files-east.shop", 9000)
    }

    /// East's stock as west's applications call it.
    pub fn stock(&self) -> Via {
        self.by_name("west", "stock-east.shop", 9000)
    }

    /// Waits until a GET has this status.
    pub async fn answers(&self, via: &Via, status: u16) -> Result<Answer> {
        eventually(&format!("status {status} of {via:?}"), async || {
            let answer = client::call(via, &Request::get("/")).await?;
            ensure!(answer.status == status, "{} {}", answer.summary(), answer.text());
            Ok(answer)
        })
        .await
    }
}
