//! The machine with its files: whole rotations, killed at every step of the disk, taken back, and refused.

use std::path::Path;
use std::sync::Arc;

use hawser_api::TrustDomain;
use hawser_api::bundle::{Bundle, JwtKey};
use hawser_api::proto::catalog::TrustAcknowledgement;
use hawser_api::proto::discovery::{LoadedAnchors, TrustReport};
use hawser_api::proto::issuer::{LinkedPeer, Validator};
use hawser_runtime::Process;
use serde_json::json;

use super::*;
use crate::config::Config;
use crate::hierarchy::{init_root, sign_intermediate, sign_request};
use crate::revoke::Entry as Denial;

fn now() -> SystemTime {
    clock::now()
}

fn domain() -> TrustDomain {
    "west.example".parse().unwrap()
}

fn config(directory: &Path) -> Config {
    let value = json!({
        "process": {
            "name": "west/trust-anchor", "admin": "127.0.0.1:0", "runFile": directory.join("run.json"), "drainSeconds": 1,
        },
        "cluster": "west", "trustDomain": "west.example", "state": directory.join("store"),
        "socket": directory.join("s"), "rootCertificate": directory.join("root/root.crt"),
    });
    serde_json::from_value(value).unwrap()
}

/// A cluster under root R1, with R2 in `next`.
fn cluster() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    init_root(&at("root"), "one", now()).unwrap();
    init_root(&at("next"), "two", now()).unwrap();
    let csr = make_csr(&at("store"), &domain()).unwrap();
    sign_intermediate(&at("root"), &csr, None, now()).unwrap();
    directory
}

fn open(directory: &Path) -> Arc<Authority> {
    let authority = Authority::open(&config(directory), &Process::detached()).unwrap();
    look(&authority);
    authority
}

fn look(authority: &Authority) {
    authority.driver.lock().look(authority, now());
}

fn published(authority: &Authority) -> Vec<AuthorityId> {
    authority.driver.lock().roots.iter().filter_map(authority_id).collect()
}

/// Everybody, here and at a linked cluster, has loaded these.
fn everybody_holds(authority: &Authority, anchors: &[AuthorityId]) {
    let authorities: Vec<_> = anchors.iter().map(|id| id.0.to_vec()).collect();
    let loaded = LoadedAnchors { trust_domain: "west.example".into(), sequence: 1, authorities: authorities.clone() };
    let validator = Validator {
        name: "gateway-0".into(),
        kind: "gateway".into(),
        connected: true,
        trust: Some(TrustReport { loaded: vec![loaded], ..TrustReport::default() }),
        ..Validator::default()
    };
    let peer = LinkedPeer {
        cluster: "east".into(),
        alive: true,
        clock_known: true,
        acknowledgement: Some(TrustAcknowledgement { authorities, ..TrustAcknowledgement::default() }),
        ..LinkedPeer::default()
    };
    let report = FabricReport { validators: vec![validator], peers: vec![peer] };
    authority.fabric.send_replace(Some((report, clock::monotonic())));
}

fn state(authority: &Authority) -> Option<State> {
    authority.driver.lock().course.rotation.as_ref().map(|rotation| rotation.state)
}

/// One round of what an operator and the fabric do of a rotation, whatever is next.
fn round(authority: &Authority, directory: &Path, level: Level) -> Result<(), Refused> {
    everybody_holds(authority, &published(authority));
    let mut driver = authority.driver.lock();
    if driver.course.rotation.is_none() {
        driver.begin(level, State::Retired, authority, now())?;
    }
    if level == Level::Root && driver.course.new_root.is_none() {
        let root = std::fs::read(directory.join("next/root.crt")).unwrap();
        driver.provide(&root, authority, now())?;
    }
    let signing = if level == Level::Root { "next" } else { "root" };
    let request = authority.store.path(NEXT).join(names::INTERMEDIATE_CSR);
    let waits = driver.course.running().is_some_and(|r| r.state < State::Active) && driver.successor.is_none();
    if let Ok(request) = std::fs::read(request)
        && waits
    {
        let (pem, _) = sign_request(&directory.join(signing), &request, Some(&domain()), now()).unwrap();
        driver.provide(pem.as_bytes(), authority, now())?;
    }
    drop(driver);
    everybody_holds(authority, &published(authority));
    look(authority);
    Ok(())
}

