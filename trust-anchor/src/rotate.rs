//! When an authority may be replaced, and when not yet: pure, from the state, the evidence and the time.
//!
//! ```text
//! idle ─▶ prepared ─▶ published ─▶ proved ─▶ active ─▶ draining ─▶ retired
//!   ◀────────┘ ◀──────────┴───────────┘ ◀──────┴──────────┘ ◀─────────┘        back, one step each
//! ```
//!
//! A root and an intermediate go the same way. What a state means is written in [`State`]; who does what it takes is
//! [`drive`](crate::drive). A step is refused by saying who is missing, since when, and what to do about it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use hawser_runtime::clock::millis;
use hawser_tunnel::verify::AuthorityId;
use serde::{Deserialize, Serialize};

pub(crate) mod course;
pub(crate) mod evidence;
#[cfg(test)]
mod tests;

pub(crate) use evidence::{ClockEvidence, Evidence, LiveLeaf};

/// Most exclusions of one rotation; who must exclude more has another trouble.
const EXCLUDED_MAX: usize = 64;

/// Which authority is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// The fabric's root, and with it the cluster's intermediate.
    Root,
    /// The cluster's intermediate under the same root.
    Intermediate,
}

/// How far a rotation is. "Old" and "new" are the authorities that go and come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Begun: the new authority is waited for.
    Idle,
    /// The new authority is here, and published nowhere.
    Prepared,
    /// The bundle has old and new.
    Published,
    /// Every validator of this cluster and of each linked one has loaded both.
    Proved,
    /// New leaves are signed under the new authority.
    Active,
    /// Nothing is signed under the old authority any more; what rests on it runs out.
    Draining,
    /// The bundle has the new authority alone.
    Retired,
}

const ALL: [State; 7] =
    [State::Idle, State::Prepared, State::Published, State::Proved, State::Active, State::Draining, State::Retired];

impl State {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Prepared => "prepared",
            Self::Published => "published",
            Self::Proved => "proved",
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Retired => "retired",
        }
    }

    /// All, as words.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        ALL.into_iter().map(Self::as_str)
    }

    /// The one that follows; `None` at the end.
    pub(crate) fn next(self) -> Option<Self> {
        ALL.into_iter().find(|state| *state > self)
    }
}

impl FromStr for State {
    type Err = Refused;
    fn from_str(text: &str) -> Result<Self, Refused> {
        let found = ALL.into_iter().find(|state| state.as_str() == text);
        found.ok_or_else(|| {
            let all: Vec<_> = Self::names().collect();
            Refused::new(format!("{text:?} is no state of a rotation"), format!("there are: {}", all.join(", ")))
        })
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Level {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Intermediate => "intermediate",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Somebody whose word is not waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Excluded {
    pub(crate) name: String,
    pub(crate) reason: String,
    pub(crate) at_ms: i64,
}

/// One rotation, as it is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Rotation {
    pub(crate) level: Level,
    pub(crate) state: State,
    /// Since when it is in this state.
    pub(crate) since_ms: i64,
    /// The last state that is entered without an operator's word.
    pub(crate) pause_at: State,
    #[serde(default)]
    pub(crate) excluded: Vec<Excluded>,
}

/// What is asked of a rotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// One step on, if nothing speaks against it.
    Go,
    /// One step back; it stays there until it is told to go on.
    Back,
    /// Go on up to this state.
    PauseAt(State),
    /// Do without this one's word.
    Exclude { name: String, reason: String },
}

/// Who stands in the way of a step.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Missing {
    pub(crate) who: String,
    pub(crate) why: String,
    /// Since when; 0: it was never heard of.
    pub(crate) since_ms: i64,
    pub(crate) last_sequence: u64,
    /// When it is over by itself; 0: not by itself.
    pub(crate) until_ms: i64,
}

/// Why a step is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) message: String,
    pub(crate) remedy: String,
    pub(crate) missing: Vec<Missing>,
}

