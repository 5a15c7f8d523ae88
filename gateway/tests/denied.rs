//! The deny-list cuts what is live, whichever way it names somebody, and lets nobody in again.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "used by tests only, where a panic is the report")]

mod support;

use std::time::Duration;

use hawser_api::objects::link::Transport;
use hawser_tunnel::testing::{domain, id};
use hawser_tunnel::tls::{Denials, Identity};
use support::{BOTH, Door, Endpoint0, echoes, until, until_cut, within};

const WEB: &str = "/ns/apps/sa/web";

/// One live stream each of west and north; west is denied as `deny` says of its certificate.
async fn denied(transport: Transport, deny: impl Fn(&hawser_tunnel::verify::Svid) -> Denials) {
    let a = Endpoint0::start("a").await;
    let mut door = Door::open().await;
    door.link("north");
    door.export("shop/checkout:80", &["west", "north"], &[("a", a.address, true)]);
    door.publish().await;
    let credentials = door.pki.linked("west", WEB, &["east"]);
    let chain = credentials.identity().unwrap().chain().to_vec();
    let svid = door.credentials.proves(&chain).unwrap();
    let (west, north) = (door.knocker_with(credentials, transport), door.knocker("north", transport));
    let (_, mut of_west) = west.reach("shop/checkout:80").await;
    let (_, mut of_north) = north.reach("shop/checkout:80").await;

    door.credentials.set_denied(deny(&svid));
    assert!(until_cut(&mut of_west).await < Duration::from_secs(1));
    echoes(&mut of_north).await.unwrap();
    assert!(west.open("shop/checkout:80").await.is_err(), "it comes in again");
    assert_eq!(door.page("/streams")["streams"].as_array().unwrap().len(), 1);

    door.credentials.set_denied(Denials::default());
    assert_eq!(west.reach("shop/checkout:80").await.0, "a");
}

#[tokio::test]
async fn a_denied_identity_loses_its_streams_within_a_second() {
    for transport in BOTH {
        denied(transport, |_| Denials { identities: [id("west", WEB)].into(), ..Denials::default() }).await;
    }
}

#[tokio::test]
async fn a_denied_cluster_loses_its_streams_within_a_second() {
    for transport in BOTH {
        denied(transport, |_| Denials { trust_domains: [domain("west")].into(), ..Denials::default() }).await;
    }
}

#[tokio::test]
async fn a_denied_serial_loses_its_streams_within_a_second() {
    for transport in BOTH {
        let deny = |svid: &hawser_tunnel::verify::Svid| Denials {
            serials: [(domain("west"), svid.serial.clone())].into(),
            ..Denials::default()
        };
        denied(transport, deny).await;
    }
}

#[tokio::test]
async fn a_denied_authority_loses_its_streams_within_a_second() {
    for transport in BOTH {
        let deny = |svid: &hawser_tunnel::verify::Svid| Denials {
            authorities: [*svid.authorities.first().unwrap()].into(),
            ..Denials::default()
        };
        denied(transport, deny).await;
    }
}

#[tokio::test]
async fn a_denial_cuts_also_what_has_outlived_its_certificate() {
    for transport in BOTH {
        let a = Endpoint0::start("a").await;
        let mut door = Door::open().await;
        door.export("shop/checkout:80", &["west"], &[("a", a.address, true)]);
        door.publish().await;
        let credentials = door.pki.linked("west", WEB, &["east"]);
        let minted = door.pki.mint("west", WEB, Duration::from_secs(2));
        credentials.set_identity(Identity::new(minted.chain, minted.key).unwrap());
        let west = door.knocker_with(credentials.clone(), transport);
        let (_, mut old) = west.reach("shop/checkout:80").await;
        credentials.set_identity(door.pki.identity("west", WEB));
        until("the old certificate to end", || {
            door.page("/streams")["streams"][0]["ageMs"].as_u64().is_some_and(|age| age >= 2100)
        })
        .await;
        echoes(&mut old).await.unwrap();
        door.credentials.set_denied(Denials { identities: [id("west", WEB)].into(), ..Denials::default() });
        assert!(until_cut(&mut old).await < Duration::from_secs(1));
    }
}

#[tokio::test]
async fn a_gateway_with_a_new_certificate_sends_its_tunnels_to_it_and_lets_streams_live() {
    for transport in BOTH {
        let a = Endpoint0::start("a").await;
        let mut door = Door::open().await;
        door.export("shop/checkout:80", &["west"], &[("a", a.address, true)]);
        door.publish().await;
        let credentials = door.pki.linked("west", WEB, &["east"]);
        let west = door.knocker_with(credentials.clone(), transport);
        let (_, mut old) = west.reach("shop/checkout:80").await;
        let rests_on = || credentials.dependences().iter().map(|one| one.live).sum::<u64>();
        let before = rests_on();
        door.credentials.set_identity(door.pki.identity("east", "/ns/hawser-system/sa/gateway"));
        // Every open succeeds while the tunnel is replaced.
        let replaced = async {
            while transport == Transport::Quic && rests_on() <= before {
                assert_eq!(west.reach("shop/checkout:80").await.0, "a");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        within("another tunnel", replaced).await;
        echoes(&mut old).await.unwrap();
    }
}
