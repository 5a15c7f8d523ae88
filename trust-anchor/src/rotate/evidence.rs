//! What a rotation is decided by: who has loaded what, what rests on what, and what the clock is worth. Pure.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use hawser_api::TrustDomain;
use hawser_api::proto::issuer::{FabricReport, LinkedPeer, Validator};
use hawser_runtime::clock::millis;
use hawser_tunnel::verify::AuthorityId;

use super::{Missing, Refused, Rotation};

/// A report that is older proves nothing: they come every few seconds.
pub(crate) const REPORT_AGE_MAX: Duration = Duration::from_secs(15);
/// Clocks that differ by less agree: leaves are dated back by as much.
pub(crate) const CLOCK_AGREES: Duration = Duration::from_secs(60);
/// Peers whose clocks must agree, where there are as many.
const CLOCK_PEERS: usize = 2;
/// Most who are named in one refusal; the number of the others is said.
const NAMED_MAX: usize = 50;

/// A certificate that was issued here, is not over, and was not replaced by its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LiveLeaf {
    pub(crate) spiffe_id: String,
    pub(crate) serial: String,
    pub(crate) issuer: AuthorityId,
    pub(crate) issued_ms: i64,
    pub(crate) not_after_ms: i64,
}

/// What this trust anchor's clock is worth.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ClockEvidence {
    /// The wall clock has moved against the monotonic one and nobody has confirmed it, by so many seconds.
    pub(crate) moved_s: Option<i64>,
    /// Linked clusters that are alive.
    pub(crate) alive: usize,
    /// Of those, whose clocks agree.
    pub(crate) agree: usize,
    /// And whose do not: name, and by how many milliseconds they are ahead.
    pub(crate) differ: Vec<(String, i64)>,
}

impl ClockEvidence {
    /// From the report and the move of our own clock, if it has moved.
    pub(crate) fn new(fabric: Option<&FabricReport>, moved_s: Option<i64>) -> Self {
        let mut evidence = Self { moved_s, ..Self::default() };
        for peer in fabric.into_iter().flat_map(|fabric| &fabric.peers) {
            if !peer.alive {
                // Clocks that differ by more than certificates live are why it does not answer. That a certificate is
                // over has other reasons too; that one has not begun has none.
                let differs =
                    peer.dated_ahead && u128::from(peer.clock_ahead_ms.unsigned_abs()) > CLOCK_AGREES.as_millis();
                evidence.differ.extend(differs.then(|| (peer.cluster.clone(), peer.clock_ahead_ms)));
                continue;
            }
            evidence.alive += 1;
            if !peer.clock_known {
                continue;
            }
            if u128::from(peer.clock_ahead_ms.unsigned_abs()) <= CLOCK_AGREES.as_millis() {
                evidence.agree += 1;
            } else {
                evidence.differ.push((peer.cluster.clone(), peer.clock_ahead_ms));
            }
        }
        evidence
    }

    fn wanted(&self) -> usize {
        self.alive.min(CLOCK_PEERS)
    }

    /// Whether enough peers say that it is right.
    pub(crate) fn confirmed(&self) -> bool {
        self.alive > 0 && self.agree >= self.wanted() && self.differ.len() < CLOCK_PEERS
    }

    /// Whether it is so wrong that what is signed now would be refused elsewhere: two peers or more say so, and none
    /// says the contrary.
    pub(crate) fn wrong(&self) -> bool {
        self.differ.len() >= CLOCK_PEERS && self.agree == 0
    }

    /// Whether a step may be taken that cannot be taken back without harm.
    pub(crate) fn may_step(&self) -> Result<(), Refused> {
        const REMEDY: &str = "set this machine's clock, or the other's: hawser trust status shows each";
        // That peers agree may be of before the move: when they confirm it, it is one no more (`clocks`).
        if let Some(moved) = self.moved_s {
            return Err(Refused::new(format!("the clock has moved by {moved} s"), REMEDY));
        }
        let nobody_agrees = self.agree == 0 && !self.differ.is_empty();
        if self.agree >= self.wanted() && !nobody_agrees {
            return Ok(());
        }
        let differ: Vec<_> = self.differ.iter().map(|(name, ahead)| format!("{name} {ahead} ms")).collect();
        let differ = if differ.is_empty() { "the others have not told theirs".to_owned() } else { differ.join(", ") };
        let (agree, wanted) = (self.agree, self.wanted().max(1));
        Err(Refused::new(
            format!("the clocks of {agree} of {wanted} linked clusters agree with ours: {differ}"),
            REMEDY,
        ))
    }
}

