//! Who we are and whom we trust, as one value that every handshake reads; the only mint of a [`VerifiedPeer`].
//!
//! ```text
//! set_identity ┐
//! set_anchors  ├─▶ Snapshot{ identity, trust, configs } ─▶ client_config / server_config ─▶ rustls, quinn
//! set_denied   ┘        │ generation + 1                                │ handshake: Verifier ─▶ verify::verify
//!                       └─▶ generation(), still_trusts(peer)            └─▶ verified() ─▶ VerifiedPeer
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use hawser_api::bundle::Bundle;
use hawser_api::{SpiffeId, TrustDomain};
use parking_lot::Mutex;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;

use crate::Clock;
use crate::verify::{AuthorityId, Fingerprint, Leaf, Rules, Svid, VerifyError};

mod config;
mod denied;
mod gaps;
mod handshake;
mod live;
#[cfg(test)]
mod tests;
mod trust;

use config::Configs;
pub(crate) use config::{provider, provider_of_the_web, time_provider};
pub use denied::Denials;
pub use gaps::ClockGap;
use gaps::Gaps;
pub use handshake::HandshakeError;
pub(crate) use handshake::SERVER_NAME;
use live::{Counted, Live};
pub use live::{Dependence, LoadedAnchors};
use trust::Trust;

/// Our own X509-SVID with its key.
pub struct Identity {
    id: SpiffeId,
    not_before: SystemTime,
    not_after: SystemTime,
    key: Arc<CertifiedKey>,
}

/// Why a chain and key are no identity.
#[derive(Debug, thiserror::Error)]
#[error("identity: {0}")]
pub struct IdentityError(pub String);

impl Identity {
    /// From a chain (leaf first) and its key; checks that they belong together and that the leaf is an SVID.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Self, IdentityError> {
        let leaf = chain.first().ok_or_else(|| IdentityError("an empty chain".into()))?;
        let leaf = Leaf::read(leaf).map_err(|e| IdentityError(e.to_string()))?;
        let key = CertifiedKey::from_der(chain, key, &provider())
            .map_err(|e| IdentityError(format!("chain and key do not belong together: {e}")))?;
        Ok(Self { id: leaf.id, not_before: leaf.not_before, not_after: leaf.not_after, key: Arc::new(key) })
    }

    /// Our SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// When the leaf begins.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// When the leaf ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.key)
    }

    /// The chain that we present, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("id", &self.id).field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// A peer whose certificate our verifier accepted in a handshake that has completed.
#[derive(Debug, Clone)]
pub struct VerifiedPeer {
    id: SpiffeId,
    not_after: SystemTime,
    serial: String,
    anchor: Fingerprint,
    authorities: Arc<[AuthorityId]>,
    keeps: Rules,
    /// Who we were to it.
    ours: Option<Arc<Identity>>,
    /// Counts this peer among the live ones until the last copy is dropped.
    _live: Arc<Counted>,
}

impl PartialEq for VerifiedPeer {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.serial == other.serial && self.authorities == other.authorities
    }
}

impl Eq for VerifiedPeer {}

impl VerifiedPeer {
    /// The peer's SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// When the first certificate of its path ends: nothing that rests on it may live longer.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The leaf's serial number, lower-case hex.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// When the certificate ends that we showed to it.
    pub fn ours_not_after(&self) -> Option<SystemTime> {
        self.ours.as_ref().map(|ours| ours.not_after())
    }

    /// The keys that its path rests on: the leaf's issuer first, the anchor last.
    pub fn authorities(&self) -> &[AuthorityId] {
        &self.authorities
    }
}

/// Whom we demand at the other end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Expect {
    /// One of these.
    Identities(Arc<[SpiffeId]>),
    /// Anybody whose trust domain has anchors here; policy decides afterwards. For accepting sides.
    Trusted,
}

/// Where a trust domain's anchors come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Anchors {
    /// This bundle. A peer's bundle is that of one trust domain: each of its anchors whose key is in no other's is held
    /// to the rules of SPIFFE and no more ([`Rules::Spiffe`]), so that authorities of other makes are understood. Our own
    /// bundle's, and keys that several bundles have, are held to [`Rules::Fabric`].
    Bundle(Bundle),
    /// The trust domain hangs under our own root: our own bundle's anchors, held to that trust domain.
    OwnRoot,
}

/// Identity and bundles of this process, shared by all its handshakes, swapped without a restart.
#[derive(Clone)]
pub struct Credentials {
    shared: Arc<Shared>,
}

