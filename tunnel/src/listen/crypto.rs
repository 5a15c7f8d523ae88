//! The accepting side's configurations, made once per generation of the credentials.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::handoff::ALPN;
use crate::quic;
use crate::tls::{Credentials, HandshakeError};

#[derive(Debug)]
pub(super) struct Crypto {
    credentials: Credentials,
    streams: u32,
    current: Mutex<Option<Current>>,
    // Which generation the endpoint was given.
    handed: Mutex<Option<u64>>,
}

#[derive(Debug, Clone)]
struct Current {
    generation: u64,
    tls: Arc<rustls::ServerConfig>,
    local: Arc<quinn::ServerConfig>,
    remote: Arc<quinn::ServerConfig>,
}

impl Crypto {
    pub(super) fn new(credentials: Credentials, streams: u32) -> Self {
        Self { credentials, streams, current: Mutex::new(None), handed: Mutex::new(None) }
    }

    pub(super) fn tls(&self) -> Result<Arc<rustls::ServerConfig>, HandshakeError> {
        Ok(self.current()?.tls)
    }

    /// For a connection from this address.
    pub(super) fn quic(&self, remote: IpAddr) -> Result<Arc<quinn::ServerConfig>, HandshakeError> {
        let current = self.current()?;
        Ok(if remote.is_loopback() { current.local } else { current.remote })
    }

    /// A configuration for the endpoint, if it has not got that of this generation. `None` too while we are nobody.
    pub(super) fn refreshed(&self) -> Option<quinn::ServerConfig> {
        let current = self.current().ok()?;
        let mut handed = self.handed.lock();
        if *handed == Some(current.generation) {
            return None;
        }
        *handed = Some(current.generation);
        Some((*current.remote).clone())
    }

    fn current(&self) -> Result<Current, HandshakeError> {
        let generation = *self.credentials.generation().borrow();
        let mut held = self.current.lock();
        if let Some(current) = held.as_ref().filter(|current| current.generation == generation) {
            return Ok(current.clone());
        }
        let tls = self.credentials.server_config(&[ALPN])?;
        let config = |remote| quic::server_config(tls.clone(), self.streams, remote).map(Arc::new);
        let local = config(Ipv4Addr::LOCALHOST.into())?;
        let remote = config(Ipv4Addr::UNSPECIFIED.into())?;
        let current = Current { generation, tls, local, remote };
        *held = Some(current.clone());
        Ok(current)
    }
}
