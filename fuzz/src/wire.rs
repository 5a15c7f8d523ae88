//! What comes over the network before anybody is known, and what a peer says inside a session.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use hawser_api::TrustDomain;
use hawser_tunnel::frame as frames;
use hawser_tunnel::open::{OpenRequest, read_answer, refusal_frame};
use hawser_tunnel::sealed::fuzzing;
use hawser_tunnel::sealed::record::{Event, Records};
use hawser_tunnel::verify::{Anchor, Leaf, verify};
use rustls_pki_types::CertificateDer;

use super::ready;

/// Frames and what is left of the input make the input again, and no frame is longer than allowed.
pub fn frame(data: &[u8]) -> bool {
    let mut left = BytesMut::from(data);
    let mut again = Vec::new();
    loop {
        let before = left.clone();
        match frames::decode(&mut left) {
            Ok(Some(payload)) => again.extend(frames::encode(&payload).expect("what was decoded is short enough")),
            Ok(None) => break assert_eq!(left, before, "an incomplete frame took bytes"),
            Err(error) => break assert!(error.length > frames::PAYLOAD_MAX),
        }
    }
    again.extend(&left);
    assert_eq!(again, data);
    left.len() < data.len()
}

fn payload(frame: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::from(frame);
    let payload = frames::decode(&mut bytes).expect("our own frame").expect("our own frame is whole");
    assert!(bytes.is_empty());
    BytesMut::from(&payload[..])
}

/// An open that is accepted says the same when it is written again; one that is refused says what to do.
pub fn open(data: &[u8]) -> bool {
    let mut request = match OpenRequest::from_payload(data) {
        Ok(request) => request,
        Err(refusal) => {
            assert!(!refusal.remedy.is_empty());
            return false;
        }
    };
    let frame = request.to_frame().expect("what was accepted is within the limits");
    let mut again = OpenRequest::from_payload(&payload(&frame)).expect("what was accepted is accepted again");
    // A set: their order means nothing.
    request.avoid.sort();
    again.avoid.sort();
    assert_eq!(again, request);
    true
}

/// An answer, yes or no, says the same when it is written again.
pub fn answer(data: &[u8]) -> bool {
    let read = read_answer(data);
    let frame = match &read {
        Ok(opened) => opened.to_frame(),
        Err(refusal) => refusal_frame(refusal),
    };
    let frame = frame.expect("what was read is within the limits");
    assert_eq!(read_answer(&payload(&frame)), read);
    read.is_ok()
}

/// A preface that is accepted was written in the only way there is; a refusal survives being written again.
pub fn preface(data: &[u8]) -> bool {
    let asked = ready(fuzzing::asked(data));
    if let Ok(target) = &asked {
        let wire = ready(fuzzing::ask(target)).expect("what was accepted is short enough");
        assert_eq!(data.get(..wire.len()), Some(&wire[..]), "two spellings of {target}");
    }
    if let Ok(Err(refusal)) = ready(fuzzing::answer(data)) {
        let wire = ready(fuzzing::refuse(&refusal)).expect("what was accepted is short enough");
        assert_eq!(ready(fuzzing::answer(&wire)).expect("what was written is read"), Err(refusal));
    }
    asked.is_ok()
}

/// First byte: our role, and whether the rest is a stream of an attacker without keys or a script for a hostile peer
/// with them. Nothing is opened that was not sealed, in order, and an error is for ever.
pub fn record(data: &[u8]) -> bool {
    let Some((mode, rest)) = data.split_first() else { return false };
    let mut ours = fuzzing::known(mode & 1 == 0).expect("the keys fit");
    if mode & 2 == 0 {
        let mut bytes = rest.to_vec();
        assert_eq!(open_all(&mut ours, &mut bytes).data, b"", "bytes without a seal came through");
        return false;
    }
    let mut peer = fuzzing::known(mode & 1 != 0).expect("the keys fit");
    let mut said = Said::default();
    script(rest, &mut peer, &mut said);
    let got = open_all(&mut ours, &mut said.wire);
    if said.odd {
        // What comes of it is the parser's to say.
    } else if said.tampered {
        assert!(said.data.starts_with(&got.data), "changed bytes came through");
    } else {
        assert_eq!(got.data, said.data);
        assert_eq!(got.error, None);
    }
    !got.data.is_empty()
}

/// What a scripted peer sends.
#[derive(Default)]
struct Said {
    wire: Vec<u8>,
    data: Vec<u8>,
    tampered: bool,
    // It sent records of its own making.
    odd: bool,
}

