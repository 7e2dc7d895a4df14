//! The bytes on the mesh, pinned: peers of different versions and implementations must agree on them. If a test here
//! fails, the wire format changed, and needs a new version byte.

#![allow(clippy::unwrap_used, reason = "clippy knows only the #[test] functions as tests, not their helpers")]

use bytes::Bytes;
use tickmesh_protocol::{
    Batch, Epoch, Event, Position, Previous, Sequence, SignedBatch, SigningKey, StreamName, Topic,
    catalogue::{Answer, Ask},
    client::Credential,
    codec::{
        VERSION, decode_feed_frame, decode_feed_request, decode_head_reply, decode_head_request,
        decode_private_change, encode_feed_frame, encode_feed_request, encode_head_reply,
        encode_head_request, encode_private_change,
    },
    feed::{Denial, FeedEnd, FeedFrame, FeedRequest, PrivateChange, SourceStatus, Status},
    head::{Head, HeadReply, HeadRequest},
    policy::{ChannelPolicy, OnSlow, Retain},
    position::MAX_SEQUENCE,
    revocation::{Revocation, RevokedKind},
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
                signature: None,
            },
            Event {
                stream: btc,
                epoch: Epoch::from_u64(0),
                sequence: sequence(MAX_SEQUENCE),
                previous: Previous::At(sequence(65_536)),
                engine_time_us: 0,
                data: Bytes::from_static(b"1"),
                signature: None,
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
                signature: Some("eyJhbGciOiJFZERTQSJ9..c2lnbmF0dXJl".parse().unwrap()),
            },
        ],
        heads: vec![(
            stream("trades.btc_usdt"),
            Position { epoch: Epoch::from_u64(300), sequence: sequence(MAX_SEQUENCE) },
        )],
    }
}

const ENVELOPE: &str = "
03ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22cfdefcdab8967452301fa192f746963
6b6d6573682f312f616c6c2f7472616465732f3632030f7472616465732e6274635f75736474fd1032547698badcfefb
fb000103fd80a3a7b5772006001f7b227072696365223a2233363230302e35222c226e6f7465223a22c3a9227d000f74
72616465732e6274635f7573647400fdffffffffffff1f0000fc0000010000013100137472616465732e6274635f7573
64744072617707000200fbe803010132012265794a68624763694f694a465a45525451534a392e2e63326c6e626d4630
64584a6c010f7472616465732e6274635f75736474fb2c01fdffffffffffff1f00d3f761b0ad2b3877d9deb32fc57244
54c713459971b6a6d1e9e90c7ddaac81a241d60a240a81963c916ee66b599ebef0183ebf20db0ada4d68cfdfdace519c
0c
";

const HEAD_REQUEST: &str = "
03182f7469636b6d6573682f312f616c6c2f64657074682f3135021464657074682e6574685f75736474403130306d73
0e64657074682e6574685f75736474
";

const HEAD_REPLY: &str = "
030400fd1032547698badcfefbfb0001020301fd1032547698badcfefbfb0001fb2c01050202
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
    let heads = vec![Head::At(position), Head::Empty, Head::UnknownChannel, Head::Private];
    let policy = ChannelPolicy { retain: Retain::Book, on_slow: OnSlow::Resync };
    HeadReply { heads, read: vec![position], left: vec![(300, Epoch::from_u64(5))], policy }
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

const PAGE_SIGNATURE: &str = "
138c076b150260c85f2deac05b77cd26ad9d49dcc457b7edbb27e09da55fbcb2b065230d431b31f2f9e50e459ec91234
432ba75e094576c1135838fbc119940a
";

const SNAPSHOTS_SIGNATURE: &str = "
b94950602d23cad26e5b4193ebfccf27b77ec08de3aac07752a4d48d5f2bbe48087ea6464703246d24a5e12f76f3b3c6
d739148bc3e61d5706636f76b675b109
";

const FEED_STREAMS: &str = "
0300182f7469636b6d6573682f312f616c6c2f64657074682f3135021464657074682e6574685f75736474403130306d
7301fd1032547698badcfefbfb000e64657074682e6574685f757364740001
";

