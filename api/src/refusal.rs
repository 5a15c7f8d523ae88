//! One value for every "no": error, status condition, log line and metric label are made from it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::proto::tunnel::Refused;

/// Why something was refused, as a word that never changes: it is a metric label and part of scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// The service port is not exported to the asking cluster, or does not exist: the answer is the same on purpose.
    NotExported,
    /// The peer is not linked, or its trust domain has no anchors here.
    NotLinked,
    /// The caller's identity may not call this service port.
    NotAllowed,
    /// Exported, but no endpoint is ready.
    NoEndpoint,
    /// An endpoint was chosen and could not be reached.
    EndpointUnreachable,
    /// No gateway of the peer could be reached.
    PeerUnreachable,
    /// Whoever answered is not one of the identities that serve the destination.
    WrongIdentity,
    /// A limit of this process was reached.
    Overloaded,
    /// This process is draining and takes no new work.
    Draining,
    /// A deadline passed.
    TimedOut,
    /// No such destination is known here.
    UnknownDestination,
    /// A message broke the protocol.
    BadRequest,
    /// No protocol version in common.
    Version,
    /// The process has no identity or no table yet.
    NotReady,
}

impl Code {
    /// All codes with their texts; the texts are the public interface.
    pub const ALL: &[(Self, &str)] = &[
        (Self::NotExported, "not_exported"),
        (Self::NotLinked, "not_linked"),
        (Self::NotAllowed, "not_allowed"),
        (Self::NoEndpoint, "no_endpoint"),
        (Self::EndpointUnreachable, "endpoint_unreachable"),
        (Self::PeerUnreachable, "peer_unreachable"),
        (Self::WrongIdentity, "wrong_identity"),
        (Self::Overloaded, "overloaded"),
        (Self::Draining, "draining"),
        (Self::TimedOut, "timed_out"),
        (Self::UnknownDestination, "unknown_destination"),
        (Self::BadRequest, "bad_request"),
        (Self::Version, "version"),
        (Self::NotReady, "not_ready"),
    ];

    /// The stable text.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(code, _)| *code == self).map_or("unknown", |(_, text)| text)
    }

    /// The HTTP status with which a proxy tells its application (RFC 9110 section 15).
    pub fn http_status(self) -> u16 {
        match self {
            Self::NotExported | Self::NotLinked | Self::NotAllowed => 403,
            Self::WrongIdentity => 502,
            Self::TimedOut => 504,
            Self::BadRequest => 400,
            _ => 503,
        }
    }

    /// Whether another endpoint, gateway or cluster may well say yes.
    pub fn retry_elsewhere(self) -> bool {
        !matches!(
            self,
            Self::NotExported | Self::NotLinked | Self::NotAllowed | Self::UnknownDestination | Self::BadRequest
        )
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Code {
    type Err = UnknownCode;
    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(code, _)| *code).ok_or(UnknownCode)
    }
}

/// A refusal code that this version does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown refusal code")]
pub struct UnknownCode;

/// A "no" with its cause and its remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// The stable code.
    pub code: Code,
    /// What was refused, to whom, why; lower case, no full stop.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
    /// When another try may succeed.
    pub retry_after: Option<Duration>,
}

/// Longest text that is taken from a peer's refusal, in characters.
pub const TEXT_MAX: usize = 512;

impl Refusal {
    /// A refusal without a time for another try.
    pub fn new(code: Code, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { code, message: message.into(), remedy: remedy.into(), retry_after: None }
    }

    /// The same, with the time after which another try may succeed.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// As a frame for the peer.
    pub fn to_wire(&self) -> Refused {
        let retry_after_ms = self.retry_after.map_or(0, |d| u32::try_from(d.as_millis()).unwrap_or(u32::MAX));
        Refused {
            code: self.code.to_string(),
            message: self.message.clone(),
            remedy: self.remedy.clone(),
            retry_after_ms,
        }
    }

    /// From a peer's frame: texts are cut to [`TEXT_MAX`] and freed of control characters; a code that this version
    /// does not know counts as [`Code::PeerUnreachable`], which is safe to retry elsewhere.
    pub fn from_wire(frame: &Refused) -> Self {
        let clean = |text: &str| text.chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect::<String>();
        let retry_after = Some(u64::from(frame.retry_after_ms)).filter(|ms| *ms > 0).map(Duration::from_millis);
        Self {
            code: frame.code.parse().unwrap_or(Code::PeerUnreachable),
            message: clean(&frame.message),
            remedy: clean(&frame.remedy),
            retry_after,
        }
    }

    /// The body of an HTTP answer made by Hawser: what happened, and what to do on its own `hint:` line.
    pub fn body(&self) -> String {
        format!("hawser: {self}\nhint: {}\n", self.remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_one_text_and_reads_back() {
        for (code, text) in Code::ALL {
            assert_eq!(text.parse::<Code>().unwrap(), *code);
            assert_eq!(code.as_str(), *text);
        }
    }

    #[test]
    fn a_hostile_refusal_is_cut_and_cleaned() {
        let frame = Refused {
            code: "no_such_code".into(),
            message: format!("a\r\nb{}", "x".repeat(10_000)),
            remedy: "\u{1b}[31mred".into(),
            retry_after_ms: 7,
        };
        let refusal = Refusal::from_wire(&frame);
        assert_eq!(refusal.code, Code::PeerUnreachable);
        assert_eq!(refusal.message.chars().count(), TEXT_MAX);
        assert!(refusal.message.starts_with("abx"));
        assert_eq!(refusal.remedy, "[31mred");
        assert_eq!(refusal.retry_after, Some(Duration::from_millis(7)));
    }
}
