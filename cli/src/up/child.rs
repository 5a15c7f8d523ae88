//! Starts a child so that it cannot outlive us, and passes on what it says line by line.
//!
//! Every child is started by way of `hawser run-child`, which asks the kernel to kill it when we die (prctl(2),
//! PR_SET_PDEATHSIG) and then becomes the program. So nothing is left behind when we are killed with SIGKILL, and no
//! `unsafe` code runs between fork and exec.

use std::os::unix::process::CommandExt;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// A longer line is passed on in pieces: memory stays bounded whatever a workload prints.
const LINE_MAX: usize = 16 * 1024;
/// This binary, even if the file has been replaced since.
const SELF: &str = "/proc/self/exe";

/// `hawser run-child --parent PID -- PROGRAM ARGUMENTS…`
#[derive(Debug, clap::Args)]
pub(crate) struct RunChild {
    /// The process with which the child is to end.
    #[arg(long)]
    parent: i32,
    /// Program and arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Becomes the program; returns only if that fails.
pub(crate) fn become_child(args: &RunChild) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("prctl(PR_SET_PDEATHSIG)")?;
    // The parent may have died before the call above: then nobody would ever kill us.
    if getppid().map(Pid::as_raw_pid) != Some(args.parent) {
        bail!("the parent is gone");
    }
    let [program, arguments @ ..] = args.command.as_slice() else { bail!("no program") };
    let mut command = match program.as_str() {
        "hawser" => std::process::Command::new(SELF),
        program => std::process::Command::new(program),
    };
    let error = command.arg0(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {program}\nhint: is it installed and on the PATH?"))
}

/// A command as our child, in a process group of its own: Ctrl-C on our terminal is ours to pass on. It must be started
/// by a thread that lives as long as the child may.
pub(crate) fn command(command: &[String]) -> Command {
    let mut child = Command::new(SELF);
    child
        .arg("run-child")
        .arg("--parent")
        .arg(std::process::id().to_string())
        .arg("--")
        .args(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    child
}

/// Sends a signal to a process that is known to be ours.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended meanwhile, which is as good.
        let _ = kill_process(pid, signal);
    }
}

/// Passes on lines until the stream ends.
pub(crate) async fn lines(stream: Option<impl AsyncRead + Unpin>, mut line: impl FnMut(&str)) {
    let Some(mut stream) = stream else { return };
    let mut pending = Vec::new();
    let mut chunk = vec![0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut chunk).await {
        pending.extend(chunk.iter().take(count));
        while let Some(end) = end_of_line(&pending) {
            let text: Vec<u8> = pending.drain(..=end).collect();
            line(String::from_utf8_lossy(&text).trim_end_matches(['\n', '\r']));
        }
    }
    if !pending.is_empty() {
        line(&String::from_utf8_lossy(&pending));
    }
}

fn end_of_line(pending: &[u8]) -> Option<usize> {
    let newline = pending.iter().take(LINE_MAX).position(|byte| *byte == b'\n');
    newline.or((pending.len() >= LINE_MAX).then_some(LINE_MAX - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_passed_on_whole_and_long_ones_in_pieces() {
        let long = "x".repeat(LINE_MAX + 10);
        let text = format!("one\r\n\ntwo\n{long}\nlast");
        let mut seen = Vec::new();
        lines(Some(text.as_bytes()), |line| seen.push(line.to_owned())).await;
        assert_eq!(seen[..3], ["one", "", "two"]);
        assert_eq!(seen[3].len() + seen[4].len(), long.len());
        assert_eq!(seen[5], "last");
    }
}
