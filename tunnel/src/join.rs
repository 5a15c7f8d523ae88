//! How two clusters that do not trust each other yet exchange one message each: TLS 1.3 over TCP, ALPN `hawser-join/1`.
//!
//! ```text
//! joining cluster                                        gateway of the other
//! ask ── ClientHello, no certificate ─────────────────▶  listen (the join door: few at a time, a rate, a deadline)
//!     ◀── leaf, intermediate, anchors ── checked by the token's pin before a byte of the token is sent
//!     ── u32 length, request ────────────────────────▶  Knock::request
//!     ◀──────────────────────── u32 length, reply ────  Knock::reply
//! ```
//!
//! The asking side takes nobody but a gateway whose path ends in a pinned key. The answering side learns nothing about
//! who asks and must not act on it: what is asked for carries its own proof, the one-time token.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hawser_api::{SpiffeId, TrustDomain};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::Clock;
use crate::tls::{self, HandshakeError, SERVER_NAME};
use crate::verify::{Anchor, AuthorityId, CHAIN_MAX, VerifyError, verify};

/// ALPN of the join door. No client certificate is asked for, and nothing but one request can be sent.
pub const ALPN: &[u8] = b"hawser-join/1";
/// Largest request: a bundle of some thirty anchors, and addresses.
pub const REQUEST_MAX: usize = 64 * 1024;
/// Largest reply: a bundle of the largest size and what is beside it.
pub const REPLY_MAX: usize = hawser_api::bundle::DOCUMENT_MAX + 64 * 1024;
/// For connection, handshake, request and reply together; the trust anchor behind the door writes to disk.
pub const ASK_MAX: Duration = Duration::from_secs(10);
/// Certificates beyond leaf and intermediate that the answering side may send: its anchors.
const ANCHORS_SENT_MAX: usize = 8;

/// Who may answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// The very identity.
    pub identity: SpiffeId,
    /// Its path must end in one of these keys.
    pub pins: Vec<AuthorityId>,
}

impl Pinned {
    /// Whether this chain proves it: leaf first, then intermediates, then anchors, of which the first that is pinned
    /// counts. An anchor's key is pinned, so nobody else can have signed by it, whatever else its certificate says.
    fn check(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<(), VerifyError> {
        let domain: TrustDomain = self.identity.trust_domain();
        if chain.len() > CHAIN_MAX + ANCHORS_SENT_MAX {
            return Err(VerifyError::TooLarge(format!("a chain of {} certificates", chain.len())));
        }
        let is_pinned = |der: &CertificateDer<'_>| key(der).is_some_and(|key| self.pins.contains(&key));
        let first = chain.iter().skip(1).position(is_pinned).map(|at| at + 1);
        let first =
            first.ok_or_else(|| VerifyError::Untrusted("no certificate of its chain has a pinned key".into()))?;
        let (path, anchors) = chain.split_at(first);
        let read = |der: &CertificateDer<'_>| Anchor::read(der, &domain).ok();
        let anchors: Vec<Anchor> = anchors.iter().filter(|der| is_pinned(der)).filter_map(read).collect();
        let svid = verify(path, now, |named| (*named == domain).then_some(anchors.as_slice()))?;
        if svid.id == self.identity { Ok(()) } else { Err(VerifyError::WrongIdentity(svid.id)) }
    }
}

fn key(der: &CertificateDer<'_>) -> Option<AuthorityId> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    Some(AuthorityId::of_key(cert.public_key().raw))
}

/// What tells a certificate's key from others; `None` if it is no certificate.
pub fn authority(der: &[u8]) -> Option<AuthorityId> {
    key(&CertificateDer::from(der.to_vec()))
}

/// Sends `request` to whoever answers at `address` and is what `expect` says, and returns the reply. Within [`ASK_MAX`].
pub async fn ask(address: SocketAddr, expect: Pinned, request: &[u8], clock: Clock) -> Result<Vec<u8>, HandshakeError> {
    let asked = async {
        let config = Arc::new(client(expect, clock)?);
        let socket = TcpStream::connect(address).await?;
        let name = ServerName::try_from(SERVER_NAME)
            .map_err(|e| HandshakeError { reason: "protocol", detail: e.to_string() })?;
        let mut stream = TlsConnector::from(config).connect(name, socket).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(HandshakeError { reason: "alpn", detail: "it does not speak hawser-join/1".to_owned() });
        }
        send(&mut stream, request).await?;
        receive(&mut stream, REPLY_MAX).await
    };
    timeout(ASK_MAX, asked).await.map_err(|_| HandshakeError::timed_out("the gateway"))?
}

pub(crate) async fn send(stream: &mut (impl AsyncWrite + Unpin), message: &[u8]) -> Result<(), HandshakeError> {
    let length = u32::try_from(message.len()).map_err(|_| too_large(message.len()))?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(message).await?;
    stream.flush().await?;
    Ok(())
}

pub(crate) async fn receive(stream: &mut (impl AsyncRead + Unpin), most: usize) -> Result<Vec<u8>, HandshakeError> {
    let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
    if length > most {
        return Err(too_large(length));
    }
    // Grows with what comes, not with what is announced.
    let mut message = Vec::new();
    let read = stream.take(length as u64).read_to_end(&mut message).await?;
    if read < length {
        return Err(HandshakeError { reason: "io", detail: "the message broke off".to_owned() });
    }
    Ok(message)
}

fn too_large(length: usize) -> HandshakeError {
    HandshakeError { reason: "too_large", detail: format!("a message of {length} bytes") }
}

fn client(expect: Pinned, clock: Clock) -> Result<ClientConfig, HandshakeError> {
    let provider = tls::provider();
    let verifier = Verifier { expect, provider: provider.clone() };
    let mut config = ClientConfig::builder_with_details(Arc::new(provider), tls::time_provider(clock))
        .with_protocol_versions(&[&TLS13])
        .map_err(|e| HandshakeError::from(&e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok(config)
}

#[derive(Debug)]
struct Verifier {
    expect: Pinned,
    provider: CryptoProvider,
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
        let now = UNIX_EPOCH + Duration::from_secs(now.as_secs());
        let chain: Vec<_> = std::iter::once(leaf).chain(rest).cloned().collect();
        self.expect.check(&chain, now).map_err(rustls::Error::from)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
