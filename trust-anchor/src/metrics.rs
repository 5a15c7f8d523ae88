//! How far the rotation of each level is, and when what others prove themselves by ends: brought up to date by `watch`,
//! each second, so that a scrape waits for nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use hawser_api::bundle::Bundle;
use hawser_api::proto::issuer::{AcceptedBundle, FabricReport};
use hawser_runtime::Process;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use rustls_pki_types::CertificateDer;

use crate::authority::Authority;
use crate::drive::Driver;
use crate::hierarchy::describe;
use crate::record::gauge;
use crate::rotate::{Level, State};

/// Peers whose anchors have series of their own; a fabric has far fewer links.
const PEERS_MAX: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct At {
    level: &'static str,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    level: &'static str,
}

/// As the mirror controller names them: both hold the same anchors, one may be behind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Anchor {
    cluster: String,
    anchor: &'static str,
}

/// Shared by nobody: `watch` alone says what they are.
pub(crate) struct Metrics {
    rotation: Family<At, Gauge>,
    since: Family<Of, Gauge>,
    waits: Family<Of, Gauge>,
    to_renew: Gauge,
    anchors: Family<Anchor, Gauge>,
    clusters: BTreeSet<String>,
}

impl Metrics {
    pub(crate) fn new(process: &Process) -> Self {
        let metrics = Self {
            rotation: Family::default(),
            since: Family::default(),
            waits: Family::default(),
            to_renew: Gauge::default(),
            anchors: Family::default(),
            clusters: BTreeSet::new(),
        };
        let mut registry = process.registry.lock();
        let rotation = "1 for the state that the rotation of this level is in; none: there was none yet";
        registry.register("hawser_rotation_state", rotation, metrics.rotation.clone());
        let since = "Since when the rotation is in its state, seconds since the epoch";
        registry.register("hawser_rotation_since_timestamp_seconds", since, metrics.since.clone());
        let waits = "1 while the rotation's next step is refused";
        registry.register("hawser_rotation_refused", waits, metrics.waits.clone());
        let to_renew = "Certificates in use that are to be renewed, since their key or their issuer is replaced";
        registry.register("hawser_rotation_leaves_to_renew", to_renew, metrics.to_renew.clone());
        let anchors = "When the first and the last of a linked cluster's anchors ends, seconds since the epoch";
        registry.register("hawser_anchor_expiry_timestamp_seconds", anchors, metrics.anchors.clone());
        drop(registry);
        metrics
    }

    /// Everything, as it is now.
    pub(crate) fn look(&mut self, authority: &Authority, driver: &Driver) {
        self.rotations(driver);
        let signer = authority.intermediate.load().as_ref().map(|signer| signer.id());
        self.to_renew.set(gauge(authority.record.to_renew(driver.course.reissue_before_ms, signer) as u64));
        let running = driver.course.running().is_some();
        let next_root = driver.course.new_root.as_ref().filter(|_| running).and_then(|root| describe(&root.0));
        authority.record.ends("next_root", next_root.map(|root| root.until));
        authority.record.ends("next_intermediate", driver.successor.as_ref().map(|next| next.not_after()));
        // Without a report there is nothing that anybody trusts by.
        let fabric = authority.fabric.borrow();
        let report = fabric.as_ref().map(|(report, _)| report);
        let accepted = authority.watch().borrow().accepted.clone();
        self.foreign(ends(report, &accepted));
    }

    fn rotations(&self, driver: &Driver) {
        let rotation = driver.course.rotation.as_ref();
        for level in [Level::Root, Level::Intermediate] {
            let rotation = rotation.filter(|rotation| rotation.level == level);
            let now = rotation.map_or("none", |rotation| rotation.state.as_str());
            for state in State::names().chain(["none"]) {
                self.rotation.get_or_create(&At { level: level.as_str(), state }).set((state == now).into());
            }
            let of = Of { level: level.as_str() };
            self.since.get_or_create(&of).set(rotation.map_or(0, |rotation| rotation.since_ms / 1000));
            let refused = rotation.is_some_and(|rotation| !rotation.is_over()) && driver.refusal.is_some();
            self.waits.get_or_create(&of).set(refused.into());
        }
    }

