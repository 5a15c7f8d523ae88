use std::time::{Duration, UNIX_EPOCH};

use hawser_api::TrustDomain;
use hawser_api::proto::catalog::{Dependence as PeerDependence, TrustAcknowledgement};
use hawser_api::proto::discovery::{Dependence, LoadedAnchors, OwnLeaf, TrustReport};
use hawser_api::proto::issuer::{FabricReport, LinkedPeer, Validator};
use proptest::prelude::*;

use super::*;

const NOW_S: u64 = 1_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW_S)
}

fn now_ms() -> i64 {
    millis(now())
}

fn id(n: u8) -> AuthorityId {
    AuthorityId([n; 32])
}

fn bytes(all: &[u8]) -> Vec<Vec<u8>> {
    all.iter().map(|n| vec![*n; 32]).collect()
}

/// Roots 1 (old) and 2 (new), intermediates 11 and 12.
const OLD_ROOT: u8 = 1;
const NEW_ROOT: u8 = 2;
const OLD: u8 = 11;
const NEW: u8 = 12;

#[derive(Debug)]
struct World {
    domain: TrustDomain,
    fabric: Option<FabricReport>,
    leaves: Vec<LiveLeaf>,
    published: Vec<u8>,
    level: Level,
    signing: u8,
    successor: Option<u8>,
    has_new_root: bool,
    fabric_age: Duration,
    moved_s: Option<i64>,
    old_until: Option<u64>,
}

fn validator(name: &str, holds: &[u8]) -> Validator {
    let loaded = LoadedAnchors { trust_domain: "west.example".into(), sequence: 7, authorities: bytes(holds) };
    Validator {
        name: name.into(),
        kind: "gateway".into(),
        connected: true,
        seen_ms: now_ms() - 1000,
        trust: Some(TrustReport { loaded: vec![loaded], ..TrustReport::default() }),
    }
}

fn peer(cluster: &str, holds: &[u8]) -> LinkedPeer {
    let acknowledgement =
        TrustAcknowledgement { sequence: 7, authorities: bytes(holds), validators: 3, ..Default::default() };
    LinkedPeer {
        cluster: cluster.into(),
        trust_domain: format!("{cluster}.example"),
        alive: true,
        seen_ms: now_ms() - 2000,
        acknowledgement: Some(acknowledgement),
        clock_known: true,
        ..LinkedPeer::default()
    }
}

impl World {
    /// Everything is there and nothing speaks against any step of a root's rotation.
    fn good() -> Self {
        let both = [OLD_ROOT, NEW_ROOT];
        Self {
            domain: "west.example".parse().unwrap(),
            fabric: Some(FabricReport {
                validators: vec![validator("g0", &both), validator("g1", &both)],
                peers: vec![peer("east", &both), peer("north", &both), peer("south", &both)],
            }),
            leaves: Vec::new(),
            published: both.to_vec(),
            level: Level::Root,
            signing: NEW,
            successor: Some(NEW),
            has_new_root: true,
            fabric_age: Duration::from_secs(1),
            moved_s: None,
            old_until: Some(NOW_S + 1000),
        }
    }

    fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut world = Self::good();
        change(&mut world);
        world
    }

    fn fabric(&mut self) -> &mut FabricReport {
        self.fabric.as_mut().unwrap()
    }

    fn said(&mut self, peer: usize) -> &mut TrustAcknowledgement {
        self.fabric().peers[peer].acknowledgement.as_mut().unwrap()
    }

    fn evidence(&self) -> Evidence<'_> {
        let root = self.level == Level::Root;
        let set = |all: &[u8]| all.iter().map(|n| id(*n)).collect();
        let until = self.old_until.map(|s| UNIX_EPOCH + Duration::from_secs(s));
        Evidence {
            domain: &self.domain,
            sequence: 7,
            published: set(&self.published),
            old: if root { set(&[OLD_ROOT, OLD]) } else { set(&[OLD]) },
            new: if root { set(&[NEW_ROOT, NEW]) } else { set(&[]) },
            new_anchors: if root { set(&[NEW_ROOT]) } else { set(&[]) },
            has_new_root: self.has_new_root,
            successor: self.successor.map(id),
            signing: Some(id(self.signing)),
            old_signer_until: until,
            old_root_until: until,
            fabric: self.fabric.as_ref(),
            fabric_age: self.fabric_age,
            leaves: &self.leaves,
            clock: ClockEvidence::new(self.fabric.as_ref(), self.moved_s),
        }
    }

    fn go(&self, from: State) -> Result<State, Refused> {
        self.event(&at(self.level, from), Event::Go).map(|next| next.unwrap().state)
    }

    fn back(&self, from: State) -> Result<Option<State>, Refused> {
        self.event(&at(self.level, from), Event::Back).map(|next| next.map(|next| next.state))
    }

    fn event(&self, rotation: &Rotation, event: Event) -> Result<Option<Rotation>, Refused> {
        rotate(rotation, event, &self.evidence(), now())
    }
}

fn at(level: Level, state: State) -> Rotation {
    Rotation { state, ..Rotation::new(level, State::Retired, UNIX_EPOCH) }
}

fn named(refused: &Refused) -> Vec<&str> {
    refused.missing.iter().map(|missing| missing.who.as_str()).collect()
}

#[test]
fn with_all_evidence_each_level_goes_from_idle_to_retired_and_no_further() {
    for level in [Level::Root, Level::Intermediate] {
        let world = World::with(|w| w.level = level);
        for pair in ALL.windows(2) {
            assert_eq!(world.go(pair[0]).unwrap(), pair[1], "{level}");
        }
        assert!(world.go(State::Retired).is_err());
    }
}

#[test]
fn nothing_is_prepared_before_the_new_authority_is_here() {
    assert!(World::with(|w| w.has_new_root = false).go(State::Idle).is_err());
    let unsigned = World::with(|w| (w.level, w.successor) = (Level::Intermediate, None));
    assert!(unsigned.go(State::Idle).unwrap_err().message.contains("not signed"));
}

#[test]
fn a_key_that_is_used_again_is_no_successor() {
    let world = World::with(|w| w.successor = Some(OLD));
    assert!(world.go(State::Proved).unwrap_err().message.contains("has the key of the old one"));
    let world = World::with(|w| (w.level, w.successor) = (Level::Intermediate, Some(OLD)));
    assert!(world.go(State::Idle).is_err());
}

#[test]
fn a_linked_cluster_that_pins_the_bundle_by_hand_is_named_before_anything_is_published() {
    let mut world = World::with(|w| {
        w.said(1).pinned = true;
        w.said(1).authorities = bytes(&[OLD_ROOT]);
    });
    let refused = world.go(State::Prepared).unwrap_err();
    assert_eq!(named(&refused), ["cluster/north"]);
    assert!(refused.remedy.contains("--exclude"));
    world.said(1).authorities = bytes(&[OLD_ROOT, NEW_ROOT]);
    assert_eq!(world.go(State::Prepared).unwrap(), State::Published, "its Link has both");
}

