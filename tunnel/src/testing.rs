//! Certificates for tests, made in memory: a root, one intermediate per cluster, leaves and ready [`Credentials`].
//!
//! ```
//! let pki = hawser_tunnel::testing::Pki::new();
//! let west = pki.credentials("west", "/ns/shop/sa/web"); // trusts west only
//! let east = pki.linked("east", "/ns/hawser-system/sa/gateway", &["west"]); // trusts east and, under the same root, west
//! # assert_ne!(west.own_domain(), east.own_domain());
//! ```

#![expect(clippy::unwrap_used, reason = "used by tests only, where a panic is the report")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hawser_api::bundle::Bundle;
use hawser_api::{SpiffeId, TrustDomain};
use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

mod anybody;
pub mod certificate;

pub use anybody::anybody;

use crate::tls::{Anchors, Credentials, Expect, HandshakeError, Identity};
use crate::verify::name_constraint;

/// The time in tests that do not bring their own.
#[expect(clippy::disallowed_methods, reason = "the daemons' clock is in a crate that this one may not use")]
pub fn clock() -> SystemTime {
    SystemTime::now()
}

/// The trust domain of a cluster: `west` is `west.hawser.test`.
pub fn domain(cluster: &str) -> TrustDomain {
    format!("{cluster}.hawser.test").parse().unwrap()
}

/// A SPIFFE ID of a cluster; the path begins with '/'.
pub fn id(cluster: &str, path: &str) -> SpiffeId {
    format!("{}{path}", domain(cluster).id()).parse().unwrap()
}

/// The rustls configurations of handshakes between these two, for who drives rustls or quinn himself.
pub fn configs(
    dialling: &Credentials,
    accepting: &Credentials,
    alpn: &[u8],
) -> Result<(Arc<rustls::ClientConfig>, Arc<rustls::ServerConfig>), HandshakeError> {
    Ok((dialling.client_config(&Expect::Trusted, alpn)?, accepting.server_config(&[alpn])?))
}

/// An authority with its key.
pub struct Authority {
    params: CertificateParams,
    key: KeyPair,
    der: CertificateDer<'static>,
}

/// A chain, leaf first, and the leaf's key (PKCS#8).
pub struct Minted {
    /// Leaf, then the intermediate.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
}

/// A fabric's root and the intermediates of its clusters.
pub struct Pki {
    root: Authority,
    intermediates: Mutex<BTreeMap<String, Authority>>,
    now: SystemTime,
}

impl Default for Pki {
    fn default() -> Self {
        Self::new()
    }
}

impl Pki {
    /// A new root, valid for a day from now.
    pub fn new() -> Self {
        Self::at(clock())
    }

    /// A new root, valid for a day from `now`; all else is counted from `now` too.
    pub fn at(now: SystemTime) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = authority_params(&key, "root", now, Duration::from_secs(86_400));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { root: Authority { params, key, der }, intermediates: Mutex::default(), now }
    }

    /// The root as the bundle of any of its clusters.
    pub fn bundle(&self) -> Bundle {
        Bundle { sequence: 1, refresh_hint: None, x509_authorities: vec![self.root.der.to_vec()], ..Bundle::default() }
    }

    /// The root certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root.der
    }

    /// A leaf of this cluster with a new key, from a minute ago for `lifetime` from now.
    pub fn mint(&self, cluster: &str, path: &str, lifetime: Duration) -> Minted {
        let key = KeyPair::generate().unwrap();
        let mut intermediates = self.intermediates.lock();
        let authority = intermediates.entry(cluster.to_owned()).or_insert_with(|| self.intermediate(cluster));
        let params = leaf_params(&id(cluster, path), self.now, lifetime);
        let issuer = Issuer::from_params(&authority.params, &authority.key);
        let leaf = params.signed_by(&key, &issuer).unwrap();
        Minted {
            chain: vec![leaf.der().clone(), authority.der.clone()],
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        }
    }

    /// An identity of this cluster, good for an hour.
    pub fn identity(&self, cluster: &str, path: &str) -> Identity {
        let minted = self.mint(cluster, path, Duration::from_secs(3600));
        Identity::new(minted.chain, minted.key).unwrap()
    }

    /// Credentials of a process of this cluster, which trusts its own cluster only.
    pub fn credentials(&self, cluster: &str, path: &str) -> Credentials {
        self.linked(cluster, path, &[])
    }

    /// Credentials of a process of this cluster, which also trusts these peers under the same root.
    pub fn linked(&self, cluster: &str, path: &str, peers: &[&str]) -> Credentials {
        let credentials = Credentials::new(domain(cluster), clock);
        credentials.set_identity(self.identity(cluster, path));
        assert!(credentials.set_anchors(&domain(cluster), Anchors::Bundle(self.bundle())).is_empty());
        for peer in peers {
            assert!(credentials.set_anchors(&domain(peer), Anchors::OwnRoot).is_empty());
        }
        credentials
    }

    fn intermediate(&self, cluster: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let domain = domain(cluster);
        let mut params = authority_params(&key, cluster, self.now, Duration::from_secs(86_000));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.subject_alt_names = vec![SanType::URI(domain.id().try_into().unwrap())];
        let mut constraint = CustomExtension::from_oid_content(&[2, 5, 29, 30], name_constraint(&domain));
        constraint.set_criticality(true);
        params.custom_extensions = vec![constraint];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_params(&self.root.params, &self.root.key);
        let der = params.signed_by(&key, &issuer).unwrap().der().clone();
        Authority { params, key, der }
    }
}

fn authority_params(key: &KeyPair, name: &str, now: SystemTime, lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    let identifier: String = params.key_identifier(key).iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    subject.push(DnType::CommonName, format!("{name} {identifier}"));
    params.distinguished_name = subject;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - Duration::from_secs(120)).into();
    params.not_after = (now + lifetime).into();
    params
}

fn leaf_params(id: &SpiffeId, now: SystemTime, lifetime: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "Hawser");
    params.distinguished_name = subject;
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().unwrap())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = (now + lifetime).into();
    params
}

/// Lets a future take its first steps, as far as they go without an answer.
pub async fn begin(mut future: std::pin::Pin<&mut (impl Future<Output = impl Sized> + ?Sized)>) {
    std::future::poll_fn(|context| {
        assert!(future.as_mut().poll(context).is_pending(), "it is over already");
        std::task::Poll::Ready(())
    })
    .await;
}
