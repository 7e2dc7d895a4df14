//! The mesh codec: what is written is read back, what is changed is refused, and each limit holds on both sides.

#![allow(clippy::unwrap_used, reason = "clippy knows only the #[test] functions as tests, not their helpers")]

use std::sync::LazyLock;

use bytes::Bytes;
use proptest::{prelude::*, sample::Index};
use tickmesh_protocol::{
    Batch, Epoch, Event, Position, Previous, Sequence, SignedBatch, SigningKey, StreamName, Topic,
    batch::{InvalidBatch, MAX_BATCH_EVENTS, MAX_BATCH_HEADS, SIGNATURE_BYTES},
    codec::{
        CodecError, MAX_ENVELOPE_BYTES, MAX_HEAD_BYTES, VERSION, decode_head_reply, decode_head_request,
        encode_head_reply, encode_head_request,
    },
    event::MAX_EVENT_DATA_BYTES,
    head::{Head, HeadReply, HeadRequest, MAX_HEAD_LEFT, MAX_HEAD_READ, MAX_HEAD_STREAMS},
    policy::{ChannelPolicy, OnSlow, Retain},
    position::MAX_SEQUENCE,
    signature::InvalidSignature,
    stream::MAX_STREAM_NAME_BYTES,
};

static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_bytes(&[7; 32]));

fn event(stream: &StreamName, data: impl Into<Bytes>) -> Event {
    Event {
        stream: stream.clone(),
        epoch: Epoch::from_u64(1),
        sequence: Sequence::new(2).unwrap(),
        previous: Previous::At(Sequence::new(1).unwrap()),
        engine_time_us: 3,
        data: data.into(),
        signature: None,
    }
}

fn stream() -> StreamName {
    "trades.btc_usdt".parse().unwrap()
}

fn batch_of(events: Vec<Event>) -> Batch {
    let topic = Topic::spanning(&events.first().map_or_else(stream, |event| event.stream.clone()));
    Batch { publisher: KEY.publisher(), boot: 1, counter: 2, topic, events, heads: Vec::new() }
}

/// A batch and its envelope, of one event of 200 bytes.
fn signed() -> SignedBatch {
    SignedBatch::sign(batch_of(vec![event(&stream(), vec![b'1'; 200])]), &KEY).unwrap()
}

/// A body, signed as if it were a batch, so that what follows the signature check is met too.
fn signed_body(body: &[u8]) -> Bytes {
    use ed25519_dalek::Signer;
    let key = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let signature = key.sign(&[b"tickmesh batch\0", body].concat());
    [body, &signature.to_bytes()].concat().into()
}

// Properties

fn any_sequence() -> impl Strategy<Value = Sequence> {
    prop_oneof![0..=300u64, 60_000..=70_000u64, 0..=MAX_SEQUENCE, Just(MAX_SEQUENCE)]
        .prop_map(|number| Sequence::new(number).unwrap())
}

fn any_position() -> impl Strategy<Value = Position> {
    (any::<u64>(), any_sequence())
        .prop_map(|(epoch, sequence)| Position { epoch: Epoch::from_u64(epoch), sequence })
}

fn any_event(streams: Vec<StreamName>) -> impl Strategy<Value = Event> {
    let previous = prop_oneof![
        any_sequence().prop_map(Previous::At),
        any_sequence().prop_map(|read_from| Previous::Unknown { read_from }),
        any_position().prop_map(|after| Previous::Reset { after }),
    ];
    let signature = prop::option::of("[A-Za-z0-9_-]{1,200}\\.\\.[A-Za-z0-9_-]{1,86}");
    (
        prop::sample::select(streams),
        any::<u64>(),
        any_sequence(),
        previous,
        any::<u64>(),
        ".{0,300}",
        signature,
    )
        .prop_map(|(stream, epoch, sequence, previous, engine_time_us, data, signature)| Event {
            stream,
            epoch: Epoch::from_u64(epoch),
            sequence,
            previous,
            engine_time_us,
            data: data.into(),
            signature: signature.map(|text| text.parse().unwrap()),
        })
}