const FEED_TOPIC: &str = "
0301182f7469636b6d6573682f312f616c6c2f64657074682f3135011464657074682e6574685f75736474403130306d
73fd1032547698badcfefdffffffffffff1f0000
";

const FEED_SNAPSHOTS: &str = "
0304182f7469636b6d6573682f312f616c6c2f64657074682f3135021464657074682e6574685f75736474403130306d
730e64657074682e6574685f75736474
";

const FEED_END: &str = "
0301041464657074682e6574685f75736474403130306d730001fd1032547698badcfefbfb000e64657074682e657468
5f7573647400001364657074682e6574685f757364744031306d73010100001164657074682e6574685f757364744031
730100
";

const FEED_STATUS: &str = "
0302fdefcdab89674523010765752d776573740206656e67696e65010005617564697400fc70110100fb2c01
";

const FEED_EVENTS: &str = "
0309010f7472616465732e6274635f7573647400fdffffffffffff1f0000fc0000010000013100
";

fn revocations() -> Vec<Revocation> {
    let kinds = [(RevokedKind::User, "alice"), (RevokedKind::Token, "t1"), (RevokedKind::ApiKey, "bot")];
    kinds.map(|(kind, id)| Revocation { kind, id: id.into(), at: 200 }).into()
}

fn private_changes() -> [(PrivateChange, &'static str); 4] {
    let streams = vec![stream("orders.alice"), stream("balances.alice")];
    let one = vec![streams[0].clone()];
    [
        (
            PrivateChange::Add { credential: Credential::token("a.b.c"), streams, push: true },
            "03000005612e622e63020c6f72646572732e616c6963650e62616c616e6365732e616c69636501",
        ),
        (
            PrivateChange::Add { credential: Credential::api_key("k"), streams: one.clone(), push: false },
            "030001016b010c6f72646572732e616c69636500",
        ),
        (PrivateChange::Push { streams: one.clone(), push: true }, "0301010c6f72646572732e616c69636501"),
        (PrivateChange::Remove { streams: one }, "0302010c6f72646572732e616c696365"),
    ]
}

#[test]
fn changes_of_private_feeds_have_these_bytes() {
    for (change, bytes) in private_changes() {
        assert_eq!(hex(&encode_private_change(&change).unwrap()), hex(&unhex(bytes)));
        assert_eq!(decode_private_change(&unhex(bytes)), Ok(change));
    }
}

fn feed_requests() -> [(FeedRequest, &'static str); 7] {
    let position = |epoch, number| Position { epoch: Epoch::from_u64(epoch), sequence: sequence(number) };
    let HeadRequest { topic, streams } = head_request();
    let named = position(0xfedc_ba98_7654_3210, 251);
    let after = vec![(streams[0].clone(), Some(named)), (streams[1].clone(), None)];
    let snapshots = FeedRequest::Snapshots { topic: topic.clone(), streams: streams.clone() };
    let last = position(0xfedc_ba98_7654_3210, MAX_SEQUENCE);
    [
        (FeedRequest::Streams { topic: topic.clone(), after, live: true }, FEED_STREAMS),
        (FeedRequest::Topic { topic, after: vec![(streams[0].clone(), last)], live: false }, FEED_TOPIC),
        (FeedRequest::Status, "0302"),
        (FeedRequest::State { source: "engine".into() }, "030306656e67696e65"),
        (snapshots, FEED_SNAPSHOTS),
        (FeedRequest::Private, "0305"),
        (
            FeedRequest::Catalogue(Box::new(Ask::Commit { version: 7 })),
            "0306187b22636f6d6d6974223a7b2276657273696f6e223a377d7d",
        ),
    ]
}

fn feed_frames() -> [(FeedFrame, &'static str); 10] {
    let position = |epoch, number| Position { epoch: Epoch::from_u64(epoch), sequence: sequence(number) };
    let ends = [
        FeedEnd::Complete { head: Some(position(0xfedc_ba98_7654_3210, 251)) },
        FeedEnd::Complete { head: None },
        FeedEnd::Refused { oldest: Some(position(0, 0)) },
        FeedEnd::Refused { oldest: None },
    ];
    let names = ["depth.eth_usdt@100ms", "depth.eth_usdt", "depth.eth_usdt@10ms", "depth.eth_usdt@1s"];
    let status = Status {
        boot: 0x0123_4567_89ab_cdef,
        region: "eu-west".into(),
        sources: vec![
            SourceStatus { name: "engine".into(), warm: true, lag: 0 },
            SourceStatus { name: "audit".into(), warm: false, lag: 70_000 },
        ],
        lag_us: 300,
    };
    [
        (FeedFrame::End { streams: names.map(stream).into_iter().zip(ends).collect() }, FEED_END),
        (FeedFrame::Status(status), FEED_STATUS),
        (FeedFrame::State { chunk: Bytes::from_static(&[0, 1, 255]), last: true }, "0303030001ff01"),
        (FeedFrame::Refused { reason: "busy: é".into() }, "030408627573793a20c3a9"),
        (FeedFrame::Working, "0305"),
        (
            FeedFrame::Heads(vec![
                (stream("orders.alice"), Some(position(7, 251))),
                (stream("orders.bob"), None),
            ]),
            "0307020c6f72646572732e616c6963650107fbfb000a6f72646572732e626f6200",
        ),
        (
            FeedFrame::Denied { streams: vec![stream("orders.alice")], why: Denial::Expired },
            "0308010c6f72646572732e616c69636501",
        ),
        (FeedFrame::Events(vec![batch().events[1].clone()]), FEED_EVENTS),
        (FeedFrame::Revoked(revocations()), "030a030005616c696365c801027431c80203626f74c8"),
        (FeedFrame::Catalogue(Box::new(Answer::Done)), "030b0622646f6e6522"),
    ]
}

#[test]
fn requests_for_feeds_have_these_bytes() {
    for (request, bytes) in feed_requests() {
        assert_eq!(hex(&encode_feed_request(&request).unwrap()), hex(&unhex(bytes)));
        assert_eq!(decode_feed_request(&unhex(bytes)), Ok(request));
    }
}

#[test]
fn frames_of_feeds_have_these_bytes() {
    for (frame, bytes) in feed_frames() {
        assert_eq!(hex(&encode_feed_frame(&frame).unwrap()), hex(&unhex(bytes)));
        assert_eq!(decode_feed_frame(&unhex(bytes).into()), Ok(frame));
    }
}

/// The same body as in gossip, signed as something else, in a frame of the given kind.
fn assert_frame_of(signed: &SignedBatch, signature: &str, kind: u8, frame: FeedFrame) {
    let (body, signature) = (signed.envelope().len() - 64, unhex(signature));
    assert_eq!(hex(&signed.envelope()[..body]), hex(&unhex(ENVELOPE)[..body]));
    assert_eq!(hex(&signed.envelope()[body..]), hex(&signature));
    let length = u16::try_from(signed.envelope().len()).unwrap().to_le_bytes();
    let bytes = [&[VERSION, kind, 0xfb], &length[..], signed.envelope()].concat();
    assert_eq!(hex(&encode_feed_frame(&frame).unwrap()), hex(&bytes));
    assert_eq!(decode_feed_frame(&bytes.into()), Ok(frame));
}

#[test]
fn a_page_has_these_bytes() {
    let page = SignedBatch::sign_page(batch(), &key()).unwrap();
    assert_frame_of(&page, PAGE_SIGNATURE, 0, FeedFrame::Page(page.clone()));
}

#[test]
fn snapshots_have_these_bytes() {
    let snapshots = SignedBatch::sign_snapshots(batch(), &key()).unwrap();
    assert_frame_of(&snapshots, SNAPSHOTS_SIGNATURE, 6, FeedFrame::Snapshots(snapshots.clone()));
}
