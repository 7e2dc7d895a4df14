//! The bytes of feeds: what is written is read back, and each limit holds on both sides.

#![allow(clippy::unwrap_used, reason = "clippy knows only the #[test] functions as tests, not their helpers")]

use std::sync::LazyLock;

use bytes::Bytes;
use proptest::{prelude::*, sample::Index};
use tickmesh_protocol::{
    Batch, Epoch, Event, Position, Previous, Sequence, SignedBatch, SigningKey, StreamName, Topic,
    batch::InvalidBatch,
    catalogue::{Answer, Ask, Catalogue, Change, Definition, Kind, Name, Origin, Standing},
    client::{Credential, MAX_CREDENTIAL_BYTES},
    codec::{
        CodecError, MAX_FEED_FRAME_BYTES, MAX_FEED_REQUEST_BYTES, MAX_PRIVATE_CHANGE_BYTES, VERSION,
        decode_feed_frame, decode_feed_request, decode_private_change, encode_feed_frame,
        encode_feed_request, encode_private_change,
    },
    event::MAX_EVENT_DATA_BYTES,
    feed::{
        Denial, FeedEnd, FeedFrame, FeedRequest, MAX_CHANGE_STREAMS, MAX_FEED_STREAMS, MAX_REASON_BYTES,
        MAX_SOURCE_NAME_BYTES, MAX_STATE_CHUNK_BYTES, MAX_STATUS_SOURCES, PrivateChange, SourceStatus,
        Status,
    },
    position::MAX_SEQUENCE,
    revocation::{MAX_REVOKED_ID_BYTES, Revocation, RevokedKind},
    stream::MAX_STREAM_NAME_BYTES,
    topic::MAX_REGION_BYTES,
};

static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_bytes(&[7; 32]));

fn stream() -> StreamName {
    "trades.btc_usdt".parse().unwrap()
}

fn at(sequence: u64) -> Position {
    Position { epoch: Epoch::from_u64(u64::MAX), sequence: Sequence::new(sequence).unwrap() }
}

fn batch(data: impl Into<Bytes>) -> Batch {
    let event = Event {
        stream: stream(),
        epoch: Epoch::from_u64(1),
        sequence: Sequence::new(2).unwrap(),
        previous: Previous::At(Sequence::new(1).unwrap()),
        engine_time_us: 3,
        data: data.into(),
        signature: None,
    };
    Batch {
        publisher: KEY.publisher(),
        boot: 1,
        counter: 0,
        topic: Topic::spanning(&stream()),
        events: vec![event],
        heads: vec![],
    }
}

fn page(data: impl Into<Bytes>) -> FeedFrame {
    FeedFrame::Page(SignedBatch::sign_page(batch(data), &KEY).unwrap())
}

fn snapshots(data: impl Into<Bytes>) -> FeedFrame {
    FeedFrame::Snapshots(SignedBatch::sign_snapshots(batch(data), &KEY).unwrap())
}

/// So many streams of one topic with the longest names there are.
fn streams(count: usize) -> Vec<StreamName> {
    (0..count)
        .map(|number| {
            let variant =
                format!("{number:0width$}", width = MAX_STREAM_NAME_BYTES - "candles.btc_usdt@".len());
            StreamName::new("candles", "btc_usdt", Some(&variant)).unwrap()
        })
        .collect()
}

fn request(streams: Vec<StreamName>) -> FeedRequest {
    let topic = Topic::spanning(streams.first().unwrap_or(&stream()));
    FeedRequest::Streams {
        topic,
        after: streams.into_iter().map(|stream| (stream, Some(at(MAX_SEQUENCE)))).collect(),
        live: false,
    }
}

// Properties

fn any_position() -> impl Strategy<Value = Position> {
    (any::<u64>(), prop_oneof![0..=300u64, 60_000..=70_000u64, 0..=MAX_SEQUENCE, Just(MAX_SEQUENCE)])
        .prop_map(|(epoch, sequence)| Position {
            epoch: Epoch::from_u64(epoch),
            sequence: Sequence::new(sequence).unwrap(),
        })
}

/// Different streams of one topic.
fn any_streams(least: usize) -> impl Strategy<Value = (Topic, Vec<StreamName>)> {
    ("[a-z]{1,8}", "[a-z0-9_-]{1,40}", prop::collection::btree_set("[a-z0-9]{1,8}", least..60)).prop_map(
        |(channel, key, variants)| {
            let topic = Topic::spanning(&StreamName::new(&channel, &key, None).unwrap());
            (topic, variants.iter().map(|v| StreamName::new(&channel, &key, Some(v)).unwrap()).collect())
        },
    )
}

