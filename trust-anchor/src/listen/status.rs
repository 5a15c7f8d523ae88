//! How everything stands, for `hawser trust status`.

use std::time::SystemTime;

use hawser_api::proto::issuer::FabricReport;
use hawser_api::proto::trust::{Authority as Described, Exclusion, Holder, Leaf, Missing, Rotation, StatusReply};
use hawser_runtime::clock;
use hawser_tunnel::verify::AuthorityId;
use rustls_pki_types::CertificateDer;

use crate::authority::Authority;
use crate::drive::Driver;
use crate::hierarchy::{describe, names};
use crate::rotate::course::{NEXT, authority_id};
use crate::rotate::evidence::{peer_name, validator_name};
use crate::rotate::{self, LiveLeaf};

/// Most leaves that are told.
const LEAVES_MAX: usize = 1000;

pub(super) fn status(authority: &Authority, now: SystemTime) -> StatusReply {
    let driver = authority.driver.lock();
    let fabric = authority.fabric.borrow().clone();
    let age = fabric.as_ref().map(|(_, at)| clock::monotonic().saturating_duration_since(*at));
    let fabric = fabric.map(|(report, _)| report);
    let clock_trouble = authority.clock_trouble.load_full().map(|trouble| trouble.to_string());
    let moved = driver.clocks.moved_s().map(|by| format!("the clock has moved by {by} s"));
    let request = driver.course.running().map(|_| authority.store.path(NEXT).join(names::INTERMEDIATE_CSR));
    let request = request.filter(|_| driver.successor.is_none());
    let mut troubles = driver.troubles();
    troubles.extend(authority.audit_log.trouble.clone());
    StatusReply {
        cluster: authority.cluster.to_string(),
        trust_domain: authority.credentials.own_domain().to_string(),
        rotation: rotation(&driver),
        authorities: authorities(&driver, authority),
        leaves: authority.record.live(now).into_iter().take(LEAVES_MAX).map(leaf).collect(),
        sequence: driver.sequence,
        holders: fabric.as_ref().map(|fabric| holders(fabric, &driver, authority)).unwrap_or_default(),
        fabric,
        fabric_age_ms: age.map_or(-1, |age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX)),
        denied: Some(authority.denials.lock().message()),
        clock: clock_trouble.or(moved).unwrap_or_default(),
        request: request.as_ref().and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default(),
        request_path: request.map(|path| path.display().to_string()).unwrap_or_default(),
        troubles,
        now_ms: clock::millis(now),
    }
}

fn bytes(id: Option<AuthorityId>) -> Vec<u8> {
    id.map(|id| id.0.to_vec()).unwrap_or_default()
}

fn rotation(driver: &Driver) -> Option<Rotation> {
    let rotation = driver.course.rotation.as_ref()?;
    let refusal = driver.refusal.as_ref();
    let missing = refusal.into_iter().flat_map(|refusal| &refusal.missing).map(|missing: &rotate::Missing| Missing {
        who: missing.who.clone(),
        why: missing.why.clone(),
        since_ms: missing.since_ms,
        last_sequence: missing.last_sequence,
        until_ms: missing.until_ms,
    });
    let excluded = rotation.excluded.iter().map(|excluded| Exclusion {
        name: excluded.name.clone(),
        reason: excluded.reason.clone(),
        at_ms: excluded.at_ms,
    });
    let pause_at = if rotation.pause_at == rotate::State::Retired { "" } else { rotation.pause_at.as_str() };
    let successor = driver.successor.as_ref().map(|successor| successor.id());
    Some(Rotation {
        level: rotation.level.to_string(),
        state: rotation.state.to_string(),
        since_ms: rotation.since_ms,
        pause_at: pause_at.to_owned(),
        refusal: refusal.map(|refusal| refusal.message.clone()).unwrap_or_default(),
        remedy: refusal.map(|refusal| refusal.remedy.clone()).unwrap_or_default(),
        missing: missing.collect(),
        excluded: excluded.collect(),
        old: bytes(driver.course.old().next()),
        new: bytes(driver.course.new_root_id().or(successor)),
    })
}

fn authorities(driver: &Driver, authority: &Authority) -> Vec<Described> {
    let new_root = driver.course.new_root.as_ref().map(|der| &der.0);
    let role = |der: &CertificateDer<'_>| if new_root == Some(der) { "next" } else { "current" };
    let mut all: Vec<_> = driver.roots.iter().filter_map(|der| described("root", role(der), der)).collect();
    if let Some(new) = new_root.filter(|new| !driver.roots.contains(new)) {
        all.extend(described("root", "next", new));
    }
    let signer = authority.intermediate.load_full();
    all.extend(signer.as_ref().and_then(|signer| described("intermediate", "current", signer.der())));
    if let Some(next) = driver.successor.as_ref().filter(|next| signer.as_ref().is_none_or(|s| s.id() != next.id())) {
        all.extend(described("intermediate", "next", next.der()));
    }
    let old = driver.course.running().and(driver.course.old_signer.as_ref()).map(|der| &der.0);
    if let Some(old) = old.filter(|old| signer.as_ref().is_some_and(|signer| signer.der() != *old)) {
        all.extend(described("intermediate", "previous", old));
    }
    all
}

fn described(kind: &str, role: &str, der: &CertificateDer<'_>) -> Option<Described> {
    let about = describe(der)?;
    Some(Described {
        kind: kind.to_owned(),
        role: role.to_owned(),
        id: bytes(authority_id(der)),
        subject: about.subject,
        serial: about.serial,
        not_after_ms: clock::millis(about.until),
    })
}

fn leaf(leaf: LiveLeaf) -> Leaf {
    Leaf {
        spiffe_id: leaf.spiffe_id,
        serial: leaf.serial,
        issuer: leaf.issuer.0.to_vec(),
        issued_ms: leaf.issued_ms,
        not_after_ms: leaf.not_after_ms,
    }
}

/// Who has loaded the published bundle, and who not.
fn holders(fabric: &FabricReport, driver: &Driver, authority: &Authority) -> Vec<Holder> {
    let evidence = driver.evidence(authority, Some(fabric), &[]);
    let validators = fabric.validators.iter().map(|validator| Holder {
        who: validator_name(validator),
        sequence: evidence.loaded(validator).map_or(0, |(sequence, _)| sequence),
        holds: evidence.validator_lacks(validator).is_none(),
        seen_ms: validator.seen_ms,
    });
    let peers = fabric.peers.iter().map(|peer| Holder {
        who: peer_name(peer),
        sequence: peer.acknowledgement.as_ref().map_or(0, |said| said.sequence),
        holds: evidence.peer_lacks(peer).is_none(),
        seen_ms: peer.seen_ms,
    });
    validators.chain(peers).collect()
}
