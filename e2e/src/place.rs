//! Loopback addresses that belong to one fabric, whoever else runs fabrics on this machine at the same time.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// How many fabrics may run at once.
const PLACES: u16 = 1024;

/// A number that this fabric has for itself, and the addresses that follow from it.
///
/// Virtual networks lie in 127.64.0.0/10, eight /24 for each place; daemons and servers listen in 127.128.0.0/10, on
/// eight /24 in the same position. Nothing else uses either, so fixed ports are free.
#[derive(Debug)]
pub struct Place {
    number: u16,
    // Locked while the place is taken; the system unlocks it however the process ends.
    _lock: File,
}

impl Place {
    /// The first that is free.
    pub fn take() -> Result<Self> {
        let dir = Path::new("/tmp/hawser-e2e-places");
        fs::create_dir_all(dir).context("cannot make the directory of places")?;
        for number in 0..PLACES {
            let lock = File::create(dir.join(number.to_string())).context("cannot make a place's lock")?;
            if lock.try_lock().is_ok() {
                return Ok(Self { number, _lock: lock });
            }
        }
        bail!("{PLACES} fabrics run on this machine already")
    }

    /// Different from that of every other that is taken; below 1024.
    pub fn number(&self) -> u16 {
        self.number
    }

    fn octets(&self, base: u16, network: u8) -> (u8, u8) {
        let high = base + self.number / 32;
        let low = (self.number % 32) * 8 + u16::from(network % 8);
        (u8::try_from(high).unwrap_or(u8::MAX), u8::try_from(low).unwrap_or(u8::MAX))
    }

    /// One of eight virtual networks, as a proxy's `virtualNetwork`.
    pub fn virtual_network(&self, network: u8) -> String {
        let (high, low) = self.octets(64, network);
        format!("127.{high}.{low}.0/24")
    }

    /// An address to listen on: `network` below 8, usually one a cluster.
    pub fn address(&self, network: u8, host: u8, port: u16) -> SocketAddr {
        let (high, low) = self.octets(128, network);
        SocketAddrV4::new(Ipv4Addr::new(127, high, low, host), port).into()
    }
}
