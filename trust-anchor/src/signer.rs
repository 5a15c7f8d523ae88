//! The intermediate that signs leaves: its certificate, its key, and the anchor above it.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use hawser_api::bundle::Bundle;
use hawser_api::{SpiffeId, TrustDomain};
use hawser_runtime::clock;
use hawser_tunnel::tls::{Anchors, Credentials};
use hawser_tunnel::verify::AuthorityId;
use rcgen::{BasicConstraints, IsCa, Issuer, KeyPair, PublicKeyData, SanType};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::hex;
use crate::hierarchy::{HierarchyError, authority, names, read_certificates, read_key};
use crate::issue::Template;

/// The certificate and key that sign leaves.
#[derive(Debug)]
pub(crate) struct Intermediate {
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    not_after: SystemTime,
    serial: String,
    id: AuthorityId,
    anchor: AuthorityId,
}

/// A signed leaf.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// Itself, then the intermediate.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// Its serial number, lower-case hex.
    pub(crate) serial: String,
}

impl Intermediate {
    /// The one in a directory, if it has been signed; checked by our own verifier, as every peer will check it.
    pub(crate) fn load(directory: &Path, credentials: &Credentials) -> anyhow::Result<Option<Self>> {
        let path = directory.join(names::INTERMEDIATE_CERTIFICATE);
        let der = match read_certificates(&path) {
            Err(HierarchyError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            certificates => certificates?.into_iter().next().context("no certificate")?,
        };
        let key = read_key(&directory.join(names::INTERMEDIATE_KEY))?;
        let mut intermediate = Self::new(der, key).with_context(|| path.display().to_string())?;
        intermediate.check(credentials).with_context(|| path.display().to_string())?;
        Ok(Some(intermediate))
    }

    /// The same, checked by anchors that are not in force: a successor's, before it is published.
    pub(crate) fn load_under(
        directory: &Path,
        own: &Credentials,
        anchors: &[CertificateDer<'_>],
    ) -> anyhow::Result<Option<Self>> {
        let credentials = Credentials::new(own.own_domain().clone(), clock::now);
        let x509_authorities = anchors.iter().map(|der| der.to_vec()).collect();
        let bundle = Bundle { sequence: 1, x509_authorities, ..Bundle::default() };
        credentials.set_anchors(own.own_domain(), Anchors::Bundle(bundle));
        Self::load(directory, &credentials)
    }

    fn new(der: CertificateDer<'static>, key: KeyPair) -> anyhow::Result<Self> {
        let (_, cert) = X509Certificate::from_der(&der).map_err(|e| anyhow::anyhow!("not a certificate: {e}"))?;
        if cert.public_key().raw != key.subject_public_key_info() {
            bail!("is not of the key in {}", names::INTERMEDIATE_KEY);
        }
        let not_after = cert.validity().not_after.to_datetime().into();
        let serial = hex::encode(cert.raw_serial());
        let id = AuthorityId::of_key(cert.public_key().raw);
        let issuer = Issuer::from_ca_cert_der(&der, key)?;
        Ok(Self { issuer, not_after, serial, id, anchor: id, der })
    }

    /// Signs a leaf for nobody and verifies it: what is wrong with the intermediate shows here, not at a peer.
    fn check(&mut self, credentials: &Credentials) -> anyhow::Result<()> {
        let now = clock::now();
        let key = KeyPair::generate()?;
        let id: SpiffeId = format!("{}/hawser-self-test", credentials.own_domain().id()).parse()?;
        let public_key = rcgen::SubjectPublicKeyInfo::from_der(&key.subject_public_key_info())?;
        let (not_before, not_after) = (now, now + Duration::from_secs(60));
        let template =
            Template { id, public_key, key_hash: String::new(), not_before, not_after, dns_names: Vec::new() };
        let chain = self.sign(&template)?.chain;
        let svid = credentials.proves(&chain).context("our own verifier refuses what it signs")?;
        self.anchor = svid.authorities.last().copied().unwrap_or(self.id);
        Ok(())
    }

    /// Signs a leaf.
    pub(crate) fn sign(&self, template: &Template) -> Result<Leaf, rcgen::Error> {
        let params = template.params()?;
        let serial = params.serial_number.as_ref().map(|serial| hex::encode(&serial.to_bytes())).unwrap_or_default();
        let leaf = params.signed_by(&template.public_key, &self.issuer)?;
        Ok(Leaf { chain: vec![leaf.der().clone(), self.der.clone()], serial })
    }

    /// Its name and key as an authority of their own, without a name constraint; `None` where its name cannot be written
    /// again as it is.
    ///
    /// For verifiers that refuse every chain with a URI name constraint, whatever it says (webpki). It is for those alone
    /// who take it for this one trust domain and hold leaves to that, as SPIFFE's libraries do.
    pub(crate) fn as_anchor(&self, domain: &TrustDomain) -> Option<CertificateDer<'static>> {
        let key = self.issuer.key();
        let mut params = authority(domain.as_str(), key, clock::now(), self.not_after);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.subject_alt_names = vec![SanType::URI(domain.id().try_into().ok()?)];
        let der = params.signed_by(key, &self.issuer).ok()?.der().clone();
        let (_, ours) = X509Certificate::from_der(&self.der).ok()?;
        let (_, alike) = X509Certificate::from_der(&der).ok()?;
        let same = |cert: &X509Certificate<'_>| cert.subject().as_raw() == ours.subject().as_raw();
        (same(&alike) && alike.issuer().as_raw() == ours.subject().as_raw()).then(|| der.clone())
    }

    /// Its certificate.
    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Its end.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Its serial number, lower-case hex.
    pub(crate) fn serial(&self) -> &str {
        &self.serial
    }

    /// Its key.
    pub(crate) fn id(&self) -> AuthorityId {
        self.id
    }

    /// The root's key above it.
    pub(crate) fn anchor(&self) -> AuthorityId {
        self.anchor
    }
}