/// All that a step is decided by.
#[derive(Debug, Clone)]
pub(crate) struct Evidence<'a> {
    pub(crate) domain: &'a TrustDomain,
    /// Our bundle in force.
    pub(crate) sequence: u64,
    /// Its authorities.
    pub(crate) published: BTreeSet<AuthorityId>,
    /// The authorities that go: intermediate and, with a root, that.
    pub(crate) old: BTreeSet<AuthorityId>,
    /// The authorities that come and would be withdrawn by a rollback: with a root, it and its intermediate.
    pub(crate) new: BTreeSet<AuthorityId>,
    /// Of those, what validators must hold as an anchor.
    pub(crate) new_anchors: BTreeSet<AuthorityId>,
    /// A new root has been handed over and checked.
    pub(crate) has_new_root: bool,
    /// The new intermediate, signed and checked.
    pub(crate) successor: Option<AuthorityId>,
    /// The intermediate that signs now.
    pub(crate) signing: Option<AuthorityId>,
    pub(crate) old_signer_until: Option<SystemTime>,
    pub(crate) old_root_until: Option<SystemTime>,
    pub(crate) fabric: Option<&'a FabricReport>,
    pub(crate) fabric_age: Duration,
    pub(crate) leaves: &'a [LiveLeaf],
    pub(crate) clock: ClockEvidence,
}

fn ids<'b>(bytes: impl IntoIterator<Item = &'b Vec<u8>>) -> BTreeSet<AuthorityId> {
    bytes.into_iter().filter_map(|bytes| AuthorityId::try_from(bytes.as_slice()).ok()).collect()
}

/// A validator's name for people.
pub(crate) fn validator_name(validator: &Validator) -> String {
    format!("{}/{}", validator.kind, validator.name)
}

/// A linked cluster's.
pub(crate) fn peer_name(peer: &LinkedPeer) -> String {
    format!("cluster/{}", peer.cluster)
}

fn missing(who: String, why: impl Into<String>, since_ms: i64, last_sequence: u64) -> Missing {
    Missing { who, why: why.into(), since_ms, last_sequence, until_ms: 0 }
}

impl Evidence<'_> {
    /// The report, or the one who should have made it.
    fn report(&self, rotation: &Rotation, now: SystemTime) -> Result<Option<&FabricReport>, Missing> {
        const WHO: &str = "mirror-controller";
        match self.fabric {
            Some(fabric) if self.fabric_age <= REPORT_AGE_MAX => Ok(Some(fabric)),
            _ if rotation.excludes(WHO) => Ok(None),
            Some(_) => {
                let since = now.checked_sub(self.fabric_age).map_or(0, millis);
                Err(missing(WHO.into(), "does not report who has loaded what any more", since, 0))
            }
            None => Err(missing(WHO.into(), "has never reported who has loaded what", 0, 0)),
        }
    }

    /// Who has not loaded every published authority.
    pub(crate) fn not_holding(&self, rotation: &Rotation, now: SystemTime) -> Vec<Missing> {
        let fabric = match self.report(rotation, now) {
            Ok(fabric) => fabric,
            Err(missing) => return vec![missing],
        };
        let validators = fabric.into_iter().flat_map(|fabric| &fabric.validators);
        let validators = validators.filter_map(|validator| self.validator_lacks(validator));
        let peers = fabric.into_iter().flat_map(|fabric| &fabric.peers).filter_map(|peer| self.peer_lacks(peer));
        validators.chain(peers).filter(|missing| !rotation.excludes(&missing.who)).take(NAMED_MAX).collect()
    }

    /// What a validator has loaded of our trust domain: sequence and authorities.
    pub(crate) fn loaded(&self, validator: &Validator) -> Option<(u64, BTreeSet<AuthorityId>)> {
        let trust = validator.trust.as_ref()?;
        let loaded = trust.loaded.iter().find(|loaded| loaded.trust_domain == self.domain.as_str())?;
        Some((loaded.sequence, ids(&loaded.authorities)))
    }

    /// Why a validator has not proved, if it has not.
    pub(crate) fn validator_lacks(&self, validator: &Validator) -> Option<Missing> {
        let who = validator_name(validator);
        let loaded = self.loaded(validator);
        let sequence = loaded.as_ref().map_or(0, |(sequence, _)| *sequence);
        let why = match loaded {
            _ if !validator.connected => "is not connected to the mirror controller",
            None => "has not said what it has loaded",
            Some((_, held)) if !held.is_superset(&self.published) => "has not loaded every published authority",
            Some(_) => return None,
        };
        Some(missing(who, why, validator.seen_ms, sequence))
    }

    /// Why a linked cluster has not proved, if it has not.
    pub(crate) fn peer_lacks(&self, peer: &LinkedPeer) -> Option<Missing> {
        let who = peer_name(peer);
        let acknowledgement = peer.acknowledgement.as_ref();
        let sequence = acknowledgement.map_or(0, |acknowledgement| acknowledgement.sequence);
        let why = match acknowledgement {
            _ if !peer.alive => "does not answer".to_owned(),
            None => "has not said what it has loaded".to_owned(),
            Some(said) if said.silent > 0 => {
                format!("{} of its {} validators have not said what they have loaded", said.silent, said.validators)
            }
            Some(said) if ids(&said.authorities).is_superset(&self.published) => return None,
            Some(said) if said.pinned => "its Link pins our bundle by hand and was not updated".to_owned(),
            Some(_) => "has not loaded every published authority".to_owned(),
        };
        Some(missing(who, why, peer.seen_ms, sequence))
    }

    /// Linked clusters that will not learn of these anchors, because somebody wrote down others.
    pub(crate) fn pinned_without(&self, anchors: &BTreeSet<AuthorityId>, rotation: &Rotation) -> Vec<Missing> {
        let peers = self.fabric.into_iter().flat_map(|fabric| &fabric.peers);
        peers
            .filter_map(|peer| {
                let said = peer.acknowledgement.as_ref().filter(|said| said.pinned)?;
                let lacks = !ids(&said.authorities).is_superset(anchors);
                let why = "its Link pins our bundle by hand and was not updated";
                lacks.then(|| missing(peer_name(peer), why, peer.seen_ms, said.sequence))
            })
            .filter(|missing| !rotation.excludes(&missing.who))
            .take(NAMED_MAX)
            .collect()
    }

    /// What still rests on any of these authorities: leaves in use, tunnels and sessions, here and elsewhere.
    pub(crate) fn resting_on(
        &self,
        authorities: &BTreeSet<AuthorityId>,
        rotation: &Rotation,
        now: SystemTime,
    ) -> Vec<Missing> {
        if authorities.is_empty() {
            return Vec::new();
        }
        let fabric = match self.report(rotation, now) {
            Ok(fabric) => fabric,
            Err(missing) => return vec![missing],
        };
        let mut resting = Vec::new();
        for validator in fabric.into_iter().flat_map(|fabric| &fabric.validators) {
            validator_rests(validator, authorities, &mut resting);
        }
        for peer in fabric.into_iter().flat_map(|fabric| &fabric.peers) {
            peer_rests(peer, authorities, &mut resting);
        }
        let now_ms = millis(now);
        let leaves = self.leaves.iter().filter(|leaf| leaf.not_after_ms > now_ms && authorities.contains(&leaf.issuer));
        resting.extend(leaves.map(|leaf| Missing {
            until_ms: leaf.not_after_ms,
            ..missing(
                leaf.spiffe_id.clone(),
                format!("its certificate {} was issued by it", leaf.serial),
                leaf.issued_ms,
                0,
            )
        }));
        resting.retain(|missing| !rotation.excludes(&missing.who));
        resting.sort();
        resting.truncate(NAMED_MAX);
        resting
    }
}