fn any_batch() -> impl Strategy<Value = Batch> {
    ("[a-z0-9_-]{1,20}", "[a-z0-9_-]{1,40}", prop::collection::vec("[a-z0-9_-]{1,20}", 0..4))
        .prop_flat_map(|(channel, key, variants)| {
            let plain = StreamName::new(&channel, &key, None).unwrap();
            let mut streams = vec![plain];
            streams.extend(variants.iter().map(|v| StreamName::new(&channel, &key, Some(v)).unwrap()));
            let topic = Topic::spanning(&streams[0]);
            let heads = (prop::sample::select(streams.clone()), any_position());
            let heads = prop::collection::vec(heads, 0..20);
            let events = prop::collection::vec(any_event(streams), 0..40);
            (Just(topic), any::<u64>(), any::<u64>(), events, heads)
        })
        .prop_filter("neither events nor heads", |(_, _, _, events, heads)| events.len() + heads.len() > 0)
        .prop_map(|(topic, boot, counter, events, heads)| Batch {
            publisher: KEY.publisher(),
            boot,
            counter,
            topic,
            events,
            heads,
        })
}

proptest! {
    #[test]
    fn every_batch_comes_back(batch in any_batch()) {
        let signed = SignedBatch::sign(batch.clone(), &KEY).unwrap();
        prop_assert_eq!(signed.batch(), &batch);
        let opened = SignedBatch::open(signed.envelope().clone()).unwrap();
        prop_assert_eq!(&opened, &signed);
        prop_assert_eq!(SignedBatch::open_page(signed.envelope().clone()), Err(InvalidBatch::Signature));
    }

    #[test]
    fn a_page_is_no_batch(page in any_batch()) {
        let signed = SignedBatch::sign_page(page.clone(), &KEY).unwrap();
        let opened = SignedBatch::open_page(signed.envelope().clone()).unwrap();
        prop_assert_eq!(opened.batch(), &page);
        prop_assert_eq!(SignedBatch::open(signed.envelope().clone()), Err(InvalidBatch::Signature));
    }

    #[test]
    fn no_changed_byte_goes_unnoticed(batch in any_batch(), at in any::<Index>(), flip in 1..=255u8) {
        let mut bytes = SignedBatch::sign(batch, &KEY).unwrap().envelope().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(SignedBatch::open(bytes.into()).is_err(), "byte {} changed", at);
    }

    #[test]
    fn no_cut_or_addition_goes_unnoticed(
        batch in any_batch(), at in any::<Index>(), extra in prop::collection::vec(any::<u8>(), 1..80),
    ) {
        let bytes = SignedBatch::sign(batch, &KEY).unwrap().envelope().to_vec();
        let at = at.index(bytes.len());
        prop_assert!(SignedBatch::open(bytes[..at].to_vec().into()).is_err(), "cut at {}", at);
        prop_assert!(SignedBatch::open([&bytes[..], &extra].concat().into()).is_err(), "bytes added at the end");
        let inserted = [&bytes[..at], &extra, &bytes[at..]].concat();
        // Putting a byte before an equal one can give a longer text, never the same one.
        prop_assert!(SignedBatch::open(inserted.into()).is_err(), "bytes added at {}", at);
    }

    #[test]
    fn no_other_key_signs_for_a_publisher(batch in any_batch(), secret in any::<[u8; 32]>()) {
        prop_assume!(secret != [7; 32]);
        let forger = SigningKey::from_bytes(&secret);
        let forged = SignedBatch::sign(Batch { publisher: forger.publisher(), ..batch }, &forger).unwrap();
        // The forger's bytes with the victim's name in it, just after the version byte.
        let mut bytes = forged.envelope().to_vec();
        bytes[1..33].copy_from_slice(&KEY.publisher().0);
        prop_assert_eq!(SignedBatch::open(bytes.into()), Err(InvalidBatch::Signature));
    }

    #[test]
    fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        for version in [None, Some(VERSION)] {
            let mut bytes = bytes.clone();
            if let (Some(first), Some(version)) = (bytes.first_mut(), version) {
                *first = version;
            }
            let _ = decode_head_request(&bytes);
            let _ = decode_head_reply(&bytes);
            prop_assert!(SignedBatch::open(bytes.clone().into()).is_err());
            // With a good signature it may even be a batch, but then one that can be sent again.
            if let Ok(opened) = SignedBatch::open(signed_body(&bytes)) {
                prop_assert!(SignedBatch::sign(opened.batch().clone(), &KEY).is_ok());
            }
        }
    }

    #[test]
    fn every_head_request_comes_back(
        channel in "[a-z]{1,8}", key in "[a-z0-9_-]{1,40}", variants in prop::collection::vec("[a-z0-9]{1,8}", 1..100),
    ) {
        let streams: Vec<_> =
            variants.iter().map(|v| StreamName::new(&channel, &key, Some(v)).unwrap()).collect();
        let request = HeadRequest { topic: Topic::spanning(&streams[0]), streams };
        prop_assert_eq!(decode_head_request(&encode_head_request(&request).unwrap()), Ok(request));
    }

    #[test]
    fn every_head_reply_comes_back(
        heads in prop::collection::vec(any_head(), 1..MAX_HEAD_STREAMS),
        read in prop::collection::vec(any_position(), 0..50),
        policy in any_policy(),
    ) {
        let left = read.iter().map(|at| (7, at.epoch)).collect();
        let reply = HeadReply { heads, read, left, policy };
        prop_assert_eq!(decode_head_reply(&encode_head_reply(&reply).unwrap()), Ok(reply));
    }
}

