//! Link tokens as the creator keeps them: `link/<sha256 of the secret>.json` while one is open, `….used` once it has
//! joined somebody. A copy of the store joins nobody: the secret is not in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hawser_api::objects::link::LinkGateway;
use hawser_api::{ClusterName, TrustDomain};
use hawser_runtime::file;
use hawser_tunnel::verify::AuthorityId;
use serde::{Deserialize, Serialize};

use super::token::Token;
use crate::hex;

/// Longest life of a token: long enough to carry a line of text to another machine.
pub const LIFETIME_MAX: Duration = Duration::from_secs(600);
/// Open and used tokens at a time.
const OFFERS_MAX: usize = 256;
/// A token with which this many requests failed is over: an honest joiner's first one fails, if any.
pub(super) const FAILURES_MAX: u32 = 5;
/// The clock may be behind the time of creation by this much before a token is over: set back, it would live longer.
const BACK_MAX: u64 = 60;

/// For whom a token is to be made.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The name that the peer gets here.
    pub peer: ClusterName,
    /// The trust domain that it must have.
    pub trust_domain: TrustDomain,
    /// Our own name.
    pub cluster: ClusterName,
    /// Our own trust domain.
    pub own_domain: TrustDomain,
    /// The keys of our anchors.
    pub pins: Vec<AuthorityId>,
    /// Where our gateways are for the peer.
    pub gateways: Vec<LinkGateway>,
    /// Our region.
    pub region: String,
    /// How long it holds; at most [`LIFETIME_MAX`].
    pub ttl: Duration,
}

/// What the store keeps of a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Offer {
    /// The name that the peer gets here.
    pub peer: ClusterName,
    /// The trust domain that it must have.
    pub trust_domain: TrustDomain,
    /// Our gateways, as the peer is told.
    pub gateways: Vec<LinkGateway>,
    /// Our region, as the peer is told.
    pub region: String,
    /// Seconds since the epoch, by our clock.
    pub created_at: u64,
    /// Seconds since the epoch, by our clock.
    pub expires_at: u64,
    /// Requests with the right secret that were refused.
    #[serde(default)]
    pub failures: u32,
    /// SHA-256 of the joiner's claim and of what it said, once it has been used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<String>,
}

/// Why a token joins nobody, or cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// Never made, revoked, or forgotten.
    #[error("the link token is not known here")]
    Unknown,
    /// It has joined somebody else.
    #[error("the link token has been used")]
    Used,
    /// Too late.
    #[error("the link token has expired")]
    Expired,
    /// Too many requests with it were refused.
    #[error("the link token was refused too often")]
    Spent,
    /// Another trust domain than it was made for.
    #[error("the link token was made for another trust domain")]
    OtherDomain,
    /// There are too many.
    #[error("{OFFERS_MAX} link tokens are open")]
    Many,
    /// The store cannot be read or written.
    #[error("the store of link tokens: {0}")]
    Store(#[from] io::Error),
}

