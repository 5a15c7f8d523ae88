use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use hawser_api::bundle::JwtAuthority;

use super::*;

const NOW: u64 = 1_800_000_000;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn authority(&self, key_id: &str) -> JwtAuthority {
        let point = &self.0.public_key().as_ref()[1..];
        JwtAuthority { key_id: key_id.into(), key: JwtKey::P256 { x: point[..32].into(), y: point[32..].into() } }
    }

    /// Signed as ES256, whatever the header says.
    fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = unsigned(header, claims);
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()))
}

fn header() -> Value {
    json!({ "alg": "ES256", "kid": "k1", "typ": "JWT" })
}

fn claims() -> Value {
    json!({ "sub": "spiffe://east.test/web", "aud": ["db", "cache"], "exp": NOW + 60, "iat": NOW })
}

fn with(mut object: Value, name: &str, value: Value) -> Value {
    let members = object.as_object_mut().unwrap();
    if value.is_null() {
        members.remove(name);
    } else {
        members.insert(name.into(), value);
    }
    object
}

fn check(token: &str, bundle: &Bundle, audience: &str) -> Result<Valid, Invalid> {
    let east: TrustDomain = "east.test".parse().unwrap();
    validate(token, audience, |domain| (*domain == east).then_some(bundle), now())
}

#[test]
fn a_token_holds_by_its_subjects_bundle_for_its_audience_until_its_end() {
    let signer = Signer::new();
    let bundle = Bundle { jwt_authorities: vec![signer.authority("k1")], ..Bundle::default() };
    let valid = check(&signer.sign(&header(), &claims()), &bundle, "db").unwrap();
    assert_eq!(valid.id.as_str(), "spiffe://east.test/web");
    assert_eq!(valid.claims["exp"], NOW + 60);
    for (name, value) in [("aud", json!("db")), ("nbf", json!(NOW)), ("iat", Value::Null), ("iss", json!("x"))] {
        assert!(check(&signer.sign(&header(), &with(claims(), name, value)), &bundle, "db").is_ok(), "{name}");
    }
    assert!(check(&signer.sign(&with(header(), "typ", Value::Null), &claims()), &bundle, "cache").is_ok());
}

#[test]
fn what_a_token_must_not_be() {
    let (signer, other) = (Signer::new(), Signer::new());
    let bundle = Bundle { jwt_authorities: vec![signer.authority("k1"), other.authority("k2")], ..Bundle::default() };
    let head = |name: &str, value: Value| signer.sign(&with(header(), name, value), &claims());
    let body = |name: &str, value: Value| signer.sign(&header(), &with(claims(), name, value));
    let none = unsigned(&with(header(), "alg", json!("none")), &claims());
    // The classic: the public key, which everybody has, taken for a shared secret.
    let hs256 = unsigned(&with(header(), "alg", json!("HS256")), &claims());
    let key = hmac::Key::new(hmac::HMAC_SHA256, signer.0.public_key().as_ref());
    let mac = URL_SAFE_NO_PAD.encode(hmac::sign(&key, hs256.as_bytes()));
    let good = signer.sign(&header(), &claims());
    let long = "a".repeat(TOKEN_MAX + 1);
    let flipped = with(claims(), "sub", json!("spiffe://east.test/admin"));
    let signature = good.rsplit('.').next().unwrap();
    type Expected = fn(&Invalid) -> bool;
    let cases: Vec<(&str, String, Expected)> = vec![
        ("no signature", format!("{none}."), |e| matches!(e, Invalid::Signature(_))),
        ("alg none with one", format!("{none}.{signature}"), |e| matches!(e, Invalid::Signature(_))),
        ("two parts", none.clone(), |e| matches!(e, Invalid::Malformed(_))),
        ("HS256", format!("{hs256}.{mac}"), |e| matches!(e, Invalid::Signature(_))),
        ("ES384 of a P-256 key", head("alg", json!("ES384")), |e| matches!(e, Invalid::Signature(_))),
        ("RS256 of a P-256 key", head("alg", json!("RS256")), |e| matches!(e, Invalid::Signature(_))),
        ("EdDSA", head("alg", json!("EdDSA")), |e| matches!(e, Invalid::Signature(_))),
        ("another key's name", head("kid", json!("k2")), |e| matches!(e, Invalid::Signature(_))),
        ("an unknown key's name", head("kid", json!("k3")), |e| matches!(e, Invalid::Key(_))),
        ("no key's name", head("kid", Value::Null), |e| matches!(e, Invalid::NoKeyId)),
        ("an empty key's name", head("kid", json!("")), |e| matches!(e, Invalid::NoKeyId)),
        ("another type", head("typ", json!("at+jwt")), |e| matches!(e, Invalid::Type(_))),
        ("a critical extension", head("crit", json!(["b64"])), |e| matches!(e, Invalid::Critical(_))),
        ("another claim", format!("{}.{signature}", unsigned(&header(), &flipped)), |e| {
            matches!(e, Invalid::Signature(_))
        }),
        ("expired", body("exp", json!(NOW)), |e| *e == Invalid::Expired),
        ("no end", body("exp", Value::Null), |e| matches!(e, Invalid::Malformed(_))),
        ("an end that is no time", body("exp", json!("soon")), |e| matches!(e, Invalid::Malformed(_))),
        ("not yet", body("nbf", json!(NOW + 60)), |e| *e == Invalid::Early),
        ("from the future", body("iat", json!(NOW + 60)), |e| *e == Invalid::Early),
        ("another audience", body("aud", json!(["web"])), |e| *e == Invalid::Audience),
        ("part of an audience", body("aud", json!("db2")), |e| *e == Invalid::Audience),
        ("no audience", body("aud", Value::Null), |e| *e == Invalid::Audience),
        ("no subject", body("sub", Value::Null), |e| matches!(e, Invalid::Malformed(_))),
        ("no SPIFFE ID", body("sub", json!("web")), |e| matches!(e, Invalid::Malformed(_))),
        ("another trust domain", body("sub", json!("spiffe://west.test/web")), |e| matches!(e, Invalid::Domain(_))),
        ("a subject that is only like it", body("sub", json!("spiffe://east.test.evil/w")), |e| {
            matches!(e, Invalid::Domain(_))
        }),
        ("too long", long, |e| matches!(e, Invalid::TooLong(_))),
        ("four parts", format!("{good}.x"), |e| matches!(e, Invalid::Malformed(_))),
        ("nothing", String::new(), |e| matches!(e, Invalid::Malformed(_))),
    ];
    for (name, token, expected) in cases {
        let error = check(&token, &bundle, "db").expect_err(name);
        assert!(expected(&error), "{name}: {error:?}");
    }
    // The same key is no key once the bundle is without it, or for another trust domain.
    assert!(matches!(check(&good, &Bundle::default(), "db"), Err(Invalid::Key(_))));
}

#[test]
fn claims_of_every_kind_come_out_as_they_went_in() {
    let claims = json!({ "a": 1.5, "b": [null, true, "x"], "c": { "d": {} } });
    let Value::Object(members) = claims else { panic!() };
    let given = to_struct(members);
    assert_eq!(given.fields.len(), 3);
    let Some(prost_types::value::Kind::ListValue(list)) = &given.fields["b"].kind else { panic!() };
    assert_eq!(list.values.len(), 3);
}
