use httlib_hpack::{Decoder, Encoder};
use proptest::prelude::*;

use super::*;

const C_CORE: &[u8] = b"tmp%2Fuds%2Fc.sock";

fn filtered(input: &[u8], piece: usize) -> Vec<u8> {
    let (mut filter, mut out) = (Filter::default(), Vec::new());
    input.chunks(piece).for_each(|chunk| filter.feed(chunk, &mut out));
    out
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[a, b, c, kind, flags, 0, 0, 0, 1], payload].concat()
}

type Field = (Vec<u8>, Vec<u8>, u8);

fn block(encoder: &mut Encoder<'_>, fields: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    fields.iter().for_each(|field| encoder.encode(field.clone(), &mut out).unwrap());
    out
}

/// The header blocks behind the preface, without padding and priority.
fn blocks(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    bytes = &bytes[PREFACE..];
    let mut found = Vec::new();
    while let Some(head) = head(bytes) {
        let payload = &bytes[FRAME_HEAD..FRAME_HEAD + head.length];
        let padded = head.flags & PADDED != 0;
        let padding = if padded { usize::from(payload[0]) } else { 0 };
        let start = usize::from(padded) + if head.flags & PRIORITY != 0 { 5 } else { 0 };
        if head.kind == HEADERS {
            found.push(payload[start..payload.len() - padding].to_vec());
        }
        bytes = &bytes[FRAME_HEAD + head.length..];
    }
    assert!(bytes.is_empty(), "no frame is cut");
    found
}

fn decode(decoder: &mut Decoder<'_>, block: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (mut block, mut fields) = (block.to_vec(), Vec::new());
    decoder.decode(&mut block, &mut fields).unwrap();
    fields.into_iter().map(|(name, value, _)| (name, value)).collect()
}

#[test]
fn a_path_becomes_an_authority_of_the_same_length_and_authorities_stay() {
    let cases: [(&[u8], Option<&[u8]>); 8] = [
        (C_CORE, Some(b"tmp-2Fuds-2Fc.sock")),
        (b"/var/run/w.sock", Some(b"-var-run-w.sock")),
        (b"%2Ftmp%2Fw.sock", Some(b"-2Ftmp-2Fw.sock")),
        (b"localhost", None),
        (b"localhost:8080", None),
        (b"[::1]:80", None),
        (b"", None),
        (b"a b\r\n\0\xff", Some(b"a-b-----")),
    ];
    for (text, expected) in cases {
        let given = replacement(text);
        // The last row is long by one where bytes are counted: they are what HPACK counts.
        assert_eq!(given.as_deref().map(<[u8]>::len), expected.map(|_| text.len()), "{}", text.escape_ascii());
        if let Some(given) = given {
            assert!(http::uri::Authority::try_from(given.as_slice()).is_ok());
            assert!(given.starts_with(&expected.unwrap()[..text.len().min(expected.unwrap().len())]));
        }
    }
    assert_eq!(replacement(&vec![b'/'; AUTHORITY_MAX + 1]), None);
}

#[test]
fn every_way_to_write_the_authority_is_seen() {
    let (huffman_name, huffman_value, indexed, never) =
        (Encoder::HUFFMAN_NAME, Encoder::HUFFMAN_VALUE, Encoder::WITH_INDEXING, Encoder::NEVER_INDEXED);
    let mut all = Vec::new();
    for kind in [0, indexed, never] {
        for compressed in [0, huffman_value, huffman_name, huffman_name | huffman_value] {
            for best in [0, Encoder::BEST_FORMAT] {
                all.push(kind | compressed | best);
            }
        }
    }
    for flags in all {
        let mut encoder = Encoder::with_dynamic_size(4096);
        let fields = [(b":path".to_vec(), b"/x".to_vec(), 0), (NAME.to_vec(), C_CORE.to_vec(), flags)];
        let input = [&[b'P'; PREFACE], frame(HEADERS, 4, &block(&mut encoder, &fields)).as_slice()].concat();
        let out = filtered(&input, 7);
        let fields = decode(&mut Decoder::with_dynamic_size(4096), &blocks(&out)[0]);
        assert_eq!(fields[1].1, b"tmp-2Fuds-2Fc.sock", "flags {flags:#x}");
    }
}