struct Shared {
    own: TrustDomain,
    clock: Clock,
    snapshot: ArcSwap<Snapshot>,
    /// Held while a new snapshot is made from the old one.
    writing: Mutex<()>,
    generation: watch::Sender<u64>,
    live: Arc<Live>,
    gaps: Arc<Gaps>,
}

/// What a handshake reads: never changed, only replaced.
struct Snapshot {
    identity: Option<Arc<Identity>>,
    trust: Arc<Trust>,
    configs: Configs,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshot = self.shared.snapshot.load();
        f.debug_struct("Credentials")
            .field("identity", &snapshot.identity)
            .field("trust_domains", &snapshot.trust.domains().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Nobody, trusting nobody, in a process of this trust domain.
    pub fn new(own: TrustDomain, clock: Clock) -> Self {
        let trust = Arc::new(Trust::new(own.clone(), BTreeMap::new(), Denials::default(), clock()).0);
        let snapshot = Snapshot { identity: None, trust, configs: Configs::default() };
        let generation = watch::Sender::new(0);
        let snapshot = ArcSwap::from_pointee(snapshot);
        Self {
            shared: Arc::new(Shared {
                own,
                clock,
                snapshot,
                writing: Mutex::new(()),
                generation,
                live: Arc::default(),
                gaps: Arc::default(),
            }),
        }
    }

    /// From now on we are this.
    pub fn set_identity(&self, identity: Identity) {
        self.replace(|old| {
            let trust = Arc::clone(&old.trust);
            (Some(Snapshot { identity: Some(Arc::new(identity)), trust, configs: Configs::default() }), ())
        });
    }

    /// From now on these are the trust domain's anchors. Expired, malformed and foreign ones are dropped and returned
    /// as reasons. Refused whole, so that what was in force stays: a bundle whose sequence is lower than the one in force,
    /// and a peer's bundle with a key of ours, or with a key of another peer's that is no fabric's root.
    pub fn set_anchors(&self, domain: &TrustDomain, anchors: Anchors) -> Vec<String> {
        self.replace(|old| {
            if let Err(reason) = old.trust.may_follow(&self.shared.own, domain, &anchors) {
                return (None, vec![reason]);
            }
            let mut sources = old.trust.sources.clone();
            sources.insert(domain.clone(), anchors);
            self.with_sources(old, sources)
        })
    }

    /// Whether [`set_anchors`](Self::set_anchors) would take these, or why it would refuse them whole.
    pub fn may_set_anchors(&self, domain: &TrustDomain, anchors: &Anchors) -> Result<(), String> {
        self.shared.snapshot.load().trust.may_follow(&self.shared.own, domain, anchors)
    }

    /// From now on nobody of this trust domain is trusted.
    pub fn remove_anchors(&self, domain: &TrustDomain) {
        self.replace(|old| {
            let mut sources = old.trust.sources.clone();
            sources.remove(domain);
            (self.with_sources(old, sources).0, ())
        });
    }

    /// From now on exactly these are refused, whatever their certificates say.
    pub fn set_denied(&self, denied: Denials) {
        self.replace(|old| {
            let (trust, _) = Trust::new(self.shared.own.clone(), old.trust.sources.clone(), denied, self.now());
            (changed(old, trust), ())
        });
    }

    fn with_sources(&self, old: &Snapshot, sources: BTreeMap<TrustDomain, Anchors>) -> (Option<Snapshot>, Vec<String>) {
        let (trust, dropped) = Trust::new(self.shared.own.clone(), sources, old.trust.denied.clone(), self.now());
        (changed(old, trust), dropped)
    }

    /// Makes the next snapshot from the present one, unless nothing has changed.
    fn replace<T>(&self, next: impl FnOnce(&Snapshot) -> (Option<Snapshot>, T)) -> T {
        let _writing = self.shared.writing.lock();
        let (snapshot, out) = next(&self.shared.snapshot.load());
        if let Some(snapshot) = snapshot {
            self.shared.snapshot.store(Arc::new(snapshot));
            // Behind the store: who sees the new number also sees the new snapshot.
            self.shared.generation.send_modify(|generation| *generation += 1);
        }
        out
    }

    /// The time by the clock that it was given.
    pub(crate) fn now(&self) -> SystemTime {
        (self.shared.clock)()
    }

    /// Who we are; `None` before the first [`set_identity`](Self::set_identity).
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.shared.snapshot.load().identity.clone()
    }

