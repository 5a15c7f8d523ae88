//! Where the story plays: a running fabric, its directory to edit, its processes to kill.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hawser_api::ClusterName;
use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Child;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::call::Target;
use crate::fabric::{self, Fabric};
use crate::page::{at, list, service, text};
use crate::state::State;
use crate::up::control::{self, Operation, ProcessLine, Request};
use crate::up::{child, screen};
use crate::{admin, print, why};

/// Lines of the log that are shown when a step fails.
const LAST_LINES: usize = 40;
/// For the drain of everything.
const END: Duration = Duration::from_secs(15);
/// For a whole fabric's start, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(35);
const LOOK: Duration = Duration::from_millis(25);

/// A fabric in our hands.
pub(crate) struct Stage {
    /// The fabric's directory, ours to edit.
    dir: PathBuf,
    fabric: Fabric,
    state: State,
    /// What we started, if we did.
    own: Option<Own>,
}

struct Own {
    child: Mutex<Child>,
    root: PathBuf,
}

impl Stage {
    /// Starts `hawser up` on a copy of a fabric.
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        let root = std::env::temp_dir().join(format!("hawser-demo-{}", std::process::id()));
        hawser_runtime::file::private_directory(&root)?;
        let copy = root.join("fabric");
        copy_yaml(dir, &copy).with_context(|| format!("cannot copy {}", dir.display()))?;
        let fabric = fabric::read(&copy, None)?;
        let state = State::create(&root.join("s"))?;
        let words =
            ["hawser", "up", &copy.to_string_lossy(), "--state", &state.path().to_string_lossy(), "--ready-file"];
        let mut words: Vec<String> = words.map(str::to_owned).to_vec();
        words.push(root.join("ready").to_string_lossy().into_owned());
        let log = File::create(root.join("log"))?;
        let child = child::command(&words).stdout(log.try_clone()?).stderr(log).spawn()?;
        Ok(Self { dir: copy, fabric, state, own: Some(Own { child: Mutex::new(child), root }) })
    }

    /// Takes a fabric that runs; its directory is edited in place.
    pub(crate) fn running(dir: &Path, state: &Path) -> Result<Self> {
        Ok(Self { dir: dir.to_owned(), fabric: fabric::read(dir, None)?, state: State::existing(state)?, own: None })
    }

    /// `west (eu-west) and east (us-east), on this machine`.
    pub(crate) fn title(&self) -> String {
        let mut names: Vec<_> =
            self.fabric.values().map(|d| format!("{} ({})", d.name, d.cluster.spec.region)).collect();
        names.reverse();
        format!("{}, on this machine", names.join(" and "))
    }

    /// A name that west's applications call, by way of its first proxy with a SOCKS5 port.
    pub(crate) fn caller(&self, name: &str, port: u16) -> Result<Target> {
        let west: ClusterName = "west".parse()?;
        let declared = self.fabric.get(&west).context("the fabric has no cluster west")?;
        let socks = declared.cluster.spec.proxies.iter().find_map(|proxy| proxy.socks);
        let socks = socks.context("west has no proxy with a SOCKS5 port")?;
        Ok(Target { socks, name: name.to_owned(), port })
    }

    /// Waits until `hawser up` has written that all is ready; the number of processes.
    pub(crate) async fn ready(&self) -> Result<Vec<ProcessLine>> {
        if let Some(own) = &self.own {
            let deadline = Instant::now() + PATIENCE;
            while !own.root.join("ready").exists() {
                if let Some(status) = own.child.lock().await.try_wait()? {
                    bail!("`hawser up` has ended: {status}");
                }
                if Instant::now() > deadline {
                    bail!("not ready within {} s", PATIENCE.as_secs());
                }
                sleep(LOOK).await;
            }
        }
        self.control(Operation::Status, "").await
    }

    /// Stops, kills or starts `east` or `east/gateway-0`.
    pub(crate) async fn control(&self, op: Operation, target: &str) -> Result<Vec<ProcessLine>> {
        let (cluster, process) = target.split_once('/').unwrap_or((target, ""));
        let cluster = Some(cluster).filter(|name| !name.is_empty()).map(str::parse).transpose()?;
        let process = Some(process.to_owned()).filter(|name| !name.is_empty());
        Ok(control::ask(&self.state, &Request { op, cluster, process }).await?.processes)
    }

    /// Replaces a text in a file of the fabric, as a user edits it.
    pub(crate) fn edit(&self, file: &str, from: &str, to: &str) -> Result<()> {
        let path = self.dir.join(file);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        if !text.contains(from) {
            bail!("{} does not contain {from:?}", path.display());
        }
        Ok(std::fs::write(&path, text.replace(from, to))?)
    }

    /// What west's proxy knows of a name: its endpoints that are in, `transport` and all.
    pub(crate) async fn endpoints(&self, name: &str) -> Result<Vec<Value>> {
        let said = why::ask(&self.state, &"west".parse()?, name, None).await?;
        let destination = said.first().map(|said| said.destination.clone()).unwrap_or_default();
        let backends = list(&destination, "tiers").iter().flat_map(|tier| list(tier, "backends"));
        Ok(backends.flat_map(|backend| list(backend, "endpoints")).cloned().collect())
    }

    /// Where west's proxy has bound a service's port.
    pub(crate) async fn bound(&self, key: &str, port: u16) -> Result<String> {
        let runs = admin::runs(&self.state, &"west".parse()?, Some("proxy"))?;
        for run in runs {
            let page = run.page("/listeners").await?;
            let listeners = crate::page::rows(&page, "listeners");
            let found = listeners.iter().find(|row| service(row) == key && *at(row, "port") == port);
            if let Some(row) = found {
                return Ok(text(row, "bound"));
            }
        }
        bail!("no proxy of west has bound {key} port {port}");
    }

    /// The last lines of the log, for a step that failed.
    pub(crate) fn last_words(&self) -> String {
        let Some(own) = &self.own else { return String::new() };
        let text = std::fs::read_to_string(own.root.join("log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let from = lines.len().saturating_sub(LAST_LINES);
        lines.get(from..).unwrap_or_default().join("\n")
    }

    /// How to go on by hand.
    pub(crate) async fn hints(&self) {
        screen::show(&self.state, &self.fabric).await;
        print::out(format!("  the fabric runs on; edit {} and see. Ctrl-C ends it", self.dir.display()));
    }

    /// Ends what was started and removes what was written.
    pub(crate) async fn end(self) {
        let Some(own) = self.own else { return };
        let mut child = own.child.into_inner();
        if let Some(pid) = child.id() {
            child::signal(pid, Signal::TERM);
        }
        if timeout(END, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
        let _ = std::fs::remove_dir_all(&own.root);
    }
}

/// The fabric's own files, one folder deep; what else lies there is not ours to copy.
fn copy_yaml(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let Some(name) = path.file_name() else { continue };
        let is_yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if path.is_file() && is_yaml {
            std::fs::copy(&path, to.join(name))?;
        } else if path.is_dir() && !name.to_string_lossy().starts_with('.') {
            copy_yaml(&path, &to.join(name))?;
        }
    }
    Ok(())
}