fn any_request() -> impl Strategy<Value = FeedRequest> {
    let positions = || prop::collection::vec(any_position(), 60);
    prop_oneof![
        (any_streams(1), prop::collection::vec(prop::option::of(any_position()), 60), any::<bool>())
            .prop_map(|((topic, streams), at, live)| {
                FeedRequest::Streams { topic, after: streams.into_iter().zip(at).collect(), live }
            }),
        (any_streams(0), positions(), any::<bool>()).prop_map(|((topic, streams), at, live)| {
            FeedRequest::Topic { topic, after: streams.into_iter().zip(at).collect(), live }
        }),
        Just(FeedRequest::Status),
        ".{0,16}".prop_map(|source| FeedRequest::State { source }),
        any_streams(1).prop_map(|(topic, streams)| FeedRequest::Snapshots { topic, streams }),
        Just(FeedRequest::Private),
        any_ask().prop_map(|ask| FeedRequest::Catalogue(Box::new(ask))),
    ]
}

fn any_positions() -> impl Strategy<Value = Vec<(Epoch, u64)>> {
    prop::collection::vec((any::<u64>().prop_map(Epoch::from_u64), any::<u64>()), 0..20)
}

fn any_definition() -> impl Strategy<Value = Definition> {
    ("[a-z0-9_-]{1,20}", any::<bool>(), ".{0,200}").prop_map(|(name, source, text)| Definition {
        name: Name { kind: if source { Kind::Source } else { Kind::Route }, name },
        origin: if source { Origin::Admin } else { Origin::Files },
        text,
    })
}

fn any_ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        Just(Ask::Standing),
        Just(Ask::Whole),
        any::<u64>().prop_map(|version| Ask::Commit { version }),
        any::<u64>().prop_map(|version| Ask::Abort { version }),
        (any::<u64>(), any_definition(), any_positions()).prop_map(|(version, definition, at)| {
            let change = Change { origin: definition.origin, remove: Vec::new(), add: vec![definition] };
            Ask::Promise { version, change, at }
        }),
    ]
}

fn any_answer() -> impl Strategy<Value = Answer> {
    let catalogue = (any_definition(), any_positions()).prop_map(|(definition, at)| {
        let mut catalogue = Catalogue::default();
        let change = Change { origin: definition.origin, remove: Vec::new(), add: vec![definition] };
        catalogue.apply(&change, at).unwrap();
        Answer::Whole(catalogue)
    });
    let standing = (any::<u64>(), any::<u64>(), ".{0,20}", any_positions());
    prop_oneof![
        Just(Answer::Done),
        ".{0,60}".prop_map(|reason| Answer::Beyond { reason }),
        (".{0,60}", any::<bool>()).prop_map(|(reason, busy)| Answer::Refused { reason, busy }),
        catalogue,
        standing.prop_map(|(version, content, source, at)| {
            let partition = |(epoch, next)| Standing { source: source.clone(), epoch, next };
            Answer::Standing { version, content, partitions: at.into_iter().map(partition).collect() }
        }),
    ]
}

fn any_end() -> impl Strategy<Value = FeedEnd> {
    prop_oneof![
        prop::option::of(any_position()).prop_map(|head| FeedEnd::Complete { head }),
        prop::option::of(any_position()).prop_map(|oldest| FeedEnd::Refused { oldest }),
    ]
}

fn any_status() -> impl Strategy<Value = Status> {
    let source = (".{0,16}", any::<bool>(), any::<u64>()).prop_map(|(name, warm, lag)| SourceStatus {
        name,
        warm,
        lag,
    });
    (any::<u64>(), "[a-z-]{0,32}", prop::collection::vec(source, 0..20), any::<u64>())
        .prop_map(|(boot, region, sources, lag_us)| Status { boot, region, sources, lag_us })
}

