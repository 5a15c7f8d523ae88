//! `WorkloadIdentity`: which local processes get which SPIFFE ID over the Workload API.

use serde::{Deserialize, Serialize};

use super::Metadata;
use crate::names::{ClusterName, NameError, SpiffeId, TrustDomain};

/// A registration entry: processes of this cluster that match get this identity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadIdentity {
    /// `hawser.dev/v1alpha1`
    pub api_version: String,
    /// `WorkloadIdentity`
    pub kind: String,
    /// Name.
    pub metadata: Metadata,
    /// The rest.
    pub spec: WorkloadIdentitySpec,
}

/// See [`WorkloadIdentity`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadIdentitySpec {
    /// A path such as `/ns/shop/sa/web`, or a whole ID of this cluster's own trust domain.
    pub spiffe_id: String,
    /// Who gets it.
    pub selectors: Selectors,
    /// Tells a workload with several identities which one this is (Workload API section 5.2.2); no two are the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Life of an X509-SVID; absent, or longer than the trust anchor allows: what that allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u32>,
    /// Life of a JWT-SVID; absent: five minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt_ttl_seconds: Option<u32>,
    /// Links whose trust domains' bundles the workload is given; absent: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub federates_with: Vec<ClusterName>,
    /// DNS names in the X509-SVID, for peers that look at these. They identify nobody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns_names: Vec<String>,
}

/// What a process must be. All that are given must hold; at least one is.
///
/// User and group are what the kernel noted when the process connected, and they are the boundary: `path` and `sha256`
/// tell the programs of one user apart, but do not stop this user, who may run any of them under a debugger.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selectors {
    /// Its user's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its group's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Its executable, a whole path without links. The trust anchor must run as root, or as the same user, to see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// SHA-256 of its executable, lower-case hex; the same holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Its control group, or one above it, such as `/system.slice/web.service`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
}

impl WorkloadIdentitySpec {
    /// The whole ID, in this trust domain; or the rule that it breaks.
    pub fn id(&self, own: &TrustDomain) -> Result<SpiffeId, NameError> {
        if self.spiffe_id.starts_with('/') {
            return format!("{}{}", own.id(), self.spiffe_id).parse();
        }
        let id: SpiffeId = self.spiffe_id.parse()?;
        if id.trust_domain() == *own { Ok(id) } else { Err(NameError::foreign(&self.spiffe_id)) }
    }
}