fn any_policy() -> impl Strategy<Value = ChannelPolicy> {
    let retain = prop::sample::select(&[Retain::None, Retain::Last, Retain::Book][..]);
    let on_slow = prop::sample::select(&[OnSlow::Disconnect, OnSlow::Conflate, OnSlow::Resync][..]);
    (retain, on_slow).prop_map(|(retain, on_slow)| ChannelPolicy { retain, on_slow })
}

fn any_head() -> impl Strategy<Value = Head> {
    prop_oneof![
        any_position().prop_map(Head::At),
        Just(Head::Empty),
        Just(Head::UnknownChannel),
        Just(Head::Private),
    ]
}

// Limits

#[test]
fn event_count_is_bounded_when_signing() {
    let sign = |count: usize| SignedBatch::sign(batch_of(vec![event(&stream(), "1"); count]), &KEY);
    assert_eq!(sign(0), Err(CodecError::EventCount(0)));
    let full = sign(MAX_BATCH_EVENTS).unwrap();
    assert_eq!(SignedBatch::open(full.envelope().clone()).unwrap().batch().events.len(), MAX_BATCH_EVENTS);
    assert_eq!(sign(MAX_BATCH_EVENTS + 1), Err(CodecError::EventCount(MAX_BATCH_EVENTS + 1)));
}

#[test]
fn head_count_is_bounded() {
    let at = Position { epoch: Epoch::from_u64(1), sequence: Sequence::ZERO };
    let sign =
        |heads| SignedBatch::sign(Batch { heads: vec![(stream(), at); heads], ..batch_of(Vec::new()) }, &KEY);
    let full = sign(MAX_BATCH_HEADS).unwrap();
    assert_eq!(SignedBatch::open(full.envelope().clone()).unwrap().batch().heads.len(), MAX_BATCH_HEADS);
    assert_eq!(sign(MAX_BATCH_HEADS + 1), Err(CodecError::HeadCount(MAX_BATCH_HEADS + 1)));
    let eth: StreamName = "trades.eth_usdt".parse().unwrap();
    let foreign = Batch { heads: vec![(eth, at)], ..batch_of(Vec::new()) };
    assert_eq!(SignedBatch::sign(foreign, &KEY), Err(CodecError::ForeignStream("trades.eth_usdt".into())));
}

#[test]
fn event_count_is_bounded_when_opening() {
    let head = head_of_body();
    let event_bytes = single_event_bytes();
    let body = |count: u16| {
        let mut body = head.clone();
        body.push(0xfb); // bincode: a 16-bit number follows
        body.extend_from_slice(&count.to_le_bytes());
        body.extend(event_bytes.iter().copied().cycle().take(event_bytes.len() * usize::from(count)));
        body.push(0); // no heads
        body
    };
    let most = u16::try_from(MAX_BATCH_EVENTS).unwrap();
    assert!(SignedBatch::open(signed_body(&body(most))).is_ok());
    let refused = |events| Err(InvalidBatch::Codec(CodecError::EventCount(events)));
    assert_eq!(SignedBatch::open(signed_body(&body(most + 1))), refused(MAX_BATCH_EVENTS + 1));
    assert_eq!(SignedBatch::open(signed_body(&body(0))), refused(0));
}

/// The body of a batch up to the number of events.
fn head_of_body() -> Vec<u8> {
    let one = SignedBatch::sign(batch_of(vec![event(&stream(), "1")]), &KEY).unwrap();
    let body = &one.envelope()[..one.envelope().len() - SIGNATURE_BYTES];
    // The numbers of events and heads are a byte each.
    body[..body.len() - single_event_bytes().len() - 2].to_vec()
}

