//! Starts and ends what belongs to each Link, as Links come, change and go.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hawser_api::bundle::Bundle;
use hawser_api::objects::Link;
use hawser_api::objects::link::BundleProfile;
use hawser_api::{ClusterName, SpiffeId, TrustDomain};
use hawser_runtime::{Process, clock};
use hawser_tunnel::https::Client;
use hawser_tunnel::pool::Dialer;
use hawser_tunnel::tls::Credentials;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::endpoint::{Endpoint, Taker};
use super::{catalog, gateways, last_known};
use crate::bundles::Bundles;
use crate::fabric::Fabric;
use crate::metrics::Metrics;
use crate::plan::Plan;
use crate::world::{Catalog, PeerState, Source, Store, World};

/// A catalog that changes all the time is written no more often than this.
const SAVE_PAUSE: Duration = Duration::from_secs(1);

/// What links are kept with.
#[derive(Clone)]
pub struct Links {
    /// Where what is heard goes.
    pub store: Store,
    /// Who we are and whom we trust; the anchors of linked clusters are put in here.
    pub credentials: Credentials,
    /// Opens tunnels.
    pub dialer: Dialer,
    /// Directory of the last known catalogs.
    pub catalogs: PathBuf,
    /// Counters.
    pub metrics: Metrics,
    /// What validators say.
    pub fabric: Fabric,
    /// Peers' anchors.
    pub bundles: Bundles,
    /// What was made of what peers offer.
    pub plans: watch::Receiver<Option<Arc<Plan>>>,
}

struct Running {
    link: Link,
    stop: CancellationToken,
}

impl Links {
    /// Runs until dropped.
    pub async fn run(self, process: Process) {
        let mut world = self.store.watch();
        let mut running: BTreeMap<ClusterName, Running> = BTreeMap::new();
        loop {
            let objects = world.borrow_and_update().objects.clone();
            if let Some(objects) = objects {
                self.settle(&mut running, &objects.links, &process);
            }
            if world.changed().await.is_err() {
                return;
            }
        }
    }

    fn settle(
        &self,
        running: &mut BTreeMap<ClusterName, Running>,
        links: &BTreeMap<ClusterName, Link>,
        process: &Process,
    ) {
        let over = |name: &ClusterName, known: &Running| links.get(name) != Some(&known.link);
        let ended: Vec<ClusterName> = running.iter().filter(|(n, r)| over(n, r)).map(|(n, _)| n.clone()).collect();
        for name in ended {
            if let Some(old) = running.remove(&name) {
                self.end(&name, &old, links);
            }
        }
        for (name, link) in links {
            if !running.contains_key(name) {
                let stop = self.begin(name, link, process);
                running.insert(name.clone(), Running { link: link.clone(), stop });
            }
        }
    }

    fn end(&self, name: &ClusterName, old: &Running, links: &BTreeMap<ClusterName, Link>) {
        old.stop.cancel();
        let domain = &old.link.spec.trust_domain;
        if !links.values().any(|link| link.spec.trust_domain == *domain) {
            self.credentials.remove_anchors(domain);
        }
        // What one trust domain said is not another's, whatever the Link is called.
        if links.get(name).is_none_or(|link| link.spec.trust_domain != *domain) {
            self.store.update(clock::millis(clock::now()), |world| world.peers.remove(name).is_some());
            self.fabric.forget(name);
        }
        if !links.contains_key(name) {
            last_known::forget(&self.catalogs, name);
            self.bundles.forget(name);
            self.metrics.forget(name);
        }
    }

