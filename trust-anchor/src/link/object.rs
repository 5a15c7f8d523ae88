//! Links as files: read from a cluster's folders, written and taken away in its `links` folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hawser_api::bundle::Bundle;
use hawser_api::objects::link::{BundleUpdates, Import, Link, LinkSpec, Transport};
use hawser_api::objects::{GROUP_VERSION, Metadata, Object, load};
use hawser_api::{ClusterName, Code, Refusal};
use hawser_runtime::file;

use super::LinksConfig;
use super::side::Side;

/// A Link and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct LinkFile {
    /// The file.
    pub path: PathBuf,
    /// The Link.
    pub link: Link,
}

fn failed(what: &Path, error: &io::Error) -> Refusal {
    let message = format!("{}: {error}", what.display());
    Refusal::new(Code::NotReady, message, "see whether the disk is full, and who may write there")
}

/// All Links of a folder; a file that cannot be used declares none.
pub fn linked(directory: &Path) -> Result<Vec<LinkFile>, Refusal> {
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|e| failed(directory, &e))?,
    };
    let mut links = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| failed(directory, &e))?.path();
        if !path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            continue;
        }
        let text = fs::read_to_string(&path).map_err(|e| failed(&path, &e))?;
        for located in load::parse(&path.to_string_lossy(), &text).unwrap_or_default() {
            if let Object::Link(link) = located.object {
                links.push(LinkFile { path: path.clone(), link });
            }
        }
    }
    links.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(links)
}

/// The bundles of all peers that are linked.
pub(super) fn bundles(links: &LinksConfig, except: &ClusterName) -> Result<Vec<(ClusterName, Bundle)>, Refusal> {
    let all = linked(&links.directory)?.into_iter().chain(linked(&links.objects)?);
    let bundle = |file: LinkFile| {
        let name: ClusterName = file.link.metadata.name.parse().ok()?;
        let bundle = Bundle::parse(file.link.spec.bundle.as_deref()?).ok()?;
        (name != *except).then_some((name, bundle))
    };
    Ok(all.filter_map(bundle).collect())
}

/// The Link to `side` under this name.
pub(super) fn make(name: &ClusterName, side: &Side) -> Link {
    Link {
        api_version: GROUP_VERSION.to_owned(),
        kind: "Link".to_owned(),
        metadata: Metadata { name: name.to_string(), ..Metadata::default() },
        spec: LinkSpec {
            trust_domain: side.trust_domain.clone(),
            bundle: side.bundle.clone(),
            bundle_updates: BundleUpdates::Follow,
            bundle_endpoint: None,
            gateways: side.gateways.clone(),
            transport: Transport::Auto,
            region: side.region.clone(),
            import: Import::default(),
        },
    }
}

/// Refuses a Link whose name or trust domain another one has. The same Link again is no conflict.
pub(super) fn conflicts(links: &LinksConfig, link: &Link) -> Result<(), Refusal> {
    for other in linked(&links.objects)?.into_iter().chain(linked(&links.directory)?) {
        let same_name = other.link.metadata.name == link.metadata.name;
        let same_domain = other.link.spec.trust_domain == link.spec.trust_domain;
        if (same_name || same_domain) && other.link != *link {
            let by = other.path.display();
            let message =
                format!("{} ({}) is linked already, by {by}", other.link.metadata.name, other.link.spec.trust_domain);
            let remedy = format!("first: hawser unlink {}, or take that file away", other.link.metadata.name);
            return Err(Refusal::new(Code::NotAllowed, message, remedy));
        }
    }
    Ok(())
}

fn path(links: &LinksConfig, name: &ClusterName) -> PathBuf {
    links.directory.join(format!("{name}.yaml"))
}

/// Writes a Link, whole or not at all.
pub(super) fn write(links: &LinksConfig, name: &ClusterName, link: &Link) -> Result<PathBuf, Refusal> {
    let path = path(links, name);
    let text = serde_saphyr::to_string(link).map_err(|e| failed(&path, &io::Error::other(e.to_string())))?;
    let text = format!("# Made by `hawser link`; taken away by `hawser unlink {name}`.\n{text}");
    // What the mirror controller would not read must not look as if the clusters were linked.
    if let Err(problems) = load::parse(&path.to_string_lossy(), &text) {
        let first = problems.first().map(ToString::to_string).unwrap_or_default();
        return Err(Refusal::new(Code::BadRequest, first, "run the same release of hawser in both clusters"));
    }
    file::replace(&path, text.as_bytes()).map_err(|e| failed(&path, &e))?;
    Ok(path)
}

/// Takes a Link away that [`accept`](super::accept) or a token made; false if there is none.
pub fn remove(links: &LinksConfig, name: &ClusterName) -> io::Result<bool> {
    match fs::remove_file(path(links, name)) {
        Ok(()) => {
            fs::File::open(&links.directory)?.sync_all()?;
            Ok(true)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
