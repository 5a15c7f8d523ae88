//! The examples as their READMEs tell them: the very commands are run, so that a README that is wrong fails here.

#![expect(clippy::unwrap_used, reason = "a test: what cannot be set up fails it")]

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// The examples use the same addresses: one at a time.
static ALONE: Mutex<()> = Mutex::new(());
/// For a fabric to be ready on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Commands are run where a reader would: at the repository's root, with `hawser` on the PATH.
struct Shell {
    dir: tempfile::TempDir,
    running: Option<Child>,
}

impl Shell {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_hawser"), dir.path().join("hawser")).unwrap();
        Self { dir, running: None }
    }

    fn command(&self, script: &str) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned();
        let path = format!("{}:{}", self.dir.path().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", script]).current_dir(root).stdin(Stdio::null());
        command.env("PATH", path).env("HAWSER_STATE", self.dir.path().join("s")).env("HAWSER_LOG", "info,access=off");
        command.process_group(0);
        command
    }

    /// Starts what runs on; it ends with this value.
    fn start(&mut self, script: &str) {
        self.start_all(script, 1);
    }

    /// The same for so many fabrics.
    fn start_all(&mut self, script: &str, fabrics: usize) {
        let log = std::fs::File::create(self.log_path()).unwrap();
        self.running = Some(self.command(script).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());
        let started = Instant::now();
        while self.log().matches("all is serving").count() < fabrics {
            let ended = self.running.as_mut().unwrap().try_wait().unwrap();
            assert!(
                ended.is_none() && started.elapsed() < PATIENCE,
                "{script}: not serving ({ended:?})\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Runs commands of which every one must succeed; what they print.
    fn run(&self, script: &str) -> String {
        let Output { status, stdout, stderr } = self.command(script).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        assert!(status.success(), "{script}\n{status}\n{out}\n{err}\n--- log\n{}", self.log());
        out.into_owned()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let Some(running) = &mut self.running else { return };
        let group = Pid::from_raw(i32::try_from(running.id()).unwrap()).unwrap();
        for signal in [Signal::TERM, Signal::KILL] {
            let _ = kill_process_group(group, signal);
            let asked = Instant::now();
            while asked.elapsed() < Duration::from_secs(10) {
                if matches!(running.try_wait(), Ok(Some(_))) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// The README's blocks of commands, in order.
fn blocks(example: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(example).join("README.md");
    let text = std::fs::read_to_string(path).unwrap();
    text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn any_service_is_added_by_yaml_alone() {
    let _alone = ALONE.lock();
    let mut shell = Shell::new();
    let [servers, calls] = blocks("any-service").try_into().unwrap();
    let needed = "for tool in nginx redis-server redis-benchmark iperf3 dig curl; do command -v $tool; done";
    let tools = shell.command(needed).output().unwrap();
    assert!(tools.status.success(), "programs are missing: run e2e/install-tools");
    shell.start(&servers);
    let said = shell.run(&calls);
    let caller = "spiffe://west.any.hawser/ns/tools/sa/client";
    assert_eq!(said.matches(&format!("nginx in east; you are {caller}")).count(), 2, "{said}");
    assert!(said.contains(&format!("ok {caller}")), "gRPC: {said}");
    assert!(said.contains("GET:") && said.contains("receiver"), "Redis and iperf3: {said}");
}

#[test]
fn two_clusters_can_be_called_as_the_readme_says() {
    let _alone = ALONE.lock();
    let mut shell = Shell::new();
    let [up, calls] = blocks("two-clusters").try_into().unwrap();
    shell.start(up.lines().next().unwrap());
    let said = shell.run(&calls);
    assert!(said.contains("\"name\": \"catalog-1\""), "{said}");
    assert_eq!(said.matches("\"client\": \"spiffe://west.demo.hawser/ns/shop/sa/web\"").count(), 4, "{said}");
    assert_eq!(
        said.matches("\"cluster\": \"east\"").count() + said.matches("\"cluster\": \"west\"").count(),
        4,
        "{said}"
    );
    shell.run("hawser check");
    assert!(shell.run("hawser why west shop/checkout-east").contains("quic"));
}

#[test]
fn two_clusters_of_different_roots_join_and_part_as_the_readme_says() {
    let _alone = ALONE.lock();
    let mut shell = Shell::new();
    let here = shell.dir.path().display().to_string();
    let at_home = |block: String| block.replace(".hawser-", &format!("{here}/.hawser-"));
    let [up, join]: [String; 2] = blocks("join-a-cluster").try_into().unwrap();
    let (up, join) = (at_home(up), at_home(join));
    shell.start_all(&up, 2);
    let said = shell.run(&join);
    assert!(said.contains("west and east (east.partner.hawser) are linked"), "{said}");
    assert!(said.contains("\"client\": \"spiffe://west.acme.hawser/ns/shop/sa/web\""), "{said}");
    assert!(said.contains("token, used") && said.contains("west is no longer linked to east"), "{said}");
    let script = format!("EAST_STATE={here}/.hawser-east WEST_STATE={here}/.hawser-west examples/join-a-cluster/join");
    assert!(shell.run(&script).contains("joined, called and parted"));
}

#[test]
fn a_root_is_replaced_under_load_as_the_readme_says() {
    let _alone = ALONE.lock();
    let mut shell = Shell::new();
    let [up, rotate] = blocks("rotate-root").try_into().unwrap();
    shell.start(&up);
    let before = shell.run("hawser trust status");
    let said = shell.run(&rotate);
    assert!(!said.contains("a call failed"), "{said}");
    let root = |text: &str| text.lines().find(|line| line.trim_start().starts_with("root")).map(str::to_owned);
    assert!(root(&before).is_some() && root(&before) != root(&shell.run("hawser trust status")), "{before}\n{said}");
}

#[test]
fn the_demo_does_what_it_says_within_a_minute() {
    let _alone = ALONE.lock();
    let shell = Shell::new();
    let started = Instant::now();
    let said = shell.run("DEMO_ONCE=1 hawser demo examples/two-clusters");
    eprintln!("{said}");
    assert!(said.contains("steps did what they say"), "{said}");
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}
