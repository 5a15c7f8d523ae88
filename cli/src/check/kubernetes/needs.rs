//! What the daemons must be allowed to do in a cluster: every verb of the roles that `hawser install` prints, and whether
//! the API server grants it. Pure.

use std::collections::BTreeMap;

use hawser_api::labels::SYSTEM_NAMESPACE;
use serde_json::{Value, json};

use super::super::Finding;
use super::super::anchor::Anchor;
use super::Answer;
use crate::install::rbac::ROLES;
use crate::page::is;

/// One thing that one account must be allowed to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Need {
    account: &'static str,
    verb: &'static str,
    group: &'static str,
    /// With its subresource: `links/status`.
    resource: &'static str,
    /// One object of this name; empty: any.
    name: &'static str,
    /// In Hawser's own namespace, rather than everywhere.
    local: bool,
}

/// All of them, in the order of the roles.
pub(super) fn needs() -> Vec<Need> {
    let mut all = Vec::new();
    for role in ROLES {
        let Some(account) = role.account else { continue };
        for grant in role.grants {
            let names = if grant.names.is_empty() { &[""][..] } else { grant.names };
            let each = grant.resources.iter().flat_map(|resource| grant.verbs.iter().map(move |verb| (resource, verb)));
            let each = each.flat_map(|(resource, verb)| names.iter().map(move |name| (resource, verb, name)));
            all.extend(each.map(|(resource, verb, name)| Need {
                account,
                verb,
                group: grant.group,
                resource,
                name,
                local: role.local,
            }));
        }
    }
    all
}

impl Need {
    /// The question to the API server.
    pub(super) fn review(&self) -> Value {
        let Self { account, verb, group, name, .. } = self;
        let (resource, subresource) = self.resource.split_once('/').unwrap_or((self.resource, ""));
        let namespace = if self.local { SYSTEM_NAMESPACE } else { "" };
        json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": format!("system:serviceaccount:{SYSTEM_NAMESPACE}:{account}"),
                "groups": [
                    "system:serviceaccounts", format!("system:serviceaccounts:{SYSTEM_NAMESPACE}"), "system:authenticated",
                ],
                "resourceAttributes": {
                    "verb": verb, "group": group, "resource": resource, "subresource": subresource,
                    "name": name, "namespace": namespace,
                },
            },
        })
    }

    /// `patch links/status.hawser.dev`, as kubectl writes resources.
    fn describe(&self) -> String {
        let Self { verb, group, resource, name, .. } = self;
        let of = if group.is_empty() { "" } else { "." };
        let space = if name.is_empty() { "" } else { " " };
        format!("{verb} {resource}{of}{group}{space}{name}")
    }
}

/// One line an account: what it lacks.
pub(super) fn permissions(reviews: &[(Need, Answer)]) -> Vec<Finding> {
    let check = Anchor::RbacSufficient;
    let mut lacking: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (need, answer) in reviews {
        let lacks = lacking.entry(need.account).or_default();
        match answer {
            Ok(found) if is(found, "status.allowed") => {}
            Ok(_) => lacks.push(need.describe()),
            Err(reason) => {
                let hint = "whoever runs the check needs `create` on subjectaccessreviews.authorization.k8s.io";
                return vec![check.warning("permissions can be looked at", reason.clone(), hint)];
            }
        }
    }
    let one = |(account, lacks): (&str, Vec<String>)| {
        let description = format!("{SYSTEM_NAMESPACE}/{account} may do what it has to");
        match lacks.as_slice() {
            [] => check.good(description),
            lacks => {
                let hint = "apply this release's roles: hawser install";
                check.error(description, format!("it may not {}", lacks.join(", ")), hint)
            }
        }
    };
    lacking.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::Outcome;
    use super::*;

    fn answered(allowed: impl Fn(&Need) -> bool) -> Vec<(Need, Answer)> {
        needs().into_iter().map(|need| (need, Ok(json!({ "status": { "allowed": allowed(&need) } })))).collect()
    }

    #[test]
    fn every_verb_of_a_daemons_role_is_asked_about_and_none_of_peoples() {
        let described: Vec<_> = needs().iter().map(|need| format!("{} {}", need.account, need.describe())).collect();
        for wanted in [
            "mirror-controller patch links/status.hawser.dev",
            "mirror-controller delete services",
            "mirror-controller update leases.coordination.k8s.io hawser-mirror-controller",
            "trust-anchor create tokenreviews.authentication.k8s.io",
            "trust-anchor patch configmaps hawser-bundle",
        ] {
            assert!(described.iter().any(|need| need == wanted), "{wanted}: {described:#?}");
        }
        let accounts: std::collections::BTreeSet<_> = needs().iter().map(|need| need.account).collect();
        assert_eq!(accounts.into_iter().collect::<Vec<_>>(), ["mirror-controller", "trust-anchor"]);
    }

    #[test]
    fn a_subresource_a_name_and_a_namespace_are_asked_about_as_such() {
        let find = |text: &str| needs().into_iter().find(|need| need.describe() == text).unwrap().review();
        let status = find("patch links/status.hawser.dev");
        assert_eq!(status["spec"]["resourceAttributes"]["subresource"], "status");
        assert_eq!(status["spec"]["resourceAttributes"]["resource"], "links");
        let bundle = find("patch configmaps hawser-bundle");
        assert_eq!(bundle["spec"]["resourceAttributes"]["namespace"], SYSTEM_NAMESPACE);
        assert_eq!(bundle["spec"]["resourceAttributes"]["name"], "hawser-bundle");
    }

    #[test]
    fn what_an_account_may_not_is_said_in_one_line() {
        assert!(permissions(&answered(|_| true)).iter().all(|finding| finding.result == Outcome::Success));
        let findings = permissions(&answered(|need| !(need.verb == "patch" && need.resource.starts_with("services"))));
        assert_eq!((findings[0].result, findings[0].error.as_str()), (Outcome::Error, "it may not patch services"));
        assert_eq!(findings[1].result, Outcome::Success);
        let mut blind = answered(|_| true);
        blind[3].1 = Err("forbidden".into());
        let findings = permissions(&blind);
        assert_eq!((findings.len(), findings[0].result), (1, Outcome::Warning));
    }
}
