//! A directory that is removed however the test program ends.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// Control planes that a test program shares among its tests live in a static, which nothing drops, and etcd's files are
/// large: so it is another process that removes them, when its input ends with us.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    remover: Child,
}

impl Scratch {
    /// A new one; with `HAWSER_E2E_KEEP` it stays.
    pub(crate) fn new(prefix: &str) -> Result<Self> {
        let path = tempfile::Builder::new().prefix(prefix).tempdir()?.keep();
        let keep = std::env::var_os("HAWSER_E2E_KEEP").is_some();
        // Twice: what is being killed may write to it once more.
        let script = if keep { "cat" } else { r#"cat; rm -rf "$0" || { sleep 1; rm -rf "$0"; }"# };
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(&path);
        // A group of its own: Ctrl-C ends the tests and not this.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let remover = command.spawn().context("cannot run sh")?;
        Ok(Self { path, remover })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.remover.stdin.take());
        let _ = self.remover.wait();
    }
}
