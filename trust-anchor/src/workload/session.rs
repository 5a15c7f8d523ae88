//! One call: who asks, whether that may be answered now, and a stream of messages that lasts as long as the caller does.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::{Stream, stream};
use hawser_runtime::clock;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::{Code, Extensions, Status};

use super::Workload;
use super::attest::{Attested, Caller, Unattested};
use super::entries::Entry;
use super::limits::{Limited, Room, Who};
use super::listen::Peer;
use crate::admit::Via;
use crate::audit;

/// Clients tell "you have none" from other refusals by these words (the Rust library, SPIRE's agent).
const NOBODY: &str = "no identity issued";
/// Longest wait for a place at work.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// When all workloads have news at the same moment, each hears of it within this time, not all at once.
const JITTER_MAX: Duration = Duration::from_millis(250);
/// A caller is looked at again at least this often.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Two looks are at least this far apart.
const LOOK_LEAST: Duration = Duration::from_millis(50);

/// A caller that has at least one identity.
pub(super) struct Session {
    pub(super) workload: Arc<Workload>,
    peer: Arc<Peer>,
    attested: Attested,
}

/// What somebody is entitled to, and who that is.
pub(super) struct Asked {
    pub(super) entries: Vec<Entry>,
    /// For the audit log.
    pub(super) caller: audit::Caller,
}

impl Session {
    /// Attests the caller of a request and holds it to its limits.
    pub(super) async fn open(workload: &Arc<Workload>, extensions: &Extensions) -> Result<Self, Status> {
        let peer = extensions.get::<Arc<Peer>>().cloned();
        let peer = peer.ok_or_else(|| Status::unauthenticated("the connection has no peer"))?;
        let opened = Self::attest(workload, Arc::clone(&peer)).await;
        if let Err(status) = &opened
            && status.code() == Code::PermissionDenied
            && workload.limits.denial(peer.uid, clock::monotonic())
        {
            let (detail, own) = (status.message().to_owned(), Arc::clone(workload));
            workload.work(move || own.authority.denied("workload", detail, on_record(&peer), clock::now())).await?;
        }
        opened
    }

    async fn attest(workload: &Arc<Workload>, peer: Arc<Peer>) -> Result<Self, Status> {
        let entries = workload.entries.load_full();
        let Some(entries) = entries.as_ref() else { return Err(starting("the objects have not been read")) };
        let (attesting, with_hash) = (Arc::clone(&peer), entries.want_hash());
        let attested = workload.work(move || match &attesting.caller {
            Ok(caller) => caller.attest(with_hash),
            Err(error) => Err(error.clone()),
        });
        let attested = attested.await?.map_err(|error| unattested(&error))?;
        let session = Self { workload: Arc::clone(workload), peer, attested };
        let who = session.who(&entries.given(&session.attested));
        if let Err(limited) = workload.limits.call(&who, clock::monotonic()) {
            return Err(turned_away(workload, limited));
        }
        session.entries()?;
        Ok(session)
    }

    /// What the caller is entitled to at the moment; it is looked at again, so that nobody else sits in its place.
    pub(super) fn entries(&self) -> Result<Vec<Entry>, Status> {
        let caller = self.peer.caller.as_ref().map_err(unattested)?;
        caller.still().map_err(|error| unattested(&error))?;
        let entries = self.workload.entries.load();
        let given = entries.as_ref().as_ref().map(|entries| entries.given(&self.attested)).unwrap_or_default();
        if given.is_empty() {
            return Err(Status::permission_denied(NOBODY));
        }
        if self.workload.trusted.load().own.x509_authorities.is_empty() {
            return Err(starting("there is no bundle yet"));
        }
        if given.iter().any(|entry| !entry.federates_with.is_empty()) && !self.workload.peers_known() {
            return Err(starting("the peers are not known yet"));
        }
        Ok(given)
    }

    /// The same, with who it is for the record.
    pub(super) fn asked(&self) -> Result<Asked, Status> {
        Ok(Asked { entries: self.entries()?, caller: on_record(&self.peer) })
    }

    fn who(&self, given: &[Entry]) -> Who {
        given.first().map_or(Who::User(self.peer.uid), |entry| Who::Identity(entry.name.clone()))
    }