#[test]
fn whoever_has_not_loaded_both_is_named_with_the_time_and_sequence_of_his_last_word() {
    type Change = fn(&mut World);
    let cases: &[(&str, &str, Change)] = &[
        ("gateway/g1", "is not connected", |w| w.fabric().validators[1].connected = false),
        ("gateway/g1", "has not said", |w| w.fabric().validators[1].trust = None),
        ("gateway/g1", "has not loaded every", |w| w.fabric().validators[1] = validator("g1", &[OLD_ROOT])),
        ("gateway/g1", "has not loaded every", |w| w.fabric().validators[1] = validator("g1", &[NEW_ROOT])),
        ("gateway/g1", "has not said", |w| w.fabric().validators[1].trust.as_mut().unwrap().loaded.clear()),
        ("cluster/north", "does not answer", |w| w.fabric().peers[1].alive = false),
        ("cluster/north", "has not said", |w| w.fabric().peers[1].acknowledgement = None),
        ("cluster/north", "1 of its 3 validators", |w| w.said(1).silent = 1),
        ("cluster/north", "pins our bundle", |w| {
            w.said(1).authorities.clear();
            w.said(1).pinned = true;
        }),
        ("cluster/north", "has not loaded every", |w| w.said(1).authorities = bytes(&[OLD_ROOT])),
        ("mirror-controller", "does not report", |w| w.fabric_age = Duration::from_secs(16)),
        ("mirror-controller", "never reported", |w| w.fabric = None),
    ];
    for (who, why, change) in cases {
        let world = World::with(change);
        for state in [State::Published, State::Proved] {
            let refused = world.go(state).unwrap_err();
            assert_eq!(named(&refused), [*who], "{why}");
            assert!(refused.missing[0].why.contains(why), "{refused}");
        }
        // The operator may leave him behind, by the whole name or the bare one.
        for name in [*who, who.split('/').next_back().unwrap()] {
            let exclude = Event::Exclude { name: name.into(), reason: "broken".into() };
            let rotation = world.event(&at(Level::Root, State::Published), exclude).unwrap().unwrap();
            assert_eq!(rotation.excluded[0].reason, "broken");
            let next = world.event(&rotation, Event::Go).unwrap().unwrap();
            assert_eq!((next.state, next.excluded.len()), (State::Proved, 1), "{who} as {name}");
        }
    }
    let refused = World::with(|w| w.fabric().peers[1].alive = false).go(State::Published).unwrap_err();
    let missing = &refused.missing[0];
    assert_eq!((missing.since_ms, missing.last_sequence), (now_ms() - 2000, 7));
}

#[test]
fn nothing_becomes_active_while_the_clock_is_in_doubt() {
    type Change = fn(&mut World);
    let cases: &[(&str, bool, Change)] = &[
        ("all agree", true, |_| ()),
        ("moved, and what peers say may be of before", false, |w| w.moved_s = Some(7200)),
        ("moved, and nobody can be asked", false, |w| {
            w.moved_s = Some(7200);
            w.fabric().peers.clear();
        }),
        ("two are enough", true, |w| w.fabric().peers[0].clock_known = false),
        ("one is not", false, |w| {
            w.fabric().peers[0].clock_ahead_ms = 60_001;
            w.fabric().peers[1].clock_ahead_ms = -7_200_000;
        }),
        ("unless there is but one", true, |w| w.fabric().peers.truncate(1)),
        ("who must agree", false, |w| {
            w.fabric().peers.truncate(1);
            w.fabric().peers[0].clock_ahead_ms = i64::MIN;
        }),
        ("a cluster alone has nobody to ask", true, |w| w.fabric().peers.clear()),
        ("a minute apart agrees", true, |w| w.fabric().peers.iter_mut().for_each(|p| p.clock_ahead_ms = -60_000)),
    ];
    for (what, may, change) in cases {
        let world = World::with(change);
        assert_eq!(world.go(State::Proved).is_ok(), *may, "{what}");
        assert_eq!(world.go(State::Draining).is_ok(), *may, "{what}");
        assert!(world.go(State::Published).is_ok(), "{what}: the proof does not need a clock");
    }
}

#[test]
fn the_clock_of_a_peer_counts_that_is_shut_out_for_its_time() {
    let clock = |shut_out: usize, ahead_ms: i64| {
        let mut world = World::good();
        for peer in world.fabric().peers.iter_mut().take(shut_out) {
            (peer.alive, peer.dated_ahead, peer.clock_ahead_ms) = (false, true, ahead_ms);
        }
        world.evidence().clock
    };
    let all = clock(3, 7_200_000);
    assert!(all.wrong() && all.may_step().unwrap_err().message.contains("east 7200000 ms"));
    assert!(clock(3, 60_000).may_step().is_ok(), "certificates are dated back by that");
    let two = clock(2, 7_200_000);
    assert!(!two.wrong() && two.may_step().is_ok(), "one can come in, and agrees");
    // Whoever is away, or whose certificates are over, may have another reason for it.
    let mut away = World::good();
    away.fabric().peers.iter_mut().for_each(|peer| (peer.alive, peer.clock_ahead_ms) = (false, 7_200_000));
    assert!(away.evidence().clock.may_step().is_ok());
}

