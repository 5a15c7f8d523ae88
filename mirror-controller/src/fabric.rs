//! What validators say of their trust: this cluster's own processes, and each peer for all of its own.
//!
//! ```text
//! discovery/listen  Status.trust ──────────┐                    ┌─▶ watch/catalog  Acknowledgement.trust, to each peer
//! catalog/listen    Acknowledgement.trust ─┼─▶ Known ─ plan ────┤
//! watch/catalog     the peer's clock ──────┘  (pure: plan/proof)└─▶ watch/fabric   FabricReport, to the trust anchor
//! ```
//!
//! It is kept beside the world, not in it: it changes with every session, and nothing that is planned depends on it.

use std::collections::BTreeMap;
use std::sync::Arc;

use hawser_api::ClusterName;
use hawser_api::proto::catalog::TrustAcknowledgement;
use hawser_api::proto::discovery::{Role, TrustReport};
use hawser_tunnel::report;
use hawser_tunnel::tls::{ClockGap, Credentials};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::plan::{clocks, proof};
use crate::world::World;

/// Processes that are remembered; more than there may be subscribers of discovery.
const HEARD_MAX: usize = 2048;

/// Clocks are told to this.
const CLOCK_STEP_MS: u64 = 100;

/// A process of this cluster, by what it is and how it is called.
pub type Validator = (Kind, String);

/// What a validator is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A gateway.
    Gateway,
    /// This process.
    MirrorController,
    /// A proxy.
    Proxy,
}

impl Kind {
    /// The word on the wire and on pages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::MirrorController => "mirror-controller",
            Self::Proxy => "proxy",
        }
    }

    /// What a subscriber of discovery is; `None` for what it may not say.
    pub fn of(role: Role) -> Option<Self> {
        match role {
            Role::Gateway => Some(Self::Gateway),
            Role::Proxy => Some(Self::Proxy),
            Role::Unspecified => None,
        }
    }
}

/// All that was said, as it is now.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// This cluster's processes that have ever spoken.
    pub validators: BTreeMap<Validator, Heard>,
    /// Linked clusters.
    pub peers: BTreeMap<ClusterName, PeerTrust>,
}

/// What one process said last.
#[derive(Debug, Clone)]
pub struct Heard {
    /// Its stream of reports stands.
    pub connected: bool,
    /// When it last said something, milliseconds since the epoch.
    pub seen_ms: i64,
    /// What; `None`: it said nothing of trust, as an older version does.
    pub trust: Option<Arc<TrustReport>>,
    stream: u64,
}

/// What one linked cluster says, and how its clock goes.
#[derive(Debug, Clone, Default)]
pub struct PeerTrust {
    /// Its last acknowledgement of our bundle, within bounds; `None`: it has said nothing of it.
    pub acknowledgement: Option<TrustAcknowledgement>,
    /// When that came, milliseconds since the epoch.
    pub seen_ms: i64,
    /// Its clock minus ours, milliseconds; `None`: not measured.
    pub clock_ahead_ms: Option<i64>,
    /// It cannot come in, as its certificates begin in what is the future here; the clock is ahead by that at least.
    pub dated_ahead: bool,
}

/// Where all that is kept. Clone to share.
#[derive(Debug, Clone)]
pub struct Fabric {
    known: Arc<Mutex<Known>>,
    changes: watch::Sender<u64>,
    credentials: Credentials,
}

/// Waits for the next change.
#[derive(Debug)]
pub struct Changes {
    heard: watch::Receiver<u64>,
    own: watch::Receiver<u64>,
}

impl Changes {
    /// What was said until now has been looked at.
    pub fn mark_unchanged(&mut self) {
        self.heard.mark_unchanged();
        self.own.mark_unchanged();
    }

    /// Something was said since; never, when there is nobody to say anything.
    pub async fn changed(&mut self) {
        let (heard, own) = (self.heard.changed(), self.own.changed());
        let told = tokio::select! { told = heard => told, told = own => told };
        if told.is_err() {
            std::future::pending().await
        }
    }
}

/// One stream of reports; when it is dropped, its process is not connected any more.
#[derive(Debug)]
pub struct Stream {
    fabric: Fabric,
    number: u64,
    validator: Option<Validator>,
}

impl Fabric {
    /// Nothing was heard yet; these are this process's own credentials.
    pub fn new(credentials: Credentials) -> Self {
        Self { known: Arc::default(), changes: watch::Sender::new(0), credentials }
    }

    /// Changes with everything that is heard, and with what this process itself trusts.
    pub fn changes(&self) -> Changes {
        Changes { heard: self.changes.subscribe(), own: self.credentials.generation() }
    }

    /// All that was said until now.
    pub fn known(&self) -> Known {
        self.known.lock().clone()
    }

    /// This process's own account.
    pub fn own(&self) -> TrustReport {
        report::trust(&self.credentials)
    }

    /// Every validator that should be there, heard or not, and who else is connected.
    pub fn validators(&self, world: &World) -> Vec<hawser_api::proto::issuer::Validator> {
        proof::validators(world, &self.known(), self.own(), crate::now_ms())
    }

    /// A process begins to report.
    pub fn stream(&self) -> Stream {
        let mut number = 0;
        self.changes.send_modify(|changes| {
            *changes += 1;
            number = *changes;
        });
        Stream { fabric: self.clone(), number, validator: None }
    }

    /// A peer said this of our bundle.
    pub fn acknowledged(&self, peer: &ClusterName, told: TrustAcknowledgement, at_ms: i64) {
        self.peer(peer, |peer| {
            // As far as its way here took, its clock is more ahead than this.
            peer.clock_ahead_ms = (told.now_ms > 0).then(|| told.now_ms.saturating_sub(at_ms));
            peer.acknowledgement = Some(told);
            peer.seen_ms = at_ms;
        });
    }

