//! The operator's commands: rotation, revocation, break-glass. The same socket, so the same user; each is recorded
//! before it is done.

use std::sync::Arc;
use std::time::SystemTime;

use hawser_api::bundle::Bundle;
use hawser_api::proto::issuer::AcceptedBundle;
use hawser_api::proto::trust::revoke_request::What;
use hawser_api::proto::trust::trust_server::Trust;
use hawser_api::proto::trust::{
    AcceptBundleRequest, ExcludeRequest, ProvideRequest, RevokeRequest, RollbackRequest, RotateRequest,
    ShowBundleReply, ShowBundleRequest, StatusReply, StatusRequest, TaintRequest,
};
use hawser_api::{SpiffeId, TrustDomain};
use hawser_runtime::clock;
use hawser_tunnel::verify::AuthorityId;
use tonic::{Request, Response, Status};

use super::status;
use crate::authority::Authority;
use crate::hex;
use crate::revoke::Entry;
use crate::rotate::{Event, Level, Refused, State};

/// Longest name and reason of an exclusion.
const NAME_MAX: usize = 512;

/// The service.
pub(super) struct Service {
    authority: Arc<Authority>,
}

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    pub(super) fn new(authority: Arc<Authority>) -> Self {
        Self { authority }
    }

    /// Does it with the machine's lock held, and says how things stand then. The disk is waited for.
    async fn act<F>(&self, act: F) -> Answer<StatusReply>
    where
        F: FnOnce(&Authority, SystemTime) -> Result<(), Refused> + Send + 'static,
    {
        let authority = Arc::clone(&self.authority);
        let done = tokio::task::spawn_blocking(move || {
            let now = clock::now();
            act(&authority, now)?;
            Ok(status::status(&authority, now))
        });
        let done: Result<StatusReply, Refused> = done.await.map_err(|e| Status::internal(e.to_string()))?;
        done.map(Response::new).map_err(|refused| {
            tracing::warn!(%refused, "an operator's command is refused");
            Status::failed_precondition(format!("{}\nhint: {}", text(&refused), refused.remedy))
        })
    }
}

fn text(refused: &Refused) -> String {
    let mut lines = vec![refused.message.clone()];
    lines.extend(refused.missing.iter().map(|missing| {
        let since = match missing.since_ms {
            0 => "never heard of".to_owned(),
            since => format!("last heard of {} s ago", (clock::millis(clock::now()) - since).max(0) / 1000),
        };
        format!("  {}: {} ({since}, sequence {})", missing.who, missing.why, missing.last_sequence)
    }));
    lines.join("\n")
}

fn refused(message: impl Into<String>, remedy: &str) -> Refused {
    Refused::new(message, remedy)
}

#[tonic::async_trait]
impl Trust for Service {
    async fn status(&self, _request: Request<StatusRequest>) -> Answer<StatusReply> {
        self.act(|_, _| Ok(())).await
    }

    async fn rotate(&self, request: Request<RotateRequest>) -> Answer<StatusReply> {
        let RotateRequest { level, pause_at, resume } = request.into_inner();
        self.act(move |authority, now| {
            let pause_at = if pause_at.is_empty() { State::Retired } else { pause_at.parse()? };
            let level = match level.as_str() {
                "leaf" => return reissue(authority, now),
                "root" => Level::Root,
                "intermediate" => Level::Intermediate,
                _ if resume => {
                    return authority.driver.lock().command(Event::PauseAt(pause_at), authority, now);
                }
                other => {
                    return Err(refused(format!("{other:?} cannot be rotated"), "name leaf, intermediate or root"));
                }
            };
            authority.driver.lock().begin(level, pause_at, authority, now)
        })
        .await
    }

    async fn provide(&self, request: Request<ProvideRequest>) -> Answer<StatusReply> {
        let certificate = request.into_inner().certificate;
        self.act(move |authority, now| authority.driver.lock().provide(&certificate, authority, now)).await
    }

    async fn rollback(&self, _request: Request<RollbackRequest>) -> Answer<StatusReply> {
        self.act(|authority, now| authority.driver.lock().command(Event::Back, authority, now)).await
    }

    async fn exclude(&self, request: Request<ExcludeRequest>) -> Answer<StatusReply> {
        let ExcludeRequest { name, reason } = request.into_inner();
        self.act(move |authority, now| {
            if name.is_empty() || name.len() > NAME_MAX || reason.len() > NAME_MAX {
                return Err(refused("nobody has such a name", "take it from the refusal: hawser trust status"));
            }
            authority.driver.lock().command(Event::Exclude { name, reason }, authority, now)
        })
        .await
    }

    async fn revoke(&self, request: Request<RevokeRequest>) -> Answer<StatusReply> {
        let RevokeRequest { what, undo } = request.into_inner();
        self.act(move |authority, now| {
            let entry = entry(what, authority)?;
            let mut driver = authority.driver.lock();
            if let Entry::Authority(key) = &entry {
                driver.may_revoke(key, authority)?;
            }
            if undo && matches!(entry, Entry::Serial(..) | Entry::Authority(_)) {
                return Err(refused("a revoked certificate or key stays revoked", "issue or make a new one"));
            }
            authority.revoke(entry, undo, now)?;
            driver.look(authority, now);
            Ok(())
        })
        .await
    }