/// What one more event adds to a batch.
fn single_event_bytes() -> Vec<u8> {
    let body = |count: usize| {
        let signed = SignedBatch::sign(batch_of(vec![event(&stream(), "1"); count]), &KEY).unwrap();
        signed.envelope()[..signed.envelope().len() - SIGNATURE_BYTES].to_vec()
    };
    let (one, two) = (body(1), body(2));
    // The last byte is the number of heads.
    two[one.len() - 1..two.len() - 1].to_vec()
}

#[test]
fn data_size_is_bounded() {
    let sign = |bytes: usize| SignedBatch::sign(batch_of(vec![event(&stream(), vec![b'1'; bytes])]), &KEY);
    let largest = sign(MAX_EVENT_DATA_BYTES).unwrap();
    assert_eq!(SignedBatch::open(largest.envelope().clone()), Ok(largest));
    let too_large = MAX_EVENT_DATA_BYTES + 1;
    assert_eq!(sign(too_large), Err(CodecError::DataTooLarge(too_large)));
    let mut body = head_of_body();
    body.push(1);
    let fixed = single_event_bytes();
    body.extend_from_slice(&fixed[..fixed.len() - 3]); // all but the data "1", its length, and that it is not signed
    body.push(0xfc); // bincode: a 32-bit number follows
    body.extend_from_slice(&u32::try_from(too_large).unwrap().to_le_bytes());
    body.resize(body.len() + too_large, b'1');
    body.extend_from_slice(&[0, 0]); // no signature, no heads
    assert_eq!(SignedBatch::open(signed_body(&body)), Err(CodecError::DataTooLarge(too_large).into()));
}

#[test]
fn a_signature_of_another_form_is_refused() {
    let mut body = head_of_body();
    body.push(1);
    let unsigned = single_event_bytes();
    body.extend_from_slice(&unsigned[..unsigned.len() - 1]);
    let with = |signature: &str| {
        // Signed, so many bytes, no heads.
        let length = u8::try_from(signature.len()).unwrap();
        signed_body(&[&body[..], &[1, length], signature.as_bytes(), &[0]].concat())
    };
    let opened = SignedBatch::open(with("e30..AA")).unwrap();
    assert_eq!(opened.batch().events[0].signature, Some("e30..AA".parse().unwrap()));
    for signature in ["", "e30.AA", "..", "e30..A\"", "e30..AA="] {
        let refused = SignedBatch::open(with(signature));
        assert_eq!(refused, Err(CodecError::Signature(InvalidSignature::Form).into()), "{signature}");
    }
}

#[test]
fn envelope_size_is_bounded() {
    let sign = |rest: usize| {
        let events = vec![
            event(&stream(), vec![b'1'; MAX_EVENT_DATA_BYTES]),
            event(&stream(), vec![b'1'; MAX_EVENT_DATA_BYTES / 2]),
            event(&stream(), vec![b'1'; rest]),
        ];
        SignedBatch::sign(batch_of(events), &KEY)
    };
    let some = MAX_EVENT_DATA_BYTES / 4;
    let fits = some + MAX_ENVELOPE_BYTES - sign(some).unwrap().envelope().len();
    let largest = sign(fits).unwrap();
    assert_eq!(largest.envelope().len(), MAX_ENVELOPE_BYTES);
    assert_eq!(SignedBatch::open(largest.envelope().clone()), Ok(largest));
    let too_large = CodecError::TooLarge { bytes: MAX_ENVELOPE_BYTES + 1, limit: MAX_ENVELOPE_BYTES };
    assert_eq!(sign(fits + 1), Err(too_large.clone()));
    assert_eq!(SignedBatch::open(vec![VERSION; MAX_ENVELOPE_BYTES + 1].into()), Err(too_large.into()));
}

#[test]
fn a_count_that_claims_more_memory_than_there_is_is_refused() {
    let mut body = head_of_body();
    body.push(0xfd); // bincode: a 64-bit number follows
    body.extend_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(SignedBatch::open(signed_body(&body)), Err(InvalidBatch::Codec(CodecError::Format(_)))));
    let mut reply = vec![VERSION, 0xfc];
    reply.extend_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(decode_head_reply(&reply), Err(CodecError::Format(_))));
}

