//! The leaves that are in use. Each step costs the logarithm of how many there are, since each certificate takes one.

use std::collections::{BTreeMap, BTreeSet};

use hawser_tunnel::verify::AuthorityId;

use crate::rotate::LiveLeaf;

/// Most leaves that are known one by one; of more, those that end first are known only by their issuer.
const LEAVES_MAX: usize = 50_000;

#[derive(Default)]
struct Identity {
    issued: u64,
    /// Of those, in use.
    live: u64,
}

/// All that are not over and that nobody is known to have replaced.
#[derive(Default)]
pub(super) struct Leaves {
    by_serial: BTreeMap<String, LiveLeaf>,
    /// End and serial number.
    by_end: BTreeSet<(i64, String)>,
    /// Those that have a leaf in use.
    identities: BTreeMap<String, Identity>,
    /// Leaves that there was no room for: how many of each issuer, and when the last of them ends.
    others: BTreeMap<AuthorityId, (u64, i64)>,
}

impl Leaves {
    /// Another was issued, in place of the one with the serial number `replaces`: who renews has the new one in use, and
    /// nobody else had that key.
    pub(super) fn take(&mut self, leaf: LiveLeaf, replaces: &str, now_ms: i64) {
        let identity = self.identities.entry(leaf.spiffe_id.clone()).or_default();
        identity.issued += 1;
        identity.live += 1;
        self.by_end.insert((leaf.not_after_ms, leaf.serial.clone()));
        self.by_serial.insert(leaf.serial.clone(), leaf);
        self.remove(replaces);
        self.expire(now_ms);
        while self.by_serial.len() > LEAVES_MAX {
            let Some(leaf) = self.first() else { return };
            let (count, until) = self.others.entry(leaf.issuer).or_default();
            *count += 1;
            *until = leaf.not_after_ms.max(*until);
        }
    }

    fn remove(&mut self, serial: &str) -> Option<LiveLeaf> {
        let leaf = self.by_serial.remove(serial)?;
        self.by_end.remove(&(leaf.not_after_ms, leaf.serial.clone()));
        if let Some(identity) = self.identities.get_mut(&leaf.spiffe_id) {
            identity.live -= 1;
            if identity.live == 0 {
                self.identities.remove(&leaf.spiffe_id);
            }
        }
        Some(leaf)
    }

    /// Takes away the one that ends first.
    fn first(&mut self) -> Option<LiveLeaf> {
        let (_, serial) = self.by_end.first()?.clone();
        self.remove(&serial)
    }

    /// Forgets what is over.
    pub(super) fn expire(&mut self, now_ms: i64) {
        while self.by_end.first().is_some_and(|(end, _)| *end <= now_ms) {
            self.first();
        }
        self.others.retain(|_, (_, until)| *until > now_ms);
    }

    /// One by one, and behind them the others by issuer.
    pub(super) fn all(&self) -> impl Iterator<Item = LiveLeaf> {
        let others = self.others.iter().map(|(issuer, (count, until))| LiveLeaf {
            spiffe_id: format!("{count} other certificates"),
            serial: String::new(),
            issuer: *issuer,
            issued_ms: 0,
            not_after_ms: *until,
        });
        self.by_serial.values().cloned().chain(others)
    }

    /// How many of those in use are to be renewed: issued before this time, or by another than who signs now.
    pub(super) fn to_renew(&self, before_ms: i64, signer: Option<AuthorityId>) -> usize {
        let foreign = |leaf: &LiveLeaf| signer.is_some_and(|signer| leaf.issuer != signer);
        self.by_serial.values().filter(|leaf| leaf.issued_ms < before_ms || foreign(leaf)).count()
    }

    /// The newest of each identity, with how many it was issued since it last had none.
    pub(super) fn newest(&self) -> impl Iterator<Item = (&LiveLeaf, u64)> {
        let mut newest: BTreeMap<&str, &LiveLeaf> = BTreeMap::new();
        for leaf in self.by_serial.values() {
            let present = newest.entry(&leaf.spiffe_id).or_insert(leaf);
            if leaf.issued_ms >= present.issued_ms {
                *present = leaf;
            }
        }
        newest.into_iter().map(|(id, leaf)| (leaf, self.identities.get(id).map_or(0, |identity| identity.issued)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ISSUER: AuthorityId = AuthorityId([7; 32]);

    fn leaf(n: usize, not_after_ms: i64) -> LiveLeaf {
        let (spiffe_id, serial) = (format!("spiffe://a.example/{}", n % 100), format!("{n:x}"));
        LiveLeaf { spiffe_id, serial, issuer: ISSUER, issued_ms: 0, not_after_ms }
    }

    #[test]
    fn a_leaf_is_in_use_until_it_is_over_or_replaced() {
        let mut leaves = Leaves::default();
        leaves.take(leaf(1, 100), "", 0);
        leaves.take(leaf(101, 200), "1", 0);
        let newest: Vec<_> = leaves.newest().map(|(leaf, issued)| (leaf.serial.clone(), issued)).collect();
        assert_eq!(newest, [("65".to_owned(), 2)]);
        let to_renew = |before, signer| leaves.to_renew(before, Some(AuthorityId([signer; 32])));
        assert_eq!((to_renew(1, 7), to_renew(0, 7), to_renew(0, 8), leaves.to_renew(0, None)), (1, 0, 1, 0));
        leaves.expire(200);
        assert_eq!((leaves.all().count(), leaves.identities.len(), leaves.by_end.len()), (0, 0, 0));
    }

    #[test]
    fn of_more_than_there_is_room_for_those_that_end_first_are_counted_by_their_issuer() {
        let mut leaves = Leaves::default();
        // Enough to take minutes if each had to look at all the others.
        for n in 0..2 * LEAVES_MAX {
            leaves.take(leaf(n, 1_000_000 + n as i64), "", 0);
        }
        let all: Vec<_> = leaves.all().collect();
        assert_eq!((all.len(), leaves.by_end.len()), (LEAVES_MAX + 1, LEAVES_MAX));
        let others = all.last().unwrap();
        assert_eq!(others.spiffe_id, format!("{LEAVES_MAX} other certificates"));
        assert_eq!((others.issuer, others.not_after_ms), (ISSUER, 1_000_000 + LEAVES_MAX as i64 - 1));
        leaves.expire(1_000_000 + LEAVES_MAX as i64);
        assert_eq!(leaves.all().count(), LEAVES_MAX - 1, "the others are over");
    }
}
