//! Text to objects: what is refused names its file, line, field, reason and remedy.
//!
//! ```text
//! text ─ split at `---` ─▶ document ─ kind? ─▶ typed object (serde: unknown fields, types) ─▶ check (our rules)
//! files together ─▶ check::together (duplicates, overlaps)
//! ```
//!
//! A file is taken whole or not at all.

mod check;
mod json;
mod tree;

use std::fmt;

use serde::Deserialize;
use serde::de::DeserializeOwned;

pub use check::{VIRTUAL_NETWORK, VirtualNetwork, parse_export_to, together};
pub use json::{checked, unchecked};

use super::{Cluster, EndpointSlice, FailoverPolicy, Link, Object, Service, ServiceExport, WorkloadIdentity};

/// Longest file that is read, bytes.
pub const FILE_MAX: usize = 4 << 20;
/// Most problems that one file reports; more add nothing for the reader.
pub const PROBLEMS_MAX: usize = 20;

/// The kinds that are known, as `apiVersion` and `kind`.
pub const KINDS: &[(&str, &str)] = &[
    ("hawser.dev/v1alpha1", "Cluster"),
    ("v1", "Service"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
    ("multicluster.x-k8s.io/v1beta1", "ServiceExport"),
    ("multicluster.x-k8s.io/v1alpha1", "ServiceExport"),
    ("hawser.dev/v1alpha1", "Link"),
    ("hawser.dev/v1alpha1", "FailoverPolicy"),
    ("hawser.dev/v1alpha1", "WorkloadIdentity"),
];

/// An object and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Located {
    /// The object.
    pub object: Object,
    /// The file as it was named to [`parse`].
    pub file: String,
    /// Line of its document's first field, from 1.
    pub line: u64,
}

/// Why a file, or a part of it, cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Problem {
    /// The file.
    pub file: String,
    /// From 1; 0: the file as a whole.
    pub line: u64,
    /// Such as `spec.ports[0].port`; may be empty.
    pub field: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.field.is_empty() {
            write!(f, ": {}", self.field)?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// What broke a rule: field, reason, remedy.
struct Broken {
    field: String,
    reason: String,
    remedy: String,
}

impl Broken {
    fn new(field: impl Into<String>, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into(), remedy: remedy.into() }
    }
}

/// Reads one file's text. All of it is good, or what is wrong comes back (at most [`PROBLEMS_MAX`]).
pub fn parse(file: &str, text: &str) -> Result<Vec<Located>, Vec<Problem>> {
    let mut objects = Vec::new();
    let mut problems = Vec::new();
    if text.len() > FILE_MAX {
        let reason = format!("is {} bytes long; at most {FILE_MAX} are read", text.len());
        return Err(vec![whole_file(file, &reason, "split it into several files")]);
    }
    // YAML takes a lone carriage return for a line break, editors do not: never name a line that is not there.
    let last_line = (text.lines().count() as u64).max(1);
    for (first_line, document) in documents(text) {
        match one(document) {
            Ok(Some((object, line))) => {
                objects.push(Located { object, file: file.to_owned(), line: (first_line + line - 1).min(last_line) });
            }
            Ok(None) => {}
            Err(broken) => problems.extend(broken.into_iter().map(|(line, broken)| Problem {
                file: file.to_owned(),
                line: (first_line + line - 1).min(last_line),
                field: broken.field,
                reason: broken.reason,
                remedy: broken.remedy,
            })),
        }
    }
    problems.truncate(PROBLEMS_MAX);
    if problems.is_empty() { Ok(objects) } else { Err(problems) }
}

/// A problem of the file as a whole.
pub fn whole_file(file: &str, reason: &str, remedy: &str) -> Problem {
    Problem { file: file.to_owned(), line: 0, field: String::new(), reason: reason.into(), remedy: remedy.into() }
}

/// The documents of a stream, each with the line on which it begins (YAML 1.2.2 section 9.2: a marker stands at the
/// start of a line, whatever surrounds it).
fn documents(text: &str) -> Vec<(u64, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 1, 0);
    for (line, content) in (1u64..).zip(text.split_inclusive('\n')) {
        let next = at + content.len();
        if is_marker(content) {
            documents.push((start_line, text.get(start..at).unwrap_or_default()));
            // What follows `--- ` on the marker's own line belongs to the document; blank out only the marker.
            let behind = content.strip_prefix("---").map_or(next, |_| at + 3);
            (start, start_line) = (behind, line);
        }
        at = next;
    }
    documents.push((start_line, text.get(start..).unwrap_or_default()));
    documents
}

fn is_marker(line: &str) -> bool {
    ["---", "..."].iter().any(|marker| {
        line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
    })
}

type Faults = Vec<(u64, Broken)>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
}

/// What an object can be read from.
trait Readable {
    type Fault;
    fn read<T: DeserializeOwned>(&self) -> Result<T, Self::Fault>;
}

struct Yaml<'d> {
    document: &'d str,
    tree: &'d tree::Node,
}

