//! JWT-SVIDs (JWT-SVID sections 2 and 3): made with ES256, checked by the bundle of whom they speak of. `now` is an
//! argument, so the library's own clock is not asked.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hawser_api::bundle::{Bundle, JwtKey};
use hawser_api::{SpiffeId, TrustDomain};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde_json::{Map, Value, json};
use tonic::Status;

use super::Workload;
use super::entries::Entry;
use super::session::starting;
use crate::audit::{Caller, Entry as Record};
use crate::refused::Refused;

/// Longest token that is looked at, in bytes.
const TOKEN_MAX: usize = 16 * 1024;
/// By how much a clock elsewhere may be ahead of ours.
const SLACK: Duration = Duration::from_secs(10);

/// Signs a JWT-SVID, which is on record before it is out. Waits for the disk.
pub(super) fn issue(
    workload: &Workload,
    entry: &Entry,
    audience: &[String],
    caller: &Caller,
    now: SystemTime,
) -> Result<String, Status> {
    if workload.authority.denials.lock().denies(&entry.id) {
        return Err(Status::permission_denied("no identity issued: it is revoked"));
    }
    let signer = workload.keys.signer(now).ok_or_else(|| starting("there is no key for JWT-SVIDs"))?;
    // A token by a key that nobody has been told of would be refused by all.
    let published = &workload.trusted.load().own.jwt_authorities;
    if !published.iter().any(|key| key.key_id == signer.key_id) {
        return Err(starting("its key for JWT-SVIDs is not published yet"));
    }
    let (issued, ends) = (seconds(now), seconds(now + entry.jwt_ttl.min(workload.keys.ttl_max)));
    let claims = json!({ "sub": entry.id, "aud": audience, "iat": issued, "exp": ends });
    let record = Record {
        event: "issue-jwt".into(),
        subject: entry.id.to_string(),
        detail: format!("for {}", audience.join(" ")),
        caller: Caller { spiffe_id: entry.id.to_string(), ..caller.clone() },
        issuer: signer.key_id.clone(),
        not_after_ms: i64::try_from(ends * 1000).ok(),
        ..Record::default()
    };
    let header = Header { kid: Some(signer.key_id), ..Header::new(Algorithm::ES256) };
    let token = jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ec_der(&signer.private))
        .map_err(|error| Status::internal(format!("cannot sign: {error}")))?;
    workload.authority.audit_log.append(record, now).map_err(Refused::NotRecorded)?;
    Ok(token)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Why a token proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Invalid {
    #[error("the token has {0} bytes, more than {TOKEN_MAX}")]
    TooLong(usize),
    #[error("the token is malformed: {0}")]
    Malformed(String),
    #[error("the token's header has no `kid`")]
    NoKeyId,
    #[error("the token's header demands {0:?}, which is not understood")]
    Critical(String),
    #[error("the token's `typ` is {0:?}")]
    Type(String),
    #[error("nothing is known of the trust domain {0}")]
    Domain(TrustDomain),
    #[error("the trust domain {0} has no such key")]
    Key(TrustDomain),
    #[error("the token does not hold: {0}")]
    Signature(String),
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    Early,
    #[error("the token is for another audience")]
    Audience,
}

/// A token that holds.
#[derive(Debug)]
pub(super) struct Valid {
    pub(super) id: SpiffeId,
    pub(super) claims: Map<String, Value>,
}

/// Checks a token by the bundle of its subject's trust domain, and by no other.
pub(super) fn validate<'b>(
    token: &str,
    audience: &str,
    bundle_of: impl Fn(&TrustDomain) -> Option<&'b Bundle>,
    now: SystemTime,
) -> Result<Valid, Invalid> {
    if token.len() > TOKEN_MAX {
        return Err(Invalid::TooLong(token.len()));
    }
    let key_id = header(token)?;
    let domain = subject(&part(token, 1)?)?.trust_domain();
    let bundle = bundle_of(&domain).ok_or_else(|| Invalid::Domain(domain.clone()))?;
    let key = bundle.jwt_authorities.iter().find(|key| key.key_id == key_id);
    let key = key.ok_or(Invalid::Key(domain))?;
    let (decoding, algorithms) = usable(&key.key).map_err(|error| Invalid::Signature(error.to_string()))?;
    let mut validation = Validation::new(Algorithm::ES256);
    // Which algorithm counts is up to the key, never to the token.
    validation.algorithms = algorithms;
    // Times and audience are checked below, by our clock.
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation.required_spec_claims = HashSet::new();
    let data = jsonwebtoken::decode::<Map<String, Value>>(token, &decoding, &validation)
        .map_err(|error| Invalid::Signature(error.to_string()))?;
    let claims = data.claims;
    times(&claims, now)?;
    let named = match claims.get("aud") {
        Some(Value::String(one)) => one == audience,
        Some(Value::Array(all)) => all.iter().any(|one| one == audience),
        _ => false,
    };
    if !named {
        return Err(Invalid::Audience);
    }
    Ok(Valid { id: subject(&claims)?, claims })
}

