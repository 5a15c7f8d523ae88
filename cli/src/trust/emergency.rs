//! `hawser trust revoke` and `hawser trust taint`.

use anyhow::{Result, bail};
use hawser_api::proto::trust::revoke_request::What;
use hawser_api::proto::trust::{RevokeRequest, StatusReply, TaintRequest};

use super::client::{Anchor, Which, ask};
use crate::print;

/// Trust somebody no more, whatever certificates say; live tunnels and sessions are cut within seconds.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Revoke {
    /// A linked cluster, by its trust domain.
    Cluster(Subject),
    /// An identity, by its SPIFFE ID.
    Identity(Subject),
    /// One certificate, by its serial number: `SERIAL`, or `TRUST-DOMAIN/SERIAL` for a linked cluster's.
    Serial(Subject),
    /// A root's or intermediate's key, by the SHA-256 of its SubjectPublicKeyInfo, hex.
    Authority(Subject),
}

/// Whom, and where.
#[derive(Debug, clap::Args)]
pub(crate) struct Subject {
    /// The name or number.
    name: String,
    /// Trust it again; a cluster or an identity only.
    #[arg(long)]
    undo: bool,
    #[command(flatten)]
    which: Which,
}

/// A key is suspected: everybody gets a new certificate now; the old ones still verify until they are replaced.
#[derive(Debug, clap::Args)]
pub(crate) struct Taint {
    /// The intermediate's key, by the SHA-256 of its SubjectPublicKeyInfo, hex: its prepared successor signs at once.
    #[arg(required_unless_present = "all_leaves")]
    authority: Option<String>,
    /// Every leaf, under the same authority.
    #[arg(long)]
    all_leaves: bool,
    #[command(flatten)]
    which: Which,
}

pub(crate) async fn revoke(command: &Revoke) -> Result<()> {
    let (subject, what) = match command {
        Revoke::Cluster(subject) => (subject, What::TrustDomain(subject.name.clone())),
        Revoke::Identity(subject) => (subject, What::Identity(subject.name.clone())),
        Revoke::Serial(subject) => (subject, What::Serial(subject.name.clone())),
        Revoke::Authority(subject) => (subject, What::Authority(key(&subject.name)?)),
    };
    for anchor in subject.which.clusters()? {
        // A fabric's clusters are revoked by the others, not by themselves.
        if matches!(&what, What::TrustDomain(domain) if *domain == anchor.status().await?.trust_domain) {
            continue;
        }
        let request = RevokeRequest { what: Some(what.clone()), undo: subject.undo };
        let status = ask!(anchor, revoke, request).await?;
        say(&anchor, &status, subject.undo);
    }
    Ok(())
}

fn say(anchor: &Anchor, status: &StatusReply, undo: bool) {
    let version = status.denied.as_ref().map_or(0, |denied| denied.version);
    let done = if undo { "trusted again" } else { "revoked" };
    print::note(format!("{}: {done}; every process is told (deny-list {version})", anchor.name));
    let silent: Vec<_> = status.holders.iter().filter(|holder| holder.seen_ms == 0).map(|h| h.who.as_str()).collect();
    if !silent.is_empty() {
        print::note(format!("{}: cannot be told until they are back: {}", anchor.name, silent.join(", ")));
    }
}

pub(crate) async fn taint(args: &Taint) -> Result<()> {
    let authority = match &args.authority {
        Some(authority) if !args.all_leaves => key(authority)?,
        _ => Vec::new(),
    };
    let anchors = if authority.is_empty() { args.which.clusters()? } else { vec![args.which.one()?] };
    for anchor in anchors {
        let status = ask!(anchor, taint, TaintRequest { authority: authority.clone() }).await?;
        print::note(format!("{}: {} certificates are renewed now", anchor.name, status.leaves.len()));
    }
    Ok(())
}

/// 32 bytes of hex, with or without colons.
fn key(text: &str) -> Result<Vec<u8>> {
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    let bytes: Option<Vec<u8>> =
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()).collect();
    match bytes.filter(|bytes| bytes.len() == 32) {
        Some(bytes) => Ok(bytes),
        None => bail!("{text:?} names no authority\nhint: take the key from `hawser trust status`: 64 hex digits"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_named_by_64_hex_digits_and_by_nothing_else() {
        assert_eq!(key(&"aB".repeat(32)).unwrap(), vec![0xab; 32]);
        assert_eq!(key(&["0a"; 32].join(":")).unwrap(), vec![10; 32]);
        for bad in ["", "ab", &"g".repeat(64), &"a".repeat(63), &"é".repeat(32)] {
            assert!(key(bad).is_err(), "{bad}");
        }
    }
}
