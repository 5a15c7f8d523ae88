//! `hawser trust rotate`: drives the machines of all clusters, the root's in lockstep.
//!
//! ```text
//! root here:   R2 ─▶ every trust anchor ─▶ prepared everywhere ─▶ published ─▶ proved ─▶ requests signed by R2
//!              ─▶ active and draining everywhere ─▶ retired everywhere ─▶ root/next becomes root
//! elsewhere:   one cluster at a time; root/next/root.crt and intermediate.crt are carried by hand
//! ```
//!
//! Every step can be given again: what has been done is found done. So an interrupted rotation goes on with the same
//! command.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hawser_api::proto::trust::{ExcludeRequest, ProvideRequest, RollbackRequest, RotateRequest, Rotation, StatusReply};
use hawser_runtime::clock;
use hawser_trust_anchor::hierarchy::{self, names};

use super::client::{Anchor, Which, ask};
use super::next_root;
use crate::print;
use crate::state::State;

/// How often a step that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(300);
/// States that all clusters reach before one of them goes further. From active to draining each goes by itself.
const LOCKSTEP: [&str; 5] = ["prepared", "published", "proved", "draining", "retired"];
/// Who is named while others wait for them; `hawser trust status` names all.
const NAMED: usize = 8;
const STATES: [&str; 7] = ["idle", "prepared", "published", "proved", "active", "draining", "retired"];

/// What is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Level {
    /// Every process gets a new certificate and key now.
    Leaf,
    /// The cluster's own authority, under the same root.
    Intermediate,
    /// The fabric's root, and with it every intermediate.
    Root,
}

/// Replace certificates, authorities or the root, step by step, without an interruption.
///
/// A rotation goes prepared, published, proved, active, draining, retired. No step is taken before everybody who
/// verifies has said that he has loaded what the next step needs, and the old authority goes only when nothing rests on
/// it. Where the root's key is in the state directory, requests are signed with it; otherwise the command says which
/// file to carry where.
#[derive(Debug, clap::Args)]
pub(crate) struct Rotate {
    /// What to replace.
    #[arg(value_enum, required_unless_present_any = ["resume", "rollback", "exclude"])]
    level: Option<Level>,
    #[command(flatten)]
    which: Which,
    /// Stop when this state is reached: prepared, published, proved, active, draining.
    #[arg(long, value_name = "STATE")]
    pause_at: Option<String>,
    /// Wait until it is over, at most so many seconds.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "3600")]
    wait: Option<u64>,
    /// Go on with the rotation that runs.
    #[arg(long, conflicts_with_all = ["level", "rollback"])]
    resume: bool,
    /// Take the last step back, and stay there.
    #[arg(long, conflicts_with = "level")]
    rollback: bool,
    /// Do not wait for this validator or cluster any more, as the refusal names it; it will be cut off.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["level", "resume", "rollback"])]
    exclude: Option<String>,
    /// Why, for the audit log.
    #[arg(long, default_value = "", requires = "exclude")]
    reason: String,
}

/// Hand over what was made where the root's key is: root/next/root.crt, or the intermediate that was signed.
#[derive(Debug, clap::Args)]
pub(crate) struct Provide {
    /// The certificate, PEM.
    #[arg(value_name = "FILE")]
    certificate: PathBuf,
    #[command(flatten)]
    which: Which,
}

pub(crate) async fn provide(args: &Provide) -> Result<()> {
    let certificate = fs::read(&args.certificate).with_context(|| args.certificate.display().to_string())?;
    for anchor in args.which.clusters()? {
        let status = ask!(anchor, provide, ProvideRequest { certificate: certificate.clone() }).await?;
        say(&anchor, &status);
    }
    Ok(())
}

