//! The mirror controller's configuration file.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use hawser_api::ClusterName;
use hawser_runtime::config::{IdentityConfig, ProcessConfig};
use serde::{Deserialize, Serialize};

/// One mirror controller.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Name, admin address, run file.
    pub process: ProcessConfig,
    /// This cluster's name; the Cluster object in `objects` must bear it.
    pub cluster: ClusterName,
    /// Where this process's certificate comes from.
    pub identity: IdentityConfig,
    /// Directory of the user's YAML documents; watched.
    pub objects: PathBuf,
    /// Directory of Links that `hawser link` made; watched. What `objects` declares goes before them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub links: Option<PathBuf>,
    /// Directory into which mirrors and statuses are written.
    pub output: PathBuf,
    /// Directory for the last known catalogs and the last good files.
    pub state: PathBuf,
    /// Unix socket on which discovery is served.
    pub socket: PathBuf,
    /// Where sealed sessions to the catalog are accepted (from this cluster's gateways).
    #[serde(default = "any_loopback_port")]
    pub catalog_listen: SocketAddr,
}

fn any_loopback_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}
