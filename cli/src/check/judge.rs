//! Findings from what was seen. Pure: the same sight gives the same findings.

use serde_json::Value;

use super::anchor::Anchor;
use super::seen::{Daemon, Seen};
use super::{Category, Finding, Outcome, trust};
use crate::get::{gateways, ready};
use crate::page::{at, condition, is, list, number, service, text};
use crate::state::State;

pub(super) const DAY: f64 = 86_400.0;
/// An authority that ends sooner is to be replaced at leisure, or at once.
const AUTHORITY_DAYS: (f64, f64) = (30.0, 7.0);

/// There is no cluster in the state directory.
pub(crate) fn nothing(state: &State) -> Category {
    let finding = Anchor::ClusterPresent.error(
        "a cluster runs here",
        format!("{} has none", state.path().display()),
        "hawser up DIR --state DIR",
    );
    Category { category_name: "clusters".to_owned(), checks: vec![finding] }
}

/// All findings about one cluster.
pub(crate) fn judge(seen: &Seen) -> Vec<Category> {
    let category =
        |name: &str, checks: Vec<Finding>| Category { category_name: format!("{}: {name}", seen.cluster), checks };
    let categories = vec![
        category("processes", seen.daemons.iter().map(daemon).collect()),
        category("objects", objects(&seen.objects)),
        category("identities", seen.identities.iter().map(|row| identity(row, seen.now)).collect()),
        category("trust", trust::trust(&seen.trust, seen.now)),
        category("links", seen.links.iter().flat_map(link).collect()),
        category("exports", seen.exports.iter().map(export).collect()),
        category("mirrors", seen.mirrors.iter().filter_map(mirror).collect()),
        category("listeners", listeners(&seen.listeners)),
    ];
    categories.into_iter().filter(|category| !category.checks.is_empty()).collect()
}

fn daemon(daemon: &Daemon) -> Finding {
    let check = Anchor::ProcessReady;
    let description = format!("{} is up and ready", daemon.label);
    match &daemon.ready {
        Ok(page) if is(page, "ready") => check.good(description),
        Ok(page) => {
            let hint = "its log says why: hawser up prints it";
            check.error(description, format!("it waits for: {}", text(page, "unmet")), hint)
        }
        Err(reason) if daemon.alive => {
            check.error(description, format!("it does not answer: {reason}"), "is it stopped or overloaded?")
        }
        Err(reason) => {
            check.error(description, reason.clone(), "hawser process status; hawser up DIR, if it does not run")
        }
    }
}

fn objects(page: &Value) -> Vec<Finding> {
    let check = Anchor::ObjectsInForce;
    let description = "the YAML documents are in force as they are written";
    let problems = list(page, "problems").iter().map(|problem| {
        let place = [text(problem, "file"), text(problem, "line")].join(":");
        let reason = [text(problem, "field"), text(problem, "reason"), text(problem, "message")];
        let reason: Vec<_> = reason.into_iter().filter(|part| !part.is_empty()).collect();
        check.error(description, format!("{place}: {}", reason.join(": ")), text(problem, "remedy"))
    });
    let warnings = list(page, "warnings").iter().map(|warned| {
        check.warning(description, format!("{}: {}", text(warned, "object"), text(warned, "message")), "")
    });
    let mut findings: Vec<_> = problems.chain(warnings).collect();
    if findings.is_empty() && !page.is_null() {
        findings.push(check.good(description));
    }
    findings
}

fn identity(row: &Value, now: f64) -> Finding {
    let check = Anchor::IdentityValid;
    let (name, kind) = (text(row, "spiffeId"), text(row, "kind"));
    let left = number(row, "notAfter") - now;
    let is_leaf = !matches!(kind.as_str(), "intermediate" | "root");
    let description = format!("{kind} {name} is valid ({} left)", span(left.max(0.0)));
    if !is_leaf {
        let hint = "hawser trust intermediate signs a new one; `hawser up` does it at two thirds of its life";
        return match left / DAY {
            days if days < AUTHORITY_DAYS.1 => check.error(description, "it ends within a week", hint),
            days if days < AUTHORITY_DAYS.0 => check.warning(description, "it ends within a month", hint),
            _ => check.good(description),
        };
    }
    let life = number(row, "notAfter") - number(row, "issuedAt");
    if left <= 0.0 {
        return check.warning(
            description,
            "it has ended and was not renewed",
            "in order if its process is gone for good",
        );
    }
    if left < life / 4.0 {
        let hint = "its process should have renewed it at half life; see its log";
        return check.warning(description, "less than a quarter of its life is left", hint);
    }
    check.good(description)
}

