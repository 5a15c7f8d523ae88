//! Findings about trust: what validators have in memory, when anchors end, and how peers' clocks go. Pure.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Finding;
use super::anchor::Anchor;
use super::judge::{DAY, span};
use crate::columns::short;
use crate::page::{at, condition, is, list, number, text};

/// Clocks that differ by more make short certificates look as if they were not yet valid, or over.
const CLOCK_WARNING_MS: f64 = 10_000.0;
/// From here on certificates are refused: issuers date them back by as much.
const CLOCK_ERROR_MS: f64 = 60_000.0;
/// Days before the end of an anchor: replace it at leisure, soon, at once.
const ANCHOR_DAYS: [f64; 3] = [30.0, 7.0, 1.0];

/// What the mirror controller's `/trust` shows.
pub(crate) fn trust(page: &Value, now: f64) -> Vec<Finding> {
    let mut findings: Vec<_> = list(page, "validators").iter().map(|row| validator(row, page, now)).collect();
    findings.extend(list(page, "anchors").iter().map(|row| anchor(row, now)));
    findings
}

/// Whether a process holds in memory what the mirror controller holds. What is configured is not asked: a process that
/// missed a change looks well in every file.
fn validator(row: &Value, page: &Value, now: f64) -> Finding {
    let check = Anchor::TrustLoaded;
    let name = format!("{} {}", text(row, "kind"), text(row, "name"));
    let description = format!("{name} has loaded the anchors that are in force");
    if !is(row, "connected") || !is(row, "speaks") {
        let since = match number(row, "seenMs") {
            ms if ms > 0.0 => format!("for {}", span((now - ms / 1000.0).max(0.0))),
            _ => "since it should be there".to_owned(),
        };
        let hint =
            "is it up, and of this version? a rotation waits for it; take it out of the Cluster object if it is gone";
        return check.warning(description, format!("it has not said what it holds, {since}"), hint);
    }
    let differs: Vec<_> = reference(page).iter().filter_map(|wanted| difference(row, wanted)).collect();
    if !differs.is_empty() {
        let hint = "it follows within a second; if this stays, its log says what it refused";
        return check.error(description, differs.join("\n"), hint);
    }
    let left = number(row, "leaf.notAfter") - now;
    if !at(row, "leaf").is_null() && left <= 0.0 {
        return check.error(
            description,
            "its own certificate has ended",
            "is the trust anchor up? see the process's log",
        );
    }
    check.good(description)
}

/// What the mirror controller itself has loaded.
fn reference(page: &Value) -> &[Value] {
    let own = list(page, "validators").iter().find(|row| text(row, "kind") == "mirror-controller");
    own.map_or(&[], |own| list(own, "loaded"))
}

