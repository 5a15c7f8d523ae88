//! The rules that types cannot say: of one object, and of all objects together.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::{Broken, Located, Problem, clip};
use crate::labels;
use crate::names::{ClusterName, NameError, Namespace, ServiceName};
use crate::objects::{Metadata, Object};

mod core;
mod identity;
mod ours;

/// Virtual addresses are taken from 127.64.0.0/10: the part of the loopback network (RFC 1122 section 3.2.1.3) that
/// nothing else is known to use.
pub const VIRTUAL_NETWORK: VirtualNetwork = VirtualNetwork { base: Ipv4Addr::new(127, 64, 0, 0), prefix: 10 };

/// A network of virtual addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtualNetwork {
    /// Its first address.
    pub base: Ipv4Addr,
    /// Bits that all of its addresses share.
    pub prefix: u8,
}

impl VirtualNetwork {
    /// Whether this address is inside.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        address.to_bits() & mask == self.base.to_bits() & mask
    }

    /// Reads `127.65.0.0/16`: inside [`VIRTUAL_NETWORK`], with 2 to 22 bits for hosts and none of them set.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (base, prefix) = text.split_once('/').ok_or("is not written address/prefix")?;
        let base: Ipv4Addr = base.parse().map_err(|_| "does not begin with an IPv4 address")?;
        let prefix: u8 =
            prefix.parse().ok().filter(|p| (10..=30).contains(p)).ok_or("has no prefix of 10 to 30 bits")?;
        let network = Self { base, prefix };
        if !VIRTUAL_NETWORK.contains(base) {
            return Err("is not inside 127.64.0.0/10");
        }
        if base.to_bits().trailing_zeros() < 32 - u32::from(prefix) {
            return Err("has bits set behind its prefix");
        }
        Ok(network)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.base) || other.contains(self.base)
    }
}

/// The clusters that `hawser.dev/export-to` names.
pub fn parse_export_to(text: &str) -> Result<Vec<ClusterName>, NameError> {
    text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::parse).collect()
}

/// Collects what is broken.
struct Rules(Vec<Broken>);

impl Rules {
    /// A rule that must hold.
    fn must(&mut self, holds: bool, field: &str, reason: impl Into<String>, remedy: &str) {
        if !holds {
            self.0.push(Broken::new(field, reason, remedy));
        }
    }

    /// A text that must be a name.
    fn name<T: std::str::FromStr<Err = NameError>>(&mut self, text: &str, field: &str) {
        if let Err(error) = text.parse::<T>() {
            self.0.push(Broken::new(field, error.to_string(), "use a DNS label: a to z, 0 to 9 and '-', at most 63"));
        }
    }

    /// A value that must occur once in its list.
    fn once<T: Ord>(&mut self, seen: &mut BTreeMap<T, usize>, value: T, index: usize, field: &str) {
        if let Some(first) = seen.insert(value, index) {
            let reason = format!("is the same as in item {first}");
            self.0.push(Broken::new(field, reason, "each may occur once"));
        }
    }
}

/// What is wrong with this object by itself.
pub(super) fn object(object: &Object) -> Vec<Broken> {
    let mut rules = Rules(Vec::new());
    match object {
        Object::Cluster(cluster) => ours::cluster(&mut rules, cluster),
        Object::Link(link) => ours::link(&mut rules, link),
        Object::FailoverPolicy(policy) => ours::policy(&mut rules, policy),
        Object::WorkloadIdentity(entry) => identity::entry(&mut rules, entry),
        Object::Service(service) => core::service(&mut rules, service),
        Object::EndpointSlice(slice) => core::slice(&mut rules, slice),
        Object::ServiceExport(export) => core::export(&mut rules, export),
    }
    rules.0
}

const KNOWN_LABELS: &[&str] = &[labels::EXPORT, labels::FEDERATED];
const KNOWN_ANNOTATIONS: &[&str] = &[labels::EXPORT_TO, labels::SESSION];

