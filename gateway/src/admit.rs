//! Who may open what: pure, over a snapshot. The only mint of this crate's [`Permit`].

use std::sync::Arc;

use hawser_api::labels::{PING_SERVICE, SYSTEM_NAMESPACE};
use hawser_api::{ClusterName, Code, Refusal, ServicePort, SpiffeId};

use crate::table::{Export, Peer, Tables};

/// Proof that a caller may reach a service port.
#[derive(Debug, Clone)]
pub struct Permit {
    link: ClusterName,
    reach: Reach,
}

/// What was admitted.
#[derive(Debug, Clone)]
pub enum Reach {
    /// The gateway's own answer to a ping.
    Itself,
    /// An export's endpoints.
    Export(Arc<Export>),
}

impl Permit {
    /// The caller's cluster, as this one calls it.
    pub fn link(&self) -> &ClusterName {
        &self.link
    }

    /// What may be reached.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }
}

impl hawser_tunnel::splice::Permit for Permit {}

/// The link under which a caller comes.
pub fn link<'a>(tables: &'a Tables, caller: &SpiffeId) -> Result<&'a Arc<Peer>, Refusal> {
    let domain = caller.trust_domain();
    tables.peers.get(&domain).ok_or_else(|| {
        Refusal::new(
            Code::NotLinked,
            format!("trust domain {domain} is not linked to this cluster"),
            "declare a Link to it in the cluster whose gateway this is",
        )
    })
}

/// Whether this caller may reach this service port. A port that does not exist, one that nobody exports and one that is
/// exported to others only are answered alike, so that a peer cannot find out what there is.
pub fn admit(tables: &Tables, caller: &SpiffeId, target: &ServicePort) -> Result<Permit, Refusal> {
    let peer = link(tables, caller)?;
    let link = peer.cluster.clone();
    if is_ping(target) {
        return Ok(Permit { link, reach: Reach::Itself });
    }
    match tables.exports.get(target) {
        Some(export) if export.clusters.contains(&link) => {
            Ok(Permit { link, reach: Reach::Export(Arc::clone(export)) })
        }
        _ => Err(not_exported(target, &link)),
    }
}

fn is_ping(target: &ServicePort) -> bool {
    target.service.namespace.as_str() == SYSTEM_NAMESPACE && target.service.name.as_str() == PING_SERVICE
}

fn not_exported(target: &ServicePort, link: &ClusterName) -> Refusal {
    Refusal::new(
        Code::NotExported,
        format!("{target} is not exported to {link}"),
        format!(
            "in the cluster that has it, label the Service hawser.dev/export: \"true\" (and name {link} in \
             hawser.dev/export-to if that is set)"
        ),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use hawser_tunnel::tls::Anchors;
    use proptest::prelude::*;

    use super::*;

    fn tables(exports: &[(&str, &[&str])], peers: &[&str]) -> Tables {
        let mut tables = Tables::default();
        for (port, clusters) in exports {
            let port: ServicePort = port.parse().unwrap();
            let clusters = clusters.iter().map(|c| c.parse().unwrap()).collect();
            tables.exports.insert(port.clone(), Arc::new(Export { port, clusters, endpoints: Vec::new() }));
        }
        for name in peers {
            let trust_domain: hawser_api::TrustDomain = format!("{name}.example").parse().unwrap();
            let cluster = name.parse().unwrap();
            let peer = Peer { cluster, trust_domain: trust_domain.clone(), anchors: Anchors::OwnRoot, alive: true };
            tables.peers.insert(trust_domain, Arc::new(peer));
        }
        tables
    }

    fn id(domain: &str) -> SpiffeId {
        format!("spiffe://{domain}/ns/shop/sa/web").parse().unwrap()
    }

    fn shop() -> Tables {
        tables(
            &[
                ("shop/checkout:80", &["west"]),
                ("shop/checkout:9090", &["north"]),
                ("shop/stock:80", &[]),
                ("hawser-system/catalog:443", &["west", "north"]),
            ],
            &["west", "north"],
        )
    }

    #[test]
    fn an_export_admits_the_clusters_that_it_names_and_nobody_else() {
        let tables = shop();
        for (caller, target, expected) in [
            ("west.example", "shop/checkout:80", Ok("west")),
            ("north.example", "shop/checkout:9090", Ok("north")),
            ("west.example", "hawser-system/catalog:443", Ok("west")),
            ("west.example", "shop/checkout:9090", Err(Code::NotExported)),
            ("north.example", "shop/checkout:80", Err(Code::NotExported)),
            ("west.example", "shop/stock:80", Err(Code::NotExported)),
            ("west.example", "shop/none:80", Err(Code::NotExported)),
            ("west.example", "pay/checkout:80", Err(Code::NotExported)),
            ("west.example", "hawser-system/catalog:80", Err(Code::NotExported)),
            ("west.example", "hawser-system/gateway:443", Err(Code::NotExported)),
            ("south.example", "shop/checkout:80", Err(Code::NotLinked)),
            ("west.example.evil", "shop/checkout:80", Err(Code::NotLinked)),
            ("x.west.example", "shop/checkout:80", Err(Code::NotLinked)),
        ] {
            let answer = admit(&tables, &id(caller), &target.parse().unwrap());
            let answer = answer.as_ref().map(|p| p.link().as_str()).map_err(|r| r.code);
            assert_eq!(answer, expected, "{caller} asked for {target}");
        }
    }

    #[test]
    fn a_ping_is_answered_to_every_linked_peer_on_every_port_and_to_no_other() {
        let tables = tables(&[("hawser-system/ping:80", &[])], &["west"]);
        for port in ["1", "80", "65535"] {
            let target = format!("hawser-system/ping:{port}").parse().unwrap();
            let permit = admit(&tables, &id("west.example"), &target).unwrap();
            assert!(matches!(permit.reach(), Reach::Itself));
            assert_eq!(admit(&tables, &id("south.example"), &target).unwrap_err().code, Code::NotLinked);
        }
        let elsewhere = "shop/ping:80".parse().unwrap();
        assert_eq!(admit(&tables, &id("west.example"), &elsewhere).unwrap_err().code, Code::NotExported);
    }

    #[test]
    fn unknown_unexported_and_exported_to_others_read_the_same() {
        let tables = shop();
        let texts: HashSet<String> = ["shop/checkout:9090", "shop/stock:80", "shop/none:80"]
            .iter()
            .map(|target| {
                let refusal = admit(&tables, &id("west.example"), &target.parse().unwrap()).unwrap_err();
                assert!(refusal.remedy.contains("hawser.dev/export"));
                format!("{refusal:?}").replace(target, "TARGET")
            })
            .collect();
        assert_eq!(texts.len(), 1, "{texts:?}");
    }

    proptest! {
        #[test]
        fn nothing_but_an_exact_export_to_that_very_link_admits(
            exported in "[a-c]/[a-c]:[1-3]", to in "west|north", caller in "west|north|south", asked in "[a-c]/[a-c]:[1-3]",
        ) {
            let tables = tables(&[(&exported, &[&to])], &["west", "north"]);
            let answer = admit(&tables, &id(&format!("{caller}.example")), &asked.parse().unwrap());
            prop_assert_eq!(answer.is_ok(), exported == asked && to == caller);
        }
    }
}
