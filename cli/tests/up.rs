//! `hawser up` as a process: what it starts, starts again, and never leaves behind.

#![expect(clippy::unwrap_used, reason = "a test: what cannot be set up fails it")]

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

/// The cluster's document; gateways listen on a loopback address of this test alone.
fn cluster(ip: &str, second_gateway: bool) -> String {
    let second = if second_gateway { format!(", {{name: gateway-1, listen: \"{ip}:7444\"}}") } else { String::new() };
    format!(
        "apiVersion: hawser.dev/v1alpha1\nkind: Cluster\nmetadata: {{name: solo}}\nspec:\n  \
         fabricDomain: test.hawser\n  gateways: [{{name: gateway-0, listen: \"{ip}:7443\"}}{second}]\n  \
         proxies: [{{name: web, namespace: apps, serviceAccount: web}}]\n  \
         workloads:\n  - {{name: sleeper, command: [sleep, \"1000\"]}}\n"
    )
}

/// A loopback address that no other test, of this run or of another, has.
fn own_address() -> String {
    static NEXT: AtomicU8 = AtomicU8::new(10);
    let [.., high, low] = std::process::id().to_be_bytes();
    format!("127.{}.{high}.{low}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// For anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A fabric of one cluster in a directory of its own, run by the built binary.
struct Solo {
    dir: tempfile::TempDir,
    ip: String,
    up: Option<Child>,
}

impl Solo {
    fn new() -> Self {
        let solo = Self { dir: tempfile::tempdir().unwrap(), ip: own_address(), up: None };
        std::fs::create_dir(solo.path("fabric")).unwrap();
        solo.write(&cluster(&solo.ip, false));
        solo
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, text: &str) {
        std::fs::write(self.path("fabric/cluster.yaml"), text).unwrap();
    }

    fn hawser(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hawser"));
        command.args(arguments).env("HAWSER_STATE", self.path("s")).env_remove("HAWSER_LOG").stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.hawser(arguments).output().unwrap()
    }

    fn start(&mut self) {
        let started = Instant::now();
        let (fabric, ready) = (self.path("fabric"), self.path("ready"));
        let log = std::fs::File::create(self.path("log")).unwrap();
        let mut command = self.hawser(&["up", fabric.to_str().unwrap(), "--ready-file", ready.to_str().unwrap()]);
        self.up = Some(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        while !self.path("ready").exists() {
            let ended = self.up.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "hawser up ended: {ended:?}; the log:\n{}", self.log());
            assert!(started.elapsed() < PATIENCE, "not ready in time; the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What a daemon's run file says of its process.
    fn pid(&self, key: &str) -> Option<i32> {
        let text = std::fs::read_to_string(self.path("s/solo/run").join(format!("{key}.json"))).ok()?;
        i32::try_from(serde_json::from_str::<Value>(&text).ok()?.get("pid")?.as_i64()?).ok()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn wait(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "waited in vain for {what}; the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = self.up.as_ref().unwrap().id();
        kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
    }
}

impl Drop for Solo {
    fn drop(&mut self) {
        if let Some(up) = &mut self.up {
            let _ = up.kill();
            let _ = up.wait();
        }
    }
}

/// A zombie that nobody has waited for yet is as good as gone.
fn is_gone(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
    matches!(state, None | Some('Z' | 'X')) || test_kill_process(Pid::from_raw(pid).unwrap()).is_err()
}

const KEYS: [&str; 4] = ["trust-anchor", "mirror-controller", "gateway-gateway-0", "proxy-web"];

#[test]
fn what_dies_is_started_again_and_everything_ends_with_a_signal() {
    let mut solo = Solo::new();
    solo.start();
    let before: Vec<i32> = KEYS.iter().map(|key| solo.pid(key).unwrap()).collect();
    for pid in &before {
        kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL).unwrap();
    }
    for (key, before) in KEYS.iter().zip(&before) {
        solo.wait(&format!("another {key}"), |solo| solo.pid(key).is_some_and(|pid| pid != *before));
    }
    let checked = solo.run(&["check", "-o", "json"]);
    let report: Value = serde_json::from_slice(&checked.stdout).unwrap();
    assert_eq!(report["success"], true, "{report:#}");

    let after: Vec<i32> = KEYS.iter().map(|key| solo.pid(key).unwrap()).collect();
    solo.signal(Signal::TERM);
    let ended = solo.up.as_mut().unwrap().wait().unwrap();
    assert!(ended.success(), "{ended}: {}", solo.log());
    assert!(after.iter().all(|pid| is_gone(*pid)));
    assert!(KEYS.iter().all(|key| solo.pid(key).is_none()), "run files are removed");
    assert!(!solo.path("ready").exists());
    assert!(!solo.path("s/up.sock").exists());
    assert!(!solo.log().contains("panicked"), "{}", solo.log());
    assert!(!solo.run(&["check"]).status.success(), "a fabric that is down is not in order");
}

#[test]
fn nothing_outlives_an_up_that_is_killed_and_the_next_one_starts_on_what_is_left() {
    let mut solo = Solo::new();
    solo.start();
    let mut all: Vec<i32> = KEYS.iter().map(|key| solo.pid(key).unwrap()).collect();
    let status = solo.run(&["process", "status", "solo/sleeper", "-o", "json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    all.push(i32::try_from(status["processes"][0]["pid"].as_i64().unwrap()).unwrap());
    solo.signal(Signal::KILL);
    solo.up.as_mut().unwrap().wait().unwrap();
    for pid in &all {
        solo.wait("the children's end", |_| is_gone(*pid));
    }
    std::fs::remove_file(solo.path("ready")).unwrap();
    solo.start();
}

#[test]
fn an_edit_starts_and_ends_processes_and_a_broken_one_changes_nothing() {
    let mut solo = Solo::new();
    solo.start();
    solo.write(&cluster(&solo.ip, true));
    solo.wait("the second gateway", |solo| solo.pid("gateway-gateway-1").is_some());
    let pid = solo.pid("gateway-gateway-1").unwrap();

    solo.write(&cluster(&solo.ip, false).replace("listen", "lissten"));
    solo.wait("the refusal", |solo| solo.log().contains("the edit is refused"));
    let log = solo.log();
    assert!(log.contains("cluster.yaml:6: spec.gateways[0]"), "{log}");
    assert!(!is_gone(pid));

    solo.write(&cluster(&solo.ip, false));
    solo.wait("the end of the second gateway", |_| is_gone(pid));
}

#[test]
fn what_is_stopped_stays_away_until_it_is_started() {
    let mut solo = Solo::new();
    solo.start();
    let pid = solo.pid("proxy-web").unwrap();
    for action in ["stop", "kill"] {
        let done = solo.run(&["process", action, "solo/proxy-web"]);
        let text = String::from_utf8(done.stdout).unwrap();
        assert!(text.contains("solo/proxy-web") && text.contains("stopped"), "{text}");
    }
    assert!(is_gone(pid));
    assert!(!solo.run(&["check"]).status.success());
    solo.run(&["process", "start", "solo/proxy-web"]);
    solo.wait("the proxy", |solo| solo.pid("proxy-web").is_some_and(|now| now != pid));
    let unknown = solo.run(&["process", "stop", "solo/nobody"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("hint: there are solo/trust-anchor"));
}

#[test]
fn a_second_up_on_the_same_state_is_refused() {
    let mut solo = Solo::new();
    solo.start();
    let second = solo.run(&["up", solo.path("fabric").to_str().unwrap()]);
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another `hawser up` runs the cluster solo"));
}

#[test]
fn a_cluster_alone_is_told_how_to_come_under_a_root() {
    let solo = Solo::new();
    let alone = solo.run(&["up", solo.path("fabric").to_str().unwrap(), "--cluster", "solo"]);
    assert!(!alone.status.success());
    assert!(
        String::from_utf8_lossy(&alone.stderr).contains("hawser trust request solo --trust-domain solo.test.hawser")
    );
    assert!(!solo.path("s/root/root.key").exists(), "no root is made behind the user's back");
}