/// What holds for every kind: a mistyped label of ours would silently do nothing, so it is refused.
fn metadata(rules: &mut Rules, metadata: &Metadata) {
    for key in metadata.labels.keys().filter(|key| key.starts_with("hawser.dev/")) {
        let misplaced = KNOWN_ANNOTATIONS.contains(&key.as_str());
        let reason = if misplaced { "is an annotation, not a label" } else { "is not a label that Hawser reads" };
        let remedy =
            format!("known are the labels {} and the annotations {}", list(KNOWN_LABELS), list(KNOWN_ANNOTATIONS));
        rules.must(KNOWN_LABELS.contains(&key.as_str()), &format!("metadata.labels[{key}]"), reason, &remedy);
    }
    for key in metadata.annotations.keys().filter(|key| key.starts_with("hawser.dev/")) {
        let misplaced = KNOWN_LABELS.contains(&key.as_str());
        let reason = if misplaced { "is a label, not an annotation" } else { "is not an annotation that Hawser reads" };
        let remedy =
            format!("known are the labels {} and the annotations {}", list(KNOWN_LABELS), list(KNOWN_ANNOTATIONS));
        rules.must(KNOWN_ANNOTATIONS.contains(&key.as_str()), &format!("metadata.annotations[{key}]"), reason, &remedy);
    }
    if let Some(time) = &metadata.creation_timestamp {
        let good = time.parse::<jiff::Timestamp>().is_ok();
        let reason = format!("{:?} is not a time", clip(time));
        rules.must(good, "metadata.creationTimestamp", reason, "write it like 2026-01-31T12:00:00Z, or leave it out");
    }
}

fn list(names: &[&str]) -> String {
    names.join(", ")
}

fn export_to(rules: &mut Rules, metadata: &Metadata) {
    let Some(text) = metadata.annotations.get(labels::EXPORT_TO) else { return };
    let field = format!("metadata.annotations[{}]", labels::EXPORT_TO);
    match parse_export_to(text) {
        Ok(names) => {
            let reason = "names no cluster";
            rules.must(!names.is_empty(), &field, reason, "name the links that may import it, or take it out for all");
        }
        Err(error) => rules.0.push(Broken::new(field, error.to_string(), "write links' names, separated by commas")),
    }
}

/// What is wrong with `new` beside `accepted`: the same object twice, two links to one trust domain, one fixed address
/// for two services, a proxy network that overlaps. Each problem stands at an object of `new`.
pub fn together(accepted: &[Located], new: &[Located]) -> Vec<Problem> {
    let mut claims: BTreeMap<Claim, &Located> = BTreeMap::new();
    let mut problems = Vec::new();
    for located in accepted {
        for claim in claims_of(&located.object) {
            claims.insert(claim, located);
        }
    }
    for located in new {
        for claim in claims_of(&located.object) {
            if let Some(first) = claims.insert(claim.clone(), located) {
                problems.push(taken(located, first, &claim));
            }
        }
    }
    problems.extend(networks_apart(accepted, new));
    problems.extend(identity::in_own_domain(accepted, new));
    problems.truncate(super::PROBLEMS_MAX);
    problems
}

fn taken(located: &Located, first: &Located, claim: &Claim) -> Problem {
    Problem {
        file: located.file.clone(),
        line: located.line,
        field: claim.field.to_owned(),
        reason: format!("{} is already taken by {}:{}", claim.what, first.file, first.line),
        remedy: "keep one of the two".to_owned(),
    }
}

/// Something that only one object may have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    field: &'static str,
    what: String,
}