pub(crate) async fn run(args: &Rotate) -> Result<()> {
    let anchors = args.which.clusters()?;
    if let Some(name) = &args.exclude {
        return exclude(&anchors, name, &args.reason).await;
    }
    if args.rollback {
        return rollback(&anchors).await;
    }
    let driver = Driver { state: args.which.state()?, anchors, until: args.until()? };
    match args.level {
        Some(Level::Leaf) => driver.leaves().await,
        Some(Level::Intermediate) => driver.intermediates(args.wait).await,
        Some(Level::Root) => driver.root(args.wait).await,
        None => driver.resume(args.wait).await,
    }
}

impl Rotate {
    fn until(&self) -> Result<&'static str> {
        let Some(asked) = &self.pause_at else { return Ok("retired") };
        match STATES.into_iter().skip(1).find(|state| state == asked) {
            Some(state) => Ok(state),
            None => bail!("{asked:?} is no state of a rotation\nhint: there are {}", STATES[1..].join(", ")),
        }
    }
}

fn rank(state: &str) -> usize {
    STATES.iter().position(|known| *known == state).unwrap_or_default()
}

fn running(status: &StatusReply) -> Option<&Rotation> {
    status.rotation.as_ref().filter(|rotation| rotation.state != "retired")
}

/// One line a cluster: how far it is, and what it waits for.
fn say(anchor: &Anchor, status: &StatusReply) {
    match &status.rotation {
        None => print::note(format!("{}: no rotation", anchor.name)),
        Some(rotation) => {
            print::note(format!("{}: {} {}", anchor.name, rotation.level, rotation.state));
            waits(rotation);
        }
    }
}

fn waits(rotation: &Rotation) {
    if rotation.refusal.is_empty() {
        return;
    }
    print::note(format!("  waits: {}", rotation.refusal));
    for missing in rotation.missing.iter().take(NAMED) {
        print::note(format!("    {}: {}", missing.who, missing.why));
    }
    if let Some(more @ 1..) = rotation.missing.len().checked_sub(NAMED) {
        print::note(format!("    and {more} more: hawser trust status"));
    }
    print::note(format!("  hint: {}", rotation.remedy));
}

/// Takes back the clusters that are furthest, so that they all come back in lockstep as well.
async fn rollback(anchors: &[Anchor]) -> Result<()> {
    let mut furthest = Vec::new();
    for anchor in anchors {
        let state = anchor.status().await?.rotation.map(|rotation| rank(&rotation.state));
        furthest.push(state);
    }
    let Some(most) = furthest.iter().flatten().max().copied() else {
        bail!("no rotation is running\nhint: begin one: hawser trust rotate root | intermediate");
    };
    for (anchor, state) in anchors.iter().zip(furthest) {
        if state == Some(most) {
            say(anchor, &ask!(anchor, rollback, RollbackRequest {}).await?);
        }
    }
    Ok(())
}

async fn exclude(anchors: &[Anchor], name: &str, reason: &str) -> Result<()> {
    let mut excluded = 0;
    for anchor in anchors {
        // Only where it is waited for: another cluster may have one of the same name.
        let status = anchor.status().await?;
        let waited = |missing: &hawser_api::proto::trust::Missing| {
            missing.who == name || missing.who.split_once('/').is_some_and(|(_, bare)| bare == name)
        };
        if !running(&status).is_some_and(|rotation| rotation.missing.iter().any(waited)) {
            continue;
        }
        let request = ExcludeRequest { name: name.to_owned(), reason: reason.to_owned() };
        say(anchor, &ask!(anchor, exclude, request).await?);
        excluded += 1;
    }
    if excluded == 0 {
        bail!("no rotation waits for {name:?}\nhint: hawser trust status names those that are waited for");
    }
    Ok(())
}

struct Driver {
    state: State,
    anchors: Vec<Anchor>,
    /// The last state that is to be reached.
    until: &'static str,
}

impl Driver {
    async fn leaves(&self) -> Result<()> {
        for anchor in &self.anchors {
            let request = RotateRequest { level: "leaf".into(), ..RotateRequest::default() };
            let status = ask!(anchor, rotate, request).await?;
            print::note(format!("{}: {} certificates are renewed now", anchor.name, status.leaves.len()));
        }
        Ok(())
    }

