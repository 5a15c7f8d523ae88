//! T9 and T10: whatever a peer wants or brings, every connection is a full handshake that asks the verifier, so who was
//! unlinked or denied does not come back.

use rustls::HandshakeKind;
use rustls::client::Resumption;

use super::*;

/// A client that wants everything that we refuse: tickets, resumption, early data.
pub(super) fn greedy(credentials: &Credentials) -> rustls::ClientConfig {
    let mut config = (*credentials.client_config(&Expect::Trusted, ALPN).unwrap()).clone();
    config.resumption = Resumption::in_memory_sessions(32);
    config.enable_early_data = true;
    config.enable_secret_extraction = false;
    config
}

/// A server that gives what we refuse to take.
pub(super) fn lavish(credentials: &Credentials) -> rustls::ServerConfig {
    let mut config = (*credentials.server_config(&[ALPN]).unwrap()).clone();
    config.send_tls13_tickets = 4;
    config.session_storage = rustls::server::ServerSessionMemoryCache::new(32);
    // What QUIC demands where there is any.
    config.max_early_data_size = u32::MAX;
    config.enable_secret_extraction = false;
    config
}

/// One connection with a byte each way, so that tickets have time to arrive; the kinds of handshake at both ends.
async fn exchange(
    client: Arc<rustls::ClientConfig>,
    server: Arc<rustls::ServerConfig>,
) -> io::Result<[HandshakeKind; 2]> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    let near = async {
        let mut near = TlsConnector::from(client).connect(name, near).await?;
        near.write_all(b"a").await?;
        near.flush().await?;
        near.read_u8().await?;
        assert!(!near.get_ref().1.is_early_data_accepted(), "early data was taken");
        Ok::<_, io::Error>((near.get_ref().1.handshake_kind().unwrap(), near.get_ref().1.tls13_tickets_received()))
    };
    let far = async {
        let mut far = TlsAcceptor::from(server).accept(far).await?;
        assert_eq!(far.read_u8().await?, b'a');
        far.write_all(b"b").await?;
        far.flush().await?;
        Ok::<_, io::Error>(far.get_ref().1.handshake_kind().unwrap())
    };
    let (near, far) = tokio::join!(near, far);
    let (far, (near, _tickets)) = (far?, near?);
    Ok([near, far])
}

const FULL: [HandshakeKind; 2] = [HandshakeKind::Full, HandshakeKind::Full];

#[tokio::test]
async fn a_client_that_wants_to_resume_gets_no_ticket_and_is_verified_each_time() {
    let pki = Pki::new();
    let west = pki.linked("west", "/a", &["east"]);
    let east = pki.linked("east", "/b", &["west"]);
    let client = Arc::new(greedy(&west));
    for _ in 0..3 {
        let server = east.server_config(&[ALPN]).unwrap();
        assert_eq!(exchange(Arc::clone(&client), server).await.unwrap(), FULL);
    }
    // The very client that was served three times.
    east.set_denied(Denials { trust_domains: [domain("west")].into(), ..Denials::default() });
    let refused = exchange(Arc::clone(&client), east.server_config(&[ALPN]).unwrap()).await;
    assert_eq!(failure(refused).reason, "denied");
    east.set_denied(Denials::default());
    east.remove_anchors(&domain("west"));
    let refused = exchange(client, east.server_config(&[ALPN]).unwrap()).await;
    assert_eq!(failure(refused).reason, "untrusted");
}

#[tokio::test]
async fn our_client_takes_no_ticket_from_a_server_that_gives_them_and_verifies_it_each_time() {
    let pki = Pki::new();
    let west = pki.linked("west", "/a", &["east"]);
    let east = pki.linked("east", "/b", &["west"]);
    let server = Arc::new(lavish(&east));
    for _ in 0..3 {
        let client = west.client_config(&Expect::Trusted, ALPN).unwrap();
        assert_eq!(exchange(client, Arc::clone(&server)).await.unwrap(), FULL);
    }
    west.remove_anchors(&domain("east"));
    let refused = exchange(west.client_config(&Expect::Trusted, ALPN).unwrap(), server).await;
    assert!(refused.is_err(), "an unlinked server was trusted");
}

/// The attack itself, between two that leave out our settings: it shows that the tests above would see it.
#[tokio::test]
async fn without_our_settings_who_was_denied_would_come_back() {
    let pki = Pki::new();
    let west = pki.credentials("west", "/a");
    let other = pki.credentials("west", "/b");
    let mut server = lavish(&other);
    server.max_early_data_size = 0;
    let (client, server) = (Arc::new(greedy(&west)), Arc::new(server));
    assert_eq!(exchange(Arc::clone(&client), Arc::clone(&server)).await.unwrap(), FULL);
    let [near, far] = exchange(client, server).await.unwrap();
    assert_eq!((near, far), (HandshakeKind::Resumed, HandshakeKind::Resumed));
}

/// A peer that was proved, unlinked and linked again with other anchors: nothing of the first proof is left.
#[test]
fn what_was_proved_by_other_anchors_is_forgotten_with_them() {
    let (pki, stranger) = (Pki::new(), Pki::new());
    let west = pki.linked("west", "/a", &["east"]);
    let chain = pki.mint("east", "/b", Duration::from_secs(600)).chain;
    for _ in 0..2 {
        west.verified(&chain, &Expect::Trusted, None).unwrap();
    }
    west.set_anchors(&domain("east"), Anchors::Bundle(stranger.bundle()));
    assert_eq!(west.verified(&chain, &Expect::Trusted, None).unwrap_err().reason, "untrusted");
}
