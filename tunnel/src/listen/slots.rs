//! Whose handshake may begin, by what is in flight.
//!
//! ```text
//!               few in flight        many (more than half of all slots)               all
//!  unproved     begins               proves its address first (QUIC Retry)            the same
//!  proved       begins               begins, up to its prefix's share                 turned away
//! ```
//!
//! A forged source address costs an attacker nothing, so what carries one gets half of the slots at most and counts
//! against no prefix: otherwise it would lock out whom it names. Who has proved an address has only so many of them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

/// How many handshakes there may be.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// All together.
    pub all: usize,
    /// From one prefix, while many are in flight.
    pub of_prefix: usize,
}

/// What becomes of one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It has to prove its address and come again.
    Prove,
    /// Its prefix has its share.
    Prefix,
    /// There is no room for anybody.
    Full,
}

/// The handshakes in flight of one listener. Clone to share.
#[derive(Debug, Clone)]
pub struct Slots(Arc<Mutex<InFlight>>, Bounds);

#[derive(Debug, Default)]
struct InFlight {
    all: usize,
    /// Those with a proved address; never more entries than handshakes.
    prefixes: HashMap<u64, usize>,
}

/// One handshake in flight, until it is dropped.
#[derive(Debug)]
pub struct Slot {
    slots: Slots,
    prefix: Option<u64>,
}

impl Slots {
    /// None in flight yet.
    pub fn new(bounds: Bounds) -> Self {
        Self(Arc::default(), bounds)
    }

    /// Room for one more from here; `proved`: the address is where packets to it arrive.
    pub fn take(&self, from: IpAddr, proved: bool) -> Result<Slot, Turn> {
        let mut in_flight = self.0.lock();
        let prefix = proved.then(|| prefix(from));
        let of_prefix = prefix.map(|prefix| in_flight.prefixes.get(&prefix).copied().unwrap_or_default());
        may_begin(in_flight.all, of_prefix, &self.1)?;
        in_flight.all += 1;
        if let Some(prefix) = prefix {
            *in_flight.prefixes.entry(prefix).or_default() += 1;
        }
        Ok(Slot { slots: self.clone(), prefix })
    }

    pub(super) fn in_flight(&self) -> usize {
        self.0.lock().all
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut in_flight = self.slots.0.lock();
        in_flight.all = in_flight.all.saturating_sub(1);
        let Some(prefix) = self.prefix else { return };
        if let Some(count) = in_flight.prefixes.get_mut(&prefix) {
            *count -= 1;
            if *count == 0 {
                in_flight.prefixes.remove(&prefix);
            }
        }
    }
}

/// The decision. `of_prefix`: how many of its prefix are in flight; `None`: its address is not proved.
fn may_begin(all: usize, of_prefix: Option<usize>, bounds: &Bounds) -> Result<(), Turn> {
    let crowded = all > bounds.all / 2;
    match of_prefix {
        None if crowded => Err(Turn::Prove),
        _ if all >= bounds.all => Err(Turn::Full),
        Some(of_prefix) if crowded && of_prefix >= bounds.of_prefix => Err(Turn::Prefix),
        _ => Ok(()),
    }
}

/// IPv4 by /24, IPv6 by /48: what one party is commonly given.
pub(super) fn prefix(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(v4) => u64::from(v4.to_bits() >> 8),
        IpAddr::V6(v6) => (1 << 63) | u64::try_from(v6.to_bits() >> 80).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { all: 512, of_prefix: 64 };

    fn forged(n: u32) -> IpAddr {
        IpAddr::from((n << 8).to_be_bytes())
    }

    #[test]
    fn forged_addresses_get_half_of_the_slots_and_then_have_to_prove_themselves() {
        let slots = Slots::new(BOUNDS);
        let held: Vec<_> = (0..100_000).filter_map(|n| slots.take(forged(n), false).ok()).collect();
        assert_eq!((held.len(), slots.in_flight()), (257, 257));
        assert_eq!(slots.take(forged(1), false).unwrap_err(), Turn::Prove);
        // Who was named in them is served all the same.
        assert!(slots.take(forged(1), true).is_ok());
        assert!(slots.0.lock().prefixes.is_empty());
    }

    #[test]
    fn one_prefix_with_real_addresses_leaves_room_for_others() {
        let slots = Slots::new(BOUNDS);
        let here = |n: u32| IpAddr::from([192, 0, 2, u8::try_from(n % 256).unwrap()]);
        let held: Vec<_> = (0..10_000).map_while(|n| slots.take(here(n), true).ok()).collect();
        assert_eq!(held.len(), 257);
        assert_eq!(slots.take(here(7), true).unwrap_err(), Turn::Prefix);
        // The same prefix written as IPv6 is the same.
        assert_eq!(slots.take("::ffff:192.0.2.7".parse().unwrap(), true).unwrap_err(), Turn::Prefix);
        let others: Vec<_> = (0..10_000).filter_map(|_| slots.take(forged(5), true).ok()).collect();
        assert_eq!(others.len(), 64);
        drop(held);
        assert!(slots.take(here(7), true).is_ok());
    }

    #[test]
    fn nobody_begins_where_all_slots_are_taken_and_each_comes_back() {
        let slots = Slots::new(BOUNDS);
        let held: Vec<_> = (0..100_000).filter_map(|n| slots.take(forged(n), true).ok()).collect();
        assert_eq!((held.len(), slots.take(forged(900_000), true).unwrap_err()), (512, Turn::Full));
        assert_eq!(slots.take(forged(1), false).unwrap_err(), Turn::Prove);
        drop(held);
        assert_eq!(slots.in_flight(), 0);
        assert!(slots.0.lock().prefixes.is_empty());
    }
}
