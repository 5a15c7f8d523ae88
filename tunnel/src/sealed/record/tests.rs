//! rustls as the other end, in both roles and for every suite; then everything a peer may not do.

use std::io::{Read, Write};
use std::sync::Arc;

use proptest::prelude::*;
use rustls::crypto::aws_lc_rs::cipher_suite::{
    TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs::default_provider};
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};
use rustls::{SupportedCipherSuite, version::TLS13};
use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};

use super::super::handshake::{Handshake, Progress, Side};
use super::*;
use crate::tls::SERVER_NAME;

const SUITES: [SupportedCipherSuite; 3] =
    [TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];

fn configs(suite: SupportedCipherSuite) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let provider = Arc::new(CryptoProvider { cipher_suites: vec![suite], ..default_provider() });
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new([SERVER_NAME.to_owned()]).unwrap().self_signed(&key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let versions = &[&TLS13];
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    server.enable_secret_extraction = true;
    (Arc::new(client), Arc::new(server))
}

/// Our end, and rustls as the peer.
struct Pair {
    records: Records,
    received: Vec<u8>,
    peer: Connection,
}

impl Pair {
    fn client(suite: SupportedCipherSuite) -> Self {
        let (client, server) = configs(suite);
        let peer = ServerConnection::new(server).unwrap().into();
        Self::shake(Handshake::client(client).unwrap(), peer)
    }

    fn server(suite: SupportedCipherSuite) -> Self {
        let (client, server) = configs(suite);
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        let peer = ClientConnection::new(client, name).unwrap().into();
        Self::shake(Handshake::server(server).unwrap(), peer)
    }

    fn shake<S: Side>(mut ours: Handshake<S>, mut peer: Connection) -> Self {
        while ours.advance().unwrap() == Progress::Blocked {
            feed(&mut peer, &std::mem::take(&mut ours.unsent)).unwrap();
            ours.received.extend(drain(&mut peer));
        }
        let (records, mut received, unsent) = ours.into_records().unwrap();
        feed(&mut peer, &unsent).unwrap();
        received.extend(drain(&mut peer));
        assert!(!peer.is_handshaking());
        Self { records, received, peer }
    }

    /// What the peer sent so far, opened.
    fn opened(&mut self) -> Result<Vec<u8>, RecordError> {
        self.received.extend(drain(&mut self.peer));
        open_all(&mut self.records, &mut self.received).map(|(data, _)| data)
    }

    fn says(&mut self, data: &[u8]) {
        self.peer.writer().write_all(data).unwrap();
    }

    /// What the peer makes of our bytes.
    fn peer_reads(&mut self, sealed: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        feed(&mut self.peer, sealed)
    }
}

/// Both ends ours: the second may say what rustls never would.
fn ours(suite: SupportedCipherSuite) -> (Records, Records) {
    let (client, server) = configs(suite);
    let (mut client, mut server) = (Handshake::client(client).unwrap(), Handshake::server(server).unwrap());
    loop {
        let done = client.advance().unwrap();
        server.received.append(&mut client.unsent);
        if (done, server.advance().unwrap()) == (Progress::Done, Progress::Done) {
            break;
        }
        client.received.append(&mut server.unsent);
    }
    let (mut client, ..) = client.into_records().unwrap();
    // rustls's server gives tickets unless told not to.
    let (server, _, mut tickets) = server.into_records().unwrap();
    open_all(&mut client, &mut tickets).unwrap();
    client.quiet = 0;
    (client, server)
}

fn drain(peer: &mut Connection) -> Vec<u8> {
    let mut out = Vec::new();
    while peer.wants_write() {
        peer.write_tls(&mut out).unwrap();
    }
    out
}

/// Lets rustls read all, and returns the plaintext.
fn feed(peer: &mut Connection, mut sealed: &[u8]) -> Result<Vec<u8>, rustls::Error> {
    let mut data = Vec::new();
    while !sealed.is_empty() {
        peer.read_tls(&mut sealed).unwrap();
        peer.process_new_packets()?;
        // Its errors are what the callers check for by other means.
        let _ = peer.reader().read_to_end(&mut data);
    }
    Ok(data)
}

