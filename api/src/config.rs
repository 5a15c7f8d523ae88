//! Shapes of configuration that both the daemons and `tunnel` read.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::TrustDomain;

/// The `identity` section of a daemon's configuration: where its certificate comes from.
///
/// On a machine `socket` and `joinToken` say so, on Kubernetes `issuer`; a section with both or neither is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct IdentityConfig {
    /// This cluster's trust domain.
    pub trust_domain: TrustDomain,
    /// Who issues.
    pub issuer: Issuer,
    /// Directory in which key, chain and bundle are kept.
    pub store: PathBuf,
}

/// How a process reaches its trust anchor, and by what it is known there the first time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Issuer {
    /// On the same machine.
    Local {
        /// The trust anchor's Unix socket.
        socket: PathBuf,
        /// File with a one-time join token; may be absent.
        join_token: PathBuf,
    },
    /// In another pod.
    Remote(RemoteIssuer),
}

/// A trust anchor's TCP door.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RemoteIssuer {
    /// `host:port`.
    pub address: String,
    /// File with this cluster's bundle, a SPIFFE JWKS document, as a mounted ConfigMap holds it: by it the trust anchor is
    /// known the first time.
    pub bundle: PathBuf,
    /// File with this pod's service account token for the audience `hawser.dev/<cluster>` (a projected volume), read at
    /// each try.
    pub token: PathBuf,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    trust_domain: TrustDomain,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    socket: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    join_token: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    issuer: Option<RemoteIssuer>,
    store: PathBuf,
}

impl TryFrom<Written> for IdentityConfig {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let issuer = match (written.socket, written.join_token, written.issuer) {
            (Some(socket), Some(join_token), None) => Issuer::Local { socket, join_token },
            (None, None, Some(remote)) => Issuer::Remote(remote),
            _ => return Err("identity: give either `socket` and `joinToken`, or `issuer`"),
        };
        Ok(Self { trust_domain: written.trust_domain, issuer, store: written.store })
    }
}

impl From<IdentityConfig> for Written {
    fn from(config: IdentityConfig) -> Self {
        let (socket, join_token, issuer) = match config.issuer {
            Issuer::Local { socket, join_token } => (Some(socket), Some(join_token), None),
            Issuer::Remote(remote) => (None, None, Some(remote)),
        };
        Self { trust_domain: config.trust_domain, socket, join_token, issuer, store: config.store }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = "{trustDomain: west.example, socket: /s, joinToken: /t, store: /i}";
    const REMOTE: &str =
        "{trustDomain: west.example, issuer: {address: 'trust-anchor:7444', bundle: /b, token: /t}, store: /i}";

    #[test]
    fn both_ways_to_an_issuer_are_read_as_they_are_written() {
        for text in [LOCAL, REMOTE] {
            let config: IdentityConfig = serde_saphyr::from_str(text).unwrap();
            let again = serde_saphyr::to_string(&config).unwrap();
            assert_eq!(serde_saphyr::from_str::<IdentityConfig>(&again).unwrap(), config);
        }
        let remote: IdentityConfig = serde_saphyr::from_str(REMOTE).unwrap();
        assert!(matches!(remote.issuer, Issuer::Remote(remote) if remote.address == "trust-anchor:7444"));
    }

    #[test]
    fn a_section_with_both_ways_or_with_none_is_refused() {
        let both = LOCAL.replace("store", "issuer: {address: a, bundle: /b, token: /t}, store");
        let neither = "{trustDomain: west.example, store: /i}".to_owned();
        let half = LOCAL.replace("joinToken: /t, ", "");
        for text in [both, neither, half] {
            let error = serde_saphyr::from_str::<IdentityConfig>(&text).unwrap_err().to_string();
            assert!(error.contains("give either `socket` and `joinToken`, or `issuer`"), "{error}");
        }
    }
}
