//! Writes mirrors and statuses to an API server, and nothing else does.
//!
//! ```text
//! plan ──▶ Wanted ─┐
//!                  ├─▶ diff (pure) ─▶ write, a service at a time each, many at once ─▶ what the API server answers
//! watch ─▶ Fill ───┘                                                                   is known at once
//! ```
//!
//! What is right already is not written again. What does not bear our mark is neither changed nor removed. Each write
//! needs a permit of the [`Leadership`]; a write that failed is tried again by itself, and holds up no other.

pub mod diff;
pub mod mark;
pub mod pacing;
pub mod status;
pub mod unlink;
pub mod write;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use hawser_api::{ClusterName, Namespace, ServiceKey, labels};
use hawser_runtime::clock;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::lease::Leadership;
use crate::plan::Plan;
use crate::plan::owned::{ObjectKey, Owned, owned};
use crate::world::{Store, Unwritten};
use diff::{Group, Links, Wanted};
use pacing::Pacing;
use write::{Failure, Writer};

/// Services in one round; after it the plan is looked at again, so that what changes meanwhile does not wait for the end
/// of thousands.
const ROUND: usize = 256;
/// What the watches say within this time is compared together.
const QUIET: Duration = Duration::from_millis(20);
/// Comparing everything again costs little, and mends whatever was missed.
const THOROUGH: Duration = Duration::from_secs(60);
/// So many failures are shown; more add nothing for the reader.
const SHOWN: usize = 200;

type Name = (Namespace, String);

/// Keeps the API server as the plan says.
pub struct Apply {
    writer: Writer,
    writers: usize,
    leadership: Leadership,
    plans: watch::Receiver<Option<Arc<Plan>>>,
    store: Store,
    pacing: Mutex<Pacing<Name>>,
    unwritten: Mutex<BTreeMap<ObjectKey, Unwritten>>,
}

impl Apply {
    /// With `writers` requests at once.
    pub fn new(
        writer: Writer,
        writers: usize,
        leadership: Leadership,
        (plans, store): (watch::Receiver<Option<Arc<Plan>>>, Store),
    ) -> Self {
        let (pacing, unwritten) = (Mutex::default(), Mutex::default());
        Self { writer, writers, leadership, plans, store, pacing, unwritten }
    }

    /// Runs until dropped.
    pub async fn run(mut self) {
        let mut stirred = self.writer.known.stirred();
        let mut leadership = self.leadership.clone();
        let mut wanted = Wanted::default();
        loop {
            stirred.mark_unchanged();
            let plan = self.plans.borrow_and_update().clone();
            let more = match plan {
                Some(plan) if self.leadership.leads() => {
                    if !Arc::ptr_eq(&plan, &wanted.plan) {
                        wanted = wanted.next(plan);
                    }
                    self.round(&wanted).await
                }
                _ => false,
            };
            if more {
                continue;
            }
            let now = clock::monotonic();
            let again = self.pacing.lock().next(now).unwrap_or(now + THOROUGH).min(now + THOROUGH);
            tokio::select! {
                changed = self.plans.changed() => if changed.is_err() { return },
                _ = stirred.changed() => tokio::time::sleep(QUIET).await,
                () = leadership.changed() => {}
                () = tokio::time::sleep_until(again) => {}
            }
        }
    }

    /// Makes some of what is to be made; whether there may be more that can be made now.
    async fn round(&self, wanted: &Wanted) -> bool {
        let compared = self.writer.known.look(|fill| {
            let links = Links::new(fill, &self.writer.own.0, &wanted.plan.heard)?;
            let groups = diff::diff(wanted, &links, fill);
            Some((links, groups))
        });
        let Some((links, mut groups)) = compared else { return false };
        let now = clock::monotonic();
        let changed: std::collections::BTreeSet<Name> = groups.iter().map(|group| group.name.clone()).collect();
        {
            let mut pacing = self.pacing.lock();
            pacing.retain(now, |name| changed.contains(name));
            groups.retain(|group| pacing.ready(&group.name, now));
        }
        self.unwritten.lock().retain(|key, _| changed.contains(&(key.namespace.clone(), key.service.clone())));
        let more = groups.len() > ROUND;
        groups.truncate(ROUND);
        let objects = owned(&wanted.plan);
        let write = |group| self.group(group, &objects, wanted, &links);
        futures_util::stream::iter(&groups).for_each_concurrent(self.writers, write).await;
        self.tell();
        more && self.leadership.leads()
    }

