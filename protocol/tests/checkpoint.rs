//! States of ingest peers as bytes: what is written is read back, what is damaged is refused and told.

#![allow(clippy::unwrap_used, reason = "clippy knows only the #[test] functions as tests, not their helpers")]

use std::sync::Arc;

use bytes::Bytes;
use proptest::{prelude::*, sample::Index};
use tickmesh_protocol::{
    Epoch, Position, Sequence, StreamName,
    book::Book,
    checkpoint::{
        MAX_STATE_BYTES, MAX_STATE_LEFT_EPOCHS, MAX_STATE_NAME_BYTES, MAX_STATE_SOURCES, OperatorState,
        PartitionState, Retained, RetainedData, SourceState, State, StreamState,
    },
    codec::{STATE_VERSION, StateError, decode_state, encode_state},
    event::MAX_EVENT_DATA_BYTES,
    position::MAX_SEQUENCE,
};

fn sequence(number: u64) -> Sequence {
    Sequence::new(number).unwrap()
}

fn partition() -> PartitionState {
    PartitionState {
        epoch: Epoch::from_u64(0xfedc_ba98_7654_3210),
        topic: "market.trades".into(),
        partition: 300,
        next: MAX_SEQUENCE + 1,
        read_from: sequence(251),
        term: Some(7),
    }
}

fn stream() -> StreamState {
    StreamState {
        name: "trades.btc_usdt".parse().unwrap(),
        last: Position { epoch: Epoch::from_u64(0xfedc_ba98_7654_3210), sequence: sequence(MAX_SEQUENCE) },
        left: vec![Epoch::from_u64(1), Epoch::from_u64(300)],
        retained: None,
    }
}

fn last(data: &str) -> Option<Retained> {
    let what = RetainedData::Last(data.to_owned().into());
    Some(Retained { engine_time_us: 1_724_548_381_123_456, what })
}

fn book(data: &str) -> Option<Retained> {
    let mut book = Book::default();
    book.apply(data.as_bytes()).unwrap();
    Some(Retained { engine_time_us: 0, what: RetainedData::Book(Arc::new(book)) })
}

fn retaining(name: &str, retained: Option<Retained>) -> StreamState {
    StreamState { name: name.parse().unwrap(), retained, ..stream() }
}

/// Every variant and every width of a number once.
fn state() -> State {
    let young = PartitionState {
        epoch: Epoch::from_u64(9),
        next: 0,
        read_from: sequence(0),
        term: None,
        ..partition()
    };
    let ticker = retaining("ticker.btc_usdt", last("{\"price\":\"36200.5\"}"));
    let depth = retaining("depth.btc_usdt", book(BOOK));
    let streams = vec![stream(), ticker, depth];
    let operators =
        vec![OperatorState { epoch: Epoch::from_u64(7), route: 9, state: Bytes::from_static(b"any\0bytes") }];
    let engine =
        SourceState { name: "engine".into(), partitions: vec![partition(), young], streams, operators };
    State { sources: vec![engine, SourceState { name: "é".into(), ..SourceState::default() }] }
}

/// Bytes around a body, with the right length and hash.
fn framed(version: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u64).to_le_bytes();
    let mut bytes = [&b"tickmesh"[..], &[version], &length, body].concat();
    let hash = blake3::hash(&bytes);
    bytes.extend_from_slice(hash.as_bytes());
    bytes
}

fn body(state: &State) -> Vec<u8> {
    let bytes = encode_state(state).unwrap();
    bytes[17..bytes.len() - 32].to_vec()
}

const BOOK: &str = "{\"asks\":[[\"36200.5\",\"1.20\"]],\"bids\":[],\"snapshot\":true,\"timestamp\":7}";

