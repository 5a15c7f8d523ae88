//! SPIFFE's Workload API (SPIFFE Workload API sections 5 and 6): X.509 and JWT profiles.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hawser_api::proto::workload::spiffe_workload_api_server::SpiffeWorkloadApi;
use hawser_api::proto::workload::{
    JwtBundlesRequest, JwtBundlesResponse, Jwtsvid, JwtsvidRequest, JwtsvidResponse, ValidateJwtsvidRequest,
    ValidateJwtsvidResponse, X509BundlesRequest, X509BundlesResponse, X509svid, X509svidRequest, X509svidResponse,
};
use hawser_runtime::clock;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use super::bundles::concatenated;
use super::entries::Entry;
use super::mint::Svid;
use super::session::{Asked, Make, Message, Messages, Session, follow, starting};
use super::{Workload, jwt};
use crate::refused::Refused;

/// So that no page in a browser can be made to ask (Workload Endpoint section 4.2).
const SECURITY_HEADER: &str = "workload.spiffe.io";
/// Nothing changes by itself: the next look is only a precaution.
const SELDOM: Duration = Duration::from_secs(3600);
/// Audiences of one JWT-SVID.
const AUDIENCES_MAX: usize = 32;
/// Bytes of one audience.
const AUDIENCE_MAX: usize = 1024;

/// The service.
pub(super) struct Service(pub(super) Arc<Workload>);

type Answer<T> = Result<Response<T>, Status>;

impl Service {
    async fn stream<T>(&self, method: &'static str, call: Call<'_>, make: Make<T>) -> Answer<Messages<T>>
    where
        T: Clone + PartialEq + Send + Sync + 'static,
    {
        let opened = async {
            let session = self.open(call).await?;
            let room = session.room()?;
            Ok(Response::new(follow(session, room, make)))
        };
        self.counted(method, opened.await)
    }

    async fn open(&self, (metadata, extensions): Call<'_>) -> Result<Session, Status> {
        let header = metadata.get(SECURITY_HEADER).map(|value| value.as_bytes());
        if header != Some(b"true") {
            return Err(Status::invalid_argument(format!("security header missing: {SECURITY_HEADER}: true")));
        }
        Session::open(&self.0, extensions).await
    }

    fn counted<T>(&self, method: &'static str, answer: Result<T, Status>) -> Result<T, Status> {
        let outcome = match &answer {
            Ok(_) => "ok",
            Err(status) => match status.code() {
                Code::InvalidArgument => "invalid",
                Code::PermissionDenied => "denied",
                Code::Unavailable => "unavailable",
                _ => "failed",
            },
        };
        self.0.metrics.called(method, outcome);
        answer
    }

    async fn sign_jwt(&self, call: Call<'_>, request: &JwtsvidRequest) -> Result<JwtsvidResponse, Status> {
        let session = self.open(call).await?;
        let audiences = &request.audience;
        let sound = |audience: &String| !audience.is_empty() && audience.len() <= AUDIENCE_MAX;
        if audiences.is_empty() || audiences.len() > AUDIENCES_MAX || !audiences.iter().all(sound) {
            return Err(Status::invalid_argument("audience must be specified: 1 to 32, of at most 1024 bytes each"));
        }
        let (workload, asked, request) = (Arc::clone(&self.0), session.asked()?, request.clone());
        let svids = self.0.work(move || jwt_svids(&workload, &asked, &request, clock::now())).await??;
        if svids.is_empty() {
            return Err(Status::permission_denied("no identity issued: not an identity of this workload"));
        }
        Ok(JwtsvidResponse { svids })
    }

    async fn check_jwt(
        &self,
        call: Call<'_>,
        request: &ValidateJwtsvidRequest,
    ) -> Result<ValidateJwtsvidResponse, Status> {
        let session = self.open(call).await?;
        if request.audience.is_empty() || request.svid.is_empty() {
            return Err(Status::invalid_argument("audience and svid must be specified"));
        }
        let entries = session.entries()?;
        let trusted = self.0.trusted.load();
        let bundle_of = |domain: &hawser_api::TrustDomain| {
            if domain == self.0.own() {
                return Some(&trusted.own);
            }
            trusted.federated(&entries).find(|(federated, _)| *federated == domain).map(|(_, bundle)| bundle)
        };
        let valid = jwt::validate(&request.svid, &request.audience, bundle_of, clock::now());
        let valid = valid.map_err(|reason| Status::invalid_argument(reason.to_string()))?;
        if self.0.authority.denials.lock().denies(&valid.id) {
            return Err(Status::invalid_argument("the token's subject is revoked"));
        }
        Ok(ValidateJwtsvidResponse { spiffe_id: valid.id.to_string(), claims: Some(jwt::to_struct(valid.claims)) })
    }
}

/// What of a request says who calls.
type Call<'r> = (&'r MetadataMap, &'r tonic::Extensions);

