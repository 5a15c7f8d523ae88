use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Barrier;

use hawser_api::proto::tunnel::{JoinGateway, JoinSide};
use hawser_tunnel::testing::Pki;

use super::super::offers::tests::wanted;
use super::super::offers::{FAILURES_MAX, list, register, revoke};
use super::super::token::Token;
use super::*;

/// The creator `west` in directories of its own, and a joiner `east` under another root.
struct Creator {
    dir: tempfile::TempDir,
    bundle: String,
    redeemer: Redeemer,
    theirs: Pki,
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
}

impl Creator {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, bundle: Pki::new().bundle().to_document(), redeemer: Redeemer::default(), theirs: Pki::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn token(&self) -> Token {
        register(&self.path("store"), &wanted(), at(0)).unwrap()
    }

    fn links(&self) -> LinksConfig {
        LinksConfig { directory: self.path("links"), objects: self.path("objects") }
    }

    fn request(&self, token: &Token, claim: u8) -> JoinRequest {
        let side = JoinSide {
            cluster: "east".into(),
            trust_domain: "east.hawser.test".into(),
            bundle: self.theirs.bundle().to_document(),
            gateways: vec![JoinGateway { name: "g0".into(), address: "127.0.0.2:7443".into() }],
            region: String::new(),
        };
        JoinRequest { version: VERSION, secret: token.secret.to_vec(), claim: vec![claim; 32], side: Some(side) }
    }

    fn ask(&self, request: &JoinRequest, now: SystemTime) -> Result<Joined, Refusal> {
        self.ask_of(&self.redeemer, request, now)
    }

    fn ask_of(&self, redeemer: &Redeemer, request: &JoinRequest, now: SystemTime) -> Result<Joined, Refusal> {
        let links = self.links();
        let here = Here {
            store: &self.path("store"),
            links: Some(&links),
            cluster: &"west".parse().unwrap(),
            trust_domain: &"west.hawser.test".parse().unwrap(),
            bundle: &self.bundle,
        };
        let (reply, joined) = redeemer.answer(&request.encode_to_vec(), &here, now);
        let said_yes = matches!(JoinReply::decode(&*reply).unwrap().reply, Some(join_reply::Reply::Side(_)));
        assert_eq!(said_yes, joined.is_ok(), "what is answered is what was done");
        joined
    }

    fn linked(&self) -> usize {
        object::linked(&self.path("links")).unwrap().len()
    }
}

#[test]
fn a_token_links_one_cluster_once_and_says_so_again_to_the_same_joiner_only() {
    let creator = Creator::new();
    let token = creator.token();
    let first = creator.ask(&creator.request(&token, 1), at(1)).unwrap();
    assert_eq!(first.peer.as_str(), "east");
    let link = object::linked(&creator.path("links")).unwrap().remove(0).link;
    assert_eq!(link.spec.bundle.as_deref(), Some(creator.theirs.bundle().to_document().as_str()));
    // Its answer got lost: it may ask again, also after a restart of ours.
    assert_eq!(creator.ask(&creator.request(&token, 1), at(2)).unwrap(), first);
    let restarted = Redeemer::default();
    assert_eq!(creator.ask_of(&restarted, &creator.request(&token, 1), at(3)).unwrap(), first);
    // A thief who saw the token, before and after a restart.
    for redeemer in [&creator.redeemer, &restarted, &Redeemer::default()] {
        let refusal = creator.ask_of(redeemer, &creator.request(&token, 2), at(4)).unwrap_err();
        assert!(refusal.message.contains("has been used"), "{refusal}");
    }
    // Who says something else the second time is another.
    let mut other = creator.request(&token, 1);
    other.side.as_mut().unwrap().gateways[0].address = "127.0.0.3:7443".into();
    assert!(creator.ask(&other, at(5)).is_err());
    assert!(creator.ask(&creator.request(&token, 1), at(601)).unwrap_err().message.contains("expired"));
}

