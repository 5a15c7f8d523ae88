//! One change, as requests: server-side apply under one field manager, deletion only of the very object that was seen.

use std::net::IpAddr;
use std::time::Duration;

use hawser_api::{ClusterName, TrustDomain, labels};
use hawser_runtime::clock;
use http::StatusCode;
use kube::Client;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta, Request};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::diff::{Change, Links, Verb, Wanted, watched};
use super::mark;
use crate::kubernetes::{Answer, MANAGER, send};
use crate::lease::Permit;
use crate::metrics::Metrics;
use crate::plan::owned::{Kind, ObjectKey, Owned};
use crate::watch::kubernetes::Known;
use crate::watch::kubernetes::read;

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Something is there that is not ours.
    Collision,
    /// The API server refuses it; its words, and what to do.
    Refused(String),
    /// It is not as it was when this was decided: what the watch says next decides again.
    Overtaken,
    /// It may be tried again.
    Again {
        /// Why.
        why: String,
        /// Not before this has passed.
        after: Option<Duration>,
        /// The API server is busy: this concerns every request.
        busy: bool,
    },
}

/// What writes.
#[derive(Clone)]
pub struct Writer {
    /// To the API server.
    pub client: Client,
    /// What is known, which hears at once of what was written.
    pub known: Known,
    /// This cluster's name and trust domain.
    pub own: (ClusterName, TrustDomain),
    /// Counters.
    pub metrics: Metrics,
}

