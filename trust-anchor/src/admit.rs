//! Who asks: the holder of a one-time join token, of a certificate that still holds, or of a service account token that
//! the API server has vouched for.

use std::path::Path;
use std::time::SystemTime;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use hawser_api::SpiffeId;
use hawser_api::proto::issuer::issue_request::Attestation;
use hawser_api::proto::issuer::{IssueRequest, Renewal};
use hawser_tunnel::tls::Credentials;
use hawser_tunnel::verify::{CHAIN_MAX, Svid, VerifyError};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::csr::{self, Request};
use crate::join;
use crate::refused::Refused;

pub(crate) mod remote;
pub(crate) mod token_review;

use token_review::{Reviewed, TokenRefused};

/// How the subject was attested, for the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    /// By a one-time join token.
    JoinToken,
    /// By its present certificate.
    Renewal,
    /// By a Kubernetes service account token.
    TokenReview,
    /// By what the kernel says of its process.
    WorkloadApi,
}

impl Via {
    /// As a word.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::JoinToken => "join_token",
            Self::Renewal => "renewal",
            Self::TokenReview => "token_review",
            Self::WorkloadApi => "workload_api",
        }
    }
}

/// Somebody who may have a certificate, for this key.
#[derive(Debug)]
pub(crate) struct Admitted {
    /// Who.
    pub(crate) subject: SpiffeId,
    /// Why.
    pub(crate) via: Via,
    /// The request.
    pub(crate) request: Request,
    /// The serial number of the certificate that this one takes the place of; empty: none.
    pub(crate) replaces: String,
    /// More about who it is, for the audit log.
    pub(crate) detail: String,
}

impl Admitted {
    fn new(subject: SpiffeId, via: Via, request: Request) -> Self {
        Self { subject, via, request, replaces: String::new(), detail: String::new() }
    }
}

/// Checks a request. The signing request comes first: a token must not be used up by one that can never be met.
/// `reviewed`: what became of the service account token in it, if there is one.
pub(crate) fn admit(
    request: &IssueRequest,
    reviewed: Option<Result<Reviewed, TokenRefused>>,
    store: &Path,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<Admitted, Refused> {
    let csr = csr::read(&request.csr).map_err(Refused::Request)?;
    match &request.attestation {
        Some(Attestation::JoinToken(text)) => {
            // Files and clipboards add line ends.
            let token = join::redeem(store, text.trim(), &csr.key_hash, now)?;
            Ok(Admitted::new(token.spiffe_id, Via::JoinToken, csr))
        }
        Some(Attestation::Renewal(renewal)) => {
            let svid = renews(renewal, &request.csr, &csr, credentials)?;
            Ok(Admitted { replaces: svid.serial, ..Admitted::new(svid.id, Via::Renewal, csr) })
        }
        Some(Attestation::ServiceAccountToken(_)) => {
            let reviewed = reviewed.unwrap_or(Err(TokenRefused::NotHere))?;
            let detail = format!("pod {}", reviewed.pod());
            Ok(Admitted { detail, ..Admitted::new(reviewed.subject().clone(), Via::TokenReview, csr) })
        }
        None => Err(Refused::NoAttestation),
    }
}

/// What the present certificate proves, if it holds now and its key signed this very request. One that we dated ahead, by
/// a clock that has been put right since, proves it as well: its holder could wait for hours to be somebody otherwise.
fn renews(renewal: &Renewal, signed: &[u8], csr: &Request, credentials: &Credentials) -> Result<Svid, Refused> {
    if renewal.chain.len() > CHAIN_MAX {
        return Err(Refused::Renewal(format!("a chain of {} certificates", renewal.chain.len())));
    }
    let chain: Vec<_> = renewal.chain.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let svid = credentials.proves_once_begun(&chain).map_err(|e| match e {
        VerifyError::Denied(id) => Refused::Denied(id),
        e => Refused::Renewal(e.to_string()),
    })?;
    if svid.id.trust_domain() != *credentials.own_domain() {
        return Err(Refused::OtherDomain(svid.id));
    }
    let leaf = chain.first().and_then(|der| X509Certificate::from_der(der).ok()).map(|(_, leaf)| leaf);
    let leaf = leaf.ok_or_else(|| Refused::Renewal("malformed".into()))?;
    let point = csr::p256_point(leaf.public_key())
        .ok_or_else(|| Refused::Renewal("its present key is not ECDSA P-256".into()))?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
        .verify(signed, &renewal.signature)
        .map_err(|_| Refused::Renewal("the request is not signed by the present certificate's key".into()))?;
    if crate::hex::sha256(leaf.public_key().raw) == csr.key_hash {
        return Err(Refused::SameKey(svid.id));
    }
    Ok(svid)
}
