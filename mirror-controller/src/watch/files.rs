//! The user's objects as files: read as a whole, whenever something changed and every two seconds anyway.
//!
//! Links that `hawser link` made lie in a folder of their own, and are read beside the user's: see `linked`.
//!
//! A file is taken whole or not at all: while it is bad, what was in force from it stays in force, also over a restart.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hawser_api::objects::Object;
use hawser_api::objects::load::{self, FILE_MAX, Located, Problem};
use hawser_api::{ClusterName, TrustDomain};
use hawser_runtime::clock;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::not_ourselves;
use crate::apply::files::replace;
use crate::world::{Objects, Store};

mod linked;

use linked::Linked;

/// Notifications may be lost (a queue that overflows, a file system that has none): then this is how long it takes.
const POLL: Duration = Duration::from_secs(2);
/// Editors write in several steps: what follows within this time is read together.
const QUIET: Duration = Duration::from_millis(50);
/// A directory that never becomes quiet is read after this time all the same.
const BUSY: Duration = Duration::from_millis(300);
/// Files that are read; a directory with more is not one of objects.
const FILES_MAX: usize = 2000;

/// Where objects lie.
#[derive(Debug, Clone)]
pub struct Places {
    /// The user's.
    pub objects: PathBuf,
    /// Links that `hawser link` made, if any can be.
    pub links: Option<PathBuf>,
    /// The user's as they last were good.
    pub last_good: PathBuf,
}

/// Runs until dropped.
pub async fn run(places: Places, store: Store, report: impl Fn(&Objects)) {
    let directory = places.objects.clone();
    let stirred = Arc::new(Notify::new());
    let mut watcher = None;
    let world = store.now();
    let mut reader = Reader::new(&places, (world.cluster.clone(), world.domain.clone()));
    loop {
        // Made again when the directory was not there, or was replaced.
        if watcher.is_none() || reader.lost {
            watcher = watch(&directory, places.links.as_deref(), stirred.clone());
        }
        let read = tokio::task::spawn_blocking(move || {
            let changed = reader.read();
            (reader, changed)
        });
        let Ok((read, changed)) = read.await else { return };
        reader = read;
        if let Some((objects, at_ms)) = changed {
            report(&objects);
            store.update(at_ms, |world| {
                world.objects = Some(Arc::new(objects));
                true
            });
        }
        if tokio::time::timeout(POLL, stirred.notified()).await.is_ok() {
            let quiet = async { while tokio::time::timeout(QUIET, stirred.notified()).await.is_ok() {} };
            let _ = tokio::time::timeout(BUSY, quiet).await;
        }
    }
}

fn watch(directory: &Path, links: Option<&Path>, stirred: Arc<Notify>) -> Option<RecommendedWatcher> {
    let tell = move |_event: notify::Result<notify::Event>| stirred.notify_one();
    let watcher = notify::recommended_watcher(tell).and_then(|mut watcher| {
        watcher.watch(directory, RecursiveMode::NonRecursive)?;
        // Made with the first Link; until then it is polled.
        if let Some(links) = links.filter(|links| links.is_dir()) {
            watcher.watch(links, RecursiveMode::NonRecursive)?;
        }
        Ok(watcher)
    });
    watcher.inspect_err(|error| tracing::debug!(%error, "no notifications of changes; the directory is polled")).ok()
}

/// A file that is in force.
#[derive(Debug, Clone)]
struct Good {
    text: String,
    objects: Vec<Located>,
}

/// The directory as it was read last.
struct Reader {
    directory: PathBuf,
    last_good: PathBuf,
    seen: BTreeMap<String, String>,
    good: BTreeMap<String, Good>,
    linked: Linked,
    problems: Vec<Problem>,
    first: bool,
    lost: bool,
    // This cluster's name and trust domain, which no Link may bear.
    own: (ClusterName, TrustDomain),
}

impl Reader {
    fn new(places: &Places, own: (ClusterName, TrustDomain)) -> Self {
        let (directory, last_good) = (places.objects.clone(), places.last_good.clone());
        let good = recall(&last_good, &own);
        let (seen, problems) = (BTreeMap::new(), Vec::new());
        let linked = Linked::new(places.links.clone());
        Self { directory, last_good, seen, good, linked, problems, first: true, lost: false, own }
    }

    /// Reads it all; what is in force now, if that or the problems with it changed, and since when.
    fn read(&mut self) -> Option<(Objects, i64)> {
        let linked = self.linked.read(&self.own);
        let listed = list(&self.directory);
        let was_lost = std::mem::replace(&mut self.lost, listed.is_err());
        let (seen, problems, modified) = match listed {
            Ok(listing) => listing,
            Err(error) => {
                // A directory that cannot be read says nothing about what is in it: all stays in force.
                let name = self.directory.display().to_string();
                let reason = format!("the directory cannot be read: {error}");
                let problem = load::whole_file(&name, &reason, "make it, or correct `objects` in the configuration");
                return self.settle(vec![problem], linked || (self.first && !self.good.is_empty()), None);
            }
        };
        if seen == self.seen && !self.first && !was_lost && problems.is_empty() {
            let unchanged = self.problems.clone();
            return self.settle(unchanged, linked, None);
        }
        let before: BTreeMap<String, String> =
            self.good.iter().map(|(f, good)| (f.clone(), good.text.clone())).collect();
        let problems = evaluate(&mut self.good, &seen, problems, &self.own);
        self.seen = seen;
        let after: BTreeMap<String, String> =
            self.good.iter().map(|(f, good)| (f.clone(), good.text.clone())).collect();
        if let Err(error) = remember(&self.last_good, &before, &after, self.first) {
            tracing::warn!(%error, "the last good files cannot be kept; a restart would read only what is good then");
        }
        let changed = self.first || linked || before != after;
        self.settle(problems, changed, modified)
    }

