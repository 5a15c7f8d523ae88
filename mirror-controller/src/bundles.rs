//! Peers' anchors: what is in force, kept on disk, and the one door for what takes its place.
//!
//! ```text
//! Link ───────────┐
//! watch/catalog ──┼─▶ Bundles::offer ─ plan/bundle (pure) ─▶ disk ─▶ credentials, world ─▶ discovery (Peer.bundle)
//! watch/endpoint ─┤                          └ refused, pinned ─▶ world, for the Link's status
//! accepted ───────┘
//! ```
//!
//! What takes effect is on disk first: after a crash the peer may have retired what was before. A second file has the
//! sequences alone, so that an old file that is put back is known for what it is.

use std::path::Path;
use std::sync::Arc;

use hawser_api::bundle::Bundle;
use hawser_api::objects::Link;
use hawser_api::{ClusterName, Code, Refusal, TrustDomain};
use hawser_tunnel::kept::Kept;
use hawser_tunnel::tls::{Anchors, Credentials};
use serde_json::{Map, Value, json};

use crate::plan::bundle::{self, Offered};
use crate::world::{PeerBundle, PeerState, Source, Store};

/// The sequences.
const FLOORS: &str = "floors.json";
/// The time of the last offer is told this coarsely: each change of it is a plan.
const REFRESHED_MS: i64 = 30_000;
/// Reasons are shown to people.
const REASON_MAX: usize = 400;

/// Where peers' anchors are kept. Clone to share.
#[derive(Debug, Clone)]
pub struct Bundles(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    credentials: Credentials,
    kept: Option<Kept>,
    /// One change at a time, from the judgement to its effect.
    changing: tokio::sync::Mutex<()>,
    /// The same for what is on disk.
    writing: parking_lot::Mutex<()>,
}

impl Bundles {
    /// Keeps them in this directory; without it they are not kept, which is said.
    pub fn new(directory: &Path, store: Store, credentials: Credentials) -> Self {
        let kept = Kept::open(directory)
            .inspect_err(
                |error| tracing::error!(%error, "bundles of peers cannot be kept; a restart begins with the Links'"),
            )
            .ok();
        Self(Arc::new(Inner {
            store,
            credentials,
            kept,
            changing: tokio::sync::Mutex::default(),
            writing: parking_lot::Mutex::default(),
        }))
    }

    /// What is in force for a Link that comes or changes; puts it into the credentials. The caller puts it into the world.
    pub fn begin(&self, name: &ClusterName, link: &Link) -> PeerBundle {
        let kept = self.read(name, &link.spec.trust_domain);
        let mut begun = bundle::begin(link, &kept);
        self.apply(name, &mut begun);
        let newer = kept.bundle.is_none_or(|kept| kept.bundle.sequence < begun.bundle.sequence);
        if begun.source == Source::Manifest && newer && begun.bundle.sequence >= kept.floor {
            // The Link's own bundle is a floor as well.
            told(self.0.keep(name, &begun));
        }
        begun
    }

    /// A Link is gone: what was kept for it is as well.
    pub fn forget(&self, name: &ClusterName) {
        let Some(kept) = &self.0.kept else { return };
        let _writing = self.0.writing.lock();
        let mut floors = floors(kept);
        let forgotten = floors.remove(name.as_str()).map_or(Ok(()), |_| kept.write(FLOORS, &Value::Object(floors)));
        if let Err(error) = forgotten.and_then(|()| kept.remove(&file(name))) {
            tracing::warn!(%error, cluster = %name, "the kept bundle cannot be removed");
        }
    }

    /// A peer's bundle, from wherever it is published: takes the place of what is in force, or says why not. A refusal
    /// is in the Link's status as well.
    pub async fn offer(&self, peer: &ClusterName, source: Source, document: &str) -> Result<Offered, Refusal> {
        let _changing = self.0.changing.lock().await;
        let Some(known) = self.known(peer) else { return Err(not_linked(peer)) };
        let may_follow = |domain: &TrustDomain, bundle: &Bundle| {
            self.0.credentials.may_set_anchors(domain, &Anchors::Bundle(bundle.clone()))
        };
        let judged = bundle::judge(&known, (source, document), crate::now(), may_follow);
        let mut next = PeerBundle { refreshed_ms: refreshed(&known), ..PeerBundle::clone(&known) };
        match &judged {
            Ok(Offered::Known) => next.trouble.clear(),
            Ok(Offered::Noted(sequence)) => {
                next.offered = next.offered.max(*sequence);
                next.trouble.clear();
            }
            Ok(Offered::Taken(bundle)) => {
                tracing::warn!(cluster = %peer, source = source.as_str(), sequence = bundle.sequence,
                    authorities = bundle.x509_authorities.len(), "a peer's anchors changed");
                let offered = bundle.sequence.max(next.offered);
                let (document, bundle, trouble) = (document.to_owned(), bundle.clone(), String::new());
                next = PeerBundle { document, bundle, source, offered, trouble, ..next };
                self.write(peer, &next).await;
                self.apply(peer, &mut next);
            }
            Err(reason) => next.trouble = refused(source, reason),
        }
        let trouble = next.trouble.clone();
        self.put(peer, next);
        judged.map_err(|_| Refusal::new(Code::BadRequest, trouble, "see the Link's status"))
    }

    /// Why a source cannot be asked; `None`: it can.
    pub fn trouble(&self, peer: &ClusterName, source: Source, why: Option<&str>) {
        let Some(known) = self.known(peer) else { return };
        let trouble = why.map(|why| refused(source, why)).unwrap_or_default();
        self.put(peer, PeerBundle { trouble, ..PeerBundle::clone(&known) });
    }

