//! Why a handshake failed, in words that are the same for TCP and QUIC.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::{AlertDescription, CertificateError, OtherError};
use rustls_pki_types::UnixTime;

use crate::verify::VerifyError;

/// rustls and quinn demand a name although none is sent and none is checked.
pub(crate) const SERVER_NAME: &str = "hawser.invalid";

/// Why a handshake failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct HandshakeError {
    /// A stable word for metrics: `no_identity`, `timed_out`, `io`, `protocol`, `untrusted`, `expired`,
    /// `not_yet_valid`, `denied`, `wrong_identity`, `refused_by_peer`, `alpn`, `too_large`.
    pub reason: &'static str,
    /// For people.
    pub detail: String,
}

/// What a peer's alert or QUIC crypto error means: it did not like *our* certificate.
const ALERTS: &[(AlertDescription, &str, &str)] = &[
    (AlertDescription::CertificateExpired, "expired", "our certificate is over by the peer's clock"),
    (AlertDescription::NoApplicationProtocol, "alpn", "the peer speaks none of our protocols"),
    (AlertDescription::CertificateRequired, "no_identity", "the peer demands a certificate"),
];

/// Alerts by which a peer says that it does not take our certificate, whatever the reason.
const REFUSALS: &[AlertDescription] = &[
    AlertDescription::CertificateUnknown,
    AlertDescription::UnknownCA,
    AlertDescription::AccessDenied,
    AlertDescription::BadCertificate,
    AlertDescription::UnsupportedCertificate,
    AlertDescription::CertificateRevoked,
];

impl HandshakeError {
    /// A deadline passed in this phase.
    pub(crate) fn timed_out(phase: &str) -> Self {
        Self { reason: "timed_out", detail: format!("{phase} took too long") }
    }

    fn alert(alert: AlertDescription) -> Self {
        if let Some((_, reason, detail)) = ALERTS.iter().find(|(known, ..)| *known == alert) {
            return Self { reason, detail: format!("{detail} (alert {alert:?})") };
        }
        if REFUSALS.contains(&alert) {
            let detail = format!("the peer does not accept our certificate (alert {alert:?})");
            return Self { reason: "refused_by_peer", detail };
        }
        Self { reason: "protocol", detail: format!("the peer sent alert {alert:?}") }
    }
}

impl From<VerifyError> for HandshakeError {
    fn from(error: VerifyError) -> Self {
        Self { reason: error.reason(), detail: error.to_string() }
    }
}

impl From<&rustls::Error> for HandshakeError {
    fn from(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
                match inner.downcast_ref::<Refused>() {
                    Some(Refused(verify)) => verify.clone().into(),
                    None => Self { reason: "untrusted", detail: error.to_string() },
                }
            }
            rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { .. }) => {
                Self { reason: "expired", detail: error.to_string() }
            }
            rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { .. }) => {
                Self { reason: "not_yet_valid", detail: error.to_string() }
            }
            rustls::Error::InvalidCertificate(_) => Self { reason: "untrusted", detail: error.to_string() },
            rustls::Error::NoApplicationProtocol => Self { reason: "alpn", detail: error.to_string() },
            rustls::Error::NoCertificatesPresented => {
                Self { reason: "untrusted", detail: "the peer presented no certificate".into() }
            }
            rustls::Error::AlertReceived(alert) => Self::alert(*alert),
            _ => Self { reason: "protocol", detail: error.to_string() },
        }
    }
}

/// From tokio-rustls, which wraps what rustls says.
impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(tls) => tls.into(),
            None if error.kind() == io::ErrorKind::TimedOut => Self { reason: "timed_out", detail: error.to_string() },
            None => Self { reason: "io", detail: error.to_string() },
        }
    }
}

/// From quinn, which keeps only the alert's number and the text of what rustls says.
impl From<&quinn::ConnectionError> for HandshakeError {
    fn from(error: &quinn::ConnectionError) -> Self {
        match error {
            quinn::ConnectionError::TransportError(ours) => match crypto_alert(ours.code) {
                Some(alert) => Self::ours(alert, &ours.reason),
                None => Self { reason: "protocol", detail: error.to_string() },
            },
            quinn::ConnectionError::ConnectionClosed(theirs) => match crypto_alert(theirs.error_code) {
                Some(alert) => Self::alert(alert),
                None => Self { reason: "protocol", detail: error.to_string() },
            },
            quinn::ConnectionError::TimedOut => Self::timed_out("the QUIC connection"),
            quinn::ConnectionError::Reset => Self { reason: "io", detail: error.to_string() },
            _ => Self { reason: "protocol", detail: error.to_string() },
        }
    }
}

impl HandshakeError {
    /// What we sent this alert for; `text` is our own rustls error, not the peer's words.
    fn ours(alert: AlertDescription, text: &str) -> Self {
        if let Some(detail) = text.strip_prefix(RUSTLS_FRAME.0).and_then(|t| t.strip_suffix(RUSTLS_FRAME.1))
            && let Some((word, detail)) = detail.split_once(": ")
            && let Some(reason) = VERIFIER_REASONS.iter().find(|reason| **reason == word)
        {
            return Self { reason, detail: detail.to_owned() };
        }
        let reason = match alert {
            AlertDescription::CertificateExpired if text.contains(NOT_YET) => "not_yet_valid",
            AlertDescription::CertificateExpired => "expired",
            AlertDescription::NoApplicationProtocol => "alpn",
            alert if REFUSALS.contains(&alert) || alert == AlertDescription::CertificateRequired => "untrusted",
            _ => "protocol",
        };
        Self { reason, detail: text.to_owned() }
    }
}

/// What rustls writes round the words of a verifier.
const RUSTLS_FRAME: (&str, &str) = ("invalid peer certificate: Other(OtherError(", "))");
/// What [`Refused`] may begin with.
const VERIFIER_REASONS: &[&str] = &["untrusted", "wrong_identity", "denied", "too_large"];
/// How rustls tells a certificate that has not begun.
const NOT_YET: &str = "not valid yet";

/// RFC 9001 section 4.8: 0x100 plus the alert.
fn crypto_alert(code: quinn::TransportErrorCode) -> Option<AlertDescription> {
    let code = u64::from(code);
    (code >> 8 == 1).then(|| AlertDescription::from(u8::try_from(code & 0xff).unwrap_or_default()))
}

/// What our verifier hands to rustls. Its text begins with the reason, as quinn keeps nothing but the text; and the
/// text for debugging is the same, as that is the one that rustls shows.
#[derive(thiserror::Error)]
#[error("{}: {_0}", _0.reason())]
struct Refused(VerifyError);

impl fmt::Debug for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// For rustls to send the alert that fits: an expired certificate has one of its own, and who reads the error here
/// gets all of it.
impl From<VerifyError> for rustls::Error {
    fn from(error: VerifyError) -> Self {
        let certificate = match error {
            VerifyError::Expired { now, not_after, .. } => {
                CertificateError::ExpiredContext { time: unix(now), not_after: unix(not_after) }
            }
            VerifyError::NotYetValid { now, not_before, .. } => {
                CertificateError::NotValidYetContext { time: unix(now), not_before: unix(not_before) }
            }
            other => CertificateError::Other(OtherError(Arc::new(Refused(other)))),
        };
        Self::InvalidCertificate(certificate)
    }
}

fn unix(time: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}
