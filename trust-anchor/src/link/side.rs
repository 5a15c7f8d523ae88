//! What the other cluster says of itself, checked as if it meant harm: pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use hawser_api::bundle::Bundle;
use hawser_api::objects::link::LinkGateway;
use hawser_api::proto::tunnel::{JoinGateway, JoinSide};
use hawser_api::{ClusterName, Code, Namespace, Refusal, TrustDomain};
use hawser_tunnel::join::authority;
use hawser_tunnel::verify::{Anchor, AuthorityId};

use super::token::GATEWAYS_MAX;

/// Longest region (as in a Link).
const REGION_MAX: usize = 63;
/// Most names of a peer's text that a message repeats.
const SHOWN_MAX: usize = 80;

/// What this cluster says of itself, and measures others by.
#[derive(Debug, Clone)]
pub struct Own {
    /// Our name of ourselves.
    pub cluster: ClusterName,
    /// Our trust domain.
    pub trust_domain: TrustDomain,
    /// Our bundle as it is published.
    pub bundle: String,
    /// Where our gateways are for the other cluster.
    pub gateways: Vec<LinkGateway>,
    /// Our region; may be empty.
    pub region: String,
}

impl Own {
    pub(super) fn message(&self) -> JoinSide {
        let gateway = |gateway: &LinkGateway| JoinGateway {
            name: gateway.name.to_string(),
            address: gateway.address.to_string(),
        };
        JoinSide {
            cluster: self.cluster.to_string(),
            trust_domain: self.trust_domain.to_string(),
            bundle: self.bundle.clone(),
            gateways: self.gateways.iter().map(gateway).collect(),
            region: self.region.clone(),
        }
    }
}

/// The other cluster, as far as it can be believed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Side {
    pub(super) cluster: ClusterName,
    pub(super) trust_domain: TrustDomain,
    /// Its bundle; `None`: it hangs under our own root.
    pub(super) bundle: Option<String>,
    /// The keys of its anchors.
    pub(super) authorities: BTreeSet<AuthorityId>,
    pub(super) gateways: Vec<LinkGateway>,
    pub(super) region: String,
}

fn bad(message: impl Into<String>, remedy: &str) -> Refusal {
    Refusal::new(Code::BadRequest, message, remedy)
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN_MAX).collect()
}

/// The keys of a bundle's anchors.
pub(super) fn authorities(bundle: &Bundle) -> BTreeSet<AuthorityId> {
    bundle.x509_authorities.iter().filter_map(|der| authority(der)).collect()
}

/// Checks what was said, except the names against the token: `others` are the bundles of the peers that we have.
pub(super) fn check(said: &JoinSide, own: &Own, others: &[(ClusterName, Bundle)]) -> Result<Side, Refusal> {
    let name = |what: &str| bad(format!("the {what} of the other cluster is not one"), "run the same release there");
    let cluster: ClusterName = said.cluster.parse().map_err(|_| name("name"))?;
    let trust_domain: TrustDomain = said.trust_domain.parse().map_err(|_| name("trust domain"))?;
    if trust_domain == own.trust_domain {
        let message = format!("both clusters are of the trust domain {trust_domain}");
        return Err(bad(message, "each cluster has a trust domain of its own: set fabricDomain or the cluster's name"));
    }
    let region = said.region.clone();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if region.len() > REGION_MAX || !region.bytes().all(plain) {
        return Err(name("region"));
    }
    let bundle = Bundle::parse(&said.bundle).map_err(|e| bad(e.to_string(), "run the same release there"))?;
    let keys = anchors(&bundle, &trust_domain)?;
    let apart = apart(&keys, own, others)?;
    Ok(Side {
        bundle: apart.then(|| said.bundle.clone()),
        authorities: keys,
        gateways: gateways(&said.gateways, &own.gateways)?,
        cluster,
        trust_domain,
        region,
    })
}

/// Every anchor must be one of that trust domain; at least one.
fn anchors(bundle: &Bundle, domain: &TrustDomain) -> Result<BTreeSet<AuthorityId>, Refusal> {
    let mut keys = BTreeSet::new();
    for der in &bundle.x509_authorities {
        let anchor = Anchor::read(der, domain)
            .map_err(|e| bad(format!("an anchor of {domain} {e}"), "publish only anchors of the cluster itself"))?;
        keys.insert(anchor.authority());
    }
    if keys.is_empty() {
        return Err(bad(format!("{domain} publishes no anchor"), "wait until its trust anchor is ready"));
    }
    Ok(keys)
}

