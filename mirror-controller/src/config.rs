//! The mirror controller's configuration file.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use hawser_api::objects::ClusterSpec;
use hawser_api::{ClusterName, Namespace, labels};
use hawser_runtime::config::{IdentityConfig, ProcessConfig};
use serde::Deserialize;

/// One mirror controller.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "Raw")]
pub struct Config {
    /// Name, admin address, run file.
    pub process: ProcessConfig,
    /// This cluster's name; the Cluster object in `objects` must bear it.
    pub cluster: ClusterName,
    /// Where this process's certificate comes from.
    pub identity: IdentityConfig,
    /// Where the user's objects are, and where mirrors and statuses go.
    pub source: Source,
    /// Directory for the last known catalogs and the last good files.
    pub state: PathBuf,
    /// Unix socket on which discovery is served.
    pub socket: PathBuf,
    /// Where sealed sessions to the catalog are accepted (from this cluster's gateways).
    pub catalog_listen: SocketAddr,
}

/// Where the user's objects are, and where mirrors and statuses go.
#[derive(Debug, Clone)]
pub enum Source {
    /// Directories: `objects`, `links`, `output`.
    Files(FilesConfig),
    /// An API server: `kubernetes`.
    Kubernetes(Box<KubernetesConfig>),
}

/// Objects as files.
#[derive(Debug, Clone)]
pub struct FilesConfig {
    /// Directory of the user's YAML documents; watched.
    pub objects: PathBuf,
    /// Directory of Links that `hawser link` made; watched. What `objects` declares goes before them.
    pub links: Option<PathBuf>,
    /// Directory into which mirrors and statuses are written.
    pub output: PathBuf,
}

/// Objects in an API server.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KubernetesConfig {
    /// How to reach it; absent: as a Pod does, or as `kubectl` would from here.
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context; absent: its current one.
    #[serde(default)]
    pub context: Option<String>,
    /// Hawser's own namespace, in which the lease of the replica that writes is kept.
    #[serde(default = "system_namespace")]
    pub namespace: Namespace,
    /// What a Cluster document says among files: region, fabric domain.
    pub cluster: ClusterSpec,
    /// Where the proxies beside Pods accept sealed sessions.
    #[serde(default)]
    pub inbound_port: Option<u16>,
    /// How many requests that change something may be under way at the API server.
    #[serde(default = "writers")]
    pub writers: usize,
}

fn any_loopback_port() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

#[expect(clippy::expect_used, reason = "a constant that a test parses")]
fn system_namespace() -> Namespace {
    labels::SYSTEM_NAMESPACE.parse().expect("a namespace")
}

/// Enough that a write does not wait for the round trip of the one before; more makes an API server answer later, and not
/// more.
fn writers() -> usize {
    16
}

/// The file's fields as they are written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Raw {
    process: ProcessConfig,
    cluster: ClusterName,
    identity: IdentityConfig,
    #[serde(default)]
    objects: Option<PathBuf>,
    #[serde(default)]
    links: Option<PathBuf>,
    #[serde(default)]
    output: Option<PathBuf>,
    #[serde(default)]
    kubernetes: Option<Box<KubernetesConfig>>,
    state: PathBuf,
    socket: PathBuf,
    #[serde(default = "any_loopback_port")]
    catalog_listen: SocketAddr,
}

/// Why the places of objects cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}; hint: {remedy}")]
pub struct Misplaced {
    field: &'static str,
    reason: &'static str,
    remedy: &'static str,
}

impl TryFrom<Raw> for Config {
    type Error = Misplaced;

    fn try_from(raw: Raw) -> Result<Self, Misplaced> {
        let no = |field, reason, remedy| Err(Misplaced { field, reason, remedy });
        let source = match (raw.kubernetes, raw.objects, raw.output, raw.links) {
            (None, Some(objects), Some(output), links) => Source::Files(FilesConfig { objects, links, output }),
            (Some(kubernetes), None, None, None) if (1..=256).contains(&kubernetes.writers) => {
                Source::Kubernetes(kubernetes)
            }
            (Some(_), None, None, None) => return no("kubernetes.writers", "is not from 1 to 256", "leave it out"),
            (Some(_), ..) => {
                let reason = "cannot stand beside objects, links or output: objects are in files or in an API server";
                return no("kubernetes", reason, "take out the one or the other");
            }
            (None, None, ..) => {
                let remedy = "name the directory of the user's objects, or write a section `kubernetes`";
                return no("objects", "is missing", remedy);
            }
            (None, Some(_), None, _) => {
                return no("output", "is missing", "name the directory for mirrors and statuses");
            }
        };
        Ok(Self {
            process: raw.process,
            cluster: raw.cluster,
            identity: raw.identity,
            source,
            state: raw.state,
            socket: raw.socket,
            catalog_listen: raw.catalog_listen,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(places: &str) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        let text = format!(
            "process: {{name: east/mirror-controller, admin: 127.0.0.1:0, runFile: run.json}}\ncluster: east\n\
             identity: {{trustDomain: east.example, socket: s, joinToken: t, store: i}}\nstate: state\nsocket: d.sock\n{places}"
        );
        std::fs::write(&path, text).unwrap();
        hawser_runtime::config::load(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn objects_are_in_files_or_in_an_api_server() {
        let files = read("objects: o\noutput: p\nlinks: l\n").unwrap();
        assert!(matches!(files.source, Source::Files(FilesConfig { links: Some(_), .. })));
        let kubernetes = read("kubernetes: {cluster: {fabricDomain: example, region: eu}}\n").unwrap();
        let Source::Kubernetes(kubernetes) = kubernetes.source else { panic!("files") };
        assert_eq!(kubernetes.namespace.as_str(), "hawser-system");
        assert_eq!(kubernetes.cluster.region, "eu");
    }

    #[test]
    fn neither_or_both_is_refused_with_the_field_and_what_to_do() {
        let kubernetes = "kubernetes: {cluster: {fabricDomain: example}}\n";
        let cases = [
            (String::new(), "objects: is missing; hint: name the directory"),
            ("output: p\n".to_owned(), "objects: is missing"),
            ("objects: o\n".to_owned(), "output: is missing; hint: name the directory"),
            (format!("objects: o\noutput: p\n{kubernetes}"), "kubernetes: cannot stand beside objects"),
            (format!("links: l\n{kubernetes}"), "kubernetes: cannot stand beside objects"),
            (kubernetes.replace("}}", "}, writers: 0}"), "kubernetes.writers: is not from 1 to 256"),
            (kubernetes.replace("cluster:", "clusters:"), "clusters"),
        ];
        for (places, expected) in cases {
            let error = read(&places).unwrap_err();
            assert!(error.contains(expected), "{places:?}: {error}");
        }
    }
}
