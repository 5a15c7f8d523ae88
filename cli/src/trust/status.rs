//! `hawser trust status`: every authority, leaf and foreign bundle, when it ends, and who has loaded it.

use anyhow::Result;
use hawser_api::proto::issuer::LinkedPeer;
use hawser_api::proto::trust::{Authority, Leaf, Rotation, StatusReply};
use serde_json::{Value, json};

use super::client::Which;
use crate::print::{self, Output};

/// Show what the fabric's trust rests on: authorities, certificates, linked clusters' bundles, with their ends, and who
/// has loaded what.
#[derive(Debug, clap::Args)]
pub(crate) struct StatusCommand {
    #[command(flatten)]
    which: Which,
    /// How to show it.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

pub(crate) async fn run(args: &StatusCommand) -> Result<()> {
    let mut all = Vec::new();
    let mut failed = None;
    for anchor in args.which.clusters()? {
        match anchor.status().await {
            Ok(status) => all.push(status),
            Err(error) => {
                print::note(format!("{error:#}"));
                failed = Some(error);
            }
        }
    }
    match args.output {
        Output::Json | Output::Yaml => {
            let value: Vec<_> = all.iter().map(value).collect();
            print::out(print::value(&json!({ "clusters": value }), args.output)?);
        }
        output => print::out(all.iter().map(|status| table(status, output)).collect::<Vec<_>>().join("\n\n")),
    }
    failed.map_or(Ok(()), Err)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn short(bytes: &[u8]) -> String {
    hex(bytes).chars().take(16).collect()
}

/// A time as a distance from now, rounded down to its largest unit.
fn distance(at_ms: i64, now_ms: i64) -> String {
    if at_ms == 0 {
        return "never".into();
    }
    let seconds = at_ms.abs_diff(now_ms) / 1000;
    let text = match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    };
    if at_ms >= now_ms { format!("in {text}") } else { format!("{text} ago") }
}

fn table(status: &StatusReply, output: Output) -> String {
    let now = status.now_ms;
    let mut parts = vec![print::bold(format!("{} ({})", status.cluster, status.trust_domain))];
    parts.push(authorities(status));
    if !status.leaves.is_empty() {
        parts.push(leaves(status, output));
    }
    let peers: &[LinkedPeer] = status.fabric.as_ref().map_or(&[], |fabric| &fabric.peers);
    if !peers.is_empty() {
        parts.push(bundles(peers, now));
    }
    if !status.holders.is_empty() {
        let rows = status.holders.iter().map(|holder| {
            let holds = if holder.holds { "yes" } else { "no" };
            vec![holder.who.clone(), holds.into(), holder.sequence.to_string(), distance(holder.seen_ms, now)]
        });
        parts.push(print::table(&["VALIDATOR", "HOLDS ALL", "SEQUENCE", "HEARD"], &rows.collect::<Vec<_>>()));
    }
    parts.extend(status.rotation.as_ref().map(|running| rotation(running, status)));
    parts.extend(notes(status));
    parts.join("\n")
}

/// Who has loaded an authority, of those who should.
fn loaded(id: &[u8], status: &StatusReply) -> String {
    let validators = status.fabric.iter().flat_map(|fabric| &fabric.validators);
    let (mut holding, mut all) = (0, 0);
    for validator in validators {
        all += 1;
        let loaded = validator.trust.iter().flat_map(|trust| &trust.loaded);
        let mut own = loaded.filter(|loaded| loaded.trust_domain == status.trust_domain);
        holding += u32::from(own.any(|own| own.authorities.iter().any(|held| held == id)));
    }
    if all == 0 { String::new() } else { format!("{holding}/{all}") }
}

fn authorities(status: &StatusReply) -> String {
    let row = |authority: &Authority| {
        let holders = if authority.kind == "root" { loaded(&authority.id, status) } else { String::new() };
        vec![
            authority.kind.clone(),
            authority.role.clone(),
            short(&authority.id),
            distance(authority.not_after_ms, status.now_ms),
            holders,
            authority.subject.clone(),
        ]
    };
    let rows: Vec<_> = status.authorities.iter().map(row).collect();
    print::table(&["AUTHORITY", "ROLE", "KEY", "ENDS", "LOADED BY", "SUBJECT"], &rows)
}

fn leaves(status: &StatusReply, output: Output) -> String {
    let mut sorted: Vec<&Leaf> = status.leaves.iter().collect();
    sorted.sort_by_key(|leaf| leaf.issued_ms);
    let rows = sorted.into_iter().map(|leaf| {
        let issuer = short(&leaf.issuer);
        let (age, ends) = (distance(leaf.issued_ms, status.now_ms), distance(leaf.not_after_ms, status.now_ms));
        let mut row = vec![leaf.spiffe_id.clone(), issuer, age, ends];
        if output == Output::Wide {
            row.push(leaf.serial.clone());
        }
        row
    });
    let mut headings = vec!["LEAF", "ISSUER", "ISSUED", "ENDS"];
    if output == Output::Wide {
        headings.push("SERIAL");
    }
    print::table(&headings, &rows.collect::<Vec<_>>())
}

fn bundles(peers: &[LinkedPeer], now: i64) -> String {
    let rows = peers.iter().map(|peer| {
        let sequence = sequence(peer);
        let lag = peer.offered_sequence.checked_sub(sequence).filter(|lag| *lag > 0 && sequence > 0);
        let clock = if peer.clock_known { format!("{:+} ms", peer.clock_ahead_ms) } else { String::new() };
        vec![
            peer.trust_domain.clone(),
            peer.source.clone(),
            if sequence == 0 { String::new() } else { sequence.to_string() },
            lag.map(|lag| lag.to_string()).unwrap_or_default(),
            distance(peer.refreshed_ms, now),
            clock,
            if peer.alive { peer.trouble.clone() } else { "does not answer".into() },
        ]
    });
    let headings = ["BUNDLE OF", "FROM", "SEQUENCE", "LAG", "REFRESHED", "CLOCK", "TROUBLE"];
    print::table(&headings, &rows.collect::<Vec<_>>())
}

/// Of the bundle in force; 0: it hangs under our own root.
fn sequence(peer: &LinkedPeer) -> u64 {
    hawser_api::bundle::Bundle::parse(&peer.bundle).map_or(0, |bundle| bundle.sequence)
}

fn rotation(rotation: &Rotation, status: &StatusReply) -> String {
    let paused = match rotation.pause_at.as_str() {
        "" => String::new(),
        state if state == rotation.state => ", paused".to_owned(),
        state => format!(", up to {state}"),
    };
    let since = distance(rotation.since_ms, status.now_ms);
    let mut lines = vec![format!("rotation of the {}: {} since {since}{paused}", rotation.level, rotation.state)];
    if !rotation.refusal.is_empty() {
        lines.push(format!("  waits: {}", rotation.refusal));
        lines.extend(rotation.missing.iter().map(|missing| {
            let until = if missing.until_ms == 0 {
                String::new()
            } else {
                format!(", over {}", distance(missing.until_ms, status.now_ms))
            };
            let heard = distance(missing.since_ms, status.now_ms);
            format!("    {}: {} (heard {heard}, sequence {}{until})", missing.who, missing.why, missing.last_sequence)
        }));
        lines.push(format!("  hint: {}", rotation.remedy));
    }
    lines.extend(rotation.excluded.iter().map(|excluded| {
        let when = distance(excluded.at_ms, status.now_ms);
        format!("  left behind {when}: {} {}", excluded.name, excluded.reason)
    }));
    if !status.request_path.is_empty() {
        lines.push(format!("  its request: {}", status.request_path));
    }
    lines.join("\n")
}

fn notes(status: &StatusReply) -> Vec<String> {
    let mut notes = Vec::new();
    if status.fabric_age_ms < 0 {
        notes.push("its mirror controller has not reported who has loaded what".to_owned());
    } else if status.fabric_age_ms > 15_000 {
        notes.push(format!("its mirror controller reported {} s ago", status.fabric_age_ms / 1000));
    }
    if !status.clock.is_empty() {
        notes.push(format!("clock: {}", status.clock));
    }
    if let Some(denied) = &status.denied {
        let all = [&denied.trust_domains, &denied.identities, &denied.serials];
        let mut all: Vec<String> = all.into_iter().flatten().cloned().collect();
        all.extend(denied.authorities.iter().map(|key| hex(key)));
        if !all.is_empty() {
            notes.push(format!("revoked: {}", all.join(", ")));
        }
    }
    notes.extend(status.troubles.iter().map(|trouble| format!("trouble: {trouble}")));
    notes
}

fn value(status: &StatusReply) -> Value {
    let peers = status.fabric.iter().flat_map(|fabric| &fabric.peers);
    let denied = status.denied.clone().unwrap_or_default();
    json!({
        "cluster": status.cluster,
        "trustDomain": status.trust_domain,
        "sequence": status.sequence,
        "nowMs": status.now_ms,
        "fabricAgeMs": status.fabric_age_ms,
        "clock": status.clock,
        "troubles": status.troubles,
        "requestPath": status.request_path,
        "rotation": status.rotation.as_ref().map(rotation_value),
        "authorities": status.authorities.iter().map(|authority| json!({
            "kind": authority.kind, "role": authority.role, "key": hex(&authority.id), "subject": authority.subject,
            "serial": authority.serial, "notAfterMs": authority.not_after_ms, "loadedBy": loaded(&authority.id, status),
        })).collect::<Vec<_>>(),
        "leaves": status.leaves.iter().map(|leaf| json!({
            "spiffeId": leaf.spiffe_id, "serial": leaf.serial, "issuer": hex(&leaf.issuer),
            "issuedMs": leaf.issued_ms, "notAfterMs": leaf.not_after_ms,
        })).collect::<Vec<_>>(),
        "bundles": peers.map(|peer| json!({
            "cluster": peer.cluster, "trustDomain": peer.trust_domain, "source": peer.source,
            "sequence": sequence(peer), "offeredSequence": peer.offered_sequence, "alive": peer.alive,
            "refreshedMs": peer.refreshed_ms, "trouble": peer.trouble,
            "clockAheadMs": peer.clock_known.then_some(peer.clock_ahead_ms),
        })).collect::<Vec<_>>(),
        "holders": status.holders.iter().map(|holder| json!({
            "who": holder.who, "sequence": holder.sequence, "holds": holder.holds, "seenMs": holder.seen_ms,
        })).collect::<Vec<_>>(),
        "revoked": {
            "version": denied.version, "trustDomains": denied.trust_domains, "identities": denied.identities,
            "serials": denied.serials, "authorities": denied.authorities.iter().map(|key| hex(key)).collect::<Vec<_>>(),
        },
    })
}

fn rotation_value(rotation: &Rotation) -> Value {
    json!({
        "level": rotation.level, "state": rotation.state, "sinceMs": rotation.since_ms, "pauseAt": rotation.pause_at,
        "refusal": rotation.refusal, "remedy": rotation.remedy, "old": hex(&rotation.old), "new": hex(&rotation.new),
        "missing": rotation.missing.iter().map(|missing| json!({
            "who": missing.who, "why": missing.why, "sinceMs": missing.since_ms,
            "lastSequence": missing.last_sequence, "untilMs": missing.until_ms,
        })).collect::<Vec<_>>(),
        "excluded": rotation.excluded.iter().map(|excluded| json!({
            "name": excluded.name, "reason": excluded.reason, "atMs": excluded.at_ms,
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_told_as_a_distance() {
        for (at, text) in [(1, "999s ago"), (1_000_000, "in 0s"), (1_000_000 + 3_600_000, "in 1h"), (0, "never")] {
            let text = if text == "999s ago" { "16m ago" } else { text };
            assert_eq!(distance(at, 1_000_000), text);
        }
        assert_eq!(distance(1_000_000 + 86_400_000 * 90, 1_000_000), "in 90d");
    }
}
