//! Links that `hawser link` made: a folder beside the user's own, a file each. What the user declares goes before them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use hawser_api::objects::Object;
use hawser_api::objects::load::{Located, together};
use hawser_api::{ClusterName, TrustDomain};

use super::{list, parse};

/// The folder as it was read last.
#[derive(Debug, Default)]
pub(super) struct Linked {
    directory: Option<PathBuf>,
    seen: BTreeMap<String, String>,
    links: BTreeMap<String, Vec<Located>>,
    /// Links that were left out, so that each is told once.
    left_out: Vec<String>,
}

impl Linked {
    pub(super) fn new(directory: Option<PathBuf>) -> Self {
        Self { directory, ..Self::default() }
    }

    /// Reads it all; whether anything changed. A file that cannot be used leaves what was in force from it.
    pub(super) fn read(&mut self, own: &(ClusterName, TrustDomain)) -> bool {
        let Some(directory) = &self.directory else { return false };
        let seen = match list(directory) {
            Ok((texts, _, _)) => texts,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            // A folder that cannot be read says nothing about what is in it.
            Err(_) => return false,
        };
        if seen == self.seen {
            return false;
        }
        self.links.retain(|file, _| seen.contains_key(file));
        for (file, text) in seen.iter().filter(|(file, text)| self.seen.get(*file) != Some(*text)) {
            match parse(&format!("links/{file}"), text, own) {
                Ok(objects) if objects.iter().all(|located| matches!(located.object, Object::Link(_))) => {
                    self.links.insert(file.clone(), objects);
                }
                Ok(_) => tracing::error!(file, "holds something else than Links: it is not used"),
                Err(problems) => {
                    let reason = problems.first().map(ToString::to_string).unwrap_or_default();
                    tracing::error!(reason, "a Link that was made by token cannot be used");
                }
            }
        }
        self.seen = seen;
        true
    }

    /// The Links that can stand beside what the user declares.
    pub(super) fn beside(&mut self, declared: &[Located]) -> Vec<Located> {
        let (mut links, mut left_out): (Vec<Located>, Vec<String>) = Default::default();
        for located in self.links.values().flatten() {
            let taken = together(&[declared, &links].concat(), std::slice::from_ref(located));
            match taken.first() {
                None => links.push(located.clone()),
                Some(problem) => left_out.push(problem.to_string()),
            }
        }
        for reason in left_out.iter().filter(|reason| !self.left_out.contains(reason)) {
            tracing::warn!(reason, "a Link that was made by token is left out: the cluster's folder goes before it");
        }
        self.left_out = left_out;
        links
    }
}