fn directory(store: &Path) -> PathBuf {
    store.join("link")
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Makes a token.
pub fn register(store: &Path, wanted: &Wanted, now: SystemTime) -> Result<Token, OfferError> {
    sweep(store, now)?;
    if list(store)?.len() >= OFFERS_MAX {
        return Err(OfferError::Many);
    }
    let ttl = wanted.ttl.min(LIFETIME_MAX);
    let secret = rand::random::<[u8; 32]>();
    let offer = Offer {
        peer: wanted.peer.clone(),
        trust_domain: wanted.trust_domain.clone(),
        gateways: wanted.gateways.clone(),
        region: wanted.region.clone(),
        created_at: seconds(now),
        expires_at: seconds(now) + ttl.as_secs(),
        failures: 0,
        used: None,
    };
    file::replace(&open_path(store, &secret), &serde_json::to_vec(&offer).map_err(io::Error::from)?)?;
    Ok(Token {
        secret,
        cluster: wanted.cluster.clone(),
        trust_domain: wanted.own_domain.clone(),
        gateways: wanted.gateways.iter().map(|gateway| gateway.address).collect(),
        pins: wanted.pins.clone(),
        expires_at: UNIX_EPOCH + Duration::from_secs(offer.expires_at),
    })
}

/// The name of a token in the store.
pub(super) fn name(secret: &[u8; 32]) -> String {
    hex::sha256(secret)
}

fn open_path(store: &Path, secret: &[u8; 32]) -> PathBuf {
    directory(store).join(format!("{}.json", name(secret)))
}

/// What is known of a token, used or not. The time is looked at, whoever asks.
pub(super) fn find(store: &Path, secret: &[u8; 32], now: SystemTime) -> Result<Offer, OfferError> {
    let open = open_path(store, secret);
    // Used first: an open file beside it is a leftover of a crash, or of a backup.
    let offer = match read(&open.with_extension("used"))? {
        Some(used) => used,
        None => read(&open)?.ok_or(OfferError::Unknown)?,
    };
    if seconds(now) > offer.expires_at || seconds(now) + BACK_MAX < offer.created_at {
        return Err(OfferError::Expired);
    }
    if offer.failures >= FAILURES_MAX {
        return Err(OfferError::Spent);
    }
    Ok(offer)
}

/// Uses a token up for one joiner. Of any number of callers one succeeds, and it succeeds again.
pub(super) fn bind(store: &Path, secret: &[u8; 32], claim: &str) -> Result<(), OfferError> {
    let open = open_path(store, secret);
    let used = open.with_extension("used");
    if let Some(mut offer) = read(&open)? {
        offer.used = Some(claim.to_owned());
        let draft = used.with_extension(format!("{:016x}", rand::random::<u64>()));
        file::replace(&draft, &serde_json::to_vec(&offer).map_err(io::Error::from)?)?;
        // The compare-and-swap: the kernel lets one of several win, and the winner's file is whole.
        let linked = fs::hard_link(&draft, &used);
        let _ = fs::remove_file(&draft);
        if let Err(error) = linked
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error.into());
        }
        // Before the answer: after a crash of the machine the token must not be open again.
        fs::File::open(directory(store))?.sync_all()?;
        let _ = fs::remove_file(&open);
    }
    let bound = read(&used)?.ok_or(OfferError::Unknown)?;
    if bound.used.as_deref() == Some(claim) { Ok(()) } else { Err(OfferError::Used) }
}

/// Counts a refused request against an open token.
pub(super) fn failed(store: &Path, secret: &[u8; 32]) -> io::Result<()> {
    let open = open_path(store, secret);
    let Some(mut offer) = read(&open)? else { return Ok(()) };
    offer.failures = offer.failures.saturating_add(1);
    file::replace(&open, &serde_json::to_vec(&offer)?)
}

fn read(path: &Path) -> io::Result<Option<Offer>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(serde_json::from_slice(&content)?)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn files(store: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory(store)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.sort();
    Ok(paths)
}

/// All tokens, open and used, each with the name by which it is revoked.
pub fn list(store: &Path) -> io::Result<Vec<(String, Offer)>> {
    let named = |path: PathBuf| {
        let offer = read(&path).ok()??;
        Some((path.file_stem()?.to_str()?.to_owned(), offer))
    };
    Ok(files(store)?.into_iter().filter_map(named).collect())
}

/// Takes back every token for this peer; how many there were. Other peers' stay.
pub fn revoke(store: &Path, peer: &ClusterName) -> io::Result<usize> {
    let mut revoked = 0;
    for path in files(store)? {
        if read(&path).ok().flatten().is_some_and(|offer| offer.peer == *peer) {
            fs::remove_file(&path)?;
            revoked += 1;
        }
    }
    Ok(revoked)
}

