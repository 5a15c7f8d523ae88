//! The creator's end: a stranger's request in, a Link and our own side out, or a refusal.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hawser_api::proto::tunnel::{JoinReply, JoinRequest, join_reply};
use hawser_api::{ClusterName, Code, Refusal, TrustDomain};
use hawser_tunnel::join::REQUEST_MAX;
use parking_lot::Mutex;
use prost::Message;

use super::offers::{self, Offer, OfferError};
use super::side::{self, Own, Side};
use super::{LinksConfig, object};
use crate::hex;

/// Requests that may fail a minute, whatever they are; then nobody is served until the minute is over. Against guesses
/// at 256 bits this is not needed; it bounds what they cost.
const FAILURES_PER_MINUTE: u32 = 60;
/// The version of request that is understood.
pub(super) const VERSION: u32 = 1;

/// One for the whole process; its lock also makes requests wait for each other.
#[derive(Debug, Default)]
pub(crate) struct Redeemer {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Tokens that were used while this process runs, with their claims and ends: a store that is put back from a
    /// backup does not open them again.
    used: HashMap<String, (String, u64)>,
    /// The minute, and the failures in it.
    failures: (u64, u32),
}

/// What a trust anchor answers with.
pub(crate) struct Here<'a> {
    /// Directory of the tokens.
    pub(crate) store: &'a Path,
    /// Where Links lie; `None`: nobody can be linked.
    pub(crate) links: Option<&'a LinksConfig>,
    /// Our own name.
    pub(crate) cluster: &'a ClusterName,
    /// Our own trust domain.
    pub(crate) trust_domain: &'a TrustDomain,
    /// Our own bundle, as it is published.
    pub(crate) bundle: &'a str,
}

/// A cluster that has been linked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Joined {
    /// Our name for it.
    pub(crate) peer: ClusterName,
    /// Its trust domain.
    pub(crate) trust_domain: TrustDomain,
}

impl Redeemer {
    /// Answers one request: a [`JoinReply`], and who was linked if anybody was. Reads and writes files.
    pub(crate) fn answer(
        &self,
        request: &[u8],
        here: &Here<'_>,
        now: SystemTime,
    ) -> (Vec<u8>, Result<Joined, Refusal>) {
        let mut state = self.state.lock();
        let answered = state.may_fail(now).and_then(|()| {
            let (own, joined) = state.redeem(request, here, now).inspect_err(|_| state.fail(now))?;
            Ok((own, joined))
        });
        let reply = match &answered {
            Ok((own, _)) => join_reply::Reply::Side(own.message()),
            Err(refusal) => join_reply::Reply::Refused(refusal.to_wire()),
        };
        (JoinReply { reply: Some(reply) }.encode_to_vec(), answered.map(|(_, joined)| joined))
    }
}

fn minute(now: SystemTime) -> u64 {
    now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 60
}

fn refused(error: &OfferError) -> Refusal {
    let (code, remedy) = match error {
        OfferError::Store(_) => (Code::NotReady, "see the log of that cluster's trust anchor"),
        OfferError::OtherDomain => {
            (Code::NotAllowed, "there: hawser link create with `--trust-domain`, the joining cluster's own")
        }
        _ => (Code::NotAllowed, "there, get a new one: hawser link create; each works once, for ten minutes"),
    };
    Refusal::new(code, error.to_string(), remedy)
}

impl State {
    fn may_fail(&self, now: SystemTime) -> Result<(), Refusal> {
        if self.failures.0 == minute(now) && self.failures.1 >= FAILURES_PER_MINUTE {
            let message = format!("{FAILURES_PER_MINUTE} requests to join have failed within a minute");
            let refusal = Refusal::new(Code::Overloaded, message, "try again after the time given");
            return Err(refusal.retry_after(Duration::from_secs(60)));
        }
        Ok(())
    }

    fn fail(&mut self, now: SystemTime) {
        let minute = minute(now);
        if self.failures.0 != minute {
            self.failures = (minute, 0);
        }
        self.failures.1 = self.failures.1.saturating_add(1);
    }

    fn redeem(&mut self, bytes: &[u8], here: &Here<'_>, now: SystemTime) -> Result<(Own, Joined), Refusal> {
        let bad = |message: &str| Refusal::new(Code::BadRequest, message, "run the same release in both clusters");
        let links = here.links.ok_or_else(|| {
            Refusal::new(Code::NotReady, "this cluster takes no links by token", "start it with `hawser up`")
        })?;
        if here.bundle.is_empty() {
            return Err(Refusal::new(Code::NotReady, "this cluster has no bundle yet", "try again in a moment"));
        }
        if bytes.len() > REQUEST_MAX {
            return Err(bad("the request is too long"));
        }
        let request = JoinRequest::decode(bytes).map_err(|_| bad("the request cannot be read"))?;
        if request.version != VERSION {
            return Err(Refusal::new(Code::Version, "no version in common", "run the same release in both clusters"));
        }
        let secret: [u8; 32] = request.secret.as_slice().try_into().map_err(|_| bad("the secret has no 32 bytes"))?;
        let claim: [u8; 32] = request.claim.as_slice().try_into().map_err(|_| bad("the claim has no 32 bytes"))?;
        let offer = offers::find(here.store, &secret, now).map_err(|e| refused(&e))?;
        let joined = self.join(&request, (&secret, &claim), (&offer, links, here), now);
        // Only who has the secret gets here.
        if joined.is_err() && offers::failed(here.store, &secret).is_err() {
            tracing::warn!("cannot count a refused link token");
        }
        joined
    }

    fn join(
        &mut self,
        request: &JoinRequest,
        (secret, claim): (&[u8; 32], &[u8; 32]),
        (offer, links, here): (&Offer, &LinksConfig, &Here<'_>),
        now: SystemTime,
    ) -> Result<(Own, Joined), Refusal> {
        let said = request.side.clone().unwrap_or_default();
        if said.trust_domain != offer.trust_domain.as_str() {
            return Err(refused(&OfferError::OtherDomain));
        }
        let own = Own {
            cluster: here.cluster.clone(),
            trust_domain: here.trust_domain.clone(),
            bundle: here.bundle.to_owned(),
            gateways: offer.gateways.clone(),
            region: offer.region.clone(),
        };
        let checked: Side = side::check(&said, &own, &object::bundles(links, &offer.peer)?)?;
        let link = object::make(&offer.peer, &checked);
        object::conflicts(links, &link)?;
        // Whoever asks again must be the same and say the same.
        let claim = hex::sha256(&[claim.as_slice(), &said.encode_to_vec()].concat());
        self.take(secret, &claim, offer, now)?;
        offers::bind(here.store, secret, &claim).map_err(|e| refused(&e))?;
        object::write(links, &offer.peer, &link)?;
        Ok((own, Joined { peer: offer.peer.clone(), trust_domain: offer.trust_domain.clone() }))
    }

    fn take(&mut self, secret: &[u8; 32], claim: &str, offer: &Offer, now: SystemTime) -> Result<(), Refusal> {
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.used.retain(|_, (_, until)| *until >= seconds);
        let used = self.used.entry(offers::name(secret)).or_insert_with(|| (claim.to_owned(), offer.expires_at));
        if used.0 == claim { Ok(()) } else { Err(refused(&OfferError::Used)) }
    }
}

#[cfg(test)]
mod tests;
