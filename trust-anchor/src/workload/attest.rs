//! Who is at the other end of a connection: what the kernel says, pinned to the one process that connected.
//!
//! ```text
//! accept ─▶ SO_PEERCRED (pid, uid, gid) + SO_PEERPIDFD ─▶ start time, executable     at once
//! call   ─▶ alive? ─▶ executable, its hash, control group ─▶ alive, and the same?    what is read between counts
//! ```
//!
//! A process number is used again as soon as its process is gone; a pidfd is not. User and group are those of the moment
//! of connecting. A process that starts another program keeps number and pidfd, so the executable is compared as well.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use aws_lc_rs::digest;
use nix::sys::socket::{getsockopt, sockopt};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::net::UnixStream;

use crate::hex;

/// Longest executable that is hashed: one that is longer matches no `sha256`.
const EXECUTABLE_MAX: u64 = 1 << 30;
/// Longest `/proc` file that is read.
const PROC_MAX: u64 = 64 * 1024;

/// Why nobody can say who the caller is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unattested {
    /// The kernel does not say, or says nothing that we see.
    #[error("the kernel does not tell which process connected: {0}")]
    Unknown(String),
    /// The process that connected is gone; somebody else holds its end.
    #[error("the process that connected is gone")]
    Gone,
    /// The process runs another program than when it connected.
    #[error("the process that connected runs another program now")]
    Replaced,
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Caller {
    pid: Pid,
    pidfd: OwnedFd,
    pub(super) uid: u32,
    pub(super) gid: u32,
    program: Program,
    attested: OnceLock<Attested>,
}

/// What a process ran when it connected.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Program {
    /// In clock ticks since the machine started.
    started: u64,
    /// Device and inode; `None`: we may not look.
    executable: Option<(u64, u64)>,
}

/// What selectors are held against.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attested {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Where the executable lies, if the very file is there.
    pub(super) path: Option<String>,
    /// Its SHA-256, if it was asked for.
    pub(super) sha256: Option<String>,
    /// One a hierarchy that the process is in.
    pub(super) cgroups: Vec<String>,
}

impl Caller {
    /// Pins the process that connected.
    pub(super) fn of(stream: &UnixStream) -> Result<Self, Unattested> {
        let peer = stream.peer_cred().map_err(unknown)?;
        let pid = peer.pid().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Unattested::Unknown("it is outside of our view of processes".into()))?;
        let (pidfd, program) = pin(stream, pid, peer.uid())?;
        Ok(Self { pid, pidfd, uid: peer.uid(), gid: peer.gid(), program, attested: OnceLock::new() })
    }

    /// Its number, for the record.
    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// What it runs, where it has been attested.
    pub(super) fn executable(&self) -> Option<&str> {
        self.attested.get()?.path.as_deref()
    }

    /// Reads all that selectors ask for. Reads files, a whole executable perhaps: not for an async thread.
    pub(super) fn attest(&self, with_hash: bool) -> Result<Attested, Unattested> {
        let known = self.attested.get().filter(|known| known.sha256.is_some() || !with_hash);
        if let Some(known) = known {
            self.still()?;
            return Ok(known.clone());
        }
        let attested = Attested {
            uid: self.uid,
            gid: self.gid,
            path: self.path(),
            sha256: with_hash.then(|| self.hash()).flatten(),
            cgroups: cgroups(&read_proc(self.pid, "cgroup").unwrap_or_default()),
        };
        // Only now is it sure that all of this was read of the process that connected.
        self.still()?;
        let _ = self.attested.set(attested.clone());
        Ok(attested)
    }

    /// That the process lives and runs what it ran when it connected.
    pub(super) fn still(&self) -> Result<(), Unattested> {
        let now = program(self.pid);
        if !alive(&self.pidfd) {
            return Err(Unattested::Gone);
        }
        if now.ok_or(Unattested::Gone)? == self.program { Ok(()) } else { Err(Unattested::Replaced) }
    }

    /// The path as it is, in our own view of the file system: a process in a view of its own can call its files what it
    /// likes, so the file must be the one that lies at this path here.
    fn path(&self) -> Option<String> {
        let path: PathBuf = fs::read_link(format!("/proc/{}/exe", self.pid)).ok()?;
        let here = fs::symlink_metadata(&path).ok()?;
        let same = self.program.executable == Some((here.dev(), here.ino()));
        same.then(|| path.to_str().map(str::to_owned)).flatten()
    }

    fn hash(&self) -> Option<String> {
        let mut file = File::open(format!("/proc/{}/exe", self.pid)).ok()?;
        let metadata = file.metadata().ok()?;
        let same = self.program.executable == Some((metadata.dev(), metadata.ino()));
        if !same || metadata.len() > EXECUTABLE_MAX {
            return None;
        }
        let mut context = digest::Context::new(&digest::SHA256);
        let mut chunk = vec![0; 128 * 1024];
        loop {
            match file.read(&mut chunk).ok()? {
                0 => break,
                length => context.update(chunk.get(..length)?),
            }
        }
        Some(hex::encode(context.finish().as_ref()))
    }
}

fn unknown(error: impl ToString) -> Unattested {
    Unattested::Unknown(error.to_string())
}

/// A handle on the process that connected, and what it runs.
fn pin(stream: &UnixStream, pid: Pid, uid: u32) -> Result<(OwnedFd, Program), Unattested> {
    match getsockopt(stream, sockopt::PeerPidfd) {
        Ok(pidfd) => {
            let program = program(pid).ok_or(Unattested::Gone)?;
            if alive(&pidfd) { Ok((pidfd, program)) } else { Err(Unattested::Gone) }
        }
        // Linux before 6.5. A process that has died since, and whose number has gone to another, cannot be told apart
        // but by its user; from here on it can.
        Err(nix::Error::ENOPROTOOPT) => by_number(pid, uid),
        // The process was gone before we asked.
        Err(_) => Err(Unattested::Gone),
    }
}

fn by_number(pid: Pid, uid: u32) -> Result<(OwnedFd, Program), Unattested> {
    let before = program(pid).ok_or(Unattested::Gone)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| Unattested::Gone)?;
    let after = program(pid).ok_or(Unattested::Gone)?;
    let owner = fs::metadata(format!("/proc/{pid}")).map(|metadata| metadata.uid());
    if before != after || !alive(&pidfd) || owner.is_ok_and(|owner| owner != uid) {
        return Err(Unattested::Gone);
    }
    Ok((pidfd, after))
}

/// A pidfd becomes readable when its process ends (pidfd_open(2)).
fn alive(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

fn read_proc(pid: Pid, name: &str) -> io::Result<String> {
    let mut text = String::new();
    File::open(format!("/proc/{pid}/{name}"))?.take(PROC_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn program(pid: Pid) -> Option<Program> {
    let started = start_time(&read_proc(pid, "stat").ok()?)?;
    let executable = fs::metadata(format!("/proc/{pid}/exe")).ok().map(|file| (file.dev(), file.ino()));
    Some(Program { started, executable })
}

/// Field 22 of proc_pid_stat(5); the second may have spaces and brackets in it.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The paths of proc_pid_cgroup(5), one a hierarchy. `/` says nothing: every process is somewhere below it.
fn cgroups(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).filter(|path| *path != "/").map(str::to_owned).collect()
}

#[cfg(test)]
mod tests;
