//! Which virtual address a destination has. Pure, except for the small file in which assignments outlive a restart.
//!
//! An address follows from the destination's name alone wherever it can, so that two runs, and two proxies with the same
//! network, agree; applications keep addresses for longer than DNS says.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use hawser_api::ServiceKey;
use ipnet::Ipv4Net;

use crate::config::VIRTUAL_SPACE;

/// Destinations with their addresses.
pub type Assignments = BTreeMap<ServiceKey, Ipv4Addr>;

/// Assignments of destinations that are gone are remembered up to this number, so that one that comes back has its old
/// address; beyond it, the file would grow with the fabric's history.
pub const REMEMBERED: usize = 4096;

/// A destination that wants an address.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// Its name.
    pub key: &'a ServiceKey,
    /// The address that its object fixes.
    pub fixed: Option<Ipv4Addr>,
}

/// What came out.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Assigned {
    /// Of those that are wanted.
    pub addresses: Assignments,
    /// Of those that are wanted or remembered: what to keep on disk.
    pub remembered: Assignments,
    /// Destinations without the address that they should have, and why.
    pub problems: BTreeMap<ServiceKey, String>,
}

/// Gives every wanted destination an address: the fixed one; else the one it had; else the first free one from the hash
/// of its name on. `wanted` may come in any order.
pub fn assign(network: Ipv4Net, wanted: &[Wanted<'_>], previous: &Assignments) -> Assigned {
    let mut wanted = wanted.to_vec();
    wanted.sort_by(|a, b| a.key.cmp(b.key));
    let mut out = Assigned::default();
    let mut taken: HashSet<Ipv4Addr> = HashSet::new();
    for w in &wanted {
        let Some(fixed) = w.fixed else { continue };
        if !VIRTUAL_SPACE.contains(&fixed) {
            out.problems.insert(w.key.clone(), format!("{fixed} is not inside {VIRTUAL_SPACE}"));
        } else if taken.insert(fixed) {
            out.addresses.insert(w.key.clone(), fixed);
        } else {
            out.problems.insert(w.key.clone(), format!("{fixed} is fixed by another service too"));
        }
    }
    for w in &wanted {
        let before = previous.get(w.key).filter(|a| network.contains(*a) && !out.addresses.contains_key(w.key));
        if let Some(address) = before
            && taken.insert(*address)
        {
            out.addresses.insert(w.key.clone(), *address);
        }
    }
    // Those that are gone keep theirs unless a new one needs it.
    let mut reserved: HashSet<Ipv4Addr> = HashSet::new();
    let gone = previous.iter().filter(|(key, a)| !out.addresses.contains_key(*key) && network.contains(*a));
    for (key, address) in gone.take(REMEMBERED) {
        if !taken.contains(address) && reserved.insert(*address) {
            out.remembered.insert(key.clone(), *address);
        }
    }
    for w in &wanted {
        if out.addresses.contains_key(w.key) {
            continue;
        }
        let free = probe(network, w.key, |a| !taken.contains(&a) && !reserved.contains(&a))
            .or_else(|| probe(network, w.key, |a| !taken.contains(&a)));
        match free {
            Some(address) => {
                taken.insert(address);
                out.addresses.insert(w.key.clone(), address);
            }
            None => {
                out.problems.insert(w.key.clone(), format!("{network} has no free address"));
            }
        }
    }
    out.remembered.retain(|_, address| !taken.contains(address));
    out.remembered.extend(out.addresses.iter().map(|(k, a)| (k.clone(), *a)));
    out
}

/// The first address that `free` accepts, from the name's hash on, once round the network.
fn probe(network: Ipv4Net, key: &ServiceKey, free: impl Fn(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
    // Without the network's own address and the broadcast address, which some programs refuse.
    let first = u32::from(network.network()).checked_add(1)?;
    let last = u32::from(network.broadcast()).checked_sub(1)?;
    let room = u64::from(last.checked_sub(first)?) + 1;
    let start = hash(key) % room;
    (0..room)
        .filter_map(|step| u32::try_from((start + step) % room).ok())
        .map(|offset| Ipv4Addr::from(first + offset))
        .find(|a| free(*a))
}

/// FNV-1a with a final mix: the same in every version and on every machine, which the standard library's hasher is not.
fn hash(key: &ServiceKey) -> u64 {
    let fnv = key
        .to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    (fnv ^ (fnv >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16
}

/// Reads assignments; a file that is absent or damaged is none, for addresses then follow from names again.
pub fn load(path: &Path) -> Assignments {
    let Ok(text) = std::fs::read_to_string(path) else { return Assignments::new() };
    let Ok(pairs) = serde_json::from_str::<BTreeMap<String, Ipv4Addr>>(&text) else { return Assignments::new() };
    pairs.into_iter().filter_map(|(key, address)| Some((key.parse().ok()?, address))).collect()
}

/// Writes assignments: whole, or not at all.
pub fn save(path: &Path, assignments: &Assignments) -> io::Result<()> {
    let pairs: BTreeMap<String, Ipv4Addr> = assignments.iter().map(|(k, a)| (k.to_string(), *a)).collect();
    let text = serde_json::to_vec_pretty(&pairs).map_err(io::Error::other)?;
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text)?;
    std::fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(names: &[&str]) -> Vec<ServiceKey> {
        names.iter().map(|n| format!("shop/{n}").parse().unwrap()).collect()
    }

    fn wanted(keys: &[ServiceKey]) -> Vec<Wanted<'_>> {
        keys.iter().map(|key| Wanted { key, fixed: None }).collect()
    }

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_follows_from_the_name_alone() {
        let all = keys(&["a", "b", "c"]);
        let together = assign(net("127.65.0.0/16"), &wanted(&all), &Assignments::new());
        for key in &all {
            let alone = assign(net("127.65.0.0/16"), &wanted(std::slice::from_ref(key)), &Assignments::new());
            assert_eq!(alone.addresses[key], together.addresses[key]);
        }
        // Written down, so that a change of the hash is seen: it would move every address of every user.
        assert_eq!(together.addresses[&all[0]].to_string(), "127.65.42.133");
    }

    #[test]
    fn a_fixed_address_wins_over_whoever_had_it() {
        let all = keys(&["a", "b"]);
        let first = assign(net("127.65.0.0/16"), &wanted(&all), &Assignments::new());
        let stolen = first.addresses[&all[0]];
        let fixed = [Wanted { key: &all[0], fixed: None }, Wanted { key: &all[1], fixed: Some(stolen) }];
        let second = assign(net("127.65.0.0/16"), &fixed, &first.remembered);
        assert_eq!(second.addresses[&all[1]], stolen);
        assert_ne!(second.addresses[&all[0]], stolen);
    }

    #[test]
    fn a_fixed_address_outside_the_virtual_space_is_refused_and_replaced() {
        let all = keys(&["a"]);
        let outside = [Wanted { key: &all[0], fixed: Some(Ipv4Addr::new(10, 0, 0, 1)) }];
        let out = assign(net("127.65.0.0/16"), &outside, &Assignments::new());
        assert!(out.problems[&all[0]].contains("10.0.0.1"));
        assert!(net("127.65.0.0/16").contains(&out.addresses[&all[0]]));
    }

    #[test]
    fn who_comes_back_gets_the_old_address_and_a_full_network_gives_it_away() {
        let all = keys(&["a", "b", "c", "d"]);
        let small = net("127.65.0.0/30");
        let two = assign(small, &wanted(&all[..2]), &Assignments::new());
        assert_eq!(two.addresses.len(), 2);
        let one = assign(small, &wanted(&all[..1]), &two.remembered);
        assert_eq!(assign(small, &wanted(&all[..2]), &one.remembered).addresses, two.addresses);
        let other = assign(small, &wanted(&[all[0].clone(), all[2].clone()]), &one.remembered);
        assert_eq!(other.addresses.len(), 2);
        assert_eq!(other.addresses[&all[0]], two.addresses[&all[0]]);
        let full = assign(small, &wanted(&all), &other.remembered);
        assert_eq!(full.addresses.len(), 2);
        assert_eq!(full.problems.len(), 2);
    }

    #[test]
    fn assignments_survive_the_file_and_damage_is_no_failure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("addresses.json");
        assert_eq!(load(&path), Assignments::new());
        let all = keys(&["a", "b"]);
        let out = assign(net("127.65.0.0/16"), &wanted(&all), &Assignments::new());
        save(&path, &out.remembered).unwrap();
        assert_eq!(load(&path), out.remembered);
        std::fs::write(&path, b"{\"shop/a\": 7").unwrap();
        assert_eq!(load(&path), Assignments::new());
    }

    proptest! {
        #[test]
        fn no_two_share_an_address_and_a_second_run_changes_nothing(
            names in proptest::collection::btree_set("[a-z]{1,6}", 0..40),
            before in proptest::collection::btree_map("[a-z]{1,6}", 0u32..256, 0..20),
        ) {
            let all: Vec<ServiceKey> = names.iter().map(|n| format!("ns/{n}").parse().unwrap()).collect();
            let network = net("127.66.0.0/26");
            let previous: Assignments = before
                .into_iter()
                .map(|(n, a)| (format!("ns/{n}").parse().unwrap(), Ipv4Addr::from(u32::from(network.network()) + a)))
                .collect();
            let out = assign(network, &wanted(&all), &previous);
            prop_assert_eq!(out.addresses.len(), all.len());
            let distinct: HashSet<_> = out.addresses.values().collect();
            prop_assert_eq!(distinct.len(), all.len());
            prop_assert!(out.addresses.values().all(|a| network.contains(a)));
            prop_assert_eq!(assign(network, &wanted(&all), &out.remembered), out);
        }
    }
}
