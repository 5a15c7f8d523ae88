//! Small JSON files that nobody changes behind our back: each bears an HMAC under a key that lies beside it, and is on
//! disk before the call returns.
//!
//! ```text
//! write: content + mac ─▶ beside it ─▶ fsync ─▶ rename ─▶ fsync of the directory
//! read:  file ─▶ mac agrees? ─▶ content
//! ```
//!
//! The code finds files that were torn, mixed up, edited or brought back under another name. Whoever can read the key
//! can forge, and also has the private keys that lie in the same directory. An older file of the same name is genuine
//! as well: what must not go back keeps its floor in a second file.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use aws_lc_rs::hmac;
use serde_json::Value;

/// The key's file.
const KEY: &str = "store.key";
/// The member of each file that holds its code.
const MAC: &str = "mac";
/// Largest file that is read: a bundle of the largest size, and what goes around it.
const SIZE_MAX: u64 = 4 * 1024 * 1024;

/// Why a kept file is not used.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// The disk.
    #[error("{path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Not what was written here.
    #[error("{path} is not as it was written: {reason}\nhint: {remedy}", remedy = REMEDY)]
    Changed {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

const REMEDY: &str = "files of this directory are not to be edited or copied here from elsewhere; bring the whole \
                      directory back from one backup, or move this file away";

/// A directory of such files.
#[derive(Clone)]
pub struct Kept {
    directory: PathBuf,
    key: hmac::Key,
    /// The key was made just now: files from before there were keys are taken as they are.
    fresh: bool,
    /// Steps of the disk that are left; a test makes them few.
    steps: Arc<AtomicI64>,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Kept {
    /// Opens a directory (made 0700) and its key (made 0600, 32 random bytes).
    pub fn open(directory: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let path = directory.join(KEY);
        let (key, fresh) = match fs::read(&path) {
            Ok(key) if key.len() == 32 => (key, false),
            Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged", path.display()))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let key: [u8; 32] = rand::random();
                put(directory, KEY, &key, &|| Ok(()))?;
                (key.to_vec(), true)
            }
            Err(e) => return Err(e),
        };
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        Ok(Self { directory: directory.to_owned(), key, fresh, steps: Arc::new(AtomicI64::new(i64::MAX)) })
    }

    /// For tests: lets `steps` steps of the disk happen, then fails for ever, as if the process had been killed there.
    #[cfg(any(test, feature = "testing"))]
    pub fn stop_after(&self, steps: i64) {
        self.steps.store(steps, Ordering::SeqCst);
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Reads a file; `None`: there is none.
    pub fn read(&self, name: &str) -> Result<Option<Value>, KeptError> {
        let path = self.directory.join(name);
        let content = match fs::metadata(&path).and_then(|about| {
            if about.len() > SIZE_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, format!("larger than {SIZE_MAX} bytes")));
            }
            fs::read(&path)
        }) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| KeptError::Io { path: path.clone(), error })?,
        };
        let changed = |reason: String| KeptError::Changed { path: path.clone(), reason };
        let mut value: Value = serde_json::from_slice(&content).map_err(|e| changed(e.to_string()))?;
        let Some(object) = value.as_object_mut() else { return Err(changed("not a JSON object".into())) };
        let Some(mac) = object.remove(MAC) else {
            return if self.fresh { Ok(Some(value)) } else { Err(changed("it bears no code".into())) };
        };
        if mac.as_str() != Some(self.tag(name, value.to_string().as_bytes()).as_str()) {
            return Err(changed("its code does not agree with its content".into()));
        }
        Ok(Some(value))
    }

    /// Writes a file; `content` must be an object. When this returns it is on disk, and before that nothing has changed.
    pub fn write(&self, name: &str, content: &Value) -> io::Result<()> {
        let mut value = content.clone();
        let mac = self.tag(name, value.to_string().as_bytes());
        let object = value.as_object_mut().ok_or_else(|| io::Error::other("only objects are kept"))?;
        object.insert(MAC.into(), mac.into());
        self.write_plain(name, format!("{value:#}\n").as_bytes())
    }

    /// Writes a file that is not ours alone, such as a certificate, in the same way but without a code.
    pub fn write_plain(&self, name: &str, content: &[u8]) -> io::Result<()> {
        put(&self.directory, name, content, &|| self.step())
    }

    /// Moves a file over another of this directory. One that is not there has been moved already.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.step()?;
        match fs::rename(self.directory.join(from), self.directory.join(to)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed,
        }?;
        self.sync(to)
    }

    /// Removes a file, if it is there.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        self.step()?;
        match fs::remove_file(self.directory.join(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }?;
        self.sync(name)
    }

    /// Code over something else, such as the head of a log, under the same key.
    pub fn tag(&self, name: &str, content: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(name.as_bytes());
        context.update(&[0]);
        context.update(content);
        context.sign().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.step()?;
        self.directory.join(name).parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
    }

    /// Whether the disk may be written to, for what is written beside the kept files: never refused but in tests.
    pub fn allow(&self) -> io::Result<()> {
        self.step()
    }

    fn step(&self) -> io::Result<()> {
        if self.steps.fetch_sub(1, Ordering::SeqCst) <= 0 {
            // Nothing happens any more, not even what would mend what was left.
            self.steps.store(0, Ordering::SeqCst);
            return Err(io::Error::other("stopped by a test"));
        }
        Ok(())
    }
}