    async fn resume(&self, wait: Option<u64>) -> Result<()> {
        let mut levels = Vec::new();
        for anchor in &self.anchors {
            levels.extend(running(&anchor.status().await?).map(|rotation| rotation.level.clone()));
        }
        match levels.first().map(String::as_str) {
            Some("root") => self.root(wait).await,
            Some(_) => self.intermediates(wait).await,
            // It may have ended here between two files.
            None if self.is_next_in_use()? => self.swap(),
            None => bail!("no rotation is running\nhint: begin one: hawser trust rotate root | intermediate"),
        }
    }

    async fn intermediates(&self, wait: Option<u64>) -> Result<()> {
        let root = self.state.root_directory();
        for anchor in &self.anchors {
            let status = self.rotate(anchor, "intermediate", self.until).await?;
            self.sign(anchor, &status, &root).await?;
        }
        if let Some(wait) = wait {
            self.reach(self.until, wait).await?;
        }
        for anchor in &self.anchors {
            say(anchor, &anchor.status().await?);
        }
        Ok(())
    }

    async fn root(&self, wait: Option<u64>) -> Result<()> {
        let next = next_root(&self.state);
        // Where the root's key is in a file, so is the next one's; a token is named with `hawser trust init --next`.
        let here = self.state.root_directory().join(names::ROOT_KEY).exists();
        if here && !next.join(names::ROOT_CERTIFICATE).exists() {
            hierarchy::init_root(&next, "hawser", clock::now())?;
            print::note(format!("made the next root in {}", next.display()));
        }
        if !next.join(names::ROOT_CERTIFICATE).exists() {
            return self.root_from_elsewhere(wait).await;
        }
        let certificate = fs::read(next.join(names::ROOT_CERTIFICATE))?;
        let wait = wait.unwrap_or(3600);
        for step in LOCKSTEP.into_iter().chain([self.until]).filter(|step| rank(step) <= rank(self.until)) {
            self.step(step, &certificate, &next).await?;
            self.reach(step, wait).await?;
            print::note(format!("root: {step} in every cluster"));
        }
        if self.until == "retired" { self.swap() } else { Ok(()) }
    }

    /// Lets every cluster go on to a state, and gives each what it needs from the root's key.
    async fn step(&self, step: &str, certificate: &[u8], next: &Path) -> Result<()> {
        for anchor in &self.anchors {
            let status = anchor.status().await?;
            if status.rotation.as_ref().is_some_and(|rotation| {
                rotation.level == "root"
                    && rank(&rotation.state) >= rank(step)
                    && !certificate_waits(&status, certificate)
            }) {
                continue;
            }
            let status = self.rotate(anchor, "root", step).await?;
            if running(&status).is_some_and(|rotation| rotation.state == "idle") {
                ask!(anchor, provide, ProvideRequest { certificate: certificate.to_vec() }).await?;
            }
            if rank(step) > rank("proved") {
                self.sign(anchor, &anchor.status().await?, next).await?;
            }
        }
        Ok(())
    }

    async fn root_from_elsewhere(&self, wait: Option<u64>) -> Result<()> {
        for anchor in &self.anchors {
            let status = self.rotate(anchor, "root", self.until).await?;
            say(anchor, &status);
            if !status.request_path.is_empty() {
                print::note(format!("  its request, for the new root to sign: {}", status.request_path));
            }
        }
        match wait {
            Some(wait) => self.reach(self.until, wait).await,
            None => Ok(()),
        }
    }

    async fn rotate(&self, anchor: &Anchor, level: &str, until: &str) -> Result<StatusReply> {
        let request = RotateRequest { level: level.into(), pause_at: until.into(), resume: false };
        ask!(anchor, rotate, request).await
    }