    fn settle(
        &mut self,
        problems: Vec<Problem>,
        changed: bool,
        modified: Option<SystemTime>,
    ) -> Option<(Objects, i64)> {
        let news = problems != self.problems;
        if news {
            problems.iter().for_each(log);
            self.problems = problems;
        }
        if !changed && !news {
            return None;
        }
        if changed {
            self.first = false;
        }
        let declared: Vec<Located> = self.good.values().flat_map(|good| good.objects.clone()).collect();
        let linked = self.linked.beside(&declared);
        let mut objects = Objects::new(declared.iter().chain(&linked));
        objects.problems.clone_from(&self.problems);
        // A file that was moved here keeps an old time of change: only a recent one says when the change happened.
        let now = clock::now();
        let recent = modified.filter(|t| now.duration_since(*t).is_ok_and(|age| age < Duration::from_secs(5)));
        Some((objects, clock::millis(recent.unwrap_or(now))))
    }
}

fn log(problem: &Problem) {
    tracing::error!(file = %problem.file, line = problem.line, field = %problem.field, hint = %problem.remedy,
        "{}; what was in force from it stays in force", problem.reason);
}

type Listing = (BTreeMap<String, String>, Vec<Problem>, Option<SystemTime>);

/// The texts of all object files, problems of those that cannot be read, and the latest time of change.
fn list(directory: &Path) -> io::Result<Listing> {
    let (mut texts, mut problems, mut modified) = (BTreeMap::new(), Vec::new(), None);
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let wanted = (name.ends_with(".yaml") || name.ends_with(".yml")) && !name.starts_with('.');
        if !wanted || !path.is_file() {
            continue;
        }
        if texts.len() >= FILES_MAX {
            let reason = format!("is one of more than {FILES_MAX} files");
            problems.push(load::whole_file(name, &reason, "put several objects into one file"));
            break;
        }
        match read(&path) {
            Ok((text, time)) => {
                texts.insert(name.to_owned(), text);
                modified = modified.max(time);
            }
            // Gone between the listing and the reading.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                problems.push(load::whole_file(name, &format!("cannot be read: {error}"), "make it readable"))
            }
        }
    }
    Ok((texts, problems, modified))
}

fn read(path: &Path) -> io::Result<(String, Option<SystemTime>)> {
    let metadata = std::fs::metadata(path)?;
    if metadata.len() > FILE_MAX as u64 {
        return Err(io::Error::other(format!("it is longer than {FILE_MAX} bytes")));
    }
    Ok((std::fs::read_to_string(path)?, metadata.modified().ok()))
}

/// Pure: brings what is in force up to what was seen; returns what is wrong. Files that are in force unchanged come
/// first, so that a new file never pushes out what an old one declared.
fn evaluate(
    good: &mut BTreeMap<String, Good>,
    seen: &BTreeMap<String, String>,
    mut problems: Vec<Problem>,
    own: &(ClusterName, TrustDomain),
) -> Vec<Problem> {
    let unreadable: Vec<String> = problems.iter().map(|problem| problem.file.clone()).collect();
    good.retain(|file, _| seen.contains_key(file) || unreadable.contains(file));
    let changed: Vec<(&String, &String)> =
        seen.iter().filter(|(file, text)| good.get(*file).is_none_or(|good| good.text != **text)).collect();
    let mut parsed = Vec::new();
    for (file, text) in changed {
        match parse(file, text, own) {
            Ok(objects) => parsed.push((file, Good { text: text.clone(), objects })),
            Err(broken) => problems.extend(broken),
        }
    }
    // An object that moves from one changed file to another is in both or in neither for a moment: files are tried
    // again as long as one of them helps another.
    loop {
        let waiting = parsed.len();
        let (mut refused, mut left) = (Vec::new(), Vec::new());
        for (file, candidate) in parsed {
            let others: Vec<Located> =
                good.iter().filter(|(other, _)| *other != file).flat_map(|(_, g)| g.objects.clone()).collect();
            let conflicts = load::together(&others, &candidate.objects);
            if conflicts.is_empty() {
                good.insert(file.clone(), candidate);
            } else {
                refused.extend(conflicts);
                left.push((file, candidate));
            }
        }
        if left.is_empty() || left.len() == waiting {
            problems.extend(refused);
            break;
        }
        parsed = left;
    }
    problems.sort();
    problems
}

fn parse(file: &str, text: &str, own: &(ClusterName, TrustDomain)) -> Result<Vec<Located>, Vec<Problem>> {
    let objects = load::parse(file, text)?;
    let links = objects.iter().filter_map(|located| match &located.object {
        Object::Link(link) => Some(not_ourselves(link, own, (file, located.line))),
        _ => None,
    });
    let problems: Vec<Problem> = links.flatten().collect();
    if problems.is_empty() { Ok(objects) } else { Err(problems) }
}

/// The last good files as a former run kept them.
fn recall(directory: &Path, own: &(ClusterName, TrustDomain)) -> BTreeMap<String, Good> {
    let texts = list(directory).map(|(texts, _, _)| texts).unwrap_or_default();
    let parse = |(file, text): (String, String)| {
        let objects = parse(&file, &text, own).ok()?;
        Some((file, Good { text, objects }))
    };
    texts.into_iter().filter_map(parse).collect()
}

fn remember(
    directory: &Path,
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
    all: bool,
) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for file in before.keys().filter(|file| !after.contains_key(*file)) {
        let _ = std::fs::remove_file(directory.join(file));
    }
    for (file, text) in after.iter().filter(|(file, text)| all || before.get(*file) != Some(*text)) {
        replace(&directory.join(file), text.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
