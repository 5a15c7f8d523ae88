//! Whom we trust: the anchors of each trust domain, never pooled, and the deny-list.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest;
use hawser_api::TrustDomain;
use hawser_api::bundle::Bundle;
use parking_lot::Mutex;
use rustls_pki_types::CertificateDer;

use super::{Anchors, Denials, Expect, LoadedAnchors, VerifiedPeer};
use crate::verify::{ANCHORS_MAX, Anchor, AuthorityId, Svid, VerifyError, verify};

/// Most chains kept per generation: a gateway's peers that come and go within one.
const PROVED_MAX: usize = 4096;

/// Never changed, only replaced.
#[derive(Debug)]
pub(super) struct Trust {
    /// As they were set: [`Anchors::OwnRoot`] follows our own bundle when that changes.
    pub(super) sources: BTreeMap<TrustDomain, Anchors>,
    pub(super) denied: Denials,
    anchors: BTreeMap<TrustDomain, Vec<Anchor>>,
    /// What chains have proved by these very anchors, by their hash. [`verify`] is pure: for one chain and one set of
    /// anchors its answer changes with the time alone, and that is looked at each time. Saves the second check of a
    /// handshake (in it and after it) and those of a peer that comes again; whether the peer holds the key is proved
    /// in each handshake anew.
    proved: Mutex<HashMap<[u8; 32], Svid>>,
}

impl PartialEq for Trust {
    fn eq(&self, other: &Self) -> bool {
        self.sources == other.sources && self.denied == other.denied && self.anchors == other.anchors
    }
}

impl Trust {
    /// Reads all anchors; also returns what was dropped and why.
    pub(super) fn new(
        own: TrustDomain,
        sources: BTreeMap<TrustDomain, Anchors>,
        denied: Denials,
        now: SystemTime,
    ) -> (Self, Vec<String>) {
        let mut dropped = Vec::new();
        let mut anchors = BTreeMap::new();
        for (domain, source) in &sources {
            let found = match (source, sources.get(&own)) {
                (Anchors::Bundle(bundle), _) => read(bundle, domain, now, &mut dropped),
                // What is wrong with our own bundle is said once, for our own trust domain; that it also has
                // authorities of other trust domains is no fault.
                (Anchors::OwnRoot, Some(Anchors::Bundle(bundle))) => read(bundle, domain, now, &mut Vec::new()),
                (Anchors::OwnRoot, _) => Vec::new(),
            };
            if *source == Anchors::OwnRoot && *domain == own {
                dropped.push(format!("{domain}: its own anchors can only be a bundle"));
            }
            anchors.insert(domain.clone(), found);
        }
        let peers = sources.iter().filter(|(domain, source)| **domain != own && matches!(source, Anchors::Bundle(_)));
        for (domain, _) in peers {
            dedicate(domain, &mut anchors);
        }
        (Self { sources, denied, anchors, proved: Mutex::default() }, dropped)
    }

    /// Whether these anchors may take the place of those in force: a replayed older bundle may not, nor a peer's bundle
    /// with somebody else's key.
    pub(super) fn may_follow(&self, own: &TrustDomain, domain: &TrustDomain, anchors: &Anchors) -> Result<(), String> {
        let Anchors::Bundle(new) = anchors else { return Ok(()) };
        if let Some(Anchors::Bundle(old)) = self.sources.get(domain)
            && new.sequence < old.sequence
        {
            return Err(format!(
                "{domain}: bundle refused, its sequence {} is lower than {} in force",
                new.sequence, old.sequence
            ));
        }
        if domain == own { Ok(()) } else { self.brings_no_other_key(own, domain, new) }
    }

    /// A peer that brings a key of ours would have the identities that hang under it taken for its own; one that brings
    /// another peer's, likewise. A root that several clusters of another fabric share is no such thing: whatever hangs
    /// under it must name its trust domain.
    fn brings_no_other_key(&self, own: &TrustDomain, domain: &TrustDomain, bundle: &Bundle) -> Result<(), String> {
        for new in bundle.x509_authorities.iter().filter_map(|der| Anchor::read(der, domain).ok()) {
            let key = new.authority();
            let same = |anchors: &Vec<Anchor>| anchors.iter().find(|a| a.authority() == key).cloned();
            if self.anchors.get(own).and_then(same).is_some() {
                return Err(format!(
                    "{domain}: bundle refused, its key {key} is an anchor of our own\nhint: a cluster that hangs under our \
                     own root is linked without a bundle"
                ));
            }
            let bundles = self.anchors.iter().filter(|(other, _)| *other != domain && self.has_bundle(other));
            for (other, known) in bundles.filter_map(|(other, anchors)| Some((other, same(anchors)?))) {
                if !(new.is_fabric_root() && known.is_fabric_root()) {
                    return Err(format!(
                        "{domain}: bundle refused, its key {key} is an anchor of {other}\nhint: find out which of the two \
                         it belongs to, and unlink the other"
                    ));
                }
            }
        }
        Ok(())
    }

    fn has_bundle(&self, domain: &TrustDomain) -> bool {
        matches!(self.sources.get(domain), Some(Anchors::Bundle(_)))
    }

