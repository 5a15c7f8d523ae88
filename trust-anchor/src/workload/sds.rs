//! Envoy's secret discovery (SDS) for the same callers: certificates by SPIFFE ID, anchors by trust domain.
//!
//! | name | secret |
//! |---|---|
//! | `default`, or a SPIFFE ID | certificate and key |
//! | `ROOTCA`, or a trust domain's ID | anchors of this trust domain, of that one |
//! | `ALL` | anchors of every trust domain that the caller may trust, each for its own IDs |
//!
//! Anchors come as `SPIFFECertValidatorConfig`: a plain list of certificates would let each trust domain speak for every
//! other. No security header is asked for, as Envoy sends none.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use hawser_api::TrustDomain;
use hawser_api::bundle::Bundle;
use hawser_api::proto::sds::data_source::Specifier;
use hawser_api::proto::sds::secret::Type;
use hawser_api::proto::sds::secret_discovery_service_server::SecretDiscoveryService;
use hawser_api::proto::sds::spiffe_cert_validator_config::TrustDomain as ValidatorDomain;
use hawser_api::proto::sds::{
    CertificateValidationContext, DataSource, DiscoveryRequest, DiscoveryResponse, Secret, SpiffeCertValidatorConfig,
    TlsCertificate, TypedExtensionConfig,
};
use hawser_runtime::clock;
use prost::Message as _;
use prost_types::Any;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};

use super::Workload;
use super::limits::Room;
use super::session::{Asked, Message, Messages, Session, wait};

const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const VALIDATOR: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";
const VALIDATOR_NAME: &str = "envoy.tls.cert_validator.spiffe";
const DEFAULT: &str = "default";
const ROOT: &str = "ROOTCA";
const ALL: &str = "ALL";
/// Secrets that one request may name.
const NAMES_MAX: usize = 256;
const SELDOM: Duration = Duration::from_secs(3600);

/// The service.
pub(super) struct Secrets(pub(super) Arc<Workload>);

#[tonic::async_trait]
impl SecretDiscoveryService for Secrets {
    type StreamSecretsStream = Messages<DiscoveryResponse>;

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let (_, extensions, requests) = request.into_parts();
        let opened = async {
            let session = Session::open(&self.0, &extensions).await?;
            let room = session.room()?;
            Ok::<_, Status>((session, room))
        };
        let opened = opened.await;
        self.0.metrics.called("StreamSecrets", if opened.is_ok() { "ok" } else { "denied" });
        let (session, room) = opened?;
        let changed = self.0.changed.subscribe();
        let envoy = Envoy { session, requests, changed, names: None, sent: None, count: 0, again: SELDOM, _room: room };
        Ok(Response::new(Box::pin(stream::unfold(Some(envoy), |envoy| async move {
            let mut envoy = envoy?;
            match envoy.next().await {
                Ok(Some(response)) => Some((Ok(response), Some(envoy))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        }))))
    }

    async fn fetch_secrets(&self, request: Request<DiscoveryRequest>) -> Result<Response<DiscoveryResponse>, Status> {
        let session = Session::open(&self.0, request.extensions()).await?;
        self.0.metrics.called("FetchSecrets", "ok");
        let (secrets, _) = make(&session, request.into_inner().resource_names).await?;
        Ok(Response::new(response(secrets, 1)))
    }
}

/// One Envoy's stream (xDS protocol, "State of the World").
struct Envoy {
    session: Session,
    requests: Streaming<DiscoveryRequest>,
    changed: watch::Receiver<u64>,
    /// What it asks for; `None` before it has asked.
    names: Option<Vec<String>>,
    /// What it was sent last.
    sent: Option<Vec<Any>>,
    count: u64,
    again: Duration,
    _room: Room,
}

impl Envoy {
    /// The next response; `None`: the stream is over.
    async fn next(&mut self) -> Result<Option<DiscoveryResponse>, Status> {
        loop {
            tokio::select! {
                request = self.requests.message() => {
                    let Some(request) = request? else { return Ok(None) };
                    if !self.asks(request)? {
                        continue;
                    }
                }
                goes_on = wait(&self.session.workload, &mut self.changed, self.again), if self.names.is_some() => {
                    if !goes_on {
                        return Ok(None);
                    }
                }
            }
            let Some(names) = self.names.clone() else { continue };
            self.changed.mark_unchanged();
            let (secrets, again) = make(&self.session, names).await?;
            self.again = again;
            if self.sent.as_ref() != Some(&secrets) {
                self.sent = Some(secrets.clone());
                self.count += 1;
                self.session.workload.metrics.messages.inc();
                return Ok(Some(response(secrets, self.count)));
            }
        }
    }

