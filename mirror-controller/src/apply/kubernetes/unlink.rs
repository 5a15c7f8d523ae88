//! The finalizer of Links: on before anything is made for one, off when all of it is gone. The peer is never asked.

use std::time::Duration;

use hawser_api::labels;
use kube::api::{Patch, PatchParams};
use kube::core::DynamicObject;
use kube::{Api, Client};
use serde_json::json;

use super::diff::owner_of;
use crate::kubernetes::MANAGER;
use crate::lease::Leadership;
use crate::watch::kubernetes::Known;
use crate::watch::kubernetes::fill::Fill;
use crate::watch::kubernetes::kind::Kind;

/// After a round.
const PAUSE: Duration = Duration::from_millis(250);
/// After one in which something failed.
const RETRY: Duration = Duration::from_secs(2);

/// What is to be done with a Link's finalizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// The Link.
    pub link: String,
    /// Its state that was looked at: of any other nothing follows.
    pub version: u64,
    /// All finalizers that it is to have.
    pub finalizers: Vec<String>,
}

/// Pure: the Links whose finalizer is not as it should be.
pub fn holds(fill: &Fill) -> Vec<Hold> {
    let mut holds = Vec::new();
    for link in fill.links().into_iter().flatten() {
        let facts = link.facts;
        let mut finalizers = facts.finalizers.clone();
        match (facts.leaving, facts.held()) {
            (false, false) => finalizers.push(labels::UNLINK.to_owned()),
            // Others' finalizers stay.
            (true, true) if !anything_of(fill, &facts.uid) => finalizers.retain(|other| other != labels::UNLINK),
            _ => continue,
        }
        holds.push(Hold { link: link.name.to_owned(), version: facts.version, finalizers });
    }
    holds
}

fn anything_of(fill: &Fill, uid: &str) -> bool {
    let mut made = fill.all(Kind::Service).chain(fill.all(Kind::EndpointSlice));
    made.any(|(_, entry)| entry.kept.made().and_then(owner_of) == Some(uid))
}

/// Runs until dropped.
pub async fn run(client: Client, known: Known, mut leadership: Leadership) {
    let api: Api<DynamicObject> = Api::all_with(client, &Kind::Link.resource(0));
    let mut stirred = known.stirred();
    loop {
        stirred.mark_unchanged();
        let mut failed = false;
        for hold in known.look(holds) {
            let Some(permit) = leadership.permit() else { break };
            let set = tokio::time::timeout(permit.within, set(&api, &hold)).await;
            if let Err(why) = set.unwrap_or_else(|_| Err("the API server does not answer".to_owned())) {
                failed = true;
                tracing::debug!(why, ?hold, "a Link's finalizer is not set; tried again");
            }
        }
        tokio::time::sleep(if failed { RETRY } else { PAUSE }).await;
        if failed {
            continue;
        }
        tokio::select! {
            _ = stirred.changed() => {}
            () = leadership.changed() => {}
        }
    }
}

/// As it was read, or not at all.
async fn set(api: &Api<DynamicObject>, hold: &Hold) -> Result<(), String> {
    let metadata = json!({ "resourceVersion": hold.version.to_string(), "finalizers": hold.finalizers });
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let patch = Patch::Merge(json!({ "metadata": metadata }));
    api.patch(&hold.link, &params, &patch).await.map(|_| ()).map_err(|error| error.to_string())
}
