//! Counts what an encoded catalog update would become before it is decoded: four megabytes on the wire can be two
//! million empty messages, and a hundred times that in memory.

use prost::bytes::Buf;
use prost::encoding::{WireType, decode_key, decode_varint};

use super::standard::{HOSTS_MAX, MARKS_MAX};

/// Longest message that is read, bytes.
pub const MESSAGE_MAX: usize = 4 << 20;
/// Services in one update, changed and removed each.
pub const SERVICES_MAX: usize = 10_000;
/// Rejections that an importer may tell at once (and one field more or less).
pub const REJECTIONS_MAX: usize = 1000;
/// Authorities, and dependences, that an importer may tell of at once.
pub const AUTHORITIES_MAX: usize = 200;
/// Ports of one service.
pub const PORTS_MAX: usize = 64;
/// Identities of one service.
pub const IDENTITIES_MAX: usize = 64;
/// IP families of one service; there are two.
const FAMILIES_MAX: usize = 4;

/// Why an update is not decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OverLimit {
    /// Not protobuf.
    #[error("the update is not a protobuf message")]
    Malformed,
    /// More entries than a peer may send.
    #[error("the update has more than {1} {0}")]
    Count(&'static str, usize),
}

/// Looks at an encoded `Update`.
pub fn check_update(message: &[u8]) -> Result<(), OverLimit> {
    let (mut changed, mut removed) = (0, 0);
    fields(message, |tag, nested| {
        match tag {
            3 => {
                count(&mut changed, "changed services", SERVICES_MAX)?;
                check_service(nested)?;
            }
            4 => count(&mut removed, "removed services", SERVICES_MAX)?,
            _ => {}
        }
        Ok(())
    })
}

/// Its `standard` may come in several pieces, which the decoder puts together.
fn check_service(message: &[u8]) -> Result<(), OverLimit> {
    let (mut ports, mut identities, mut standard) = (0, 0, Declared::default());
    fields(message, |tag, nested| match tag {
        3 => count(&mut ports, "ports of one service", PORTS_MAX),
        4 => count(&mut identities, "identities of one service", IDENTITIES_MAX),
        9 => fields(nested, |tag, _| standard.count(tag)),
        _ => Ok(()),
    })
}

/// What one service's `standard` repeats.
#[derive(Default)]
struct Declared {
    families: usize,
    labels: usize,
    annotations: usize,
    ports: usize,
    hosts: usize,
}

impl Declared {
    fn count(&mut self, tag: u32) -> Result<(), OverLimit> {
        match tag {
            6 => count(&mut self.families, "IP families of one service", FAMILIES_MAX),
            7 => count(&mut self.labels, "exported labels of one service", MARKS_MAX),
            8 => count(&mut self.annotations, "exported annotations of one service", MARKS_MAX),
            9 => count(&mut self.ports, "declared ports of one service", PORTS_MAX),
            10 => count(&mut self.hosts, "hosts of one service", HOSTS_MAX),
            _ => Ok(()),
        }
    }
}

/// Looks at an encoded `WatchRequest`: nothing of it is repeated but rejections.
pub fn check_request(message: &[u8]) -> Result<(), OverLimit> {
    let mut rejections = 0;
    fields(message, |_, _| count(&mut rejections, "rejections", REJECTIONS_MAX))
}

/// Looks at an encoded `Acknowledgement`. Its `trust` may come in several pieces, which the decoder puts together.
pub fn check_acknowledgement(message: &[u8]) -> Result<(), OverLimit> {
    let (mut rejections, mut authorities, mut dependences) = (0, 0, 0);
    fields(message, |tag, nested| match tag {
        2 => fields(nested, |tag, _| match tag {
            2 => count(&mut authorities, "authorities", AUTHORITIES_MAX),
            3 => count(&mut dependences, "dependences", AUTHORITIES_MAX),
            _ => Ok(()),
        }),
        _ => count(&mut rejections, "rejections", REJECTIONS_MAX),
    })
}

fn count(seen: &mut usize, what: &'static str, max: usize) -> Result<(), OverLimit> {
    *seen += 1;
    if *seen > max { Err(OverLimit::Count(what, max)) } else { Ok(()) }
}

