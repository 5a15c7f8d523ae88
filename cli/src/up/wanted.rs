//! What should run, decided from the Cluster documents alone: one process a daemon and a workload, with its
//! configuration as the daemon reads it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use hawser_api::labels::{GATEWAY_ACCOUNT, MIRROR_CONTROLLER_ACCOUNT, SYSTEM_NAMESPACE};
use hawser_api::objects::{GatewaySpec, ProxySpec, WorkloadSpec};
use hawser_api::{ClusterName, SpiffeId};
use serde_json::{Value, json};

use crate::fabric::Declared;
use crate::state::{ClusterState, State};

/// What kind of process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    TrustAnchor,
    MirrorController,
    Gateway,
    Proxy,
    Workload,
}

impl Kind {
    /// The subcommand that runs it, also the first word of its files' names.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::TrustAnchor => "trust-anchor",
            Self::MirrorController => "mirror-controller",
            Self::Gateway => "gateway",
            Self::Proxy => "proxy",
            Self::Workload => "workload",
        }
    }
}

/// Which process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id {
    pub(crate) cluster: ClusterName,
    pub(crate) kind: Kind,
    /// Its name in the Cluster document; empty for the daemons of which there is one.
    pub(crate) name: String,
}

impl Id {
    /// The name of its files: `gateway-gateway-0`, `trust-anchor`.
    pub(crate) fn key(&self) -> String {
        match self.name.as_str() {
            "" => self.kind.as_str().to_owned(),
            name => format!("{}-{name}", self.kind.as_str()),
        }
    }

    /// Its name for people, within the cluster: `gateway-0`, `proxy-web`, `checkout-1`.
    pub(crate) fn label(&self) -> String {
        match self.kind {
            Kind::Workload => self.name.clone(),
            kind => crate::admin::label(kind.as_str(), &self.name),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.cluster, self.label()))
    }
}

/// One process that should run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) id: Id,
    /// Program and arguments; a program called `hawser` is this binary.
    pub(crate) command: Vec<String>,
    /// Written before each start.
    pub(crate) config: Option<(PathBuf, Value)>,
    /// How it comes to its identity.
    pub(crate) join: Option<Join>,
}

/// For whom join tokens are registered.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Join {
    pub(crate) identity: SpiffeId,
    /// Where a token is put.
    pub(crate) token: PathBuf,
    /// Where the identity is kept that it joins with.
    pub(crate) store: PathBuf,
}

/// Everything that one cluster should run, in the order in which it is best started.
pub(crate) fn of(declared: &Declared, state: &State, drain: Duration) -> Result<Vec<Wanted>> {
    let here = Here { declared, root: state, cluster: state.cluster(&declared.name)?, drain };
    let mut all = vec![here.trust_anchor(), here.mirror_controller()?];
    for gateway in &declared.cluster.spec.gateways {
        all.push(here.gateway(gateway)?);
    }
    for proxy in &declared.cluster.spec.proxies {
        all.push(here.proxy(proxy)?);
    }
    all.extend(declared.cluster.spec.workloads.iter().map(|workload| here.workload(workload)));
    Ok(all)
}

struct Here<'a> {
    declared: &'a Declared,
    root: &'a State,
    cluster: ClusterState,
    drain: Duration,
}