/// Opens all whole records and leaves the rest; true if the peer has closed.
fn open_all(records: &mut Records, received: &mut Vec<u8>) -> Result<(Vec<u8>, bool), RecordError> {
    let (mut data, mut closed) = (Vec::new(), false);
    while !closed {
        let Some(opened) = records.open(received)? else { break };
        match opened.event {
            Event::Data(range) => data.extend_from_slice(&received[range]),
            Event::Quiet => {}
            Event::Closed => closed = true,
        }
        received.drain(..opened.consumed);
    }
    Ok((data, closed))
}

/// One record of this kind.
fn sealed(records: &mut Records, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut record = [&[0; HEADER], payload, &[0; TAIL]].concat();
    records.seal_kind(&mut record, kind).unwrap();
    record
}

fn data(records: &mut Records, payload: &[u8]) -> Vec<u8> {
    sealed(records, TYPE_DATA, payload)
}

/// The same, from a payload that stays as it is.
fn data_from(records: &mut Records, payload: &[u8]) -> Vec<u8> {
    let mut record = vec![0; HEADER + payload.len() + TAIL];
    records.seal_from(payload, &mut record).unwrap();
    record
}

fn key_update(records: &mut Records) -> Vec<u8> {
    let mut record = vec![0; KEY_UPDATE];
    records.seal_key_update(&mut record).unwrap();
    record
}

const SIZES: [usize; 8] = [1, 2, 255, 256, 4095, PAYLOAD_MAX - 1, PAYLOAD_MAX, 3 * PAYLOAD_MAX + 7];

#[test]
fn rustls_and_we_understand_each_other_in_both_roles_with_every_suite() {
    for suite in SUITES {
        for mut pair in [Pair::client(suite), Pair::server(suite)] {
            SIZES.into_iter().for_each(|size| exchange(&mut pair, size));
        }
    }
}

fn exchange(pair: &mut Pair, size: usize) {
    let text = super::super::tests::noise(size);
    pair.says(&text);
    assert_eq!(pair.opened().unwrap(), text);
    let mut bytes = Vec::new();
    for (index, chunk) in text.chunks(PAYLOAD_MAX).enumerate() {
        let seal = if index % 2 == 0 { data } else { data_from };
        bytes.extend(seal(&mut pair.records, chunk));
    }
    assert_eq!(pair.peer_reads(&bytes).unwrap(), text);
}

#[test]
fn keys_are_changed_in_both_directions_in_the_middle_of_a_transfer() {
    for suite in SUITES {
        for mut pair in [Pair::client(suite), Pair::server(suite)] {
            for round in 0..5_u8 {
                let update = key_update(&mut pair.records);
                let text = data(&mut pair.records, &[round; 100]);
                assert_eq!(pair.peer_reads(&[update, text].concat()).unwrap(), [round; 100]);

                pair.peer.refresh_traffic_keys().unwrap();
                pair.says(&[round; 200]);
                assert_eq!(pair.opened().unwrap(), [round; 200]);
                // rustls asks for ours too.
                assert!(pair.records.key_update_due());
            }
        }
    }
}

#[test]
fn a_key_that_has_done_its_work_is_due_for_a_change() {
    let mut pair = Pair::client(TLS13_AES_128_GCM_SHA256);
    pair.records.key_life = 3;
    let mut bytes = Vec::new();
    let mut updates = 0;
    for index in 0..10_u8 {
        if pair.records.key_update_due() {
            bytes.extend(key_update(&mut pair.records));
            updates += 1;
        }
        bytes.extend(data(&mut pair.records, &[index]));
    }
    assert_eq!(updates, 3);
    assert_eq!(pair.peer_reads(&bytes).unwrap(), (0..10).collect::<Vec<u8>>());
}

#[test]
fn close_notify_is_an_end_and_nothing_behind_it_counts() {
    for mut pair in [Pair::client(TLS13_AES_128_GCM_SHA256), Pair::server(TLS13_AES_256_GCM_SHA384)] {
        pair.says(b"last");
        pair.peer.send_close_notify();
        pair.received.extend(drain(&mut pair.peer));
        pair.received.extend(b"GARBAGE");
        assert_eq!(open_all(&mut pair.records, &mut pair.received).unwrap(), (b"last".to_vec(), true));
        assert!(pair.received.is_empty() || pair.received == b"GARBAGE");
        let opened = pair.records.open(&mut [1, 2, 3]).unwrap().unwrap();
        assert_eq!(opened, Opened { consumed: 3, event: Event::Closed });

        // Our direction still works, until our own close_notify.
        let mut bytes = data(&mut pair.records, b"more");
        let mut close = vec![0; ALERT];
        pair.records.seal_close(&mut close).unwrap();
        bytes.extend(close);
        assert_eq!(pair.peer_reads(&bytes).unwrap(), b"more");
        assert!(pair.peer.process_new_packets().unwrap().peer_has_closed());
    }
}

