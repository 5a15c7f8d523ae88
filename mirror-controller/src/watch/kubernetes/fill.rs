//! Pure: what the watches have said so far, of all kinds, and the objects that follow from it.
//!
//! Whatever the order in which they say it, and however often: the same objects follow in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use hawser_api::objects::load::{Problem, whole_file};
use hawser_api::objects::{Cluster, Link, Metadata, Object, Service, ServiceExport, ServiceImport};
use hawser_api::{Namespace, ServiceKey};
use kube::runtime::watcher::Event;

use super::kind::Kind;
use super::read::{Facts, Name, Said, Seen};
use crate::plan::clusterset::derived_keys;
use crate::world::Objects;

/// Why a kind cannot be watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The API server does not know it.
    Missing,
    /// This process may not read it; the API server's words.
    Forbidden(String),
    /// The API server does not answer, or not as it should.
    Unreachable(String),
}

/// How it stands with the watch of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// All of it has been listed at least once; what is known is that, and what came since.
    pub listed: bool,
    /// It cannot be watched at present.
    pub trouble: Option<Trouble>,
}

impl Standing {
    /// Conclusions may be drawn: it has been listed, or it is certain that there is nothing to be had, and the kind is one
    /// whose absence only withholds what hangs on it. An API server that does not answer says nothing.
    pub fn settled(&self, kind: Kind) -> bool {
        let certain = matches!(self.trouble, Some(Trouble::Missing | Trouble::Forbidden(_)));
        self.listed || (certain && !kind.needed())
    }
}

/// Whom a change concerns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Effect {
    /// The world.
    pub world: bool,
    /// Those who compare what they made with what is there, and write statuses.
    pub made: bool,
}

/// One object as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// What it says.
    pub kept: Kept,
    /// What the API server says about it.
    pub facts: Facts,
}

/// What an object says, as far as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub enum Kept {
    /// That it is there, and no more: a Namespace, or something that was never valid.
    There,
    /// The service account of a Pod.
    Pod(Namespace),
    /// What a user declares.
    Declared(Box<Object>),
    /// What we made.
    Made(Box<Object>),
    /// A ServiceImport that we made.
    Import(Box<ServiceImport>),
}

impl Kept {
    /// Name, labels and annotations of what we made; `None`: it is somebody else's.
    pub fn made(&self) -> Option<&Metadata> {
        match self {
            Self::Made(object) => Some(object.metadata()),
            Self::Import(import) => Some(&import.metadata),
            Self::There | Self::Pod(_) | Self::Declared(_) => None,
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    known: BTreeMap<Name, Entry>,
    // What a listing that is under way has said; it takes the place of `known` when it is done.
    coming: Option<BTreeMap<Name, Entry>>,
    // Of entries in either.
    problems: BTreeMap<Name, Vec<Problem>>,
    standing: Standing,
}

/// All kinds.
#[derive(Debug)]
pub struct Fill {
    cluster: Cluster,
    inbound_port: Option<u16>,
    tables: BTreeMap<Kind, Table>,
}

/// A Link as `apply` needs it.
#[derive(Debug, Clone, Copy)]
pub struct LinkFacts<'f> {
    /// Its name.
    pub name: &'f str,
    /// What the API server says about it.
    pub facts: &'f Facts,
    /// Why what it says now is not in force.
    pub problems: &'f [Problem],
}

impl Fill {
    /// Nothing has been said. `cluster` takes the place of the Cluster document that files have.
    pub fn new(cluster: Cluster, inbound_port: Option<u16>) -> Self {
        let tables = Kind::ALL.into_iter().map(|kind| (kind, Table::default())).collect();
        Self { cluster, inbound_port, tables }
    }

    /// A watch says something.
    pub fn hear(&mut self, kind: Kind, event: Event<Seen>) -> Effect {
        let table = self.tables.entry(kind).or_default();
        match event {
            Event::Init => {
                table.coming = Some(BTreeMap::new());
                Effect::default()
            }
            Event::InitApply(Seen { said: Said::Nothing, .. }) => Effect::default(),
            Event::InitApply(seen) => {
                let (name, entry) = table.entry(seen);
                let coming = table.coming.get_or_insert_default();
                if coming.get(&name).is_none_or(|held| !newer(held, &entry)) {
                    coming.insert(name, entry);
                }
                Effect::default()
            }
            Event::InitDone => table.listed(),
            Event::Apply(seen) if seen.said == Said::Nothing => table.delete(kind, &seen),
            Event::Apply(seen) => table.apply(kind, seen),
            Event::Delete(seen) => table.delete(kind, &seen),
        }
    }

