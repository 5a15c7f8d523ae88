//! What the pages name is there: metrics, labels and the files that they link to. (Commands are checked where they are
//! defined, in `cli`; the checks of `docs/check.md` too.)

#![expect(clippy::unwrap_used, reason = "a repository that cannot be read fails the test, which is what it is for")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Each page of `docs/`, by name.
fn pages() -> Vec<(String, String)> {
    let entries = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = entries.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let mut pages: Vec<_> = pages
        .map(|path| (path.file_name().unwrap().to_string_lossy().into(), fs::read_to_string(path).unwrap()))
        .collect();
    pages.sort();
    assert!(pages.len() > 2, "the pages were not found");
    pages
}

fn sources(under: &Path, all: &mut String) {
    for entry in fs::read_dir(under).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

/// The text of every crate that ships.
fn shipped() -> String {
    let mut all = String::new();
    for krate in ["api", "tunnel", "runtime", "trust-anchor", "mirror-controller", "gateway", "proxy", "cli"] {
        sources(&root().join(krate).join("src"), &mut all);
    }
    all
}

/// Words of a page that begin so, up to a character that can be in none.
fn words(page: &str, start: &str, inside: impl Fn(char) -> bool) -> BTreeSet<String> {
    let found = page.match_indices(start).map(|(at, _)| page[at..].chars().take_while(|c| inside(*c)).collect());
    found.collect()
}

#[test]
fn every_metric_that_a_page_names_is_registered() {
    let sources = shipped();
    for (page, text) in pages() {
        for metric in words(&text, "hawser_", |c| c.is_ascii_lowercase() || c == '_') {
            // The library adds a counter's and a unit's suffix to the name that is registered.
            let bare = metric.trim_end_matches("_total");
            let names = [bare, bare.trim_end_matches("_seconds"), bare.trim_end_matches("_bytes")];
            let there = names.iter().any(|name| sources.contains(&format!("\"{name}\"")));
            assert!(there, "{page} names {metric}, and nothing registers it");
        }
    }
}

#[test]
fn every_label_and_annotation_of_ours_that_a_page_names_is_read_or_written() {
    let sources = shipped();
    for (page, text) in pages() {
        let named = words(&text, "hawser.dev/", |c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-./".contains(c));
        for label in named.iter().map(|label| label.trim_end_matches(['.', '/'])) {
            assert!(sources.contains(label), "{page} names {label}, and nothing knows it");
        }
    }
}

#[test]
fn every_link_of_a_page_leads_to_a_file() {
    for (page, text) in pages() {
        for (at, _) in text.match_indices("](") {
            let target: String = text[at + 2..].chars().take_while(|c| *c != ')').collect();
            let file = target.split('#').next().unwrap();
            let there = file.is_empty() || target.contains("://") || root().join("docs").join(file).exists();
            assert!(there, "{page} links to {target}");
        }
    }
}