    fn known(&self, peer: &ClusterName) -> Option<Arc<PeerBundle>> {
        self.0.store.now().peers.get(peer)?.bundle.clone()
    }

    fn put(&self, peer: &ClusterName, next: PeerBundle) {
        self.0.store.update_peer(crate::now_ms(), peer, |state: &mut PeerState| {
            // A Link that changed meanwhile is another's word.
            let same =
                state.bundle.as_ref().is_some_and(|known| known.domain == next.domain && known.pinned == next.pinned);
            let changed = same && state.bundle.as_deref() != Some(&next);
            if changed {
                state.bundle = Some(Arc::new(next));
            }
            changed
        });
    }

    fn apply(&self, name: &ClusterName, bundle: &mut PeerBundle) {
        let anchors = match bundle.source {
            Source::OwnRoot => Anchors::OwnRoot,
            _ => Anchors::Bundle(bundle.bundle.clone()),
        };
        if let Err(reason) = self.0.credentials.may_set_anchors(&bundle.domain, &anchors) {
            tracing::error!(cluster = %name, reason, "the bundle is not taken");
            bundle.trouble = clean(&reason);
            return;
        }
        for dropped in self.0.credentials.set_anchors(&bundle.domain, anchors) {
            tracing::warn!(cluster = %name, "an anchor of the peer's bundle is not used: {dropped}");
        }
    }

    /// What a former run took, if nobody has put an older one in its place.
    fn read(&self, name: &ClusterName, domain: &TrustDomain) -> bundle::Kept {
        let Some(kept) = self.0.kept.as_ref() else { return bundle::Kept::default() };
        let floors = floors(kept);
        let floor = match floors.get(name.as_str()) {
            Some(floor) if text(floor, "trustDomain") == Some(domain.as_str()) => floor.get("sequence"),
            _ => None,
        };
        let floor = floor.and_then(Value::as_u64).unwrap_or_default();
        let read = kept.read(&file(name)).inspect_err(|error| tracing::error!(%error, cluster = %name, "not used"));
        let bundle = read.ok().flatten().and_then(|value| parse(&value, domain));
        if let Some(old) = bundle.as_ref().filter(|bundle| bundle.bundle.sequence < floor) {
            tracing::error!(cluster = %name, sequence = old.bundle.sequence, floor,
                "an older bundle was put in the place of the one that was kept; it is not used");
        }
        bundle::Kept { bundle: bundle.filter(|bundle| bundle.bundle.sequence >= floor), floor }
    }

    /// In this order: a floor without its bundle is a bundle that is asked for again, a bundle without its floor could
    /// be rolled back.
    async fn write(&self, name: &ClusterName, next: &PeerBundle) {
        let (inner, name, next) = (self.0.clone(), name.clone(), next.clone());
        if let Ok(written) = tokio::task::spawn_blocking(move || inner.keep(&name, &next)).await {
            told(written);
        }
    }
}

impl Inner {
    fn keep(&self, name: &ClusterName, bundle: &PeerBundle) -> std::io::Result<()> {
        let Some(kept) = &self.kept else { return Ok(()) };
        let _writing = self.writing.lock();
        let content = json!({
            "trustDomain": bundle.domain.as_str(),
            "document": bundle.document,
            "source": bundle.source.as_str(),
        });
        kept.write(&file(name), &content)?;
        let mut floors = floors(kept);
        let floor = json!({ "trustDomain": bundle.domain.as_str(), "sequence": bundle.bundle.sequence });
        floors.insert(name.to_string(), floor);
        kept.write(FLOORS, &Value::Object(floors))
    }
}

fn told(written: std::io::Result<()>) {
    if let Err(error) = written {
        // Not to take it would be worse: a key that was revoked would stay in force.
        tracing::error!(%error, "the bundle of a peer is in force and not on disk; a restart would not know it");
    }
}

fn text<'v>(value: &'v Value, field: &str) -> Option<&'v str> {
    value.get(field).and_then(Value::as_str)
}

/// Of this trust domain: what another had under the same Link's name is nobody's.
fn parse(value: &Value, domain: &TrustDomain) -> Option<PeerBundle> {
    if text(value, "trustDomain") != Some(domain.as_str()) {
        return None;
    }
    let document = text(value, "document")?.to_owned();
    let bundle = Bundle::parse(&document).ok()?;
    let source = text(value, "source").and_then(Source::parse).unwrap_or(Source::Manifest);
    let (offered, domain, trouble) = (bundle.sequence, domain.clone(), String::new());
    Some(PeerBundle { domain, document, bundle, source, pinned: false, offered, refreshed_ms: 0, trouble })
}

fn file(name: &ClusterName) -> String {
    format!("{name}.bundle.json")
}

fn floors(kept: &Kept) -> Map<String, Value> {
    match kept.read(FLOORS) {
        Ok(Some(Value::Object(floors))) => floors,
        Ok(_) => Map::new(),
        Err(error) => {
            tracing::error!(%error, "the sequences of peers' bundles are lost");
            Map::new()
        }
    }
}

fn refreshed(known: &PeerBundle) -> i64 {
    let now = crate::now_ms();
    if (now - known.refreshed_ms).abs() >= REFRESHED_MS { now } else { known.refreshed_ms }
}

fn refused(source: Source, why: &str) -> String {
    format!("{}: {}", source.as_str(), clean(why))
}

/// A peer's words may be in it.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_MAX).collect()
}

fn not_linked(peer: &ClusterName) -> Refusal {
    Refusal::new(Code::NotLinked, format!("{peer} is not linked"), "create a Link for it")
}
