use std::time::Duration;

use serde_json::{Value, json};

use super::*;

const AUDIENCE: &str = "hawser.dev/east";
const UID: &str = "0d9cf1c6-7a1f-4f0e-9b0e-3a6b5d0f2c11";

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn payload() -> Value {
    json!({
        "aud": [AUDIENCE], "exp": 5000, "iat": 1400, "iss": "https://kubernetes.default.svc",
        "sub": "system:serviceaccount:shop:web",
        "kubernetes.io": {
            "namespace": "shop",
            "serviceaccount": { "name": "web", "uid": "af2b" },
            "pod": { "name": "web-7", "uid": UID },
            "node": { "name": "n1", "uid": "b1" },
        },
    })
}

fn token(payload: &Value) -> String {
    format!("eyJhbGciOiJSUzI1NiJ9.{}.c2ln", URL_SAFE_NO_PAD.encode(payload.to_string()))
}

fn with(pointer: &str, value: Value) -> Value {
    let mut payload = payload();
    *payload.pointer_mut(pointer).unwrap() = value;
    payload
}

fn read(payload: &Value) -> Result<Claims, TokenRefused> {
    claims(&token(payload), AUDIENCE, at(4999))
}

fn vouched() -> TokenReviewStatus {
    serde_json::from_value(json!({
        "authenticated": true, "audiences": [AUDIENCE],
        "user": {
            "username": "system:serviceaccount:shop:web", "uid": "af2b",
            "extra": {
                "authentication.kubernetes.io/pod-name": ["web-7"],
                "authentication.kubernetes.io/pod-uid": [UID],
            },
        },
    }))
    .unwrap()
}

fn pod(account: &str, uid: &str, phase: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "web-7", "namespace": "shop", "uid": uid },
        "spec": { "serviceAccountName": account, "containers": [] },
        "status": { "phase": phase },
    }))
    .unwrap()
}

fn domain() -> TrustDomain {
    "east.example".parse().unwrap()
}

#[test]
fn a_pods_token_for_this_cluster_alone_gives_its_service_accounts_identity() {
    let claims = read(&payload()).unwrap();
    reviewed(&claims, &vouched(), AUDIENCE).unwrap();
    let who = admitted(&claims, Some(&pod("web", UID, "Running")), &domain()).unwrap();
    assert_eq!(who.subject().as_str(), "spiffe://east.example/ns/shop/sa/web");
    assert_eq!(who.pod(), format!("shop/web-7 ({UID})"));
    // One audience may be written without a list (RFC 7519 section 4.1.3).
    assert_eq!(read(&with("/aud", json!(AUDIENCE))).unwrap(), claims);
}

#[test]
fn a_token_for_another_audience_or_for_several_is_refused_before_anybody_is_asked() {
    let other = read(&with("/aud", json!(["hawser.dev/west"]))).unwrap_err();
    assert!(matches!(&other, TokenRefused::Audience { found, .. } if found == "hawser.dev/west"), "{other}");
    // What the API server's own API takes would be a credential of the cluster.
    let broad = read(&with("/aud", json!(["https://kubernetes.default.svc", AUDIENCE]))).unwrap_err();
    assert_eq!(broad, TokenRefused::Audiences(2));
    assert_eq!(read(&with("/aud", json!([]))).unwrap_err(), TokenRefused::Audiences(0));
    assert_eq!(read(&with("/aud", json!([AUDIENCE, AUDIENCE]))).unwrap_err(), TokenRefused::Audiences(2));
}

#[test]
fn a_token_that_is_over_or_outlives_its_pod_is_refused() {
    assert_eq!(claims(&token(&payload()), AUDIENCE, at(5000)).unwrap_err(), TokenRefused::Expired);
    let mut unbound = payload();
    unbound["kubernetes.io"].as_object_mut().unwrap().remove("pod");
    assert_eq!(read(&unbound).unwrap_err(), TokenRefused::Unbound);
}

#[test]
fn what_is_no_token_is_refused_and_names_that_would_lead_elsewhere_too() {
    let whole = token(&payload());
    for bad in ["", "a.b", "a.b.c", "a.!!.c", &format!("{whole}.d"), &"a".repeat(TOKEN_MAX + 1)] {
        assert!(matches!(claims(bad, AUDIENCE, at(1)), Err(TokenRefused::Malformed(_))), "{bad}");
    }
    for name in ["", "../secrets/x", "web/7", "web?x", "Web", "-web", "web.", "w\u{e9}b", &"a".repeat(254)] {
        for pointer in ["/kubernetes.io/namespace", "/kubernetes.io/pod/name", "/kubernetes.io/serviceaccount/name"] {
            let refused = read(&with(pointer, json!(name))).unwrap_err();
            assert!(matches!(refused, TokenRefused::Malformed(_)), "{pointer} {name:?}: {refused}");
        }
    }
}