    /// Signs the request that a cluster waits with, if the root's key is here.
    async fn sign(&self, anchor: &Anchor, status: &StatusReply, root: &Path) -> Result<()> {
        if status.request.is_empty() {
            return Ok(());
        }
        if !hierarchy::has_key(root) {
            print::note(format!(
                "{}: waits for its intermediate\nhint: where the root's key is: hawser trust intermediate {}; then \
                 here: hawser trust provide intermediate.crt --cluster {}",
                anchor.name, status.request_path, anchor.name
            ));
            return Ok(());
        }
        let domain = status.trust_domain.parse().context("the trust anchor's trust domain")?;
        let signed = hierarchy::sign_request(root, status.request.as_bytes(), Some(&domain), clock::now());
        let (pem, _) = signed.with_context(|| format!("the intermediate of {}", anchor.name))?;
        ask!(anchor, provide, ProvideRequest { certificate: pem.clone().into_bytes() }).await.map(drop)
    }

    /// Waits until every cluster has come so far, and says what holds it up whenever that changes.
    async fn reach(&self, state: &str, wait: u64) -> Result<()> {
        let deadline = clock::monotonic() + Duration::from_secs(wait);
        for anchor in &self.anchors {
            let mut said = String::new();
            loop {
                let status = anchor.status().await?;
                let Some(rotation) = &status.rotation else { bail!("{}: the rotation was taken back", anchor.name) };
                if rank(&rotation.state) >= rank(state) {
                    break;
                }
                let who: Vec<_> = rotation.missing.iter().map(|missing| missing.who.as_str()).collect();
                let now = format!("{} {} {who:?}", rotation.state, rotation.refusal);
                if now != said && !rotation.refusal.is_empty() {
                    say(anchor, &status);
                }
                said = now;
                if clock::monotonic() >= deadline {
                    bail!(
                        "{} is {} after {wait} s, not {state}\nhint: nothing is lost: go on with hawser trust rotate \
                         --resume, or take it back with --rollback",
                        anchor.name,
                        rotation.state
                    );
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// The key in root/ is that of root/next already: only the certificate is left to be moved.
    fn is_next_in_use(&self) -> Result<bool> {
        let (root, next) = (self.state.root_directory(), next_root(&self.state));
        Ok(next.join(names::ROOT_CERTIFICATE).exists() && !hierarchy::has_key(&next) && root.exists())
    }

    /// The next root becomes the root; the old one stays in root/previous. The key first: as long as the certificate is
    /// in root/next, it is known that this is not over.
    fn swap(&self) -> Result<()> {
        let (root, next) = (self.state.root_directory(), next_root(&self.state));
        let previous = root.join("previous");
        hawser_runtime::file::private_directory(&previous)?;
        let keys = [names::ROOT_KEY, names::ROOT_TOKEN];
        if hierarchy::has_key(&next) {
            // The old one may be of the other kind.
            for old in keys.map(|name| root.join(name)).into_iter().filter(|old| old.exists()) {
                let kept = previous.join(old.file_name().unwrap_or_default());
                fs::rename(&old, kept).with_context(|| format!("cannot keep {}", old.display()))?;
            }
        }
        for name in keys.into_iter().chain([names::ROOT_CERTIFICATE]) {
            let (old, new) = (root.join(name), next.join(name));
            if !new.exists() {
                continue;
            }
            if old.exists() {
                fs::copy(&old, previous.join(name)).with_context(|| format!("cannot keep {}", old.display()))?;
            }
            fs::rename(&new, &old).with_context(|| format!("cannot move {}", new.display()))?;
        }
        print::note(format!("the old root is in {}; destroy its key when you need no way back", previous.display()));
        Ok(())
    }
}

/// Whether a cluster's rotation is an earlier one, of another root.
fn certificate_waits(status: &StatusReply, certificate: &[u8]) -> bool {
    let known = status.rotation.as_ref().map(|rotation| rotation.new.clone()).unwrap_or_default();
    let wanted = hierarchy::authority_of(certificate).map(|id| id.0.to_vec());
    status.rotation.as_ref().is_some_and(|rotation| rotation.state == "retired") && wanted.as_ref() != Some(&known)
}
