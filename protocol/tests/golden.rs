//! The bytes on the mesh, pinned: peers of different versions and implementations must agree on them. If a test here
//! fails, the wire format changed, and needs a new version byte.

#![allow(clippy::unwrap_used, reason = "clippy knows only the #[test] functions as tests, not their helpers")]

use bytes::Bytes;
use tickmesh_protocol::{
    Batch, Epoch, Event, Position, Previous, Sequence, SignedBatch, SigningKey, StreamName, Topic,
    codec::{decode_head_reply, decode_head_request, encode_head_reply, encode_head_request},
    head::{Head, HeadReply, HeadRequest},
    position::MAX_SEQUENCE,
};

fn sequence(number: u64) -> Sequence {
    Sequence::new(number).unwrap()
}

fn stream(name: &str) -> StreamName {
    name.parse().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// Every variant and every width of a number once.
fn batch() -> Batch {
    let btc = stream("trades.btc_usdt");
    Batch {
        publisher: key().publisher(),
        boot: 0x0123_4567_89ab_cdef,
        counter: 250,
        topic: Topic::spanning(&btc),
        events: vec![
            Event {
                stream: btc.clone(),
                epoch: Epoch::from_u64(0xfedc_ba98_7654_3210),
                sequence: sequence(251),
                previous: Previous::Unknown { read_from: sequence(3) },
                engine_time_us: 1_724_548_381_123_456,
                data: Bytes::from_static(r#"{"price":"36200.5","note":"é"}"#.as_bytes()),
            },
            Event {
                stream: btc,
                epoch: Epoch::from_u64(0),
                sequence: sequence(MAX_SEQUENCE),
                previous: Previous::At(sequence(65_536)),
                engine_time_us: 0,
                data: Bytes::from_static(b"1"),
            },
            Event {
                stream: stream("trades.btc_usdt@raw"),
                epoch: Epoch::from_u64(7),
                sequence: sequence(0),
                previous: Previous::Reset {
                    after: Position { epoch: Epoch::from_u64(0), sequence: sequence(1000) },
                },
                engine_time_us: 1,
                data: Bytes::from_static(b"2"),
            },
        ],
        heads: vec![(
            stream("trades.btc_usdt"),
            Position { epoch: Epoch::from_u64(300), sequence: sequence(MAX_SEQUENCE) },
        )],
    }
}

const ENVELOPE: &str = "
02ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22cfdefcdab8967452301fa192f746963
6b6d6573682f312f616c6c2f7472616465732f3632030f7472616465732e6274635f75736474fd1032547698badcfefb
fb000103fd80a3a7b5772006001f7b227072696365223a2233363230302e35222c226e6f7465223a22c3a9227d0f7472
616465732e6274635f7573647400fdffffffffffff1f0000fc00000100000131137472616465732e6274635f75736474
4072617707000200fbe803010132010f7472616465732e6274635f75736474fb2c01fdffffffffffff1f0009dc016b0d
36bc4e5ffb1a80511ddbf88d2e958fec779d87b20993f59fb951cc363b313e2ed3269d645ca42ce6a1e3c23922d4a6a5
e832e55086fcb530e3b500
";

const HEAD_REQUEST: &str = "
02182f7469636b6d6573682f312f616c6c2f64657074682f3135021464657074682e6574685f75736474403130306d73
0e64657074682e6574685f75736474
";

const HEAD_REPLY: &str = "
020400fd1032547698badcfefbfb00010203
";

#[test]
fn a_batch_has_these_bytes() {
    let signed = SignedBatch::sign(batch(), &key()).unwrap();
    assert_eq!(hex(signed.envelope()), hex(&unhex(ENVELOPE)));
}

#[test]
fn these_bytes_are_the_batch() {
    let opened = SignedBatch::open(unhex(ENVELOPE).into()).unwrap();
    assert_eq!(opened.batch(), &batch());
}

fn head_request() -> HeadRequest {
    let streams = vec![stream("depth.eth_usdt@100ms"), stream("depth.eth_usdt")];
    HeadRequest { topic: Topic::spanning(&streams[0]), streams }
}

fn head_reply() -> HeadReply {
    let position = Position { epoch: Epoch::from_u64(0xfedc_ba98_7654_3210), sequence: sequence(251) };
    HeadReply { heads: vec![Head::At(position), Head::Empty, Head::UnknownChannel, Head::Private] }
}

#[test]
fn a_head_request_has_these_bytes() {
    assert_eq!(hex(&encode_head_request(&head_request()).unwrap()), hex(&unhex(HEAD_REQUEST)));
    assert_eq!(decode_head_request(&unhex(HEAD_REQUEST)), Ok(head_request()));
}

#[test]
fn a_head_reply_has_these_bytes() {
    assert_eq!(hex(&encode_head_reply(&head_reply()).unwrap()), hex(&unhex(HEAD_REPLY)));
    assert_eq!(decode_head_reply(&unhex(HEAD_REPLY)), Ok(head_reply()));
}

#[test]
fn topics_epochs_and_keys_are_stable() {
    let topic = |name: &str| Topic::spanning(&stream(name)).to_string();
    assert_eq!(topic("trades.btc_usdt"), "/tickmesh/1/all/trades/62");
    assert_eq!(topic("candles.eth_usdt@1m"), "/tickmesh/1/all/candles/15");
    assert_eq!(Epoch::of("cluster/topic", 3, "offset").to_string(), "ec73938ec93a6c59");
}