fn call<T>(request: &Request<T>) -> Call<'_> {
    (request.metadata(), request.extensions())
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Service {
    type FetchX509SVIDStream = Messages<X509svidResponse>;

    async fn fetch_x509svid(&self, request: Request<X509svidRequest>) -> Answer<Self::FetchX509SVIDStream> {
        self.stream("FetchX509SVID", call(&request), x509_svids).await
    }

    type FetchX509BundlesStream = Messages<X509BundlesResponse>;

    async fn fetch_x509_bundles(&self, request: Request<X509BundlesRequest>) -> Answer<Self::FetchX509BundlesStream> {
        self.stream("FetchX509Bundles", call(&request), x509_bundles).await
    }

    async fn fetch_jwtsvid(&self, request: Request<JwtsvidRequest>) -> Answer<JwtsvidResponse> {
        let signed = self.sign_jwt(call(&request), request.get_ref()).await;
        self.counted("FetchJWTSVID", signed).map(Response::new)
    }

    type FetchJWTBundlesStream = Messages<JwtBundlesResponse>;

    async fn fetch_jwt_bundles(&self, request: Request<JwtBundlesRequest>) -> Answer<Self::FetchJWTBundlesStream> {
        self.stream("FetchJWTBundles", call(&request), jwt_bundles).await
    }

    async fn validate_jwtsvid(&self, request: Request<ValidateJwtsvidRequest>) -> Answer<ValidateJwtsvidResponse> {
        let checked = self.check_jwt(call(&request), request.get_ref()).await;
        self.counted("ValidateJWTSVID", checked).map(Response::new)
    }
}

/// The SVIDs of these entries that can be had now; without any, why.
pub(super) fn svids(workload: &Workload, asked: &Asked, now: SystemTime) -> Result<Vec<(Entry, Arc<Svid>)>, Status> {
    let mut svids = Vec::new();
    let mut trouble = None;
    for entry in &asked.entries {
        match workload.svids.of(&workload.authority, entry, &asked.caller, now) {
            Ok(svid) => svids.push((entry.clone(), svid)),
            Err(refused) => trouble = Some(refused),
        }
    }
    match trouble {
        Some(Refused::Denied(_)) if svids.is_empty() => Err(Status::permission_denied("no identity issued: revoked")),
        Some(refused) if svids.is_empty() => Err(starting(&refused.to_string())),
        _ => Ok(svids),
    }
}

/// Of all identities of the caller, or of the one that it names.
fn jwt_svids(
    workload: &Workload,
    asked: &Asked,
    request: &JwtsvidRequest,
    now: SystemTime,
) -> Result<Vec<Jwtsvid>, Status> {
    let wanted = |entry: &&Entry| request.spiffe_id.is_empty() || request.spiffe_id == entry.id.as_str();
    let sign = |entry: &Entry| {
        let svid = jwt::issue(workload, entry, &request.audience, &asked.caller, now)?;
        Ok(Jwtsvid { spiffe_id: entry.id.to_string(), svid, hint: entry.hint.clone() })
    };
    asked.entries.iter().filter(wanted).map(sign).collect()
}

fn x509_svids(workload: &Workload, asked: &Asked, now: SystemTime) -> Message<X509svidResponse> {
    let svids = svids(workload, asked, now)?;
    let trusted = workload.trusted.load();
    let bundle: Vec<u8> = trusted.own_anchors().flatten().copied().collect();
    let again = svids.iter().map(|(_, svid)| svid.look_again(now)).min().unwrap_or(SELDOM);
    let mut message =
        X509svidResponse { federated_bundles: foreign(workload, &asked.entries), ..X509svidResponse::default() };
    for (entry, svid) in svids {
        message.svids.push(X509svid {
            spiffe_id: entry.id.to_string(),
            x509_svid: svid.chain.iter().flat_map(|der| der.as_ref()).copied().collect(),
            x509_svid_key: svid.key.to_vec(),
            bundle: bundle.clone(),
            hint: entry.hint,
        });
    }
    Ok((message, again))
}

/// Anchors of foreign trust domains; one without any is as one that is not there.
fn foreign(workload: &Workload, entries: &[Entry]) -> BTreeMap<String, Vec<u8>> {
    let trusted = workload.trusted.load();
    let some = trusted.federated(entries).filter(|(_, bundle)| !bundle.x509_authorities.is_empty());
    some.map(|(domain, bundle)| (domain.id(), concatenated(bundle))).collect()
}

fn x509_bundles(workload: &Workload, asked: &Asked, _: SystemTime) -> Message<X509BundlesResponse> {
    let mut bundles = foreign(workload, &asked.entries);
    bundles.insert(workload.own().id(), workload.trusted.load().own_anchors().flatten().copied().collect());
    Ok((X509BundlesResponse { crl: Vec::new(), bundles }, SELDOM))
}

fn jwt_bundles(workload: &Workload, asked: &Asked, _: SystemTime) -> Message<JwtBundlesResponse> {
    let trusted = workload.trusted.load();
    let mut bundles: BTreeMap<String, Vec<u8>> = trusted
        .federated(&asked.entries)
        .map(|(domain, bundle)| (domain.id(), bundle.jwt_document().into_bytes()))
        .collect();
    bundles.insert(workload.own().id(), trusted.own.jwt_document().into_bytes());
    Ok((JwtBundlesResponse { bundles }, SELDOM))
}