fn put(directory: &Path, name: &str, content: &[u8], step: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
    let path = directory.join(name);
    let parent = path.parent().unwrap_or(directory);
    DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = parent.join(format!(".{file}.{}", std::process::id()));
    let written = write_synced(&beside, content, step).and_then(|()| {
        step()?;
        fs::rename(&beside, &path)
    });
    if let Err(error) = written {
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    step()?;
    File::open(parent)?.sync_all()
}

fn write_synced(path: &Path, content: &[u8], step: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
    step()?;
    // A leftover of a process that died here may have other permissions.
    let _ = fs::remove_file(path);
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let (half, rest) = content.split_at(content.len() / 2);
    file.write_all(half)?;
    step()?;
    file.write_all(rest)?;
    step()?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_written_is_read_again_after_a_restart_and_nobody_else_may_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let kept = Kept::open(directory.path()).unwrap();
        assert!(kept.read("state.json").unwrap().is_none());
        kept.write("state.json", &json!({ "sequence": u64::MAX, "zeta": [1], "alpha": "x" })).unwrap();
        let again = Kept::open(directory.path()).unwrap();
        assert_eq!(again.read("state.json").unwrap().unwrap()["sequence"], u64::MAX);
        for name in ["state.json", KEY] {
            let mode = fs::metadata(directory.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_was_edited_torn_or_brought_from_elsewhere_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.json");
        Kept::open(directory.path()).unwrap();
        let kept = Kept::open(directory.path()).unwrap();
        kept.write("a.json", &json!({ "sequence": 7 })).unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        let torn = &whole[..whole.len() / 2];
        for bad in [&whole.replace('7', "8"), "{\"sequence\": 7}", "[]", "", torn] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(kept.read("a.json"), Err(KeptError::Changed { .. })), "{bad}");
        }
        fs::write(directory.path().join("b.json"), &whole).unwrap();
        assert!(kept.read("b.json").is_err(), "a file under another name");
        let other = tempfile::tempdir().unwrap();
        Kept::open(other.path()).unwrap();
        fs::write(other.path().join("a.json"), &whole).unwrap();
        assert!(Kept::open(other.path()).unwrap().read("a.json").is_err(), "a file of another directory");
    }

    #[test]
    fn a_process_that_dies_at_any_step_leaves_the_old_content_or_the_new() {
        let directory = tempfile::tempdir().unwrap();
        Kept::open(directory.path()).unwrap();
        for steps in 0.. {
            let kept = Kept::open(directory.path()).unwrap();
            kept.write("a.json", &json!({ "is": "old" })).unwrap();
            kept.stop_after(steps);
            let written = kept.write("a.json", &json!({ "is": "new" }));
            let found = Kept::open(directory.path()).unwrap().read("a.json").unwrap().unwrap();
            assert!(found["is"] == "old" || found["is"] == "new", "{found}");
            if written.is_ok() {
                assert_eq!(found["is"], "new");
                assert!(steps >= 4, "too few steps are looked at");
                return;
            }
        }
    }

    #[test]
    fn files_from_before_there_was_a_key_are_taken_once() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("bundle.json"), "{\"keys\": []}").unwrap();
        assert!(Kept::open(directory.path()).unwrap().read("bundle.json").unwrap().is_some());
        assert!(Kept::open(directory.path()).unwrap().read("bundle.json").is_err());
    }
}
