//! Keeps a process's identity fresh: asks this cluster's trust anchor for a leaf at its [`Door`], puts it into
//! [`Credentials`], renews at half life with a new key, and keeps the last one on disk so that a restart needs nobody.
//!
//! ```text
//! disk ─▶ Credentials                                   at start, with the trust anchor down too
//! new key, CSR ─▶ Issue (token │ renewal) ─▶ verify ─▶ disk ─▶ Credentials          at half life ± 10 %
//! WatchBundle ─▶ Credentials ─▶ disk                    whenever the bundle or the deny-list changes
//!             └▶ renew soon                             when another authority signs, or ours is suspected
//! ```

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hawser_api::bundle::Bundle;
use hawser_api::config::{IdentityConfig, Issuer};
use hawser_api::proto::issuer as published;
use hawser_api::proto::issuer::issue_request::Attestation;
use hawser_api::proto::issuer::{IssueReply, IssueRequest, RedeemLinkRequest, Renewal};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SigningKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;

use crate::Clock;
use crate::tls::{Anchors, Credentials, Identity};
use crate::verify::Leaf;

mod client;
mod denied;
mod door;
mod hint;
mod store;

pub use client::{audit, channel, report_fabric, watch_bundle};
pub use denied::denials;
pub use door::{Answered, Door, IssuerServer};
use hint::Hint;
pub use hint::renewal_after;
pub use store::certificate_pem;
use store::{Store, Stored};
pub use tonic::Status;
pub use tonic::transport::Channel;

/// Where an identity comes from and where it is kept.
#[derive(Debug, Clone)]
pub struct IdentitySource {
    /// The trust anchor's.
    pub door: Door,
    /// What is shown there without a certificate; read at each try that needs it.
    pub token: TokenFile,
    /// Directory for key, chain and bundle (made 0700; files 0600, written and renamed).
    pub store: PathBuf,
}

/// A file with what says who we are before there is a certificate.
#[derive(Debug, Clone)]
pub enum TokenFile {
    /// A one-time join token; the file may be absent.
    Join(PathBuf),
    /// The pod's service account token.
    ServiceAccount(PathBuf),
}

impl IdentitySource {
    /// As configured, for the process with these credentials.
    pub fn new(config: &IdentityConfig, credentials: &Credentials) -> Self {
        let token = match &config.issuer {
            Issuer::Local { join_token, .. } => TokenFile::Join(join_token.clone()),
            Issuer::Remote(remote) => TokenFile::ServiceAccount(remote.token.clone()),
        };
        Self { door: Door::new(config, credentials), token, store: config.store.clone() }
    }
}

impl TokenFile {
    fn read(&self) -> Result<Attestation, String> {
        let (path, what) = match self {
            Self::Join(path) => (path, "join token"),
            Self::ServiceAccount(path) => (path, "service account token"),
        };
        let text = std::fs::read_to_string(path).map_err(|e| format!("no {what}: {}: {e}", path.display()))?;
        let text = text.trim().to_owned();
        Ok(match self {
            Self::Join(_) => Attestation::JoinToken(text),
            Self::ServiceAccount(_) => Attestation::ServiceAccountToken(text),
        })
    }
}

/// By how much our issuers date leaves back, so that a peer whose clock is behind takes them.
pub const BACKDATE: Duration = Duration::from_secs(60);
/// First pause after a failure.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// Longest pause without an identity: nothing works here until there is one.
const PAUSE_WITHOUT: Duration = Duration::from_secs(2);
/// Longest pause with one.
const PAUSE_WITH: Duration = Duration::from_secs(15);
/// Longest sleep: a machine that was suspended, or whose clock was set, is not late by more than this.
const SLEEP_MAX: Duration = Duration::from_secs(10);

/// Runs until dropped: loads what is on disk, then asks and renews. Errors are logged and tried again with backoff.
pub async fn keep(credentials: Credentials, source: IdentitySource, clock: Clock) {
    let hint = watch::Sender::new(Hint::default());
    let mut keeper = Keeper {
        store: Store::new(&source.store),
        credentials,
        source,
        clock,
        current: None,
        asked: None,
        hint: hint.subscribe(),
    };
    keeper.load();
    let (credentials, store) = (keeper.credentials.clone(), keeper.store.clone());
    let door = keeper.source.door.clone();
    let follower = Follower { credentials, store, hint };
    tokio::join!(keeper.renew_for_ever(), follower.follow(door));
}

/// Hands a joining cluster's request to the trust anchor, and brings its reply; this side reads neither. The error is
/// for the log.
pub async fn redeem_link(door: &Door, request: Vec<u8>, source: String) -> Result<Vec<u8>, String> {
    let request = RedeemLinkRequest { request, source };
    client::redeem_link(door, request).await.map_err(|status| status.message().to_owned())
}