impl Refused {
    pub(crate) fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: remedy.into(), missing: Vec::new() }
    }

    fn missing(message: impl Into<String>, remedy: &str, missing: Vec<Missing>) -> Self {
        Self { missing, ..Self::new(message, remedy) }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        for missing in &self.missing {
            write!(f, "; {}: {}", missing.who, missing.why)?;
        }
        Ok(())
    }
}

impl Rotation {
    pub(crate) fn new(level: Level, pause_at: State, now: SystemTime) -> Self {
        Self { level, state: State::Idle, since_ms: millis(now), pause_at, excluded: Vec::new() }
    }

    pub(crate) fn excludes(&self, who: &str) -> bool {
        let bare = who.split_once('/').filter(|(kind, _)| !kind.ends_with(':')).map_or(who, |(_, name)| name);
        self.excluded.iter().any(|excluded| excluded.name == who || excluded.name == bare)
    }

    /// Whether it is over: nothing is left to do, and another may begin.
    pub(crate) fn is_over(&self) -> bool {
        self.state == State::Retired
    }

    fn at(&self, state: State, now: SystemTime) -> Self {
        Self { state, since_ms: millis(now), ..self.clone() }
    }
}

/// The rotation after an event, or why it is not taken. `Ok(None)`: there is no rotation any more.
pub(crate) fn rotate(
    rotation: &Rotation,
    event: Event,
    evidence: &Evidence<'_>,
    now: SystemTime,
) -> Result<Option<Rotation>, Refused> {
    match event {
        Event::Go => {
            let next = rotation.state.next().ok_or_else(over)?;
            may_enter(rotation, next, evidence, now)?;
            Ok(Some(rotation.at(next, now)))
        }
        Event::Back => {
            let Some(state) = before(rotation, evidence, now)? else { return Ok(None) };
            Ok(Some(Rotation { pause_at: state, ..rotation.at(state, now) }))
        }
        Event::PauseAt(state) if state < rotation.state => Err(Refused::new(
            format!("the rotation is {} already, past {state}", rotation.state),
            "to go back a step: hawser trust rotate --rollback",
        )),
        Event::PauseAt(state) => Ok(Some(Rotation { pause_at: state, ..rotation.clone() })),
        Event::Exclude { name, reason } => exclude(rotation, name, reason, now).map(Some),
    }
}

fn over() -> Refused {
    Refused::new("the rotation is over", "to begin another: hawser trust rotate root | intermediate")
}

fn exclude(rotation: &Rotation, name: String, reason: String, now: SystemTime) -> Result<Rotation, Refused> {
    if rotation.is_over() {
        return Err(over());
    }
    if rotation.excluded.len() >= EXCLUDED_MAX {
        return Err(Refused::new(
            format!("{EXCLUDED_MAX} are excluded already"),
            "see why so many do not answer: hawser trust status",
        ));
    }
    let mut next = rotation.clone();
    if !next.excludes(&name) {
        next.excluded.push(Excluded { name, reason, at_ms: millis(now) });
    }
    Ok(next)
}

/// Whether everything is there that it takes to enter a state from the one before it.
fn may_enter(rotation: &Rotation, state: State, evidence: &Evidence<'_>, now: SystemTime) -> Result<(), Refused> {
    match state {
        State::Idle => Err(over()),
        State::Prepared => prepared(rotation, evidence),
        State::Published => published(rotation, evidence),
        State::Proved => proved(rotation, evidence, now),
        State::Active => {
            // Once more: who came since is a validator as well.
            proved(rotation, evidence, now)?;
            signed(evidence)?;
            evidence.clock.may_step()
        }
        State::Draining => switched(evidence),
        State::Retired => {
            drained(rotation, &evidence.old, evidence, now)?;
            evidence.clock.may_step()
        }
    }
}