/// Forgets tokens that are over, used or not; what it cannot read it leaves alone.
pub(crate) fn sweep(store: &Path, now: SystemTime) -> io::Result<()> {
    for path in files(store)? {
        if read(&path).ok().flatten().is_some_and(|offer| offer.expires_at < seconds(now)) {
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    pub(in crate::link) fn wanted() -> Wanted {
        Wanted {
            peer: "east".parse().unwrap(),
            trust_domain: "east.hawser.test".parse().unwrap(),
            cluster: "west".parse().unwrap(),
            own_domain: "west.hawser.test".parse().unwrap(),
            pins: vec![AuthorityId([1; 32])],
            gateways: vec![LinkGateway { name: "g0".parse().unwrap(), address: "127.0.0.1:7443".parse().unwrap() }],
            region: String::new(),
            ttl: Duration::from_secs(3600),
        }
    }

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn no_token_lives_longer_than_ten_minutes_by_the_issuers_clock() {
        let store = tempfile::tempdir().unwrap();
        let token = register(store.path(), &wanted(), at(1000)).unwrap();
        assert!(find(store.path(), &token.secret, at(1600)).is_ok());
        assert!(matches!(find(store.path(), &token.secret, at(1601)), Err(OfferError::Expired)));
        // A clock that is set back does not lengthen its life.
        assert!(find(store.path(), &token.secret, at(940)).is_ok());
        assert!(matches!(find(store.path(), &token.secret, at(939)), Err(OfferError::Expired)));
        sweep(store.path(), at(1601)).unwrap();
        assert!(list(store.path()).unwrap().is_empty());
    }

    #[test]
    fn of_a_hundred_who_redeem_one_token_at_once_one_succeeds() {
        let store = tempfile::tempdir().unwrap();
        let token = register(store.path(), &wanted(), at(1000)).unwrap();
        let (won, start) = (AtomicUsize::new(0), Barrier::new(100));
        std::thread::scope(|scope| {
            for claim in 0..100 {
                let (store, secret, won, start) = (store.path(), &token.secret, &won, &start);
                scope.spawn(move || {
                    start.wait();
                    let one = bind(store, secret, &claim.to_string()).map_or(0, |()| 1);
                    won.fetch_add(one, Ordering::Relaxed);
                });
            }
        });
        assert_eq!(won.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn the_store_holds_no_secret_and_nobody_else_may_read_it() {
        let store = tempfile::tempdir().unwrap();
        let token = register(store.path(), &wanted(), at(1000)).unwrap();
        let path = open_path(store.path(), &token.secret);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let kept = fs::read_to_string(&path).unwrap();
        assert!(
            !kept.contains(&hex::encode(&token.secret)) && !name(&token.secret).contains(&hex::encode(&token.secret))
        );
        // Whoever has the store has the hash: it opens nothing.
        let (hash, _) = list(store.path()).unwrap().remove(0);
        let bytes: Vec<u8> = (0..32).map(|n| u8::from_str_radix(&hash[2 * n..2 * n + 2], 16).unwrap()).collect();
        let stolen: [u8; 32] = bytes.try_into().unwrap();
        assert!(matches!(find(store.path(), &stolen, at(1000)), Err(OfferError::Unknown)));
    }

    #[test]
    fn revoking_one_peers_tokens_leaves_the_others() {
        let store = tempfile::tempdir().unwrap();
        let east = register(store.path(), &wanted(), at(1000)).unwrap();
        let north = Wanted { peer: "north".parse().unwrap(), ..wanted() };
        let north = register(store.path(), &north, at(1000)).unwrap();
        assert_eq!(revoke(store.path(), &"east".parse().unwrap()).unwrap(), 1);
        assert!(matches!(find(store.path(), &east.secret, at(1000)), Err(OfferError::Unknown)));
        assert!(matches!(bind(store.path(), &east.secret, "x"), Err(OfferError::Unknown)));
        assert!(find(store.path(), &north.secret, at(1000)).is_ok());
    }

    #[test]
    fn tokens_that_nobody_uses_take_bounded_room() {
        let store = tempfile::tempdir().unwrap();
        for _ in 0..OFFERS_MAX {
            register(store.path(), &wanted(), at(1000)).unwrap();
        }
        assert!(matches!(register(store.path(), &wanted(), at(1000)), Err(OfferError::Many)));
        assert!(register(store.path(), &wanted(), at(1601)).is_ok(), "those that are over make room");
    }
}
