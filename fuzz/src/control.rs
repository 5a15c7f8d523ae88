//! What a peer's mirror controller sends, and what a daemon finds on its disk.

use bytes::BytesMut;
use hawser_api::TrustDomain;
use hawser_api::proto::catalog::{Update, WatchRequest};
use hawser_mirror_controller::catalog::accept::{self, CATALOG_MAX, REFUSED_MAX, WITHDRAWN_MAX};
use hawser_mirror_controller::catalog::grpc as framing;
use hawser_mirror_controller::catalog::limits::{
    IDENTITIES_MAX, MESSAGE_MAX, PORTS_MAX, REJECTIONS_MAX, SERVICES_MAX, check_request, check_update,
};
use hawser_mirror_controller::catalog::standard::{HOSTS_MAX, MARKS_MAX};
use hawser_mirror_controller::world::Catalog;
use hawser_runtime::fuzzing::{decode_last_known, encode_last_known};
use prost::Message;

/// The whole messages at the front of a body, as they were; and what is left.
fn messages(data: &[u8]) -> (Vec<bytes::Bytes>, BytesMut) {
    let mut left = BytesMut::from(data);
    let mut found = Vec::new();
    loop {
        let before = left.len();
        match framing::take(&mut left) {
            Ok(Some(message)) => found.push(message),
            Ok(None) | Err(_) => {
                assert_eq!(left.len(), before, "an incomplete message took bytes");
                return (found, left);
            }
        }
    }
}

/// Messages and what is left make the body again; requests that pass the check decode to no more than it says.
pub fn grpc(data: &[u8]) -> bool {
    let (found, left) = messages(data);
    let mut again = Vec::new();
    for message in &found {
        assert!(message.len() <= MESSAGE_MAX);
        again.push(0);
        again.extend_from_slice(&u32::try_from(message.len()).expect("a short message").to_be_bytes());
        again.extend_from_slice(message);
        if check_request(message).is_ok()
            && let Ok(request) = WatchRequest::decode(message.clone())
        {
            assert!(request.rejections.len() <= REJECTIONS_MAX);
        }
    }
    again.extend_from_slice(&left);
    assert_eq!(again, data);
    !found.is_empty()
}

/// A peer that sends one update after another gets us to believe only what is of its own trust domain, within bounds,
/// and the same again says nothing new.
pub fn catalog(data: &[u8]) -> bool {
    let domain: TrustDomain = "east.hawser.test".parse().expect("a trust domain");
    let mut known = Catalog::default();
    for message in messages(data).0 {
        if check_update(&message).is_err() {
            return false;
        }
        let Ok(update) = Update::decode(message) else { return false };
        assert!(update.changed.len() <= SERVICES_MAX && update.removed.len() <= SERVICES_MAX);
        for service in &update.changed {
            assert!(service.ports.len() <= PORTS_MAX && service.identities.len() <= IDENTITIES_MAX);
        }
        known = accept::update(&known, &update, &domain);
        believable(&known, &domain);
        let again = accept::update(&known, &update, &domain);
        assert_eq!(again.offers, known.offers);
        assert_eq!(again.refused, known.refused);
        assert_eq!(again.region, known.region);
        // What is kept on disk is believed again as it was.
        let kept = accept::update(&Catalog::default(), &accept::snapshot(&known), &domain);
        assert_eq!(kept.offers, known.offers);
    }
    !known.offers.is_empty()
}

fn believable(known: &Catalog, domain: &TrustDomain) {
    assert!(known.offers.len() <= SERVICES_MAX && known.withdrawn.len() <= WITHDRAWN_MAX);
    assert!(known.refused.len() <= REFUSED_MAX);
    assert!(known.offers.values().map(|offer| offer.size()).sum::<usize>() <= CATALOG_MAX);
    for (key, offer) in &known.offers {
        assert_eq!(*key, offer.service);
        assert!(!known.withdrawn.contains_key(key), "{key} is offered and withdrawn");
        assert!(offer.identities.iter().all(|id| id.trust_domain() == *domain));
        assert!(!offer.ports.is_empty() && offer.ports.iter().all(|port| port.number > 0));
        assert!(offer.endpoints_ready == 0 || !offer.identities.is_empty());
        let standard = &offer.standard;
        assert!(standard.hosts.len() <= HOSTS_MAX && standard.ports.len() <= PORTS_MAX);
        assert!(standard.labels.len() <= MARKS_MAX && standard.annotations.len() <= MARKS_MAX);
        let mut marks = standard.labels.iter().chain(&standard.annotations);
        assert!(marks.all(|(key, value)| !key.contains("kubernetes.io/") && !value.chars().any(char::is_control)));
        assert!(offer.ports.iter().all(|port| standard.ports.contains(port)), "{key}: a port that is not declared");
    }
    for refused in &known.refused {
        assert!(!refused.reason.chars().any(char::is_control) && refused.service.bytes().all(|b| b.is_ascii_graphic()));
    }
}

/// A file that is read says the same when it is written and read again. The bytes are tried as a file, and as the body
/// of one whose checksum is right, which no fuzzer would find.
pub fn last_known(data: &[u8]) -> bool {
    let sum = data
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    let mut taken = false;
    for content in [data.to_vec(), [b"HAWSERT1", &sum.to_be_bytes()[..], data].concat()] {
        let Some(table) = decode_last_known(&content) else { continue };
        assert_eq!(table.version, 0);
        assert!(table.resources.iter().all(|(key, resource)| *key == resource.key && resource.kind.is_some()));
        let again = decode_last_known(&encode_last_known(&table)).expect("our own file");
        assert_eq!(again.resources, table.resources);
        taken |= !table.resources.is_empty();
    }
    taken
}