#[test]
fn alerts_end_the_session_on_both_sides() {
    let mut pair = Pair::server(TLS13_AES_128_GCM_SHA256);
    let mut alert = vec![0; ALERT];
    pair.records.seal_alert(20, &mut alert).unwrap();
    let error = pair.peer_reads(&alert).unwrap_err();
    assert_eq!(error, rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac));

    let mut pair = Pair::server(TLS13_AES_128_GCM_SHA256);
    let mut broken = data(&mut pair.records, b"x");
    broken[7] ^= 1;
    pair.peer_reads(&broken).unwrap_err();
    assert_eq!(pair.opened(), Err(RecordError::Alert(20)));
    assert_eq!(RecordError::Alert(20).alert(), None);
}

#[test]
fn a_record_is_opened_when_its_last_byte_is_there_and_not_before() {
    let (mut to, mut from) = ours(TLS13_AES_128_GCM_SHA256);
    let first = data(&mut from, b"first");
    let second = data(&mut from, b"second");
    let whole = [first, second].concat();
    let mut received = Vec::new();
    let mut got = Vec::new();
    for byte in &whole {
        received.push(*byte);
        got.extend(open_all(&mut to, &mut received).unwrap().0);
    }
    assert_eq!(got, b"firstsecond");
    for cut in 0..=whole.len() {
        let (mut to, mut from) = ours(TLS13_CHACHA20_POLY1305_SHA256);
        let whole = [data(&mut from, b"first"), data(&mut from, b"second")].concat();
        let mut received = whole[..cut].to_vec();
        let mut got = open_all(&mut to, &mut received).unwrap().0;
        received.extend(&whole[cut..]);
        got.extend(open_all(&mut to, &mut received).unwrap().0);
        assert_eq!(got, b"firstsecond");
    }
}

#[test]
fn a_flipped_bit_in_any_byte_of_any_record_is_noticed() {
    for suite in SUITES {
        let (mut to, mut from) = ours(suite);
        let records = [
            data(&mut from, b"some data"),
            sealed(&mut from, TYPE_ALERT, &[1, ALERT_CLOSE_NOTIFY]),
            sealed(&mut from, TYPE_HANDSHAKE, &[HANDSHAKE_KEY_UPDATE, 0, 0, 1, 0]),
        ];
        for (index, record) in records.iter().enumerate() {
            for byte in 0..record.len() {
                // The receiver is put where this record is the next one.
                to.rx.sequence = from.tx.sequence - (records.len() - index) as u64;
                to.over = None;
                let mut broken = record.clone();
                broken[byte] ^= 0x10;
                // A longer length waits for bytes that never come: then the end of the stream is the error.
                let opened = to.open(&mut broken);
                assert!(matches!(opened, Err(_) | Ok(None)), "byte {byte} of record {index}: {opened:?}");
                assert!(opened.is_err() || (3..5).contains(&byte));
            }
        }
    }
}

#[test]
fn records_that_are_left_out_swapped_or_sent_again_are_noticed() {
    let make = || {
        let (to, mut from) = ours(TLS13_AES_256_GCM_SHA384);
        let records = [data(&mut from, b"0"), data(&mut from, b"1"), data(&mut from, b"2")];
        (to, records)
    };
    for order in [&[1][..], &[0, 2], &[0, 0], &[0, 2, 1], &[1, 0]] {
        let (mut to, records) = make();
        let mut bytes: Vec<u8> = order.iter().flat_map(|index| records[*index].clone()).collect();
        assert_eq!(open_all(&mut to, &mut bytes), Err(RecordError::BadMac), "{order:?}");
        // It stays broken.
        assert_eq!(to.open(&mut []), Err(RecordError::BadMac));
    }
}

/// A client and a hostile server.
fn hostile(kind: u8, payload: &[u8]) -> Result<Event, RecordError> {
    let (mut to, mut from) = ours(TLS13_AES_128_GCM_SHA256);
    let mut record = sealed(&mut from, kind, payload);
    to.open(&mut record).map(|opened| opened.unwrap().event)
}

