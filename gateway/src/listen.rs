//! Takes tunnels, and owns every task that a peer causes: a task a tunnel, a task an open.

use std::sync::Arc;
use std::time::Duration;

use hawser_api::Refusal;
use hawser_runtime::{Process, clock};
use hawser_tunnel::listen::{Entered, Incoming, Tunnel, TunnelListener};
use hawser_tunnel::tls::VerifiedPeer;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;

use crate::Gateway;
use crate::admit;
use crate::carry::{Caller, carry};
use crate::join;
use crate::limits::Slot;

/// A tunnel is replaced after this long even where certificates last longer, so that none outlives what it was built
/// on: anchors, limits, addresses.
const TUNNEL_MAX_AGE: Duration = Duration::from_secs(3600);
/// After a renewal of our own certificate, the longest that tunnels are still given new streams.
const RENEWED: Duration = Duration::from_secs(5);
/// How long a peer that may not come in may take to ask, so that it can be told why.
const TURN_AWAY: Duration = Duration::from_secs(5);
/// What is left when the drain is over gets this long to send its last bytes.
const LAST_BYTES: Duration = Duration::from_millis(500);

/// Serves until the process drains and the last stream has ended or been cut.
pub(crate) async fn serve(gateway: Arc<Gateway>, listener: &TunnelListener, process: &Process) {
    let tasks = TaskTracker::new();
    loop {
        let incoming = tokio::select! {
            () = process.drain.cancelled() => break,
            incoming = listener.accept() => incoming,
        };
        let Some(incoming) = incoming else { break };
        match gateway.limits.take_tunnel() {
            Some(slot) => drop(tasks.spawn(tunnel(Arc::clone(&gateway), incoming, slot, tasks.clone()))),
            // Dropped unseen: an answer would cost a handshake.
            None => gateway.metrics.tunnel_refused(),
        }
    }
    listener.close();
    tasks.close();
    tokio::select! {
        () = tasks.wait() => {}
        () = process.stop.cancelled() => {
            let cut = gateway.streams.cut_where(|_| Some("drained"));
            tracing::info!(cut, "drain deadline passed");
            let _ = timeout(LAST_BYTES, tasks.wait()).await;
        }
    }
}

/// A tunnel from its handshake to its end.
async fn tunnel(gateway: Arc<Gateway>, incoming: Incoming, slot: Slot, tasks: TaskTracker) {
    let remote = incoming.remote();
    let tunnel = match incoming.enter().await {
        Ok(Entered::Tunnel(tunnel)) => tunnel,
        Ok(Entered::Knock(knock)) => return join::answer(&gateway, knock).await,
        Err(error) => {
            gateway.metrics.handshake_failed(error.reason);
            if let Some(left_out) = gateway.said.again(error.reason, clock::monotonic()) {
                tracing::info!(%remote, %error, left_out, "handshake failed");
            }
            return;
        }
    };
    let link = admit::link(&gateway.tables.load(), tunnel.peer().id()).map(|peer| peer.cluster.clone());
    let entered = link.and_then(|link| gateway.limits.take_link_tunnel(&link).map(|slot| (link, slot)));
    match entered {
        Ok((link, _link_slot)) => {
            let (peer, transport) = (tunnel.peer().clone(), tunnel.transport());
            gateway.metrics.tunnel(Some(&link), transport.as_str(), 1);
            let caller = Arc::new(Caller { link, peer, transport, remote });
            opens(&gateway, tunnel, &caller, &tasks).await;
            gateway.metrics.tunnel(Some(&caller.link), transport.as_str(), -1);
        }
        Err(refusal) => turn_away(&gateway, tunnel, &refusal).await,
    }
    drop(slot);
}

/// Takes opens until the tunnel ends; sends it away when its time is over, the process drains, or its peer may no
/// longer come in.
async fn opens(gateway: &Arc<Gateway>, mut tunnel: Tunnel, caller: &Arc<Caller>, tasks: &TaskTracker) {
    let mut changes = gateway.changes.subscribe();
    let age = sleep(max_age(caller));
    let renewed = renewed(gateway, &caller.peer);
    tokio::pin!(age, renewed);
    let mut leaving = false;
    loop {
        tokio::select! {
            arrival = tunnel.next_open() => match arrival {
                Some(arrival) => drop(tasks.spawn(carry(Arc::clone(gateway), Arc::clone(caller), arrival))),
                None => break,
            },
            () = gateway.draining.cancelled(), if !leaving => {
                leaving = true;
                tunnel.go_away();
            }
            // What rests on the old one is not to last until that ends: its issuer may wait to retire.
            () = &mut renewed, if !leaving => {
                leaving = true;
                tunnel.go_away();
            }
            () = &mut age, if !leaving => {
                leaving = true;
                tunnel.go_away();
            }
            () = gateway.stopping.cancelled() => {
                tunnel.cut();
                break;
            }
            _ = changes.changed() => {
                if !welcome(gateway, caller) {
                    tunnel.cut();
                    break;
                }
            }
        }
    }
}

/// Until our certificate is another than that of the tunnel, and a moment more: the peers of one gateway do not all come
/// at once.
async fn renewed(gateway: &Gateway, peer: &VerifiedPeer) {
    gateway.credentials.shows_another(peer).await;
    sleep(RENEWED.mul_f64(rand::random_range(0.0..1.0))).await;
}

/// Until the first of: the peer's certificate ends, ours ends, the maximum age.
fn max_age(caller: &Caller) -> Duration {
    let now = clock::now();
    let ends = caller.peer.ours_not_after().into_iter().chain([caller.peer.not_after()]);
    ends.map(|end| end.duration_since(now).unwrap_or_default()).fold(TUNNEL_MAX_AGE, Duration::min)
}

fn welcome(gateway: &Gateway, caller: &Caller) -> bool {
    let linked = admit::link(&gateway.tables.load(), caller.peer.id()).is_ok_and(|peer| peer.cluster == caller.link);
    // A certificate that merely ended is the maximum age's matter: its streams may end in their own time.
    linked && gateway.credentials.still_anchored(&caller.peer)
}

/// Tells a peer that may not come in why, if it asks soon.
async fn turn_away(gateway: &Gateway, mut tunnel: Tunnel, refusal: &Refusal) {
    let answered = timeout(TURN_AWAY, async {
        if let Some(arrival) = tunnel.next_open().await {
            gateway.metrics.opened(None, refusal.code.as_str());
            arrival.refuse(refusal).await;
        }
        tunnel.go_away();
        // Until the peer closes: to cut now could lose the answer on its way.
        while let Some(arrival) = tunnel.next_open().await {
            arrival.refuse(refusal).await;
        }
    });
    if answered.await.is_err() {
        tunnel.cut();
    }
    if let Some(left_out) = gateway.said.again(refusal.code.as_str(), clock::monotonic()) {
        tracing::info!(peer = %tunnel.peer().id(), remote = %tunnel.remote(), %refusal, left_out, "tunnel turned away");
    }
}
