//! When a failed request is tried elsewhere: it must be harmless, there must be a try left, and the destination's budget
//! must allow it, so that a service in trouble is not buried under its callers' retries.

use hawser_api::Code;
use http::Method;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Exchanges that one request may cost.
pub(crate) const TRIES_MAX: u32 = 3;
/// Sessions that one request may wait for, dead ones included. They cost the far side nothing, but the caller time.
pub(crate) const PLACES_MAX: u32 = 6;
/// Request bytes that are kept so that they can be sent again.
pub(crate) const REPLAY_MAX: usize = 64 << 10;

/// Retries a request earns for later ones.
const PER_REQUEST: f64 = 0.2;
/// Retries that come with time: a service that is hardly used may still have its few.
const PER_SECOND: f64 = 10.0;
/// What can be saved up: ten seconds' worth.
const SAVED_MAX: f64 = 100.0;

/// A destination's retries.
#[derive(Debug)]
pub(crate) struct Budget {
    saved: Mutex<(f64, Instant)>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { saved: Mutex::new((PER_SECOND, Instant::now())) }
    }
}

impl Budget {
    /// A request was made.
    pub(crate) fn earn(&self) {
        let mut saved = self.saved.lock();
        saved.0 = (saved.0 + PER_REQUEST).min(SAVED_MAX);
    }

    /// Takes one retry, if there is one.
    pub(crate) fn spend(&self, now: Instant) -> bool {
        let mut saved = self.saved.lock();
        let since = now.saturating_duration_since(saved.1);
        let left = (saved.0 + since.as_secs_f64() * PER_SECOND).min(SAVED_MAX);
        let granted = left >= 1.0;
        *saved = (if granted { left - 1.0 } else { left }, now);
        granted
    }
}

/// Whether doing it twice is as good as doing it once (RFC 9110 section 9.2.2).
pub(crate) fn idempotent(method: &Method) -> bool {
    method.is_idempotent()
}

/// Whether an answer with this refusal means that the application has not seen the request.
pub(crate) fn unseen(code: Code) -> bool {
    matches!(
        code,
        Code::NoEndpoint
            | Code::EndpointUnreachable
            | Code::PeerUnreachable
            | Code::Overloaded
            | Code::Draining
            | Code::NotReady
            | Code::WrongIdentity
            | Code::Version
    )
}

/// Whether the server said that it has not worked on the stream (RFC 9113 sections 6.8 and 8.7).
pub(crate) fn unprocessed(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    // h2 ends only streams above the last one that the server took with its GOAWAY.
    refused || (error.is_go_away() && error.is_remote())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_fifth_of_the_requests_and_ten_a_second_may_be_retried() {
        let budget = Budget::default();
        let mut now = Instant::now();
        let spend_all = |now| (0..1_000).filter(|_| budget.spend(now)).count();
        assert_eq!(spend_all(now), 10);
        for _ in 0..100 {
            budget.earn();
        }
        assert!((19..=20).contains(&spend_all(now)));
        now += Duration::from_secs(1);
        assert!((10..=11).contains(&spend_all(now)));
        now += Duration::from_secs(3600);
        assert_eq!(spend_all(now), 100);
    }

    #[test]
    fn only_harmless_methods_are_idempotent() {
        for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE] {
            assert!(idempotent(&method));
        }
        for method in [Method::POST, Method::PATCH, Method::CONNECT, "MERGE".parse().unwrap()] {
            assert!(!idempotent(&method));
        }
    }

    #[test]
    fn a_refusal_that_may_come_after_the_application_is_not_unseen() {
        assert!(!unseen(Code::TimedOut));
        assert!(unseen(Code::Draining));
        assert!(Code::ALL.iter().filter(|(code, _)| unseen(*code)).all(|(code, _)| code.retry_elsewhere()));
    }
}