#[test]
fn what_has_no_place_after_the_handshake_is_refused() {
    const FINISHED: &[u8] = &[20, 0, 0, 1, 0];
    const CERTIFICATE_REQUEST: &[u8] = &[13, 0, 0, 3, 0, 0, 0];
    for (kind, payload) in [
        (TYPE_HANDSHAKE, FINISHED),
        (TYPE_HANDSHAKE, CERTIFICATE_REQUEST),
        (TYPE_HANDSHAKE, &[]),
        (TYPE_HANDSHAKE, &[HANDSHAKE_KEY_UPDATE, 0, 0, 1, 2]),
        (TYPE_HANDSHAKE, &[HANDSHAKE_KEY_UPDATE, 0, 0, 2, 0, 0]),
        (TYPE_HANDSHAKE, &[HANDSHAKE_KEY_UPDATE, 0, 0, 0]),
        (TYPE_HANDSHAKE, &[HANDSHAKE_KEY_UPDATE, 0, 0, 1, 0, HANDSHAKE_KEY_UPDATE, 0, 0, 1, 0]),
        (TYPE_HANDSHAKE, &[HANDSHAKE_TICKET, 1, 0, 0]),
        (TYPE_HANDSHAKE, &[HANDSHAKE_TICKET, 0, 0, 0]),
        (TYPE_ALERT, &[]),
        (TYPE_ALERT, &[1]),
        (TYPE_ALERT, &[1, 0, 1, 0]),
        (20, &[1]),
        (24, &[1, 0, 3]),
        (0, &[]),
        (0, &[0, 0, 0]),
        (255, b"x"),
    ] {
        let event = hostile(kind, payload);
        assert!(matches!(event, Err(RecordError::Unexpected(_))), "{kind} {payload:?}: {event:?}");
    }
    assert_eq!(hostile(TYPE_ALERT, &[1, 40]), Err(RecordError::Alert(40)));
    assert_eq!(hostile(TYPE_ALERT, &[2, ALERT_CLOSE_NOTIFY]), Ok(Event::Closed));
    assert_eq!(hostile(TYPE_ALERT, &[1, ALERT_USER_CANCELED]), Ok(Event::Quiet));
}

#[test]
fn records_in_clear_or_too_long_are_refused_by_their_header() {
    let (mut to, _) = ours(TLS13_AES_128_GCM_SHA256);
    let mut opened = |bytes: &[u8]| {
        to.over = None;
        to.open(&mut bytes.to_vec())
    };
    for kind in (0..=255).filter(|kind| *kind != TYPE_DATA) {
        assert!(matches!(opened(&[kind]), Err(RecordError::Unexpected(_))));
    }
    assert_eq!(opened(&[TYPE_DATA, 3, 3, 0x41, 0x01]), Err(RecordError::Overflow));
    assert_eq!(opened(&[TYPE_DATA, 3, 3, 0x41, 0x00]), Ok(None));
    for short in 0..=16_u8 {
        let mut record = vec![TYPE_DATA, 3, 3, 0, short];
        record.resize(HEADER + usize::from(short), 0);
        assert_eq!(opened(&record), Err(RecordError::BadMac));
    }
}

/// A record whose payload is padded, as no end of ours does it.
fn padded(records: &mut Records, kind: u8, payload: &[u8], zeros: usize) -> Vec<u8> {
    let text = [payload, &[kind], &vec![0; zeros]].concat();
    let length = text.len() + TAG;
    let header = [TYPE_DATA, 3, 3, (length >> 8) as u8, length as u8];
    let nonce = records.tx.nonce().unwrap();
    let mut sealed = text;
    records.tx.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut sealed).unwrap();
    [&header[..], &sealed].concat()
}

#[test]
fn padding_is_taken_off_and_counts_towards_the_limit() {
    let (mut to, mut from) = ours(TLS13_AES_128_GCM_SHA256);
    for (length, zeros) in [(1, 1), (5, 1000), (1, PAYLOAD_MAX - 1), (PAYLOAD_MAX, 0)] {
        let mut record = padded(&mut from, TYPE_DATA, &vec![7; length], zeros);
        let opened = to.open(&mut record).unwrap().unwrap();
        assert_eq!(opened.event, Event::Data(HEADER..HEADER + length));
        assert_eq!(opened.consumed, record.len());
    }
    for (length, zeros) in [(PAYLOAD_MAX + 1, 0), (PAYLOAD_MAX, 1), (1, PAYLOAD_MAX)] {
        let (mut to, mut from) = ours(TLS13_AES_128_GCM_SHA256);
        let mut record = padded(&mut from, TYPE_DATA, &vec![7; length], zeros);
        assert_eq!(to.open(&mut record), Err(RecordError::Overflow));
    }
}