impl Readable for Yaml<'_> {
    type Fault = Faults;
    fn read<T: DeserializeOwned>(&self) -> Result<T, Faults> {
        typed(self.document, self.tree)
    }
}

/// The object, if its kind is known. What is read is not checked yet.
fn known<R: Readable>(text: &R, version: &str, kind: &str) -> Result<Option<Object>, R::Fault> {
    let object = match (version, kind) {
        ("hawser.dev/v1alpha1", "Cluster") => Object::Cluster(text.read::<Cluster>()?),
        ("v1", "Service") => Object::Service(text.read::<Service>()?),
        ("discovery.k8s.io/v1", "EndpointSlice") => Object::EndpointSlice(text.read::<EndpointSlice>()?),
        ("multicluster.x-k8s.io/v1beta1" | "multicluster.x-k8s.io/v1alpha1", "ServiceExport") => {
            Object::ServiceExport(text.read::<ServiceExport>()?)
        }
        ("hawser.dev/v1alpha1", "Link") => Object::Link(text.read::<Link>()?),
        ("hawser.dev/v1alpha1", "FailoverPolicy") => Object::FailoverPolicy(text.read::<FailoverPolicy>()?),
        ("hawser.dev/v1alpha1", "WorkloadIdentity") => Object::WorkloadIdentity(text.read::<WorkloadIdentity>()?),
        _ => return Ok(None),
    };
    Ok(Some(object))
}

/// One document: nothing, an object with its line, or what is wrong with it.
fn one(document: &str) -> Result<Option<(Object, u64)>, Faults> {
    let blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with(['#', '%']);
    if document.lines().all(blank) {
        return Ok(None);
    }
    let first = document.lines().position(|line| !blank(line)).map_or(1, |index| index as u64 + 1);
    let tree: tree::Node = serde_saphyr::from_str(document).map_err(|error| vec![syntax(&error)])?;
    let text = Yaml { document, tree: &tree };
    let header: Header = text.read()?;
    let Some(object) = known(&text, &header.api_version, &header.kind)? else {
        return Err(vec![unknown_kind(&tree, &header.api_version, &header.kind)]);
    };
    let broken = check::object(&object);
    if broken.is_empty() {
        return Ok(Some((object, first)));
    }
    Err(broken.into_iter().map(|broken| (tree.line(&broken.field), broken)).collect())
}

fn unknown_kind(tree: &tree::Node, version: &str, kind: &str) -> (u64, Broken) {
    let known = KINDS.iter().map(|(version, kind)| format!("{kind} ({version})")).collect::<Vec<_>>().join(", ");
    let same_kind: Vec<&str> = KINDS.iter().filter(|(_, k)| *k == kind).map(|(version, _)| *version).collect();
    if kind.is_empty() {
        let broken = Broken::new("kind", "is missing", format!("say what it is, one of: {known}"));
        return (tree.line("kind"), broken);
    }
    if same_kind.is_empty() {
        let reason = format!("{} is not a kind that Hawser reads", clip(kind));
        return (tree.line("kind"), Broken::new("kind", reason, format!("use one of: {known}")));
    }
    let reason = format!("{:?} is not a version of {kind} that Hawser reads", clip(version));
    let remedy = format!("write apiVersion: {}", same_kind.join(" or "));
    (tree.line("apiVersion"), Broken::new("apiVersion", reason, remedy))
}

/// A user's text in a message, kept readable.
fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

fn typed<T: DeserializeOwned>(document: &str, tree: &tree::Node) -> Result<T, Faults> {
    serde_saphyr::from_str(document).map_err(|error| {
        let (line, mut broken) = syntax(&error);
        let column = error.location().map_or(1, |location| location.column());
        broken.field = missing(&broken.reason, tree.path_at(line, column));
        broken.remedy = remedy_for(&broken.reason).to_owned();
        vec![(line, broken)]
    })
}

/// A missing field's error stands at the first field that is there: name the one that is not.
fn missing(reason: &str, path: String) -> String {
    let Some(name) = reason.split_once("missing field `").and_then(|(_, rest)| rest.split('`').next()) else {
        return path;
    };
    path.rsplit_once('.').map_or_else(|| name.to_owned(), |(parent, _)| format!("{parent}.{name}"))
}

fn syntax(error: &serde_saphyr::Error) -> (u64, Broken) {
    let line = error.location().map_or(1, |location| location.line().max(1));
    // The library's text says the place as well, which would be the place within the document, not within the file.
    let text = error.without_snippet().to_string();
    let text = text.lines().next().unwrap_or_default();
    let text = text.split(" at line ").next().unwrap_or_default();
    (line, Broken::new("", clip_long(text), "correct the YAML; indent with spaces, and quote values with ':' or '#'"))
}

fn clip_long(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

fn remedy_for(reason: &str) -> &'static str {
    if reason.contains("unknown field") {
        "correct the field's name, or take it out: fields that would be ignored are refused"
    } else if reason.contains("missing field") {
        "add the field"
    } else if reason.contains("duplicate") {
        "keep one of the two"
    } else {
        "correct the value"
    }
}

#[cfg(test)]
mod tests;
