//! A gateway's configuration file.

use std::net::SocketAddr;

use hawser_api::{ClusterName, Namespace};
use hawser_runtime::config::{DiscoveryConfig, IdentityConfig, ProcessConfig};
use serde::{Deserialize, Serialize};

/// What the file says; unknown fields are errors.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Name, admin address, run file, drain time.
    pub process: ProcessConfig,
    /// The gateway's name in the Cluster object.
    pub name: Namespace,
    /// This cluster's name.
    pub cluster: ClusterName,
    /// Where it listens, UDP and TCP with one number; port 0 takes one that is free for both.
    pub listen: SocketAddr,
    /// Where the certificate comes from.
    pub identity: IdentityConfig,
    /// Where the tables come from.
    pub discovery: DiscoveryConfig,
    /// What one peer, and all peers together, may take up.
    #[serde(default)]
    pub limits: LimitsConfig,
}

/// Bounds; a peer that reaches one of its own is refused with `overloaded`, and no other peer notices.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Live streams of one link.
    pub streams_per_link: usize,
    /// Opens a second of one link, whatever their answer; twice as many may come at once.
    pub opens_per_second_per_link: u32,
    /// Tunnels of one link: QUIC connections, and TCP connections until their sealed session begins.
    pub tunnels_per_link: usize,
    /// Tunnels of all links together, handshakes included.
    pub tunnels: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            // Two descriptors and about 16 KiB each: 160 MiB and 20,000 descriptors for a link at its limit.
            streams_per_link: 10_000,
            // A sealed session costs its ends a millisecond of CPU; more than this nobody behind us could serve.
            opens_per_second_per_link: 5_000,
            // A few warm TCP connections for each of a thousand proxies.
            tunnels_per_link: 4_096,
            // So that two links at their limits leave room for others.
            tunnels: 10_240,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_are_left_out_are_the_defaults_and_unknown_ones_are_refused() {
        let limits: LimitsConfig = serde_json::from_str(r#"{"streamsPerLink": 3}"#).unwrap();
        assert_eq!(limits.streams_per_link, 3);
        assert_eq!(limits.tunnels, LimitsConfig::default().tunnels);
        assert!(serde_json::from_str::<LimitsConfig>(r#"{"streams": 3}"#).is_err());
    }
}
