//! Linked clusters' bundles that an operator accepted by hand: kept here, handed to the mirror controller.

use hawser_api::proto::issuer::AcceptedBundle;
use hawser_tunnel::kept::{Kept, KeptError};
use serde_json::{Value, json};

const FILE: &str = "accepted.json";
/// Most that are kept; the oldest go first. The mirror controller keeps what it took.
const ACCEPTED_MAX: usize = 16;

pub(crate) fn read(kept: &Kept) -> Result<Vec<AcceptedBundle>, KeptError> {
    let value = kept.read(FILE)?.unwrap_or_default();
    let text = |entry: &Value, name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let entries = value.get("accepted").and_then(Value::as_array).cloned().unwrap_or_default();
    let bundle = |entry: &Value| AcceptedBundle {
        trust_domain: text(entry, "trustDomain"),
        document: text(entry, "document"),
        accepted_ms: entry.get("acceptedMs").and_then(Value::as_i64).unwrap_or_default(),
    };
    Ok(entries.iter().map(bundle).collect())
}

/// One a trust domain: the last.
pub(crate) fn add(all: &mut Vec<AcceptedBundle>, bundle: AcceptedBundle) {
    all.retain(|other| other.trust_domain != bundle.trust_domain);
    all.push(bundle);
    let surplus = all.len().saturating_sub(ACCEPTED_MAX);
    all.drain(..surplus);
}

pub(crate) fn write(all: &[AcceptedBundle], kept: &Kept) -> std::io::Result<()> {
    let entry = |bundle: &AcceptedBundle| json!({ "trustDomain": bundle.trust_domain, "document": bundle.document, "acceptedMs": bundle.accepted_ms });
    kept.write(FILE, &json!({ "accepted": all.iter().map(entry).collect::<Vec<_>>() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_each_trust_domain_is_kept_and_no_more_than_there_is_room_for() {
        let directory = tempfile::tempdir().unwrap();
        let kept = Kept::open(directory.path()).unwrap();
        let bundle = |n: usize, at| AcceptedBundle {
            trust_domain: format!("c{n}.example"),
            document: "{}".into(),
            accepted_ms: at,
        };
        let mut all = read(&kept).unwrap();
        for n in 0..ACCEPTED_MAX + 3 {
            add(&mut all, bundle(n, 1));
        }
        add(&mut all, bundle(5, 2));
        write(&all, &kept).unwrap();
        let read = read(&Kept::open(directory.path()).unwrap()).unwrap();
        assert_eq!(read.len(), ACCEPTED_MAX);
        assert_eq!(read.last(), Some(&bundle(5, 2)));
        assert_eq!(read, all);
    }
}