    /// What an API server answered to our own writing: heard at once, so that nothing is written twice while the watch is
    /// still on its way.
    pub fn wrote(&mut self, kind: Kind, seen: Seen) -> Effect {
        let table = self.tables.entry(kind).or_default();
        if table.coming.is_some() {
            // The listing that is under way may have begun before.
            let (name, entry) = table.entry(seen.clone());
            table.coming.get_or_insert_default().insert(name, entry);
        }
        table.apply(kind, seen)
    }

    /// We deleted it.
    pub fn removed(&mut self, kind: Kind, name: &Name, uid: &str) -> Effect {
        let table = self.tables.entry(kind).or_default();
        let this = |entry: &Entry| entry.facts.uid == uid;
        if table.known.get(name).is_some_and(this) {
            table.known.remove(name);
        }
        if let Some(coming) = &mut table.coming
            && coming.get(name).is_some_and(this)
        {
            coming.remove(name);
        }
        Effect { world: kind == Kind::Link, made: true }
    }

    /// A kind cannot be watched; `None`: it can again.
    pub fn trouble(&mut self, kind: Kind, trouble: Option<Trouble>) -> Effect {
        let table = self.tables.entry(kind).or_default();
        let changed = table.standing.trouble != trouble;
        table.standing.trouble = trouble;
        Effect { world: changed, made: false }
    }

    /// How it stands with each kind.
    pub fn standing(&self) -> Vec<(Kind, Standing)> {
        self.tables.iter().map(|(kind, table)| (*kind, table.standing.clone())).collect()
    }

    /// Whether all of a kind has been listed, and can be watched.
    pub fn is_listed(&self, kind: Kind) -> bool {
        self.tables.get(&kind).is_some_and(|table| table.standing.listed)
    }

    /// One object.
    pub fn get(&self, kind: Kind, name: &Name) -> Option<&Entry> {
        self.tables.get(&kind)?.known.get(name)
    }

    /// All of a kind.
    pub fn all(&self, kind: Kind) -> impl Iterator<Item = (&Name, &Entry)> {
        self.tables.get(&kind).into_iter().flat_map(|table| &table.known)
    }

    /// The Links, valid or not; `None` before it is known which there are.
    pub fn links(&self) -> Option<impl Iterator<Item = LinkFacts<'_>>> {
        let table = self.tables.get(&Kind::Link).filter(|table| table.standing.listed)?;
        Some(table.known.iter().map(|(name, entry)| LinkFacts {
            name: &name.1,
            facts: &entry.facts,
            problems: table.problems.get(name).map(Vec::as_slice).unwrap_or_default(),
        }))
    }

    /// What is declared; `None` while nothing may be concluded yet.
    pub fn objects(&self) -> Option<Objects> {
        if !self.tables.iter().all(|(kind, table)| table.standing.settled(*kind)) {
            return None;
        }
        let mut problems = self.problems();
        let links = self.usable_links(&mut problems);
        let claimed = self.claimed();
        let declared =
            self.all(Kind::Service).chain(self.all(Kind::EndpointSlice)).chain(self.all(Kind::ServiceExport));
        let declared = declared.chain(self.all(Kind::FailoverPolicy)).filter_map(|(_, entry)| match &entry.kept {
            Kept::Declared(object) => Some(object.as_ref()),
            _ => None,
        });
        let mut objects = Objects::of(declared.chain(links).chain(claimed.iter()));
        objects.cluster = Some(self.cluster.clone());
        objects.inbound_port = self.inbound_port;
        objects.namespaces = self.namespaces();
        objects.cluster_ips = self.addresses();
        let account = |(name, entry): (&Name, &Entry)| match &entry.kept {
            Kept::Pod(account) => Some(((name.0.parse().ok()?, name.1.clone()), account.clone())),
            _ => None,
        };
        objects.pods = self.all(Kind::Pod).filter_map(account).collect();
        objects.problems = problems;
        Some(objects)
    }

