//! What the Kubernetes multi-cluster services API (KEP-1645) reads of an exported service: from this cluster's own
//! objects, onto the wire, and back from a peer, where every word of it is checked.

use std::collections::{BTreeMap, BTreeSet};

use hawser_api::ServiceName;
use hawser_api::objects::ServiceExport;
use hawser_api::objects::core::{Service, ServicePortSpec};
use hawser_api::objects::import::{IpFamily, TrafficPolicy};
use hawser_api::proto::catalog;

use super::ports;
use crate::world::{OfferedPort, Protocol};

/// Ready endpoints of one headless service that are told by name. Each costs an importer an address and its listeners.
pub const HOSTS_MAX: usize = 256;
/// Exported labels of one service, and exported annotations.
pub const MARKS_MAX: usize = 32;
/// Longest value of an exported annotation, bytes.
pub const ANNOTATION_MAX: usize = 1024;
/// Longest id of an endpoint, bytes, as in a tunnel's `Open`.
const ENDPOINT_MAX: usize = 64;
/// Longest time that Kubernetes lets a client stay with its endpoint, seconds.
const AFFINITY_MAX: u32 = 86_400;
/// Keys under these domains mean something to a cluster's own controllers: no peer sets them.
const RESERVED: &[&str] = &["kubernetes.io", "k8s.io", "x-k8s.io", "hawser.dev", "argoproj.io", "fluxcd.io", "helm.sh"];

/// One exporter's account of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standard {
    /// The exporter tells all this; otherwise only `ports` are known, and of these the ones that are carried.
    pub told: bool,
    /// It has no address of its own: callers name its endpoints.
    pub headless: bool,
    /// Whether a client stays with its endpoint.
    pub affinity: Affinity,
    /// Whether only endpoints of the caller's node serve; `None`: not said.
    pub internal_traffic_policy: Option<TrafficPolicy>,
    /// A word such as `PreferClose`; may be empty.
    pub traffic_distribution: String,
    /// In the Service's order; empty: not said.
    pub ip_families: Vec<IpFamily>,
    /// `spec.exportedLabels`.
    pub labels: BTreeMap<String, String>,
    /// `spec.exportedAnnotations`.
    pub annotations: BTreeMap<String, String>,
    /// All ports, those that are not carried too.
    pub ports: Vec<OfferedPort>,
    /// Of a headless service: its ready endpoints, at most [`HOSTS_MAX`].
    pub hosts: Vec<Host>,
}

/// Whether a client stays with its endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Affinity {
    /// It does not.
    #[default]
    None,
    /// By its address, for so many seconds; `None`: not said.
    ClientIp(Option<u32>),
}

impl Affinity {
    /// Kubernetes' word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::ClientIp(_) => "ClientIP",
        }
    }

    /// Of `ClientIP`, if it is said.
    pub fn seconds(self) -> Option<u32> {
        match self {
            Self::None => None,
            Self::ClientIp(seconds) => seconds,
        }
    }

    fn parse(word: &str, seconds: Option<u32>) -> Option<Self> {
        match word {
            "" | "None" => Some(Self::None),
            "ClientIP" => Some(Self::ClientIp(seconds)),
            _ => None,
        }
    }
}

/// One ready endpoint of a headless service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its host name, or its id where it has none.
    pub name: ServiceName,
    /// What a tunnel's `Open` names it by.
    pub endpoint: String,
}

