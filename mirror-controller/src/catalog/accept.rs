//! Pure: a peer's update → what this cluster believes, or why not.
//!
//! A peer can name services, ports, identities and what the standard lets it export of labels and annotations, and
//! nothing else: no address above all. Its identities must be of its own trust domain, so that it speaks only for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hawser_api::objects::link::RefusedImport;
use hawser_api::proto::catalog;
use hawser_api::{ServiceKey, SpiffeId, TrustDomain};

use super::limits::{AUTHORITIES_MAX, IDENTITIES_MAX, REJECTIONS_MAX, SERVICES_MAX};
use super::{ports, standard};
use crate::world::{Catalog, Offer, OfferedPort, Protocol};

/// Withdrawn services whose callers are told why; more are forgotten.
pub const WITHDRAWN_MAX: usize = 1000;
/// Refused entries that are remembered with their reasons.
pub const REFUSED_MAX: usize = 1000;
/// Bytes of all offers of one peer together: ten thousand services of ordinary length are a tenth of it, and ten
/// thousand of the greatest length would be a gigabyte.
pub const CATALOG_MAX: usize = 32 << 20;
/// Longest reason that is taken from a peer, in characters.
const REASON_MAX: usize = 200;
/// Of the name of an authority: SHA-256.
const KEY: usize = 32;
/// More ready endpoints than this change nothing.
const ENDPOINTS_MAX: u32 = 1_000_000;

/// What is believed after this update.
pub fn update(known: &Catalog, update: &catalog::Update, domain: &TrustDomain) -> Catalog {
    let mut next = known.clone();
    if update.snapshot {
        let named: BTreeSet<ServiceKey> =
            update.changed.iter().filter_map(|s| ServiceKey::parse(&s.namespace, &s.name).ok()).collect();
        let gone: Vec<ServiceKey> = next.offers.keys().filter(|key| !named.contains(*key)).cloned().collect();
        gone.iter().for_each(|key| withdraw(&mut next, key));
        next.refused.clear();
    }
    let mut size: usize = next.offers.values().map(|offer| offer.size()).sum();
    for service in &update.changed {
        change(&mut next, service, domain, &mut size);
    }
    for name in &update.removed {
        if let Ok(key) = ServiceKey::parse(&name.namespace, &name.name) {
            withdraw(&mut next, &key);
        }
        let shown = shown(&name.namespace, &name.name);
        next.refused.retain(|refused| refused.service != shown);
    }
    if update.snapshot || !update.region.is_empty() {
        next.region = region(&update.region);
    }
    next
}

fn change(next: &mut Catalog, service: &catalog::Service, domain: &TrustDomain, size: &mut usize) {
    let shown = shown(&service.namespace, &service.name);
    next.refused.retain(|refused| refused.service != shown);
    // What was believed of it before is not true any more, whatever comes of this.
    if let Ok(key) = ServiceKey::parse(&service.namespace, &service.name)
        && let Some(old) = next.offers.remove(&key)
    {
        *size = size.saturating_sub(old.size());
    }
    let reason = match offer(service, domain) {
        Ok(_) if next.offers.len() >= SERVICES_MAX => format!("the peer offers more than {SERVICES_MAX} services"),
        Ok(offer) if *size + offer.size() > CATALOG_MAX => {
            format!("the peer's catalog is longer than {CATALOG_MAX} bytes")
        }
        Ok(offer) => {
            *size += offer.size();
            next.withdrawn.remove(&offer.service);
            next.offers.insert(offer.service.clone(), Arc::new(offer));
            return;
        }
        Err(reason) => reason,
    };
    if next.refused.len() < REFUSED_MAX {
        next.refused.push(RefusedImport { service: shown, reason });
    }
}

fn withdraw(next: &mut Catalog, key: &ServiceKey) {
    let Some(offer) = next.offers.remove(key) else { return };
    if next.withdrawn.len() >= WITHDRAWN_MAX {
        next.withdrawn.pop_first();
    }
    // Nobody may answer for it any more; its ports stay, so that callers find somebody who tells them why.
    let standard = standard::untold(&offer.ports);
    let offer = Offer { identities: Vec::new(), endpoints_ready: 0, standard, ..Offer::clone(&offer) };
    next.withdrawn.insert(key.clone(), Arc::new(offer));
}

/// A name that may be anything, for people: printable ASCII, at most 130 characters.
fn shown(namespace: &str, name: &str) -> String {
    let clean = |text: &str| text.chars().filter(char::is_ascii_graphic).take(64).collect::<String>();
    format!("{}/{}", clean(namespace), clean(name))
}