pub(super) fn span(seconds: f64) -> String {
    match seconds {
        s if s >= 2.0 * DAY => format!("{:.0} days", s / DAY),
        s if s >= 7200.0 => format!("{:.0} hours", s / 3600.0),
        s => format!("{:.0} minutes", s / 60.0),
    }
}

pub(super) fn link(row: &Value) -> Vec<Finding> {
    let peer = text(row, "name");
    let mut findings = vec![fresh(row, &peer)];
    for gateway in gateways(row) {
        let (name, address) = (text(gateway, "name"), text(gateway, "address"));
        let took = number(gateway, "roundTripUs") / 1000.0;
        let how = text(gateway, "transport");
        findings.push(match is(gateway, "alive") {
            true => Anchor::LinkGatewaysAlive
                .good(format!("{peer}'s gateway {name} answers ({address}, {how}, {took:.1} ms)")),
            false => {
                let hint = format!("is it up, and may {address} be reached over UDP and TCP?");
                // One of several gateways is what several are for.
                let severe = gateways(row).iter().all(|gateway| !is(gateway, "alive"));
                let outcome = if severe { Outcome::Error } else { Outcome::Warning };
                Anchor::LinkGatewaysAlive.bad(
                    outcome,
                    format!("{peer}'s gateway {name} answers"),
                    format!("{address} does not answer probes"),
                    hint,
                )
            }
        });
    }
    let refused = [list(row, "status.refused"), list(row, "refused")].concat();
    findings.extend(trust::current(row, &peer));
    findings.extend(trust::clock(row, &peer));
    findings.push(match refused.as_slice() {
        [] => Anchor::LinkImports.good(format!("everything that {peer} offers is mirrored as the Link asks")),
        refused => {
            let each = refused.iter().map(|row| format!("{}: {}", text(row, "service"), text(row, "reason")));
            let hint = "rename with spec.import.nameTemplate, or map namespaces with spec.import.namespaces";
            Anchor::LinkImports.warning(
                format!("everything that {peer} offers is mirrored"),
                each.collect::<Vec<_>>().join("\n"),
                hint,
            )
        }
    });
    findings
}

fn fresh(row: &Value, peer: &str) -> Finding {
    let check = Anchor::LinkCatalogFresh;
    let description = format!("{peer}'s catalog is fresh");
    match condition(row, "CatalogFresh").or(condition(row, "Ready")) {
        Some(condition) if at(condition, "status") == "True" => check.good(description),
        Some(condition) => {
            let hint = format!("is {peer} up? does it have a Link back to this cluster?");
            check.error(description, format!("{}: {}", text(condition, "reason"), text(condition, "message")), hint)
        }
        None => check.warning(description, "the mirror controller does not say", "hawser get links -o json"),
    }
}

pub(super) fn export(row: &Value) -> Finding {
    let check = Anchor::ExportCallable;
    let name = service(row);
    let ready_endpoints = number(row, "endpointsReady");
    let description = format!("{name} is exported ({ready_endpoints:.0} endpoints ready)");
    let invalid = ["Valid", "ClustersKnown"]
        .into_iter()
        .filter_map(|kind| condition(row, kind))
        .find(|c| at(c, "status") == "False");
    if let Some(condition) = invalid {
        return check.error(description, format!("{}: {}", text(condition, "reason"), text(condition, "message")), "");
    }
    if let Some(condition) = condition(row, "Conflict").filter(|c| at(c, "status") == "True") {
        return check.warning(
            description,
            format!("{}: {}", text(condition, "reason"), text(condition, "message")),
            "",
        );
    }
    if !ready(row).is_empty() && ready(row) != "True" {
        return check.warning(description, ready(row), "a Link is what makes a cluster a peer");
    }
    if ready_endpoints < 1.0 {
        let hint = format!("an EndpointSlice with the label kubernetes.io/service-name: {}", text(row, "name"));
        return check.warning(description, "callers are refused: no endpoint is ready", hint);
    }
    check.good(description)
}

/// A peer that takes an export back is its own affair; a peer that is away is ours.
pub(super) fn mirror(row: &Value) -> Option<Finding> {
    let check = Anchor::MirrorCallable;
    let name = service(row);
    let standing = text(row, "standing");
    let description = format!("{name} can be called");
    match standing.as_str() {
        "withdrawn" => None,
        "stale" => {
            let cluster = text(row, "cluster");
            Some(check.warning(description, format!("{cluster} is away"), "see links"))
        }
        _ if number(row, "endpointsReady") < 1.0 => {
            Some(check.warning(description, "no endpoint is ready there", "ask the other cluster: hawser get exports"))
        }
        _ => Some(check.good(description)),
    }
}

