//! Which cluster serves the next request or connection. Pure: a destination, how healthy each backend is, and what was
//! tried go in; one backend or the reason why not comes out.
//!
//! Tiers are used in order. A tier serves while enough of it is healthy, and its healthy backends share by weight. When
//! no tier serves, whatever was not tried does: a wrong guess about health must not refuse what might have worked.

use hawser_api::{Code, Refusal};

use crate::table::{Backend, Destination, Port, Tier};

/// Which backend of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The tier, from 0.
    pub tier: usize,
    /// The backend in it, from 0.
    pub backend: usize,
}

/// What to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// This backend.
    pub position: Position,
    /// Nothing better is left: endpoints that are ejected or were tried may serve as well.
    pub last_resort: bool,
}

/// What has been tried for one request. Backends beyond the 64th of a destination are never marked: they are tried again
/// and the number of tries ends it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tried {
    bits: u64,
}

impl Tried {
    /// Marks a backend.
    pub fn mark(&mut self, destination: &Destination, position: Position) {
        self.bits |= bit(destination, position);
    }

    fn has(self, destination: &Destination, position: Position) -> bool {
        self.bits & bit(destination, position) != 0
    }
}

fn bit(destination: &Destination, position: Position) -> u64 {
    let before: usize = destination.tiers.iter().take(position.tier).map(|tier| tier.backends.len()).sum();
    u32::try_from(before + position.backend).ok().and_then(|at| 1_u64.checked_shl(at)).unwrap_or_default()
}

/// Chooses. `health` is the share of a backend that takes new work, percent, and `None` for one that does not serve the
/// port at all; `draw` is a random number.
pub fn route(
    destination: &Destination,
    health: impl Fn(Position) -> Option<u8>,
    tried: Tried,
    draw: u64,
) -> Result<Choice, Refusal> {
    let open = |position| !tried.has(destination, position) && health(position).is_some();
    let well = |position| health(position).is_some_and(|percent| percent > 0);
    for (tier, it) in destination.tiers.iter().enumerate() {
        if serves(it, |backend| health(Position { tier, backend })) {
            let usable = |backend| well(Position { tier, backend }) && open(Position { tier, backend });
            if let Some(backend) = weighted(it, usable, draw) {
                return Ok(Choice { position: Position { tier, backend }, last_resort: false });
            }
        }
    }
    let all = || {
        let tiers = destination.tiers.iter().enumerate();
        tiers.flat_map(|(tier, it)| (0..it.backends.len()).map(move |backend| Position { tier, backend }))
    };
    // Healthy ones of tiers that are not healthy enough; then those that seem dead.
    if let Some(position) = all().find(|at| open(*at) && well(*at)) {
        return Ok(Choice { position, last_resort: false });
    }
    if let Some(position) = all().find(|at| open(*at)) {
        return Ok(Choice { position, last_resort: true });
    }
    Err(exhausted(destination, all().any(|at| health(at).is_some())))
}

/// Whether a tier is healthy enough: weighted, because a backend that gets nothing says nothing.
fn serves(tier: &Tier, health: impl Fn(usize) -> Option<u8>) -> bool {
    let weigh = |(at, backend): (usize, &std::sync::Arc<Backend>)| {
        let (weight, percent) = (u64::from(backend.weight.max(1)), health(at)?);
        Some((weight, weight * u64::from(percent.min(100))))
    };
    let weights = tier.backends.iter().enumerate().filter_map(weigh);
    let (total, healthy) = weights.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    healthy > 0 && healthy >= total * u64::from(tier.min_healthy_percent.min(100))
}

/// By weight among the usable ones; those of weight 0 only where no other is usable.
fn weighted(tier: &Tier, usable: impl Fn(usize) -> bool, draw: u64) -> Option<usize> {
    let candidates = || tier.backends.iter().enumerate().filter(|(at, _)| usable(*at));
    let total: u64 = candidates().map(|(_, backend)| u64::from(backend.weight)).sum();
    if total == 0 {
        return candidates().map(|(at, _)| at).next();
    }
    let mut left = draw % total;
    for (at, backend) in candidates() {
        let weight = u64::from(backend.weight);
        if left < weight {
            return Some(at);
        }
        left -= weight;
    }
    None
}