    /// Takes a request; whether it asks for something else than before.
    fn asks(&mut self, request: DiscoveryRequest) -> Result<bool, Status> {
        if !request.type_url.is_empty() && request.type_url != SECRET {
            return Err(Status::invalid_argument("only secrets are served here"));
        }
        if request.resource_names.len() > NAMES_MAX {
            return Err(Status::invalid_argument(format!("more than {NAMES_MAX} names")));
        }
        if let Some(error) = request.error_detail {
            // It goes on with what it has, and gets another when there is another.
            self.session.workload.metrics.refused_by_envoy.inc();
            tracing::warn!(code = error.code, message = ?error.message.chars().take(300).collect::<String>(), "an Envoy refuses secrets");
        }
        if !request.response_nonce.is_empty() && request.response_nonce != self.count.to_string() {
            // An answer to a response that another has overtaken.
            return Ok(false);
        }
        let others = self.names.as_ref() != Some(&request.resource_names);
        if others {
            self.names = Some(request.resource_names);
            // Even where the secrets are the same: a request for others is always answered.
            self.sent = None;
        }
        Ok(others)
    }
}

fn response(resources: Vec<Any>, count: u64) -> DiscoveryResponse {
    DiscoveryResponse {
        version_info: count.to_string(),
        resources,
        type_url: SECRET.to_owned(),
        nonce: count.to_string(),
    }
}

async fn make(session: &Session, names: Vec<String>) -> Message<Vec<Any>> {
    let (workload, asked) = (Arc::clone(&session.workload), session.asked()?);
    session.workload.work(move || secrets(&workload, &asked, &names, clock::now())).await?
}

/// The secrets of these names; all that the caller may have when it names none.
fn secrets(workload: &Workload, asked: &Asked, names: &[String], now: SystemTime) -> Message<Vec<Any>> {
    let svids = super::service::svids(workload, asked, now)?;
    let again = svids.iter().map(|(_, svid)| svid.look_again(now)).min().unwrap_or(SELDOM);
    let trusted = workload.trusted.load();
    let own_bundle =
        Bundle { x509_authorities: trusted.own_anchors().map(<[u8]>::to_vec).collect(), ..Bundle::default() };
    let own = (workload.own(), &own_bundle);
    let mut secrets = Vec::new();
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    let mut add = |name: &str, kind: Type| {
        let secret = Secret { name: name.to_owned(), r#type: Some(kind) };
        secrets.push(Any { type_url: SECRET.to_owned(), value: secret.encode_to_vec() });
    };
    for (index, (entry, svid)) in svids.iter().enumerate() {
        let chain: String = svid.chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
        let certificate = || {
            Type::TlsCertificate(TlsCertificate {
                certificate_chain: Some(inline(chain.clone())),
                private_key: Some(inline(pem("PRIVATE KEY", &svid.key))),
            })
        };
        if index == 0 && wanted(DEFAULT) && !names.is_empty() {
            add(DEFAULT, certificate());
        }
        if wanted(entry.id.as_str()) {
            add(entry.id.as_str(), certificate());
        }
    }
    let domains: Vec<_> = std::iter::once(own).chain(trusted.federated(&asked.entries)).collect();
    for (domain, bundle) in &domains {
        if wanted(&domain.id()) {
            add(&domain.id(), validator(&[(domain, bundle)]));
        }
    }
    // Aliases are sent to those who ask for them.
    if !names.is_empty() && wanted(ROOT) {
        add(ROOT, validator(&[own]));
    }
    if !names.is_empty() && wanted(ALL) {
        add(ALL, validator(&domains));
    }
    if secrets.len() < names.len() {
        let reason = "the workload is not entitled to all of the secrets that it names";
        return Err(Status::permission_denied(reason));
    }
    Ok((secrets, again))
}

fn inline(text: String) -> DataSource {
    DataSource { specifier: Some(Specifier::InlineBytes(text.into_bytes())) }
}

fn validator(domains: &[(&TrustDomain, &Bundle)]) -> Type {
    let some = domains.iter().filter(|(_, bundle)| !bundle.x509_authorities.is_empty());
    let trust_domains = some.map(|(domain, bundle)| ValidatorDomain {
        name: domain.to_string(),
        trust_bundle: Some(inline(bundle.x509_authorities.iter().map(|der| pem("CERTIFICATE", der)).collect())),
    });
    let config = SpiffeCertValidatorConfig { trust_domains: trust_domains.collect() };
    Type::ValidationContext(CertificateValidationContext {
        custom_validator_config: Some(TypedExtensionConfig {
            name: VALIDATOR_NAME.to_owned(),
            typed_config: Some(Any { type_url: VALIDATOR.to_owned(), value: config.encode_to_vec() }),
        }),
    })
}

/// RFC 7468 section 2: lines of 64 characters.
fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let encoded = STANDARD.encode(der);
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