fn any_frame() -> impl Strategy<Value = FeedFrame> {
    prop_oneof![
        ".{0,300}".prop_map(page),
        (any_streams(0), prop::collection::vec(any_end(), 60)).prop_map(|((_, streams), ends)| {
            FeedFrame::End { streams: streams.into_iter().zip(ends).collect() }
        }),
        any_status().prop_map(FeedFrame::Status),
        (prop::collection::vec(any::<u8>(), 0..300), any::<bool>())
            .prop_map(|(chunk, last)| FeedFrame::State { chunk: chunk.into(), last }),
        ".{0,200}".prop_map(FeedFrame::refused),
        Just(FeedFrame::Working),
        any_answer().prop_map(|answer| FeedFrame::Catalogue(Box::new(answer))),
        ".{0,300}".prop_map(snapshots),
        (any_streams(0), prop::collection::vec(prop::option::of(any_position()), 60))
            .prop_map(|((_, streams), at)| FeedFrame::Heads(streams.into_iter().zip(at).collect())),
        (any_streams(0), any_denial()).prop_map(|((_, streams), why)| FeedFrame::Denied { streams, why }),
        ".{0,300}".prop_map(|data| FeedFrame::Events(batch(data).events)),
        prop::collection::vec((any_kind(), ".{0,40}", any::<u64>()), 0..20).prop_map(|all| {
            let revocation = |(kind, id, at)| Revocation { kind, id, at };
            FeedFrame::Revoked(all.into_iter().map(revocation).collect())
        }),
    ]
}

fn any_denial() -> impl Strategy<Value = Denial> {
    prop_oneof![Just(Denial::Forbidden), Just(Denial::Expired), Just(Denial::Unavailable)]
}

fn any_kind() -> impl Strategy<Value = RevokedKind> {
    prop_oneof![Just(RevokedKind::User), Just(RevokedKind::Token), Just(RevokedKind::ApiKey)]
}

fn any_change() -> impl Strategy<Value = PrivateChange> {
    let streams = || any_streams(1).prop_map(|(_, streams)| streams);
    let credential = (".{0,300}", any::<bool>())
        .prop_map(|(text, token)| if token { Credential::token(&text) } else { Credential::api_key(&text) });
    prop_oneof![
        (credential, streams(), any::<bool>()).prop_map(|(credential, streams, push)| PrivateChange::Add {
            credential,
            streams,
            push
        }),
        (streams(), any::<bool>()).prop_map(|(streams, push)| PrivateChange::Push { streams, push }),
        streams().prop_map(|streams| PrivateChange::Remove { streams }),
    ]
}

#[test]
fn changes_keep_their_limits_on_both_sides() {
    let names = |count: usize| -> Vec<StreamName> {
        (0..count).map(|n| format!("orders.u{n}").parse().unwrap()).collect()
    };
    let add = |credential: usize, streams| PrivateChange::Add {
        credential: Credential::token(&"x".repeat(credential)),
        streams: names(streams),
        push: true,
    };
    assert!(encode_private_change(&add(MAX_CREDENTIAL_BYTES, MAX_CHANGE_STREAMS)).is_ok());
    for bad in [add(MAX_CREDENTIAL_BYTES + 1, 1), add(1, 0), add(1, MAX_CHANGE_STREAMS + 1)] {
        assert!(encode_private_change(&bad).is_err());
    }
    let longest = format!("{}.{}", "a".repeat(10), "b".repeat(MAX_STREAM_NAME_BYTES - 11));
    let streams = vec![longest.parse().unwrap(); MAX_CHANGE_STREAMS];
    let credential = Credential::api_key(&"k".repeat(MAX_CREDENTIAL_BYTES));
    let most = encode_private_change(&PrivateChange::Add { credential, streams, push: false }).unwrap();
    assert!(most.len() <= MAX_PRIVATE_CHANGE_BYTES, "{}", most.len());
    assert!(decode_private_change(&vec![3; MAX_PRIVATE_CHANGE_BYTES + 1]).is_err());
    let long = Revocation { kind: RevokedKind::User, id: "x".repeat(MAX_REVOKED_ID_BYTES + 1), at: 1 };
    assert!(encode_feed_frame(&FeedFrame::Revoked(vec![long])).is_err());
}

