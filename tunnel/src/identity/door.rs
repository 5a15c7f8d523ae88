//! The trust anchor's doors, seen from both sides. On its own machine a Unix socket, which the file system guards. From
//! other pods TLS 1.3 over TCP, in which the trust anchor proves itself, and so does who already has a certificate.
//!
//! ```text
//! process ── ClientHello, ALPN hawser-issuer/1 ──────────────────▶ trust anchor
//!         ◀── its SVID, checked by the bundle that we hold ── asks for a certificate
//!         ── ours, or none ──────────────────────────────────────▶ Answered::peer
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hawser_api::bundle::Bundle;
use hawser_api::config::{IdentityConfig, Issuer, RemoteIssuer};
use hawser_api::labels::{SYSTEM_NAMESPACE, TRUST_ANCHOR_ACCOUNT};
use hawser_api::{SpiffeId, TrustDomain};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::take_bundle;
use crate::tls::{Credentials, Expect, HandshakeError, SERVER_NAME, VerifiedPeer};

/// Its own word, so that nothing that is said here can be taken for a sealed session's HTTP/2.
const ALPN: &[u8] = b"hawser-issuer/1";

/// Where a trust anchor answers.
#[derive(Debug, Clone)]
pub enum Door {
    /// At its Unix socket, on this machine.
    Socket(PathBuf),
    /// At its TCP door, in another pod.
    Remote(Remote),
}

/// See [`Door::Remote`].
#[derive(Debug, Clone)]
pub struct Remote {
    issuer: RemoteIssuer,
    credentials: Credentials,
}

/// As who we come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    Identity,
    Nothing,
}

impl Door {
    /// As configured, for the process with these credentials.
    pub fn new(config: &IdentityConfig, credentials: &Credentials) -> Self {
        match &config.issuer {
            Issuer::Local { socket, .. } => Self::Socket(socket.clone()),
            Issuer::Remote(issuer) => Self::Remote(Remote { issuer: issuer.clone(), credentials: credentials.clone() }),
        }
    }
}

/// What a trust anchor's certificate says.
fn anchor_id(domain: &TrustDomain) -> io::Result<SpiffeId> {
    SpiffeId::service_account(domain, SYSTEM_NAMESPACE, TRUST_ANCHOR_ACCOUNT).map_err(io::Error::other)
}

impl Remote {
    pub(super) fn address(&self) -> &str {
        &self.issuer.address
    }

    /// Connects and shakes hands; the caller has a deadline.
    pub(super) async fn connect(self, show: Show) -> io::Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static> {
        self.learn()?;
        let expect = anchor_id(self.credentials.own_domain())?;
        let config = self.credentials.issuer_client_config(&expect, ALPN, show == Show::Identity);
        let config = config.map_err(io::Error::other)?;
        let socket = TcpStream::connect(&self.issuer.address).await?;
        socket.set_nodelay(true)?;
        let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
        TlsConnector::from(Arc::new(config)).connect(name, socket).await
    }

    /// Takes the mounted bundle if nothing newer is in force: it may have changed while nobody could be asked. Without
    /// the file the last known bundle does as well.
    fn learn(&self) -> io::Result<()> {
        let own = self.credentials.own_domain();
        let held = self.credentials.loaded().into_iter().find(|of| of.domain == *own).map(|of| of.sequence);
        match read(&self.issuer.bundle) {
            Ok(bundle) if held.is_none_or(|sequence| sequence < bundle.sequence) => {
                take_bundle(&self.credentials, bundle);
            }
            Err(error) if held.is_none() => return Err(error),
            _ => {}
        }
        Ok(())
    }
}

fn read(path: &Path) -> io::Result<Bundle> {
    let named = |error: &dyn std::fmt::Display| format!("the bundle {}: {error}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| io::Error::new(e.kind(), named(&e)))?;
    Bundle::parse(&text).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, named(&e)))
}

/// The trust anchor's side of its TCP door. Its credentials need an identity before anybody can be let in.
#[derive(Debug, Clone)]
pub struct IssuerServer(Credentials);

/// A connection that has shaken hands.
#[derive(Debug)]
pub struct Answered<S> {
    /// What is said over it.
    pub stream: S,
    /// Who is at the other end, if he showed a certificate; it holds now.
    pub peer: Option<VerifiedPeer>,
}

impl IssuerServer {
    /// With these credentials, as they are at each handshake.
    pub fn new(credentials: Credentials) -> Self {
        Self(credentials)
    }

    /// The handshake; put it under a deadline.
    pub async fn accept(
        &self,
        socket: TcpStream,
    ) -> Result<Answered<impl AsyncRead + AsyncWrite + Unpin + Send + 'static>, HandshakeError> {
        let ours = self.0.identity();
        let config = Arc::new(self.0.issuer_server_config(ALPN)?);
        let stream = TlsAcceptor::from(config).accept(socket).await?;
        let chain: Vec<CertificateDer<'static>> = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
        let peer = if chain.is_empty() { None } else { Some(self.0.verified(&chain, &Expect::Trusted, ours)?) };
        Ok(Answered { stream, peer })
    }
}