    /// The trust domain of this process.
    pub fn own_domain(&self) -> &TrustDomain {
        &self.shared.own
    }

    /// Grows with every change: what rests on an older generation is to be checked again or dropped.
    pub fn generation(&self) -> watch::Receiver<u64> {
        self.shared.generation.subscribe()
    }

    /// When the last of each trust domain's anchors ends, for metrics and alerts.
    pub fn anchor_expiries(&self) -> Vec<(TrustDomain, SystemTime)> {
        self.shared.snapshot.load().trust.expiries()
    }

    /// The dialling side's rustls configuration: TLS 1.3, mutual, one ALPN, no tickets, no resumption, no early data;
    /// the server must be what `expect` says. Built once per generation.
    pub(crate) fn client_config(
        &self,
        expect: &Expect,
        alpn: &[u8],
    ) -> Result<Arc<rustls::ClientConfig>, HandshakeError> {
        let snapshot = self.shared.snapshot.load();
        let identity = snapshot.usable_identity()?;
        snapshot.configs.client(expect, alpn, || {
            let verifier = snapshot.verifier(&self.shared, expect.clone());
            config::client(Some(identity.as_ref()), verifier, self.shared.clock, alpn)
        })
    }

    /// The accepting side's, with the same rules; the client's certificate is required.
    pub(crate) fn server_config(&self, alpn: &[&[u8]]) -> Result<Arc<rustls::ServerConfig>, HandshakeError> {
        let snapshot = self.shared.snapshot.load();
        let identity = snapshot.usable_identity()?;
        snapshot.configs.server(alpn, || {
            let verifier = snapshot.verifier(&self.shared, Expect::Trusted);
            config::server(identity, verifier, self.shared.clock, alpn)
        })
    }

    /// The join door's: the same certificate, with our own anchors behind it so that a pin can be found, and no
    /// certificate asked of the client.
    pub(crate) fn join_config(&self, alpn: &[&[u8]]) -> Result<Arc<rustls::ServerConfig>, HandshakeError> {
        let snapshot = self.shared.snapshot.load();
        let identity = snapshot.usable_identity()?;
        let anchors = snapshot.trust.anchors_of(&self.shared.own);
        snapshot.configs.server(alpn, || config::join(identity, anchors, self.shared.clock, alpn))
    }

    /// Our verifier by all that is trusted now, for who asks without being anybody.
    pub(crate) fn verifier(&self, expect: Expect) -> Arc<dyn rustls::client::danger::ServerCertVerifier> {
        Arc::new(self.shared.snapshot.load().verifier(&self.shared, expect))
    }

    /// The trust anchor's at its TCP door: a client's certificate is verified if it shows one, and not demanded.
    pub(crate) fn issuer_server_config(&self, alpn: &[u8]) -> Result<rustls::ServerConfig, HandshakeError> {
        let snapshot = self.shared.snapshot.load();
        let identity = snapshot.usable_identity()?;
        let verifier = snapshot.verifier(&self.shared, Expect::Trusted).optional();
        config::server(identity, verifier, self.shared.clock, &[alpn])
    }

    /// Towards the trust anchor, which must be `expect`; `show`: as who we are, rather than as nobody.
    pub(crate) fn issuer_client_config(
        &self,
        expect: &SpiffeId,
        alpn: &[u8],
        show: bool,
    ) -> Result<rustls::ClientConfig, HandshakeError> {
        let snapshot = self.shared.snapshot.load();
        let identity = if show { Some(snapshot.usable_identity()?.as_ref()) } else { None };
        let verifier = snapshot.verifier(&self.shared, Expect::Identities([expect.clone()].into()));
        config::client(identity, verifier, self.shared.clock, alpn)
    }

