//! Every example's objects are in force as they stand, and do what they say.

#![allow(clippy::unwrap_used, clippy::panic, reason = "used by tests only, where a panic is the report")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hawser_api::TrustDomain;
use hawser_api::objects::load::{self, Located};
use hawser_mirror_controller::plan::plan;
use hawser_mirror_controller::world::{Objects, World};

fn directories(of: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(of).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    found.sort();
    found
}

fn objects(directory: &Path) -> Vec<Located> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let parsed = load::parse(&path.display().to_string(), &std::fs::read_to_string(&path).unwrap());
        let parsed = parsed.unwrap_or_else(|problems| panic!("{problems:#?}"));
        assert_eq!(load::together(&all, &parsed), []);
        all.extend(parsed);
    }
    all
}

#[test]
fn every_example_is_in_force_without_problems_or_warnings() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut seen = 0;
    for example in directories(&examples) {
        let mut domains: BTreeMap<String, TrustDomain> = BTreeMap::new();
        let mut linked = Vec::new();
        for directory in directories(&example) {
            let located = objects(&directory);
            if located.is_empty() {
                continue;
            }
            let objects = Objects::new(&located);
            let cluster = objects.cluster.clone().unwrap_or_else(|| panic!("{} has no Cluster", directory.display()));
            let domain = format!("{}.{}", cluster.metadata.name, cluster.spec.fabric_domain);
            domains.insert(cluster.metadata.name.clone(), domain.parse().unwrap());
            linked.extend(objects.links.iter().map(|(name, link)| (name.to_string(), link.spec.trust_domain.clone())));
            let mut world = World::new(cluster.metadata.name.parse().unwrap(), domain.parse().unwrap());
            world.peers = objects.links.keys().map(|link| (link.clone(), Arc::default())).collect();
            world.objects = Some(Arc::new(objects));
            let warnings = plan(&world).unwrap().statuses.objects.warnings;
            // A policy for a service that only peers will offer is right, and cannot be known to be from here.
            let warnings: Vec<_> = warnings.iter().filter(|w| !w.object.starts_with("FailoverPolicy")).collect();
            assert!(warnings.is_empty(), "{}: {warnings:#?}", directory.display());
            seen += 1;
        }
        for (name, domain) in linked {
            assert_eq!(domains.get(&name), Some(&domain), "{}: the Link {name}", example.display());
        }
    }
    assert!(seen >= 2, "no example was found");
}
