//! The public key of a certificate as a JWK (RFC 7518 section 6): foreign readers of a bundle demand a whole key
//! beside the certificate.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OBJECT_ID: u8 = 0x06;
const VERSION: u8 = 0xa0;

const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];

/// The members of the key, without `use`; `None` if it is not a certificate, or of a key type that is not known here.
pub(super) fn public_key(certificate: &[u8]) -> Option<Map<String, Value>> {
    let (algorithm, curve, key) = subject_public_key(certificate)?;
    let number = |bytes: &[u8]| Value::from(URL_SAFE_NO_PAD.encode(bytes));
    let members = match algorithm {
        EC_PUBLIC_KEY => {
            let (name, size) = match curve {
                P256 => ("P-256", 32),
                P384 => ("P-384", 48),
                _ => return None,
            };
            // SEC 1 section 2.3.3: 4, then both coordinates in full length.
            let [4, point @ ..] = key else { return None };
            let (x, y) = point.split_at_checked(size).filter(|(_, y)| y.len() == size)?;
            vec![("kty", "EC".into()), ("crv", name.into()), ("x", number(x)), ("y", number(y))]
        }
        RSA => {
            let (mut numbers, _) = take(key, SEQUENCE)?;
            let n = next(&mut numbers, INTEGER)?;
            let e = next(&mut numbers, INTEGER)?;
            // DER puts a zero before a number whose first bit is set; a JWK has none.
            vec![
                ("kty", "RSA".into()),
                ("n", number(n.strip_prefix(&[0]).unwrap_or(n))),
                ("e", number(e.strip_prefix(&[0]).unwrap_or(e))),
            ]
        }
        ED25519 => vec![("kty", "OKP".into()), ("crv", "Ed25519".into()), ("x", number(key))],
        _ => return None,
    };
    Some(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Algorithm, its first parameter (a curve's OID, or empty) and the bits of the key.
fn subject_public_key(certificate: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (mut outer, _) = take(certificate, SEQUENCE)?;
    let mut body = next(&mut outer, SEQUENCE)?;
    if body.first() == Some(&VERSION) {
        next(&mut body, VERSION)?;
    }
    next(&mut body, INTEGER)?; // serial number
    for _ in ["signature", "issuer", "validity", "subject"] {
        next(&mut body, SEQUENCE)?;
    }
    let mut spki = next(&mut body, SEQUENCE)?;
    let mut identifier = next(&mut spki, SEQUENCE)?;
    let bits = next(&mut spki, BIT_STRING)?;
    let algorithm = next(&mut identifier, OBJECT_ID)?;
    let curve = next(&mut identifier, OBJECT_ID).unwrap_or_default();
    // The first byte counts unused bits; keys have none.
    let [0, key @ ..] = bits else { return None };
    Some((algorithm, curve, key))
}

fn next<'a>(input: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (contents, rest) = take(input, tag)?;
    *input = rest;
    Some(contents)
}

/// One DER value of this tag, and what follows it.
fn take(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let [first, length, rest @ ..] = input else { return None };
    if *first != tag {
        return None;
    }
    let (length, rest) = match (length, rest) {
        (0..=0x7f, rest) => (usize::from(*length), rest),
        (0x81, [a, rest @ ..]) => (usize::from(*a), rest),
        (0x82, [a, b, rest @ ..]) => (usize::from(u16::from_be_bytes([*a, *b])), rest),
        _ => return None,
    };
    rest.split_at_checked(length)
}
