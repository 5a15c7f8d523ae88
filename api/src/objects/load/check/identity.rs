//! Rules of `WorkloadIdentity`.

use std::collections::BTreeMap;

use super::{Located, Problem, Rules, clip, metadata};
use crate::labels::SYSTEM_NAMESPACE;
use crate::names::{ClusterName, ServiceName, SpiffeId, TrustDomain};
use crate::objects::Object;
use crate::objects::identity::{Selectors, WorkloadIdentity};

/// Longest hint, in bytes (Workload API section 5.2.2).
const HINT_MAX: usize = 1024;
/// Longest path of a file, in bytes (limits.h).
const PATH_MAX: usize = 4096;
/// Each federated bundle goes out with every message to the workload.
const FEDERATED_MAX: usize = 64;
/// More names than this make a certificate that handshakes feel.
const DNS_NAMES_MAX: usize = 16;
/// Longest DNS name (RFC 1035 section 2.3.4), in characters.
const DNS_NAME_MAX: usize = 253;
/// A day, as for every leaf.
const TTL_MAX: u32 = 86_400;
/// A JWT-SVID can be used by whoever sees it: an hour at most.
const JWT_TTL_MAX: u32 = 3600;

pub(super) fn entry(rules: &mut Rules, entry: &WorkloadIdentity) {
    metadata(rules, &entry.metadata);
    rules.name::<ServiceName>(&entry.metadata.name, "metadata.name");
    let spec = &entry.spec;
    spiffe_id(rules, &spec.spiffe_id);
    selectors(rules, &spec.selectors);
    if let Some(hint) = &spec.hint {
        let reason = format!("has {} bytes", hint.len());
        rules.must((1..=HINT_MAX).contains(&hint.len()), "spec.hint", reason, "use 1 to 1024, or leave it out");
    }
    let lives =
        [(spec.ttl_seconds, "spec.ttlSeconds", TTL_MAX), (spec.jwt_ttl_seconds, "spec.jwtTtlSeconds", JWT_TTL_MAX)];
    for (ttl, field, max) in lives {
        let good = ttl.is_none_or(|ttl| (1..=max).contains(&ttl));
        rules.must(good, field, "is out of bounds", &format!("use 1 to {max} seconds, or leave it out"));
    }
    let count = spec.federates_with.len();
    let many = format!("has {count} entries");
    rules.must(count <= FEDERATED_MAX, "spec.federatesWith", many, "name at most 64 links");
    let mut seen = BTreeMap::new();
    for (index, link) in spec.federates_with.iter().enumerate() {
        rules.once::<ClusterName>(&mut seen, link.clone(), index, &format!("spec.federatesWith[{index}]"));
    }
    let many = format!("has {} entries", spec.dns_names.len());
    rules.must(spec.dns_names.len() <= DNS_NAMES_MAX, "spec.dnsNames", many, "name at most 16");
    for (index, name) in spec.dns_names.iter().enumerate() {
        let good = name.len() <= DNS_NAME_MAX && name.split('.').all(|label| label.parse::<ServiceName>().is_ok());
        let field = format!("spec.dnsNames[{index}]");
        rules.must(
            good,
            &field,
            format!("{:?} is no DNS name", clip(name)),
            "write it in lower case, without wildcard",
        );
    }
}

fn spiffe_id(rules: &mut Rules, text: &str) {
    // Of a path alone the trust domain is not known here; any will do to check the path.
    let whole = if text.starts_with('/') { format!("spiffe://x{text}") } else { text.to_owned() };
    let remedy = "write a path such as /ns/shop/sa/web, or spiffe://<this trust domain>/ns/shop/sa/web";
    match whole.parse::<SpiffeId>() {
        Err(error) => rules.must(false, "spec.spiffeId", error.to_string(), remedy),
        Ok(id) => {
            // A process that could be given the gateway's identity could speak for the whole cluster.
            let system = format!("/ns/{SYSTEM_NAMESPACE}/");
            let free = !id.path().starts_with(&system);
            let remedy = "name another: Hawser's own processes get theirs by join tokens";
            rules.must(free, "spec.spiffeId", format!("is in {SYSTEM_NAMESPACE}, of Hawser's own processes"), remedy);
        }
    }
}

fn selectors(rules: &mut Rules, selectors: &Selectors) {
    let some = *selectors != Selectors::default();
    rules.must(some, "spec.selectors", "is empty, which would be everybody", "say at least the uid of its processes");
    let whole = |path: &str| {
        let inner = path.strip_prefix('/').unwrap_or_default();
        path.len() <= PATH_MAX && inner.split('/').all(|part| !matches!(part, "" | "." | "..")) && !path.contains('\0')
    };
    for (path, field) in [(&selectors.path, "spec.selectors.path"), (&selectors.cgroup, "spec.selectors.cgroup")] {
        let good = path.as_deref().is_none_or(whole);
        rules.must(good, field, "is not a whole path", "begin with '/', without '.', '..' and doubled or trailing '/'");
    }
    let hex = |text: &str| text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let good = selectors.sha256.as_deref().is_none_or(hex);
    rules.must(
        good,
        "spec.selectors.sha256",
        "is not a SHA-256",
        "write 64 lower-case hex digits, as sha256sum prints",
    );
}

/// IDs that are written whole are of the cluster's own trust domain, where a Cluster document says which that is.
pub(super) fn in_own_domain(accepted: &[Located], new: &[Located]) -> Vec<Problem> {
    let own = accepted.iter().chain(new).find_map(|located| match &located.object {
        Object::Cluster(cluster) => format!("{}.{}", cluster.metadata.name, cluster.spec.fabric_domain).parse().ok(),
        _ => None,
    });
    let Some(own): Option<TrustDomain> = own else { return Vec::new() };
    let foreign = |located: &Located| {
        let Object::WorkloadIdentity(entry) = &located.object else { return None };
        let error = entry.spec.id(&own).err()?;
        Some(Problem {
            file: located.file.clone(),
            line: located.line,
            field: "spec.spiffeId".to_owned(),
            reason: error.to_string(),
            remedy: format!("write the path alone, or an ID of {own}"),
        })
    };
    new.iter().filter_map(foreign).collect()
}
