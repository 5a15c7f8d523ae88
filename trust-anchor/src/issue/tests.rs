use std::time::UNIX_EPOCH;

use rcgen::{KeyPair, PublicKeyData};

use super::*;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

const NOW: u64 = 2_000_000_000;

fn request() -> Request {
    let key = KeyPair::generate().unwrap();
    let public_key = SubjectPublicKeyInfo::from_der(&key.subject_public_key_info()).unwrap();
    Request { public_key, key_hash: "hash".into(), uris: vec!["spiffe://east.example/ns/other".into()] }
}

fn terms(workload: u64, gateway: u64, not_after: u64) -> Terms {
    let lifetimes = Lifetimes { workload: Duration::from_secs(workload), gateway: Duration::from_secs(gateway) };
    Terms { domain: "east.example".parse().unwrap(), lifetimes, not_after: at(not_after) }
}

#[test]
fn a_leaf_begins_a_minute_ago_and_ends_where_the_shortest_limit_says() {
    const DAY: u64 = 86_400;
    let far = NOW + 90 * DAY;
    for (id, terms, life) in [
        ("/ns/shop/sa/web", terms(600, 60, far), 600),
        ("/ns/shop/sa/web", terms(30 * DAY, 60, far), DAY),
        ("/ns/shop/sa/web", terms(600, 60, NOW + 5), 5),
        ("/ns/hawser-system/sa/gateway", terms(600, 60, far), 60),
        ("/ns/hawser-system/sa/gateway", terms(600, DAY, far), 3600),
        ("/ns/hawser-system/sa/mirror-controller", terms(600, DAY, far), 3600),
        ("/ns/hawser-system/sa/mirror-controller", terms(600, DAY, NOW + 7), 7),
        // Only the system's own, not somebody who is called like it.
        ("/ns/shop/sa/gateway", terms(DAY, 60, far), DAY),
    ] {
        let subject: SpiffeId = format!("spiffe://east.example{id}").parse().unwrap();
        let template = issue(request(), &subject, &terms, at(NOW)).unwrap();
        assert_eq!(template.not_before, at(NOW - 60), "{id}");
        assert_eq!(template.not_after, at(NOW + life), "{id}");
        assert_eq!(template.id, subject);
    }
}

#[test]
fn nothing_is_issued_for_another_trust_domain_or_by_an_issuer_that_is_over() {
    let terms = terms(600, 60, NOW + 100);
    let foreign: SpiffeId = "spiffe://west.example/ns/shop/sa/web".parse().unwrap();
    assert_eq!(issue(request(), &foreign, &terms, at(NOW)).unwrap_err().reason(), "other_trust_domain");
    let own: SpiffeId = "spiffe://east.example/ns/shop/sa/web".parse().unwrap();
    assert_eq!(issue(request(), &own, &terms, at(NOW + 100)).unwrap_err().reason(), "issuer_expired");
}

#[test]
fn a_leaf_says_who_it_is_and_nothing_that_was_asked_for() {
    let subject: SpiffeId = "spiffe://east.example/ns/shop/sa/web".parse().unwrap();
    let params = issue(request(), &subject, &terms(600, 60, NOW + 900), at(NOW)).unwrap().params().unwrap();
    assert_eq!(params.subject_alt_names, [SanType::URI(subject.as_str().try_into().unwrap())]);
    assert_eq!(params.is_ca, IsCa::ExplicitNoCa);
    assert_eq!(params.key_usages, [KeyUsagePurpose::DigitalSignature]);
    let both = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    assert_eq!(params.extended_key_usages, both);
    assert!(params.use_authority_key_identifier_extension);
}

#[test]
fn every_refusal_has_a_word_and_a_remedy() {
    use crate::join::TokenError;
    let id: SpiffeId = "spiffe://east.example/ns/shop/sa/web".parse().unwrap();
    let all = [
        Refused::Busy,
        Refused::NotReady("x".into()),
        Refused::IssuerExpired("east.example".parse().unwrap()),
        Refused::Request("x".into()),
        Refused::NoAttestation,
        Refused::Token(TokenError::Used),
        Refused::Token(TokenError::Expired),
        Refused::Token(TokenError::Unknown),
        Refused::Renewal("x".into()),
        Refused::SameKey(id.clone()),
        Refused::OtherDomain(id),
        Refused::Failed("x".into()),
    ];
    let mut words: Vec<_> = all.iter().map(Refused::reason).collect();
    assert!(all.iter().all(|refused| !refused.refusal().remedy.is_empty()));
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), all.len());
}
