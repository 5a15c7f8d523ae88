//! Objects as a user would write them.

use std::fmt::Write as _;
use std::net::SocketAddr;

/// A Service with one port and its EndpointSlice: one endpoint for each (address, proxy).
#[derive(Debug, Clone)]
pub struct Service {
    /// `namespace/name`
    pub key: String,
    /// The Service's port.
    pub port: u16,
    /// `http`, `hawser.dev/opaque`, …; empty: to be detected.
    pub app_protocol: String,
    /// `hawser.dev/export: "true"`.
    pub exported: bool,
    /// `hawser.dev/export-to`.
    pub export_to: Vec<String>,
    /// `hawser.dev/federated: "true"`.
    pub federated: bool,
    /// `hawser.dev/session`; empty: the default.
    pub session: String,
    /// Where workloads listen, and the proxy in front of each.
    pub endpoints: Vec<(SocketAddr, String)>,
}

impl Service {
    /// Exported, HTTP, on port 80.
    pub fn http(key: &str, endpoints: &[(SocketAddr, &str)]) -> Self {
        Self {
            key: key.to_owned(),
            port: 80,
            app_protocol: "http".to_owned(),
            exported: true,
            export_to: Vec::new(),
            federated: false,
            session: String::new(),
            endpoints: endpoints.iter().map(|(address, proxy)| (*address, (*proxy).to_owned())).collect(),
        }
    }

    /// Exported, opaque TCP, on port 9000.
    pub fn tcp(key: &str, endpoints: &[(SocketAddr, &str)]) -> Self {
        Self { port: 9000, app_protocol: "hawser.dev/opaque".to_owned(), ..Self::http(key, endpoints) }
    }

    /// The same, not exported.
    #[must_use]
    pub fn private(mut self) -> Self {
        self.exported = false;
        self
    }

    /// The same, one with services of the same name elsewhere.
    #[must_use]
    pub fn federated(mut self) -> Self {
        self.federated = true;
        self
    }

    /// The same, with this kind of sealed session.
    #[must_use]
    pub fn session(mut self, session: &str) -> Self {
        session.clone_into(&mut self.session);
        self
    }

    /// A file's name for it.
    pub fn file(&self) -> String {
        format!("service-{}.yaml", self.key.replace('/', "-"))
    }

    /// Its YAML.
    pub fn render(&self) -> String {
        let (namespace, name) = self.key.split_once('/').unwrap_or(("default", &self.key));
        let mut text = format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\n");
        text += "  labels:\n    app: test\n";
        if self.exported {
            text += "    hawser.dev/export: \"true\"\n";
        }
        if self.federated {
            text += "    hawser.dev/federated: \"true\"\n";
        }
        text += "  annotations:\n    made-by: e2e\n";
        if !self.export_to.is_empty() {
            let _ = writeln!(text, "    hawser.dev/export-to: \"{}\"", self.export_to.join(","));
        }
        if !self.session.is_empty() {
            let _ = writeln!(text, "    hawser.dev/session: {}", self.session);
        }
        let _ = writeln!(text, "spec:\n  ports:\n  - name: main\n    port: {}", self.port);
        if !self.app_protocol.is_empty() {
            let _ = writeln!(text, "    appProtocol: {}", self.app_protocol);
        }
        // A slice has one set of ports, so endpoints with ports of their own need a slice each.
        for (at, (address, proxy)) in self.endpoints.iter().enumerate() {
            let _ = write!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{at}\n  \
                 namespace: {namespace}\n  labels:\n    kubernetes.io/service-name: {name}\naddressType: IPv4\n\
                 ports:\n- name: main\n  port: {}\nendpoints:\n- addresses: [\"{}\"]\n  \
                 targetRef: {{kind: Proxy, name: {proxy}}}\n",
                address.port(),
                address.ip(),
            );
        }
        text
    }
}

/// A proxy of a Cluster document.
#[derive(Debug, Clone, Default)]
pub struct Proxy {
    /// Its name.
    pub name: String,
    /// `namespace/serviceAccount`
    pub account: String,
    /// Where it accepts sealed sessions.
    pub inbound: Option<SocketAddr>,
    /// Its virtual network.
    pub virtual_network: Option<String>,
    /// Its SOCKS5 address.
    pub socks: Option<SocketAddr>,
    /// Its DNS address.
    pub dns: Option<SocketAddr>,
}

/// A Cluster document.
pub fn cluster(name: &str, ttl: Option<u64>, gateways: &[(String, SocketAddr)], proxies: &[Proxy]) -> String {
    let mut text = format!(
        "apiVersion: hawser.dev/v1alpha1\nkind: Cluster\nmetadata:\n  name: {name}\nspec:\n  region: {name}-region\n  \
         fabricDomain: hawser.test\n"
    );
    if let Some(ttl) = ttl {
        let _ = writeln!(text, "  certificates: {{workloadTtlSeconds: {ttl}, gatewayTtlSeconds: {ttl}}}");
    }
    text += "  gateways:\n";
    for (gateway, listen) in gateways {
        let _ = writeln!(text, "  - {{name: {gateway}, listen: \"{listen}\"}}");
    }
    text += "  proxies:\n";
    for proxy in proxies {
        let (namespace, account) = proxy.account.split_once('/').unwrap_or(("default", &proxy.account));
        let _ = writeln!(text, "  - name: {}\n    namespace: {namespace}\n    serviceAccount: {account}", proxy.name);
        let addresses = [("inbound", proxy.inbound), ("socks", proxy.socks), ("dns", proxy.dns)];
        for (field, address) in addresses {
            if let Some(address) = address {
                let _ = writeln!(text, "    {field}: \"{address}\"");
            }
        }
        if let Some(network) = &proxy.virtual_network {
            let _ = writeln!(text, "    virtualNetwork: {network}");
        }
    }
    text
}

/// A Link document.
pub fn link(peer: &str, transport: &str, gateways: &[(String, SocketAddr)]) -> String {
    let mut text = format!(
        "apiVersion: hawser.dev/v1alpha1\nkind: Link\nmetadata:\n  name: {peer}\nspec:\n  \
         trustDomain: {peer}.hawser.test\n  transport: {transport}\n  gateways:\n"
    );
    for (name, address) in gateways {
        let _ = writeln!(text, "  - {{name: {name}, address: \"{address}\"}}");
    }
    text
}

/// A FailoverPolicy with one cluster a tier.
pub fn failover(key: &str, tiers: &[&str]) -> String {
    let (namespace, name) = key.split_once('/').unwrap_or(("default", key));
    let mut text = format!(
        "apiVersion: hawser.dev/v1alpha1\nkind: FailoverPolicy\nmetadata:\n  name: {name}\n  namespace: {namespace}\n\
         spec:\n  tiers:\n"
    );
    for cluster in tiers {
        let _ = writeln!(text, "  - clusters: [{{name: {cluster}}}]");
    }
    text
}