    fn begin(&self, name: &ClusterName, link: &Link, process: &Process) -> CancellationToken {
        let domain = &link.spec.trust_domain;
        self.know(name, domain, link);
        let stop = CancellationToken::new();
        let paths = gateways::paths(name, link);
        let client = catalog::Client {
            peer: name.clone(),
            domain: domain.clone(),
            paths: paths.clone(),
            dialer: self.dialer.clone(),
            credentials: self.credentials.clone(),
            store: self.store.clone(),
            metrics: self.metrics.clone(),
            fabric: self.fabric.clone(),
            bundles: self.bundles.clone(),
            plans: self.plans.clone(),
        };
        let probes = gateways::run(
            paths,
            self.credentials.clone(),
            self.dialer.clone(),
            self.store.clone(),
            self.metrics.clone(),
        );
        let mut tasks: Vec<Task> =
            vec![Box::pin(client.run()), Box::pin(probes), Box::pin(self.clone().save(name.clone()))];
        if let Some(endpoint) = link.spec.bundle_endpoint.clone() {
            let taker = Offers { peer: name.clone(), profile: endpoint.profile, links: self.clone() };
            let endpoint = Endpoint { peer: name.clone(), domain: domain.clone(), endpoint };
            tasks.push(Box::pin(endpoint.follow(taker)));
        }
        for task in tasks {
            let (stop, drain) = (stop.clone(), process.drain.clone());
            process.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = drain.cancelled() => {}
                    () = task => {}
                }
            });
        }
        stop
    }

    /// A peer begins with what is on disk, believed until its lease would be over; one whose Link only changed goes on.
    fn know(&self, name: &ClusterName, domain: &TrustDomain, link: &Link) {
        let kept = last_known::load(&self.catalogs, name, domain);
        let bundle = Some(Arc::new(self.bundles.begin(name, link)));
        self.store.update(clock::millis(clock::now()), |world| {
            if let Some(state) = world.peers.get_mut(name) {
                let mut next = PeerState::clone(state);
                next.gateways.retain(|gateway, _| link.spec.gateways.iter().any(|g| g.name == *gateway));
                next.bundle = bundle;
                *state = Arc::new(next);
                return true;
            }
            let heard = kept.is_some();
            let state = PeerState {
                catalog: Arc::new(kept.unwrap_or_default()),
                alive: heard,
                heard,
                bundle,
                ..PeerState::default()
            };
            world.peers.insert(name.clone(), Arc::new(state));
            true
        });
    }

    /// Keeps the last known catalog on disk up to date.
    async fn save(self, name: ClusterName) {
        let mut world = self.store.watch();
        let catalog = |world: &World| world.peers.get(&name).map(|peer| peer.catalog.clone());
        // What the link began with came from the disk.
        let mut saved: Option<Arc<Catalog>> = catalog(&world.borrow());
        loop {
            let known = catalog(&world.borrow_and_update());
            if let Some(known) = known.filter(|known| saved.as_ref().is_none_or(|saved| !Arc::ptr_eq(saved, known))) {
                saved = Some(known.clone());
                let (directory, name) = (self.catalogs.clone(), name.clone());
                let write = tokio::task::spawn_blocking(move || last_known::save(&directory, &name, &known));
                if let Ok(Err(error)) = write.await {
                    tracing::warn!(%error, "the last known catalog cannot be written; a restart would not know it");
                }
                tokio::time::sleep(SAVE_PAUSE).await;
            }
            if world.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Takes what a bundle endpoint says to where it is judged.
struct Offers {
    peer: ClusterName,
    profile: BundleProfile,
    links: Links,
}

impl Offers {
    fn source(&self) -> Source {
        match self.profile {
            BundleProfile::HttpsWeb => Source::HttpsWeb,
            BundleProfile::HttpsSpiffe => Source::HttpsSpiffe,
        }
    }
}

impl Taker for Offers {
    fn held(&self) -> Option<Bundle> {
        let world = self.links.store.now();
        world.peers.get(&self.peer)?.bundle.as_ref().map(|held| held.bundle.clone())
    }

    fn vouched(&self, id: &SpiffeId) -> Result<Client, String> {
        let (domain, credentials) = (id.trust_domain(), &self.links.credentials);
        if !credentials.loaded().iter().any(|loaded| loaded.domain == domain) {
            return Err(format!("the endpoint is of {domain}, of which no bundle is in force here: link it as well"));
        }
        Client::vouched(credentials, id, clock::now).map_err(|e| e.to_string())
    }

    async fn offer(&self, document: &str) -> Result<(), String> {
        let offered = self.links.bundles.offer(&self.peer, self.source(), document).await;
        offered.map(|_| ()).map_err(|refusal| refusal.to_string())
    }

    fn trouble(&self, why: &str) {
        self.links.bundles.trouble(&self.peer, self.source(), Some(why));
    }
}

type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;
