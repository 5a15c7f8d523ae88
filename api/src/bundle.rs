//! A trust domain's anchors as a SPIFFE JWKS document (SPIFFE Trust Domain and Bundle, sections 4 and 5).

use std::collections::BTreeSet;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

mod jwk;
mod jwt;

pub use jwt::{JwtAuthority, JwtKey, KEY_ID_MAX};

/// Largest document, in bytes: a hundred RSA-4096 certificates fit several times.
pub const DOCUMENT_MAX: usize = 1024 * 1024;
/// Most keys of a document, of all uses together.
pub const KEYS_MAX: usize = 100;

/// The anchors of one trust domain. The document does not name the trust domain: keep it beside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bundle {
    /// `spiffe_sequence`: grows with every change of content.
    pub sequence: u64,
    /// `spiffe_refresh_hint` in seconds.
    pub refresh_hint: Option<u32>,
    /// X.509 authorities, DER, not checked here. Empty: trust nobody.
    pub x509_authorities: Vec<Vec<u8>>,
    /// JWT authorities; no two have one name. Empty: no JWT-SVID holds.
    pub jwt_authorities: Vec<JwtAuthority>,
}

/// Why a document is not a bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bundle: {0}")]
pub struct BundleError(pub String);

fn refuse<T>(rule: impl Into<String>) -> Result<T, BundleError> {
    Err(BundleError(rule.into()))
}

impl Bundle {
    /// Reads a JWKS document. Keys of a use or type that this version does not know are passed over; a key that is
    /// an X.509 or JWT authority and cannot be read makes the whole document unusable, as half a bundle would split a
    /// fabric.
    pub fn parse(document: &str) -> Result<Self, BundleError> {
        if document.len() > DOCUMENT_MAX {
            return refuse(format!("{} bytes, more than {DOCUMENT_MAX}", document.len()));
        }
        // serde_json keeps the last of two equal keys: two readers could see two bundles in one document.
        serde_json::from_str::<NoDuplicates>(document).map_err(|e| BundleError(e.to_string()))?;
        let value: Value = serde_json::from_str(document).map_err(|e| BundleError(e.to_string()))?;
        let Some(object) = value.as_object() else {
            return refuse("not a JSON object");
        };
        let Some(keys) = object.get("keys") else {
            return refuse("`keys` is missing; an empty list says that nobody is trusted");
        };
        let Some(keys) = keys.as_array() else {
            return refuse("`keys` is not a list");
        };
        if keys.len() > KEYS_MAX {
            return refuse(format!("{} keys, more than {KEYS_MAX}", keys.len()));
        }
        let mut bundle = Self {
            sequence: integer(object, "spiffe_sequence")?.unwrap_or_default(),
            refresh_hint: integer(object, "spiffe_refresh_hint")?.map(|hint| u32::try_from(hint).unwrap_or(u32::MAX)),
            ..Self::default()
        };
        for key in keys {
            bundle.take(key)?;
        }
        Ok(bundle)
    }

    fn take(&mut self, key: &Value) -> Result<(), BundleError> {
        let Some(key) = key.as_object() else {
            return refuse("a key that is not a JSON object");
        };
        // Uses are case-sensitive (section 4.2); other uses and types are for other readers.
        match key.get("use").and_then(Value::as_str) {
            Some("x509-svid") => self.x509_authorities.extend(x509_authority(key)?),
            Some("jwt-svid") => {
                let Some(new) = jwt::authority(key)? else { return Ok(()) };
                if self.jwt_authorities.iter().any(|known| known.key_id == new.key_id) {
                    return refuse(format!("two jwt-svid keys with the `kid` {:?}", new.key_id));
                }
                self.jwt_authorities.push(new);
            }
            _ => {}
        }
        Ok(())
    }

    /// The JWT authorities alone as a JWKS document: what the Workload API hands out for JWT-SVIDs.
    pub fn jwt_document(&self) -> String {
        let keys: Vec<Value> = self.jwt_authorities.iter().map(JwtAuthority::to_key).collect();
        json!({ "keys": keys }).to_string()
    }

    /// Writes a JWKS document, the same bytes for the same value.
    pub fn to_document(&self) -> String {
        let mut keys: Vec<Value> = self.x509_authorities.iter().map(|der| x509_key(der)).collect();
        keys.extend(self.jwt_authorities.iter().map(JwtAuthority::to_key));
        let mut document = json!({ "keys": keys, "spiffe_sequence": self.sequence });
        if let (Some(hint), Some(object)) = (self.refresh_hint, document.as_object_mut()) {
            object.insert("spiffe_refresh_hint".into(), hint.into());
        }
        // `Value` prints its keys in order.
        format!("{document:#}\n")
    }
}

/// The authority of an `x509-svid` key; `None`: a type that this version does not know.
fn x509_authority(key: &Map<String, Value>) -> Result<Option<Vec<u8>>, BundleError> {
    if !matches!(key.get("kty").and_then(Value::as_str), Some("EC" | "RSA" | "OKP")) {
        return Ok(None);
    }
    // Section 4.2.1: exactly one certificate; a reader takes the first and ignores the rest.
    let Some(first) = key.get("x5c").and_then(|x5c| x5c.get(0)).and_then(Value::as_str) else {
        return refuse("an x509-svid key without a certificate in `x5c`");
    };
    match STANDARD.decode(first) {
        Ok(der) if !der.is_empty() => Ok(Some(der)),
        Ok(_) => refuse("an x509-svid key with an empty certificate"),
        Err(error) => refuse(format!("an x509-svid key whose `x5c` is not base64: {error}")),
    }
}

fn x509_key(der: &[u8]) -> Value {
    let mut key = jwk::public_key(der).unwrap_or_else(|| {
        // Readers that build the key from the certificate do not miss what is left out.
        Map::from_iter([("kty".to_owned(), Value::from("EC"))])
    });
    key.insert("use".into(), "x509-svid".into());
    key.insert("x5c".into(), json!([STANDARD.encode(der)]));
    Value::Object(key)
}

fn integer(object: &Map<String, Value>, name: &str) -> Result<Option<u64>, BundleError> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number) => Ok(Some(number)),
            None => refuse(format!("`{name}` is not a whole number from 0 up")),
        },
    }
}

/// JSON of any shape in which no object has a key twice.
struct NoDuplicates;

impl<'de> Deserialize<'de> for NoDuplicates {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        NoDuplicates.deserialize(deserializer)
    }
}

impl<'de> DeserializeSeed<'de> for NoDuplicates {
    type Value = Self;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NoDuplicates {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self, A::Error> {
        let mut seen = BTreeSet::new();
        while let Some(key) = map.next_key::<String>()? {
            map.next_value_seed(Self)?;
            if let Some(twice) = seen.replace(key) {
                let twice: String = twice.chars().take(80).collect();
                return Err(serde::de::Error::custom(format!("the key {twice:?} occurs twice in one object")));
            }
        }
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self, A::Error> {
        while seq.next_element_seed(Self)?.is_some() {}
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }
    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }
}

#[cfg(test)]
mod tests;