/// Whether they hang under another root than we. Of two clusters under one root one may know the next root already;
/// neither then takes an anchor from the other.
fn apart(keys: &BTreeSet<AuthorityId>, own: &Own, others: &[(ClusterName, Bundle)]) -> Result<bool, Refusal> {
    let ours = Bundle::parse(&own.bundle).map_err(|e| Refusal::new(Code::NotReady, e.to_string(), "try again"))?;
    let ours = authorities(&ours);
    if keys.is_subset(&ours) || ours.is_subset(keys) {
        return Ok(false);
    }
    if !keys.is_disjoint(&ours) {
        return Err(bad(
            "the other cluster's bundle holds some of our own anchors beside others",
            "finish the rotation of roots that is under way, or take our anchors out of its bundle",
        ));
    }
    for (peer, bundle) in others {
        if !keys.is_disjoint(&authorities(bundle)) {
            return Err(bad(
                format!("an anchor of the other cluster is one of {peer}, which is linked already"),
                "anchors of two trust domains must differ: unlink the one, or let each publish its intermediate",
            ));
        }
    }
    Ok(true)
}

/// Addresses that a peer names are dialled by everybody here: only what can be another machine's gateway.
fn gateways(said: &[JoinGateway], ours: &[LinkGateway]) -> Result<Vec<LinkGateway>, Refusal> {
    if said.is_empty() || said.len() > GATEWAYS_MAX {
        let message = format!("the other cluster names {} gateways", said.len());
        return Err(bad(message, "name one to 32 with `--gateway`"));
    }
    let local = ours.iter().all(|gateway| canonical(gateway.address).ip().is_loopback());
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    let mut checked = Vec::new();
    for gateway in said {
        let name: Namespace = gateway
            .name
            .parse()
            .map_err(|_| bad(format!("{:?} is no gateway's name", shown(&gateway.name)), "use a DNS label"))?;
        let refused = |why: &str| {
            let message = format!("the gateway address {:?} {why}", shown(&gateway.address));
            bad(message, "name the address under which the gateway is reached with `--gateway`")
        };
        let address: SocketAddr = gateway.address.parse().map_err(|_| refused("is not ip:port"))?;
        let address = canonical(address);
        reachable(address, local).map_err(refused)?;
        if ours.iter().any(|gateway| canonical(gateway.address) == address) {
            return Err(refused("is that of a gateway of this cluster"));
        }
        if !names.insert(name.clone()) || !addresses.insert(address) {
            return Err(refused("or its name occurs twice"));
        }
        checked.push(LinkGateway { name, address });
    }
    Ok(checked)
}

