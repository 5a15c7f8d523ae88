//! The connection to an endpoint's proxy, and what is remembered about endpoints: how much runs to each, and which
//! refused a connection a moment ago.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::route::Load;
use crate::table::Endpoint;

/// For one connect. Endpoints are in the gateway's own cluster, a few milliseconds away; two tries of this fit into the
/// time after which a dialler gives an open up.
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long an endpoint that took no connection is used only if there is no other: long enough that a dead one costs
/// little, short enough that one that restarts is soon back.
pub const DOWN_FOR: Duration = Duration::from_secs(1);

/// What is remembered about endpoints, by id.
#[derive(Debug, Default)]
pub struct Endpoints {
    states: Mutex<HashMap<Arc<str>, State>>,
}

#[derive(Debug, Default)]
struct State {
    open: usize,
    down_until: Option<Instant>,
}

/// Counts as a stream to an endpoint until it is dropped.
#[derive(Debug)]
pub struct Lease {
    endpoints: Arc<Endpoints>,
    id: Arc<str>,
}

impl Endpoints {
    /// What is known of one now.
    pub fn load(&self, id: &str, now: Instant) -> Load {
        self.states.lock().get(id).map_or(Load::default(), |state| Load {
            open: state.open,
            down: state.down_until.is_some_and(|until| now < until),
        })
    }

    /// Counts a stream, from before its connect, so that opens at the same moment spread.
    pub fn enter(self: &Arc<Self>, id: &Arc<str>) -> Lease {
        self.states.lock().entry(Arc::clone(id)).or_default().open += 1;
        Lease { endpoints: Arc::clone(self), id: Arc::clone(id) }
    }

    /// Remembers that it took no connection.
    pub fn mark_down(&self, id: &Arc<str>, now: Instant) {
        self.states.lock().entry(Arc::clone(id)).or_default().down_until = Some(now + DOWN_FOR);
    }

    /// Forgets what no longer matters; called now and then, so that endpoints that come and go leave nothing behind.
    pub fn forget(&self, now: Instant) {
        self.states.lock().retain(|_, state| state.open > 0 || state.down_until.is_some_and(|until| now < until));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(state) = self.endpoints.states.lock().get_mut(&self.id) {
            state.open = state.open.saturating_sub(1);
        }
    }
}

/// Connects to the endpoint's proxy.
pub async fn dial(endpoint: &Endpoint) -> io::Result<TcpStream> {
    let socket = timeout(CONNECT_TIMEOUT, TcpStream::connect(endpoint.inbound))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))??;
    // The first bytes of a handshake are small, and must not wait for an acknowledgement.
    socket.set_nodelay(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_counted_while_they_live_and_endpoints_forgotten_when_idle() {
        let endpoints = Arc::new(Endpoints::default());
        let now = Instant::now();
        let id: Arc<str> = "a".into();
        let lease = endpoints.enter(&id);
        assert_eq!(endpoints.load("a", now), Load { open: 1, down: false });
        endpoints.forget(now);
        assert_eq!(endpoints.load("a", now).open, 1);
        drop(lease);
        endpoints.forget(now);
        assert!(endpoints.states.lock().is_empty());
    }

    #[test]
    fn an_endpoint_that_took_no_connection_is_down_for_a_second() {
        let endpoints = Endpoints::default();
        let now = Instant::now();
        endpoints.mark_down(&"a".into(), now);
        assert!(endpoints.load("a", now).down);
        endpoints.forget(now);
        assert!(endpoints.load("a", now + DOWN_FOR - Duration::from_millis(1)).down);
        assert!(!endpoints.load("a", now + DOWN_FOR).down);
        endpoints.forget(now + DOWN_FOR);
        assert!(endpoints.states.lock().is_empty());
    }
}