#[test]
fn only_what_the_api_server_vouches_for_counts() {
    let claims = read(&payload()).unwrap();
    let changed = |change: &dyn Fn(&mut TokenReviewStatus)| {
        let mut status = vouched();
        change(&mut status);
        reviewed(&claims, &status, AUDIENCE).unwrap_err()
    };
    let extra = |status: &mut TokenReviewStatus, name: &str, values: Vec<String>| {
        let extra = status.user.as_mut().unwrap().extra.as_mut().unwrap();
        extra.insert(format!("authentication.kubernetes.io/{name}"), values);
    };
    let refusals = [
        changed(&|status| status.authenticated = Some(false)),
        changed(&|status| status.authenticated = None),
        // An API server that knows nothing of audiences.
        changed(&|status| status.audiences = None),
        changed(&|status| status.audiences = Some(vec!["https://kubernetes.default.svc".into()])),
        changed(&|status| status.audiences = Some(vec![AUDIENCE.into(), "https://kubernetes.default.svc".into()])),
        changed(&|status| status.user = None),
        changed(&|status| status.user.as_mut().unwrap().username = Some("admin".into())),
        changed(&|status| status.user.as_mut().unwrap().username = Some("system:serviceaccount:shop:web2".into())),
        changed(&|status| status.user.as_mut().unwrap().extra = None),
        changed(&|status| extra(status, "pod-name", vec!["web-8".into()])),
        changed(&|status| extra(status, "pod-uid", vec!["other".into()])),
        changed(&|status| extra(status, "pod-uid", vec![UID.into(), "other".into()])),
    ];
    for refused in refusals {
        assert!(matches!(refused, TokenRefused::NotAuthentic(_)), "{refused}");
    }
    let said = changed(&|status| {
        status.authenticated = Some(false);
        status.error = Some("token\nhas been invalidated".into());
    });
    assert!(said.to_string().contains("tokenhas been invalidated"), "{said}");
}

#[test]
fn the_pod_must_be_the_very_one_and_run_as_the_tokens_account() {
    let claims = read(&payload()).unwrap();
    let asked = |pod: Option<&Pod>| admitted(&claims, pod, &domain()).unwrap_err();
    assert!(matches!(asked(None), TokenRefused::PodGone(_)));
    // The name lives on in its successor, whose token is another one.
    assert!(matches!(asked(Some(&pod("web", "other", "Running"))), TokenRefused::PodGone(_)));
    assert!(matches!(asked(Some(&pod("admin", UID, "Running"))), TokenRefused::OtherAccount(_)));
    for over in ["Succeeded", "Failed"] {
        assert!(matches!(asked(Some(&pod("web", UID, over))), TokenRefused::PodFinished(_)));
    }
    // A pod that is being started has no phase that matters, and needs its certificate.
    assert!(admitted(&claims, Some(&pod("web", UID, "Pending")), &domain()).is_ok());
}

#[test]
fn nobody_becomes_the_trust_anchor_or_a_part_of_the_control_plane_by_token() {
    for (namespace, account) in [(SYSTEM_NAMESPACE, TRUST_ANCHOR_ACCOUNT), ("kube-system", "coredns")] {
        let mut payload = with("/kubernetes.io/namespace", json!(namespace));
        payload["kubernetes.io"]["serviceaccount"]["name"] = json!(account);
        let claims = read(&payload).unwrap();
        let refused = admitted(&claims, Some(&pod(account, UID, "Running")), &domain()).unwrap_err();
        assert_eq!(refused, TokenRefused::Reserved(format!("{namespace}/{account}")));
    }
    let mut gateway = with("/kubernetes.io/namespace", json!(SYSTEM_NAMESPACE));
    gateway["kubernetes.io"]["serviceaccount"]["name"] = json!("gateway");
    let who = admitted(&read(&gateway).unwrap(), Some(&pod("gateway", UID, "Running")), &domain()).unwrap();
    assert!(crate::issue::is_system(who.subject()));
}