    fn foreign(&mut self, ends: BTreeMap<String, (SystemTime, SystemTime)>) {
        for cluster in &self.clusters {
            if !ends.contains_key(cluster) {
                for anchor in ["first", "last"] {
                    self.anchors.remove(&Anchor { cluster: cluster.clone(), anchor });
                }
            }
        }
        for (cluster, (first, last)) in &ends {
            for (anchor, end) in [("first", first), ("last", last)] {
                let seconds = end.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                self.anchors.get_or_create(&Anchor { cluster: cluster.clone(), anchor }).set(gauge(seconds));
            }
        }
        self.clusters = ends.into_keys().collect();
    }
}

/// When the first and the last anchor ends of each linked cluster that has anchors of its own. One that hangs under our
/// root has ours; of a bundle that an operator accepted by hand and that no peer is known for, the trust domain is named.
fn ends(report: Option<&FabricReport>, accepted: &[AcceptedBundle]) -> BTreeMap<String, (SystemTime, SystemTime)> {
    let peers = report.into_iter().flat_map(|report| &report.peers);
    let known: BTreeSet<&str> = peers.clone().map(|peer| peer.trust_domain.as_str()).collect();
    let by_hand = accepted.iter().filter(|bundle| !known.contains(bundle.trust_domain.as_str()));
    let all = peers.map(|peer| (&peer.cluster, &peer.bundle));
    let all = all.chain(by_hand.map(|bundle| (&bundle.trust_domain, &bundle.document)));
    let bounds = |document: &str| {
        let bundle = Bundle::parse(document).ok()?;
        let described =
            bundle.x509_authorities.iter().filter_map(|der| describe(&CertificateDer::from(der.as_slice())));
        let ends: BTreeSet<SystemTime> = described.map(|about| about.until).collect();
        Some((*ends.first()?, *ends.last()?))
    };
    all.take(PEERS_MAX).filter_map(|(name, document)| Some((name.clone(), bounds(document)?))).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hawser_api::proto::issuer::LinkedPeer;

    use super::*;
    use crate::hierarchy;

    fn document(ends: &[u64]) -> String {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let x509_authorities = ends
            .iter()
            .map(|end| {
                let key = rcgen::KeyPair::generate().unwrap();
                hierarchy::authority("other", &key, at(1), at(*end)).self_signed(&key).unwrap().der().to_vec()
            })
            .collect();
        Bundle { sequence: 1, x509_authorities, ..Bundle::default() }.to_document()
    }

    fn peer(cluster: &str, bundle: String) -> LinkedPeer {
        let trust_domain = format!("{cluster}.example");
        LinkedPeer { cluster: cluster.into(), trust_domain, bundle, ..LinkedPeer::default() }
    }

    fn accepted(trust_domain: &str, document: String) -> AcceptedBundle {
        AcceptedBundle { trust_domain: trust_domain.into(), document, accepted_ms: 1 }
    }

    #[test]
    fn the_anchors_of_linked_clusters_have_their_first_and_last_end() {
        let peers = vec![peer("west", document(&[3000, 2000, 4000])), peer("north", String::new())];
        let report = FabricReport { peers, ..FabricReport::default() };
        let by_hand = [accepted("west.example", document(&[9000])), accepted("south.example", document(&[5000]))];
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let expected = [("west", at(2000), at(4000)), ("south.example", at(5000), at(5000))];
        let expected = expected.map(|(name, first, last)| (name.to_owned(), (first, last)));
        assert_eq!(ends(Some(&report), &by_hand), BTreeMap::from(expected));
    }

    #[test]
    fn a_cluster_that_is_linked_no_more_has_no_series() {
        let process = Process::detached();
        let mut metrics = Metrics::new(&process);
        let text = || {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &process.registry.lock()).unwrap();
            text
        };
        metrics.foreign(ends(None, &[accepted("west.example", document(&[2000, 4000]))]));
        let family = "hawser_anchor_expiry_timestamp_seconds";
        for sample in ["anchor=\"first\"} 2000", "anchor=\"last\"} 4000"] {
            assert!(text().contains(&format!("{family}{{cluster=\"west.example\",{sample}")), "{}", text());
        }
        metrics.foreign(BTreeMap::new());
        assert!(!text().contains("west.example"), "{}", text());
    }
}
