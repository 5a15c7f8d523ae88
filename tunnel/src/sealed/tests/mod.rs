//! Whole sessions over real sockets.

mod openssl;
mod peers;
mod sessions;
mod shared;

use std::sync::Arc;
use std::time::Duration;

use hawser_api::SpiffeId;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::testing::{Pki, id};
use crate::tls::Credentials;

/// Long enough for any machine, short enough to notice a hang.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// A client and a server of one cluster.
pub(super) struct Ends {
    pub(super) client: Credentials,
    pub(super) server: Credentials,
    pub(super) server_id: SpiffeId,
}

impl Ends {
    pub(super) fn new() -> Self {
        let pki = Pki::new();
        Self {
            client: pki.credentials("west", "/ns/shop/sa/web"),
            server: pki.credentials("west", "/ns/shop/sa/checkout"),
            server_id: id("west", "/ns/shop/sa/checkout"),
        }
    }

    pub(super) fn expect(&self) -> Expect {
        Expect::Identities(Arc::new([self.server_id.clone()]))
    }

    pub(super) fn target() -> ServicePort {
        "shop/checkout:80".parse().unwrap()
    }

    /// A dedicated session, both ends.
    pub(super) async fn dedicated(&self) -> (Dedicated, Dedicated) {
        let (near, far) = tcp_pair().await;
        let (expect, target) = (self.expect(), Self::target());
        let connect = connect_dedicated(near.into(), &self.client, &expect, &target);
        let accept = async {
            match accept(far.into(), &self.server, DEADLINE).await.unwrap() {
                Accepted::Dedicated { mut session, target } => {
                    assert_eq!(target, Self::target());
                    session.confirm().await.unwrap();
                    session
                }
                Accepted::Shared(_) => panic!("a shared session"),
            }
        };
        let (near, far) = tokio::join!(connect, accept);
        (near.unwrap(), far)
    }

    /// A shared session, both ends; the server's is not driven yet.
    pub(super) async fn shared(&self, keepalive: Duration) -> (SharedClient, Driver, SharedServer) {
        let (near, far) = tcp_pair().await;
        let expect = self.expect();
        let connect = async {
            let (client, driver) = connect_shared(near.into(), &self.client, &expect, keepalive).await.unwrap();
            // The end of the handshake leaves with the driver's first turn.
            (client, tokio::spawn(driver))
        };
        let accept = async {
            match accept(far.into(), &self.server, DEADLINE).await.unwrap() {
                Accepted::Shared(server) => server,
                Accepted::Dedicated { .. } => panic!("a dedicated session"),
            }
        };
        let ((client, driver), server) = tokio::join!(connect, accept);
        let driver: Driver = Box::pin(async move { driver.await.unwrap() });
        (client, driver, server)
    }
}

/// Two connected sockets.
pub(super) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

/// Fails a test that hangs.
pub(super) async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

/// Bytes that differ from place to place.
pub(super) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| byte()).collect()
}
