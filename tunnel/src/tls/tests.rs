use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;
use crate::testing::{Pki, clock, domain, id};

mod bundles;
mod clocks;
mod denied;
mod foreign;
mod live;
mod over_quic;
mod resumption;

const ALPN: &[u8] = b"hawser/1";

type Ends = (Result<client::TlsStream<DuplexStream>, io::Error>, Result<server::TlsStream<DuplexStream>, io::Error>);

async fn handshake(dialling: &Credentials, expect: &Expect, accepting: &Credentials) -> Ends {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    let connector = TlsConnector::from(dialling.client_config(expect, ALPN).unwrap());
    let acceptor = TlsAcceptor::from(accepting.server_config(&[ALPN]).unwrap());
    tokio::join!(connector.connect(name, near), acceptor.accept(far))
}

fn only(id: SpiffeId) -> Expect {
    Expect::Identities([id].into())
}

fn failure<T>(result: Result<T, io::Error>) -> HandshakeError {
    result.err().expect("the handshake succeeded").into()
}

#[tokio::test]
async fn both_ends_learn_whom_they_speak_with() {
    let pki = Pki::new();
    let west = pki.linked("west", "/ns/shop/sa/web", &["east"]);
    let east = pki.linked("east", "/ns/shop/sa/checkout", &["west"]);
    let expect = only(id("east", "/ns/shop/sa/checkout"));
    let (near, far) = handshake(&west, &expect, &east).await;
    let (near, far) = (near.unwrap(), far.unwrap());

    let server = west.verified(near.get_ref().1.peer_certificates().unwrap(), &expect, None).unwrap();
    let client = east.verified(far.get_ref().1.peer_certificates().unwrap(), &Expect::Trusted, None).unwrap();
    assert_eq!(server.id().as_str(), "spiffe://east.hawser.test/ns/shop/sa/checkout");
    assert_eq!(client.id().as_str(), "spiffe://west.hawser.test/ns/shop/sa/web");
    assert!(client.not_after() > clock());
    assert!(!client.serial().is_empty());
    let connection = near.get_ref().1;
    assert_eq!(connection.alpn_protocol(), Some(ALPN));
    assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(connection.negotiated_cipher_suite().unwrap().suite(), rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert_eq!(far.get_ref().1.server_name(), None, "a name was sent in the clear");
}

#[tokio::test]
async fn a_second_connection_is_a_full_handshake_again() {
    let pki = Pki::new();
    let west = pki.credentials("west", "/a");
    let other = pki.credentials("west", "/b");
    for _ in 0..2 {
        let (near, far) = handshake(&west, &Expect::Trusted, &other).await;
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        // Tickets would arrive with the first bytes.
        far.write_all(b"x").await.unwrap();
        far.flush().await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), b'x');
        assert_eq!(near.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(near.get_ref().1.tls13_tickets_received(), 0);
        assert_eq!(far.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert!(!near.get_ref().1.is_early_data_accepted());
    }
    let server = other.server_config(&[ALPN]).unwrap();
    assert_eq!((server.send_tls13_tickets, server.max_early_data_size), (0, 0));
    assert!(!west.client_config(&Expect::Trusted, ALPN).unwrap().enable_early_data);
}

#[tokio::test]
async fn the_wrong_identity_is_refused_by_name() {
    let pki = Pki::new();
    let west = pki.credentials("west", "/a");
    let other = pki.credentials("west", "/b");
    let (near, far) = handshake(&west, &only(id("west", "/c")), &other).await;
    let near = failure(near);
    assert_eq!(near.reason, "wrong_identity");
    assert!(near.detail.contains("spiffe://west.hawser.test/b"), "{near}");
    assert_eq!(failure(far).reason, "refused_by_peer");
}

#[tokio::test]
async fn an_unlinked_client_is_refused_by_its_trust_domain() {
    let pki = Pki::new();
    let west = pki.linked("west", "/a", &["east"]);
    let east = pki.credentials("east", "/b");
    let (_, far) = handshake(&west, &Expect::Trusted, &east).await;
    let far = failure(far);
    assert_eq!(far.reason, "untrusted");
    assert!(far.detail.contains("west.hawser.test"), "{far}");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let pki = Pki::new();
    let west = pki.credentials("west", "/a");
    let mut config = (*west.client_config(&Expect::Trusted, ALPN).unwrap()).clone();
    config.client_auth_cert_resolver = Arc::new(NoCertificate);
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connector = TlsConnector::from(Arc::new(config));
    let acceptor = TlsAcceptor::from(west.server_config(&[ALPN]).unwrap());
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    let (near, far) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
    assert_eq!(failure(far).reason, "untrusted");
    // TLS 1.3: the client is done before the server has read its certificate, and hears of it with the first read.
    let heard = near.unwrap().read_u8().await;
    assert_eq!(failure(heard).reason, "no_identity");
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }
    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn an_expired_certificate_is_told_from_an_untrusted_one_at_both_ends() {
    let pki = Pki::new();
    let west = pki.credentials("west", "/a");
    let old = pki.credentials("west", "/b");
    let hour_ago = clock() - Duration::from_secs(3600);
    let before = Pki::at(hour_ago);
    let minted = before.mint("west", "/b", Duration::from_secs(60));
    old.set_identity(Identity::new(minted.chain, minted.key).unwrap());
    west.set_anchors(&domain("west"), Anchors::Bundle(Bundle { sequence: 2, ..before.bundle() }));

    let (near, far) = handshake(&west, &Expect::Trusted, &old).await;
    assert_eq!(failure(near).reason, "expired");
    assert_eq!(failure(far).reason, "expired");
}

#[tokio::test]
async fn another_protocol_is_refused() {
    let pki = Pki::new();
    let west = pki.credentials("west", "/a");
    let (near, far) = tokio::io::duplex(64 * 1024);
    let connector = TlsConnector::from(west.client_config(&Expect::Trusted, b"h2").unwrap());
    let acceptor = TlsAcceptor::from(west.server_config(&[ALPN]).unwrap());
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    let (near, far) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
    assert_eq!(failure(near).reason, "alpn");
    assert_eq!(failure(far).reason, "alpn");
}

#[test]
fn without_an_identity_there_is_no_handshake() {
    let credentials = Credentials::new(domain("west"), clock);
    assert_eq!(credentials.client_config(&Expect::Trusted, ALPN).unwrap_err().reason, "no_identity");
    assert_eq!(credentials.server_config(&[ALPN]).unwrap_err().reason, "no_identity");
}

#[test]
fn configurations_are_built_once_per_generation() {
    let pki = Pki::new();
    let west = pki.credentials("west", "/a");
    let first = west.client_config(&Expect::Trusted, ALPN).unwrap();
    assert!(Arc::ptr_eq(&first, &west.client_config(&Expect::Trusted, ALPN).unwrap()));
    assert!(!Arc::ptr_eq(&first, &west.client_config(&only(id("west", "/b")), ALPN).unwrap()));
    assert!(!Arc::ptr_eq(&first, &west.client_config(&Expect::Trusted, b"h2").unwrap()));
    west.set_identity(pki.identity("west", "/a"));
    assert!(!Arc::ptr_eq(&first, &west.client_config(&Expect::Trusted, ALPN).unwrap()));
    let server = west.server_config(&[ALPN]).unwrap();
    assert!(Arc::ptr_eq(&server, &west.server_config(&[ALPN]).unwrap()));
}

#[test]
fn the_generation_grows_with_changes_and_with_nothing_else() {
    let pki = Pki::new();
    let west = pki.credentials("west", "/a");
    let generation = west.generation();
    let before = *generation.borrow();
    west.set_anchors(&domain("west"), Anchors::Bundle(pki.bundle()));
    west.remove_anchors(&domain("nobody"));
    west.set_denied(Denials::default());
    assert_eq!(*generation.borrow(), before);
    west.set_anchors(&domain("east"), Anchors::OwnRoot);
    assert_eq!(*generation.borrow(), before + 1);
    west.remove_anchors(&domain("east"));
    assert_eq!(*generation.borrow(), before + 2);
    west.set_identity(pki.identity("west", "/a"));
    assert_eq!(*generation.borrow(), before + 3);
}

#[test]
fn a_peer_is_trusted_until_its_bundle_its_anchor_or_its_certificate_goes() {
    let pki = Pki::new();
    let west = pki.linked("west", "/a", &["east"]);
    let chain = pki.mint("east", "/b", Duration::from_secs(600)).chain;
    let peer = west.verified(&chain, &Expect::Trusted, None).unwrap();
    assert!(west.still_trusts(&peer));

    west.set_denied(Denials { identities: BTreeSet::from([peer.id().clone()]), ..Denials::default() });
    assert!(!west.still_trusts(&peer));
    assert_eq!(west.verified(&chain, &Expect::Trusted, None).unwrap_err().reason, "denied");
    west.set_denied(Denials::default());
    assert!(west.still_trusts(&peer));

    west.remove_anchors(&domain("east"));
    assert!(!west.still_trusts(&peer));
    west.set_anchors(&domain("east"), Anchors::OwnRoot);
    assert!(west.still_trusts(&peer));

    // Our own bundle changes: what hangs under our own root follows.
    west.set_anchors(&domain("west"), Anchors::Bundle(Bundle { sequence: 2, ..Pki::new().bundle() }));
    assert!(!west.still_trusts(&peer));

    let over = VerifiedPeer { not_after: clock() - Duration::from_secs(1), ..peer };
    west.set_anchors(&domain("west"), Anchors::Bundle(Bundle { sequence: 3, ..pki.bundle() }));
    assert!(!west.still_trusts(&over));
}

#[test]
fn what_a_chain_proved_once_is_held_to_time_deny_list_and_anchors_each_time() {
    let pki = Pki::new();
    let (domain, chain) = (domain("west"), pki.mint("west", "/a", Duration::from_secs(600)).chain);
    let sources = BTreeMap::from([(domain.clone(), Anchors::Bundle(pki.bundle()))]);
    let trust = Trust::new(domain, sources, Denials::default(), clock()).0;
    let at = |after: u64| trust.verify(&chain, &Expect::Trusted, clock() + Duration::from_secs(after));
    assert!(at(0).is_ok() && at(0) == at(0));
    assert_eq!(at(601).unwrap_err().reason(), "expired");
    assert!(at(0).is_ok());
    let early = trust.verify(&chain, &Expect::Trusted, clock() - Duration::from_secs(3600));
    assert_eq!(early.unwrap_err().reason(), "not_yet_valid");
    let other = trust.verify(&chain, &only(id("west", "/b")), clock());
    assert_eq!(other.unwrap_err().reason(), "wrong_identity");
    // The same leaf behind other certificates is another chain.
    assert!(trust.verify(&chain[..1], &Expect::Trusted, clock()).is_err());
}

#[test]
fn an_older_bundle_is_refused_whole_and_an_empty_one_trusts_nobody() {
    let pki = Pki::new();
    let west = pki.credentials("west", "/a");
    let chain = pki.mint("west", "/b", Duration::from_secs(600)).chain;
    let own = domain("west");
    west.set_anchors(&own, Anchors::Bundle(Bundle { sequence: 7, ..pki.bundle() }));
    let reasons = west.set_anchors(&own, Anchors::Bundle(Bundle { sequence: 6, ..Bundle::default() }));
    assert!(reasons.iter().any(|r| r.contains("lower than 7")), "{reasons:?}");
    assert!(west.verified(&chain, &Expect::Trusted, None).is_ok());
    assert!(west.set_anchors(&own, Anchors::Bundle(Bundle { sequence: 8, ..Bundle::default() })).is_empty());
    let error = west.verified(&chain, &Expect::Trusted, None).unwrap_err();
    assert_eq!(error.reason, "untrusted");
}

#[test]
fn anchors_that_are_no_anchors_are_dropped_with_the_reason() {
    let pki = Pki::new();
    let old = Pki::at(clock() - Duration::from_secs(2 * 86_400));
    let minted = pki.mint("east", "/b", Duration::from_secs(600));
    let authorities = vec![
        b"garbage".to_vec(),
        old.root().to_vec(),
        minted.chain[0].to_vec(), // a leaf
        minted.chain[1].to_vec(), // east's intermediate
        pki.root().to_vec(),
        pki.root().to_vec(),
    ];
    let west = Credentials::new(domain("west"), clock);
    let bundle = Bundle { sequence: 1, refresh_hint: None, x509_authorities: authorities, ..Bundle::default() };
    let reasons = west.set_anchors(&domain("west"), Anchors::Bundle(bundle)).join("\n");
    for (index, reason) in
        [(1, "not a certificate"), (2, "expired"), (3, "not an authority"), (4, "east.hawser.test"), (6, "twice")]
    {
        let line = reasons.lines().find(|line| line.contains(&format!("anchor {index} "))).unwrap();
        assert!(line.contains(reason), "{line} does not say {reason}");
    }
    assert_eq!(reasons.lines().count(), 5);
    assert!(west.proves(&pki.mint("west", "/a", Duration::from_secs(600)).chain).is_ok());
}

#[test]
fn own_root_for_our_own_trust_domain_trusts_nobody_and_says_so() {
    let west = Credentials::new(domain("west"), clock);
    assert_eq!(west.set_anchors(&domain("west"), Anchors::OwnRoot).len(), 1);
    let chain = Pki::new().mint("west", "/a", Duration::from_secs(600)).chain;
    assert_eq!(west.proves(&chain).unwrap_err().reason(), "untrusted");
}

#[test]
fn a_chain_and_somebody_elses_key_are_no_identity() {
    let pki = Pki::new();
    let one = pki.mint("west", "/a", Duration::from_secs(600));
    let two = pki.mint("west", "/a", Duration::from_secs(600));
    assert!(Identity::new(one.chain.clone(), two.key).is_err());
    assert!(Identity::new(vec![one.chain[1].clone()], one.key.clone_key()).is_err());
    assert!(Identity::new(Vec::new(), one.key.clone_key()).is_err());
    let identity = Identity::new(one.chain, one.key).unwrap();
    assert!(!format!("{identity:?}").contains("key"));
}