    /// Makes what belongs to one service, in order, up to the first failure.
    async fn group(&self, group: &Group, objects: &[(ObjectKey, Owned<'_>)], wanted: &Wanted, links: &Links) {
        for change in &group.changes {
            let Some(permit) = self.leadership.permit() else { return };
            let found = objects.binary_search_by(|(key, _)| key.cmp(&change.key)).ok();
            let object = found.and_then(|at| objects.get(at)).map(|(_, object)| object);
            let written = self.writer.write(change, object.map(|object| (object, wanted)), links, permit).await;
            let Err(failure) = written else {
                self.unwritten.lock().remove(&change.key);
                continue;
            };
            return self.failed(&group.name, &change.key, object.map(|object| (object, &*wanted.plan)), failure);
        }
        let now = clock::monotonic();
        if group.is_repair() {
            self.pacing.lock().repaired(group.name.clone(), now);
        } else {
            self.pacing.lock().succeeded(&group.name, now);
        }
    }

    fn failed(&self, name: &Name, key: &ObjectKey, wanted: Option<(&Owned<'_>, &Plan)>, failure: Failure) {
        let now = clock::monotonic();
        let jitter = rand::random_range(0.5..1.0);
        let (after, reason) = match failure {
            Failure::Collision => {
                (None, Some(format!("{key} was not made by Hawser and is left as it is: rename it or delete it")))
            }
            Failure::Refused(why) => (None, Some(format!("{key}: {why}"))),
            Failure::Overtaken => (None, None),
            Failure::Again { why, after, busy } => {
                tracing::debug!(object = %key, why, "not written; tried again");
                if let Some(after) = after.filter(|_| busy) {
                    self.pacing.lock().hold(now, after);
                }
                (after, None)
            }
        };
        self.pacing.lock().failed(name.clone(), now, after, jitter);
        let Some(reason) = reason else { return };
        let Some(cluster) = wanted.and_then(|(object, plan)| self.concerned(key, object, plan)) else {
            return tracing::warn!(reason, "what concerns no peer is not written, or something not removed");
        };
        let metadata = wanted.map(|(object, _)| object.metadata());
        let service = metadata.and_then(|metadata| metadata.annotations.get(labels::MIRROR_OF_SERVICE));
        let service = service.cloned().unwrap_or_else(|| format!("{}/{}", key.namespace, key.service));
        let unwritten = Unwritten { cluster, service, reason };
        let known = self.unwritten.lock().insert(key.clone(), unwritten.clone());
        if known.as_ref() != Some(&unwritten) {
            tracing::warn!(reason = unwritten.reason, "a mirror is not written");
        }
    }

    /// The peer whose Link says that this is not written: of an import of several, the first.
    fn concerned(&self, key: &ObjectKey, object: &Owned<'_>, plan: &Plan) -> Option<ClusterName> {
        let label = |label: &str| object.metadata().labels.get(label)?.parse::<ClusterName>().ok();
        let of_import = || {
            let import = plan.imports.get(&ServiceKey::parse(key.namespace.as_str(), &key.service).ok()?)?;
            let mut clusters = import.status.clusters.iter().filter_map(|one| one.cluster.parse::<ClusterName>().ok());
            clusters.find(|cluster| *cluster != self.writer.own.0)
        };
        label(labels::MIRROR_OF_CLUSTER).or_else(of_import)
    }

    /// What could not be written goes into the world, and from there into the Links' statuses.
    fn tell(&self) {
        let all: BTreeMap<String, Unwritten> =
            self.unwritten.lock().iter().take(SHOWN).map(|(key, one)| (key.to_string(), one.clone())).collect();
        self.store.update(crate::now_ms(), |world| {
            let changed = *world.unwritten != all;
            if changed {
                world.unwritten = Arc::new(all);
            }
            changed
        });
    }
}
