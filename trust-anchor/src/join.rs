//! One-time join tokens: who holds one gets a first certificate, once.
//!
//! A token is 32 random bytes as hex. The store keeps only its hash, so that a copy of the store joins nobody:
//! `join/<sha256 of the token>.json`. Before anything is issued it is bound to one key, in `….used`: an answer that got
//! lost on its way can be asked for again with the same key, and with no other.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hawser_api::SpiffeId;
use hawser_runtime::file;
use serde::{Deserialize, Serialize};

use crate::hex;

/// Longest life of a token. Ours are used within seconds; an hour lets a person carry one to another machine.
pub const LIFETIME_MAX: Duration = Duration::from_secs(3600);
/// A token's text: 32 bytes in hex.
const TEXT_LENGTH: usize = 64;

/// What the store keeps of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Token {
    /// Who joins with it.
    pub spiffe_id: SpiffeId,
    /// How long it was made for.
    pub ttl_seconds: u64,
    /// Seconds since the epoch, by the issuer's clock.
    pub expires_at: u64,
    /// SHA-256 of the public key that it was used for, in hex; absent while it is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// Why a token joins nobody.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not in the form of a token.
    #[error("not a join token: 64 lower-case hex digits")]
    Malformed,
    /// Never registered, or forgotten.
    #[error("the join token is not known")]
    Unknown,
    /// It has joined somebody.
    #[error("the join token has been used")]
    Used,
    /// Too late.
    #[error("the join token has expired")]
    Expired,
    /// The store cannot be read or written.
    #[error("the store of join tokens: {0}")]
    Store(#[from] io::Error),
}

