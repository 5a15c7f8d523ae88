//! The keys that sign JWT-SVIDs: one at a time, its successor published before it signs, its predecessor published until
//! nothing that it signed holds any more.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hawser_api::bundle::{JwtAuthority, JwtKey};
use hawser_runtime::file;
use parking_lot::Mutex;
use rcgen::{KeyPair, PublicKeyData};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::config::WorkloadConfig;
use crate::hex;

const FILE: &str = "jwt-keys.json";
/// A bundle is asked for again after a minute (its refresh hint): a new key is out for five times that before it signs.
const PUBLISHED_BEFORE: Duration = Duration::from_secs(300);
/// A JWT-SVID can be used by whoever sees it.
pub(super) const TTL_MAX: Duration = Duration::from_secs(3600);
/// Published at a time: more means that lives are configured that do not fit each other.
const KEYS_MAX: usize = 16;

/// One key, as it is kept.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    key_id: String,
    /// PKCS#8, DER, base64.
    private: Zeroizing<String>,
    /// Both coordinates, base64.
    public: String,
    /// Signs from then on, milliseconds since the epoch.
    signs_from: u64,
}

/// How long keys live.
#[derive(Debug, Clone, Copy)]
struct Lives {
    /// Each signs for this long.
    key: Duration,
    /// Published before it signs.
    ahead: Duration,
    /// Published after it signed.
    behind: Duration,
}

/// All keys, in the order in which they sign.
pub(super) struct Keys {
    path: PathBuf,
    lives: Lives,
    pub(super) ttl_max: Duration,
    all: Mutex<Vec<Kept>>,
}

/// What signs now.
pub(super) struct Signer {
    pub(super) key_id: String,
    /// PKCS#8, DER.
    pub(super) private: Zeroizing<Vec<u8>>,
}

impl Keys {
    /// Reads the keys of this directory; makes the first.
    pub(super) fn open(directory: &Path, config: &WorkloadConfig, now: SystemTime) -> anyhow::Result<Self> {
        let path = directory.join(FILE);
        let all: Vec<Kept> = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let ttl_max = Duration::from_secs(config.jwt_ttl_seconds.max(1)).min(TTL_MAX);
        let key = Duration::from_secs(config.jwt_key_seconds.max(1));
        let lives = Lives { key, ahead: PUBLISHED_BEFORE.min(key / 2), behind: ttl_max };
        let keys = Self { path, lives, ttl_max, all: Mutex::new(all) };
        keys.turned(now)?;
        Ok(keys)
    }

    /// Brings the keys up to the time; whether those that are published are others now.
    pub(super) fn turn(&self, now: SystemTime) -> bool {
        self.turned(now).unwrap_or_else(|error| {
            tracing::error!("keys for JWT-SVIDs: {error:#}");
            false
        })
    }

    fn turned(&self, now: SystemTime) -> anyhow::Result<bool> {
        let mut all = self.all.lock();
        let now = millis(now);
        let mut next = plan(&all, self.lives, now);
        if next.need {
            next.kept.push(make(if next.kept.is_empty() { now } else { now + length(self.lives.ahead) })?);
        }
        if !next.need && next.kept.len() == all.len() {
            return Ok(false);
        }
        let text = Zeroizing::new(serde_json::to_string(&next.kept)?);
        // On disk before anybody sees it: a restart must not forget what is published.
        file::replace(&self.path, text.as_bytes()).with_context(|| format!("cannot write {}", self.path.display()))?;
        *all = next.kept;
        tracing::info!(published = all.len(), "keys for JWT-SVIDs");
        Ok(true)
    }

    /// As the bundle has them.
    pub(super) fn authorities(&self) -> Vec<JwtAuthority> {
        let public = |kept: &Kept| {
            let point = STANDARD.decode(&kept.public).ok()?;
            let (x, y) = point.split_at_checked(32)?;
            Some(JwtAuthority { key_id: kept.key_id.clone(), key: JwtKey::P256 { x: x.to_vec(), y: y.to_vec() } })
        };
        self.all.lock().iter().filter_map(public).collect()
    }

    /// When the last of them has signed for as long as a key may; before that there is another, or something is wrong.
    pub(super) fn ends(&self) -> Option<SystemTime> {
        self.all.lock().last().map(|kept| UNIX_EPOCH + Duration::from_millis(kept.signs_from) + self.lives.key)
    }

