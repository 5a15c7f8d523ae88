//! A Link that is carried as a manifest, where there is no token to be redeemed: what one cluster says of itself, and what
//! another makes of it. Pure, and by the same rules as for strangers who come with a token.
//!
//! Nothing in it is secret: names, gateway addresses, public anchors. Whoever carries it vouches for it, as whoever
//! applies a Link always does.

use hawser_api::bundle::Bundle;
use hawser_api::objects::link::Link;
use hawser_api::proto::tunnel::{JoinGateway, JoinSide};
use hawser_api::{ClusterName, Code, Refusal, TrustDomain};

use super::object;
use super::side::{self, Own};

/// A Link that stands in a cluster, as far as another one may not contradict it.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// The peer's name there.
    pub name: String,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// Its bundle, if it has a root of its own.
    pub bundle: Option<String>,
}

/// What this cluster says of itself, as the Link by which another one links itself to it.
pub fn offered(own: &Own) -> Result<Link, Refusal> {
    // Somebody else's eyes: everything that he would refuse is refused here, where it can be put right.
    let nobody = Own {
        trust_domain: "nobody.invalid"
            .parse()
            .map_err(|_| Refusal::new(Code::BadRequest, "no trust domain for a trial", "report this"))?,
        bundle: Bundle::default().to_document(),
        gateways: Vec::new(),
        ..own.clone()
    };
    let said = side::check(&own.message(), &nobody, &[])?;
    let link = object::make(&own.cluster, &side::Side { bundle: Some(own.bundle.clone()), ..said });
    dialled(&link).map(|()| link)
}

/// The Link as this cluster can have it; its bundle is gone where both clusters hang under one root. Whatever a person
/// wrote into it besides, such as what is imported, stays. `standing`: the Links that are there.
pub fn taken(mut link: Link, own: &Own, standing: &[Standing]) -> Result<Link, Refusal> {
    let name = &link.metadata.name;
    let bad = |message: String, remedy: &str| Refusal::new(Code::BadRequest, message, remedy);
    if *name == own.cluster.as_str() {
        return Err(bad(format!("{name} is the name of this cluster itself"), "choose another with `--name`"));
    }
    let ours = Bundle::parse(&own.bundle).map_err(|e| Refusal::new(Code::NotReady, e.to_string(), "try again"))?;
    if side::authorities(&ours).is_empty() {
        // By no anchors of ours the other cluster's would look like ours.
        let message = format!("{} publishes no anchor", own.trust_domain);
        return Err(Refusal::new(Code::NotReady, message, "wait until its trust anchor is ready"));
    }
    let other = standing.iter().find(|other| (other.name == *name) != (other.trust_domain == link.spec.trust_domain));
    if let Some(Standing { name, trust_domain, .. }) = other {
        let remedy = format!("first: hawser unlink {name}, or choose its name with `--name`");
        return Err(Refusal::new(Code::NotAllowed, format!("{name} ({trust_domain}) is linked already"), remedy));
    }
    dialled(&link)?;
    let gateway = |gateway: &hawser_api::objects::link::LinkGateway| JoinGateway {
        name: gateway.name.to_string(),
        address: gateway.address.to_string(),
    };
    let said = JoinSide {
        cluster: name.clone(),
        trust_domain: link.spec.trust_domain.to_string(),
        // Without one it says itself that it hangs under our root.
        bundle: link.spec.bundle.clone().unwrap_or_else(|| own.bundle.clone()),
        gateways: link.spec.gateways.iter().map(gateway).collect(),
        region: link.spec.region.clone(),
    };
    let others = standing.iter().filter(|other| other.name != *name);
    let others: Vec<(ClusterName, Bundle)> = others
        .filter_map(|other| Some((other.name.parse().ok()?, Bundle::parse(other.bundle.as_deref()?).ok()?)))
        .collect();
    link.spec.bundle = side::check(&said, own, &others)?.bundle;
    Ok(link)
}

/// Gateways are dialled from Pods, for each of which loopback is itself.
fn dialled(link: &Link) -> Result<(), Refusal> {
    let loopback = link.spec.gateways.iter().find(|gateway| gateway.address.ip().to_canonical().is_loopback());
    loopback.map_or(Ok(()), |gateway| {
        let message = format!("the gateway address {} is loopback", gateway.address);
        let remedy = "name the address under which the gateway is reached from the other cluster with `--gateway`";
        Err(Refusal::new(Code::BadRequest, message, remedy))
    })
}

#[cfg(test)]
mod tests {
    use hawser_api::objects::link::LinkGateway;
    use hawser_tunnel::testing::Pki;

