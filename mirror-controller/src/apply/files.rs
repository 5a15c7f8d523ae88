//! Writes mirrors, imports and statuses as files: under another name, then moved. What is right already is not written again,
//! and nothing is removed or overwritten that does not bear our mark.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use hawser_api::objects::EndpointSlice;
use hawser_api::objects::import::{ServiceImport, ServiceImportStatus};
use hawser_api::{ServiceKey, labels};
use serde::Serialize;
use serde_json::json;

use crate::plan::Plan;
use crate::plan::imports::ImportObject;
use crate::plan::mirrors::MirrorObject;

/// First line of every mirror file: the owner's mark.
const MARK: &str =
    "# Made by hawser's mirror controller, which undoes edits. Do not copy this line into a file of yours.\n";

/// A directory that this process writes into.
#[derive(Debug)]
pub struct Files {
    root: PathBuf,
    // What is on disk as far as this process wrote or read it.
    known: BTreeMap<PathBuf, String>,
}

/// What one application did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Files written.
    pub written: usize,
    /// Files removed.
    pub removed: usize,
    /// Files that are in the way and not ours.
    pub foreign: Vec<PathBuf>,
}

impl Files {
    /// Nothing is touched before the first [`apply`](Self::apply).
    pub fn new(root: PathBuf) -> Self {
        Self { root, known: BTreeMap::new() }
    }

    /// Makes the directory say what the plan says. `thorough` reads everything that is there first, and so repairs what
    /// others changed; otherwise what this process wrote is taken to be there still.
    pub fn apply(&mut self, plan: &Plan, thorough: bool) -> io::Result<Applied> {
        let [mirrors, imports, status] = ["mirrors", "imports", "status"].map(|name| self.root.join(name));
        if thorough {
            self.known.clear();
        }
        for directory in [&mirrors, &imports, &status] {
            std::fs::create_dir_all(directory)?;
            if thorough {
                self.known.extend(read_all(directory)?);
            }
        }
        let mut applied = Applied::default();
        let path = |directory: &Path, key: &ServiceKey| directory.join(format!("{}.{}.yaml", key.namespace, key.name));
        let of = |(key, object): (&ServiceKey, &MirrorObject)| Ok((path(&mirrors, key), render(object)?));
        let wanted = plan.mirrors.iter().map(of).collect::<io::Result<_>>()?;
        self.write_objects(wanted, &mirrors, &mut applied)?;
        let of = |(key, object): (&ServiceKey, &ImportObject)| Ok((path(&imports, key), render_import(object)?));
        let wanted = plan.imports.iter().map(of).collect::<io::Result<_>>()?;
        self.write_objects(wanted, &imports, &mut applied)?;
        for (name, text) in statuses(plan)? {
            let path = status.join(name);
            if self.known.get(&path) != Some(&text) {
                self.write(&path, text)?;
                applied.written += 1;
            }
        }
        Ok(applied)
    }

    /// Makes the files of ours in this directory those that are wanted.
    fn write_objects(
        &mut self,
        wanted: BTreeMap<PathBuf, String>,
        directory: &Path,
        applied: &mut Applied,
    ) -> io::Result<()> {
        let ours = |text: &String| text.starts_with(MARK);
        let stale = self.known.iter().filter(|(path, text)| path.starts_with(directory) && ours(text));
        let stale: Vec<PathBuf> =
            stale.filter(|(path, _)| !wanted.contains_key(*path)).map(|(p, _)| p.clone()).collect();
        for path in stale {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            self.known.remove(&path);
            applied.removed += 1;
        }
        for (path, text) in wanted {
            match self.known.get(&path) {
                Some(known) if *known == text => {}
                Some(known) if !ours(known) => applied.foreign.push(path),
                _ => {
                    self.write(&path, text)?;
                    applied.written += 1;
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, path: &Path, text: String) -> io::Result<()> {
        replace(path, text.as_bytes())?;
        self.known.insert(path.to_owned(), text);
        Ok(())
    }
}

/// Writes a file so that a reader sees the old or the new, and never a part.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let fresh = path.with_file_name(format!(".{name}.new"));
    std::fs::write(&fresh, content)?;
    std::fs::rename(&fresh, path)
}

fn read_all(directory: &Path) -> io::Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            // What a crash left behind on the way to its place.
            let _ = std::fs::remove_file(&path);
            continue;
        }
        // What is no text is not ours, and is in nobody's way unless it bears a mirror's name.
        let text = std::fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        found.insert(path, text.unwrap_or_default());
    }
    Ok(found)
}

fn render(object: &MirrorObject) -> io::Result<String> {
    debug_assert!(object.service.metadata.labels.contains_key(labels::MANAGED_BY));
    documents(yaml(&object.service)?, &object.slices)
}

