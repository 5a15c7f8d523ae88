//! The two rustls configurations, and the one verifier in both.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{
    CipherSuite, ClientConfig, DigitallySignedStruct, DistinguishedName, PeerIncompatible, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::gaps::Gaps;
use super::trust::Trust;
use super::{Expect, HandshakeError, Identity};
use crate::Clock;

/// Most configurations kept per generation and side: one for each set of identities that a proxy dials.
const CONFIGS_MAX: usize = 1024;

/// aws-lc-rs, TLS 1.3 suites only. AES-128-GCM first: with hardware support it is the cheapest per byte, and 128 bits
/// are what P-256 certificates offer anyway.
pub(crate) fn provider() -> CryptoProvider {
    let mut provider = provider_of_the_web();
    provider.cipher_suites.retain(|suite| suite.tls13().is_some());
    provider.cipher_suites.sort_by_key(|suite| match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => 0,
        CipherSuite::TLS13_AES_256_GCM_SHA384 => 1,
        _ => 2,
    });
    provider
}

/// The same with the suites of TLS 1.2 that are left: ECDHE with AES-GCM or ChaCha20. For bundle endpoints alone.
pub(crate) fn provider_of_the_web() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

#[derive(Debug)]
struct ClockTime(Clock);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        let since = (self.0)().duration_since(UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}

/// rustls asks it for the time.
pub(crate) fn time_provider(clock: Clock) -> Arc<dyn TimeProvider> {
    Arc::new(ClockTime(clock))
}

fn cannot(error: rustls::Error) -> HandshakeError {
    HandshakeError { reason: "protocol", detail: format!("TLS cannot be set up: {error}") }
}

/// `identity`: what is shown if the server asks; `None`: nothing.
pub(super) fn client(
    identity: Option<&Identity>,
    verifier: Verifier,
    clock: Clock,
    alpn: &[u8],
) -> Result<ClientConfig, HandshakeError> {
    let builder = ClientConfig::builder_with_details(Arc::new(provider()), Arc::new(ClockTime(clock)))
        .with_protocol_versions(&[&TLS13])
        .map_err(cannot)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match identity {
        Some(identity) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&identity.key))))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    // A resumed session does not ask the verifier: who was unlinked or revoked would come back.
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    // Nobody on the path learns a name, and none is needed: the certificate says who it is.
    config.enable_sni = false;
    // The sealed session's record layer takes over from rustls after the handshake.
    config.enable_secret_extraction = true;
    Ok(config)
}

pub(super) fn server(
    identity: &Identity,
    verifier: Verifier,
    clock: Clock,
    alpn: &[&[u8]],
) -> Result<ServerConfig, HandshakeError> {
    let mut config = ServerConfig::builder_with_details(Arc::new(provider()), Arc::new(ClockTime(clock)))
        .with_protocol_versions(&[&TLS13])
        .map_err(cannot)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&identity.key))));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    config.enable_secret_extraction = true;
    Ok(config)
}

/// The join door's: nobody is asked for a certificate, so nobody may get anything but the door from this.
pub(super) fn join(
    identity: &Identity,
    anchors: Vec<CertificateDer<'static>>,
    clock: Clock,
    alpn: &[&[u8]],
) -> Result<ServerConfig, HandshakeError> {
    let mut chain = identity.key.cert.clone();
    chain.extend(anchors);
    let key = CertifiedKey::new(chain, Arc::clone(&identity.key.key));
    let mut config = ServerConfig::builder_with_details(Arc::new(provider()), time_provider(clock))
        .with_protocol_versions(&[&TLS13])
        .map_err(cannot)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

/// Asks [`verify`](crate::verify::verify), for servers and clients alike.
#[derive(Debug)]
pub(super) struct Verifier {
    trust: Arc<Trust>,
    expect: Expect,
    gaps: Arc<Gaps>,
    provider: CryptoProvider,
    /// A client without a certificate is let in as nobody.
    optional: bool,
}

impl Verifier {
    pub(super) fn new(trust: Arc<Trust>, expect: Expect, gaps: Arc<Gaps>) -> Self {
        Self { trust, expect, gaps, provider: provider(), optional: false }
    }

    pub(super) fn optional(self) -> Self {
        Self { optional: true, ..self }
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let now: SystemTime = UNIX_EPOCH + std::time::Duration::from_secs(now.as_secs());
        let mut chain = Vec::with_capacity(rest.len() + 1);
        chain.push(leaf.clone());
        chain.extend(rest.iter().cloned());
        match self.trust.verify(&chain, &self.expect, now) {
            Ok(svid) => {
                self.gaps.forget(&svid.id.trust_domain());
                Ok(())
            }
            Err(e) => {
                tracing::debug!(reason = e.reason(), detail = %e, "refused a peer's certificate");
                if let Some((domain, gap)) = self.trust.clock_gap(&chain, &e) {
                    self.gaps.note(domain, gap);
                }
                Err(e.into())
            }
        }
    }

    fn signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn no_tls12() -> rustls::Error {
    rustls::Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(leaf, rest, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        !self.optional
    }

    /// None: a list of our anchors would tell every peer whom else we are linked with.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(leaf, rest, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

/// The configurations of one generation, each built when it is first asked for: a handshake builds none.
#[derive(Default)]
pub(super) struct Configs {
    clients: Kept<(Expect, Vec<u8>), ClientConfig>,
    servers: Kept<Vec<Vec<u8>>, ServerConfig>,
}

type Kept<K, V> = Mutex<HashMap<K, Arc<V>>>;

impl Configs {
    pub(super) fn client(
        &self,
        expect: &Expect,
        alpn: &[u8],
        build: impl FnOnce() -> Result<ClientConfig, HandshakeError>,
    ) -> Result<Arc<ClientConfig>, HandshakeError> {
        kept(&self.clients, (expect.clone(), alpn.to_vec()), build)
    }

    pub(super) fn server(
        &self,
        alpn: &[&[u8]],
        build: impl FnOnce() -> Result<ServerConfig, HandshakeError>,
    ) -> Result<Arc<ServerConfig>, HandshakeError> {
        kept(&self.servers, alpn.iter().map(|protocol| protocol.to_vec()).collect(), build)
    }
}

fn kept<K: std::hash::Hash + Eq, V>(
    map: &Kept<K, V>,
    key: K,
    build: impl FnOnce() -> Result<V, HandshakeError>,
) -> Result<Arc<V>, HandshakeError> {
    let mut map = map.lock();
    if let Some(config) = map.get(&key) {
        return Ok(Arc::clone(config));
    }
    let config = Arc::new(build()?);
    if map.len() >= CONFIGS_MAX {
        map.clear();
    }
    map.insert(key, Arc::clone(&config));
    Ok(config)
}