impl Here<'_> {
    fn id(&self, kind: Kind, name: &str) -> Id {
        Id { cluster: self.declared.name.clone(), kind, name: name.to_owned() }
    }

    fn daemon(&self, id: Id, join: Option<SpiffeId>, own: Value) -> Wanted {
        let path = self.cluster.config(&id.key());
        let store = own.pointer("/identity/store").and_then(Value::as_str).map(PathBuf::from).unwrap_or_default();
        let name = if id.name.is_empty() { id.kind.as_str() } else { &id.name };
        let mut config = json!({
            "process": {
                "name": format!("{}/{name}", id.cluster),
                "admin": "127.0.0.1:0",
                "runFile": self.cluster.run_file(&id.key()),
                "drainSeconds": self.drain.as_secs(),
            },
            "cluster": self.declared.name,
        });
        if let (Value::Object(config), Value::Object(own)) = (&mut config, own) {
            config.extend(own.into_iter().filter(|(_, value)| !value.is_null()));
        }
        let command = ["hawser", id.kind.as_str(), "--config", &path.to_string_lossy()].map(str::to_owned).to_vec();
        let token = self.cluster.token(&id.key());
        Wanted { id, command, config: Some((path, config)), join: join.map(|identity| Join { identity, token, store }) }
    }

    fn identity(&self, id: &Id, own: &str) -> Value {
        json!({
            "trustDomain": self.declared.trust_domain,
            "socket": self.cluster.issuer_socket(),
            "joinToken": self.cluster.token(&id.key()),
            "store": self.cluster.own(own).join("identity"),
        })
    }

    fn discovery(&self, own: &str) -> Value {
        json!({ "socket": self.cluster.discovery_socket(), "lastKnown": self.cluster.own(own).join("tables") })
    }

    fn trust_anchor(&self) -> Wanted {
        let certificates = self.declared.cluster.spec.certificates.clone().unwrap_or_default();
        let own = json!({
            "trustDomain": self.declared.trust_domain,
            "state": self.cluster.trust_anchor(),
            "socket": self.cluster.issuer_socket(),
            "rootCertificate": self.root.root_certificate(),
            "workload": { "socket": self.cluster.workload_socket(), "objects": self.declared.directory },
            "workloadTtlSeconds": certificates.workload_ttl_seconds,
            "gatewayTtlSeconds": certificates.gateway_ttl_seconds,
            "links": { "directory": self.cluster.links(), "objects": self.declared.directory },
            "bundleEndpoint": self.declared.cluster.spec.bundle_endpoint.as_ref().map(|endpoint| json!({
                "address": endpoint.address,
                "profile": endpoint.profile,
                "certificate": endpoint.certificate.as_ref().map(|file| self.declared.directory.join(file)),
                "key": endpoint.key.as_ref().map(|file| self.declared.directory.join(file)),
            })),
        });
        self.daemon(self.id(Kind::TrustAnchor, ""), None, own)
    }

    fn mirror_controller(&self) -> Result<Wanted> {
        let id = self.id(Kind::MirrorController, "");
        let identity = self.declared.identity(SYSTEM_NAMESPACE, MIRROR_CONTROLLER_ACCOUNT)?;
        let own = json!({
            "identity": self.identity(&id, "mirror-controller"),
            "objects": self.declared.directory,
            "links": self.cluster.links(),
            "output": self.cluster.objects(),
            "state": self.cluster.own("mirror-controller"),
            "socket": self.cluster.discovery_socket(),
        });
        Ok(self.daemon(id, Some(identity), own))
    }

    fn gateway(&self, gateway: &GatewaySpec) -> Result<Wanted> {
        let id = self.id(Kind::Gateway, gateway.name.as_str());
        let dir = format!("gateways/{}", gateway.name);
        let own = json!({
            "name": gateway.name,
            "listen": gateway.listen,
            "identity": self.identity(&id, &dir),
            "discovery": self.discovery(&dir),
        });
        Ok(self.daemon(id, Some(self.declared.identity(SYSTEM_NAMESPACE, GATEWAY_ACCOUNT)?), own))
    }

    fn proxy(&self, proxy: &ProxySpec) -> Result<Wanted> {
        let id = self.id(Kind::Proxy, proxy.name.as_str());
        let dir = format!("proxies/{}", proxy.name);
        let own = json!({
            "name": proxy.name,
            "inbound": proxy.inbound,
            "virtualNetwork": proxy.virtual_network,
            "socks": proxy.socks,
            "dns": proxy.dns,
            "identity": self.identity(&id, &dir),
            "discovery": self.discovery(&dir),
        });
        let identity = self.declared.identity(proxy.namespace.as_str(), proxy.service_account.as_str())?;
        Ok(self.daemon(id, Some(identity), own))
    }

    fn workload(&self, workload: &WorkloadSpec) -> Wanted {
        let id = self.id(Kind::Workload, workload.name.as_str());
        Wanted { id, command: workload.command.clone(), config: None, join: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared() -> Declared {
        let text = "apiVersion: hawser.dev/v1alpha1\nkind: Cluster\nmetadata: {name: west}\nspec:\n  \
                    fabricDomain: acme.example\n  gateways: [{name: gateway-0, listen: \"127.0.1.1:7443\"}]\n  \
                    proxies: [{name: web, namespace: shop, serviceAccount: web-sa, socks: \"127.0.1.1:1080\"}]\n  \
                    workloads: [{name: stock-1, command: [hawser, echo]}]\n";
        Declared {
            name: "west".parse().unwrap(),
            trust_domain: "west.acme.example".parse().unwrap(),
            directory: "/fabric/west".into(),
            cluster: serde_saphyr::from_str(text).unwrap(),
        }
    }

    #[test]
    fn a_cluster_is_a_process_a_daemon_and_a_workload() {
        let directory = tempfile::tempdir().unwrap();
        let state = State::create(&directory.path().join("s")).unwrap();
        let all = of(&declared(), &state, Duration::from_secs(10)).unwrap();
        let labels: Vec<_> = all.iter().map(|wanted| wanted.id.to_string()).collect();
        assert_eq!(
            labels,
            ["west/trust-anchor", "west/mirror-controller", "west/gateway-0", "west/proxy-web", "west/stock-1"]
        );
        let (path, proxy) = all[3].config.clone().unwrap();
        assert!(path.ends_with("west/config/proxy-web.yaml"));
        assert_eq!(proxy["process"]["name"], "west/web");
        assert_eq!(proxy["socks"], "127.0.1.1:1080");
        assert!(proxy.get("inbound").is_none(), "what is absent is left out");
        let join = all[3].join.as_ref().unwrap();
        assert_eq!(join.identity.as_str(), "spiffe://west.acme.example/ns/shop/sa/web-sa");
        assert!(join.store.ends_with("west/proxies/web/identity"), "{}", join.store.display());
        let text = serde_saphyr::to_string(&proxy).unwrap();
        assert_eq!(serde_saphyr::from_str::<Value>(&text).unwrap(), proxy, "YAML reads back as it was");
    }
}