#[test]
fn an_unknown_version_is_refused_by_name() {
    let mut envelope = signed().envelope().to_vec();
    envelope[0] = 1;
    let refused = SignedBatch::open(envelope.into()).unwrap_err();
    assert_eq!(refused, InvalidBatch::Codec(CodecError::UnknownVersion(1)));
    assert_eq!(refused.to_string(), "version 1 of the mesh protocol is not known here, only version 3");
    assert_eq!(decode_head_request(&[0]), Err(CodecError::UnknownVersion(0)));
    assert_eq!(decode_head_reply(&[255, 1]), Err(CodecError::UnknownVersion(255)));
}

#[test]
fn too_few_bytes_are_called_short() {
    for bytes in 0..=SIGNATURE_BYTES {
        let opened = SignedBatch::open(vec![VERSION; bytes].into());
        assert_eq!(opened, Err(CodecError::Short.into()), "{bytes} bytes");
    }
    assert_eq!(decode_head_request(&[]), Err(CodecError::Short));
    assert_eq!(decode_head_reply(&[]), Err(CodecError::Short));
}

#[test]
fn bytes_left_over_are_refused_even_when_signed() {
    let signed = signed();
    let mut body = signed.envelope()[..signed.envelope().len() - SIGNATURE_BYTES].to_vec();
    body.extend_from_slice(&[0, 0]);
    assert_eq!(SignedBatch::open(signed_body(&body)), Err(CodecError::Trailing(2).into()));
    let mut reply = encode_head_reply(&HeadReply {
        heads: vec![Head::Empty],
        read: Vec::new(),
        left: Vec::new(),
        policy: ChannelPolicy::default(),
    })
    .unwrap();
    reply.push(9);
    assert_eq!(decode_head_reply(&reply), Err(CodecError::Trailing(1)));
    let mut request =
        encode_head_request(&HeadRequest { topic: Topic::spanning(&stream()), streams: vec![stream()] })
            .unwrap();
    request.extend_from_slice(&[1, 2, 3]);
    assert_eq!(decode_head_request(&request), Err(CodecError::Trailing(3)));
}

#[test]
fn a_sequence_beyond_the_largest_is_refused() {
    let mut largest = event(&stream(), "1");
    largest.sequence = Sequence::new(MAX_SEQUENCE).unwrap();
    let envelope = SignedBatch::sign(batch_of(vec![largest]), &KEY).unwrap().envelope().to_vec();
    let body = &envelope[..envelope.len() - SIGNATURE_BYTES];
    let number = MAX_SEQUENCE.to_le_bytes();
    let at = body.windows(8).position(|window| window == number).unwrap();
    let mut beyond = body.to_vec();
    beyond[at..at + 8].copy_from_slice(&(MAX_SEQUENCE + 1).to_le_bytes());
    assert!(SignedBatch::open(signed_body(body)).is_ok());
    let refused = SignedBatch::open(signed_body(&beyond)).unwrap_err();
    assert!(matches!(refused, InvalidBatch::Codec(CodecError::Sequence(_))), "{refused}");
    assert_eq!(
        Sequence::new(MAX_SEQUENCE + 1).unwrap_err().to_string(),
        "sequence 9007199254740992 is beyond 2^53 - 1"
    );
}

#[test]
fn a_stream_of_another_topic_is_refused() {
    let eth: StreamName = "trades.eth_usdt".parse().unwrap();
    let foreign = || CodecError::ForeignStream("trades.eth_usdt".into());
    let topic = Topic::spanning(&stream());
    let mut mixed = batch_of(vec![event(&stream(), "1"), event(&eth, "1")]);
    assert_eq!(SignedBatch::sign(mixed.clone(), &KEY), Err(foreign()));
    // The same as bytes: both names have 15 bytes.
    mixed.events[1].stream = stream();
    let envelope = SignedBatch::sign(mixed, &KEY).unwrap().envelope().to_vec();
    let mut body = envelope[..envelope.len() - SIGNATURE_BYTES].to_vec();
    let at = body.windows(15).rposition(|window| window == stream().as_str().as_bytes()).unwrap();
    body[at..at + 15].copy_from_slice(eth.as_str().as_bytes());
    assert_eq!(SignedBatch::open(signed_body(&body)), Err(foreign().into()));

    let request = HeadRequest { topic: topic.clone(), streams: vec![stream(), eth.clone()] };
    assert_eq!(encode_head_request(&request), Err(foreign()));
    let good = HeadRequest { topic, streams: vec![stream()] };
    let mut bytes = encode_head_request(&good).unwrap();
    let at = bytes.len() - 15;
    bytes[at..].copy_from_slice(eth.as_str().as_bytes());
    assert_eq!(decode_head_request(&bytes), Err(foreign()));
}

