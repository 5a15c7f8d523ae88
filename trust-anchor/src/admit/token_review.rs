//! Who holds a Kubernetes service account token: pure, from the token's own claims, the API server's review of it and the
//! pod that it names.
//!
//! ```text
//! token ─▶ claims (one audience, ours; not over; bound to a pod)
//!            └─▶ TokenReview by the API server ─▶ reviewed (authentic, for us, says the same)
//!                    └─▶ the pod as it is now ─▶ admitted ─▶ spiffe://<trust domain>/ns/<namespace>/sa/<account>
//! ```
//!
//! Claims are read before anybody has vouched for them: they only ever refuse. What they say counts once the API server
//! has said that this very token is authentic, because it verified the signature over them.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hawser_api::labels::{SYSTEM_NAMESPACE, TRUST_ANCHOR_ACCOUNT};
use hawser_api::{SpiffeId, TrustDomain};
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;

/// Longest token that is looked at, in bytes; the API server's own are about 1,200.
const TOKEN_MAX: usize = 16 * 1024;
/// Longest text of the API server's that a refusal repeats.
const SAID_MAX: usize = 200;
/// Nothing there is a workload: whoever may make pods there is the cluster already.
const RESERVED_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// Why a service account token proves nothing here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenRefused {
    /// No service account token of a shape that we know.
    #[error("not a service account token: {0}")]
    Malformed(String),
    /// It was made for somebody else.
    #[error("the service account token is for the audience {found:?}, and not for {wanted:?}")]
    Audience {
        /// Ours.
        wanted: String,
        /// Its own.
        found: String,
    },
    /// Whoever else it is for could show it here.
    #[error("the service account token is for {0} audiences at once")]
    Audiences(usize),
    /// Its end has come.
    #[error("the service account token has expired")]
    Expired,
    /// It outlives every pod.
    #[error("the service account token is bound to no pod")]
    Unbound,
    /// The API server does not vouch for it, or for something else.
    #[error("the API server does not vouch for the service account token: {0}")]
    NotAuthentic(String),
    /// The account is not a workload's.
    #[error("the service account {0} is reserved")]
    Reserved(String),
    /// There is no such pod, or another one of its name.
    #[error("the pod {0}, to which the service account token is bound, is gone")]
    PodGone(String),
    /// It has ended.
    #[error("the pod {0} has finished")]
    PodFinished(String),
    /// It runs as somebody else.
    #[error("the pod {0} runs as another service account")]
    OtherAccount(String),
    /// The API server cannot be asked.
    #[error("the API server cannot be asked about the service account token: {0}")]
    Unanswered(String),
    /// This is no trust anchor of a Kubernetes cluster.
    #[error("this trust anchor takes no service account tokens")]
    NotHere,
}

impl TokenRefused {
    /// Stable word for metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "account_token_malformed",
            Self::Audience { .. } => "account_token_audience",
            Self::Audiences(_) => "account_token_audiences",
            Self::Expired => "account_token_expired",
            Self::Unbound => "account_token_unbound",
            Self::NotAuthentic(_) => "account_token_not_authentic",
            Self::Reserved(_) => "account_reserved",
            Self::PodGone(_) => "pod_gone",
            Self::PodFinished(_) => "pod_finished",
            Self::OtherAccount(_) => "pod_other_account",
            Self::Unanswered(_) => "api_server_unanswered",
            Self::NotHere => "account_token_not_here",
        }
    }

    /// What to do about it.
    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "mount a serviceAccountToken volume and name its file as the identity's token",
            Self::Audience { .. } | Self::Audiences(_) => {
                "give the pod's serviceAccountToken volume the one audience hawser.dev/<cluster>, and no other"
            }
            Self::Expired => "see whether the kubelet renews the mounted token, and both clocks",
            Self::Unbound => "mount the token as a projected volume: a token from a Secret names no pod",
            Self::NotAuthentic(_) => "see whether the token is of this cluster, and its service account still there",
            Self::Reserved(_) => "run the workload in a namespace and under a service account of its own",
            Self::PodGone(_) | Self::PodFinished(_) => {
                "nothing, if the pod was deleted: its successor has its own token"
            }
            Self::OtherAccount(_) => "look into who made this token: it names a pod that is not its account's",
            Self::Unanswered(_) => "see whether the API server answers, and the trust anchor's RBAC: hawser check",
            Self::NotHere => "set `kubernetes` in the trust anchor's configuration, or join with a one-time token",
        }
    }

    /// Whether asking again, with the same token, may help.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Unanswered(_))
    }
}

/// What a token says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) namespace: String,
    pub(crate) account: String,
    pub(crate) pod: String,
    pod_uid: String,
}

impl Claims {
    /// `namespace/pod`, for people.
    fn pod(&self) -> String {
        format!("{}/{}", self.namespace, self.pod)
    }
}

/// A service account of which a pod that is there has proved to be. Made by [`admitted`] alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reviewed {
    subject: SpiffeId,
    pod: String,
}

impl Reviewed {
    /// Who.
    pub(crate) fn subject(&self) -> &SpiffeId {
        &self.subject
    }

