//! What a trust anchor keeps on disk: keys and certificates, and what may never go back: the bundle and its sequence.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use hawser_api::bundle::{Bundle, JwtAuthority};
use hawser_runtime::file;
use hawser_tunnel::kept::Kept;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

/// The published bundle, kept so that its sequence never goes back.
const BUNDLE: &str = "bundle.json";
/// The highest sequence that was ever published: an older bundle is as genuine as the last one.
const FLOOR: &str = "floor.json";
const LOCK: &str = "lock";
/// How long a client may go by a bundle before it asks again, seconds; ours are pushed.
const REFRESH_HINT: u32 = 60;

/// A directory that one trust anchor uses at a time.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) kept: Kept,
    _lock: File,
}

impl Store {
    /// Opens the directory, made 0700 where it is missing.
    pub(crate) fn open(directory: &Path) -> anyhow::Result<Self> {
        file::private_directory(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let path = directory.join(LOCK);
        let lock = File::options().create(true).append(true).open(&path);
        let lock = lock.with_context(|| format!("cannot open {}", path.display()))?;
        // The kernel frees it when the process dies, however it dies.
        lock.try_lock().with_context(|| format!("another trust anchor uses {}", directory.display()))?;
        let kept = Kept::open(directory).with_context(|| format!("cannot open {}", directory.display()))?;
        Ok(Self { kept, _lock: lock })
    }

    /// The directory.
    pub(crate) fn directory(&self) -> &Path {
        self.kept.directory()
    }

    /// A directory in it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// The bundle of these authorities. Its sequence grows when they are others than last time, and is on disk before
    /// anybody sees it.
    pub(crate) fn bundle(
        &self,
        authorities: &[CertificateDer<'_>],
        jwt: &[JwtAuthority],
        now: SystemTime,
    ) -> anyhow::Result<Bundle> {
        let authorities: Vec<_> = authorities.iter().map(|der| der.to_vec()).collect();
        let floor = self.floor()?;
        let last = self.last_bundle(floor)?;
        if last.sequence > 0 && last.x509_authorities == authorities && last.jwt_authorities == jwt {
            self.raise_floor(floor, last.sequence)?;
            return Ok(last);
        }
        // Counted from the time, so that it does not fall back when this directory is lost.
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let sequence = seconds.max(last.sequence + 1).max(floor + 1);
        let next = Bundle {
            sequence,
            refresh_hint: Some(REFRESH_HINT),
            x509_authorities: authorities,
            jwt_authorities: jwt.to_vec(),
        };
        let document: Value = serde_json::from_str(&next.to_document())?;
        self.kept.write(BUNDLE, &document).with_context(|| format!("cannot write {BUNDLE}"))?;
        // Behind it: a floor above the bundle on disk would refuse our own.
        self.raise_floor(floor, sequence)?;
        Ok(next)
    }

    fn last_bundle(&self, floor: u64) -> anyhow::Result<Bundle> {
        let Some(document) = self.kept.read(BUNDLE)? else { return Ok(Bundle::default()) };
        let last = Bundle::parse(&document.to_string()).context(BUNDLE)?;
        if last.sequence < floor {
            bail!(
                "{} has sequence {}, and {floor} was published already: it is an older one that was put back\nhint: \
                 remove it, and the bundle is made anew with a higher sequence",
                self.path(BUNDLE).display(),
                last.sequence
            );
        }
        Ok(last)
    }

    fn floor(&self) -> anyhow::Result<u64> {
        let floor = self.kept.read(FLOOR)?;
        Ok(floor.and_then(|floor| floor.get("sequence").and_then(Value::as_u64)).unwrap_or_default())
    }

    fn raise_floor(&self, floor: u64, sequence: u64) -> anyhow::Result<()> {
        if floor >= sequence {
            return Ok(());
        }
        self.kept.write(FLOOR, &json!({ "sequence": sequence })).with_context(|| format!("cannot write {FLOOR}"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn der(byte: u8) -> CertificateDer<'static> {
        CertificateDer::from(vec![byte; 8])
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + std::time::Duration::from_secs(seconds)
    }

    #[test]
    fn the_sequence_grows_with_every_change_and_survives_a_restart_and_a_clock_that_goes_back() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let first = store.bundle(&[der(1)], &[], at(1000)).unwrap();
        assert_eq!(store.bundle(&[der(1)], &[], at(5000)).unwrap(), first);
        let second = store.bundle(&[der(1), der(2)], &[], at(500)).unwrap();
        assert_eq!(second.sequence, first.sequence + 1);
        drop(store);
        assert_eq!(Store::open(directory.path()).unwrap().bundle(&[der(1), der(2)], &[], at(9)).unwrap(), second);
    }

    #[test]
    fn an_older_bundle_put_back_by_hand_is_refused_and_says_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(BUNDLE);
        let store = Store::open(directory.path()).unwrap();
        store.bundle(&[der(1)], &[], at(1000)).unwrap();
        let older = fs::read(&path).unwrap();
        let newer = store.bundle(&[der(2)], &[], at(2000)).unwrap();
        fs::write(&path, older).unwrap();
        let error = store.bundle(&[der(1)], &[], at(3000)).unwrap_err().to_string();
        assert!(error.contains("2000 was published already") && error.contains("hint: remove it"), "{error}");
        fs::remove_file(&path).unwrap();
        assert!(store.bundle(&[der(1)], &[], at(9)).unwrap().sequence > newer.sequence);
    }

    #[test]
    fn a_bundle_that_was_edited_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        drop(Store::open(directory.path()).unwrap());
        let store = Store::open(directory.path()).unwrap();
        store.bundle(&[der(1)], &[], at(1000)).unwrap();
        let path = directory.path().join(BUNDLE);
        let text = fs::read_to_string(&path).unwrap().replace("1000", "9999");
        fs::write(&path, text).unwrap();
        assert!(store.bundle(&[der(1)], &[], at(1000)).unwrap_err().to_string().contains("is not as it was written"));
    }

    #[test]
    fn a_process_that_dies_at_any_step_publishes_the_old_bundle_or_the_new_and_never_an_older_sequence() {
        for steps in 0..40 {
            let directory = tempfile::tempdir().unwrap();
            let store = Store::open(directory.path()).unwrap();
            let old = store.bundle(&[der(1)], &[], at(1000)).unwrap();
            store.kept.stop_after(steps);
            let published = store.bundle(&[der(2)], &[], at(2000));
            drop(store);
            let again = Store::open(directory.path()).unwrap().bundle(&[der(2)], &[], at(3000)).unwrap();
            assert!(again.sequence > old.sequence, "{steps}");
            if let Ok(published) = published {
                assert_eq!(again, published);
            }
        }
    }
}