/// `::ffff:127.0.0.1` is 127.0.0.1.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether an address may be a gateway of another cluster; `local`: this cluster's own gateways are on loopback.
fn reachable(address: SocketAddr, local: bool) -> Result<(), &'static str> {
    let ip = address.ip();
    let link_local = match ip {
        // Cloud metadata services answer there.
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.segments().starts_with(&[0xfd00, 0xec2]),
    };
    match () {
        () if address.port() == 0 => Err("has no port"),
        () if ip.is_unspecified() => Err("is unspecified"),
        () if ip.is_multicast() => Err("is a multicast address"),
        () if link_local => Err("is link-local"),
        () if ip.is_loopback() && !local => Err("is loopback, and this cluster's gateways are not"),
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use hawser_tunnel::testing::Pki;

    use super::*;

    fn gateway(name: &str, address: &str) -> LinkGateway {
        LinkGateway { name: name.parse().unwrap(), address: address.parse().unwrap() }
    }

    fn own(pki: &Pki, address: &str) -> Own {
        Own {
            cluster: "west".parse().unwrap(),
            trust_domain: "west.hawser.test".parse().unwrap(),
            bundle: pki.bundle().to_document(),
            gateways: vec![gateway("g0", address)],
            region: String::new(),
        }
    }

    fn said(pki: &Pki) -> JoinSide {
        JoinSide {
            cluster: "east".into(),
            trust_domain: "east.hawser.test".into(),
            bundle: pki.bundle().to_document(),
            gateways: vec![JoinGateway { name: "g0".into(), address: "192.0.2.7:7443".into() }],
            region: "eu-1".into(),
        }
    }

    fn bundle_of(parts: &[&Pki]) -> String {
        let x509_authorities = parts.iter().map(|pki| pki.root().to_vec()).collect();
        Bundle { sequence: 1, x509_authorities, ..Bundle::default() }.to_document()
    }

    #[test]
    fn a_cluster_under_another_root_brings_its_bundle_and_one_under_ours_brings_none() {
        let (ours, theirs) = (Pki::new(), Pki::new());
        let own = own(&ours, "192.0.2.1:7443");
        let side = check(&said(&theirs), &own, &[]).unwrap();
        assert_eq!(side.bundle.as_deref(), Some(said(&theirs).bundle.as_str()));
        assert_eq!(check(&said(&ours), &own, &[]).unwrap().bundle, None);
        // They have published the next root already: nothing of it is taken from them.
        let rotating = JoinSide { bundle: bundle_of(&[&ours, &theirs]), ..said(&ours) };
        assert_eq!(check(&rotating, &own, &[]).unwrap().bundle, None);
    }

    #[test]
    fn anchors_of_ours_or_of_another_peer_are_refused() {
        let (ours, theirs, third) = (Pki::new(), Pki::new(), Pki::new());
        let mut own = own(&ours, "192.0.2.1:7443");
        let others = [("north".parse().unwrap(), third.bundle())];
        let with_third = JoinSide { bundle: bundle_of(&[&theirs, &third]), ..said(&theirs) };
        let refusal = check(&with_third, &own, &others).unwrap_err();
        assert!(refusal.message.contains("north"), "{refusal}");
        own.bundle = bundle_of(&[&ours, &third]);
        let mixed = JoinSide { bundle: bundle_of(&[&theirs, &ours]), ..said(&theirs) };
        assert!(check(&mixed, &own, &[]).unwrap_err().message.contains("our own anchors"));
        let foreign = Pki::new();
        let minted = foreign.mint("north", "/ns/a/sa/b", std::time::Duration::from_secs(60));
        let intermediate = Bundle { x509_authorities: vec![minted.chain[1].to_vec()], ..Bundle::default() };
        let of_north = JoinSide { bundle: intermediate.to_document(), ..said(&foreign) };
        assert!(check(&of_north, &own, &[]).unwrap_err().message.contains("an authority of north"));
        let nobody = JoinSide { bundle: Bundle::default().to_document(), ..said(&theirs) };
        assert!(check(&nobody, &own, &[]).unwrap_err().message.contains("no anchor"));
        let large = JoinSide { bundle: " ".repeat(2 << 20), ..said(&theirs) };
        assert!(check(&large, &own, &[]).is_err());
    }

    #[test]
    fn names_that_are_none_and_our_own_trust_domain_are_refused() {
        let (ours, theirs) = (Pki::new(), Pki::new());
        let own = own(&ours, "192.0.2.1:7443");
        for side in [
            JoinSide { cluster: "../east".into(), ..said(&theirs) },
            JoinSide { trust_domain: "spiffe://east".into(), ..said(&theirs) },
            JoinSide { trust_domain: "west.hawser.test".into(), ..said(&theirs) },
            JoinSide { region: "eu\n1".into(), ..said(&theirs) },
            JoinSide { region: "x".repeat(64), ..said(&theirs) },
            JoinSide { bundle: "{}".into(), ..said(&theirs) },
        ] {
            assert_eq!(check(&side, &own, &[]).unwrap_err().code, Code::BadRequest, "{side:?}");
        }
    }

    #[test]
    fn addresses_that_lead_nowhere_good_are_refused() {
        let (ours, theirs) = (Pki::new(), Pki::new());
        let with = |addresses: &[&str]| {
            let gateways = addresses.iter().enumerate();
            let gateway =
                |(n, address): (usize, &&str)| JoinGateway { name: format!("g{n}"), address: (*address).into() };
            JoinSide { gateways: gateways.map(gateway).collect(), ..said(&theirs) }
        };
        let (remote, local) = (own(&ours, "192.0.2.1:7443"), own(&ours, "127.0.1.1:7443"));
        for address in [
            "0.0.0.0:7443",
            "[::]:7443",
            "224.0.0.1:7443",
            "[ff02::1]:7443",
            "255.255.255.255:7443",
            "192.0.2.7:0",
            "169.254.169.254:80",
            "[fe80::1]:7443",
            "[fd00:ec2::254]:80",
            "127.0.0.1:7443",
            "[::1]:7443",
            "[::ffff:127.0.0.1]:7443",
            "2130706433:7443",
            "0177.0.0.1:7443",
            "localhost:7443",
            "192.0.2.1:7443",
            "",
        ] {
            assert!(check(&with(&[address]), &remote, &[]).is_err(), "{address}");
        }
        assert!(check(&with(&["127.0.2.1:7443", "192.0.2.7:7443"]), &local, &[]).is_ok());
        assert!(check(&with(&["169.254.169.254:80"]), &local, &[]).is_err());
        assert!(check(&with(&["192.0.2.7:1", "192.0.2.7:1"]), &remote, &[]).is_err());
        assert!(check(&with(&[]), &remote, &[]).is_err());
        let many: Vec<String> = (0..33).map(|n| format!("192.0.2.7:{}", n + 1)).collect();
        assert!(check(&with(&many.iter().map(String::as_str).collect::<Vec<_>>()), &remote, &[]).is_err());
    }
}