#[test]
fn data_that_is_no_text_is_refused() {
    let binary = batch_of(vec![event(&stream(), vec![0xff, 0xfe])]);
    assert!(matches!(SignedBatch::sign(binary, &KEY), Err(CodecError::Format(_))));
    let signed = signed();
    let mut body = signed.envelope()[..signed.envelope().len() - SIGNATURE_BYTES].to_vec();
    *body.last_mut().unwrap() = 0xff;
    let opened = SignedBatch::open(signed_body(&body));
    assert!(matches!(opened, Err(InvalidBatch::Codec(CodecError::Format(_)))), "{opened:?}");
}

#[test]
fn head_counts_and_sizes_are_bounded() {
    // The most streams, each with the longest name, and a topic with the longest channel.
    let channel = "c".repeat(MAX_STREAM_NAME_BYTES - 20);
    let stream = |number: usize| StreamName::new(&channel, "k", Some(&format!("{number:017}"))).unwrap();
    let request = |count: usize| HeadRequest {
        topic: Topic::spanning(&stream(0)),
        streams: (0..count).map(stream).collect(),
    };
    let most = request(MAX_HEAD_STREAMS);
    assert_eq!(most.streams[0].as_str().len(), MAX_STREAM_NAME_BYTES);
    let bytes = encode_head_request(&most).unwrap();
    assert!(bytes.len() <= MAX_HEAD_BYTES, "{} bytes", bytes.len());
    assert_eq!(decode_head_request(&bytes), Ok(most));
    for count in [0, MAX_HEAD_STREAMS + 1] {
        assert_eq!(encode_head_request(&request(count)), Err(CodecError::StreamCount(count)));
        let reply = HeadReply {
            heads: vec![Head::Empty; count],
            read: Vec::new(),
            left: Vec::new(),
            policy: ChannelPolicy::default(),
        };
        assert_eq!(encode_head_reply(&reply), Err(CodecError::StreamCount(count)));
    }
    let farthest =
        Position { epoch: Epoch::from_u64(u64::MAX), sequence: Sequence::new(MAX_SEQUENCE).unwrap() };
    let beyond = HeadReply {
        heads: vec![Head::Empty],
        read: vec![farthest; MAX_HEAD_READ + 1],
        left: Vec::new(),
        policy: ChannelPolicy::default(),
    };
    assert_eq!(encode_head_reply(&beyond), Err(CodecError::ReadCount(MAX_HEAD_READ + 1)));
    let heads = vec![Head::At(farthest); MAX_HEAD_STREAMS];
    let left = vec![(u32::MAX, Epoch::from_u64(u64::MAX)); MAX_HEAD_LEFT];
    let policy = ChannelPolicy::default();
    let reply = HeadReply { heads, read: vec![farthest; MAX_HEAD_READ], left, policy };
    let bytes = encode_head_reply(&reply).unwrap();
    assert!(bytes.len() <= MAX_HEAD_BYTES, "{} bytes", bytes.len());
    assert_eq!(decode_head_reply(&bytes), Ok(reply));

    let mut too_many = vec![VERSION, 0xfb];
    too_many.extend_from_slice(&u16::try_from(MAX_HEAD_STREAMS + 1).unwrap().to_le_bytes());
    too_many.resize(too_many.len() + MAX_HEAD_STREAMS + 1, 1); // 1: empty
    too_many.extend_from_slice(&[0; 4]); // nothing is said of what was read and left; nothing is retained
    assert_eq!(decode_head_reply(&too_many), Err(CodecError::StreamCount(MAX_HEAD_STREAMS + 1)));
    assert_eq!(decode_head_reply(&[VERSION, 0, 0, 0, 0, 0]), Err(CodecError::StreamCount(0)));
    let too_large = CodecError::TooLarge { bytes: MAX_HEAD_BYTES + 1, limit: MAX_HEAD_BYTES };
    assert_eq!(decode_head_reply(&[VERSION; MAX_HEAD_BYTES + 1]), Err(too_large.clone()));
    assert_eq!(decode_head_request(&[VERSION; MAX_HEAD_BYTES + 1]), Err(too_large));
}
