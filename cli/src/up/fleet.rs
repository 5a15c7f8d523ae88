//! All processes of this run: brought in line with what is wanted, and told what is asked over the control socket.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::control::{Asked, Operation, ProcessLine, Reply, Request};
use super::log::Log;
use super::supervise::{Standing, Supervised, Wish};
use super::wanted::{self, Id, Wanted};
use crate::fabric::Fabric;
use crate::state::State;
use crate::trust;

/// How long an answer waits for what was asked to have happened.
const OBEYED: Duration = Duration::from_secs(2);

/// All processes of this run.
pub(crate) struct Fleet {
    state: State,
    drain: Duration,
    processes: BTreeMap<Id, Running>,
    tasks: JoinSet<()>,
}

struct Running {
    wanted: Wanted,
    wish: watch::Sender<Wish>,
    standing: watch::Receiver<Standing>,
}

impl Fleet {
    pub(crate) fn new(state: State, drain: Duration) -> Self {
        Self { state, drain, processes: BTreeMap::new(), tasks: JoinSet::new() }
    }

    /// Starts what is new, ends what is gone, starts again what has changed. Nothing happens where anything is wrong.
    pub(crate) fn apply(&mut self, fabric: &Fabric) -> Result<()> {
        let mut all = BTreeMap::new();
        for declared in fabric.values() {
            let wanted =
                wanted::of(declared, &self.state, self.drain).with_context(|| format!("cluster {}", declared.name))?;
            all.extend(wanted.into_iter().map(|wanted| (wanted.id.clone(), wanted)));
        }
        trust::ensure(&self.state, fabric, false)?;
        let gone: Vec<Id> = self.processes.keys().filter(|id| !all.contains_key(*id)).cloned().collect();
        for id in gone {
            if let Some(running) = self.processes.remove(&id) {
                // The task ends when the process has; the sender goes with `running`.
                running.wish.send_replace(Wish::Stop);
            }
        }
        for (id, wanted) in all {
            let before = self.processes.remove(&id);
            let kept = match before {
                Some(running) if running.wanted == wanted => running,
                before => self.start(wanted, before),
            };
            self.processes.insert(id, kept);
        }
        Ok(())
    }

    /// Starts a process, after its predecessor of the same name has ended.
    fn start(&mut self, wanted: Wanted, before: Option<Running>) -> Running {
        let (wish, wished) = watch::channel(Wish::Run);
        let (stand, standing) = watch::channel(Standing::default());
        let supervised = Supervised {
            wanted: wanted.clone(),
            state: self.state.clone(),
            log: Log::new(&wanted.id),
            drain: self.drain,
        };
        let predecessor = before.map(|running| {
            running.wish.send_replace(Wish::Stop);
            running.standing
        });
        self.tasks.spawn(async move {
            if let Some(mut standing) = predecessor {
                while standing.changed().await.is_ok() {}
            }
            supervised.run(wished, stand).await;
        });
        Running { wanted, wish, standing }
    }

    /// Does what the control socket asks, and answers when it is done or has taken long.
    pub(crate) fn obey(&mut self, (request, reply): Asked) {
        let meant: Vec<_> = self.processes.iter().filter(|(id, _)| is_meant(&request, id)).collect();
        if meant.is_empty() {
            let all: Vec<_> = self.processes.keys().map(ToString::to_string).collect();
            let error = format!("no such process\nhint: there are {}", all.join(", "));
            let _ = reply.send(Reply { error: Some(error), ..Reply::default() });
            return;
        }
        let wish = match request.op {
            Operation::Status => None,
            Operation::Stop => Some(Wish::Stop),
            Operation::Kill => Some(Wish::Kill),
            Operation::Start => Some(Wish::Run),
        };
        let mut lines = Vec::new();
        for (id, running) in meant {
            if let Some(wish) = wish {
                running.wish.send_replace(wish);
            }
            lines.push((id.clone(), *running.wish.borrow() == Wish::Run, running.standing.clone()));
        }
        self.tasks.spawn(async move {
            if wish.is_some() {
                let done = lines.iter_mut().map(|(_, wished, standing)| async move {
                    let _ = standing.wait_for(|standing| standing.pid.is_some() == *wished).await;
                });
                let _ = tokio::time::timeout(OBEYED, futures_util::future::join_all(done)).await;
            }
            let lines = lines.iter().map(|(id, wished, standing)| ProcessLine::new(id, *wished, &standing.borrow()));
            let _ = reply.send(Reply { error: None, processes: lines.collect() });
        });
    }

    /// Ends everything in its own time. May be dropped half-way, for [`Self::kill`].
    pub(crate) async fn end(&mut self) {
        self.wish(Wish::Stop).await;
    }

    /// Ends everything at once.
    pub(crate) async fn kill(&mut self) {
        self.wish(Wish::Kill).await;
    }

    /// All at once: gateways drain the catalog's streams as well, which end when the mirror controllers do.
    async fn wish(&mut self, wish: Wish) {
        for running in self.processes.values() {
            running.wish.send_replace(wish);
        }
        for running in self.processes.values_mut() {
            let _ = running.standing.wait_for(|standing| standing.pid.is_none()).await;
        }
    }
}

fn is_meant(request: &Request, id: &Id) -> bool {
    let cluster = request.cluster.as_ref().is_none_or(|cluster| *cluster == id.cluster);
    cluster && request.process.as_ref().is_none_or(|name| *name == id.label() || *name == id.key())
}