#[test]
fn draining_begins_when_this_trust_anchor_signs_with_the_new_one() {
    assert!(World::with(|w| w.signing = OLD).go(State::Active).is_err());
    assert!(World::with(|w| (w.signing, w.successor) = (OLD, None)).go(State::Active).is_err());
}

/// Something that rests on an authority.
fn rests(world: &mut World, how: usize, on: u8) {
    let until_ms = now_ms() + 5000;
    match how {
        0 => {
            let on = Dependence { trust_domain: "west.example".into(), authority: vec![on; 32], live: 3, until_ms };
            world.fabric().validators[0].trust.as_mut().unwrap().dependences.push(on);
        }
        1 => {
            let on = Dependence { trust_domain: "east.example".into(), authority: vec![on; 32], live: 3, until_ms };
            world.fabric().validators[0].trust.as_mut().unwrap().dependences.push(on);
        }
        2 => {
            let leaf = OwnLeaf { issuer: vec![on; 32], not_after_ms: until_ms, ..OwnLeaf::default() };
            world.fabric().validators[1].trust.as_mut().unwrap().leaf = Some(leaf);
        }
        3 => {
            let leaf = OwnLeaf { anchor: vec![on; 32], not_after_ms: until_ms, ..OwnLeaf::default() };
            world.fabric().validators[1].trust.as_mut().unwrap().leaf = Some(leaf);
        }
        4 => world.said(2).dependences.push(PeerDependence { authority: vec![on; 32], live: 1, until_ms }),
        _ => world.leaves.push(LiveLeaf {
            spiffe_id: "spiffe://west.example/ns/a/sa/b".into(),
            serial: "77".into(),
            issuer: id(on),
            issued_ms: now_ms(),
            not_after_ms: until_ms,
        }),
    }
}

#[test]
fn the_old_authority_is_not_retired_while_anything_rests_on_it_here_or_elsewhere() {
    for how in 0..6 {
        for on in [OLD_ROOT, OLD] {
            let world = World::with(|w| rests(w, how, on));
            let refused = world.go(State::Draining).unwrap_err();
            assert_eq!(refused.missing.len(), 1, "{how} {refused}");
            assert_eq!(refused.missing[0].until_ms, now_ms() + 5000, "it says until when");
        }
        let world = World::with(|w| rests(w, how, NEW));
        assert_eq!(world.go(State::Draining).unwrap(), State::Retired, "what rests on the new one may");
    }
    let over = World::with(|w| {
        rests(w, 5, OLD);
        w.leaves[0].not_after_ms = now_ms();
    });
    assert!(over.go(State::Draining).is_ok(), "a certificate that is over holds nothing up");
}

#[test]
fn what_rests_on_an_authority_that_is_not_named_may_rest_on_the_old_one() {
    let nameless = World::with(|w| {
        let on = PeerDependence { authority: Vec::new(), live: 1, until_ms: now_ms() + 1 };
        w.said(0).dependences.push(on);
    });
    assert!(nameless.go(State::Draining).is_err());
}

#[test]
fn whoever_cannot_say_what_he_has_open_holds_up_the_end() {
    let cases: &[fn(&mut World)] = &[
        |w| w.fabric().validators[0].connected = false,
        |w| w.fabric().validators[0].trust = None,
        |w| w.fabric().peers[0].alive = false,
        |w| w.fabric().peers[0].acknowledgement = None,
        |w| w.said(0).silent = 1,
        |w| w.fabric = None,
        |w| w.fabric_age = Duration::from_secs(60),
    ];
    for (n, change) in cases.iter().enumerate() {
        assert!(World::with(change).go(State::Draining).is_err(), "{n}");
    }
}

