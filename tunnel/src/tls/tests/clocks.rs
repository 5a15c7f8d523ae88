//! Certificates of another time: what they say of the clock that dated them, and when they are taken all the same.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::SystemTime;

use super::*;
use crate::tls::ClockGap;
use crate::verify::VerifyError;

const HOUR: u64 = 3600;
const GATEWAY: &str = "/ns/hawser-system/sa/gateway";

/// Seconds by which one test's clock is off.
static OFF: AtomicI64 = AtomicI64::new(0);

fn off() -> SystemTime {
    let off = OFF.load(Ordering::Relaxed);
    let by = Duration::from_secs(off.unsigned_abs());
    if off < 0 { clock() - by } else { clock() + by }
}

fn two_hours_back() -> SystemTime {
    clock() - Duration::from_secs(2 * HOUR)
}

fn two_hours_on() -> SystemTime {
    clock() + Duration::from_secs(2 * HOUR)
}

/// A process of west by this clock, which trusts west and, by its bundle, east.
fn west(own: &Pki, east: &Pki, clock: Clock) -> Credentials {
    let credentials = Credentials::new(domain("west"), clock);
    credentials.set_identity(own.identity("west", "/ns/shop/sa/web"));
    assert!(credentials.set_anchors(&domain("west"), Anchors::Bundle(own.bundle())).is_empty());
    let peer = if own.root() == east.root() { Anchors::OwnRoot } else { Anchors::Bundle(east.bundle()) };
    assert!(credentials.set_anchors(&domain("east"), peer).is_empty());
    credentials
}

async fn refused(west: &Credentials, east: &Credentials) -> &'static str {
    failure(handshake(west, &only(id("east", GATEWAY)), east).await.0).reason
}

#[tokio::test]
async fn a_certificate_of_another_time_tells_by_how_much_the_clocks_differ_until_one_is_taken() {
    let pki = Pki::new();
    let east = pki.linked("east", GATEWAY, &["west"]);
    let west = west(&pki, &pki, off);
    assert_eq!(west.clock_gap(&domain("east")), None);
    OFF.store(-2 * 3600, Ordering::Relaxed);
    assert_eq!(refused(&west, &east).await, "not_yet_valid");
    let gap = west.clock_gap(&domain("east")).unwrap();
    assert!((7_190_000..=7_201_000).contains(&gap.ahead_ms()), "{gap:?}");
    // Its certificate lived an hour, so an hour is sure.
    OFF.store(2 * 3600, Ordering::Relaxed);
    assert_eq!(refused(&west, &east).await, "expired");
    let gap = west.clock_gap(&domain("east")).unwrap();
    assert!((-3_610_000..=-3_590_000).contains(&gap.ahead_ms()), "{gap:?}");
    OFF.store(0, Ordering::Relaxed);
    handshake(&west, &only(id("east", GATEWAY)), &east).await.0.unwrap();
    assert_eq!(west.clock_gap(&domain("east")), None);
}

#[tokio::test]
async fn what_nobody_trusted_has_signed_says_nothing_of_clocks() {
    let (pki, evil) = (Pki::new(), Pki::new());
    let west = west(&pki, &pki, two_hours_back);
    assert_eq!(refused(&west, &evil.linked("east", GATEWAY, &["west"])).await, "not_yet_valid");
    assert_eq!(west.clock_gap(&domain("east")), None);
    let denied = Denials { trust_domains: [domain("east")].into(), ..Denials::default() };
    west.set_denied(denied);
    assert_eq!(refused(&west, &pki.linked("east", GATEWAY, &["west"])).await, "not_yet_valid");
    assert_eq!(west.clock_gap(&domain("east")), None);
}

#[test]
fn what_was_dated_ahead_proves_once_begun_and_what_is_over_does_not() {
    let pki = Pki::new();
    let chain = pki.identity("west", "/ns/shop/sa/web").chain().to_vec();
    let early = west(&pki, &pki, two_hours_back);
    assert!(matches!(early.proves(&chain), Err(VerifyError::NotYetValid { .. })));
    assert_eq!(early.proves_once_begun(&chain).unwrap().id, id("west", "/ns/shop/sa/web"));
    let late = west(&pki, &pki, two_hours_on);
    assert!(matches!(late.proves_once_begun(&chain), Err(VerifyError::Expired { .. })));
    let stranger = Pki::new().identity("west", "/ns/shop/sa/web").chain().to_vec();
    assert!(early.proves_once_begun(&stranger).is_err());
}

#[test]
fn an_hour_behind_is_less_than_nothing() {
    let hour = Duration::from_secs(HOUR);
    assert_eq!((ClockGap::Ahead(hour).ahead_ms(), ClockGap::Behind(hour).ahead_ms()), (3_600_000, -3_600_000));
}
