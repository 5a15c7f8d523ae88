//! Handshaken TCP connections that wait for their `Open`, so that an open costs one round trip.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::path::{Path, Terms};
use crate::tcp::Session;

/// The warm connections of one path, newest last.
#[derive(Debug, Default)]
pub(super) struct Warm {
    sessions: Vec<(Session, Terms)>,
    filled: bool,
}

/// A path on which nothing was opened for this long keeps no warm connections.
const IN_USE: Duration = Duration::from_secs(60);
/// After a failure to connect; opens meanwhile find out for themselves.
const PAUSE: Duration = Duration::from_secs(1);

impl Warm {
    /// The newest that is good: it is the least likely to have been forgotten by something on the way.
    pub(super) fn take(&mut self, holds: impl Fn(&Terms) -> bool) -> Option<Session> {
        while let Some((mut session, terms)) = self.sessions.pop() {
            if holds(&terms) && session.is_quiet() {
                return Some(session);
            }
        }
        None
    }

    fn prune(&mut self, holds: impl Fn(&Terms) -> bool) {
        self.sessions.retain_mut(|(session, terms)| holds(terms) && session.is_quiet());
    }
}

impl Path {
    /// Sees to it that warm connections are made, and replaced when they are taken or over.
    pub(super) fn keep_warm(self: &Arc<Self>) {
        if self.shared().config.warm_tcp == 0 {
            return;
        }
        let begin = self.with_warm(|warm| !std::mem::replace(&mut warm.filled, true));
        if begin {
            self.spawn(fill(self.clone()));
        } else {
            self.wanted.notify_one();
        }
    }

    /// Keeps a handshaken connection that lost a race, if there is room.
    pub(super) fn keep(&self, session: Session, terms: Terms) {
        let most = self.shared().config.warm_tcp;
        self.with_warm(|warm| {
            if warm.sessions.len() < most {
                warm.sessions.push((session, terms));
            }
        });
    }
}

/// One task a path in use; it ends when the path is used no more.
async fn fill(path: Arc<Path>) {
    let most = path.shared().config.warm_tcp;
    let mut generation = path.shared().credentials.generation();
    let mut retry_at = Instant::now();
    loop {
        path.with_warm(|warm| warm.prune(|terms| path.hold(terms)));
        if path.last_use().elapsed() > IN_USE {
            path.with_warm(|warm| *warm = Warm::default());
            return;
        }
        let (have, first_over) =
            path.with_warm(|warm| (warm.sessions.len(), warm.sessions.iter().map(|(_, terms)| terms.until()).min()));
        if have < most && Instant::now() >= retry_at {
            retry_at = if add_one(&path).await { Instant::now() } else { Instant::now() + PAUSE };
            continue;
        }
        let wake_at = if have < most { retry_at } else { first_over.unwrap_or(retry_at + IN_USE) };
        tokio::select! {
            () = path.wanted.notified() => {}
            () = sleep_until(wake_at.min(Instant::now() + IN_USE)) => {}
            changed = generation.changed() => if changed.is_err() { return },
        }
    }
}

async fn add_one(path: &Arc<Path>) -> bool {
    let limit = path.shared().config.connect_timeout;
    match path.connect_tcp().await {
        Ok((mut session, terms)) => {
            // The client's Finished is still unsent.
            let sent = timeout(limit, session.flush()).await;
            let sent = matches!(sent, Ok(Ok(())));
            if sent {
                path.keep(session, terms);
            }
            sent
        }
        Err(failure) => {
            tracing::debug!(gateway = %path.gateway().address, ?failure, "cannot keep connections warm");
            false
        }
    }
}
