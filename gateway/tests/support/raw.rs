//! A peer that is none of ours: speaks the tunnel's protocol over TCP by hand, and names whatever it likes.

use std::net::SocketAddr;
use std::sync::Arc;

use hawser_api::Refusal;
use hawser_api::proto::tunnel::{Answer, Open, Opened, answer};
use hawser_tunnel::testing::{Minted, anybody};
use prost::Message;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Sends one `Open` and reads the answer.
pub(crate) async fn open(address: SocketAddr, who: Minted, open: &Open) -> Result<Opened, Refusal> {
    let mut config = anybody().with_client_auth_cert(who.chain, who.key).unwrap();
    config.alpn_protocols = vec![b"hawser/1".to_vec()];
    let socket = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("gateway.invalid").unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
    let payload = open.encode_to_vec();
    stream.write_u16(payload.len().try_into().unwrap()).await.unwrap();
    stream.write_all(&payload).await.unwrap();
    stream.shutdown().await.unwrap();
    let length = stream.read_u16().await.unwrap();
    let mut payload = vec![0; length.into()];
    stream.read_exact(&mut payload).await.unwrap();
    match Answer::decode(&*payload).unwrap().answer.unwrap() {
        answer::Answer::Opened(opened) => Ok(opened),
        answer::Answer::Refused(refused) => Err(Refusal::from_wire(&refused)),
    }
}
