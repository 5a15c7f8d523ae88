//! The token's text: one line that a person carries from one cluster to the other.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hawser_api::proto::tunnel::LinkToken;
use hawser_api::{ClusterName, TrustDomain};
use hawser_tunnel::verify::AuthorityId;
use prost::Message;

/// The first byte. Another one is another structure.
const VERSION: u8 = 1;
/// Longest text: 32 gateways and a hundred pins fit.
const TEXT_MAX: usize = 8 * 1024;
/// Most gateways of a token; one is dialled after the other.
pub(super) const GATEWAYS_MAX: usize = 32;
const PINS_MAX: usize = 100;

/// What a token says.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What proves that its holder was invited.
    pub(super) secret: [u8; 32],
    /// The creator's name of itself.
    pub cluster: ClusterName,
    /// The creator's trust domain.
    pub trust_domain: TrustDomain,
    /// Where the creator's gateways are.
    pub gateways: Vec<SocketAddr>,
    /// The keys of the creator's anchors.
    pub pins: Vec<AuthorityId>,
    /// When it is over, by the creator's clock.
    pub expires_at: SystemTime,
}

/// A text that is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a link token: {0}")]
pub struct TokenError(pub(super) String);

fn refuse<T>(why: impl Into<String>) -> Result<T, TokenError> {
    Err(TokenError(why.into()))
}

impl Token {
    /// One line.
    pub fn to_text(&self) -> String {
        let since = self.expires_at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let message = LinkToken {
            secret: self.secret.to_vec(),
            cluster: self.cluster.to_string(),
            trust_domain: self.trust_domain.to_string(),
            gateways: self.gateways.iter().map(ToString::to_string).collect(),
            pins: self.pins.iter().map(|pin| pin.0.to_vec()).collect(),
            expires_at: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        };
        let mut bytes = vec![VERSION];
        bytes.extend(message.encode_to_vec());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a line; white space around it is what terminals and mails add.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > TEXT_MAX {
            return refuse(format!("{} characters, more than {TEXT_MAX}", text.len()));
        }
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(text) else {
            return refuse("it is one line of letters, digits, '-' and '_', copied whole");
        };
        let message = match bytes.split_first() {
            Some((&VERSION, rest)) => LinkToken::decode(rest),
            Some((version, _)) => return refuse(format!("version {version}; this hawser reads version {VERSION}")),
            None => return refuse("it is empty"),
        };
        let message = message.or_else(|_| refuse("it was not copied whole"))?;
        if message.gateways.len() > GATEWAYS_MAX || message.pins.len() > PINS_MAX {
            return refuse("too many gateways or pins");
        }
        Self::read(message)
    }

    fn read(message: LinkToken) -> Result<Self, TokenError> {
        let broken = |what: &str| TokenError(format!("its {what} cannot be read"));
        let pin = |bytes: &Vec<u8>| AuthorityId::try_from(bytes.as_slice()).map_err(|_| broken("pin"));
        let address = |text: &String| text.parse().map_err(|_| broken("gateway address"));
        let seconds = u64::try_from(message.expires_at).unwrap_or_default().min(u64::from(u32::MAX));
        let token = Self {
            secret: message.secret.as_slice().try_into().map_err(|_| broken("secret"))?,
            cluster: message.cluster.parse().map_err(|_| broken("cluster"))?,
            trust_domain: message.trust_domain.parse().map_err(|_| broken("trust domain"))?,
            gateways: message.gateways.iter().map(address).collect::<Result<_, _>>()?,
            pins: message.pins.iter().map(pin).collect::<Result<_, _>>()?,
            expires_at: UNIX_EPOCH + Duration::from_secs(seconds),
        };
        if token.gateways.is_empty() || token.pins.is_empty() {
            return refuse("it names no gateway or no pin");
        }
        Ok(token)
    }
}

impl std::fmt::Debug for Token {
    /// Without the secret: what is printed is logged somewhere.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("cluster", &self.cluster)
            .field("gateways", &self.gateways)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            secret: [7; 32],
            cluster: "west".parse().unwrap(),
            trust_domain: "west.acme.example".parse().unwrap(),
            gateways: vec!["192.0.2.1:7443".parse().unwrap(), "[2001:db8::1]:7443".parse().unwrap()],
            pins: vec![AuthorityId([9; 32])],
            expires_at: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        }
    }

    #[test]
    fn a_token_is_one_line_and_reads_back() {
        let text = token().to_text();
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{text}");
        assert!(text.len() < 300, "{} characters", text.len());
        assert_eq!(Token::parse(&format!(" {text}\n")).unwrap(), token());
        assert!(!format!("{:?}", token()).contains("7, 7"), "the secret is not printed");
    }

    #[test]
    fn what_is_cut_changed_or_of_another_version_is_refused() {
        let text = token().to_text();
        for length in 0..text.len() {
            assert!(Token::parse(&text[..length]).is_err(), "{length}");
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(&text).unwrap();
        bytes[0] = 2;
        let error = Token::parse(&URL_SAFE_NO_PAD.encode(&bytes)).unwrap_err().to_string();
        assert!(error.contains("version 2"), "{error}");
        assert!(Token::parse(&"A".repeat(TEXT_MAX + 1)).is_err());
        let no_pin = Token { pins: Vec::new(), ..token() };
        assert!(Token::parse(&no_pin.to_text()).is_err());
    }
}