fn directory(store: &Path) -> PathBuf {
    store.join("join")
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Makes a token with which `id` may join once within `ttl` (at most [`LIFETIME_MAX`]), and returns its text.
pub fn register(store: &Path, id: &SpiffeId, ttl: Duration, now: SystemTime) -> Result<String, TokenError> {
    let ttl_seconds = ttl.min(LIFETIME_MAX).as_secs();
    let token = Token { spiffe_id: id.clone(), ttl_seconds, expires_at: seconds(now) + ttl_seconds, key: None };
    let text = hex::encode(&rand::random::<[u8; 32]>());
    let content = serde_json::to_vec(&token).map_err(io::Error::from)?;
    file::replace(&open_path(store, &text), &content)?;
    Ok(text)
}

fn open_path(store: &Path, text: &str) -> PathBuf {
    directory(store).join(format!("{}.json", hex::sha256(text.as_bytes())))
}

/// Uses a token up for one public key (its SHA-256 in hex) and says who joins by it. Of any number of callers with one
/// token and keys of their own, one succeeds.
pub fn redeem(store: &Path, text: &str, key: &str, now: SystemTime) -> Result<Token, TokenError> {
    let is_hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if text.len() != TEXT_LENGTH || !is_hex {
        return Err(TokenError::Malformed);
    }
    let open = open_path(store, text);
    let used = open.with_extension("used");
    let token = match read(&open)? {
        Some(token) => bind(token, key, &open, &used)?,
        None => read(&used)?.ok_or(TokenError::Unknown)?,
    };
    if token.key.as_deref() != Some(key) {
        return Err(TokenError::Used);
    }
    if seconds(now) > token.expires_at {
        return Err(TokenError::Expired);
    }
    Ok(token)
}

fn read(path: &Path) -> io::Result<Option<Token>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(serde_json::from_slice(&content)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Binds an open token to a key, and returns it as it is bound now: perhaps to another key.
fn bind(mut token: Token, key: &str, open: &Path, used: &Path) -> io::Result<Token> {
    token.key = Some(key.to_owned());
    let offer = used.with_extension(format!("{:016x}", rand::random::<u64>()));
    file::replace(&offer, &serde_json::to_vec(&token)?)?;
    // The link is the compare-and-swap: the kernel lets one of several win, and the winner's file is whole.
    let linked = fs::hard_link(&offer, used);
    let _ = fs::remove_file(&offer);
    if let Err(error) = linked
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(error);
    }
    // Before the answer: after a crash of the machine the token must not be open again.
    if let Some(directory) = used.parent() {
        fs::File::open(directory)?.sync_all()?;
    }
    let _ = fs::remove_file(open);
    read(used)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Forgets tokens that are over, used or not; what it cannot read it leaves alone.
pub fn sweep(store: &Path, now: SystemTime) -> io::Result<()> {
    let entries = match fs::read_dir(directory(store)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let token = fs::read(&path).ok().and_then(|content| serde_json::from_slice::<Token>(&content).ok());
        if token.is_some_and(|token| token.expires_at < seconds(now)) {
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn id() -> SpiffeId {
        "spiffe://east.example/ns/shop/sa/web".parse().unwrap()
    }

    const KEY: &str = "5ca1ab1e";

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_token_joins_its_identity_once() {
        let store = tempfile::tempdir().unwrap();
        let text = register(store.path(), &id(), Duration::from_secs(60), at(1000)).unwrap();
        let token = redeem(store.path(), &text, KEY, at(1060)).unwrap();
        assert_eq!(token.spiffe_id, id());
        assert!(matches!(redeem(store.path(), &text, "0ddba11", at(1060)), Err(TokenError::Used)));
    }

    #[test]
    fn a_lost_answer_may_be_asked_for_again_with_the_same_key_until_the_token_is_over() {
        let store = tempfile::tempdir().unwrap();
        let text = register(store.path(), &id(), Duration::from_secs(60), at(1000)).unwrap();
        let first = redeem(store.path(), &text, KEY, at(1000)).unwrap();
        assert_eq!(redeem(store.path(), &text, KEY, at(1060)).unwrap(), first);
        assert!(matches!(redeem(store.path(), &text, KEY, at(1061)), Err(TokenError::Expired)));
    }

    #[test]
    fn the_store_keeps_a_hash_and_nobody_else_may_read_it() {
        let store = tempfile::tempdir().unwrap();
        let text = register(store.path(), &id(), Duration::from_secs(60), at(1000)).unwrap();
        let entry = fs::read_dir(store.path().join("join")).unwrap().next().unwrap().unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!entry.file_name().to_string_lossy().contains(&text));
        assert!(!fs::read_to_string(entry.path()).unwrap().contains(&text));
    }

    #[test]
    fn of_many_who_redeem_one_token_at_once_one_succeeds() {
        let store = tempfile::tempdir().unwrap();
        let text = register(store.path(), &id(), Duration::from_secs(60), at(1000)).unwrap();
        let (won, start) = (AtomicUsize::new(0), Barrier::new(32));
        std::thread::scope(|scope| {
            for key in 0..32 {
                let (store, text, won, start) = (store.path(), &text, &won, &start);
                scope.spawn(move || {
                    start.wait();
                    let one = redeem(store, text, &key.to_string(), at(1000)).map_or(0, |_| 1);
                    won.fetch_add(one, Ordering::Relaxed);
                });
            }
        });
        assert_eq!(won.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_token_that_is_over_unknown_or_malformed_joins_nobody() {
        let store = tempfile::tempdir().unwrap();
        let text = register(store.path(), &id(), Duration::from_secs(60), at(1000)).unwrap();
        assert!(matches!(redeem(store.path(), &text, KEY, at(1061)), Err(TokenError::Expired)));
        assert!(matches!(redeem(store.path(), &"0".repeat(64), KEY, at(1000)), Err(TokenError::Unknown)));
        for bad in ["", "../../root/root", &"G".repeat(64), &"A".repeat(64), &"a".repeat(65)] {
            assert!(matches!(redeem(store.path(), bad, KEY, at(1000)), Err(TokenError::Malformed)), "{bad}");
        }
    }

    #[test]
    fn no_token_lives_longer_than_an_hour() {
        let store = tempfile::tempdir().unwrap();
        let text = register(store.path(), &id(), Duration::from_secs(1_000_000), at(1000)).unwrap();
        assert!(matches!(redeem(store.path(), &text, KEY, at(1000 + 3601)), Err(TokenError::Expired)));
    }

    #[test]
    fn what_is_over_is_swept_and_what_is_open_stays() {
        let store = tempfile::tempdir().unwrap();
        sweep(store.path(), at(0)).unwrap();
        let used = register(store.path(), &id(), Duration::from_secs(60), at(1000)).unwrap();
        redeem(store.path(), &used, KEY, at(1000)).unwrap();
        let open = register(store.path(), &id(), Duration::from_secs(600), at(1000)).unwrap();
        sweep(store.path(), at(1061)).unwrap();
        assert_eq!(fs::read_dir(store.path().join("join")).unwrap().count(), 1);
        redeem(store.path(), &open, KEY, at(1062)).unwrap();
    }
}
