//! The joiner's end: a token in, a request to one of its gateways, and a Link from the reply.

use std::fs;
use std::io;
use std::path::PathBuf;

use hawser_api::labels::{GATEWAY_ACCOUNT, SYSTEM_NAMESPACE};
use hawser_api::proto::tunnel::{JoinReply, JoinRequest, JoinSide, join_reply};
use hawser_api::{ClusterName, Code, Refusal, SpiffeId, TrustDomain};
use hawser_runtime::file;
use hawser_tunnel::Clock;
use hawser_tunnel::join::{Pinned, REQUEST_MAX, ask};
use prost::Message;

use super::object;
use super::redeem::VERSION;
use super::side::{self, Own};
use super::token::Token;
use super::{LinksConfig, offers};

/// What is accepted, and for whom.
#[derive(Debug)]
pub struct Acceptance {
    /// The other cluster's token.
    pub token: Token,
    /// Our name for the other cluster; `None`: its own name.
    pub name: Option<ClusterName>,
    /// Ourselves.
    pub own: Own,
    /// Where our Links lie.
    pub links: LinksConfig,
    /// The time, for certificates.
    pub clock: Clock,
}

/// A Link that has been made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// Our name for the other cluster.
    pub peer: ClusterName,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// The Link's file.
    pub path: PathBuf,
    /// Both clusters hang under one root.
    pub same_root: bool,
}

/// Redeems a token and writes the Link. Asked again after a failure it is the same joiner, and the token still works.
pub async fn accept(wanted: Acceptance) -> Result<Accepted, Refusal> {
    let token = &wanted.token;
    if token.trust_domain == wanted.own.trust_domain {
        let message = format!("the token was made by this cluster ({})", token.trust_domain);
        return Err(Refusal::new(Code::BadRequest, message, "accept it in the other cluster"));
    }
    let peer = wanted.name.clone().unwrap_or_else(|| token.cluster.clone());
    if peer == wanted.own.cluster {
        let message = format!("{peer} is the name of this cluster itself");
        return Err(Refusal::new(Code::BadRequest, message, "choose another name for the peer with `--name`"));
    }
    free(&wanted.links, &peer, &token.trust_domain)?;
    let claim = claim(&wanted)?;
    let request = JoinRequest {
        version: VERSION,
        secret: token.secret.to_vec(),
        claim: claim.to_vec(),
        side: Some(wanted.own.message()),
    };
    let request = request.encode_to_vec();
    if request.len() > REQUEST_MAX {
        let message = format!("our bundle and addresses take {} bytes, more than {REQUEST_MAX}", request.len());
        return Err(Refusal::new(Code::BadRequest, message, "link by a manifest with the bundle inline"));
    }
    let said = redeem(&wanted, &request).await?;
    let (side, path) = take(&wanted, &peer, &said)?;
    let _ = fs::remove_file(claim_path(&wanted));
    Ok(Accepted { peer, trust_domain: side.trust_domain, path, same_root: side.bundle.is_none() })
}

/// Before the token is used up: the name and the trust domain must be free here.
fn free(links: &LinksConfig, peer: &ClusterName, domain: &TrustDomain) -> Result<(), Refusal> {
    let all = object::linked(&links.objects)?.into_iter().chain(object::linked(&links.directory)?);
    for other in all {
        if other.link.metadata.name == peer.as_str() || other.link.spec.trust_domain == *domain {
            let (name, path) = (&other.link.metadata.name, other.path.display());
            let message = format!("{name} ({}) is linked already, by {path}", other.link.spec.trust_domain);
            let remedy = format!("first: hawser unlink {name}, or take that file away");
            return Err(Refusal::new(Code::NotAllowed, message, remedy));
        }
    }
    Ok(())
}

fn claim_path(wanted: &Acceptance) -> PathBuf {
    let name = offers::name(&wanted.token.secret);
    wanted.links.directory.join(format!(".claim-{name}"))
}

/// What makes us the same joiner when we ask again: kept until the Link stands.
fn claim(wanted: &Acceptance) -> Result<[u8; 32], Refusal> {
    let path = claim_path(wanted);
    let failed = |error: io::Error| {
        let message = format!("{}: {error}", path.display());
        Refusal::new(Code::NotReady, message, "see whether the disk is full, and who may write there")
    };
    match fs::read(&path) {
        Ok(kept) => {
            if let Ok(kept) = kept.try_into() {
                return Ok(kept);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let claim = rand::random::<[u8; 32]>();
    file::replace(&path, &claim).map_err(failed)?;
    Ok(claim)
}

/// Asks one gateway after the other until one is who the token says; the first answer counts.
async fn redeem(wanted: &Acceptance, request: &[u8]) -> Result<JoinSide, Refusal> {
    let token = &wanted.token;
    let identity = SpiffeId::service_account(&token.trust_domain, SYSTEM_NAMESPACE, GATEWAY_ACCOUNT)
        .map_err(|e| Refusal::new(Code::BadRequest, e.to_string(), "get a new token"))?;
    let mut failures = Vec::new();
    for address in &token.gateways {
        let expect = Pinned { identity: identity.clone(), pins: token.pins.clone() };
        match ask(*address, expect, request, wanted.clock).await {
            Ok(reply) => return read(&reply),
            Err(error) => failures.push(format!("{address}: {error}")),
        }
    }
    let message = format!("no gateway of {} takes the token: {}", token.cluster, failures.join("; "));
    let remedy = "see whether it runs and can be reached from here; the token is still good until it expires";
    Err(Refusal::new(Code::PeerUnreachable, message, remedy))
}

fn read(reply: &[u8]) -> Result<JoinSide, Refusal> {
    let bad = || Refusal::new(Code::BadRequest, "the reply cannot be read", "run the same release in both clusters");
    match JoinReply::decode(reply).map_err(|_| bad())?.reply {
        Some(join_reply::Reply::Side(side)) => Ok(side),
        Some(join_reply::Reply::Refused(refused)) => Err(Refusal::from_wire(&refused)),
        None => Err(bad()),
    }
}

/// The creator's side, checked like anybody's and against its token.
fn take(wanted: &Acceptance, peer: &ClusterName, said: &JoinSide) -> Result<(side::Side, PathBuf), Refusal> {
    let token = &wanted.token;
    let side = side::check(said, &wanted.own, &object::bundles(&wanted.links, peer)?)?;
    let lied = |what: &str| {
        let message = format!("the other cluster's {what} is not that of its token");
        Refusal::new(Code::WrongIdentity, message, "get a new token, and look into who made this one")
    };
    if side.trust_domain != token.trust_domain {
        return Err(lied("trust domain"));
    }
    if !token.pins.iter().any(|pin| side.authorities.contains(pin)) {
        return Err(lied("bundle"));
    }
    let link = object::make(peer, &side);
    object::conflicts(&wanted.links, &link)?;
    let path = object::write(&wanted.links, peer, &link)?;
    Ok((side, path))
}
