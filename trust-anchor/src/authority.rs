//! What answers requests: the intermediate, the bundle, and whom we trust and deny, each replaced while it serves.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use hawser_api::bundle::JwtAuthority;
use hawser_api::proto::issuer::{
    AcceptedBundle, AuditEvent, Bundle, FabricReport, IssueReply, IssueRequest, RedeemLinkRequest,
};
use hawser_api::{ClusterName, SpiffeId};
use hawser_runtime::{Process, clock};
use hawser_tunnel::identity::denials;
use hawser_tunnel::tls::Credentials;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::accepted;
use crate::admit::token_review::{Reviewed, TokenRefused};
use crate::admit::{Admitted, admit};
use crate::audit::{Audit, Caller, Entry, Keeping};
use crate::config::Config;
use crate::drive::{Driver, failed};
use crate::issue::{Lifetimes, Template, Terms, WORKLOAD_LIFETIME_MAX, issue};
use crate::limit::Limits;
use crate::link::LinksConfig;
use crate::link::redeem::{Here, Redeemer};
use crate::record::Record;
use crate::refused::Refused;
use crate::revoke::{self, DenyList};
use crate::rotate;
use crate::signer::{Intermediate, Leaf};
use crate::store::Store;

/// Processes that must renew early do so within this time: long enough for ten thousand of them, short enough for a key
/// that is suspected.
const RENEW_WITHIN_MS: u32 = 5_000;
/// By how much the clock may have been set between two runs, for what is read again of the audit log.
const CLOCK_MAX: Duration = Duration::from_secs(3600);

/// One for the whole process.
pub(crate) struct Authority {
    pub(crate) store: Store,
    pub(crate) cluster: ClusterName,
    /// Our own anchors, by which renewals are verified.
    pub(crate) credentials: Credentials,
    pub(crate) intermediate: ArcSwapOption<Intermediate>,
    /// The bundle as a document; empty before there is one.
    pub(crate) bundle: watch::Sender<String>,
    /// The keys that sign JWT-SVIDs, published beside the roots.
    pub(crate) jwt: watch::Sender<Vec<JwtAuthority>>,
    /// All that every process is told: the bundle, who is denied, who is to renew.
    announced: watch::Sender<Bundle>,
    /// Who has loaded what, as the mirror controller last said, and when that was.
    pub(crate) fabric: watch::Sender<Option<(FabricReport, Instant)>>,
    pub(crate) record: Arc<Record>,
    pub(crate) denials: Mutex<DenyList>,
    pub(crate) driver: Mutex<Driver>,
    /// Why the clock forbids to issue, if it does.
    pub(crate) clock_trouble: ArcSwapOption<String>,
    pub(crate) audit_log: Audit,
    /// Held while our own certificate is made.
    pub(crate) own_svid: Mutex<()>,
    limits: Limits,
    redeemer: Redeemer,
    links: Option<LinksConfig>,
    lifetimes: Lifetimes,
}

impl Authority {
    pub(crate) fn open(config: &Config, process: &Process) -> anyhow::Result<Arc<Self>> {
        let store = Store::open(&config.state)?;
        let now = clock::now();
        let record = Arc::new(Record::new(process));
        let keeping = Keeping::lines_of(WORKLOAD_LIFETIME_MAX + CLOCK_MAX);
        let audit_log = Audit::open(&store.kept, keeping, now, |line| record.replay(line))?;
        record.audit_trouble(audit_log.trouble.is_some());
        let denied = DenyList::read(&store.kept)?;
        let accepted = accepted::read(&store.kept)?;
        let authority = Self {
            driver: Mutex::new(Driver::open(&store, config.root_certificate.clone())?),
            store,
            cluster: config.cluster.clone(),
            credentials: Credentials::new(config.trust_domain.clone(), clock::now),
            intermediate: ArcSwapOption::empty(),
            bundle: watch::Sender::new(String::new()),
            jwt: watch::Sender::new(Vec::new()),
            announced: watch::Sender::new(Bundle { renew_within_ms: RENEW_WITHIN_MS, accepted, ..Bundle::default() }),
            fabric: watch::Sender::new(None),
            record,
            denials: Mutex::default(),
            clock_trouble: ArcSwapOption::empty(),
            audit_log,
            own_svid: Mutex::default(),
            limits: Limits::default(),
            redeemer: Redeemer::default(),
            links: config.links.clone(),
            lifetimes: config.lifetimes(),
        };
        authority.deny(denied);
        Ok(Arc::new(authority))
    }

    /// What every process is told, now and whenever it changes; nothing before there is a bundle.
    pub(crate) fn watch(&self) -> watch::Receiver<Bundle> {
        self.announced.subscribe()
    }

    /// Changes what every process is told; who is told already hears of true changes only.
    pub(crate) fn announce(&self, change: impl FnOnce(&mut Bundle)) {
        self.announced.send_if_modified(|announced| {
            let before = announced.clone();
            change(announced);
            *announced != before
        });
    }

