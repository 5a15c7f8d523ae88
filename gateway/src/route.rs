//! Which endpoint of an export takes an open: pure, chance is an argument.

use std::sync::Arc;

use hawser_api::{Code, Refusal};

use crate::table::{Endpoint, Export};

/// What a dialler wants of the choice.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish<'a> {
    /// This one or a refusal.
    pub endpoint: Option<&'a str>,
    /// Not these while there is any other.
    pub avoid: &'a [String],
    /// Already tried for this very open and not reached.
    pub tried: Option<&'a str>,
}

/// What the gateway itself knows of an endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Streams that run to it now.
    pub open: usize,
    /// It refused a connection a moment ago.
    pub down: bool,
}

/// The endpoint for this open: of the best class that is not empty, the one with fewer open streams of two drawn by
/// `draw(n)`, which returns a number below `n`. Classes, best first: neither avoided nor down, not avoided, avoided but
/// not down, ready at all.
pub fn route<'a>(
    export: &'a Export,
    wish: Wish<'_>,
    load: impl Fn(&str) -> Load,
    mut draw: impl FnMut(usize) -> usize,
) -> Result<&'a Arc<Endpoint>, Refusal> {
    let ready = export.endpoints.iter().filter(|e| e.ready && wish.tried != Some(&*e.id));
    if let Some(named) = wish.endpoint {
        return ready.into_iter().find(|e| &*e.id == named).ok_or_else(|| gone(export, named));
    }
    let mut best = Vec::new();
    let mut best_class = u8::MAX;
    for endpoint in ready {
        let avoided = wish.avoid.iter().any(|id| **id == *endpoint.id);
        let class = u8::from(avoided) * 2 + u8::from(load(&endpoint.id).down);
        if class < best_class {
            best.clear();
            best_class = class;
        }
        if class == best_class {
            best.push(endpoint);
        }
    }
    // Two distinct ones: the second draw leaves out the first.
    let first = draw(best.len().max(1));
    let second = draw(best.len().saturating_sub(1).max(1));
    let second = if second >= first { second + 1 } else { second };
    match (best.get(first), best.get(second)) {
        (Some(a), Some(b)) if load(&b.id).open < load(&a.id).open => Ok(b),
        (Some(a), _) => Ok(a),
        (None, _) => Err(none(export, wish.tried)),
    }
}

/// How many endpoints are ready, as the dialler is told.
pub fn ready(export: &Export) -> u32 {
    u32::try_from(export.endpoints.iter().filter(|e| e.ready).count()).unwrap_or(u32::MAX)
}

fn none(export: &Export, tried: Option<&str>) -> Refusal {
    let port = &export.port;
    match tried {
        Some(_) => Refusal::new(
            Code::EndpointUnreachable,
            format!("the only ready endpoint of {port} does not take connections"),
            "see whether the proxy in front of the workload runs, and whether the EndpointSlice has its address",
        ),
        None => Refusal::new(
            Code::NoEndpoint,
            format!("{port} is exported, but none of its endpoints is ready"),
            "start the workload, or see why its EndpointSlice says that it is not ready",
        ),
    }
}