fn listeners(rows: &[Value]) -> Vec<Finding> {
    let check = Anchor::ListenerBound;
    let moved: Vec<_> = rows.iter().filter(|row| !text(row, "reason").is_empty()).collect();
    let as_asked = rows.len() - moved.len();
    let mut findings = Vec::new();
    if as_asked > 0 {
        findings.push(check.good(format!("{as_asked} names are bound as asked")));
    }
    findings.extend(moved.into_iter().map(|row| {
        let description =
            format!("{}: {} port {} is bound as asked", text(row, "process"), service(row), text(row, "port"));
        match text(row, "bound") {
            bound if bound.is_empty() => {
                check.error(description, text(row, "reason"), "is something else on that address?")
            }
            bound => {
                let hint = "use that address, SOCKS5, or let the proxy bind low ports (CAP_NET_BIND_SERVICE)";
                check.warning(description, format!("it is at {bound}: {}", text(row, "reason")), hint)
            }
        }
    }));
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn worst(findings: &[Finding]) -> Outcome {
        findings.iter().map(|finding| finding.result).max().unwrap()
    }

    fn link_row(alive: [bool; 2], fresh: &str) -> Value {
        json!({"name": "east", "status": {
            "conditions": [{"type": "CatalogFresh", "status": fresh, "reason": "NoAnswer", "message": "m"}],
            "gateways": [{"name": "g0", "alive": alive[0], "roundTripUs": 900}, {"name": "g1", "alive": alive[1]}],
        }})
    }

    #[test]
    fn one_gateway_of_two_down_is_a_warning_and_both_an_error() {
        assert_eq!(worst(&link(&link_row([true, true], "True"))), Outcome::Success);
        assert_eq!(worst(&link(&link_row([true, false], "True"))), Outcome::Warning);
        assert_eq!(worst(&link(&link_row([false, false], "True"))), Outcome::Error);
        assert_eq!(worst(&link(&link_row([true, true], "False"))), Outcome::Error);
    }

    #[test]
    fn a_daemon_that_waits_says_for_what() {
        let waiting =
            Daemon { label: "proxy-web".into(), alive: true, ready: Ok(json!({"ready": false, "unmet": ["tables"]})) };
        let finding = daemon(&waiting);
        assert_eq!(finding.result, Outcome::Error);
        assert!(finding.error.contains("tables"));
    }

    #[test]
    fn certificates_are_judged_by_what_is_left_of_them() {
        let row = |kind: &str, left: f64, life: f64| json!({"kind": kind, "spiffeId": "x", "notAfter": 1e9 + left, "issuedAt": 1e9 + left - life});
        let outcome = |kind, left, life| identity(&row(kind, left, life), 1e9).result;
        assert_eq!(outcome("leaf", 3000.0, 3600.0), Outcome::Success);
        assert_eq!(outcome("leaf", 600.0, 3600.0), Outcome::Warning);
        assert_eq!(outcome("intermediate", 60.0 * DAY, 90.0 * DAY), Outcome::Success);
        assert_eq!(outcome("intermediate", 20.0 * DAY, 90.0 * DAY), Outcome::Warning);
        assert_eq!(outcome("root", 2.0 * DAY, 90.0 * DAY), Outcome::Error);
    }

    #[test]
    fn an_export_without_endpoints_says_how_to_get_some() {
        let row = json!({"namespace": "shop", "name": "checkout", "endpointsReady": 0, "conditions": []});
        let finding = export(&row);
        assert_eq!(finding.result, Outcome::Warning);
        assert!(finding.hint.contains("kubernetes.io/service-name: checkout"));
    }

    #[test]
    fn a_port_that_is_bound_elsewhere_is_a_warning_with_the_address() {
        let rows = [
            json!({"namespace": "shop", "name": "a", "port": 8080, "bound": "127.65.0.2:8080", "reason": ""}),
            json!({"namespace": "shop", "name": "b", "port": 80, "bound": "127.65.0.3:10080", "reason": "permission denied"}),
        ];
        let findings = listeners(&rows);
        assert_eq!(worst(&findings), Outcome::Warning);
        assert!(findings[1].error.contains("127.65.0.3:10080"));
    }
}