    async fn taint(&self, request: Request<TaintRequest>) -> Answer<StatusReply> {
        let tainted = request.into_inner().authority;
        self.act(move |authority, now| {
            if tainted.is_empty() {
                return reissue(authority, now);
            }
            let id = AuthorityId::try_from(tainted.as_slice());
            let id =
                id.map_err(|_| refused("no authority", "name it by the SHA-256 of its key: hawser trust status"))?;
            authority.driver.lock().taint(id, authority, now)
        })
        .await
    }

    async fn show_bundle(&self, request: Request<ShowBundleRequest>) -> Answer<ShowBundleReply> {
        let asked = request.into_inner().trust_domain;
        let own = self.authority.credentials.own_domain().to_string();
        let document = if asked.is_empty() || asked == own {
            self.authority.bundle.borrow().clone()
        } else {
            let fabric = self.authority.fabric.borrow();
            let peers = fabric.iter().flat_map(|(report, _)| &report.peers);
            peers.filter(|peer| peer.trust_domain == asked).map(|peer| peer.bundle.clone()).next().unwrap_or_default()
        };
        let trust_domain = if asked.is_empty() { own } else { asked };
        if document.is_empty() {
            return Err(Status::failed_precondition(format!(
                "no bundle of {trust_domain} is in force here\nhint: of those under our own root, show our own"
            )));
        }
        let pin = hex::sha256(document.as_bytes());
        Ok(Response::new(ShowBundleReply { trust_domain, document, pin }))
    }

    async fn accept_bundle(&self, request: Request<AcceptBundleRequest>) -> Answer<StatusReply> {
        let AcceptBundleRequest { trust_domain, document, pin } = request.into_inner();
        self.act(move |authority, now| {
            check(&trust_domain, &document, &pin, authority)?;
            let _one_at_a_time = authority.driver.lock();
            let accepted = AcceptedBundle { trust_domain, document, accepted_ms: clock::millis(now) };
            authority.accept(accepted, &pin, now)
        })
        .await
    }
}

/// All leaves are renewed soon, with new keys.
fn reissue(authority: &Authority, now: SystemTime) -> Result<(), Refused> {
    let mut driver = authority.driver.lock();
    authority.audit("taint", "all leaves", "", now)?;
    let course = crate::rotate::course::Course { reissue_before_ms: clock::millis(now), ..driver.course.clone() };
    driver.keep(course, authority)?;
    driver.look(authority, now);
    Ok(())
}

fn entry(what: Option<What>, authority: &Authority) -> Result<Entry, Refused> {
    let own = authority.credentials.own_domain();
    match what {
        Some(What::TrustDomain(domain)) => {
            let domain: TrustDomain = domain
                .parse()
                .map_err(|e| refused(format!("{domain:?}: {e}"), "name a linked cluster's trust domain"))?;
            if domain == *own {
                return Err(refused(
                    "this cluster cannot revoke itself",
                    "revoke an identity or a serial number instead",
                ));
            }
            Ok(Entry::TrustDomain(domain))
        }
        Some(What::Identity(id)) => {
            let id: SpiffeId = id.parse().map_err(|e| refused(format!("{id:?}: {e}"), "name a SPIFFE ID"))?;
            Ok(Entry::Identity(id))
        }
        Some(What::Serial(serial)) => Entry::serial(&serial, own),
        Some(What::Authority(key)) if key.len() == 32 => Ok(Entry::Authority(hex::encode(&key))),
        Some(What::Authority(_)) | None => {
            Err(refused("nothing to revoke", "name a cluster, an identity, a serial number or an authority"))
        }
    }
}

/// A bundle that was carried by hand is what its pin says, and a bundle.
fn check(domain: &str, document: &str, pin: &str, authority: &Authority) -> Result<(), Refused> {
    let parsed: TrustDomain =
        domain.parse().map_err(|e| refused(format!("{domain:?}: {e}"), "name the linked cluster's trust domain"))?;
    if parsed == *authority.credentials.own_domain() {
        return Err(refused("this cluster makes its own bundle", "to change it: hawser trust rotate root"));
    }
    let found = hex::sha256(document.as_bytes());
    if !pin.eq_ignore_ascii_case(&found) {
        return Err(refused(
            format!("the bundle's SHA-256 is {found}, not the pin that was given"),
            "compare with `hawser trust bundle show` at the other cluster, byte for byte",
        ));
    }
    let bundle = Bundle::parse(document).map_err(|e| refused(e.to_string(), "take the document as it was shown"))?;
    if bundle.x509_authorities.is_empty() {
        return Err(refused("the bundle has no X.509 authority", "to trust nobody there: hawser trust revoke cluster"));
    }
    Ok(())
}
