use super::*;

fn key(uses: &str, kty: &str, x5c: &str) -> String {
    format!(r#"{{"use":"{uses}","kty":"{kty}","x5c":{x5c}}}"#)
}

#[test]
fn a_bundle_reads_back_as_it_was_written() {
    let bundle =
        Bundle { sequence: u64::MAX, refresh_hint: Some(300), x509_authorities: vec![vec![1, 2, 3], vec![0x30, 0]] };
    assert_eq!(Bundle::parse(&bundle.to_document()).unwrap(), bundle);
    assert_eq!(bundle.to_document(), bundle.clone().to_document());
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
        key("jwt-svid", "EC", r#"["AQID"]"#),
        key("wit-svid", "EC", "[]"),
        key("X509-SVID", "EC", r#"["AQID"]"#), // uses are case-sensitive
        key("x509-svid", "oct", "[]"),
        r#"{"kty":"EC","x5c":["AQID"]}"#.into(),
        key("x509-svid", "RSA", r#"["BAUG"]"#),
    ];
    let bundle = Bundle::parse(&format!(r#"{{"keys":[{}],"other":1}}"#, keys.join(","))).unwrap();
    assert_eq!(bundle.x509_authorities, [[1, 2, 3], [4, 5, 6]]);
}
