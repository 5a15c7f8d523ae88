//! A trust anchor's configuration.

use std::path::PathBuf;
use std::time::Duration;

use hawser_api::{ClusterName, TrustDomain};
use hawser_runtime::config::ProcessConfig;
use serde::{Deserialize, Serialize};

use crate::federate::BundleEndpointConfig;
use crate::issue::{GATEWAY_LIFETIME_MAX, WORKLOAD_LIFETIME_MAX};
use crate::kubernetes::KubernetesConfig;
use crate::link::LinksConfig;

/// One YAML file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Name, admin address, run file.
    pub process: ProcessConfig,
    /// The cluster.
    pub cluster: ClusterName,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// Directory with the intermediate, the join tokens and the bundle's sequence (made 0700).
    pub state: PathBuf,
    /// The Unix socket on which processes ask for certificates (made 0600).
    pub socket: PathBuf,
    /// The root's certificates, PEM: published as this cluster's bundle, followed when the file changes.
    pub root_certificate: PathBuf,
    /// Life of a workload's certificate, seconds; at most a day.
    #[serde(default = "workload_ttl_seconds")]
    pub workload_ttl_seconds: u64,
    /// Life of a gateway's and a mirror controller's certificate, seconds; at most an hour.
    #[serde(default = "gateway_ttl_seconds")]
    pub gateway_ttl_seconds: u64,
    /// How pods of a Kubernetes cluster get certificates; absent: this is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesConfig>,
    /// Where Links lie; absent: no cluster can be linked by token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub links: Option<LinksConfig>,
    /// Where the bundle is served to other SPIFFE software; absent: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle_endpoint: Option<BundleEndpointConfig>,
    /// SPIFFE's Workload API; absent: it is not served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadConfig>,
}

/// The Workload API for processes that are not Hawser's own.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadConfig {
    /// Its Unix socket (made 0666: callers are told apart by what the kernel says of them). Whoever may enter its
    /// directory may ask; a directory that is missing is made 0755.
    pub socket: PathBuf,
    /// The folder with the cluster's objects, of which WorkloadIdentity objects are read.
    pub objects: PathBuf,
    /// How long a key signs JWT-SVIDs before another takes its place, seconds; absent: a day.
    #[serde(default = "jwt_key_seconds")]
    pub jwt_key_seconds: u64,
    /// Longest life of a JWT-SVID, seconds; at most an hour.
    #[serde(default = "jwt_ttl_seconds")]
    pub jwt_ttl_seconds: u64,
}

fn jwt_key_seconds() -> u64 {
    24 * 3600
}

fn jwt_ttl_seconds() -> u64 {
    3600
}

fn workload_ttl_seconds() -> u64 {
    WORKLOAD_LIFETIME_MAX.as_secs()
}

fn gateway_ttl_seconds() -> u64 {
    GATEWAY_LIFETIME_MAX.as_secs()
}

impl Config {
    /// What a leaf's life is bounded by, besides its issuer's.
    pub(crate) fn lifetimes(&self) -> crate::issue::Lifetimes {
        crate::issue::Lifetimes {
            workload: Duration::from_secs(self.workload_ttl_seconds),
            gateway: Duration::from_secs(self.gateway_ttl_seconds),
        }
    }
}