    /// The pod and its UID, for the audit log.
    pub(crate) fn pod(&self) -> &str {
        &self.pod
    }
}

#[derive(Deserialize)]
struct Payload {
    aud: Audience,
    exp: f64,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
struct Kubernetes {
    namespace: String,
    serviceaccount: Named,
    pod: Option<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    uid: String,
}

/// Reads a token's claims, and refuses what need not be asked about: most of what is sent by mistake.
pub(crate) fn claims(token: &str, audience: &str, now: SystemTime) -> Result<Claims, TokenRefused> {
    let malformed = |what: &str| TokenRefused::Malformed(what.to_owned());
    if token.len() > TOKEN_MAX {
        return Err(TokenRefused::Malformed(format!("{} bytes, more than {TOKEN_MAX}", token.len())));
    }
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(malformed("not three parts with dots between"));
    };
    let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| malformed("its claims are not base64"))?;
    let payload: Payload = serde_json::from_slice(&payload).map_err(|e| TokenRefused::Malformed(e.to_string()))?;
    let found = match payload.aud {
        Audience::One(one) => vec![one],
        Audience::Many(many) => many,
    };
    match found.as_slice() {
        [one] if one == audience => {}
        [one] => return Err(TokenRefused::Audience { wanted: audience.to_owned(), found: shown(one) }),
        several => return Err(TokenRefused::Audiences(several.len())),
    }
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    if payload.exp <= since {
        return Err(TokenRefused::Expired);
    }
    let of = payload.kubernetes;
    let pod = of.pod.ok_or(TokenRefused::Unbound)?;
    let names = [&of.namespace, &of.serviceaccount.name, &pod.name, &pod.uid];
    if let Some(bad) = names.into_iter().find(|name| !is_name(name)) {
        return Err(TokenRefused::Malformed(format!("{:?} is no name", shown(bad))));
    }
    Ok(Claims { namespace: of.namespace, account: of.serviceaccount.name, pod: pod.name, pod_uid: pod.uid })
}

/// A Kubernetes name (RFC 1123 subdomain) or UID: it goes into a path of the API server's before it is believed.
fn is_name(text: &str) -> bool {
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    (1..=253).contains(&text.len())
        && text.bytes().all(inside)
        && !text.starts_with(['-', '.'])
        && !text.ends_with(['-', '.'])
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SAID_MAX).collect()
}

/// Whether the API server's review vouches for exactly what the claims say.
pub(crate) fn reviewed(claims: &Claims, status: &TokenReviewStatus, audience: &str) -> Result<(), TokenRefused> {
    let no = |why: &str| Err(TokenRefused::NotAuthentic(shown(why)));
    if status.authenticated != Some(true) {
        return no(status.error.as_deref().filter(|error| !error.is_empty()).unwrap_or("it is not authentic"));
    }
    // An API server that does not know audiences says none, and would vouch for a token of any.
    if status.audiences.as_deref().unwrap_or_default() != [audience] {
        return no("it was not reviewed for our audience");
    }
    let user = status.user.clone().unwrap_or_default();
    let username = format!("system:serviceaccount:{}:{}", claims.namespace, claims.account);
    if user.username.as_deref() != Some(username.as_str()) {
        return no("it is somebody else's than it says");
    }
    let extra = user.extra.unwrap_or_default();
    let said = |name: &str| match extra.get(&format!("authentication.kubernetes.io/{name}")).map(Vec::as_slice) {
        Some([one]) => one.clone(),
        _ => String::new(),
    };
    if said("pod-name") != claims.pod || said("pod-uid") != claims.pod_uid {
        return no("it is bound to another pod than it says");
    }
    Ok(())
}

/// The identity, if the pod is there and runs as the token's account. `pod`: as the API server has it now.
pub(crate) fn admitted(claims: &Claims, pod: Option<&Pod>, domain: &TrustDomain) -> Result<Reviewed, TokenRefused> {
    let reserved = RESERVED_NAMESPACES.contains(&claims.namespace.as_str())
        || (claims.namespace == SYSTEM_NAMESPACE && claims.account == TRUST_ANCHOR_ACCOUNT);
    if reserved {
        return Err(TokenRefused::Reserved(format!("{}/{}", claims.namespace, claims.account)));
    }
    let pod = pod.filter(|pod| pod.metadata.uid.as_deref() == Some(claims.pod_uid.as_str()));
    let pod = pod.ok_or_else(|| TokenRefused::PodGone(claims.pod()))?;
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return Err(TokenRefused::PodFinished(claims.pod()));
    }
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    if account != Some(claims.account.as_str()) {
        return Err(TokenRefused::OtherAccount(claims.pod()));
    }
    let subject = SpiffeId::service_account(domain, &claims.namespace, &claims.account)
        .map_err(|e| TokenRefused::Malformed(e.to_string()))?;
    Ok(Reviewed { subject, pod: format!("{} ({})", claims.pod(), claims.pod_uid) })
}

#[cfg(test)]
mod tests;
