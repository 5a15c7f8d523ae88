//! A rotation as it is kept on disk, and what follows from it: which roots are published and which intermediate signs.
//! Both are functions of the record alone, so that whoever reads it after a crash does what was decided before it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hawser_tunnel::kept::{Kept, KeptError};
use hawser_tunnel::verify::AuthorityId;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Level, Rotation, State};

/// Name of the record.
const FILE: &str = "rotation.json";
/// Where the new intermediate lies until the old one is retired.
pub(crate) const NEXT: &str = "next";

/// A certificate, in base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Der(pub(crate) CertificateDer<'static>);

impl Serialize for Der {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Der {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(|der| Self(der.into())).map_err(serde::de::Error::custom)
    }
}

/// The key of a certificate.
pub(crate) fn authority_id(der: &CertificateDer<'_>) -> Option<AuthorityId> {
    X509Certificate::from_der(der).ok().map(|(_, cert)| AuthorityId::of_key(cert.public_key().raw))
}

/// Everything about rotations that outlives the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Course {
    /// The present rotation, or the last.
    pub(crate) rotation: Option<Rotation>,
    /// Roots that were published when it began; empty: those of the configured file are.
    #[serde(default)]
    pub(crate) roots: Vec<Der>,
    /// What the file said then, as a hash: only another content is an operator's new word.
    #[serde(default)]
    pub(crate) file: String,
    #[serde(default)]
    pub(crate) old_root: Option<Der>,
    #[serde(default)]
    pub(crate) new_root: Option<Der>,
    /// The certificate of the intermediate that goes.
    #[serde(default)]
    pub(crate) old_signer: Option<Der>,
    /// The new intermediate has taken the old one's place on disk.
    #[serde(default)]
    pub(crate) promoted: bool,
    /// Leaves from before this time are renewed soon; 0: none.
    #[serde(default)]
    pub(crate) reissue_before_ms: i64,
}

impl Course {
    pub(crate) fn read(kept: &Kept) -> Result<Self, KeptError> {
        let Some(value) = kept.read(FILE)? else { return Ok(Self::default()) };
        let path = kept.directory().join(FILE);
        serde_json::from_value(value).map_err(|e| KeptError::Changed { path, reason: e.to_string() })
    }

    /// On disk when it returns.
    pub(crate) fn write(&self, kept: &Kept) -> std::io::Result<()> {
        kept.write(FILE, &serde_json::to_value(self)?)
    }

    /// The rotation that is not over.
    pub(crate) fn running(&self) -> Option<&Rotation> {
        self.rotation.as_ref().filter(|rotation| !rotation.is_over())
    }

    /// Whether the configured file has no say.
    pub(crate) fn owns_roots(&self) -> bool {
        !self.roots.is_empty()
    }

    /// The roots to publish, those of the file being these.
    pub(crate) fn published(&self, file: &[CertificateDer<'static>]) -> Vec<CertificateDer<'static>> {
        if !self.owns_roots() {
            return file.to_vec();
        }
        let mut roots: Vec<_> = self.roots.iter().map(|root| root.0.clone()).collect();
        let Some((rotation, new)) = self.rotation.as_ref().zip(self.new_root.as_ref()) else { return roots };
        if rotation.level != Level::Root || rotation.state < State::Published {
            return roots;
        }
        if rotation.state == State::Retired {
            roots.retain(|root| self.old_root.as_ref().is_none_or(|old| old.0 != *root));
        }
        if !roots.contains(&new.0) {
            roots.push(new.0.clone());
        }
        roots
    }

    /// The directory, inside the store, of the intermediate that signs.
    pub(crate) fn signer(&self) -> &'static str {
        match &self.rotation {
            Some(rotation) if rotation.state >= State::Active && !self.promoted => NEXT,
            _ => "",
        }
    }

    /// The authorities that go.
    pub(crate) fn old(&self) -> impl Iterator<Item = AuthorityId> {
        let root = self.old_root.as_ref().filter(|_| self.level() == Some(Level::Root));
        root.into_iter().chain(&self.old_signer).filter_map(|der| authority_id(&der.0))
    }

    /// The new root's key, if a root is replaced.
    pub(crate) fn new_root_id(&self) -> Option<AuthorityId> {
        self.new_root.as_ref().filter(|_| self.level() == Some(Level::Root)).and_then(|der| authority_id(&der.0))
    }

    pub(crate) fn level(&self) -> Option<Level> {
        self.rotation.as_ref().map(|rotation| rotation.level)
    }
}
