//! Rules of the Kubernetes kinds that we read.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::{Rules, VIRTUAL_NETWORK, clip, export_to, metadata, service_name};
use crate::labels;
use crate::names::ServiceName;
use crate::objects::core::{EndpointSlice, Service, ServicePortSpec, TargetPort};
use crate::objects::export::{EXPORTED_MAX, EXPORTED_VALUE_MAX, ServiceExport};

/// As many as are carried in a catalog entry.
pub(super) const PORTS_MAX: usize = 64;
/// As Kubernetes bounds an EndpointSlice.
const ENDPOINTS_MAX: usize = 1000;

pub(super) fn service(rules: &mut Rules, service: &Service) {
    metadata(rules, &service.metadata);
    service_name(rules, &service.metadata);
    export_to(rules, &service.metadata);
    for label in [labels::EXPORT, labels::FEDERATED] {
        let value = service.metadata.labels.get(label).map_or("false", String::as_str);
        let reason = format!("is {:?}", clip(value));
        rules.must(
            matches!(value, "true" | "false"),
            &format!("metadata.labels[{label}]"),
            reason,
            "write \"true\" or \"false\"",
        );
    }
    if let Some(session) = service.metadata.annotations.get(labels::SESSION) {
        let good = matches!(session.as_str(), "auto" | "shared" | "dedicated");
        let field = format!("metadata.annotations[{}]", labels::SESSION);
        rules.must(good, &field, format!("is {:?}", clip(session)), "write auto, shared or dedicated");
    }
    kind_and_address(rules, service);
    let ports = &service.spec.ports;
    let many = format!("has {} entries; at most {PORTS_MAX} are carried", ports.len());
    rules.must(ports.len() <= PORTS_MAX, "spec.ports", many, "split the service");
    let needed = service.spec.kind.as_deref() != Some("ExternalName");
    rules.must(!needed || !ports.is_empty(), "spec.ports", "is empty", "list the ports by which it is called");
    let (mut names, mut numbers) = (BTreeMap::new(), BTreeMap::new());
    for (index, port) in ports.iter().enumerate() {
        let at = |field: &str| format!("spec.ports[{index}].{field}");
        service_port(rules, port, &at);
        rules.once(&mut numbers, (port.port, port.protocol.clone().unwrap_or("TCP".into())), index, &at("port"));
        match &port.name {
            Some(name) => rules.once(&mut names, name.clone(), index, &at("name")),
            None => rules.must(ports.len() == 1, &at("name"), "is missing", "name each port where there are several"),
        }
    }
}

fn kind_and_address(rules: &mut Rules, service: &Service) {
    if let Some(kind) = service.spec.kind.as_deref() {
        let good = matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName");
        let remedy = "write ClusterIP, NodePort, LoadBalancer or ExternalName, or leave it out";
        rules.must(good, "spec.type", format!("is {:?}", clip(kind)), remedy);
    }
    let Some(text) = service.spec.cluster_ip.as_deref().filter(|text| !matches!(*text, "" | "None")) else { return };
    let remedy = "write None, an address inside 127.64.0.0/10, or leave it out";
    match text.parse::<IpAddr>() {
        Err(_) => rules.must(false, "spec.clusterIP", format!("{:?} is no address", clip(text)), remedy),
        Ok(IpAddr::V4(address)) if address.is_loopback() => {
            let reason = format!("{address} is outside of 127.64.0.0/10");
            rules.must(VIRTUAL_NETWORK.contains(address), "spec.clusterIP", reason, remedy);
            let base = VIRTUAL_NETWORK.base == address || address == Ipv4Addr::new(127, 127, 255, 255);
            rules.must(!base, "spec.clusterIP", "is the network's first or last address", "take another");
        }
        // Any other address is a real cluster's, and means nothing here.
        Ok(_) => {}
    }
}

fn service_port(rules: &mut Rules, port: &ServicePortSpec, at: &dyn Fn(&str) -> String) {
    rules.must(port.port != 0, &at("port"), "is 0", "use 1 to 65535");
    if let Some(name) = &port.name {
        rules.name::<ServiceName>(name, &at("name"));
    }
    match &port.target_port {
        Some(TargetPort::Number(number)) => rules.must(*number != 0, &at("targetPort"), "is 0", "use 1 to 65535"),
        Some(TargetPort::Name(name)) => rules.name::<ServiceName>(name, &at("targetPort")),
        None => {}
    }
    protocol(rules, port.protocol.as_deref(), &at("protocol"));
    app_protocol(rules, port.app_protocol.as_deref(), &at("appProtocol"));
}

fn protocol(rules: &mut Rules, protocol: Option<&str>, field: &str) {
    let protocol = protocol.unwrap_or("TCP");
    let good = matches!(protocol, "TCP" | "UDP" | "SCTP");
    rules.must(good, field, format!("is {:?}", clip(protocol)), "write TCP or UDP");
}

