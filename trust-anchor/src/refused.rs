//! Why a certificate is not issued.

use std::time::Duration;

use hawser_api::{Code, Refusal, SpiffeId, TrustDomain};
use tonic::Status;

use crate::join::TokenError;

/// A "no" of the issuer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// More are asking than are served at a time.
    #[error("the trust anchor is busy")]
    Busy,
    /// There is no intermediate, or no root certificate to publish.
    #[error("the trust anchor cannot sign yet: {0}")]
    NotReady(String),
    /// The intermediate is over.
    #[error("the intermediate certificate of {0} is over")]
    IssuerExpired(TrustDomain),
    /// The signing request is none.
    #[error("the signing request: {0}")]
    Request(String),
    /// Neither a join token nor a certificate.
    #[error("nothing in the request says who asks")]
    NoAttestation,
    /// The join token joins nobody.
    #[error("{0}")]
    Token(#[from] TokenError),
    /// The certificate to renew, or the signature by it, proves nothing.
    #[error("renewal: {0}")]
    Renewal(String),
    /// The new key is the old one.
    #[error("renewal of {0} with the key of its present certificate")]
    SameKey(SpiffeId),
    /// Somebody of another trust domain.
    #[error("{0} is not of this trust domain")]
    OtherDomain(SpiffeId),
    /// The cryptography or the disk failed.
    #[error("the trust anchor failed: {0}")]
    Failed(String),
}

impl Refused {
    /// Stable word for metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::NotReady(_) => "not_ready",
            Self::IssuerExpired(_) => "issuer_expired",
            Self::Request(_) => "bad_request",
            Self::NoAttestation => "no_attestation",
            Self::Token(TokenError::Used) => "token_used",
            Self::Token(TokenError::Expired) => "token_expired",
            Self::Token(TokenError::Malformed | TokenError::Unknown) => "token_unknown",
            Self::Token(TokenError::Store(_)) | Self::Failed(_) => "failed",
            Self::Renewal(_) => "renewal_untrusted",
            Self::SameKey(_) => "same_key",
            Self::OtherDomain(_) => "other_trust_domain",
        }
    }

    /// With its code and remedy.
    pub(crate) fn refusal(&self) -> Refusal {
        let (code, remedy) = match self {
            Self::Busy => (Code::Overloaded, "ask again after the time given"),
            Self::NotReady(_) => (Code::NotReady, "see the trust anchor's log for the command that signs its request"),
            Self::IssuerExpired(_) => {
                (Code::NotReady, "sign the intermediate again, where the root is: hawser trust intermediate FILE")
            }
            Self::Request(_) => (Code::BadRequest, "send PKCS#10 with an ECDSA P-256 key, signed by that key"),
            Self::NoAttestation => (Code::BadRequest, "send a join token, or the present certificate and a signature"),
            Self::Token(TokenError::Store(_)) | Self::Failed(_) => {
                (Code::NotReady, "see the trust anchor's log, and whether its disk is full")
            }
            Self::Token(_) => (Code::NotAllowed, "get a new join token: each works once, for a short time"),
            Self::Renewal(_) => (Code::NotAllowed, "join again with a token: the present certificate proves nothing"),
            Self::SameKey(_) => (Code::BadRequest, "make a new key for each certificate"),
            Self::OtherDomain(_) => (Code::NotAllowed, "ask the trust anchor of that trust domain"),
        };
        let refusal = Refusal::new(code, self.to_string(), remedy);
        if matches!(self, Self::Busy) { refusal.retry_after(Duration::from_secs(1)) } else { refusal }
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let refusal = refused.refusal();
        let text = format!("{}: {}; hint: {}", refused.reason(), refusal.message, refusal.remedy);
        match refusal.code {
            Code::BadRequest => Self::invalid_argument(text),
            Code::NotAllowed => Self::permission_denied(text),
            _ => Self::unavailable(text),
        }
    }
}