    fn namespaces(&self) -> Option<BTreeSet<Namespace>> {
        let table = self.tables.get(&Kind::Namespace).filter(|table| table.standing.listed)?;
        Some(table.known.keys().filter_map(|(_, name)| name.parse().ok()).collect())
    }

    /// Of Services that we made.
    fn addresses(&self) -> BTreeMap<ServiceKey, Vec<IpAddr>> {
        let given = |(name, entry): (&Name, &Entry)| {
            let addresses = entry.facts.addresses.clone();
            Some((ServiceKey::parse(&name.0, &name.1).ok()?, addresses)).filter(|(_, addresses)| !addresses.is_empty())
        };
        self.all(Kind::Service).filter_map(given).chain(self.former_addresses()).collect()
    }

    /// Of Services that give ServiceImports of ours their addresses and are gone, as the imports still say: whoever knows
    /// the address is to find the service there again.
    pub fn former_addresses(&self) -> BTreeMap<ServiceKey, Vec<IpAddr>> {
        let mut former = BTreeMap::new();
        for ((namespace, name), entry) in self.all(Kind::ServiceImport) {
            let Kept::Import(import) = &entry.kept else { continue };
            let Ok(key) = ServiceKey::parse(namespace, name) else { continue };
            if import.spec.ips.is_empty() {
                continue;
            }
            for derived in derived_keys(&key) {
                let name = (derived.namespace.to_string(), derived.name.to_string());
                if self.get(Kind::Service, &name).is_none() {
                    former.insert(derived, import.spec.ips.clone());
                }
            }
        }
        former
    }

    /// A Service that was never valid still has its name.
    fn claimed(&self) -> Vec<Object> {
        let claim = |(name, entry): (&Name, &Entry)| {
            let metadata = Metadata { name: name.1.clone(), namespace: name.0.parse().ok(), ..Metadata::default() };
            let service = Service {
                api_version: "v1".to_owned(),
                kind: "Service".to_owned(),
                metadata,
                spec: Default::default(),
            };
            (entry.kept == Kept::There).then_some(Object::Service(service))
        };
        self.all(Kind::Service).filter_map(claim).collect()
    }

    fn problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> =
            self.tables.values().flat_map(|table| table.problems.values().flatten().cloned()).collect();
        for (kind, table) in &self.tables {
            problems.extend(table.standing.trouble.as_ref().map(|trouble| trouble.problem(*kind)));
        }
        problems
    }

    /// Links that are not being deleted. Of two to one trust domain the older holds, whatever the order in which they were
    /// heard of.
    fn usable_links<'f>(&'f self, problems: &mut Vec<Problem>) -> Vec<&'f Object> {
        let link = |(_, entry): (&'f Name, &'f Entry)| match &entry.kept {
            Kept::Declared(object) if !entry.facts.leaving => match object.as_ref() {
                Object::Link(link) => Some((link, object.as_ref())),
                _ => None,
            },
            _ => None,
        };
        let mut links: Vec<(&Link, &Object)> = self.all(Kind::Link).filter_map(link).collect();
        links.sort_by_key(|(link, _)| (link.metadata.creation_timestamp.as_deref(), link.metadata.name.as_str()));
        let mut taken: BTreeMap<&str, &str> = BTreeMap::new();
        let mut usable = Vec::new();
        for (link, object) in links {
            let (domain, name) = (link.spec.trust_domain.as_str(), link.metadata.name.as_str());
            match taken.get(domain) {
                None => {
                    taken.insert(domain, name);
                    usable.push(object);
                }
                Some(first) => {
                    let reason = format!("trust domain {domain} is already that of Link {first}");
                    let mut problem = whole_file(&format!("Link {name}"), &reason, "keep one of the two");
                    "spec.trustDomain".clone_into(&mut problem.field);
                    problems.push(problem);
                }
            }
        }
        usable
    }

    /// The ServiceExports, with what the API server says about them.
    pub fn exports(&self) -> impl Iterator<Item = (&ServiceExport, &Facts)> {
        self.all(Kind::ServiceExport).filter_map(|(_, entry)| match &entry.kept {
            Kept::Declared(object) => match object.as_ref() {
                Object::ServiceExport(export) => Some((export, &entry.facts)),
                _ => None,
            },
            _ => None,
        })
    }
}

/// `held` is a later state of the same incarnation.
fn newer(held: &Entry, other: &Entry) -> bool {
    held.facts.uid == other.facts.uid && held.facts.version > other.facts.version
}