/// A ServiceImport with its status, as an API server would show it.
fn render_import(object: &ImportObject) -> io::Result<String> {
    #[derive(Serialize)]
    struct Shown<'i> {
        #[serde(flatten)]
        import: &'i ServiceImport,
        status: &'i ServiceImportStatus,
    }
    documents(yaml(&Shown { import: &object.import, status: &object.status })?, &object.slices)
}

fn documents(first: String, slices: &[EndpointSlice]) -> io::Result<String> {
    let mut text = MARK.to_owned();
    text.push_str(&first);
    for slice in slices {
        text.push_str("---\n");
        text.push_str(&yaml(slice)?);
    }
    Ok(text)
}

fn yaml(value: &impl Serialize) -> io::Result<String> {
    serde_saphyr::to_string(value).map_err(io::Error::other)
}

fn statuses(plan: &Plan) -> io::Result<[(&'static str, String); 5]> {
    let statuses = &plan.statuses;
    Ok([
        ("links.json", pretty(&json!({ "links": statuses.links }))?),
        ("exports.json", pretty(&json!({ "exports": statuses.exports }))?),
        ("mirrors.json", pretty(&json!({ "mirrors": statuses.mirrors }))?),
        ("listeners.json", pretty(&json!({ "listeners": statuses.listeners }))?),
        ("objects.json", pretty(&json!(statuses.objects))?),
    ])
}

fn pretty(value: &serde_json::Value) -> io::Result<String> {
    let mut text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::plan;
    use crate::plan::tests::{WEST, offer, offered, world};

    #[test]
    fn a_second_application_writes_nothing_and_a_thorough_one_repairs() {
        let root = tempfile::tempdir().unwrap();
        let mut files = Files::new(root.path().to_owned());
        let mut world = world(WEST);
        offer(&mut world, "east", vec![offered("east", "a", 1, false), offered("east", "b", 1, false)]);
        let full = plan(&world).unwrap();
        assert_eq!(files.apply(&full, true).unwrap().written, 2 + 2 + 5);
        assert_eq!(files.apply(&full, false).unwrap(), Applied::default());
        assert_eq!(Files::new(root.path().to_owned()).apply(&full, true).unwrap(), Applied::default());
        let mirror = root.path().join("mirrors/shop.a-east.yaml");
        std::fs::write(&mirror, format!("{MARK}edited: true\n")).unwrap();
        assert_eq!(files.apply(&full, true).unwrap().written, 1);
        let text = std::fs::read_to_string(&mirror).unwrap();
        let read: Vec<_> = text.split("---\n").map(serde_saphyr::from_str::<serde_json::Value>).collect();
        assert_eq!(read.len(), 3);
        assert_eq!(read[0].as_ref().unwrap()["metadata"]["name"], "a-east");
        assert_eq!(read[1].as_ref().unwrap()["endpoints"][0]["addresses"][0], "127.0.0.1");
        offer(&mut world, "east", vec![offered("east", "b", 1, false)]);
        let import = root.path().join("imports/shop.a.yaml");
        let text = std::fs::read_to_string(&import).unwrap();
        let read: serde_json::Value = serde_saphyr::from_str(text.split("---\n").next().unwrap()).unwrap();
        assert_eq!(
            (read["kind"].as_str(), read["spec"]["type"].as_str()),
            (Some("ServiceImport"), Some("ClusterSetIP"))
        );
        assert_eq!(read["status"]["clusters"][0]["cluster"], "east");
        assert_eq!(files.apply(&plan(&world).unwrap(), false).unwrap().removed, 2);
        assert!(!mirror.exists() && !import.exists());
    }

    #[test]
    fn what_we_did_not_make_is_neither_overwritten_nor_removed() {
        let root = tempfile::tempdir().unwrap();
        let mirrors = root.path().join("mirrors");
        std::fs::create_dir(&mirrors).unwrap();
        let (mine, other) = (mirrors.join("shop.a-east.yaml"), mirrors.join("other.yaml"));
        std::fs::write(&mine, "mine: true\n").unwrap();
        std::fs::write(&other, "other: true\n").unwrap();
        let mut world = world(WEST);
        offer(&mut world, "east", vec![offered("east", "a", 1, false)]);
        let mut files = Files::new(root.path().to_owned());
        let applied = files.apply(&plan(&world).unwrap(), true).unwrap();
        assert_eq!(applied.foreign, std::slice::from_ref(&mine));
        offer(&mut world, "east", vec![]);
        // The import is ours, and alone goes.
        assert_eq!(files.apply(&plan(&world).unwrap(), true).unwrap().removed, 1);
        assert_eq!(std::fs::read_to_string(mine).unwrap(), "mine: true\n");
        assert_eq!(std::fs::read_to_string(other).unwrap(), "other: true\n");
    }
}