fn exhausted(destination: &Destination, had_backends: bool) -> Refusal {
    if had_backends {
        let message = format!("every backend of {} was tried", destination.key);
        return Refusal::new(Code::NoEndpoint, message, format!("see `hawser why {}`", destination.key));
    }
    destination.unavailable.clone().unwrap_or_else(|| {
        let message = format!("{} has no endpoint that is ready", destination.key);
        Refusal::new(Code::NoEndpoint, message, "start a workload for it, or link a cluster that exports it")
    })
}

/// The port of a destination and its position, or why there is none.
pub fn port(destination: &Destination, number: u16) -> Result<(usize, &Port), Refusal> {
    let found = destination.ports.iter().enumerate().find(|(_, port)| port.number == number && !port.udp);
    found.ok_or_else(|| {
        let ports: Vec<String> = destination.ports.iter().map(|p| p.number.to_string()).collect();
        let message = format!("{} has no TCP port {number}", destination.key);
        Refusal::new(Code::UnknownDestination, message, format!("its ports are: {}", ports.join(", ")))
    })
}

/// A backend's own number for the destination's port at this position; `None`: it does not serve that port.
pub fn backend_port(backend: &Backend, at: usize, number: u16) -> Option<u16> {
    backend.ports.get(at).map_or(Some(number), |port| Some(*port).filter(|port| *port != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Reach, SessionMode};
    use proptest::prelude::*;
    use std::sync::Arc;

    fn backend(cluster: &str, weight: u32) -> Arc<Backend> {
        Arc::new(Backend {
            cluster: cluster.parse().unwrap(),
            weight,
            service: "shop/checkout".parse().unwrap(),
            identities: Arc::from([]),
            reach: Reach::Remote { endpoints_ready: 1 },
            only: None,
            region: String::new(),
            ports: Vec::new(),
        })
    }

    fn destination(tiers: &[(u8, &[(&str, u32)])]) -> Destination {
        let tier = |(min, backends): &(u8, &[(&str, u32)])| Tier {
            backends: backends.iter().map(|(cluster, weight)| backend(cluster, *weight)).collect(),
            min_healthy_percent: *min,
        };
        Destination {
            key: "shop/checkout".parse().unwrap(),
            dns_names: Vec::new(),
            group_names: Vec::new(),
            headless_names: Vec::new(),
            ports: vec![Port { name: String::new(), number: 80, udp: false, app_protocol: String::new() }],
            tiers: tiers.iter().map(tier).collect(),
            session: SessionMode::Auto,
            fixed_address: None,
            unavailable: None,
            changed_at_ms: 0,
        }
    }

    fn at(tier: usize, backend: usize) -> Position {
        Position { tier, backend }
    }

    #[test]
    fn the_first_tier_that_is_healthy_enough_serves() {
        let two = destination(&[(50, &[("west", 1)]), (0, &[("east", 1)])]);
        for (west, east, expected, last_resort) in [
            (100, 100, at(0, 0), false),
            (50, 100, at(0, 0), false),
            (49, 100, at(1, 0), false),
            (0, 1, at(1, 0), false),
            // No tier serves: what is left of the first does, and when all seem dead, the first is tried.
            (49, 0, at(0, 0), false),
            (0, 0, at(0, 0), true),
        ] {
            let health = |position: Position| Some(if position.tier == 0 { west } else { east });
            let choice = route(&two, health, Tried::default(), 0).unwrap();
            assert_eq!(choice, Choice { position: expected, last_resort }, "{west} {east}");
        }
    }

    #[test]
    fn what_was_tried_is_not_tried_again_and_at_last_there_is_a_reason() {
        let three = destination(&[(0, &[("west", 1)]), (0, &[("east", 1), ("north", 1)])]);
        let mut tried = Tried::default();
        let mut seen = Vec::new();
        while let Ok(choice) = route(&three, |_| Some(100), tried, 1) {
            tried.mark(&three, choice.position);
            seen.push(choice.position);
        }
        assert_eq!(seen, [at(0, 0), at(1, 1), at(1, 0)]);
        assert_eq!(route(&three, |_| Some(100), tried, 1).unwrap_err().code, Code::NoEndpoint);
    }

    #[test]
    fn backends_share_by_weight_and_weight_zero_waits_for_the_others_to_fail() {
        let tier = destination(&[(0, &[("west", 0), ("east", 3), ("north", 1)])]);
        let mut counts = [0; 3];
        for draw in 0..400 {
            counts[route(&tier, |_| Some(100), Tried::default(), draw).unwrap().position.backend] += 1;
        }
        assert_eq!(counts, [0, 300, 100]);
        let only_west = |position: Position| Some(if position.backend == 0 { 100 } else { 0 });
        assert_eq!(route(&tier, only_west, Tried::default(), 5).unwrap().position, at(0, 0));
    }

    #[test]
    fn without_backends_the_callers_are_told_why() {
        let mut none = destination(&[]);
        assert_eq!(route(&none, |_| Some(100), Tried::default(), 0).unwrap_err().code, Code::NoEndpoint);
        none.unavailable = Some(Refusal::new(Code::NotExported, "east no longer exports it", "export it"));
        let refusal = route(&none, |_| Some(100), Tried::default(), 0).unwrap_err();
        assert_eq!((refusal.code, refusal.remedy.as_str()), (Code::NotExported, "export it"));
        assert_eq!(port(&none, 81).unwrap_err().code, Code::UnknownDestination);
        assert!(port(&none, 81).unwrap_err().remedy.contains("80"));
        assert_eq!(port(&none, 80).unwrap().0, 0);
    }

    #[test]
    fn a_backend_that_does_not_serve_the_port_is_never_asked() {
        let two = destination(&[(0, &[("west", 1), ("east", 1)])]);
        let west_does_not = |position: Position| (position.backend == 1).then_some(0);
        let choice = route(&two, west_does_not, Tried::default(), 0).unwrap();
        assert_eq!(choice, Choice { position: at(0, 1), last_resort: true });
        let refusal = route(&two, |_| None, Tried::default(), 0).unwrap_err();
        assert!(refusal.message.contains("no endpoint that is ready"), "{refusal}");
    }

    #[test]
    fn a_backend_may_have_numbers_of_its_own() {
        let mut own = Arc::into_inner(backend("east", 1)).unwrap();
        assert_eq!(backend_port(&own, 0, 80), Some(80));
        own.ports = vec![8080, 0];
        assert_eq!((backend_port(&own, 0, 80), backend_port(&own, 1, 443)), (Some(8080), None));
    }

    proptest! {
        #[test]
        fn every_backend_is_tried_exactly_once_whatever_the_health(
            sizes in prop::collection::vec(0_usize..4, 0..5), min in 0_u8..=100, health in any::<u64>(), draw in any::<u64>()
        ) {
            let tiers: Vec<Vec<(&str, u32)>> = sizes.iter().map(|n| (0..*n).map(|w| ("east", w as u32)).collect()).collect();
            let tiers: Vec<(u8, &[(&str, u32)])> = tiers.iter().map(|tier| (min, tier.as_slice())).collect();
            let all = destination(&tiers);
            let percent = |position: Position| Some(((health >> (position.tier * 4 + position.backend)) % 101) as u8);
            let (mut tried, mut count) = (Tried::default(), 0);
            while let Ok(choice) = route(&all, percent, tried, draw) {
                prop_assert!(!tried.has(&all, choice.position));
                tried.mark(&all, choice.position);
                count += 1;
            }
            prop_assert_eq!(count, sizes.iter().sum::<usize>());
        }
    }
}
