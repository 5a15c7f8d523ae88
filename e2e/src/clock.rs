//! A clock of a cluster's own, which a test sets while its processes run: libfaketime under each of them.
//!
//! The time of day alone is theirs; the monotonic clock stays the machine's, as it does when somebody sets a real clock.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tokio::process::Command;

/// Where Debian has it, on any architecture: /usr/lib/TRIPLET/faketime/.
const LIBRARIES: &str = "/usr/lib";
/// For programs with threads.
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";

/// One cluster's clock, as far from the machine's as its file says.
#[derive(Debug, Clone)]
pub struct Clock(PathBuf);

impl Clock {
    /// That of the processes that look into this file; right until it is set.
    pub fn at(file: PathBuf) -> Result<Self> {
        let clock = Self(file);
        if !clock.0.exists() {
            clock.set(0)?;
        }
        Ok(clock)
    }

    /// From now on it is so many seconds ahead of the machine's; negative: behind. Processes see it within a second.
    pub fn set(&self, ahead_s: i64) -> Result<()> {
        let new = self.0.with_extension("new");
        // What is read in the middle of a write would be another time.
        fs::write(&new, format!("{ahead_s:+}\n"))?;
        fs::rename(&new, &self.0).with_context(|| format!("cannot set the clock {}", self.0.display()))
    }

    /// A process that is started by this, and all that it starts, lives by it.
    pub fn rule(&self, command: &mut Command) -> Result<()> {
        command.env("LD_PRELOAD", library()?).env("FAKETIME_TIMESTAMP_FILE", &self.0);
        command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("FAKETIME_CACHE_DURATION", "1").env("NO_FAKE_STAT", "1");
        Ok(())
    }
}

fn library() -> Result<PathBuf> {
    let places = fs::read_dir(Path::new(LIBRARIES)).context("no /usr/lib")?;
    let found = places.flatten().map(|place| place.path().join(LIBRARY)).find(|path| path.exists());
    found.context("libfaketime is not installed: run e2e/install-tools")
}