/// Of this cluster's own Service and its export; hosts are the caller's to add. What a peer would refuse is left out:
/// [`unfit`] says what that is.
pub fn of(service: &Service, export: Option<&ServiceExport>) -> Standard {
    let spec = &service.spec;
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let seconds = config.and_then(|config| config.timeout_seconds);
    let fit = |check: Check, marks: &BTreeMap<String, String>| {
        let fit = marks.iter().filter(|(key, value)| check(key, value).is_ok()).take(MARKS_MAX);
        fit.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    Standard {
        told: true,
        headless: spec.is_headless(),
        affinity: Affinity::parse(spec.session_affinity.as_deref().unwrap_or_default(), seconds).unwrap_or_default(),
        internal_traffic_policy: spec.internal_traffic_policy.as_deref().and_then(policy),
        traffic_distribution: spec.traffic_distribution.clone().unwrap_or_default(),
        ip_families: spec.ip_families.iter().filter_map(|word| IpFamily::parse(word)).take(2).collect(),
        labels: export.map(|export| fit(label, &export.spec.exported_labels)).unwrap_or_default(),
        annotations: export.map(|export| fit(annotation, &export.spec.exported_annotations)).unwrap_or_default(),
        ports: spec.ports.iter().filter_map(port).collect(),
        hosts: Vec::new(),
    }
}

fn port(spec: &ServicePortSpec) -> Option<OfferedPort> {
    Some(OfferedPort {
        name: spec.name.clone().unwrap_or_default(),
        number: spec.port,
        protocol: Protocol::parse(spec.protocol.as_deref().unwrap_or_default())?,
        app_protocol: spec.app_protocol.clone().unwrap_or_default(),
    })
}

/// Which exported labels and annotations of an export are not told to anybody, and why.
pub fn unfit(export: &ServiceExport) -> Vec<String> {
    let (labels, annotations) = (&export.spec.exported_labels, &export.spec.exported_annotations);
    let of = |field: &str, check: Check, marks: &BTreeMap<String, String>| {
        let broken = marks.iter().filter_map(|(key, value)| check(key, value).err());
        let many = (marks.len() > MARKS_MAX).then(|| format!("only the first {MARKS_MAX} are told"));
        broken.chain(many).map(|why| format!("spec.{field}: {why}")).collect::<Vec<_>>()
    };
    let mut unfit = of("exportedLabels", label, labels);
    unfit.extend(of("exportedAnnotations", annotation, annotations));
    unfit
}

/// As it goes over the wire.
pub fn write(standard: &Standard, exported_at_us: i64) -> catalog::Standard {
    let host = |host: &Host| catalog::Host { hostname: host.name.to_string(), endpoint: host.endpoint.clone() };
    catalog::Standard {
        headless: standard.headless,
        session_affinity: standard.affinity.as_str().to_owned(),
        session_affinity_seconds: standard.affinity.seconds().unwrap_or_default(),
        internal_traffic_policy: standard.internal_traffic_policy.map(policy_word).unwrap_or_default().to_owned(),
        traffic_distribution: standard.traffic_distribution.clone(),
        ip_families: standard.ip_families.iter().map(|family| family.as_str().to_owned()).collect(),
        exported_labels: standard.labels.clone(),
        exported_annotations: standard.annotations.clone(),
        ports: standard.ports.iter().map(ports::write).collect(),
        hosts: standard.hosts.iter().map(host).collect(),
        exported_at_us,
    }
}

/// A peer's word, checked, or the rule that it breaks. `carried` are the ports that it offers.
pub fn read(told: &catalog::Standard, carried: &[OfferedPort]) -> Result<Standard, String> {
    let seconds = Some(told.session_affinity_seconds).filter(|seconds| *seconds > 0);
    if seconds.is_some_and(|seconds| seconds > AFFINITY_MAX) {
        return Err(format!("its session affinity is longer than {AFFINITY_MAX} s"));
    }
    let affinity = Affinity::parse(&told.session_affinity, seconds).ok_or("its session affinity is none")?;
    let told_policy = Some(told.internal_traffic_policy.as_str()).filter(|word| !word.is_empty());
    let internal_traffic_policy = told_policy.map(|word| policy(word).ok_or("its internalTrafficPolicy is none"));
    let distribution = &told.traffic_distribution;
    if distribution.len() > 63 || !distribution.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err("its trafficDistribution is not a plain word".to_owned());
    }
    let ports = ports::read(&told.ports)?;
    if let Some(port) = carried.iter().find(|port| !ports.contains(port)) {
        return Err(format!("it offers port {} and does not declare it", port.number));
    }
    Ok(Standard {
        told: true,
        headless: told.headless,
        affinity,
        internal_traffic_policy: internal_traffic_policy.transpose()?,
        traffic_distribution: distribution.clone(),
        ip_families: families(&told.ip_families)?,
        labels: marks("labels", &told.exported_labels, label)?,
        annotations: marks("annotations", &told.exported_annotations, annotation)?,
        ports,
        hosts: hosts(&told.hosts)?,
    })
}