proptest! {
    #[test]
    fn every_request_comes_back(request in any_request()) {
        prop_assert_eq!(decode_feed_request(&encode_feed_request(&request).unwrap()), Ok(request));
    }

    #[test]
    fn every_change_comes_back_and_no_cut_goes_unnoticed(change in any_change(), at in any::<Index>()) {
        let bytes = encode_private_change(&change).unwrap();
        prop_assert_eq!(decode_private_change(&bytes), Ok(change));
        prop_assert!(decode_private_change(&bytes[..at.index(bytes.len())]).is_err());
        prop_assert!(decode_private_change(&[&bytes[..], &[0]].concat()).is_err());
    }

    #[test]
    fn every_frame_comes_back(frame in any_frame()) {
        let bytes = encode_feed_frame(&frame).unwrap().into();
        prop_assert_eq!(decode_feed_frame(&bytes), Ok(frame));
    }

    #[test]
    fn no_cut_or_addition_goes_unnoticed(request in any_request(), frame in any_frame(), at in any::<Index>()) {
        let bytes = encode_feed_request(&request).unwrap();
        prop_assert!(decode_feed_request(&bytes[..at.index(bytes.len())]).is_err());
        prop_assert!(decode_feed_request(&[&bytes[..], &[0]].concat()).is_err());
        let bytes = encode_feed_frame(&frame).unwrap();
        prop_assert!(decode_feed_frame(&bytes[..at.index(bytes.len())].to_vec().into()).is_err());
        prop_assert!(decode_feed_frame(&[&bytes[..], &[0]].concat().into()).is_err());
    }

    #[test]
    fn no_changed_byte_of_a_page_goes_unnoticed(data in ".{0,300}", at in any::<Index>(), flip in 1..=255u8) {
        let frame = page(data);
        let mut bytes = encode_feed_frame(&frame).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        // A changed kind of frame may still be one, but no page, and not this one.
        let decoded = decode_feed_frame(&bytes.into());
        prop_assert!(!matches!(decoded, Ok(FeedFrame::Page(_))), "byte {} changed", at);
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        for version in [None, Some(VERSION)] {
            let mut bytes = bytes.clone();
            if let (Some(first), Some(version)) = (bytes.first_mut(), version) {
                *first = version;
            }
            if let Ok(change) = decode_private_change(&bytes) {
                prop_assert!(encode_private_change(&change).is_ok());
            }
            if let Ok(request) = decode_feed_request(&bytes) {
                prop_assert!(encode_feed_request(&request).is_ok());
            }
            if let Ok(frame) = decode_feed_frame(&bytes.into()) {
                prop_assert!(encode_feed_frame(&frame).is_ok());
            }
        }
    }
}

// Limits

/// Both sides refuse the same: the bytes are made of a good message by the given change.
fn refused_as_bytes(good: &[u8], from: &[u8], to: &[u8]) -> Result<FeedRequest, CodecError> {
    let at = good.windows(from.len()).position(|window| window == from).unwrap();
    decode_feed_request(&[&good[..at], to, &good[at + from.len()..]].concat())
}

#[test]
fn the_largest_messages_fit_their_limits() {
    let request = request(streams(MAX_FEED_STREAMS));
    let bytes = encode_feed_request(&request).unwrap();
    assert!(bytes.len() <= MAX_FEED_REQUEST_BYTES, "{} bytes", bytes.len());
    assert_eq!(decode_feed_request(&bytes), Ok(request));
    let streams_named = streams(MAX_FEED_STREAMS);
    let request =
        FeedRequest::Snapshots { topic: Topic::spanning(&streams_named[0]), streams: streams_named };
    assert_eq!(decode_feed_request(&encode_feed_request(&request).unwrap()), Ok(request));

    let end = FeedEnd::Refused { oldest: Some(at(MAX_SEQUENCE)) };
    let end = FeedFrame::End { streams: streams(MAX_FEED_STREAMS).into_iter().map(|of| (of, end)).collect() };
    let source = SourceStatus { name: "x".repeat(MAX_SOURCE_NAME_BYTES), warm: true, lag: u64::MAX };
    let status = FeedFrame::Status(Status {
        boot: u64::MAX,
        region: "x".repeat(MAX_REGION_BYTES),
        sources: vec![source; MAX_STATUS_SOURCES],
        lag_us: u64::MAX,
    });
    let state = FeedFrame::State { chunk: vec![1; MAX_STATE_CHUNK_BYTES].into(), last: true };
    let refused = FeedFrame::refused("é".repeat(MAX_REASON_BYTES));
    for frame in [
        end,
        status,
        state,
        refused,
        page(vec![b'1'; MAX_EVENT_DATA_BYTES]),
        snapshots(vec![b'1'; MAX_EVENT_DATA_BYTES]),
    ] {
        let bytes: Bytes = encode_feed_frame(&frame).unwrap().into();
        assert!(bytes.len() <= MAX_FEED_FRAME_BYTES);
        assert_eq!(decode_feed_frame(&bytes), Ok(frame));
    }
}