    /// After a handshake has completed: the peer that its certificates name, by the same verifier and by what is
    /// trusted now. `ours` is our [`identity`](Self::identity) as it was before the handshake's configuration was made,
    /// so that a renewal during the handshake is not missed.
    pub(crate) fn verified(
        &self,
        chain: &[CertificateDer<'_>],
        expect: &Expect,
        ours: Option<Arc<Identity>>,
    ) -> Result<VerifiedPeer, HandshakeError> {
        let svid = self.shared.snapshot.load().trust.verify(chain, expect, self.now())?;
        let _live = self.shared.live.count(&svid);
        let Svid { id, not_after, serial, anchor, authorities, keeps, .. } = svid;
        Ok(VerifiedPeer { id, not_after, serial, anchor, authorities, keeps, ours, _live })
    }

    /// Whom a chain proves now, without a handshake: it says nothing about who holds the key.
    pub fn proves(&self, chain: &[CertificateDer<'_>]) -> Result<Svid, VerifyError> {
        self.shared.snapshot.load().trust.verify(chain, &Expect::Trusted, self.now())
    }

    /// The same for a chain that has not begun: whom it proves as soon as it does. For an issuer that dated it by a clock
    /// which has been set back since, and for nobody else.
    pub fn proves_once_begun(&self, chain: &[CertificateDer<'_>]) -> Result<Svid, VerifyError> {
        match self.proves(chain) {
            Err(VerifyError::NotYetValid { not_before, .. }) => {
                self.shared.snapshot.load().trust.verify(chain, &Expect::Trusted, not_before)
            }
            proved => proved,
        }
    }

    /// How far the clocks of this trust domain are from ours, at least; `None` unless its last handshake with us failed
    /// by that, a moment ago.
    pub fn clock_gap(&self, domain: &TrustDomain) -> Option<ClockGap> {
        self.shared.gaps.of(domain)
    }

    /// Whether this peer would still be accepted now (bundle removed? anchor gone? denied? certificate over?).
    pub fn still_trusts(&self, peer: &VerifiedPeer) -> bool {
        self.shared.snapshot.load().trust.still_holds(peer, self.now())
    }

    /// Whether the path that proved this peer still stands, whatever the time: its anchors are in force and nobody denied
    /// it. For who drains what is over.
    pub fn still_anchored(&self, peer: &VerifiedPeer) -> bool {
        self.shared.snapshot.load().trust.still_anchored(peer)
    }

    /// Whether we still are who we were to this peer. Where we have another certificate, what rests on the old one is not
    /// to last until that ends: its issuer may wait to retire.
    pub fn still_shows(&self, peer: &VerifiedPeer) -> bool {
        fn leaf(identity: Option<&Arc<Identity>>) -> Option<&CertificateDer<'static>> {
            identity?.chain().first()
        }
        leaf(self.shared.snapshot.load().identity.as_ref()) == leaf(peer.ours.as_ref())
    }

    /// Until we are not who we were to this peer. Cancellation-safe.
    pub async fn shows_another(&self, peer: &VerifiedPeer) {
        let mut generation = self.generation();
        while self.still_shows(peer) {
            if generation.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Every anchor in force: whose, which, and when it ends.
    pub fn anchor_ends(&self) -> Vec<(TrustDomain, AuthorityId, SystemTime)> {
        self.shared.snapshot.load().trust.ends()
    }

    /// The anchors in force, a trust domain each: what is in memory, not what is configured.
    pub fn loaded(&self) -> Vec<LoadedAnchors> {
        self.shared.snapshot.load().trust.loaded()
    }

    /// What is live here and rests on which authority: everything that holds a [`VerifiedPeer`].
    pub fn dependences(&self) -> Vec<Dependence> {
        self.shared.live.all()
    }
}

impl Snapshot {
    /// By what is trusted in this snapshot.
    fn verifier(&self, shared: &Shared, expect: Expect) -> config::Verifier {
        config::Verifier::new(Arc::clone(&self.trust), expect, Arc::clone(&shared.gaps))
    }

    fn usable_identity(&self) -> Result<&Arc<Identity>, HandshakeError> {
        self.identity.as_ref().ok_or_else(|| HandshakeError {
            reason: "no_identity",
            detail: "this process has no certificate yet: its trust anchor has not answered".into(),
        })
    }
}

/// The next snapshot, if this trust is another than the old one's.
fn changed(old: &Snapshot, trust: Trust) -> Option<Snapshot> {
    (trust != *old.trust).then(|| Snapshot {
        identity: old.identity.clone(),
        trust: Arc::new(trust),
        configs: Configs::default(),
    })
}

/// Our verifier over these anchors alone, for who asks without being anybody.
pub(crate) fn verifier(
    sources: BTreeMap<TrustDomain, Anchors>,
    expect: Expect,
    clock: Clock,
) -> Result<Arc<dyn rustls::client::danger::ServerCertVerifier>, hawser_api::names::NameError> {
    // Nobody's: each bundle is a peer's.
    let nobody: TrustDomain = SERVER_NAME.parse()?;
    let (trust, _) = Trust::new(nobody, sources, Denials::default(), clock());
    Ok(Arc::new(config::Verifier::new(Arc::new(trust), expect, Arc::default())))
}