    /// What signs now: the last that may.
    pub(super) fn signer(&self, now: SystemTime) -> Option<Signer> {
        let all = self.all.lock();
        let kept = all.iter().rev().find(|kept| kept.signs_from <= millis(now)).or(all.first())?;
        let private = Zeroizing::new(STANDARD.decode(kept.private.as_bytes()).ok()?);
        Some(Signer { key_id: kept.key_id.clone(), private })
    }
}

struct Plan {
    kept: Vec<Kept>,
    /// Another must be made.
    need: bool,
}

/// Which keys stay, and whether another is due. Pure.
fn plan(all: &[Kept], lives: Lives, now: u64) -> Plan {
    let mut kept = all.to_vec();
    // A key is over when its successor has signed for as long as a token lives.
    while let [_, successor, ..] = kept.as_slice()
        && successor.signs_from + length(lives.behind) <= now
    {
        kept.remove(0);
    }
    let due = kept.last().is_none_or(|last| last.signs_from + length(lives.key.saturating_sub(lives.ahead)) <= now);
    Plan { need: due && kept.len() < KEYS_MAX, kept }
}

fn make(signs_from: u64) -> anyhow::Result<Kept> {
    let key = KeyPair::generate()?;
    let spki = key.subject_public_key_info();
    // SEC 1 section 2.3.3: 4, then both coordinates.
    let point = key.der_bytes().strip_prefix(&[4]).context("the key is not a point of P-256")?;
    let private = Zeroizing::new(key.serialize_der());
    Ok(Kept {
        key_id: hex::sha256(&spki).chars().take(32).collect(),
        private: Zeroizing::new(STANDARD.encode(&private)),
        public: STANDARD.encode(point),
        signs_from,
    })
}

fn millis(time: SystemTime) -> u64 {
    length(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn length(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(key: u64, ttl: u64) -> WorkloadConfig {
        WorkloadConfig { socket: "s".into(), objects: "o".into(), jwt_key_seconds: key, jwt_ttl_seconds: ttl }
    }

    #[test]
    fn a_key_is_published_before_it_signs_and_until_nothing_that_it_signed_holds() {
        let directory = tempfile::tempdir().unwrap();
        let start = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut keys = Keys::open(directory.path(), &config(10_000, 600), start).unwrap();
        let names = |keys: &Keys| keys.authorities().into_iter().map(|key| key.key_id).collect::<Vec<_>>();
        let first = names(&keys);
        assert_eq!((first.len(), keys.signer(start).unwrap().key_id), (1, first[0].clone()), "the first signs at once");
        assert_eq!(keys.ends(), Some(at(10_000)));
        assert!(!keys.turn(at(9_699)));
        assert!(keys.turn(at(9_700)), "its successor is published");
        assert_eq!(keys.ends(), Some(at(20_000)));
        let both = names(&keys);
        assert_eq!((both.len(), &both[0]), (2, &first[0]));
        assert_eq!(keys.signer(at(9_999)).unwrap().key_id, both[0], "but signs nothing yet");
        assert_eq!(keys.signer(at(10_000)).unwrap().key_id, both[1]);
        // Over a restart all of it stays.
        keys = Keys::open(directory.path(), &config(10_000, 600), at(10_100)).unwrap();
        assert_eq!(names(&keys), both);
        assert!(!keys.turn(at(10_599)), "what the first has signed may hold still");
        assert!(keys.turn(at(10_600)));
        assert_eq!(names(&keys), both[1..]);
    }

    #[test]
    fn after_a_long_sleep_and_with_odd_lives_there_are_few_keys_and_one_that_signs() {
        let directory = tempfile::tempdir().unwrap();
        let start = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let keys = Keys::open(directory.path(), &config(1, 3600), start).unwrap();
        for seconds in (0..5_000).chain([1_000_000]) {
            let now = start + Duration::from_secs(seconds);
            keys.turn(now);
            let published = keys.authorities();
            assert!(published.len() <= KEYS_MAX);
            let signer = keys.signer(now).unwrap().key_id;
            assert!(published.iter().any(|key| key.key_id == signer));
        }
    }

    #[test]
    fn keys_that_cannot_be_read_are_not_replaced_by_others() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), "[{}]").unwrap();
        let error = Keys::open(directory.path(), &config(10, 1), UNIX_EPOCH).err().unwrap();
        assert!(error.to_string().contains("is damaged"), "{error}");
    }
}
