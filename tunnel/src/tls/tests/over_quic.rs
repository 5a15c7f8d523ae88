//! The same verifier and the same reasons over QUIC, where quinn keeps only numbers and texts of rustls' errors.

use std::net::SocketAddr;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, ServerConfig};

use super::*;

fn endpoint(credentials: &Credentials) -> (Endpoint, SocketAddr) {
    let tls = credentials.server_config(&[ALPN]).unwrap();
    let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let endpoint = Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let address = endpoint.local_addr().unwrap();
    (endpoint, address)
}

type Ends = (Result<Connection, ConnectionError>, Result<Connection, ConnectionError>);

/// Also waits until each end has heard what the other thinks of it.
async fn connect(dialling: &Credentials, expect: &Expect, accepting: &Credentials) -> Ends {
    let (server, address) = endpoint(accepting);
    let client = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let tls = dialling.client_config(expect, ALPN).unwrap();
    let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let near = async { client.connect_with(config, address, SERVER_NAME).unwrap().await };
    let far = async { server.accept().await.unwrap().await };
    let (near, far) = tokio::join!(near, far);
    match (near, far) {
        (Ok(near), Err(far)) => (Err(near.closed().await), Err(far)),
        ends => ends,
    }
}

fn reason(end: Result<Connection, ConnectionError>) -> HandshakeError {
    (&end.expect_err("the handshake succeeded")).into()
}

fn certificates(connection: &Connection) -> Vec<CertificateDer<'static>> {
    *connection.peer_identity().unwrap().downcast().unwrap()
}

#[tokio::test]
async fn both_ends_learn_whom_they_speak_with() {
    let pki = Pki::new();
    let west = pki.linked("west", "/a", &["east"]);
    let east = pki.linked("east", "/b", &["west"]);
    let expect = only(id("east", "/b"));
    let (near, far) = connect(&west, &expect, &east).await;
    let (near, far) = (near.unwrap(), far.unwrap());
    assert_eq!(*west.verified(&certificates(&near), &expect, None).unwrap().id(), id("east", "/b"));
    assert_eq!(*east.verified(&certificates(&far), &Expect::Trusted, None).unwrap().id(), id("west", "/a"));
}

#[tokio::test]
async fn the_reasons_are_those_of_tcp() {
    let pki = Pki::new();
    let west = pki.linked("west", "/a", &["east"]);
    let east = pki.linked("east", "/b", &["west"]);

    let (near, far) = connect(&west, &only(id("east", "/c")), &east).await;
    let near = reason(near);
    assert_eq!(near.reason, "wrong_identity");
    assert!(near.detail.contains("spiffe://east.hawser.test/b"), "{near}");
    assert_eq!(reason(far).reason, "refused_by_peer");

    east.remove_anchors(&domain("west"));
    let (near, far) = connect(&west, &Expect::Trusted, &east).await;
    assert_eq!(reason(near).reason, "refused_by_peer");
    let far = reason(far);
    assert_eq!(far.reason, "untrusted");
    assert!(far.detail.contains("west.hawser.test"), "{far}");

    let before = Pki::at(clock() - Duration::from_secs(3600));
    let minted = before.mint("east", "/b", Duration::from_secs(60));
    east.set_identity(Identity::new(minted.chain, minted.key).unwrap());
    west.set_anchors(&domain("west"), Anchors::Bundle(Bundle { sequence: 2, ..before.bundle() }));
    let (near, far) = connect(&west, &Expect::Trusted, &east).await;
    assert_eq!(reason(near).reason, "expired");
    assert_eq!(reason(far).reason, "expired");
}

#[tokio::test]
async fn there_is_no_early_data() {
    let pki = Pki::new();
    let west = pki.credentials("west", "/a");
    let (server, address) = endpoint(&west);
    let client = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let tls = west.client_config(&Expect::Trusted, ALPN).unwrap();
    let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    for _ in 0..2 {
        let connecting = client.connect_with(config.clone(), address, SERVER_NAME).unwrap();
        // The second time there would be a ticket, if there were tickets.
        let connecting = connecting.into_0rtt().err().expect("early data was possible");
        let (near, far) = tokio::join!(connecting, async { server.accept().await.unwrap().await });
        let (near, _far) = (near.unwrap(), far.unwrap());
        near.close(0u32.into(), b"");
    }
}

/// T9, T10: neither a client that wants early data nor a server that gives it is met with any.
#[tokio::test]
async fn a_greedy_client_and_a_lavish_server_get_no_early_data_and_are_verified_each_time() {
    let pki = Pki::new();
    let west = pki.linked("west", "/a", &["east"]);
    let east = pki.linked("east", "/b", &["west"]);
    let ours = |credentials: &Credentials| (*credentials.client_config(&Expect::Trusted, ALPN).unwrap()).clone();
    let theirs = |credentials: &Credentials| (*credentials.server_config(&[ALPN]).unwrap()).clone();
    for (client, server, may) in [
        (resumption::greedy(&west), theirs(&east), false),
        (ours(&west), resumption::lavish(&east), false),
        // To show that the two would have it between themselves, were it not for our settings.
        (resumption::greedy(&west), resumption::lavish(&east), true),
    ] {
        let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(Arc::new(server)).unwrap()));
        let server = Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
        let dialler = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(Arc::new(client)).unwrap()));
        assert_eq!(second_is_early(&dialler, client, &server).await, may);
    }
}

/// Two connections with a stream that is answered, so that tickets have time to arrive: whether the second could send
/// early data.
async fn second_is_early(client: &Endpoint, config: ClientConfig, server: &Endpoint) -> bool {
    let mut early = false;
    for _ in 0..2 {
        let connecting = client.connect_with(config.clone(), server.local_addr().unwrap(), SERVER_NAME).unwrap();
        let near = async {
            let (connection, may) = match connecting.into_0rtt() {
                Ok((connection, _)) => (connection, true),
                Err(connecting) => (connecting.await.unwrap(), false),
            };
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            send.write_all(b"a").await.unwrap();
            receive.read_exact(&mut [0]).await.unwrap();
            (connection, may)
        };
        let far = async {
            let connection = server.accept().await.unwrap().await.unwrap();
            let (mut send, mut receive) = connection.accept_bi().await.unwrap();
            receive.read_exact(&mut [0]).await.unwrap();
            send.write_all(b"b").await.unwrap();
            connection
        };
        let ((near, may), _far) = tokio::join!(near, far);
        near.close(0u32.into(), b"");
        early = may;
    }
    early
}

#[tokio::test]
async fn who_was_denied_or_unlinked_does_not_come_back_over_quic() {
    let pki = Pki::new();
    let west = pki.linked("west", "/a", &["east"]);
    let east = pki.linked("east", "/b", &["west"]);
    let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(Arc::new(resumption::greedy(&west))).unwrap()));
    let client = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let knock = async |reason| {
        let (server, address) = endpoint(&east);
        let connecting = client.connect_with(config.clone(), address, SERVER_NAME).unwrap();
        let connecting = connecting.into_0rtt().err().expect("early data was possible");
        let (_near, far) = tokio::join!(connecting, async { server.accept().await.unwrap().await });
        assert_eq!(far.err().map(|error| HandshakeError::from(&error).reason), reason);
    };
    knock(None).await;
    east.set_denied(Denials { identities: [id("west", "/a")].into(), ..Denials::default() });
    knock(Some("denied")).await;
    east.set_denied(Denials::default());
    knock(None).await;
    east.remove_anchors(&domain("west"));
    knock(Some("untrusted")).await;
}
