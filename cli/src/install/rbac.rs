//! Who may do what on Kubernetes: a role a daemon and a role a person, with a reason for every verb.
//!
//! [`roles`] is the list; the reasons are printed above the rules that they argue for.

mod roles;

use anyhow::Result;
use hawser_api::labels::SYSTEM_NAMESPACE;
use serde_json::{Map, Value, json};

use super::text::{self, Document};

pub(super) use roles::ACCOUNTS;
pub(crate) use roles::ROLES;

/// One rule of a role.
pub(crate) struct Grant {
    /// API group; empty: the core.
    pub(crate) group: &'static str,
    pub(crate) resources: &'static [&'static str],
    /// Only objects of these names; empty: all.
    pub(crate) names: &'static [&'static str],
    pub(crate) verbs: &'static [&'static str],
    /// Why each of the verbs is needed.
    pub(super) why: &'static str,
}

/// A role, and who has it.
pub(crate) struct Role {
    pub(super) name: &'static str,
    /// Only in Hawser's own namespace.
    pub(crate) local: bool,
    /// The service account that is bound to it; `None`: it is for people, and who may bind roles decides for whom.
    pub(crate) account: Option<&'static str>,
    /// Kubernetes' own roles that take it in: `view`, `edit`, `admin`.
    pub(super) within: &'static [&'static str],
    pub(super) about: &'static str,
    pub(crate) grants: &'static [Grant],
}

/// Service accounts, roles and bindings.
pub(super) fn documents() -> Result<Vec<Document>> {
    let mut all = Vec::new();
    for account in ACCOUNTS {
        all.push(text::document(&account_of(account))?);
    }
    for role in ROLES {
        all.push(role.document()?);
        if let Some(account) = role.account {
            all.push(text::document(&role.binding(account))?);
        }
    }
    Ok(all)
}

/// Its token is mounted by those Pods alone that say so: a process that asks nothing of the API server has none.
fn account_of(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": { "name": name, "namespace": SYSTEM_NAMESPACE, "labels": super::documents::labels() },
        "automountServiceAccountToken": false,
    })
}

impl Role {
    fn kind(&self) -> &'static str {
        if self.local { "Role" } else { "ClusterRole" }
    }

    fn metadata(&self, labels: Map<String, Value>) -> Value {
        let namespace = self.local.then(|| ("namespace", json!(SYSTEM_NAMESPACE)));
        [("name", json!(self.name)), ("labels", labels.into())].into_iter().chain(namespace).collect()
    }

    fn labels(&self) -> Map<String, Value> {
        let within = |role: &&str| (format!("rbac.authorization.k8s.io/aggregate-to-{role}"), json!("true"));
        super::documents::labels().into_iter().chain(self.within.iter().map(within)).collect()
    }

    /// The role, with its reasons as comments.
    fn document(&self) -> Result<Document> {
        let head = text::document(&json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": self.kind(),
            "metadata": self.metadata(self.labels()),
        }))?;
        let mut document = format!("{}{head}rules:\n", comment(self.about));
        for grant in self.grants {
            document += &comment(grant.why);
            document += &text::document(&[grant.rule()])?;
        }
        Ok(document)
    }

    fn binding(&self, account: &str) -> Value {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": format!("{}Binding", self.kind()),
            "metadata": self.metadata(super::documents::labels()),
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": self.kind(), "name": self.name },
            "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": SYSTEM_NAMESPACE }],
        })
    }
}

impl Grant {
    /// As a role holds it.
    pub(super) fn rule(&self) -> Value {
        let names = Some(self.names).filter(|names| !names.is_empty()).map(|names| ("resourceNames", json!(names)));
        [("apiGroups", json!([self.group])), ("resources", json!(self.resources)), ("verbs", json!(self.verbs))]
            .into_iter()
            .chain(names)
            .collect()
    }
}

/// A text as YAML comments, 100 characters a line.
fn comment(text: &str) -> String {
    let mut lines = vec![String::from("#")];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() < 100 => *line += &format!(" {word}"),
            _ => lines.push(format!("# {word}")),
        }
    }
    lines.join("\n") + "\n"
}
