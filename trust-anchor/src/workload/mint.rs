//! X509-SVIDs for workloads: each with a key of its own, made here, as the Workload API demands.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hawser_api::TrustDomain;
use hawser_tunnel::identity::renewal_after;
use parking_lot::Mutex;
use rcgen::{KeyPair, PublicKeyData, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateDer;
use zeroize::Zeroizing;

use super::entries::{Entries, Entry};
use crate::audit::{Caller, Entry as Record};
use crate::authority::Authority;
use crate::csr::Request;
use crate::hex;
use crate::issue::issue;
use crate::refused::Refused;

/// A signer that fails is not asked more often.
const RETRY: Duration = Duration::from_secs(1);

/// One issued SVID.
#[derive(Debug)]
pub(super) struct Svid {
    /// Leaf first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// PKCS#8, DER.
    pub(super) key: Zeroizing<Vec<u8>>,
    pub(super) not_after: SystemTime,
    /// When another should take its place: half its life, ten per cent more or less, so that not all come at once.
    pub(super) renew_at: SystemTime,
    /// Its own serial number.
    serial: String,
    /// Serial of the intermediate that signed it.
    issuer: String,
}

/// The SVIDs in use, one an entry: all processes of one identity share it until it is renewed, as they share the name.
#[derive(Debug, Default)]
pub(super) struct Svids(Mutex<BTreeMap<String, Slot>>);

type Slot = Arc<Mutex<Option<(Entry, Arc<Svid>)>>>;

impl Svids {
    /// The SVID of an entry: the one in use, or a new one when it is time, when the entry has changed, or when another
    /// intermediate signs now. One that still holds goes on while no other can be had. Takes tens of microseconds.
    /// `caller` is on record for one that is made now; who shares it later is not.
    pub(super) fn of(
        &self,
        authority: &Authority,
        entry: &Entry,
        caller: &Caller,
        now: SystemTime,
    ) -> Result<Arc<Svid>, Refused> {
        // One that is revoked gets none, and what it has is not handed out again.
        if authority.denials.lock().denies(&entry.id) {
            self.0.lock().remove(&entry.name);
            return Err(Refused::Denied(entry.id.clone()));
        }
        let slot = Arc::clone(self.0.lock().entry(entry.name.clone()).or_default());
        // Others who want the same wait for it; those who want another do not.
        let mut slot = slot.lock();
        let known = slot.as_ref().filter(|(of, svid)| of == entry && now < svid.not_after);
        let known = known.map(|(_, svid)| Arc::clone(svid));
        let issuer = authority.intermediate.load().as_ref().map(|intermediate| intermediate.serial().to_owned());
        if let Some(svid) = known.as_ref().filter(|svid| now < svid.renew_at && issuer.as_ref() == Some(&svid.issuer)) {
            return Ok(Arc::clone(svid));
        }
        let replaces = known.as_ref().map(|svid| svid.serial.clone()).unwrap_or_default();
        match mint(authority, entry, caller, replaces, now) {
            Ok(svid) => {
                let svid = Arc::new(svid);
                *slot = Some((entry.clone(), Arc::clone(&svid)));
                Ok(svid)
            }
            Err(refused) => {
                authority.record.refused(&refused);
                known.ok_or(refused)
            }
        }
    }

    /// Forgets what is revoked by its serial number ("trust-domain/serial"), so that another takes its place.
    pub(super) fn revoke(&self, serials: &[String], own: &TrustDomain) {
        let denied = |svid: &Svid| serials.iter().any(|serial| *serial == format!("{own}/{}", svid.serial));
        for slot in self.0.lock().values() {
            let mut slot = slot.lock();
            if slot.as_ref().is_some_and(|(_, svid)| denied(svid)) {
                *slot = None;
            }
        }
    }

    /// Forgets what no entry stands for, so that keys do not outlive it.
    pub(super) fn keep(&self, entries: &Entries) {
        self.0.lock().retain(|name, _| entries.has(name));
    }
}

impl Svid {
    /// When to look for another, seen from `now`.
    pub(super) fn look_again(&self, now: SystemTime) -> Duration {
        self.renew_at.duration_since(now).unwrap_or(RETRY)
    }
}

fn mint(
    authority: &Authority,
    entry: &Entry,
    caller: &Caller,
    replaces: String,
    now: SystemTime,
) -> Result<Svid, Refused> {
    let failed = |error: rcgen::Error| Refused::Failed(error.to_string());
    let (intermediate, mut terms) = authority.terms(now)?;
    authority.may_have(&entry.id)?;
    terms.lifetimes.workload = entry.ttl.unwrap_or(terms.lifetimes.workload).min(terms.lifetimes.workload);
    let key = KeyPair::generate().map_err(failed)?;
    let spki = key.subject_public_key_info();
    let public_key = SubjectPublicKeyInfo::from_der(&spki).map_err(failed)?;
    let request = Request { public_key, key_hash: hex::sha256(&spki), uris: Vec::new() };
    let mut template = issue(request, &entry.id, &terms, now)?;
    template.dns_names.clone_from(&entry.dns_names);
    let caller = Caller { spiffe_id: entry.id.to_string(), ..caller.clone() };
    let leaf = authority.certify(&intermediate, &template, Record { caller, replaces, ..Record::default() }, now)?;
    let life = template.not_after.duration_since(now).unwrap_or_default();
    Ok(Svid {
        chain: leaf.chain,
        serial: leaf.serial,
        key: Zeroizing::new(key.serialize_der()),
        not_after: template.not_after,
        renew_at: now + renewal_after(life),
        issuer: intermediate.serial().to_owned(),
    })
}