    pub(super) fn domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.anchors.keys()
    }

    /// The certificates of a trust domain's anchors.
    pub(super) fn anchors_of(&self, domain: &TrustDomain) -> Vec<CertificateDer<'static>> {
        self.anchors.get(domain).into_iter().flatten().map(|anchor| anchor.der().clone()).collect()
    }

    pub(super) fn expiries(&self) -> Vec<(TrustDomain, SystemTime)> {
        let last = |anchors: &Vec<Anchor>| anchors.iter().map(Anchor::not_after).max();
        self.anchors.iter().filter_map(|(domain, anchors)| Some((domain.clone(), last(anchors)?))).collect()
    }

    pub(super) fn ends(&self) -> Vec<(TrustDomain, AuthorityId, SystemTime)> {
        let each = |(domain, anchors): (&TrustDomain, &Vec<Anchor>)| {
            anchors.iter().map(|anchor| (domain.clone(), anchor.authority(), anchor.not_after())).collect::<Vec<_>>()
        };
        self.anchors.iter().flat_map(each).collect()
    }

    pub(super) fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        expect: &Expect,
        now: SystemTime,
    ) -> Result<Svid, VerifyError> {
        let svid = self.prove(chain, now)?;
        if self.denied.covers(&svid.id, &svid.serial, &svid.authorities) {
            return Err(VerifyError::Denied(svid.id));
        }
        match expect {
            Expect::Identities(ids) if !ids.contains(&svid.id) => Err(VerifyError::WrongIdentity(svid.id)),
            _ => Ok(svid),
        }
    }

    fn prove(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<Svid, VerifyError> {
        let key = hash(chain);
        if let Some(svid) = self.proved.lock().get(&key).filter(|svid| svid.holds(now)) {
            return Ok(svid.clone());
        }
        let svid = verify(chain, now, |domain| self.anchors.get(domain).map(Vec::as_slice))?;
        let mut proved = self.proved.lock();
        if proved.len() >= PROVED_MAX {
            proved.clear();
        }
        proved.insert(key, svid.clone());
        Ok(svid)
    }

    /// Whether what was proved by this anchor still is.
    pub(super) fn still_holds(&self, peer: &VerifiedPeer, now: SystemTime) -> bool {
        let Some(anchor) = self.anchor_of(peer) else { return false };
        now <= anchor.not_after() && now <= peer.not_after && self.still_anchored(peer)
    }

    /// Whether what was proved by this anchor would be today, were its certificates not over.
    pub(super) fn still_anchored(&self, peer: &VerifiedPeer) -> bool {
        let Some(anchor) = self.anchor_of(peer) else { return false };
        // An anchor that turned out to be of several trust domains, and an authority that turned out to be another's.
        let by_rules = anchor.rules() <= peer.keeps && !peer.authorities.iter().any(|key| anchor.is_elsewhere(key));
        by_rules && !self.denied.covers(&peer.id, &peer.serial, &peer.authorities)
    }

    fn anchor_of(&self, peer: &VerifiedPeer) -> Option<&Anchor> {
        let anchors = self.anchors.get(&peer.id.trust_domain())?;
        anchors.iter().find(|anchor| anchor.fingerprint() == peer.anchor)
    }

    /// What is in force, a trust domain each.
    pub(super) fn loaded(&self) -> Vec<LoadedAnchors> {
        let loaded = |(domain, anchors): (&TrustDomain, &Vec<Anchor>)| LoadedAnchors {
            domain: domain.clone(),
            sequence: match self.sources.get(domain) {
                Some(Anchors::Bundle(bundle)) => bundle.sequence,
                Some(Anchors::OwnRoot) | None => 0,
            },
            authorities: anchors.iter().map(Anchor::authority).collect(),
        };
        self.anchors.iter().map(loaded).collect()
    }
}

/// Holds those of this peer's anchors whose keys no other trust domain has to the rules of SPIFFE alone.
fn dedicate(domain: &TrustDomain, anchors: &mut BTreeMap<TrustDomain, Vec<Anchor>>) {
    let others = anchors.iter().filter(|(other, _)| *other != domain).flat_map(|(_, anchors)| anchors);
    let elsewhere: Arc<BTreeSet<AuthorityId>> = Arc::new(others.map(Anchor::authority).collect());
    for anchor in anchors.get_mut(domain).into_iter().flatten() {
        if !elsewhere.contains(&anchor.authority()) {
            *anchor = anchor.clone().dedicated(Arc::clone(&elsewhere));
        }
    }
}

/// Of certificates and their lengths, so that no two chains make the same input.
fn hash(chain: &[CertificateDer<'_>]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for der in chain {
        context.update(&der.len().to_be_bytes());
        context.update(der);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

fn read(bundle: &Bundle, domain: &TrustDomain, now: SystemTime, dropped: &mut Vec<String>) -> Vec<Anchor> {
    let mut anchors: Vec<Anchor> = Vec::new();
    for (index, der) in bundle.x509_authorities.iter().enumerate() {
        let reason = match Anchor::read(der, domain) {
            // webpki never looks at an anchor's times: an old key would be good for ever.
            Ok(anchor) if anchor.not_after() < now => "has expired".into(),
            Ok(anchor) if anchors.contains(&anchor) => "occurs twice".into(),
            Ok(_) if anchors.len() >= ANCHORS_MAX => format!("is one more than {ANCHORS_MAX}"),
            Ok(anchor) => {
                anchors.push(anchor);
                continue;
            }
            Err(error) => error.to_string(),
        };
        dropped.push(format!("{domain}: anchor {} dropped: {reason}", index + 1));
    }
    anchors
}
