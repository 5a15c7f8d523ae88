//! Pure: a peer's update → what this cluster believes, or why not.
//!
//! A peer can name services, ports and identities, and nothing else: no address, no label, no annotation. Its
//! identities must be of its own trust domain, so that it speaks only for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hawser_api::objects::link::RefusedImport;
use hawser_api::proto::catalog;
use hawser_api::{ServiceKey, ServiceName, SpiffeId, TrustDomain};

use super::limits::{AUTHORITIES_MAX, IDENTITIES_MAX, PORTS_MAX, REJECTIONS_MAX, SERVICES_MAX};
use crate::world::{Catalog, Offer, OfferedPort};

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
    let offer = Offer { identities: Vec::new(), endpoints_ready: 0, ..Offer::clone(&offer) };
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
    Ok(Offer {
        service: key,
        ports: ports(service)?,
        identities,
        endpoints_ready: service.endpoints_ready.min(ENDPOINTS_MAX),
        federated: service.federated,
        exported_at: service.exported_at.max(0),
        session: match service.session.as_str() {
            word @ ("shared" | "dedicated") => word.to_owned(),
            _ => "auto".to_owned(),
        },
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

fn ports(service: &catalog::Service) -> Result<Vec<OfferedPort>, String> {
    if service.ports.len() > PORTS_MAX {
        return Err(format!("it has more than {PORTS_MAX} ports"));
    }
    let mut ports: BTreeMap<u16, OfferedPort> = BTreeMap::new();
    let mut names = BTreeSet::new();
    // Ports of protocols that are not carried are left out, the others serve.
    for port in service.ports.iter().filter(|port| matches!(port.protocol.as_str(), "" | "TCP")) {
        let number = u16::try_from(port.port).ok().filter(|number| *number > 0);
        let number = number.ok_or_else(|| format!("its port {} is not 1 to 65535", port.port))?;
        if !port.name.is_empty() {
            port.name
                .parse::<ServiceName>()
                .map_err(|_| format!("the name of its port {number} is not a DNS label"))?;
            if !names.insert(port.name.clone()) {
                return Err(format!("two of its ports are called {}", port.name));
            }
        }
        let protocol = &port.app_protocol;
        if protocol.len() > 253 || !protocol.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b)) {
            return Err(format!("the appProtocol of its port {number} is not a plain word"));
        }
        let offered = OfferedPort { name: port.name.clone(), number, app_protocol: protocol.clone() };
        if ports.insert(number, offered).is_some() {
            return Err(format!("it has port {number} twice"));
        }
    }
    if ports.is_empty() {
        return Err("it has no TCP port".to_owned());
    }
    // In the peer's order: the first port is the one that people mean.
    let order: Vec<u16> = service.ports.iter().filter_map(|port| u16::try_from(port.port).ok()).collect();
    let mut ports: Vec<OfferedPort> = ports.into_values().collect();
    ports.sort_by_key(|port| order.iter().position(|number| *number == port.number));
    Ok(ports)
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
    let port = |port: &OfferedPort| catalog::Port {
        name: port.name.clone(),
        port: u32::from(port.number),
        protocol: "TCP".to_owned(),
        app_protocol: port.app_protocol.clone(),
    };
    catalog::Service {
        namespace: offer.service.namespace.to_string(),
        name: offer.service.name.to_string(),
        ports: offer.ports.iter().map(port).collect(),
        identities: offer.identities.iter().map(ToString::to_string).collect(),
        endpoints_ready: offer.endpoints_ready,
        federated: offer.federated,
        exported_at: offer.exported_at,
        session: offer.session.clone(),
    }
}

#[cfg(test)]
mod tests;
