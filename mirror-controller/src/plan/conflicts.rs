//! Pure: several clusters' accounts of one service → the one that holds, and what they disagree on (KEP-1645).
//!
//! The oldest export wins; of equally old ones the first trust domain in order, which all clusters know by one name, so
//! that every cluster comes to the same whatever it calls its peers. Ports are united, everything else is the winner's.

use hawser_api::objects::import::{IpFamily, TrafficPolicy};
use hawser_api::{ClusterName, TrustDomain};

use crate::catalog::standard::{Affinity, Standard, policy_word};
use crate::world::OfferedPort;

/// How long Kubernetes lets a client stay with its endpoint where the Service does not say, seconds.
const AFFINITY_SECONDS: u32 = 10_800;

/// One cluster's account.
#[derive(Debug, Clone)]
pub struct Exporter<'w> {
    /// As this cluster calls it.
    pub cluster: &'w ClusterName,
    /// As all do.
    pub domain: &'w TrustDomain,
    /// Since when it exports, microseconds since the epoch; 0 says nothing, and is taken for the youngest.
    pub since_us: i64,
    /// What it says.
    pub standard: &'w Standard,
}

impl Exporter<'_> {
    /// The smaller wins; a total order, as no two clusters share a trust domain.
    fn rank(&self) -> (i64, &TrustDomain, &ClusterName) {
        (if self.since_us == 0 { i64::MAX } else { self.since_us }, self.domain, self.cluster)
    }
}

/// What holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    /// The clusters that export, the winner first.
    pub order: Vec<ClusterName>,
    /// The winner's account, but for the ports.
    pub standard: Standard,
    /// Ports of all: of two with one name, or with one protocol and number, the older export's.
    pub ports: Vec<OfferedPort>,
    /// What they disagree on, in the standard's order; every exporter is told of all.
    pub conflicts: Vec<Conflict>,
}

/// Something that exporters disagree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The standard's word, such as `PortConflict`.
    pub reason: &'static str,
    /// Who says what, and what holds.
    pub message: String,
}

impl Settled {
    /// The standard's form of several reasons.
    pub fn reasons(&self) -> String {
        self.conflicts.iter().map(|conflict| conflict.reason).collect::<Vec<_>>().join(",")
    }

    /// All of it for people.
    pub fn messages(&self) -> String {
        self.conflicts.iter().map(|conflict| conflict.message.as_str()).collect::<Vec<_>>().join("; ")
    }
}

/// Settles what these clusters say of one service, in any order.
pub fn settle(mut exporters: Vec<Exporter<'_>>) -> Settled {
    exporters.sort_by(|a, b| a.rank().cmp(&b.rank()));
    let Some(winner) = exporters.first() else { return Settled::default() };
    let mut standard = winner.standard.clone();
    standard.hosts.clear();
    Settled {
        order: exporters.iter().map(|exporter| exporter.cluster.clone()).collect(),
        standard,
        ports: union(&exporters),
        conflicts: conflicts(&exporters),
    }
}

/// Ports of all, merged by name first, then by protocol and number.
fn union(exporters: &[Exporter<'_>]) -> Vec<OfferedPort> {
    let mut ports: Vec<OfferedPort> = Vec::new();
    for port in exporters.iter().flat_map(|exporter| &exporter.standard.ports) {
        if !ports.iter().any(|known| same_name(known, port) || same_number(known, port)) {
            ports.push(port.clone());
        }
    }
    ports
}

fn same_name(a: &OfferedPort, b: &OfferedPort) -> bool {
    !a.name.is_empty() && a.name == b.name
}

fn same_number(a: &OfferedPort, b: &OfferedPort) -> bool {
    (a.protocol, a.number) == (b.protocol, b.number)
}

/// The number by which an exporter serves a port of the union; `None`: it does not, and none of the port's traffic goes
/// there. Under the standard a port is the same only with the same name and number; between federated services the name
/// is enough, and the number may be another.
pub fn served_as(port: &OfferedPort, theirs: &[OfferedPort], federated: bool) -> Option<u16> {
    let same = theirs.iter().find(|their| same_number(port, their) && (federated || their.name == port.name));
    let named = || theirs.iter().find(|their| same_name(port, their) && port.protocol == their.protocol);
    if federated { named().or(same) } else { same }.map(|port| port.number)
}

/// Of those that tell: silence disagrees with nobody.
fn conflicts(exporters: &[Exporter<'_>]) -> Vec<Conflict> {
    let mut found = Vec::new();
    let mut telling = exporters.iter().filter(|exporter| exporter.standard.told);
    let Some(winner) = telling.next() else { return found };
    let others: Vec<&Exporter<'_>> = telling.collect();
    let mut differ = |reason: &'static str, field: &str, say: &dyn Fn(&Standard) -> Option<String>| {
        let Some(holds) = say(winner.standard) else { return };
        let says = others.iter().find_map(|other| Some((other, say(other.standard).filter(|says| *says != holds)?)));
        if let Some((other, says)) = says {
            let older = format!("{} of {}, the oldest export, holds", shown(&holds), winner.cluster);
            let message = format!("{field}: {older}; {} says {}", other.cluster, shown(&says));
            found.push(Conflict { reason, message });
        }
    };
    differ("PortConflict", "ports", &|s| Some(ports_of(s)));
    differ("TypeConflict", "type", &|s| Some(if s.headless { "Headless" } else { "ClusterSetIP" }.to_owned()));
    differ("SessionAffinityConflict", "sessionAffinity", &|s| Some(s.affinity.as_str().to_owned()));
    differ("SessionAffinityConfigConflict", "sessionAffinityConfig", &|s| match s.affinity {
        Affinity::None => None,
        Affinity::ClientIp(seconds) => Some(format!("{} s", seconds.unwrap_or(AFFINITY_SECONDS))),
    });
    differ("AnnotationsConflict", "exportedAnnotations", &|s| Some(pairs(&s.annotations)));
    differ("LabelsConflict", "exportedLabels", &|s| Some(pairs(&s.labels)));
    differ("InternalTrafficPolicyConflict", "internalTrafficPolicy", &|s| {
        Some(policy_word(s.internal_traffic_policy.unwrap_or(TrafficPolicy::Cluster)).to_owned())
    });
    differ("TrafficDistributionConflict", "trafficDistribution", &|s| Some(s.traffic_distribution.clone()));
    differ("IPFamilyConflict", "ipFamilies", &|s| Some(families(&s.ip_families)).filter(|text| !text.is_empty()));
    found
}

/// A port's every word counts; their order does not.
fn ports_of(standard: &Standard) -> String {
    let port = |port: &OfferedPort| {
        let app = if port.app_protocol.is_empty() { String::new() } else { format!(" ({})", port.app_protocol) };
        format!("{} {} {}{app}", port.name, port.number, port.protocol.as_str()).trim_start().to_owned()
    };
    let mut ports: Vec<String> = standard.ports.iter().map(port).collect();
    ports.sort();
    ports.join(", ")
}

fn pairs(marks: &std::collections::BTreeMap<String, String>) -> String {
    marks.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
}

fn families(families: &[IpFamily]) -> String {
    families.iter().map(|family| family.as_str()).collect::<Vec<_>>().join(", ")
}

/// A peer's word in a message: short, and something even where it is nothing.
fn shown(text: &str) -> String {
    if text.is_empty() { "nothing".to_owned() } else { text.chars().take(200).collect() }
}

#[cfg(test)]
mod tests;
