//! HTTPS for SPIFFE bundle endpoints, in both profiles (SPIFFE Federation section 5.2): who serves proves himself, who
//! asks does not, and nobody falls back from one profile to the other.
//!
//! ```text
//! https_web     certificate for a host name ◀─ authorities from a file      Server::web     Client::web
//! https_spiffe  X509-SVID of the endpoint   ◀─ the bundle held by now       Server::spiffe  Client::spiffe
//! ```
//!
//! Only the TLS: what is said over it is HTTP/1.1, and the callers' matter. Without resumption, as everywhere here.
//!
//! TLS 1.2 is spoken here and nowhere else. SPIFFE Federation section 5 demands Mozilla's intermediate profile of servers,
//! which is TLS 1.2 and 1.3 with forward secrecy and authenticated encryption; what is served is public, and nobody
//! proves who he is by reading it. As clients we take it of `https_web` endpoints, which are the web's, and not of
//! `https_spiffe` ones: their X509-SVIDs are proved as all SVIDs are, by TLS 1.3.

use std::collections::BTreeMap;
use std::sync::Arc;

use hawser_api::bundle::Bundle;
use hawser_api::{SpiffeId, TrustDomain};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::server::NoServerSessionStorage;
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::Clock;
use crate::tls::{self, Credentials, Expect, HandshakeError, Identity};

/// The protocol that is spoken over it.
const ALPN: &[u8] = b"http/1.1";
/// Most authorities of a file: the public ones are some 150.
const ROOTS_MAX: usize = 1000;

fn cannot(detail: impl std::fmt::Display) -> HandshakeError {
    HandshakeError { reason: "protocol", detail: format!("TLS cannot be set up: {detail}") }
}

/// The serving end.
#[derive(Debug, Clone)]
pub struct Server(Arc<ServerConfig>);

impl Server {
    /// With an X509-SVID.
    pub fn spiffe(identity: &Identity, clock: Clock) -> Result<Self, HandshakeError> {
        Self::with(identity.certified(), clock)
    }

    /// With a certificate chain and its key, PEM.
    pub fn web(chain: &[u8], key: &[u8], clock: Clock) -> Result<Self, HandshakeError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(cannot)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(cannot)?;
        if chain.is_empty() {
            return Err(cannot("the file holds no certificate"));
        }
        let key = CertifiedKey::from_der(chain, key, &tls::provider_of_the_web()).map_err(cannot)?;
        Self::with(Arc::new(key), clock)
    }

    fn with(key: Arc<CertifiedKey>, clock: Clock) -> Result<Self, HandshakeError> {
        let provider = Arc::new(tls::provider_of_the_web());
        let mut config = ServerConfig::builder_with_details(provider, tls::time_provider(clock))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(cannot)?
            // SPIFFE Federation section 5.2.1: a client must not have to prove who it is.
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        Ok(Self(Arc::new(config)))
    }

    /// The handshake; put it under a deadline.
    pub async fn accept(
        &self,
        socket: TcpStream,
    ) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static, HandshakeError> {
        Ok(TlsAcceptor::from(Arc::clone(&self.0)).accept(socket).await?)
    }
}

/// The asking end.
#[derive(Debug, Clone)]
pub struct Client(Arc<ClientConfig>);

impl Client {
    /// For whoever has a certificate for the host, of one of these authorities (PEM).
    pub fn web(authorities: &[u8], clock: Clock) -> Result<Self, HandshakeError> {
        let mut roots = RootCertStore::empty();
        for der in CertificateDer::pem_slice_iter(authorities).take(ROOTS_MAX) {
            // Files of public authorities hold some that no longer parse by today's rules.
            let _ = roots.add(der.map_err(cannot)?);
        }
        if roots.is_empty() {
            return Err(cannot("the file holds no authority"));
        }
        let provider = Arc::new(tls::provider_of_the_web());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build();
        let config = ClientConfig::builder_with_details(provider, tls::time_provider(clock))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(cannot)?
            .with_webpki_verifier(verifier.map_err(cannot)?)
            .with_no_client_auth();
        Ok(Self::with(config))
    }

    /// For this very identity, proved by this bundle of its trust domain.
    pub fn spiffe(domain: &TrustDomain, bundle: &Bundle, id: &SpiffeId, clock: Clock) -> Result<Self, HandshakeError> {
        let sources = BTreeMap::from([(domain.clone(), tls::Anchors::Bundle(bundle.clone()))]);
        let verifier = tls::verifier(sources, Expect::Identities([id.clone()].into()), clock).map_err(cannot)?;
        Self::proved_by(verifier, clock)
    }

    /// For this very identity, proved by what is in force for its trust domain, which is not the one whose bundle is
    /// asked for ("not self-serving", SPIFFE Federation section 5.2.2.4).
    pub fn vouched(credentials: &Credentials, id: &SpiffeId, clock: Clock) -> Result<Self, HandshakeError> {
        Self::proved_by(credentials.verifier(Expect::Identities([id.clone()].into())), clock)
    }

    fn proved_by(verifier: Arc<dyn ServerCertVerifier>, clock: Clock) -> Result<Self, HandshakeError> {
        let config = ClientConfig::builder_with_details(Arc::new(tls::provider()), tls::time_provider(clock))
            .with_protocol_versions(&[&TLS13])
            .map_err(cannot)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok(Self::with(config))
    }

    fn with(mut config: ClientConfig) -> Self {
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Self(Arc::new(config))
    }

    /// The handshake with `host`, a name or an address, on a connection that is there; put it under a deadline.
    pub async fn connect(
        &self,
        socket: TcpStream,
        host: &str,
    ) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static, HandshakeError> {
        let name = ServerName::try_from(host.to_owned()).map_err(cannot)?;
        Ok(TlsConnector::from(Arc::clone(&self.0)).connect(name, socket).await?)
    }
}
