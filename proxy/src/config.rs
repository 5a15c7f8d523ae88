//! What a proxy is told when it starts: one YAML file.

use std::net::{Ipv4Addr, SocketAddr};

use hawser_api::{ClusterName, Namespace};
use hawser_runtime::config::{DiscoveryConfig, IdentityConfig, ProcessConfig};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Every virtual address lies in here: loopback, so that binding needs no privilege and nothing leaves the machine, and
/// far from 127.0.0.0/16, where programs of the machine listen.
pub const VIRTUAL_SPACE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 64, 0, 0), 10);

/// A proxy's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The process.
    pub process: ProcessConfig,
    /// The proxy's name in the Cluster object.
    pub name: Namespace,
    /// This cluster.
    pub cluster: ClusterName,
    /// Where the proxy's certificate comes from.
    pub identity: IdentityConfig,
    /// Where its tables come from.
    pub discovery: DiscoveryConfig,
    /// Where it accepts sealed sessions for the workloads that it fronts; absent: it fronts none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound: Option<SocketAddr>,
    /// From where virtual addresses are taken, inside [`VIRTUAL_SPACE`]; absent: none are bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_network: Option<Ipv4Net>,
    /// Where it answers SOCKS5; absent: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socks: Option<SocketAddr>,
    /// Where it answers DNS; absent: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<SocketAddr>,
}

/// Why a configuration that could be read cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Addresses outside are other programs' or the network's.
    #[error("virtualNetwork {0} is not inside 127.64.0.0/10\nhint: take a loopback network such as 127.65.0.0/16")]
    Outside(Ipv4Net),
    /// Too few addresses to be of use.
    #[error("virtualNetwork {0} has no room for addresses\nhint: take a prefix of at most 30 bits, such as /16")]
    TooSmall(Ipv4Net),
    /// Whoever reaches these ports speaks as this proxy.
    #[error(
        "{field} {address} is not a loopback address\nhint: take 127.0.0.1: whoever reaches this port speaks with the proxy's identity"
    )]
    NotLoopback {
        /// `socks` or `dns`.
        field: &'static str,
        /// As configured.
        address: SocketAddr,
    },
}

impl Config {
    /// Checks what the types do not.
    pub fn check(&self) -> Result<(), Unusable> {
        if let Some(network) = self.virtual_network {
            if !VIRTUAL_SPACE.contains(&network) {
                return Err(Unusable::Outside(network));
            }
            if network.prefix_len() > 30 {
                return Err(Unusable::TooSmall(network));
            }
        }
        for (field, address) in [("socks", self.socks), ("dns", self.dns)] {
            match address {
                Some(address) if !address.ip().is_loopback() => return Err(Unusable::NotLoopback { field, address }),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(extra: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.yaml");
        let text = format!(
            "process: {{name: west/proxy-web, admin: '127.0.0.1:0', runFile: /tmp/run.json}}\n\
             name: web\ncluster: west\n\
             identity: {{trustDomain: west.example.org, socket: /tmp/a.sock, joinToken: /tmp/t, store: /tmp/i}}\n\
             discovery: {{socket: /tmp/d.sock, lastKnown: /tmp/tables}}\n{extra}\n"
        );
        std::fs::write(&path, text).unwrap();
        hawser_runtime::config::load(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn a_proxy_that_only_calls_needs_no_addresses() {
        let config = config("").unwrap();
        assert_eq!(config.check(), Ok(()));
        assert_eq!(config.inbound, None);
    }

    #[test]
    fn an_unknown_field_is_refused() {
        assert!(config("virtualNetworks: 127.65.0.0/16").is_err());
    }

    #[test]
    fn a_virtual_network_lies_inside_the_virtual_space() {
        for good in ["127.64.0.0/10", "127.65.0.0/16", "127.127.255.0/24"] {
            assert_eq!(config(&format!("virtualNetwork: {good}")).unwrap().check(), Ok(()), "{good}");
        }
        for bad in ["127.0.0.0/8", "127.0.0.0/16", "10.0.0.0/16", "127.128.0.0/16", "127.65.0.0/31"] {
            assert!(config(&format!("virtualNetwork: {bad}")).unwrap().check().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_that_speak_with_the_proxys_identity_are_loopback_only() {
        assert!(config("socks: '127.0.0.1:1080'").unwrap().check().is_ok());
        assert!(config("socks: '0.0.0.0:1080'").unwrap().check().is_err());
        assert!(config("dns: '10.0.0.1:53'").unwrap().check().is_err());
    }
}
