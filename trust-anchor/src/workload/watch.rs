//! Follows the cluster's folder of objects: what it says about identities, and nothing else, is kept here.
//!
//! A file is taken whole or not at all: while it is bad, what was in force from it stays in force. Nothing is kept over a
//! restart; the mirror controller, which reads the same folder, says where a file is bad.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hawser_api::objects::load::{self, FILE_MAX, Located};

use super::Workload;
use super::entries::Entries;

/// An edit takes effect within a second.
const PERIOD: Duration = Duration::from_millis(500);
/// Files that are read; a directory with more is not one of objects.
const FILES_MAX: usize = 2000;

/// Follows until dropped.
pub(super) async fn follow(workload: Arc<Workload>, directory: PathBuf) {
    let mut folder = Folder { directory, files: BTreeMap::new(), read: false };
    loop {
        let looked = tokio::task::spawn_blocking(move || {
            let changed = folder.look();
            (folder, changed)
        });
        let Ok((back, changed)) = looked.await else { return };
        folder = back;
        if changed {
            let (entries, foreign) = Entries::of(folder.in_force(), workload.own());
            for (located, error) in foreign {
                tracing::error!(file = %located.file, line = located.line, "an identity is left out: {error}");
            }
            workload.set_entries(entries);
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// A file as it was read last.
#[derive(Default)]
struct File {
    text: String,
    /// What is in force from it.
    good: Vec<Located>,
}

struct Folder {
    directory: PathBuf,
    files: BTreeMap<String, File>,
    read: bool,
}

impl Folder {
    /// Reads it all; whether that changed anything.
    fn look(&mut self) -> bool {
        let texts = match list(&self.directory) {
            Ok(texts) => texts,
            // A folder that cannot be read says nothing about what is in it.
            Err(error) => {
                tracing::debug!(%error, directory = %self.directory.display(), "cannot be read");
                return false;
            }
        };
        let before = self.files.len();
        self.files.retain(|name, _| texts.contains_key(name));
        let mut changed = self.files.len() != before || !self.read;
        self.read = true;
        for (name, text) in texts {
            if self.files.get(&name).is_none_or(|file| file.text != text) {
                changed = true;
                self.take(&name, text);
            }
        }
        changed
    }

    /// Beside all others: no hint twice, no ID of another trust domain.
    fn take(&mut self, name: &str, text: String) {
        let others: Vec<Located> =
            self.files.iter().filter(|(other, _)| *other != name).flat_map(|(_, file)| file.good.clone()).collect();
        let read = load::parse(name, &text).and_then(|objects| {
            let problems = load::together(&others, &objects);
            if problems.is_empty() { Ok(objects) } else { Err(problems) }
        });
        let file = self.files.entry(name.to_owned()).or_default();
        file.text = text;
        match read {
            Ok(objects) => file.good = objects,
            Err(problems) => {
                for problem in problems {
                    tracing::error!(
                        file = %problem.file, line = problem.line, field = %problem.field, hint = %problem.remedy,
                        "{}; identities that were in force from it stay in force", problem.reason
                    );
                }
            }
        }
    }

    fn in_force(&self) -> impl Iterator<Item = &Located> {
        self.files.values().flat_map(|file| &file.good)
    }
}

fn list(directory: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut texts = BTreeMap::new();
    for entry in std::fs::read_dir(directory)?.take(FILES_MAX) {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let wanted = (name.ends_with(".yaml") || name.ends_with(".yml")) && !name.starts_with('.');
        let small = path.metadata().is_ok_and(|file| file.is_file() && file.len() <= FILE_MAX as u64);
        if wanted
            && small
            && let Ok(text) = std::fs::read_to_string(&path)
        {
            texts.insert(name.to_owned(), text);
        }
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use hawser_api::objects::Object;

    use super::*;

    fn entry(name: &str, hint: &str) -> String {
        format!(
            "apiVersion: hawser.dev/v1alpha1\nkind: WorkloadIdentity\nmetadata: {{name: {name}}}\nspec:\n  \
             spiffeId: /{name}\n  selectors: {{uid: 1}}\n  hint: {hint}\n"
        )
    }

    #[test]
    fn a_bad_edit_keeps_what_was_in_force_and_a_file_that_is_gone_takes_its_identities_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        let mut folder = Folder { directory: directory.path().into(), files: BTreeMap::new(), read: false };
        let names = |folder: &Folder| folder.in_force().map(|l| l.object.metadata().name.clone()).collect::<Vec<_>>();
        assert!(folder.look(), "an empty folder is news the first time");
        put("a.yaml", &entry("web", "one"));
        put("b.yaml", &entry("db", "two"));
        assert!(folder.look());
        assert!(!folder.look(), "nothing changed");
        for bad in ["nonsense: [", &entry("web", "two"), &entry("web", "one").replace("uid: 1", "")] {
            put("a.yaml", bad);
            folder.look();
            assert_eq!(names(&folder), ["web", "db"], "{bad}");
            let hints = folder.in_force().filter_map(|l| match &l.object {
                Object::WorkloadIdentity(entry) => entry.spec.hint.as_deref(),
                _ => None,
            });
            assert_eq!(hints.collect::<Vec<_>>(), ["one", "two"], "{bad}");
        }
        put("a.yaml", &entry("site", "three"));
        assert!(folder.look());
        assert_eq!(names(&folder), ["site", "db"]);
        std::fs::remove_file(directory.path().join("b.yaml")).unwrap();
        assert!(folder.look());
        assert_eq!(names(&folder), ["site"]);
    }
}