/// `kid` of a header that says nothing that we would have to understand and do not.
fn header(token: &str) -> Result<String, Invalid> {
    let header = part(token, 0)?;
    let text = |name| header.get(name).and_then(Value::as_str);
    if let Some(critical) = header.get("crit") {
        return Err(Invalid::Critical(critical.to_string().chars().take(80).collect()));
    }
    match text("typ") {
        None if header.contains_key("typ") => return Err(Invalid::Type(String::new())),
        None | Some("JWT" | "JOSE") => {}
        Some(other) => return Err(Invalid::Type(other.chars().take(80).collect())),
    }
    text("kid").filter(|kid| !kid.is_empty()).map(str::to_owned).ok_or(Invalid::NoKeyId)
}

fn part(token: &str, index: usize) -> Result<Map<String, Value>, Invalid> {
    let malformed = |what: &str| Invalid::Malformed(what.to_owned());
    if token.split('.').count() != 3 {
        return Err(malformed("it has not three parts"));
    }
    let encoded = token.split('.').nth(index).unwrap_or_default();
    let text = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| malformed("a part is not base64url"))?;
    serde_json::from_slice(&text).map_err(|_| malformed("a part is not a JSON object"))
}

fn subject(claims: &Map<String, Value>) -> Result<SpiffeId, Invalid> {
    let subject = claims.get("sub").and_then(Value::as_str);
    let subject = subject.ok_or_else(|| Invalid::Malformed("it has no subject".into()))?;
    subject.parse().map_err(|error: hawser_api::names::NameError| Invalid::Malformed(error.to_string()))
}

fn times(claims: &Map<String, Value>, now: SystemTime) -> Result<(), Invalid> {
    let (now, slack) = (now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(), SLACK.as_secs_f64());
    let time = |name: &str| match claims.get(name) {
        None => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| Invalid::Malformed(format!("`{name}` is not a time"))),
    };
    let ends = time("exp")?.ok_or_else(|| Invalid::Malformed("it has no end".into()))?;
    if ends <= now {
        return Err(Invalid::Expired);
    }
    let early = [time("nbf")?, time("iat")?].into_iter().flatten().any(|begin| begin > now + slack);
    if early { Err(Invalid::Early) } else { Ok(()) }
}

/// The key, and what it may have signed with (JWT-SVID section 2.1).
fn usable(key: &JwtKey) -> Result<(DecodingKey, Vec<Algorithm>), jsonwebtoken::errors::Error> {
    let number = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    Ok(match key {
        JwtKey::P256 { x, y } => (DecodingKey::from_ec_components(&number(x), &number(y))?, vec![Algorithm::ES256]),
        JwtKey::P384 { x, y } => (DecodingKey::from_ec_components(&number(x), &number(y))?, vec![Algorithm::ES384]),
        JwtKey::Rsa { n, e } => (
            DecodingKey::from_rsa_components(&number(n), &number(e))?,
            vec![
                Algorithm::RS256,
                Algorithm::RS384,
                Algorithm::RS512,
                Algorithm::PS256,
                Algorithm::PS384,
                Algorithm::PS512,
            ],
        ),
    })
}

/// Claims as the Workload API's answer has them.
pub(super) fn to_struct(claims: Map<String, Value>) -> prost_types::Struct {
    let fields: BTreeMap<_, _> = claims.into_iter().map(|(name, value)| (name, to_value(value))).collect();
    prost_types::Struct { fields }
}

fn to_value(value: Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(is) => Kind::BoolValue(is),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(all) => {
            Kind::ListValue(prost_types::ListValue { values: all.into_iter().map(to_value).collect() })
        }
        Value::Object(members) => Kind::StructValue(to_struct(members)),
    };
    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests;
