//! Certificates that last seconds, and denials: what rests on one ends with it, and new work never notices.

use std::time::{Duration, Instant};

use hawser_api::objects::link::Transport;
use hawser_proxy::context::Settings;
use hawser_tunnel::testing::id;
use hawser_tunnel::tls::{Credentials, Denials, Identity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";
/// How long a certificate lasts, and when it is renewed.
const LIFE: Duration = Duration::from_secs(4);
const HALF: Duration = Duration::from_secs(2);

/// Gives each a certificate of [`LIFE`], at half life another.
async fn renew(lab: &Lab, all: &[(&str, &str, &Credentials)]) {
    let begun = Instant::now();
    loop {
        for (cluster, path, credentials) in all {
            // A lab's certificates are counted from its beginning.
            let minted = lab.pki.mint(cluster, path, begun.elapsed() + LIFE);
            credentials.set_identity(Identity::new(minted.chain, minted.key).unwrap());
        }
        tokio::time::sleep(HALF).await;
    }
}

/// A client of one far endpoint, which has certificates that last seconds, like its gateway, and like the client if
/// `client_too`; requests for three lives. The age of the oldest session that was in use, milliseconds.
async fn hold_out(transport: Transport, client_too: bool) -> u64 {
    let app = App::answering(OK).await;
    let lab = Lab::new();
    let server = Server::new(&lab, "east", app.address, "").await;
    let gateway = Gateway::new(&lab, "g0", &[&server], transport).await;
    let client = Client::new(&lab, Settings::default()).await;
    client.context.set_tables(tables(destination_of(vec![vec![remote(1)]], ""), &[&gateway]));
    let all = [
        ("east", SERVER, &server.context.credentials),
        ("east", "/ns/hawser-system/sa/gateway", &gateway.credentials),
        ("west", "/ns/shop/sa/web", &client.context.credentials),
    ];
    let all = &all[..if client_too { 3 } else { 2 }];
    let requests = async {
        let (begun, mut oldest, mut count) = (Instant::now(), 0, 0);
        while begun.elapsed() < LIFE * 3 {
            assert_eq!(client.get().await, 200, "after {:?}", begun.elapsed());
            count += 1;
            let ages = client.endpoints();
            let ages = ages.iter().filter_map(|row| row["sessionAgeMs"].as_u64());
            oldest = oldest.max(ages.max().unwrap_or_default());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (oldest, count)
    };
    let (oldest, count) = tokio::select! { done = requests => done, () = renew(&lab, all) => unreachable!() };
    assert!(count > 100, "{count}");
    oldest
}

/// New work went elsewhere before the session had to end. The clock, either side's next certificate, and the tunnel's own
/// replacement each see to that alone; without all of them sessions are 3.5 seconds old (certificates count whole ones).
fn left_in_time(oldest: u64) {
    assert!(u128::from(oldest) < LIFE.as_millis() * 13 / 16, "a session was {oldest} ms old");
}

#[tokio::test]
async fn no_request_fails_over_quic_while_certificates_of_seconds_are_renewed() {
    left_in_time(hold_out(Transport::Quic, true).await);
}

#[tokio::test]
async fn no_request_fails_over_tcp_while_certificates_of_seconds_are_renewed() {
    left_in_time(hold_out(Transport::Tcp, true).await);
}

/// Its own certificate gives the client no reason to look for another session.
#[tokio::test]
async fn a_session_is_left_while_its_server_s_certificate_still_has_a_part_of_its_life() {
    left_in_time(hold_out(Transport::Quic, false).await);
}

/// One live connection to the echo behind a gateway.
async fn live(app_protocol: &str) -> (App, Lab, Client, Server, Gateway, TcpStream) {
    let app = App::echo().await;
    let lab = Lab::new();
    let server = Server::new(&lab, "east", app.address, app_protocol).await;
    let gateway = Gateway::new(&lab, "g0", &[&server], Transport::Quic).await;
    let client = Client::new(&lab, Settings::default()).await;
    client.context.set_tables(tables(destination_of(vec![vec![remote(1)]], app_protocol), &[&gateway]));
    let mut socket = client.connect().await;
    socket.write_all(b"a").await.unwrap();
    within("the echo", socket.read_exact(&mut [0; 1])).await.unwrap();
    (app, lab, client, server, gateway, socket)
}

async fn cut_within_a_second(socket: &mut TcpStream) {
    let begun = Instant::now();
    let error = within("the cut", socket.read_exact(&mut [0; 1])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_was_opened_to_a_server_that_is_denied_is_cut_within_a_second() {
    let (_app, _lab, client, _server, _gateway, mut socket) = live("hawser.dev/opaque").await;
    let denied = Denials { identities: [id("east", SERVER)].into(), ..Denials::default() };
    client.context.credentials.set_denied(denied);
    cut_within_a_second(&mut socket).await;
    // It does not come back.
    let mut again = client.connect().await;
    let _ = again.write_all(b"a").await;
    assert!(within("the refusal", again.read_exact(&mut [0; 1])).await.is_err());
}

#[tokio::test]
async fn what_runs_through_a_gateway_that_is_denied_is_cut_within_a_second() {
    let (_app, _lab, client, _server, _gateway, mut socket) = live("hawser.dev/opaque").await;
    let denied = Denials { identities: [id("east", "/ns/hawser-system/sa/gateway")].into(), ..Denials::default() };
    client.context.credentials.set_denied(denied);
    cut_within_a_second(&mut socket).await;
}

#[tokio::test]
async fn what_rests_on_an_authority_that_is_denied_is_cut_within_a_second() {
    let (_app, _lab, client, server, _gateway, mut socket) = live("hawser.dev/opaque").await;
    let chain = server.context.credentials.identity().unwrap().chain().to_vec();
    let authority = *client.context.credentials.proves(&chain).unwrap().authorities.first().unwrap();
    client.context.credentials.set_denied(Denials { authorities: [authority].into(), ..Denials::default() });
    cut_within_a_second(&mut socket).await;
}
