//! A process by its id: signals, and whether it is there.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Sends a signal.
pub fn signal(pid: i32, signal: Signal) -> Result<()> {
    let process = Pid::from_raw(pid).context("pid 0")?;
    kill_process(process, signal).with_context(|| format!("cannot signal process {pid}"))
}

/// Whether the process is there.
pub fn is_alive(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid).is_ok())
}