fn claims_of(object: &Object) -> Vec<Claim> {
    let claim = |field, what| Claim { field, what };
    let mut claims = vec![claim("metadata.name", object.title())];
    match object {
        Object::Cluster(_) => claims.push(claim("kind", "the one Cluster of this directory".to_owned())),
        Object::Link(link) => {
            claims.push(claim("spec.trustDomain", format!("trust domain {}", link.spec.trust_domain)));
        }
        Object::WorkloadIdentity(entry) => {
            if let Some(hint) = &entry.spec.hint {
                claims.push(claim("spec.hint", format!("hint {:?}", clip(hint))));
            }
        }
        Object::Service(service) => {
            let fixed = service.spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<Ipv4Addr>().ok());
            if let Some(address) = fixed.filter(|address| VIRTUAL_NETWORK.contains(*address)) {
                claims.push(claim("spec.clusterIP", format!("virtual address {address}")));
            }
        }
        _ => {}
    }
    claims
}

/// Links and the Cluster are checked against each other in both orders, whichever file changed.
fn networks_apart(accepted: &[Located], new: &[Located]) -> Vec<Problem> {
    let all = || accepted.iter().chain(new);
    let Some(cluster) = all().find_map(|located| match &located.object {
        Object::Cluster(cluster) => Some(cluster),
        _ => None,
    }) else {
        return Vec::new();
    };
    let own = format!("{}.{}", cluster.metadata.name, cluster.spec.fabric_domain);
    let mut problems = Vec::new();
    for located in all() {
        let Object::Link(link) = &located.object else { continue };
        // The blame goes to the file under judgement: an accepted file is never thrown out by a later one.
        let at = new.iter().find(|n| n.file == located.file).or(new.first());
        let Some(at) = at else { break };
        let mut blame = |field: &str, reason: String, remedy: &str| {
            let (line, field) =
                if at.file == located.file { (located.line, field) } else { (at.line, "metadata.name") };
            let (reason, remedy) = (reason, remedy.to_owned());
            problems.push(Problem { file: at.file.clone(), line, field: field.to_owned(), reason, remedy });
        };
        if link.spec.trust_domain.as_str() == own {
            blame("spec.trustDomain", format!("{own} is this cluster's own trust domain"), "name the peer's");
        }
        if link.metadata.name == cluster.metadata.name {
            blame(
                "metadata.name",
                format!("{} is this cluster's own name", clip(&link.metadata.name)),
                "name the peer",
            );
        }
    }
    problems
}

impl Object {
    /// The kind as it is written.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Cluster(_) => "Cluster",
            Self::Service(_) => "Service",
            Self::EndpointSlice(_) => "EndpointSlice",
            Self::ServiceExport(_) => "ServiceExport",
            Self::Link(_) => "Link",
            Self::FailoverPolicy(_) => "FailoverPolicy",
            Self::WorkloadIdentity(_) => "WorkloadIdentity",
        }
    }

    /// Name, namespace, labels, annotations.
    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::Cluster(o) => &o.metadata,
            Self::Service(o) => &o.metadata,
            Self::EndpointSlice(o) => &o.metadata,
            Self::ServiceExport(o) => &o.metadata,
            Self::Link(o) => &o.metadata,
            Self::FailoverPolicy(o) => &o.metadata,
            Self::WorkloadIdentity(o) => &o.metadata,
        }
    }

    /// Whether objects of this kind live in namespaces.
    pub fn namespaced(&self) -> bool {
        !matches!(self, Self::Cluster(_) | Self::Link(_) | Self::WorkloadIdentity(_))
    }

    /// Such as `Service shop/checkout` or `Link east`.
    pub fn title(&self) -> String {
        let metadata = self.metadata();
        if !self.namespaced() {
            return format!("{} {}", self.kind(), clip(&metadata.name));
        }
        format!("{} {}/{}", self.kind(), metadata.namespace_or_default(), clip(&metadata.name))
    }
}

impl Metadata {
    /// The namespace, `default` where it is left out.
    pub fn namespace_or_default(&self) -> &str {
        self.namespace.as_ref().map_or("default", Namespace::as_str)
    }
}

fn service_name(rules: &mut Rules, metadata: &Metadata) {
    rules.name::<ServiceName>(&metadata.name, "metadata.name");
}
