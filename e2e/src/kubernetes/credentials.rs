//! What a control plane proves itself with: its CA, the API server's certificate, the key of its tokens.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

/// Files in a control plane's directory.
#[derive(Debug)]
pub(crate) struct Credentials {
    /// The CA's certificate.
    pub(crate) ca: PathBuf,
    /// The API server's certificate, for its address and for the names that a cluster has for it.
    pub(crate) serving: PathBuf,
    /// Its key.
    pub(crate) serving_key: PathBuf,
    /// What tokens of service accounts are signed with.
    pub(crate) tokens_key: PathBuf,
    /// What they are verified with.
    pub(crate) tokens_public: PathBuf,
    /// Static tokens (`--token-auth-file`).
    pub(crate) users: PathBuf,
}

impl Credentials {
    /// Makes all of them; `admin` is the token of a cluster administrator.
    pub(crate) fn make(dir: &Path, address: IpAddr, admin: &str) -> Result<Self> {
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        };
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "kubernetes");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate()?;
        let certificate = authority.self_signed(&authority_key)?;
        let names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        let mut serving = CertificateParams::new(names.map(str::to_owned))?;
        serving.subject_alt_names.push(SanType::IpAddress(address));
        serving.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        let serving_key = KeyPair::generate()?;
        let serving = serving.signed_by(&serving_key, &Issuer::from_params(&authority, &authority_key))?;
        let tokens = KeyPair::generate()?;
        Ok(Self {
            ca: write("ca.crt", &certificate.pem())?,
            serving: write("apiserver.crt", &serving.pem())?,
            serving_key: write("apiserver.key", &serving_key.serialize_pem())?,
            tokens_key: write("tokens.key", &tokens.serialize_pem())?,
            tokens_public: write("tokens.pub", &tokens.public_key_pem())?,
            users: write("users.csv", &format!("{admin},admin,admin,system:masters\n"))?,
        })
    }
}