/// Of a peer that does not tell: a service with an address, and the ports that it offers.
pub fn untold(carried: &[OfferedPort]) -> Standard {
    Standard { ports: carried.to_vec(), ..Standard::default() }
}

/// What it takes in memory, roughly, bytes.
pub fn size(standard: &Standard) -> usize {
    let marks = standard.labels.iter().chain(&standard.annotations);
    let marks: usize = marks.map(|(key, value)| 96 + key.len() + value.len()).sum();
    let hosts: usize = standard.hosts.iter().map(|host| 64 + host.name.as_str().len() + host.endpoint.len()).sum();
    let ports: usize = standard.ports.iter().map(OfferedPort::size).sum();
    256 + marks + hosts + ports
}

fn policy(word: &str) -> Option<TrafficPolicy> {
    [TrafficPolicy::Cluster, TrafficPolicy::Local].into_iter().find(|policy| policy_word(*policy) == word)
}

/// Kubernetes' word.
pub fn policy_word(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

fn families(told: &[String]) -> Result<Vec<IpFamily>, String> {
    let families: Option<Vec<IpFamily>> = told.iter().take(3).map(|word| IpFamily::parse(word)).collect();
    let families = families.filter(|families| families.iter().collect::<BTreeSet<_>>().len() == families.len());
    families.ok_or_else(|| "its IP families are not IPv4 and IPv6, each once".to_owned())
}

fn hosts(told: &[catalog::Host]) -> Result<Vec<Host>, String> {
    if told.len() > HOSTS_MAX {
        return Err(format!("it has more than {HOSTS_MAX} hosts"));
    }
    let (mut hosts, mut names) = (Vec::new(), BTreeSet::new());
    for host in told {
        let name: ServiceName = host.hostname.parse().map_err(|_| "one of its host names is not a DNS label")?;
        let id = &host.endpoint;
        let plain = id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if id.is_empty() || id.len() > ENDPOINT_MAX || !plain {
            return Err(format!("the endpoint of its host {name} is not a plain word"));
        }
        if !names.insert(name.clone()) {
            return Err(format!("two of its hosts are called {name}"));
        }
        hosts.push(Host { name, endpoint: id.clone() });
    }
    Ok(hosts)
}

type Check = fn(&str, &str) -> Result<(), String>;

fn marks(what: &str, told: &BTreeMap<String, String>, check: Check) -> Result<BTreeMap<String, String>, String> {
    if told.len() > MARKS_MAX {
        return Err(format!("it has more than {MARKS_MAX} exported {what}"));
    }
    told.iter().try_for_each(|(key, value)| check(key, value))?;
    Ok(told.clone())
}

fn label(key: &str, value: &str) -> Result<(), String> {
    mark(key)?;
    if !value.is_empty() && !word(value) {
        return Err(format!("the value of label {key} is not a label's value"));
    }
    Ok(())
}

fn annotation(key: &str, value: &str) -> Result<(), String> {
    mark(key)?;
    if value.len() > ANNOTATION_MAX || value.chars().any(char::is_control) {
        let rule = format!("is longer than {ANNOTATION_MAX} bytes or has control characters");
        return Err(format!("the value of annotation {key} {rule}"));
    }
    Ok(())
}

/// A qualified name (`name` or `example.org/name`) that is nobody's own.
fn mark(key: &str) -> Result<(), String> {
    let (domain, name) = key.rsplit_once('/').map_or((None, key), |(domain, name)| (Some(domain), name));
    let subdomain =
        |domain: &str| domain.len() <= 253 && domain.split('.').all(|label| label.parse::<ServiceName>().is_ok());
    if !word(name) || domain.is_some_and(|domain| !subdomain(domain)) {
        let shown: String = key.chars().filter(char::is_ascii_graphic).take(64).collect();
        return Err(format!("{shown} is not a qualified name"));
    }
    let owned = |domain: &str| {
        RESERVED
            .iter()
            .any(|owner| domain.strip_suffix(owner).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
    };
    if domain.is_some_and(owned) {
        return Err(format!("{key} is set by a cluster's own controllers and by no peer"));
    }
    Ok(())
}

/// What a label's value, and the name in its key, may be.
fn word(text: &str) -> bool {
    let ends = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric());
    text.len() <= 63
        && ends(text.bytes().next())
        && ends(text.bytes().last())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

#[cfg(test)]
mod tests;
