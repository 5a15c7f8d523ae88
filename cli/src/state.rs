//! Where things lie in the state directory. The daemons are told their own paths; this is the map of all of them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use hawser_api::ClusterName;
use hawser_runtime::file;

/// Longest path of a Unix socket (unix(7): 108 bytes with the closing zero).
const SOCKET_PATH_MAX: usize = 107;

/// `--state` of every command that has one.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct StateArg {
    /// Where sockets, certificates and last known state lie.
    #[arg(long, env = "HAWSER_STATE", default_value = ".hawser", value_name = "DIR", global = true)]
    pub(crate) state: PathBuf,
}

/// The state directory.
#[derive(Debug, Clone)]
pub(crate) struct State {
    root: PathBuf,
}

impl State {
    /// Makes the directory where it is missing; it is the owner's alone, because it holds keys.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        file::private_directory(path).with_context(|| format!("cannot make the state directory {}", path.display()))?;
        let mode = std::fs::metadata(path)?.permissions().mode();
        if mode & 0o077 != 0 {
            bail!(
                "the state directory {} can be entered by others (mode {:o}), and it holds private keys\nhint: chmod 700 {}",
                path.display(),
                mode & 0o777,
                path.display()
            );
        }
        Self::existing(path)
    }

    /// A directory that `hawser up` has made.
    pub(crate) fn existing(path: &Path) -> Result<Self> {
        let root = path.canonicalize().with_context(|| {
            format!(
                "there is no state directory {}\nhint: start a fabric with `hawser up DIR`, or name its directory with --state or HAWSER_STATE",
                path.display()
            )
        })?;
        Ok(Self { root })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    pub(crate) fn root_certificate(&self) -> PathBuf {
        self.root.join("root/root.crt")
    }

    pub(crate) fn root_directory(&self) -> PathBuf {
        self.root.join("root")
    }

    /// One cluster's part; its sockets' paths must fit.
    pub(crate) fn cluster(&self, name: &ClusterName) -> Result<ClusterState> {
        let cluster = ClusterState { dir: self.root.join(name.as_str()) };
        let longest = cluster.issuer_socket();
        if longest.as_os_str().len() > SOCKET_PATH_MAX {
            bail!(
                "the path {} is too long for a Unix socket ({SOCKET_PATH_MAX} bytes)\nhint: choose a shorter --state directory",
                longest.display()
            );
        }
        Ok(cluster)
    }

    /// The clusters that have ever run here, in order.
    pub(crate) fn clusters(&self) -> Vec<ClusterName> {
        let mut names: Vec<ClusterName> = std::fs::read_dir(&self.root)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.path().join("config").is_dir())
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        names.sort();
        names
    }
}

/// One cluster's part of the state directory.
#[derive(Debug, Clone)]
pub(crate) struct ClusterState {
    dir: PathBuf,
}

impl ClusterState {
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn trust_anchor(&self) -> PathBuf {
        self.dir.join("trust-anchor")
    }

    pub(crate) fn issuer_socket(&self) -> PathBuf {
        self.dir.join("trust-anchor.sock")
    }

    pub(crate) fn workload_socket(&self) -> PathBuf {
        self.dir.join("workload.sock")
    }

    pub(crate) fn discovery_socket(&self) -> PathBuf {
        self.dir.join("discovery.sock")
    }

    pub(crate) fn objects(&self) -> PathBuf {
        self.dir.join("objects")
    }

    /// Links that `hawser link` made.
    pub(crate) fn links(&self) -> PathBuf {
        self.dir.join("links")
    }

    pub(crate) fn status(&self, page: &str) -> PathBuf {
        self.dir.join("objects/status").join(format!("{page}.json"))
    }

    /// Where one daemon keeps its own things: `gateways/<name>`, `mirror-controller`, ….
    pub(crate) fn own(&self, what: &str) -> PathBuf {
        self.dir.join(what)
    }

    pub(crate) fn config(&self, key: &str) -> PathBuf {
        self.dir.join("config").join(format!("{key}.yaml"))
    }

    pub(crate) fn config_directory(&self) -> PathBuf {
        self.dir.join("config")
    }

    pub(crate) fn run_file(&self, key: &str) -> PathBuf {
        self.dir.join("run").join(format!("{key}.json"))
    }

    pub(crate) fn run_directory(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub(crate) fn token(&self, key: &str) -> PathBuf {
        self.dir.join("tokens").join(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_that_others_can_enter_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        State::create(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(State::create(&path).unwrap_err().to_string().contains("hint: chmod 700"));
    }

    #[test]
    fn a_path_that_is_too_long_for_a_socket_is_refused_early() {
        let directory = tempfile::tempdir().unwrap();
        let state = State::create(&directory.path().join("x".repeat(90))).unwrap();
        let error = state.cluster(&"west".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("shorter --state"), "{error}");
    }
}