#[test]
fn of_a_hundred_joiners_with_one_token_one_is_linked() {
    let creator = Creator::new();
    let token = creator.token();
    let start = Barrier::new(100);
    let won: Vec<u8> = std::thread::scope(|scope| {
        let (creator, token, start) = (&creator, &token, &start);
        let ask = |claim: u8| {
            scope.spawn(move || {
                let mut request = creator.request(token, claim);
                request.side.as_mut().unwrap().gateways[0].address = format!("127.0.1.{claim}:7443");
                start.wait();
                creator.ask(&request, at(1)).is_ok().then_some(claim)
            })
        };
        let threads: Vec<_> = (0..100).map(ask).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(won.len(), 1, "{won:?}");
    let link = object::linked(&creator.path("links")).unwrap().remove(0).link;
    assert_eq!(link.spec.gateways[0].address.to_string(), format!("127.0.1.{}:7443", won[0]));
}

#[test]
fn a_token_works_for_its_trust_domain_alone_and_five_wrong_tries_end_it() {
    let creator = Creator::new();
    let token = creator.token();
    let mut wrong = creator.request(&token, 1);
    wrong.side.as_mut().unwrap().trust_domain = "north.hawser.test".into();
    for _ in 0..FAILURES_MAX {
        assert!(creator.ask(&wrong, at(1)).unwrap_err().message.contains("another trust domain"));
    }
    let refusal = creator.ask(&creator.request(&token, 1), at(1)).unwrap_err();
    assert!(refusal.message.contains("too often"), "{refusal}");
    assert_eq!(creator.linked(), 0);
}

#[test]
fn a_store_that_is_put_back_from_a_backup_opens_no_token_again() {
    let creator = Creator::new();
    let token = creator.token();
    let open = creator.path("store/link").join(format!("{}.json", offers::name(&token.secret)));
    let backup = std::fs::read(&open).unwrap();
    creator.ask(&creator.request(&token, 1), at(1)).unwrap();
    std::fs::remove_dir_all(creator.path("store")).unwrap();
    std::fs::create_dir_all(creator.path("store/link")).unwrap();
    std::fs::write(&open, &backup).unwrap();
    assert!(creator.ask(&creator.request(&token, 2), at(2)).unwrap_err().message.contains("has been used"));
    // After a restart as well the Link stands in the way, and ten minutes later the token is over.
    let restarted = Redeemer::default();
    assert!(creator.ask_of(&restarted, &thief(&creator, &token), at(3)).is_err());
    assert!(creator.ask_of(&restarted, &creator.request(&token, 2), at(601)).unwrap_err().message.contains("expired"));
}

/// Somebody with a certificate authority of their own.
fn thief(creator: &Creator, token: &Token) -> JoinRequest {
    let mut request = creator.request(token, 3);
    request.side.as_mut().unwrap().bundle = Pki::new().bundle().to_document();
    request
}

#[test]
fn a_revoked_token_links_nobody() {
    let creator = Creator::new();
    let token = creator.token();
    assert_eq!(revoke(&creator.path("store"), &"east".parse().unwrap()).unwrap(), 1);
    assert!(creator.ask(&creator.request(&token, 1), at(1)).unwrap_err().message.contains("not known"));
    assert_eq!(creator.linked(), 0);
}

#[test]
fn guessing_is_stopped_after_a_minutes_worth_and_goes_on_the_minute_after() {
    let creator = Creator::new();
    let token = creator.token();
    let mut codes = Vec::new();
    for guess in 0..200_u8 {
        let mut request = creator.request(&token, 1);
        request.secret = vec![guess; 32];
        codes.push(creator.ask(&request, at(1)).unwrap_err().code);
    }
    let looked_at = codes.iter().filter(|code| **code == Code::NotAllowed).count();
    assert_eq!(looked_at, FAILURES_PER_MINUTE as usize);
    assert_eq!(codes.last(), Some(&Code::Overloaded));
    assert_eq!(creator.ask(&creator.request(&token, 1), at(1)).unwrap_err().code, Code::Overloaded);
    assert!(creator.ask(&creator.request(&token, 1), at(61)).is_ok());
    assert_eq!(list(&creator.path("store")).unwrap().len(), 1, "guesses leave nothing in the store");
}

#[test]
fn a_peer_that_is_linked_already_is_not_linked_again_and_keeps_its_link() {
    let creator = Creator::new();
    std::fs::create_dir_all(creator.path("objects")).unwrap();
    let manifest = "apiVersion: hawser.dev/v1alpha1\nkind: Link\nmetadata: {name: elsewhere}\nspec:\n  \
                    trustDomain: east.hawser.test\n  gateways: [{name: g0, address: \"127.0.0.9:7443\"}]\n";
    std::fs::write(creator.path("objects/link.yaml"), manifest).unwrap();
    let token = creator.token();
    let refusal = creator.ask(&creator.request(&token, 1), at(1)).unwrap_err();
    assert!(refusal.message.contains("elsewhere") && refusal.message.contains("link.yaml"), "{refusal}");
    std::fs::remove_file(creator.path("objects/link.yaml")).unwrap();
    creator.ask(&creator.request(&token, 1), at(2)).unwrap();
}

#[test]
fn what_cannot_be_read_or_is_of_another_version_uses_nothing_up() {
    let creator = Creator::new();
    let token = creator.token();
    let good = creator.request(&token, 1);
    let answers: HashSet<Code> = [
        JoinRequest { version: 2, ..good.clone() },
        JoinRequest { secret: vec![1; 31], ..good.clone() },
        JoinRequest { claim: Vec::new(), ..good.clone() },
        JoinRequest { side: None, ..good.clone() },
    ]
    .iter()
    .map(|request| creator.ask(request, at(1)).unwrap_err().code)
    .collect();
    assert_eq!(answers, HashSet::from([Code::Version, Code::BadRequest, Code::NotAllowed]));
    let links = creator.links();
    let here = Here {
        store: &creator.path("store"),
        links: Some(&links),
        cluster: &"west".parse().unwrap(),
        trust_domain: &"west.hawser.test".parse().unwrap(),
        bundle: &creator.bundle,
    };
    for bytes in [&b"\xff\xff\xff"[..], &vec![0; REQUEST_MAX + 1], b""] {
        assert!(creator.redeemer.answer(bytes, &here, at(1)).1.is_err());
    }
    creator.ask(&good, at(1)).unwrap();
}
