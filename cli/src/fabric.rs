//! Reads a fabric from a directory: each folder whose YAML holds a `kind: Cluster` document is a cluster, and the
//! directory itself may be one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use hawser_api::objects::{Cluster, Object, load};
use hawser_api::{ClusterName, SpiffeId, TrustDomain};
use serde::Deserialize;

/// One cluster as its folder declares it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Declared {
    pub(crate) name: ClusterName,
    pub(crate) trust_domain: TrustDomain,
    /// The folder, absolute.
    pub(crate) directory: PathBuf,
    pub(crate) cluster: Cluster,
}

impl Declared {
    /// The identity of a service account of this cluster.
    pub(crate) fn identity(&self, namespace: &str, account: &str) -> Result<SpiffeId> {
        Ok(SpiffeId::service_account(&self.trust_domain, namespace, account)?)
    }
}

/// All clusters by name.
pub(crate) type Fabric = BTreeMap<ClusterName, Declared>;

/// Reads the clusters under `directory`, all or the one that is asked for.
pub(crate) fn read(directory: &Path, only: Option<&ClusterName>) -> Result<Fabric> {
    let root = directory
        .canonicalize()
        .with_context(|| format!("cannot read {}\nhint: try `hawser up examples/two-clusters`", directory.display()))?;
    let mut fabric = Fabric::new();
    for folder in std::iter::once(root.clone()).chain(folders(&root)?) {
        let Some(declared) = cluster(&folder)? else { continue };
        if let Some(other) = fabric.get(&declared.name) {
            bail!(
                "{} and {} both declare the cluster {}\nhint: a cluster has one folder and one Cluster document",
                other.directory.display(),
                folder.display(),
                declared.name
            );
        }
        fabric.insert(declared.name.clone(), declared);
    }
    if let Some(name) = only {
        let known: Vec<_> = fabric.keys().map(ToString::to_string).collect();
        fabric.retain(|cluster, _| cluster == name);
        if fabric.is_empty() {
            bail!(
                "no folder in {} declares the cluster {name}\nhint: it declares: {}",
                root.display(),
                known.join(", ")
            );
        }
    }
    if fabric.is_empty() {
        bail!(
            "no YAML file in {} or in a folder of it has a document `kind: Cluster`\nhint: start from examples/two-clusters/west/cluster.yaml",
            root.display()
        );
    }
    Ok(fabric)
}

/// A value that differs when any YAML file of the fabric may differ.
pub(crate) fn fingerprint(directory: &Path) -> Vec<(PathBuf, u64, Option<std::time::SystemTime>)> {
    let folders = std::iter::once(directory.to_owned()).chain(folders(directory).unwrap_or_default());
    folders
        .flat_map(|folder| documents(&folder).unwrap_or_default())
        .filter_map(|path| {
            let about = std::fs::metadata(&path).ok()?;
            Some((path, about.len(), about.modified().ok()))
        })
        .collect()
}

fn folders(root: &Path) -> Result<Vec<PathBuf>> {
    let mut folders: Vec<_> =
        std::fs::read_dir(root)?.flatten().map(|entry| entry.path()).filter(|p| p.is_dir()).collect();
    folders.sort();
    Ok(folders)
}

fn documents(folder: &Path) -> Result<Vec<PathBuf>> {
    let yaml = |path: &PathBuf| matches!(path.extension().and_then(|e| e.to_str()), Some("yaml" | "yml"));
    let mut files: Vec<_> = std::fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| yaml(path) && path.is_file())
        .collect();
    files.sort();
    Ok(files)
}

/// The folder's Cluster document, if it has one.
fn cluster(folder: &Path) -> Result<Option<Declared>> {
    let mut found: Option<(PathBuf, Cluster)> = None;
    for path in documents(folder)? {
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for cluster in clusters_in(&path, &text)? {
            if let Some((other, _)) = &found {
                bail!(
                    "{}: a second Cluster document beside {}\nhint: a folder is one cluster",
                    path.display(),
                    other.display()
                );
            }
            found = Some((path.clone(), cluster));
        }
    }
    let Some((path, cluster)) = found else { return Ok(None) };
    let name: ClusterName =
        cluster.metadata.name.parse().with_context(|| format!("{}: metadata.name", path.display()))?;
    let trust_domain = format!("{name}.{}", cluster.spec.fabric_domain)
        .parse()
        .with_context(|| format!("{}: spec.fabricDomain", path.display()))?;
    Ok(Some(Declared { name, trust_domain, directory: folder.to_owned(), cluster }))
}