#[test]
fn what_is_too_long_or_cut_goes_on_as_it_came() {
    let mut encoder = Encoder::with_dynamic_size(4096);
    let long = block(&mut encoder, &[(NAME.to_vec(), vec![b'/'; AUTHORITY_MAX + 1], 0)]);
    let path = block(&mut encoder, &[(NAME.to_vec(), C_CORE.to_vec(), 0)]);
    // Compressed to less than a frame, it would be more than a frame.
    let mut grows = block(&mut encoder, &[(NAME.to_vec(), b"////////".to_vec(), Encoder::HUFFMAN_VALUE)]);
    grows.extend(block(&mut encoder, &[(b"x".to_vec(), vec![b'x'; FRAME_MAX - grows.len() - 6], 0)]));
    assert!(grows.len() <= FRAME_MAX && grows.len() + 2 > FRAME_MAX, "{}", grows.len());
    for payload in [long, path[..path.len() - 1].to_vec(), vec![0; FRAME_MAX + 1], grows, vec![0xff; 40]] {
        let input = [&[0; PREFACE], frame(HEADERS, 0, &payload).as_slice()].concat();
        assert_eq!(filtered(&input, 100), input);
    }
    // Padding that is longer than the frame, priority that is not there.
    for (flags, payload) in [(PADDED, vec![200, 0, 0]), (PADDED, vec![]), (PRIORITY, vec![1]), (0x28, vec![1, 2])] {
        let input = [&[0; PREFACE], frame(HEADERS, flags, &payload).as_slice()].concat();
        assert_eq!(filtered(&input, 3), input);
    }
}

fn field() -> impl Strategy<Value = Field> {
    let name = prop_oneof![
        Just(NAME.to_vec()),
        Just(b":path".to_vec()),
        Just(b"user-agent".to_vec()),
        proptest::collection::vec(b'a'..=b'z', 1..12),
    ];
    let value = prop_oneof![
        Just(C_CORE.to_vec()),
        Just(b"localhost".to_vec()),
        Just(b"/run/workload.sock".to_vec()),
        proptest::collection::vec(b' '..=b'~', 0..300),
    ];
    let flags = prop_oneof![Just(0u8), Just(4), Just(8), Just(2), Just(3), Just(6), Just(7), Just(0x14), Just(0x17)];
    (name, value, flags)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Over many blocks of one connection, with both sides' tables as full as they get.
    #[test]
    fn an_independent_decoder_reads_all_headers_as_they_were_but_for_the_authority(
        lists in proptest::collection::vec(proptest::collection::vec(field(), 0..12), 1..8),
        (padding, priority) in (0u8..9, any::<bool>()),
        piece in 1usize..64,
    ) {
        let mut encoder = Encoder::with_dynamic_size(512);
        let mut input = vec![b'P'; PREFACE];
        for fields in &lists {
            let mut payload = vec![padding];
            payload.extend(if priority { vec![0, 0, 0, 0, 9] } else { vec![] });
            payload.extend(block(&mut encoder, fields));
            payload.extend(vec![0; usize::from(padding)]);
            input.extend(frame(HEADERS, PADDED | if priority { PRIORITY } else { 0 }, &payload));
            input.extend(frame(0, 1, b"a message that looks like \x00\x00\x01\x01 a frame"));
        }
        let out = filtered(&input, piece);
        prop_assert_eq!(&out, &filtered(&input, input.len()));
        let (mut before, mut after) = (Decoder::with_dynamic_size(512), Decoder::with_dynamic_size(512));
        for (was, is) in blocks(&input).iter().zip(blocks(&out)) {
            let expected: Vec<_> = decode(&mut before, was).into_iter().map(|(name, value)| {
                let other = (name == NAME).then(|| replacement(&value)).flatten();
                (name, other.unwrap_or(value))
            }).collect();
            prop_assert_eq!(decode(&mut after, &is), expected);
        }
    }

    #[test]
    fn bytes_of_any_kind_are_survived_and_pieces_make_no_difference(
        bytes in proptest::collection::vec(any::<u8>(), 0..600), heads in any::<bool>(), piece in 1usize..40,
    ) {
        let input = if heads { [vec![0; PREFACE], frame(HEADERS, bytes.first().copied().unwrap_or(0), &bytes)].concat() } else { bytes };
        let out = filtered(&input, piece);
        prop_assert_eq!(&out, &filtered(&input, input.len().max(1)));
    }
}