#[test]
fn a_flood_of_records_without_data_is_refused_and_a_few_are_not() {
    type Make = fn(&mut Records) -> Vec<u8>;
    let kinds: [Make; 4] = [
        |from| data(from, &[]),
        |from| sealed(from, TYPE_ALERT, &[1, ALERT_USER_CANCELED]),
        |from| sealed(from, TYPE_HANDSHAKE, &[HANDSHAKE_TICKET, 0, 0, 1, 0]),
        key_update,
    ];
    for make in kinds {
        let (mut to, mut from) = ours(TLS13_AES_128_GCM_SHA256);
        for _ in 0..3 {
            for _ in 0..QUIET_MAX {
                assert_eq!(to.open(&mut make(&mut from)).unwrap().unwrap().event, Event::Quiet);
            }
            let mut text = data(&mut from, b"x");
            assert_eq!(to.open(&mut text).unwrap().unwrap().event, Event::Data(HEADER..HEADER + 1));
        }
        for _ in 0..QUIET_MAX {
            to.open(&mut make(&mut from)).unwrap();
        }
        assert_eq!(to.open(&mut make(&mut from)), Err(RecordError::Flood));
    }
}

#[test]
fn a_client_skips_tickets_however_they_are_cut_and_a_server_takes_none() {
    let ticket = [&[HANDSHAKE_TICKET, 0, 0, 20][..], &[9; 20]].concat();
    let two = [&ticket[..], &ticket].concat();
    for cut in 1..two.len() {
        let (mut to, mut from) = ours(TLS13_AES_128_GCM_SHA256);
        for part in [&two[..cut], &two[cut..]] {
            let mut record = sealed(&mut from, TYPE_HANDSHAKE, part);
            assert_eq!(to.open(&mut record).unwrap().unwrap().event, Event::Quiet);
        }
        assert_eq!(to.message.have, 0);
        let mut text = data(&mut from, b"x");
        assert_eq!(to.open(&mut text).unwrap().unwrap().event, Event::Data(HEADER..HEADER + 1));
    }
    let (mut client, mut server) = ours(TLS13_AES_128_GCM_SHA256);
    let mut record = sealed(&mut client, TYPE_HANDSHAKE, &ticket);
    assert!(matches!(server.open(&mut record), Err(RecordError::Unexpected(_))));
}

#[test]
fn a_key_update_may_be_cut_and_nothing_may_come_between() {
    let (mut to, mut from) = ours(TLS13_AES_128_GCM_SHA256);
    for part in [&[HANDSHAKE_KEY_UPDATE, 0][..], &[0, 1], &[1]] {
        to.open(&mut sealed(&mut from, TYPE_HANDSHAKE, part)).unwrap();
    }
    from.tx = Direction::new(from.keys.next_tx().unwrap()).unwrap();
    assert!(to.key_update_due());
    to.open(&mut data(&mut from, b"x")).unwrap();

    for kind in [TYPE_DATA, TYPE_ALERT] {
        let (mut to, mut from) = ours(TLS13_AES_128_GCM_SHA256);
        to.open(&mut sealed(&mut from, TYPE_HANDSHAKE, &[HANDSHAKE_KEY_UPDATE, 0])).unwrap();
        let between = to.open(&mut sealed(&mut from, kind, &[1, 0]));
        assert!(matches!(between, Err(RecordError::Unexpected(_))));
    }
}

#[test]
fn an_old_key_opens_nothing_after_a_change() {
    let (mut to, mut from) = ours(TLS13_AES_128_GCM_SHA256);
    let mut update = sealed(&mut from, TYPE_HANDSHAKE, &[HANDSHAKE_KEY_UPDATE, 0, 0, 1, 0]);
    to.open(&mut update).unwrap();
    // `from` goes on with its old key.
    assert_eq!(to.open(&mut data(&mut from, b"x")), Err(RecordError::BadMac));
}

