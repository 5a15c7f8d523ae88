//! Brings the world in line with the record of a rotation: each second, and whenever an operator says something.
//!
//! ```text
//! event + evidence ─▶ rotate (pure) ─▶ record on disk ─▶ bundle, signer, files, as the record says
//! ```
//!
//! Everything behind the record is done again until it is so; a process that dies between two steps does the second
//! one after its restart. What is published and who signs is decided by [`Course`] alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use hawser_api::bundle::{Bundle, JwtAuthority};
use hawser_api::proto::issuer::FabricReport;
use hawser_runtime::clock;
use hawser_tunnel::tls::Anchors;
use hawser_tunnel::verify::AuthorityId;
use rustls_pki_types::CertificateDer;

use crate::authority::Authority;
use crate::clocks::Clocks;
use crate::hex;
use crate::hierarchy::{describe, make_csr, names, read_certificates};
use crate::rotate::course::{Course, Der, NEXT, authority_id};
use crate::rotate::{ClockEvidence, Event, Evidence, Level, LiveLeaf, Refused, Rotation, State, rotate};
use crate::signer::Intermediate;

mod emergency;
mod provide;

/// Steps of one look: all of a rotation, so that a bound holds whatever the evidence says.
const STEPS_MAX: usize = 8;

/// The one who acts. There is one, behind a lock.
pub(crate) struct Driver {
    pub(crate) course: Course,
    root_certificate: PathBuf,
    /// In force.
    pub(crate) roots: Vec<CertificateDer<'static>>,
    jwt: Vec<JwtAuthority>,
    pub(crate) sequence: u64,
    /// What is published and not in the audit log yet.
    unrecorded: Option<String>,
    /// The signer's file as it was when it was last taken, and where.
    signer: (&'static str, Vec<u8>),
    /// The same of the successor's.
    next: Vec<u8>,
    pub(crate) successor: Option<Arc<Intermediate>>,
    pub(crate) clocks: Clocks,
    /// Why the last step was not taken.
    pub(crate) refusal: Option<Refused>,
    complaints: Complaints,
}

impl Driver {
    pub(crate) fn open(store: &crate::store::Store, root_certificate: PathBuf) -> anyhow::Result<Self> {
        Ok(Self {
            course: Course::read(&store.kept)?,
            root_certificate,
            roots: Vec::new(),
            jwt: Vec::new(),
            sequence: 0,
            unrecorded: None,
            signer: ("", Vec::new()),
            next: Vec::new(),
            successor: None,
            clocks: Clocks::default(),
            refusal: None,
            complaints: Complaints::default(),
        })
    }

    /// What is wrong now, for people.
    pub(crate) fn troubles(&self) -> Vec<String> {
        self.complaints.0.values().cloned().collect()
    }

    /// Brings everything in line, and takes what steps may be taken. Reads and writes files.
    pub(crate) fn look(&mut self, authority: &Authority, now: SystemTime) {
        self.clocks.look(now, clock::monotonic(), authority);
        self.settle(authority, now);
        for _ in 0..STEPS_MAX {
            match self.go(authority, now) {
                Ok(true) => self.settle(authority, now),
                Ok(false) => break,
                Err(refused) => {
                    self.refusal = Some(refused);
                    break;
                }
            }
        }
    }

    /// The world as the record says.
    fn settle(&mut self, authority: &Authority, now: SystemTime) {
        let done = self.promote(authority);
        self.complain("promotion", done);
        let done = self.publish(authority, now);
        self.complain("root", done);
        let done = self.record_bundle(authority, now);
        self.complain("audit log", done);
        let done = self.load_signer(authority);
        self.complain("intermediate", done);
        let done = self.load_successor(authority);
        self.complain("successor", done);
        authority.announce(|bundle| {
            let signer = authority.intermediate.load();
            bundle.active_issuer = signer.as_ref().map(|signer| signer.id().0.to_vec()).unwrap_or_default();
            bundle.reissue_before_ms = self.course.reissue_before_ms;
        });
    }

    fn complain(&mut self, what: &'static str, done: anyhow::Result<()>) {
        self.complaints.hear(what, done.map_err(|e| format!("{e:#}")));
    }

