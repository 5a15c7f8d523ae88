//! The last identity, bundle and deny-list on disk. Key and chain are one file, so that they can never be of two
//! certificates; bundle and deny-list bear a code and have a floor, so that an older one is not taken for the last.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hawser_api::bundle::Bundle;
use hawser_api::proto::issuer::Denied;
use parking_lot::Mutex;
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::denied;
use crate::kept::Kept;

/// Key (PKCS#8) and chain (leaf first), PEM.
const SVID: &str = "svid.pem";
/// JWKS.
const BUNDLE: &str = "bundle.json";
/// Who is denied.
const DENIED: &str = "denied.json";
/// The highest sequence of a bundle and version of a deny-list that were ever taken.
const FLOOR: &str = "floor.json";

/// What is kept of an identity.
pub(super) struct Stored {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: KeyPair,
}

#[derive(Clone)]
pub(super) struct Store {
    directory: PathBuf,
    /// One writer at a time: renewal and subscription write under one name beside the files.
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// Opened when it is first needed: a disk that is full at the start may have room later.
    kept: Option<Kept>,
    sequence: u64,
    version: u64,
}

impl Inner {
    fn kept(&mut self, directory: &Path) -> Result<Kept, String> {
        if let Some(kept) = &self.kept {
            return Ok(kept.clone());
        }
        let kept = Kept::open(directory).map_err(|e| format!("{}: {e}", directory.display()))?;
        let floor = kept.read(FLOOR).map_err(|e| e.to_string())?.unwrap_or_default();
        let number = |name: &str| floor.get(name).and_then(Value::as_u64).unwrap_or_default();
        self.sequence = self.sequence.max(number("sequence"));
        self.version = self.version.max(number("version"));
        Ok(self.kept.insert(kept).clone())
    }

    fn save_floor(&self, kept: &Kept) -> io::Result<()> {
        kept.write(FLOOR, &json!({ "sequence": self.sequence, "version": self.version }))
    }
}

impl Store {
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), inner: Arc::default() }
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
        self.read_bundle().inspect_err(|error| tracing::warn!(error, "the stored bundle is not used")).ok().flatten()
    }

    fn read_bundle(&self) -> Result<Option<Bundle>, String> {
        let mut inner = self.inner.lock();
        let Some(document) = inner.kept(&self.directory)?.read(BUNDLE).map_err(|e| e.to_string())? else {
            return Ok(None);
        };
        let bundle = Bundle::parse(&document.to_string()).map_err(|e| e.to_string())?;
        if bundle.sequence < inner.sequence {
            let (old, floor) = (bundle.sequence, inner.sequence);
            return Err(format!("its sequence is {old}, and {floor} was in force here: an older one was put back"));
        }
        Ok(Some(bundle))
    }

    /// The deny-list that was in force last; `None`: there is none, or it was tampered with, which is said.
    pub(super) fn denied(&self) -> Option<Denied> {
        let mut inner = self.inner.lock();
        let kept = inner.kept(&self.directory);
        let read = kept.and_then(|kept| kept.read(DENIED).map_err(|e| e.to_string()));
        let value = read.inspect_err(|error| tracing::error!(error, "the stored deny-list is not used")).ok()??;
        let denied = denied::from_value(&value);
        if denied.version < inner.version {
            // Better too old a list than none: it only ever denies.
            tracing::error!(version = denied.version, floor = inner.version, "the stored deny-list is an older one");
        }
        Some(denied)
    }

    /// Whether a deny-list may follow what was taken before.
    pub(super) fn follows(&self, version: u64) -> bool {
        let mut inner = self.inner.lock();
        let follows = version >= inner.version;
        inner.version = inner.version.max(version);
        follows
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
        self.on_disk(move |inner, kept| {
            let value: Value = serde_json::from_str(&document)?;
            let sequence = value.get("spiffe_sequence").and_then(Value::as_u64).unwrap_or_default();
            if sequence < inner.sequence {
                return Err(io::Error::other(format!("sequence {sequence} is lower than {} in force", inner.sequence)));
            }
            if kept.read(BUNDLE).is_ok_and(|present| present.as_ref() == Some(&value)) {
                return Ok(());
            }
            kept.write(BUNDLE, &value)?;
            // Behind it: a floor above the bundle on disk would refuse our own.
            inner.sequence = sequence;
            inner.save_floor(kept)
        })
        .await
    }

    pub(super) async fn save_denied(&self, message: &Denied) -> io::Result<()> {
        let value = denied::to_value(message);
        self.on_disk(move |inner, kept| {
            if kept.read(DENIED).is_ok_and(|present| present.as_ref() == Some(&value)) {
                return Ok(());
            }
            kept.write(DENIED, &value)?;
            inner.save_floor(kept)
        })
        .await
    }

    async fn on_disk<F>(&self, act: F) -> io::Result<()>
    where
        F: FnOnce(&mut Inner, &Kept) -> io::Result<()> + Send + 'static,
    {
        let (directory, inner) = (self.directory.clone(), Arc::clone(&self.inner));
        // A sync of the disk can take long, and other work waits on this thread.
        let done = tokio::task::spawn_blocking(move || {
            let mut inner = inner.lock();
            let kept = inner.kept(&directory).map_err(io::Error::other)?;
            act(&mut inner, &kept)
        });
        done.await.map_err(io::Error::other)?
    }

    async fn write(&self, name: &'static str, content: String) -> io::Result<()> {
        let (directory, inner) = (self.directory.clone(), Arc::clone(&self.inner));
        let written = tokio::task::spawn_blocking(move || {
            let _alone = inner.lock();
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

/// A certificate in PEM (RFC 7468 section 5).
pub fn certificate_pem(der: &[u8]) -> String {
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