impl Table {
    /// What is to be kept of it; an invalid object leaves what was in force.
    fn entry(&mut self, seen: Seen) -> (Name, Entry) {
        let kept = match seen.said {
            Said::Namespace | Said::Others | Said::Nothing => Kept::There,
            Said::Pod(account) => Kept::Pod(account),
            Said::Made(object) => Kept::Made(object),
            Said::Import(import) => Kept::Import(import),
            Said::Declared(Ok(object)) => {
                self.problems.remove(&seen.name);
                Kept::Declared(object)
            }
            Said::Declared(Err(problems)) => {
                self.problems.insert(seen.name.clone(), problems);
                match self.known.get(&seen.name).map(|entry| &entry.kept) {
                    Some(Kept::Declared(before)) => Kept::Declared(before.clone()),
                    _ => Kept::There,
                }
            }
        };
        (seen.name, Entry { kept, facts: seen.facts })
    }

    fn apply(&mut self, kind: Kind, seen: Seen) -> Effect {
        let problems = self.problems.get(&seen.name).cloned();
        let (name, entry) = self.entry(seen);
        let before = self.known.get(&name);
        if before.is_some_and(|held| newer(held, &entry)) {
            return Effect::default();
        }
        let effect = Effect {
            world: concerns_world(before, Some(&entry)) || problems.as_ref() != self.problems.get(&name),
            made: concerns_apply(kind, before, Some(&entry)),
        };
        self.known.insert(name, entry);
        effect
    }

    fn delete(&mut self, kind: Kind, seen: &Seen) -> Effect {
        // A later incarnation that we made stays: this is about a former one.
        let other = |held: &Entry| !held.facts.uid.is_empty() && held.facts.uid != seen.facts.uid;
        if self.known.get(&seen.name).is_some_and(other) {
            return Effect::default();
        }
        self.problems.remove(&seen.name);
        let before = self.known.remove(&seen.name);
        Effect { world: concerns_world(before.as_ref(), None), made: concerns_apply(kind, before.as_ref(), None) }
    }

    fn listed(&mut self) -> Effect {
        self.known = self.coming.take().unwrap_or_default();
        self.problems.retain(|name, _| self.known.contains_key(name));
        self.standing = Standing { listed: true, trouble: None };
        Effect { world: true, made: true }
    }
}

/// What we made ourselves is no part of the world, but for the addresses that it was given.
fn concerns_world(before: Option<&Entry>, after: Option<&Entry>) -> bool {
    let made = |entry: Option<&Entry>| entry.is_some_and(|entry| entry.kept.made().is_some());
    let only_made = (before.is_none() || made(before)) && (after.is_none() || made(after));
    let given = |entry: Option<&Entry>| entry.map(|entry| entry.facts.addresses.clone()).unwrap_or_default();
    match (before, after) {
        _ if only_made => given(before) != given(after),
        (Some(before), Some(after)) => before.kept != after.kept || before.facts.leaving != after.facts.leaving,
        (before, after) => before.is_some() != after.is_some(),
    }
}

/// What we made, what stands in its way, and what we write statuses to.
fn concerns_apply(kind: Kind, before: Option<&Entry>, after: Option<&Entry>) -> bool {
    let watched = match kind {
        Kind::Service | Kind::EndpointSlice | Kind::Link | Kind::ServiceExport | Kind::ServiceImport => true,
        // What is made for no Link is bound to the Namespace.
        Kind::Namespace => true,
        Kind::Pod | Kind::FailoverPolicy => false,
    };
    watched && before != after
}

impl Trouble {
    /// As it stands among the problems.
    pub fn problem(&self, kind: Kind) -> Problem {
        let (reason, remedy) = match self {
            Self::Missing => {
                ("the API server does not know this kind".to_owned(), kind.remedy_when_missing().to_owned())
            }
            Self::Forbidden(said) => {
                let remedy = format!("let the mirror controller's role get, list and watch {}", kind.plural());
                (format!("may not be read: {said}"), remedy)
            }
            Self::Unreachable(said) => (format!("cannot be watched: {said}"), "see to the API server".to_owned()),
        };
        whole_file(&format!("all {}", kind.plural()), &reason, &remedy)
    }
}

#[cfg(test)]
pub(crate) mod tests;