fn difference(row: &Value, wanted: &Value) -> Option<String> {
    let domain = text(wanted, "trustDomain");
    let keys = |row: &Value| {
        list(row, "authorities").iter().filter_map(Value::as_str).map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let wanted = keys(wanted);
    let held = list(row, "loaded").iter().find(|loaded| text(loaded, "trustDomain") == domain).map(keys);
    let Some(held) = held else { return Some(format!("it trusts nobody of {domain}")) };
    let names = |keys: Vec<&String>| keys.into_iter().map(|key| short(key)).collect::<Vec<_>>().join(", ");
    let (lacks, more) = (names(wanted.difference(&held).collect()), names(held.difference(&wanted).collect()));
    match (lacks.as_str(), more.as_str()) {
        ("", "") => None,
        (lacks, "") => Some(format!("it lacks {lacks} of {domain}")),
        ("", more) => Some(format!("it still trusts {more} of {domain}")),
        (lacks, more) => Some(format!("it lacks {lacks} of {domain} and still trusts {more}")),
    }
}

fn anchor(row: &Value, now: f64) -> Finding {
    let check = Anchor::TrustAnchorsValid;
    let left = number(row, "notAfter") - now;
    let (domain, key) = (text(row, "trustDomain"), short(&text(row, "authority")));
    let description = format!("anchor {key} of {domain} is valid ({} left)", span(left.max(0.0)));
    let hint = "hawser trust rotate root, in the cluster whose it is; hawser trust status shows who has what";
    let [month, week, day] = ANCHOR_DAYS;
    match left / DAY {
        days if days <= 0.0 => check.error(description, "it has ended", hint),
        days if days < day => check.error(description, "it ends within a day", hint),
        days if days < week => check.warning(description, "it ends within a week", hint),
        days if days < month => check.warning(description, "it ends within a month", hint),
        _ => check.good(description),
    }
}

/// Whether what is in force for a peer is what the peer has.
pub(crate) fn current(row: &Value, peer: &str) -> Option<Finding> {
    let check = Anchor::LinkTrustCurrent;
    let found = condition(row, "TrustCurrent")?;
    let description = format!("{peer}'s anchors are current");
    if at(found, "status") == "True" {
        return Some(check.good(description));
    }
    let hint = "hawser trust bundle show, there; then paste it into the Link, or hawser trust bundle accept --pin";
    Some(check.warning(description, format!("{}: {}", text(found, "reason"), text(found, "message")), hint))
}

/// Whether a peer's clock goes with ours.
pub(crate) fn clock(row: &Value, peer: &str) -> Option<Finding> {
    let check = Anchor::LinkClock;
    let ahead = at(row, "clockAheadMs").as_f64()?;
    let description = format!("{peer}'s clock agrees with this cluster's");
    let word = if ahead > 0.0 { "ahead" } else { "behind" };
    let reason = format!("it is {:.1} seconds {word}", ahead.abs() / 1000.0);
    let hint = "set both clusters' clocks by NTP; `chronyc tracking` on each says which of them is wrong";
    Some(match ahead.abs() {
        off if off > CLOCK_ERROR_MS => check.error(description, format!("{reason}: certificates are refused"), hint),
        off if off > CLOCK_WARNING_MS => check.warning(description, reason, hint),
        _ => check.good(description),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::Outcome;
    use super::*;

    fn page(proxy: &Value) -> Value {
        let loaded = json!([{"trustDomain": "east.example", "authorities": ["aaaa", "bbbb"]}]);
        json!({"validators": [
            proxy,
            {"kind": "mirror-controller", "name": "west", "connected": true, "speaks": true, "loaded": loaded},
        ]})
    }

    fn proxy(keys: &[&str]) -> Value {
        json!({"kind": "proxy", "name": "web", "connected": true, "speaks": true,
               "loaded": [{"trustDomain": "east.example", "authorities": keys}]})
    }

    #[test]
    fn what_is_in_memory_is_compared_and_not_what_is_configured() {
        let judged = |row: &Value| trust(&page(row), 1e9).remove(0);
        assert_eq!(judged(&proxy(&["bbbb", "aaaa"])).result, Outcome::Success);
        let lacks = judged(&proxy(&["aaaa"]));
        assert_eq!((lacks.result, lacks.error.as_str()), (Outcome::Error, "it lacks bbbb of east.example"));
        let more = judged(&proxy(&["aaaa", "bbbb", "cccc"]));
        assert_eq!(more.error, "it still trusts cccc of east.example");
        let silent = json!({"kind": "proxy", "name": "web", "connected": false, "seenMs": 0});
        assert_eq!(judged(&silent).result, Outcome::Warning);
        let mut ended = proxy(&["aaaa", "bbbb"]);
        ended["leaf"] = json!({"notAfter": 999_999_999});
        assert_eq!(judged(&ended).result, Outcome::Error);
    }

    #[test]
    fn anchors_are_judged_a_month_a_week_and_a_day_before_their_end() {
        let judged =
            |days: f64| anchor(&json!({"trustDomain": "a", "authority": "b", "notAfter": 1e9 + days * DAY}), 1e9);
        assert_eq!(judged(40.0).result, Outcome::Success);
        assert_eq!((judged(20.0).result, judged(20.0).error.as_str()), (Outcome::Warning, "it ends within a month"));
        assert_eq!((judged(5.0).result, judged(5.0).error.as_str()), (Outcome::Warning, "it ends within a week"));
        assert_eq!((judged(0.5).result, judged(0.5).error.as_str()), (Outcome::Error, "it ends within a day"));
        assert_eq!(judged(-1.0).error, "it has ended");
    }

    #[test]
    fn a_clock_that_is_off_is_a_warning_and_far_off_an_error() {
        let judged = |ms: i64| clock(&json!({"clockAheadMs": ms}), "east").unwrap();
        assert_eq!(judged(-9_000).result, Outcome::Success);
        assert_eq!(
            (judged(-11_000).result, judged(-11_000).error.as_str()),
            (Outcome::Warning, "it is 11.0 seconds behind")
        );
        assert_eq!(judged(7_200_000).result, Outcome::Error);
        assert_eq!(clock(&json!({}), "east"), None);
    }
}