/// Steps of one byte what, one byte how much, and so many bytes.
fn script(mut steps: &[u8], peer: &mut Records, said: &mut Said) {
    let mut last = 0;
    let mut empty = 0;
    while let [what, length, rest @ ..] = steps {
        let (bytes, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        steps = rest;
        let start = said.wire.len();
        // More than 32 records in a row without data are a flood.
        match what % 8 {
            0..=2 if !bytes.is_empty() => empty = 0,
            0..=4 => empty += 1,
            _ => {}
        }
        said.odd |= empty > 32;
        let record = match what % 8 {
            0..=2 => {
                said.data.extend_from_slice(bytes);
                fuzzing::sealed(peer, 23, bytes)
            }
            3 => fuzzing::sealed_key_update(peer),
            4 => {
                said.wire.extend(fuzzing::sealed_close(peer).expect("an alert fits"));
                return;
            }
            5 => {
                said.odd = true;
                fuzzing::sealed(peer, *bytes.first().unwrap_or(&0), bytes.get(1..).unwrap_or_default())
            }
            6 => {
                let (at, flip) = (usize::from(*bytes.first().unwrap_or(&0)), *bytes.get(1).unwrap_or(&0));
                if let Some(byte) = said.wire.get_mut(last + at) {
                    *byte ^= flip;
                    said.tampered |= flip != 0;
                }
                continue;
            }
            _ => {
                said.tampered |= !bytes.is_empty();
                Ok(bytes.to_vec())
            }
        };
        last = start;
        said.wire.extend(record.expect("what is short can be sealed"));
    }
}

struct Got {
    data: Vec<u8>,
    error: Option<hawser_tunnel::sealed::record::RecordError>,
}

fn open_all(records: &mut Records, wire: &mut [u8]) -> Got {
    let mut data = Vec::new();
    let mut at = 0;
    loop {
        let input = &mut wire[at..];
        match records.open(input) {
            Ok(None) => return Got { data, error: None },
            Ok(Some(opened)) => {
                assert!(opened.consumed > 0 || opened.event == Event::Closed);
                assert!(opened.consumed <= input.len());
                match opened.event {
                    Event::Data(range) => {
                        assert!(!range.is_empty() && range.end <= opened.consumed);
                        data.extend_from_slice(&input[range]);
                    }
                    Event::Quiet => {}
                    Event::Closed => return Got { data, error: None },
                }
                at += opened.consumed;
            }
            Err(error) => {
                assert_eq!(records.open(&mut wire[at..]), Err(error), "an error was forgotten");
                return Got { data, error: Some(error) };
            }
        }
    }
}

/// The authority that the chains of `corpus/chain` are under, and the only two identities that it ever certified.
const ROOT: &[u8] = include_bytes!("root.der");
const CERTIFIED: [&str; 2] =
    ["spiffe://east.hawser.test/ns/shop/sa/checkout", "spiffe://east.hawser.test/ns/shop/sa/web"];
/// When they are valid.
const NOW: Duration = Duration::from_secs(2_000_000_000);

/// Blocks of two bytes length (big endian) and a certificate: no chain proves anything but what the authority signed.
pub fn chain(data: &[u8]) -> bool {
    let mut certificates = Vec::new();
    let mut left = data;
    while let [high, low, rest @ ..] = left {
        let (certificate, rest) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])).min(rest.len()));
        certificates.push(CertificateDer::from(certificate));
        left = rest;
    }
    let now: SystemTime = UNIX_EPOCH + NOW;
    let domain: TrustDomain = "east.hawser.test".parse().expect("a trust domain");
    let anchors = [Anchor::read(ROOT, &domain).expect("the authority")];
    let proved = verify(&certificates, now, |asked| (*asked == domain).then_some(&anchors[..]));
    if let Ok(svid) = &proved {
        assert!(CERTIFIED.contains(&svid.id.as_str()), "{} was proved", svid.id);
        assert!(svid.holds(now));
        assert_eq!(svid.anchor, anchors[0].fingerprint());
    }
    // As the only trust domain's own, by the plain rules: nothing more was ever certified, and nothing is lost.
    let dedicated = anchors.clone().map(|anchor| anchor.dedicated(Arc::default()));
    match verify(&certificates, now, |asked| (*asked == domain).then_some(&dedicated[..])) {
        Ok(svid) => assert!(CERTIFIED.contains(&svid.id.as_str()), "{} was proved by the plain rules", svid.id),
        Err(error) => assert!(proved.is_err(), "the plain rules are stricter: {error}"),
    }
    for certificate in certificates.iter().take(4) {
        if let Ok(leaf) = Leaf::read(certificate) {
            assert_eq!(leaf.id.as_str().parse().as_ref(), Ok(&leaf.id));
        }
        // Trusted by hand for once: whatever it is, judging the chain by it must end.
        if let Ok(anchor) = Anchor::read(certificate, &domain) {
            let _ = verify(&certificates, now, |_| Some(std::slice::from_ref(&anchor)));
        }
    }
    proved.is_ok()
}