/// This cluster's own bundle, as the trust anchor behind this socket publishes it now. The error is for people.
pub async fn own_bundle(socket: &Path) -> Result<String, String> {
    let door = Door::Socket(socket.to_owned());
    let first = async { watch_bundle(&door).await?.message().await };
    let first = tokio::time::timeout(PAUSE_WITHOUT * 2, first).await.map_err(|_| "no bundle is published yet")?;
    let bundle = first.map_err(|status| status.message().to_owned())?;
    bundle.map(|bundle| bundle.document).ok_or_else(|| "the trust anchor is shutting down".to_owned())
}

/// When the certificate that is kept in this directory ends; `None`: there is none.
pub fn kept_until(store: &Path) -> Option<SystemTime> {
    let stored = Store::new(store).svid().ok()??;
    Leaf::read(stored.chain.first()?).ok().map(|leaf| leaf.not_after)
}

/// What we are, with what it takes to prove it to the issuer.
struct Current {
    chain: Vec<CertificateDer<'static>>,
    key: KeyPair,
    begun: SystemTime,
    not_after: SystemTime,
    renew_at: SystemTime,
    /// A hint has been heeded: another of the same kind does not throw the dice again.
    hastened: bool,
}

impl Current {
    fn new(identity: &Identity, key: KeyPair) -> Self {
        let (not_before, not_after) = (identity.not_before(), identity.not_after());
        let begun = Some(not_before + BACKDATE).filter(|begun| *begun < not_after).unwrap_or(not_before);
        let life = not_after.duration_since(begun).unwrap_or_default();
        let renew_at = begun + renewal_after(life);
        Self { chain: identity.chain().to_vec(), key, begun, not_after, renew_at, hastened: false }
    }

    /// Renews within the hint's time, if it means us.
    fn heed(&mut self, hint: &Hint, now: SystemTime) {
        if !self.hastened && hint.means(&self.chain, self.begun) {
            self.hastened = true;
            self.renew_at = self.renew_at.min(now + hint.within.mul_f64(rand::random_range(0.0..1.0)));
        }
    }
}

struct Keeper {
    store: Store,
    credentials: Credentials,
    source: IdentitySource,
    clock: Clock,
    current: Option<Current>,
    /// The key that was asked for and not answered yet: a join token is bound to it.
    asked: Option<KeyPair>,
    hint: watch::Receiver<Hint>,
}

impl Keeper {
    fn load(&mut self) {
        // Before anything else: who was denied is denied from the first handshake on.
        if let Some(denied) = self.store.denied() {
            self.credentials.set_denied(denials(&denied));
        }
        if let Some(bundle) = self.store.bundle() {
            take_bundle(&self.credentials, bundle);
        }
        match self.store.svid().and_then(|stored| stored.map(|stored| self.take(stored)).transpose()) {
            Ok(Some(())) => tracing::info!(store = %self.source.store.display(), "loaded the stored identity"),
            Ok(None) => {}
            Err(reason) => tracing::warn!(%reason, "the stored identity is not usable"),
        }
    }

    fn take(&mut self, stored: Stored) -> Result<(), String> {
        let identity = identity(stored.chain, &stored.key)?;
        if identity.id().trust_domain() != *self.credentials.own_domain() {
            return Err(format!("{} is not of {}", identity.id(), self.credentials.own_domain()));
        }
        if identity.not_after() <= (self.clock)() {
            return Err(format!("{} has expired", identity.id()));
        }
        self.current = Some(Current::new(&identity, stored.key));
        self.credentials.set_identity(identity);
        Ok(())
    }

    async fn renew_for_ever(&mut self) {
        let mut failures = 0;
        loop {
            self.until_due().await;
            match self.renew().await {
                Ok(()) => failures = 0,
                Err(reason) => {
                    let has_one = self.current.as_ref().is_some_and(|c| c.not_after > (self.clock)());
                    tracing::warn!(%reason, has_one, "cannot get an identity");
                    tokio::time::sleep(pause(failures, if has_one { PAUSE_WITH } else { PAUSE_WITHOUT })).await;
                    failures += 1;
                }
            }
        }
    }