fn finish(authority: &Authority, directory: &Path, level: Level) {
    for _ in 0..20 {
        round(authority, directory, level).unwrap();
        if state(authority) == Some(State::Retired) && authority.driver.lock().course.promoted {
            return;
        }
    }
    panic!("never over: {:?} {:?}", state(authority), authority.driver.lock().refusal);
}

fn id_of(directory: &Path, root: &str) -> AuthorityId {
    crate::hierarchy::authority_of(&std::fs::read(directory.join(root).join("root.crt")).unwrap()).unwrap()
}

/// What holds at every moment: the signer's anchor is published, and what is signed holds by what is published.
fn holds(authority: &Authority) {
    let signer = authority.intermediate.load_full().unwrap();
    assert!(published(authority).contains(&signer.anchor()), "signs under a root that is not published");
}

fn audit_is_whole(directory: &Path) {
    assert_eq!(crate::audit::read(&directory.join("store"), |_| ()).unwrap().broken, None);
}

#[test]
fn a_root_is_replaced_with_its_intermediate_and_the_old_key_is_destroyed() {
    let directory = cluster();
    let authority = open(directory.path());
    let (old, before) = (authority.intermediate.load_full().unwrap().id(), authority.driver.lock().sequence);
    finish(&authority, directory.path(), Level::Root);
    holds(&authority);
    assert_eq!(published(&authority), [id_of(directory.path(), "next")]);
    let signer = authority.intermediate.load_full().unwrap();
    assert!(signer.id() != old && signer.anchor() == id_of(directory.path(), "next"));
    assert!(authority.driver.lock().sequence >= before + 2, "once for both, once for the new one");
    assert!(!authority.store.path(NEXT).join(names::INTERMEDIATE_KEY).exists(), "it took the old one's place");
    // The file of roots is still the old one's: it has no say until somebody changes it.
    drop(authority);
    let again = open(directory.path());
    assert_eq!(published(&again), [id_of(directory.path(), "next")]);
    std::fs::copy(directory.path().join("next/root.crt"), directory.path().join("root/root.crt")).unwrap();
    look(&again);
    assert!(again.driver.lock().course.rotation.is_none(), "the file is followed again");
    assert_eq!(published(&again), [id_of(directory.path(), "next")]);
    audit_is_whole(directory.path());
}

#[test]
fn metrics_say_how_far_the_rotation_of_each_level_is_and_when_what_comes_ends() {
    let (directory, process) = (cluster(), Process::detached());
    let authority = Authority::open(&config(directory.path()), &process).unwrap();
    let mut metrics = crate::metrics::Metrics::new(&process);
    let mut holds = |sample: &str, is: bool| {
        look(&authority);
        metrics.look(&authority, &authority.driver.lock());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &process.registry.lock()).unwrap();
        assert_eq!(text.contains(sample), is, "{sample} in\n{text}");
    };
    let next = ["root", "intermediate"].map(|kind| format!("expiry_timestamp_seconds{{kind=\"next_{kind}\"}} "));
    holds("hawser_rotation_state{level=\"root\",state=\"none\"} 1", true);
    holds("hawser_rotation_refused{level=\"root\"} 0", true);
    authority.driver.lock().begin(Level::Root, State::Prepared, &authority, now()).unwrap();
    holds("hawser_rotation_state{level=\"root\",state=\"idle\"} 1", true);
    holds("hawser_rotation_since_timestamp_seconds{level=\"root\"} 0", false);
    holds("hawser_rotation_refused{level=\"root\"} 1", true);
    holds(&next[0], false);
    round(&authority, directory.path(), Level::Root).unwrap();
    holds("hawser_rotation_state{level=\"root\",state=\"prepared\"} 1", true);
    holds("hawser_rotation_state{level=\"intermediate\",state=\"none\"} 1", true);
    holds("hawser_rotation_refused{level=\"root\"} 0", true);
    next.iter().for_each(|kind| holds(kind, true));
    authority.driver.lock().command(Event::PauseAt(State::Retired), &authority, now()).unwrap();
    finish(&authority, directory.path(), Level::Root);
    holds("hawser_rotation_state{level=\"root\",state=\"retired\"} 1", true);
    next.iter().for_each(|kind| holds(kind, false));
}