/// Where there are too many to name, those that are left over have no name, and may be any.
fn may_be(authorities: &BTreeSet<AuthorityId>, bytes: &[u8]) -> bool {
    bytes.is_empty() || covers(authorities, bytes)
}

fn covers(authorities: &BTreeSet<AuthorityId>, bytes: &[u8]) -> bool {
    AuthorityId::try_from(bytes).is_ok_and(|id| authorities.contains(&id))
}

/// Of any trust domain: a linked cluster may hang under the same root.
fn validator_rests(validator: &Validator, authorities: &BTreeSet<AuthorityId>, resting: &mut Vec<Missing>) {
    let who = validator_name(validator);
    let Some(trust) = validator.trust.as_ref().filter(|_| validator.connected) else {
        // What it held when it was last heard of may be open still.
        resting.push(missing(who, "is not connected: it cannot say what it has open", validator.seen_ms, 0));
        return;
    };
    for on in trust.dependences.iter().filter(|on| on.live > 0 && may_be(authorities, &on.authority)) {
        let why = format!("{} tunnels or sessions of {} rest on it", on.live, on.trust_domain);
        resting.push(Missing { until_ms: on.until_ms, ..missing(who.clone(), why, validator.seen_ms, 0) });
    }
    if let Some(leaf) = &trust.leaf
        && (covers(authorities, &leaf.issuer) || covers(authorities, &leaf.anchor))
    {
        let why = "its own certificate rests on it";
        resting.push(Missing { until_ms: leaf.not_after_ms, ..missing(who, why, validator.seen_ms, 0) });
    }
}

fn peer_rests(peer: &LinkedPeer, authorities: &BTreeSet<AuthorityId>, resting: &mut Vec<Missing>) {
    let who = peer_name(peer);
    let Some(said) = peer.acknowledgement.as_ref().filter(|_| peer.alive) else {
        resting.push(missing(who, "does not answer: it cannot say what it has open", peer.seen_ms, 0));
        return;
    };
    if said.silent > 0 {
        resting.push(missing(who.clone(), "not all of its validators say what they have open", peer.seen_ms, 0));
    }
    for on in said.dependences.iter().filter(|on| on.live > 0 && may_be(authorities, &on.authority)) {
        let why = format!("{} tunnels or sessions there rest on it", on.live);
        resting.push(Missing { until_ms: on.until_ms, ..missing(who.clone(), why, peer.seen_ms, said.sequence) });
    }
}
