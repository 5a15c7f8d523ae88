//! The last identity and bundle on disk. Key and chain are one file, so that they can never be of two certificates.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hawser_api::bundle::Bundle;
use parking_lot::Mutex;
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Key (PKCS#8) and chain (leaf first), PEM.
const SVID: &str = "svid.pem";
/// JWKS.
const BUNDLE: &str = "bundle.json";

/// What is kept of an identity.
pub(super) struct Stored {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: KeyPair,
}

#[derive(Clone)]
pub(super) struct Store {
    directory: PathBuf,
    /// Renewal and subscription both write the bundle: one at a time, as they write beside it under one name.
    writing: Arc<Mutex<()>>,
}

impl Store {
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), writing: Arc::default() }
    }

    pub(super) fn svid(&self) -> Result<Option<Stored>, String> {
        let path = self.directory.join(SVID);
        let pem = match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|e| format!("{}: {e}", path.display()))?,
        };
        let key = KeyPair::from_pem(&pem).map_err(|e| format!("{}: {e}", path.display()))?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let chain = chain.map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Some(Stored { chain, key }))
    }

    pub(super) fn bundle(&self) -> Option<Bundle> {
        let path = self.directory.join(BUNDLE);
        let document = fs::read_to_string(&path).ok()?;
        Bundle::parse(&document)
            .inspect_err(|error| tracing::warn!(%error, path = %path.display(), "the stored bundle is not usable"))
            .ok()
    }

    /// The bundle first: an identity without it would trust nobody after a restart.
    pub(super) async fn save(&self, bundle: String, stored: &Stored) -> io::Result<()> {
        self.save_bundle(bundle).await?;
        let mut pem = stored.key.serialize_pem();
        for der in &stored.chain {
            pem.push_str(&certificate_pem(der));
        }
        self.write(SVID, pem).await
    }

    pub(super) async fn save_bundle(&self, document: String) -> io::Result<()> {
        self.write(BUNDLE, document).await
    }

    async fn write(&self, name: &'static str, content: String) -> io::Result<()> {
        let (directory, writing) = (self.directory.clone(), Arc::clone(&self.writing));
        // A sync of the disk can take long, and other work waits on this thread.
        let written = tokio::task::spawn_blocking(move || {
            let _alone = writing.lock();
            replace(&directory, name, content.as_bytes())
        });
        written.await.map_err(io::Error::other)?
    }
}

fn replace(directory: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let path = directory.join(name);
    if fs::read(&path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let beside = directory.join(format!(".{name}.{}", std::process::id()));
    // A leftover of a process that died here may have other permissions.
    let _ = fs::remove_file(&beside);
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(content)?;
    file.sync_data()?;
    fs::rename(&beside, &path)
}

/// RFC 7468 section 5.
fn certificate_pem(der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at_checked(64).unwrap_or((rest, ""));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}
