//! The deny-list as it comes from the trust anchor, and as it is kept.

use hawser_api::proto::issuer::Denied;
use serde_json::{Value, json};

use crate::tls::Denials;
use crate::verify::AuthorityId;

/// What a message denies. An entry that this version cannot read is left out, and said: it must not take the others with
/// it.
pub fn denials(message: &Denied) -> Denials {
    let mut denials = Denials::default();
    let mut unread = 0;
    for id in &message.identities {
        unread += u32::from(id.parse().map(|id| denials.identities.insert(id)).is_err());
    }
    for domain in &message.trust_domains {
        unread += u32::from(domain.parse().map(|domain| denials.trust_domains.insert(domain)).is_err());
    }
    for entry in &message.serials {
        let read = entry.split_once('/').and_then(|(domain, serial)| Some((domain.parse().ok()?, serial.to_owned())));
        unread += u32::from(read.map(|serial| denials.serials.insert(serial)).is_none());
    }
    for key in &message.authorities {
        let read = AuthorityId::try_from(key.as_slice());
        unread += u32::from(read.map(|key| denials.authorities.insert(key)).is_err());
    }
    if unread > 0 {
        tracing::error!(unread, version = message.version, "entries of the deny-list cannot be read");
    }
    denials
}

/// For the disk.
pub(super) fn to_value(message: &Denied) -> Value {
    let hex = |key: &Vec<u8>| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    json!({
        "version": message.version,
        "identities": message.identities,
        "trustDomains": message.trust_domains,
        "serials": message.serials,
        "authorities": message.authorities.iter().map(hex).collect::<Vec<_>>(),
    })
}

/// From the disk.
pub(super) fn from_value(value: &Value) -> Denied {
    let texts = |name: &str| -> Vec<String> {
        let all = value.get(name).and_then(Value::as_array).into_iter().flatten();
        all.filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let bytes = |hex: &String| -> Option<Vec<u8>> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect()
    };
    Denied {
        version: value.get("version").and_then(Value::as_u64).unwrap_or_default(),
        identities: texts("identities"),
        trust_domains: texts("trustDomains"),
        serials: texts("serials"),
        authorities: texts("authorities").iter().filter_map(bytes).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deny_list_is_read_as_it_was_sent_and_kept_and_what_is_unreadable_takes_nothing_with_it() {
        let sent = Denied {
            version: 7,
            identities: vec!["spiffe://east.example/ns/a/sa/b".into(), "no id".into()],
            trust_domains: vec!["west.example".into(), String::new()],
            serials: vec!["east.example/0abc".into(), "0abc".into()],
            authorities: vec![vec![7; 32], vec![7; 31]],
        };
        let denials = denials(&sent);
        assert_eq!((denials.identities.len(), denials.trust_domains.len()), (1, 1));
        assert_eq!((denials.serials.len(), denials.authorities.len()), (1, 1));
        assert_eq!(from_value(&to_value(&sent)), sent);
        assert_eq!(from_value(&json!({ "authorities": ["0", "zz", "é"] })).authorities, Vec::<Vec<u8>>::new());
    }
}