fn app_protocol(rules: &mut Rules, protocol: Option<&str>, field: &str) {
    let Some(protocol) = protocol else { return };
    let plain = !protocol.is_empty()
        && protocol.len() <= 253
        && protocol.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
    rules.must(plain, field, format!("is {:?}", clip(protocol)), "use a word such as http, or example.org/name");
    let ours = !protocol.starts_with("hawser.dev/") || protocol == labels::APP_PROTOCOL_OPAQUE;
    rules.must(ours, field, format!("is {:?}", clip(protocol)), "the only one of ours is hawser.dev/opaque");
}

pub(super) fn slice(rules: &mut Rules, slice: &EndpointSlice) {
    metadata(rules, &slice.metadata);
    // Slices are named by controllers, so that their names are DNS subdomains: only what would mislead is refused.
    let named = !slice.metadata.name.is_empty() && slice.metadata.name.len() <= 253;
    rules.must(named, "metadata.name", "is empty or longer than 253", "give it a name");
    let label = format!("metadata.labels[{}]", labels::SERVICE_NAME);
    match slice.metadata.labels.get(labels::SERVICE_NAME) {
        Some(service) => rules.name::<ServiceName>(service, &label),
        None => rules.must(false, &label, "is missing", "add the label with the Service's name: it ties the two"),
    }
    if let Some(kind) = slice.address_type.as_deref() {
        let good = matches!(kind, "IPv4" | "IPv6");
        rules.must(good, "addressType", format!("is {:?}", clip(kind)), "write IPv4 or IPv6");
    }
    let many = format!("has {} entries; at most {ENDPOINTS_MAX} fit", slice.endpoints.len());
    rules.must(slice.endpoints.len() <= ENDPOINTS_MAX, "endpoints", many, "split the slice");
    let mut seen = BTreeMap::new();
    for (index, endpoint) in slice.endpoints.iter().enumerate() {
        let at = |field: &str| format!("endpoints[{index}].{field}");
        rules.must(!endpoint.addresses.is_empty(), &at("addresses"), "is empty", "write the workload's address");
        for address in &endpoint.addresses {
            let good = address.parse::<IpAddr>().is_ok_and(|ip| !ip.is_unspecified() && !ip.is_multicast());
            let reason = format!("{:?} is no address of a workload", clip(address));
            rules.must(good, &at("addresses"), reason, "write an IP address; names are not resolved here");
        }
        if let Some(address) = endpoint.addresses.first() {
            rules.once(&mut seen, address.clone(), index, &at("addresses"));
        }
        if let Some(target) = endpoint.target_ref.as_ref().filter(|target| target.kind == "Proxy") {
            rules.name::<ServiceName>(&target.name, &at("targetRef.name"));
        }
    }
    slice_ports(rules, slice);
}

fn slice_ports(rules: &mut Rules, slice: &EndpointSlice) {
    let many = format!("has {} entries; at most {PORTS_MAX} are carried", slice.ports.len());
    rules.must(slice.ports.len() <= PORTS_MAX, "ports", many, "split the slice");
    let mut names = BTreeMap::new();
    for (index, port) in slice.ports.iter().enumerate() {
        let at = |field: &str| format!("ports[{index}].{field}");
        rules.must(port.port != 0, &at("port"), "is 0", "use 1 to 65535");
        protocol(rules, port.protocol.as_deref(), &at("protocol"));
        app_protocol(rules, port.app_protocol.as_deref(), &at("appProtocol"));
        rules.once(&mut names, port.name.clone().unwrap_or_default(), index, &at("name"));
    }
}

pub(super) fn export(rules: &mut Rules, export: &ServiceExport) {
    metadata(rules, &export.metadata);
    service_name(rules, &export.metadata);
    export_to(rules, &export.metadata);
    exported(rules, "spec.exportedLabels", &export.spec.exported_labels);
    exported(rules, "spec.exportedAnnotations", &export.spec.exported_annotations);
    for (key, value) in &export.spec.exported_labels {
        let field = format!("spec.exportedLabels[{key}]");
        let remedy = "use letters, digits, '-', '_' and '.', at most 63, with a letter or digit at both ends";
        rules.must(value.is_empty() || is_word(value), &field, format!("is {:?}", clip(value)), remedy);
    }
}

/// What Kubernetes refuses at the importing cluster is refused here, where somebody can mend it.
fn exported(rules: &mut Rules, field: &str, marks: &BTreeMap<String, String>) {
    let many = format!("has {} entries; at most {EXPORTED_MAX} are carried", marks.len());
    rules.must(marks.len() <= EXPORTED_MAX, field, many, "export fewer");
    for (key, value) in marks {
        let (prefix, name) = key.split_once('/').map_or((None, key.as_str()), |(prefix, name)| (Some(prefix), name));
        let domain = prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(is_label));
        let at = format!("{field}[{}]", clip(key));
        rules.must(domain && is_word(name), &at, "is no key", "write it like team, or example.org/team");
        let long = format!("is {} bytes long; at most {EXPORTED_VALUE_MAX} are carried", value.len());
        rules.must(value.len() <= EXPORTED_VALUE_MAX, &at, long, "shorten it");
    }
}

/// Name part of a label's key, and a label's value that is not empty.
fn is_word(text: &str) -> bool {
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    text.len() <= 63
        && ends(text.bytes().next())
        && ends(text.bytes().last())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn is_label(text: &str) -> bool {
    text.parse::<ServiceName>().is_ok()
}