#[test]
fn every_step_goes_back_as_the_table_says() {
    let world = World::good();
    for (from, to) in [
        (State::Idle, None),
        (State::Prepared, None),
        (State::Published, Some(State::Prepared)),
        (State::Proved, Some(State::Prepared)),
        (State::Active, Some(State::Proved)),
        (State::Draining, Some(State::Proved)),
        (State::Retired, Some(State::Draining)),
    ] {
        assert_eq!(world.back(from).unwrap(), to, "{from}");
    }
    let destroyed = World::with(|w| w.level = Level::Intermediate).back(State::Retired);
    assert!(destroyed.unwrap_err().message.contains("destroyed"));
}

#[test]
fn a_step_back_stays_there_until_it_is_told_to_go_on() {
    let next = World::good().event(&at(Level::Root, State::Draining), Event::Back).unwrap().unwrap();
    assert_eq!((next.state, next.pause_at), (State::Proved, State::Proved));
    let on = World::good().event(&next, Event::PauseAt(State::Retired)).unwrap().unwrap();
    assert_eq!(on.pause_at, State::Retired);
    let refused = World::good().event(&at(Level::Root, State::Active), Event::PauseAt(State::Published));
    assert!(refused.unwrap_err().message.contains("past published"));
}

#[test]
fn a_new_root_is_not_withdrawn_from_under_what_was_signed_with_it() {
    for how in 0..6 {
        for on in [NEW_ROOT, NEW] {
            let world = World::with(|w| rests(w, how, on));
            assert!(world.back(State::Proved).is_err(), "{how}");
            assert!(world.back(State::Published).is_err(), "{how}");
        }
    }
}

#[test]
fn nobody_signs_again_with_what_is_over() {
    for until in [None, Some(NOW_S)] {
        let world = World::with(|w| w.old_until = until);
        for from in [State::Active, State::Draining, State::Retired] {
            assert!(world.back(from).is_err(), "{from}");
        }
    }
}

#[test]
fn refusals_name_a_bounded_number_and_exclusions_are_bounded() {
    let mut world = World::good();
    let many = |n| validator(&format!("g{n}"), &[OLD_ROOT]);
    world.fabric().validators = (0..10_000).map(many).collect();
    assert!(world.go(State::Published).unwrap_err().missing.len() <= 50);
    let mut rotation = at(Level::Root, State::Published);
    let exclude = |n: usize| Event::Exclude { name: format!("g{n}"), reason: String::new() };
    for n in 0..64 {
        rotation = world.event(&rotation, exclude(n)).unwrap().unwrap();
    }
    assert!(world.event(&rotation, exclude(64)).is_err());
    assert!(world.event(&at(Level::Root, State::Retired), exclude(0)).is_err(), "it is over");
}

fn any_state() -> impl Strategy<Value = State> {
    (0..ALL.len()).prop_map(|n| ALL[n])
}

fn any_world() -> impl Strategy<Value = World> {
    let holds = prop::sample::subsequence(vec![OLD_ROOT, NEW_ROOT], 0..=2);
    let peers = prop::collection::vec((holds.clone(), any::<[bool; 4]>(), -100_000_i64..100_000), 0..4);
    let validators = prop::collection::vec((holds, any::<[bool; 2]>()), 0..4);
    let resting = prop::collection::vec((0..6_usize, prop::sample::select(vec![OLD_ROOT, NEW_ROOT, OLD, NEW])), 0..3);
    let about = (any::<[bool; 5]>(), prop::option::of(-10_000_i64..10_000));
    (peers, validators, resting, about).prop_map(|(peers, validators, resting, (about, moved_s))| {
        let mut world = World::good();
        world.moved_s = moved_s;
        if about[0] {
            world.signing = OLD;
        }
        if about[1] {
            world.level = Level::Intermediate;
        }
        world.has_new_root = about[2];
        world.successor = about[3].then_some(NEW);
        for (how, on) in resting {
            rests(&mut world, how, on);
        }
        let known = world.fabric().clone();
        world.fabric().validators.truncate(2);
        for (n, (holds, [connected, silent])) in validators.into_iter().enumerate() {
            let mut made = validator(&format!("v{n}"), &holds);
            made.connected = connected;
            if silent {
                made.trust = None;
            }
            world.fabric().validators.push(made);
        }
        world.fabric().peers = known.peers;
        for (n, (holds, [alive, pinned, silent, clock], ahead)) in peers.into_iter().enumerate() {
            let mut made = peer(&format!("p{n}"), &holds);
            (made.alive, made.clock_known, made.clock_ahead_ms) = (alive, clock, ahead);
            let said = made.acknowledgement.as_mut().unwrap();
            (said.pinned, said.silent) = (pinned, silent.into());
            world.fabric().peers.push(made);
        }
        if about[4] {
            world.fabric_age = Duration::from_secs(100);
        }
        world
    })
}