    /// Puts a deny-list into force, here and in every process.
    fn deny(&self, list: DenyList) {
        let message = list.message();
        self.credentials.set_denied(denials(&message));
        self.announce(|announced| announced.denied = Some(message));
        *self.denials.lock() = list;
    }

    /// Denies an entry, or no more: recorded, kept, told to everybody, in this order.
    pub(crate) fn revoke(&self, entry: revoke::Entry, undo: bool, now: SystemTime) -> Result<(), rotate::Refused> {
        let seconds = u64::try_from(clock::millis(now) / 1000).unwrap_or_default();
        let described = entry.describe();
        let Some(next) = self.denials.lock().with(entry, undo, seconds)? else { return Ok(()) };
        self.audit(if undo { "revoke-undone" } else { "revoke" }, &described, "", now)?;
        next.write(&self.store.kept).map_err(|e| failed("the deny-list cannot be written", &e))?;
        tracing::warn!(what = described, undo, version = next.version, "revoked");
        self.deny(next);
        Ok(())
    }

    /// Takes a linked cluster's bundle by hand.
    pub(crate) fn accept(&self, bundle: AcceptedBundle, pin: &str, now: SystemTime) -> Result<(), rotate::Refused> {
        let mut all = self.announced.borrow().accepted.clone();
        let what = format!("pin {pin}");
        self.audit("break-glass", &bundle.trust_domain, &what, now)?;
        accepted::add(&mut all, bundle);
        accepted::write(&all, &self.store.kept).map_err(|e| failed("the bundle cannot be written", &e))?;
        self.announce(|announced| announced.accepted = all);
        Ok(())
    }

    /// Records something that an operator or the machine does; it is not done if it cannot be recorded.
    pub(crate) fn audit(
        &self,
        event: &str,
        subject: &str,
        detail: &str,
        now: SystemTime,
    ) -> Result<(), rotate::Refused> {
        let entry = Entry { event: event.into(), subject: subject.into(), detail: detail.into(), ..Entry::default() };
        self.audit_log.append(entry, now).map(|_| ()).map_err(|e| failed("the audit log cannot be written", &e))
    }

    /// Records something that has happened whether it can be recorded or not.
    pub(crate) fn audit_or_log(&self, event: &str, subject: &str, detail: &str, now: SystemTime) {
        if let Err(refused) = self.audit(event, subject, detail, now) {
            tracing::error!(event, subject, detail, error = refused.message, "not in the audit log");
        }
    }

    /// Records an event of another daemon.
    pub(crate) fn audit_event(&self, event: AuditEvent, caller: Caller, now: SystemTime) -> Result<u64, Refused> {
        let AuditEvent { event, subject, detail, reporter } = event;
        // Unless its certificate has named it, it names itself; what the kernel says of it stands beside it.
        let caller = match caller.spiffe_id.is_empty() {
            true => Caller { spiffe_id: reporter, via: "reported".into(), ..caller },
            false => caller,
        };
        let entry = Entry { event, subject, detail, caller, ..Entry::default() };
        self.audit_log.append(entry, now).map_err(Refused::NotRecorded)
    }