#[test]
fn an_intermediate_is_replaced_under_the_same_root_and_the_bundle_stays() {
    let directory = cluster();
    let authority = open(directory.path());
    let (old, sequence) = (authority.intermediate.load_full().unwrap().id(), authority.driver.lock().sequence);
    finish(&authority, directory.path(), Level::Intermediate);
    assert_ne!(authority.intermediate.load_full().unwrap().id(), old);
    assert_eq!(authority.driver.lock().sequence, sequence);
    // And again: a second rotation begins from the first one's end.
    authority.driver.lock().begin(Level::Intermediate, State::Retired, &authority, now()).unwrap();
    finish(&authority, directory.path(), Level::Intermediate);
    audit_is_whole(directory.path());
}

/// Kills a rotation at every step of the disk, opens the store again and goes on.
fn survives_everywhere(level: Level) {
    for steps in 0..10_000 {
        let directory = cluster();
        let authority = open(directory.path());
        let mut highest = authority.driver.lock().sequence;
        authority.store.kept.stop_after(steps);
        for _ in 0..6 {
            let _ = round(&authority, directory.path(), level);
            highest = highest.max(Bundle::parse(&authority.bundle.borrow()).unwrap().sequence);
            holds(&authority);
        }
        let whole = state(&authority) == Some(State::Retired) && authority.driver.lock().course.promoted;
        drop(authority);
        let again = open(directory.path());
        holds(&again);
        assert!(again.driver.lock().sequence >= highest, "what was published is not taken back by a crash");
        finish(&again, directory.path(), level);
        holds(&again);
        let root = if level == Level::Root { "next" } else { "root" };
        assert_eq!(published(&again), [id_of(directory.path(), root)]);
        audit_is_whole(directory.path());
        if whole {
            assert!(steps > 40, "too few steps were looked at: {steps}");
            return;
        }
    }
}

#[test]
fn a_rotation_of_the_root_that_is_killed_at_any_step_of_the_disk_goes_on() {
    survives_everywhere(Level::Root);
}

#[test]
fn a_rotation_of_the_intermediate_that_is_killed_at_any_step_of_the_disk_goes_on() {
    survives_everywhere(Level::Intermediate);
}

#[test]
fn a_full_disk_refuses_the_step_and_loses_nothing() {
    let directory = cluster();
    let authority = open(directory.path());
    let before = authority.driver.lock().course.clone();
    authority.store.kept.stop_after(0);
    let refused = authority.driver.lock().begin(Level::Root, State::Retired, &authority, now()).unwrap_err();
    assert!(refused.remedy.contains("disk is full"), "{refused}");
    assert_eq!(authority.driver.lock().course, before);
    authority.store.kept.stop_after(i64::MAX);
    finish(&authority, directory.path(), Level::Root);
}

/// Goes up to a state and stays there.
fn up_to(authority: &Authority, directory: &Path, level: Level, pause_at: State) {
    authority.driver.lock().begin(level, pause_at, authority, now()).unwrap();
    for _ in 0..10 {
        round(authority, directory, level).unwrap();
    }
    assert_eq!(state(authority), Some(pause_at));
}