/// Said once more, and not by asking the machine: everybody holds both.
fn everybody_holds_both(world: &World) -> bool {
    let fabric = world.fabric.as_ref().unwrap();
    let both = bytes(&[OLD_ROOT, NEW_ROOT]);
    let validators = fabric.validators.iter().all(|v| {
        v.connected && v.trust.as_ref().is_some_and(|t| both.iter().all(|b| t.loaded[0].authorities.contains(b)))
    });
    let peers = fabric.peers.iter().all(|p| {
        let said = p.acknowledgement.as_ref();
        p.alive && said.is_some_and(|s| s.silent == 0 && both.iter().all(|b| s.authorities.contains(b)))
    });
    validators && peers && world.fabric_age < Duration::from_secs(16)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_the_evidence_a_step_is_to_the_next_state_or_refused(world in any_world(), from in any_state()) {
        match world.go(from) {
            Ok(to) => {
                prop_assert_eq!(Some(to), from.next());
                if matches!(to, State::Proved | State::Active) {
                    prop_assert!(everybody_holds_both(&world));
                }
                if to == State::Retired {
                    let fabric = world.fabric.as_ref().unwrap();
                    let old = world.evidence().old;
                    let none = |authority: &[u8]| !old.contains(&AuthorityId::try_from(authority).unwrap_or(id(99)));
                    for v in &fabric.validators {
                        let trust = v.trust.as_ref().unwrap();
                        prop_assert!(trust.dependences.iter().all(|d| none(&d.authority)));
                        prop_assert!(trust.leaf.iter().all(|l| none(&l.issuer) && none(&l.anchor)));
                    }
                    for p in &fabric.peers {
                        prop_assert!(p.acknowledgement.as_ref().unwrap().dependences.iter().all(|d| none(&d.authority)));
                    }
                    prop_assert!(world.leaves.iter().all(|leaf| !old.contains(&leaf.issuer)));
                }
            }
            Err(refused) => {
                prop_assert!(!refused.message.is_empty() && !refused.remedy.is_empty());
                prop_assert!(refused.missing.iter().all(|m| !m.who.is_empty() && !m.why.is_empty()));
            }
        }
    }

    #[test]
    fn any_walk_of_events_stays_on_the_edges_of_the_table(world in any_world(), walk in prop::collection::vec(0..4_u8, 0..20)) {
        let mut rotation = Rotation::new(world.level, State::Retired, now());
        for step in walk {
            let event = match step {
                0 | 1 => Event::Go,
                2 => Event::Back,
                _ => Event::Exclude { name: "p0".into(), reason: String::new() },
            };
            let before = rotation.clone();
            match world.event(&rotation, event.clone()) {
                Ok(Some(next)) => rotation = next,
                Ok(None) => { prop_assert!(before.state <= State::Prepared && event == Event::Back); return Ok(()) }
                Err(_) => continue,
            }
            let edge = (before.state, rotation.state);
            let back = [
                (State::Published, State::Prepared), (State::Proved, State::Prepared), (State::Active, State::Proved),
                (State::Draining, State::Proved), (State::Retired, State::Draining),
            ];
            prop_assert!(edge.0 == edge.1 || Some(edge.1) == edge.0.next() || back.contains(&edge), "{:?}", edge);
        }
    }
}
