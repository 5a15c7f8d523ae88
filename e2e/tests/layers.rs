//! Holds the architecture: which crate may use which, where time, tasks and `unsafe` may appear, how long a file may
//! be, and that ARCHITECTURE.md names only paths that exist.

#![expect(clippy::unwrap_used, reason = "a repository that cannot be read fails the test, which is what it is for")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Names in a manifest's `[dependencies]` section.
fn dependencies(krate: &str) -> Vec<String> {
    let manifest = fs::read_to_string(root().join(krate).join("Cargo.toml")).unwrap();
    let mut inside = false;
    let mut names = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line == "[dependencies]";
            continue;
        }
        if inside && let Some(end) = line.find(['.', ' ', '=']) {
            names.push(line[..end].to_owned());
        }
    }
    names
}

fn sources(under: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(under).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

const CRATES: &[&str] = &["api", "tunnel", "runtime", "trust-anchor", "mirror-controller", "gateway", "proxy", "cli"];

/// Every source file of the crates that ship, relative to the root, with its text up to its inline tests.
fn shipped() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for krate in CRATES {
        for path in sources(&root().join(krate).join("src")) {
            let text = fs::read_to_string(&path).unwrap();
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            if name.ends_with("/tests.rs") || name.contains("/tests/") || name.ends_with("testing.rs") {
                continue;
            }
            let code = text.split("\n#[cfg(test)]\nmod ").next().unwrap().to_owned();
            files.push((name, code));
        }
    }
    assert!(files.len() > 40, "the sources were not found");
    files
}

#[test]
fn dependencies_point_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("api", &[][..]),
        ("tunnel", &["hawser-api"][..]),
        ("runtime", &["hawser-api"][..]),
        ("trust-anchor", &["hawser-api", "hawser-tunnel", "hawser-runtime"][..]),
        ("mirror-controller", &["hawser-api", "hawser-tunnel", "hawser-runtime"][..]),
        ("gateway", &["hawser-api", "hawser-tunnel", "hawser-runtime"][..]),
        ("proxy", &["hawser-api", "hawser-tunnel", "hawser-runtime"][..]),
    ]);
    for (krate, allowed) in allowed {
        for name in dependencies(krate).iter().filter(|name| name.starts_with("hawser-")) {
            assert!(allowed.contains(&name.as_str()), "{krate} must not depend on {name}");
        }
    }
}

#[test]
fn rustls_and_quinn_enter_through_the_tunnel_alone() {
    for krate in CRATES.iter().filter(|krate| **krate != "tunnel") {
        for name in dependencies(krate) {
            let forbidden = matches!(name.as_str(), "rustls" | "tokio-rustls" | "quinn" | "rustls-webpki" | "ring");
            assert!(!forbidden, "{krate} must not depend on {name}: TLS and QUIC enter through tunnel");
        }
    }
}

#[test]
fn kubernetes_stays_out_of_the_data_plane() {
    for krate in ["tunnel", "runtime", "gateway", "proxy"] {
        for name in dependencies(krate) {
            assert!(!name.starts_with("kube") && name != "k8s-openapi", "{krate} must not depend on {name}");
        }
    }
}

#[test]
fn a_file_is_at_most_600_lines_without_its_inline_tests() {
    let long: Vec<String> = shipped()
        .into_iter()
        .map(|(name, code)| (name, code.lines().count()))
        .filter(|(_, lines)| *lines > 600)
        .map(|(name, lines)| format!("{name}: {lines}"))
        .collect();
    assert!(long.is_empty(), "split by step of the story: {long:?}");
}

#[test]
fn a_file_of_tests_is_at_most_600_lines() {
    let mut seen = 0;
    let mut long = Vec::new();
    for krate in CRATES.iter().chain(&["e2e", "bench"]) {
        for path in sources(&root().join(krate)) {
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            let of_tests = name.contains("/tests/") || name.ends_with("/tests.rs") || name.starts_with("e2e/");
            if !of_tests || name.contains("/.cache/") {
                continue;
            }
            seen += 1;
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            if lines > 600 {
                long.push(format!("{name}: {lines}"));
            }
        }
    }
    assert!(seen > 60, "the tests were not found: {seen}");
    assert!(long.is_empty(), "derive rows of one shape from a table, or split by what they hold: {long:?}");
}

#[test]
fn the_median_file_is_under_200_lines() {
    let mut lengths: Vec<usize> = shipped().iter().map(|(_, code)| code.lines().count()).collect();
    lengths.sort_unstable();
    let median = lengths[lengths.len() / 2];
    assert!(median < 200, "the median file has {median} lines");
}

/// Fails for every shipped file that contains `what`, except where `may` says.
fn only_in(what: &[&str], may: impl Fn(&str) -> bool, rule: &str) {
    let offenders: Vec<String> = shipped()
        .into_iter()
        .filter(|(name, code)| !may(name) && code.lines().any(|line| uses(line, what)))
        .map(|(name, _)| name)
        .collect();
    assert!(offenders.is_empty(), "{rule}: {offenders:?}");
}

fn uses(line: &str, what: &[&str]) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    what.iter().any(|what| code.contains(what))
}

#[test]
fn the_time_of_day_is_read_in_the_runtime_alone() {
    only_in(
        &["SystemTime::now", "Timestamp::now", "UtcDateTime::now"],
        |name| name == "runtime/src/clock.rs",
        "take `now` as an argument",
    );
}

#[test]
fn tasks_are_spawned_where_they_have_an_owner() {
    let may = |name: &str| {
        name.starts_with("runtime/") || name.starts_with("cli/") || name.contains("listen") || name.contains("watch")
    };
    only_in(
        &["tokio::spawn(", "task::spawn("],
        may,
        "spawn through runtime's Process or a JoinSet that somebody holds",
    );
}

#[test]
fn unsafe_code_is_confined() {
    let may = |name: &str| name == "tunnel/src/splice.rs" || name.starts_with("tunnel/src/splice/");
    only_in(&["unsafe {", "unsafe fn", "unsafe impl"], may, "unsafe only in tunnel/splice");
}

#[test]
fn the_environment_is_read_at_the_edge() {
    let may = |name: &str| name.starts_with("runtime/") || name.starts_with("cli/");
    only_in(&["env::var"], may, "read the environment in runtime or cli");
}

#[test]
fn the_threat_table_names_only_tests_that_exist() {
    let page = fs::read_to_string(root().join("docs/trust.md")).unwrap();
    let mut seen = 0;
    for (at, _) in page.match_indices(".rs`: ") {
        let path = page[..at].rsplit('`').next().unwrap();
        let name = page[at + 6..].split([';', ' ']).next().unwrap();
        let source = fs::read_to_string(root().join(format!("{path}.rs"))).unwrap_or_default();
        assert!(source.contains(&format!("fn {name}(")), "docs/trust.md names {name} in {path}.rs, where it is not");
        seen += 1;
    }
    assert!(seen > 20, "docs/trust.md names hardly any test");
}

#[test]
fn architecture_names_only_what_exists() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let mut seen = 0;
    for (at, _) in page.match_indices('`') {
        let rest = &page[at + 1..];
        let Some(end) = rest.find('`') else { continue };
        let path = &rest[..end];
        let is_path = path.contains('/')
            && (path.ends_with(".rs") || path.ends_with('/'))
            && !path.contains([' ', '{', '*', ':']);
        if is_path {
            seen += 1;
            assert!(root().join(path).exists(), "ARCHITECTURE.md names {path}, which does not exist");
        }
    }
    assert!(seen > 20, "ARCHITECTURE.md names hardly any path");
}