/// Calls `visit` with the tag and the bytes of each length-delimited field; passes over all others.
fn fields(mut message: &[u8], mut visit: impl FnMut(u32, &[u8]) -> Result<(), OverLimit>) -> Result<(), OverLimit> {
    let bad = |_| OverLimit::Malformed;
    while message.has_remaining() {
        let (tag, wire) = decode_key(&mut message).map_err(bad)?;
        let skip = match wire {
            WireType::Varint => {
                decode_varint(&mut message).map_err(bad)?;
                0
            }
            WireType::SixtyFourBit => 8,
            WireType::ThirtyTwoBit => 4,
            WireType::LengthDelimited => {
                let length = decode_varint(&mut message).map_err(bad)?;
                let length = usize::try_from(length).map_err(|_| OverLimit::Malformed)?;
                visit(tag, message.get(..length).ok_or(OverLimit::Malformed)?)?;
                length
            }
            // Groups are in no message of ours, and prost would recurse into them.
            WireType::StartGroup | WireType::EndGroup => return Err(OverLimit::Malformed),
        };
        message = message.get(skip..).ok_or(OverLimit::Malformed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hawser_api::proto::catalog::{
        Acknowledgement, Dependence, Port, Rejection, Service, ServiceName, TrustAcknowledgement, Update,
    };
    use prost::Message;

    fn update(services: Vec<Service>) -> Vec<u8> {
        Update { changed: services, lease_ms: 2000, region: "r".into(), ..Update::default() }.encode_to_vec()
    }

    #[test]
    fn an_ordinary_update_passes() {
        let service = Service { ports: vec![Port::default(); PORTS_MAX], exported_at: -1, ..Service::default() };
        assert_eq!(check_update(&update(vec![service; 100])), Ok(()));
        assert_eq!(check_update(&[]), Ok(()));
    }

    #[test]
    fn a_million_entries_are_refused_before_they_are_decoded() {
        let many = [0x1a, 0x00].repeat(1_000_000);
        assert_eq!(check_update(&many), Err(OverLimit::Count("changed services", SERVICES_MAX)));
        let removed = Update { removed: vec![ServiceName::default(); SERVICES_MAX + 1], ..Update::default() };
        assert!(check_update(&removed.encode_to_vec()).is_err());
        let ports = Service { ports: vec![Port::default(); PORTS_MAX + 1], ..Service::default() };
        assert!(check_update(&update(vec![ports])).is_err());
        let names = Service { identities: vec![String::new(); IDENTITIES_MAX + 1], ..Service::default() };
        assert!(check_update(&update(vec![names])).is_err());
    }

    #[test]
    fn an_acknowledgement_is_counted_over_all_its_pieces() {
        let trust = TrustAcknowledgement {
            authorities: vec![vec![1; 32]; AUTHORITIES_MAX],
            dependences: vec![Dependence::default(); AUTHORITIES_MAX],
            ..TrustAcknowledgement::default()
        };
        let rejections = vec![Rejection::default(); REJECTIONS_MAX];
        let mut bytes = Acknowledgement { rejections, trust: Some(trust) }.encode_to_vec();
        assert_eq!(check_acknowledgement(&bytes), Ok(()));
        let more = TrustAcknowledgement { authorities: vec![vec![]], ..TrustAcknowledgement::default() };
        bytes.extend(Acknowledgement { rejections: vec![], trust: Some(more) }.encode_to_vec());
        assert_eq!(check_acknowledgement(&bytes), Err(OverLimit::Count("authorities", AUTHORITIES_MAX)));
        // A million empty keys are two megabytes on the wire and fifty in memory.
        let many = [0x12, 0x00].repeat(1_000_000);
        let piece = [&[0x12][..], &prost_length(many.len()), &many].concat();
        assert!(check_acknowledgement(&piece).is_err());
    }

    fn prost_length(length: usize) -> Vec<u8> {
        let mut out = Vec::new();
        prost::encoding::encode_varint(length as u64, &mut out);
        out
    }

    #[test]
    fn a_length_that_points_behind_the_end_is_malformed() {
        for bytes in [
            &[0x1a, 0x05, 0x00][..],
            &[0x1a],
            &[0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            &[0x0b],
            &[0x09, 1],
        ] {
            assert_eq!(check_update(bytes), Err(OverLimit::Malformed), "{bytes:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            if check_update(&bytes).is_ok() {
                let _ = Update::decode(bytes.as_slice());
            }
        }
    }
}