#[test]
fn sequence_numbers_end_and_never_start_again() {
    let (mut to, mut from) = ours(TLS13_AES_128_GCM_SHA256);
    from.tx.sequence = u64::MAX;
    let mut record = vec![0; HEADER + 1 + TAIL];
    assert_eq!(from.seal(&mut record), Err(RecordError::Exhausted));
    to.rx.sequence = u64::MAX;
    assert_eq!(to.open(&mut record), Err(RecordError::Exhausted));
}

#[test]
fn nothing_is_sealed_into_a_slice_of_the_wrong_size() {
    let (_, mut from) = ours(TLS13_AES_128_GCM_SHA256);
    for length in [0, 1, HEADER, HEADER + TAIL - 1, RECORD + 1, RECORD + 70_000] {
        assert_eq!(from.seal(&mut vec![0; length]), Err(RecordError::Overflow), "{length}");
    }
    assert!(from.seal_key_update(&mut [0; ALERT]).is_err());
    assert!(from.seal_close(&mut [0; KEY_UPDATE]).is_err());
    assert!(from.seal_from(b"four", &mut [0; HEADER + TAIL]).is_err());
}

/// What one end does next.
#[derive(Debug, Clone)]
enum Act {
    Say(usize),
    Update,
    Empty,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (1..20_000_usize).prop_map(Act::Say),
        1 => Just(Act::Update),
        1 => Just(Act::Empty),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whatever_is_said_arrives_in_whatever_pieces(
        acts in proptest::collection::vec(act(), 1..20),
        pieces in proptest::collection::vec(1..40_000_usize, 1..20),
        suite in 0..SUITES.len(),
    ) {
        let (mut to, mut from) = ours(SUITES[suite]);
        let (mut said, mut wire) = (Vec::new(), Vec::new());
        for act in acts {
            match act {
                Act::Say(length) => {
                    let text = super::super::tests::noise(length);
                    text.chunks(PAYLOAD_MAX).for_each(|chunk| wire.extend(data(&mut from, chunk)));
                    said.extend(text);
                }
                Act::Update => wire.extend(key_update(&mut from)),
                Act::Empty => wire.extend(data(&mut from, &[])),
            }
        }
        let (mut heard, mut received) = (Vec::new(), Vec::new());
        let mut pieces = pieces.into_iter().cycle();
        let mut left = wire.as_slice();
        while !left.is_empty() {
            let (piece, rest) = left.split_at(pieces.next().unwrap().min(left.len()));
            received.extend_from_slice(piece);
            heard.extend(open_all(&mut to, &mut received).unwrap().0);
            left = rest;
        }
        prop_assert!(heard == said);
        prop_assert!(received.is_empty());
    }

    #[test]
    fn a_change_anywhere_lets_through_a_beginning_at_most(
        lengths in proptest::collection::vec(1..300_usize, 1..8),
        place in any::<prop::sample::Index>(),
        flip in 1..=255_u8,
    ) {
        let (mut to, mut from) = ours(TLS13_AES_128_GCM_SHA256);
        let said: Vec<Vec<u8>> = lengths.into_iter().map(super::super::tests::noise).collect();
        let mut wire: Vec<u8> = said.iter().flat_map(|text| data(&mut from, text)).collect();
        let place = place.index(wire.len());
        wire[place] ^= flip;
        let mut heard = Vec::new();
        while let Ok(Some(Opened { consumed, event: Event::Data(range) })) = to.open(&mut wire) {
            heard.extend_from_slice(&wire[range]);
            wire.drain(..consumed);
        }
        let said = said.concat();
        prop_assert!(heard.len() < said.len() && said.starts_with(&heard));
    }

    #[test]
    fn garbage_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let (mut to, _) = ours(TLS13_AES_128_GCM_SHA256);
        let _ = to.open(&mut bytes);
        if let Some(kind) = bytes.first_mut() {
            *kind = TYPE_DATA;
        }
        to.over = None;
        let _ = to.open(&mut bytes);
        // And authenticated garbage of every kind.
        let (mut to, mut from) = ours(TLS13_AES_128_GCM_SHA256);
        for chunk in bytes.chunks(40) {
            let (kind, payload) = chunk.split_first().unwrap();
            let _ = to.open(&mut sealed(&mut from, *kind, payload));
        }
    }
}
