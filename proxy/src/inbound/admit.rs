//! Pure: may this peer reach this service port? Asked for every stream, whatever door it came through, and again for
//! live ones whenever the tables change.

use std::sync::Arc;

use hawser_api::{Code, Refusal, ServicePort, SpiffeId, TrustDomain};

use crate::table::{Inbound, Tables};

/// Proof that a stream was admitted, with what it was admitted to; made here alone.
#[derive(Debug, Clone)]
pub struct Permit {
    inbound: Arc<Inbound>,
}

impl Permit {
    /// The service port.
    pub fn inbound(&self) -> &Inbound {
        &self.inbound
    }
}

impl hawser_tunnel::splice::Permit for Permit {}

/// Our own trust domain may reach every port that we front; another one only those that are exported to it. What is not
/// exported and what does not exist get the same answer, so that nobody learns names by asking.
pub fn admit(peer: &SpiffeId, own: &TrustDomain, target: &ServicePort, tables: &Tables) -> Result<Permit, Refusal> {
    let domain = peer.trust_domain();
    let inbound = tables.inbound.get(target).filter(|i| domain == *own || i.trust_domains.contains(&domain));
    inbound.map(|inbound| Permit { inbound: inbound.clone() }).ok_or_else(|| {
        Refusal::new(
            Code::NotExported,
            format!("{target} is not exported to {domain}"),
            "ask the service's owner to export it: label hawser.dev/export on the Service, with this cluster in \
             hawser.dev/export-to if that is set, and check the port",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "east.example.org";

    fn tables() -> Tables {
        let inbound = |port: &str, domains: &[&str]| {
            let port: ServicePort = port.parse().unwrap();
            let inbound = Inbound {
                port: port.clone(),
                targets: Vec::new(),
                trust_domains: domains.iter().map(|d| d.parse().unwrap()).collect(),
                app_protocol: String::new(),
            };
            (port, Arc::new(inbound))
        };
        let inbound = [
            inbound("shop/checkout:80", &["west.example.org"]),
            inbound("shop/checkout:9090", &[]),
            inbound("shop/stock:80", &["north.example.org"]),
        ];
        Tables { inbound: inbound.into(), ..Tables::default() }
    }

    fn ask(peer: &str, target: &str) -> Result<String, Refusal> {
        let permit = admit(&peer.parse().unwrap(), &OWN.parse().unwrap(), &target.parse().unwrap(), &tables());
        permit.map(|p| p.inbound().port.to_string())
    }

    #[test]
    fn our_own_trust_domain_reaches_every_port_that_exists() {
        for target in ["shop/checkout:80", "shop/checkout:9090", "shop/stock:80"] {
            assert_eq!(ask("spiffe://east.example.org/ns/shop/sa/web", target).unwrap(), target);
        }
        assert!(ask("spiffe://east.example.org/ns/shop/sa/web", "shop/nothing:80").is_err());
    }

    #[test]
    fn another_trust_domain_reaches_exactly_what_is_exported_to_it() {
        let west = "spiffe://west.example.org/ns/shop/sa/web";
        assert!(ask(west, "shop/checkout:80").is_ok());
        for target in [
            "shop/checkout:9090",
            "shop/checkout:8080",
            "shop/checkout:1",
            "shop/stock:80",
            "stock/checkout:80",
            "shop/checkout-east:80",
            "default/checkout:80",
            "hawser-system/catalog:443",
        ] {
            assert_eq!(ask(west, target).unwrap_err().code, Code::NotExported, "{target}");
        }
    }

    #[test]
    fn a_trust_domain_that_only_looks_like_one_is_another() {
        for peer in [
            "spiffe://west.example.org.evil/ns/shop/sa/web",
            "spiffe://xwest.example.org/ns/shop/sa/web",
            "spiffe://west.example/ns/shop/sa/web",
            "spiffe://example.org/ns/west/sa/web",
            "spiffe://east.example.orgs/ns/shop/sa/web",
        ] {
            assert!(ask(peer, "shop/checkout:80").is_err(), "{peer}");
        }
        assert!(ask("spiffe://WEST.example.org/ns/shop/sa/web", "shop/checkout:80").is_ok());
    }

    #[test]
    fn what_is_not_exported_and_what_does_not_exist_get_the_same_answer() {
        let west = "spiffe://west.example.org/ns/shop/sa/web";
        let hidden = ask(west, "shop/stock:80").unwrap_err();
        let absent = ask(west, "shop/ghost:80").unwrap_err();
        assert_eq!(hidden.code, absent.code);
        assert_eq!(hidden.remedy, absent.remedy);
        assert_eq!(hidden.message.replace("stock", "ghost"), absent.message);
    }
}
