//! What a trust anchor keeps on disk: the intermediate's key and certificate, and the bundle's sequence.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use hawser_api::SpiffeId;
use hawser_api::bundle::Bundle;
use hawser_runtime::file;
use hawser_tunnel::tls::Credentials;
use rcgen::{Issuer, KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::hex;
use crate::hierarchy::{HierarchyError, names, read_certificates, read_key};
use crate::issue::Template;

/// The published bundle, kept so that its sequence never goes back.
const BUNDLE: &str = "bundle.json";
const LOCK: &str = "lock";
/// How long a client may go by a bundle before it asks again, seconds; ours are pushed.
const REFRESH_HINT: u32 = 60;

/// A directory that one trust anchor uses at a time.
#[derive(Debug)]
pub(crate) struct Store {
    directory: PathBuf,
    _lock: File,
}

impl Store {
    /// Opens the directory, made 0700 where it is missing.
    pub(crate) fn open(directory: &Path) -> anyhow::Result<Self> {
        file::private_directory(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let path = directory.join(LOCK);
        let lock = File::options().create(true).append(true).open(&path);
        let lock = lock.with_context(|| format!("cannot open {}", path.display()))?;
        // The kernel frees it when the process dies, however it dies.
        lock.try_lock().with_context(|| format!("another trust anchor uses {}", directory.display()))?;
        Ok(Self { directory: directory.to_owned(), _lock: lock })
    }

    /// The directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The bundle of these authorities. Its sequence grows when they are others than last time, and is on disk before
    /// anybody sees it.
    pub(crate) fn bundle(&self, authorities: &[CertificateDer<'_>], now: SystemTime) -> anyhow::Result<Bundle> {
        let path = self.directory.join(BUNDLE);
        let authorities: Vec<_> = authorities.iter().map(|der| der.to_vec()).collect();
        let last = match fs::read_to_string(&path) {
            Ok(text) => Bundle::parse(&text).with_context(|| format!("{} is damaged", path.display()))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Bundle::default(),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        if last.sequence > 0 && last.x509_authorities == authorities {
            return Ok(last);
        }
        // Counted from the time, so that it does not fall back when this directory is lost.
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let sequence = seconds.max(last.sequence + 1);
        let next =
            Bundle { sequence, refresh_hint: Some(REFRESH_HINT), x509_authorities: authorities, ..Bundle::default() };
        file::replace(&path, next.to_document().as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(next)
    }

    /// The intermediate, if it has been signed; checked by our own verifier, as every peer will check it.
    pub(crate) fn intermediate(
        &self,
        credentials: &Credentials,
        now: SystemTime,
    ) -> anyhow::Result<Option<Intermediate>> {
        let path = self.directory.join(names::INTERMEDIATE_CERTIFICATE);
        let der = match read_certificates(&path) {
            Err(HierarchyError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            certificates => certificates?.into_iter().next().context("no certificate")?,
        };
        let key = read_key(&self.directory.join(names::INTERMEDIATE_KEY))?;
        let intermediate = Intermediate::new(der, key).with_context(|| path.display().to_string())?;
        intermediate.check(credentials, now).with_context(|| path.display().to_string())?;
        Ok(Some(intermediate))
    }
}

/// The certificate and key that sign leaves.
#[derive(Debug)]
pub(crate) struct Intermediate {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    not_after: SystemTime,
    serial: String,
}

impl Intermediate {
    fn new(der: CertificateDer<'static>, key: KeyPair) -> anyhow::Result<Self> {
        let (_, cert) = X509Certificate::from_der(&der).map_err(|e| anyhow::anyhow!("not a certificate: {e}"))?;
        if cert.public_key().raw != key.subject_public_key_info() {
            bail!("is not of the key in {}", names::INTERMEDIATE_KEY);
        }
        let not_after = cert.validity().not_after.to_datetime().into();
        let serial = hex::encode(cert.raw_serial());
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Self { issuer, not_after, serial, der })
    }

    /// Signs a leaf for nobody and verifies it: what is wrong with the intermediate shows here, not at a peer.
    fn check(&self, credentials: &Credentials, now: SystemTime) -> anyhow::Result<()> {
        let key = KeyPair::generate()?;
        let id: SpiffeId = format!("{}/hawser-self-test", credentials.own_domain().id()).parse()?;
        let public_key = rcgen::SubjectPublicKeyInfo::from_der(&key.subject_public_key_info())?;
        let (not_before, not_after) = (now, now + Duration::from_secs(60));
        let template = Template { id, public_key, key_hash: String::new(), not_before, not_after };
        let chain = self.sign(&template)?.chain;
        credentials.proves(&chain).context("our own verifier refuses what it signs")?;
        Ok(())
    }

    /// Signs a leaf.
    pub(crate) fn sign(&self, template: &Template) -> Result<Leaf, rcgen::Error> {
        let params = template.params()?;
        let serial = params.serial_number.as_ref().map(|serial| hex::encode(&serial.to_bytes())).unwrap_or_default();
        let leaf = params.signed_by(&template.public_key, &self.issuer)?;
        Ok(Leaf { chain: vec![leaf.der().clone(), self.der.clone()], serial })
    }

    /// Its end.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Its serial number, lower-case hex.
    pub(crate) fn serial(&self) -> &str {
        &self.serial
    }
}

/// A signed leaf.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// Itself, then the intermediate.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// Its serial number, lower-case hex.
    pub(crate) serial: String,
}
