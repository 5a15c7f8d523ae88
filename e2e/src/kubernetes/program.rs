//! Where the programs of Kubernetes are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// As `e2e/install-tools` builds them.
const CACHE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/.cache/control-plane");

/// One of `etcd`, `kube-apiserver`, `kube-controller-manager`, `kubectl` and `coredns`.
///
/// A directory `KUBEBUILDER_ASSETS` that has an API server and its etcd goes first, for all that it has.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    if let Some(assets) = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) {
        let has = |program: &str| assets.join(program).exists();
        if has("kube-apiserver") && has("etcd") && has(name) {
            return Ok(assets.join(name));
        }
    }
    let path = Path::new(CACHE).join(name);
    ensure!(path.exists(), "there is no {name} in {CACHE}\nhint: run e2e/install-tools");
    Ok(path)
}