    use super::*;

    fn own(name: &str, pki: &Pki, address: &str) -> Own {
        Own {
            cluster: name.parse().unwrap(),
            trust_domain: format!("{name}.example").parse().unwrap(),
            bundle: pki.bundle().to_document(),
            gateways: vec![LinkGateway { name: "gateway-0".parse().unwrap(), address: address.parse().unwrap() }],
            region: "eu".into(),
        }
    }

    /// What an accepting cluster knows of itself: where its gateways are it need not say.
    fn here(name: &str, pki: &Pki) -> Own {
        Own { gateways: Vec::new(), ..own(name, pki, "192.0.2.1:7443") }
    }

    fn standing(link: &Link) -> Standing {
        let (name, spec) = (link.metadata.name.clone(), link.spec.clone());
        Standing { name, trust_domain: spec.trust_domain, bundle: spec.bundle }
    }

    #[test]
    fn what_one_cluster_offers_another_takes_and_takes_again() {
        let (west, east) = (Pki::new(), Pki::new());
        let offered = offered(&own("west", &west, "192.0.2.7:7443")).unwrap();
        assert_eq!((offered.metadata.name.as_str(), offered.spec.region.as_str()), ("west", "eu"));
        let taken = taken(offered.clone(), &here("east", &east), &[]).unwrap();
        assert_eq!(taken, offered, "roots of their own: the bundle stays");
        let again = super::taken(offered.clone(), &here("east", &east), &[standing(&taken)]).unwrap();
        assert_eq!(again, taken);
    }

    #[test]
    fn under_one_root_no_bundle_is_taken_whether_one_is_offered_or_not() {
        let root = Pki::new();
        let mut offered = offered(&own("west", &root, "192.0.2.7:7443")).unwrap();
        assert!(offered.spec.bundle.is_some());
        assert_eq!(taken(offered.clone(), &here("east", &root), &[]).unwrap().spec.bundle, None);
        offered.spec.bundle = None;
        assert_eq!(taken(offered, &here("east", &root), &[]).unwrap().spec.bundle, None);
    }

    #[test]
    fn names_domains_anchors_and_addresses_that_are_taken_or_our_own_are_refused() {
        let (west, east, north) = (Pki::new(), Pki::new(), Pki::new());
        let good = offered(&own("west", &west, "192.0.2.7:7443")).unwrap();
        let here = here("east", &east);
        let refused = |link: &Link, standing: &[Standing]| taken(link.clone(), &here, standing).unwrap_err().message;
        let mut named = good.clone();
        named.metadata.name = "east".into();
        assert!(refused(&named, &[]).contains("this cluster itself"));
        let mut ours = good.clone();
        ours.spec.trust_domain = "east.example".parse().unwrap();
        assert!(refused(&ours, &[]).contains("both clusters are of the trust domain"));
        let mut elsewhere = standing(&good);
        elsewhere.name = "occident".into();
        assert!(refused(&good, &[elsewhere]).contains("occident (west.example) is linked already"));
        let other = Standing { trust_domain: "old.example".parse().unwrap(), ..standing(&good) };
        assert!(refused(&good, &[other]).contains("west (old.example) is linked already"));
        let third = standing(&offered(&own("north", &west, "192.0.2.8:7443")).unwrap());
        assert!(refused(&good, &[third]).contains("is one of north"));
        let third = standing(&offered(&own("north", &north, "192.0.2.8:7443")).unwrap());
        taken(good.clone(), &here, &[third]).unwrap();
        let empty = Own { bundle: Bundle::default().to_document(), ..here.clone() };
        assert!(taken(good.clone(), &empty, &[]).unwrap_err().message.contains("east.example publishes no anchor"));
        let mut local = good;
        local.spec.gateways[0].address = "[::ffff:127.0.0.1]:7443".parse().unwrap();
        assert!(refused(&local, &[]).contains("is loopback"));
    }

    #[test]
    fn what_nobody_could_take_is_not_offered() {
        let west = Pki::new();
        for address in ["127.0.0.1:7443", "0.0.0.0:7443", "169.254.169.254:80", "192.0.2.7:0"] {
            assert!(offered(&own("west", &west, address)).is_err(), "{address}");
        }
        let silent = Own { gateways: Vec::new(), ..own("west", &west, "192.0.2.7:7443") };
        assert!(offered(&silent).unwrap_err().message.contains("0 gateways"));
        let bare = Own { bundle: Bundle::default().to_document(), ..own("west", &west, "192.0.2.7:7443") };
        assert!(offered(&bare).unwrap_err().message.contains("publishes no anchor"));
    }
}