    /// Room for a stream of this caller.
    pub(super) fn room(&self) -> Result<Room, Status> {
        let who = self.who(&self.entries()?);
        let room = self.workload.limits.stream(who, self.peer.uid);
        room.map_err(|limited| turned_away(&self.workload, limited))
    }
}

/// Who is at the other end, for the audit log.
fn on_record(peer: &Peer) -> audit::Caller {
    let caller = peer.caller.as_ref().ok();
    audit::Caller {
        uid: Some(peer.uid),
        gid: caller.map(|caller| caller.gid),
        pid: caller.map(Caller::pid),
        executable: caller.and_then(Caller::executable).unwrap_or_default().to_owned(),
        via: Via::WorkloadApi.as_str().into(),
        ..audit::Caller::default()
    }
}

impl Workload {
    /// Does work that reads files or signs, on a thread that may wait.
    pub(super) async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
        let place = timeout(WAIT_MAX, self.work.acquire()).await;
        let Ok(Ok(_place)) = place else { return Err(starting("too much is asked at once")) };
        tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))
    }
}

/// Retriable, in the words of the standard: starting, or shedding load.
pub(super) fn starting(why: &str) -> Status {
    Status::unavailable(format!("the Workload API cannot answer now: {why}"))
}

fn unattested(error: &Unattested) -> Status {
    Status::permission_denied(format!("{NOBODY}: {error}"))
}

fn turned_away(workload: &Workload, limited: Limited) -> Status {
    workload.metrics.limited(limited.reason());
    Status::unavailable(limited.to_string())
}

/// Messages of one kind.
pub(super) type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A message, and when to look for another though nothing has changed.
pub(super) type Message<T> = Result<(T, Duration), Status>;

/// How a kind of message is made; it may sign.
pub(super) type Make<T> = fn(&Workload, &Asked, SystemTime) -> Message<T>;

/// The first message at once, then one whenever it would be another.
pub(super) fn follow<T>(session: Session, room: Room, make: Make<T>) -> Messages<T>
where
    T: Clone + PartialEq + Send + Sync + 'static,
{
    let changed = session.workload.changed.subscribe();
    let following = Following { session, make, changed, last: None, again: Duration::ZERO, over: false, _room: room };
    Box::pin(stream::unfold(following, Following::next))
}

struct Following<T> {
    session: Session,
    make: Make<T>,
    changed: watch::Receiver<u64>,
    last: Option<T>,
    again: Duration,
    over: bool,
    _room: Room,
}

impl<T: Clone + PartialEq + Send + Sync + 'static> Following<T> {
    async fn next(mut self) -> Option<(Result<T, Status>, Self)> {
        loop {
            if self.over || (self.last.is_some() && !self.wait().await) {
                return None;
            }
            match self.make().await {
                Err(status) => {
                    self.over = true;
                    return Some((Err(status), self));
                }
                Ok((message, again)) => {
                    self.again = again;
                    if self.last.as_ref() != Some(&message) {
                        self.session.workload.metrics.messages.inc();
                        self.last = Some(message.clone());
                        return Some((Ok(message), self));
                    }
                }
            }
        }
    }

    /// Until there may be news; `false`: the process drains.
    async fn wait(&mut self) -> bool {
        wait(&self.session.workload, &mut self.changed, self.again).await
    }

    async fn make(&mut self) -> Message<T> {
        self.changed.mark_unchanged();
        let asked = self.session.asked()?;
        let (workload, make) = (Arc::clone(&self.session.workload), self.make);
        self.session.workload.work(move || make(&workload, &asked, clock::now())).await?
    }
}

/// Until something has changed or it is time to look; `false`: the process drains.
pub(super) async fn wait(workload: &Workload, changed: &mut watch::Receiver<u64>, again: Duration) -> bool {
    tokio::select! {
        () = workload.drain.cancelled() => false,
        () = tokio::time::sleep(again.clamp(LOOK_LEAST, LOOK_AGAIN)) => true,
        _ = changed.changed() => {
            tokio::time::sleep(JITTER_MAX.mul_f64(rand::random())).await;
            true
        }
    }
}