    /// Until half life, or until we are told that what we present is not wanted any more, or proves nothing.
    async fn until_due(&mut self) {
        let mut generation = self.credentials.generation();
        let clock = self.clock;
        let Some(current) = &mut self.current else { return };
        loop {
            current.heed(&self.hint.borrow_and_update(), clock());
            let left = current.renew_at.duration_since(clock()).unwrap_or_default();
            if left.is_zero() || self.credentials.proves(&current.chain).is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(left.min(SLEEP_MAX)) => {}
                // The senders live in our own credentials and beside us: this cannot fail.
                _ = generation.changed() => {}
                _ = self.hint.changed() => {}
            }
        }
    }

    async fn renew(&mut self) -> Result<(), String> {
        let key = match self.asked.take() {
            Some(key) => key,
            None => KeyPair::generate().map_err(|e| e.to_string())?,
        };
        match self.request(&key).await {
            Ok(reply) => self.accept(reply, key).await,
            Err(reason) => {
                self.asked = Some(key);
                Err(reason)
            }
        }
    }

    async fn request(&self, key: &KeyPair) -> Result<IssueReply, String> {
        let mut params = CertificateParams::default();
        // The issuer decides who we are; it looks at nothing but the key.
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(key).map_err(|e| e.to_string())?.der().to_vec();
        match self.renewal(&csr) {
            Some(renewal) => match self.ask(&csr, renewal).await {
                // What we have proves nothing to the issuer: only a token can help.
                Err(status) if status.code() == tonic::Code::PermissionDenied => self.introduce(&csr, &status).await,
                answered => answered.map_err(|status| text(&status)),
            },
            None => self.introduce(&csr, &Status::unauthenticated("no certificate yet")).await,
        }
    }

    fn renewal(&self, csr: &[u8]) -> Option<Attestation> {
        let current = self.current.as_ref().filter(|current| current.not_after > (self.clock)())?;
        let signature = current.key.sign(csr).ok()?;
        let chain = current.chain.iter().map(|der| der.to_vec()).collect();
        Some(Attestation::Renewal(Renewal { chain, signature }))
    }

    async fn introduce(&self, csr: &[u8], why: &Status) -> Result<IssueReply, String> {
        let token = self.source.token.read().map_err(|reason| format!("{}; and {reason}", text(why)))?;
        self.ask(csr, token).await.map_err(|status| text(&status))
    }

    async fn ask(&self, csr: &[u8], attestation: Attestation) -> Result<IssueReply, Status> {
        let request = IssueRequest { csr: csr.to_vec(), attestation: Some(attestation) };
        client::issue(&self.source.door, request).await
    }

    /// Takes a new certificate if our own verifier does; until then the old one is served.
    async fn accept(&mut self, reply: IssueReply, key: KeyPair) -> Result<(), String> {
        let bundle = Bundle::parse(&reply.bundle).map_err(|e| e.to_string())?;
        take_bundle(&self.credentials, bundle);
        let chain: Vec<_> = reply.chain.into_iter().map(CertificateDer::from).collect();
        let svid = self.credentials.proves(&chain).map_err(|e| format!("the new certificate: {e}"))?;
        let before = self.credentials.identity();
        if svid.id.trust_domain() != *self.credentials.own_domain() {
            return Err(format!("the new certificate is for {}, of another trust domain", svid.id));
        }
        let stored = Stored { chain, key };
        if let Err(error) = self.store.save(reply.bundle, &stored).await {
            tracing::warn!(%error, store = %self.source.store.display(), "the identity is not on disk");
        }
        self.take(stored)?;
        let renewed = before.is_some_and(|before| *before.id() == svid.id);
        tracing::info!(spiffe_id = %svid.id, serial = svid.serial, renewed, "has an identity");
        Ok(())
    }
}

fn identity(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Result<Identity, String> {
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Identity::new(chain, key).map_err(|e| e.to_string())
}

fn take_bundle(credentials: &Credentials, bundle: Bundle) {
    for reason in credentials.set_anchors(credentials.own_domain(), Anchors::Bundle(bundle)) {
        tracing::warn!(%reason, "our own bundle");
    }
}

/// What the trust anchor tells everybody.
struct Follower {
    credentials: Credentials,
    store: Store,
    hint: watch::Sender<Hint>,
}

impl Follower {
    async fn follow(self, door: Door) {
        let mut failures = 0;
        loop {
            match watch_bundle(&door).await {
                Ok(mut bundles) => {
                    while let Ok(Some(published)) = bundles.message().await {
                        failures = 0;
                        self.take(published).await;
                    }
                }
                Err(status) => tracing::debug!(status = text(&status), "cannot watch the bundle"),
            }
            tokio::time::sleep(pause(failures, PAUSE_WITH)).await;
            failures += 1;
        }
    }

    /// The deny-list first: it must not wait for a disk, or for a bundle that cannot be read.
    async fn take(&self, published: published::Bundle) {
        if let Some(denied) = &published.denied {
            self.deny(denied).await;
        }
        self.hint.send_replace(Hint::new(&published));
        let bundle = match Bundle::parse(&published.document) {
            Ok(bundle) => bundle,
            Err(error) => return tracing::warn!(%error, "the trust anchor published something else"),
        };
        take_bundle(&self.credentials, bundle);
        if let Err(error) = self.store.save_bundle(published.document).await {
            tracing::warn!(%error, "the bundle is not on disk");
        }
    }

    async fn deny(&self, denied: &published::Denied) {
        if !self.store.follows(denied.version) {
            return tracing::warn!(version = denied.version, "an older deny-list is refused");
        }
        self.credentials.set_denied(denials(denied));
        if let Err(error) = self.store.save_denied(denied).await {
            tracing::warn!(%error, "the deny-list is not on disk");
        }
    }
}

fn text(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

/// Doubles from [`PAUSE_FIRST`] to `longest`, then half of it at random.
fn pause(failures: u32, longest: Duration) -> Duration {
    let full = PAUSE_FIRST.saturating_mul(1 << failures.min(16)).min(longest);
    full.mul_f64(rand::random_range(0.5..1.0))
}
