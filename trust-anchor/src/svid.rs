//! The trust anchor's own X509-SVID, for what it serves over TLS: made when it is first needed, and again at half life
//! and as soon as another authority signs, because clients may have dropped the old one.

use std::sync::Arc;
use std::time::SystemTime;

use hawser_api::SpiffeId;
use hawser_api::labels::{SYSTEM_NAMESPACE, TRUST_ANCHOR_ACCOUNT};
use hawser_tunnel::join;
use hawser_tunnel::tls::Identity;
use hawser_tunnel::verify::AuthorityId;
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;

use crate::audit::{Caller, Entry};
use crate::authority::Authority;
use crate::csr;
use crate::issue::issue;

/// The identity in the authority's credentials, a fresh one if need be. Signs and records: not for an async thread.
pub(crate) fn current(authority: &Authority, now: SystemTime) -> anyhow::Result<Arc<Identity>> {
    // Of several who find it stale one makes the next.
    let _one = authority.own_svid.lock();
    let (intermediate, terms) = authority.terms(now)?;
    if let Some(identity) = authority.credentials.identity()
        && is_fresh(&identity, intermediate.id(), now)
    {
        return Ok(identity);
    }
    let id = SpiffeId::service_account(&terms.domain, SYSTEM_NAMESPACE, TRUST_ANCHOR_ACCOUNT)?;
    let key = KeyPair::generate()?;
    let request = CertificateParams::default().serialize_request(&key)?;
    let request = csr::read(request.der()).map_err(|e| anyhow::anyhow!(e))?;
    let template = issue(request, &id, &terms, now)?;
    let caller = Caller { spiffe_id: id.to_string(), via: "itself".into(), ..Caller::default() };
    let leaf = authority.certify(&intermediate, &template, Entry { caller, ..Entry::default() }, now)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    authority.credentials.set_identity(Identity::new(leaf.chain, key)?);
    authority.credentials.identity().ok_or_else(|| anyhow::anyhow!("nothing to prove ourselves with"))
}

fn is_fresh(identity: &Identity, signer: AuthorityId, now: SystemTime) -> bool {
    let life = identity.not_after().duration_since(identity.not_before()).unwrap_or_default();
    let by = identity.chain().get(1).and_then(|issuer| join::authority(issuer));
    by == Some(signer) && now < identity.not_before() + life / 2
}