    /// One step on, if there is one to take and nobody paused here.
    fn go(&mut self, authority: &Authority, now: SystemTime) -> Result<bool, Refused> {
        self.refusal = None;
        let Some(rotation) = self.course.running().filter(|rotation| rotation.state < rotation.pause_at) else {
            return Ok(false);
        };
        let next = self.decide(&rotation.clone(), Event::Go, authority, now)?;
        self.enter(next, authority, now)?;
        Ok(true)
    }

    /// The pure decision, with the evidence as it is now.
    fn decide(
        &self,
        rotation: &Rotation,
        event: Event,
        authority: &Authority,
        now: SystemTime,
    ) -> Result<Option<Rotation>, Refused> {
        let leaves = authority.record.live(now);
        let fabric = authority.fabric.borrow().clone();
        let mut evidence = self.evidence(authority, fabric.as_ref().map(|(report, _)| report), &leaves);
        let age = |(_, at): &(_, tokio::time::Instant)| clock::monotonic().saturating_duration_since(*at);
        evidence.fabric_age = fabric.as_ref().map(age).unwrap_or_default();
        rotate(rotation, event, &evidence, now)
    }

    /// What there is to decide by, the report being this one and fresh.
    pub(crate) fn evidence<'e>(
        &self,
        authority: &'e Authority,
        fabric: Option<&'e FabricReport>,
        leaves: &'e [LiveLeaf],
    ) -> Evidence<'e> {
        let signing = authority.intermediate.load_full();
        let new_root = self.course.new_root_id();
        let successor = self.successor_id(signing.as_deref());
        let until = |der: Option<&Der>| der.and_then(|der| describe(&der.0)).map(|about| about.until);
        Evidence {
            domain: authority.credentials.own_domain(),
            sequence: self.sequence,
            published: self.roots.iter().filter_map(authority_id).collect(),
            old: self.course.old().collect(),
            new: new_root.into_iter().chain(new_root.and(successor)).collect(),
            new_anchors: new_root.into_iter().collect(),
            has_new_root: self.course.new_root.is_some(),
            successor,
            signing: signing.map(|signing| signing.id()),
            // When it has been promoted away, its key is gone.
            old_signer_until: until(self.course.old_signer.as_ref()).filter(|_| !self.course.promoted),
            old_root_until: until(self.course.old_root.as_ref()),
            fabric,
            fabric_age: Duration::ZERO,
            leaves,
            clock: ClockEvidence::new(fabric, self.clocks.moved_s()),
        }
    }

    /// The new intermediate: in its own place, or, once promoted, the one that signs.
    fn successor_id(&self, signing: Option<&Intermediate>) -> Option<AuthorityId> {
        if self.course.promoted {
            return signing.map(Intermediate::id);
        }
        self.successor.as_ref().map(|successor| successor.id())
    }

    /// Writes the record, and only then lets it be true.
    pub(crate) fn enter(
        &mut self,
        rotation: Option<Rotation>,
        authority: &Authority,
        now: SystemTime,
    ) -> Result<(), Refused> {
        let mut course = self.course.clone();
        course.rotation = rotation;
        if course.rotation.is_none() {
            course.new_root = None;
        }
        let step = course
            .rotation
            .as_ref()
            .map_or("given up".to_owned(), |rotation| format!("{} {}", rotation.level, rotation.state));
        authority.audit("rotation", &step, &self.describe_course(&course), now)?;
        self.keep(course, authority)
    }

    /// Takes another record, once it is on disk.
    pub(crate) fn keep(&mut self, course: Course, authority: &Authority) -> Result<(), Refused> {
        course.write(&authority.store.kept).map_err(|e| failed("the rotation's record cannot be written", &e))?;
        if course.rotation != self.course.rotation {
            tracing::info!(rotation = ?course.rotation, "rotation");
        }
        self.course = course;
        Ok(())
    }

    fn describe_course(&self, course: &Course) -> String {
        let ids: Vec<_> = course.old().map(|id| id.to_string()).collect();
        let excluded: Vec<_> = course.rotation.iter().flat_map(|r| &r.excluded).map(|e| e.name.as_str()).collect();
        let from = self.course.rotation.as_ref().map_or("idle", |rotation| rotation.state.as_str());
        format!("from {from}; old {}; excluded {}", ids.join(" "), excluded.join(" "))
    }

    /// What an operator says.
    pub(crate) fn command(&mut self, event: Event, authority: &Authority, now: SystemTime) -> Result<(), Refused> {
        let back = event == Event::Back;
        let rotation = self.course.rotation.clone().filter(|rotation| back || !rotation.is_over());
        let Some(rotation) = rotation else {
            return Err(Refused::new("no rotation is running", "begin one: hawser trust rotate root | intermediate"));
        };
        let next = self.decide(&rotation, event, authority, now)?;
        let given_up = next.is_none();
        self.enter(next, authority, now)?;
        if given_up {
            self.forget_next(authority).map_err(|e| failed("what was prepared cannot be removed", &e))?;
        }
        self.look(authority, now);
        Ok(())
    }

    /// Begins a rotation; one of the same level that runs already goes on instead.
    pub(crate) fn begin(
        &mut self,
        level: Level,
        pause_at: State,
        authority: &Authority,
        now: SystemTime,
    ) -> Result<(), Refused> {
        match self.course.running() {
            Some(running) if running.level == level => {
                return self.command(Event::PauseAt(pause_at), authority, now);
            }
            Some(running) => {
                return Err(Refused::new(
                    format!("a rotation of the {} is {}", running.level, running.state),
                    "let it end, or take it back: hawser trust rotate --rollback",
                ));
            }
            None => {}
        }
        let Some(signer) = authority.intermediate.load_full() else {
            return Err(Refused::new("nothing is signed here yet", "see the trust anchor's log for what it waits for"));
        };
        let old_root = self.roots.iter().find(|der| authority_id(der) == Some(signer.anchor())).cloned();
        // Before the record: what an earlier rotation left must not be taken for this one's.
        self.forget_next(authority).map_err(|e| failed("what an earlier rotation left cannot be removed", &e))?;
        let wrap = |der: &CertificateDer<'static>| Der(der.clone());
        let course = Course {
            rotation: Some(Rotation::new(level, pause_at, now)),
            roots: self.roots.iter().map(wrap).collect(),
            file: self.file().map(|(_, hash)| hash).unwrap_or_default(),
            old_root: old_root.map(Der),
            new_root: None,
            old_signer: Some(wrap(signer.der())),
            promoted: false,
            reissue_before_ms: self.course.reissue_before_ms,
        };
        authority.audit("rotation", &format!("{level} begun"), &self.describe_course(&course), now)?;
        self.keep(course, authority)?;
        self.look(authority, now);
        Ok(())
    }

    fn file(&self) -> anyhow::Result<(Vec<CertificateDer<'static>>, String)> {
        let roots = read_certificates(&self.root_certificate)?;
        let all: Vec<u8> = roots.iter().flat_map(|der| der.iter().copied()).collect();
        Ok((roots, hex::sha256(&all)))
    }

    fn publish(&mut self, authority: &Authority, now: SystemTime) -> anyhow::Result<()> {
        let file = self.file();
        if let (Ok((roots, hash)), true) = (&file, self.course.owns_roots()) {
            self.hear_file(roots, hash, authority, now)?;
        }
        let roots = match file {
            Ok((roots, _)) => self.course.published(&roots),
            Err(_) if self.course.owns_roots() => self.course.published(&[]),
            Err(error) => anyhow::bail!(
                "nothing to publish: {error}\nhint: rootCertificate in the configuration names the root, PEM"
            ),
        };
        let roots = authority.denials.lock().without(roots);
        let jwt = authority.jwt.borrow().clone();
        if roots == self.roots && jwt == self.jwt && self.sequence > 0 {
            return Ok(());
        }
        let bundle = authority.store.bundle(&roots, &jwt, now)?;
        self.take(&bundle, authority)?;
        let names = roots.iter().filter_map(describe).map(|d| {
            let until = d.until.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
            (d.subject, d.serial, until)
        });
        authority.record.authorities("root", names.collect());
        let x509 = roots.iter().filter_map(authority_id).map(|id| id.to_string());
        let jwt_keys = jwt.iter().map(|key| key.key_id.clone());
        self.unrecorded = Some(format!(
            "sequence {}; keys {}; JWT keys {}",
            bundle.sequence,
            x509.collect::<Vec<_>>().join(" "),
            jwt_keys.collect::<Vec<_>>().join(" ")
        ));
        tracing::info!(sequence = bundle.sequence, roots = roots.len(), "published the bundle");
        let document = bundle.to_document();
        authority.bundle.send_replace(document.clone());
        authority.announce(|announced| announced.document = document);
        self.roots = roots;
        self.jwt = jwt;
        self.sequence = bundle.sequence;
        // The signer must hold under the new roots too.
        self.signer.1.clear();
        Ok(())
    }

    /// A root that was replaced is in force whether that can be recorded or not: it is tried until it is.
    fn record_bundle(&mut self, authority: &Authority, now: SystemTime) -> anyhow::Result<()> {
        let Some(keys) = self.unrecorded.take() else { return Ok(()) };
        let own = authority.credentials.own_domain();
        let recorded = authority.audit("bundle", own.as_str(), &keys, now);
        recorded.map_err(|refused| {
            self.unrecorded = Some(keys);
            anyhow::anyhow!(refused.message)
        })
    }

    /// Another content of the file than when the rotation began is an operator's word, for which there is a time.
    fn hear_file(
        &mut self,
        roots: &[CertificateDer<'static>],
        hash: &str,
        authority: &Authority,
        now: SystemTime,
    ) -> anyhow::Result<()> {
        // What a promotion has still to move is named by the record.
        let promoting = self.course.rotation.as_ref().is_some_and(Rotation::is_over) && !self.course.promoted;
        if self.course.file == hash || promoting {
            return Ok(());
        }
        let published = self.course.published(&[]);
        let same = roots.len() == published.len() && roots.iter().all(|root| published.contains(root));
        if self.course.running().is_some() {
            ensure!(
                same,
                "{} has changed while a rotation runs, and is not looked at until it is over\nhint: to take the \
                 rotation back: hawser trust rotate --rollback",
                self.root_certificate.display()
            );
            return Ok(());
        }
        authority.audit_or_log("bundle", "root file", "the configured file is followed again", now);
        let course = Course { reissue_before_ms: self.course.reissue_before_ms, ..Course::default() };
        self.keep(course, authority).map_err(|refused| anyhow::anyhow!(refused.message))
    }

    fn take(&self, bundle: &Bundle, authority: &Authority) -> anyhow::Result<()> {
        let credentials = &authority.credentials;
        let dropped = credentials.set_anchors(credentials.own_domain(), Anchors::Bundle(bundle.clone()));
        for reason in &dropped {
            tracing::warn!(reason, "a root certificate is not taken");
        }
        ensure!(
            dropped.len() < bundle.x509_authorities.len(),
            "no usable root in {}: {}",
            self.root_certificate.display(),
            dropped.join("; ")
        );
        Ok(())
    }

    fn load_signer(&mut self, authority: &Authority) -> anyhow::Result<()> {
        let place = self.course.signer();
        let directory = authority.store.path(place);
        let content = std::fs::read(directory.join(names::INTERMEDIATE_CERTIFICATE)).unwrap_or_default();
        let seen = (place, content);
        // Without a root there is nothing to check it by; a request for it can be made all the same.
        let checkable = !self.roots.is_empty() && seen != self.signer;
        if !seen.1.is_empty() && !checkable {
            return Ok(());
        }
        match Intermediate::load(&directory, &authority.credentials)? {
            Some(intermediate) => {
                ensure!(
                    !authority.denials.lock().denies_any(&[intermediate.id(), intermediate.anchor()]),
                    "the intermediate rests on a revoked authority; nothing is signed with it"
                );
                authority.record.intermediate(&intermediate, &authority.credentials.own_domain().id());
                tracing::info!(serial = intermediate.serial(), authority = %intermediate.id(), "signing with the intermediate");
                authority.intermediate.store(Some(Arc::new(intermediate)));
                self.signer = seen;
                Ok(())
            }
            // One that was taken goes on: a file that is gone does not make it worse.
            None if authority.intermediate.load().is_some() => Ok(()),
            None => {
                let csr = make_csr(authority.store.directory(), authority.credentials.own_domain())?;
                anyhow::bail!("{}", how_to_sign(&csr))
            }
        }
    }

    /// The new intermediate: its key and request are made, and its certificate is looked for, while it is prepared.
    fn load_successor(&mut self, authority: &Authority) -> anyhow::Result<()> {
        let Some(rotation) = self.course.running().filter(|_| !self.course.promoted) else {
            self.successor = None;
            self.next.clear();
            return Ok(());
        };
        let directory = authority.store.path(NEXT);
        if rotation.state < State::Active {
            make_csr(&directory, authority.credentials.own_domain()).context("the new intermediate's request")?;
        }
        let content = std::fs::read(directory.join(names::INTERMEDIATE_CERTIFICATE)).unwrap_or_default();
        if content.is_empty() {
            self.successor = None;
            return Ok(());
        }
        if content == self.next && self.successor.is_some() {
            return Ok(());
        }
        self.successor = None;
        let anchors: Vec<_> = match (rotation.level, &self.course.new_root) {
            (Level::Root, Some(new)) => vec![new.0.clone()],
            (Level::Root, None) => anyhow::bail!("the new intermediate is here before the new root"),
            (Level::Intermediate, _) => self.roots.clone(),
        };
        let loaded = Intermediate::load_under(&directory, &authority.credentials, &anchors)?;
        self.successor = loaded.map(Arc::new);
        self.next = content;
        Ok(())
    }

    /// Once retired, the new intermediate takes the old one's place, whose key is destroyed by that. May be done again
    /// after a crash at any point: what has been moved is not there to be moved.
    fn promote(&mut self, authority: &Authority) -> anyhow::Result<()> {
        let retired = self.course.rotation.as_ref().is_some_and(Rotation::is_over);
        if !retired || self.course.promoted {
            return Ok(());
        }
        let kept = &authority.store.kept;
        for name in [names::INTERMEDIATE_KEY, names::INTERMEDIATE_CSR, names::INTERMEDIATE_CERTIFICATE] {
            kept.rename(&format!("{NEXT}/{name}"), name)?;
        }
        let course = Course { promoted: true, ..self.course.clone() };
        self.keep(course, authority).map_err(|refused| anyhow::anyhow!(refused.message))
    }

    fn forget_next(&mut self, authority: &Authority) -> std::io::Result<()> {
        for name in [names::INTERMEDIATE_CERTIFICATE, names::INTERMEDIATE_CSR, names::INTERMEDIATE_KEY] {
            if authority.store.path(NEXT).join(name).exists() {
                authority.store.kept.remove(&format!("{NEXT}/{name}"))?;
            }
        }
        self.successor = None;
        self.next.clear();
        Ok(())
    }
}

pub(crate) fn failed(what: &str, error: &dyn std::fmt::Display) -> Refused {
    Refused::new(format!("{what}: {error}"), "see whether the disk is full; nothing has changed, so try again")
}

fn how_to_sign(csr: &std::path::Path) -> String {
    format!(
        "the intermediate is not signed yet; nothing can be issued\nhint: where the root's key is, run: hawser trust \
         intermediate {csr}, and bring intermediate.crt to the same directory",
        csr = csr.display()
    )
}

/// Says each trouble once, when it begins and when it changes, and not each second.
#[derive(Default)]
struct Complaints(std::collections::BTreeMap<&'static str, String>);

impl Complaints {
    fn hear(&mut self, what: &'static str, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => {
                self.0.remove(what);
            }
            Err(error) if self.0.get(what) == Some(&error) => {}
            Err(error) => {
                tracing::warn!(what, "{error}");
                self.0.insert(what, error);
            }
        }
    }
}

#[cfg(test)]
mod tests;
