use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::rbac::{self, ACCOUNTS, ROLES};
use super::{documents, text};

fn crds() -> String {
    text::stream(&documents::definitions(&hawser_api::crd::definitions()).unwrap())
}

/// What is printed is kept in `deploy/`, so that a change of it is seen in review.
fn is_kept(file: &str, printed: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file);
    if std::env::var_os("HAWSER_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, printed).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == printed, "deploy/{file} is not what is printed: run the test with HAWSER_UPDATE_SNAPSHOTS=1");
}

#[test]
fn definitions_are_printed_as_they_are_kept() {
    is_kept("crds.yaml", &crds());
    for (document, definition) in crds().split("---\n").skip(1).zip(hawser_api::crd::definitions()) {
        let read: Value = serde_saphyr::from_str(document).unwrap();
        assert_eq!(read, serde_json::to_value(definition).unwrap());
    }
}

#[test]
fn roles_are_printed_as_they_are_kept() {
    let printed = text::stream(&rbac::documents().unwrap());
    is_kept("rbac.yaml", &printed);
    // The reasons are comments; what is left is what the roles grant.
    let read: Vec<Value> = printed.split("---\n").skip(1).map(|d| serde_saphyr::from_str(d).unwrap()).collect();
    let roles: Vec<&Value> = read.iter().filter(|d| d["rules"].is_array()).collect();
    assert_eq!(roles.len(), ROLES.len());
    for (read, role) in roles.iter().zip(ROLES) {
        let rules: Vec<Value> = role.grants.iter().map(rbac::Grant::rule).collect();
        assert_eq!(read["rules"], Value::from(rules), "{}", role.name);
        assert_eq!(read["metadata"]["name"], role.name);
    }
    let bound = read.iter().filter(|d| d["roleRef"].is_object()).count();
    assert_eq!(bound, ROLES.iter().filter(|role| role.account.is_some()).count());
    assert_eq!(read.len(), ACCOUNTS.len() + roles.len() + bound);
}

#[test]
fn no_role_reads_secrets_beyond_its_own_or_grants_everything() {
    for role in ROLES {
        for grant in role.grants {
            let words = || grant.resources.iter().chain(grant.verbs).chain([&grant.group]);
            assert!(words().all(|word| !word.contains('*')), "{}: {}", role.name, grant.why);
            assert!(!grant.why.is_empty() && !grant.verbs.is_empty(), "{}: a rule without a reason", role.name);
            if grant.resources.iter().any(|resource| resource.starts_with("secrets")) {
                let by_name = !grant.names.is_empty() && role.local;
                let reads = grant.verbs.iter().any(|verb| matches!(*verb, "get" | "list" | "watch"));
                assert!(by_name || !reads, "{} reads Secrets that are not its own: {}", role.name, grant.why);
                assert!(!grant.verbs.contains(&"list") && !grant.verbs.contains(&"watch"), "{}", role.name);
            }
            // Ways from one right to all others.
            for verb in ["impersonate", "bind", "escalate"] {
                assert!(!grant.verbs.contains(&verb), "{} may {verb}", role.name);
            }
            for resource in ["pods/exec", "serviceaccounts/token", "nodes/proxy", "pods/ephemeralcontainers"] {
                assert!(!grant.resources.contains(&resource), "{} may use {resource}", role.name);
            }
        }
    }
}

#[test]
fn only_the_trust_anchor_reviews_tokens_and_only_daemons_are_bound() {
    let reviewers: Vec<_> =
        ROLES.iter().filter(|role| role.grants.iter().any(|g| g.resources.contains(&"tokenreviews"))).collect();
    assert_eq!(reviewers.iter().map(|role| role.account).collect::<Vec<_>>(), [Some("trust-anchor")]);
    let bound: BTreeSet<_> = ROLES.iter().filter_map(|role| role.account).collect();
    assert!(bound.iter().all(|account| ACCOUNTS.contains(account)), "{bound:?}");
    assert!(!bound.contains("gateway"), "the gateway asks nothing of the API server");
    for role in ROLES.iter().filter(|role| role.account.is_some()) {
        assert!(role.within.is_empty(), "{}: a daemon's rights would go to people", role.name);
    }
}

#[test]
fn the_same_is_printed_each_time() {
    assert_eq!(crds(), crds());
    let lines = crds();
    assert!(lines.lines().all(|line| line == line.trim_end()), "a line ends with blanks");
}
