//! Reads a daemon's configuration: one YAML file, unknown fields refused.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use hawser_api::config::{IdentityConfig, Issuer, RemoteIssuer};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Why a configuration cannot be used: file, line and field are in the message.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct ConfigError {
    path: String,
    reason: String,
}

/// Reads and checks a file.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let fail = |reason: String| ConfigError { path: path.display().to_string(), reason };
    let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
    serde_saphyr::from_str(&text).map_err(|e| fail(e.to_string()))
}

/// The `process` section of every daemon's configuration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProcessConfig {
    /// The process's name, such as `east/gateway-0`.
    pub name: String,
    /// Loopback address of the admin server; port 0 takes a free one.
    pub admin: SocketAddr,
    /// Written when the process serves: `{"name":…,"kind":…,"pid":…,"admin":"ip:port", …}`.
    pub run_file: PathBuf,
    /// How long a drain may take before what is left is cut, seconds.
    #[serde(default = "drain_seconds")]
    pub drain_seconds: u64,
}

fn drain_seconds() -> u64 {
    30
}

/// The `discovery` section: where this process's tables come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiscoveryConfig {
    /// The mirror controller's Unix socket.
    pub socket: PathBuf,
    /// File with the last known tables.
    pub last_known: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_does_not_exist_is_refused_with_file_and_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gateway.yaml");
        std::fs::write(&path, "name: a/b\nadmin: 127.0.0.1:0\nrunFile: r\ndrainSecond: 4\n").unwrap();
        let error = load::<ProcessConfig>(&path).unwrap_err().to_string();
        assert!(error.contains("gateway.yaml") && error.contains("drainSecond"), "{error}");
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gateway.yaml");
        std::fs::write(&path, "name: a/b\nadmin: 127.0.0.1:0\nrunFile: r\n").unwrap();
        assert_eq!(load::<ProcessConfig>(&path).unwrap().drain_seconds, 30);
    }
}