fn prepared(rotation: &Rotation, evidence: &Evidence<'_>) -> Result<(), Refused> {
    match rotation.level {
        Level::Root if !evidence.has_new_root => Err(Refused::new(
            "the new root is not here",
            "where the root's key lives: hawser trust init --next; then: hawser trust provide root/next/root.crt",
        )),
        Level::Root => Ok(()),
        Level::Intermediate => signed(evidence),
    }
}

fn signed(evidence: &Evidence<'_>) -> Result<(), Refused> {
    match evidence.successor {
        None => Err(Refused::new(
            "the new intermediate is not signed",
            "where the root's key lives: hawser trust intermediate FILE with the request that `hawser trust status` \
             names; then: hawser trust provide intermediate.crt",
        )),
        Some(successor) if evidence.old.contains(&successor) => Err(Refused::new(
            "the new intermediate has the key of the old one",
            "a rotation makes a new key: begin it again, hawser trust rotate intermediate",
        )),
        Some(_) => Ok(()),
    }
}

fn published(rotation: &Rotation, evidence: &Evidence<'_>) -> Result<(), Refused> {
    let pinned = evidence.pinned_without(&evidence.new_anchors, rotation);
    if pinned.is_empty() {
        return Ok(());
    }
    Err(Refused::missing(
        "a linked cluster has pinned this cluster's bundle by hand",
        "put the new root into its Link's bundle there, or leave it behind: hawser trust rotate --exclude NAME",
        pinned,
    ))
}

fn proved(rotation: &Rotation, evidence: &Evidence<'_>, now: SystemTime) -> Result<(), Refused> {
    let missing = evidence.not_holding(rotation, now);
    if missing.is_empty() {
        return Ok(());
    }
    Err(Refused::missing(
        format!("not everybody has loaded the bundle with sequence {}", evidence.sequence),
        "bring them back, or leave them behind: hawser trust rotate --exclude NAME",
        missing,
    ))
}

fn switched(evidence: &Evidence<'_>) -> Result<(), Refused> {
    if evidence.successor.is_some() && evidence.signing == evidence.successor {
        return Ok(());
    }
    Err(Refused::new(
        "this trust anchor does not sign with the new intermediate yet",
        "see its log for what is wrong with it; to sign with the old one again: hawser trust rotate --rollback",
    ))
}

/// Whether nothing rests on these authorities, here or at a linked cluster.
fn drained(
    rotation: &Rotation,
    authorities: &BTreeSet<AuthorityId>,
    evidence: &Evidence<'_>,
    now: SystemTime,
) -> Result<(), Refused> {
    let resting = evidence.resting_on(authorities, rotation, now);
    if resting.is_empty() {
        return Ok(());
    }
    Err(Refused::missing(
        "certificates or connections still rest on it",
        "they are renewed and moved by themselves; to renew at once: hawser trust taint --all-leaves",
        resting,
    ))
}

/// The state before; `None`: the rotation is given up.
fn before(rotation: &Rotation, evidence: &Evidence<'_>, now: SystemTime) -> Result<Option<State>, Refused> {
    match rotation.state {
        State::Idle | State::Prepared => Ok(None),
        State::Published | State::Proved => {
            // What was signed under the new root while it was active must not lose its anchor.
            drained(rotation, &evidence.new, evidence, now)?;
            Ok(Some(State::Prepared))
        }
        State::Active | State::Draining => {
            valid(evidence.old_signer_until, now, "the old intermediate is over: nothing can be signed with it")?;
            Ok(Some(State::Proved))
        }
        State::Retired if rotation.level == Level::Root => {
            valid(evidence.old_root_until, now, "the old root is over: nobody would take it")?;
            Ok(Some(State::Draining))
        }
        State::Retired => Err(Refused::new(
            "the old intermediate's key has been destroyed",
            "to replace the new one: hawser trust rotate intermediate",
        )),
    }
}

fn valid(until: Option<SystemTime>, now: SystemTime, otherwise: &str) -> Result<(), Refused> {
    if until.is_some_and(|until| now < until) {
        return Ok(());
    }
    Err(Refused::new(otherwise, "go on instead: hawser trust rotate --resume"))
}
