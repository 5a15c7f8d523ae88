//! Who we are and whom we trust, as one value that every handshake reads; the only mint of a [`VerifiedPeer`].

use std::sync::Arc;
use std::time::SystemTime;

use hawser_api::bundle::Bundle;
use hawser_api::{SpiffeId, TrustDomain};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;

use crate::Clock;

/// Our own X509-SVID with its key.
#[derive(Debug)]
pub struct Identity {
    id: SpiffeId,
    not_after: SystemTime,
}

/// Why a chain and key are no identity.
#[derive(Debug, thiserror::Error)]
#[error("identity: {0}")]
pub struct IdentityError(pub String);

impl Identity {
    /// From a chain (leaf first) and its key; checks that they belong together and that the leaf is an SVID.
    pub fn new(_chain: Vec<CertificateDer<'static>>, _key: PrivateKeyDer<'static>) -> Result<Self, IdentityError> {
        unimplemented!()
    }

    /// Our SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// When the leaf ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }
}

/// A peer whose certificate our verifier accepted in a handshake that has completed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPeer {
    id: SpiffeId,
    not_after: SystemTime,
    serial: String,
}

impl VerifiedPeer {
    /// The peer's SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// When its leaf ends: nothing that rests on it may live longer.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The leaf's serial number, lower-case hex.
    pub fn serial(&self) -> &str {
        &self.serial
    }
}

/// Whom we demand at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// One of these.
    Identities(Arc<[SpiffeId]>),
    /// Anybody whose trust domain has anchors here; policy decides afterwards. For accepting sides.
    Trusted,
}

/// Identity and bundles of this process, shared by all its handshakes, swapped without a restart.
#[derive(Debug, Clone)]
pub struct Credentials {
    _inner: Arc<()>,
}

/// Where a trust domain's anchors come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Anchors {
    /// This bundle.
    Bundle(Bundle),
    /// The trust domain hangs under our own root: our own bundle's anchors, held to that trust domain.
    OwnRoot,
}

impl Credentials {
    /// Nobody, trusting nobody, in a process of this trust domain.
    pub fn new(_own: TrustDomain, _clock: Clock) -> Self {
        unimplemented!()
    }

    /// From now on we are this.
    pub fn set_identity(&self, _identity: Identity) {
        unimplemented!()
    }

    /// From now on these are the trust domain's anchors. Expired, malformed and foreign ones are dropped and returned
    /// as reasons. A bundle whose sequence is lower than the one in force is refused whole.
    pub fn set_anchors(&self, _domain: &TrustDomain, _anchors: Anchors) -> Vec<String> {
        unimplemented!()
    }

    /// From now on nobody of this trust domain is trusted.
    pub fn remove_anchors(&self, _domain: &TrustDomain) {
        unimplemented!()
    }

    /// Who we are; `None` before the first [`set_identity`](Self::set_identity).
    pub fn identity(&self) -> Option<Arc<Identity>> {
        unimplemented!()
    }

    /// The trust domain of this process.
    pub fn own_domain(&self) -> &TrustDomain {
        unimplemented!()
    }

    /// Grows with every change: what rests on an older generation is to be checked again or dropped.
    pub fn generation(&self) -> watch::Receiver<u64> {
        unimplemented!()
    }

    /// The dialling side's rustls configuration: TLS 1.3, mutual, one ALPN, no tickets, no resumption, no early data;
    /// the server must be what `expect` says.
    pub(crate) fn client_config(
        &self,
        _expect: &Expect,
        _alpn: &[u8],
    ) -> Result<Arc<rustls::ClientConfig>, HandshakeError> {
        unimplemented!()
    }

    /// The accepting side's, with the same rules; the client's certificate is required.
    pub(crate) fn server_config(&self, _alpn: &[&[u8]]) -> Result<Arc<rustls::ServerConfig>, HandshakeError> {
        unimplemented!()
    }

    /// After a handshake has completed: the peer that its certificates name, by the same verifier.
    pub(crate) fn verified(
        &self,
        _chain: &[CertificateDer<'_>],
        _expect: &Expect,
    ) -> Result<VerifiedPeer, HandshakeError> {
        unimplemented!()
    }

    /// Whether this peer would still be accepted now (bundle removed? certificate over?).
    pub fn still_trusts(&self, _peer: &VerifiedPeer) -> bool {
        unimplemented!()
    }
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct HandshakeError {
    /// A stable word for metrics: `no_identity`, `timed_out`, `io`, `protocol`, `untrusted`, `expired`,
    /// `wrong_identity`, `alpn`, `too_large`.
    pub reason: &'static str,
    /// For people.
    pub detail: String,
}