    /// A peer's clock is this much ahead of ours.
    pub fn clock(&self, peer: &ClusterName, ahead_ms: i64) {
        let known =
            self.known.lock().peers.get(peer).filter(|peer| !peer.dated_ahead).and_then(|peer| peer.clock_ahead_ms);
        // The few milliseconds by which estimates differ are nobody's news.
        if known.is_none_or(|known| known.abs_diff(ahead_ms) >= CLOCK_STEP_MS) {
            self.peer(peer, |peer| (peer.clock_ahead_ms, peer.dated_ahead) = (Some(ahead_ms), false));
        }
    }

    /// There is no session with a peer; what its certificate said of its clock, if it was refused for its time.
    pub fn shut_out(&self, peer: &ClusterName, gap: Option<ClockGap>) {
        let dated_ahead = matches!(gap, Some(ClockGap::Ahead(_)));
        let known = self.known.lock().peers.get(peer).map(|peer| (peer.clock_ahead_ms, peer.dated_ahead));
        let ahead_ms = known.and_then(|(ahead_ms, _)| ahead_ms);
        let ahead_ms = gap.map(|gap| clocks::at_least(ahead_ms, gap.ahead_ms())).or(ahead_ms);
        if known.unwrap_or_default() != (ahead_ms, dated_ahead) {
            self.peer(peer, |peer| (peer.clock_ahead_ms, peer.dated_ahead) = (ahead_ms, dated_ahead));
        }
    }

    /// A peer is not linked any more, or is another.
    pub fn forget(&self, peer: &ClusterName) {
        self.known.lock().peers.remove(peer);
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn peer(&self, peer: &ClusterName, change: impl FnOnce(&mut PeerTrust)) {
        change(self.known.lock().peers.entry(peer.clone()).or_default());
        self.changes.send_modify(|changes| *changes += 1);
    }
}

impl Stream {
    /// The process says this.
    pub fn heard(&mut self, kind: Kind, name: &str, trust: Option<TrustReport>, at_ms: i64) {
        let validator = (kind, name.to_owned());
        let mut known = self.fabric.known.lock();
        if known.validators.len() >= HEARD_MAX && !known.validators.contains_key(&validator) {
            known.validators.retain(|_, heard| heard.connected);
        }
        // One that spoke of trust and now does not is another version: what the old one held says nothing of it.
        let heard = Heard { connected: true, seen_ms: at_ms, trust: trust.map(Arc::new), stream: self.number };
        known.validators.insert(validator.clone(), heard);
        drop(known);
        self.validator = Some(validator);
        self.fabric.changes.send_modify(|changes| *changes += 1);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let Some(validator) = &self.validator else { return };
        let mut known = self.fabric.known.lock();
        // Its successor may have come before it went.
        if let Some(heard) = known.validators.get_mut(validator).filter(|heard| heard.stream == self.number) {
            heard.connected = false;
        }
        drop(known);
        self.fabric.changes.send_modify(|changes| *changes += 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_tunnel::testing::Pki;

    fn fabric() -> Fabric {
        Fabric::new(Pki::new().credentials("west", "/ns/hawser-system/sa/mirror-controller"))
    }

    #[test]
    fn a_process_that_went_is_remembered_as_gone_unless_its_successor_came() {
        let fabric = fabric();
        let key = (Kind::Proxy, "web".to_owned());
        let mut first = fabric.stream();
        first.heard(Kind::Proxy, "web", Some(TrustReport::default()), 5);
        let mut second = fabric.stream();
        second.heard(Kind::Proxy, "web", Some(TrustReport::default()), 6);
        drop(first);
        assert!(fabric.known().validators[&key].connected);
        drop(second);
        let heard = fabric.known().validators[&key].clone();
        assert!(!heard.connected && heard.seen_ms == 6 && heard.trust.is_some());
    }

    #[test]
    fn a_peer_that_is_shut_out_for_its_time_is_said_to_be_until_it_is_not() {
        let (fabric, east) = (fabric(), "east".parse().unwrap());
        let said = |fabric: &Fabric| {
            let known = fabric.known();
            known.peers.get(&east).map(|peer| (peer.clock_ahead_ms, peer.dated_ahead)).unwrap_or_default()
        };
        let (changes, hour) = (fabric.changes.subscribe(), std::time::Duration::from_secs(3600));
        fabric.shut_out(&east, None);
        assert!(!changes.has_changed().unwrap(), "nothing is known");
        fabric.shut_out(&east, Some(ClockGap::Ahead(hour)));
        assert_eq!(said(&fabric), (Some(3_600_000), true));
        fabric.shut_out(&east, Some(ClockGap::Behind(hour)));
        assert_eq!(said(&fabric), (Some(-3_600_000), false));
        // It fails for another reason now: what was measured is shown on, and decides nothing.
        fabric.shut_out(&east, None);
        assert_eq!(said(&fabric), (Some(-3_600_000), false));
        fabric.shut_out(&east, Some(ClockGap::Ahead(hour)));
        fabric.clock(&east, 12);
        assert_eq!(said(&fabric), (Some(12), false), "a session stands");
    }

    #[test]
    fn names_that_come_and_go_are_not_collected_for_ever() {
        let fabric = fabric();
        for at in 0..3 * HEARD_MAX {
            fabric.stream().heard(Kind::Proxy, &format!("p{at}"), None, 1);
        }
        assert!(fabric.known().validators.len() <= HEARD_MAX);
    }
}
