//! Keys by which a trust domain signs JWT-SVIDs (Trust Domain and Bundle section 4.2.2; RFC 7518 section 6).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use super::{BundleError, refuse};

/// Longest name of a key, in bytes; ours have 32, hashes in other forms fit.
pub const KEY_ID_MAX: usize = 256;
/// RFC 7518 section 3.3 demands 2048 bits; nobody has more than 16,384.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=2048;

/// A key that signs JWT-SVIDs, under the name by which their header refers to it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct JwtAuthority {
    /// `kid`: not empty, once in a bundle.
    pub key_id: String,
    /// The key.
    pub key: JwtKey,
}

/// A public key, as unsigned big-endian numbers. Ours are of P-256; the others are what JWT-SVID section 2 lets
/// foreign trust domains sign with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum JwtKey {
    /// A point of P-256, 32 bytes a coordinate: ES256.
    P256 {
        /// First coordinate.
        x: Vec<u8>,
        /// Second coordinate.
        y: Vec<u8>,
    },
    /// A point of P-384, 48 bytes a coordinate: ES384.
    P384 {
        /// First coordinate.
        x: Vec<u8>,
        /// Second coordinate.
        y: Vec<u8>,
    },
    /// RS and PS with SHA-2; without leading zeros.
    Rsa {
        /// Modulus.
        n: Vec<u8>,
        /// Exponent.
        e: Vec<u8>,
    },
}

/// The authority of a `jwt-svid` key; `None`: a type or curve that this version does not know.
pub(super) fn authority(key: &Map<String, Value>) -> Result<Option<JwtAuthority>, BundleError> {
    let text = |name| key.get(name).and_then(Value::as_str);
    let key_id = match text("kid") {
        Some(key_id) if !key_id.is_empty() && key_id.len() <= KEY_ID_MAX => key_id.to_owned(),
        Some(key_id) => return refuse(format!("a jwt-svid key whose `kid` has {} bytes", key_id.len())),
        None => return refuse("a jwt-svid key without `kid`"),
    };
    let number = |name| match text(name).map(|number| URL_SAFE_NO_PAD.decode(number)) {
        Some(Ok(number)) => Ok(number),
        _ => refuse(format!("the jwt-svid key {key_id:?} has no usable `{name}`")),
    };
    let key = match (text("kty"), text("crv")) {
        (Some("EC"), Some("P-256")) => JwtKey::P256 { x: number("x")?, y: number("y")? },
        (Some("EC"), Some("P-384")) => JwtKey::P384 { x: number("x")?, y: number("y")? },
        (Some("RSA"), _) => JwtKey::Rsa { n: number("n")?, e: number("e")? },
        _ => return Ok(None),
    };
    if !key.is_sound() {
        return refuse(format!("the jwt-svid key {key_id:?} has a number of the wrong length"));
    }
    Ok(Some(JwtAuthority { key_id, key }))
}

impl JwtKey {
    fn is_sound(&self) -> bool {
        match self {
            Self::P256 { x, y } => x.len() == 32 && y.len() == 32,
            Self::P384 { x, y } => x.len() == 48 && y.len() == 48,
            Self::Rsa { n, e } => {
                let plain = |number: &[u8]| number.first().is_some_and(|first| *first != 0);
                RSA_BYTES.contains(&n.len()) && (1..=8).contains(&e.len()) && plain(n) && plain(e)
            }
        }
    }
}

impl JwtAuthority {
    /// As a member of a JWKS.
    pub(super) fn to_key(&self) -> Value {
        let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match &self.key {
            JwtKey::P256 { x, y } => json!({
                "use": "jwt-svid", "kid": self.key_id, "kty": "EC", "crv": "P-256", "x": number(x), "y": number(y),
            }),
            JwtKey::P384 { x, y } => json!({
                "use": "jwt-svid", "kid": self.key_id, "kty": "EC", "crv": "P-384", "x": number(x), "y": number(y),
            }),
            JwtKey::Rsa { n, e } => json!({
                "use": "jwt-svid", "kid": self.key_id, "kty": "RSA", "n": number(n), "e": number(e),
            }),
        }
    }
}