fn gone(export: &Export, named: &str) -> Refusal {
    let named: String = named.chars().filter(|c| c.is_ascii_graphic()).take(64).collect();
    Refusal::new(
        Code::NoEndpoint,
        format!("endpoint {named} of {} is not there or not ready", export.port),
        "open without naming an endpoint, and the gateway chooses one",
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn export(endpoints: &[(&str, bool)]) -> Export {
        let endpoints = endpoints.iter().map(|(id, ready)| {
            let inbound = "127.0.0.1:1".parse().unwrap();
            Arc::new(Endpoint { id: (*id).into(), inbound, ready: *ready })
        });
        let endpoints = endpoints.collect();
        Export { port: "shop/checkout:80".parse().unwrap(), clusters: Default::default(), endpoints }
    }

    fn avoid(ids: &[&str]) -> Vec<String> {
        ids.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_less_loaded_of_the_two_drawn_is_chosen() {
        let export = export(&[("a", true), ("b", true), ("c", true)]);
        let load = |id: &str| Load { open: if id == "a" { 5 } else { 1 }, down: false };
        let mut draws = [0usize, 0].into_iter();
        let chosen = route(&export, Wish::default(), load, |_| draws.next().unwrap()).unwrap();
        assert_eq!(&*chosen.id, "b");
    }

    #[test]
    fn a_single_endpoint_is_chosen_whatever_is_drawn() {
        let export = export(&[("a", true), ("b", false)]);
        let chosen = route(&export, Wish::default(), |_| Load::default(), |_| 0).unwrap();
        assert_eq!(&*chosen.id, "a");
    }

    #[test]
    fn without_a_ready_endpoint_the_refusal_says_so() {
        for endpoints in [&[][..], &[("a", false)][..]] {
            let export = export(endpoints);
            let refusal = route(&export, Wish::default(), |_| Load::default(), |_| 0).unwrap_err();
            assert_eq!(refusal.code, Code::NoEndpoint);
        }
    }

    #[test]
    fn a_named_endpoint_is_taken_or_refused_and_never_replaced() {
        let export = export(&[("a", true), ("b", true), ("c", false)]);
        let named = |id| Wish { endpoint: Some(id), ..Wish::default() };
        let down = |_: &str| Load { open: 9, down: true };
        assert_eq!(&*route(&export, named("b"), down, |_| 0).unwrap().id, "b");
        for gone in ["c", "d", ""] {
            assert_eq!(route(&export, named(gone), down, |_| 0).unwrap_err().code, Code::NoEndpoint);
        }
    }

    #[test]
    fn an_endpoint_that_was_tried_is_not_tried_again_for_the_same_open() {
        let export = export(&[("a", true)]);
        let wish = Wish { tried: Some("a"), ..Wish::default() };
        let refusal = route(&export, wish, |_| Load::default(), |_| 0).unwrap_err();
        assert_eq!(refusal.code, Code::EndpointUnreachable);
    }

    #[test]
    fn one_that_is_down_is_used_before_one_that_is_to_be_avoided() {
        let export = export(&[("a", true), ("b", true)]);
        let list = avoid(&["a"]);
        let wish = Wish { avoid: &list, ..Wish::default() };
        let chosen = route(&export, wish, |id| Load { open: 0, down: id == "b" }, |_| 0).unwrap();
        assert_eq!(&*chosen.id, "b");
    }

    #[test]
    fn when_all_are_to_be_avoided_one_is_chosen_all_the_same() {
        let export = export(&[("a", true), ("b", true)]);
        let list = avoid(&["a", "b"]);
        let wish = Wish { avoid: &list, ..Wish::default() };
        assert!(route(&export, wish, |_| Load::default(), |_| 0).is_ok());
    }

    proptest! {
        #[test]
        fn the_choice_is_ready_and_never_avoided_while_another_is_there(
            states in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), 0usize..4), 0..6),
            seed in any::<usize>(),
        ) {
            let ids: Vec<String> = (0..states.len()).map(|i| format!("e{i}")).collect();
            let listed: Vec<_> = ids.iter().zip(&states).map(|(id, s)| (id.as_str(), s.0)).collect();
            let export = export(&listed);
            let list: Vec<String> = ids.iter().zip(&states).filter(|(_, s)| s.1).map(|(id, _)| id.clone()).collect();
            let of = |id: &str| states[id[1..].parse::<usize>().unwrap()];
            let load = |id: &str| Load { open: of(id).3, down: of(id).2 };
            let mut n = seed;
            let draw = |below: usize| { n = n.wrapping_mul(31).wrapping_add(7); n % below };
            match route(&export, Wish { avoid: &list, ..Wish::default() }, load, draw) {
                Ok(chosen) => {
                    let (ready, avoided, down, _) = of(&chosen.id);
                    prop_assert!(ready);
                    prop_assert!(!avoided || states.iter().all(|s| !s.0 || s.1));
                    prop_assert!(!down || states.iter().all(|s| !s.0 || s.2 || (s.1 && !avoided)));
                }
                Err(_) => prop_assert!(states.iter().all(|s| !s.0)),
            }
        }

        #[test]
        fn two_draws_never_fall_on_one_endpoint(open in prop::collection::vec(0usize..3, 2..6), x in any::<usize>(), y in any::<usize>()) {
            let ids: Vec<String> = (0..open.len()).map(|i| format!("e{i}")).collect();
            let listed: Vec<_> = ids.iter().map(|id| (id.as_str(), true)).collect();
            let export = export(&listed);
            let load = |id: &str| Load { open: open[id[1..].parse::<usize>().unwrap()], down: false };
            let mut draws = [x, y].into_iter();
            let chosen = route(&export, Wish::default(), load, |n| draws.next().unwrap() % n).unwrap();
            // Two distinct draws, so the one with the most open streams wins only against its equal.
            let most = open.iter().max().unwrap();
            if open.iter().filter(|o| *o == most).count() == 1 {
                prop_assert_ne!(load(&chosen.id).open, *most);
            }
        }
    }
}
