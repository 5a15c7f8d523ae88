//! Plain rustls as the other end of a whole session, over sockets.

use std::io::ErrorKind;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::testing::begin;
use crate::tls::{Denials, SERVER_NAME};

type Rustls = tokio_rustls::TlsStream<TcpStream>;

/// Our client, rustls's server.
async fn our_client() -> (SealedStream, Rustls) {
    let ends = Ends::new();
    let (near, far) = tcp_pair().await;
    let expect = ends.expect();
    let acceptor = TlsAcceptor::from(ends.server.server_config(&[b"h2", DEDICATED]).unwrap());
    let connect = async {
        let (mut stream, peer) = connect(near.into(), &ends.client, &expect, DEDICATED).await.unwrap();
        assert_eq!(*peer.id(), ends.server_id);
        // The end of the handshake leaves with the first flush.
        stream.flush().await.unwrap();
        stream
    };
    let (ours, theirs) = tokio::join!(connect, acceptor.accept(far));
    (ours, theirs.unwrap().into())
}

/// Our server, rustls's client.
async fn our_server() -> (SealedStream, Rustls) {
    let ends = Ends::new();
    let (near, far) = tcp_pair().await;
    let config = ends.client.client_config(&ends.expect(), DEDICATED).unwrap();
    let name = rustls_pki_types::ServerName::try_from(SERVER_NAME).unwrap();
    let connector = TlsConnector::from(config);
    let config = ends.server.server_config(&[SHARED, DEDICATED]).unwrap();
    let (theirs, ours) = tokio::join!(connector.connect(name, near), handshake::server(far.into(), config));
    (SealedStream::new(ours.unwrap()), theirs.unwrap().into())
}

async fn both_ways((ours, theirs): (SealedStream, Rustls)) {
    let (text, answer) = (noise(5_000_000), noise(4_000_001));
    let (mut our_read, mut our_write) = tokio::io::split(ours);
    let (mut their_read, mut their_write) = tokio::io::split(theirs);
    let ours = async {
        for (index, chunk) in text.chunks(70_001).enumerate() {
            our_write.write_all(chunk).await.unwrap();
            if index % 7 == 0 {
                our_write.flush().await.unwrap();
            }
        }
        our_write.shutdown().await.unwrap();
    };
    let theirs = async {
        their_write.write_all(&answer).await.unwrap();
        their_write.shutdown().await.unwrap();
    };
    let (mut got_text, mut got_answer) = (Vec::new(), Vec::new());
    let reads = async { tokio::join!(their_read.read_to_end(&mut got_text), our_read.read_to_end(&mut got_answer)) };
    let ((), (), (a, b)) = in_time(async { tokio::join!(ours, theirs, reads) }).await;
    a.and(b).unwrap();
    assert!(got_text == text && got_answer == answer);
}

#[tokio::test]
async fn a_rustls_server_and_we_exchange_megabytes() {
    both_ways(our_client().await).await;
}

#[tokio::test]
async fn a_rustls_client_and_we_exchange_megabytes() {
    both_ways(our_server().await).await;
}

#[tokio::test]
async fn keys_wear_out_in_the_middle_of_a_transfer_and_nothing_is_lost() {
    for life in [1, 2, 7] {
        let (mut ours, theirs) = our_client().await;
        ours.records.change_keys_after(life);
        both_ways((ours, theirs)).await;
    }
}