#[test]
fn every_state_can_be_paused_at_and_taken_back_and_gone_on_from_also_after_a_restart() {
    let r1 = |directory: &Path| id_of(directory, "root");
    let r2 = |directory: &Path| id_of(directory, "next");
    for (pause_at, to, both) in [
        (State::Prepared, None, false),
        (State::Published, Some(State::Prepared), false),
        (State::Proved, Some(State::Prepared), false),
        (State::Active, Some(State::Proved), true),
        (State::Draining, Some(State::Proved), true),
        (State::Retired, Some(State::Draining), true),
    ] {
        let directory = cluster();
        let path = directory.path();
        let authority = open(path);
        let old = authority.intermediate.load_full().unwrap().id();
        up_to(&authority, path, Level::Root, pause_at);
        drop(authority);
        let authority = open(path);
        assert_eq!(state(&authority), Some(pause_at), "a restart changes nothing");
        everybody_holds(&authority, &published(&authority));
        authority.driver.lock().command(Event::Back, &authority, now()).unwrap();
        look(&authority);
        assert_eq!(state(&authority), to, "{pause_at}");
        let expected = if both { vec![r1(path), r2(path)] } else { vec![r1(path)] };
        let mut found = published(&authority);
        found.sort_by_key(|id| *id != r1(path));
        assert_eq!(found, expected, "{pause_at}");
        holds(&authority);
        if pause_at < State::Retired {
            assert_eq!(authority.intermediate.load_full().unwrap().id(), old, "signed by the old one again");
        }
        if to.is_some() {
            authority.driver.lock().command(Event::PauseAt(State::Retired), &authority, now()).unwrap();
        }
        finish(&authority, path, Level::Root);
        assert_eq!(published(&authority), [r2(path)]);
    }
}

#[test]
fn a_root_that_is_no_successor_is_refused() {
    let directory = cluster();
    let authority = open(directory.path());
    let provide = |bytes: &[u8]| authority.driver.lock().provide(bytes, &authority, now());
    let next = std::fs::read(directory.path().join("next/root.crt")).unwrap();
    assert!(provide(&next).unwrap_err().message.contains("no rotation waits"));
    authority.driver.lock().begin(Level::Root, State::Prepared, &authority, now()).unwrap();
    let present = std::fs::read(directory.path().join("root/root.crt")).unwrap();
    assert!(provide(&present).unwrap_err().message.contains("has the key of one that is published"));
    let earlier = directory.path().join("earlier");
    init_root(&earlier, "early", now() - Duration::from_secs(86_400)).unwrap();
    let earlier = std::fs::read(earlier.join("root.crt")).unwrap();
    assert!(provide(&earlier).unwrap_err().message.contains("ends before the old one"));
    for bad in [&b""[..], b"no certificate", &vec![b'x'; 70_000], &next[..200]] {
        provide(bad).unwrap_err();
    }
    provide(&next).unwrap();
    provide(&next).unwrap();
    // An intermediate of the old root does not make the new one's.
    let request = std::fs::read(authority.store.path(NEXT).join(names::INTERMEDIATE_CSR)).unwrap();
    let (pem, _) = sign_request(&directory.path().join("root"), &request, None, now()).unwrap();
    assert!(provide(pem.as_bytes()).unwrap_err().message.contains("does not hold"));
    assert!(!authority.store.path(NEXT).join(names::INTERMEDIATE_CERTIFICATE).exists());
}

#[test]
fn one_rotation_runs_at_a_time_and_the_roots_file_has_no_say_meanwhile() {
    let directory = cluster();
    let authority = open(directory.path());
    up_to(&authority, directory.path(), Level::Root, State::Published);
    let other = authority.driver.lock().begin(Level::Intermediate, State::Retired, &authority, now());
    assert!(other.unwrap_err().message.contains("a rotation of the root is published"));
    let before = published(&authority);
    init_root(&directory.path().join("third"), "three", now()).unwrap();
    std::fs::copy(directory.path().join("third/root.crt"), directory.path().join("root/root.crt")).unwrap();
    look(&authority);
    assert_eq!(published(&authority), before);
    assert!(authority.driver.lock().troubles()[0].contains("has changed while a rotation runs"));
}