#[derive(Deserialize)]
struct Probe {
    kind: Option<String>,
}

/// The Cluster documents of one file. Documents of other kinds are the mirror controller's to judge, broken ones too.
fn clusters_in(path: &Path, text: &str) -> Result<Vec<Cluster>> {
    let mut clusters = Vec::new();
    for document in split(text) {
        let kind = serde_saphyr::from_str::<Probe>(&document).ok().and_then(|probe| probe.kind);
        if kind.as_deref() != Some("Cluster") {
            continue;
        }
        match load::parse(&path.to_string_lossy(), &document) {
            Ok(objects) => clusters.extend(objects.into_iter().filter_map(|located| match located.object {
                Object::Cluster(cluster) => Some(cluster),
                _ => None,
            })),
            Err(problems) => {
                let each = problems.iter().map(|problem| format!("{problem}\nhint: {}", problem.remedy));
                bail!(each.collect::<Vec<_>>().join("\n"));
            }
        }
    }
    Ok(clusters)
}

/// The documents of a file, each with as many empty lines before it as the file has, so that line numbers stay true.
fn split(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for (number, line) in text.lines().enumerate() {
        if line.trim_end() == "---" {
            documents.push("\n".repeat(number + 1));
        } else if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    documents.retain(|document| !document.trim().is_empty());
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEST: &str =
        "apiVersion: hawser.dev/v1alpha1\nkind: Cluster\nmetadata: {name: west}\nspec:\n  fabricDomain: acme.example\n";

    fn fabric(files: &[(&str, &str)]) -> (tempfile::TempDir, Result<Fabric>) {
        let directory = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = directory.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let fabric = read(directory.path(), None);
        (directory, fabric)
    }

    #[test]
    fn each_folder_with_a_cluster_document_is_a_cluster() {
        let service = "kind: Service\nbroken: [\n---\n".to_owned() + WEST;
        let (_keep, fabric) = fabric(&[
            ("west/services.yaml", &service),
            ("east/c.yml", &WEST.replace("west", "east")),
            ("notes/README.md", "kind: Cluster"),
        ]);
        let fabric = fabric.unwrap();
        assert_eq!(fabric.keys().map(ToString::to_string).collect::<Vec<_>>(), ["east", "west"]);
        assert_eq!(fabric[&"west".parse().unwrap()].trust_domain.as_str(), "west.acme.example");
    }

    #[test]
    fn the_directory_itself_may_be_the_cluster() {
        let (_keep, fabric) = fabric(&[("cluster.yaml", WEST)]);
        assert_eq!(fabric.unwrap().len(), 1);
    }

    #[test]
    fn a_field_that_does_not_exist_is_refused_with_file_line_and_name() {
        let text = "kind: Service\n---\n".to_owned() + WEST + "  gateway: []\n";
        let (_keep, fabric) = fabric(&[("west/cluster.yaml", &text)]);
        let error = format!("{:#}", fabric.unwrap_err());
        assert!(
            error.contains("west/cluster.yaml")
                && error.contains("gateway")
                && error.contains("cluster.yaml:8: spec.gateway"),
            "{error}"
        );
    }

    #[test]
    fn two_folders_of_one_name_and_two_processes_of_one_name_are_refused() {
        let (_keep, twice) = fabric(&[("a/c.yaml", WEST), ("b/c.yaml", WEST)]);
        assert!(format!("{:#}", twice.unwrap_err()).contains("both declare the cluster west"));
        let text =
            WEST.to_owned() + "  gateways: [{name: g, listen: \"127.0.0.1:1\"}, {name: g, listen: \"127.0.0.1:2\"}]\n";
        let (_keep, twice) = fabric(&[("a/c.yaml", &text)]);
        let error = format!("{:#}", twice.unwrap_err());
        assert!(error.contains("spec.gateways[1].name"), "{error}");
    }

    #[test]
    fn a_directory_without_clusters_says_where_to_start() {
        let (_keep, fabric) = fabric(&[("a/c.yaml", "kind: Service\n")]);
        assert!(fabric.unwrap_err().to_string().contains("hint: start from examples/two-clusters"));
    }
}