#[test]
fn a_page_of_the_largest_envelope_fits() {
    let with = |rest: usize| {
        let mut batch = batch(vec![b'1'; MAX_EVENT_DATA_BYTES]);
        for bytes in [MAX_EVENT_DATA_BYTES / 2, rest] {
            let mut event = batch.events[0].clone();
            event.data = vec![b'1'; bytes].into();
            batch.events.push(event);
        }
        SignedBatch::sign_page(batch, &KEY)
    };
    let some = MAX_EVENT_DATA_BYTES / 4;
    let most = tickmesh_protocol::codec::MAX_ENVELOPE_BYTES;
    let largest = with(some + most - with(some).unwrap().envelope().len()).unwrap();
    assert_eq!(largest.envelope().len(), most);
    let bytes = encode_feed_frame(&FeedFrame::Page(largest.clone())).unwrap();
    assert_eq!(decode_feed_frame(&bytes.into()), Ok(FeedFrame::Page(largest)));
}

#[test]
fn what_is_too_much_is_refused_when_written() {
    let too_many = request(streams(MAX_FEED_STREAMS + 1));
    assert_eq!(encode_feed_request(&too_many), Err(CodecError::StreamCount(MAX_FEED_STREAMS + 1)));
    assert_eq!(encode_feed_request(&request(vec![])), Err(CodecError::StreamCount(0)));
    let twice = encode_feed_request(&request(vec![stream(), stream()]));
    assert_eq!(twice, Err(CodecError::RepeatedStream("trades.btc_usdt".into())));
    let foreign = encode_feed_request(&request(vec![stream(), "trades.eth_usdt".parse().unwrap()]));
    assert_eq!(foreign, Err(CodecError::ForeignStream("trades.eth_usdt".into())));
    let of =
        |streams| encode_feed_request(&FeedRequest::Snapshots { topic: Topic::spanning(&stream()), streams });
    assert_eq!(of(vec![]), Err(CodecError::StreamCount(0)));
    assert_eq!(of(vec![stream(); MAX_FEED_STREAMS + 1]), Err(CodecError::StreamCount(MAX_FEED_STREAMS + 1)));
    assert_eq!(of(vec![stream(), stream()]), Err(CodecError::RepeatedStream("trades.btc_usdt".into())));
    let foreign = of(vec!["trades.eth_usdt".parse().unwrap()]);
    assert_eq!(foreign, Err(CodecError::ForeignStream("trades.eth_usdt".into())));
    let long = FeedRequest::State { source: "x".repeat(MAX_SOURCE_NAME_BYTES + 1) };
    assert!(matches!(encode_feed_request(&long), Err(CodecError::TextTooLong { bytes: 65, .. })));

    let end = FeedEnd::Complete { head: None };
    let end =
        FeedFrame::End { streams: streams(MAX_FEED_STREAMS + 1).into_iter().map(|of| (of, end)).collect() };
    assert_eq!(encode_feed_frame(&end), Err(CodecError::StreamCount(MAX_FEED_STREAMS + 1)));
    let source = SourceStatus { name: "x".into(), warm: true, lag: 0 };
    let status = |status| encode_feed_frame(&FeedFrame::Status(status));
    assert_eq!(
        status(Status { sources: vec![source; MAX_STATUS_SOURCES + 1], ..Status::default() }),
        Err(CodecError::SourceCount(MAX_STATUS_SOURCES + 1))
    );
    let region = Status { region: "x".repeat(MAX_REGION_BYTES + 1), ..Status::default() };
    assert!(matches!(status(region), Err(CodecError::TextTooLong { .. })));
    let chunk = FeedFrame::State { chunk: vec![0; MAX_STATE_CHUNK_BYTES + 1].into(), last: false };
    assert!(matches!(encode_feed_frame(&chunk), Err(CodecError::TooLarge { .. })));
    let reason = FeedFrame::Refused { reason: "x".repeat(MAX_REASON_BYTES + 1) };
    assert!(matches!(encode_feed_frame(&reason), Err(CodecError::TextTooLong { .. })));
}

