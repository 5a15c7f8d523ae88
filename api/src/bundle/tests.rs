use super::*;

fn key(uses: &str, kty: &str, x5c: &str) -> String {
    format!(r#"{{"use":"{uses}","kty":"{kty}","x5c":{x5c}}}"#)
}

#[test]
fn a_bundle_reads_back_as_it_was_written() {
    let named = |key_id: &str, key| JwtAuthority { key_id: key_id.into(), key };
    let bundle = Bundle {
        sequence: u64::MAX,
        refresh_hint: Some(300),
        x509_authorities: vec![vec![1, 2, 3], vec![0x30, 0]],
        jwt_authorities: vec![
            named("b", JwtKey::P256 { x: vec![0; 32], y: vec![255; 32] }),
            named("a\" \u{1f511}", JwtKey::P384 { x: vec![1; 48], y: vec![2; 48] }),
            named("c", JwtKey::Rsa { n: vec![3; 256], e: vec![1, 0, 1] }),
        ],
    };
    assert_eq!(Bundle::parse(&bundle.to_document()).unwrap(), bundle);
    assert_eq!(bundle.to_document(), bundle.clone().to_document());
    // What the Workload API hands out has the same keys, and no certificates.
    let alone = Bundle::parse(&bundle.jwt_document()).unwrap();
    assert_eq!((alone.x509_authorities.len(), alone.jwt_authorities), (0, bundle.jwt_authorities));
}

#[test]
fn an_empty_list_of_keys_is_a_bundle_that_trusts_nobody() {
    let bundle = Bundle::parse(r#"{"keys":[]}"#).unwrap();
    assert!(bundle.x509_authorities.is_empty());
    assert_eq!(bundle, Bundle::default());
}

#[test]
fn what_is_not_a_bundle_is_refused_with_the_rule() {
    let many = format!(r#"{{"keys":[{}]}}"#, vec![key("x509-svid", "EC", r#"["AQID"]"#); KEYS_MAX + 1].join(","));
    let large = format!(r#"{{"keys":[],"x":"{}"}}"#, "x".repeat(DOCUMENT_MAX));
    let deep = format!(r#"{{"keys":[],"x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let jwt = |members: &str| format!(r#"{{"keys":[{{"use":"jwt-svid",{members}}}]}}"#);
    let one = JwtAuthority { key_id: "k".into(), key: JwtKey::P256 { x: vec![1; 32], y: vec![2; 32] } };
    let other = JwtAuthority { key: JwtKey::P256 { x: vec![3; 32], y: vec![4; 32] }, ..one.clone() };
    let twice = Bundle { jwt_authorities: vec![one, other], ..Bundle::default() }.to_document();
    for (document, rule) in [
        ("", "EOF"),
        ("[]", "not a JSON object"),
        ("{}", "`keys` is missing"),
        (r#"{"keys":null}"#, "not a list"),
        (r#"{"keys":{}}"#, "not a list"),
        (r#"{"keys":[1]}"#, "not a JSON object"),
        (r#"{"keys":[]} trailing"#, "trailing"),
        (r#"{"keys":[],"keys":[]}"#, "\"keys\" occurs twice"),
        (r#"{"keys":[],"a":{"b":[{"c":1,"c":1}]}}"#, "\"c\" occurs twice"),
        (r#"{"keys":[],"spiffe_sequence":-1}"#, "spiffe_sequence"),
        (r#"{"keys":[],"spiffe_sequence":"1"}"#, "spiffe_sequence"),
        (r#"{"keys":[],"spiffe_refresh_hint":1.5}"#, "spiffe_refresh_hint"),
        (r#"{"keys":[{"use":"x509-svid","kty":"EC"}]}"#, "without a certificate"),
        (r#"{"keys":[{"use":"x509-svid","kty":"EC","x5c":[]}]}"#, "without a certificate"),
        (r#"{"keys":[{"use":"x509-svid","kty":"EC","x5c":[""]}]}"#, "empty certificate"),
        (r#"{"keys":[{"use":"x509-svid","kty":"EC","x5c":["_-_-"]}]}"#, "not base64"),
        (&jwt(r#""kty":"EC","crv":"P-256""#), "without `kid`"),
        (&jwt(r#""kid":7,"kty":"EC""#), "without `kid`"),
        (&jwt(r#""kid":"","kty":"EC""#), "0 bytes"),
        (&jwt(&format!(r#""kid":"{}","kty":"EC""#, "k".repeat(KEY_ID_MAX + 1))), "257 bytes"),
        (&jwt(r#""kid":"k","kty":"EC","crv":"P-256","x":"AQID","y":"AQID""#), "wrong length"),
        (&jwt(r#""kid":"k","kty":"EC","crv":"P-384","x":"AQID","y":"AQID""#), "wrong length"),
        (&jwt(r#""kid":"k","kty":"EC","crv":"P-256","x":"AQID""#), "no usable `y`"),
        (&jwt(r#""kid":"k","kty":"EC","crv":"P-256","x":"+/+/","y":"AQID""#), "no usable `x`"),
        (&jwt(r#""kid":"k","kty":"RSA","n":"AQID","e":"AQAB""#), "wrong length"),
        (&twice, "two jwt-svid keys"),
        (&many, "101 keys"),
        (&large, "bytes, more than"),
        (&deep, "recursion"),
    ] {
        let error = Bundle::parse(document).expect_err(rule);
        assert!(error.to_string().contains(rule), "{error} does not say {rule}");
    }
}

#[test]
fn keys_of_other_uses_and_types_are_passed_over_one_by_one() {
    let keys = [
        key("x509-svid", "EC", r#"["AQID","BAUG"]"#), // the first certificate counts
        r#"{"use":"jwt-svid","kid":"1","kty":"EC","crv":"P-521"}"#.into(),
        r#"{"use":"jwt-svid","kid":"1","kty":"OKP","crv":"Ed25519"}"#.into(),
        r#"{"use":"jwt-svid","kid":"1","kty":"oct","k":"AQID"}"#.into(),
        r#"{"use":"JWT-SVID"}"#.into(),
        key("wit-svid", "EC", "[]"),
        key("X509-SVID", "EC", r#"["AQID"]"#), // uses are case-sensitive
        key("x509-svid", "oct", "[]"),
        r#"{"kty":"EC","x5c":["AQID"]}"#.into(),
        key("x509-svid", "RSA", r#"["BAUG"]"#),
    ];
    let bundle = Bundle::parse(&format!(r#"{{"keys":[{}],"other":1}}"#, keys.join(","))).unwrap();
    assert_eq!(bundle.x509_authorities, [[1, 2, 3], [4, 5, 6]]);
    assert!(bundle.jwt_authorities.is_empty());
}

#[test]
fn a_written_key_is_whole_for_readers_that_demand_more_than_the_certificate() {
    // Self-signed certificates made with `openssl req -x509`; the keys as openssl shows them.
    let rows = [
        (
            "MIIBbTCCAROgAwIBAgIUDCE5VMqsGlD18YGnosyn5Xi7OaAwCgYIKoZIzj0EAwIwDDEKMAgGA1UEAwwBdDAeFw0yNjExMjQyMjI1MTVaFw0zNjExMjEyMjI1MTVaMAwxCjAIBgNVBAMMAXQwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASYfZyz8EB9h4dncmiAFP+bIzizru5HfFv/ydV01MlNoQxT3PS2ahl6SiSfjMCvnNBxM14IQWyALaurT80k4cYro1MwUTAdBgNVHQ4EFgQUDQmU1G5q+FNKPeGnqf1rzuLEPfswHwYDVR0jBBgwFoAUDQmU1G5q+FNKPeGnqf1rzuLEPfswDwYDVR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiBu7EsqognlwGIsBUrLBbSiogn+jAYje1G1tIK49C1s+QIhALYWbhOfWVmTn0Jod1h5DCwrRQFQ5SRsYB/ZxLCShtbL",
            json!({"kty": "EC", "crv": "P-256", "x": "mH2cs_BAfYeHZ3JogBT_myM4s67uR3xb_8nVdNTJTaE", "y": "DFPc9LZqGXpKJJ-MwK-c0HEzXghBbIAtq6tPzSThxis"}),
        ),
        (
            "MIIBqjCCATCgAwIBAgIUIYJq1DMBUafmZ+KvYsimVpMkXtcwCgYIKoZIzj0EAwIwDDEKMAgGA1UEAwwBdDAeFw0yNjExMjQyMjI1MTVaFw0zNjExMjEyMjI1MTVaMAwxCjAIBgNVBAMMAXQwdjAQBgcqhkjOPQIBBgUrgQQAIgNiAATDT7VU2TtWBDOqrXM/7ah5uuDKkq3pnZGYTY/lcvEPGNkgTBXPJ4vj0yTKrJLdhLQg1jjMFh4plXgKXhSE9KMbCscbnK4mks7T8bMDIZlqIIfxfVm2sHofceJMZ50ar62jUzBRMB0GA1UdDgQWBBTL39GNMHrc+czTmSU1SxP/B9oOADAfBgNVHSMEGDAWgBTL39GNMHrc+czTmSU1SxP/B9oOADAPBgNVHRMBAf8EBTADAQH/MAoGCCqGSM49BAMCA2gAMGUCMHtp4oTV/zgSxAkGcaA34k7D1JwPMNwK8PFXoYi5B7xpeA4Qdd/QKwHOrv20/RvS9gIxANn2myTilltDNG23dlSSTcNWsWb3V7yBla2YC7Zb0eYc5yd/+Et8Yuk22ZeX58ruDQ==",
            json!({"kty": "EC", "crv": "P-384", "x": "w0-1VNk7VgQzqq1zP-2oebrgypKt6Z2RmE2P5XLxDxjZIEwVzyeL49MkyqyS3YS0", "y": "INY4zBYeKZV4Cl4UhPSjGwrHG5yuJpLO0_GzAyGZaiCH8X1ZtrB6H3HiTGedGq-t"}),
        ),
        (
            "MIIC+TCCAeGgAwIBAgIUE0uwnLcKw5sAZtitHhyKgIANx/owDQYJKoZIhvcNAQELBQAwDDEKMAgGA1UEAwwBdDAeFw0yNjExMjQyMjI1MTVaFw0zNjExMjEyMjI1MTVaMAwxCjAIBgNVBAMMAXQwggEiMA0GCSqGSIb3DQEBAQUAA4IBDwAwggEKAoIBAQDowvMpyTbQqQXYjGhgo34rPImiMziUqWXBughRI32iINPYlESEBOT3rJBuLxYjajMnhV3R/xQlXy9PKic2OZCDU8eZ2xvZMfJK7NDDCKKcYpnLyb20Wf9gGlwDMgiExpcDR4jv4AOj8NYjnG5AGDSRWSGhzBKz3gj6FQ7oYz0255MANSA31J4+V8eNmxF/ULBw1vVYI1iDJ1ZJTTsgKeNEwWipf4Xj4PchjECDIgiAoWtM7OtHeOCYfRdtdvwXAV3I//Q5UbDQykYP/kyxkB28e7sYb+YxGeVOVdbQXjucuY/oDts8m+35SDUcAmdlVxWY/FE+6uxvfbzjuTPD+YSxAgMBAAGjUzBRMB0GA1UdDgQWBBROOdrsUEG1+KbGxq8Taa5BRYRzGzAfBgNVHSMEGDAWgBROOdrsUEG1+KbGxq8Taa5BRYRzGzAPBgNVHRMBAf8EBTADAQH/MA0GCSqGSIb3DQEBCwUAA4IBAQCoo7hlvfEReyzIuEBsKBiQUwemeS63gpV6U+3QZg8HIxG3QeeLCUOoPrsuf8nSw9rag/8ZP+ByM2rM7C+cnxMbtzji33HldKjW8XZmIrsXHLA22Wnv9Cb7XvjX/HjkITgCAw6m0UlSaH+AfaOYapKydA3Julp3T8aRobLAIcQ5Z+Eee11y2bY7uM+jZ2nbUHPxklg920hZBUsajK7wxhYi8YkBplb1mI924EAPsRKww8BytQDsDe+D9b14TVTXiz7+PucQNQkyqXFxxPxW48hX3agoOTf7H7BfM7+pMxtKdLX3lKhpyL7UtueEw2AYYlXz1gZlOLpw7HkeZo4i2nnj",
            json!({"kty": "RSA", "n": "6MLzKck20KkF2IxoYKN-KzyJojM4lKllwboIUSN9oiDT2JREhATk96yQbi8WI2ozJ4Vd0f8UJV8vTyonNjmQg1PHmdsb2THySuzQwwiinGKZy8m9tFn_YBpcAzIIhMaXA0eI7-ADo_DWI5xuQBg0kVkhocwSs94I-hUO6GM9NueTADUgN9SePlfHjZsRf1CwcNb1WCNYgydWSU07ICnjRMFoqX-F4-D3IYxAgyIIgKFrTOzrR3jgmH0XbXb8FwFdyP_0OVGw0MpGD_5MsZAdvHu7GG_mMRnlTlXW0F47nLmP6A7bPJvt-Ug1HAJnZVcVmPxRPursb32847kzw_mEsQ", "e": "AQAB"}),
        ),
        (
            "MIIBLDCB36ADAgECAhQuHz0T6cI5hwCCf1t7erCZEsCesjAFBgMrZXAwDDEKMAgGA1UEAwwBdDAeFw0yNjExMjQyMjI1MTVaFw0zNjExMjEyMjI1MTVaMAwxCjAIBgNVBAMMAXQwKjAFBgMrZXADIQD6O0rlZa/U34PcyQJKX8/HUEvE+RfGvaPn8MO9fdHlsaNTMFEwHQYDVR0OBBYEFAY6OI0l8PHSpPlFY5nlCswxYyTUMB8GA1UdIwQYMBaAFAY6OI0l8PHSpPlFY5nlCswxYyTUMA8GA1UdEwEB/wQFMAMBAf8wBQYDK2VwA0EA01u5vMC0bLl5MmNGzQjUf1kMEwckBmQvXj0KDf5paCNQ15JNL+gRCRzPLEjJa0kouPPg/66uOqNcF6vBFQaqBQ==",
            json!({"kty": "OKP", "crv": "Ed25519", "x": "-jtK5WWv1N-D3MkCSl_Px1BLxPkXxr2j5_DDvX3R5bE"}),
        ),
    ];
    for (certificate, expected) in rows {
        let bundle = Bundle { x509_authorities: vec![STANDARD.decode(certificate).unwrap()], ..Bundle::default() };
        let document: Value = serde_json::from_str(&bundle.to_document()).unwrap();
        let mut key = document["keys"][0].as_object().unwrap().clone();
        assert_eq!(key.remove("use").unwrap(), "x509-svid");
        assert_eq!(key.remove("x5c").unwrap(), json!([certificate]));
        assert_eq!(Value::Object(key), expected);
        // Whatever is cut off, nothing is read beyond the end.
        let der = STANDARD.decode(certificate).unwrap();
        assert!((0..der.len()).all(|length| jwk::public_key(&der[..length]).is_none()));
    }
}