#[tokio::test]
async fn a_rustls_peer_asks_for_new_keys_while_a_record_of_ours_is_open() {
    let (mut ours, mut theirs) = our_server().await;
    for round in 0..40_u8 {
        // Not flushed: the record stays open while the request for new keys comes.
        ours.write_all(&[round; 10]).await.unwrap();
        let tokio_rustls::TlsStream::Client(stream) = &mut theirs else { panic!("a server") };
        stream.get_mut().1.refresh_traffic_keys().unwrap();
        theirs.write_all(&[round; 20]).await.unwrap();
        theirs.flush().await.unwrap();
        let mut heard = [0; 20];
        in_time(ours.read_exact(&mut heard)).await.unwrap();
        assert_eq!(heard, [round; 20]);
        ours.write_all(&[round; 5]).await.unwrap();
        ours.flush().await.unwrap();
        let mut heard = [0; 15];
        in_time(theirs.read_exact(&mut heard)).await.unwrap();
        assert_eq!(heard, [round; 15]);
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_short_is_an_error_and_not_an_end() {
    for ((mut ours, mut theirs), half) in [(our_client().await, true), (our_server().await, false)] {
        theirs.write_all(b"whole").await.unwrap();
        theirs.flush().await.unwrap();
        let (mut socket, _) = match theirs {
            tokio_rustls::TlsStream::Client(stream) => {
                let (socket, session) = stream.into_inner();
                (socket, rustls::Connection::from(session))
            }
            tokio_rustls::TlsStream::Server(stream) => {
                let (socket, session) = stream.into_inner();
                (socket, rustls::Connection::from(session))
            }
        };
        if half {
            // Half of a record, too.
            socket.write_all(&[23, 3, 3, 0, 100, 1, 2, 3]).await.unwrap();
        }
        socket.shutdown().await.unwrap();
        let mut got = Vec::new();
        let error = in_time(ours.read_to_end(&mut got)).await.unwrap_err();
        assert_eq!((error.kind(), got.as_slice()), (ErrorKind::UnexpectedEof, &b"whole"[..]));
    }
}

#[tokio::test]
async fn tampering_is_an_error_and_the_peer_is_told() {
    let (mut ours, theirs) = our_server().await;
    let tokio_rustls::TlsStream::Client(stream) = theirs else { panic!("a server") };
    let (mut socket, mut session) = stream.into_inner();
    socket.write_all(&[23, 3, 3, 0, 20].into_iter().chain([7; 20]).collect::<Vec<u8>>()).await.unwrap();
    let error = in_time(ours.read_u8()).await.unwrap_err();
    assert_eq!(inbox::record_error(&error), Some(record::RecordError::BadMac));
    // Nothing more is taken in either direction.
    assert!(ours.read_u8().await.is_err());
    assert_eq!(ours.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
    let mut answer = vec![0; record::ALERT];
    in_time(socket.read_exact(&mut answer)).await.unwrap();
    session.read_tls(&mut answer.as_slice()).unwrap();
    let told = session.process_new_packets().unwrap_err();
    assert_eq!(told, rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac));
}

#[tokio::test]
async fn an_idle_session_holds_no_buffer() {
    let (mut ours, mut theirs) = our_server().await;
    for _ in 0..3 {
        theirs.write_all(&noise(400_000)).await.unwrap();
        theirs.flush().await.unwrap();
        let mut got = vec![0; 400_000];
        in_time(ours.read_exact(&mut got)).await.unwrap();
        ours.write_all(&got).await.unwrap();
        let (sent, read) = in_time(async { tokio::join!(ours.flush(), theirs.read_exact(&mut got)) }).await;
        sent.unwrap();
        read.unwrap();
        let mut byte = [0];
        let idle = tokio::time::timeout(Duration::from_millis(10), ours.read(&mut byte)).await;
        assert!(idle.is_err() && !ours.inbox.holds_buffer() && !ours.outbox.holds_buffer());
    }
}

#[tokio::test]
async fn who_is_renewed_during_a_handshake_knows_that_the_session_rests_on_the_old_certificate() {
    let pki = Pki::new();
    let client = pki.credentials("west", "/ns/shop/sa/web");
    let server = pki.credentials("west", "/ns/shop/sa/checkout");
    let (near, far) = tcp_pair().await;
    let mut accepting = std::pin::pin!(accept(far.into(), &server, DEADLINE));
    begin(accepting.as_mut()).await;
    let mut connecting = std::pin::pin!(connect_shared(near.into(), &client, &Expect::Trusted, DEADLINE));
    begin(connecting.as_mut()).await;
    client.set_identity(pki.identity("west", "/ns/shop/sa/web"));
    server.set_identity(pki.identity("west", "/ns/shop/sa/checkout"));

    let connect = async {
        let (client, driver) = connecting.await.unwrap();
        (client, tokio::spawn(driver))
    };
    let ((near, driver), far) = in_time(async { tokio::join!(connect, accepting) }).await;
    let Accepted::Shared(far) = far.unwrap() else { panic!("a dedicated session") };
    for (credentials, peer) in [(&client, &near.peer), (&server, &far.peer)] {
        assert!(!credentials.still_shows(peer), "{}", peer.id());
        in_time(credentials.shows_another(peer)).await;
    }
    driver.abort();
}

#[tokio::test]
async fn a_session_rests_on_the_certificate_of_now_until_there_is_another() {
    let ends = Ends::new();
    let (client, driver, server) = ends.shared(DEADLINE).await;
    assert!(ends.client.still_shows(&client.peer) && ends.server.still_shows(&server.peer));
    let mut another = std::pin::pin!(ends.server.shows_another(&server.peer));
    begin(another.as_mut()).await;
    ends.server.set_denied(Denials::default());
    begin(another.as_mut()).await;
    ends.server.set_identity(Pki::new().identity("west", "/ns/shop/sa/checkout"));
    in_time(another).await;
    drop(driver);
}
