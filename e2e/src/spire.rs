//! A SPIRE server: a SPIFFE implementation that nobody here wrote, as the other side of a federation.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use hawser_tunnel::tls::Identity;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::wait::eventually;

/// As `e2e/install-tools` builds it.
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/.cache/spire-1.15.2/spire-server");
/// Its trust domain.
pub const DOMAIN: &str = "spire.test";
/// The identity of its bundle endpoint.
pub const ENDPOINT_ID: &str = "spiffe://spire.test/spire/server";

/// A running server; it ends when it is dropped.
#[derive(Debug)]
pub struct Spire {
    dir: tempfile::TempDir,
    endpoint: SocketAddr,
    _server: Child,
}

impl Spire {
    /// Starts one that serves its bundle at `endpoint`, with its API on the port after that.
    pub async fn start(endpoint: SocketAddr) -> Result<Self> {
        ensure!(Path::new(PROGRAM).exists(), "there is no SPIRE server: run e2e/install-tools");
        let dir = tempfile::Builder::new().prefix("hawser-spire-").tempdir()?;
        let config = dir.path().join("server.conf");
        fs::write(&config, configuration(dir.path(), endpoint))?;
        let log = fs::File::create(dir.path().join("log"))?;
        let mut command = Command::new(PROGRAM);
        command.args(["run", "-config"]).arg(&config).stdin(Stdio::null()).kill_on_drop(true);
        let server = command.stdout(log.try_clone()?).stderr(log).spawn().context("cannot run the SPIRE server")?;
        let spire = Self { dir, endpoint, _server: server };
        eventually("SPIRE to be healthy", async || spire.run(&["healthcheck"]).await).await?;
        Ok(spire)
    }

    /// One of its own commands; what it prints.
    pub async fn run(&self, words: &[&str]) -> Result<String> {
        let names = words.iter().take_while(|word| !word.starts_with('-')).count();
        let (names, options) = words.split_at(names);
        let mut command = Command::new(PROGRAM);
        command.args(names).arg("-socketPath").arg(self.dir.path().join("api.sock")).args(options);
        let done = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(done.status.success(), "spire-server {words:?}: {said}{error}");
        Ok(said)
    }

    /// Its own bundle, as SPIFFE JSON.
    pub async fn bundle(&self) -> Result<String> {
        self.run(&["bundle", "show", "-format", "spiffe"]).await
    }

    /// A certificate of its present authority.
    pub async fn mint(&self, id: &str) -> Result<Identity> {
        let into = self.dir.path().join("minted");
        fs::create_dir_all(&into)?;
        self.run(&["x509", "mint", "-spiffeID", id, "-write", &into.to_string_lossy()]).await?;
        let read = |name: &str| fs::read(into.join(name)).with_context(|| format!("no {name}"));
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&read("svid.pem")?).collect::<Result<_, _>>()?;
        Ok(Identity::new(chain, PrivateKeyDer::from_pem_slice(&read("key.pem")?)?)?)
    }

    /// One of the commands about its own X.509 authorities, as JSON.
    pub async fn authority(&self, verb: &str, id: Option<&str>) -> Result<Value> {
        let mut words = vec!["localauthority", "x509", verb, "-output", "json"];
        if let Some(id) = id {
            words.extend(["-authorityID", id]);
        }
        let said = self.run(&words).await?;
        serde_json::from_str(&said).with_context(|| format!("not JSON: {said}"))
    }

    /// Has it follow another trust domain's `https_spiffe` endpoint, beginning with this bundle.
    pub async fn federate(&self, domain: &str, endpoint: SocketAddr, id: &str, bundle: &str) -> Result<()> {
        let file: PathBuf = self.dir.path().join("foreign.json");
        fs::write(&file, bundle)?;
        let url = format!("https://{endpoint}/");
        let words = ["federation", "create", "-trustDomain", domain, "-bundleEndpointURL", &url];
        let profile = ["-bundleEndpointProfile", "https_spiffe", "-endpointSpiffeID", id];
        let first = ["-trustDomainBundleFormat", "spiffe", "-trustDomainBundlePath", &file.to_string_lossy()];
        self.run(&[&words[..], &profile, &first].concat()).await.map(drop)
    }

    /// A Link to it with its bundle and its endpoint; it has no gateway, so that of the Link is nobody.
    pub async fn link(&self, nobody: SocketAddr) -> Result<String> {
        let bundle = self.bundle().await?;
        let lines: String = bundle.lines().map(|line| format!("    {line}\n")).collect();
        Ok(format!(
            "apiVersion: hawser.dev/v1alpha1\nkind: Link\nmetadata: {{name: spire}}\nspec:\n  trustDomain: {DOMAIN}\n  \
             gateways: [{{name: none, address: \"{nobody}\"}}]\n  bundleEndpoint:\n    url: https://{}/\n    \
             profile: https_spiffe\n    endpointSpiffeId: {ENDPOINT_ID}\n  bundle: |\n{lines}",
            self.endpoint
        ))
    }
}

fn configuration(dir: &Path, endpoint: SocketAddr) -> String {
    let (dir, address, port) = (dir.display(), endpoint.ip(), endpoint.port());
    format!(
        r#"server {{
  bind_address = "{address}"
  bind_port = "{}"
  socket_path = "{dir}/api.sock"
  trust_domain = "{DOMAIN}"
  data_dir = "{dir}"
  log_level = "INFO"
  ca_ttl = "24h"
  default_x509_svid_ttl = "1h"
  federation {{
    bundle_endpoint {{
      address = "{address}"
      port = {port}
      refresh_hint = "2s"
      profile "https_spiffe" {{}}
    }}
  }}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{dir}/datastore.sqlite3" }} }}
  KeyManager "memory" {{ plugin_data {{}} }}
  NodeAttestor "join_token" {{ plugin_data {{}} }}
}}
"#,
        port + 1
    )
}