impl Writer {
    /// Makes one change, within the time that the permit gives: of several requests together.
    pub async fn write(
        &self,
        change: &Change,
        object: Option<(&Owned<'_>, &Wanted)>,
        links: &Links,
        permit: Permit,
    ) -> Result<(), Failure> {
        let (key, kind) = (&change.key, change.key.kind.as_str());
        let until = clock::monotonic() + permit.within;
        let body = || {
            let (object, wanted) = object?;
            body(key, object, wanted.digest(key)?, links.owner(object.metadata())?)
        };
        let (verb, done) = match &change.verb {
            Verb::Create { addresses } => {
                let body = body().ok_or(Failure::Overtaken)?;
                ("create", self.create_at(key, &body, addresses, until).await)
            }
            Verb::Update { uid, .. } => {
                let mut body = body().ok_or(Failure::Overtaken)?;
                // Of another incarnation of that name it is not known that it is ours.
                set(&mut body, "uid", json!(uid));
                ("update", self.apply(key, &body, true, until).await.map(|_| ()))
            }
            Verb::Ports { uid, version } => {
                let ports = body().and_then(|body| body.pointer("/spec/ports").cloned()).ok_or(Failure::Overtaken)?;
                ("ports", self.put_ports(key, (uid, *version), &ports, until).await)
            }
            Verb::Delete { uid } => ("delete", self.delete(key, uid, until).await),
            Verb::Collide => return Err(Failure::Collision),
        };
        drop(permit);
        self.metrics.wrote(kind, verb, if done.is_ok() { "ok" } else { "failed" });
        done
    }

    /// At these addresses, unless somebody else has them by now.
    async fn create_at(
        &self,
        key: &ObjectKey,
        body: &Value,
        addresses: &[IpAddr],
        until: Instant,
    ) -> Result<(), Failure> {
        if let Some(first) = addresses.first() {
            let mut there = body.clone();
            if let Some(spec) = there.pointer_mut("/spec").and_then(Value::as_object_mut) {
                spec.insert("clusterIP".to_owned(), json!(first));
                spec.insert("clusterIPs".to_owned(), json!(addresses));
            }
            match self.create(key, &there, until).await {
                Err(Failure::Refused(why)) => {
                    tracing::info!(service = key.name, namespace = %key.namespace, ?addresses, why,
                        "it does not get its former addresses again");
                }
                done => return done,
            }
        }
        self.create(key, body, until).await
    }

    /// Without force: what others have set to something else is a conflict. And what was there already, and happens to
    /// agree, is given back.
    async fn create(&self, key: &ObjectKey, body: &Value, until: Instant) -> Result<(), Failure> {
        match self.apply(key, body, false, until).await {
            Ok(answer) if answer.status == StatusCode::CREATED || only_ours(&answer) => Ok(()),
            Ok(_) => self.give_back(key, until).await,
            // Somebody else's: only an update says that it is another incarnation.
            Err(Failure::Overtaken) => Err(Failure::Collision),
            Err(failure) => Err(failure),
        }
    }

    async fn apply(&self, key: &ObjectKey, body: &Value, force: bool, until: Instant) -> Result<Answer, Failure> {
        let params = PatchParams { force, field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let request = request(key).patch(&key.name, &params, &Patch::Apply(body)).map_err(unsendable)?;
        let answer = self.send(request, until).await?;
        if answer.status == StatusCode::OK || answer.status == StatusCode::CREATED {
            self.hear(key, &answer);
        }
        judge(&answer, key).map(|_| answer)
    }

    /// All ports of a Service, as it was when this was decided. Applying adds to what others applied, and so cannot do it.
    async fn put_ports(
        &self,
        key: &ObjectKey,
        (uid, version): (&str, u64),
        ports: &Value,
        until: Instant,
    ) -> Result<(), Failure> {
        let metadata = json!({ "uid": uid, "resourceVersion": version.to_string() });
        let patch = Patch::Merge(json!({ "metadata": metadata, "spec": { "ports": ports } }));
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let request = request(key).patch(&key.name, &params, &patch).map_err(unsendable)?;
        let answer = self.send(request, until).await?;
        if answer.status == StatusCode::OK {
            self.hear(key, &answer);
        }
        judge(&answer, key).map(|_| ())
    }

    /// An object that was there before this one was to be made. Applying nothing takes back what was applied; where that
    /// is refused for want of what the object cannot be without, nobody else has set it, and so we made it: the watch had
    /// not said so yet.
    async fn give_back(&self, key: &ObjectKey, until: Instant) -> Result<(), Failure> {
        let resource = resource(key.kind);
        let name = json!({ "name": key.name, "namespace": key.namespace });
        let nothing = json!({ "apiVersion": resource.api_version, "kind": resource.kind, "metadata": name });
        let params = PatchParams { force: true, field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let request = request(key).patch(&key.name, &params, &Patch::Apply(&nothing)).map_err(unsendable)?;
        let answer = self.send(request, until).await?;
        if answer.status == StatusCode::UNPROCESSABLE_ENTITY {
            return Ok(());
        }
        self.hear(key, &answer);
        judge(&answer, key).and(Err(Failure::Collision))
    }

    async fn delete(&self, key: &ObjectKey, uid: &str, until: Instant) -> Result<(), Failure> {
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let request = request(key).delete(&key.name, &params).map_err(unsendable)?;
        let answer = self.send(request, until).await?;
        match answer.status {
            // Gone, by whomever.
            StatusCode::OK | StatusCode::ACCEPTED | StatusCode::NOT_FOUND => {
                let name = (key.namespace.to_string(), key.name.clone());
                self.known.change(|fill| fill.removed(watched(key.kind), &name, uid));
                Ok(())
            }
            _ => judge(&answer, key).map(|_| ()),
        }
    }

    async fn send(&self, request: http::Request<Vec<u8>>, until: Instant) -> Result<Answer, Failure> {
        let within = until.saturating_duration_since(clock::monotonic());
        let answer = send(&self.client, request, within).await;
        answer.map_err(|why| Failure::Again { why, after: None, busy: false })
    }

    fn hear(&self, key: &ObjectKey, answer: &Answer) {
        let Ok(object) = serde_json::from_slice::<DynamicObject>(&answer.body) else { return };
        let kind = watched(key.kind);
        if let Some(seen) = read::seen(kind, &resource(key.kind).api_version, object, &self.own) {
            self.known.change(|fill| fill.wrote(kind, seen));
        }
    }
}

/// Nobody else has ever written to it: it was made by a request of ours whose answer was lost.
fn only_ours(answer: &Answer) -> bool {
    let Ok(object) = serde_json::from_slice::<PartialObjectMeta<DynamicObject>>(&answer.body) else { return false };
    let managers = object.metadata.managed_fields.unwrap_or_default();
    !managers.is_empty() && managers.iter().all(|entry| entry.manager.as_deref() == Some(MANAGER))
}

fn resource(kind: Kind) -> ApiResource {
    watched(kind).resource(0)
}

fn request(key: &ObjectKey) -> Request {
    use kube::Resource;
    Request::new(DynamicObject::url_path(&resource(key.kind), Some(key.namespace.as_str())))
}

fn unsendable(error: kube::core::request::Error) -> Failure {
    Failure::Refused(error.to_string())
}

/// The object as it is applied: with the marks by which it is known as ours.
fn body(key: &ObjectKey, object: &Owned<'_>, digest: &str, owner: &str) -> Option<Value> {
    let mut body = serde_json::to_value(object).ok()?;
    let annotations = body.pointer_mut("/metadata")?.as_object_mut()?.entry("annotations").or_insert_with(|| json!({}));
    let annotations = annotations.as_object_mut()?;
    let mark = mark::of(owner, key.namespace.as_str(), &key.name);
    annotations.insert(labels::OWNER.to_owned(), json!(mark));
    annotations.insert(labels::APPLIED.to_owned(), json!(digest));
    if key.kind == Kind::EndpointSlice {
        // Kubernetes asks whoever makes EndpointSlices to say so, so that no other controller thinks them its own.
        let marks = body.pointer_mut("/metadata/labels")?.as_object_mut()?;
        marks.insert(labels::SLICE_MANAGED_BY.to_owned(), json!(labels::SLICE_MANAGED_BY_HAWSER));
    }
    Some(body)
}

fn set(body: &mut Value, field: &str, value: Value) {
    if let Some(metadata) = body.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        metadata.insert(field.to_owned(), value);
    }
}

/// What the API server's answer means.
fn judge(answer: &Answer, key: &ObjectKey) -> Result<StatusCode, Failure> {
    let again = |busy| Failure::Again { why: answer.message(), after: answer.retry_after, busy };
    Err(match answer.status {
        status if status.is_success() => return Ok(status),
        StatusCode::CONFLICT => Failure::Overtaken,
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => Failure::Refused(format!(
            "{}; hint: let the mirror controller's role create, patch and delete {} in namespace {}",
            answer.message(),
            watched(key.kind).plural(),
            key.namespace
        )),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => again(answer.retry_after.is_some()),
        // The namespace is gone, which the watch will say.
        StatusCode::NOT_FOUND => again(false),
        status if status.is_server_error() => again(false),
        _ => Failure::Refused(format!(
            "the API server refuses it: {}; hint: see to the Link's gateways and to admission webhooks",
            answer.message()
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, retry_after: Option<u64>) -> Answer {
        let body = json!({ "kind": "Status", "message": "said why", "code": status }).to_string();
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            body: body.into(),
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    #[test]
    fn each_answer_of_the_api_server_means_one_thing() {
        let key = ObjectKey {
            namespace: "shop".parse().unwrap(),
            service: "a-east".into(),
            kind: Kind::Service,
            name: "a-east".into(),
        };
        let again = |after: Option<u64>, busy| Failure::Again {
            why: "said why".into(),
            after: after.map(Duration::from_secs),
            busy,
        };
        assert_eq!(judge(&answer(201, None), &key), Ok(StatusCode::CREATED));
        assert_eq!(judge(&answer(409, None), &key), Err(Failure::Overtaken));
        assert_eq!(judge(&answer(429, Some(3)), &key), Err(again(Some(3), true)));
        assert_eq!(judge(&answer(500, None), &key), Err(again(None, false)));
        assert_eq!(judge(&answer(503, Some(1)), &key), Err(again(Some(1), true)));
        assert_eq!(judge(&answer(404, None), &key), Err(again(None, false)));
        let Err(Failure::Refused(why)) = judge(&answer(403, None), &key) else { panic!() };
        assert!(why.contains("create, patch and delete services in namespace shop"), "{why}");
        assert!(matches!(judge(&answer(422, None), &key), Err(Failure::Refused(why)) if why.contains("said why")));
    }
}
