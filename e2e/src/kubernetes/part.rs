//! One process of a control plane.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender};
use std::thread;

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use rustix::process::Signal;

use super::program::program;
use crate::process;

/// What is left of a program's log is shown up to this many lines.
const LOG_LINES: usize = 30;

/// A program with its arguments, and the process that runs it, if one does.
#[derive(Debug)]
pub struct Part {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<OsString>,
    dir: PathBuf,
    process: Mutex<Option<Child>>,
}

impl Part {
    /// Nothing runs yet. What it says goes to `<name>.log` in the directory, where it also finds its home.
    pub(crate) fn new(name: &'static str, dir: &Path, arguments: &[String]) -> Result<Self> {
        let arguments = arguments.iter().map(OsString::from).collect();
        Ok(Self { name, program: program(name)?, arguments, dir: dir.to_owned(), process: Mutex::new(None) })
    }

    /// Starts it, without waiting until it serves.
    pub fn start(&self) -> Result<()> {
        let mut process = self.process.lock();
        if process.is_some() {
            bail!("{} runs already", self.name);
        }
        let log = fs::File::options().create(true).append(true).open(self.log())?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(&self.program).args(&self.arguments);
        command.current_dir(&self.dir).env("HOME", &self.dir).process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        *process = Some(spawn(command).with_context(|| format!("cannot run {} by setpriv", self.name))?);
        Ok(())
    }

    /// Its process id; an error if it was killed or has ended.
    pub fn pid(&self) -> Result<i32> {
        let mut process = self.process.lock();
        let child = process.as_mut().with_context(|| format!("{} was not started", self.name))?;
        if let Some(status) = child.try_wait()? {
            bail!("{} has ended ({status}):\n{}", self.name, self.last_words());
        }
        i32::try_from(child.id()).context("a process id")
    }

    /// kill -9, if it runs.
    pub fn kill(&self) -> Result<()> {
        if let Some(mut child) = self.process.lock().take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGSTOP: it hangs, and nobody is told.
    pub fn stop(&self) -> Result<()> {
        process::signal(self.pid()?, Signal::STOP)
    }

    /// SIGCONT.
    pub fn resume(&self) -> Result<()> {
        process::signal(self.pid()?, Signal::CONT)
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default().join("\n")
    }

    fn log(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.name))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

type Errand = (Command, Sender<std::io::Result<Child>>);

/// Starts a process from a thread that lives as long as the program: prctl(2)'s PR_SET_PDEATHSIG, which `setpriv` asks
/// for, means the thread that started the process, and a test's own thread ends with the test.
fn spawn(command: Command) -> Result<Child> {
    static KEEPER: OnceLock<Sender<Errand>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (errands, inbox) = mpsc::channel::<Errand>();
        thread::spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        });
        errands
    });
    let (answer, spawned) = mpsc::channel();
    keeper.send((command, answer)).ok().context("the thread that starts processes is gone")?;
    Ok(spawned.recv()??)
}
