//! Why a certificate is not issued.

use std::time::Duration;

use hawser_api::{Code, Refusal, SpiffeId, TrustDomain};
use tonic::Status;

use crate::admit::token_review::TokenRefused;
use crate::join::TokenError;

/// When to ask again: the queue is served within a fraction of it.
const RETRY_AFTER: Duration = Duration::from_secs(1);

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
    /// The service account token proves nothing.
    #[error("{0}")]
    Account(#[from] TokenRefused),
    /// Asked from another machine without a certificate.
    #[error("this is asked with a certificate of this cluster, and none was shown")]
    Nobody,
    /// Asked by somebody whom it does not concern.
    #[error("{0} may not ask this")]
    NotTheirs(SpiffeId),
    /// The certificate to renew, or the signature by it, proves nothing.
    #[error("renewal: {0}")]
    Renewal(String),
    /// The new key is the old one.
    #[error("renewal of {0} with the key of its present certificate")]
    SameKey(SpiffeId),
    /// Somebody of another trust domain.
    #[error("{0} is not of this trust domain")]
    OtherDomain(SpiffeId),
    /// Somebody who was revoked.
    #[error("{0} is on the deny-list")]
    Denied(SpiffeId),
    /// One identity asks more often than its replicas could.
    #[error("{0} has asked for too many certificates in a short time")]
    TooMany(SpiffeId),
    /// The clock cannot be relied on.
    #[error("{0}")]
    Clock(String),
    /// The audit log cannot be written, and nothing is issued without it.
    #[error("the audit log cannot be written: {0}")]
    NotRecorded(String),
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
            Self::Account(refused) => refused.reason(),
            Self::Nobody => "no_certificate",
            Self::NotTheirs(_) => "not_theirs",
            Self::Renewal(_) => "renewal_untrusted",
            Self::SameKey(_) => "same_key",
            Self::OtherDomain(_) => "other_trust_domain",
            Self::Denied(_) => "denied",
            Self::TooMany(_) => "too_many",
            Self::Clock(_) => "clock",
            Self::NotRecorded(_) => "not_recorded",
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
            Self::Account(refused) if refused.is_passing() => (Code::NotReady, refused.remedy()),
            Self::Account(refused) => (Code::NotAllowed, refused.remedy()),
            Self::Nobody => (Code::NotAllowed, "get a certificate first; this comes by itself"),
            Self::NotTheirs(_) => {
                (Code::NotAllowed, "gateways and the mirror controller alone may, under their accounts")
            }
            Self::Renewal(_) => (Code::NotAllowed, "join again with a token: the present certificate proves nothing"),
            Self::SameKey(_) => (Code::BadRequest, "make a new key for each certificate"),
            Self::OtherDomain(_) => (Code::NotAllowed, "ask the trust anchor of that trust domain"),
            Self::Denied(_) => (Code::NotAllowed, "if that is over: hawser trust revoke identity ID --undo"),
            Self::TooMany(_) => (Code::Overloaded, "ask again after the time given"),
            Self::Clock(_) => (Code::NotReady, "set this machine's clock: hawser trust status shows how far it is off"),
            Self::NotRecorded(_) => (Code::NotReady, "see whether the trust anchor's disk is full"),
        };
        let refusal = Refusal::new(code, self.to_string(), remedy);
        match self {
            Self::Busy | Self::TooMany(_) => refusal.retry_after(RETRY_AFTER),
            _ => refusal,
        }
    }

    /// Whether somebody was told that he may not, rather than not now.
    pub(crate) fn is_denial(&self) -> bool {
        matches!(self.refusal().code, Code::BadRequest | Code::NotAllowed)
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        let refusal = refused.refusal();
        let text = format!("{}: {}; hint: {}", refused.reason(), refusal.message, refusal.remedy);
        let mut status = match refusal.code {
            Code::BadRequest => Self::invalid_argument(text),
            Code::NotAllowed => Self::permission_denied(text),
            _ => Self::unavailable(text),
        };
        if let Some(after) = refusal.retry_after
            && let Ok(value) = after.as_millis().to_string().parse()
        {
            // gRPC's own word for it (gRFC A6).
            status.metadata_mut().insert("grpc-retry-pushback-ms", value);
        }
        status
    }
}