const GOLDEN: &str = "
7469636b6d6573680337010000000000000206656e67696e65020301fd1032547698badcfe0d6d61726b65742e747261
646573fb2c01fd0000000000002000fbfb000107090d6d61726b65742e747261646573fb2c010000000f747261646573
2e6274635f75736474fd1032547698badcfefdffffffffffff1f000201fb2c01000f7469636b65722e6274635f757364
74fd1032547698badcfefdffffffffffff1f000201fb2c0101fd80a3a7b57720060000137b227072696365223a223336
3230302e35227d0e64657074682e6274635f75736474fd1032547698badcfefdffffffffffff1f000201fb2c01010001
457b2261736b73223a5b5b2233363230302e35222c22312e3230225d5d2c2262696473223a5b5d2c22736e617073686f
74223a747275652c2274696d657374616d70223a377d070909616e7900627974657302c3a9000000d5db0f746463052d
5eb47c933b9d8941396b41a0b67e32e355941b7704713691
";

#[test]
fn a_state_has_these_bytes() {
    let hex: String = encode_state(&state()).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, GOLDEN.replace('\n', ""), "the format changed and needs a new version byte");
    assert_eq!(decode_state(&encode_state(&state()).unwrap()), Ok(state()));
}

#[test]
fn each_kind_of_damage_is_told() {
    let good = encode_state(&state()).unwrap();
    assert_eq!(decode_state(b""), Err(StateError::Magic));
    assert_eq!(decode_state(b"{\"sources\":[]}"), Err(StateError::Magic));
    for cut in 0..good.len() {
        let error = decode_state(&good[..cut]).unwrap_err();
        let right =
            if cut < 8 { error == StateError::Magic } else { matches!(error, StateError::Short { .. }) };
        assert!(right, "cut at {cut}: {error}");
    }
    assert_eq!(decode_state(&[&good[..], b"x"].concat()), Err(StateError::Trailing(1)));
    // A newer version is named, whatever it looks like.
    assert_eq!(decode_state(b"tickmesh\x04 and so on"), Err(StateError::UnknownVersion(4)));
    assert_eq!(decode_state(&framed(0, &body(&state()))), Err(StateError::UnknownVersion(0)));
    let mut changed = good;
    changed[40] ^= 1;
    assert_eq!(decode_state(&changed), Err(StateError::Hash));
    assert_eq!(decode_state(&vec![0; MAX_STATE_BYTES + 1]), Err(StateError::TooLarge));
    assert_eq!(decode_state(&framed(STATE_VERSION, &body(&state()))), Ok(state()));
    let longer = [&body(&state())[..], b"x"].concat();
    assert!(matches!(decode_state(&framed(STATE_VERSION, &longer)), Err(StateError::Format(_))));
    let claim = [0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    assert!(matches!(decode_state(&framed(STATE_VERSION, &claim)), Err(StateError::Format(_))));
    let partitions = [&[1, 1, b'x'], &claim[..], &[0]].concat();
    assert!(matches!(decode_state(&framed(STATE_VERSION, &partitions)), Err(StateError::Format(_))));
}

#[test]
fn limits_hold_on_both_sides() {
    let with = |partitions, streams| State {
        sources: vec![SourceState { name: "engine".into(), partitions, streams, operators: Vec::new() }],
    };
    let too_far = with(vec![PartitionState { next: MAX_SEQUENCE + 2, ..partition() }], vec![]);
    let long: String = "x".repeat(MAX_STATE_NAME_BYTES + 1);
    let long_topic = with(vec![PartitionState { topic: long.as_str().into(), ..partition() }], vec![]);
    let no_name = State { sources: vec![SourceState::default()] };
    let left = vec![Epoch::from_u64(1); MAX_STATE_LEFT_EPOCHS + 1];
    let left = with(vec![], vec![StreamState { left, ..stream() }]);
    let sources = vec![SourceState { name: "a".into(), ..SourceState::default() }; MAX_STATE_SOURCES + 1];
    for refused in [too_far, long_topic, no_name, left, State { sources }] {
        assert!(matches!(encode_state(&refused), Err(StateError::Format(_))));
    }
    // The same from outside: a sequence, a name and a stream that nobody here would write.
    let good = body(&with(vec![], vec![stream()]));
    let name = good.windows(6).position(|bytes| bytes == b"trades").unwrap();
    let mut upper = good.clone();
    upper[name] = b'T';
    assert!(matches!(decode_state(&framed(STATE_VERSION, &upper)), Err(StateError::Format(_))));
    let sequence = (MAX_SEQUENCE).to_le_bytes();
    let at = good.windows(8).position(|bytes| bytes == sequence).unwrap();
    let mut beyond = good;
    beyond[at + 7] = 1;
    assert!(matches!(decode_state(&framed(STATE_VERSION, &beyond)), Err(StateError::Format(_))));
}

#[test]
fn a_million_streams_are_within_the_limit_and_far_more_are_refused() {
    let stream = |number: u32| StreamState {
        name: StreamName::new("trades", &format!("s{number}"), None).unwrap(),
        last: Position { epoch: Epoch::from_u64(u64::MAX), sequence: sequence(MAX_SEQUENCE) },
        left: vec![Epoch::from_u64(u64::MAX)],
        retained: None,
    };
    let mut state = State { sources: vec![SourceState { name: "engine".into(), ..SourceState::default() }] };
    // A tenth of a million, for the test's time.
    state.sources[0].streams = (0..100_000).map(stream).collect();
    let bytes = encode_state(&state).unwrap();
    assert!(bytes.len() * 10 < MAX_STATE_BYTES);
    assert_eq!(decode_state(&bytes).unwrap().sources[0].streams.len(), 100_000);
    let topic = "x".repeat(MAX_STATE_NAME_BYTES);
    state.sources[0].partitions = vec![PartitionState { topic: topic.into(), ..partition() }; 250_000];
    assert_eq!(encode_state(&state), Err(StateError::TooLarge));
}

fn any_sequence() -> impl Strategy<Value = Sequence> {
    prop_oneof![0..=300u64, 0..=MAX_SEQUENCE, Just(MAX_SEQUENCE)].prop_map(sequence)
}

fn any_epoch() -> impl Strategy<Value = Epoch> {
    any::<u64>().prop_map(Epoch::from_u64)
}

fn any_retained() -> impl Strategy<Value = Option<Retained>> {
    let levels = || prop::collection::vec(("[1-9][0-9]{0,5}", "[0-9]{1,4}[.][0-9]{1,3}"), 0..9);
    prop_oneof![
        Just(None),
        ".{0,60}".prop_map(|text| last(&serde_json::to_string(&text).unwrap())),
        (levels(), levels()).prop_map(|(asks, bids)| {
            book(&serde_json::json!({ "asks": asks, "bids": bids, "snapshot": true }).to_string())
        }),
    ]
}

fn any_source() -> impl Strategy<Value = SourceState> {
    let partition =
        (any_epoch(), ".{1,60}", any::<u32>(), 0..=MAX_SEQUENCE + 1, any_sequence(), any::<Option<u32>>())
            .prop_map(|(epoch, topic, partition, next, read_from, term)| PartitionState {
                epoch,
                topic: topic.into(),
                partition,
                next,
                read_from,
                term,
            });
    let stream = (
        "[a-z0-9_-]{1,20}",
        "[a-z0-9_-]{1,40}",
        any_epoch(),
        any_sequence(),
        prop::collection::vec(any_epoch(), 0..9),
        any_retained(),
    )
        .prop_map(|(channel, key, epoch, sequence, left, retained)| StreamState {
            name: StreamName::new(&channel, &key, None).unwrap(),
            last: Position { epoch, sequence },
            left,
            retained,
        });
    let operator = (any_epoch(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..60))
        .prop_map(|(epoch, route, state)| OperatorState { epoch, route, state: state.into() });
    let name = ".{1,60}";
    let (partitions, streams) = (prop::collection::vec(partition, 0..9), prop::collection::vec(stream, 0..9));
    (name, partitions, streams, prop::collection::vec(operator, 0..4)).prop_map(
        |(name, partitions, streams, operators)| SourceState { name, partitions, streams, operators },
    )
}

/// What is retained is given to clients: it is looked at when it is read.
#[test]
fn what_is_retained_is_json_and_a_whole_book() {
    let with = |retained| State {
        sources: vec![SourceState {
            name: "engine".into(),
            streams: vec![retaining("depth.a", retained)],
            ..SourceState::default()
        }],
    };
    let too_large = with(last(&"1".repeat(MAX_EVENT_DATA_BYTES + 1)));
    assert!(matches!(encode_state(&too_large), Err(StateError::Format(_))));
    let broken = Retained { engine_time_us: 0, what: RetainedData::Book(Arc::default()) };
    assert_eq!(decode_state(&encode_state(&with(Some(broken))).unwrap()), Ok(with(None)), "no book at all");
    let good = body(&with(book(BOOK)));
    let changed = |from: &str, to: &str| {
        let at = good.windows(from.len()).position(|bytes| bytes == from.as_bytes()).unwrap();
        decode_state(&framed(STATE_VERSION, &[&good[..at], to.as_bytes(), &good[at + from.len()..]].concat()))
    };
    assert_eq!(changed("1.20", "1.20"), Ok(with(book(BOOK))));
    for (from, to) in [("true", "null"), ("1.20", "1,20"), ("asks", "bids"), ("}", "]")] {
        assert!(matches!(changed(from, to), Err(StateError::Format(_))), "{from} as {to}");
    }
    let text = encode_state(&with(last("no JSON"))).unwrap();
    assert!(matches!(decode_state(&text), Err(StateError::Format(_))));
}

#[test]
fn the_largest_of_what_is_retained_is_left_out_if_it_does_not_fit() {
    let mut state = state();
    let before = state.clone();
    assert_eq!(state.fit(), 0);
    assert_eq!(state, before);
    // Of 300 KiB each, more than there is room for; and some small ones.
    let large = last(&format!("\"{}\"", "x".repeat(300 << 10)));
    let small = last("1");
    let streams = (0..300).map(|number| {
        let retained = if number % 10 == 0 { small.clone() } else { large.clone() };
        retaining(&format!("ticker.s{number}"), retained)
    });
    state.sources[0].streams.extend(streams);
    assert_eq!(encode_state(&state), Err(StateError::TooLarge));
    let left_out = state.fit();
    let bytes = encode_state(&state).unwrap();
    assert!(
        bytes.len() + (400 << 10) > MAX_STATE_BYTES,
        "{} bytes, {left_out} left out: no more than needed",
        bytes.len()
    );
    let decoded = decode_state(&bytes).unwrap();
    let kept = |of: &Option<Retained>| {
        decoded.sources[0].streams.iter().filter(|stream| stream.retained == *of).count()
    };
    assert_eq!((kept(&small), kept(&large), kept(&None)), (30, 270 - left_out, 1 + left_out));
}

proptest! {
    #[test]
    fn every_state_comes_back(sources in prop::collection::vec(any_source(), 0..5)) {
        let state = State { sources };
        let bytes = encode_state(&state).unwrap();
        prop_assert_eq!(decode_state(&bytes), Ok(state));
    }

    #[test]
    fn no_change_goes_unnoticed(
        sources in prop::collection::vec(any_source(), 0..3), at in any::<Index>(), flip in 1..=255u8,
    ) {
        let mut bytes = encode_state(&State { sources }).unwrap();
        let at = at.index(bytes.len());
        prop_assert!(decode_state(&bytes[..at]).is_err());
        bytes[at] ^= flip;
        prop_assert!(decode_state(&bytes).is_err(), "byte {} changed", at);
    }

    #[test]
    fn any_body_is_answered(body in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(decode_state(&body).is_err());
        if let Ok(state) = decode_state(&framed(STATE_VERSION, &body)) {
            let again = encode_state(&state).unwrap();
            prop_assert_eq!(decode_state(&again), Ok(state));
        }
    }
}