fn region(text: &str) -> String {
    let plain = text.len() <= 63 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if plain { text.to_owned() } else { String::new() }
}

/// One entry, or the rule that it breaks.
fn offer(service: &catalog::Service, domain: &TrustDomain) -> Result<Offer, String> {
    let key = ServiceKey::parse(&service.namespace, &service.name).map_err(|error| error.to_string())?;
    let identities = identities(service, domain)?;
    if identities.is_empty() && service.endpoints_ready > 0 {
        return Err("it has ready endpoints and no identity that may answer for them".to_owned());
    }
    let ports = carried(service)?;
    let standard = match &service.standard {
        Some(told) => standard::read(told, &ports)?,
        None => standard::untold(&ports),
    };
    Ok(Offer {
        service: key,
        ports,
        identities,
        endpoints_ready: service.endpoints_ready.min(ENDPOINTS_MAX),
        federated: service.federated,
        exported_at_us: exported_at_us(service),
        session: match service.session.as_str() {
            word @ ("shared" | "dedicated") => word.to_owned(),
            _ => "auto".to_owned(),
        },
        standard,
    })
}

fn identities(service: &catalog::Service, domain: &TrustDomain) -> Result<Vec<SpiffeId>, String> {
    if service.identities.len() > IDENTITIES_MAX {
        return Err(format!("it has more than {IDENTITIES_MAX} identities"));
    }
    let mut identities = BTreeSet::new();
    for text in &service.identities {
        let id: SpiffeId = text.parse().map_err(|error: hawser_api::names::NameError| error.to_string())?;
        if id.trust_domain() != *domain {
            return Err(format!("its identity {} is not of the peer's trust domain {domain}", clip(id.as_str())));
        }
        identities.insert(id);
    }
    Ok(identities.into_iter().collect())
}

fn clip(text: &str) -> String {
    text.chars().take(100).collect()
}

/// The ports that are carried: TCP alone, the others are declared in the standard's part.
fn carried(service: &catalog::Service) -> Result<Vec<OfferedPort>, String> {
    let mut ports = ports::read(&service.ports)?;
    ports.retain(|port| port.protocol == Protocol::Tcp);
    if ports.is_empty() { Err("it has no TCP port".to_owned()) } else { Ok(ports) }
}

/// Microseconds since the epoch; of a peer that tells seconds, those.
fn exported_at_us(service: &catalog::Service) -> i64 {
    let told = service.standard.as_ref().map_or(0, |standard| standard.exported_at_us);
    if told > 0 { told } else { service.exported_at.max(0).saturating_mul(1_000_000) }
}

/// What a peer says it does not take, by service: names that are names, reasons cut and cleaned.
pub fn rejections(told: &[catalog::Rejection]) -> BTreeMap<ServiceKey, String> {
    let one = |rejection: &catalog::Rejection| {
        let key = ServiceKey::parse(&rejection.namespace, &rejection.name).ok()?;
        let reason = rejection.reason.chars().filter(|c| !c.is_control()).take(REASON_MAX).collect();
        Some((key, reason))
    };
    told.iter().take(REJECTIONS_MAX).filter_map(one).collect()
}

/// What a peer says of our bundle: keys that are keys, numbers as they are. Who reads it knows that it is a peer's word.
pub fn acknowledgement(told: catalog::TrustAcknowledgement) -> catalog::TrustAcknowledgement {
    let mut told = told;
    told.authorities.retain(|key| key.len() == KEY);
    told.authorities.truncate(AUTHORITIES_MAX);
    // One without a name stands for many: it is kept.
    told.dependences.retain(|one| one.authority.is_empty() || one.authority.len() == KEY);
    told.dependences.truncate(AUTHORITIES_MAX);
    told
}

/// The catalog as an update from which it can be read back, for the disk.
pub fn snapshot(catalog: &Catalog) -> catalog::Update {
    catalog::Update {
        snapshot: true,
        changed: catalog.offers.values().map(|offer| wire(offer)).collect(),
        region: catalog.region.clone(),
        ..catalog::Update::default()
    }
}

fn wire(offer: &Offer) -> catalog::Service {
    catalog::Service {
        namespace: offer.service.namespace.to_string(),
        name: offer.service.name.to_string(),
        ports: offer.ports.iter().map(ports::write).collect(),
        identities: offer.identities.iter().map(ToString::to_string).collect(),
        endpoints_ready: offer.endpoints_ready,
        federated: offer.federated,
        exported_at: offer.exported_at_us / 1_000_000,
        session: offer.session.clone(),
        standard: offer.standard.told.then(|| standard::write(&offer.standard, offer.exported_at_us)),
    }
}

#[cfg(test)]
mod tests;
