//! One watch: lists, follows, and comes back whatever happens to it.

use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use hawser_api::{ClusterName, TrustDomain};
use kube::core::DynamicObject;
use kube::runtime::watcher::{self, Event, InitialListStrategy};
use kube::{Api, Client};

use super::Known;
use super::fill::Trouble;
use super::kind::Kind;
use super::read;

/// Pauses between tries that failed. The longest is also how late a definition that was missing, or a permission, is
/// noticed.
const PAUSE: std::ops::Range<Duration> = Duration::from_millis(100)..Duration::from_secs(5);
/// Errors in a row after which a kind counts as one that cannot be watched, and is listed anew.
const RELIST_AFTER: u32 = 3;

/// Watches one kind until dropped.
pub(super) async fn run(client: Client, kind: Kind, known: Known, own: (ClusterName, TrustDomain)) {
    let mut watch =
        Watch { kind, known, own, config: watcher::Config::default().streaming_lists(), turn: 0, failed: 0 };
    loop {
        watch.follow(&client).await;
    }
}

struct Watch {
    kind: Kind,
    known: Known,
    own: (ClusterName, TrustDomain),
    config: watcher::Config,
    // How often nothing was found: see `Kind::resource`.
    turn: usize,
    failed: u32,
}

/// What follows from a failure.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    /// The stream goes on from where it was.
    Resume,
    /// It begins anew.
    Relist,
}

impl Watch {
    /// Follows one stream until it must begin anew.
    async fn follow(&mut self, client: &Client) {
        let resource = self.kind.resource(self.turn);
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let mut events = pin!(watcher::watcher(api, self.config.clone()));
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.hear(&resource.api_version, event),
                Err(error) => {
                    let then = self.failed(&error);
                    tokio::time::sleep(self.pause()).await;
                    if then == Then::Relist {
                        return;
                    }
                }
            }
        }
    }

    fn hear(&mut self, api_version: &str, event: Event<DynamicObject>) {
        let reduce = |object| read::seen(self.kind, api_version, object, &self.own);
        let event = match event {
            Event::Apply(object) => reduce(object).map(Event::Apply),
            Event::Delete(object) => reduce(object).map(Event::Delete),
            Event::InitApply(object) => reduce(object).map(Event::InitApply),
            Event::Init => Some(Event::Init),
            Event::InitDone => Some(Event::InitDone),
        };
        // The beginning of a listing says only that the API server took the call.
        if !matches!(event, Some(Event::Init)) && std::mem::take(&mut self.failed) > 0 {
            self.known.change(|fill| fill.trouble(self.kind, None));
        }
        if let Some(event) = event {
            self.known.change(|fill| fill.hear(self.kind, event));
        }
    }

    fn failed(&mut self, error: &watcher::Error) -> Then {
        self.failed = self.failed.saturating_add(1);
        let status = status(error);
        let (trouble, then) = match status.map(|status| status.code) {
            // The version that is too old: the watcher lists anew by itself, and nothing is amiss.
            Some(410) => return Then::Resume,
            Some(404) => {
                self.turn = self.turn.wrapping_add(1);
                (Trouble::Missing, Then::Relist)
            }
            Some(401 | 403) => {
                (Trouble::Forbidden(status.map(|status| status.message.clone()).unwrap_or_default()), Then::Relist)
            }
            // An API server without streaming lists says that the request is invalid.
            Some(400 | 422) if self.config.initial_list_strategy == InitialListStrategy::StreamingList => {
                self.config.initial_list_strategy = InitialListStrategy::ListWatch;
                return Then::Relist;
            }
            _ if self.failed >= RELIST_AFTER => (Trouble::Unreachable(error.to_string()), Then::Relist),
            // The API server was away, and its store may come back in an older state. Of a version that it has not reached
            // again it says nothing is wrong: it takes the watch and tells of nothing until it has.
            _ if matches!(error, watcher::Error::WatchStartFailed(_)) => return Then::Relist,
            // One that breaks off and comes back is what watches do.
            _ => return Then::Resume,
        };
        self.known.change(|fill| {
            let effect = fill.trouble(self.kind, Some(trouble.clone()));
            if effect.world {
                let problem = trouble.problem(self.kind);
                tracing::warn!(hint = problem.remedy, "{problem}");
            }
            effect
        });
        then
    }

    fn pause(&self) -> Duration {
        let pause = PAUSE.start.saturating_mul(1 << self.failed.saturating_sub(1).min(10)).min(PAUSE.end);
        pause.mul_f64(rand::random_range(0.5..1.0))
    }
}

/// What the API server said, if it was the API server.
fn status(error: &watcher::Error) -> Option<&kube::core::Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        _ => None,
    }
}
