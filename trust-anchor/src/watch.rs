//! Follows the files: the root's certificates become the bundle, the intermediate's certificate becomes the signer.
//! Looks each second and compares what it finds, so that no change can be missed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hawser_api::bundle::Bundle;
use hawser_runtime::{Process, clock};
use hawser_tunnel::tls::Anchors;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::authority::Authority;
use crate::hierarchy::{make_csr, names, read_certificates};
use crate::{hex, join};

const PERIOD: Duration = Duration::from_secs(1);
/// Rounds from one sweep of the join tokens to the next: ten minutes.
const SWEEP_ROUNDS: u64 = 600;

/// Follows until dropped.
pub(crate) async fn follow(authority: Arc<Authority>, root_certificate: PathBuf, process: Process) {
    let mut follower = Follower {
        authority,
        root_certificate,
        roots: Vec::new(),
        intermediate: Vec::new(),
        complaints: Complaints::default(),
    };
    for round in 0_u64.. {
        let now = clock::now();
        follower.look(now);
        if round % SWEEP_ROUNDS == 0
            && let Err(error) = join::sweep(follower.authority.store.directory(), now)
        {
            tracing::warn!(%error, "cannot sweep the join tokens");
        }
        process.set_ready("bundle", !follower.authority.bundle.borrow().is_empty());
        process.set_ready("intermediate", follower.authority.intermediate.load().is_some());
        tokio::time::sleep(PERIOD).await;
    }
}

struct Follower {
    authority: Arc<Authority>,
    root_certificate: PathBuf,
    /// What is in force.
    roots: Vec<CertificateDer<'static>>,
    /// The file's content as it was when it was last taken.
    intermediate: Vec<u8>,
    complaints: Complaints,
}

impl Follower {
    fn look(&mut self, now: SystemTime) {
        let roots = self.look_at_roots(now).map_err(|e| format!("{e:#}"));
        self.complaints.hear("root", roots);
        let intermediate = self.look_at_intermediate(now).map_err(|e| format!("{e:#}"));
        self.complaints.hear("intermediate", intermediate);
    }

    fn look_at_roots(&mut self, now: SystemTime) -> anyhow::Result<()> {
        let roots = read_certificates(&self.root_certificate).map_err(|e| {
            anyhow::anyhow!("nothing to publish: {e}\nhint: rootCertificate in the configuration names the root, PEM")
        })?;
        if roots == self.roots {
            return Ok(());
        }
        let bundle = self.authority.store.bundle(&roots, now)?;
        self.take(&bundle)?;
        self.authority.record.authorities("root", roots.iter().filter_map(|der| describe(der)).collect());
        tracing::info!(sequence = bundle.sequence, roots = roots.len(), "published the bundle");
        self.authority.bundle.send_replace(bundle.to_document());
        self.roots = roots;
        // The signer must hold under the new roots too.
        self.intermediate.clear();
        Ok(())
    }

    fn take(&self, bundle: &Bundle) -> anyhow::Result<()> {
        let credentials = &self.authority.credentials;
        let dropped = credentials.set_anchors(credentials.own_domain(), Anchors::Bundle(bundle.clone()));
        for reason in &dropped {
            tracing::warn!(reason, "a root certificate is not taken");
        }
        anyhow::ensure!(
            dropped.len() < bundle.x509_authorities.len(),
            "no usable root in {}: {}",
            self.root_certificate.display(),
            dropped.join("; ")
        );
        Ok(())
    }

    fn look_at_intermediate(&mut self, now: SystemTime) -> anyhow::Result<()> {
        let store = &self.authority.store;
        let domain = self.authority.credentials.own_domain();
        let content = std::fs::read(store.directory().join(names::INTERMEDIATE_CERTIFICATE)).unwrap_or_default();
        // Without a root there is nothing to check it by; a request for it can be made all the same.
        let checkable = !self.roots.is_empty() && content != self.intermediate;
        if !content.is_empty() && !checkable {
            return Ok(());
        }
        match store.intermediate(&self.authority.credentials, now)? {
            Some(intermediate) => {
                self.authority.record.intermediate(&intermediate, &domain.id());
                tracing::info!(serial = intermediate.serial(), "signing with the intermediate");
                self.authority.intermediate.store(Some(Arc::new(intermediate)));
                self.intermediate = content;
                Ok(())
            }
            // One that was taken goes on: a file that is gone does not make it worse.
            None if self.authority.intermediate.load().is_some() => Ok(()),
            None => {
                let csr = make_csr(store.directory(), domain)?;
                anyhow::bail!("{}", how_to_sign(&csr))
            }
        }
    }
}

fn how_to_sign(csr: &Path) -> String {
    format!(
        "the intermediate is not signed yet; nothing can be issued\nhint: where the root's key is, run: hawser trust \
         intermediate {csr}, and bring intermediate.crt to the same directory",
        csr = csr.display()
    )
}

/// Name, serial and end of an authority.
fn describe(der: &CertificateDer<'_>) -> Option<(String, String, u64)> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    let not_after = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or_default();
    Some((cert.subject().to_string(), hex::encode(cert.raw_serial()), not_after))
}

/// Says each trouble once, when it begins and when it changes, and not each second.
#[derive(Default)]
struct Complaints(std::collections::BTreeMap<&'static str, String>);

impl Complaints {
    fn hear(&mut self, what: &'static str, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                self.0.remove(what);
            }
            Err(error) if self.0.get(what) == Some(&error) => {}
            Err(error) => {
                tracing::warn!(what, "{error}");
                self.0.insert(what, error);
            }
        }
    }
}