    /// Admits, decides and signs; the answer, a refusal too, comes when it is on record. For a renewal that is a fraction
    /// of a millisecond of arithmetic; a token is looked for in files, which is not for an async thread. `worked` is called
    /// when only the disk is waited for, and what it gives is held until then, whoever has hung up.
    pub(crate) fn answer<H: Send + 'static>(
        &self,
        request: &IssueRequest,
        reviewed: Option<Result<Reviewed, TokenRefused>>,
        (caller, worked): (Caller, impl FnOnce() -> H),
        now: SystemTime,
    ) -> oneshot::Receiver<Result<IssueReply, Refused>> {
        let (answer, answered) = oneshot::channel();
        let signed = self.sign(request, reviewed, caller.clone(), now);
        let held = worked();
        match signed {
            Ok((reply, entry)) => {
                let record = Arc::clone(&self.record);
                // Nobody waits here: who waits for the disk keeps no other from being served.
                self.audit_log.append_then(entry.clone(), now, move |outcome| {
                    let recorded = outcome.map(|_| record.issued(&entry, now)).map_err(Refused::NotRecorded);
                    let _ = answer.send(recorded.map(|()| reply));
                    drop(held);
                });
            }
            Err(refused) if refused.is_denial() => {
                let entry = denial(refused.reason(), refused.to_string(), caller);
                self.audit_log.append_then(entry, now, move |outcome| {
                    or_log(outcome, refused.reason());
                    let _ = answer.send(Err(refused));
                    drop(held);
                });
            }
            Err(refused) => drop(answer.send(Err(refused))),
        }
        answered
    }

    /// Records that somebody was told that he may not; he is told all the same if it cannot be recorded. Waits for the
    /// disk: not for an async thread.
    pub(crate) fn denied(&self, subject: &str, detail: String, caller: Caller, now: SystemTime) {
        or_log(self.audit_log.append(denial(subject, detail, caller), now), subject);
    }

    fn sign(
        &self,
        request: &IssueRequest,
        reviewed: Option<Result<Reviewed, TokenRefused>>,
        caller: Caller,
        now: SystemTime,
    ) -> Result<(IssueReply, Entry), Refused> {
        // Before admission: a token must not be used up when nothing can be signed.
        let (intermediate, terms) = self.terms(now)?;
        let Admitted { subject, via, request, replaces, detail } =
            admit(request, reviewed, self.store.directory(), &self.credentials, now)?;
        self.may_have(&subject)?;
        let template = issue(request, &subject, &terms, now)?;
        let caller = Caller { spiffe_id: subject.to_string(), via: via.as_str().into(), ..caller };
        let entry = Entry { caller, replaces, detail, ..Entry::default() };
        let (leaf, entry) = signed(&intermediate, &template, entry)?;
        let chain = leaf.chain.iter().map(|der| der.to_vec()).collect();
        Ok((IssueReply { chain, bundle: self.bundle.borrow().clone() }, entry))
    }

    /// What signs, and by what it is bound; refused when nothing may be signed now.
    pub(crate) fn terms(&self, now: SystemTime) -> Result<(Arc<Intermediate>, Terms), Refused> {
        let intermediate = self.intermediate.load_full();
        let intermediate = intermediate.ok_or_else(|| Refused::NotReady("its intermediate is not signed".into()))?;
        let domain = self.credentials.own_domain().clone();
        let terms = Terms { domain, lifetimes: self.lifetimes, not_after: intermediate.not_after() };
        if now >= terms.not_after {
            return Err(Refused::IssuerExpired(terms.domain));
        }
        if let Some(trouble) = &*self.clock_trouble.load() {
            return Err(Refused::Clock(trouble.to_string()));
        }
        Ok((intermediate, terms))
    }

    /// Whether somebody who has proved who he is may have another certificate.
    pub(crate) fn may_have(&self, subject: &SpiffeId) -> Result<(), Refused> {
        if self.denials.lock().denies(subject) {
            return Err(Refused::Denied(subject.clone()));
        }
        self.limits.take(subject, clock::monotonic())
    }

    /// Signs and records; `entry` has the caller and what is replaced. On disk before it returns: what is out is on
    /// record, whatever happens next.
    pub(crate) fn certify(
        &self,
        intermediate: &Intermediate,
        template: &Template,
        entry: Entry,
        now: SystemTime,
    ) -> Result<Leaf, Refused> {
        let (leaf, entry) = signed(intermediate, template, entry)?;
        self.audit_log.append(entry.clone(), now).map_err(Refused::NotRecorded)?;
        self.record.issued(&entry, now);
        Ok(leaf)
    }

    /// Answers a joining cluster; refusals are answers too. Reads and writes files: not for an async thread.
    pub(crate) fn redeem(&self, request: &RedeemLinkRequest, now: SystemTime) -> Vec<u8> {
        let bundle = self.bundle.borrow().clone();
        let here = Here {
            store: self.store.directory(),
            links: self.links.as_ref(),
            cluster: &self.cluster,
            trust_domain: self.credentials.own_domain(),
            bundle: &bundle,
        };
        let (reply, joined) = self.redeemer.answer(&request.request, &here, now);
        self.record.link_asked(joined.as_ref().map_or_else(|refusal| refusal.code.as_str(), |_| "linked"));
        let from: String = request.source.chars().filter(|c| !c.is_control()).take(64).collect();
        match joined {
            Ok(joined) => {
                tracing::info!(peer = %joined.peer, domain = %joined.trust_domain, from, "linked by token");
                let subject = format!("{} ({})", joined.peer, joined.trust_domain);
                self.audit_or_log("link", &subject, &format!("by token, from {from}"), now);
            }
            Err(refusal) => {
                tracing::warn!(reason = refusal.message, from, "a link by token was refused");
                self.audit_or_log("denial", "link", &format!("{}, from {from}", refusal.message), now);
            }
        }
        reply
    }
}

fn denial(subject: &str, detail: String, caller: Caller) -> Entry {
    Entry { event: "denial".into(), subject: subject.into(), detail, caller, ..Entry::default() }
}

fn or_log(recorded: Result<u64, String>, subject: &str) {
    if let Err(error) = recorded {
        tracing::error!(error, subject, "a denial is not in the audit log");
    }
}

/// Signs, and says what is to be recorded; `entry` has the caller and what is replaced.
fn signed(intermediate: &Intermediate, template: &Template, entry: Entry) -> Result<(Leaf, Entry), Refused> {
    let leaf = intermediate.sign(template).map_err(|e| Refused::Failed(e.to_string()))?;
    let entry = Entry {
        event: "issue".into(),
        subject: template.id.to_string(),
        serial: leaf.serial.clone(),
        key_sha256: template.key_hash.clone(),
        issuer: intermediate.id().to_string(),
        not_after_ms: Some(clock::millis(template.not_after)),
        ..entry
    };
    Ok((leaf, entry))
}