#[test]
fn what_is_too_much_is_refused_when_read() {
    let two = encode_feed_request(&request(streams(2))).unwrap();
    let [first, second] = [0, 1].map(|index: usize| streams(2)[index].as_str().as_bytes().to_vec());
    assert!(matches!(refused_as_bytes(&two, &second, &first), Err(CodecError::RepeatedStream(_))));
    let mut foreign = second.clone();
    foreign[..16].copy_from_slice(b"candles.eth_usdt");
    assert!(matches!(refused_as_bytes(&two, &second, &foreign), Err(CodecError::ForeignStream(_))));
    let mut upper = second.clone();
    upper[0] = b'C';
    assert!(matches!(refused_as_bytes(&two, &second, &upper), Err(CodecError::Stream(_))));
    let beyond = refused_as_bytes(&two, &MAX_SEQUENCE.to_le_bytes(), &(MAX_SEQUENCE + 1).to_le_bytes());
    assert!(matches!(beyond, Err(CodecError::Sequence(_))));
    let topic = refused_as_bytes(&two, b"/tickmesh/1", b"/tickmesh/7");
    assert!(matches!(topic, Err(CodecError::Topic(_))));
    let large = vec![VERSION; MAX_FEED_REQUEST_BYTES + 1];
    assert!(matches!(decode_feed_request(&large), Err(CodecError::TooLarge { .. })));
    // Variant 0, the topic, and then a number of streams that no memory holds.
    let start = two.windows(7).position(|window| window == b"candles").unwrap();
    let count = two.iter().enumerate().skip(start).find(|(_, byte)| **byte == 2).unwrap().0;
    let claims = [&two[..count], &[0xfd], &u64::MAX.to_le_bytes()[..]].concat();
    assert!(matches!(decode_feed_request(&claims), Err(CodecError::Format(_))));

    let long = [&[VERSION, 4, 0xfb], &257u16.to_le_bytes()[..], &[b'x'; 257]].concat();
    assert!(matches!(
        decode_feed_frame(&long.into()),
        Err(InvalidBatch::Codec(CodecError::TextTooLong { bytes: 257, .. }))
    ));
    let chunk = [&[VERSION, 3, 0xfc], &131_073u32.to_le_bytes()[..], &[0; 131_073], &[1]].concat();
    assert!(matches!(
        decode_feed_frame(&chunk.into()),
        Err(InvalidBatch::Codec(CodecError::TooLarge { .. }))
    ));
    let large = vec![VERSION; MAX_FEED_FRAME_BYTES + 1].into();
    assert!(matches!(decode_feed_frame(&large), Err(InvalidBatch::Codec(CodecError::TooLarge { .. }))));
}

#[test]
fn an_unknown_version_is_refused_by_name() {
    let mut bytes = encode_feed_request(&FeedRequest::Status).unwrap();
    bytes[0] = 77;
    let refused = decode_feed_request(&bytes).unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!("version 77 of the mesh protocol is not known here, only version {VERSION}")
    );
    let mut bytes = encode_feed_frame(&FeedFrame::Working).unwrap();
    bytes[0] = 1;
    assert_eq!(decode_feed_frame(&bytes.into()), Err(InvalidBatch::Codec(CodecError::UnknownVersion(1))));
}

#[test]
fn batches_pages_and_snapshots_are_not_taken_for_one_another() {
    type Sign = fn(Batch, &SigningKey) -> Result<SignedBatch, CodecError>;
    type Open = fn(Bytes) -> Result<SignedBatch, InvalidBatch>;
    let kinds: [(Sign, Open); 3] = [
        (SignedBatch::sign, SignedBatch::open),
        (SignedBatch::sign_page, SignedBatch::open_page),
        (SignedBatch::sign_snapshots, SignedBatch::open_snapshots),
    ];
    for (signed_as, (sign, _)) in kinds.iter().enumerate() {
        let signed = sign(batch("1"), &KEY).unwrap();
        for (opened_as, (_, open)) in kinds.iter().enumerate() {
            let opened = open(signed.envelope().clone());
            let expected =
                if signed_as == opened_as { Ok(signed.clone()) } else { Err(InvalidBatch::Signature) };
            assert_eq!(opened, expected, "signed as {signed_as}, opened as {opened_as}");
        }
        for (kind, frame) in [(1, FeedFrame::Page(signed.clone())), (2, FeedFrame::Snapshots(signed.clone()))]
        {
            let decoded = decode_feed_frame(&encode_feed_frame(&frame).unwrap().into());
            assert_eq!(decoded, if kind == signed_as { Ok(frame) } else { Err(InvalidBatch::Signature) });
        }
    }
}

#[test]
fn a_long_reason_is_cut_at_a_letter() {
    let FeedFrame::Refused { reason } = FeedFrame::refused(format!("x{}", "é".repeat(MAX_REASON_BYTES)))
    else {
        panic!()
    };
    assert_eq!(reason.len(), MAX_REASON_BYTES - 1);
}
