//! Child processes on a core of their own, and what they cost: CPU seconds and resident memory from /proc.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The core of load and server.
pub(crate) const LOAD_CORE: usize = 0;
/// The core of every proxy.
pub(crate) const PROXY_CORE: usize = 1;

/// A child that ends when this value does.
pub(crate) struct Running {
    child: Child,
}

impl Running {
    /// Starts a command pinned to a core.
    pub(crate) fn start(core: usize, program: &str, arguments: &[String], quiet: bool) -> Result<Self> {
        let mut command = pinned(core, program, arguments);
        if quiet {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        }
        let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        Ok(Self { child })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A polite end first: `hawser up` has children of its own to take down.
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// For one measurement: the longest takes twenty seconds on a quiet machine.
const PATIENCE_S: u32 = 120;
/// What `timeout` of coreutils ends with when it had to end its command.
const TIMED_OUT: i32 = 124;

/// A command that will run on one core.
pub(crate) fn pinned(core: usize, program: &str, arguments: &[String]) -> Command {
    let mut command = Command::new("taskset");
    command.arg("-c").arg(core.to_string()).arg(program).args(arguments).stdin(Stdio::null());
    command
}

/// Runs a command on a core and returns what it printed. One that does not end is ended, or the run would be lost.
pub(crate) fn output(core: usize, program: &str, arguments: &[String]) -> Result<String> {
    let bounded = [&["--kill-after=5".into(), PATIENCE_S.to_string(), program.into()], arguments].concat();
    let output = pinned(core, "timeout", &bounded).output().with_context(|| format!("cannot run {program}"))?;
    if output.status.code() == Some(TIMED_OUT) {
        bail!("{program} {arguments:?} did not end within {PATIENCE_S} s");
    }
    if !output.status.success() {
        bail!("{program} {arguments:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// An address on loopback that was free a moment ago.
pub(crate) fn free_address(ip: &str) -> Result<SocketAddr> {
    Ok(TcpListener::bind((ip, 0))?.local_addr()?)
}

/// Waits until something accepts there.
pub(crate) fn wait_for(address: SocketAddr, what: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        if TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("{what} does not accept on {address}")
}

/// CPU seconds that a process and its threads have used, from the scheduler's nanosecond counters.
pub(crate) fn cpu_seconds(pid: u32) -> f64 {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return 0.0 };
    let nanoseconds: f64 = tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()))
        .sum();
    nanoseconds / 1e9
}

/// Resident memory of a process, bytes.
pub(crate) fn resident_bytes(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)).and_then(|n| n.parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) * 1024.0
}

/// Direct children of a process, such as Envoy's or nginx's workers.
pub(crate) fn with_children(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let mut pids = vec![pid];
    pids.extend(children.split_whitespace().filter_map(|n| n.parse::<u32>().ok()));
    pids
}
