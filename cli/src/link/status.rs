//! `hawser link status`: where Links stand, one after the other, for people.
//!
//! What flows in are rows of `hawser get links`, whoever they come from; what flows out is text. Nothing is asked here.

use std::fmt::Write as _;

use serde_json::Value;

use crate::get::{gateways, round_trip};
use crate::page::{at, condition, is, list, number, text};

/// Refusals that are shown of one Link; the status itself holds up to a hundred.
const REFUSED_SHOWN: usize = 20;

/// Whether everything about this Link is in order.
pub(super) fn is_ready(row: &Value) -> bool {
    condition(row, "Ready").is_some_and(|ready| at(ready, "status") == "True")
}

/// One Link.
pub(super) fn describe(row: &Value) -> String {
    let mut out = String::new();
    let mut line = |text: &str| {
        // Writing to a String does not fail.
        let _ = writeln!(out, "{}", text.trim_end());
    };
    line(&format!("{} ({}), in {}", text(row, "name"), text(row, "trustDomain"), text(row, "inCluster")));
    let all = [list(row, "conditions"), list(row, "status.conditions")].concat();
    if all.is_empty() {
        line("  nothing is known of it yet: no mirror controller has written its status");
    }
    for one in &all {
        let (kind, status) = (text(one, "type"), text(one, "status"));
        line(&format!("  {kind:<17} {status:<6} {}", said(one)));
    }
    for gateway in gateways(row) {
        let up = if is(gateway, "alive") { text(gateway, "transport") } else { "down".to_owned() };
        let (name, address) = (text(gateway, "name"), text(gateway, "address"));
        line(&format!("  gateway {name} {address:<21} {up:<5} {}", took(gateway)));
    }
    let best = round_trip(row);
    let trip = if best.is_empty() { best } else { format!(", {best} there and back") };
    line(&format!("  transport {}{trip}", text(row, "transport")));
    let refused = [list(row, "status.refused"), list(row, "refused")].concat();
    let count = |name: &str| number(row, &format!("status.{name}")).max(number(row, name));
    line(&format!(
        "  services: {} offered, {} imported, {} refused",
        count("offered"),
        count("imported"),
        refused.len()
    ));
    for one in refused.iter().take(REFUSED_SHOWN) {
        line(&format!("    {}: {}", text(one, "service"), text(one, "reason")));
    }
    if refused.len() > REFUSED_SHOWN {
        line(&format!("    and {} more: hawser get links -o json", refused.len() - REFUSED_SHOWN));
    }
    out
}

fn said(condition: &Value) -> String {
    match (text(condition, "reason"), text(condition, "message")) {
        (reason, message) if message.is_empty() => reason,
        (_, message) => message,
    }
}

fn took(gateway: &Value) -> String {
    match number(gateway, "roundTripUs") {
        us if us > 0.0 && is(gateway, "alive") => format!("{:.1} ms", us / 1000.0),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(ready: &str) -> Value {
        let refused: Vec<Value> =
            (0..22).map(|n| json!({ "service": format!("shop/s{n}"), "reason": "no namespace shop" })).collect();
        json!({
            "inCluster": "west", "name": "east", "trustDomain": "east.example", "transport": "auto",
            "status": {
                "conditions": [
                    { "type": "Ready", "status": ready, "reason": "Ready", "message": "in order" },
                    { "type": "CatalogFresh", "status": "Unknown", "reason": "Silent" }],
                "gateways": [
                    { "name": "g0", "address": "10.0.0.1:7443", "alive": true, "transport": "quic", "roundTripUs": 1300 },
                    { "name": "g1", "address": "10.0.0.2:7443", "alive": false, "transport": "tcp", "roundTripUs": 900 }],
                "offered": 24, "imported": 2, "refused": refused,
            },
        })
    }

    #[test]
    fn everything_that_the_status_says_is_shown_and_long_lists_are_cut() {
        let shown = describe(&row("True"));
        for line in [
            "east (east.example), in west",
            "  Ready             True   in order",
            "  CatalogFresh      Unknown Silent",
            "  gateway g0 10.0.0.1:7443         quic  1.3 ms",
            "  gateway g1 10.0.0.2:7443         down",
            "  transport auto, 1.3 ms there and back",
            "  services: 24 offered, 2 imported, 22 refused",
            "    shop/s19: no namespace shop",
            "    and 2 more: hawser get links -o json",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line:?} is not in:\n{shown}");
        }
        assert!(!shown.contains("shop/s20"));
    }

    #[test]
    fn a_link_is_in_order_only_when_it_says_so() {
        assert!(is_ready(&row("True")) && !is_ready(&row("False")) && !is_ready(&json!({ "name": "east" })));
        let unknown = describe(&json!({ "name": "east", "trustDomain": "east.example", "inCluster": "west" }));
        assert!(unknown.contains("nothing is known of it yet"), "{unknown}");
    }
}
