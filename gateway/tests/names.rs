//! Every way of naming something that is not exported to the caller is refused, and the answers tell nothing apart.

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use hawser_api::proto::tunnel::Open;
use hawser_api::{Code, Refusal};
use support::{BOTH, Door, Endpoint0, raw};

/// What east has: one port for west, one for north, one for nobody.
async fn shop() -> (Door, Endpoint0) {
    let endpoint = Endpoint0::start("checkout").await;
    let mut door = Door::open().await;
    let endpoints = [("e1", endpoint.address, true)];
    door.link("north");
    door.export("shop/checkout:80", &["west"], &endpoints);
    door.export("shop/checkout:9090", &["north"], &endpoints);
    door.export("shop/stock:80", &[], &endpoints);
    door.export("hawser-system/catalog:443", &["north"], &endpoints);
    door.publish().await;
    (door, endpoint)
}

/// Well-formed names of what west may not reach: what exists and what does not.
const FORBIDDEN: &[&str] = &[
    "shop/checkout:9090",          // exported to another cluster
    "shop/stock:80",               // exported to nobody
    "shop/checkout:81",            // another port of an exported service
    "shop/checkout:1",             //
    "shop/checkout:65535",         //
    "shop/checkout:4143",          // the inbound proxy's own port
    "shop/checkout:7443",          // the gateway's
    "pay/checkout:80",             // another namespace
    "default/checkout:80",         //
    "kube-system/checkout:80",     //
    "shop/check:80",               // a prefix
    "shop/checkout-east:80",       // the mirror's name
    "shop/checkout-federated:80",  //
    "shop/checkout-0:80",          // an instance's name
    "shop/checkout-local:80",      // DNS-like
    "shop/checkout-svc:80",        //
    "shop/127-0-0-1:80",           // a pod address as a name
    "shop/10-0-0-1:80",            //
    "shop/0:80",                   //
    "127-0-0-1/checkout:80",       //
    "checkout/shop:80",            // swapped
    "shop/shop:80",                //
    "shop/localhost:80",           //
    "hawser-system/catalog:443",   // exported to another cluster
    "hawser-system/catalog:80",    //
    "hawser-system/gateway:7443",  //
    "hawser-system/issuer:443",    //
    "hawser-system/discovery:443", //
    "hawser-system/mirror-controller:443",
    "hawser-system/pong:80",
    "shop/ping:80",
    "default/kubernetes:443",
];

#[tokio::test]
async fn everything_that_is_not_exported_to_the_caller_is_refused_alike() {
    let (door, _endpoint) = shop().await;
    let mut texts = BTreeSet::new();
    for transport in BOTH {
        let west = door.knocker("west", transport);
        // What is exported works, so the refusals are not for another reason.
        assert_eq!(west.reach("shop/checkout:80").await.0, "checkout");
        for target in FORBIDDEN {
            let refusal = west.open(target).await.map(|opening| opening.opened).unwrap_err();
            assert_eq!(refusal.code, Code::NotExported, "{target} over {transport:?}: {refusal:?}");
            texts.insert(format!("{refusal:?}").replace(target, "TARGET"));
        }
    }
    assert_eq!(texts.len(), 1, "the answers differ: {texts:#?}");
    let text = texts.first().unwrap();
    assert!(text.contains("hawser.dev/export"), "no remedy: {text}");
}

#[tokio::test]
async fn another_link_reaches_its_own_exports_and_not_those_of_the_first() {
    let (door, _endpoint) = shop().await;
    for transport in BOTH {
        let north = door.knocker("north", transport);
        assert_eq!(north.reach("shop/checkout:9090").await.0, "checkout");
        let refusal = north.open("shop/checkout:80").await.map(|opening| opening.opened).unwrap_err();
        assert_eq!(refusal.code, Code::NotExported);
    }
}

/// Spellings that are no names, among them some that a careless gateway would take for an export's.
#[tokio::test]
async fn what_is_no_name_is_refused_alike_whatever_it_resembles() {
    let (door, _endpoint) = shop().await;
    let open = |namespace: &str, service: &str, port: u32| Open {
        version: 1,
        namespace: namespace.into(),
        service: service.into(),
        port,
        ..Open::default()
    };
    let long = "a".repeat(64);
    let huge = "a".repeat(10_000);
    let cases = [
        open("", "", 0),
        open("", "checkout", 80),
        open("shop", "", 80),
        open("shop", "checkout", 0),
        open("shop", "checkout", 65_536 + 80),
        open("shop", "checkout", u32::MAX),
        open("Shop", "checkout", 80),
        open("shop", "Checkout", 80),
        open("SHOP", "CHECKOUT", 80),
        open("shop", " checkout", 80),
        open("shop", "checkout ", 80),
        open("shop", "checkout\0", 80),
        open("shop", "checkout\n", 80),
        open("shop", "checkout.", 80),
        open("shop", "checkout.shop", 80),
        open("shop", "checkout.shop.svc.cluster.local", 80),
        open("shop", "checkout:80", 80),
        open("shop", "shop/checkout", 80),
        open("shop/checkout", "checkout", 80),
        open("shop", "../shop/checkout", 80),
        open(".", "checkout", 80),
        open("shop", "*", 80),
        open("*", "*", 80),
        open("shop", "check%6fut", 80),
        open("shop", "che\u{441}kout", 80),   // Cyrillic
        open("shop", "checkout\u{200b}", 80), // zero width space
        open("shop", "\u{ff43}heckout", 80),  // fullwidth, which NFKC would fold
        open("sh\u{f6}p", "checkout", 80),
        open("shop", "127.0.0.1", 80),
        open("shop", "[::1]", 80),
        open("shop", "-checkout", 80),
        open("shop", "checkout-", 80),
        open("shop", &long, 80),
        open(&huge, &huge, 80),
    ];
    for case in cases {
        let who = door.pki.mint("west", "/ns/apps/sa/web", Duration::from_secs(3600));
        let refusal: Refusal = raw::open(door.address, who, &case).await.unwrap_err();
        assert_eq!(refusal.code, Code::BadRequest, "{case:?}");
        assert!(!refusal.remedy.is_empty());
    }
    // The same hand reaches what is exported, so it was the names.
    let who = door.pki.mint("west", "/ns/apps/sa/web", Duration::from_secs(3600));
    assert_eq!(raw::open(door.address, who, &open("shop", "checkout", 80)).await.unwrap().endpoint, "e1");
}

#[tokio::test]
async fn an_endpoint_is_no_way_round_an_export() {
    let (door, endpoint) = shop().await;
    for id in ["e1".to_owned(), endpoint.address.to_string(), "../e1".to_owned()] {
        let who = door.pki.mint("west", "/ns/apps/sa/web", Duration::from_secs(3600));
        let asked = Open {
            version: 1,
            namespace: "shop".into(),
            service: "stock".into(),
            port: 80,
            endpoint: id,
            ..Open::default()
        };
        assert_eq!(raw::open(door.address, who, &asked).await.unwrap_err().code, Code::NotExported);
    }
}