#[test]
fn a_suspected_intermediate_is_replaced_at_once_by_its_prepared_successor() {
    let directory = cluster();
    let authority = open(directory.path());
    let old = authority.intermediate.load_full().unwrap().id();
    let taint = |id| authority.driver.lock().taint(id, &authority, now());
    assert!(taint(old).unwrap_err().message.contains("no successor"));
    assert!(taint(id_of(directory.path(), "root")).is_err(), "a root needs proof");
    up_to(&authority, directory.path(), Level::Intermediate, State::Prepared);
    taint(old).unwrap();
    assert_ne!(authority.intermediate.load_full().unwrap().id(), old);
    let told = authority.watch().borrow().clone();
    assert_ne!(told.active_issuer, old.0);
    assert!(told.reissue_before_ms > 0, "everybody renews");
    let key = old.to_string();
    authority.driver.lock().may_revoke(&key, &authority).unwrap();
    authority.revoke(Denial::Authority(key), false, now()).unwrap();
    assert_eq!(authority.watch().borrow().denied.as_ref().unwrap().authorities, [old.0.to_vec()]);
    // What signs now cannot be taken away from under everybody.
    let signing = authority.intermediate.load_full().unwrap();
    assert!(authority.driver.lock().may_revoke(&signing.id().to_string(), &authority).is_err());
    assert!(authority.driver.lock().may_revoke(&signing.anchor().to_string(), &authority).is_err());
}

#[test]
fn a_revoked_root_leaves_the_bundle_at_once_and_stays_out_over_a_restart() {
    let directory = cluster();
    let authority = open(directory.path());
    finish(&authority, directory.path(), Level::Root);
    authority.driver.lock().command(Event::Back, &authority, now()).unwrap();
    assert_eq!(published(&authority).len(), 2);
    let old = id_of(directory.path(), "root").to_string();
    authority.driver.lock().may_revoke(&old, &authority).unwrap();
    authority.revoke(Denial::Authority(old), false, now()).unwrap();
    look(&authority);
    assert_eq!(published(&authority), [id_of(directory.path(), "next")]);
    let version = authority.denials.lock().version;
    drop(authority);
    let again = open(directory.path());
    assert_eq!(published(&again), [id_of(directory.path(), "next")]);
    assert_eq!(again.denials.lock().version, version);
}

#[test]
fn a_bundle_is_on_record_as_soon_as_it_can_be() {
    let directory = cluster();
    let on_record = |key_id: &str| {
        let mut found = 0;
        let reading = crate::audit::read(&directory.path().join("store"), |line| {
            found += u32::from(line.entry.event == "bundle" && line.entry.detail.ends_with(key_id));
        });
        assert_eq!(reading.unwrap().broken, None);
        found
    };
    let mut late = 0;
    for steps in 0..30 {
        let authority = open(directory.path());
        let key_id = format!("key-{steps}");
        let key = JwtKey::P256 { x: vec![1; 32], y: vec![2; 32] };
        authority.jwt.send_replace(vec![JwtAuthority { key_id: key_id.clone(), key }]);
        authority.store.kept.stop_after(steps);
        look(&authority);
        let published = authority.bundle.borrow().contains(&key_id);
        late += u32::from(published && on_record(&key_id) == 0);
        authority.store.kept.stop_after(i64::MAX);
        look(&authority);
        look(&authority);
        // Twice where the disk failed between the line and the head.
        assert!((1..=2).contains(&on_record(&key_id)), "{steps}");
    }
    assert!(late > 0, "the disk never failed between the two");
}
